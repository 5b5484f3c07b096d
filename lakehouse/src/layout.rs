//! How the columns of a data file are laid out: compressed by Zstandard, and with a dictionary where values repeat.
//!
//! Nothing here that an engine would have to be new to read: the encodings are Parquet's first ones.

use std::collections::HashSet;

use arrow::array::{ArrayRef, RecordBatch};
use datafusion::common::hash_utils::{RandomState, create_hashes};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::{ParquetError, Result};
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

/// Of so many rows one may have a value that was there before: a column with fewer of those gets no dictionary. A dictionary
/// of such a column outgrows its page (1 MiB) within a file and is given up then, after each value was looked up in it.
const ROWS_A_REPEAT: usize = 20;

/// Begins a file in memory, laid out for rows such as these first ones.
pub(crate) fn open_file(first: &RecordBatch) -> Result<ArrowWriter<Vec<u8>>> {
    let mut properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default()));
    for (field, column) in first.schema_ref().fields().iter().zip(first.columns()) {
        if !field.data_type().is_nested() && is_nearly_unique(column)? {
            properties = properties.set_column_dictionary_enabled(ColumnPath::from(field.name().as_str()), false);
        }
    }
    ArrowWriter::try_new(Vec::new(), first.schema(), Some(properties.build()))
}

/// Whether nearly each row has a value of its own. NULLs are all the same value.
fn is_nearly_unique(column: &ArrayRef) -> Result<bool> {
    let mut hashes = vec![0; column.len()];
    // The layout of a file shall not depend on chance.
    let seeded = RandomState::with_seed(0);
    create_hashes(std::slice::from_ref(column), &seeded, &mut hashes)
        .map_err(|source| ParquetError::External(Box::new(source)))?;
    let mut seen = HashSet::with_capacity_and_hasher(column.len(), seeded);
    let mut repeats = 0;
    for hash in hashes {
        repeats += usize::from(!seen.insert(hash));
        // Most columns repeat soon, and the rest need not be looked at.
        if repeats * ROWS_A_REPEAT > column.len() {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    fn has_dictionary(data_type: DataType, column: ArrayRef) -> bool {
        let schema = Arc::new(Schema::new(vec![Field::new("column", data_type, true)]));
        let batch = RecordBatch::try_new(schema, vec![column]).expect("a valid batch");
        let mut writer = open_file(&batch).expect("valid properties");
        writer.write(&batch).expect("written");
        let footer = writer.finish().expect("finished");
        footer.row_group(0).column(0).dictionary_page_offset().is_some()
    }

    #[test]
    fn a_column_whose_values_repeat_gets_a_dictionary() {
        let numbers = |distinct: i64| Arc::new(Int64Array::from_iter_values((0..100).map(|row| row % distinct)));
        assert!(has_dictionary(DataType::Int64, numbers(1)));
        assert!(has_dictionary(DataType::Int64, numbers(94)));
        assert!(!has_dictionary(DataType::Int64, numbers(95)));
        let texts =
            |distinct: i32| Arc::new(StringArray::from_iter_values((0..100).map(|row| (row % distinct).to_string())));
        assert!(has_dictionary(DataType::Utf8, texts(50)));
        assert!(!has_dictionary(DataType::Utf8, texts(100)));
        let sparse = StringArray::from_iter((0..100).map(|row| (row % 3 == 0).then(|| row.to_string())));
        assert!(has_dictionary(DataType::Utf8, Arc::new(sparse)));
    }
}
