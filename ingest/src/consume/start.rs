//! Where to begin: the ledgers of both tables against what the broker holds. Nothing is skipped in silence.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array as _, AsArray as _};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use futures::TryStreamExt as _;
use lakehouse::{ConsumedRange, Table, TableName, ingest_app_id};

use super::intake::PartitionStart;
use super::source::Broker;
use super::write::{Bound, Sink};
use crate::decode::Recorded;
use crate::kafka::Watermarks;
use crate::records::Record;
use crate::{Error, ErrorKind, Result};

/// So many commits are read together when looking for what was recorded last of each partition.
const WINDOW: u64 = 16;
/// So many commits are looked at. A partition of which nothing came since then is not compared with what it was.
const LOOK_BACK_MAX: u64 = 512;

/// Where to begin, and what the batches from there on are bound to.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) bound: Bound,
    pub(super) partitions: BTreeMap<i32, PartitionStart>,
    /// Dead letters that were committed by somebody who did not come to commit the rows beside them.
    pub(super) recorded: Recorded,
}

/// Reads the ledgers and compares them with the broker.
///
/// # Errors
/// `BadData`, with the range that is gone, if the broker does not have what the ledger asks for.
pub(super) async fn find(sink: &Sink, broker: &dyn Broker, partitions: &BTreeSet<i32>) -> Result<Start> {
    let topic = &sink.topic.name;
    let app_ids: Vec<String> = partitions.iter().map(|&partition| ingest_app_id(topic, partition)).collect();
    // The letters first. They are committed first, so a writer in between shows up as a lost race, never as letters
    // that we don't know of.
    let letters = sink.letters.ledger(&app_ids).await?;
    let bronze = sink.bronze.ledger(&app_ids).await?;
    sink.look_at_columns().await?;
    let entry = |entries: &BTreeMap<String, i64>, partition| entries.get(&ingest_app_id(topic, partition)).copied();
    let watermarks = broker.watermarks(topic, partitions).await?;

    let next: BTreeMap<i32, Option<i64>> =
        partitions.iter().map(|&partition| (partition, entry(&bronze.entries, partition))).collect();
    let known = next.iter().filter_map(|(&partition, next)| Some((partition, (*next)?))).collect();
    let last = last_ranges(&sink.bronze, bronze.version, topic, &known).await?;
    let mut starts = BTreeMap::new();
    for (&partition, &next) in &next {
        let here = watermarks[&partition];
        check_bounds(topic, sink.bronze.name(), partition, next, here)?;
        let last_taken = next
            .filter(|&next| next > here.low)
            .and_then(|next| last.get(&partition).filter(|range| range.to == next))
            .map(|range| range.fingerprint.clone())
            .filter(|fingerprint| !fingerprint.is_empty());
        starts.insert(partition, PartitionStart { next: next.unwrap_or(here.low), last_taken, watermarks: here });
    }
    let letters_ledger: BTreeMap<i32, i64> =
        partitions.iter().filter_map(|&partition| Some((partition, entry(&letters.entries, partition)?))).collect();
    let recorded = recorded_letters(sink, &starts, &letters_ledger).await?;
    let bound = Bound { bronze: bronze.version, letters: letters.version, letters_ledger };
    Ok(Start { bound, partitions: starts, recorded })
}

/// What the ledger asks for has to be there.
fn check_bounds(topic: &str, table: &TableName, partition: i32, next: Option<i64>, here: Watermarks) -> Result<()> {
    let Some(next) = next else { return Ok(()) };
    let problem = if next < here.low {
        format!(
            "offsets {next}..{} of topic {topic} partition {partition} are gone: {table} was filled up to {next}, and the \
             earliest that the broker still has is {}. Give the topic a longer retention",
            here.low, here.low
        )
    } else if next > here.high {
        format!(
            "topic {topic} partition {partition} ends at offset {}, but {table} was filled up to {next}: offsets {}..{next} \
             as they were read are gone. The topic was made anew, or its broker lost data. Bring the old topic back",
            here.high, here.high
        )
    } else {
        return Ok(());
    };
    let remedy = "or let the topic's settings name another table, which begins at the first offset that there is";
    Err(Error::new(ErrorKind::BadData, format!("{problem}, {remedy}")))
}

/// The last range that was recorded of each partition, newest commits first.
async fn last_ranges(
    table: &Table,
    version: u64,
    topic: &str,
    wanted: &BTreeMap<i32, i64>,
) -> Result<BTreeMap<i32, ConsumedRange>> {
    let mut found: BTreeMap<i32, ConsumedRange> = BTreeMap::new();
    let oldest = version.saturating_sub(LOOK_BACK_MAX);
    let mut upto = version;
    while upto > oldest && !wanted.keys().all(|partition| found.contains_key(partition)) {
        let from = upto.saturating_sub(WINDOW - 1).max(oldest + 1);
        let commits = match table.commits(from, upto).await {
            Ok(commits) => commits,
            // The log was cleaned up to here.
            Err(error) if error.kind() == ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        for commit in commits.into_iter().rev() {
            let Some(info) = commit.ingest_info()?.filter(|info| info.topic == topic) else { continue };
            for range in info.ranges {
                found.entry(range.partition).or_insert(range);
            }
        }
        upto = from - 1;
    }
    Ok(found)
}

/// The letters beyond what bronze's ledger says was consumed. There are some only after a crash between the two commits.
async fn recorded_letters(
    sink: &Sink,
    starts: &BTreeMap<i32, PartitionStart>,
    ledger: &BTreeMap<i32, i64>,
) -> Result<Recorded> {
    let mut overlap = BTreeMap::new();
    for (&partition, start) in starts {
        let Some(&upto) = ledger.get(&partition).filter(|&&upto| upto > start.next) else { continue };
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
    let rows = rows.select_columns(&LETTER_COLUMNS).map_err(failed)?;
    // There may be more letters of all times than memory holds; a handful of them is looked for.
    let mut batches = rows.execute_stream().await.map_err(failed)?;
    while let Some(batch) = batches.try_next().await.map_err(failed)? {
        let letters = LetterColumns::of(&batch)?;
        for row in 0..batch.num_rows() {
            let (topic, record, index) = letters.get(row);
            let is_beyond = overlap.get(&record.partition).is_some_and(|range| range.contains(&record.offset));
            if is_beyond && topic == sink.topic.name {
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
}

impl<'a> LetterColumns<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self> {
        let wrong = || Error::new(ErrorKind::Bug, "the dead letters came back with other types than they were written");
        let [topic, partition, offset, index, key, payload, timestamp] = batch.columns() else { return Err(wrong()) };
        Ok(Self {
            topic: topic.as_string_opt().ok_or_else(wrong)?,
            partition: partition.as_primitive_opt::<Int32Type>().ok_or_else(wrong)?,
            offset: offset.as_primitive_opt::<Int64Type>().ok_or_else(wrong)?,
            index: index.as_primitive_opt::<Int32Type>().ok_or_else(wrong)?,
            key: key.as_binary_opt().ok_or_else(wrong)?,
            payload: payload.as_binary_opt().ok_or_else(wrong)?,
            timestamp: timestamp.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(wrong)?,
        })
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

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(next: Option<i64>, low: i64, high: i64, expected: Expect) {
        let table = TableName::new("bronze", "t");
        let result = check_bounds("events", &table, 3, next, Watermarks { low, high });
        expected.assert_eq(&result.map_or_else(|error| error.to_string(), |()| "fine".to_owned()));
    }

    #[test]
    fn what_the_ledger_asks_for_has_to_be_there() {
        check(None, 7, 9, expect!["fine"]);
        check(Some(7), 7, 9, expect!["fine"]);
        check(Some(9), 7, 9, expect!["fine"]);
        check(Some(9), 9, 9, expect!["fine"]);
        check(
            Some(5),
            7,
            9,
            expect![
                "offsets 5..7 of topic events partition 3 are gone: bronze.t was filled up to 5, and the earliest that the broker still has is 7. Give the topic a longer retention, or let the topic's settings name another table, which begins at the first offset that there is"
            ],
        );
        check(
            Some(12),
            7,
            9,
            expect![
                "topic events partition 3 ends at offset 9, but bronze.t was filled up to 12: offsets 9..12 as they were read are gone. The topic was made anew, or its broker lost data. Bring the old topic back, or let the topic's settings name another table, which begins at the first offset that there is"
            ],
        );
    }
}
