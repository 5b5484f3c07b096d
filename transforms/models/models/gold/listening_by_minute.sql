{{ config(materialized='table', partition_by=['day']) }}

select
    date_trunc('minute', event_timestamp) as minute,
    song_id,
    song_name,
    artist_name,
    device_type,
    country,
    event_type,
    count(*) as events,
    event_date as day
from {{ ref('spotify_silver') }}
group by
    date_trunc('minute', event_timestamp),
    song_id,
    song_name,
    artist_name,
    device_type,
    country,
    event_type,
    event_date
