"""Bounded waiting for a condition. No test sleeps in the hope that something has happened meanwhile."""

import time


class TimedOut(AssertionError):
    """What was waited for did not happen."""


def wait_for(what, condition, seconds=60.0, every=0.1, alive=None):
    """Asks `condition` until it answers something true, and returns that.

    An exception of `condition` counts as "not yet" and is shown if time runs out. `alive` is a process that must not end
    meanwhile.
    """
    deadline = time.monotonic() + seconds
    last = None
    while True:
        try:
            last = condition()
            if last:
                return last
        except Exception as error:  # whatever a client library raises while a server is not there yet
            last = error
        if alive is not None and alive.exit_status() is not None:
            raise TimedOut(f"{what}: the process ended with status {alive.exit_status()}\n{alive.tail()}")
        if time.monotonic() > deadline:
            raise TimedOut(f"{what}: not within {seconds} s; last answer: {last!r}")
        time.sleep(every)
