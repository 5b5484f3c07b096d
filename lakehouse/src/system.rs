//! System tables that are computed when they are asked for. `system.publications` is a table of its own.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;

use crate::error::{Error, ErrorKind, Result};
use crate::lake::Lake;
use crate::progress::IngestProgress;
use crate::version::TableVersion;

/// One of the computed tables.
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

/// Computes the table.
pub(crate) async fn provider(table: SystemTable, lake: &Lake) -> Result<Arc<dyn TableProvider>> {
    let columns = match table {
        SystemTable::IngestProgress => ingest_progress(&lake.ingest_progress().await?),
        SystemTable::Tables => tables(&heads(lake).await?),
    };
    let fields: Vec<_> =
        columns.iter().map(|(name, values)| Field::new(*name, values.data_type().clone(), true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let values = columns.into_iter().map(|(_, values)| values).collect();
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| {
        Error::with_source(ErrorKind::Bug, format!("cannot compute system.{}", table.name()), source)
    };
    let batch = RecordBatch::try_new(schema.clone(), values).map_err(|source| failed(source.into()))?;
    let rows = MemTable::try_new(schema, vec![vec![batch]]).map_err(|source| failed(source.into()))?;
    Ok(Arc::new(rows))
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

fn ingest_progress(rows: &[IngestProgress]) -> Columns {
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
