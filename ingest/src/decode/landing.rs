//! What all formats have in common on the way from messages to the two tables.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::{BATCH_BYTES, BATCH_ROWS, Decoder, Output, Poison, Reason, Recorded, Row, tables};
use crate::records::{Record, Records};
use crate::topic::TopicSpec;
use crate::{Error, ErrorKind, Result};

/// The place of what is all that its message holds.
pub(super) const WHOLE: i32 = 0;

/// What one partition's messages became.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows.
    pub rows: u64,
    /// Dead letters, those that were recorded before included.
    pub dead_letters: u64,
    /// Dead letters that were not recorded before.
    pub new_letters: u64,
}

/// A message that has a payload within the topic's limits.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    record: Record<'a>,
    payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Its payload, which is not empty.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The same message with a part of its payload only: what a row or a letter is made of where a message holds several.
    pub fn part(&self, payload: &'a [u8]) -> Self {
        Self { record: Record { payload: Some(payload), ..self.record }, payload }
    }

    /// What each of its rows repeats, in bytes.
    pub(super) fn repeated_bytes(&self) -> usize {
        self.record.key.map_or(0, <[u8]>::len) + self.record.headers.map_or(0, str::len)
    }
}

/// Messages for a decoder, in their order.
#[derive(Debug)]
pub struct Messages<'a> {
    records: &'a Records,
    /// Which of the records are meant.
    places: Vec<usize>,
}

impl<'a> Messages<'a> {
    /// The messages, one after the other.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Message<'a>> {
        self.places.iter().map(|&place| {
            let record = self.records.get(place);
            Message { record, payload: record.payload.unwrap_or_default() }
        })
    }
}

/// Batches that are not full yet, and what was counted so far.
pub struct OpenBatches {
    rows: tables::Rows,
    letters: tables::Letters,
    counts: BTreeMap<i32, Counts>,
}

impl OpenBatches {
    /// Of messages of `topic`, ingested at this time.
    pub fn new(topic: &TopicSpec, ingested_at: DateTime<Utc>) -> Self {
        Self {
            rows: tables::Rows::new(topic, ingested_at),
            letters: tables::Letters::new(topic, ingested_at),
            counts: BTreeMap::new(),
        }
    }

    /// Hands on what is left. What each partition's messages became.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self, output: &mut dyn Output) -> Result<BTreeMap<i32, Counts>> {
        if self.rows.len() > 0 {
            output.rows(&self.rows.finish()?)?;
        }
        if self.letters.len() > 0 {
            output.letters(&self.letters.finish()?)?;
        }
        Ok(self.counts)
    }
}

/// Takes messages in and hands full batches on.
pub struct Landing<'l> {
    topic: &'l TopicSpec,
    recorded: &'l Recorded,
    open: &'l mut OpenBatches,
    output: &'l mut dyn Output,
}

impl<'l> Landing<'l> {
    /// Of messages of `topic`. A letter that is recorded stays one, even if the decoder could read the message by now: the
    /// table says so.
    pub fn new(
        topic: &'l TopicSpec,
        recorded: &'l Recorded,
        open: &'l mut OpenBatches,
        output: &'l mut dyn Output,
    ) -> Self {
        Self { topic, recorded, open, output }
    }

    /// Decodes `records`.
    ///
    /// # Errors
    /// `BadData` if a recorded letter is of another message than the one that stands at its offset; those of the output.
    pub fn take(&mut self, decoder: &dyn Decoder, records: &Records) -> Result<()> {
        let mut places = Vec::with_capacity(records.len());
        for (place, record) in records.iter().enumerate() {
            if self.is_recorded_whole(&record) {
                self.open.counts.entry(record.partition).or_default().dead_letters += 1;
            } else if let Err(poison) = check_payload(self.topic, record.payload) {
                self.land_letter(&record, WHOLE, &poison)?;
            } else {
                places.push(place);
            }
        }
        decoder.decode(&Messages { records, places }, self)
    }

    /// Lands one row, which is made of `message` or of a part of it, and is the `index`th thing in it.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn row(&mut self, message: &Message<'_>, index: i32, row: &Row<'_>) -> Result<()> {
        let record = &message.record;
        if self.is_recorded(record, index)? {
            self.open.counts.entry(record.partition).or_default().dead_letters += 1;
            return Ok(());
        }
        self.open.rows.push(record, index, row);
        self.open.counts.entry(record.partition).or_default().rows += 1;
        if self.open.rows.len() >= BATCH_ROWS || self.open.rows.bytes() >= BATCH_BYTES {
            self.output.rows(&self.open.rows.finish()?)?;
        }
        Ok(())
    }

    /// Lands one letter: `message` or a part of it, the `index`th thing in it.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn letter(&mut self, message: &Message<'_>, index: i32, poison: &Poison) -> Result<()> {
        self.land_letter(&message.record, index, poison)
    }

    fn land_letter(&mut self, record: &Record<'_>, index: i32, poison: &Poison) -> Result<()> {
        let recorded = self.is_recorded(record, index)?;
        let counts = self.open.counts.entry(record.partition).or_default();
        counts.dead_letters += 1;
        if recorded {
            return Ok(());
        }
        counts.new_letters += 1;
        self.open.letters.push(record, index, poison);
        if self.open.letters.len() >= BATCH_ROWS || self.open.letters.bytes() >= BATCH_BYTES {
            self.output.letters(&self.open.letters.finish()?)?;
        }
        Ok(())
    }

    /// Whether all of a message is a recorded letter. A letter of another fingerprint may be of its first line.
    fn is_recorded_whole(&self, record: &Record<'_>) -> bool {
        let letter = self.recorded.get(&(record.partition, record.offset, WHOLE));
        letter.is_some_and(|fingerprint| *fingerprint == record.fingerprint())
    }

    fn is_recorded(&self, record: &Record<'_>, index: i32) -> Result<bool> {
        match self.recorded.get(&(record.partition, record.offset, index)) {
            None => Ok(false),
            Some(fingerprint) if *fingerprint == record.fingerprint() => Ok(true),
            Some(_) => Err(another_message(self.topic, record)),
        }
    }
}

fn another_message(topic: &TopicSpec, record: &Record<'_>) -> Error {
    let message = format!(
        "topic {} partition {} is not the one that {} has letters of: the message at offset {} is another. Bring the old topic \
         back (or the topic's format and limits, if they were changed just now), or let the topic's settings name another \
         table for dead letters",
        topic.name, record.partition, topic.dead_letters, record.offset
    );
    Error::new(ErrorKind::BadData, message)
}

/// What no format could read.
fn check_payload(topic: &TopicSpec, payload: Option<&[u8]>) -> Result<(), Poison> {
    let Some(payload) = payload else {
        return Err(Poison::new(Reason::Tombstone, "the message has no payload"));
    };
    if payload.is_empty() {
        return Err(Poison::new(Reason::Empty, "the payload has no bytes"));
    }
    if payload.len() > topic.payload_bytes_max {
        let error = format!("the payload has {} bytes, the limit is {}", payload.len(), topic.payload_bytes_max);
        return Err(Poison::new(Reason::TooLarge, error));
    }
    Ok(())
}
