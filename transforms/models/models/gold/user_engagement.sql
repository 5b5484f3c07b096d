{{ config(materialized='table', partition_by=['day']) }}

select
    user_id,
    device_type,
    country,
    event_date as day,
    count(case when event_type = 'play' then 1 end) as plays,
    count(case when event_type = 'pause' then 1 end) as pauses,
    count(case when event_type = 'skip' then 1 end) as skips,
    count(case when event_type = 'add_to_playlist' then 1 end) as playlist_adds
from {{ ref('spotify_silver') }}
group by user_id, device_type, country, event_date
