"""The program under test: commands that end, and processes that run until they are stopped."""

import json
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from confluent_kafka.admin import AdminClient

from waiting import wait_for

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = REPOSITORY / "bin" / "lakebeat"

TOPIC = "spotify_events"
KAFKA, FLIGHT, POSTGRES, CONSOLE = "kafka", "flight", "postgres", "console"
DOORS = (KAFKA, FLIGHT, POSTGRES, CONSOLE)

# Settings that the program reads from its environment: those of the machine must not reach a test.
SETTINGS = ("LAKEBEAT_", "KAFKA_", "MINIO_", "SNOWFLAKE_", "AWS_", "BATCH_SIZE", "USER_COUNT", "EVENT_INTERVAL_SECONDS")

# Processes that tests have started, for the report of a failure.
started = []

# Where scripts/setup-*.sh leave what is not in this repository (scripts/lib.sh).
CACHE = Path(
    os.environ.get("LAKEBEAT_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lakebeat"
)


def environment(**extra):
    """This process's environment without the program's settings, and with `extra`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
    return clean | extra


def free_ports(count):
    """Ports that nobody listens on, from below the range out of which outgoing connections get theirs."""
    ports = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(15_000, 31_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def free_doors(doors=DOORS):
    """A free port for each of these doors."""
    return dict(zip(doors, free_ports(len(doors))))


def door_flags(ports):
    """The flags that let doors listen on these ports."""
    return [part for door, port in ports.items() for part in (f"--{door}-port", port)]


def topics(brokers):
    """The topics of a broker."""
    return AdminClient({"bootstrap.servers": brokers, "log_level": 0}).list_topics(timeout=2).topics


class Ended:
    """A command that has ended."""

    def __init__(self, args, completed, seconds):
        self.args, self.seconds = args, seconds
        self.status, self.out, self.err = completed.returncode, completed.stdout, completed.stderr

    @property
    def json(self):
        return json.loads(self.out)

    def __repr__(self):
        args = " ".join(map(str, self.args))
        return f"`lakebeat {args}` ended with status {self.status}\nstdout: {self.out[-2000:]}\nstderr: {self.err[-2000:]}"


def run(*args, cwd, timeout=60, env=None, prefix=(), binary=BINARY):
    """Runs a command to its end, whatever its status is."""
    began = time.monotonic()
    completed = subprocess.run(
        [*map(str, prefix), str(binary), *map(str, args)],
        cwd=cwd,
        env=environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Ended(args, completed, time.monotonic() - began)


def run_ok(*args, **options):
    """Runs a command that has to succeed."""
    ended = run(*args, **options)
    assert ended.status == 0, ended
    return ended


def check_refused(ended, status, *words):
    """The status, and an error for people: it says all of `words`, and has neither a panic nor a backtrace."""
    assert ended.status == status, ended
    for word in words:
        assert str(word) in ended.err, f"the error does not say {word}: {ended}"
    assert "panicked" not in ended.err and "stack backtrace" not in ended.err, ended
    assert ended.out == "", ended


class Process:
    """A command that runs until it is stopped. Both its outputs go to one file each, kept for the report of a failure."""

    def __init__(self, *args, cwd, env=None, binary=BINARY, name=None):
        self.args, self.cwd, self.env, self.binary = list(map(str, args)), Path(cwd), env or {}, binary
        self.name = name or self.args[0]
        self.child = None
        self.starts = 0

    def start(self):
        assert self.exit_status() is not None or self.child is None, "it runs already"
        self.starts += 1
        stem = f"{self.name}-{id(self):x}-{self.starts}"
        self.out_path, self.err_path = self.cwd / f"{stem}.out", self.cwd / f"{stem}.err"
        with open(self.out_path, "wb") as out, open(self.err_path, "wb") as err:
            self.child = subprocess.Popen(
                [str(self.binary), *self.args],
                cwd=self.cwd,
                env=environment(**self.env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        started.append(self)
        return self

    def exit_status(self):
        return None if self.child is None else self.child.poll()

    def wait(self, seconds=60):
        """Waits until it ends by itself; returns its status."""
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {seconds} s\n{self.tail()}") from None

    def kill(self):
        """SIGKILL: no chance to tidy up."""
        self.child.send_signal(signal.SIGKILL)
        self.child.wait(10)

    def stop(self, with_signal=signal.SIGTERM, seconds=5.0):
        """Asks it to end, which it has to do in time and with status 0. Returns the seconds that it took."""
        began = time.monotonic()
        self.child.send_signal(with_signal)
        status = self.wait(seconds)
        took = time.monotonic() - began
        assert status == 0, f"{self.name} ended with status {status} after {with_signal.name}\n{self.tail()}"
        return took

    def end(self):
        """For the end of a test: ends it if it still runs, whatever that takes."""
        if self.exit_status() is None and self.child is not None:
            self.child.terminate()
            try:
                self.child.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    def peak_bytes(self):
        """The most memory that it has held at once, while it runs."""
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024

    def out(self):
        return self.out_path.read_text(errors="replace")

    def err(self):
        return self.err_path.read_text(errors="replace")

    def tail(self, lines=40):
        shown = [f"--- {self.name}: {' '.join(self.args)} (status {self.exit_status()})"]
        for path in (self.out_path, self.err_path):
            text = path.read_text(errors="replace").splitlines()
            shown += [f"--- {path}", *text[-lines:]]
        return "\n".join(shown)


class Server(Process):
    """A server of somebody else: ended by SIGTERM, with whatever status."""

    def stop(self, seconds=30.0):
        self.child.terminate()
        self.wait(seconds)


class Up(Process):
    """`lakebeat up` on ports and in a folder of its own; the lake may be elsewhere by settings (`env`)."""

    def __init__(self, folder, *args, data_dir=None, lake=None, brokers=None, topic=TOPIC, **options):
        self.data_dir, self.topic = Path(data_dir or Path(folder) / "data"), topic
        self.ports = free_doors()
        self.lake = Path(lake) if lake else self.data_dir / "lake"
        self.brokers = brokers or f"127.0.0.1:{self.ports[KAFKA]}"
        flags = door_flags(self.ports)
        if lake:
            flags += ["--lake", f"file://{lake}"]
        if brokers:
            flags += ["--brokers", brokers]
        if topic != TOPIC:
            flags += ["--topic", topic]
        super().__init__("up", "--data-dir", self.data_dir, *flags, *args, cwd=folder, **options)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.ports[CONSOLE]}"

    def get(self, path):
        """The status and the body of a page of the console."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def start(self):
        """Starts it, and waits until its console answers and events can be sent."""
        super().start()
        wait_for("up answers", lambda: self.get("/healthz")[0] == 200, seconds=30, alive=self)
        wait_for("the topic is there", lambda: self.topic in topics(self.brokers), seconds=30, alive=self)
        return self

    def wait_ready(self, seconds=60):
        """Waits until there is a publication to serve."""
        wait_for("up is ready", lambda: self.get("/readyz")[0] == 200, seconds=seconds, alive=self)

    def command(self, *args, **options):
        """Runs another command on the same lake."""
        lake = ["--lake", f"file://{self.lake}"] if self.lake != self.data_dir / "lake" else []
        return run(*args, "--data-dir", self.data_dir, *lake, cwd=self.cwd, **{"env": self.env} | options)

    def query(self, sql):
        ended = self.command("sql", sql, "--json")
        assert ended.status == 0, ended
        return ended.json
