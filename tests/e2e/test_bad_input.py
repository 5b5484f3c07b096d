"""Messages that break consumers, on a real Kafka: each is one row or one dead letter with its reason, memory stays bounded, and
nothing stops."""

import json
import os
import time
from collections import Counter

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from lake import wait_accounted
from messages import Message
from program import Process, run
from waiting import wait_for

MIB = 1 << 20
# What a process may hold at most, whatever is sent to it.
PEAK_BYTES = 400 * MIB
# The most that the topics here take as one message.
MESSAGE_BYTES_MAX = 32 * MIB

LARGE = 10 * MIB
LEVELS = 10_000
# `make chaos` sends a million.
LETTERS = int(os.environ.get("LAKEBEAT_TEST_LETTERS") or 100_000)


def event(name, **fields):
    return json.dumps({"event_id": name, "user_id": "u", "timestamp": "2026-01-01T00:00:00Z"} | fields).encode()


def nested(levels):
    return b"[" * levels + b"]" * levels


def large_event(name):
    return event(name, song_name="x" * LARGE)


# What is sent, and what becomes of it: the reason of a letter, or columns of a row.
CASES = {
    "10 MB of an event": (large_event("large"), "too_large"),
    "10 MB that are no JSON": (b"x" * LARGE, "too_large"),
    "nested in a field that nobody knows": (b'{"event_id":"deep","more":%s}' % nested(LEVELS), "too_deep"),
    "nested in a column": (b'{"event_id":%s}' % nested(LEVELS), "wrong_type"),
    "nested and nothing else": (nested(LEVELS), "not_object"),
    "nested and never closed": (b"[" * LEVELS, "not_json"),
    "a field twice": (b'{"event_id":"first","event_id":"twice","user_id":"u"}', {"event_id": "twice"}),
    "a field twice, once wrongly": (b'{"event_id":7,"event_id":"twice"}', {"event_id": "twice"}),
    "an unknown field twice": (b'{"event_id":"rescued","a":1,"a":[2]}', {"event_id": "rescued", "_rescued": '{"a":[2]}'}),
    "not UTF-8": (b'{"event_id":"\xff\xfe"}', "not_utf8"),
    "half a surrogate pair": (rb'{"event_id":"\ud800"}', "not_json"),
    "a null byte": (rb'{"event_id":"a\u0000b"}', {"event_id": "a\0b"}),
    "no JSON at all": (b"event_id=7", "not_json"),
    "two objects": (b'{"event_id":"one"}{"event_id":"two"}', "not_json"),
    "a number too large for anything": (b'{"event_id":"number","n":1e999999}', {"_rescued": '{"n":1e999999}'}),
    "a byte order mark": (b'\xef\xbb\xbf{"event_id":"bom"}', "not_json"),
    "no payload": (None, "tombstone"),
    "no bytes": (b"", "empty"),
    "an object with nothing in it": (b"{}", {"event_id": None}),
}  # fmt: skip


@pytest.fixture
def sent(kafka, place):
    """Makes a topic and sends to it; returns a function from messages (payload, key, headers) to what was stored, in order."""
    admin = AdminClient({"bootstrap.servers": kafka.address, "log_level": 0})

    def send(messages, partitions=1):
        topic = NewTopic(place, partitions, config={"max.message.bytes": str(MESSAGE_BYTES_MAX)})
        admin.create_topics([topic])[place].result(30)
        settings = {"message.max.bytes": MESSAGE_BYTES_MAX, "queue.buffering.max.kbytes": 4 * MESSAGE_BYTES_MAX // 1024}
        producer = Producer({"bootstrap.servers": kafka.address, "log_level": 0, "enable.idempotence": True, **settings})
        stored, failures = [], []

        def delivered(error, message):
            if error is not None:
                failures.append(error)
            # The bytes are not kept: there may be gigabytes.
            stored.append(Message(message.partition(), message.offset(), None))

        for number, (payload, key, headers) in enumerate(messages):
            while True:
                try:
                    producer.produce(
                        place, payload, key, partition=number % partitions, headers=headers, on_delivery=delivered
                    )
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
        assert producer.flush(120) == 0 and not failures, failures
        return stored

    return send


@pytest.fixture
def ingest(kafka, minio, place, tmp_path, ended_later):
    """Starts `ingest` on the topic; `settings` is its lakebeat.toml."""

    def start(settings=""):
        (tmp_path / "lakebeat.toml").write_text(settings)
        process = Process("ingest", "--brokers", kafka.address, "--topic", place, cwd=tmp_path, env=minio.environment(place))
        return ended_later(process).start()

    return start


def check_ended_well(process, lake, stored, minio, place, seconds=60):
    """All messages are rows or letters, each once, and in bounded memory; the process has not stopped, and the audit finds
    nothing. Returns the peak."""
    wait_accounted(lake, stored, seconds=seconds, alive=process)
    bronze, letters = lake.places()
    assert Counter(bronze) + Counter(letters) == Counter(message.place for message in stored)
    peak = process.peak_bytes()
    assert process.starts == 1 and process.exit_status() is None, process.tail()
    assert peak <= PEAK_BYTES, f"{peak / MIB:.0f} MiB at the peak"
    process.stop(seconds=10)
    assert "panicked" not in process.err(), process.tail()
    ended = run("verify", "--json", cwd=process.cwd, env=minio.environment(place))
    assert ended.status == 0, ended
    return peak


def test_bad_messages_between_good_ones(sent, ingest, minio, place):
    lake = minio.lake(place)
    good = [event(f"good-{number}") for number in range(len(CASES))]
    payloads = [part for pair in zip(good, (payload for payload, _ in CASES.values())) for part in pair]
    stored = sent((payload, b"key", None) for payload in payloads)
    check_ended_well(ingest(), lake, stored, minio, place)

    rows = {row["_offset"]: row for row in lake.frame("bronze.spotify_events", ["_offset", "event_id", "_rescued"]).to_dicts()}
    letters = {row["offset"]: row for row in lake.frame("bronze.dead_letters", ["offset", "reason", "payload", "error"]).to_dicts()}
    for number, (name, (payload, outcome)) in enumerate(CASES.items()):
        assert rows[2 * number]["event_id"] == f"good-{number}"
        offset = 2 * number + 1
        if isinstance(outcome, str):
            assert letters[offset]["reason"] == outcome, (name, letters[offset]["error"])
            assert letters[offset]["payload"] == payload, f"{name}: the letter does not hold what came"
            assert len(letters[offset]["error"]) < 300, name
        else:
            assert {column: rows[offset][column] for column in outcome} == outcome, name


def test_a_huge_key_and_many_headers(sent, ingest, minio, place):
    """What is not the payload is kept as well, at a row and at a letter."""
    lake = minio.lake(place)
    huge_key = b"k" * (9 * MIB)
    headers = [(f"header-{number}", b"v" * 90) for number in range(20_000)]
    odd_headers = [("same", b"1"), ("same", b"2"), ("bytes", b"\xff"), ("none", None), ("", b"")]
    messages = [
        (event("huge-key"), huge_key, None),
        (b"nonsense", huge_key, None),
        (event("headers"), b"k", headers),
        (b"nonsense", b"k", headers),
        (event("odd"), b"\xff\xfe", odd_headers),
        (event("last"), None, None),
    ]
    stored = sent(messages)
    check_ended_well(ingest(), lake, stored, minio, place)

    rows = {row["event_id"]: row for row in lake.frame("bronze.spotify_events", ["event_id", "_key", "_headers"]).to_dicts()}
    assert rows["huge-key"]["_key"] == huge_key.decode()
    assert len(json.loads(rows["headers"]["_headers"])) == len(headers)
    assert json.loads(rows["odd"]["_headers"]) == [
        {"key": "same", "value": "1"}, {"key": "same", "value": "2"}, {"key": "bytes", "value_base64": "/w=="},
        {"key": "none", "value": None}, {"key": "", "value": ""},
    ]  # fmt: skip
    assert rows["odd"]["_key"].startswith("base64:") and rows["last"]["_key"] is None
    letters = lake.frame("bronze.dead_letters", ["offset", "key", "headers"]).sort("offset").to_dicts()
    assert letters[0]["key"] == huge_key and len(json.loads(letters[1]["headers"])) == len(headers)


@pytest.mark.parametrize("limit", ["default", "raised"])
def test_ten_megabytes_each_and_many_in_a_row(sent, ingest, minio, place, limit):
    """They are letters where the topic's limit says so, and rows where it is raised; and never all in memory at once."""
    lake = minio.lake(place)
    names = [f"large-{number}" for number in range(20)]
    stored = sent((large_event(name), b"k", None) for name in names)
    settings = ""
    if limit == "raised":
        fields = ", ".join(f'{{ name = "{name}", column = "{name}" }}' for name in ("event_id", "song_name"))
        settings = f"""\
[[topics]]
name = "{place}"
table = "bronze.spotify_events"
payload_bytes_max = {MESSAGE_BYTES_MAX}
fields = [{fields}]
"""
    peak = check_ended_well(ingest(settings), lake, stored, minio, place)
    print(f"{len(names)} messages of 10 MiB, limit {limit}: {peak / MIB:.0f} MiB at the peak")
    if limit == "raised":
        rows = lake.frame("bronze.spotify_events", ["event_id", "song_name"])
        assert sorted(rows["event_id"]) == sorted(names)
        assert set(rows["song_name"].str.len_bytes()) == {LARGE}
    else:
        letters = lake.frame("bronze.dead_letters", ["reason", "payload"])
        assert set(letters["reason"]) == {"too_large"} and letters.height == len(names)
        assert sorted(letters["payload"]) == sorted(large_event(name) for name in names)


@pytest.mark.timeout(1_800)
def test_dead_letters_in_a_row(sent, ingest, minio, place):
    """A producer that went wrong: nothing but letters for a long time, then it is mended."""
    lake = minio.lake(place)
    partitions = 4
    letters = ((b'{"event_id": %d, "broken": "%s"' % (number, b"x" * 250), b"k", None) for number in range(LETTERS))
    stored = sent((*letters, *((event(f"good-{number}"), b"k", None) for number in range(partitions))), partitions)
    began = time.monotonic()
    process = ingest()
    wait_for("the first letters are there", lambda: lake.counts()[1] > 0, alive=process)
    peak = check_ended_well(process, lake, stored, minio, place, seconds=600)
    seconds = time.monotonic() - began
    rows, _ = lake.counts()
    assert rows == partitions
    reasons = Counter(lake.frame("bronze.dead_letters", ["reason"])["reason"])
    assert reasons == {"not_json": LETTERS}
    # For the report of `make chaos`.
    print(f"REPORT {LETTERS:,} dead letters in a row: all accounted for, {peak / MIB:.0f} MiB at the peak, {seconds:.0f} s.")
