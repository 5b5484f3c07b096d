"""A lake that has seen much, made by the program's own commands: what it said of each table at each version is kept, for other
engines to be compared with."""

import json
import random
import shutil
from datetime import datetime, timedelta, timezone

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from engines import rows_in
from messages import simulate
from program import REPOSITORY, TOPIC, Process, free_ports, run_ok, topics
from waiting import wait_for

EXAMPLE = REPOSITORY / "ingest" / "examples" / "web-shop"
BRONZE, LETTERS, ORDERS = "bronze.spotify_events", "bronze.dead_letters", "bronze.web_orders"
SILVER, PURCHASES = "silver.spotify_silver", "gold.purchases"

# Each is the value of a partition, and so in the name of a folder, which Polars takes it from. An empty text is NULL there, by
# Delta's protocol.
CURRENCIES = [None, "EUR", "USD", "", "a/b=c%d", "naïve ÿ 日本", "two  words+", "it's \"so\"", "#?&:;", "%2F"]

# Types that no other table has; the partition columns stand between the others.
PURCHASES_SQL = """\
{{ config(materialized='incremental', partition_by=['currency', 'is_gift']) }}
select
    order_id,
    currency,
    try_to_timestamp_tz(placed_at) as placed_at,
    cast(try_to_timestamp_tz(placed_at) as date) as placed_on,
    is_gift = 'true' as is_gift,
    try_cast(total as decimal(18, 4)) as exact_total,
    try_cast(total as double) as total,
    cast(order_id as bytea) as bytes,
    make_array(customer_id, null, order_id) as names,
    named_struct('customer', customer_id, 'place', named_struct('partition', _partition, 'offsets', make_array(_offset))) as origin,
    _partition,
    _offset
from {{ source('bronze', 'web_orders') }}
"""

# Partitions of every type that has a spelling.
SPELLINGS = "gold.spellings"
SPELLINGS_SQL = """\
{{ config(materialized='table', partition_by=['half', 'exact', 'moment', 'number']) }}
select
    order_id,
    cast(_partition as double) / 2 + 0.25 as half,
    cast(_partition as decimal(9, 2)) - 1.50 as exact,
    date_trunc('day', try_to_timestamp_tz(placed_at)) + interval '1 microsecond' as moment,
    case when is_gift = 'true' then _partition end as number
from {{ source('bronze', 'web_orders') }}
"""


class EnginesLake:
    """`said[table, version]` is what `lakebeat sql` answered when that version was the newest."""

    def __init__(self, folder, seed):
        self.folder, self.seed, self.random = folder, seed, random.Random(seed)
        self.lake = folder / "lakebeat-data" / "lake"
        self.project = folder / "project"
        self.settings = folder / "lakebeat.toml"
        self.said = {}
        self.batches = 0

    def make(self):
        """Batches of events and orders, with columns that are added, small files that are put together, and a table put back."""
        self._write_project()
        self._serve_batches(self._make_history)

    def address(self, table):
        return str(self.lake.joinpath(*table.split(".")))

    def command(self, *args):
        return run_ok(*args, cwd=self.folder, timeout=120)

    def rows(self, sql):
        return rows_in(self.command("sql", sql, "--json").out)

    def tables(self):
        """Every table with its newest version."""
        return {entry["table"]: entry["version"] for entry in self.command("table", "ls", "--json").json}

    def published(self):
        """What a kept publication names, and can be read for as long as it is kept."""
        rows = self.command("sql", "select tables from system.publications", "--json").json
        return {(name, pinned["version"]) for row in rows for name, pinned in json.loads(row["tables"]).items()}

    def newest(self, table):
        """The version that `lakebeat sql` reads."""
        if table.startswith(("bronze.", "system.")):
            return self.tables()[table]
        return max(version for name, version in self.published() if name == table)

    def plan(self, sql):
        """A query's plan, with what each step of it did."""
        return "\n".join(row["plan"] for row in self.command("sql", f"explain analyze {sql}", "--json").json)

    def _write_project(self):
        shutil.copytree(REPOSITORY / "transforms" / "models", self.project)
        models = self.project / "models"
        (models / "orders.yml").write_text("version: 2\nsources:\n  - name: bronze\n    tables: [{name: web_orders}]\n")
        for name in ("silver/orders.sql", "gold/revenue_by_day.sql"):
            shutil.copy(EXAMPLE / "models" / name, models / name)
        (models / "gold" / "purchases.sql").write_text(PURCHASES_SQL)
        (models / "gold" / "spellings.sql").write_text(SPELLINGS_SQL)
        shutil.copy(EXAMPLE / "lakebeat.toml", self.settings)

    def _serve_batches(self, work):
        (port,) = free_ports(1)
        self.brokers = f"127.0.0.1:{port}"
        broker = Process("broker", "--kafka-port", port, cwd=self.folder).start()
        try:
            wait_for("the broker answers", lambda: topics(self.brokers) is not None, seconds=30, alive=broker)
            admin = AdminClient({"bootstrap.servers": self.brokers, "log_level": 0})
            for made in admin.create_topics([NewTopic(TOPIC, 4, 1), NewTopic("web_orders", 2, 1)]).values():
                made.result(30)
            work()
        finally:
            broker.end()

    def _make_history(self):
        self._batch()
        self._batch()
        self._add_columns()
        self._batch()
        for table in (BRONZE, LETTERS, ORDERS, SILVER, PURCHASES):
            self.command("table", "compact", table)
        self._note()
        self._batch()
        before = max(version for table, version in self.said if table == ORDERS and version < self.tables()[ORDERS])
        self.command("table", "restore", ORDERS, "--version", before, "--yes")
        self._note()
        # What came after it is read again, and more.
        self._batch()
        self._batch()

    def _add_columns(self):
        added = '{ name = "coupon", column = "coupon", type = "any" },\n  { name = "points", column = "points", type = "number" },'
        text = self.settings.read_text()
        self.settings.write_text(text.replace('{ name = "placed_at"', added + '\n  { name = "placed_at"'))

    def _batch(self):
        self.batches += 1
        simulate(self.brokers, self.folder, 800, self.seed + self.batches, dirty=0.1)
        producer = Producer({"bootstrap.servers": self.brokers, "log_level": 0})
        for number in range(200):
            producer.produce("web_orders", json.dumps(self._order(number)))
        producer.produce("web_orders", "no order at all")
        assert producer.flush(30) == 0
        self.command("ingest", "--brokers", self.brokers, "--until-end")
        self._note()
        self.command("transform", "build", "--project", self.project)
        self._note()

    def _order(self, number):
        """One of a day of its batch's own, to the microsecond."""
        begins = datetime(2026, 3, self.batches, tzinfo=timezone.utc)
        placed = begins + timedelta(microseconds=number * 97_000_123 + self.random.randrange(1_000))
        order = {
            "order_id": f"o-{self.batches}-{number}",
            "customer": f"c-{self.random.randrange(40)}",
            "total": round(self.random.uniform(0, 500), 3),
            "currency": self.random.choice(CURRENCIES),
            "gift": self.random.choice([None, True, False]),
            "items": [{"sku": f"s-{self.random.randrange(9)}", "quantity": 1 + number % 3}],
            "placed_at": placed.isoformat() if number % 11 else None,
            "coupon": {"code": f"k-{number % 7}"},
            "points": number if number % 2 else None,
        }
        return {name: value for name, value in order.items() if value is not None or number % 2}

    def _note(self):
        for table, version in self.tables().items():
            if (table, version) not in self.said:
                self.said[table, version] = self.rows(f"select * from {table}")
