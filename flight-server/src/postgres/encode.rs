//! From Arrow columns to PostgreSQL's values, in text and in binary, as PostgreSQL itself writes them.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Decimal256Array, Float32Array,
    Float64Array, Int16Array, Int32Array, Int64Array, IntervalMonthDayNanoArray, ListArray, RecordBatch, StringArray,
    Time64MicrosecondArray, TimestampMicrosecondArray,
};
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::{DataType, Field, IntervalUnit, TimeUnit};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use pgwire::api::results::{FieldFormat, FieldInfo};
use pgwire::messages::data::DataRow;

use super::numeric;
use super::text::{self, Zone};
use super::types::postgres_type;
use crate::error::{Error, Kind, Result};

/// PostgreSQL counts days and microseconds from 2000-01-01, Arrow from 1970-01-01.
pub(super) const EPOCH_DAYS: i32 = 10_957;
pub(super) const EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;

/// Encodes the batches of one result.
pub(super) struct RowEncoder {
    formats: Vec<FieldFormat>,
    /// In which zone text shows instants.
    zone: Zone,
}

impl RowEncoder {
    pub(super) fn new(fields: &[FieldInfo], zone: Zone) -> Self {
        Self { formats: fields.iter().map(FieldInfo::format).collect(), zone }
    }

    /// All rows of a batch.
    pub(super) fn encode(&self, batch: &RecordBatch) -> Result<Vec<DataRow>> {
        let columns = batch.columns().iter().map(Cells::new).collect::<Result<Vec<_>>>()?;
        let count = i16::try_from(columns.len()).unwrap_or(i16::MAX);
        // One buffer for the batch; each row is split off it without a copy.
        let mut buffer = BytesMut::with_capacity(batch.num_rows() * columns.len() * 16);
        let mut rows = Vec::with_capacity(batch.num_rows());
        for row in 0..batch.num_rows() {
            for (cells, format) in columns.iter().zip(&self.formats) {
                cells.put(row, *format, &self.zone, &mut buffer)?;
            }
            rows.push(DataRow::new(buffer.split(), count));
        }
        Ok(rows)
    }
}

/// One column, in one of the forms that PostgreSQL has a type for.
enum Cells {
    Boolean(BooleanArray),
    Int16(Int16Array),
    Int32(Int32Array),
    Int64(Int64Array),
    Float32(Float32Array),
    Float64(Float64Array),
    Numeric(Decimal128Array),
    LargeNumeric(Decimal256Array),
    Text(StringArray),
    Bytes(BinaryArray),
    Date(Date32Array),
    Time(Time64MicrosecondArray),
    Timestamp(TimestampMicrosecondArray),
    Instant(TimestampMicrosecondArray),
    Interval(IntervalMonthDayNanoArray),
    List { list: ListArray, values: Box<Cells>, element: u32 },
    Null,
}

impl Cells {
    fn new(array: &ArrayRef) -> Result<Self> {
        let data_type = array.data_type();
        let target = match canonical(data_type) {
            Some(target) => target,
            None => return display_text(array),
        };
        let array = if *data_type == target {
            Arc::clone(array)
        } else {
            // Out of range is an error, not a NULL.
            let options = CastOptions { safe: false, ..CastOptions::default() };
            cast_with_options(array, &target, &options)?
        };
        Ok(match &target {
            DataType::Boolean => Self::Boolean(array.as_boolean().clone()),
            DataType::Int16 => Self::Int16(array.as_primitive().clone()),
            DataType::Int32 => Self::Int32(array.as_primitive().clone()),
            DataType::Int64 => Self::Int64(array.as_primitive().clone()),
            DataType::Float32 => Self::Float32(array.as_primitive().clone()),
            DataType::Float64 => Self::Float64(array.as_primitive().clone()),
            DataType::Decimal128(..) => Self::Numeric(array.as_primitive().clone()),
            DataType::Decimal256(..) => Self::LargeNumeric(array.as_primitive().clone()),
            DataType::Utf8 => Self::Text(array.as_string::<i32>().clone()),
            DataType::Binary => Self::Bytes(array.as_binary::<i32>().clone()),
            DataType::Date32 => Self::Date(array.as_primitive().clone()),
            DataType::Time64(_) => Self::Time(array.as_primitive().clone()),
            DataType::Timestamp(_, None) => Self::Timestamp(array.as_primitive().clone()),
            DataType::Timestamp(_, Some(_)) => Self::Instant(array.as_primitive().clone()),
            DataType::Interval(_) => Self::Interval(array.as_primitive().clone()),
            DataType::List(field) => {
                let list = array.as_list::<i32>().clone();
                let element = postgres_type(field.data_type()).oid();
                Self::List { values: Box::new(Self::new(list.values())?), list, element }
            }
            _ => Self::Null,
        })
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Boolean(array) => array.is_null(row),
            Self::Int16(array) => array.is_null(row),
            Self::Int32(array) => array.is_null(row),
            Self::Int64(array) => array.is_null(row),
            Self::Float32(array) => array.is_null(row),
            Self::Float64(array) => array.is_null(row),
            Self::Numeric(array) => array.is_null(row),
            Self::LargeNumeric(array) => array.is_null(row),
            Self::Text(array) => array.is_null(row),
            Self::Bytes(array) => array.is_null(row),
            Self::Date(array) => array.is_null(row),
            Self::Time(array) => array.is_null(row),
            Self::Timestamp(array) | Self::Instant(array) => array.is_null(row),
            Self::Interval(array) => array.is_null(row),
            Self::List { list, .. } => list.is_null(row),
            Self::Null => true,
        }
    }

    /// One value with its length before it; -1 is NULL.
    fn put(&self, row: usize, format: FieldFormat, zone: &Zone, out: &mut BytesMut) -> Result<()> {
        if self.is_null(row) {
            out.put_i32(-1);
            return Ok(());
        }
        let start = out.len();
        out.put_i32(0);
        match format {
            FieldFormat::Text => self.put_text(row, zone, out),
            FieldFormat::Binary => self.put_binary(row, zone, out)?,
        }
        let length = i32::try_from(out.len() - start - 4).map_err(|error| {
            Error::with_source(Kind::OutOfRange, "a value is larger than the protocol carries (2 GB)", error)
        })?;
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    fn put_text(&self, row: usize, zone: &Zone, out: &mut BytesMut) {
        match self {
            Self::Boolean(array) => out.put_u8(if array.value(row) { b't' } else { b'f' }),
            Self::Int16(array) => text::put_display(array.value(row), out),
            Self::Int32(array) => text::put_display(array.value(row), out),
            Self::Int64(array) => text::put_display(array.value(row), out),
            Self::Float32(array) => text::put_f32(array.value(row), out),
            Self::Float64(array) => text::put_f64(array.value(row), out),
            Self::Numeric(array) => numeric::put_text(&array.value(row).to_string(), array.scale(), out),
            Self::LargeNumeric(array) => numeric::put_text(&array.value(row).to_string(), array.scale(), out),
            Self::Text(array) => out.put_slice(array.value(row).as_bytes()),
            Self::Bytes(array) => text::put_bytes(array.value(row), out),
            Self::Date(array) => text::put_date(array.value(row), out),
            Self::Time(array) => text::put_time(array.value(row), out),
            Self::Timestamp(array) => text::put_timestamp(array.value(row), out),
            Self::Instant(array) => text::put_instant(array.value(row), zone, out),
            Self::Interval(array) => text::put_interval(array.value(row), out),
            Self::List { list, values, .. } => values.put_list_text(list, row, zone, out),
            Self::Null => {}
        }
    }

    fn put_binary(&self, row: usize, zone: &Zone, out: &mut BytesMut) -> Result<()> {
        match self {
            Self::Boolean(array) => out.put_u8(u8::from(array.value(row))),
            Self::Int16(array) => out.put_i16(array.value(row)),
            Self::Int32(array) => out.put_i32(array.value(row)),
            Self::Int64(array) => out.put_i64(array.value(row)),
            Self::Float32(array) => out.put_f32(array.value(row)),
            Self::Float64(array) => out.put_f64(array.value(row)),
            Self::Numeric(array) => numeric::put_binary(&array.value(row).to_string(), array.scale(), out),
            Self::LargeNumeric(array) => numeric::put_binary(&array.value(row).to_string(), array.scale(), out),
            Self::Text(_) => self.put_text(row, zone, out),
            Self::Bytes(array) => out.put_slice(array.value(row)),
            Self::Date(array) => out.put_i32(array.value(row).saturating_sub(EPOCH_DAYS)),
            Self::Time(array) => out.put_i64(array.value(row)),
            Self::Timestamp(array) | Self::Instant(array) => {
                out.put_i64(array.value(row).saturating_sub(EPOCH_MICROSECONDS));
            }
            Self::Interval(array) => {
                let value = array.value(row);
                out.put_i64(value.nanoseconds / 1_000);
                out.put_i32(value.days);
                out.put_i32(value.months);
            }
            Self::List { list, values, element } => values.put_list_binary(list, row, *element, zone, out)?,
            Self::Null => {}
        }
        Ok(())
    }

    fn put_list_text(&self, list: &ListArray, row: usize, zone: &Zone, out: &mut BytesMut) {
        out.put_u8(b'{');
        for (position, index) in list_range(list, row).enumerate() {
            if position > 0 {
                out.put_u8(b',');
            }
            if self.is_null(index) {
                out.put_slice(b"NULL");
            } else {
                let mut element = BytesMut::new();
                self.put_text(index, zone, &mut element);
                text::put_array_element(&element, out);
            }
        }
        out.put_u8(b'}');
    }

    fn put_list_binary(
        &self,
        list: &ListArray,
        row: usize,
        element: u32,
        zone: &Zone,
        out: &mut BytesMut,
    ) -> Result<()> {
        let range = list_range(list, row);
        let length = i32::try_from(range.len()).unwrap_or(i32::MAX);
        let has_null = range.clone().any(|index| self.is_null(index));
        // An empty array has no dimension.
        out.put_i32(i32::from(length > 0));
        out.put_i32(i32::from(has_null));
        out.put_u32(element);
        if length > 0 {
            out.put_i32(length);
            out.put_i32(1);
        }
        for index in range {
            self.put(index, FieldFormat::Binary, zone, out)?;
        }
        Ok(())
    }
}

fn list_range(list: &ListArray, row: usize) -> std::ops::Range<usize> {
    let offsets = list.value_offsets();
    let at = |index: usize| usize::try_from(offsets[index]).expect("offsets of a list are never negative");
    at(row)..at(row + 1)
}

/// The form in which a type is encoded; `None` for those that have no like and go as text for people.
fn canonical(data_type: &DataType) -> Option<DataType> {
    Some(match data_type {
        DataType::Null => DataType::Null,
        DataType::Boolean => DataType::Boolean,
        DataType::Int8 | DataType::UInt8 | DataType::Int16 => DataType::Int16,
        DataType::UInt16 | DataType::Int32 => DataType::Int32,
        DataType::UInt32 | DataType::Int64 => DataType::Int64,
        DataType::UInt64 => DataType::Decimal128(20, 0),
        DataType::Float16 | DataType::Float32 => DataType::Float32,
        DataType::Float64 => DataType::Float64,
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale) => DataType::Decimal128(*precision, *scale),
        DataType::Decimal256(precision, scale) => DataType::Decimal256(*precision, *scale),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::Binary | DataType::LargeBinary | DataType::FixedSizeBinary(_) | DataType::BinaryView => {
            DataType::Binary
        }
        DataType::Date32 | DataType::Date64 => DataType::Date32,
        DataType::Time32(_) | DataType::Time64(_) => DataType::Time64(TimeUnit::Microsecond),
        DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        DataType::Interval(_) | DataType::Duration(_) => DataType::Interval(IntervalUnit::MonthDayNano),
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _)
            if !field.data_type().is_nested() =>
        {
            DataType::List(Arc::new(Field::new(field.name(), field.data_type().clone(), true)))
        }
        _ => return None,
    })
}

/// Structs, maps and lists of lists, written out.
fn display_text(array: &ArrayRef) -> Result<Cells> {
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(array, &options)?;
    let texts: StringArray =
        (0..array.len()).map(|row| array.is_valid(row).then(|| formatter.value(row).to_string())).collect();
    Ok(Cells::Text(texts))
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{Float64Builder, Int32Builder, ListBuilder, UInt64Array};
    use datafusion::arrow::datatypes::Schema;
    use pgwire::api::portal::Format;

    use super::*;
    use crate::postgres::types;

    fn rows(array: ArrayRef, format: &Format) -> Vec<Vec<u8>> {
        let schema = Arc::new(Schema::new(vec![Field::new("c", array.data_type().clone(), true)]));
        let fields = types::fields(&schema, format).expect("one column");
        let batch = RecordBatch::try_new(schema, vec![array]).expect("columns fit");
        let encoder = RowEncoder::new(&fields, Zone::parse("UTC"));
        let rows = encoder.encode(&batch).expect("encodable");
        rows.into_iter().map(|row| row.data.to_vec()).collect()
    }

    fn text(array: ArrayRef) -> Vec<String> {
        rows(array, &Format::UnifiedText)
            .into_iter()
            .map(|row| match &row[..4] {
                [255, 255, 255, 255] => "NULL".to_owned(),
                _ => String::from_utf8(row[4..].to_vec()).expect("text is UTF-8"),
            })
            .collect()
    }

    #[test]
    fn text_is_what_postgresql_writes() {
        assert_eq!(text(Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]))), ["t", "f", "NULL"]);
        assert_eq!(text(Arc::new(UInt64Array::from(vec![u64::MAX]))), ["18446744073709551615"]);
        let decimal = Decimal128Array::from(vec![12_345, -5, 0]).with_precision_and_scale(10, 2).expect("fits");
        assert_eq!(text(Arc::new(decimal)), ["123.45", "-0.05", "0.00"]);
        let instant = TimestampMicrosecondArray::from(vec![1_767_261_600_123_456]).with_timezone("UTC");
        assert_eq!(text(Arc::new(instant)), ["2026-01-01 10:00:00.123456+00"]);
        assert_eq!(text(Arc::new(BinaryArray::from(vec![&[1_u8, 255][..]]))), ["\\x01ff"]);
    }

    #[test]
    fn lists_are_arrays() {
        let mut builder = ListBuilder::new(Float64Builder::new());
        builder.append_value([Some(1.5), None]);
        builder.append_value([] as [Option<f64>; 0]);
        builder.append_null();
        assert_eq!(text(Arc::new(builder.finish())), ["{1.5,NULL}", "{}", "NULL"]);

        let mut builder = ListBuilder::new(Int32Builder::new());
        builder.append_value([Some(7)]);
        let row = &rows(Arc::new(builder.finish()), &Format::UnifiedBinary)[0];
        assert_eq!(row[4..], [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 23, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 7]);
    }

    #[test]
    fn binary_counts_from_the_year_2000() {
        let date = rows(Arc::new(Date32Array::from(vec![10_958])), &Format::UnifiedBinary);
        assert_eq!(date[0], [0, 0, 0, 4, 0, 0, 0, 1]);
        let instant = TimestampMicrosecondArray::from(vec![EPOCH_MICROSECONDS + 1]).with_timezone("UTC");
        assert_eq!(rows(Arc::new(instant), &Format::UnifiedBinary)[0], [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1]);
    }
}
