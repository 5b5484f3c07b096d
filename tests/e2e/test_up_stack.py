"""`make up-stack`: Kafka, MinIO and `lakebeat up` started and ended together."""

import os
import signal
import socket

import psycopg
import pytest

from program import CACHE, DOORS, POSTGRES, REPOSITORY, Process, free_ports
from waiting import wait_for

PORTS = ("KAFKA_PORT", "KAFKA_CONTROLLER_PORT", "MINIO_PORT", "MINIO_CONSOLE_PORT")


class UpStack(Process):
    """The script on ports and in a folder of its own."""

    def __init__(self, folder):
        self.doors = dict(zip(DOORS, free_ports(len(DOORS))))
        self.ports = dict(zip(PORTS, free_ports(len(PORTS))))
        self.folder = folder / "stack"
        flags = [part for door in DOORS for part in (f"--{door}-port", self.doors[door])]
        env = {"LAKEBEAT_CACHE": str(CACHE), "STACK_DIR": str(self.folder)}
        env |= {name: str(port) for name, port in self.ports.items()}
        script = REPOSITORY / "scripts" / "up-stack.sh"
        super().__init__(*flags, "--rate", 50, cwd=folder, env=env, binary=script, name="up-stack")

    def plays(self):
        """What the PostgreSQL door shows."""
        url = f"postgresql://x@127.0.0.1:{self.doors[POSTGRES]}/lake"
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
            return connection.execute("select sum(events) from gold.listening_by_minute").fetchone()[0] or 0

    def parts(self):
        """The processes that it has started, by name."""
        found = {}
        for name in os.listdir("/proc"):
            try:
                stat = open(f"/proc/{name}/stat").read()
                command = open(f"/proc/{name}/cmdline").read().split("\0")
            except (OSError, ValueError):
                continue
            if int(stat.rsplit(")", 1)[1].split()[1]) == self.child.pid:
                for part in ("kafka.Kafka", "minio", "lakebeat"):
                    if part in (os.path.basename(command[0]), *command[1:]):
                        found[part] = int(name)
        return found

    def is_gone(self, parts):
        """Nothing of it runs any more, and nothing listens."""
        for pid in parts.values():
            if os.path.exists(f"/proc/{pid}"):
                return False
        return not any(listens(port) for port in [*self.ports.values(), *self.doors.values()])


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_running(stack, more_than=0):
    wait_for("events are in gold", lambda: stack.plays() > more_than, seconds=90, every=0.3, alive=stack)
    parts = stack.parts()
    assert parts.keys() == {"kafka.Kafka", "minio", "lakebeat"}
    return parts


def test_up_stack(tmp_path, ended_later):
    """Started, ended by Ctrl-C, started again on the same data, and ended by the death of one part."""
    stack = ended_later(UpStack(tmp_path)).start()
    parts = wait_running(stack)
    for shown in ("s3://", f"127.0.0.1:{stack.ports['KAFKA_PORT']}", "minio.log", "kafka.log"):
        assert shown in stack.err(), f"{shown} is not shown"

    second = Process(*stack.args, cwd=tmp_path, env=stack.env, binary=stack.binary, name="second").start()
    assert second.wait(10) == 2 and "another up-stack" in second.err()

    stack.stop(signal.SIGINT, seconds=30)
    assert stack.is_gone(parts)
    # In order: nothing that lakebeat needs was gone before it.
    assert "draining" in stack.err() and "ERROR" not in stack.err() and "WARN" not in stack.err().split("draining")[1]
    assert "killed" not in stack.err()

    stack.start()
    # The broker's topic and the lake are both there: nothing is read twice, and nothing is missing.
    before = wait_for("the first answer", stack.plays, seconds=60, alive=stack)
    wait_for("it reads the topic", lambda: "reading" in stack.err(), seconds=60, alive=stack)
    assert "offsets={0: 0, " not in stack.err(), "it has begun anew"
    parts = wait_running(stack, more_than=before)

    os.kill(parts["kafka.Kafka"], signal.SIGKILL)
    assert stack.wait(30) == 3
    assert "Kafka has ended" in stack.err() and "kafka.log" in stack.err()
    assert stack.is_gone(parts)


@pytest.mark.parametrize("setting", PORTS)
def test_a_taken_port_names_the_setting(tmp_path, setting):
    stack = UpStack(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", stack.ports[setting]))
        taken.listen()
        stack.start()
        assert stack.wait(20) == 2
    assert f"port {stack.ports[setting]} is taken" in stack.err() and setting in stack.err()
    assert stack.parts() == {}


def test_its_status_is_that_of_lakebeat(tmp_path, ended_later):
    stack = ended_later(UpStack(tmp_path))
    stack.args += ["--project", str(tmp_path / "missing")]
    stack.start()
    assert stack.wait(60) == 2 and "missing" in stack.err(), stack.tail()
    assert stack.is_gone({})


def test_nothing_is_left_when_it_is_killed(tmp_path, ended_later):
    stack = ended_later(UpStack(tmp_path)).start()
    wait_for("all is started", lambda: len(stack.parts()) == 3, seconds=60, alive=stack)
    parts = stack.parts()
    stack.kill()
    wait_for("nothing is left", lambda: stack.is_gone(parts), seconds=30)
