{{ config(
    materialized='incremental',
    unique_key=['order_id'],
    order_by=['_kafka_timestamp', '_partition', '_offset', '_index']
) }}

-- One row an order, typed. Who sends an order twice has placed it once.
select
    order_id,
    customer_id,
    try_cast(total as double) as total,
    currency,
    is_gift = 'true' as is_gift,
    items_json,
    try_to_timestamp_tz(placed_at) as placed_at,
    _kafka_timestamp,
    _partition,
    _offset,
    _index
from {{ source('bronze', 'web_orders') }}
where order_id is not null
qualify row_number() over (partition by order_id order by _kafka_timestamp, _partition, _offset, _index) = 1
