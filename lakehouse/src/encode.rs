//! Rows → Parquet files, in memory: split by partition values, encoded, and described for the log. No I/O, so that whoever
//! has much of it to do can do it on a thread where it keeps nobody waiting.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, RecordBatch};
use arrow::compute::{self, SortColumn};
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use object_store::path::Path;
use parquet::arrow::ArrowWriter;
use parquet::errors::ParquetError;
use uuid::Uuid;

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::file::{self, DataFile};
use crate::ids::Ids;
use crate::layout;
use crate::name::TableName;
use crate::stage::StageOptions;
use crate::stats;
use crate::version::TableVersion;

/// A Parquet file that is not yet in the store.
#[derive(Debug)]
pub struct EncodedFile {
    pub(crate) path: Path,
    pub(crate) bytes: Vec<u8>,
    pub(crate) file: DataFile,
}

/// The values of the partition columns, in Delta's spelling.
type Values = Vec<Option<String>>;

/// Encodes rows. One file is open for each combination of partition values.
#[derive(Debug)]
pub struct Encoder {
    target: Target,
    options: StageOptions,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn Ids>,
    open: HashMap<Values, ArrowWriter<Vec<u8>>>,
    full: Vec<EncodedFile>,
}

/// What the rows are made to fit.
#[derive(Debug)]
struct Target {
    name: TableName,
    schema: SchemaRef,
    partition_columns: Vec<String>,
    /// The columns that a file holds: all but the partition columns.
    file_schema: SchemaRef,
}

impl Encoder {
    pub(crate) fn new(
        version: &TableVersion,
        options: &StageOptions,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn Ids>,
    ) -> Self {
        let is_in_file = |field: &&Arc<Field>| !version.partition_columns.contains(field.name());
        let fields: Vec<_> = version.schema.fields().iter().filter(is_in_file).cloned().collect();
        let target = Target {
            name: version.name.clone(),
            schema: version.schema.clone(),
            partition_columns: version.partition_columns.clone(),
            file_schema: Arc::new(Schema::new(fields)),
        };
        Self { target, options: options.clone(), clock, ids, open: HashMap::new(), full: Vec::new() }
    }

    /// Takes rows. Columns are found by name; one that the table has and the rows have not is left out, and read as NULL.
    ///
    /// # Errors
    /// `BadData` if the rows do not fit the table.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        for (values, rows) in self.target.split(batch)? {
            let writer = match self.open.entry(values.clone()) {
                std::collections::hash_map::Entry::Occupied(open) => open.into_mut(),
                std::collections::hash_map::Entry::Vacant(free) => {
                    free.insert(layout::open_file(&rows).map_err(|source| self.target.unencodable(source))?)
                }
            };
            writer.write(&rows).map_err(|source| self.target.unencodable(source))?;
            if size(writer) >= self.options.file_bytes_max {
                self.close(&values)?;
            }
        }
        self.bound_memory()
    }

    /// The files that are full, which are then forgotten here.
    pub fn take_full(&mut self) -> Vec<EncodedFile> {
        std::mem::take(&mut self.full)
    }

    /// All files that were not taken yet.
    ///
    /// # Errors
    /// `BadData` if a file can't be encoded.
    pub fn finish(mut self) -> Result<Vec<EncodedFile>> {
        let open: Vec<_> = self.open.keys().cloned().collect();
        for values in open {
            self.close(&values)?;
        }
        Ok(self.full)
    }

    fn bound_memory(&mut self) -> Result<()> {
        loop {
            let total: usize = self.open.values().map(size).sum();
            let largest = self.open.iter().max_by_key(|(_, writer)| size(writer)).map(|(values, _)| values.clone());
            match largest {
                Some(values) if total > self.options.open_bytes_max => self.close(&values)?,
                _ => return Ok(()),
            }
        }
    }

    fn close(&mut self, values: &[Option<String>]) -> Result<()> {
        let Some(mut writer) = self.open.remove(values) else { return Ok(()) };
        let footer = writer.finish().map_err(|source| self.target.unencodable(source))?;
        let bytes = std::mem::take(writer.inner_mut());
        let partition_values: BTreeMap<_, _> =
            self.target.partition_columns.iter().cloned().zip(values.iter().cloned()).collect();
        let path = file_path(&self.target.partition_columns, values, self.ids.fresh());
        let file = DataFile {
            path: path.to_string(),
            size: bytes.len() as u64,
            modified_millis: self.clock.now().timestamp_millis(),
            partition_values,
            stats: Some(stats::from_footer(&self.target.file_schema, &footer)),
            rows: u64::try_from(footer.file_metadata().num_rows()).ok(),
            checksum: Some(crc32fast::hash(&bytes)),
        };
        self.full.push(EncodedFile { path, bytes, file });
        Ok(())
    }
}

/// What an open file takes of memory.
fn size(writer: &ArrowWriter<Vec<u8>>) -> usize {
    writer.bytes_written() + writer.in_progress_size()
}

impl Target {
    fn unencodable(&self, source: ParquetError) -> Error {
        Error::with_source(ErrorKind::BadData, format!("cannot encode the rows of {} as Parquet", self.name), source)
    }

    /// The rows of one batch by partition values. Rows that come sorted by them are not copied.
    fn split(&self, batch: &RecordBatch) -> Result<Vec<(Values, RecordBatch)>> {
        let partition_columns = self.columns(batch, &self.partition_columns)?;
        if partition_columns.is_empty() {
            return Ok(vec![(Vec::new(), self.file_rows(batch)?)]);
        }
        let bad =
            |source| Error::with_source(ErrorKind::BadData, format!("cannot split the rows of {}", self.name), source);
        let ranges = compute::partition(&partition_columns).map_err(bad)?.ranges();
        if ranges.len() <= batch.num_rows() / 64 + 1 {
            return self.slices(batch, &partition_columns, ranges);
        }
        let sort: Vec<_> =
            partition_columns.iter().map(|values| SortColumn { values: values.clone(), options: None }).collect();
        let order = compute::lexsort_to_indices(&sort, None).map_err(bad)?;
        let sorted = compute::take_record_batch(batch, &order).map_err(bad)?;
        let partition_columns = self.columns(&sorted, &self.partition_columns)?;
        let ranges = compute::partition(&partition_columns).map_err(bad)?.ranges();
        self.slices(&sorted, &partition_columns, ranges)
    }

    fn slices(
        &self,
        batch: &RecordBatch,
        partition_columns: &[ArrayRef],
        ranges: Vec<Range<usize>>,
    ) -> Result<Vec<(Values, RecordBatch)>> {
        let rows = self.file_rows(batch)?;
        let slice = |range: Range<usize>| {
            let values = partition_columns.iter().map(|column| spell(column, range.start)).collect::<Result<_>>()?;
            Ok((values, rows.slice(range.start, range.len())))
        };
        ranges.into_iter().map(slice).collect()
    }

    fn columns(&self, batch: &RecordBatch, names: &[String]) -> Result<Vec<ArrayRef>> {
        let column = |name: &String| {
            let field = self.schema.field_with_name(name).map_err(|source| {
                Error::with_source(ErrorKind::Bug, format!("{} has no column {name}", self.name), source)
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
            Error::with_source(ErrorKind::BadData, format!("the rows do not fit table {}", self.name), source)
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
                self.name,
                field.data_type(),
                column.data_type()
            );
            Error::with_source(ErrorKind::BadData, message, source)
        })
    }
}

/// A partition value in Delta's spelling. Arrow prints dates, numbers and booleans as the protocol wants them. An empty text is NULL
/// to the protocol, but not to every engine that reads one in the log.
fn spell(column: &ArrayRef, row: usize) -> Result<Option<String>> {
    if column.is_null(row) {
        return Ok(None);
    }
    let options = FormatOptions::default().with_timestamp_tz_format(Some("%Y-%m-%dT%H:%M:%S%.6fZ"));
    let text = ArrayFormatter::try_new(column.as_ref(), &options).map(|format| format.value(row).to_string());
    let text =
        text.map_err(|source| Error::with_source(ErrorKind::BadData, "cannot spell a partition value", source))?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// A fresh path, in folders named after the partition values as other engines name them: some take a value from the folder's name,
/// and not from the log.
fn file_path(partition_columns: &[String], values: &[Option<String>], id: Uuid) -> Path {
    const NULL: &str = "__HIVE_DEFAULT_PARTITION__";
    let folder = |(column, value): (&String, &Option<String>)| {
        format!("{}={}/", escaped(column), value.as_deref().map_or(NULL.to_owned(), escaped))
    };
    let folders: String = partition_columns.iter().zip(values).map(folder).collect();
    file::location(&format!("{folders}part-{id}.zstd.parquet"))
}

/// A text as a part of a folder's name. One that no file system would take is cut off: the whole value stands in the log.
fn escaped(text: &str) -> String {
    const BYTES_MAX: usize = 120;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let escape = |byte: u8| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    let mut name: String = text.bytes().map(escape).collect();
    name.truncate(BYTES_MAX);
    name
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, StringArray};
    use expect_test::expect;
    use uuid::Uuid;

    use super::{file_path, spell};

    /// By folders that other engines can take the values from, and that file systems take.
    #[test]
    fn folders_are_named_after_the_values() {
        let long = "ü".repeat(200);
        let texts = [Some("plain"), None, Some(""), Some("a/b=50% ï"), Some(".."), Some(&long)];
        let column: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
        let path = |row| {
            let value = spell(&column, row).expect("spelled");
            let path = file_path(&["a day".to_owned()], &[value], Uuid::nil()).to_string();
            path.split_once('/').expect("a folder").0.to_owned()
        };
        let paths: Vec<_> = (0..texts.len()).map(path).collect();
        expect![[r#"
            a%20day=plain
            a%20day=__HIVE_DEFAULT_PARTITION__
            a%20day=__HIVE_DEFAULT_PARTITION__
            a%20day=a%2Fb%3D50%25%20%C3%AF
            a%20day=..
            a%20day=%C3%BC%C3%BC%C3%BC%C3%BC%C3%BC%C3%BC%C3%BC%C3%BC%C3%BC%C3%BC%C3%BC%C3%BC%C3%BC%C3%BC%C3%BC%C3%BC%C3%BC%C3%BC%C3%BC%C3%BC"#]]
        .assert_eq(&paths.join("\n"));
    }
}
