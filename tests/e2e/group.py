"""Several `ingest` processes of one consumer group that write one lake: what kills them at random needs."""

from program import Process

# The partitions of a member that was killed rest until its session ends: by default too long for many kills. The broker
# has to allow so short a session: `SHORT_SESSIONS` is a line of its settings.
SESSION = """\
[kafka.properties]
"session.timeout.ms" = "1000"
"heartbeat.interval.ms" = "200"
"""
SHORT_SESSIONS = "group.min.session.timeout.ms=1000"


class Consumer(Process):
    """One member; `place` names the topic, the group and the bucket, and `settings` are more lines of its lakebeat.toml."""

    def __init__(self, number, folder, kafka, minio, place, settings=""):
        folder = folder / f"consumer-{number}"
        folder.mkdir()
        (folder / "lakebeat.toml").write_text(SESSION + settings)
        super().__init__(
            "ingest", "--brokers", kafka.address, "--topic", place, "--group", place, cwd=folder,
            env=minio.environment(place), name=f"consumer-{number}",
        )  # fmt: skip
