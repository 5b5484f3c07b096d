//! Messages → rows and dead letters, in Arrow, many at a time. Pure: no Kafka, no clock, no lake.
//!
//! ```text
//!  Records ──► Landing::take ── Messages ──► Decoder ──► Landing::row, ::letter ── full batches ──► Output
//!              tombstones, empty, too large,  one         recorded letters,
//!              recorded before: the same      format      where each row came from
//!              for all formats
//! ```
//!
//! A [`Decoder`] knows one payload format; what is the same for all formats (limits, where a row came from, what a dead
//! letter keeps) is here. Nothing is ever skipped: each message becomes rows and dead letters, one at least, tombstones
//! included, so that every offset is accounted for.
//!
//! Memory: a batch is handed on when it has [`BATCH_ROWS`] rows, or [`BATCH_BYTES`] bytes of them, and only one of each table
//! is open. What a message holds goes beyond that by a single row at most, however many rows it holds.

mod flat;
mod json;
mod landing;
mod tables;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use arrow::record_batch::RecordBatch;
use chrono::{DateTime, Utc};

pub use json::{JsonDecoder, NdjsonDecoder};
pub use landing::{Counts, Landing, Message, Messages, OpenBatches};

use crate::Result;
use crate::records::Records;
use crate::topic::{Format, TopicSpec};

/// So many rows at most make one Arrow batch: large enough for the encoder, small enough for the processor's caches.
const BATCH_ROWS: usize = 8192;
/// So many bytes of messages make a batch that has fewer rows.
const BATCH_BYTES: usize = 8 << 20;

/// Knows how one payload format is read. One call takes many messages, so that a library that reads many at a time can be
/// given them together, and so that what a call costs is paid once.
pub trait Decoder: Send + Sync {
    /// Reads all of `messages` and lands what each holds, a row or a letter at least: all of a message before the next one,
    /// in the order of their places in it.
    ///
    /// # Errors
    /// Those of `landing` only. What is wrong with a message is a letter.
    fn decode(&self, messages: &Messages<'_>, landing: &mut Landing<'_>) -> Result<()>;
}

/// The decoder for the format of `topic`.
pub fn decoder_for(topic: &TopicSpec) -> Box<dyn Decoder> {
    match topic.format {
        Format::Json => Box::new(JsonDecoder::new(&topic.fields)),
        Format::Ndjson => Box::new(NdjsonDecoder::new(&topic.fields)),
    }
}

/// Where full batches go.
pub trait Output {
    /// Takes rows for the table of rows.
    ///
    /// # Errors
    /// If they can't be taken: decoding ends with that.
    fn rows(&mut self, batch: &RecordBatch) -> Result<()>;

    /// Takes rows for the table of dead letters: those that were not recorded before.
    ///
    /// # Errors
    /// If they can't be taken: decoding ends with that.
    fn letters(&mut self, batch: &RecordBatch) -> Result<()>;
}

/// The fields of one row, text borrowed from the payload wherever it stands there as it is.
#[derive(Debug)]
pub struct Row<'a> {
    /// The value of each field of the topic, in its order.
    pub values: Vec<Option<Cow<'a, str>>>,
    /// What the topic does not know, as one JSON object; empty if there is nothing.
    pub rescued: String,
}

impl Row<'_> {
    /// A row of so many fields, all NULL.
    pub fn of(fields: usize) -> Self {
        Self { values: (0..fields).map(|_| None).collect(), rescued: String::new() }
    }

    /// Makes all fields NULL again.
    pub fn clear(&mut self) {
        self.values.fill(None);
        self.rescued.clear();
    }
}

/// Why a message, or a part of it, is a dead letter.
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
    /// A payload of no bytes, or of no line.
    Empty,
    /// Longer than the topic allows, or than its rows may be.
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
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Tombstone,
        Self::Empty,
        Self::TooLarge,
        Self::NotUtf8,
        Self::NotJson,
        Self::NotObject,
        Self::WrongType,
        Self::TooDeep,
    ];

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

/// Dead letters that are in their table already: partition, offset and index, and the fingerprint of the message as the
/// letter keeps it (its payload is the letter's own: a line, where a message holds several).
pub type Recorded = HashMap<(i32, i64, i32), String>;

/// What became of a few messages, all in memory.
#[derive(Debug, Default)]
pub struct Decoded {
    /// Batches for the table of rows.
    pub rows: Vec<RecordBatch>,
    /// Batches for the table of dead letters, without those that were recorded before.
    pub letters: Vec<RecordBatch>,
    /// Dead letters by partition, those that were recorded before included.
    pub dead_letters: BTreeMap<i32, u64>,
}

impl Output for Decoded {
    fn rows(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows.push(batch.clone());
        Ok(())
    }

    fn letters(&mut self, batch: &RecordBatch) -> Result<()> {
        self.letters.push(batch.clone());
        Ok(())
    }
}

/// Decodes a few messages and keeps all that they hold in memory; where they are many, see [`Landing`].
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
    let mut open = OpenBatches::new(topic, ingested_at);
    Landing::new(topic, recorded, &mut open, into).take(decoder, records)?;
    for (partition, counts) in open.finish(into)? {
        if counts.dead_letters > 0 {
            *into.dead_letters.entry(partition).or_default() += counts.dead_letters;
        }
    }
    Ok(())
}
