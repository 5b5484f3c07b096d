"""SIGKILL at random moments while events stream in; the tables are right all the same."""

import random
import time
from contextlib import contextmanager

from lake import Lake, grown, wait_settled
from messages import logged, produced
from program import TOPIC, Process, Up, free_ports, topics
from waiting import wait_for

KILLS = 5
RATE = 400


@contextmanager
def streaming(brokers, folder, seed):
    """A producer that goes on until the block ends, and then says how it fared. Yields its log."""
    log = folder / "delivered.jsonl"
    producer = Process(
        "simulate", "--brokers", brokers, "--topic", TOPIC, "--rate", RATE, "--users", 50,
        "--seed", seed, "--dirty", 0.02, "--log", log, "--json", cwd=folder,
    ).start()  # fmt: skip
    try:
        wait_for("the producer produces", lambda: log.exists() and log.stat().st_size > 0, alive=producer)
        yield log
        # Status 0: each message that it sent was confirmed in the end.
        producer.stop(seconds=10)
    finally:
        producer.end()


def kill_and_restart(up, moments, settled):
    """Kills `up` after so many seconds, again and again; `settled` tells whether it may live on in between."""
    for seconds in moments:
        wait_for("up has gone on", settled, alive=up, every=0.05)
        # A random moment is what this test is about, so here time passes without a condition.
        time.sleep(seconds)
        up.kill()
        up.start()


def grown_log(path):
    """A condition: something more was confirmed. So a producer is not ended while it waits to connect again."""
    size = path.stat().st_size
    return lambda: path.stat().st_size > size


def test_killed_five_times_beside_a_broker_that_lives_on(tmp_path, seed, ended_later):
    print(f"seed {seed}")
    chance = random.Random(seed)
    (port,) = free_ports(1)
    brokers = f"127.0.0.1:{port}"
    broker = ended_later(Process("broker", "--kafka-port", port, "--data-dir", tmp_path / "broker", cwd=tmp_path)).start()
    wait_for("the broker answers", lambda: topics(brokers) is not None, seconds=30, alive=broker)
    up = ended_later(Up(tmp_path, "--no-simulate", brokers=brokers)).start()
    lake = Lake(up.lake)

    with streaming(brokers, tmp_path, seed) as log:
        kill_and_restart(up, [chance.uniform(0, 1.5) for _ in range(KILLS)], grown(lake))

    wait_settled(lake, produced(brokers, logged(log)), alive=up)
    ended = up.command("verify", "--json")
    assert ended.status == 0, ended


def test_killed_five_times_with_its_own_broker(up, tmp_path, seed):
    """The broker dies with the rest. What it had confirmed has to be there when it comes back."""
    print(f"seed {seed}")
    chance = random.Random(seed + 1)
    lake = Lake(up.lake)

    with streaming(up.brokers, tmp_path, seed) as log:
        kill_and_restart(up, [chance.uniform(0, 1.5) for _ in range(KILLS)], grown(lake))
        wait_for("the producer has found the broker again", grown_log(log), alive=up)

    # A message whose confirmation was lost is sent again: it is in the topic once, and in the log once.
    wait_settled(lake, produced(up.brokers, logged(log)), alive=up)
    ended = up.command("verify", "--json")
    assert ended.status == 0, ended

