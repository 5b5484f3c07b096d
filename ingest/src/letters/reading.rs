//! Letters and places out of the columns of both tables.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, BinaryArray, Int32Array, Int64Array, StringArray};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, Utc};
use futures::TryStreamExt as _;
use lakehouse::{Filter, INCARNATION_COLUMN, REPLAY_COLUMN, Scan, SessionFactory, TableVersion};

use super::Place;
use crate::records::Record;
use crate::{Error, ErrorKind, Result};

/// One letter as it is sent through again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Letter {
    pub(crate) place: Place,
    pub(crate) timestamp_millis: Option<i64>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) headers: Option<String>,
    pub(crate) payload: Option<Vec<u8>>,
}

impl Letter {
    /// The message, or the part of one, that it keeps.
    pub(crate) fn record(&self) -> Record<'_> {
        Record {
            partition: self.place.partition,
            offset: self.place.offset,
            timestamp_millis: self.timestamp_millis,
            key: self.key.as_deref(),
            payload: self.payload.as_deref(),
            headers: self.headers.as_deref(),
        }
    }

    /// About what it takes of memory.
    pub(crate) fn bytes(&self) -> usize {
        let length = |part: &Option<Vec<u8>>| part.as_ref().map_or(0, Vec::len);
        size_of::<Self>() + length(&self.key) + length(&self.payload) + self.headers.as_ref().map_or(0, String::len)
    }
}

/// The names of the columns that tell a place, in one of the two tables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlaceColumns {
    pub(crate) partition: &'static str,
    pub(crate) offset: &'static str,
    pub(crate) index: &'static str,
}

/// In the table of rows.
const OF_ROWS: PlaceColumns = PlaceColumns { partition: "_partition", offset: "_offset", index: "_index" };
/// In the table of letters.
const OF_LETTERS: PlaceColumns = PlaceColumns { partition: "partition", offset: "offset", index: "index" };

impl PlaceColumns {
    /// What to read of `version` to learn the places.
    fn names(self, version: &TableVersion) -> Vec<&'static str> {
        let mut names = vec![self.partition, self.offset, self.index];
        names.extend(version.has_column(INCARNATION_COLUMN).then_some(INCARNATION_COLUMN));
        names
    }
}

/// The places of a batch.
pub(crate) struct Places {
    partition: Int32Array,
    offset: Int64Array,
    index: Int32Array,
    incarnation: Option<Int32Array>,
}

impl Places {
    /// The places of letters.
    pub(crate) fn of_letters(batch: &RecordBatch) -> Result<Self> {
        Self::of(batch, OF_LETTERS)
    }

    fn of(batch: &RecordBatch, columns: PlaceColumns) -> Result<Self> {
        let incarnation = batch.column_by_name(INCARNATION_COLUMN);
        Ok(Self {
            partition: taken(batch, columns.partition, |column| column.as_primitive_opt::<Int32Type>().cloned())?,
            offset: taken(batch, columns.offset, |column| column.as_primitive_opt::<Int64Type>().cloned())?,
            index: taken(batch, columns.index, |column| column.as_primitive_opt::<Int32Type>().cloned())?,
            incarnation: incarnation.and_then(|column| column.as_primitive_opt::<Int32Type>().cloned()),
        })
    }

    pub(crate) fn get(&self, row: usize) -> Place {
        let incarnation = self.incarnation.as_ref().filter(|column| column.is_valid(row));
        Place {
            partition: self.partition.value(row),
            incarnation: incarnation.map_or(0, |column| column.value(row)),
            offset: self.offset.value(row),
            index: self.index.value(row),
        }
    }

    fn iter(&self) -> impl Iterator<Item = Place> {
        (0..self.offset.len()).map(|row| self.get(row))
    }
}

/// The columns of a batch of letters. Those that were not read are not asked for.
pub(crate) struct Letters<'a> {
    batch: &'a RecordBatch,
    pub(crate) places: Places,
}

impl<'a> Letters<'a> {
    /// What to read to learn the places of letters, and these columns besides.
    pub(crate) fn columns(version: &TableVersion, further: &[&'static str]) -> Vec<&'static str> {
        let mut names = OF_LETTERS.names(version);
        names.extend(further);
        names
    }

    pub(crate) fn of(batch: &'a RecordBatch) -> Result<Self> {
        Ok(Self { batch, places: Places::of_letters(batch)? })
    }

    pub(crate) fn text(&self, name: &str) -> Result<StringArray> {
        taken(self.batch, name, |column| column.as_string_opt::<i32>().cloned())
    }

    pub(crate) fn bytes(&self, name: &str) -> Result<BinaryArray> {
        taken(self.batch, name, |column| column.as_binary_opt::<i32>().cloned())
    }

    /// When each was written.
    pub(crate) fn times(&self) -> Result<Vec<DateTime<Utc>>> {
        let micros =
            taken(self.batch, "_ingested_at", |column| column.as_primitive_opt::<TimestampMicrosecondType>().cloned())?;
        Ok(micros.values().iter().map(|&micros| DateTime::from_timestamp_micros(micros).unwrap_or_default()).collect())
    }

    /// The columns that [`Letters::letters`] needs besides the place.
    pub(crate) const WHOLE: [&'static str; 4] = ["key", "headers", "payload", "_kafka_timestamp"];

    /// All of the batch, whole.
    pub(crate) fn letters(&self) -> Result<Vec<Letter>> {
        let (key, payload) = (self.bytes("key")?, self.bytes("payload")?);
        let headers = self.text("headers")?;
        let micros = taken(self.batch, "_kafka_timestamp", |column| {
            column.as_primitive_opt::<TimestampMicrosecondType>().cloned()
        })?;
        let bytes = |column: &BinaryArray, row| column.is_valid(row).then(|| column.value(row).to_vec());
        let letter = |row| Letter {
            place: self.places.get(row),
            timestamp_millis: micros.is_valid(row).then(|| micros.value(row).div_euclid(1000)),
            key: bytes(&key, row),
            headers: headers.is_valid(row).then(|| headers.value(row).to_owned()),
            payload: bytes(&payload, row),
        };
        Ok((0..self.batch.num_rows()).map(letter).collect())
    }
}

fn taken<T>(batch: &RecordBatch, name: &str, take: impl FnOnce(&ArrayRef) -> Option<T>) -> Result<T> {
    batch.column_by_name(name).and_then(take).ok_or_else(|| {
        let message = format!("column {name} came back with another type than it was written, or not at all");
        Error::new(ErrorKind::BadData, message)
    })
}

/// Which rows of the table are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Among {
    /// Any.
    Rows,
    /// Those that a replay brought.
    Replayed,
}

/// Which of `wanted` the table of rows holds. Reads the files that may hold them, and remembers nothing else.
pub(crate) async fn present(
    version: &Arc<TableVersion>,
    sessions: &SessionFactory,
    wanted: &HashSet<Place>,
    among: Among,
) -> Result<HashSet<Place>> {
    let mut found = HashSet::new();
    if wanted.is_empty() || (among == Among::Replayed && !version.has_column(REPLAY_COLUMN)) {
        return Ok(found);
    }
    let mut spans: BTreeMap<i32, (i64, i64)> = BTreeMap::new();
    for place in wanted {
        let span = spans.entry(place.partition).or_insert((place.offset, place.offset));
        *span = (span.0.min(place.offset), span.1.max(place.offset));
    }
    let span = |(&partition, &(first, last)): (&i32, &(i64, i64))| {
        let partition = i64::from(partition);
        Filter::number_in(OF_ROWS.partition, &[partition..=partition])
            .and(Filter::number_in(OF_ROWS.offset, &[first..=last]))
    };
    let mut filter = Filter::any(spans.iter().map(span));
    if among == Among::Replayed {
        filter = filter.and(Filter::present(REPLAY_COLUMN));
    }
    let scan = Scan::new(version.clone(), sessions.clone(), filter);
    let mut batches = scan.read_all(&OF_ROWS.names(version)).await?;
    while let Some(batch) = batches.try_next().await? {
        found.extend(Places::of(&batch, OF_ROWS)?.iter().filter(|place| wanted.contains(place)));
    }
    Ok(found)
}
