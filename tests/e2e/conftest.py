"""Fixtures of the end-to-end tests: the built program, started as a user starts it."""

import os
import random
import uuid

import pytest

pytest.register_assert_rewrite("lake", "messages", "program")

import program  # noqa: E402
from group import SHORT_SESSIONS  # noqa: E402
from kafka_server import JARS, KafkaServer  # noqa: E402
from minio_server import PROGRAM, MinioServer  # noqa: E402
from program import BINARY, CACHE, Up  # noqa: E402


def pytest_configure(config):
    installed = (JARS / "libs", CACHE / "spark" / "libs", PROGRAM)
    for needed, command in ((BINARY, "make build"), *((path, "make setup") for path in installed)):
        if not needed.exists():
            pytest.exit(f"{needed} is missing: run `{command}`", returncode=2)


# What takes long in one piece: if a worker began with it last, the other one would wait.
LONG = (
    "test_mirror.py", "test_outages.py", "test_up_stack.py", "test_stack_kill.py", "test_cli.py", "test_broker_clients.py",
    "test_engines.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """What ended before this test began has no part in its failure."""
    program.started[:] = [process for process in program.started if process.exit_status() is None]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failure shows the end of the output of every process that ran during its test."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for process in dict.fromkeys(program.started):
            report.sections.append((f"process {process.name}", process.tail()))


@pytest.fixture(scope="session")
def seed():
    """Changes with each run, and is printed by those who use it; LAKEBEAT_TEST_SEED gives a run again."""
    return int(os.environ.get("LAKEBEAT_TEST_SEED") or random.SystemRandom().randrange(1 << 31))


@pytest.fixture
def ended_later():
    """Give it processes: they are ended after the test, whatever became of it."""
    processes = []
    yield lambda process: processes.append(process) or process
    for process in reversed(processes):
        process.end()


@pytest.fixture
def up(tmp_path, ended_later):
    """A running `up` without a simulator, on an empty folder."""
    return ended_later(Up(tmp_path, "--no-simulate")).start()


@pytest.fixture(scope="session")
def kafka(tmp_path_factory):
    """A real Kafka that the tests of a worker share: each has topics of its own."""
    # For members of a group that are killed often and shall soon be missed.
    server = KafkaServer(tmp_path_factory.mktemp("kafka") / "kafka", extra=[SHORT_SESSIONS]).start()
    yield server
    server.end()


@pytest.fixture(scope="session")
def minio(tmp_path_factory):
    """A real MinIO that the tests of a worker share: each has a bucket of its own."""
    server = MinioServer(tmp_path_factory.mktemp("minio") / "minio").start()
    yield server
    server.end()


@pytest.fixture
def place(request):
    """A name for a test's topic and bucket, which no other test of the worker has."""
    plain = "".join(letter if letter.isalnum() else "-" for letter in request.node.name.lower())
    return f"{plain[-40:].strip('-')}-{uuid.uuid4().hex[:6]}"
