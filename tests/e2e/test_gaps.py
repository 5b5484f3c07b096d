"""What a real Kafka can take away, how that is told, and how one goes on without it; and the ledger set by hand.

Retention that was too short, a topic deleted and made again (while nobody reads it, and while somebody does), partitions that
are added. The rows are counted by Python's deltalake and Polars.
"""

import os
import re
import signal
import time
from collections import Counter

import pytest
from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from lake import Lake
from messages import in_topic, simulate
from program import Process, check_refused, run, run_ok
from waiting import wait_for

FOUND, WRONG = 1, 2
FLAG = re.compile(r"--accept-gap (\S+:(\d+):(\d+)-(\d+))")


@pytest.fixture
def scene(kafka, tmp_path, place, seed):
    print(f"seed {seed}")
    return Scene(kafka.address, tmp_path, place, seed)


class Scene:
    """A topic of this test's own, and a lake that it is read into."""

    def __init__(self, brokers, folder, topic, seed):
        self.brokers, self.folder, self.topic, self.seed = brokers, folder, topic, seed
        self.admin = AdminClient({"bootstrap.servers": brokers, "log_level": 0})
        self.lake = Lake(folder / "lakebeat-data" / "lake")
        self.source = ("--brokers", brokers, "--topic", topic)
        self.make_topic()

    def make_topic(self, partitions=3):
        """Makes the topic, also where one of that name is still being deleted."""

        def made():
            try:
                self.admin.create_topics([NewTopic(self.topic, partitions, 1)])[self.topic].result(30)
            except KafkaException:
                return False
            return True

        wait_for("the topic is made", made, seconds=60, every=0.5)

    def delete_topic(self):
        self.admin.delete_topics([self.topic])[self.topic].result(30)

    def produce(self, count, dirty=0.1):
        if not count:
            return
        self.seed += 1
        simulate(self.brokers, self.folder, count, self.seed, topic=self.topic, dirty=dirty)

    def expire(self, partition, before):
        """What retention does: the partition begins at this offset from now on."""
        place = TopicPartition(self.topic, partition, before)
        for done in self.admin.delete_records([place]).values():
            done.result(30)

    def ingest(self, *flags, command=run_ok):
        return command("ingest", *self.source, "--until-end", "--json", *flags, cwd=self.folder, timeout=120)

    def live(self):
        return Process("ingest", *self.source, cwd=self.folder, name="live")

    def reset(self, *flags, command=run_ok):
        return command("ingest", "reset", *self.source, "--json", *flags, cwd=self.folder)

    def audit(self):
        """The audit of a lake that has to be whole, by partition."""
        report = run_ok("verify", "--json", cwd=self.folder).json
        assert report["faults"] == []
        return {part["partition"]: part for part in report["partitions"]}

    def next_offsets(self):
        return {partition: part["to"] for partition, part in self.audit().items()}

    def places(self):
        """Each row's and letter's place, as often as it is there."""
        rows = self.lake.frame("bronze.spotify_events", ["_partition", "_offset"]).rows()
        letters = self.lake.frame("bronze.dead_letters", ["partition", "offset"]).rows()
        return Counter(rows) + Counter(letters)

    def lose_ends(self, ends):
        """What an election of a replica that lagged behind does: the partitions end at these offsets, and are the same up to there."""
        messages = in_topic(self.brokers, self.topic)
        self.delete_topic()
        self.make_topic(len(ends))
        producer = Producer({"bootstrap.servers": self.brokers, "log_level": 0})
        for message in messages:
            if message.offset < ends[message.partition]:
                producer.produce(
                    self.topic, message.payload, message.key, message.partition, timestamp=message.timestamp
                )
        assert producer.flush(30) == 0

    def in_topic(self):
        return Counter(message.place for message in in_topic(self.brokers, self.topic))


def flags_in(text):
    """The flags that an error names, each with its partition and offsets."""
    found = [(flag, int(partition), int(start), int(end)) for flag, partition, start, end in FLAG.findall(text)]
    assert found, f"no flag in {text}"
    return found


def accepting(flags):
    return [part for flag, *_ in flags for part in ("--accept-gap", flag)]


def test_offsets_that_expired_stop_it_until_they_are_given_up(scene):
    scene.produce(300)
    scene.ingest()
    before, kept = scene.next_offsets(), scene.places()
    scene.produce(300)
    for partition in (0, 2):
        scene.expire(partition, before[partition] + 10)

    refused = scene.ingest(command=run)
    wanted = [(partition, before[partition], before[partition] + 10) for partition in (0, 2)]
    check_refused(refused, FOUND, *(f"offsets {start}..{end} of topic {scene.topic} partition {p}" for p, start, end in wanted))
    flags = flags_in(refused.err)
    assert [flag[1:] for flag in flags] == wanted
    # One of the two is not enough, and another range is none of them.
    assert scene.ingest(*accepting(flags[:1]), command=run).status == FOUND
    other = f"{scene.topic}:0:{before[0]}-{before[0] + 9}"
    assert scene.ingest("--accept-gap", other, *accepting(flags[1:]), command=run).status == FOUND
    assert scene.places() == kept, "nothing was read while nobody had accepted it"

    scene.ingest(*accepting(flags))
    audit = scene.audit()
    assert {partition: part["skipped"] for partition, part in audit.items()} == {0: 10, 1: 0, 2: 10}
    gone = {(partition, offset) for partition, start, end in wanted for offset in range(start, end)}
    assert scene.places() == kept | scene.in_topic() and not gone & set(scene.places())
    # It is in the ledger: an ordinary start goes on.
    scene.produce(50)
    assert scene.ingest().json["ended"] == "at_end"
    assert {partition: part["skipped"] for partition, part in scene.audit().items()} == {0: 10, 1: 0, 2: 10}


def test_offsets_that_expire_under_a_running_ingest_stop_it(scene, ended_later):
    scene.produce(100)
    live = ended_later(scene.live()).start()
    wait_for("all is read", lambda: sum(scene.places().values()) == 100, alive=live)
    # It sleeps for as long as retention is said to be too short for.
    os.kill(live.child.pid, signal.SIGSTOP)
    scene.produce(3_000)
    ends = {partition: offset + 1 for partition, offset in sorted(scene.in_topic())}
    for partition, end in ends.items():
        scene.expire(partition, end)
    os.kill(live.child.pid, signal.SIGCONT)
    assert live.wait(60) == FOUND, live.tail()
    flags = flags_in(live.err())
    assert all(end == ends[partition] for _, partition, _, end in flags), (flags, ends)
    scene.ingest(*accepting(flags))
    audit = scene.audit()
    assert {partition: part["to"] for partition, part in audit.items()} == ends
    assert sum(part["skipped"] for part in audit.values()) == sum(end - start for _, _, start, end in flags)


def test_a_topic_made_again_is_another_one(scene):
    scene.produce(300)
    scene.ingest()
    before, kept = scene.next_offsets(), scene.places()
    scene.delete_topic()
    scene.make_topic()
    # Shorter than the old one at first, then longer: told apart by its end, then by its messages.
    for count in (60, 900):
        scene.produce(count)
        refused = scene.ingest(command=run)
        check_refused(refused, FOUND, "is not the one that was read before", scene.topic)
        flags = flags_in(refused.err)
        assert [flag[1:] for flag in flags] == [(partition, 0, end) for partition, end in before.items()]
    assert scene.places() == kept
    scene.ingest(*accepting(flags))
    audit = scene.audit()
    assert {part["incarnation"] for part in audit.values()} == {1}
    assert scene.places() == kept + scene.in_topic()
    assert sum(part["messages"] for part in audit.values()) == 1_260
    assert scene.ingest().json["rows"] == 0


@pytest.mark.parametrize("partitions", [3, 1])
def test_a_topic_deleted_and_made_again_under_a_running_ingest(scene, ended_later, partitions):
    scene.produce(300)
    live = ended_later(scene.live()).start()
    wait_for("all is read", lambda: sum(scene.places().values()) == 300, alive=live)
    before, kept = scene.next_offsets(), scene.places()
    scene.delete_topic()
    scene.make_topic(partitions)
    scene.produce(2_000)
    # It may look while there is no topic, or when there is another: either is told, and nothing of the new one is taken.
    assert live.wait(60) in (FOUND, WRONG), live.tail()
    assert scene.topic in live.err()
    assert scene.places() == kept
    refused = scene.ingest(command=run)
    check_refused(refused, FOUND, "is not the one that was read before")
    flags = flags_in(refused.err)
    assert [flag[1:] for flag in flags] == [(partition, 0, end) for partition, end in before.items()]
    scene.ingest(*accepting(flags))
    assert scene.places() == kept + scene.in_topic()
    scene.audit()


@pytest.mark.parametrize("grown", [0, 900], ids=["short", "grown again"])
def test_partitions_that_lost_their_ends(scene, grown):
    scene.produce(300)
    scene.ingest()
    first = scene.next_offsets()
    scene.produce(300)
    scene.ingest()
    second, kept = scene.next_offsets(), scene.places()
    # They end amid what the second commit read: only up to the end of the first one can it be told what is the same.
    scene.lose_ends({partition: offset + 5 for partition, offset in first.items()})
    scene.produce(grown)
    refused = scene.ingest(command=run)
    check_refused(refused, FOUND, "has lost its end", f"reading goes on at {first[0]}")
    flags = flags_in(refused.err)
    assert [flag[1:] for flag in flags] == [(partition, first[partition], second[partition]) for partition in first]
    assert scene.places() == kept

    scene.produce(60)
    scene.ingest(*accepting(flags))
    audit = scene.audit()
    assert {part["incarnation"] for part in audit.values()} == {1}
    again = Counter(place for place in scene.in_topic().elements() if place[1] >= first[place[0]])
    assert scene.places() == kept + again
    # What was read before the loss is not read again by a ledger set back; what was read since is.
    for to in ("earliest", first[0] - 1):
        check_refused(scene.reset("--partition", 0, "--to", to, command=run), WRONG, f"lost its end at offset {first[0]}")
    assert scene.places() == kept + again
    for partition, offset in first.items():
        scene.reset("--partition", partition, "--to", offset)
    scene.ingest()
    assert scene.places() == kept + again
    scene.audit()


def test_a_topic_made_again_with_fewer_partitions(scene):
    scene.produce(300)
    scene.ingest()
    kept = scene.places()
    scene.delete_topic()
    scene.make_topic(partitions=1)
    scene.produce(500)
    refused = scene.ingest(command=run)
    check_refused(refused, FOUND, "is not the one that was read before")
    flags = flags_in(refused.err)
    assert [partition for _, partition, *_ in flags] == [0, 1, 2]
    scene.ingest(*accepting(flags))
    assert scene.places() == kept + scene.in_topic()
    scene.audit()
    assert scene.ingest().json["rows"] == 0


def test_partitions_that_are_added_are_read_from_their_beginning(scene, ended_later):
    scene.produce(300)
    live = ended_later(scene.live()).start()
    wait_for("all is read", lambda: sum(scene.places().values()) == 300, alive=live)
    scene.admin.create_partitions([NewPartitions(scene.topic, 5)])[scene.topic].result(30)
    wait_for("the producer knows them", lambda: len(scene.admin.list_topics(scene.topic).topics[scene.topic].partitions) == 5)
    time.sleep(1)  # librdkafka's producer of the next line asks once, when it starts.
    scene.produce(1_000)
    wait_for("those too", lambda: scene.places() == scene.in_topic(), seconds=90, every=1, alive=live)
    live.stop()
    audit = scene.audit()
    assert sorted(audit) == [0, 1, 2, 3, 4] and audit[4]["from"] == 0


def test_the_ledger_is_set_by_hand(scene, ended_later):
    scene.produce(600)
    live = ended_later(scene.live()).start()
    wait_for("all is read", lambda: sum(scene.places().values()) == 600, alive=live)
    check_refused(scene.reset("--to", "earliest", command=run), WRONG, "bronze.spotify_events", "stop it first")
    live.stop()
    next_offset = scene.next_offsets()[1]

    # Back: what was read from there on is taken out, and read again once.
    report = scene.reset("--partition", 1, "--to", 20).json
    assert report["moves"] == [{"partition": 1, "from": next_offset, "to": 20}]
    assert report["rows_taken_out"] + report["dead_letters_taken_out"] == next_offset - 20
    assert max(offset for partition, offset in scene.places() if partition == 1) == 19
    assert scene.audit()[1]["to"] == 20
    scene.ingest()
    assert scene.places() == scene.in_topic()

    # Forward: a gap that is written down, and read after all if the ledger is set back into it.
    kept = scene.places()
    scene.produce(300)
    scene.reset("--to", "latest")
    assert sum(part["skipped"] for part in scene.audit().values()) == 300
    assert scene.ingest().json["rows"] == 0 and scene.places() == kept
    scene.reset("--to", "2020-01-01T00:00:00Z")
    scene.ingest()
    assert scene.places() == scene.in_topic()
    assert sum(part["skipped"] for part in scene.audit().values()) == 0

    check_refused(scene.reset("--to", 1_000_000, command=run), WRONG, "1000000", scene.topic)
    check_refused(scene.reset("--partition", 9, "--to", 0, command=run), WRONG, "no partition 9")
    assert scene.reset("--to", "yesterday", command=run).status == WRONG
