"""A lake that is written to ten times a second for half an hour, by ingest, models and doors in a process each: does it stay
in order by itself? Run by `make chaos`; writes bench/soak.md.

Each sample compares all that lies in the lake's folder with what its tables need at that moment.
"""

import argparse
import shutil
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests" / "e2e"), str(REPOSITORY / "bench")]

import psycopg  # noqa: E402
from bench import machine  # noqa: E402
from program import TOPIC, Process, door_flags, free_doors, free_ports, run, run_ok, topics  # noqa: E402
from waiting import wait_for  # noqa: E402

SETTINGS = """\
[ingest]
flush_millis = 100
"""
# By then the first files are put together and the first of those superseded have gone.
WARM_UP_SECONDS = 300
# Of what the tables need, the lake takes at most so much.
RATIO_MAX = 3.0
QUERY = "select count(*), sum(total_plays) from gold.top_songs"


def say(text):
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)


def on_disk(folder):
    """All files of the lake: how many there are, and their bytes. Some may go while they are counted."""
    files = size = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                files, size = files + 1, size + path.stat().st_size
        except FileNotFoundError:
            continue
    return files, size


class Reader:
    """Somebody who asks the same thing again and again, for the whole time."""

    def __init__(self, port):
        self.port, self.queries, self.error, self.ending = port, 0, None, threading.Event()
        self.thread = threading.Thread(target=self.read, daemon=True)

    def read(self):
        try:
            with psycopg.connect(f"host=127.0.0.1 port={self.port} dbname=lake user=soak", autocommit=True) as connection:
                while not self.ending.wait(0.2):
                    connection.execute(QUERY).fetchall()
                    self.queries += 1
        except Exception as error:  # whatever it is, it is told in the end
            self.error = error

    def end(self):
        self.ending.set()
        self.thread.join(30)


class Soak:
    """The processes, and what was seen of the lake."""

    def __init__(self, arguments, folder):
        self.arguments, self.folder = arguments, folder
        (folder / "lakebeat.toml").write_text(SETTINGS)
        (port,) = free_ports(1)
        self.brokers = f"127.0.0.1:{port}"
        doors = free_doors(("flight", "postgres", "console"))
        self.postgres = doors["postgres"]
        process = lambda *command: Process(*command, cwd=folder)  # noqa: E731
        self.broker = process("broker", "--kafka-port", port)
        self.pipeline = [
            process("ingest", "--brokers", self.brokers, "--topic", TOPIC),
            process("transform", "build", "--watch"),
            process("serve", *door_flags(doors)),
        ]
        self.producer = process("simulate", "--brokers", self.brokers, "--rate", arguments.rate, "--users", 100, "--dirty", 0.01)
        self.samples = []

    def lake(self):
        return self.folder / "lakebeat-data" / "lake"

    def go(self):
        self.broker.start()
        self.producer.start()
        wait_for("the topic is there", lambda: TOPIC in topics(self.brokers), alive=self.broker)
        for process in self.pipeline:
            process.start()
        wait_for("gold is published", self.published, seconds=120, alive=self.pipeline[1])
        reader = Reader(self.postgres)
        reader.thread.start()
        began = time.monotonic()
        while (passed := time.monotonic() - began) < self.arguments.minutes * 60:
            time.sleep(15)
            self.sample(time.monotonic() - began)
            for process in (self.broker, self.producer, *self.pipeline):
                assert process.exit_status() is None, f"{process.name} has ended after {passed:.0f} s\n{process.tail()}"
        reader.end()
        self.reader = reader
        for process in (self.producer, *self.pipeline[::-1], self.broker):
            process.end()
        self.verified = run("verify", "--deep", cwd=self.folder, timeout=1800)

    def published(self):
        with psycopg.connect(f"host=127.0.0.1 port={self.postgres} dbname=lake user=soak") as connection:
            return connection.execute(QUERY).fetchone()[0]

    def sample(self, passed):
        tables = run_ok("sql", "select sum(bytes), sum(files), max(version) from system.tables", "--json", cwd=self.folder)
        needed, live, version = tables.json[0].values()
        files, size = on_disk(self.lake())
        self.samples.append((passed, size, needed, size / needed, files, live, version))
        say(f"{passed:.0f} s: {size >> 20} MiB for {needed >> 20} MiB of data ({size / needed:.2f}), {files} files for {live}, version {version}")

    def end(self):
        for process in (self.producer, *self.pipeline, self.broker):
            process.end()


def judge(soak):
    """What is not as it should be."""
    faults = []
    late = [sample for sample in soak.samples if sample[0] > WARM_UP_SECONDS]
    for passed, size, needed, ratio, *_ in late:
        if ratio > RATIO_MAX:
            faults.append(f"after {passed:.0f} s the lake took {size} bytes for {needed} ({ratio:.2f} times)")
    if soak.verified.status != 0:
        faults.append(f"the audit: {soak.verified}")
    if soak.reader.error is not None:
        faults.append(f"a reader was told: {soak.reader.error}")
    return faults


def report(soak, faults):
    arguments = soak.arguments
    late = [sample for sample in soak.samples if sample[0] > WARM_UP_SECONDS] or soak.samples
    worst = max(sample[3] for sample in late)
    lines = [
        "# Half an hour at ten commits a second",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}. `tests/chaos/soak.py --minutes {arguments.minutes} --rate {arguments.rate}`: {arguments.rate} events a",
        "second, a flush each 100 ms, ingest, `transform build --watch` and `serve` in a process each, a reader in between.",
        "",
        f"The lake's folder took at most {worst:.2f} times what its tables needed after the first five minutes.",
        f"The reader asked {soak.reader.queries} times and was told: {soak.reader.error or 'nothing but rows'}.",
        f"`lakebeat verify --deep`: status {soak.verified.status}, `{soak.verified.out.strip().splitlines()[-1]}`.",
        "",
        "| after | folder | tables | ratio | files | live files | newest version |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    every = max(1, len(soak.samples) // 20)
    for passed, size, needed, ratio, files, live, version in soak.samples[::every]:
        lines.append(f"| {passed:.0f} s | {size / 2**20:.1f} MiB | {needed / 2**20:.1f} MiB | {ratio:.2f} | {files} | {live} | {version} |")
    lines += ["", *(f"FAULT: {fault}" for fault in faults)]
    (REPOSITORY / "bench" / "soak.md").write_text("\n".join(lines).rstrip() + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=int, default=2000)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lakebeat-soak-"))
    soak = Soak(arguments, folder)
    try:
        soak.go()
        faults = judge(soak)
        report(soak, faults)
    finally:
        soak.end()
    for fault in faults:
        say(f"FAULT {fault}")
    if faults:
        say(f"kept for a look: {folder}")
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
