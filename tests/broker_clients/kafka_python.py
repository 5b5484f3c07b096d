"""One run of a kafka-python client of a given protocol version: produce, then read everything back.

    kafka_python.py BOOTSTRAP TOPIC API_VERSION ACKS COUNT

API_VERSION is like 2.5 or `none`, which lets the client ask the broker. Prints one JSON line.
"""

import json
import sys
import uuid

from kafka import KafkaConsumer, KafkaProducer, TopicPartition


def main(bootstrap, topic, version, acks, count):
    api_version = None if version == "none" else tuple(int(part) for part in version.split("."))
    acks = acks if acks == "all" else int(acks)
    outcome = {"acknowledged": [], "found": 0, "error": None}
    try:
        sent = produce(bootstrap, topic, api_version, acks, int(count), outcome)
        outcome["found"] = len(sent & consume(bootstrap, topic, api_version, sent))
    except Exception as error:  # whatever the client shows is the result
        outcome["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(outcome))


def produce(bootstrap, topic, api_version, acks, count, outcome):
    producer = KafkaProducer(
        bootstrap_servers=bootstrap, api_version=api_version, acks=acks, max_block_ms=10_000,
        request_timeout_ms=10_000, delivery_timeout_ms=15_000, linger_ms=5,
    )
    values = [uuid.uuid4().hex for _ in range(count)]
    futures = [producer.send(topic, key=b"key", value=value.encode()) for value in values]
    producer.flush(timeout=20)
    for value, future in zip(values, futures):
        future.get(timeout=20)
        if acks != 0:
            outcome["acknowledged"].append(value)
    producer.close(timeout=5)
    return set(values)


def consume(bootstrap, topic, api_version, wanted):
    # Partitions by hand: what is tried is the reading, not how long a group takes to form.
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap, api_version=api_version, group_id=None, auto_offset_reset="earliest",
        enable_auto_commit=False, consumer_timeout_ms=8_000,
    )
    consumer.assign([TopicPartition(topic, partition) for partition in consumer.partitions_for_topic(topic)])
    consumer.seek_to_beginning()
    found = set()
    for message in consumer:
        found.add(message.value.decode() if message.value else None)
        if wanted <= found:
            break
    consumer.close()
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
