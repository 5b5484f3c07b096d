"""Clients of several languages and ages at one embedded broker, one after the other.

Each is either served whole, or refused with an error that it shows itself; which of the two is said here, as in the README's
table, which is printed at the end as it came out. After each one a librdkafka client makes a round trip, and nothing that was
acknowledged so far may be missing.
"""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import uuid
from collections import Counter

import confluent_kafka
import kafka
import program
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from lake import Lake, wait_settled
from messages import produced, simulate
from waiting import wait_for

CLIENTS = program.REPOSITORY / "tests" / "broker_clients"
TOPIC = "clients"
PARTITIONS = 2
COUNT = 50

# The clients as the table names them.
PYTHON = f"kafka-python {kafka.__version__}"
LIBRDKAFKA = f"librdkafka {confluent_kafka.libversion()[0]}"
JAVA = "Java kafka-clients 3.9.1"

# How a client has to fare: served, or refused with an error in which it shows these words.
SERVED = "served"
LIBRDKAFKA_REFUSED = "API version not supported"
JAVA_REFUSED = "The version of API is not supported"

KAFKA_PYTHON = [
    ("none", "all", SERVED), ("2.6", "all", SERVED), ("2.5", "all", SERVED), ("1.0", "all", SERVED), ("0.11", "all", SERVED),
    ("0.10.1", "all", SERVED), ("0.10.1", "1", SERVED), ("0.10.1", "0", SERVED), ("0.9", "1", SERVED), ("0.8.2", "0", SERVED),
]


class Broker(program.Process):
    """`lakebeat broker` in a folder and on a port that stay the same when it is started again."""

    def __init__(self, folder):
        (self.port,) = program.free_ports(1)
        self.bootstrap = f"127.0.0.1:{self.port}"
        data_dir = folder / "data"
        super().__init__("broker", "--kafka-port", self.port, "--data-dir", data_dir, cwd=folder, binary=program.BINARY)

    def start(self):
        super().start()
        wait_for("the broker answers", lambda: program.topics(self.bootstrap) is not None, seconds=30, alive=self)
        return self


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    broker = Broker(tmp_path_factory.mktemp("broker")).start()
    admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
    topics = admin.create_topics([NewTopic(TOPIC, num_partitions=PARTITIONS, replication_factor=1)])
    topics[TOPIC].result(10)
    yield broker
    broker.end()


@pytest.fixture(scope="module")
def ledger(request):
    """Every value that any client was told is kept, and the rows of the table."""
    ledger = {"acknowledged": set(), "table": []}
    yield ledger
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    lines = ["", f"{'client':<34} {'settings':<28} outcome"]
    lines += [f"{client:<34} {settings:<28} {outcome}" for client, settings, outcome in ledger["table"]]
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        reporter.write_line("\n".join(lines))


def run_client(command, ledger, client, settings, expected):
    """Runs a client, keeps what it was promised, and checks that it fared as expected."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr[-2000:]
    outcome = json.loads(ended.stdout.strip().splitlines()[-1])
    ledger["acknowledged"] |= set(outcome["acknowledged"])
    shown = outcome["error"]
    ledger["table"].append((client, settings, f"refused: {shown}" if shown else f"served, {outcome['found']} read back"))
    check_outcome(outcome, expected)


def check_outcome(outcome, expected):
    """Whole, or not at all: an error on the way is no refusal, and neither is it service."""
    if expected == SERVED:
        assert outcome["error"] is None
        assert outcome["found"] == COUNT
    else:
        assert expected in (outcome["error"] or "no error")
        assert outcome["acknowledged"] == [] and outcome["found"] == 0


def check_served(broker, ledger):
    """A librdkafka round trip, which also finds every acknowledged value of before."""
    values, failures = produce_by_librdkafka(broker.bootstrap, {"enable.idempotence": True}, key=b"key")
    assert failures == []
    ledger["acknowledged"] |= values
    found = read_all(broker)
    assert ledger["acknowledged"] <= found.keys()
    assert {found[value] for value in values} == {1}, "an idempotent producer's records are there twice"


def produce_by_librdkafka(bootstrap, settings, key=None):
    """The values that were produced, and the errors of those that were not confirmed."""
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0, "message.timeout.ms": 15000} | settings)
    values, failures = {uuid.uuid4().hex for _ in range(COUNT)}, []

    def delivered(error, _message):
        if error:
            failures.append(str(error))

    for value in values:
        producer.produce(TOPIC, value.encode(), key=key, on_delivery=delivered)
    assert producer.flush(20) == 0, "not all was confirmed or given up"
    return values, failures


def read_all(broker):
    """How often each value is in the topic, and that the offsets are without gap up to the end that the broker names."""
    settings = {"bootstrap.servers": broker.bootstrap, "log_level": 0, "group.id": f"check-{uuid.uuid4()}", "enable.partition.eof": True,
                "auto.offset.reset": "earliest", "enable.auto.commit": False}
    consumer = Consumer(settings)
    ends = {partition: consumer.get_watermark_offsets(TopicPartition(TOPIC, partition), timeout=10)[1]
            for partition in range(PARTITIONS)}
    consumer.assign([TopicPartition(TOPIC, partition, 0) for partition in range(PARTITIONS)])
    following, values, ended = dict.fromkeys(ends, 0), Counter(), set()
    while len(ended) < PARTITIONS:
        message = consumer.poll(20)
        assert message is not None, f"no record for 20 s; read so far: {following} of {ends}"
        if message.error():
            assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
            ended.add(message.partition())
            continue
        assert message.offset() == following[message.partition()]
        following[message.partition()] += 1
        values[(message.value() or b"").decode()] += 1
    consumer.close()
    assert following == ends
    return values


def kafka_python(bootstrap, version, acks):
    return [sys.executable, str(CLIENTS / "kafka_python.py"), bootstrap, TOPIC, version, acks, str(COUNT)]


def java(bootstrap, *settings):
    jars, source = str(program.CACHE / "java-clients" / "libs" / "*"), str(CLIENTS / "JavaClient.java")
    quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"
    return ["java", quiet, "-cp", jars, source, bootstrap, TOPIC, str(COUNT), *settings]


@pytest.mark.parametrize(("version", "acks", "expected"), KAFKA_PYTHON)
def test_kafka_python(broker, ledger, version, acks, expected):
    command = kafka_python(broker.bootstrap, version, acks)
    run_client(command, ledger, PYTHON, f"api_version={version} acks={acks}", expected)
    check_served(broker, ledger)


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_librdkafka(broker, ledger, codec):
    """Each codec is served; what was produced with it is read back by the round trip after it."""
    values, failures = produce_by_librdkafka(broker.bootstrap, {"compression.codec": codec, "linger.ms": 50})
    ledger["table"].append((LIBRDKAFKA, f"codec={codec}", f"refused: {failures[0]}" if failures else "served"))
    assert failures == []
    ledger["acknowledged"] |= values
    check_served(broker, ledger)


def test_librdkafka_has_no_transactions(broker, ledger):
    producer = Producer({"bootstrap.servers": broker.bootstrap, "log_level": 0, "transactional.id": "one"})
    with pytest.raises(KafkaException) as refused:
        producer.init_transactions(15)
    shown = refused.value.args[0].str()
    ledger["table"].append((LIBRDKAFKA, "transactional.id=one", f"refused: {shown}"))
    assert LIBRDKAFKA_REFUSED in shown
    check_served(broker, ledger)


@pytest.mark.parametrize(("settings", "expected"), [
    (["acks=all"], SERVED),
    (["acks=0", "enable.idempotence=false"], SERVED),
    (["compression.type=snappy"], SERVED),
    (["transactional.id=one"], JAVA_REFUSED),
], ids=lambda value: " ".join(value) if isinstance(value, list) else value)
def test_java(broker, ledger, settings, expected):
    run_client(java(broker.bootstrap, *settings), ledger, JAVA, " ".join(settings), expected)
    check_served(broker, ledger)


def test_a_group_shares_the_partitions(broker, ledger):
    settings = {"bootstrap.servers": broker.bootstrap, "log_level": 0, "group.id": "sharing", "session.timeout.ms": 6000}
    first, second = Consumer(settings), Consumer(settings)
    first.subscribe([TOPIC])
    second.subscribe([TOPIC])

    def assigned(consumer):
        consumer.poll(0.1)
        return len(consumer.assignment())

    wait_for("each has a partition", lambda: (assigned(first), assigned(second)) == (1, 1), seconds=60)
    second.close()
    wait_for("the one that is left has both", lambda: assigned(first) == 2, seconds=60)
    first.close()
    check_served(broker, ledger)


GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff" + b"\0" * 64,
    b"\0\0\0\x02\0\0",
    # InitProducerId of version 0 and Produce of version 9, both cut off.
    b"\0\0\0\x08\0\x16\0\0\0\0\0\1",
    b"\0\0\0\x0c\0\0\0\x09\0\0\0\1\xff\xff\xff\xff",
]


@pytest.mark.parametrize("frame", GARBAGE)
def test_garbage(broker, ledger, frame):
    send_raw(broker.bootstrap, frame)
    check_served(broker, ledger)


def send_raw(bootstrap, frame):
    host, port = bootstrap.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(frame)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1024)


def test_what_the_engine_cannot_do(broker, ledger):
    """Requests that used to break the broker for all."""
    admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
    with pytest.raises(KafkaException):
        admin.create_topics([NewTopic("too-many", num_partitions=100_000)])["too-many"].result(10)
    admin.create_topics([NewTopic("short", num_partitions=1)])["short"].result(10)
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "log_level": 0, "group.id": "stray", "session.timeout.ms": 6000})
    consumer.assign([TopicPartition("short", 0, 0), TopicPartition(TOPIC, 99, 0)])
    consumer.poll(1)
    admin.delete_topics(["short"])["short"].result(10)
    consumer.poll(2)
    consumer.close()
    admin.delete_records([TopicPartition("nowhere", 0, 5)])
    check_served(broker, ledger)


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_restart_keeps_everything(broker, ledger, how):
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "log_level": 0, "group.id": "kept", "enable.auto.commit": False})
    consumer.commit(offsets=[TopicPartition(TOPIC, 0, 7)], asynchronous=False)
    if how == "killed":
        broker.kill()
    else:
        # With a client that waits for records, which must not hold it up.
        assert broker.stop(signal.SIGTERM) < 3
    broker.start()
    committed = consumer.committed([TopicPartition(TOPIC, 0)], timeout=15)
    assert committed[0].offset == 7
    consumer.close()
    check_served(broker, ledger)


def test_all_are_served_afterwards(broker, ledger):
    """After all the clients, garbage, requests and restarts above: one of each language again."""
    run_client(kafka_python(broker.bootstrap, "none", "all"), ledger, PYTHON, "at the end", SERVED)
    run_client(java(broker.bootstrap), ledger, JAVA, "at the end", SERVED)
    check_served(broker, ledger)


def test_up_loses_nothing(up, tmp_path, seed):
    """The worst of the above at a broker that is at work."""
    print(f"seed {seed}")
    first, _ = simulate(up.brokers, tmp_path, 1_000, seed)
    admin = AdminClient({"bootstrap.servers": up.brokers})
    admin.create_topics([NewTopic(TOPIC, num_partitions=PARTITIONS)])[TOPIC].result(10)
    ledger = {"acknowledged": set(), "table": []}
    for command in [kafka_python(up.brokers, "1.0", "all"), kafka_python(up.brokers, "0.10.1", "0"), java(up.brokers)]:
        run_client(command, ledger, "", "", SERVED)
    for frame in GARBAGE:
        send_raw(up.brokers, frame)
    admin.delete_topics([TOPIC])[TOPIC].result(10)
    (tmp_path / "again").mkdir()
    second, _ = simulate(up.brokers, tmp_path / "again", 1_000, seed + 1)
    messages = produced(up.brokers, first + second)
    assert len(messages) == 2_000
    wait_settled(Lake(up.lake), messages, alive=up)
