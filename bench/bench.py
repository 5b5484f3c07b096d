"""Speed and freshness, measured and never asserted. Run by `make bench`; writes results.md beside this file.

1. A topic of so many events on a real Kafka is drained three times: by librdkafka, arrow-json and the Parquet encoder with
   nothing in between (ingest/examples/bare_drain.rs), by `lakebeat ingest --until-end` into a folder, and by the same into
   a real MinIO.
2. The same on one core, into a folder, with Kafka on the others: bare, by `lakebeat ingest`, and once more under perf for where
   the time goes. Then what an ingest holds in memory that has nothing to do: after such a drain, and fresh.
3. Commits of a thousand rows, one right after the other: how long each takes, in a folder and in MinIO. Then how long one takes
   after ten, a thousand and ten thousand of them, by our committer and by the library's ordinary path
   (lakehouse/examples/commit_curve.rs).
4. While `lakebeat up` takes in so many events a second, marked events are sent, and how long each takes until a query of gold
   at the PostgreSQL door shows it is noted: all in one process, and on Kafka and MinIO.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "e2e"))

from kafka_server import KafkaServer  # noqa: E402
from minio_server import MinioServer  # noqa: E402
from program import BINARY, POSTGRES, TOPIC, Process, Up, environment, run_ok  # noqa: E402
from sampling import profiled  # noqa: E402
from waiting import wait_for  # noqa: E402

TABLE = f"bronze.{TOPIC}"
COMMITS, COMMIT_ROWS = 200, 1_000
ONE_PROCESS, STACK = "one process, on disk", "on Kafka and MinIO"
RATES = ((100, ONE_PROCESS), (1_000, ONE_PROCESS), (5_000, ONE_PROCESS), (1_000, STACK))
MARKED = 200
# Not a part of a second, lest they fall in step with what happens once a second.
MARK_EVERY = 0.37
WARM_UP_SECONDS = 10
# A process has nothing to do when it has used less of a core than this for so long.
IDLE_SHARE, IDLE_SECONDS = 0.05, 10
# The one column of gold that names a listener, and a device that no simulated listener has.
DEVICE = "bench"


def say(text):
    print(text, file=sys.stderr, flush=True)


# 1. Speed.


def measured(*command, cwd, cores=None, **settings):
    """Runs a command; returns the JSON object that it prints, its wall and processor seconds and its peak memory."""
    began = time.monotonic()
    if cores:
        command = ("taskset", "-c", cores, *command)
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen([str(part) for part in command], cwd=cwd, env=environment(**settings), stdout=out)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0, f"{command} ended with status {child.returncode}"
        out.seek(0)
        answer = json.loads(out.read().decode())
    cpu = usage.ru_utime + usage.ru_stime
    return answer, {"seconds": seconds, "cpu": cpu, "rss": usage.ru_maxrss * 1024}


def produced(kafka, topic, count, folder):
    """Fills a topic; returns the events a second."""
    admin = AdminClient({"bootstrap.servers": kafka.address, "log_level": 0})
    admin.create_topics([NewTopic(topic, num_partitions=4)])[topic].result(30)
    say(f"producing {count} events")
    report = run_ok(
        "simulate", "--brokers", kafka.address, "--topic", topic, "--count", count, "--rate", 0, "--seed", 1, "--json",
        cwd=folder, timeout=1_800,
    ).json  # fmt: skip
    return report["delivered"] / report["seconds"]


def ingest(kafka, topic, *flags):
    return (BINARY, "ingest", "--brokers", kafka.address, "--topic", topic, *flags)


def drained(kafka, topic, folder, cores=None, **settings):
    """Drains a topic into the lake that the settings name."""
    folder.mkdir()
    return measured(*ingest(kafka, topic, "--until-end", "--json"), cwd=folder, cores=cores, **settings)


def built(folder, **settings):
    """Builds, tests and publishes all models of the lake that the settings name, from all its rows."""
    report, cost = measured(BINARY, "transform", "build", "--json", cwd=folder, **settings)
    assert report["publications"], report
    return cost


def speed(arguments, folder, kafka, minio):
    topic = "drained"
    rate = produced(kafka, topic, arguments.events, folder)
    say("draining it bare")
    command = (arguments.bare, "--brokers", kafka.address, "--topic", topic, "--until-end")
    bare, bare_cost = measured(*command, cwd=folder)
    say("draining it into a folder")
    on_disk, disk_cost = drained(kafka, topic, folder / "disk")
    say("draining it into MinIO")
    in_minio, minio_cost = drained(kafka, topic, folder / "minio-client", **minio.environment("drained"))
    say("building silver and gold from it, in both places")
    models = {"disk": built(folder / "disk"), "minio": built(folder / "minio-client", **minio.environment("drained"))}
    assert bare["events"] == on_disk["rows"] == in_minio["rows"] == arguments.events, (bare, on_disk, in_minio)
    return {
        "events": arguments.events,
        "event_bytes": bare["bytes"] / bare["events"],
        "produced_a_second": rate,
        "commits": (on_disk["commits"], in_minio["commits"]),
        "bare": bare_cost,
        "disk": disk_cost,
        "minio": minio_cost,
        "models": models,
    }


# 2. One core, and memory.


@contextlib.contextmanager
def kept_to(pid, cores):
    """Lets a process run on some cores only, for as long as this lasts."""

    def keep_to(cores):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), cores)

    keep_to(cores)
    try:
        yield
    finally:
        keep_to(range(os.cpu_count()))


def one_core(arguments, folder, kafka):
    """The drain of part 1 on the first core, with Kafka on the others; and what it does there."""
    folder.mkdir()
    topic = "drained"
    bare_command = (arguments.bare, "--brokers", kafka.address, "--topic", topic, "--until-end")
    with kept_to(kafka.child.pid, set(range(1, os.cpu_count())) or {0}):
        say("draining it bare, on one core")
        bare, bare_cost = measured(*bare_command, cwd=folder, cores="0")
        say("draining it into a folder, on one core")
        on_disk, disk_cost = drained(kafka, topic, folder / "disk", cores="0")
        assert bare["events"] == on_disk["rows"] == arguments.events, (bare, on_disk)
        say("the same under perf")
        (folder / "profiled").mkdir()
        shares = profiled(ingest(kafka, topic, "--until-end", "--json"), folder / "profiled", "0")
    return {
        "events": arguments.events,
        "event_bytes": bare["bytes"] / bare["events"],
        "bare": bare_cost,
        "disk": disk_cost,
        "profile": shares,
        "idle": idle_memory(kafka, topic, folder / "idle", arguments.events),
    }


def idle_memory(kafka, topic, folder, events):
    """Bytes of memory of an ingest that has drained the topic, and of one that found it drained."""
    folder.mkdir()
    held = {}
    for name, rows in (("drained", events), ("fresh", 0)):
        say(f"an ingest with nothing to do: {name}")
        binary, *command = ingest(kafka, topic, "--json")
        process = Process(*command, cwd=folder, binary=binary, name=f"ingest-{name}").start()
        try:
            held[name] = memory_when_idle(process)
            process.stop()
        finally:
            process.end()
        assert json.loads(process.out())["rows"] == rows, process.tail()
    return held


def memory_when_idle(process):
    pid = process.child.pid
    looked = []

    def is_idle():
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()
        looked.append((time.monotonic(), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")))
        before = [look for look in looked if look[0] <= looked[-1][0] - IDLE_SECONDS]
        return before and looked[-1][1] - before[-1][1] < IDLE_SHARE * IDLE_SECONDS

    wait_for("ingest has nothing to do", is_idle, seconds=600, every=1, alive=process)
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024


# 3. Commits.


def commit_seconds(folder, **settings):
    """From each commit to the next, sorted, as the table's history tells it."""
    ended = run_ok("table", "history", TABLE, "--limit", 10 * COMMITS, "--json", cwd=folder, env=settings)
    times = sorted(commit["timestamp"] for commit in ended.json if commit["rows_added"] and commit["operation"] == "WRITE")
    moments = [datetime.fromisoformat(time) for time in times]
    return sorted((after - before).total_seconds() for before, after in zip(moments, moments[1:]))


def commits(folder, kafka, minio):
    """With a backlog and small batches, ingest does nothing but commit."""
    folder.mkdir()
    topic = "commits"
    produced(kafka, topic, COMMITS * COMMIT_ROWS, folder)
    found = {}
    for name, settings in (("disk", {}), ("minio", minio.environment("commits"))):
        say(f"{COMMITS} small commits: {name}")
        settings["LAKEBEAT_FLUSH_ROWS"] = str(COMMIT_ROWS)
        drained(kafka, topic, folder / name, **settings)
        found[name] = commit_seconds(folder / name, **settings)
    return found


def commit_curve(program, folder, minio):
    """How long one commit takes after so many, in a folder and in MinIO."""
    minio.make_bucket("curve")
    places = {"disk": ((folder / "curve").as_uri() + "/", {}), "minio": ("s3://curve/lake/", minio.lake("curve").storage_options)}
    (folder / "curve").mkdir(parents=True)
    found = {}
    for name, (url, settings) in places.items():
        say(f"ten thousand commits: {name}")
        found[name] = measured(program, url, cwd=folder, **settings)[0]["points"]
    return found


# 4. Freshness.

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


def freshness(rate, folder, **where):
    """Seconds from handing an event to the producer until gold shows it, sorted, and how many were never seen."""
    folder.mkdir()
    up = Up(folder, "--rate", rate, **where)
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
    return f"{os.cpu_count()} cores, {model}, {memory:.0f} GiB of memory, {platform.system()}"


def cost_lines(events, bare, others):
    """A table of what each drain costs, and how that compares with the bare one."""
    yield "| | seconds | events/s | ratio | processor seconds | events/s of one core | ratio | peak memory |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for name, cost in (("bare librdkafka + arrow-json + Parquet", bare), *others):
        wall, cpu = bare["seconds"] / cost["seconds"], bare["cpu"] / cost["cpu"]
        yield (
            f"| {name} | {cost['seconds']:.1f} | {events / cost['seconds']:,.0f} | {wall:.2f} | {cost['cpu']:.1f} "
            f"| {events / cost['cpu']:,.0f} | {cpu:.2f} | {cost['rss'] / 2**20:,.0f} MiB |"
        )


def speed_lines(result):
    events = result["events"]
    yield f"{events:,} events of {result['event_bytes']:.0f} bytes, each with a key of 36 more, Apache Kafka and MinIO on the same machine."
    yield ""
    ours = (("`lakebeat ingest --until-end`, on disk", result["disk"]), ("the same, in MinIO", result["minio"]))
    yield from cost_lines(events, result["bare"], ours)
    yield ""
    yield "Processor seconds are those of the process itself: not Kafka's, and not MinIO's."
    on_disk, in_minio = result["commits"]
    yield (
        f"`simulate --rate 0` produced {result['produced_a_second']:,.0f} events/s; ingest made {on_disk} commits on disk "
        f"and {in_minio} in MinIO."
    )
    yield ""
    yield "The whole way of these events, one step after the other, as for a lake that begins with a full topic:"
    yield ""
    yield "| | Kafka to bronze | silver and gold built, tested, published | together | events/s |"
    yield "|---|---:|---:|---:|---:|"
    for name, key in (("on disk", "disk"), ("in MinIO", "minio")):
        ingest, models = result[key]["seconds"], result["models"][key]["seconds"]
        yield f"| {name} | {ingest:.1f} s | {models:.1f} s | {ingest + models:.1f} s | {events / (ingest + models):,.0f} |"


def one_core_lines(result):
    yield "The same events, all threads of the process on one core (`taskset`), Kafka on the others."
    yield ""
    yield from cost_lines(result["events"], result["bare"], (("`lakebeat ingest --until-end`, on disk", result["disk"]),))
    yield ""
    idle = result["idle"]
    yield (
        f"With nothing to do, an ingest holds {idle['drained'] / 2**20:,.0f} MiB after it has drained all this, and "
        f"{idle['fresh'] / 2**20:,.0f} MiB when there was nothing from the start."
    )
    yield ""
    if result["profile"] is None:
        yield "Where the time goes is not known: there is no perf on this machine."
        return
    yield "Where its processor time goes, sampled by perf in a run of its own:"
    yield ""
    yield "| part | share |"
    yield "|---|---:|"
    for part, share in result["profile"].items():
        yield f"| {part} | {share:.0f} % |"


def commit_lines(results):
    yield f"From one commit of {COMMIT_ROWS:,} rows to the next, one after the other: decoding, a Parquet file, and the log's entry."
    yield ""
    yield "| | p50 | p99 | commits |"
    yield "|---|---:|---:|---:|"
    for name, key in (("on disk", "disk"), ("in MinIO", "minio")):
        seconds = results[key]
        p50, p99 = statistics.median(seconds), percentile(seconds, 0.99)
        yield f"| {name} | {p50 * 1000:.0f} ms | {p99 * 1000:.0f} ms | {len(seconds) + 1} |"


def curve_lines(results):
    yield "One commit of a file of 100 rows to a table that has taken so many, without the writing of the file: the median of 50 by"
    yield "Lakebeat's committer and of 20 by the Delta library's ordinary one (`CommitBuilder`), on the same table. Each hundredth commit has a"
    yield "checkpoint written beside those that follow; the fifty lie between two of them."
    yield ""
    yield "| | commits | Lakebeat | slowest | of that after 10 | requests: PUT, GET, LIST | the library | of that after 10 | requests |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for name, key in (("on disk", "disk"), ("in MinIO", "minio")):
        first = results[key][0]
        for point in results[key]:
            ours, theirs = point["ours"], point["library"]
            asked = [", ".join(f"{one[kind]:.1f}" for kind in ("puts", "gets", "lists")) for one in (ours, theirs)]
            yield (
                f"| {name} | {point['commits']:,} | {ours['median_ms']:.2f} ms | {ours['slowest_ms']:.1f} ms "
                f"| {ours['median_ms'] / first['ours']['median_ms']:.2f} | {asked[0]} | {theirs['median_ms']:.1f} ms "
                f"| {theirs['median_ms'] / first['library']['median_ms']:.2f} | {asked[1]} |"
            )
    yield ""
    last = results["disk"][-1]["ours"]
    yield f"The file is among the requests. A commit writes {last['bytes'] / 100:,.0f} bytes a row here, its file and the log's entry together."


def freshness_lines(results):
    yield "| events/s | | p50 | p99 | marked events | not seen |"
    yield "|---:|---|---:|---:|---:|---:|"
    for (rate, place), (seconds, missing) in results.items():
        if seconds:
            p50, p99 = statistics.median(seconds), percentile(seconds, 0.99)
            yield f"| {rate:,} | {place} | {p50:.2f} s | {p99:.2f} s | {len(seconds)} | {missing} |"
        else:
            yield f"| {rate:,} | {place} | | | 0 | {missing} |"


def report(speed_result, one_core_result, commit_results, curve, freshness_results):
    parts = [
        "# Measured",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}; `make bench`, one run of each.",
        "",
        "## Kafka to bronze",
        "",
        *speed_lines(speed_result),
        "",
        "## On one core",
        "",
        *one_core_lines(one_core_result),
        "",
        "## Commits",
        "",
        *commit_lines(commit_results),
        "",
        *curve_lines(curve),
        "",
        "## Produced to visible in gold",
        "",
        "The simulator, ingest, the models and the door in one process (`lakebeat up`), while it takes in so many events a second; the",
        "broker in it and the lake on disk, or both elsewhere (`make up-stack`).",
        "",
        *freshness_lines(freshness_results),
    ]
    return "\n".join(parts) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bare", type=Path, required=True, help="the program that drains bare")
    parser.add_argument("--curve", type=Path, required=True, help="the program that commits ten thousand times")
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--output", type=Path, default=HERE / "results.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lakebeat-bench-") as name:
        folder = Path(name)
        kafka, minio = KafkaServer(folder / "kafka"), MinioServer(folder / "minio")
        try:
            kafka.start()
            minio.start()
            fast = speed(arguments, folder, kafka, minio)
            single = one_core(arguments, folder / "one-core", kafka)
            small = commits(folder / "commits", kafka, minio)
            curve = commit_curve(arguments.curve, folder / "curve-client", minio)
            fresh = {}
            for rate, place in RATES:
                say(f"freshness at {rate} events a second, {place}")
                where = {}
                if place == STACK:
                    where = {"brokers": kafka.address, "env": minio.environment("fresh")}
                fresh[rate, place] = freshness(rate, folder / f"fresh-{len(fresh)}", **where)
        finally:
            minio.end()
            kafka.end()
    text = report(fast, single, small, curve, fresh)
    arguments.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
