"""A member of a group that was away for longer than its session: its partitions are another's by then, and what it still has
in memory is dropped."""

import os
import signal

from group import Consumer
from lake import check_accounted, wait_accounted
from messages import logged, produced
from program import Process, run, run_ok
from waiting import wait_for

RATE = 400


def test_what_a_member_holds_that_was_taken_for_dead_is_dropped(tmp_path, kafka, minio, place, seed, ended_later):
    print(f"seed {seed}")
    lake, log = minio.lake(place), tmp_path / "delivered.jsonl"
    producer = ended_later(
        Process(
            "simulate", "--brokers", kafka.address, "--topic", place, "--rate", RATE, "--seed", seed, "--log", log, "--json",
            cwd=tmp_path,
        )
    ).start()  # fmt: skip
    wait_for("the producer produces", lambda: log.exists() and log.stat().st_size > 0, alive=producer)
    members = [ended_later(Consumer(number, tmp_path, kafka, minio, place)).start() for number in range(2)]
    for member in members:
        wait_for("each has partitions", lambda member=member: "reading" in member.err(), seconds=60, alive=member)
    sleeper, other = members
    takes_over = other.err().count("reading")

    # Its session is a second; in the middle of a stream it has messages in memory.
    os.kill(sleeper.child.pid, signal.SIGSTOP)
    try:
        wait_for("the other takes over", lambda: other.err().count("reading") > takes_over, seconds=60, alive=other)
    finally:
        os.kill(sleeper.child.pid, signal.SIGCONT)
    woken = sum(lake.counts())
    wait_for("the group goes on", lambda: sum(lake.counts()) > woken + RATE, seconds=60, every=0.2, alive=other)
    producer.stop(seconds=10)
    messages = produced(kafka.address, logged(log), place)
    wait_accounted(lake, messages, seconds=60)
    check_accounted(lake, messages)
    for member in members:
        assert member.exit_status() is None, member.tail()
        member.stop(seconds=10)
    settings = minio.environment(place)
    ended = run("verify", "--json", cwd=tmp_path, env=settings)
    assert ended.status == 0, ended

    # The same bucket by the other spelling of its address.
    rows, letters = lake.counts()
    counted = [
        run_ok("sql", f"select count(*) as rows from bronze.{table}", "--lake", f"s3a://{place}", "--json", cwd=tmp_path, env=settings)
        for table in ("spotify_events", "dead_letters")
    ]
    assert [one.json[0]["rows"] for one in counted] == [rows, letters]
