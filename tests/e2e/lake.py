"""Tables as another engine sees them: file lists by the `deltalake` package, Parquet by Polars. Nothing of the program."""

import json
from collections import Counter
from pathlib import Path

import polars
from deltalake import DeltaTable

from expected import FIELDS, Tables
from waiting import TimedOut, wait_for

_BUSINESS = [*FIELDS[:-1], "timestamp_str"]
# What is compared of each table, in the order of the rows in `expected.Tables`.
_COLUMNS = {
    "bronze.spotify_events": ["_partition", "_offset", *_BUSINESS, "_rescued"],
    "bronze.dead_letters": ["partition", "offset", "payload", "reason"],
    "silver.spotify_silver": [*FIELDS[:-1], "event_timestamp", "event_date", "_partition", "_offset"],
    "gold.top_songs": ["song_id", "song_name", "artist_name", "total_plays", "total_skips"],
    "gold.user_engagement": [
        "user_id", "device_type", "country", "day", "plays", "pauses", "skips", "playlist_adds",
    ],
    "gold.listening_by_minute": [
        "minute", "song_id", "song_name", "artist_name", "device_type", "country", "event_type", "day", "events",
    ],
}  # fmt: skip


class Lake:
    """A lake in a folder, or with an `s3://` address and what its store wants to know."""

    def __init__(self, place, storage_options=None):
        self.place, self.storage_options = str(place), storage_options

    def path(self, table):
        """A table's folder, of a lake in a folder."""
        return Path(self.place).joinpath(*table.split("."))

    def frame(self, table, columns):
        """A table's columns at its newest version; no rows where there is no table yet."""
        address = "/".join([self.place, *table.split(".")])
        if not DeltaTable.is_deltatable(address, self.storage_options):
            return polars.DataFrame({column: [] for column in columns})
        return polars.read_delta(address, columns=columns, storage_options=self.storage_options)

    def rows(self, table):
        rows = self.frame(table, _COLUMNS[table]).rows()
        if table == "bronze.spotify_events":
            rows = [(*row[:-1], _normal_json(row[-1])) for row in rows]
        return Counter(rows)

    def counts(self):
        """How many rows are in bronze and in the dead letters."""
        bronze = self.frame("bronze.spotify_events", ["_offset"]).height
        return bronze, self.frame("bronze.dead_letters", ["offset"]).height

    def places(self):
        """The partition and offset of each row in bronze and of each dead letter."""
        bronze = self.frame("bronze.spotify_events", ["_partition", "_offset"]).rows()
        return bronze, self.frame("bronze.dead_letters", ["partition", "offset"]).rows()


def _normal_json(text):
    return None if text is None else json.dumps(json.loads(text), sort_keys=True)


def difference(name, expected, found):
    """What is missing and what is too much, in words; nothing if the two are equal."""
    missing, extra = expected - found, found - expected
    if not missing and not extra:
        return ""
    lines = [f"{name}: {expected.total()} rows expected, {found.total()} found"]
    lines += [f"  missing {count} × {row}" for row, count in list(missing.items())[:5]]
    lines += [f"  too much {count} × {row}" for row, count in list(extra.items())[:5]]
    return "\n".join(lines)


def check_accounted(lake, messages):
    """Each message is one row or one dead letter: none is missing, none is there twice, none was made up."""
    bronze, letters = lake.places()
    places = Counter(bronze) + Counter(letters)
    wrong = difference("bronze and dead letters", Counter(message.place for message in messages), places)
    assert not wrong, wrong
    offsets = {}
    for partition, offset in places:
        offsets.setdefault(partition, []).append(offset)
    for partition, found in offsets.items():
        assert sorted(found) == list(range(len(found))), f"partition {partition} has gaps"


def wait_accounted(lake, messages, seconds=60, alive=None):
    """Waits until as many rows and dead letters are there as there are messages."""
    wanted = len(messages)
    wait_for(
        f"{wanted} messages are rows or dead letters", lambda: sum(lake.counts()) >= wanted, seconds=seconds, alive=alive
    )


def wait_settled(lake, messages, seconds=60, alive=None):
    """Waits until every message is accounted for and every table is what a computation by hand makes of them."""
    wait_accounted(lake, messages, seconds=seconds, alive=alive)
    check_accounted(lake, messages)
    tables = Tables(messages).named()

    def differences():
        return [text for name, rows in tables.items() if (text := difference(name, rows, lake.rows(name)))]

    # Models are built a moment after their source; the tables of one build are committed one after the other.
    try:
        wait_for("silver and gold follow bronze", lambda: not differences(), seconds=seconds, every=0.3, alive=alive)
    except TimedOut as late:
        raise AssertionError(f"{late}\n" + "\n".join(differences())) from None


def grown(lake, by=1):
    """A condition: rows have come since it was last true. So a kill never hits a process that has done nothing yet."""
    last = [sum(lake.counts())]

    def condition():
        now = sum(lake.counts())
        if now < last[0] + by:
            return False
        last[0] = now
        return True

    return condition
