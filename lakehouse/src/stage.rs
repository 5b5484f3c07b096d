//! Staging: rows become Parquet files in a table's folder that no commit names yet. Nobody sees them until one does, and a
//! crash leaves at most files that a vacuum finds.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, RecordBatch};
use arrow::compute::{self, SortColumn};
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutPayload};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::file::{DataFile, StagedFile};
use crate::stats;
use crate::table::Table;
use crate::version::TableVersion;

/// How files are staged.
#[derive(Debug, Clone)]
pub struct StageOptions {
    /// A file is closed and the next one begun at about this size, in bytes. Open files are held in memory, one a partition.
    pub file_bytes_max: usize,
    /// Together they take no more memory than this: the largest is closed early.
    pub open_bytes_max: usize,
}

impl Default for StageOptions {
    fn default() -> Self {
        Self { file_bytes_max: 64 << 20, open_bytes_max: 256 << 20 }
    }
}

impl Table {
    /// Writes what the stream yields, split by the values of `target`'s partition columns.
    ///
    /// Columns are found by name; a column that `target` has and the stream has not is left out, and read as NULL.
    pub async fn stage(
        &self,
        target: &TableVersion,
        mut batches: SendableRecordBatchStream,
        options: &StageOptions,
    ) -> Result<Vec<StagedFile>> {
        let mut stage = Stage::new(self, target, options);
        let failed = |source| Error::query(format!("cannot compute the rows of {}", self.name()), source);
        while let Some(batch) = batches.try_next().await.map_err(failed)? {
            stage.write(&batch).await?;
        }
        stage.finish().await
    }

    /// The same for rows that are already there.
    pub async fn stage_batches(
        &self,
        target: &TableVersion,
        batches: Vec<RecordBatch>,
        options: &StageOptions,
    ) -> Result<Vec<StagedFile>> {
        let mut stage = Stage::new(self, target, options);
        for batch in &batches {
            stage.write(batch).await?;
        }
        stage.finish().await
    }
}

/// The open files, and those that are written.
struct Stage<'a> {
    table: &'a Table,
    target: &'a TableVersion,
    options: &'a StageOptions,
    /// The columns that a file holds: all but the partition columns.
    file_schema: SchemaRef,
    /// One open file for each combination of partition values.
    open: HashMap<Vec<Option<String>>, ArrowWriter<Vec<u8>>>,
    staged: Vec<StagedFile>,
}

impl<'a> Stage<'a> {
    fn new(table: &'a Table, target: &'a TableVersion, options: &'a StageOptions) -> Self {
        let fields: Vec<_> = target
            .schema
            .fields()
            .iter()
            .filter(|field| !target.partition_columns.contains(field.name()))
            .cloned()
            .collect();
        let file_schema = Arc::new(Schema::new(fields));
        Self { table, target, options, file_schema, open: HashMap::new(), staged: Vec::new() }
    }

    async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        for (values, rows) in self.split(batch)? {
            let writer = match self.open.entry(values.clone()) {
                std::collections::hash_map::Entry::Occupied(open) => open.into_mut(),
                std::collections::hash_map::Entry::Vacant(free) => {
                    free.insert(open_file(&self.target.name, &self.file_schema)?)
                }
            };
            writer.write(&rows).map_err(|source| encode_error(&self.target.name, source))?;
            if writer.bytes_written() + writer.in_progress_size() >= self.options.file_bytes_max {
                self.close(&values).await?;
            }
        }
        self.bound_memory().await
    }

    /// The rows of one batch by partition values. Rows that come sorted by them are not copied.
    fn split(&self, batch: &RecordBatch) -> Result<Vec<(Vec<Option<String>>, RecordBatch)>> {
        let partition_columns = self.columns(batch, &self.target.partition_columns)?;
        if partition_columns.is_empty() {
            return Ok(vec![(Vec::new(), self.file_rows(batch)?)]);
        }
        let bad = |source| {
            Error::with_source(ErrorKind::BadData, format!("cannot split the rows of {}", self.target.name), source)
        };
        let ranges = compute::partition(&partition_columns).map_err(bad)?.ranges();
        if ranges.len() <= batch.num_rows() / 64 + 1 {
            return self.slices(batch, &partition_columns, ranges);
        }
        let sort: Vec<_> =
            partition_columns.iter().map(|values| SortColumn { values: values.clone(), options: None }).collect();
        let order = compute::lexsort_to_indices(&sort, None).map_err(bad)?;
        let sorted = compute::take_record_batch(batch, &order).map_err(bad)?;
        let partition_columns = self.columns(&sorted, &self.target.partition_columns)?;
        let ranges = compute::partition(&partition_columns).map_err(bad)?.ranges();
        self.slices(&sorted, &partition_columns, ranges)
    }

    fn slices(
        &self,
        batch: &RecordBatch,
        partition_columns: &[ArrayRef],
        ranges: Vec<Range<usize>>,
    ) -> Result<Vec<(Vec<Option<String>>, RecordBatch)>> {
        let rows = self.file_rows(batch)?;
        let slice = |range: Range<usize>| {
            let values = partition_columns.iter().map(|column| spell(column, range.start)).collect::<Result<_>>()?;
            Ok((values, rows.slice(range.start, range.len())))
        };
        ranges.into_iter().map(slice).collect()
    }

    fn columns(&self, batch: &RecordBatch, names: &[String]) -> Result<Vec<ArrayRef>> {
        let column = |name: &String| {
            let field = self.target.schema.field_with_name(name).map_err(|source| {
                Error::with_source(ErrorKind::Bug, format!("{} has no column {name}", self.target.name), source)
            })?;
            self.column(batch, field)
        };
        names.iter().map(column).collect()
    }

    /// The batch with just the columns of a file, in the table's order and types.
    fn file_rows(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let columns =
            self.file_schema.fields().iter().map(|field| self.column(batch, field)).collect::<Result<Vec<_>>>()?;
        RecordBatch::try_new(self.file_schema.clone(), columns).map_err(|source| {
            Error::with_source(ErrorKind::BadData, format!("the rows do not fit table {}", self.target.name), source)
        })
    }

    fn column(&self, batch: &RecordBatch, field: &Field) -> Result<ArrayRef> {
        let Some(column) = batch.column_by_name(field.name()) else {
            return Ok(arrow::array::new_null_array(field.data_type(), batch.num_rows()));
        };
        if column.data_type() == field.data_type() {
            return Ok(column.clone());
        }
        let strict = compute::CastOptions { safe: false, ..compute::CastOptions::default() };
        compute::cast_with_options(column, field.data_type(), &strict).map_err(|source| {
            let message = format!(
                "column {} of {} is {}, but the rows have {}",
                field.name(),
                self.target.name,
                field.data_type(),
                column.data_type()
            );
            Error::with_source(ErrorKind::BadData, message, source)
        })
    }

    async fn bound_memory(&mut self) -> Result<()> {
        loop {
            let size = |writer: &ArrowWriter<Vec<u8>>| writer.bytes_written() + writer.in_progress_size();
            let total: usize = self.open.values().map(size).sum();
            let largest = self.open.iter().max_by_key(|(_, writer)| size(writer)).map(|(values, _)| values.clone());
            match largest {
                Some(values) if total > self.options.open_bytes_max => self.close(&values).await?,
                _ => return Ok(()),
            }
        }
    }

    async fn close(&mut self, values: &[Option<String>]) -> Result<()> {
        let Some(mut writer) = self.open.remove(values) else { return Ok(()) };
        let name = &self.target.name;
        let footer = writer.finish().map_err(|source| encode_error(name, source))?;
        let bytes = std::mem::take(writer.inner_mut());
        let partition_values: Vec<_> =
            self.target.partition_columns.iter().cloned().zip(values.iter().cloned()).collect();
        let path = file_path(&partition_values, self.table.inner.ids.fresh());
        let file = DataFile {
            path: path.to_string(),
            size: bytes.len() as u64,
            modified_millis: self.table.inner.clock.now().timestamp_millis(),
            partition_values: partition_values.into_iter().collect(),
            stats: Some(stats::from_footer(&self.file_schema, &footer)),
            rows: u64::try_from(footer.file_metadata().num_rows()).ok(),
        };
        self.table
            .store()
            .put(&path, PutPayload::from(bytes))
            .await
            .map_err(|source| Error::store(format!("cannot write a file of {name}"), source))?;
        self.staged.push(StagedFile(Arc::new(file)));
        Ok(())
    }

    async fn finish(mut self) -> Result<Vec<StagedFile>> {
        let open: Vec<_> = self.open.keys().cloned().collect();
        for values in open {
            self.close(&values).await?;
        }
        Ok(self.staged)
    }
}

fn open_file(name: &crate::name::TableName, schema: &SchemaRef) -> Result<ArrowWriter<Vec<u8>>> {
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties)).map_err(|source| encode_error(name, source))
}

fn encode_error(name: &crate::name::TableName, source: parquet::errors::ParquetError) -> Error {
    Error::with_source(ErrorKind::BadData, format!("cannot encode the rows of {name} as Parquet"), source)
}

/// A partition value in Delta's spelling. Arrow prints dates, numbers and booleans as the protocol wants them.
fn spell(column: &ArrayRef, row: usize) -> Result<Option<String>> {
    if column.is_null(row) {
        return Ok(None);
    }
    let options = FormatOptions::default().with_timestamp_tz_format(Some("%Y-%m-%dT%H:%M:%S%.6fZ"));
    let text = ArrayFormatter::try_new(column.as_ref(), &options).map(|format| format.value(row).to_string());
    text.map(Some).map_err(|source| Error::with_source(ErrorKind::BadData, "cannot spell a partition value", source))
}

/// A fresh path, in folders named after the partition values as other engines name them.
fn file_path(partition_values: &[(String, Option<String>)], id: Uuid) -> Path {
    const NULL: &str = "__HIVE_DEFAULT_PARTITION__";
    let mut segments: Vec<String> = partition_values
        .iter()
        .map(|(column, value)| {
            // What is no plain character is replaced: the folder is only a name, the value stands in the log.
            let value: String = value
                .as_deref()
                .unwrap_or(NULL)
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' })
                .collect();
            format!("{column}={value}")
        })
        .collect();
    segments.push(format!("part-{id}.zstd.parquet"));
    Path::from_iter(segments)
}
