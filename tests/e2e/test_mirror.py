"""Gold in Snowflake: it is what one publication says, whenever the mirror is killed, refused or cut off."""

import datetime
import itertools
import json
import shutil
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import polars
import pytest

import program
import stand_in
from messages import simulate
from program import REPOSITORY, TOPIC, Process, check_refused, free_ports, run, run_ok, topics
from stand_in import AFTER, BEFORE, Relay, Target, refusal
from waiting import wait_for

DONE, FAULT, WRONG, UNREACHABLE = 0, 1, 2, 3
PROJECT = REPOSITORY / "transforms" / "models"
PASSWORD = "correct horse battery staple"
UTC = datetime.UTC

# Every type that the mirror carries, and values that are hard to carry.
ODD_VALUES = """
select 1 as id, 'plain' as text, true as yes, cast(1.5 as double) as share, cast(12.34 as decimal(10, 2)) as price,
       cast(9223372036854775807 as bigint) as most, cast(-7 as smallint) as few,
       date '2026-01-02' as day, arrow_cast('2026-01-02T03:04:05.678901Z', 'Timestamp(Microsecond, Some("UTC"))') as at,
       x'00ff41' as bytes, 'a' as "order"
union all
select 2, 'it''s "quoted", \\back\\slash\\n, $1 ? :2 @x; -- no comment', false, cast(-0.25 as double),
       cast(-99999999.99 as decimal(10, 2)), cast(-9223372036854775808 as bigint), cast(-32768 as smallint),
       date '1899-12-31', arrow_cast('1969-12-31T23:59:59.999999Z', 'Timestamp(Microsecond, Some("UTC"))'), x'', ''
union all
select 3, 'žluťoučký kůň 🎵 \U00010348 日本語 ' || chr(9) || chr(10) || ' end ', null, null, null, null, null, null,
       null, null, null
union all
select null, null, null, null, null, null, null, null, null, null, null
"""
NO_VALUES = """
select song_id, song_name, cast(1 as bigint) as plays, current_date as day from {{ ref('spotify_silver') }} where false
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The bundled project, with two more tables in gold."""
    folder = tmp_path_factory.mktemp("project") / "models"
    shutil.copytree(PROJECT, folder)
    set_model(folder, "odd_values", ODD_VALUES)
    set_model(folder, "no_values", NO_VALUES)
    return folder


def set_model(project, name, sql):
    gold = next(project.rglob("top_songs.sql")).parent
    (gold / f"{name}.sql").write_text("{{ config(materialized='table') }}\n" + sql)


@pytest.fixture(scope="module")
def lakes(tmp_path_factory, project):
    """Data folders with two moments of one lake: with its first publication, and with its second."""
    folder = tmp_path_factory.mktemp("lakes")
    (port,) = free_ports(1)
    brokers = f"127.0.0.1:{port}"
    broker = Process("broker", "--kafka-port", port, "--data-dir", folder / "broker", cwd=folder).start()
    try:
        wait_for("the broker answers", lambda: topics(brokers) is not None, seconds=30, alive=broker)
        first, second = folder / "first", folder / "second"
        for data, seed in ((first, 1), (second, 2)):
            if data == second:
                shutil.copytree(first, second)
            simulate(brokers, folder, 400, seed)
            ingest = ("ingest", "--brokers", brokers, "--topic", TOPIC, "--until-end", "--data-dir", data)
            run_ok(*ingest, cwd=folder)
            build(data, project)
    finally:
        broker.end()
    return first, second


@pytest.fixture(scope="module")
def small_lakes(tmp_path_factory, lakes):
    """The same with two tables in gold, for what is tried often."""
    folder = tmp_path_factory.mktemp("small")
    project = folder / "models"
    shutil.copytree(PROJECT, project)
    for file in ("listening_by_minute.sql", "schema.yml"):
        next(project.rglob(f"gold/{file}")).unlink()
    first, second = folder / "first", folder / "second"
    for data, whole in zip((first, second), lakes):
        if data == second:
            shutil.copytree(first, second)
        shutil.copytree(whole / "lake" / "bronze", data / "lake" / "bronze", dirs_exist_ok=True)
        build(data, project)
    return first, second


def build(data, project):
    return run_ok("transform", "build", "--project", project, "--data-dir", data, "--json", cwd=data).json


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = stand_in.started(tmp_path_factory.mktemp("fakesnow"))
    yield server
    server.end()


class Mirror:
    """The program against a database of its own, through a relay."""

    numbers = itertools.count(1)

    def __init__(self, folder, server, data):
        self.folder, self.server = folder, server
        self.database = f"DB{next(Mirror.numbers)}"
        self.relay = Relay(server)
        self.target = Target(server, self.database)
        self.data = folder / "data"
        shutil.copytree(data, self.data)

    def env(self, **more):
        settings = {
            "SNOWFLAKE_ACCOUNT": "stand-in", "SNOWFLAKE_USER": "loader", "SNOWFLAKE_PASSWORD": PASSWORD,
            "SNOWFLAKE_URL": self.relay.url, "SNOWFLAKE_DATABASE": self.database.lower(),
        }  # fmt: skip
        return settings | more

    def run(self, *args, data=None, command="mirror", **more):
        ended = run(command, *args, "--data-dir", data or self.data, cwd=self.folder, env=self.env(**more))
        assert PASSWORD not in ended.out + ended.err
        assert not self.relay.faults, self.relay.faults
        return ended

    def run_ok(self, *args, outcome="mirrored", **options):
        ended = self.run("--json", *args, **options)
        assert ended.status == DONE, ended
        assert ended.json["outcome"] == outcome, ended
        return ended.json

    def process(self, *args, data=None):
        return Process("mirror", *args, "--data-dir", data or self.data, cwd=self.folder, env=self.env())

    def now(self, data):
        """Moves the lake on, keeping what it knows of the mirror."""
        record = self.data / "lake" / "system" / "mirror_runs"
        for source in (data / "lake").iterdir():
            if source.is_dir():
                shutil.copytree(source, self.data / "lake" / source.name, dirs_exist_ok=True)
        assert record.exists()


@pytest.fixture
def mirror(tmp_path, server, lakes):
    mirror = Mirror(tmp_path, server, lakes[0])
    yield mirror
    mirror.relay.shutdown()
    mirror.relay.server_close()


def gold(data):
    """The tables of gold as another engine reads them from the lake, by their names in Snowflake."""
    folder = data / "lake" / "gold"
    return {path.name.upper(): Counter(polars.read_delta(str(path)).rows()) for path in folder.iterdir()}


def check_holds(target, publications):
    """What is there is one publication whole; returns which. `publications` are the tables of each, by its number."""
    publication = target.publication()
    expected = publications[publication]
    for table in target.tables():
        # What is being loaded is nobody's to read; a table that was made and not filled yet has no rows.
        if not table.startswith("_LAKEBEAT_STAGING_"):
            wrong = difference(table, expected.get(table, Counter()), target.rows(table))
            assert not wrong, f"publication {publication} is not whole: {wrong}"
    assert expected.keys() <= target.tables()
    return publication


def difference(name, expected, found):
    missing, extra = expected - found, found - expected
    return f"{name}: missing {list(missing)[:3]}, too much {list(extra)[:3]}" if missing or extra else ""


def check_tidy(target, tables):
    assert target.tables() == set(tables), "something was left behind"


# Loading.


def test_the_first_load_is_gold_row_for_row(mirror, lakes):
    summary = mirror.run_ok()
    expected = gold(lakes[0])
    assert expected.keys() == {"TOP_SONGS", "USER_ENGAGEMENT", "LISTENING_BY_MINUTE", "ODD_VALUES", "NO_VALUES"}
    assert check_holds(mirror.target, {1: expected}) == 1
    check_tidy(mirror.target, expected)
    rows = sum(table.total() for table in expected.values())
    assert (summary["publication"], summary["tables"], summary["rows"]) == (1, 5, rows)
    assert summary["target"] == f"{mirror.database}.TRANSFORM"
    assert summary["statements"] == len(mirror.relay.statements())


def test_every_type_arrives_as_it_is(mirror):
    mirror.run_ok()
    assert mirror.target.columns("ODD_VALUES") == [
        ("ID", "NUMBER"), ("TEXT", "TEXT"), ("YES", "BOOLEAN"), ("SHARE", "FLOAT"), ("PRICE", "NUMBER"),
        ("MOST", "NUMBER"), ("FEW", "NUMBER"), ("DAY", "DATE"), ("AT", "TIMESTAMP_TZ"), ("BYTES", "BINARY"),
        ("ORDER", "TEXT"),
    ]  # fmt: skip
    rows = {row[0]: row[1:] for row in mirror.target.rows("ODD_VALUES")}
    assert rows[1] == (
        "plain", True, 1.5, Decimal("12.34"), 2**63 - 1, -7, datetime.date(2026, 1, 2),
        datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, UTC), b"\x00\xff\x41", "a",
    )  # fmt: skip
    assert rows[2] == (
        "it's \"quoted\", \\back\\slash\\n, $1 ? :2 @x; -- no comment", False, -0.25, Decimal("-99999999.99"),
        -(2**63), -(2**15), datetime.date(1899, 12, 31),
        datetime.datetime(1969, 12, 31, 23, 59, 59, 999999, UTC), b"", "",
    )  # fmt: skip
    assert rows[3][0] == "žluťoučký kůň 🎵 \U00010348 日本語 \t\n end "
    assert rows[None] == (None,) * 10
    # As people and BI tools write it.
    assert mirror.target.query("select max(total_plays) > 0 from top_songs") == [(True,)]


def test_only_what_has_changed_is_loaded(mirror, lakes):
    first = mirror.run_ok()
    mirror.now(lakes[1])
    second = mirror.run_ok()
    before, after = gold(lakes[0]), gold(lakes[1])
    changed = [name for name in after if after[name] != before[name]]
    assert sorted(changed) == ["LISTENING_BY_MINUTE", "TOP_SONGS", "USER_ENGAGEMENT"]
    statements = mirror.relay.statements()[first["statements"] :]
    copied = [sql for sql in statements if sql.startswith("COPY INTO")]
    assert len(copied) == len(changed), copied
    # One more was built anew, from other rows, and is empty as before.
    assert second["tables"] == len(changed) + 1 and "NO_VALUES" in " ".join(statements)
    assert not [sql for sql in statements if "ODD_VALUES" in sql and not sql.startswith("SELECT TABLE_NAME")]
    assert check_holds(mirror.target, {2: after}) == 2
    check_tidy(mirror.target, after)
    ended = run_ok("sql", "select * from system.mirror_runs", "--json", "--data-dir", mirror.data, cwd=mirror.folder)
    said = [(row["publication"], row["outcome"], row["tables"], row["rows"]) for row in ended.json]
    expected = [(run["publication"], "mirrored", run["tables"], run["rows"]) for run in (first, second)]
    assert sorted(said) == expected


def test_an_unchanged_publication_sends_nothing(mirror):
    mirror.run_ok()
    mirror.relay.forget()
    summary = mirror.run_ok(outcome="unchanged")
    assert (mirror.relay.connections, mirror.relay.requests) == (0, [])
    assert (summary["publication"], summary["statements"]) == (1, 0)
    ended = mirror.run()
    assert ended.out == f"publication #1 is mirrored already in {mirror.database}.TRANSFORM\n"
    assert mirror.relay.connections == 0
    log = mirror.data / "lake" / "system" / "mirror_runs" / "_delta_log"
    assert len(list(log.glob("*.json"))) == 2, "something was written down for nothing"


def test_what_the_lake_forgot_snowflake_knows(mirror):
    """As after a crash between Snowflake's COMMIT and the lake's: it is written down, and nothing is loaded."""
    mirror.run_ok()
    shutil.rmtree(mirror.data / "lake" / "system" / "mirror_runs")
    mirror.relay.forget()
    summary = mirror.run_ok(outcome="found")
    assert (summary["publication"], summary["rows"]) == (1, 0)
    assert not [sql for sql in mirror.relay.statements() if sql.startswith(("BEGIN", "PUT", "CREATE"))]
    mirror.run_ok(outcome="unchanged")


def test_tables_that_come_grow_and_go(mirror, project, tmp_path):
    mirror.run_ok()
    mine = tmp_path / "mine"
    shutil.copytree(project, mine)
    next(mine.rglob("odd_values.sql")).unlink()
    set_model(mine, "no_values", "select 'one' as song_id, 'two' as song_name, cast(3 as bigint) as plays, "
              "date '2026-01-01' as day, 'more' as added")  # fmt: skip
    set_model(mine, "new_values", "select 1 as one")
    # The columns of a table in the lake do not change yet: this is another table of the same name.
    shutil.rmtree(mirror.data / "lake" / "gold" / "no_values")
    build(mirror.data, mine)
    mirror.run_ok()
    publication = mirror.target.publication()
    expected = gold(mirror.data)
    del expected["ODD_VALUES"]
    check_tidy(mirror.target, expected)
    assert check_holds(mirror.target, {publication: expected}) == publication > 1
    assert mirror.target.rows("NO_VALUES") == Counter([("one", "two", 3, datetime.date(2026, 1, 1), "more")])
    assert mirror.target.query("SELECT COUNT(*) FROM _MIRROR_TABLES") == [(len(expected),)]


def test_nothing_published_yet(mirror, tmp_path):
    summary = mirror.run_ok(outcome="nothing_published", data=tmp_path / "empty")
    assert summary["publication"] is None
    assert mirror.relay.connections == 0


# Faults.


def test_killed_at_every_request(mirror, small_lakes, seed):
    """After each of its requests was answered: for Snowflake that is the same as before the next one. With a publication
    there, at each of them; on an empty schema at each third one."""
    print(f"seed {seed}")
    publications = {0: {}, 1: gold(small_lakes[0]), 2: gold(small_lakes[1])}
    for start, step in ((1, 1), (0, 3)):
        first = 1 + seed % step
        _, total = kill_at(mirror, small_lakes, publications, start, first)
        assert total > 20
        with ThreadPoolExecutor(4) as pool:
            numbers = range(first + step, total + 1, step)
            stands = list(pool.map(lambda number: kill_at(mirror, small_lakes, publications, start, number)[0], numbers))
        print(f"killed with publication {start} there: {stands}")
        # Some kills come too early to change anything, and some too late to prevent it.
        assert set(stands) == {start, 2} and stands == sorted(stands), stands


def kill_at(mirror, lakes, publications, start, number):
    """Kills a mirror after its Nth request. Returns the publication that stood there afterwards, and how many requests there
    are if nobody kills it."""
    relay = Relay(mirror.server)
    schema = f"K{start}_{number}"
    target = Target(mirror.server, mirror.database, schema)
    env = mirror.env(SNOWFLAKE_URL=relay.url, LAKEBEAT_SNOWFLAKE_SCHEMA=schema)
    first, second = (copied(data, mirror.folder / schema / data.name) for data in lakes)
    command = ("mirror", "--once", "--data-dir")
    if start:
        run_ok(*command, first, cwd=mirror.folder, env=env)
        assert check_holds(target, publications) == start
        relay.forget()
    process = Process(*command, second, cwd=mirror.folder / schema, env=env)

    def kill(request, now):
        if request.number == number and now == AFTER:
            process.kill()
            return Relay.CUT
        return None

    relay.meddle = kill
    process.start()
    assert process.wait(30) == -signal.SIGKILL, process.tail()
    assert len(relay.requests) == number
    program.started.remove(process)
    stands = check_holds(target, publications)
    relay.end_sessions()
    assert check_holds(target, publications) == stands

    relay.forget()
    ended = run(*command, second, cwd=mirror.folder, env=env)
    assert ended.status == DONE, ended
    assert check_holds(target, publications) == 2
    # What a run leaves behind that had come to its commit, is dropped by the next that has something to load.
    if stands != 2:
        check_tidy(target, publications[2])
    assert not relay.faults, relay.faults
    total = len(relay.requests)
    relay.shutdown()
    relay.server_close()
    return stands, total


def copied(data, folder):
    folder.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copytree(data, folder))


def at(match, answer, times=1, phase=BEFORE):
    """Meddles with the first requests that match."""
    left = [times]

    def meddle(request, now):
        if now == phase and left[0] and match in request.what:
            left[0] -= 1
            return answer
        return None

    return meddle


def test_refused_at_every_statement(tmp_path, server, small_lakes):
    """Whatever statement Snowflake refuses: it is said, with its words, and what was there stays."""
    mirror = Mirror(tmp_path, server, small_lakes[0])
    publications = {1: gold(small_lakes[0]), 2: gold(small_lakes[1])}
    mirror.run_ok()
    mirror.now(small_lakes[1])
    refused = []
    while True:
        mirror.relay.forget()
        mirror.relay.meddle = refuse_at(len(refused) + 1)
        ended = mirror.run()
        if ended.status == DONE:
            break
        refused.append(next(sql for number, sql in enumerate(mirror.relay.statements()) if number == len(refused)))
        check_refused(ended, FAULT, "Numeric value 'x' is not recognized", "100038")
        assert check_holds(mirror.target, publications) == 1
        check_tidy(mirror.target, publications[1])
    # All from the first statement to the COMMIT, and none after it.
    assert len(refused) > 20 and refused[-1] == "COMMIT", refused
    assert check_holds(mirror.target, publications) == 2


def refuse_at(wanted):
    """Refuses the Nth statement."""
    numbers = itertools.count(1)

    def refuse(request, now):
        if now == BEFORE and request.sql and next(numbers) == wanted:
            return refusal("100038", "Numeric value 'x' is not recognized")
        return None

    return refuse


@pytest.mark.parametrize("match", ["PUT", "COPY INTO", "DELETE FROM", "COMMIT"])
@pytest.mark.parametrize("answer", [(503, b"busy"), Relay.CUT, refusal("390112", "Your session has expired.")])
def test_what_may_pass_is_tried_again(mirror, lakes, match, answer):
    mirror.run_ok()
    mirror.now(lakes[1])
    mirror.relay.forget()
    mirror.relay.meddle = at(match, answer)
    mirror.run_ok()
    assert check_holds(mirror.target, {2: gold(lakes[1])}) == 2
    check_tidy(mirror.target, gold(lakes[1]))
    assert len([request for request in mirror.relay.requests if "login" in request.path]) == 2


def test_a_commit_whose_answer_is_lost(mirror, lakes):
    """It was heard: nothing is loaded twice."""
    mirror.run_ok()
    mirror.now(lakes[1])
    mirror.relay.forget()
    mirror.relay.meddle = at("COMMIT", Relay.CUT, phase=AFTER)
    mirror.run_ok(outcome="found")
    assert check_holds(mirror.target, {2: gold(lakes[1])}) == 2
    assert mirror.relay.statements().count("COMMIT") == 1
    mirror.run_ok(outcome="unchanged")


def test_it_gives_up_in_the_end(mirror):
    mirror.relay.meddle = at("login", (503, b"busy"), times=99)
    ended = mirror.run()
    check_refused(ended, UNREACHABLE, "503")
    assert len(mirror.relay.requests) == 3


def test_rows_that_got_lost_on_the_way(mirror, lakes):
    """A COPY that says that it has loaded less than was sent."""
    mirror.run_ok()
    mirror.now(lakes[1])
    rowtype = [{"name": "file"}, {"name": "rows_loaded"}]
    data = {"rowtype": rowtype, "rowset": [["part-0.parquet", "1"]], "queryResultFormat": "json"}
    mirror.relay.meddle = at("COPY INTO", (200, {"success": True, "data": data}))
    ended = mirror.run()
    check_refused(ended, FAULT, "rows", "1 arrived", "nothing was changed")
    assert check_holds(mirror.target, {1: gold(lakes[0])}) == 1


def test_a_statement_that_takes_its_time(mirror, lakes):
    """Snowflake answers a long statement with the place where its result will be."""
    kept = {}

    def later(request, now):
        if now == AFTER and request.sql.startswith("COPY INTO") and not kept:
            kept["waits"] = 2
            place = {"getResultUrl": "/queries/42/result", "queryId": "42"}
            return 200, {"success": True, "code": "333334", "message": "still running", "data": place}
        if now == BEFORE and request.path == "/queries/42/result":
            kept["waits"] -= 1
            if kept["waits"]:
                place = {"getResultUrl": "/queries/42/result"}
                return 200, {"success": True, "code": "333333", "message": "still running", "data": place}
            rows = gold(lakes[0])[kept["table"]].total()
            data = {"rowtype": [{"name": "ROWS_LOADED"}], "rowset": [[str(rows)]]}
            return 200, {"success": True, "data": data}
        return None

    def remembering(request, now):
        if request.sql.startswith("COPY INTO") and "table" not in kept:
            table = request.sql.split("FROM")[0].split('"')[1]
            kept.clear()
            answer = later(request, now) if now == AFTER else None
            if now == AFTER:
                kept["table"] = table.split("_", 4)[4]
            return answer
        return later(request, now)

    mirror.relay.meddle = remembering
    mirror.run_ok()
    assert kept["waits"] == 0
    assert check_holds(mirror.target, {1: gold(lakes[0])}) == 1


def test_a_table_that_does_not_fit_is_refused(mirror):
    """Somebody else's table of the same name, with another type: it is named, and stays as it is."""
    mirror.target.query("CREATE TABLE TOP_SONGS (SONG_ID VARCHAR, TOTAL_PLAYS VARCHAR)")
    mirror.target.query("INSERT INTO TOP_SONGS VALUES ('mine', 'many')")
    ended = mirror.run()
    check_refused(ended, WRONG, "TOTAL_PLAYS", "TOP_SONGS", "NUMBER(38,0)", "drop or rename")
    assert mirror.target.rows("TOP_SONGS") == Counter([("mine", "many")])
    assert mirror.target.publication() == 0
    check_tidy(mirror.target, ["TOP_SONGS"])
    mirror.target.query("DROP TABLE TOP_SONGS")
    mirror.run_ok()


def test_rows_of_others_are_left_alone(mirror):
    """A table of the same name and the same columns, such as the replaced pipeline leaves behind."""
    mirror.target.query("CREATE TABLE TOP_SONGS (SONG_ID VARCHAR, TOTAL_PLAYS NUMBER(38,0))")
    mirror.target.query("INSERT INTO TOP_SONGS VALUES ('mine', 1)")
    ended = mirror.run()
    check_refused(ended, WRONG, "TOP_SONGS", f"{mirror.database}.TRANSFORM", "1 rows", "LAKEBEAT_SNOWFLAKE_SCHEMA")
    assert mirror.target.rows("TOP_SONGS") == Counter([("mine", 1)])
    assert mirror.target.publication() == 0
    check_tidy(mirror.target, ["TOP_SONGS"])
    # One that somebody has prepared without rows is filled.
    mirror.target.query("DELETE FROM TOP_SONGS")
    mirror.run_ok()


def test_the_mirror_of_another_lake_is_left_alone(mirror, lakes, tmp_path, project):
    mirror.run_ok()
    other = tmp_path / "other"
    shutil.copytree(lakes[0], other)
    shutil.rmtree(other / "lake" / "system")
    build(other, project)
    run_ok("transform", "build", "--full-refresh", "--project", project, "--data-dir", other, cwd=tmp_path)
    ended = mirror.run(data=other)
    check_refused(ended, WRONG, f"{mirror.database}.TRANSFORM", "another lake", "_MIRROR_STATE")
    assert check_holds(mirror.target, {1: gold(lakes[0])}) == 1
    mirror.target.query("DROP TABLE _MIRROR_STATE")
    mirror.run_ok(data=other)


@pytest.mark.parametrize("place", ["BEGIN", 'CREATE TABLE "_MIRROR_STATE"'])
def test_two_mirrors_at_once(mirror, lakes, tmp_path, place):
    """They meet when both have loaded everything, or when both have found an empty schema. One applies the publication, the
    other finds it."""
    if place == "BEGIN":
        mirror.run_ok()
        mirror.now(lakes[1])
    publication = 2 if place == "BEGIN" else 1
    twin = copied(mirror.data, tmp_path / "twin")
    both = threading.Barrier(2)
    mirror.relay.forget()
    arrived = itertools.count(1)

    def meet(request, now):
        if now == BEFORE and request.sql.startswith(place) and next(arrived) <= 2:
            both.wait(30)

    mirror.relay.meddle = meet
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda data: mirror.run("--json", data=data), (mirror.data, twin)))
    assert not both.broken and next(arrived) > 2
    assert [ended.status for ended in runs] == [DONE, DONE], runs
    assert sorted(ended.json["outcome"] for ended in runs) == ["found", "mirrored"], runs
    assert mirror.relay.statements().count("COMMIT") == 1
    assert mirror.target.query("SELECT COUNT(*) FROM _MIRROR_STATE") == [(1,)]
    assert check_holds(mirror.target, {publication: gold(lakes[publication - 1])}) == publication


def test_one_that_was_overtaken_changes_nothing(mirror, lakes, tmp_path):
    """While one mirror is about to begin its transaction, another one goes all the way: the claim of the first is void."""
    mirror.run_ok()
    mirror.now(lakes[1])
    twin = copied(mirror.data, tmp_path / "twin")
    mirror.relay.forget()
    overtaken = []

    def overtake(request, now):
        if now == BEFORE and request.sql == "BEGIN" and not overtaken:
            overtaken.append(True)
            overtaken.append(mirror.run("--json", data=twin))

    mirror.relay.meddle = overtake
    mirror.run_ok(outcome="found")
    assert overtaken[1].json["outcome"] == "mirrored"
    assert mirror.relay.statements().count("COMMIT") == 1 and "ROLLBACK" in mirror.relay.statements()
    check_tidy(mirror.target, gold(lakes[1]))
    assert check_holds(mirror.target, {2: gold(lakes[1])}) == 2


# Logins and settings.


def test_a_wrong_login(mirror):
    mirror.relay.meddle = at("login", refusal("390100", "Incorrect username or password was specified."), times=9)
    for args in (("--once",), ("--every", "1s")):
        mirror.relay.requests.clear()
        ended = mirror.run(*args)
        check_refused(ended, WRONG, "Incorrect username or password", "390100", "loader", "SNOWFLAKE_PASSWORD")
        assert len(mirror.relay.requests) == 1, "a wrong password is not tried again: that locks accounts"


def test_missing_rights(mirror):
    words = "SQL access control error:\nInsufficient privileges to operate on schema 'TRANSFORM'."
    mirror.relay.meddle = at("CREATE", refusal("003001", words), times=9)
    check_refused(mirror.run(), WRONG, "Insufficient privileges", "003001", "SNOWFLAKE_ROLE")


def test_a_stage_that_is_not_supported_yet(mirror):
    stage = {"locationType": "S3", "location": "bucket/path", "creds": {"AWS_KEY_ID": "k", "AWS_SECRET_KEY": "s"}}
    mirror.relay.meddle = at("PUT", (200, {"success": True, "data": {"stageInfo": stage}}), times=9)
    check_refused(mirror.run(), WRONG, "stages are on S3", "cannot upload yet")
    assert mirror.target.publication() == 0
    check_tidy(mirror.target, [])


def test_nothing_listens(mirror):
    (port,) = free_ports(1)
    ended = mirror.run(SNOWFLAKE_URL=f"http://127.0.0.1:{port}")
    check_refused(ended, UNREACHABLE, f"127.0.0.1:{port}", "refused")
    assert ended.seconds < 20


def test_something_else_listens(mirror):
    mirror.relay.meddle = at("login", (200, b"<html>hello</html>"), times=9)
    check_refused(mirror.run(), WRONG, "no answer of Snowflake", "SNOWFLAKE_URL")
    mirror.relay.meddle = at("login", (404, b"<html>no</html>"), times=9)
    check_refused(mirror.run(), WRONG, "404", "SNOWFLAKE_ACCOUNT")


@pytest.mark.parametrize("name", ["SNOWFLAKE_ACCOUNT", "SNOWFLAKE_USER", "SNOWFLAKE_PASSWORD"])
def test_a_missing_setting_is_named(mirror, name):
    ended = mirror.run(**{name: ""})
    check_refused(ended, WRONG, name, "lakebeat.toml")
    assert mirror.relay.connections == 0


def test_an_address_that_is_none(mirror):
    """It is in the way of the mirror, and of nothing else."""
    check_refused(mirror.run(SNOWFLAKE_URL="stand in"), WRONG, "SNOWFLAKE_URL", "stand in")
    assert mirror.run("ls", command="table", SNOWFLAKE_URL="stand in").status == DONE


def test_a_password_is_not_sent_in_the_clear(mirror):
    check_refused(mirror.run(SNOWFLAKE_URL="http://example.com"), WRONG, "http://example.com", "https://")


@pytest.mark.parametrize("args", [("--every", "0"), ("--every", "soon"), ("--once", "--every", "5s")], ids=" ".join)
def test_wrong_usage(mirror, args):
    check_refused(mirror.run(*args), WRONG, "--every")
    assert mirror.relay.connections == 0


def test_the_settings_of_the_replaced_pipeline(mirror, lakes):
    """Its SNOWFLAKE_SCHEMA is where it loaded raw rows; its models' tables, and now the mirror, are in TRANSFORM."""
    settings = mirror.env(SNOWFLAKE_SCHEMA="BRONZE", SNOWFLAKE_WAREHOUSE="COMPUTE_WH", SNOWFLAKE_ROLE="LOADER")
    (mirror.folder / ".env").write_text("".join(f'{name}="{value}"\n' for name, value in settings.items()))
    ended = run("mirror", "--data-dir", mirror.data, cwd=mirror.folder)
    assert ended.status == DONE, ended
    assert check_holds(mirror.target, {1: gold(lakes[0])}) == 1
    login = mirror.relay.requests[0].path
    assert "warehouse=COMPUTE_WH" in login and "roleName=LOADER" in login
    ended = run("mirror", "--data-dir", mirror.data, cwd=mirror.folder, env={"LAKEBEAT_SNOWFLAKE_SCHEMA": "other"})
    assert f"is in {mirror.database}.OTHER" in ended.out, ended


def test_the_doctor_looks_at_snowflake(mirror):
    def checked(**env):
        ended = mirror.run("--json", command="doctor", **env)
        return ended, next(check for check in ended.json if check["what"] == "Snowflake")

    ended, found = checked()
    assert (ended.status, found["state"]) == (DONE, "ok"), found
    assert "loader" in found["detail"] and mirror.database in found["detail"]
    assert mirror.relay.statements() == []
    mirror.relay.meddle = at("login", refusal("390100", "Incorrect username or password was specified."))
    ended, found = checked()
    assert (ended.status, found["state"]) == (WRONG, "fault") and "390100" in found["detail"], found
    _, found = checked(SNOWFLAKE_ACCOUNT="", SNOWFLAKE_URL="")
    assert (found["state"], "not set" in found["detail"]) == ("ok", True)


# Going on.


def test_it_goes_on_and_takes_what_is_new(mirror, lakes, ended_later):
    process = ended_later(mirror.process("--every", "1s")).start()
    wait_for("the first publication is there", lambda: mirror.target.publication() == 1, alive=process)
    wait_for("it is written down", lambda: "publication #1 is in" in process.err(), alive=process)
    mirror.relay.meddle = at("", (503, b"busy"), times=5)
    mirror.now(lakes[1])
    wait_for("the second one is there", lambda: mirror.target.publication() == 2, alive=process)
    assert "not mirrored" in process.err()
    assert check_holds(mirror.target, {2: gold(lakes[1])}) == 2
    wait_for("it is written down", lambda: "publication #2 is in" in process.err(), alive=process)
    mirror.relay.forget()
    assert process.stop() < 5
    assert mirror.relay.connections == 0
    assert PASSWORD not in process.err() + process.out()


@pytest.mark.parametrize("match", ["login", "COPY INTO", "DELETE FROM", "COMMIT"])
def test_stopped_while_snowflake_is_silent(mirror, lakes, ended_later, match):
    """Promptly, and with one publication there, the old one or the new one."""
    mirror.run_ok()
    mirror.now(lakes[1])
    reached, go_on = threading.Event(), threading.Event()

    def silent(request, now):
        if now == BEFORE and match in request.what:
            reached.set()
            go_on.wait(30)
            return Relay.CUT

    mirror.relay.meddle = silent
    process = ended_later(mirror.process("--every", "1h")).start()
    wait_for(f"{match} was sent", reached.is_set, alive=process)
    try:
        assert process.stop() < 5
    finally:
        go_on.set()
    assert check_holds(mirror.target, {1: gold(lakes[0])}) == 1
    assert not mirror.relay.sessions, "a session was left open"
    mirror.relay.forget()
    mirror.run_ok()
    assert check_holds(mirror.target, {2: gold(lakes[1])}) == 2
    check_tidy(mirror.target, gold(lakes[1]))


def test_stopped_while_it_waits(mirror, ended_later):
    process = ended_later(mirror.process("--every", "1h")).start()
    wait_for("it waits", lambda: "publication #1 is in" in process.err(), alive=process)
    assert process.stop() < 2
    assert json.loads(run_ok("publication", "ls", "--json", "--data-dir", mirror.data, cwd=mirror.folder).out)
