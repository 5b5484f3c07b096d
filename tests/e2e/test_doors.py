"""ADBC Flight SQL, psycopg and psql ask the dashboard's queries and agree, with one another and with `lakebeat sql`.

The commands that tell people about a lake are tried here too, on the same `up`.
"""

import re
from datetime import UTC, date, datetime

import polars
import psycopg
import pytest
from deltalake import DeltaTable

from doors import by_command, by_flight, by_psql, by_psycopg
from expected import Tables
from lake import Lake, wait_settled
from messages import produced, simulate
from program import DOORS, POSTGRES, TOPIC, Up, run
from waiting import wait_for

QUERIES = {
    "totals": """
        select coalesce(sum(total_plays), 0) as plays, coalesce(sum(total_skips), 0) as skips,
               count(distinct artist_name) as artists,
               (select count(distinct user_id) from gold.user_engagement) as users
        from gold.top_songs""",
    "top songs": """
        select song_name, artist_name, total_plays, total_skips from top_songs
        order by total_plays desc, song_name limit 10""",
    "by device": "select device_type, sum(plays) as plays from user_engagement group by device_type order by device_type",
    "by country": """
        select country, sum(events) as events, count(distinct song_id) as songs
        from gold.listening_by_minute group by country order by country""",
    "by minute": "select minute, sum(events) as events from listening_by_minute group by minute order by minute",
    "engagement": """
        select user_id, device_type, country, day, plays, pauses, skips, playlist_adds from lake.gold.user_engagement
        order by user_id, device_type, country, day""",
    "share of skips": """
        select song_name, total_skips * 1.0 / nullif(total_plays, 0) as share from top_songs order by song_name""",
    "events": """
        select event_id, event_timestamp, event_type, country from silver.spotify_silver
        where country in ('US', 'UK') order by event_id""",
    "unread": "select reason, count(*) as letters, null as nothing from bronze.dead_letters group by reason order by reason",
}  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory, seed):
    """An `up` that has done its work: the tables stand still. Yields it and what they hold."""
    print(f"seed {seed}")
    folder = tmp_path_factory.mktemp("doors")
    up = Up(folder, "--no-simulate")
    try:
        up.start()
        log, _ = simulate(up.brokers, folder, 3_000, seed, dirty=0.05)
        messages = produced(up.brokers, log)
        wait_settled(Lake(up.lake), messages, alive=up)
        up.wait_ready()
        yield up, Tables(messages)
    finally:
        up.end()


def plain(value, like):
    """A value as the type of `like`, the same column's value at the Flight door, whatever a client made of it."""
    if value is None or like is None:
        return value
    if isinstance(like, datetime):
        value = datetime.fromisoformat(value) if isinstance(value, str) else value
        return value.astimezone(UTC)
    if isinstance(like, date):
        return date.fromisoformat(value) if isinstance(value, str) else value
    if isinstance(like, float):
        return float(value)
    return type(like)(value)


def same_rows(name, names, found, flight_names, flight_rows):
    assert [column.lower() for column in names] == flight_names or not flight_rows, name
    assert len(found) == len(flight_rows), name
    for row, flight_row in zip(found, flight_rows):
        assert len(row) == len(flight_row), name
        assert tuple(map(plain, row, flight_row)) == flight_row, name


@pytest.mark.parametrize("name", QUERIES)
def test_the_doors_agree(served, name):
    up, _ = served
    flight_names, flight_rows = by_flight(up, QUERIES[name])
    flight_rows = [tuple(map(plain, row, row)) for row in flight_rows]
    assert flight_rows, "a query without an answer shows nothing"
    for client in (by_psycopg, by_psql, by_command):
        names, rows = client(up, QUERIES[name])
        same_rows(f"{name} by {client.__name__}", names, rows, flight_names, flight_rows)


def test_the_answers_are_right(served):
    """What all doors agree on is also what the messages say."""
    up, tables = served
    _, [(plays, skips, artists, users)] = by_flight(up, QUERIES["totals"])
    assert int(plays) == sum(row[3] for row in tables.top_songs)
    assert int(skips) == sum(row[4] for row in tables.top_songs)
    assert artists == len({row[2] for row in tables.top_songs})
    assert users == len({row[0] for row in tables.user_engagement})
    _, rows = by_psycopg(up, QUERIES["by minute"])
    assert sum(int(events) for _, events in rows) == len(tables.silver)
    _, rows = by_psql(up, QUERIES["unread"])
    assert sum(int(letters) for _, letters, _ in rows) == tables.letters.total()


def test_parameters(served):
    """Prepared statements with values, in the two binary protocols."""
    up, tables = served
    expected = sum(row[4] for row in tables.user_engagement if row[2] == "DE")
    _, rows = by_flight(up, "select sum(plays) from user_engagement where country = ?", "DE")
    assert int(rows[0][0]) == expected
    _, rows = by_flight(up, "select sum(plays) from user_engagement where country = $1 and plays >= $2", "DE", 0)
    assert int(rows[0][0]) == expected
    _, rows = by_psycopg(up, "select sum(plays) from user_engagement where country = %s and plays >= %s", "DE", 0)
    assert int(rows[0][0]) == expected


def test_the_doors_only_read(served):
    up, _ = served
    for sql in (
        "drop table gold.top_songs",
        "create table t as select 1",
        "insert into gold.top_songs values ('a', 'b', 'c', 1, 2)",
        "copy (select 1) to '/tmp/stolen.csv'",
        "create external table t stored as csv location '/etc/passwd'",
        "delete from silver.spotify_silver",
    ):
        with pytest.raises(Exception):
            by_flight(up, sql)
        with pytest.raises(psycopg.Error) as refused:
            by_psycopg(up, sql)
        assert refused.value.sqlstate, sql
    assert up.exit_status() is None
    by_flight(up, QUERIES["totals"])


def test_one_connection_outlives_its_errors(served):
    """A wrong statement is answered with an error that names the thing, and the connection goes on."""
    up, _ = served
    url = f"postgresql://anybody@127.0.0.1:{up.ports[POSTGRES]}/lake"
    with psycopg.connect(url, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.UndefinedTable) as error:
            connection.execute("select * from no_such_table")
        assert "no_such_table" in str(error.value)
        with pytest.raises(psycopg.errors.UndefinedColumn):
            connection.execute("select no_such_column from top_songs")
        with pytest.raises(psycopg.errors.SyntaxError):
            connection.execute("selec 1")
        assert connection.execute("select count(*) from top_songs").fetchone() == (6,)


def test_no_statement_is_too_long_for_the_stack(served):
    """A statement that is a deep tree is refused, or answered; it never ends the process."""
    up, _ = served
    with psycopg.connect(f"postgresql://ana@127.0.0.1:{up.ports[POSTGRES]}/lake", autocommit=True) as connection:
        assert connection.execute("select " + " + ".join(["1"] * 2_000)).fetchone() == (2_000,)
        union = " union all ".join(["select 1 as one"] * 1_000)
        assert connection.execute(f"select count(*) from ({union}) as ones").fetchone() == (1_000,)
        for deep in (" + ".join(["1"] * 200_000), " or ".join(["true"] * 100_000), "(" * 10_000 + "1" + ")" * 10_000):
            with pytest.raises(psycopg.Error, match="(?i)operators|recursion|nest|deep"):
                connection.execute(f"select {deep}")
        assert connection.execute("select 1").fetchone() == (1,)


# What people read at the command line.


def printed(up, *args):
    """The rows of a table for people, header first, as lists of their cells."""
    ended = up.command(*args)
    assert ended.status == 0, ended
    return [re.split(" {2,}", line) for line in ended.out.splitlines()]


def newest_version(up, table):
    return DeltaTable(str(Lake(up.lake).path(table))).version()


def test_doctor_beside_a_running_up(served):
    """All is well: the doors' ports are taken, by that very `up`, and that is no fault."""
    up, _ = served
    flags = [part for door in DOORS for part in (f"--{door}-port", up.ports[door])]
    header, *rows = printed(up, "doctor", "--brokers", up.brokers, *flags)
    assert header == ["state", "what", "detail"]
    found = {what: (state, detail) for state, what, detail in rows}
    tables = len(list(up.lake.glob("*/*/_delta_log")))
    assert found.pop("settings") == ("ok", "understood")
    assert found.pop(f"lake file://{up.lake}/") == ("ok", f"{tables} tables")
    assert found.pop(f"broker {up.brokers}") == ("ok", f"1 brokers, topic {TOPIC} is there")
    assert found.pop("Snowflake") == ("ok", "not set: only `mirror` needs it")
    for door in DOORS:
        state, detail = found.pop(f"port {up.ports[door]}")
        assert state == "note" and f"--{door}-port" in detail
    assert not found


def test_publications_for_people(served):
    """The newest one names versions at which the tables hold what the messages say."""
    up, tables = served
    # The source is named too, as far as the models have read it; dead letters are read by no model.
    expected = {name: rows.total() for name, rows in tables.named().items() if name != "bronze.dead_letters"}

    def published():
        header, *rows = printed(up, "publication", "ls")
        assert header == ["publication", "group", "time", "tables"]
        ids = [int(row[0]) for row in rows]
        assert ids == sorted(set(ids), reverse=True)
        return dict(pinned.split("@") for pinned in rows[0][3].split())

    def rows_at(table, version):
        return polars.read_delta(str(Lake(up.lake).path(table)), version=int(version)).height

    # A build is published a moment after its tables are committed.
    wait_for(
        f"a publication of {expected}",
        lambda: {table: rows_at(table, version) for table, version in published().items()} == expected,
        seconds=20,
        alive=up,
    )


def test_history_for_people(served):
    """Each commit of bronze once, newest first; together they added all rows and consumed all offsets."""
    up, tables = served
    header, *commits = printed(up, "table", "history", "bronze.spotify_events", "--limit", 1_000)
    assert header == ["version", "time", "operation", "files", "rows added", "ledger"]
    versions = [int(commit[0]) for commit in commits]
    assert versions == list(range(newest_version(up, "bronze.spotify_events"), -1, -1))
    # What is put into fewer files is no new row.
    assert sum(int(commit[4]) for commit in commits if commit[2] != "OPTIMIZE") == tables.bronze.total()

    ledger = {}
    for commit in reversed(commits):
        # The commit that makes the table has no ledger.
        ledger.update(entry.split("=") for entry in " ".join(commit[5:]).split())
    following = {}
    for partition, offset, *_ in tables.bronze | tables.letters:
        entry = f"ingest/{TOPIC}/{partition}"
        following[entry] = max(following.get(entry, 0), offset + 1)
    assert {entry: int(offset) for entry, offset in ledger.items()} == following


def test_explain_for_people(served, tmp_path):
    up, _ = served

    def explained():
        ended = up.command("transform", "explain")
        assert ended.status == 0, ended
        return ended.out

    # A build moves what its models have read a moment after their rows can be seen.
    wait_for("nothing is left to build", lambda: explained().count("\n  next: nothing: ") == 4, seconds=20, alive=up)
    bronze = newest_version(up, "bronze.spotify_events")
    silver, *gold = re.split(r"\n(?=\S)", explained())
    assert silver.splitlines()[:2] == [
        "silver.spotify_silver: keyed merge",
        f"  bronze.spotify_events: read up to version {bronze}, newest is {bronze}",
    ]
    assert sorted(model.splitlines()[0] for model in gold) == [
        f"gold.{name}: full (it is materialized as table)" for name in ("listening_by_minute", "top_songs", "user_engagement")
    ]

    ended = run("transform", "explain", "--select", "spotify_silver", cwd=tmp_path)
    assert ended.status == 0 and "bronze.spotify_events, which it reads, is not ingested yet" in ended.out, ended
