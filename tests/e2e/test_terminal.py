"""What a person sees of `up` on a terminal: one live line, and log lines that do not run into it."""

import os
import pty
import re
import select
import signal
import subprocess
import time

import pytest

from program import BINARY, DOORS, environment, free_ports


@pytest.fixture
def terminal(tmp_path):
    """`up` with a terminal for its output, and the end of that terminal that a person looks at."""
    ours, theirs = pty.openpty()
    flags = [flag for door, port in zip(DOORS, free_ports(len(DOORS))) for flag in (f"--{door}-port", str(port))]
    child = subprocess.Popen(
        [BINARY, "up", *flags], cwd=tmp_path, env=environment(), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    yield child, ours
    child.kill()
    child.wait(10)
    os.close(ours)


def read_until(screen, found, seconds):
    """What was printed, to where `found` holds of it."""
    printed, deadline = b"", time.monotonic() + seconds
    while not found(printed):
        assert time.monotonic() < deadline, printed[-2000:]
        if select.select([screen], [], [], 0.2)[0]:
            try:
                printed += os.read(screen, 65536)
            except OSError:  # the program has ended and its terminal with it
                break
    return printed


def test_the_live_line_and_the_log_keep_apart(terminal):
    child, screen = terminal
    shown = rb"\d+ events/s . \d+ events . lag \d+ . \d+ dead letters . newest gold #\d+, \d+ s ago"
    shown = shown.replace(b" . ", " · ".encode())
    printed = read_until(screen, lambda printed: len(re.findall(shown, printed)) >= 3, seconds=60)
    child.send_signal(signal.SIGINT)
    printed += read_until(screen, lambda _: False, seconds=10)
    assert child.wait(5) == 0
    live_lines = re.findall(rb"[^\r\n]*" + shown, printed)
    assert all(line.startswith(b"\x1b[2K") for line in live_lines), live_lines
    log_lines = re.findall(rb"[^\r\n]*INFO[^\r\n]*", printed)
    assert any(b"draining" in line for line in log_lines), printed
    # Each begins on a line of its own, and wipes what stood there.
    assert all(line.startswith(b"\x1b[2K") for line in log_lines), log_lines
    assert not printed.rstrip(b"\r\n").endswith(b"s ago"), "the live line is left behind"
