"""What is wrong between the program and a real Kafka or MinIO: one error within seconds that names the thing, says what it
answered and what to do, and nothing half-done."""

import socket

import pytest

from lake import check_accounted
from messages import simulate
from minio_server import MinioServer
from program import DOORS, Process, door_flags, free_doors, free_ports, run, topics
from waiting import wait_for

WRONG, UNREACHABLE = 2, 3


def check_refused(ended, status, *words):
    """The status in time, and an error for people: short, with all of `words`, and with neither XML nor a panic."""
    statuses = status if isinstance(status, tuple) else (status,)
    assert ended.status in statuses, ended
    for word in words:
        assert str(word).lower() in ended.err.lower(), f"the error does not say {word}: {ended}"
    for noise in ("panicked", "stack backtrace", "<?xml", "RequestId"):
        assert noise not in ended.err, f"{noise} is not for people: {ended}"
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, f"not one error: {ended}"
    assert len(errors[0]) < 600, f"nobody reads this: {ended}"
    assert ended.seconds < 20, f"{ended.seconds:.0f} s are too long: {ended}"
    assert ended.out == "", ended


COMMANDS = {
    "up": lambda brokers: ("up", "--no-simulate", "--brokers", brokers, *door_flags(free_doors())),
    "ingest": lambda brokers: ("ingest", "--until-end", "--brokers", brokers),
    "build": lambda _: ("transform", "build"),
    "serve": lambda _: ("serve", *door_flags(free_doors(DOORS[1:]))),
    "verify": lambda _: ("verify",),
}


@pytest.fixture(scope="module")
def topic(kafka, tmp_path_factory):
    """A topic with messages: what is refused is refused for another reason."""
    simulate(kafka.address, tmp_path_factory.mktemp("faults"), 50, 1, topic="faults")
    return "faults"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("wrong", ["MINIO_ACCESS_KEY", "MINIO_SECRET_KEY"])
def test_wrong_credentials(tmp_path, kafka, minio, place, topic, command, wrong):
    minio.make_bucket(place)
    env = minio.environment(place) | {"KAFKA_TOPIC": topic, wrong: "somebody-else"}
    ended = run(*COMMANDS[command](kafka.address), cwd=tmp_path, env=env, timeout=90)
    says = "InvalidAccessKeyId" if wrong == "MINIO_ACCESS_KEY" else "SignatureDoesNotMatch"
    check_refused(ended, WRONG, f"s3://{place}", says, wrong)
    assert "somebody-else" not in ended.err or wrong == "MINIO_ACCESS_KEY", "a secret is shown"
    assert minio.objects(place) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_no_rights_on_the_bucket(tmp_path, kafka, minio, place, topic, command):
    minio.make_bucket(place)
    limited = minio.limited_to("another-bucket") | {"MINIO_BUCKET": place, "KAFKA_TOPIC": topic}
    ended = run(*COMMANDS[command](kafka.address), cwd=tmp_path, env=limited, timeout=90)
    check_refused(ended, WRONG, f"s3://{place}", "AccessDenied", "s3:PutObject")
    assert minio.objects(place) == []


def test_rights_on_this_bucket_alone_are_enough(tmp_path, kafka, minio, place, topic):
    minio.make_bucket(place)
    limited = minio.limited_to(place) | {"MINIO_BUCKET": place, "KAFKA_TOPIC": topic}
    ended = run("ingest", "--until-end", "--json", "--brokers", kafka.address, cwd=tmp_path, env=limited)
    assert ended.status == 0 and ended.json["rows"] + ended.json["dead_letters"] == 50, ended


def test_a_missing_bucket_is_made(tmp_path, kafka, minio, place, topic):
    """As the old pipeline did it."""
    env = minio.environment(place) | {"KAFKA_TOPIC": topic}
    ended = run("ingest", "--until-end", "--json", "--brokers", kafka.address, cwd=tmp_path, env=env)
    assert ended.status == 0 and ended.json["rows"] + ended.json["dead_letters"] == 50, ended
    assert "_lakebeat.json" in minio.objects(place)


def test_a_missing_bucket_that_may_not_be_made(tmp_path, kafka, minio, place, topic):
    limited = minio.limited_to("another-bucket") | {"MINIO_BUCKET": place, "KAFKA_TOPIC": topic}
    ended = run("ingest", "--until-end", "--brokers", kafka.address, cwd=tmp_path, env=limited, timeout=90)
    check_refused(ended, WRONG, place, "AccessDenied", "s3:CreateBucket")


@pytest.mark.parametrize("bucket", ["Under_Score", "UPPER", "a", "with space", "spotify.events", "-dash"])
def test_names_of_buckets(tmp_path, minio, bucket):
    """A name that S3 does not have is refused by us and not by a failing request; one that it has works."""
    ended = run("table", "ls", cwd=tmp_path, env=minio.environment(bucket))
    if bucket == "spotify.events":
        assert ended.status == 0, ended
    else:
        check_refused(ended, WRONG, bucket, "MINIO_BUCKET")


@pytest.mark.parametrize("command", ["up", "ingest", "verify"])
def test_no_store_answers(tmp_path, kafka, minio, place, topic, command):
    (port,) = free_ports(1)
    env = minio.environment(place) | {"MINIO_ENDPOINT": f"http://127.0.0.1:{port}", "KAFKA_TOPIC": topic}
    ended = run(*COMMANDS[command](kafka.address), cwd=tmp_path, env=env, timeout=90)
    check_refused(ended, UNREACHABLE, f"127.0.0.1:{port}", "MINIO_ENDPOINT")


@pytest.mark.parametrize(
    "command", [("ingest",), ("transform", "build", "--watch"), ("serve",), ("mirror", "--every", "1s")], ids=lambda c: c[0]
)
def test_stopped_while_it_waits_for_a_store(tmp_path, minio, place, ended_later, command):
    """One that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        env = minio.environment(place) | {"MINIO_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        env |= {"SNOWFLAKE_ACCOUNT": "one", "SNOWFLAKE_USER": "one", "SNOWFLAKE_PASSWORD": "one"}
        flags = door_flags(free_doors(DOORS[1:])) if command == ("serve",) else []
        process = ended_later(Process(*command, *flags, cwd=tmp_path, env=env)).start()
        silent.settimeout(30)
        connection, _ = silent.accept()
        with connection:
            process.stop(seconds=5)


def test_an_endpoint_that_is_no_store(tmp_path, kafka, minio, place, topic):
    """The address of MinIO's page, say: here that of Kafka."""
    env = minio.environment(place) | {"MINIO_ENDPOINT": f"http://{kafka.address}"}
    ended = run("verify", cwd=tmp_path, env=env, timeout=90)
    check_refused(ended, (WRONG, UNREACHABLE), kafka.address, "MINIO_ENDPOINT")


def test_an_endpoint_that_is_no_address(tmp_path, minio, place):
    env = minio.environment(place) | {"MINIO_ENDPOINT": "http://no such host"}
    check_refused(run("verify", cwd=tmp_path, env=env, timeout=90), WRONG, "MINIO_ENDPOINT")


def test_an_endpoint_without_its_scheme(tmp_path, minio, place):
    env = minio.environment(place) | {"MINIO_ENDPOINT": f"127.0.0.1:{minio.port}"}
    ended = run("table", "ls", cwd=tmp_path, env=env)
    assert ended.status == 0, ended


@pytest.mark.parametrize("missing", ["MINIO_ACCESS_KEY", "MINIO_SECRET_KEY"])
def test_a_missing_credential_is_named(tmp_path, minio, place, missing):
    """And not looked for elsewhere: a store without credentials would be asked for those of a machine in a cloud."""
    ended = run("table", "ls", cwd=tmp_path, env=minio.environment(place) | {missing: ""}, timeout=90)
    check_refused(ended, WRONG, missing)


def test_a_wrong_region(tmp_path, place, ended_later):
    """MinIO has a region if somebody sets one, and says which."""
    server = MinioServer(tmp_path / "minio")
    server.env["MINIO_REGION"] = "eu-central-1"
    ended_later(server).start()
    env = server.environment(place)
    ended = run("table", "ls", cwd=tmp_path, env=env | {"AWS_REGION": "us-west-2"}, timeout=90)
    check_refused(ended, WRONG, "eu-central-1", "AWS_REGION")
    ended = run("table", "ls", cwd=tmp_path, env=env | {"AWS_REGION": "eu-central-1"}, timeout=90)
    assert ended.status == 0, ended


def test_a_bucket_that_is_deleted_under_a_running_ingest(tmp_path, kafka, minio, place, ended_later, seed):
    """It ends and says so; started again it makes the bucket, and reads the topic from its beginning."""
    sent, _ = simulate(kafka.address, tmp_path, 300, seed, topic=place)
    lake = minio.lake(place)
    process = Process("ingest", "--brokers", kafka.address, "--topic", place, cwd=tmp_path, env=minio.environment(place))
    ended_later(process).start()
    wait_for("all is in the lake", lambda: sum(lake.counts()) == len(sent), every=0.5, alive=process)
    wait_for("the bucket is gone", lambda: minio.files().delete_dir(place) is None)
    more, _ = simulate(kafka.address, tmp_path, 300, seed + 1, topic=place)
    assert process.wait(60) == WRONG, process.tail()
    errors = [line for line in process.err().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "NoSuchBucket" in errors[0] and "MINIO_BUCKET" in errors[0], process.tail()

    process.start()
    wait_for("all is there again", lambda: sum(lake.counts()) == len(sent + more), every=0.5, alive=process)
    process.stop()
    check_accounted(lake, sent + more)
    ended = run("verify", "--json", cwd=tmp_path, env=minio.environment(place))
    assert ended.status == 0 and ended.json["faults"] == [], ended


# Kafka.


def test_wrong_brokers(tmp_path, minio, place, ended_later):
    """All at once: each may take its time to be sure that nobody answers, but not a person's patience."""
    wrong = [f"127.0.0.1:{free_ports(1)[0]}", "no-such-host.invalid:9092", "127.0.0.1:notaport"]
    started = {}
    for brokers in wrong:
        for command in ("up", "ingest"):
            process = Process(*COMMANDS[command](brokers), cwd=tmp_path, env=minio.environment(place))
            started[brokers, command] = ended_later(process).start()
    for (brokers, _), process in started.items():
        assert process.wait(25) in (WRONG, UNREACHABLE), process.tail()
        errors = [line for line in process.err().splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and brokers in errors[0] and "--brokers" in errors[0], process.tail()


def test_one_broker_of_two_is_wrong(tmp_path, kafka, minio, place, topic):
    """As in a list of an inner and an outer name, of which only one leads anywhere from here."""
    brokers = f"kafka.invalid:9092,{kafka.address}"
    env = minio.environment(place) | {"KAFKA_BOOTSTRAP_SERVERS": brokers, "KAFKA_TOPIC": topic}
    ended = run("ingest", "--until-end", "--json", cwd=tmp_path, env=env)
    assert ended.status == 0 and ended.json["rows"] + ended.json["dead_letters"] == 50, ended


def test_a_missing_topic(tmp_path, kafka, minio, place):
    """`ingest` reads what others make; it does not make a topic because its name was misspelt."""
    minio.make_bucket(place)
    env = minio.environment(place) | {"KAFKA_TOPIC": place}
    ended = run("ingest", "--brokers", kafka.address, cwd=tmp_path, env=env, timeout=90)
    check_refused(ended, WRONG, place, kafka.address, "--topic")
    assert place not in topics(kafka.address)
    assert not [name for name in minio.objects(place) if name.startswith("bronze/")], "a table was made for nothing"


@pytest.mark.parametrize("topic_name", ["spotify events", "spotify/events", "ü", "."])
def test_a_topic_that_cannot_be(tmp_path, kafka, topic_name):
    ended = run("simulate", "--count", 1, "--brokers", kafka.address, "--topic", topic_name, cwd=tmp_path, timeout=90)
    check_refused(ended, WRONG, topic_name)
