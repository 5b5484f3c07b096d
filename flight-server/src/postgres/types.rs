//! Which PostgreSQL type stands for which Arrow type.

use datafusion::arrow::datatypes::{DataType, Schema, TimeUnit};
use pgwire::api::Type;
use pgwire::api::portal::Format;
use pgwire::api::results::{FieldFormat, FieldInfo};

use crate::error::{Error, Kind, Result};

/// Digits of a number that a client sends as numeric: PostgreSQL's has no limit, Arrow's has 38.
const NUMERIC_PRECISION: u8 = 38;
const NUMERIC_SCALE: i8 = 18;

/// The type that clients are told. What PostgreSQL has no like of goes as text.
pub(crate) fn postgres_type(data_type: &DataType) -> Type {
    match data_type {
        DataType::Boolean => Type::BOOL,
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => Type::INT2,
        DataType::Int32 | DataType::UInt16 => Type::INT4,
        DataType::Int64 | DataType::UInt32 => Type::INT8,
        DataType::Float16 | DataType::Float32 => Type::FLOAT4,
        DataType::Float64 => Type::FLOAT8,
        DataType::UInt64
        | DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => Type::NUMERIC,
        DataType::Date32 | DataType::Date64 => Type::DATE,
        DataType::Time32(_) | DataType::Time64(_) => Type::TIME,
        DataType::Timestamp(_, None) => Type::TIMESTAMP,
        DataType::Timestamp(_, Some(_)) => Type::TIMESTAMPTZ,
        DataType::Interval(_) | DataType::Duration(_) => Type::INTERVAL,
        DataType::Binary | DataType::LargeBinary | DataType::FixedSizeBinary(_) => Type::BYTEA,
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => {
            array_of(&postgres_type(field.data_type()), field.data_type())
        }
        _ => Type::TEXT,
    }
}

/// The array type over an element. Lists of lists and of structs go as text.
fn array_of(element: &Type, data_type: &DataType) -> Type {
    if data_type.is_nested() {
        return Type::TEXT;
    }
    let arrays = [
        (Type::BOOL, Type::BOOL_ARRAY),
        (Type::INT2, Type::INT2_ARRAY),
        (Type::INT4, Type::INT4_ARRAY),
        (Type::INT8, Type::INT8_ARRAY),
        (Type::FLOAT4, Type::FLOAT4_ARRAY),
        (Type::FLOAT8, Type::FLOAT8_ARRAY),
        (Type::NUMERIC, Type::NUMERIC_ARRAY),
        (Type::DATE, Type::DATE_ARRAY),
        (Type::TIME, Type::TIME_ARRAY),
        (Type::TIMESTAMP, Type::TIMESTAMP_ARRAY),
        (Type::TIMESTAMPTZ, Type::TIMESTAMPTZ_ARRAY),
        (Type::INTERVAL, Type::INTERVAL_ARRAY),
        (Type::BYTEA, Type::BYTEA_ARRAY),
        (Type::TEXT, Type::TEXT_ARRAY),
    ];
    arrays.into_iter().find(|(scalar, _)| scalar == element).map_or(Type::TEXT, |(_, array)| array)
}

/// `pg_type.typlen`.
pub(crate) fn type_size(data_type: &Type) -> i16 {
    match *data_type {
        Type::BOOL | Type::CHAR => 1,
        Type::INT2 => 2,
        Type::INT4 | Type::FLOAT4 | Type::DATE | Type::OID => 4,
        Type::INT8 | Type::FLOAT8 | Type::TIME | Type::TIMESTAMP | Type::TIMESTAMPTZ => 8,
        Type::INTERVAL => 16,
        Type::NAME => 64,
        _ => -1,
    }
}

/// `pg_attribute.atttypmod`: precision and scale of a numeric.
pub(crate) fn type_modifier(data_type: &DataType) -> i32 {
    match data_type {
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
        | DataType::Decimal256(precision, scale)
            if *scale >= 0 =>
        {
            ((i32::from(*precision) << 16) | i32::from(*scale)) + 4
        }
        _ => -1,
    }
}

/// The fields of a row description.
///
/// # Errors
/// `InvalidParameter` if the client asked for formats of another number of columns; `Unsupported` for more columns than
/// the protocol can count.
pub(super) fn fields(schema: &Schema, format: &Format) -> Result<Vec<FieldInfo>> {
    let columns = schema.fields().len();
    if i16::try_from(columns).is_err() {
        return Err(Error::new(
            Kind::Unsupported,
            format!("the result has {columns} columns; the protocol carries at most {}", i16::MAX),
        ));
    }
    if let Format::Individual(codes) = format
        && codes.len() != columns
    {
        return Err(Error::new(
            Kind::InvalidParameter,
            format!("bind message has {} result formats but query has {columns} columns", codes.len()),
        ));
    }
    Ok(schema
        .fields()
        .iter()
        .enumerate()
        .map(|(index, field)| {
            let data_type = postgres_type(field.data_type());
            let size = type_size(&data_type);
            FieldInfo::new(field.name().clone(), None, None, data_type, format.format_for(index))
                .with_type_size(size)
                .with_type_modifier(type_modifier(field.data_type()))
        })
        .collect())
}

/// A column of text, as session statements answer.
pub(super) fn text_field(name: &str, format: FieldFormat) -> FieldInfo {
    FieldInfo::new(name.to_owned(), None, None, Type::TEXT, format).with_type_size(-1)
}

/// The Arrow type of a parameter that a client declared. `None`: let the planner infer it.
pub(super) fn declared_type(declared: &Type) -> Option<DataType> {
    Some(match *declared {
        Type::BOOL => DataType::Boolean,
        Type::INT2 => DataType::Int16,
        Type::INT4 => DataType::Int32,
        Type::INT8 | Type::OID => DataType::Int64,
        Type::FLOAT4 => DataType::Float32,
        Type::FLOAT8 => DataType::Float64,
        Type::NUMERIC => DataType::Decimal128(NUMERIC_PRECISION, NUMERIC_SCALE),
        Type::DATE => DataType::Date32,
        Type::TIME => DataType::Time64(TimeUnit::Microsecond),
        Type::TIMESTAMP => DataType::Timestamp(TimeUnit::Microsecond, None),
        Type::TIMESTAMPTZ => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        Type::BYTEA => DataType::Binary,
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UUID | Type::JSON | Type::JSONB => {
            DataType::Utf8
        }
        _ => return None,
    })
}
