"""Apache Spark with Delta's own implementation, from its jars (scripts/setup-spark.sh): one small process that PySpark talks to."""

import sys

from pyspark.sql import SparkSession

from program import CACHE, Server, free_ports
from waiting import wait_for

JARS = CACHE / "spark"

# What Spark's own launcher opens to it of Java's inside.
_OPEN = (
    "java.lang", "java.lang.invoke", "java.lang.reflect", "java.io", "java.net", "java.nio", "java.util",
    "java.util.concurrent", "java.util.concurrent.atomic", "jdk.internal.ref", "sun.nio.ch", "sun.nio.cs",
    "sun.security.action", "sun.util.calendar",
)  # fmt: skip


class SparkServer(Server):
    """Two threads, no page, nothing fetched. `session` is there once it has been started."""

    def __init__(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self.session = None
        (port,) = free_ports(1)
        self.address = f"sc://127.0.0.1:{port}"
        settings = {
            "spark.master": "local[2]",
            "spark.app.name": "engines",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
            "spark.connect.grpc.binding.address": "127.0.0.1",
            "spark.connect.grpc.binding.port": port,
            "spark.ui.enabled": "false",
            "spark.local.dir": folder / "local",
            "spark.sql.warehouse.dir": folder / "warehouse",
            "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
            "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
            "spark.sql.session.timeZone": "UTC",
            # By default as many tasks as a cluster would have.
            "spark.sql.shuffle.partitions": "2",
            "spark.databricks.delta.snapshotPartitions": "2",
        }
        flags = ["-Xmx1g", "--add-modules=jdk.incubator.vector", "-Dio.netty.tryReflectionSetAccessible=true"]
        flags += [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPEN]
        flags += [f"-D{name}={value}" for name, value in settings.items()]
        main = "org.apache.spark.sql.connect.service.SparkConnectServer"
        super().__init__(*flags, "-cp", f"{JARS}/libs/*", main, cwd=folder, binary="java", name="spark")

    def start(self):
        super().start()
        wait_for("Spark answers", self._connected, seconds=120, alive=self)
        return self

    def _connected(self):
        # In a process that has no main file, as those of pytest-xdist, the client takes itself for one that is tested, looks for
        # all of Spark, and ends the process.
        main = sys.modules["__main__"]
        main.__file__ = getattr(main, "__file__", __file__)
        self.session = SparkSession.builder.remote(self.address).create()
        return self.session.range(1).count() == 1

    def end(self):
        if self.session is not None and self.exit_status() is None:
            self.session.stop()
        super().end()
