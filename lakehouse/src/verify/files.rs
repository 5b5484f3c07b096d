//! The data files: whether each is there, is what was written, can be read, and is what the log says of it.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::ObjectStoreExt as _;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};
use crate::file::{DataFile, location};
use crate::stats;
use crate::table::Table;
use crate::version::TableVersion;

/// So many files are in memory at once.
const FILES_AT_ONCE: usize = 4;

/// What is wrong with some files of a table, told with the path of each.
pub(super) async fn faults(table: &Table, columns: &TableVersion, files: Vec<Arc<DataFile>>) -> Result<Vec<String>> {
    let is_in_file = |field: &&Arc<Field>| !columns.partition_columns.contains(field.name());
    let fields: Vec<_> = columns.schema.fields().iter().filter(is_in_file).cloned().collect();
    let schema = Arc::new(Schema::new(fields));
    let audited = files.into_iter().map(async |file| {
        let wrong = faults_of(table, &schema, &file).await?;
        Ok(wrong.into_iter().map(|what| format!("file {} {what}", file.path)).collect::<Vec<_>>())
    });
    let wrong: Vec<_> = futures::stream::iter(audited).buffered(FILES_AT_ONCE).try_collect().await?;
    Ok(wrong.into_iter().flatten().collect())
}

async fn faults_of(table: &Table, schema: &SchemaRef, file: &Arc<DataFile>) -> Result<Vec<String>> {
    let path = location(&file.path);
    let bytes = match table.store().get(&path).await {
        Ok(found) => found.bytes().await,
        Err(object_store::Error::NotFound { .. }) => return Ok(vec!["is gone".to_owned()]),
        Err(source) => Err(source),
    };
    let bytes =
        bytes.map_err(|source| Error::store(format!("cannot read {} of {}", file.path, table.name()), source))?;
    let (schema, file) = (schema.clone(), file.clone());
    tokio::task::spawn_blocking(move || contradictions(&schema, &file, bytes))
        .await
        .map_err(|source| Error::with_source(ErrorKind::Bug, "the audit of a file was broken off", source))
}

/// In what the bytes of a file differ from what the log says.
fn contradictions(schema: &SchemaRef, file: &DataFile, bytes: Bytes) -> Vec<String> {
    if bytes.len() as u64 != file.size {
        return vec![format!("has {} bytes, but {} were written", bytes.len(), file.size)];
    }
    let is_as_written = file.checksum.map(|written| written == crc32fast::hash(&bytes));
    if is_as_written == Some(false) {
        return vec!["is not what was written: its checksum differs".to_owned()];
    }
    let rows = match ParquetRecordBatchReaderBuilder::try_new(bytes) {
        Ok(rows) => rows,
        Err(error) => return vec![format!("is no Parquet file that can be read: {error}")],
    };
    let logged: Value = file.stats.as_deref().and_then(|stats| serde_json::from_str(stats).ok()).unwrap_or_default();
    let mut wrong = stats::refuted(schema, rows.metadata(), &logged);
    // Only reading all of it tells that a file of somebody else's is whole.
    if is_as_written.is_none()
        && let Err(error) =
            rows.build().map_err(Into::into).and_then(|mut rows| rows.try_for_each(|batch| batch.map(drop)))
    {
        wrong.push(format!("cannot be read to its end: {error}"));
    }
    wrong
}
