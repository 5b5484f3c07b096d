//! The two tables' Arrow builders: rows, and dead letters.

use std::sync::Arc;

use arrow::array::{
    ArrayBuilder as _, ArrayRef, BinaryBuilder, Date32Array, Int32Builder, Int64Builder, StringBuilder,
    TimestampMicrosecondArray, TimestampMicrosecondBuilder,
};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};

use super::{Poison, Row};
use crate::records::Record;
use crate::topic::{TopicSpec, ZONE};
use crate::{Error, ErrorKind, Result};

/// A key that is not text is kept in the text column as this and its bytes in base64.
const BINARY_KEY_PREFIX: &str = "base64:";

/// Builds batches for the table of rows.
pub(super) struct Rows {
    schema: SchemaRef,
    ingested_at: DateTime<Utc>,
    fields: Vec<StringBuilder>,
    rescued: StringBuilder,
    key: StringBuilder,
    headers: StringBuilder,
    partition: Int32Builder,
    offset: Int64Builder,
    index: Int32Builder,
    kafka_timestamp: TimestampMicrosecondBuilder,
    bytes: usize,
}

impl Rows {
    pub(super) fn new(topic: &TopicSpec, ingested_at: DateTime<Utc>) -> Self {
        Self {
            schema: topic.rows_spec().schema,
            ingested_at,
            fields: topic.fields.iter().map(|_| StringBuilder::new()).collect(),
            rescued: StringBuilder::new(),
            key: StringBuilder::new(),
            headers: StringBuilder::new(),
            partition: Int32Builder::new(),
            offset: Int64Builder::new(),
            index: Int32Builder::new(),
            kafka_timestamp: TimestampMicrosecondBuilder::new(),
            bytes: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.offset.values_slice().len()
    }

    /// About how many bytes the rows have.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, record: &Record<'_>, index: i32, row: &Row<'_>) {
        self.bytes += record.bytes();
        for (builder, value) in self.fields.iter_mut().zip(&row.values) {
            builder.append_option(value.as_deref());
        }
        self.rescued.append_option(Some(row.rescued.as_str()).filter(|text| !text.is_empty()));
        match record.key.map(|key| (std::str::from_utf8(key), key)) {
            None => self.key.append_null(),
            Some((Ok(text), _)) => self.key.append_value(text),
            Some((Err(_), bytes)) => self.key.append_value(format!("{BINARY_KEY_PREFIX}{}", STANDARD.encode(bytes))),
        }
        self.headers.append_option(record.headers);
        self.partition.append_value(record.partition);
        self.offset.append_value(record.offset);
        self.index.append_value(index);
        self.kafka_timestamp.append_option(micros(record));
    }

    pub(super) fn finish(&mut self) -> Result<RecordBatch> {
        let rows = self.len();
        self.bytes = 0;
        let mut columns: Vec<ArrayRef> = self.fields.iter_mut().map(finish_text).collect();
        columns.extend([
            Arc::new(self.rescued.finish()) as ArrayRef,
            finish_text(&mut self.key),
            Arc::new(self.headers.finish()),
            Arc::new(self.partition.finish()),
            Arc::new(self.offset.finish()),
            Arc::new(self.index.finish()),
            Arc::new(self.kafka_timestamp.finish().with_timezone(ZONE)),
        ]);
        columns.extend(ingest_columns(self.ingested_at, rows));
        batch(&self.schema, columns)
    }
}

/// Builds batches for the table of dead letters.
pub(super) struct Letters {
    schema: SchemaRef,
    topic: String,
    ingested_at: DateTime<Utc>,
    topics: StringBuilder,
    partition: Int32Builder,
    offset: Int64Builder,
    index: Int32Builder,
    key: BinaryBuilder,
    headers: StringBuilder,
    payload: BinaryBuilder,
    reason: StringBuilder,
    error: StringBuilder,
    kafka_timestamp: TimestampMicrosecondBuilder,
    bytes: usize,
}

impl Letters {
    pub(super) fn new(topic: &TopicSpec, ingested_at: DateTime<Utc>) -> Self {
        Self {
            schema: topic.letters_spec().schema,
            topic: topic.name.clone(),
            ingested_at,
            topics: StringBuilder::new(),
            partition: Int32Builder::new(),
            offset: Int64Builder::new(),
            index: Int32Builder::new(),
            key: BinaryBuilder::new(),
            headers: StringBuilder::new(),
            payload: BinaryBuilder::new(),
            reason: StringBuilder::new(),
            error: StringBuilder::new(),
            kafka_timestamp: TimestampMicrosecondBuilder::new(),
            bytes: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.offset.values_slice().len()
    }

    /// About how many bytes the letters have.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, record: &Record<'_>, index: i32, poison: &Poison) {
        self.bytes += record.bytes() + poison.error.len();
        self.topics.append_value(&self.topic);
        self.partition.append_value(record.partition);
        self.offset.append_value(record.offset);
        self.index.append_value(index);
        self.key.append_option(record.key);
        self.headers.append_option(record.headers);
        self.payload.append_option(record.payload);
        self.reason.append_value(poison.reason.code());
        self.error.append_value(&poison.error);
        self.kafka_timestamp.append_option(micros(record));
    }

    pub(super) fn finish(&mut self) -> Result<RecordBatch> {
        let rows = self.len();
        self.bytes = 0;
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.topics.finish()),
            Arc::new(self.partition.finish()),
            Arc::new(self.offset.finish()),
            Arc::new(self.index.finish()),
            Arc::new(self.key.finish()),
            Arc::new(self.headers.finish()),
            Arc::new(self.payload.finish()),
            Arc::new(self.reason.finish()),
            Arc::new(self.error.finish()),
            Arc::new(self.kafka_timestamp.finish().with_timezone(ZONE)),
        ];
        columns.extend(ingest_columns(self.ingested_at, rows));
        batch(&self.schema, columns)
    }
}

/// The text so far. The next batch is most likely as large, so it gets that room at once.
fn finish_text(builder: &mut StringBuilder) -> ArrayRef {
    let (rows, bytes) = (builder.len(), builder.values_slice().len());
    let mut full = std::mem::replace(builder, StringBuilder::with_capacity(rows, bytes + bytes / 16));
    Arc::new(full.finish())
}

/// Kafka's timestamp in the table's unit. One so large that it does not fit is as good as none.
fn micros(record: &Record<'_>) -> Option<i64> {
    record.timestamp_millis?.checked_mul(1000)
}

/// `_ingested_at` and `_ingest_date`, the same for the whole batch.
fn ingest_columns(ingested_at: DateTime<Utc>, rows: usize) -> [ArrayRef; 2] {
    const SECONDS_A_DAY: i64 = 86_400;
    let micros = TimestampMicrosecondArray::from(vec![ingested_at.timestamp_micros(); rows]).with_timezone(ZONE);
    let day = ingested_at.timestamp().div_euclid(SECONDS_A_DAY);
    let day = i32::try_from(day).expect("chrono's years fit 32 bits of days");
    [Arc::new(micros), Arc::new(Date32Array::from(vec![day; rows]))]
}

fn batch(schema: &SchemaRef, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
    RecordBatch::try_new(schema.clone(), columns)
        .map_err(|source| Error::with_source(ErrorKind::Bug, "decoded columns do not fit their table", source))
}
