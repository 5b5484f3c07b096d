"""compose.yml: what compose makes of it, and that the services do their work when they are started as it says, each as a
process of this machine, on a real Kafka and a real MinIO. No Docker engine is needed."""

import json
import re
import signal
import subprocess
from pathlib import Path

import adbc_driver_flightsql.dbapi as flight_sql
import psycopg
import pytest
from confluent_kafka.admin import AdminClient

from old_pipeline import OLD_SETTINGS
from program import BINARY, CACHE, CONSOLE, FLIGHT, POSTGRES, REPOSITORY, Process, environment, free_ports, run
from stand_in import FakeSnow, Target
from waiting import wait_for

COMPOSE = CACHE / "compose" / "bin" / "docker-compose"
INGESTS = ("ingest-1", "ingest-2", "ingest-3")
OURS = {"topic", "simulate", *INGESTS, "transform", "serve", "mirror"}
THEIRS = {"kafka", "minio", "kafdrop"}


def resolved(*flags, **env):
    """compose.yml as compose understands it."""
    ended = subprocess.run(
        [COMPOSE, "--project-directory", REPOSITORY, *flags, "--file", REPOSITORY / "compose.yml", "--profile", "*",
         "config", "--format", "json"],
        env=environment(**env), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.fixture(scope="module")
def no_dotenv(tmp_path_factory):
    """Keeps the developer's own .env out."""
    path = tmp_path_factory.mktemp("compose") / "empty.env"
    path.write_text("")
    return ("--env-file", path)


def test_what_compose_makes_of_it(no_dotenv):
    config = resolved(*no_dotenv)
    services = config["services"]
    assert services.keys() == OURS | THEIRS
    assert services["kafka"]["image"] == "apache/kafka:3.9.1"
    for name, service in services.items():
        assert re.search(r":[\w.-]*\d|:local$", service["image"]), f"the image of {name} is not pinned"
        assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"], name
        assert "privileged" not in service and service.get("user", "1").split(":")[0] not in ("0", "root"), name
        for port in service.get("ports", ()):
            assert port["host_ip"] == "127.0.0.1", f"{name} can be reached from other machines"
        for other, needed in service.get("depends_on", {}).items():
            state = "service_completed_successfully" if other == "topic" else "service_healthy"
            assert needed["condition"] == state, f"{name} does not wait for {other}"
            assert state != "service_healthy" or "healthcheck" in services[other], f"{other} has no health check"
        for volume in service.get("volumes", ()):
            assert volume["type"] == "volume" and volume["source"] in config["volumes"], name
    published = {
        int(port["published"]): (name, port["target"]) for name in services for port in services[name].get("ports", ())
    }
    assert published == {
        29092: ("kafka", 29092), 9002: ("minio", 9000), 9001: ("minio", 9001), 9000: ("kafdrop", 9000),
        31337: ("serve", 31337), 5433: ("serve", 5433), 8080: ("serve", 8080),
    }  # fmt: skip
    assert services["mirror"]["profiles"] == ["snowflake"]
    assert [name for name in services if "profiles" in services[name]] == ["mirror"]


def test_the_host_can_use_kafka(no_dotenv):
    """The address that Kafka tells a client of this machine is the one that is published."""
    kafka = resolved(*no_dotenv, KAFKA_PORT="31000")["services"]["kafka"]
    assert "HOST://127.0.0.1:31000" in kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")
    assert [port["published"] for port in kafka["ports"]] == ["31000"]


def test_settings_of_the_old_pipeline_reach_the_services(tmp_path):
    path = tmp_path / "old.env"
    path.write_text(OLD_SETTINGS.format(kafka=29092, minio=9002, place="plays", access_key="someone", secret_key="secret99"))
    services = resolved("--env-file", path)["services"]
    assert services["minio"]["environment"]["MINIO_ROOT_USER"] == "someone"
    assert services["minio"]["environment"]["MINIO_ROOT_PASSWORD"] == "secret99"
    ingest = services["ingest-1"]
    assert ingest["command"] == ["ingest", "--group", "plays-consumer"]
    wanted = {
        # Inside the network they have other names than on the host.
        "KAFKA_BOOTSTRAP_SERVERS": "kafka:9092", "MINIO_ENDPOINT": "http://minio:9000", "KAFKA_TOPIC": "plays",
        "MINIO_BUCKET": "plays", "MINIO_ACCESS_KEY": "someone", "MINIO_SECRET_KEY": "secret99", "BATCH_SIZE": "10",
    }  # fmt: skip
    assert ingest["environment"] == wanted
    assert services["simulate"]["environment"]["USER_COUNT"] == "20"
    assert services["mirror"]["environment"]["SNOWFLAKE_DATABASE"] == "SPOTIFY_DB"


def test_the_image_is_built_as_the_program_is():
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    toolchain = re.search(r'channel = "(.+)"', (REPOSITORY / "rust-toolchain.toml").read_text())[1]
    assert f"FROM rust:{toolchain}-" in dockerfile and f"RUSTUP_TOOLCHAIN={toolchain}\n" in dockerfile
    last_user = re.findall(r"^USER (\S+)", dockerfile, re.MULTILINE)[-1]
    assert last_user.split(":")[0] not in ("0", "root")
    # What the image is built from is what `make build` builds from.
    sources = re.search(r"^sources=\((.+)\)$", (REPOSITORY / "scripts" / "lib.sh").read_text(), re.MULTILINE)[1].split()
    kept = re.findall(r"^!(\S+)$", (REPOSITORY / ".dockerignore").read_text(), re.MULTILINE)
    assert {"/".join(Path(name).parts) for name in kept} == set(sources) - {".clippy.toml"}


class Translated:
    """A service as a process of this machine: names of the network become addresses, ports become free ones."""

    def __init__(self, service, folder, names):
        self.folder, self.names = folder, names
        folder.mkdir()
        assert service.keys() <= {
            "build", "cap_drop", "command", "depends_on", "entrypoint", "environment", "healthcheck", "image", "init",
            "networks", "ports", "profiles", "restart", "security_opt", "stop_grace_period",
        }, f"this test does not know what to make of {service.keys()}"  # fmt: skip
        self.command = self._here(service["command"])
        ports = dict(zip((FLIGHT, POSTGRES, CONSOLE), free_ports(3)))
        self.ports = ports if self.command[0] == "serve" else {}
        self.env = {name: self._here([value])[0] for name, value in service.get("environment", {}).items()}
        self.env |= {f"LAKEBEAT_{door.upper()}_PORT": str(port) for door, port in self.ports.items()}
        self.health = service.get("healthcheck", {}).get("test")
        self.process = Process(*self.command, cwd=folder, env=self.env)

    def _here(self, words):
        for name, address in self.names.items():
            words = [word.replace(name, address) for word in words]
        return words

    def is_healthy(self):
        """Asks as the engine would."""
        kind, *command = self.health
        assert kind == "CMD"
        command = [str(BINARY) if word == "lakebeat" else word for word in command]
        if CONSOLE in self.ports:
            command = [word.replace("/8080", f"/{self.ports[CONSOLE]}") for word in command]
        ended = subprocess.run(
            command, cwd=self.folder, env=environment(**self.env), stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended
        return True


def started_in_order(services, folder, names, ended_later):
    """Starts our services as compose would: each as soon as what it depends on is as far as it has to be."""
    running, waiting = {}, {name: services[name] for name in services if name in OURS}
    done = set(THEIRS)
    while waiting:
        ready = [name for name, service in waiting.items() if service.get("depends_on", {}).keys() <= done]
        assert ready, f"these wait for each other: {waiting.keys()}"
        for name in ready:
            service = Translated(waiting.pop(name), folder / name, names)
            ended_later(service.process).start()
            if name == "topic":
                assert service.process.wait(30) == 0, service.process.tail()
            else:
                running[name] = service
            done.add(name)
    for name, service in running.items():
        if service.health:
            wait_for(f"{name} is healthy", service.is_healthy, seconds=60, every=0.5, alive=service.process)
    return running


def test_the_services_do_their_work(tmp_path, no_dotenv, kafka, minio, place, ended_later):
    snowflake = ended_later(FakeSnow(tmp_path))
    wait_for("the stand-in for Snowflake answers", snowflake.answers, seconds=60)
    chosen = {
        "KAFKA_TOPIC": place, "KAFKA_GROUP_ID": place, "MINIO_BUCKET": place, "MINIO_ACCESS_KEY": minio.access_key,
        "MINIO_SECRET_KEY": minio.secret_key, "EVENT_INTERVAL_SECONDS": "0.005", "MIRROR_INTERVAL": "2s",
        "SNOWFLAKE_URL": f"http://127.0.0.1:{snowflake.port}", "SNOWFLAKE_ACCOUNT": "stand-in", "SNOWFLAKE_USER": "mirror",
        "SNOWFLAKE_PASSWORD": "any",
    }  # fmt: skip
    services = resolved(*no_dotenv, **chosen)["services"]
    names = {"kafka:9092": kafka.address, "minio:9000": f"127.0.0.1:{minio.port}", "0.0.0.0": "127.0.0.1"}
    running = started_in_order(services, tmp_path, names, ended_later)
    assert running.keys() == OURS - {"topic"}

    doors = running["serve"].ports
    url = f"postgresql://x@127.0.0.1:{doors[POSTGRES]}/lake"

    def plays():
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
            return connection.execute("select sum(events) from gold.listening_by_minute").fetchone()[0] or 0

    serve = running["serve"].process
    wait_for("gold fills", plays, seconds=60, every=0.3, alive=serve)
    with flight_sql.connect(f"grpc://127.0.0.1:{doors[FLIGHT]}") as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from gold.top_songs")
        assert cursor.fetchone() == (6,)
    # Each of the three has its part of the topic, and all parts are in hand.
    partitions = wait_for("three share the topic", lambda: shares(kafka.address, place), seconds=60, every=0.5)
    assert sorted(partitions) == [0, 1, 2, 3]
    before = plays()
    wait_for("gold follows", lambda: plays() > before + 200, seconds=60, every=0.3, alive=serve)

    def mirrored():
        ((events,),) = Target(snowflake, "SPOTIFY_DB").query("SELECT SUM(EVENTS) FROM LISTENING_BY_MINUTE")
        return events or 0

    wait_for("Snowflake follows", lambda: mirrored() > before, seconds=60, every=0.5, alive=running["mirror"].process)

    # As `docker compose down` does it: who depends on somebody goes first.
    for name in reversed(running):
        running[name].process.stop(signal.SIGTERM, seconds=15)
    lake = ["--lake", f"s3://{place}"]
    ended = run("verify", *lake, cwd=tmp_path, env=minio.environment(place))
    assert ended.status == 0, ended
    writers = {name for name in INGESTS if has_written(running[name])}
    assert writers == set(INGESTS), f"only {writers} have committed anything"


def shares(brokers, group):
    """The partitions that the three members of the group have, once there are three and none is idle."""
    admin = AdminClient({"bootstrap.servers": brokers, "log_level": 0})
    members = admin.describe_consumer_groups([group])[group].result(10).members
    parts = [[part.partition for part in member.assignment.topic_partitions] for member in members]
    return sum(parts, []) if len(parts) == 3 and all(parts) else None


def has_written(service):
    """What an ingest says at its end: `N rows, … in M commits`."""
    return int(re.search(r"^(\d+) rows, .* in \d+ commits", service.process.out(), re.MULTILINE)[1]) > 0


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_command_is_one_of_the_program(tmp_path, no_dotenv, name):
    """So that this file cannot go on naming what the program no longer knows."""
    command = resolved(*no_dotenv)["services"][name]["command"]
    # With `--help` the words before it are read, and nothing is done.
    ended = run(*command, "--help", cwd=tmp_path)
    assert ended.status == 0 and "Usage: lakebeat" in ended.out, ended
