//! System tables: what the parts of the program tell people, and one another.
//!
//! Some are computed when they are asked for, by the lake itself or by a part that registers a [`SystemSource`]. Others are
//! Delta tables that the parts write, so that each process sees what the others did; a session shows them before their first
//! row.

use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use arrow::json::writer::JsonArray;
use arrow::json::{ReaderBuilder, WriterBuilder};
use chrono::{DateTime, Utc};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};
use crate::journal::Journal;
use crate::lake::Lake;
use crate::name::TableName;
use crate::progress::IngestProgress;
use crate::version::TableVersion;
use crate::{publication, requests};

/// A system table that a part of this process computes, each time that a statement is planned which reads it. Another process
/// does not see it.
pub trait SystemSource: Debug + Send + Sync {
    /// Its name in the schema `system`.
    fn name(&self) -> &'static str;

    /// Its rows now; the columns are always the same.
    fn rows(&self) -> Result<RecordBatch>;
}

/// One of the tables that the lake computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SystemTable {
    /// How far each partition was consumed.
    IngestProgress,
    /// Every table of the lake, at its head.
    Tables,
}

impl SystemTable {
    pub(crate) const ALL: &[Self] = &[Self::IngestProgress, Self::Tables];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::IngestProgress => "ingest_progress",
            Self::Tables => "tables",
        }
    }
}

/// The name of a system table.
pub(crate) fn named(name: &str) -> TableName {
    TableName::new("system", name)
}

/// The tables that parts of the program write, and the columns that each gets with its first row.
pub(crate) fn written() -> Vec<(TableName, SchemaRef)> {
    let journals = Journal::ALL.iter().map(|journal| (journal.table(), journal.schema()));
    let others = [(publication::table_name(), publication::schema()), (requests::table_name(), requests::schema())];
    journals.chain(others).collect()
}

/// Computes the table.
pub(crate) async fn provider(table: SystemTable, lake: &Lake) -> Result<Arc<dyn TableProvider>> {
    let columns = match table {
        SystemTable::IngestProgress => ingest_progress(&lake.ingest_progress().await?, lake.clock().now()),
        SystemTable::Tables => tables(&heads(lake).await?),
    };
    let columns = columns.into_iter().map(|(name, values)| (name, values, true));
    let rows =
        RecordBatch::try_from_iter_with_nullable(columns).map_err(|source| not_computed(table.name(), source))?;
    provider_of(table.name(), rows)
}

/// Rows that are at hand, as the table of that name.
pub(crate) fn provider_of(name: &str, rows: RecordBatch) -> Result<Arc<dyn TableProvider>> {
    let table = MemTable::try_new(rows.schema(), vec![vec![rows]]).map_err(|source| not_computed(name, source))?;
    Ok(Arc::new(table))
}

fn not_computed(name: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::with_source(ErrorKind::Bug, format!("cannot compute system.{name}"), source)
}

/// Rows of a written table as a batch of its columns; a field that is no column is an error.
pub(crate) fn to_batch(table: &TableName, schema: &SchemaRef, rows: &[impl Serialize]) -> Result<RecordBatch> {
    let failed = |source| Error::with_source(ErrorKind::Bug, format!("rows do not fit the columns of {table}"), source);
    let mut decoder = ReaderBuilder::new(schema.clone()).with_strict_mode(true).build_decoder().map_err(failed)?;
    decoder.serialize(rows).map_err(failed)?;
    Ok(decoder.flush().map_err(failed)?.unwrap_or_else(|| RecordBatch::new_empty(schema.clone())))
}

/// The rows of batches that a written table holds.
pub(crate) fn from_batches<T: DeserializeOwned>(table: &TableName, batches: &[RecordBatch]) -> Result<Vec<T>> {
    let mut json = WriterBuilder::new().with_explicit_nulls(true).build::<_, JsonArray>(Vec::new());
    let written = json.write_batches(&batches.iter().collect::<Vec<_>>()).and_then(|()| json.finish());
    let damaged = || format!("a row of {table} is damaged");
    written.map_err(|source| Error::with_source(ErrorKind::BadData, damaged(), source))?;
    let json = json.into_inner();
    if json.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&json).map_err(|source| Error::with_source(ErrorKind::BadData, damaged(), source))
}

async fn heads(lake: &Lake) -> Result<Vec<Arc<TableVersion>>> {
    let mut heads = Vec::new();
    for name in lake.tables().await? {
        match lake.table(&name).head().await {
            Ok(head) => heads.push(head),
            // A table that cannot be read must not hide the others.
            Err(error) => tracing::warn!(table = %name, %error, "left out of system.tables"),
        }
    }
    Ok(heads)
}

type Columns = Vec<(&'static str, ArrayRef)>;

fn ingest_progress(rows: &[IngestProgress], now: DateTime<Utc>) -> Columns {
    let age = |row: &IngestProgress| row.committed_at.map(|time| (now - time).as_seconds_f64().max(0.0));
    let committed_at = rows.iter().map(|row| row.committed_at.map(|time| time.timestamp_micros()));
    vec![
        ("table_name", texts(rows.iter().map(|row| row.table.to_string()))),
        ("topic", texts(rows.iter().map(|row| row.topic.clone()))),
        ("partition", Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.partition)))),
        ("next_offset", numbers(rows.iter().map(|row| row.next_offset))),
        ("end_offset", numbers(rows.iter().map(|row| row.end_offset))),
        ("lag", numbers(rows.iter().map(|row| row.lag))),
        ("rows", numbers(rows.iter().map(|row| row.rows as i64))),
        ("dead_letters", numbers(rows.iter().map(|row| row.dead_letters as i64))),
        ("committed_at", Arc::new(committed_at.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))),
        ("rows_per_second", Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.rows_per_second)))),
        ("freshness_seconds", Arc::new(rows.iter().map(age).collect::<Float64Array>())),
    ]
}

fn tables(rows: &[Arc<TableVersion>]) -> Columns {
    vec![
        ("table_schema", texts(rows.iter().map(|row| row.name.schema.clone()))),
        ("table_name", texts(rows.iter().map(|row| row.name.name.clone()))),
        ("table_id", texts(rows.iter().map(|row| row.table_id.clone()))),
        ("version", numbers(rows.iter().map(|row| row.version as i64))),
        ("files", numbers(rows.iter().map(|row| row.files.len() as i64))),
        ("bytes", numbers(rows.iter().map(|row| row.bytes() as i64))),
        ("rows", Arc::new(rows.iter().map(|row| row.rows().map(|rows| rows as i64)).collect::<Int64Array>())),
    ]
}

fn texts(values: impl Iterator<Item = String>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn numbers(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

/// The type of every point in time in this lake.
pub fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}
