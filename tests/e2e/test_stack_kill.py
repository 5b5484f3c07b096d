"""Three consumers of one group on a real Kafka and a real MinIO, killed twenty times at random moments while events stream in:
every message is one row or one dead letter, and the models are what a computation by hand makes of them."""

import random
import time

from group import Consumer
from lake import check_accounted, grown, wait_accounted, wait_settled
from messages import logged, produced
from program import Process, run
from waiting import wait_for

KILLS = 20
CONSUMERS = 3
RATE = 400


def test_twenty_kills_among_three_consumers(tmp_path, kafka, minio, place, seed, ended_later):
    print(f"seed {seed}")
    chance = random.Random(seed)
    lake = minio.lake(place)
    log = tmp_path / "delivered.jsonl"
    producer = ended_later(
        Process(
            "simulate", "--brokers", kafka.address, "--topic", place, "--rate", RATE, "--users", 50, "--seed", seed,
            "--dirty", 0.02, "--log", log, "--json", cwd=tmp_path,
        )
    ).start()  # fmt: skip
    wait_for("the producer produces", lambda: log.exists() and log.stat().st_size > 0, alive=producer)
    models = ended_later(Process("transform", "build", "--watch", cwd=tmp_path, env=minio.environment(place))).start()
    consumers = [ended_later(Consumer(number, tmp_path, kafka, minio, place)).start() for number in range(CONSUMERS)]

    wait_for("it has begun", lambda: sum(lake.counts()) > 0, seconds=60, every=0.5, alive=producer)
    has_grown = grown(lake)
    for _ in range(KILLS):
        # So a kill never hits a group that has done nothing since the last one.
        wait_for("the group has gone on", has_grown, seconds=60, every=0.1, alive=producer)
        # A random moment and a random one of them: it may be in a batch, in a commit or in a rebalance.
        time.sleep(chance.uniform(0, 1.5))
        victim = chance.choice(consumers)
        assert victim.exit_status() is None, victim.tail()
        victim.kill()
        victim.start()

    producer.stop(seconds=10)
    messages = produced(kafka.address, logged(log), place)
    wait_accounted(lake, messages, seconds=90)
    check_accounted(lake, messages)
    wait_settled(lake, messages, alive=models)
    for consumer in consumers:
        consumer.stop(seconds=10)
    models.stop()
    rows, letters = lake.counts()
    ended = run("verify", "--json", cwd=tmp_path, env=minio.environment(place))
    assert ended.status == 0, ended
    print(f"{len(messages)} messages, {rows} rows, {letters} dead letters, {KILLS} kills")
    assert letters > 0
