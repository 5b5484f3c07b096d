"""Time travel in SQL: each door answers for a version, a moment or a publication what another engine reads of that version."""

import polars
import psycopg
import pytest

from doors import by_command, by_flight, by_psql, by_psycopg
from lake import Lake, wait_settled
from messages import produced, simulate
from program import POSTGRES, Up, check_refused

SONGS = "gold.top_songs"
CLIENTS = (by_flight, by_psycopg, by_psql, by_command)


@pytest.fixture(scope="module")
def served(tmp_path_factory, seed):
    """An `up` that has done its work in two goes: its tables have several versions, and stand still."""
    print(f"seed {seed}")
    folder = tmp_path_factory.mktemp("time_travel")
    up = Up(folder, "--no-simulate")
    try:
        up.start()
        log = []
        for go in range(2):
            log += simulate(up.brokers, folder, 500, seed + go)[0]
            wait_settled(Lake(up.lake), produced(up.brokers, log), alive=up)
        up.wait_ready()
        yield up
    finally:
        up.end()


def commits(up, table):
    """Those of a table, the oldest first."""
    ended = up.command("table", "history", table, "--limit", "1000", "--json")
    assert ended.status == 0, ended
    return ended.json[::-1]


def plays(up, version):
    """All plays in that version of the songs, as another engine reads it."""
    return polars.read_delta(str(up.lake / "gold" / "top_songs"), version=version)["total_plays"].sum()


def asked(up, clause):
    """All plays by that clause, as every client is told."""
    sql = f"select coalesce(sum(total_plays), 0) as plays from {SONGS} {clause}"
    answers = {client.__name__: int(client(up, sql)[1][0][0]) for client in CLIENTS}
    assert len(set(answers.values())) == 1, f"{clause}: {answers}"
    return answers["by_flight"]


def test_every_version_at_every_door(served):
    versions = [commit["version"] for commit in commits(served, SONGS)]
    assert len({plays(served, version) for version in versions}) > 2, "versions that are the same show nothing"
    for version in versions:
        assert asked(served, f"at version {version}") == plays(served, version)
    assert asked(served, f"version as of {versions[1]}") == plays(served, versions[1])


def test_a_moment_is_that_of_the_last_commit_before_it(served):
    history = commits(served, SONGS)
    for commit in history:
        time = commit["timestamp"]
        newest = max(other["version"] for other in history if other["timestamp"] <= time)
        assert asked(served, f"at timestamp '{time}'") == plays(served, newest)


def test_a_publication_is_what_it_names(served):
    ended = served.command("publication", "ls", "--json")
    assert ended.status == 0, ended
    publications = ended.json
    assert len(publications) > 1
    for publication in publications:
        version = publication["tables"][SONGS]["version"]
        assert asked(served, f"at publication {publication['id']}") == plays(served, version)


def test_two_moments_in_one_statement(served):
    first, last = (commits(served, SONGS)[place]["version"] for place in (1, -1))
    sql = f"""
        with before as (select * from top_songs at version {first})
        select sum(now.total_plays - coalesce(before.total_plays, 0)) as more
        from {SONGS} at version {last} as now left join before on before.song_id = now.song_id"""
    for client in CLIENTS:
        assert int(client(served, sql)[1][0][0]) == plays(served, last) - plays(served, first), client.__name__
    sql = "select count(*) from bronze.spotify_events at version 0"
    for client in CLIENTS:
        assert int(client(served, sql)[1][0][0]) == 0, client.__name__


def test_prepared_statements_keep_their_moments(served):
    first = commits(served, SONGS)[1]["version"]
    sql = f"select coalesce(sum(total_plays), 0) from {SONGS} at version {first} where total_plays >= "
    assert int(by_psycopg(served, sql + "%s", 0)[1][0][0]) == plays(served, first)
    assert int(by_flight(served, sql + "?", 0)[1][0][0]) == plays(served, first)


def test_what_is_not_there_is_said(served):
    newest = commits(served, SONGS)[-1]["version"]
    sql = f"select * from {SONGS} at version 999999"
    told = f"{SONGS} has no version 999999: the newest is {newest}"
    with pytest.raises(psycopg.errors.UndefinedObject, match=told):
        by_psycopg(served, sql)
    with pytest.raises(Exception, match=told):
        by_flight(served, sql)
    check_refused(served.command("sql", sql), 1, told)
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="at version takes no parameter"):
        by_psycopg(served, f"select * from {SONGS} at version %s", newest)
    with pytest.raises(psycopg.errors.UndefinedObject, match="the oldest version is 0"):
        by_psycopg(served, f"select * from {SONGS} at timestamp '2020-01-01'")
    with pytest.raises(psycopg.errors.SyntaxError, match="written out"):
        by_psycopg(served, f"select * from {SONGS} at timestamp now()")
