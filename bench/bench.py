"""Speed and freshness, measured and never asserted. Run by `make bench`; writes results.md beside this file.

1. A topic of so many events is drained twice: by librdkafka, arrow-json and the Parquet encoder with nothing in between
   (ingest/examples/bare_drain.rs), then by `lakebeat ingest --until-end`.
2. While `lakebeat up` takes in 100 and then 5,000 events a second, marked events are sent, and how long each takes until a
   query of gold at the PostgreSQL door shows it is noted.
"""

import argparse
import base64
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "e2e"))

from program import BINARY, POSTGRES, TOPIC, Process, Up, environment, free_ports, run_ok, topics  # noqa: E402
from waiting import wait_for  # noqa: E402

RATES = (100, 5_000)
MARKED = 200
# Not a part of a second, lest they fall in step with what happens once a second.
MARK_EVERY = 0.37
WARM_UP_SECONDS = 10
# The one column of gold that names a listener, and a device that no simulated listener has.
DEVICE = "bench"


def say(text):
    print(text, file=sys.stderr, flush=True)


# 1. Speed.


@contextmanager
def embedded_broker(folder):
    (port,) = free_ports(1)
    broker = Process("broker", "--kafka-port", port, "--data-dir", folder / "broker", cwd=folder).start()
    try:
        yield f"127.0.0.1:{port}", broker, "embedded"
    finally:
        broker.end()


class Kafka:
    """A real Kafka from its jars, one node, as a process that can be watched."""

    PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={folder}/data
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
num.partitions=4
"""

    def __init__(self, jars, folder):
        self.port, controller = free_ports(2)
        folder.mkdir()
        self.folder, self.java = folder, ["java", "-Xmx512m", "-cp", f"{jars}/libs/*"]
        self.settings = folder / "server.properties"
        self.settings.write_text(self.PROPERTIES.format(port=self.port, controller=controller, folder=folder))

    def start(self):
        # Any 16 bytes in base64; a random one may begin with a dash, which the tool takes for a flag.
        cluster = base64.urlsafe_b64encode(b"lakebeat's bench").decode().rstrip("=")
        tool = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self.settings)]
        subprocess.run([*self.java, *tool], check=True, capture_output=True)
        self.log = open(self.folder / "log", "wb")
        self.child = subprocess.Popen([*self.java, "kafka.Kafka", str(self.settings)], stdout=self.log, stderr=self.log)
        return self

    def exit_status(self):
        return self.child.poll()

    def tail(self):
        return (self.folder / "log").read_text()[-2000:]

    def end(self):
        self.child.terminate()
        self.child.wait(30)


@contextmanager
def real_kafka(jars, folder):
    broker = Kafka(jars, folder / "kafka").start()
    try:
        yield f"127.0.0.1:{broker.port}", broker, "Apache Kafka"
    finally:
        broker.end()


def measured(*command, cwd):
    """Runs a command; returns the JSON object that it prints, its wall and processor seconds and its peak memory."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen([str(part) for part in command], cwd=cwd, env=environment(), stdout=out)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0, f"{command} ended with status {child.returncode}"
        out.seek(0)
        answer = json.loads(out.read().decode())
    cpu = usage.ru_utime + usage.ru_stime
    return answer, {"seconds": seconds, "cpu": cpu, "rss": usage.ru_maxrss * 1024}


def speed(arguments, folder):
    broker = real_kafka(arguments.kafka, folder) if (arguments.kafka / "libs").is_dir() else embedded_broker(folder)
    with broker as (brokers, process, kind):
        wait_for("the broker answers", lambda: topics(brokers) is not None, seconds=60, alive=process)
        admin = AdminClient({"bootstrap.servers": brokers, "log_level": 0})
        admin.create_topics([NewTopic(TOPIC, num_partitions=4)])[TOPIC].result(30)
        say(f"producing {arguments.events} events to the {kind} broker")
        report = run_ok(
            "simulate", "--brokers", brokers, "--topic", TOPIC, "--count", arguments.events, "--rate", 0, "--seed", 1,
            "--json", cwd=folder, timeout=1_800,
        ).json  # fmt: skip
        say("draining it bare")
        bare, bare_cost = measured(
            arguments.bare, "--brokers", brokers, "--topic", TOPIC, "--until-end", cwd=folder
        )
        say("draining it into the lake")
        summary, cost = measured(
            BINARY, "ingest", "--brokers", brokers, "--topic", TOPIC, "--until-end", "--json", "--data-dir", "lake",
            cwd=folder,
        )  # fmt: skip
    assert bare["events"] == summary["rows"] == arguments.events, (bare, summary)
    return {
        "broker": kind,
        "events": arguments.events,
        "event_bytes": bare["bytes"] / bare["events"],
        "produced_a_second": report["delivered"] / report["seconds"],
        "commits": summary["commits"],
        "bare": bare_cost,
        "ingest": cost,
    }


# 2. Freshness.


def marked_event(user):
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    event = {
        "event_id": str(uuid.uuid4()),
        "user_id": user,
        "song_id": "b04ddbae-c1a3-5d48-8d4a-0b5fe5ef1e0a",
        "artist_name": "The Weeknd",
        "song_name": "Blinding Lights",
        "event_type": "play",
        "device_type": DEVICE,
        "country": "US",
        "timestamp": now,
    }
    return json.dumps(event)


def freshness(rate, folder):
    """Seconds from handing an event to the producer until gold shows it, sorted, and how many were never seen."""
    folder.mkdir()
    up = Up(folder, "--rate", rate)
    try:
        up.start()
        up.wait_ready()
        producer = Producer({"bootstrap.servers": up.brokers, "log_level": 0, "linger.ms": 0, "acks": "all"})
        url = f"postgresql://bench@127.0.0.1:{up.ports[POSTGRES]}/lake"
        sent, seen = {}, {}
        with psycopg.connect(url, autocommit=True) as connection:
            start = time.monotonic() + WARM_UP_SECONDS
            deadline = start + MARKED * MARK_EVERY + 60
            while len(seen) < MARKED and time.monotonic() < deadline:
                now = time.monotonic()
                if len(sent) < MARKED and now >= start + MARK_EVERY * len(sent):
                    user = f"marked-{len(sent)}"
                    producer.produce(TOPIC, key=user, value=marked_event(user))
                    sent[user] = time.monotonic()
                producer.poll(0)
                rows = connection.execute(
                    f"select user_id from gold.user_engagement where device_type = '{DEVICE}'"
                ).fetchall()
                now = time.monotonic()
                for (user,) in rows:
                    seen.setdefault(user, now)
                time.sleep(0.02)
        up.stop(seconds=10)
    finally:
        up.end()
    return sorted(seen[user] - sent[user] for user in seen), MARKED - len(seen)


def percentile(values, share):
    return values[min(len(values) - 1, int(share * len(values)))]


# The report.


def machine():
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")), "?")
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    memory = int(total.split()[1]) / 1024**2
    return f"{os.cpu_count()} cores, {model}, {memory:.0f} GiB of memory, {platform.system()} {platform.release()}"


def speed_lines(result):
    events, bare, ingest = result["events"], result["bare"], result["ingest"]
    yield f"{events:,} events of {result['event_bytes']:.0f} bytes, {result['broker']} broker on the same machine."
    yield ""
    yield "| | seconds | events/s | processor seconds | events/s of one core | peak memory |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name, cost in (("bare librdkafka + arrow-json + Parquet", bare), ("`lakebeat ingest --until-end`", ingest)):
        yield (
            f"| {name} | {cost['seconds']:.1f} | {events / cost['seconds']:,.0f} | {cost['cpu']:.1f} "
            f"| {events / cost['cpu']:,.0f} | {cost['rss'] / 2**20:,.0f} MiB |"
        )
    wall, cpu = bare["seconds"] / ingest["seconds"], bare["cpu"] / ingest["cpu"]
    yield f"| ratio | | {wall:.2f} | | {cpu:.2f} | |"
    yield ""
    yield f"`simulate --rate 0` produced {result['produced_a_second']:,.0f} events/s; ingest made {result['commits']} commits."


def freshness_lines(results):
    yield "| events/s | p50 | p99 | marked events | not seen |"
    yield "|---:|---:|---:|---:|---:|"
    for rate, (seconds, missing) in results.items():
        if seconds:
            p50, p99 = statistics.median(seconds), percentile(seconds, 0.99)
            yield f"| {rate:,} | {p50:.2f} s | {p99:.2f} s | {len(seconds)} | {missing} |"
        else:
            yield f"| {rate:,} | | | 0 | {missing} |"


def report(speed_result, freshness_results):
    parts = [
        "# Measured",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}; `make bench`.",
        "",
        "## Kafka to bronze",
        "",
        *speed_lines(speed_result),
        "",
        "## Produced to visible in gold",
        "",
        "The broker, the simulator, ingest, the models and the door in one process (`lakebeat up`), while it takes in so many events a",
        "second.",
        "",
        *freshness_lines(freshness_results),
    ]
    return "\n".join(parts) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bare", type=Path, required=True, help="the program that drains bare")
    parser.add_argument("--kafka", type=Path, required=True, help="folder of Kafka's jars; the embedded broker without")
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--output", type=Path, default=HERE / "results.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lakebeat-bench-") as name:
        folder = Path(name)
        result = speed(arguments, folder)
        fresh = {}
        for rate in RATES:
            say(f"freshness at {rate} events a second")
            fresh[rate] = freshness(rate, folder / f"rate-{rate}")
    text = report(result, fresh)
    arguments.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
