//! Parameters that a client bound to a prepared statement: the record batches of a DoPut, as rows of values.

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::sql::server::PeekableFlightDataStream;
use datafusion::common::ScalarValue;
use futures::TryStreamExt;
use tonic::Status;

use crate::query::Parameter;

/// Rows in one binding at most: the statement runs once for each.
const ROWS_MAX: usize = 10_000;

/// The values of `$1`, `$2`, … for one run of the statement.
pub(super) type Values = Vec<ScalarValue>;

/// What one DoPut bound.
pub(super) struct Binding {
    /// The type of each column.
    pub(super) types: Vec<DataType>,
    /// One run of the statement each.
    pub(super) rows: Vec<Values>,
}

/// Reads a binding to its end. Columns are taken in order and by nothing else: drivers name them as they like.
///
/// Fails with `InvalidArgument` when the columns do not match the parameters in number, and with `ResourceExhausted`
/// beyond [`ROWS_MAX`] rows.
pub(super) async fn read(stream: PeekableFlightDataStream, expected: usize) -> Result<Binding, Status> {
    let mut batches = FlightRecordBatchStream::new_from_flight_data(stream.map_err(FlightError::from));
    let mut rows = Vec::new();
    while let Some(batch) = batches.try_next().await.map_err(unreadable)? {
        append(&mut rows, &batch, expected)?;
    }
    let schema = batches.schema();
    let types =
        schema.map_or_else(Vec::new, |schema| schema.fields().iter().map(|field| field.data_type().clone()).collect());
    Ok(Binding { types, rows })
}

/// What `ActionCreatePreparedStatement` announces: one nullable field for each parameter, in order.
pub(super) fn schema(parameters: &[Parameter]) -> Schema {
    let field = |parameter: &Parameter| Field::new(format!("${}", parameter.number), parameter.data_type.clone(), true);
    Schema::new(parameters.iter().map(field).collect::<Vec<_>>())
}

fn append(rows: &mut Vec<Values>, batch: &RecordBatch, expected: usize) -> Result<(), Status> {
    if batch.num_columns() != expected {
        return Err(Status::invalid_argument(format!(
            "the statement has {expected} parameters, and {} were bound",
            batch.num_columns()
        )));
    }
    if rows.len() + batch.num_rows() > ROWS_MAX {
        return Err(Status::resource_exhausted(format!(
            "more than {ROWS_MAX} rows of parameters were bound: bind fewer at a time"
        )));
    }
    for row in 0..batch.num_rows() {
        let values: Result<Values, _> = batch.columns().iter().map(|column| value(column, row)).collect();
        rows.push(values.map_err(|error| Status::invalid_argument(format!("a parameter cannot be read: {error}")))?);
    }
    Ok(())
}

/// A null of any type is the untyped null, so that it can be cast to whatever the parameter is.
fn value(column: &arrow::array::ArrayRef, row: usize) -> datafusion::common::Result<ScalarValue> {
    if column.is_null(row) || column.data_type() == &DataType::Null {
        return Ok(ScalarValue::Null);
    }
    ScalarValue::try_from_array(column, row)
}

fn unreadable(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        other => Status::invalid_argument(format!("the bound parameters cannot be read: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use tonic::Code;

    use super::*;

    fn batch() -> RecordBatch {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
        let words: ArrayRef = Arc::new(StringArray::from(vec!["a", "b"]));
        RecordBatch::try_from_iter([("b", numbers), ("a", words)]).expect("equal lengths")
    }

    #[test]
    fn rows_keep_the_order_of_columns_and_nulls() {
        let mut rows = Vec::new();
        append(&mut rows, &batch(), 2).expect("two parameters");
        let expected = vec![
            vec![ScalarValue::Int64(Some(1)), ScalarValue::from("a")],
            vec![ScalarValue::Null, ScalarValue::from("b")],
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn a_wrong_number_of_columns_is_refused() {
        let refused = append(&mut Vec::new(), &batch(), 3).expect_err("two are not three");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(refused.message(), "the statement has 3 parameters, and 2 were bound");
    }

    #[test]
    fn the_announced_schema_numbers_the_parameters() {
        let parameter = |number, data_type| Parameter { number, data_type };
        let schema = schema(&[parameter(1, DataType::Int64), parameter(2, DataType::Utf8)]);
        let fields: Vec<_> = schema.fields().iter().map(|field| (field.name().as_str(), field.is_nullable())).collect();
        assert_eq!(fields, [("$1", true), ("$2", true)]);
    }
}
