"""Kafka gone for half a minute, MinIO gone for half a minute: what runs goes on by itself, and loses and doubles nothing."""

import time

from kafka_server import KafkaServer
from lake import wait_settled
from messages import in_topic, logged, simulate
from minio_server import MinioServer
from program import Process, Server, Up, run
from waiting import wait_for

OUTAGE_SECONDS = 30
RATE = 200


class Pipeline:
    """`up` on a Kafka and a MinIO, and a producer that goes on whatever happens to them."""

    def __init__(self, folder, kafka, minio, topic, seed, ended_later):
        folder.mkdir()
        self.kafka, self.topic, self.lake = kafka, topic, minio.lake(topic)
        env = minio.environment(topic)
        self.up = ended_later(Up(folder, "--no-simulate", brokers=kafka.address, topic=topic, env=env)).start()
        self.log = folder / "delivered.jsonl"
        self.producer = ended_later(
            Process(
                "simulate", "--brokers", kafka.address, "--topic", topic, "--rate", RATE, "--users", 50, "--seed", seed,
                "--log", self.log, cwd=folder,
            )
        ).start()  # fmt: skip

    def grown(self, by=RATE):
        """A condition: so many rows more than now."""
        wanted = sum(self.lake.counts()) + by
        return lambda: sum(self.lake.counts()) >= wanted

    def check(self):
        """After the outage: the very same processes go on, and in the end every table is right."""
        wait_for(f"{self.topic} goes on", self.grown(), seconds=60, every=0.5, alive=self.up)
        assert self.producer.exit_status() is None, self.producer.tail()
        assert self.up.starts == 1
        self.producer.stop(seconds=15)
        messages = in_topic(self.kafka.address, self.topic)
        # What the broker confirmed is there; what it confirmed too late may be there as well, but nothing twice.
        confirmed = {message.payload for message in logged(self.log)}
        payloads = [message.payload for message in messages]
        assert confirmed <= set(payloads) and len(payloads) == len(set(payloads))
        assert len(messages) > RATE * OUTAGE_SECONDS / 2
        wait_settled(self.lake, messages, alive=self.up)
        ended = self.up.command("verify", "--json")
        assert ended.status == 0, ended
        self.up.stop()
        print(f"{self.topic}: {len(messages)} messages, {len(confirmed)} confirmed to the producer")


def test_half_a_minute_without_kafka_and_without_minio(tmp_path, kafka, minio, seed, ended_later):
    """Two pipelines at once, since half a minute is half a minute: one loses its broker, the other its store."""
    print(f"seed {seed}")
    its_kafka = ended_later(KafkaServer(tmp_path / "kafka")).start()
    its_minio = ended_later(MinioServer(tmp_path / "minio")).start()
    without_kafka = Pipeline(tmp_path / "a", its_kafka, minio, "without-kafka", seed, ended_later)
    without_minio = Pipeline(tmp_path / "b", kafka, its_minio, "without-minio", seed + 1, ended_later)
    both = (without_kafka, without_minio)
    for pipeline in both:
        wait_for("it runs", pipeline.grown(), seconds=60, every=0.5, alive=pipeline.up)

    its_kafka.kill()
    its_minio.kill()
    began = time.monotonic()
    wait_for(
        "up says that the store is gone", lambda: says_waiting(without_minio.up), seconds=30, every=0.5,
        alive=without_minio.up,
    )  # fmt: skip
    # What an outage is: time in which nothing answers.
    time.sleep(max(0, OUTAGE_SECONDS - (time.monotonic() - began)))
    for pipeline in both:
        assert pipeline.up.exit_status() is None, pipeline.up.tail()
        assert pipeline.up.get("/healthz")[0] == 200, "the process does not answer while it waits"
    its_kafka.start()
    its_minio.start()

    for pipeline in both:
        pipeline.check()


def says_waiting(up):
    """It has told what it waits for, where people and programs look."""
    return "cannot go on yet" in up.err()


def test_nothing_answers_at_the_start(tmp_path, kafka, minio, place, ended_later):
    """Services of one compose file start in any order: MinIO is started after the rest, and then ingest and models begin."""
    late = MinioServer(tmp_path / "minio")
    env = late.environment(place)
    simulate(kafka.address, tmp_path, 300, 1, topic=place)
    ended = Process("ingest", "--brokers", kafka.address, "--topic", place, cwd=tmp_path, env=env)
    ended_later(ended).start()
    # Without a store there is nothing to do: it says so and ends, and whoever runs it starts it again.
    assert ended.wait(30) == 3, ended.tail()
    ended_later(late).start()
    ended_later(ended.start())
    wait_for("it has begun", lambda: sum(late.lake(place).counts()) == 300, seconds=60, every=0.5, alive=ended)
    ended.stop()


def test_a_kafka_that_has_only_just_started(tmp_path, ended_later):
    """It listens and answers before each partition has its leader again: that is worth a moment's patience, and no error."""
    server = ended_later(KafkaServer(tmp_path / "kafka")).start()
    simulate(server.address, tmp_path, 100, 1)
    for _ in range(3):
        server.stop()
        Server.start(server)
        wait_for("Kafka says that it is there", lambda: "Kafka Server started" in server.err(), every=0.02, alive=server)
        ended = run("ingest", "--until-end", "--brokers", server.address, cwd=tmp_path)
        assert ended.status == 0, ended
