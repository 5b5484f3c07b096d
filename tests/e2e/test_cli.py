"""Bad input and faults: one clear error that names the thing and the remedy, the right exit status, nothing lost."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from lake import Lake, wait_settled
from messages import in_topic, kept, logged, produced, simulate
from program import (
    BINARY, CONSOLE, DOORS, FLIGHT, REPOSITORY, TOPIC, Process, Up, check_refused, door_flags, free_doors, free_ports, run,
)  # fmt: skip
from waiting import wait_for

DONE, FAULT, WRONG, UNREACHABLE = 0, 1, 2, 3
PROJECT = REPOSITORY / "transforms" / "models"


# Usage and configuration: status 2.


@pytest.mark.parametrize("door", DOORS)
def test_a_taken_port_names_the_flag(tmp_path, door):
    up = Up(tmp_path, "--no-simulate")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", up.ports[door]))
        taken.listen()
        check_refused(run(*up.args, cwd=tmp_path), WRONG, f"--{door}-port", up.ports[door])


def test_two_doors_on_one_port(tmp_path):
    up = Up(tmp_path, "--no-simulate")
    flight, console = (str(up.ports[door]) for door in (FLIGHT, CONSOLE))
    args = [flight if arg == console else arg for arg in up.args]
    check_refused(run(*args, cwd=tmp_path), WRONG, flight)


@pytest.mark.parametrize("command", ["up", "broker", "serve"])
def test_other_machines_are_kept_out(tmp_path, command):
    ports = free_doors()
    doors = {"up": DOORS, "broker": DOORS[:1], "serve": DOORS[1:]}[command]
    flags = [part for door in doors for part in (f"--{door}-port", ports[door])]
    ended = run(command, *flags, cwd=tmp_path, env={"LAKEBEAT_LISTEN": "0.0.0.0"}, timeout=20)
    check_refused(ended, WRONG, "0.0.0.0", "--insecure")
    assert not list(tmp_path.iterdir()), "it has begun"


def test_a_folder_that_cannot_be_written():
    """As an ordinary user: root may write everywhere."""
    if os.getuid() != 0:
        prefix, binary = (), BINARY
    else:
        prefix = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    # pytest's own folders are closed to other users.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        closed = folder / "closed"
        closed.mkdir(mode=0o555)
        if prefix:
            binary = shutil.copy(BINARY, folder / "lakebeat")
        for args in (("sql", "select 1"), ("broker", "--kafka-port", *free_ports(1)), ("up", "--no-simulate")):
            ended = run(*args, "--data-dir", closed / "data", cwd="/", prefix=prefix, binary=binary)
            check_refused(ended, WRONG, closed)
        assert list(closed.iterdir()) == []


def test_an_unknown_setting_names_the_nearest(tmp_path):
    (tmp_path / "lakebeat.toml").write_text('data_dri = "elsewhere"\n')
    check_refused(run("table", "ls", cwd=tmp_path), WRONG, "lakebeat.toml", "data_dri", "data_dir")


def test_a_settings_file_that_is_none(tmp_path):
    (tmp_path / "lakebeat.toml").write_text("data_dir = \n")
    check_refused(run("table", "ls", cwd=tmp_path), WRONG, "lakebeat.toml", "line 1")
    check_refused(run("table", "ls", "--config", "missing.toml", cwd=tmp_path), WRONG, "missing.toml")


def test_an_unknown_variable_names_the_nearest(tmp_path):
    ended = run("table", "ls", cwd=tmp_path, env={"LAKEBEAT_DATA_DRI": "elsewhere"})
    check_refused(ended, WRONG, "LAKEBEAT_DATA_DRI", "LAKEBEAT_DATA_DIR")


def test_settings_in_their_order(tmp_path):
    """Flag before environment before .env before lakebeat.toml: whose folder is made tells who won."""

    def made(*args, **env):
        ended = run("table", "ls", *args, cwd=tmp_path, env=env)
        assert ended.status == DONE, ended
        folders = [folder for folder in tmp_path.iterdir() if folder.is_dir()]
        for folder in folders:
            shutil.rmtree(folder)
        return [folder.name for folder in folders]

    assert made() == ["lakebeat-data"]
    (tmp_path / "lakebeat.toml").write_text('data_dir = "by-file"\n')
    assert made() == ["by-file"]
    (tmp_path / ".env").write_text("LAKEBEAT_DATA_DIR=by-dotenv\nSOMEBODY_ELSES=1\n")
    assert made() == ["by-dotenv"]
    assert made(LAKEBEAT_DATA_DIR="by-environment") == ["by-environment"]
    assert made("--data-dir", "by-flag", LAKEBEAT_DATA_DIR="by-environment") == ["by-flag"]


@pytest.mark.parametrize(
    "args",
    [
        ("no-such-command",),
        ("sql",),
        ("up", "--rate", "many"),
        ("up", "--kafka-port", "70000"),
        ("simulate", "--brokers", "127.0.0.1:1", "--dirty", "2"),
        ("table", "history", "not.a.table.name"),
        ("table", "ls", "--lake", "ftp://somewhere/lake"),
    ],
    ids=" ".join,
)
def test_wrong_usage(tmp_path, args):
    check_refused(run(*args, cwd=tmp_path), WRONG)


def test_a_lake_of_a_newer_version(up, tmp_path, seed):
    simulate(up.brokers, tmp_path, 100, seed)
    up.wait_ready()
    up.stop()
    mark = up.lake / "_lakebeat.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"format": 99, "written_by": "lakebeat 9.9.9"}))
    before = sorted(path for path in up.lake.rglob("*"))
    for args in (("sql", "select 1"), ("verify",), ("table", "ls")):
        check_refused(up.command(*args), WRONG, "99", "lakebeat 9.9.9")
    check_refused(run(*up.args, cwd=tmp_path), WRONG, "99", "lakebeat 9.9.9")
    assert sorted(path for path in up.lake.rglob("*")) == before


# What is needed cannot be reached: status 3.


@pytest.mark.parametrize(
    "args",
    [
        ("simulate", "--count", "1"),
        ("ingest", "--until-end"),
        ("up", "--no-simulate"),
    ],
    ids=lambda args: args[0],
)
def test_a_broker_that_cannot_be_reached(tmp_path, args):
    port, *doors = free_ports(4)
    if args[0] == "up":
        args = (*args, "--flight-port", doors[0], "--postgres-port", doors[1], "--console-port", doors[2])
    ended = run(*args, "--brokers", f"127.0.0.1:{port}", cwd=tmp_path, timeout=60)
    check_refused(ended, UNREACHABLE, f"127.0.0.1:{port}")


# The work itself finds a fault: status 1.


def test_a_statement_with_an_error(tmp_path):
    check_refused(run("sql", "selec 1", cwd=tmp_path), FAULT, "selec")
    check_refused(run("sql", "select * from no_such_table", cwd=tmp_path), FAULT, "no_such_table")
    check_refused(run("sql", "drop table gold.top_songs", cwd=tmp_path), FAULT)


def test_results_for_programs(tmp_path):
    sql = "select 1 as one, 'a,b' as text, cast(null as int) as nothing"
    assert run("sql", sql, "--json", cwd=tmp_path).json == [{"one": 1, "text": "a,b", "nothing": None}]
    assert run("sql", sql, "--csv", cwd=tmp_path).out == 'one,text,nothing\n1,"a,b",\n'
    assert run("sql", "select 1 as one where false", "--json", cwd=tmp_path).json == []


def test_a_model_with_an_error_leaves_the_last_publication(up, tmp_path, seed):
    log, _ = simulate(up.brokers, tmp_path, 500, seed)
    wait_settled(Lake(up.lake), produced(up.brokers, log), alive=up)
    up.stop()
    project = tmp_path / "project"
    shutil.copytree(PROJECT, project)
    model = next(project.rglob("top_songs.sql"))
    model.write_text(model.read_text().replace("total_plays", "total_plays, no_such_column as wrong", 1))

    published = up.command("publication", "ls", "--json").json
    songs = up.query("select * from top_songs order by song_id")
    assert published and songs
    ended = up.command("transform", "build", "--project", project, "--json")
    assert ended.status == FAULT, ended
    assert "top_songs" in ended.out + ended.err and "no_such_column" in ended.out + ended.err, ended

    assert up.command("publication", "ls", "--json").json[0] == published[0]
    assert up.query("select * from top_songs order by song_id") == songs
    # The project as it was: nothing is left in the way.
    ended = up.command("transform", "build", "--json")
    assert ended.status == DONE, ended


def test_a_running_up_survives_a_broken_model(tmp_path, seed, ended_later):
    """`up` on a project with one broken model: what does not depend on it goes on, and nothing ends."""
    project = tmp_path / "project"
    shutil.copytree(PROJECT, project)
    model = next(project.rglob("top_songs.sql"))
    model.write_text("select no_such_column from {{ ref('spotify_silver') }}\n")
    up = ended_later(Up(tmp_path, "--no-simulate", "--project", project)).start()
    simulate(up.brokers, tmp_path, 300, seed, dirty=0)
    lake = Lake(up.lake)
    wait_for("ingest goes on", lambda: lake.counts() == (300, 0), alive=up)
    wait_for("it says so", lambda: "no_such_column" in up.out() + up.err(), alive=up)
    assert up.get("/healthz")[0] == 200
    up.stop()


def test_verify_finds_what_was_tampered_with(up, tmp_path, seed):
    """The ledger says more than the rows: `verify` ends with 1. A check that cannot fail would be none."""
    simulate(up.brokers, tmp_path, 500, seed)
    lake = Lake(up.lake)
    wait_for("all is in", lambda: sum(lake.counts()) == 500, alive=up)
    up.stop()
    assert up.command("verify", "--json").status == DONE
    log = lake.path("bronze.spotify_events") / "_delta_log"
    commit = max(path for path in log.glob("*.json") if '"txn"' in path.read_text())
    right = move_ledger(commit)
    assert right

    ended = up.command("verify", "--json")
    assert ended.status == FAULT, ended
    assert f"the lake is not whole: {len(right)} faults" in ended.err, ended
    faults = {fault["partition"]: fault for fault in ended.json["faults"]}
    assert len(ended.json["faults"]) == len(right) and faults.keys() == right.keys(), ended
    for partition, offset in right.items():
        said = rf"the ledger stands at \D*{offset + 1}\D*, but the last range ends at {offset}"
        assert faults[partition]["table"] == "bronze.spotify_events", ended
        assert re.fullmatch(said, faults[partition]["what"]), ended

    ended = up.command("verify")
    assert ended.status == FAULT, ended
    for partition, fault in faults.items():
        assert f"FAULT bronze.spotify_events partition {partition}: {fault['what']}\n" in ended.out, ended


def move_ledger(commit):
    """Makes the ledger of a commit say one offset more for each of its partitions. Returns what was right, by partition."""
    lines = [json.loads(line) for line in commit.read_text().splitlines()]
    right = {}
    entries = (line["txn"] for line in lines if "txn" in line)
    for entry in (entry for entry in entries if entry["appId"].startswith("ingest/")):
        right[int(entry["appId"].rpartition("/")[2])] = entry["version"]
        entry["version"] += 1
    commit.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return right


# Ends and starts.


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_it_ends_in_time_and_goes_on_where_it_stopped(tmp_path, ended_later, with_signal):
    up = ended_later(Up(tmp_path, "--rate", "200")).start()
    lake = Lake(up.lake)
    wait_for("events come in", lambda: lake.counts()[0] > 300, alive=up)
    took = up.stop(with_signal, seconds=5)
    print(f"ended in {took:.2f} s")
    before = lake.counts()[0]

    up.start()
    wait_for("it goes on", lambda: lake.counts()[0] > before + 100, alive=up)
    up.wait_ready()
    up.stop(with_signal, seconds=5)

    # Nobody produces any more, so the topic has an end that the lake can come to.
    quiet = ended_later(Up(tmp_path, "--no-simulate")).start()
    messages = in_topic(quiet.brokers)
    assert len(messages) > before + 100
    # The simulator's events are clean, so no two are alike: neither end made it or the broker say one twice.
    assert len({message.payload for message in messages}) == len(messages)
    wait_settled(lake, messages, alive=quiet)
    assert lake.counts() == (len(messages), 0)
    quiet.stop(with_signal, seconds=5)
    ended = quiet.command("verify", "--json")
    assert ended.status == DONE, ended


def test_stopped_at_once_after_the_start(tmp_path, ended_later):
    up = ended_later(Up(tmp_path, "--no-simulate"))
    Process.start(up)
    wait_for("it has begun", lambda: up.data_dir.exists(), every=0.01, alive=up)
    up.child.send_signal(signal.SIGTERM)
    up.wait(5)
    up.start()
    up.stop()


@pytest.mark.parametrize("args", [("up", "--no-simulate"), ("ingest",)], ids=lambda args: args[0])
def test_stopped_while_it_waits_for_a_broker(tmp_path, ended_later, args):
    port, *doors = free_ports(4)
    if args[0] == "up":
        args = (*args, "--flight-port", doors[0], "--postgres-port", doors[1], "--console-port", doors[2])
    process = ended_later(Process(*args, "--brokers", f"127.0.0.1:{port}", "--data-dir", "data", cwd=tmp_path)).start()
    wait_for("it has opened its lake", lambda: (tmp_path / "data" / "lake").exists(), every=0.01, alive=process)
    process.stop(seconds=5)


def test_a_second_up_on_the_same_folder_is_refused(up, tmp_path):
    """Two brokers on one file would harm each other."""
    second = Up(tmp_path, "--no-simulate")
    assert second.data_dir == up.data_dir
    check_refused(run(*second.args, cwd=tmp_path), WRONG, up.data_dir)
    assert up.exit_status() is None


@pytest.mark.parametrize("command", ["up", "broker", "serve"])
def test_a_process_without_work_ends_in_time(tmp_path, ended_later, command):
    if command == "up":
        process = ended_later(Up(tmp_path, "--no-simulate")).start()
    else:
        ports = free_doors()
        doors = DOORS[:1] if command == "broker" else DOORS[1:]
        flags = door_flags({door: ports[door] for door in doors})
        process = ended_later(Process(command, *flags, "--data-dir", tmp_path / "data", cwd=tmp_path)).start()
        for door in doors:
            wait_for(f"{door} listens", lambda port=ports[door]: listens(port), seconds=30, alive=process)
    process.stop(seconds=5)


def listens(port):
    with socket.create_connection(("127.0.0.1", port), timeout=2):
        return True


# A full disk.


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few megabytes, and a file on it that can be removed to make space."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk, but):
    """Takes all space but so many bytes."""
    space = os.statvfs(disk)
    with open(disk / "ballast", "wb") as ballast:
        ballast.write(bytes(max(0, space.f_bavail * space.f_bsize - but)))


def test_a_full_disk_under_the_lake(tmp_path, small_disk, seed, ended_later):
    up = ended_later(Up(tmp_path, "--no-simulate", lake=small_disk / "lake")).start()
    log, _ = simulate(up.brokers, tmp_path, 500, seed)
    lake = Lake(up.lake)
    wait_settled(lake, produced(up.brokers, log), alive=up)

    fill(small_disk, but=200_000)
    more, _ = simulate(up.brokers, tmp_path, 5_000, seed + 1)
    assert up.wait(60) == FAULT, up.tail()
    assert "space" in up.err().lower(), up.tail()
    assert "panicked" not in up.err()

    (small_disk / "ballast").unlink()
    up.start()
    wait_settled(lake, produced(up.brokers, log + more), alive=up)
    ended = up.command("verify", "--json")
    assert ended.status == DONE, ended


def test_a_full_disk_under_everything(small_disk, tmp_path, seed, ended_later):
    """The broker's file is on the full disk too: what it had confirmed is there afterwards."""
    up = ended_later(Up(tmp_path, "--no-simulate", data_dir=small_disk / "data")).start()
    log, _ = simulate(up.brokers, tmp_path, 500, seed)
    lake = Lake(up.lake)
    wait_settled(lake, produced(up.brokers, log), alive=up)

    fill(small_disk, but=1_000_000)
    path = tmp_path / "delivered.jsonl"
    producer = ended_later(
        Process(
            "simulate", "--brokers", up.brokers, "--topic", TOPIC, "--rate", 2_000, "--seed", seed + 1,
            "--log", path, cwd=tmp_path,
        )
    ).start()  # fmt: skip
    assert up.wait(90) == FAULT, up.tail()
    assert "space" in up.err().lower() or "full" in up.err().lower(), up.tail()
    producer.end()

    (small_disk / "ballast").unlink()
    up.start()
    # The producer was ended while its broker was gone, so it can't know what became of its last messages.
    wait_settled(lake, kept(up.brokers, log + logged(path)), alive=up)
    ended = up.command("verify", "--json")
    assert ended.status == DONE, ended


def test_a_disk_that_becomes_read_only_under_the_lake(tmp_path, small_disk, seed, ended_later):
    """As a kernel makes it after a fault of the disk."""
    up = ended_later(Up(tmp_path, "--no-simulate", lake=small_disk / "lake")).start()
    log, _ = simulate(up.brokers, tmp_path, 500, seed)
    lake = Lake(up.lake)
    wait_settled(lake, produced(up.brokers, log), alive=up)

    # While a file is open for writing the system refuses it.
    wait_for("it is read-only", lambda: remounted(small_disk, "ro"), alive=up)
    more, _ = simulate(up.brokers, tmp_path, 500, seed + 1)
    assert up.wait(60) == WRONG, up.tail()
    assert "read-only" in up.err().lower() and "--lake" in up.err() and "panicked" not in up.err(), up.tail()

    assert remounted(small_disk, "rw")
    up.start()
    wait_settled(lake, produced(up.brokers, log + more), alive=up)
    ended = up.command("verify", "--json")
    assert ended.status == DONE, ended


def remounted(disk, how):
    """Whether a file system could be mounted again so."""
    return subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], capture_output=True, check=False).returncode == 0
