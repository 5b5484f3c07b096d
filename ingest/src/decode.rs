//! Messages → rows and dead letters, in Arrow, a batch at a time. Pure: no Kafka, no clock, no lake.
//!
//! A [`Decoder`] knows one payload format; what is the same for all formats (limits, where a row came from, what a dead
//! letter keeps) is here. Nothing is ever skipped: each message becomes a row or a dead letter, tombstones included, so
//! that every offset is accounted for.

mod json;
mod tables;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use arrow::record_batch::RecordBatch;
use chrono::{DateTime, Utc};

pub use json::JsonDecoder;

use crate::records::{Record, Records};
use crate::topic::{Format, TopicSpec};
use crate::{Error, ErrorKind, Result};

/// So many rows at most make one Arrow batch: large enough for the encoder, small enough for the processor's caches.
const BATCH_ROWS: usize = 8192;

/// Knows how one payload format is read.
pub trait Decoder: Send + Sync {
    /// Reads the fields of one payload into `row`, which is empty. What it leaves there on an error is thrown away.
    ///
    /// # Errors
    /// What makes the payload a dead letter.
    fn decode<'a>(&self, payload: &'a [u8], row: &mut Row<'a>) -> Result<(), Poison>;
}

/// The decoder for the format of `topic`.
pub fn decoder_for(topic: &TopicSpec) -> Box<dyn Decoder> {
    match topic.format {
        Format::Json => Box::new(JsonDecoder::new(&topic.fields)),
    }
}

/// The fields of one message, text borrowed from the payload wherever it stands there as it is.
#[derive(Debug)]
pub struct Row<'a> {
    /// The value of each field of the topic, in its order.
    pub values: Vec<Option<Cow<'a, str>>>,
    /// What the topic does not know, as one JSON object; empty if there is nothing.
    pub rescued: String,
}

impl Row<'_> {
    fn of(fields: usize) -> Self {
        Self { values: (0..fields).map(|_| None).collect(), rescued: String::new() }
    }

    fn clear(&mut self) {
        self.values.fill(None);
        self.rescued.clear();
    }
}

/// Why a message is a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Poison {
    /// The kind of fault, of a fixed list: what one filters by.
    pub reason: Reason,
    /// What exactly, for people.
    pub error: String,
}

impl Poison {
    /// A fault of that kind.
    pub fn new(reason: Reason, error: impl Into<String>) -> Self {
        Self { reason, error: error.into() }
    }
}

/// The kinds of faults. Their codes are stored: none is ever renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// No payload at all. Tables of events have nothing that it could delete, so it is kept as a letter.
    Tombstone,
    /// A payload of no bytes.
    Empty,
    /// Longer than the topic allows.
    TooLarge,
    /// Not UTF-8 where the format is text.
    NotUtf8,
    /// Not JSON.
    NotJson,
    /// JSON, but not one object.
    NotObject,
    /// A field holds what it must not hold.
    WrongType,
    /// Nested deeper than readers of the table could follow.
    TooDeep,
}

impl Reason {
    /// The code that is stored.
    pub fn code(self) -> &'static str {
        match self {
            Self::Tombstone => "tombstone",
            Self::Empty => "empty",
            Self::TooLarge => "too_large",
            Self::NotUtf8 => "not_utf8",
            Self::NotJson => "not_json",
            Self::NotObject => "not_object",
            Self::WrongType => "wrong_type",
            Self::TooDeep => "too_deep",
        }
    }
}

/// Dead letters that are in their table already: partition, offset and index, and the message's fingerprint.
pub type Recorded = HashMap<(i32, i64, i32), String>;

/// What became of a batch of messages.
#[derive(Debug, Default)]
pub struct Decoded {
    /// Batches for the table of rows.
    pub rows: Vec<RecordBatch>,
    /// Batches for the table of dead letters, without those that were recorded before.
    pub letters: Vec<RecordBatch>,
    /// Dead letters by partition, those that were recorded before included.
    pub dead_letters: BTreeMap<i32, u64>,
    /// The partitions of `letters`.
    pub letter_partitions: BTreeMap<i32, u64>,
}

/// Decodes `records`. Each one becomes a row or a dead letter, or is one of `recorded`.
///
/// A letter that is recorded stays one, even if the decoder could read the message by now: the table says so.
///
/// # Errors
/// `BadData` if a recorded letter is of another message than the one that stands at its offset.
pub fn decode(
    decoder: &dyn Decoder,
    topic: &TopicSpec,
    records: &Records,
    recorded: &Recorded,
    ingested_at: DateTime<Utc>,
    into: &mut Decoded,
) -> Result<()> {
    let mut rows = tables::Rows::new(topic, ingested_at);
    let mut letters = tables::Letters::new(topic, ingested_at);
    let mut row = Row::of(topic.fields.len());
    for record in records.iter() {
        if !recorded.is_empty() && is_recorded(topic, recorded, &record)? {
            *into.dead_letters.entry(record.partition).or_default() += 1;
            continue;
        }
        row.clear();
        match decode_one(decoder, topic, &record, &mut row) {
            Ok(()) => rows.push(&record, &row),
            Err(poison) => {
                letters.push(&record, &poison);
                *into.dead_letters.entry(record.partition).or_default() += 1;
                *into.letter_partitions.entry(record.partition).or_default() += 1;
            }
        }
        if rows.len() == BATCH_ROWS {
            into.rows.push(rows.finish()?);
        }
    }
    if rows.len() > 0 {
        into.rows.push(rows.finish()?);
    }
    if letters.len() > 0 {
        into.letters.push(letters.finish()?);
    }
    Ok(())
}

/// The place in a message that holds several events. The formats so far hold one.
const INDEX: i32 = 0;

fn is_recorded(topic: &TopicSpec, recorded: &Recorded, record: &Record<'_>) -> Result<bool> {
    match recorded.get(&(record.partition, record.offset, INDEX)) {
        None => Ok(false),
        Some(fingerprint) if *fingerprint == record.fingerprint() => Ok(true),
        Some(_) => {
            let message = format!(
                "topic {} partition {} is not the one that {} has letters of: the message at offset {} is another. Bring the old \
                 topic back, or let the topic's settings name another table for dead letters",
                topic.name, record.partition, topic.dead_letters, record.offset
            );
            Err(Error::new(ErrorKind::BadData, message))
        }
    }
}

fn decode_one<'a>(
    decoder: &dyn Decoder,
    topic: &TopicSpec,
    record: &Record<'a>,
    row: &mut Row<'a>,
) -> Result<(), Poison> {
    let Some(payload) = record.payload else {
        return Err(Poison::new(Reason::Tombstone, "the message has no payload"));
    };
    if payload.is_empty() {
        return Err(Poison::new(Reason::Empty, "the payload has no bytes"));
    }
    if payload.len() > topic.payload_bytes_max {
        let error = format!("the payload has {} bytes, the limit is {}", payload.len(), topic.payload_bytes_max);
        return Err(Poison::new(Reason::TooLarge, error));
    }
    decoder.decode(payload, row)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array as _, AsArray as _};
    use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};

    use super::*;

    fn message(offset: i64, payload: Option<&'static str>) -> Record<'static> {
        let payload = payload.map(str::as_bytes);
        Record { partition: 2, offset, timestamp_millis: Some(1_500), key: Some(b"user"), payload, headers: None }
    }

    fn decoded(records: &[Record<'_>], recorded: &Recorded) -> Decoded {
        let topic = TopicSpec { payload_bytes_max: 64, ..TopicSpec::spotify() };
        let mut all = Records::default();
        records.iter().for_each(|record| all.push(record));
        let mut into = Decoded::default();
        let now = DateTime::from_timestamp_micros(86_400_000_001).expect("a valid time");
        decode(decoder_for(&topic).as_ref(), &topic, &all, recorded, now, &mut into).expect("batches fit the schema");
        into
    }

    #[test]
    fn each_message_becomes_a_row_or_a_letter() {
        let long = "x".repeat(65).leak();
        let messages = [
            message(10, Some(r#"{"event_id":"a","timestamp":"t"}"#)),
            message(11, None),
            message(12, Some("")),
            message(13, Some(long)),
            message(14, Some("{}")),
        ];
        let all = decoded(&messages, &Recorded::new());
        let [rows] = all.rows.as_slice() else { panic!("{} batches", all.rows.len()) };
        assert_eq!(rows.schema(), TopicSpec::spotify().rows_spec().schema);
        let column = |name: &str| rows.column_by_name(name).expect("a column").clone();
        assert_eq!(column("_offset").as_primitive::<Int64Type>().values().as_ref(), [10, 14]);
        assert_eq!(column("_partition").as_primitive::<Int32Type>().values().as_ref(), [2, 2]);
        assert_eq!(column("timestamp_str").as_string::<i32>().value(0), "t");
        assert!(column("event_id").is_null(1));
        assert_eq!(column("_key").as_string::<i32>().value(1), "user");
        assert_eq!(column("_kafka_timestamp").as_primitive::<TimestampMicrosecondType>().value(0), 1_500_000);
        let [letters] = all.letters.as_slice() else { panic!("{} batches", all.letters.len()) };
        assert_eq!(letters.schema(), TopicSpec::spotify().letters_spec().schema);
        let reasons = letters.column_by_name("reason").expect("a column").as_string::<i32>().clone();
        assert_eq!(reasons.iter().flatten().collect::<Vec<_>>(), ["tombstone", "empty", "too_large"]);
        let payloads = letters.column_by_name("payload").expect("a column").as_binary::<i32>().clone();
        assert!(payloads.is_null(0));
        assert_eq!(payloads.value(1), b"");
        assert_eq!(all.dead_letters, BTreeMap::from([(2, 3)]));
    }

    #[test]
    fn a_recorded_letter_is_neither_repeated_nor_taken_as_a_row() {
        let messages = [message(10, Some("{}")), message(11, Some("nonsense")), message(12, Some("nonsense"))];
        let recorded = messages[..2].iter().map(|record| ((2, record.offset, 0), record.fingerprint())).collect();
        let all = decoded(&messages, &recorded);
        assert!(all.rows.is_empty());
        assert_eq!(all.letters[0].num_rows(), 1);
        assert_eq!(all.dead_letters, BTreeMap::from([(2, 3)]));
        assert_eq!(all.letter_partitions, BTreeMap::from([(2, 1)]));
    }
}
