//! Rows and letters of a partition that was made anew say so, since their offsets were there before. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{AsArray as _, Int32Array};
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use arrow::record_batch::RecordBatch;
use lakehouse::INCARNATION_COLUMN;

use crate::{Error, ErrorKind, Result};

/// The column that a table gets with its first partition that was made anew.
pub(super) fn column() -> Field {
    Field::new(INCARNATION_COLUMN, DataType::Int32, true)
}

/// The batch with that column, if one of these partitions was ever made anew. `partition` names the column of the partition.
pub(super) fn mark<'a>(
    batch: &'a RecordBatch,
    partition: &str,
    incarnations: &BTreeMap<i32, i32>,
) -> Result<Cow<'a, RecordBatch>> {
    if incarnations.is_empty() {
        return Ok(Cow::Borrowed(batch));
    }
    let partitions = batch.column_by_name(partition).and_then(|column| column.as_primitive_opt::<Int32Type>());
    let partitions =
        partitions.ok_or_else(|| Error::new(ErrorKind::Bug, format!("decoded rows have no column {partition}")))?;
    let of_rows: Int32Array = partitions
        .iter()
        .map(|partition| partition.and_then(|partition| incarnations.get(&partition).copied()))
        .collect();
    let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(column()));
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(of_rows));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
        .map(Cow::Owned)
        .map_err(|source| Error::with_source(ErrorKind::Bug, "decoded columns do not fit their table", source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rows_of_what_was_made_anew_are_marked() {
        let schema = Arc::new(Schema::new(vec![Field::new("_partition", DataType::Int32, true)]));
        let batch = RecordBatch::try_new(schema, vec![Arc::new(Int32Array::from(vec![0, 1, 0]))]).expect("valid rows");
        let unmarked = mark(&batch, "_partition", &BTreeMap::new()).expect("nothing to do");
        assert_eq!(*unmarked, batch);
        let marked = mark(&batch, "_partition", &BTreeMap::from([(1, 2)])).expect("marked");
        let column = marked.column_by_name(INCARNATION_COLUMN).expect("a column").as_primitive::<Int32Type>();
        assert_eq!(column.iter().collect::<Vec<_>>(), [None, Some(2), None]);
    }
}
