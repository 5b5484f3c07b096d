"""What goes wrong around a group of consumers while it is being killed: broker and store stop, die and stall; a member stalls
for longer than its session, and comes back as an owner of partitions that are no longer its own."""

import contextlib
import functools
import random
import signal
import threading
import time
from collections import Counter

BROKER_STOPPED, BROKER_KILLED, BROKER_PAUSED = "broker stopped", "broker killed", "broker paused"
STORE_STOPPED, STORE_KILLED, STORE_PAUSED = "MinIO stopped", "MinIO killed", "MinIO paused"
MEMBER_PAUSED = "member of the group paused"
ALL = (BROKER_STOPPED, BROKER_KILLED, BROKER_PAUSED, STORE_STOPPED, STORE_KILLED, STORE_PAUSED, MEMBER_PAUSED)

# Seconds from, to.
QUIET = (2, 12)
AWAY = (0.2, 4)
# So long may a server take to come back: a busy machine is no fault of anybody.
PATIENCE = 300
# Longer and shorter than the session of a member.
PAUSED = (0.2, 6)


class Faults(threading.Thread):
    """One fault after the other, at random moments, until it is told to end; the last one is always mended."""

    def __init__(self, seed, kafka, minio, members, say):
        super().__init__(name="faults", daemon=True)
        self._chance = random.Random(f"faults {seed}")
        self._kafka, self._minio, self._members, self._say = kafka, minio, members, say
        self._ending = threading.Event()
        # What is wrong at this moment, if anything is, and the how manieth fault that is.
        self.present, self.number = None, 0
        self.done = Counter()
        self.failure = None

    def run(self):
        try:
            while True:
                # Each of them equally often, in an order that changes.
                for fault in self._chance.sample(ALL, len(ALL)):
                    if self._ending.wait(self._chance.uniform(*QUIET)):
                        return
                    self.present, self.number = fault, self.number + 1
                    self._cause(fault)
                    self.present = None
                    self.done[fault] += 1
        except BaseException as failure:  # noqa: BLE001: whoever waits for this thread raises it again
            self.failure = failure

    def check(self):
        """A fault that could not be mended ends the run."""
        if self.failure is not None:
            raise AssertionError("a server did not come back") from self.failure

    def finish(self):
        """No further fault; returns once the present one is mended."""
        self._ending.set()
        self.join()
        self.check()

    def _cause(self, fault):
        away, paused = self._chance.uniform(*AWAY), self._chance.uniform(*PAUSED)
        member = self._chance.choice(self._members)
        self._say(f"{fault}, {paused if 'paused' in fault else away:.1f} s")
        match fault:
            case "broker stopped" | "MinIO stopped":
                self._restart(self._server(fault), functools.partial(self._server(fault).stop, PATIENCE), away)
            case "broker killed" | "MinIO killed":
                self._restart(self._server(fault), self._server(fault).kill, away)
            case "broker paused" | "MinIO paused":
                pause(self._server(fault).child, paused)
            case "member of the group paused":
                pause(member.child, paused)

    def _server(self, fault):
        return self._kafka if fault.startswith("broker") else self._minio

    def _restart(self, server, end, seconds):
        end()
        # What an outage is: time in which nothing answers.
        time.sleep(seconds)
        server.start(seconds=PATIENCE)


def pause(child, seconds):
    """Stops a process in the middle of what it does, and lets it go on. It may be killed meanwhile."""
    child.send_signal(signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGCONT)
