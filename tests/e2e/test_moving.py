"""A lake goes from a disk into a bucket and back, is audited to the last row there, and ingest goes on from it."""

import shutil

import polars
from deltalake import DeltaTable
from lake import Lake, wait_settled
from messages import in_topic, simulate
from program import Process, Up, check_refused, run, run_ok
from waiting import wait_for

TABLES = (
    "bronze.spotify_events", "bronze.dead_letters", "silver.spotify_silver", "gold.top_songs", "gold.user_engagement",
    "gold.listening_by_minute", "system.publications",
)  # fmt: skip

# What builds tell of themselves, some seconds later.
RUNS = {"system.model_runs", "system.test_results"}


def rows(lake):
    """How many rows each table has, as other engines count them."""
    address = {table: "/".join([lake.place, *table.split(".")]) for table in TABLES}
    return {table: polars.read_delta(at, storage_options=lake.storage_options).height for table, at in address.items()}


def test_from_a_disk_into_a_bucket_and_back_while_events_come(tmp_path, kafka, minio, place, seed, ended_later):
    print(f"seed {seed}")
    simulate(kafka.address, tmp_path, 2_000, seed, topic=place)
    producer = Process("simulate", "--brokers", kafka.address, "--topic", place, "--rate", 100, cwd=tmp_path)
    ended_later(producer.start())
    up = ended_later(Up(tmp_path, "--no-simulate", brokers=kafka.address, topic=place)).start()
    up.wait_ready()
    env = minio.environment(place)
    here = ("--lake", f"file://{up.lake}")

    # While it runs: what is copied belongs together, and a second time only what is new is copied.
    check_refused(run("table", "import", tmp_path / "none", *here, "--yes", cwd=tmp_path), 2, "there is no lake at")
    asked = run("table", "export", f"s3://{place}/copy", *here, cwd=tmp_path, env=env)
    assert asked.status == 2 and "--yes" in asked.err and "--dry-run" in asked.err, asked
    bucket = ("--lake", f"s3://{place}/copy")
    planned = run_ok("table", "export", bucket[1], *here, "--dry-run", "--json", cwd=tmp_path, env=env).json
    assert {table["table"] for table in planned["tables"]} - RUNS == set(TABLES), planned
    for _ in range(3):
        exported = run_ok("table", "export", bucket[1], *here, "--yes", cwd=tmp_path, env=env)
        assert "copied" in exported.err or "already" in exported.out, exported
        run_ok("verify", "--deep", *bucket, "--json", cwd=tmp_path, env=env)
    again = run_ok("table", "export", bucket[1], *here, "--dry-run", "--json", cwd=tmp_path, env=env).json
    assert sum(table["there"] for table in again["tables"]) > sum(table["files"] for table in again["tables"]) > 0, again

    producer.stop(seconds=15)
    wait_settled(Lake(up.lake), in_topic(kafka.address, place), alive=up)
    up.stop()
    run_ok("table", "export", bucket[1], *here, "--yes", cwd=tmp_path, env=env)
    there = minio.lake(f"{place}/copy")
    assert rows(there) == rows(Lake(up.lake))
    nothing = run_ok("table", "export", bucket[1], *here, "--yes", cwd=tmp_path, env=env)
    assert "already" in nothing.out and nothing.err == "", nothing

    # Back to a disk: the first one is lost, and everything goes on from the copy.
    shutil.rmtree(up.lake)
    run_ok("table", "import", bucket[1], *here, "--yes", cwd=tmp_path, env=env)
    run_ok("verify", "--deep", *here, cwd=tmp_path)
    assert rows(Lake(up.lake)) == rows(there)
    check_refused(
        run("table", "export", f"s3://{place}/other", "--lake", tmp_path / "empty", cwd=tmp_path, env=env), 2, "there is no lake at"
    )
    simulate(kafka.address, tmp_path, 500, seed + 1, topic=place)
    up.start()
    wait_settled(Lake(up.lake), in_topic(kafka.address, place), alive=up)
    up.stop()
    run_ok("verify", "--deep", *here, cwd=tmp_path)
    # Both have gone on since they were the same.
    simulate(kafka.address, tmp_path, 10, seed + 2, topic=place)
    run_ok("ingest", "--until-end", "--brokers", kafka.address, "--topic", place, *bucket, cwd=tmp_path, env=env)
    ended = run("table", "export", bucket[1], *here, "--yes", cwd=tmp_path, env=env)
    check_refused(ended, 2, "choose an empty place")


def test_the_deep_audit_names_the_rows(tmp_path, seed, ended_later):
    print(f"seed {seed}")
    up = ended_later(Up(tmp_path, "--rate", "100")).start()
    up.wait_ready()
    songs = Lake(up.lake)
    wait_for("songs are published", lambda: songs.rows("silver.spotify_silver").total() > 200, alive=up)
    # Beside a pipeline that runs.
    for extra in ((), ("--sample", "0.2")):
        ended = up.command("verify", "--deep", *extra, "--json")
        assert ended.status == 0, ended
        audited = {model["table"]: model for model in ended.json["models"]}
        assert set(audited) == {table for table in TABLES if table.startswith(("silver", "gold"))}, audited
        assert all(model["compared_rows"] <= model["rows"] for model in audited.values()), audited
        silver = audited["silver.spotify_silver"]
        assert 0 < silver["compared_rows"] and (silver["compared_rows"] == silver["rows"]) == (not extra), silver
    up.stop()

    songs = up.lake / "gold" / "top_songs"
    table = DeltaTable(songs)
    found = Lake(up.lake).frame("gold.top_songs", ["song_id", "total_plays"]).sort("song_id").rows()
    (gone, _), (changed, plays) = found[:2]
    table.delete(f"song_id = '{gone}'")
    table.update(updates={"total_plays": "total_plays + 5"}, predicate=f"song_id = '{changed}'")
    assert up.command("verify").status == 0, "the audit of files has nothing against it"
    ended = up.command("verify", "--deep")
    assert ended.status == 1, ended
    told = [line for line in ended.out.splitlines() if line.startswith("FAULT gold.top_songs")]
    assert len(told) == 2, ended
    assert f"song_id = {gone}, " in told[0] and told[0].endswith("is missing"), told
    assert f"song_id = {changed}, " in told[1], told
    assert told[1].endswith(f"differs: total_plays is {plays + 5}, and should be {plays}"), told
    songs_alone = up.command("verify", "--deep", "--select", "spotify_silver", "--json")
    assert songs_alone.status == 0, songs_alone

    # A project that knows nothing of these tables cannot say that all is well.
    other = tmp_path / "other"
    (other / "models").mkdir(parents=True)
    (other / "dbt_project.yml").write_text("name: other\nversion: '1.0'\n")
    (other / "models" / "one.sql").write_text("select 1 as one")
    ended = up.command("verify", "--deep", "--project", other)
    assert ended.status == 1 and "not checked: no model of this project builds it" in ended.out, ended
    for wrong in (("--sample", "0.5"), ("--deep", "--sample", "0"), ("--deep", "--sample", "1.5")):
        assert up.command("verify", *wrong).status == 2, wrong
