"""A group of consumers is killed hundreds of times while it drains a real Kafka into a real MinIO, which stop, die and stall
as well; then each message is accounted for. Run by `make chaos`; writes bench/chaos.md.

Whatever is random comes from one seed, which is printed. The moments are as random as the machine, so a seed gives the same
faults and victims again, and not the very same run.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests" / "e2e"), str(REPOSITORY / "bench")]

import faults  # noqa: E402
from bench import machine  # noqa: E402
from faults import PATIENCE, Faults  # noqa: E402
from group import SHORT_SESSIONS, Consumer  # noqa: E402
from kafka_server import KafkaServer  # noqa: E402
from messages import logged, produced  # noqa: E402
from minio_server import MinioServer  # noqa: E402
from oracle import compare  # noqa: E402
from program import Process, run  # noqa: E402
from waiting import wait_for  # noqa: E402

PLACE = "chaos"
# A process that finds no store when it starts says so and ends; whoever runs it starts it again.
UNREACHABLE = 3
# Four commits a second instead of one: more kills hit one.
SETTINGS = """\
[ingest]
flush_millis = 250
"""
# While something is broken nobody may be able to commit, and kills would hit processes that only wait: so many at most.
KILLS_A_FAULT = 2
# From the moment at which the group has gone on to the kill, at most.
MOMENT_SECONDS = 1.5


def say(text):
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)


class Group:
    """The consumers, and whoever starts them again."""

    def __init__(self, members):
        self.members = members
        self.kills = self.kills_in_faults = self.revived = 0
        # Who ended as it must not.
        self.fallen = None

    def revive(self):
        """Starts those again that found no broker or no store. Any other end is a fault of theirs."""
        for member in self.members:
            status = member.exit_status()
            if status == UNREACHABLE:
                self.revived += 1
                member.start()
            elif status is not None:
                self.fallen = member
        return self.fallen is None

    def check(self):
        assert self.fallen is None, f"{self.fallen.name} ended with status {self.fallen.exit_status()}\n{self.fallen.tail()}"

    def kill(self, member, fault):
        """SIGKILL, and a new start. It counts only if the process still ran."""
        member.kill()
        if member.exit_status() < 0:
            self.kills += 1
            self.kills_in_faults += fault is not None
            member.start()


def kill_at_random(group, arguments, minio, faulty, producer):
    chance = random.Random(f"kills {arguments.seed}")
    newest, during = None, Counter()

    def may_go_on():
        """Something was committed since the last kill; or something is broken, and it is worth a kill just then."""
        nonlocal newest
        if not group.revive() or faulty.failure is not None:
            return True
        now = minio.newest_commit(PLACE, "bronze/spotify_events")
        gone_on, newest = newest is not None and now != newest, now
        broken = faulty.present is not None and during[faulty.number] < KILLS_A_FAULT
        during[faulty.number] += broken and not gone_on
        return gone_on or broken

    while group.kills < arguments.kills:
        wait_for("the group has gone on", may_go_on, seconds=PATIENCE, every=0.05, alive=producer)
        group.check()
        faulty.check()
        # A random moment and a random one of them: it may be in a batch, in a commit or in a rebalance.
        time.sleep(chance.uniform(0, MOMENT_SECONDS))
        victim = chance.choice(group.members)
        if victim.exit_status() is None:
            group.kill(victim, faulty.present)
            if group.kills % 20 == 0:
                say(f"{group.kills} kills")


def drained(lake, group, messages):
    """Waits until all is there, with whoever starts the consumers again at work."""

    def all_there():
        return not group.revive() or sum(lake.counts()) >= len(messages)

    wait_for(f"{len(messages)} messages are rows or dead letters", all_there, seconds=PATIENCE, every=1)
    group.check()


class Run:
    """The servers, the producer and the consumers of one run, and what came of it."""

    def __init__(self, arguments, folder):
        self.arguments, self.folder = arguments, folder
        self.kafka = KafkaServer(folder / "kafka", extra=[SHORT_SESSIONS])
        self.minio = MinioServer(folder / "minio")
        self.log = folder / "delivered.jsonl"
        members = [Consumer(number, folder, self.kafka, self.minio, PLACE, SETTINGS) for number in range(arguments.consumers)]
        self.group = Group(members)
        self.producer = Process(
            "simulate", "--brokers", self.kafka.address, "--topic", PLACE, "--rate", arguments.rate, "--users", 50,
            "--seed", arguments.seed, "--dirty", arguments.dirty, "--log", self.log, "--json", cwd=folder,
        )  # fmt: skip
        self.faults = Faults(arguments.seed, self.kafka, self.minio, members, say)

    def end(self):
        for process in (self.producer, *self.group.members, self.minio, self.kafka):
            process.end()

    def go(self):
        self.began = time.monotonic()
        self.kafka.start()
        self.minio.start()
        self.producer.start()
        wait_for("the producer produces", lambda: self.log.stat().st_size > 0, alive=self.producer)
        for member in self.group.members:
            member.start()
        self.faults.start()
        kill_at_random(self.group, self.arguments, self.minio, self.faults, self.producer)
        self.faults.finish()
        self.producer.stop(seconds=60)
        self.report = json.loads(self.producer.out())
        say(f"{self.group.kills} kills; the producer has ended: {self.report['delivered']} messages confirmed")
        log = logged(self.log)
        self.messages = produced(self.kafka.address, log, PLACE, unconfirmed=self.report["failed"])
        lake = self.minio.lake(PLACE)
        drained(lake, self.group, self.messages)
        for member in self.group.members:
            member.stop(seconds=60)
        self.found = compare(lake, log, self.messages)
        self.commits = len(lake.frame("bronze.spotify_events", ["_ingested_at"]).unique())
        self.verify = run("verify", cwd=self.folder, env=self.minio.environment(PLACE), timeout=600)
        self.seconds = time.monotonic() - self.began


def lines(run, notes):
    arguments, group, done, found = run.arguments, run.group, run.faults.done, run.found
    command = f"make chaos KILLS={arguments.kills} SEED={arguments.seed}"
    yield "# Chaos"
    yield ""
    yield f"{datetime.now(UTC):%Y-%m-%d}, {machine()}; `{command}`, {run.seconds / 60:.1f} minutes."
    yield ""
    yield f"{arguments.consumers} `lakebeat ingest` in one group drain a real Kafka into a real MinIO, while {arguments.rate:,} messages a"
    yield f"second come in, {arguments.dirty:.0%} of them dirty. A random one of them is killed (SIGKILL) at a random moment, again and"
    yield "again, and broker and store stop, die and stall at random moments of their own."
    yield ""
    yield "| | |"
    yield "|---|---:|"
    yield f"| seed | {arguments.seed} |"
    yield f"| kills of `ingest` | {group.kills} |"
    yield f"| of them while something else was broken | {group.kills_in_faults} |"
    for fault in faults.ALL:
        yield f"| {fault} | {done[fault]} |"
    yield f"| started again after it had found no broker or no store | {group.revived} |"
    yield f"| messages that the producer logged as confirmed | {run.report['delivered']:,} |"
    yield f"| messages in the topic | {len(run.messages):,} |"
    yield f"| of them never confirmed to the producer | {found.unconfirmed:,} |"
    yield f"| commits that brought rows | {run.commits:,} |"
    yield f"| rows | {found.rows:,} |"
    yield f"| dead letters | {found.letters:,} |"
    yield f"| events of the log that are missing | {found.missing} |"
    yield f"| events that are there more often than in the topic | {found.doubled} |"
    yield ""
    yield "Counted by Python's `deltalake` and Polars: the events of the producer's log against bronze and dead letters, and each place of the"
    yield "topic against its row or letter."
    yield ""
    if found.problems:
        yield from ("```", found.problems, "```", "")
    yield f"`lakebeat verify`: status {run.verify.status}"
    yield ""
    yield from ("```", (run.verify.out or run.verify.err).strip(), "```")
    for note in notes:
        yield from ("", note)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--rate", type=int, default=1_000, help="messages a second")
    parser.add_argument("--dirty", type=float, default=0.02, help="share of dirty messages")
    parser.add_argument("--consumers", type=int, default=3)
    parser.add_argument("--note", action="append", default=[], help="a line for the report")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "bench" / "chaos.md")
    arguments = parser.parse_args()
    say(f"seed {arguments.seed}")
    # Whoever ends the run early ends the servers with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    folder = Path(tempfile.mkdtemp(prefix="lakebeat-chaos-"))
    one = Run(arguments, folder)
    try:
        one.go()
    except BaseException:
        # The lake, the topic and all logs: what one looks at to see what went wrong.
        say(f"FAILED with seed {arguments.seed}; everything is kept in {folder}")
        raise
    finally:
        one.end()
    text = "\n".join(lines(one, arguments.note)) + "\n"
    arguments.output.write_text(text)
    print(text)
    if one.found.problems or one.found.missing or one.verify.status != 0:
        sys.exit(f"error: the lake is not what it must be (seed {arguments.seed}); everything is kept in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
