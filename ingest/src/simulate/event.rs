//! What listeners do, as messages: a function of the seed and the clock, without Kafka.

use std::collections::VecDeque;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use fake::Fake as _;
use fake::rand::rngs::ChaCha8Rng;
use fake::rand::{Rng as _, RngExt as _, SeedableRng as _};
use fake::uuid::UUIDv4;
use lakehouse::Clock;
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

/// The timestamp of the first message of a run with a seed: 2026-01-01T00:00:00Z.
pub(super) const SEEDED_START: i64 = 1_767_225_600_000;
/// The time from one message to the next in a run with a seed: the pace of 20 messages a second.
pub(super) const SEEDED_STEP: TimeDelta = TimeDelta::milliseconds(50);

/// Title, artist, and how often it is played, relative to the others.
const SONGS: [(&str, &str, u32); 6] = [
    ("Blinding Lights", "The Weeknd", 8),
    ("Levitating", "Dua Lipa", 6),
    ("God's Plan", "Drake", 5),
    ("Love Story", "Taylor Swift", 5),
    ("Shape of You", "Ed Sheeran", 4),
    ("Stronger", "Kanye West", 3),
];
/// What listeners do, and how often.
const EVENT_TYPES: [(&str, u32); 4] = [("play", 60), ("pause", 15), ("skip", 15), ("add_to_playlist", 10)];
const DEVICES: [&str; 3] = ["mobile", "desktop", "web"];
const COUNTRIES: [&str; 6] = ["US", "UK", "CA", "AU", "IN", "DE"];
/// A redelivered event is one of so many last ones.
const RECENT_MAX: usize = 64;

/// What is the matter with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Nothing: a clean event.
    Event,
    /// A field that the contract does not know. The event counts, the field is rescued.
    UnknownField,
    /// A clean event that was sent before. It counts once.
    Duplicate,
    /// No event, user or song id. Kept as it came, not counted.
    NullId,
    /// A timestamp that is none. Kept as it came, not counted.
    BadTimestamp,
    /// A number or the like where text belongs: a dead letter, as all that follow.
    WrongType,
    /// Not JSON.
    NotJson,
    /// Bytes that are not UTF-8.
    NonUtf8,
    /// No bytes.
    Empty,
    /// A key without a payload.
    Tombstone,
}

impl Kind {
    /// All kinds, clean first.
    pub const ALL: [Self; 10] = [
        Self::Event,
        Self::UnknownField,
        Self::Duplicate,
        Self::NullId,
        Self::BadTimestamp,
        Self::WrongType,
        Self::NotJson,
        Self::NonUtf8,
        Self::Empty,
        Self::Tombstone,
    ];

    /// The kind's name in reports and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::UnknownField => "unknown_field",
            Self::Duplicate => "duplicate",
            Self::NullId => "null_id",
            Self::BadTimestamp => "bad_timestamp",
            Self::WrongType => "wrong_type",
            Self::NotJson => "not_json",
            Self::NonUtf8 => "non_utf8",
            Self::Empty => "empty",
            Self::Tombstone => "tombstone",
        }
    }

    /// Whether ingest has to make a dead letter of it.
    pub fn is_dead_letter(self) -> bool {
        matches!(self, Self::WrongType | Self::NotJson | Self::NonUtf8 | Self::Empty | Self::Tombstone)
    }
}

/// A message to produce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Simulated {
    /// What is the matter with it.
    pub kind: Kind,
    /// The event that it is about, if it names one.
    pub event_id: Option<Uuid>,
    /// The listener.
    pub key: Arc<str>,
    /// The payload; `None` is a tombstone.
    pub payload: Option<Vec<u8>>,
}

/// An endless row of messages.
#[derive(Debug)]
pub struct Simulator {
    random: ChaCha8Rng,
    listeners: Vec<Listener>,
    songs: Vec<Song>,
    dirty: f64,
    time: EventTime,
    /// Clean events that may be delivered again.
    recent: VecDeque<Simulated>,
}

#[derive(Debug)]
struct Listener {
    id: Arc<str>,
    country: &'static str,
}

#[derive(Debug)]
struct Song {
    id: String,
    title: &'static str,
    artist: &'static str,
}

/// Where timestamps come from.
#[derive(Debug)]
enum EventTime {
    Clock(Arc<dyn Clock>),
    Stepping(DateTime<Utc>),
}

/// The event contract, in its order of fields.
#[derive(Debug, Serialize)]
struct Event<'a> {
    event_id: Uuid,
    user_id: &'a str,
    song_id: &'a str,
    artist_name: &'a str,
    song_name: &'a str,
    event_type: &'a str,
    device_type: &'a str,
    country: &'a str,
    timestamp: String,
}

impl Simulator {
    /// Messages of so many listeners, a share of them dirty. The clock is asked only where there is no seed.
    pub fn new(seed: Option<u64>, users: u32, dirty: f64, clock: Arc<dyn Clock>) -> Self {
        let (mut random, time) = match seed {
            Some(seed) => {
                let start = DateTime::from_timestamp_millis(SEEDED_START).expect("the constant is a valid time");
                (ChaCha8Rng::seed_from_u64(seed), EventTime::Stepping(start))
            }
            None => (ChaCha8Rng::seed_from_u64(fake::rand::rng().next_u64()), EventTime::Clock(clock)),
        };
        let listener = |_| Listener {
            id: UUIDv4.fake_with_rng::<Uuid, _>(&mut random).to_string().into(),
            country: COUNTRIES[random.random_range(0..COUNTRIES.len())],
        };
        let listeners = (0..users).map(listener).collect();
        let songs = SONGS.map(|(title, artist, _)| Song { id: song_id(artist, title), title, artist });
        Self { random, listeners, songs: songs.into(), dirty, time, recent: VecDeque::new() }
    }

    fn clean(&mut self) -> Simulated {
        let timestamp = self.time.next().to_rfc3339_opts(SecondsFormat::Millis, true);
        let event_id: Uuid = UUIDv4.fake_with_rng(&mut self.random);
        let song = &self.songs[weighted(&mut self.random, &SONGS.map(|(_, _, weight)| weight))];
        let event_type = EVENT_TYPES[weighted(&mut self.random, &EVENT_TYPES.map(|(_, weight)| weight))].0;
        let device_type = DEVICES[self.random.random_range(0..DEVICES.len())];
        let listener = &self.listeners[self.random.random_range(0..self.listeners.len())];
        let event = Event {
            event_id,
            user_id: &listener.id,
            song_id: &song.id,
            artist_name: song.artist,
            song_name: song.title,
            event_type,
            device_type,
            country: listener.country,
            timestamp,
        };
        let payload = serde_json::to_vec(&event).expect("text and ids are valid JSON");
        Simulated { kind: Kind::Event, event_id: Some(event_id), key: listener.id.clone(), payload: Some(payload) }
    }

    /// A message that is faulty in one of nine ways, each as likely as the other.
    fn dirty(&mut self) -> Simulated {
        let kind = Kind::ALL[self.random.random_range(1..Kind::ALL.len())];
        if kind == Kind::Duplicate && !self.recent.is_empty() {
            let again = self.recent[self.random.random_range(0..self.recent.len())].clone();
            return Simulated { kind, ..again };
        }
        let clean = self.clean();
        let choice = self.random.random_range(0..3);
        match spoil(kind, choice, clean.payload.as_deref().expect("a clean event has a payload")) {
            Spoiled::Payload(payload) => Simulated { kind, payload: Some(payload), ..clean },
            Spoiled::NoEvent(payload) => Simulated { kind, payload, event_id: None, ..clean },
            // Nothing was sent yet that could be sent again.
            Spoiled::Not => clean,
        }
    }
}

impl Iterator for Simulator {
    type Item = Simulated;

    fn next(&mut self) -> Option<Simulated> {
        if self.dirty > 0.0 && self.random.random_bool(self.dirty) {
            return Some(self.dirty());
        }
        let message = self.clean();
        if self.dirty > 0.0 {
            self.recent.push_back(message.clone());
            if self.recent.len() > RECENT_MAX {
                self.recent.pop_front();
            }
        }
        Some(message)
    }
}

impl EventTime {
    fn next(&mut self) -> DateTime<Utc> {
        match self {
            Self::Clock(clock) => clock.now(),
            Self::Stepping(now) => {
                let this = *now;
                *now += SEEDED_STEP;
                this
            }
        }
    }
}

/// What spoiling made of an event.
enum Spoiled {
    /// It still names its event.
    Payload(Vec<u8>),
    /// No event can be told from it.
    NoEvent(Option<Vec<u8>>),
    /// This kind is not made from an event.
    Not,
}

/// Spoils a clean payload in that way; `choice` is 0, 1 or 2.
fn spoil(kind: Kind, choice: usize, clean: &[u8]) -> Spoiled {
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut event: Value = serde_json::from_slice(clean).expect("a clean event is JSON");
        change(&mut event);
        event.to_string().into_bytes()
    };
    match kind {
        Kind::Event | Kind::Duplicate => Spoiled::Not,
        Kind::UnknownField => Spoiled::Payload(changed(&|event| {
            event["bitrate_kbps"] = json!(320);
            event["referrer"] = json!({ "page": "home", "position": choice });
        })),
        Kind::NullId => {
            let field = ["event_id", "user_id", "song_id"][choice];
            let payload = changed(&|event| event[field] = Value::Null);
            if field == "event_id" { Spoiled::NoEvent(Some(payload)) } else { Spoiled::Payload(payload) }
        }
        Kind::BadTimestamp => {
            let wrong = ["yesterday at noon", "2026-13-45T99:99:99Z", ""][choice];
            Spoiled::Payload(changed(&|event| event["timestamp"] = wrong.into()))
        }
        Kind::WrongType => {
            let (field, wrong) =
                [("country", json!(49)), ("song_name", json!(["a", "list"])), ("device_type", json!({ "os": "any" }))]
                    [choice]
                    .clone();
            Spoiled::Payload(changed(&|event| event[field] = wrong.clone()))
        }
        Kind::NotJson => Spoiled::NoEvent(Some(match choice {
            0 => clean[..clean.len() / 2].to_vec(),
            1 => b"<event type=\"play\"/>".to_vec(),
            _ => [clean, b"}"].concat(),
        })),
        Kind::NonUtf8 => {
            let mut payload = clean.to_vec();
            // Within the value of the last field, so that all before it reads well.
            let at = payload.len() - 4;
            payload[at] = 0xff;
            Spoiled::Payload(payload)
        }
        Kind::Empty => Spoiled::NoEvent(Some(Vec::new())),
        Kind::Tombstone => Spoiled::NoEvent(None),
    }
}

/// A song's id: UUIDv5 of `artist::title` in the DNS namespace.
fn song_id(artist: &str, title: &str) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_DNS, format!("{artist}::{title}").as_bytes()).to_string()
}

/// An index, each as likely as its weight.
fn weighted(random: &mut ChaCha8Rng, weights: &[u32]) -> usize {
    let mut at = random.random_range(0..weights.iter().sum());
    for (index, weight) in weights.iter().enumerate() {
        match at.checked_sub(*weight) {
            None => return index,
            Some(rest) => at = rest,
        }
    }
    unreachable!("the number drawn is below the sum of the weights")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use expect_test::expect;
    use lakehouse::ManualClock;

    use super::*;
    use crate::decode::{Decoded, Recorded, decode, decoder_for};
    use crate::records::{Record, Records};
    use crate::topic::TopicSpec;

    fn simulator(seed: Option<u64>, dirty: f64) -> Simulator {
        let clock = ManualClock::new(DateTime::from_timestamp_millis(1_000).expect("a valid time"));
        Simulator::new(seed, 10, dirty, Arc::new(clock))
    }

    #[test]
    fn the_same_seed_gives_the_same_messages() {
        let first: Vec<_> = simulator(Some(7), 0.3).take(500).collect();
        assert_eq!(first, simulator(Some(7), 0.3).take(500).collect::<Vec<_>>());
        assert_ne!(first, simulator(Some(8), 0.3).take(500).collect::<Vec<_>>());
        assert_ne!(
            simulator(None, 0.0).next().expect("endless").event_id,
            simulator(None, 0.0).next().expect("endless").event_id
        );
    }

    #[test]
    fn an_event_is_what_the_contract_says() {
        let event = simulator(Some(1), 0.0).next().expect("endless");
        let payload = String::from_utf8(event.payload.expect("a payload")).expect("text");
        expect![[r#"{"event_id":"d23dc913-77c1-46d8-8a11-15e164408e6b","user_id":"f026bc0b-6514-4adb-962d-7ba0ecba6f59","song_id":"1bf43cf2-745e-57bb-8af1-5a7055a1f93a","artist_name":"Kanye West","song_name":"Stronger","event_type":"play","device_type":"mobile","country":"AU","timestamp":"2026-01-01T00:00:00.000Z"}"#]].assert_eq(&payload);
        expect!["74a42680-ff06-55cf-9f7b-426cd71bda2b"].assert_eq(&song_id("The Weeknd", "Blinding Lights"));
    }

    #[test]
    fn without_a_seed_the_clock_tells_the_time() {
        let event = simulator(None, 0.0).next().expect("endless");
        let payload = String::from_utf8(event.payload.expect("a payload")).expect("text");
        assert!(payload.ends_with("\"timestamp\":\"1970-01-01T00:00:01.000Z\"}"), "{payload}");
    }

    #[test]
    fn each_kind_is_read_as_it_is_meant() {
        let topic = TopicSpec::spotify();
        let mut seen = BTreeMap::new();
        for message in simulator(Some(3), 0.9).take(2_000) {
            *seen.entry(message.kind).or_insert(0) += 1;
            let mut records = Records::default();
            let payload = message.payload.as_deref();
            let key = Some(message.key.as_bytes());
            records.push(&Record { partition: 0, offset: 0, timestamp_millis: None, key, payload, headers: None });
            let mut decoded = Decoded::default();
            let (decoder, now) = (decoder_for(&topic), DateTime::default());
            decode(decoder.as_ref(), &topic, &records, &Recorded::new(), now, &mut decoded)
                .expect("batches fit the schema");
            let shown = String::from_utf8_lossy(payload.unwrap_or_default());
            assert_eq!(decoded.rows.is_empty(), message.kind.is_dead_letter(), "{shown}");
            let Some(row) = decoded.rows.first() else { continue };
            let is_there = |column: &str| row.column_by_name(column).is_some_and(|values| values.is_valid(0));
            assert_eq!(is_there("_rescued"), message.kind == Kind::UnknownField, "{shown}");
            if message.kind == Kind::Event {
                assert!(topic.fields.iter().all(|field| is_there(&field.column)), "{shown}");
            }
        }
        assert_eq!(seen.len(), Kind::ALL.len(), "{seen:?}");
        assert!(seen[&Kind::Tombstone] > 100, "{seen:?}");
    }
}
