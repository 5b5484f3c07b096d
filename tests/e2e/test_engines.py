"""Other engines read every table at every version, agree with the program on each row, and pass over files that cannot match; and the
program's table provider beside the library's own, which Python's deltalake has, in the same query engine."""

from datetime import date, timedelta

import polars
import pytest
from deltalake import DeltaTable

from engines import Condition, Polars, Python, Spark, checksum, cost, rows_of
from engines_lake import BRONZE, LETTERS, ORDERS, PURCHASES, SILVER, SPELLINGS, EnginesLake
from lake import difference
from spark_server import SparkServer

ENGINES = ["deltalake", "polars", "spark"]

# The index of a file's pages, which one of two versions of the query engine may ask where the other does not.
PAGE_INDEX_BYTES_MAX = 1024


@pytest.fixture(scope="module")
def lake(tmp_path_factory, seed):
    print(f"seed {seed}")
    lake = EnginesLake(tmp_path_factory.mktemp("engines"), seed)
    lake.make()
    return lake


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    server = SparkServer(tmp_path_factory.mktemp("spark") / "spark")
    try:
        yield {"deltalake": Python(), "polars": Polars(), "spark": Spark(server.start().session)}
    finally:
        server.end()


def check_same(lake, engine, table, version, asked):
    """It answers to `asked`, a version or the head, what the program said of `version`."""
    said = lake.said[table, version]
    found = rows_of(engine.arrow(lake.address(table), asked))
    wrong = difference(f"{table} at version {version}", said, found)
    assert not wrong, wrong
    at = "newest" if asked is None else "version"
    print(f"{type(engine).__name__:<8} {table:<26} {at} {version:>3} {found.total():>6} rows, checksum {checksum(found)}")


def test_the_lake_has_seen_what_it_should(lake):
    operations = {
        table: [entry["operation"] for entry in DeltaTable(lake.address(table)).history()] for table in lake.tables()
    }
    assert operations[ORDERS].count("RESTORE") == operations[ORDERS].count("ADD COLUMNS") == 1, operations
    assert all("OPTIMIZE" in operations[table] for table in (BRONZE, ORDERS, PURCHASES)), operations
    partitions = DeltaTable(lake.address(PURCHASES)).partitions()
    assert {(part["currency"], part["is_gift"]) for part in partitions} >= {(None, None), ("a/b=c%d", "true"), ("%2F", "false")}
    lake.command("verify")


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_reads_the_same_at_every_version(lake, engines, name):
    for table, head in lake.tables().items():
        check_same(lake, engines[name], table, head, None)
    for table, version in lake.said:
        check_same(lake, engines[name], table, version, version)


def late(lake, table, column):
    """A moment that most of the rows lie before."""
    moments = polars.read_delta(lake.address(table), columns=[column])[column].drop_nulls().sort()
    return moments[len(moments) * 4 // 5]


def conditions(lake):
    """Each lets some files be passed over: by the values of partitions, by statistics, or by both."""
    for table in (BRONZE, LETTERS, ORDERS):
        yield table, Condition(("_ingested_at", ">", late(lake, table, "_ingested_at")))
    yield BRONZE, Condition(("_kafka_timestamp", ">=", late(lake, BRONZE, "_kafka_timestamp")), ("_partition", "=", 1))
    yield ORDERS, Condition(("points", "is not null", None), ("_ingested_at", ">", late(lake, ORDERS, "_ingested_at")))
    yield SILVER, Condition(("_kafka_timestamp", ">", late(lake, SILVER, "_kafka_timestamp")))
    placed_at = late(lake, PURCHASES, "placed_at")
    yield PURCHASES, Condition(("placed_at", ">", placed_at))
    yield PURCHASES, Condition(("is_gift", "=", True), ("placed_at", ">", placed_at))
    yield PURCHASES, Condition(("currency", "=", "a/b=c%d"))
    yield PURCHASES, Condition(("currency", "is null", None))
    yield PURCHASES, Condition(("currency", "in", ["it's \"so\"", "%2F"]), ("placed_on", "=", date(2026, 3, 5)))


@pytest.mark.parametrize("name", ENGINES)
def test_no_engine_reads_files_that_cannot_match(lake, engines, name):
    for table, condition in conditions(lake):
        address = lake.address(table)
        wanted = polars.read_delta(address).filter(condition.polars)
        assert wanted.height > 0, condition.sql
        every, read = len(DeltaTable(address).file_uris()), engines[name].files(address, condition)
        assert 0 < read < every, f"{table} where {condition.sql}: {read} of {every} files"


def queries(lake):
    """Queries on a table `t`, and whether there is just one answer to it."""
    for table, condition in conditions(lake):
        yield table, f"select * from t where {condition.sql}"
        yield table, f"select count(*) as rows from t where {condition.sql}"
    for table in (BRONZE, ORDERS, SILVER, PURCHASES):
        yield table, "select * from t"
        yield table, "select count(*) as rows from t"
        yield table, "select count(*) as rows, min(_offset) as least, max(_offset) as most from t"
        yield table, "select count(_offset) as rows from (select * from t limit 7)"
    yield ORDERS, "select count(coupon) as coupons, count(points) as points, min(coupon) as least from t"
    yield ORDERS, "select order_id, coupon from t where coupon is null or points in ('1', '3', '199')"
    yield ORDERS, "select points, count(*) as rows from t where points is null group by points"
    yield PURCHASES, "select currency, is_gift, count(*) as rows, max(placed_at) as newest from t group by currency, is_gift"
    yield PURCHASES, "select currency, is_gift from t where is_gift is null or currency is null"
    for condition in ("is_gift is not true", "not is_gift", "currency like '%2%'", "upper(currency) = 'EUR' or is_gift is null"):
        yield PURCHASES, f"select order_id, currency from t where {condition}"
    yield SPELLINGS, "select * from t where half > 0.5"
    yield SPELLINGS, "select * from t where moment > '2026-03-02T00:00:00.000001Z' and exact < 0"
    yield PURCHASES, "select order_id, origin, names from t where currency not in ('EUR', 'USD') and exact_total > 450"
    yield PURCHASES, "select order_id, exact_total from t where exact_total between 100.5 and 101.5 or currency = ''"
    for column, table in (("placed_at", PURCHASES), ("_ingested_at", BRONZE), ("_kafka_timestamp", SILVER)):
        for moment in newest_of_files(lake, table, column):
            for condition in (Condition((column, "=", moment)), Condition((column, ">=", moment))):
                yield table, f"select {column} from t where {condition.sql}"
            yield table, f"select {column} from t where {Condition((column, '>', moment - timedelta(microseconds=1))).sql}"
            yield table, f"select count(*) as rows from t where {Condition((column, '>', moment)).sql}"


def newest_of_files(lake, table, column, files=3):
    """What the statistics of a file give as its maximum, which they have in milliseconds only."""
    for uri in sorted(DeltaTable(lake.address(table)).file_uris())[:files]:
        if newest := polars.read_parquet(uri, columns=[column], hive_partitioning=False)[column].max():
            yield newest


def test_the_provider_beside_the_librarys_own(lake, engines):
    """The same rows, by no more files and no more bytes. But a query that wants nothing but values of partitions is answered by the
    library from its log, and here by the footers of the files."""
    library, versions = engines["deltalake"], {table: lake.newest(table) for table in lake.tables()}
    for table, sql in queries(lake):
        address, version, ours = lake.address(table), versions[table], sql.replace("from t", f"from {table}")
        wrong = difference(ours, rows_of(library.query(address, sql, version)), lake.rows(ours))
        assert not wrong, wrong
        (files, size), (files_most, size_most) = cost(lake.plan(ours)), cost(library.plan(address, sql, version))
        print(f"{files:>3.0f} files {size:>8.0f} bytes; the library's own {files_most:>3.0f} {size_most:>8.0f}: {ours}")
        assert files <= files_most or size == 0, ours
        # Which rows a limit takes is free, and so is the file that has them, a large one or a small one.
        assert size <= size_most + files * PAGE_INDEX_BYTES_MAX or " limit " in ours, ours


def test_the_plan_says_what_is_read(lake, engines):
    """So that the comparison compares something."""
    for plan in (lake.plan(f"select * from {BRONZE}"), engines["deltalake"].plan(lake.address(BRONZE), "select * from t")):
        files, size = cost(plan)
        assert files == len(DeltaTable(lake.address(BRONZE)).file_uris()) > 1 and size > 0, plan


@pytest.mark.parametrize("name", ENGINES)
def test_what_is_kept_is_the_same_after_a_vacuum(lake, engines, name):
    """The newest version of each table, and each that a kept publication names."""
    published = lake.published()
    for table in lake.tables():
        lake.command("table", "vacuum", table, "--yes")
    for table, head in lake.tables().items():
        check_same(lake, engines[name], table, head, None)
    for table, version in published & lake.said.keys():
        check_same(lake, engines[name], table, version, version)
