{{ config(
    materialized='incremental',
    unique_key=['event_id', 'event_date'],
    order_by=['_kafka_timestamp', '_partition', '_offset', '_index'],
    partition_by=['event_date']
) }}

-- The query says what the table holds as a whole; how it is kept up to date is not its business.
-- The last four columns say where a row came from. They decide between two copies of one event, also between a copy that
-- is here already and one that arrives later, so the table is a function of the data and not of the order of arrival.

with typed as (
    select
        event_id,
        user_id,
        song_id,
        artist_name,
        song_name,
        event_type,
        device_type,
        country,
        try_to_timestamp_tz(timestamp_str) as event_timestamp,
        _kafka_timestamp,
        _partition,
        _offset,
        _index
    from {{ source('bronze', 'spotify_events') }}
),

clean as (
    select
        event_id,
        user_id,
        song_id,
        artist_name,
        song_name,
        event_type,
        device_type,
        country,
        event_timestamp,
        cast(event_timestamp as date) as event_date,
        _kafka_timestamp,
        _partition,
        _offset,
        _index
    from typed
    where event_id is not null
      and user_id is not null
      and song_id is not null
      and event_timestamp is not null
)

select *
from clean
qualify row_number() over (
    partition by event_id, event_date
    order by _kafka_timestamp, _partition, _offset, _index
) = 1
