"""The system tables from psql: while builds fail, and after; and a build that an orchestrator asks the console for."""

import json
import shutil
import urllib.request

from lake import Lake
from messages import simulate
from program import REPOSITORY, Up
from test_doors import by_psql
from waiting import wait_for

PROJECT = REPOSITORY / "transforms" / "models"
COLUMNS = {
    "ingest_progress": "partition, next_offset, end_offset, lag, rows_per_second, freshness_seconds",
    "model_runs": "model, status, trigger, publication, error",
    "publications": "publication, publication_group, published_at",
    "queries": "id, user_name, door, sql, state, seconds, rows",
    "requests": "id, kind, state, answer",
    "tables": "table_schema, table_name, version, files, bytes",
    "test_results": "test, model, status, failures",
}


def select_all(up):
    """The rows of each system table, all of its columns selected too."""
    _, listed = by_psql(up, "select table_name from information_schema.tables where table_schema = 'system' order by 1")
    assert [name for (name,) in listed] == sorted(COLUMNS)
    found = {}
    for name, columns in COLUMNS.items():
        by_psql(up, f"select * from system.{name}")
        names, rows = by_psql(up, f"select {columns} from system.{name}")
        found[name] = [dict(zip(names, row)) for row in rows]
    return found


def ask_for_build(up, **wanted):
    asked = urllib.request.Request(f"{up.url}/api/v1/runs", data=json.dumps(wanted).encode(), method="POST")
    with urllib.request.urlopen(asked, timeout=90) as answer:
        return json.load(answer)


def runs(up):
    _, rows = by_psql(up, "select model, status, error from system.model_runs")
    return rows


def test_psql_selects_all_of_them_while_a_build_fails_and_after(tmp_path, seed, ended_later):
    broken = tmp_path / "broken"
    shutil.copytree(PROJECT, broken)
    model = next(broken.rglob("top_songs.sql"))
    model.write_text("select no_such_column from {{ ref('spotify_silver') }}\n")
    up = ended_later(Up(tmp_path, "--no-simulate", "--project", broken)).start()
    # Nothing has been asked or published yet, and all of them are there.
    before = select_all(up)
    assert before["requests"] == [] and before["publications"] == []

    simulate(up.brokers, tmp_path, 300, seed, dirty=0)
    lake = Lake(up.lake)
    wait_for("ingest goes on", lambda: lake.counts() == (300, 0), alive=up)
    wait_for("the fault is told", lambda: any(status == "failed" for _, status, _ in runs(up)), alive=up)
    failing = select_all(up)
    [error, *_] = [run["error"] for run in failing["model_runs"] if run["status"] == "failed"]
    assert "no_such_column" in error and "top_songs.sql" in error
    assert {run["model"] for run in failing["model_runs"] if run["status"] == "ok"} >= {"spotify_silver"}
    assert all(run["publication"] is None for run in failing["model_runs"])
    assert failing["publications"] == []
    assert sum(int(partition["next_offset"]) for partition in failing["ingest_progress"]) == 300
    assert any("system.model_runs" in query["sql"] and query["state"] == "done" for query in failing["queries"])
    failed = ask_for_build(up, wait_seconds=60)
    assert failed["state"] == "failed" and "no_such_column" in failed["answer"]["error"], failed
    up.stop()

    # The same lake with the project as it should be.
    up = ended_later(Up(tmp_path, "--no-simulate")).start()
    up.wait_ready()
    built = ask_for_build(up, full_refresh=True, wait_seconds=60)
    assert built["state"] == "done" and built["answer"]["changed"], built
    wait_for("the run is told", lambda: ("top_songs", "ok", None) in runs(up), alive=up)
    after = select_all(up)
    assert any(run["status"] == "failed" for run in after["model_runs"]), "what was told before is kept"
    published = {run["publication"] for run in after["model_runs"] if run["model"] == "top_songs"}
    assert published & {row["publication"] for row in after["publications"]}
    assert {result["status"] for result in after["test_results"]} == {"pass"}
    assert {(request["kind"], request["state"]) for request in after["requests"]} == {("build", "failed"), ("build", "done")}
    assert {"model_runs", "requests"} <= {table["table_name"] for table in after["tables"]}
    up.stop()
    assert up.command("verify", "--json").status == 0
