"""What a lake must hold after a run, from the messages alone, and what it does hold, as other engines read it."""

from collections import Counter
from dataclasses import dataclass

from expected import decoded
from lake import difference


@dataclass(frozen=True)
class Found:
    """The tables against the messages. `problems` says what is wrong in words; empty if nothing is."""

    rows: int
    letters: int
    # Events of the producer's log that the lake has not, or has too few times.
    missing: int
    # Events that the lake has more often than the topic.
    doubled: int
    # Messages that the topic and the lake have and the log has not: stored, but their confirmation was lost.
    unconfirmed: int
    problems: str


def compare(lake, log, messages):
    """Compares the lake with what the producer logged, and with what lies in the topic: by event, and place by place."""
    rows = lake.frame("bronze.spotify_events", ["_partition", "_offset", "event_id"]).rows()
    letters = lake.frame("bronze.dead_letters", ["partition", "offset", "payload", "reason"]).rows()

    logged, stored = _events(log), _events(messages)
    present = Counter(_event(event_id) for _, _, event_id in rows) + Counter(payload for _, _, payload, _ in letters)

    expected_rows, expected_letters = Counter(), Counter()
    for message in messages:
        fields = decoded(message.payload)
        if isinstance(fields, str):
            expected_letters[(*message.place, message.payload, fields)] += 1
        else:
            expected_rows[(*message.place, fields["event_id"])] += 1
    problems = [
        difference("bronze against the topic", expected_rows, Counter(rows)),
        difference("dead letters against the topic", expected_letters, Counter(letters)),
        difference("events against the topic", stored, present),
    ]
    return Found(
        rows=len(rows),
        letters=len(letters),
        missing=(logged - present).total(),
        doubled=(present - stored).total(),
        unconfirmed=(stored - logged).total(),
        problems="\n".join(problem for problem in problems if problem),
    )


def _events(messages):
    """How often each event was sent. What has no event id is told by its bytes."""
    found = Counter()
    for message in messages:
        fields = decoded(message.payload)
        found[message.payload if isinstance(fields, str) else _event(fields["event_id"])] += 1
    return found


def _event(event_id):
    return "event", event_id
