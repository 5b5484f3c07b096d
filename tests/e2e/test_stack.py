"""The whole way on a real Kafka and a real MinIO: by settings alone, with the messages of old and new producers."""

import json
import re

import pytest
from kafka import KafkaProducer

from expected import Tables
from lake import wait_settled
from messages import in_topic, produced, simulate
from old_pipeline import OLD_SETTINGS, event
from program import Process, Up, door_flags, free_doors, free_ports, run, topics
from waiting import wait_for

COUNT = 4_000
TABLES = (
    "bronze.dead_letters", "bronze.spotify_events", "silver.spotify_silver",
    "gold.listening_by_minute", "gold.top_songs", "gold.user_engagement",
)  # fmt: skip


def test_every_event_is_accounted_for(tmp_path, kafka, minio, place, seed, ended_later):
    print(f"seed {seed}")
    lake = minio.lake(place)
    up = ended_later(
        Up(tmp_path, "--no-simulate", brokers=kafka.address, topic=place, env=minio.environment(place))
    ).start()
    assert f"s3://{place}" in up.err(), "the banner does not say where the lake is"
    log, report = simulate(kafka.address, tmp_path, COUNT, seed, topic=place)
    assert report["delivered"] == COUNT == len(log)

    # A producer of the pipeline that this one replaces: the message format of Kafka 0.10.
    old = KafkaProducer(bootstrap_servers=kafka.address, api_version=(0, 10, 1), acks="all")
    sent = [old.send(place, json.dumps(event()).encode()) for _ in range(300)]
    old.flush(30)
    assert len({(one.get(10).partition, one.get(10).offset) for one in sent}) == 300
    old.close()

    messages = in_topic(kafka.address, place)
    assert len(messages) == COUNT + 300
    wait_settled(lake, messages, alive=up)
    ended = up.command("verify", "--json")
    assert ended.status == 0, ended
    up.stop()

    # The same, asked of a lake that nobody writes to, by another process.
    ended = up.command("verify", "--json")
    assert ended.status == 0, ended
    assert up.query("select count(*) as events from spotify_silver") == [{"events": len(Tables(messages).silver)}]
    assert not up.lake.exists(), "something was written to the disk as well"
    check_layout(minio.objects(place))


def check_layout(objects):
    """What README says of the folders, as a tool that knows nothing of Delta sees them."""
    for table in TABLES:
        folder = table.replace(".", "/")
        assert f"{folder}/_delta_log/{0:020}.json" in objects, f"no Delta table at {folder}: {objects[:20]}"
        assert any(re.fullmatch(rf"{folder}/(.+/)?[^/]+\.parquet", name) for name in objects), f"no data in {folder}"
    partitioned = [name for name in objects if name.startswith("bronze/spotify_events/_ingest_date=")]
    assert partitioned, objects[:20]


def test_a_bucket_that_the_old_pipeline_has_filled(tmp_path, kafka, minio, place, ended_later):
    """Its files lie in folders beside the tables of the lake, and stay as they are."""
    minio.make_bucket(place)
    old = {
        "bronze/date=2026-11-20/hour=15/spotify_events_2026-11-20T15-26-39.json": b"\n".join(
            json.dumps(event()).encode() for _ in range(10)
        ),
        "bronze/date=2026-11-20/hour=16/spotify_events_2026-11-20T16-00-00.json": b"{}",
        "notes.txt": b"by hand",
    }
    for name, content in old.items():
        with minio.files().open_output_stream(f"{place}/{name}") as stream:
            stream.write(content)
    up = ended_later(Up(tmp_path, "--no-simulate", brokers=kafka.address, topic=place, env=minio.environment(place)))
    up.start()
    log, _ = simulate(kafka.address, tmp_path, 200, 1, topic=place)
    wait_settled(minio.lake(place), produced(kafka.address, log, place), alive=up)
    ended = up.command("table", "ls", "--json")
    assert ended.status == 0 and set(TABLES) <= {one["table"] for one in ended.json}, ended
    assert not {one["table"] for one in ended.json if "date=" in one["table"]}, ended
    ended = up.command("verify")
    assert ended.status == 0, ended
    up.stop()
    for name, content in old.items():
        with minio.files().open_input_stream(f"{place}/{name}") as stream:
            assert stream.read() == content


@pytest.fixture
def old_settings(tmp_path, kafka, minio, place):
    """A folder with a `.env` of the old pipeline."""
    text = OLD_SETTINGS.format(
        kafka=kafka.port, minio=minio.port, place=place, access_key=minio.access_key, secret_key=minio.secret_key
    )
    (tmp_path / ".env").write_text(text)
    return tmp_path


def test_settings_of_the_old_pipeline_work_as_they_are(old_settings, kafka, minio, place, ended_later):
    lake = minio.lake(place)
    # The account is made up, and nobody outside is to be asked for it.
    nobody = {"SNOWFLAKE_URL": f"http://127.0.0.1:{free_ports(1)[0]}"}
    ended = run("doctor", "--json", cwd=old_settings, env=nobody)
    checks = {check["what"]: check["state"] for check in ended.json}
    assert checks[f"lake s3://{place}"] == "ok", ended
    assert f"broker localhost:{kafka.port}" in checks, ended
    # That nobody answers there is what the doctor finds: it, and nothing else.
    (fault,) = [check["what"] for check in ended.json if check["state"] == "fault"]
    assert ended.status == 3 and fault == "Snowflake", ended

    ended = run("simulate", "--count", 200, "--rate", 0, "--json", cwd=old_settings)
    assert ended.status == 0 and ended.json["delivered"] == 200, ended
    assert place in topics(kafka.address)

    # One old name after the other has had its effect.
    ended = run("ingest", "--until-end", "--json", cwd=old_settings, timeout=90)
    assert ended.status == 0 and ended.json["rows"] == 200, ended
    assert ended.json["commits"] >= 20, "BATCH_SIZE=10 was not honoured"
    assert "BATCH_SIZE" in ended.err, "it is not said that this is unwise"
    users = set(lake.frame("bronze.spotify_events", ["user_id"])["user_id"])
    assert len(users) == 20, "USER_COUNT was not honoured"

    up = ended_later(Process("up", *door_flags(free_doors()), cwd=old_settings)).start()
    # 50 events a second by EVENT_INTERVAL_SECONDS.
    wait_for("up goes on", lambda: lake.counts()[0] >= 300, seconds=60, every=0.5, alive=up)
    up.stop()
    assert not (old_settings / "lakebeat-data" / "lake").exists(), "the lake is not in the bucket"
    messages = in_topic(kafka.address, place)
    ended = run("ingest", "--until-end", cwd=old_settings, timeout=90)
    assert ended.status == 0 and lake.counts() == (len(messages), 0), ended


@pytest.mark.parametrize(
    "line",
    [
        "AIRFLOW_ADMIN_LASTNAME=Two Words",
        "SNOWFLAKE_PASSWORD=a b",
        "SNOWFLAKE_PASSWORD=a$b$$c",
        "SNOWFLAKE_PASSWORD='it''s'",
        "AIRFLOW_FERNET_KEY=abc=def==",
        "no equals sign",
        "KEY WITH BLANKS=1",
        'JSON={"a": "b"}',
    ],
)
def test_a_line_for_somebody_else_is_left_alone(tmp_path, line):
    """`.env` is shared with other programs, which read it in their own ways."""
    (tmp_path / ".env").write_text(f"LAKEBEAT_DATA_DIR=by-dotenv\n{line}\nLAKEBEAT_LOG_LEVEL=warn\n")
    ended = run("table", "ls", cwd=tmp_path)
    assert ended.status == 0, ended
    assert (tmp_path / "by-dotenv").exists(), "the line before it was lost"


@pytest.mark.parametrize("value", ["a$b$$c", "p@ss#word", "100%", "tab\\tless", "semi;colon", "back\\slash"])
def test_a_secret_is_taken_as_it_stands(tmp_path, value):
    """As the old pipeline's python-dotenv takes it: only ${NAME} stands for something else."""
    (tmp_path / ".env").write_text(f"LAKEBEAT_DATA_DIR={value}\n")
    ended = run("table", "ls", cwd=tmp_path)
    assert ended.status == 0, ended
    assert [one.name for one in tmp_path.iterdir() if one.is_dir()] == [value]


def test_a_file_from_windows(tmp_path):
    (tmp_path / ".env").write_bytes(b"\xef\xbb\xbfLAKEBEAT_DATA_DIR=by-dotenv\r\nLAKEBEAT_LOG_LEVEL=warn\r\n")
    ended = run("table", "ls", cwd=tmp_path)
    assert ended.status == 0, ended
    assert [one.name for one in tmp_path.iterdir() if one.is_dir()] == ["by-dotenv"]
