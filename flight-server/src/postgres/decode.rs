//! From the parameters of a bind message to values.

use datafusion::common::ScalarValue;
use pgwire::api::Type;
use pgwire::api::results::FieldFormat;

use super::encode::{EPOCH_DAYS, EPOCH_MICROSECONDS};
use super::numeric;
use crate::error::{Error, Kind, Result};

/// Reads one value. The query path casts it to the type of its parameter, so text stays text here but where PostgreSQL's
/// text form is its own.
///
/// # Errors
/// `InvalidValue` for bytes that are none of that type, `Unsupported` for types that are not read.
pub(super) fn value(bytes: Option<&[u8]>, data_type: &Type, format: FieldFormat) -> Result<ScalarValue> {
    let Some(bytes) = bytes else {
        return Ok(ScalarValue::Null);
    };
    match format {
        FieldFormat::Binary => binary(bytes, data_type),
        FieldFormat::Text => text(bytes, data_type),
    }
}

fn text(bytes: &[u8], data_type: &Type) -> Result<ScalarValue> {
    let text = utf8(bytes)?;
    match *data_type {
        Type::BYTEA => Ok(ScalarValue::Binary(Some(bytea(text)?))),
        Type::BOOL => match text.trim().to_ascii_lowercase().as_str() {
            "t" | "true" | "y" | "yes" | "on" | "1" => Ok(ScalarValue::Boolean(Some(true))),
            "f" | "false" | "n" | "no" | "off" | "0" => Ok(ScalarValue::Boolean(Some(false))),
            _ => Err(invalid(text, data_type)),
        },
        _ => Ok(ScalarValue::Utf8(Some(text.to_owned()))),
    }
}

fn binary(bytes: &[u8], data_type: &Type) -> Result<ScalarValue> {
    Ok(match *data_type {
        Type::BOOL => ScalarValue::Boolean(Some(fixed::<1>(bytes, data_type)? != [0])),
        Type::INT2 => ScalarValue::Int16(Some(i16::from_be_bytes(fixed(bytes, data_type)?))),
        Type::INT4 => ScalarValue::Int32(Some(i32::from_be_bytes(fixed(bytes, data_type)?))),
        Type::OID => ScalarValue::Int64(Some(i64::from(u32::from_be_bytes(fixed(bytes, data_type)?)))),
        Type::INT8 => ScalarValue::Int64(Some(i64::from_be_bytes(fixed(bytes, data_type)?))),
        Type::FLOAT4 => ScalarValue::Float32(Some(f32::from_be_bytes(fixed(bytes, data_type)?))),
        Type::FLOAT8 => ScalarValue::Float64(Some(f64::from_be_bytes(fixed(bytes, data_type)?))),
        Type::DATE => {
            let days = i32::from_be_bytes(fixed(bytes, data_type)?);
            ScalarValue::Date32(Some(days.saturating_add(EPOCH_DAYS)))
        }
        Type::TIME => ScalarValue::Time64Microsecond(Some(i64::from_be_bytes(fixed(bytes, data_type)?))),
        Type::TIMESTAMP | Type::TIMESTAMPTZ => {
            let microseconds = i64::from_be_bytes(fixed(bytes, data_type)?);
            let zone = (*data_type == Type::TIMESTAMPTZ).then(|| "UTC".into());
            ScalarValue::TimestampMicrosecond(Some(microseconds.saturating_add(EPOCH_MICROSECONDS)), zone)
        }
        Type::NUMERIC => ScalarValue::Utf8(Some(numeric::read_binary(bytes)?)),
        Type::BYTEA => ScalarValue::Binary(Some(bytes.to_vec())),
        Type::UUID => ScalarValue::Utf8(Some(uuid::Uuid::from_bytes(fixed(bytes, data_type)?).to_string())),
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UNKNOWN | Type::JSON => {
            ScalarValue::Utf8(Some(utf8(bytes)?.to_owned()))
        }
        _ => {
            let name = data_type.name();
            let message = format!("parameters of type {name} are not supported in binary; cast to text or a number");
            return Err(Error::new(Kind::Unsupported, message));
        }
    })
}

/// The bytes of a type that always has as many.
fn fixed<const N: usize>(bytes: &[u8], data_type: &Type) -> Result<[u8; N]> {
    bytes.try_into().map_err(|_| {
        let message = format!("a binary {} has {N} bytes, and {} were sent", data_type.name(), bytes.len());
        Error::new(Kind::InvalidValue, message)
    })
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes)
        .map_err(|error| Error::with_source(Kind::InvalidValue, "a text parameter is not UTF-8", error))
}

/// `\x01ff`
fn bytea(text: &str) -> Result<Vec<u8>> {
    let Some(digits) = text.strip_prefix("\\x") else {
        return Ok(text.as_bytes().to_vec());
    };
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| {
            std::str::from_utf8(pair)
                .ok()
                .filter(|pair| pair.len() == 2)
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                .ok_or_else(|| invalid(text, &Type::BYTEA))
        })
        .collect()
}

fn invalid(text: &str, data_type: &Type) -> Error {
    Error::new(Kind::InvalidValue, format!("invalid input syntax for type {}: \"{text}\"", data_type.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_in_both_formats() {
        assert_eq!(value(None, &Type::INT4, FieldFormat::Binary).expect("null"), ScalarValue::Null);
        assert_eq!(
            value(Some(&[0, 0, 0, 7]), &Type::INT4, FieldFormat::Binary).expect("four bytes"),
            ScalarValue::Int32(Some(7))
        );
        assert_eq!(
            value(Some(b"\\x01ff"), &Type::BYTEA, FieldFormat::Text).expect("hex"),
            ScalarValue::Binary(Some(vec![1, 255]))
        );
        assert_eq!(
            value(Some(&[0, 0, 0, 1]), &Type::DATE, FieldFormat::Binary).expect("four bytes"),
            ScalarValue::Date32(Some(10_958))
        );
    }

    #[test]
    fn what_is_no_value_of_its_type_is_an_error() {
        for (bytes, data_type, format) in [
            (&[1_u8, 2][..], Type::INT4, FieldFormat::Binary),
            (b"maybe", Type::BOOL, FieldFormat::Text),
            (&[0xff, 0xfe], Type::TEXT, FieldFormat::Text),
            (b"\\xzz", Type::BYTEA, FieldFormat::Text),
            (b"\\x0", Type::BYTEA, FieldFormat::Text),
        ] {
            let error = value(Some(bytes), &data_type, format).expect_err("not a value");
            assert_eq!(error.kind(), Kind::InvalidValue);
        }
    }
}
