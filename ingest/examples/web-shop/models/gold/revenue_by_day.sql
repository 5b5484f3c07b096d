{{ config(materialized='table') }}

select
    cast(placed_at as date) as day,
    currency,
    count(*) as orders,
    sum(total) as revenue
from {{ ref('orders') }}
where placed_at is not null
group by cast(placed_at as date), currency
