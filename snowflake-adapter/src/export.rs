//! One version of one table as Parquet parts, in a form that Snowflake reads: upper-case names, microseconds, plain types.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute;
use arrow::datatypes::{Field, Schema, SchemaRef};
use bytes::Bytes;
use futures::TryStreamExt as _;
use lakehouse::{Lake, TableVersion};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use tokio::sync::mpsc;

use crate::types::upper;
use crate::{Error, ErrorKind, Result};

/// A part is closed at about this size, in bytes. It is held in memory until it is uploaded; Snowflake advises 100 MB and
/// more for parts that several machines load at once, and takes smaller ones.
const PART_BYTES_MAX: usize = 32 << 20;

/// Reads the table and sends its parts; none if it is empty. Returns the number of rows.
///
/// A part waits until the one before it was taken, so that no more than two are in memory.
pub(crate) async fn export(lake: &Lake, table: &TableVersion, parts: mpsc::Sender<Bytes>) -> Result<u64> {
    let failed = |source| Error::query(format!("cannot read {}", table.name), source);
    let context = lake.session_factory().context();
    let frame = context.read_table(table.provider()).map_err(failed)?;
    let mut batches = frame.execute_stream().await.map_err(failed)?;
    let schema = file_schema(&table.schema);
    let broken = |source| encode_error(table, source);
    let mut writer = open(&schema).map_err(broken)?;
    let mut rows = 0;
    while let Some(batch) = batches.try_next().await.map_err(failed)? {
        rows += batch.num_rows() as u64;
        writer.write(&fitted(table, &schema, &batch)?).map_err(broken)?;
        if writer.bytes_written() + writer.in_progress_size() >= PART_BYTES_MAX {
            let full = std::mem::replace(&mut writer, open(&schema).map_err(broken)?);
            send(&parts, full).await.map_err(broken)?;
        }
    }
    if writer.in_progress_rows() > 0 || !writer.flushed_row_groups().is_empty() {
        send(&parts, writer).await.map_err(broken)?;
    }
    Ok(rows)
}

/// Whoever takes the parts has an error of its own if it no longer does.
async fn send(parts: &mpsc::Sender<Bytes>, writer: ArrowWriter<Vec<u8>>) -> Result<(), ParquetError> {
    let bytes = writer.into_inner()?;
    if parts.send(bytes.into()).await.is_err() {
        tracing::debug!("the upload has ended before its parts");
    }
    Ok(())
}

fn open(schema: &SchemaRef) -> Result<ArrowWriter<Vec<u8>>, ParquetError> {
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties))
}

fn file_schema(schema: &SchemaRef) -> SchemaRef {
    let field = |field: &Arc<Field>| field.as_ref().clone().with_name(upper(field.name())).with_nullable(true);
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

/// The batch under the names and in the types of the file. A scan may hand out views or dictionaries of the same values.
fn fitted(table: &TableVersion, schema: &SchemaRef, batch: &RecordBatch) -> Result<RecordBatch> {
    let failed = |source| {
        Error::with_source(ErrorKind::BadData, format!("the rows of {} are not as its log says", table.name), source)
    };
    let strict = compute::CastOptions { safe: false, ..compute::CastOptions::default() };
    let columns = batch.columns().iter().zip(schema.fields());
    let columns = columns.map(|(column, field)| compute::cast_with_options(column, field.data_type(), &strict));
    let columns = columns.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    RecordBatch::try_new(schema.clone(), columns).map_err(failed)
}

fn encode_error(table: &TableVersion, source: ParquetError) -> Error {
    Error::with_source(ErrorKind::BadData, format!("cannot encode the rows of {} as Parquet", table.name), source)
}
