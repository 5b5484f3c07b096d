"""Care of tables by hand, and what the audit says of a lake that is damaged."""

import json

import pytest
from program import Up, check_refused
from waiting import wait_for

BRONZE = "bronze.spotify_events"
SONGS = "gold.top_songs"


@pytest.fixture
def busy(tmp_path, ended_later):
    """A pipeline that has published some times."""
    up = ended_later(Up(tmp_path, "--rate", "100")).start()
    wait_for("some publications", lambda: len(ok(up, "publication", "ls", "--json").json) > 5, seconds=60, alive=up)
    return up


def ok(up, *args):
    """Runs a command on its lake that has to succeed."""
    ended = up.command(*args)
    assert ended.status == 0, ended
    return ended


def rows(up, table):
    return up.query(f"select count(*) as rows from {table}")[0]["rows"]


def folder_of(up, table):
    return up.lake.joinpath(*table.split("."))


def test_a_table_is_put_together_put_back_and_cleaned(busy):
    """Beside a pipeline that runs; then, when it is stopped, back and forth again."""
    ended = ok(busy, "table", "compact", BRONZE, "--json")
    assert ended.json["removed"] > ended.json["added"] > 0, ended
    check_refused(busy.command("table", "restore", BRONZE, "--version", "1", "--yes"), 2, BRONZE, "stop it first")
    busy.stop()

    everything = rows(busy, BRONZE)
    history = ok(busy, "table", "history", BRONZE, "--limit", "1000", "--json").json
    half = next(commit for commit in history if commit["rows_added"] and commit["version"] < history[0]["version"] / 2)
    version = str(half["version"])
    ledger = {entry: at for entry, at in half["ledger"].items() if entry.startswith("ingest/")}
    ended = busy.command("table", "restore", BRONZE, "--version", version)
    assert ended.status == 2 and "--yes" in ended.err and "--dry-run" in ended.err, ended
    check_refused(busy.command("table", "restore", BRONZE, "--version", "999999", "--yes"), 2, "999999")
    planned = ok(busy, "table", "restore", BRONZE, "--version", version, "--dry-run", "--json").json
    assert planned["goes"]["rows"] > 0, planned
    assert rows(busy, BRONZE) == everything
    ok(busy, "table", "restore", BRONZE, "--version", version, "--yes")
    newest = ok(busy, "table", "history", BRONZE, "--limit", "1", "--json").json[0]
    assert newest["operation"] == "RESTORE"
    assert ledger.items() <= newest["ledger"].items()
    assert rows(busy, BRONZE) < everything
    ok(busy, "verify")

    # The models follow what is there, and what came after it is read again, once.
    ok(busy, "transform", "build")
    busy.start()
    wait_for("all of it again", lambda: rows(busy, BRONZE) >= everything, seconds=60, alive=busy)
    busy.stop()
    ok(busy, "verify")

    planned = ok(busy, "table", "vacuum", SONGS, "--dry-run", "--json").json
    assert planned["kept"]["files"] > 0 and planned["untracked"]["files"] == 0, planned
    ok(busy, "table", "vacuum", SONGS, "--yes")
    ok(busy, "verify")


def check_found(up, table, *words):
    """The audit says so."""
    ended = up.command("verify")
    assert ended.status == 1, ended
    told = [line for line in ended.out.splitlines() if line.startswith(f"FAULT {table}") and all(word in line for word in words)]
    assert told, ended


def test_the_audit_names_what_is_damaged(busy):
    busy.stop()
    assert "are whole" in ok(busy, "verify").out
    newest = max(folder_of(busy, SONGS).glob("*.parquet"), key=lambda path: path.stat().st_mtime)
    whole = newest.read_bytes()
    for damage, words in (
        (lambda: newest.write_bytes(whole[: len(whole) // 2]), (newest.name, "bytes, but")),
        (lambda: newest.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:]), (newest.name, "checksum differs")),
        (newest.unlink, (newest.name, "is gone")),
    ):
        damage()
        check_found(busy, SONGS, *words)
        newest.write_bytes(whole)
    entry = folder_of(busy, BRONZE) / "_delta_log" / f"{2:020}.json"
    text = entry.read_text()
    entry.unlink()
    check_found(busy, BRONZE, "log entries 2 to 2 are gone")
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        if "add" in line:
            stats = json.loads(line["add"]["stats"])
            stats["maxValues"]["_offset"] = -1
            line["add"]["stats"] = json.dumps(stats)
    entry.write_text("".join(json.dumps(line) + "\n" for line in lines))
    check_found(busy, BRONZE, "greatest _offset, but the log says -1")
    entry.write_text(text)
    ok(busy, "verify")
