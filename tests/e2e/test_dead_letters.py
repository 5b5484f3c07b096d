"""Dead letters through the program: listed, replayed once, with corrected payloads; counted by another engine."""

import json
from collections import Counter

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from deltalake import DeltaTable

from lake import Lake
from program import TOPIC, Process, check_refused, free_ports, run, run_ok, topics
from waiting import wait_for

EVENT = {"event_id": "e", "user_id": "u", "song_id": "s", "timestamp": "2026-01-31T08:00:00Z"}
DESCRIBED = """
[[topics]]
name = "spotify_events"
table = "bronze.spotify_events"
fields = [
  { name = "event_id", column = "event_id" },
  { name = "user_id", column = "user_id" },
  { name = "song_id", column = "song_id" },
  { name = "artist_name", column = "artist_name" },
  { name = "song_name", column = "song_name" },
  { name = "event_type", column = "event_type" },
  { name = "device_type", column = "device_type" },
  { name = "country", column = "country", type = "any" },
  { name = "timestamp", column = "timestamp_str" },
]
"""


def produce(brokers, payloads, topic=TOPIC, partition=0):
    """Sends payloads, with a key and a header each."""
    producer = Producer({"bootstrap.servers": brokers})
    for number, payload in enumerate(payloads):
        producer.produce(topic, payload, key=f"key {number}", partition=partition, headers=[("from", b"test")])
    assert producer.flush(20) == 0


def replayed(lake):
    """Place and replay of each row that a replay brought, as another engine sees it."""
    columns = ["_partition", "_offset", "_index", "_key", "event_id", "_replay_id"]
    if "_replay_id" not in DeltaTable(str(lake.path("bronze.spotify_events"))).to_pyarrow_table().schema.names:
        return []
    frame = lake.frame("bronze.spotify_events", columns)
    return [row for row in frame.rows() if row[-1] is not None]


def test_letters_are_listed_and_become_rows_once(up, tmp_path):
    lake = Lake(up.lake)
    mixed = [
        json.dumps(EVENT | {"event_id": "good"}),
        json.dumps(EVENT | {"event_id": "number", "country": 49}),
        b"\xff\x00",
        "nonsense \x1b[2J",
        None,
    ]
    produce(up.brokers, mixed)
    up.wait_ready()
    ended = run_ok("ingest", "--brokers", up.brokers, "--until-end", "--data-dir", up.data_dir, "--json", cwd=tmp_path)
    assert lake.counts() == (1, 4), ended

    ended = up.command("dead-letters", "ls", "--json")
    assert ended.status == 0, ended
    counts = {one["reason"]: (one["letters"], one["replayed"]) for one in ended.json["counts"]}
    assert counts == {"wrong_type": (1, 0), "not_utf8": (1, 0), "not_json": (1, 0), "tombstone": (1, 0)}
    shown = {one["offset"]: one for one in ended.json["samples"]}
    assert shown[3]["payload"] == mixed[3] and shown[2]["payload_base64"] == "/wA=" and shown[4]["payload_bytes"] is None
    check_refused(up.command("dead-letters", "ls", "--reason", "not_jsno"), 2, "not_jsno", "too_large")
    ended = up.command("dead-letters", "ls", "--reason", "not_json", "--limit", "1")
    assert ended.status == 0 and "nonsense" in ended.out and "\x1b" not in ended.out and "tombstone" not in ended.out, ended

    # A field of another type, allowed by now; the rest stays.
    (tmp_path / "mended.toml").write_text(DESCRIBED)
    mended = ("--config", tmp_path / "mended.toml")
    dry = up.command("ingest", "replay", "--dry-run", "--json", *mended)
    assert dry.status == 0 and dry.json["replayed"] == 1 and not replayed(lake), dry
    first = up.command("ingest", "replay", "--json", *mended)
    assert first.status == 0 and (first.json["selected"], first.json["replayed"]) == (4, 1), first
    assert {reason: one["letters"] for reason, one in first.json["still_undecodable"].items()} == {
        "not_utf8": 1, "not_json": 1, "tombstone": 1,
    }  # fmt: skip
    assert replayed(lake) == [(0, 1, 0, "key 1", "number", first.json["id"])]

    # Corrected payloads, one of them for the tombstone. The running pipeline goes on beside it.
    corrected = tmp_path / "corrected.jsonl"
    lines = [
        {"partition": 0, "offset": 3, "index": 0, "payload": EVENT | {"event_id": "three"}},
        {"partition": 0, "offset": 4, "payload": json.dumps(EVENT | {"event_id": "four"})},
    ]
    corrected.write_text("".join(json.dumps(line) + "\n" for line in lines))
    produce(up.brokers, [json.dumps(EVENT | {"event_id": str(number)}) for number in range(100)])
    second = up.command("ingest", "replay", "--payloads", corrected, "--json")
    assert second.status == 0 and (second.json["selected"], second.json["replayed"]) == (2, 2), second
    again = up.command("ingest", "replay", "--payloads", corrected, "--json")
    assert again.status == 0 and (again.json["replayed"], again.json["already_there"], again.json["commits"]) == (0, 2, 0), again
    run_ok("ingest", "--brokers", up.brokers, "--until-end", "--data-dir", up.data_dir, cwd=tmp_path)
    assert Counter(row[:3] for row in replayed(lake)) == Counter([(0, 1, 0), (0, 3, 0), (0, 4, 0)])
    assert lake.counts() == (104, 4)
    verified = up.command("verify", "--json")
    assert verified.status == 0, verified
    ended = up.command("dead-letters", "ls", "--json", "--limit", "0")
    assert sum(one["replayed"] for one in ended.json["counts"]) == 3 and ended.json["samples"] == [], ended


def test_a_bad_file_of_payloads_is_named_with_its_line(up, tmp_path):
    produce(up.brokers, ["nonsense"])
    run_ok("ingest", "--brokers", up.brokers, "--until-end", "--data-dir", up.data_dir, cwd=tmp_path)
    corrected = tmp_path / "corrected.jsonl"
    for lines, words in [
        ('{"partition":0,"offset":0,"payload":{}}\n{"partition":0,"offset":7,"payload":{}}\n', ("line 2", "offset 7")),
        ('{"partition":0,"offset":0,"payload":{}', ("line 1",)),
        ('{"partition":0,"offset":0}', ("line 1", "offset 0", "payload")),
    ]:
        corrected.write_text(lines)
        check_refused(up.command("ingest", "replay", "--payloads", corrected), 2, corrected, *words)
    check_refused(up.command("ingest", "replay", "--payloads", tmp_path / "none.jsonl"), 2, "none.jsonl")
    assert Lake(up.lake).counts() == (0, 1)


def test_words_that_do_not_fit_are_refused(tmp_path):
    check_refused(run("ingest", "replay", "--offsets", "7-3", cwd=tmp_path), 2, "--offsets", "7-3")
    check_refused(run("ingest", "replay", "--since", "yesterday", cwd=tmp_path), 2, "--since", "2026-01-31T08:00:00Z")
    check_refused(run("ingest", "--until-end", "replay", cwd=tmp_path), 2, "replay")
    ended = run_ok("dead-letters", "ls", "--json", cwd=tmp_path)
    assert ended.json == {"counts": [], "samples": []}


def test_too_many_letters_stop_the_process(tmp_path, ended_later):
    """Before they are committed, so that they become rows once the topic's settings are mended."""
    (port,) = free_ports(1)
    brokers, lake = f"127.0.0.1:{port}", Lake(tmp_path / "lake")
    broker = ended_later(Process("broker", "--kafka-port", port, "--data-dir", tmp_path / "broker", cwd=tmp_path)).start()
    wait_for("the broker answers", lambda: topics(brokers) is not None, seconds=30, alive=broker)
    admin = AdminClient({"bootstrap.servers": brokers})
    admin.create_topics([NewTopic(TOPIC, num_partitions=1)])[TOPIC].result(10)
    limit = "max_dead_letter_ratio = 0.2\n"
    (tmp_path / "strict.toml").write_text(DESCRIBED.replace(', type = "any"', "") + limit)
    (tmp_path / "mended.toml").write_text(DESCRIBED + limit)
    ingest = ("ingest", "--brokers", brokers, "--until-end", "--lake", tmp_path / "lake", "--json")
    produce(brokers, [json.dumps(EVENT | {"country": 49}) for _ in range(1_500)])
    for _ in range(2):
        ended = run(*ingest, "--config", tmp_path / "strict.toml", cwd=tmp_path)
        check_refused(ended, 1, TOPIC, "max_dead_letter_ratio = 0.2", "wrong_type", "partition 0 offset", "country")
    written = sum(lake.counts())
    assert written < 1_000, "it is told before there are so many"
    ended = run_ok(*ingest, "--config", tmp_path / "mended.toml", cwd=tmp_path)
    assert ended.json["rows"] == 1_500 - written
    ended = run_ok("verify", "--lake", tmp_path / "lake", "--json", cwd=tmp_path)
    assert ended.json["faults"] == []
