//! Delta's statistics of a data file: written from the Parquet footer that we just made, read to skip files.
//!
//! Delta keeps timestamps in milliseconds. A maximum is rounded up, so that what stands in the log is a true bound; other
//! writers cut it off, which is why the reader adds the rest of the millisecond.
//! Source: the Delta transaction protocol, §Per-file Statistics.

use arrow::array::{Array as _, ArrayRef};
use arrow::datatypes::{DataType, Field, SchemaRef, TimeUnit};
use chrono::{DateTime, Days, NaiveDate, SecondsFormat};
use datafusion::common::ScalarValue;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::file::metadata::ParquetMetaData;
use serde_json::{Map, Value, json};

/// Only so many columns get a minimum and a maximum: the log is read often, and nobody prunes by the fortieth column.
const COLUMNS_MAX: usize = 32;

/// Which end of a column's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    Minimum,
    Maximum,
}

impl Bound {
    /// The member of the statistics object that holds it.
    pub(crate) fn member(self) -> &'static str {
        match self {
            Self::Minimum => "minValues",
            Self::Maximum => "maxValues",
        }
    }
}

/// The statistics of a file with these columns, as JSON for the log.
pub(crate) fn from_footer(schema: &SchemaRef, footer: &ParquetMetaData) -> String {
    let mut bounds = [Map::new(), Map::new()];
    let mut null_counts = Map::new();
    for field in schema.fields().iter().take(COLUMNS_MAX) {
        let file_schema = footer.file_metadata().schema_descr();
        let Ok(converter) = StatisticsConverter::try_new(field.name(), schema, file_schema) else { continue };
        if let Ok(counts) = converter.row_group_null_counts(footer.row_groups())
            && counts.null_count() == 0
        {
            null_counts.insert(field.name().clone(), json!(counts.values().iter().sum::<u64>()));
        }
        let columns = [converter.row_group_mins(footer.row_groups()), converter.row_group_maxes(footer.row_groups())];
        for ((bound, column), found) in [Bound::Minimum, Bound::Maximum].into_iter().zip(columns).zip(&mut bounds) {
            let outermost = column.ok().and_then(|values| outermost(&values, bound));
            if let Some(value) = outermost.and_then(|value| to_json(&value, bound)) {
                found.insert(field.name().clone(), value);
            }
        }
    }
    let [minimums, maximums] = bounds;
    json!({
        "numRecords": footer.file_metadata().num_rows(),
        "minValues": minimums,
        "maxValues": maximums,
        "nullCount": null_counts,
    })
    .to_string()
}

/// What the log says of a file and its footer refutes: counts that differ, and bounds that a value lies outside of. Who prunes
/// by those would pass over rows.
pub(crate) fn refuted(schema: &SchemaRef, footer: &ParquetMetaData, logged: &Value) -> Vec<String> {
    let rows = footer.file_metadata().num_rows();
    let mut refuted = Vec::new();
    if let Some(said) = logged["numRecords"].as_i64().filter(|said| *said != rows) {
        refuted.push(format!("holds {rows} rows, but the log says {said}"));
    }
    for field in schema.fields() {
        let file_schema = footer.file_metadata().schema_descr();
        let Ok(column) = StatisticsConverter::try_new(field.name(), schema, file_schema) else { continue };
        refuted.extend(wrong_null_count(field, &column, footer, logged));
        for bound in [Bound::Minimum, Bound::Maximum] {
            refuted.extend(wrong_bound(field, &column, footer, (logged, bound)));
        }
    }
    refuted
}

fn wrong_null_count(
    field: &Field,
    column: &StatisticsConverter<'_>,
    footer: &ParquetMetaData,
    logged: &Value,
) -> Option<String> {
    let said = logged["nullCount"][field.name()].as_u64()?;
    let counts = column.row_group_null_counts(footer.row_groups()).ok().filter(|counts| counts.null_count() == 0)?;
    let nulls = counts.values().iter().sum::<u64>();
    (said != nulls).then(|| format!("has {nulls} NULLs in {}, but the log says {said}", field.name()))
}

fn wrong_bound(
    field: &Field,
    column: &StatisticsConverter<'_>,
    footer: &ParquetMetaData,
    (logged, bound): (&Value, Bound),
) -> Option<String> {
    let said = Some(bound_in(logged, field.name(), field.data_type(), bound)).filter(|said| !said.is_null())?;
    let groups = footer.row_groups();
    let (values, exact) = match bound {
        Bound::Minimum => (column.row_group_mins(groups), column.row_group_is_min_value_exact(groups)),
        Bound::Maximum => (column.row_group_maxes(groups), column.row_group_is_max_value_exact(groups)),
    };
    // A long text is cut in the footer, and what is left of it is a bound, but no value that is there.
    let is_exact = exact.ok().is_some_and(|exact| exact.true_count() == exact.len());
    let found = values.ok().filter(|_| is_exact).and_then(|values| outermost(&values, bound))?;
    let is_outside = match bound {
        Bound::Minimum => found < said,
        Bound::Maximum => found > said,
    };
    let end = if bound == Bound::Minimum { "least" } else { "greatest" };
    is_outside.then(|| format!("has {found} as its {end} {}, but the log says {said}", field.name()))
}

/// The least or the greatest of the row groups' values; nothing if a row group has values but no bound.
fn outermost(values: &ArrayRef, bound: Bound) -> Option<ScalarValue> {
    let mut outermost: Option<ScalarValue> = None;
    for row in 0..values.len() {
        if values.is_null(row) {
            return None;
        }
        let value = ScalarValue::try_from_array(values, row).ok()?;
        let further = outermost.as_ref().is_none_or(|so_far| match bound {
            Bound::Minimum => value < *so_far,
            Bound::Maximum => value > *so_far,
        });
        if further {
            outermost = Some(value);
        }
    }
    outermost
}

/// Floating-point numbers get no bounds: NaN compares with nothing, and engines differ on where it stands.
fn to_json(value: &ScalarValue, bound: Bound) -> Option<Value> {
    match value {
        ScalarValue::Int8(Some(number)) => Some(json!(number)),
        ScalarValue::Int16(Some(number)) => Some(json!(number)),
        ScalarValue::Int32(Some(number)) => Some(json!(number)),
        ScalarValue::Int64(Some(number)) => Some(json!(number)),
        ScalarValue::Utf8(Some(text)) => Some(json!(text)),
        ScalarValue::Date32(Some(days)) => Some(json!(date(*days)?.to_string())),
        ScalarValue::TimestampMicrosecond(Some(micros), _) => {
            let millis = match bound {
                Bound::Minimum => micros.div_euclid(1000),
                Bound::Maximum => micros.div_euclid(1000) + i64::from(micros.rem_euclid(1000) > 0),
            };
            let time = DateTime::from_timestamp_millis(millis)?;
            Some(json!(time.to_rfc3339_opts(SecondsFormat::Millis, true)))
        }
        _ => None,
    }
}

fn date(days: i32) -> Option<NaiveDate> {
    let epoch = NaiveDate::default();
    match u64::try_from(days) {
        Ok(days) => epoch.checked_add_days(Days::new(days)),
        Err(_) => epoch.checked_sub_days(Days::new(u64::from(days.unsigned_abs()))),
    }
}

/// The bound of a column as the log has it, widened to what is certainly true; NULL where the log says nothing.
pub(crate) fn bound_in(stats: &Value, column: &str, data_type: &DataType, bound: Bound) -> ScalarValue {
    let unknown = || ScalarValue::try_from(data_type).unwrap_or(ScalarValue::Null);
    let value = match &stats[bound.member()][column] {
        Value::String(text) => parse(text, data_type),
        Value::Number(number) => parse(&number.to_string(), data_type),
        _ => None,
    };
    match value {
        Some(ScalarValue::TimestampMicrosecond(Some(micros), zone)) if bound == Bound::Maximum => {
            ScalarValue::TimestampMicrosecond(Some(micros.saturating_add(999)), zone)
        }
        Some(value) => value,
        None => unknown(),
    }
}

/// The value of a partition column as the log has it.
pub(crate) fn partition_value(text: Option<&str>, data_type: &DataType) -> ScalarValue {
    let null = || ScalarValue::try_from(data_type).unwrap_or(ScalarValue::Null);
    // The protocol: an empty string is NULL, for every type.
    let text = text.filter(|text| !text.is_empty());
    text.and_then(|text| ScalarValue::try_from_string(text.to_owned(), data_type).ok()).unwrap_or_else(null)
}

/// Parses a bound of a type that we know to compare; any other is as good as absent.
fn parse(text: &str, data_type: &DataType) -> Option<ScalarValue> {
    match data_type {
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Utf8
        | DataType::Date32
        | DataType::Decimal128(_, _)
        | DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => {
            ScalarValue::try_from_string(text.to_owned(), data_type).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int32Array, RecordBatch, StringArray, TimestampMicrosecondArray};
    use arrow::datatypes::Schema;
    use parquet::arrow::ArrowWriter;

    use super::*;

    fn footer(batch: &RecordBatch) -> ParquetMetaData {
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).expect("valid schema");
        writer.write(batch).expect("written");
        writer.finish().expect("finished")
    }

    #[test]
    fn a_partition_value_of_any_type_is_read() {
        let read = |text, data_type| partition_value(Some(text), &data_type).to_string();
        let found = [
            read("0.5", DataType::Float64),
            read("-1e3", DataType::Float64),
            read("1.25", DataType::Decimal128(9, 2)),
            read("true", DataType::Boolean),
            read("2026-03-01", DataType::Date32),
            read("2026-03-01 10:00:00.000001", DataType::Timestamp(TimeUnit::Microsecond, None)),
            read("2026-03-01T10:00:00.000001Z", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
            read("", DataType::Utf8),
        ];
        expect_test::expect![[r#"
            0.5
            -1000
            1.25
            true
            2026-03-01
            1772359200000001
            1772359200000001
            NULL"#]]
        .assert_eq(&found.join("\n"));
    }

    #[test]
    fn bounds_hold_for_every_row() {
        let zone = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let schema = Arc::new(Schema::new(vec![
            Field::new("number", DataType::Int32, true),
            Field::new("text", DataType::Utf8, true),
            Field::new("time", zone.clone(), true),
        ]));
        let batch = RecordBatch::try_new(
            schema.clone(),
            vec![
                Arc::new(Int32Array::from(vec![Some(3), None, Some(-1)])),
                Arc::new(StringArray::from(vec!["b", "a", "c"])),
                Arc::new(TimestampMicrosecondArray::from(vec![1_001, 5_999, 2_000]).with_timezone("UTC")),
            ],
        )
        .expect("valid batch");
        let stats: Value = serde_json::from_str(&from_footer(&schema, &footer(&batch))).expect("valid JSON");
        expect_test::expect![[r#"{"maxValues":{"number":3,"text":"c","time":"1970-01-01T00:00:00.006Z"},"minValues":{"number":-1,"text":"a","time":"1970-01-01T00:00:00.001Z"},"nullCount":{"number":1,"text":0,"time":0},"numRecords":3}"#]]
        .assert_eq(&stats.to_string());
        let upper = bound_in(&stats, "time", &zone, Bound::Maximum);
        assert_eq!(upper, ScalarValue::TimestampMicrosecond(Some(6_999), Some("UTC".into())));
        assert!(bound_in(&stats, "missing", &DataType::Int32, Bound::Minimum).is_null());

        let refuted = |wrong: &[(&str, &str, Value)]| {
            let mut stats = stats.clone();
            wrong.iter().for_each(|(what, column, value)| stats[*what][*column] = value.clone());
            refuted(&schema, &footer(&batch), &stats)
        };
        assert!(refuted(&[]).is_empty());
        assert!(refuted(&[("minValues", "number", json!(-5)), ("maxValues", "text", json!("cc"))]).is_empty());
        let wrong = [
            ("maxValues", "number", json!(2)),
            ("minValues", "text", json!("b")),
            ("maxValues", "time", json!("1970-01-01T00:00:00.004Z")),
            ("nullCount", "number", json!(0)),
        ];
        expect_test::expect![[r#"
            has 1 NULLs in number, but the log says 0
            has 3 as its greatest number, but the log says 2
            has a as its least text, but the log says b
            has 5999 as its greatest time, but the log says 4999"#]]
        .assert_eq(&refuted(&wrong).join("\n"));
    }
}
