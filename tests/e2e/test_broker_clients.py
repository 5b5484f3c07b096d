"""Clients of several languages and ages at one embedded broker, one after the other.

Each is either served whole, or refused with an error that it shows itself. After each one a librdkafka client makes a
round trip, and nothing that was acknowledged so far may be missing. The table at the end is the one in the README.
"""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import uuid

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLIENTS = ROOT / "tests" / "broker_clients"
CACHE = pathlib.Path(os.environ.get("LAKEBEAT_CACHE", pathlib.Path.home() / ".cache" / "lakebeat"))
LAKEBEAT = os.environ.get("LAKEBEAT_BIN", str(ROOT / "bin" / "lakebeat"))
TOPIC = "clients"
PARTITIONS = 2
COUNT = 50

# What the client is called in the table, how to run it, and whether it waits for acknowledgements.
KAFKA_PYTHON = [
    ("none", "all"), ("2.6", "all"), ("2.5", "all"), ("1.0", "all"), ("0.11", "all"), ("0.10.1", "1"), ("0.10.1", "0"),
    ("0.9", "1"), ("0.8.2", "0"),
]


class Broker:
    """`lakebeat broker` in a folder, which can be stopped and started again."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        log = open(self.folder.parent / "broker.log", "ab")
        command = [LAKEBEAT, "broker", "--kafka-port", str(self.port), "--data-dir", str(self.folder)]
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the broker ended with {self.process.returncode}"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("the broker does not listen")

    def stop(self, with_signal=signal.SIGTERM):
        self.process.send_signal(with_signal)
        started = time.monotonic()
        self.process.wait(timeout=10)
        return time.monotonic() - started


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    broker = Broker(tmp_path_factory.mktemp("broker") / "data")
    broker.start()
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    topics = admin.create_topics([NewTopic(TOPIC, num_partitions=PARTITIONS, replication_factor=1)])
    topics[TOPIC].result(10)
    yield broker
    broker.stop()


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


def run_client(command, ledger, client, settings):
    """Runs a client, keeps what it was promised, and returns what it printed."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr[-2000:]
    outcome = json.loads(ended.stdout.strip().splitlines()[-1])
    ledger["acknowledged"] |= set(outcome["acknowledged"])
    shown = outcome["error"]
    ledger["table"].append((client, settings, f"refused: {shown}" if shown else f"served, {outcome['found']} read back"))
    return outcome


def check_served(broker, ledger):
    """A librdkafka round trip, which also finds every acknowledged value of before."""
    failures = []
    producer = Producer({"bootstrap.servers": broker.bootstrap, "enable.idempotence": True, "message.timeout.ms": 15000})
    values = [uuid.uuid4().hex for _ in range(COUNT)]
    for value in values:
        producer.produce(TOPIC, value.encode(), key=b"key", on_delivery=lambda error, _: failures.append(error) if error else None)
    assert producer.flush(20) == 0
    assert failures == []
    ledger["acknowledged"] |= set(values)
    assert ledger["acknowledged"] <= read_all(broker)


def read_all(broker):
    """Everything in the topic, and that the offsets are without gap up to the end that the broker names."""
    settings = {"bootstrap.servers": broker.bootstrap, "group.id": f"check-{uuid.uuid4()}", "enable.partition.eof": True,
                "auto.offset.reset": "earliest", "enable.auto.commit": False}
    consumer = Consumer(settings)
    ends = {partition: consumer.get_watermark_offsets(TopicPartition(TOPIC, partition), timeout=10)[1]
            for partition in range(PARTITIONS)}
    consumer.assign([TopicPartition(TOPIC, partition, 0) for partition in range(PARTITIONS)])
    following, values, ended = dict.fromkeys(ends, 0), set(), set()
    deadline = time.monotonic() + 30
    while len(ended) < PARTITIONS and time.monotonic() < deadline:
        message = consumer.poll(1)
        if message is None:
            continue
        if message.error():
            assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
            ended.add(message.partition())
            continue
        assert message.offset() == following[message.partition()]
        following[message.partition()] += 1
        values.add((message.value() or b"").decode())
    consumer.close()
    assert following == ends
    return values


@pytest.mark.parametrize(("version", "acks"), KAFKA_PYTHON)
def test_kafka_python(broker, ledger, version, acks):
    script = str(CLIENTS / "kafka_python.py")
    command = [sys.executable, script, broker.bootstrap, TOPIC, version, acks, str(COUNT)]
    outcome = run_client(command, ledger, "kafka-python", f"api_version={version} acks={acks}")
    assert outcome["error"] or outcome["found"] == COUNT
    check_served(broker, ledger)


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_librdkafka(broker, ledger, codec):
    values, failures = {uuid.uuid4().hex for _ in range(COUNT)}, []
    producer = Producer({"bootstrap.servers": broker.bootstrap, "compression.codec": codec, "linger.ms": 50,
                         "message.timeout.ms": 15000})
    for value in values:
        producer.produce(TOPIC, value.encode(), on_delivery=lambda error, _: failures.append(str(error)) if error else None)
    producer.flush(20)
    if not failures:
        ledger["acknowledged"] |= values
    outcome = f"refused: {failures[0]}" if failures else "served"
    ledger["table"].append(("librdkafka (confluent-kafka)", f"codec={codec}", outcome))
    check_served(broker, ledger)


@pytest.mark.parametrize("setting", ["acks=all", "acks=0", "compression.type=snappy", "transactional.id=one"])
def test_java(broker, ledger, setting):
    jars = str(CACHE / "java-clients" / "libs" / "*")
    source = str(CLIENTS / "JavaClient.java")
    command = ["java", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp", jars, source, broker.bootstrap, TOPIC, str(COUNT)]
    if setting == "acks=0":
        setting = "acks=0 enable.idempotence=false"
    outcome = run_client(command + setting.split(), ledger, "Java kafka-clients", setting)
    assert outcome["error"] or outcome["found"] == COUNT
    if "transactional" in setting:
        assert outcome["error"], "the broker has no transactions, and the client has to learn it"
    check_served(broker, ledger)


@pytest.mark.parametrize("frame", [
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff" + b"\0" * 64,
    b"\0\0\0\x08\0\x16\0\0\0\0\0\1", b"\0\0\0\x0c\0\0\0\x09\0\0\0\1\xff\xff\xff\xff", b"\0\0\0\x02\0\0",
])
def test_garbage(broker, ledger, frame):
    with socket.create_connection(("127.0.0.1", broker.port), timeout=5) as connection:
        connection.sendall(frame)
        with contextlib.suppress(ConnectionResetError):
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1024)
    check_served(broker, ledger)


def test_what_the_engine_cannot_do(broker, ledger):
    """Requests that used to break the broker for all."""
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    with pytest.raises(KafkaException):
        admin.create_topics([NewTopic("too-many", num_partitions=100_000)])["too-many"].result(10)
    admin.create_topics([NewTopic("short", num_partitions=1)])["short"].result(10)
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "stray", "session.timeout.ms": 6000})
    consumer.assign([TopicPartition("short", 0, 0), TopicPartition(TOPIC, 99, 0)])
    consumer.poll(1)
    admin.delete_topics(["short"])["short"].result(10)
    consumer.poll(2)
    consumer.close()
    admin.delete_records([TopicPartition("nowhere", 0, 5)])
    check_served(broker, ledger)


@pytest.mark.parametrize("with_signal", [signal.SIGTERM, signal.SIGKILL])
def test_restart_keeps_everything(broker, ledger, with_signal):
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "kept", "enable.auto.commit": False})
    consumer.commit(offsets=[TopicPartition(TOPIC, 0, 7)], asynchronous=False)
    assert broker.stop(with_signal) < 3
    broker.start()
    committed = consumer.committed([TopicPartition(TOPIC, 0)], timeout=15)
    assert committed[0].offset == 7
    consumer.close()
    check_served(broker, ledger)
