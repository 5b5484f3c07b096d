"""Sends the orders of orders.jsonl to a topic: python produce.py BROKERS [TOPIC]. Needs `pip install confluent-kafka`."""

import json
import os
import sys
from pathlib import Path

from confluent_kafka import Producer


def messages(path):
    """The key, the headers and the payload of each line. A `value` of null is a tombstone: a message without a payload."""
    for line in path.read_text(encoding="utf-8").splitlines():
        message = json.loads(line)
        value = message["value"]
        yield {
            "key": message["key"],
            "headers": [(name, text) for name, text in message.get("headers", [])],
            "value": None if value is None else json.dumps(value, separators=(",", ":")),
        }


def main(brokers, topic="web_orders"):
    settings = {"bootstrap.servers": brokers}
    # The same names that Lakebeat reads, for a cluster that wants TLS and a login.
    for name in ("security.protocol", "sasl.mechanism", "sasl.username", "sasl.password", "ssl.ca.location"):
        value = os.environ.get("KAFKA_" + name.replace(".", "_").upper())
        if value:
            settings[name] = value
    producer = Producer(settings)
    for message in messages(Path(__file__).with_name("orders.jsonl")):
        producer.produce(topic, **message)
    if producer.flush(30):
        sys.exit("not all orders were confirmed")


if __name__ == "__main__":
    main(*sys.argv[1:])
