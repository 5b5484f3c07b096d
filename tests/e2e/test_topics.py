"""Several topics in one process, each with a table of its own; keys, headers and tombstones; columns that come and go.

The settings and the orders are those of the example, ingest/examples/web-shop.
"""

import json
import runpy
from collections import Counter

import polars
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from deltalake import DeltaTable

from lake import Lake
from messages import in_topic, simulate
from program import REPOSITORY, Process, Up, check_refused, run, run_ok, topics
from waiting import wait_for

EXAMPLE = REPOSITORY / "ingest" / "examples" / "web-shop"
WRONG = 2
FIELDS = ["order_id", "customer_id", "total", "currency", "is_gift", "items_json", "placed_at"]


@pytest.fixture
def shop(kafka, tmp_path, place):
    return Shop(kafka.address, tmp_path, place)


class Shop:
    """Both topics of the example, under names of this test's own, and a lake."""

    def __init__(self, brokers, folder, place):
        self.brokers, self.folder = brokers, folder
        self.plays, self.orders = f"{place}-plays", f"{place}-orders"
        self.settings = folder / "lakebeat.toml"
        text = (EXAMPLE / "lakebeat.toml").read_text()
        for name, ours in (("spotify_events", self.plays), ("web_orders", self.orders)):
            text = text.replace(f'name = "{name}"', f'name = "{ours}"')
        self.settings.write_text(text)
        self.lake = Lake(folder / "lakebeat-data" / "lake")

    def make_topics(self):
        # What it promises ends with it.
        admin = AdminClient({"bootstrap.servers": self.brokers})
        for topic in admin.create_topics([NewTopic(self.plays, 4, 1), NewTopic(self.orders, 2, 1)]).values():
            topic.result(30)
        # The controller has them before each broker knows of them.
        wait_for("the topics are there", lambda: {self.plays, self.orders} <= set(topics(self.brokers)), seconds=30)

    def order(self):
        """Sends the orders of the example, as its script does."""
        runpy.run_path(str(EXAMPLE / "produce.py"))["main"](self.brokers, self.orders)

    def produce(self, *messages):
        producer = Producer({"bootstrap.servers": self.brokers})
        for message in messages:
            producer.produce(self.orders, **message)
        assert producer.flush(30) == 0

    def ingest(self, *flags):
        return run_ok("ingest", "--brokers", self.brokers, "--until-end", "--json", *flags, cwd=self.folder).json

    def rows(self, columns):
        frame = polars.read_delta(str(self.lake.path("bronze.web_orders")))
        return sorted(frame.select(columns).rows(), key=str)


def normal(text):
    return None if text is None else json.loads(text)


def test_two_topics_in_one_process(shop, seed):
    print(f"seed {seed}")
    shop.make_topics()
    shop.order()
    _, report = simulate(shop.brokers, shop.folder, 400, seed, topic=shop.plays)
    done = shop.ingest()["topics"]
    assert set(done) == {shop.plays, shop.orders}
    assert (done[shop.orders]["rows"], done[shop.orders]["dead_letters"]) == (4, 2)
    assert done[shop.plays]["rows"] + done[shop.plays]["dead_letters"] == 400
    assert {part["ended"] for part in done.values()} == {"at_end"}

    # By Polars: the text of each field as it came, and what no field takes.
    rows = shop.rows([*FIELDS, "_rescued", "_key"])
    assert [row[:1] + row[2:5] for row in rows] == [
        ("o-1001", "59.9", "EUR", "false"), ("o-1002", "120", "EUR", "true"), ("o-1003", "8.5", "USD", "false"),
        ("o-1004", "100.0", "EUR", None),
    ]  # fmt: skip
    by_id = {row[0]: row for row in rows}
    sent = [json.loads(line) for line in (EXAMPLE / "orders.jsonl").read_text().splitlines()]
    for message in sent[:4]:
        value, row = message["value"], by_id[message["value"]["order_id"]]
        assert normal(row[5]) == value["items"] and row[8] == message["key"] == row[1]
        rest = {name: value[name] for name in ("coupon", "note") if name in value}
        assert normal(row[7]) == (rest or None)
    # By Python's deltalake: the letters, each with its topic and reason.
    letters = DeltaTable(str(shop.lake.path("bronze.dead_letters"))).to_pyarrow_table().to_pylist()
    found = Counter((letter["topic"], letter["reason"]) for letter in letters)
    assert (found[(shop.orders, "tombstone")], found[(shop.orders, "wrong_type")]) == (1, 1)
    wrong = next(letter for letter in letters if letter["topic"] == shop.orders and letter["reason"] == "wrong_type")
    assert "total" in wrong["error"] and wrong["key"] is None
    assert found.total() - 2 == done[shop.plays]["dead_letters"]

    # Each is whole: nothing is missing, nothing is there twice, also after another start.
    again = shop.ingest()["topics"]
    assert all(part["rows"] + part["dead_letters"] == 0 for part in again.values()), again
    assert run_ok("verify", "--json", cwd=shop.folder).json["faults"] == []
    places = Counter(polars.read_delta(str(shop.lake.path("bronze.web_orders"))).select("_partition", "_offset").rows())
    places += Counter((letter["partition"], letter["offset"]) for letter in letters if letter["topic"] == shop.orders)
    assert places == Counter(message.place for message in in_topic(shop.brokers, shop.orders))


def test_keys_and_headers_are_kept_as_they_came(shop):
    shop.make_topics()
    good = json.dumps({"order_id": "x"})
    shop.produce(
        {"key": None, "value": good},
        {"key": b"", "value": good, "headers": []},
        {"key": b"\xff\x00", "value": good, "headers": [("empty", b""), ("none", None), ("binary", b"\xfe\x01")]},
        {"key": "ключ", "value": good, "headers": [("twice", "1"), ("twice", "2"), ("naïve", "“text”")]},
        {"key": b"\xff\x01", "value": None, "headers": [("why", "gone")]},
    )
    shop.ingest("--topic", shop.orders)
    found = {row[0]: normal(row[1]) for row in shop.rows(["_key", "_headers"])}
    assert found == {
        None: None,
        "": None,
        "base64:/wA=": [
            {"key": "empty", "value": ""}, {"key": "none", "value": None}, {"key": "binary", "value_base64": "/gE="},
        ],
        "ключ": [
            {"key": "twice", "value": "1"}, {"key": "twice", "value": "2"}, {"key": "naïve", "value": "“text”"},
        ],
    }  # fmt: skip
    [letter] = DeltaTable(str(shop.lake.path("bronze.dead_letters"))).to_pyarrow_table().to_pylist()
    assert (letter["key"], letter["payload"], letter["reason"]) == (b"\xff\x01", None, "tombstone")
    assert normal(letter["headers"]) == [{"key": "why", "value": "gone"}]


def test_up_runs_both_and_tells_of_both(shop, tmp_path, seed, ended_later):
    up = Up(tmp_path, "--rate", 100, "--project", EXAMPLE, brokers=shop.brokers, data_dir=tmp_path / "lakebeat-data")
    up.topic = shop.orders
    ended_later(up).start()
    shop.order()

    def partitions():
        status = json.loads(up.get("/api/v1/status")[1])
        return Counter(part["topic"] for part in status["ingest"]["partitions"] if part["next_offset"] > 0)

    wait_for("both topics are read", lambda: set(partitions()) == {shop.plays, shop.orders}, alive=up)
    revenue = "select cast(day as varchar) as day, orders, revenue from gold.revenue_by_day order by day, currency"
    expected = [
        {"day": "2026-03-01", "orders": 2, "revenue": 179.9}, {"day": "2026-03-02", "orders": 1, "revenue": 100.0},
        {"day": "2026-03-02", "orders": 1, "revenue": 8.5},
    ]  # fmt: skip
    wait_for("the example's models are built", lambda: up.query(revenue) == expected, alive=up)
    wait_for("a line tells of both", lambda: shop.plays in up.err() and f"{shop.orders}: " in up.err(), alive=up)
    up.stop()
    # What was simulated went to the topic that it fits, and to no other.
    assert len(in_topic(shop.brokers, shop.orders)) == 6
    shop.ingest()
    assert run_ok("verify", "--json", cwd=shop.folder).json["faults"] == []


def test_one_that_fails_ends_the_process_by_its_name(shop, ended_later):
    shop.make_topics()
    text = shop.settings.read_text()
    shop.settings.write_text(text.replace(shop.orders, f"{shop.orders}-nowhere"))
    ended = run("ingest", "--brokers", shop.brokers, cwd=shop.folder, timeout=60)
    check_refused(ended, WRONG, f"ingest of topic {shop.orders}-nowhere stopped", "make it")
    # Also one that runs already: its topic is taken away from it.
    shop.settings.write_text(text)
    process = ended_later(Process("ingest", "--brokers", shop.brokers, cwd=shop.folder)).start()
    shop.order()
    wait_for("orders are there", lambda: len(shop.rows(["order_id"])) == 4, alive=process)
    admin = AdminClient({"bootstrap.servers": shop.brokers})
    admin.delete_topics([shop.orders])[shop.orders].result(30)
    status = process.wait(60)
    assert status != 0 and f"ingest of topic {shop.orders} stopped" in process.err(), process.tail()


def test_a_field_that_is_added_adds_a_column(shop):
    shop.make_topics()
    shop.order()
    shop.ingest("--topic", shop.orders)
    text = shop.settings.read_text()
    added = '{ name = "coupon", column = "coupon", type = "any" },\n  { name = "points", column = "points", type = "number" },'
    changed = text.replace('{ name = "placed_at"', added + '\n  { name = "placed_at"').replace(
        '  { name = "currency", column = "currency" },\n', ""
    )
    shop.settings.write_text(changed)
    shop.produce({"value": json.dumps({"order_id": "o-2000", "coupon": {"code": "X"}, "points": 12, "currency": "EUR"})})
    shop.ingest("--topic", shop.orders)

    columns = ["order_id", "coupon", "points", "currency", "_rescued"]
    new, old = shop.rows(columns)[-1], shop.rows(columns)[:-1]
    assert new == ("o-2000", '{"code": "X"}', "12", None, '{"currency":"EUR"}'), new
    assert all(row[1:3] == (None, None) and row[3] is not None for row in old), old
    table = DeltaTable(str(shop.lake.path("bronze.web_orders")))
    fields = {field.name: field for field in table.schema().fields}
    assert fields["points"].type.type == "string" and fields["points"].nullable
    assert fields["points"].metadata["lakebeat.kind"] == "number"
    assert table.to_pyarrow_table().num_rows == 5
    assert [entry["operation"] for entry in table.history()].count("ADD COLUMNS") == 1
    assert run_ok("verify", "--json", cwd=shop.folder).json["faults"] == []

    # A type that narrows is refused; one that widens is noted, and takes what was a dead letter before.
    def check_narrower(settings, *words):
        shop.settings.write_text(settings)
        ended = run("ingest", "--brokers", shop.brokers, "--until-end", "--topic", shop.orders, cwd=shop.folder)
        check_refused(ended, WRONG, shop.orders, "bronze.web_orders", *words)

    check_narrower(changed.replace('"points", type = "number"', '"points"'), '"points" is string', "filled from number")
    check_narrower(changed.replace('"coupon", type = "any"', '"coupon", type = "number"'), "number", "filled from any")
    shop.settings.write_text(changed.replace('"points", type = "number"', '"points", type = "any"'))
    shop.produce({"value": json.dumps({"order_id": "o-2001", "points": "many"})})
    assert shop.ingest("--topic", shop.orders)["rows"] == 1
    assert shop.rows(columns)[-1][2] == "many"


def test_what_clashes_is_refused_by_name(shop):
    text = shop.settings.read_text()
    for changed, words in [
        (text.replace("bronze.web_orders", "bronze.spotify_events"), [shop.plays, shop.orders, "bronze.spotify_events"]),
        (text.replace(shop.orders, shop.plays), [shop.plays, "twice"]),
        (text.replace('"total", column = "total"', '"total", column = "Currency"'), [shop.orders, "urrency"]),
        (text.replace('"total", column = "total"', '"order_id", column = "total"'), [shop.orders, "order_id", "twice"]),
    ]:
        shop.settings.write_text(changed)
        check_refused(run("ingest", "--brokers", shop.brokers, cwd=shop.folder), WRONG, *words)


def test_nothing_is_simulated_into_a_topic_that_it_does_not_fit(shop, tmp_path, ended_later):
    refused = run("simulate", "--brokers", shop.brokers, "--count", 5, "--topic", shop.orders, cwd=shop.folder)
    check_refused(refused, WRONG, shop.orders, "fit none")
    # Asked for by name it is an error, as a default it is left out, and said.
    up = Up(tmp_path, brokers=shop.brokers, topic=shop.orders, data_dir=tmp_path / "lakebeat-data")
    check_refused(run(*up.args, "--rate", 5, cwd=tmp_path), WRONG, shop.orders, "fit none")
    ended_later(up).start()
    wait_for("it says so", lambda: "nothing is simulated" in up.err(), alive=up)
    up.stop()
    assert in_topic(shop.brokers, shop.orders) == []


def test_doctor_looks_at_all_topics(shop):
    def broker():
        ended = run_ok("doctor", "--brokers", shop.brokers, "--json", cwd=shop.folder)
        return next(check for check in ended.json if check["what"].startswith("broker"))

    found = broker()
    assert found["state"] == "note" and shop.plays in found["detail"] and shop.orders in found["detail"], found
    shop.make_topics()
    found = broker()
    assert found["state"] == "ok" and shop.plays in found["detail"] and shop.orders in found["detail"], found
