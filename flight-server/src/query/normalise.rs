//! The schema that clients see: one form of each type, the same in descriptions and in rows.
//!
//! Drivers compare the announced schema with the one of the batches, and many know no view or dictionary types
//! (arrow-adbc#3134, arrow-java#807). So both go through this module, on every door.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::array::RecordBatchOptions;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};

use crate::error::{Error, Kind, Result};

/// The form in which a type goes over the wire: no views, no dictionaries, no run ends, and one name for UTC.
pub fn normalise_data_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::Dictionary(_, value) => normalise_data_type(value),
        DataType::RunEndEncoded(_, value) => normalise_data_type(value.data_type()),
        DataType::Timestamp(unit, Some(zone)) if is_utc(zone) => DataType::Timestamp(*unit, Some("UTC".into())),
        DataType::List(field) | DataType::ListView(field) => DataType::List(normalise_field(field)),
        DataType::LargeList(field) | DataType::LargeListView(field) => DataType::LargeList(normalise_field(field)),
        DataType::FixedSizeList(field, length) => DataType::FixedSizeList(normalise_field(field), *length),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(normalise_field).collect()),
        DataType::Map(field, sorted) => DataType::Map(normalise_field(field), *sorted),
        other => other.clone(),
    }
}

/// The schema of the batches that [`normalise_batch`] makes. Every top column is nullable: whether an expression is, the
/// planner answers differently before and after optimising, and drivers that compare schemas would see two.
pub fn normalise_schema(schema: &Schema) -> SchemaRef {
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .map(|field| Field::new(field.name(), normalise_data_type(field.data_type()), true))
        .collect();
    Arc::new(Schema::new(fields))
}

/// The batch in the form of `schema`, which is [`normalise_schema`] of its plan's. Columns that are right already are not
/// copied.
///
/// # Errors
/// `Bug` if the batch is not one of that plan.
pub fn normalise_batch(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    if batch.num_columns() != schema.fields().len() {
        return Err(Error::new(
            Kind::Bug,
            format!(
                "the plan announced {} columns and made {}; please report this statement",
                schema.fields().len(),
                batch.num_columns()
            ),
        ));
    }
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| {
            if column.data_type() == field.data_type() {
                Ok(Arc::clone(column))
            } else {
                cast(column, field.data_type())
            }
        })
        .collect::<std::result::Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

fn normalise_field(field: &FieldRef) -> FieldRef {
    let data_type = normalise_data_type(field.data_type());
    if &data_type == field.data_type() {
        return Arc::clone(field);
    }
    Arc::new(Field::new(field.name(), data_type, field.is_nullable()))
}

fn is_utc(zone: &str) -> bool {
    ["UTC", "utc", "Z", "Etc/UTC", "+00:00", "+0000", "+00", "GMT", "Zulu"].contains(&zone)
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{Array, DictionaryArray, StringViewArray, TimestampMicrosecondArray};
    use datafusion::arrow::datatypes::{Int32Type, TimeUnit};

    use super::*;

    #[test]
    fn views_dictionaries_and_zones_have_one_form_in_schema_and_batch() {
        let text = StringViewArray::from(vec![Some("a"), None]);
        let dictionary: DictionaryArray<Int32Type> = vec![Some("x"), Some("y")].into_iter().collect();
        let instant = TimestampMicrosecondArray::from(vec![1, 2]).with_timezone("+00:00");
        let raw = Schema::new(vec![
            Field::new("t", text.data_type().clone(), true),
            Field::new("d", dictionary.data_type().clone(), false),
            Field::new("i", instant.data_type().clone(), false),
        ]);
        let batch =
            RecordBatch::try_new(Arc::new(raw.clone()), vec![Arc::new(text), Arc::new(dictionary), Arc::new(instant)])
                .expect("columns fit");

        let schema = normalise_schema(&raw);
        let normal = normalise_batch(batch, &schema).expect("castable");

        assert_eq!(normal.schema(), schema);
        assert_eq!(
            schema.fields().iter().map(|field| field.data_type().clone()).collect::<Vec<_>>(),
            vec![DataType::Utf8, DataType::Utf8, DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),]
        );
    }
}
