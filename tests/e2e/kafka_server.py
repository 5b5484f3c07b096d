"""A real Apache Kafka from its jars (scripts/setup-kafka.sh), one node: for the tests and for the bench."""

import subprocess

from program import CACHE, REPOSITORY, Server, environment, free_ports, topics
from waiting import wait_for

JARS = CACHE / "kafka"


class KafkaServer(Server):
    """Its data lies in a folder, and is there again after a stop and a start. `extra` are lines of its settings, `scram` the
    logins that it is made with, as its tool takes them."""

    def __init__(self, folder, jars=JARS, extra=(), scram=()):
        folder.mkdir(parents=True, exist_ok=True)
        self.scram = [part for login in scram for part in ("--add-scram", login)]
        self.port, controller = free_ports(2)
        self.address = f"127.0.0.1:{self.port}"
        self.data = folder / "data"
        settings = "\n".join([(REPOSITORY / "scripts" / "kafka" / "server.properties").read_text(), *extra])
        for name, value in {"PORT": self.port, "CONTROLLER": controller, "DATA": self.data}.items():
            settings = settings.replace(f"@{name}@", str(value))
        self.settings = folder / "server.properties"
        self.settings.write_text(settings)
        self.java = ["-Xmx512m", "-cp", f"{jars}/libs/*"]
        super().__init__(*self.java, "kafka.Kafka", self.settings, cwd=folder, binary="java", name="kafka")

    def start(self, seconds=60):
        """Starts it, and waits until it answers."""
        if not (self.data / "meta.properties").exists():
            # Any 16 bytes in base64 are an id.
            tool = ["kafka.tools.StorageTool", "format", "-t", "bGFrZWJlYXQncyB0ZXN0cw"]
            subprocess.run(
                ["java", *self.java, *tool, "-c", self.settings, *self.scram],
                check=True, capture_output=True, env=environment(),
            )  # fmt: skip
        super().start()
        wait_for("Kafka answers", lambda: topics(self.address) is not None, seconds=seconds, alive=self)
        return self
