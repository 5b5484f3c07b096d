"""Messages of a topic: produced, as their producer logged them, and as librdkafka reads them back."""

import base64
import json
from collections import Counter
from dataclasses import dataclass

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from lake import difference
from program import TOPIC, run_ok


@dataclass(frozen=True)
class Message:
    partition: int
    offset: int
    payload: bytes | None
    # A log tells neither these milliseconds nor the key.
    timestamp: int | None = None
    key: bytes | None = None

    @property
    def place(self):
        return self.partition, self.offset


def logged(path):
    """What the log of `simulate` says was delivered."""
    messages = []
    with open(path, encoding="utf-8") as log:
        for line in log:
            entry = json.loads(line)
            if "payload_base64" in entry:
                payload = base64.b64decode(entry["payload_base64"])
            else:
                payload = None if entry["payload"] is None else entry["payload"].encode()
            messages.append(Message(entry["partition"], entry["offset"], payload))
    return messages


def in_topic(brokers, topic=TOPIC):
    """All messages of a topic, from its beginning to its present end."""
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": "not-used",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
        }
    )
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        # Places stand in for a group: `assign` asks nobody's leave.
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
        unread, messages = set(partitions), []
        while unread:
            message = consumer.poll(20)
            assert message is not None, f"the broker does not send the rest of partitions {unread}"
            if message.error() is None:
                _, timestamp = message.timestamp()
                messages.append(Message(message.partition(), message.offset(), message.value(), timestamp, message.key()))
            else:
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                unread.discard(message.partition())
        return messages
    finally:
        consumer.close()


def simulate(brokers, folder, count, seed, **flags):
    """Produces `count` messages; returns what the producer's log says, and its report."""
    log = folder / f"delivered-{seed}-{count}.jsonl"
    settings = {"topic": TOPIC, "rate": 0, "users": 50, "dirty": 0.02} | flags
    extra = [part for name, value in settings.items() for part in (f"--{name}", value)]
    ended = run_ok(
        "simulate", "--brokers", brokers, "--count", count, "--seed", seed, "--log", log, "--json", *extra,
        cwd=folder, timeout=120,
    )  # fmt: skip
    return logged(log), ended.json


def produced(brokers, log, topic=TOPIC, unconfirmed=0):
    """The messages of a topic, once it is certain that they are those that the broker confirmed: as they were, as often as
    they were sent, and no others; or as many more at most as their producer counted as not confirmed, since nobody knows
    of those whether they were stored.

    That has to be so wherever each producer ended by itself with status 0, even if its broker was killed meanwhile: it is
    idempotent, repeats what it heard nothing of, and ends with status 0 only if all that it had sent was confirmed.
    By content, not by place: where a broker dies, a confirmation gets lost and the repetition is recognised as one, the
    producer never hears the offsets, and librdkafka counts them up from -1.
    """
    found = _at_their_places(brokers, topic)
    wrong = difference("the topic", _by_payload(log), _by_payload(found))
    none_lost = not _by_payload(log) - _by_payload(found)
    assert not wrong or (none_lost and len(found) <= len(log) + unconfirmed), (
        f"the broker did not keep what it confirmed ({unconfirmed} were not confirmed): {wrong}"
    )
    return found


def kept(brokers, log):
    """The same where a producer of clean events was ended while its broker was gone. What it was sending may have been
    stored or not, so the topic may hold more than the log; but no two clean events are alike, so nothing of that twice.
    """
    found = _at_their_places(brokers, TOPIC)
    confirmed, stored = _by_payload(log), _by_payload(found)
    lost, more = confirmed - stored, stored - confirmed
    assert not lost, f"the broker confirmed these and lost them: {lost}"
    doubled = [message for message, count in more.items() if count > 1 or message in confirmed]
    assert not doubled, f"the broker stored these more often than they were sent: {doubled}"
    return found


def _at_their_places(brokers, topic):
    found = in_topic(brokers, topic)
    assert len({message.place for message in found}) == len(found), "the broker gives one offset to two messages"
    return found


def _by_payload(messages):
    return Counter((message.partition, message.payload) for message in messages)
