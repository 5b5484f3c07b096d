//! Dead letters that are in their table although the rows beside them are not: what a crash between the two commits leaves.

use std::collections::BTreeMap;

use arrow::array::{Array as _, AsArray as _};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use futures::TryStreamExt as _;
use lakehouse::INCARNATION_COLUMN;

use super::intake::PartitionStart;
use super::write::{Bound, Sink};
use crate::decode::Recorded;
use crate::records::Record;
use crate::{Error, ErrorKind, Result};

/// The letters beyond what bronze's ledger says was consumed. There are some only after a crash between the two commits.
pub(super) async fn recorded_letters(
    sink: &Sink,
    starts: &BTreeMap<i32, PartitionStart>,
    bound: &Bound,
) -> Result<Recorded> {
    let mut overlap = BTreeMap::new();
    for (&partition, start) in starts {
        let Some(&upto) = bound.letters_ledger.get(&partition).filter(|&&upto| upto > start.next) else { continue };
        if upto > start.watermarks.high {
            let message = format!(
                "topic {} partition {partition} ends at offset {}, but {} has its letters up to {upto}: the topic was made anew. \
                 Let its settings name another table for dead letters",
                sink.topic.name,
                start.watermarks.high,
                sink.letters.name()
            );
            return Err(Error::new(ErrorKind::BadData, message));
        }
        overlap.insert(partition, start.next..upto);
    }
    let mut recorded = Recorded::new();
    if overlap.is_empty() {
        return Ok(recorded);
    }
    let head = sink.letters.head().await?;
    let failed = |source| Error::query(format!("cannot read {}", sink.letters.name()), source);
    let rows = sink.sessions.context().read_table(head.provider()).map_err(failed)?;
    let mut columns = LETTER_COLUMNS.to_vec();
    columns.extend(head.has_column(INCARNATION_COLUMN).then_some(INCARNATION_COLUMN));
    let rows = rows.select_columns(&columns).map_err(failed)?;
    // There may be more letters of all times than memory holds; a handful of them is looked for.
    let mut batches = rows.execute_stream().await.map_err(failed)?;
    while let Some(batch) = batches.try_next().await.map_err(failed)? {
        let letters = LetterColumns::of(&batch)?;
        for row in 0..batch.num_rows() {
            let (topic, record, index) = letters.get(row);
            let is_beyond = overlap.get(&record.partition).is_some_and(|range| range.contains(&record.offset));
            let is_of_now = letters.incarnation(row) == bound.incarnations.get(&record.partition).copied().unwrap_or(0);
            if is_beyond && is_of_now && topic == sink.topic.name {
                recorded.insert((record.partition, record.offset, index), record.fingerprint());
            }
        }
    }
    tracing::info!(letters = recorded.len(), "dead letters were committed without the rows beside them; they are kept");
    Ok(recorded)
}

const LETTER_COLUMNS: [&str; 7] = ["topic", "partition", "offset", "index", "key", "payload", "_kafka_timestamp"];

/// The columns of the dead letters that tell which message each one is.
struct LetterColumns<'a> {
    topic: &'a arrow::array::StringArray,
    partition: &'a arrow::array::Int32Array,
    offset: &'a arrow::array::Int64Array,
    index: &'a arrow::array::Int32Array,
    key: &'a arrow::array::BinaryArray,
    payload: &'a arrow::array::BinaryArray,
    timestamp: &'a arrow::array::TimestampMicrosecondArray,
    incarnation: Option<&'a arrow::array::Int32Array>,
}

impl<'a> LetterColumns<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self> {
        let wrong = || Error::new(ErrorKind::Bug, "the dead letters came back with other types than they were written");
        let [topic, partition, offset, index, key, payload, timestamp, ..] = batch.columns() else {
            return Err(wrong());
        };
        Ok(Self {
            topic: topic.as_string_opt().ok_or_else(wrong)?,
            partition: partition.as_primitive_opt::<Int32Type>().ok_or_else(wrong)?,
            offset: offset.as_primitive_opt::<Int64Type>().ok_or_else(wrong)?,
            index: index.as_primitive_opt::<Int32Type>().ok_or_else(wrong)?,
            key: key.as_binary_opt().ok_or_else(wrong)?,
            payload: payload.as_binary_opt().ok_or_else(wrong)?,
            timestamp: timestamp.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(wrong)?,
            incarnation: batch
                .column_by_name(INCARNATION_COLUMN)
                .map(|column| column.as_primitive_opt::<Int32Type>().ok_or_else(wrong))
                .transpose()?,
        })
    }

    /// How often the letter's partition was made anew before it.
    fn incarnation(&self, row: usize) -> i32 {
        self.incarnation.filter(|column| column.is_valid(row)).map_or(0, |column| column.value(row))
    }

    /// Topic, message and index of one letter.
    fn get(&self, row: usize) -> (&'a str, Record<'a>, i32) {
        let bytes = |column: &'a arrow::array::BinaryArray| column.is_valid(row).then(|| column.value(row));
        let record = Record {
            partition: self.partition.value(row),
            offset: self.offset.value(row),
            timestamp_millis: self.timestamp.is_valid(row).then(|| self.timestamp.value(row).div_euclid(1000)),
            key: bytes(self.key),
            payload: bytes(self.payload),
            headers: None,
        };
        (self.topic.value(row), record, self.index.value(row))
    }
}
