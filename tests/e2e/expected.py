"""What the tables must hold, computed from the messages alone and in the plainest way, sharing no code with the program."""

import json
from collections import Counter, defaultdict
from datetime import UTC, datetime

FIELDS = ("event_id", "user_id", "song_id", "artist_name", "song_name", "event_type", "device_type", "country", "timestamp")
COUNTED = ("play", "pause", "skip", "add_to_playlist")


def _no_number(text):
    raise ValueError(f"{text} is not JSON")


def decoded(payload):
    """The fields of a message as they came, with what else it holds under None; or the reason why it is a dead letter."""
    if payload is None:
        return "tombstone"
    if payload == b"":
        return "empty"
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError:
        return "not_utf8"
    try:
        event = json.loads(text, parse_constant=_no_number)
    except ValueError:
        return "not_json"
    if not isinstance(event, dict):
        return "not_object"
    if any(not isinstance(event.get(field), (str, type(None))) for field in FIELDS):
        return "wrong_type"
    fields = {field: event.get(field) for field in FIELDS}
    fields[None] = {name: value for name, value in event.items() if name not in FIELDS}
    return fields


def moment(text):
    """A timestamp with its zone, or None for what is none."""
    try:
        parsed = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return parsed.astimezone(UTC) if parsed.tzinfo else None


class Tables:
    """The tables that `messages` must lead to, each a Counter of rows; a row that stands twice counts twice."""

    def __init__(self, messages):
        self.bronze, self.letters = Counter(), Counter()
        first = {}
        for message in messages:
            fields = decoded(message.payload)
            if isinstance(fields, str):
                self.letters[(*message.place, message.payload, fields)] += 1
                continue
            rescued = json.dumps(fields[None], sort_keys=True) if fields[None] else None
            self.bronze[(*message.place, *(fields[name] for name in FIELDS), rescued)] += 1
            event = self._event(message, fields)
            if event is not None:
                key, order, row = event
                if key not in first or order < first[key][0]:
                    first[key] = order, row
        self.silver = Counter(row for _, row in first.values())
        self._gold([row for _, row in first.values()])

    @staticmethod
    def _event(message, fields):
        """The key, the place in line and the row of what silver takes; None for what it leaves out."""
        happened = moment(fields["timestamp"])
        if happened is None or any(fields[name] is None for name in ("event_id", "user_id", "song_id")):
            return None
        order = (message.timestamp or 0, message.partition, message.offset)
        row = (*(fields[name] for name in FIELDS[:-1]), happened, happened.date(), *message.place)
        return (fields["event_id"], happened.date()), order, row

    def _gold(self, rows):
        songs, listeners = defaultdict(Counter), defaultdict(Counter)
        minutes = Counter()
        for row in rows:
            _, user, song, artist, title, kind, device, country, happened, day, _, _ = row
            songs[(song, title, artist)][kind] += 1
            listeners[(user, device, country, day)][kind] += 1
            minutes[(happened.replace(second=0, microsecond=0), song, title, artist, device, country, kind, day)] += 1
        self.top_songs = Counter((*song, kinds["play"], kinds["skip"]) for song, kinds in songs.items())
        self.user_engagement = Counter(
            (*listener, *(kinds[kind] for kind in COUNTED)) for listener, kinds in listeners.items()
        )
        self.listening_by_minute = Counter((*key, events) for key, events in minutes.items())

    def named(self):
        """Table name → rows."""
        return {
            "bronze.spotify_events": self.bronze,
            "bronze.dead_letters": self.letters,
            "silver.spotify_silver": self.silver,
            "gold.top_songs": self.top_songs,
            "gold.user_engagement": self.user_engagement,
            "gold.listening_by_minute": self.listening_by_minute,
        }
