"""Fixtures of the end-to-end tests: the built program, started as a user starts it."""

import os
import random

import pytest

pytest.register_assert_rewrite("lake", "messages", "program")

import program  # noqa: E402
from program import BINARY, Up  # noqa: E402


def pytest_configure(config):
    if not BINARY.exists():
        pytest.exit(f"{BINARY} is not built: run `make build`", returncode=2)


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
            report.sections.append((f"process {process.args[0]}", process.tail()))


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
