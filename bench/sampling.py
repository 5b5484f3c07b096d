"""Where the processor time of a command goes, by Linux's perf: shares of a few parts that together are all of it."""

import shutil
import subprocess

from program import environment

# Threads by the beginning of their names: librdkafka's own, and the one of ours that polls it.
KAFKA_THREADS = ("rdk:", "ingest-poll")
# What a function belongs to, by a piece of its name; the first piece that fits counts.
PIECES = (
    ("Parquet: compression", ("ZSTD_", "HUF_", "HIST_", "FSE_", "zstd")),
    ("JSON to columns", ("serde_json", "ingest::decode", "memchr::", "from_utf8", "arrow_array::builder", "arrow_json")),
    ("Parquet: encoding", ("parquet::", "ahash", "hashbrown", "arrow_")),
    ("librdkafka", ("rd_kafka", "rdkafka")),
    ("ingest besides", ("ingest::", "lakehouse::")),
    ("memory: copying, comparing", ("memmove", "memcpy", "memcmp", "memset")),
    ("memory: allocating", ("malloc", "calloc", "realloc", "free", "unlink_chunk")),
)
REST = "all else"
KERNEL = "kernel: network, files, memory"
POLLING = "librdkafka and the thread that polls it"


def part_of(thread, symbol):
    """The part that a function on a thread belongs to. `symbol` is as perf prints it: [k] or [.] and a name."""
    if symbol.startswith("[k]"):
        return KERNEL
    if thread.startswith(KAFKA_THREADS):
        return POLLING
    for part, pieces in PIECES:
        if any(piece in symbol for piece in pieces):
            return part
    return REST


def profiled(command, cwd, cores, **settings):
    """Runs a command under perf; returns each part's share of the processor time, the largest first. None without perf."""
    if not shutil.which("perf"):
        return None
    data = cwd / "perf.data"
    record = ["taskset", "-c", cores, "perf", "record", "--quiet", "-e", "cpu-clock", "-F", "999", "-o", data, "--", *command]
    subprocess.run(
        [str(part) for part in record], cwd=cwd, env=environment(**settings), check=True, capture_output=True
    )
    report = ["perf", "report", "-i", str(data), "--stdio", "--quiet", "--sort", "comm,sym", "-F", "overhead,comm,sym"]
    lines = subprocess.run([*report, "--no-children", "-t", "\t"], check=True, capture_output=True, text=True).stdout.splitlines()
    shares = {}
    for line in lines:
        columns = [column.strip() for column in line.split("\t")]
        if len(columns) < 3 or not columns[0].endswith("%"):
            continue
        part = part_of(columns[1], columns[2])
        shares[part] = shares.get(part, 0.0) + float(columns[0].rstrip("%"))
    return dict(sorted(shares.items(), key=lambda share: -share[1]))
