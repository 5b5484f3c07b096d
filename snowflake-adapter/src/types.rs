//! Names and types on the other side. Names are upper-case, so that SQL and BI tools find them without quotes.

use std::fmt;

use arrow::datatypes::{DataType, TimeUnit};

/// A name as Snowflake spells one that nobody quotes.
pub(crate) fn upper(name: &str) -> String {
    name.to_uppercase()
}

/// A name in a statement: any is allowed in quotes.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text in a statement. A backslash would begin an escape sequence there.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// A column's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ColumnType {
    Boolean,
    Number {
        precision: u8,
        scale: i8,
    },
    Float,
    Text,
    Binary,
    Date,
    /// A point in time: it is read back as the same instant, whatever zone a session is in.
    TimestampTz,
    /// A time of day without a zone.
    TimestampNtz,
}

impl ColumnType {
    /// The type that holds what a table of the lake holds; nothing for lists and structs.
    pub(crate) fn of(data_type: &DataType) -> Option<Self> {
        Some(match data_type {
            DataType::Boolean => Self::Boolean,
            DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => {
                Self::Number { precision: 38, scale: 0 }
            }
            DataType::Decimal128(precision, scale) => Self::Number { precision: *precision, scale: *scale },
            DataType::Float32 | DataType::Float64 => Self::Float,
            DataType::Utf8 => Self::Text,
            DataType::Binary => Self::Binary,
            DataType::Date32 => Self::Date,
            DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => Self::TimestampTz,
            DataType::Timestamp(TimeUnit::Microsecond, None) => Self::TimestampNtz,
            _ => return None,
        })
    }

    /// Whether a column that INFORMATION_SCHEMA describes so holds every value of this type.
    pub(crate) fn fits(self, data_type: &str, precision: u64, scale: u64) -> bool {
        match self {
            Self::Number { precision: wanted, scale: wanted_scale } => {
                data_type == "NUMBER" && u64::from(wanted) <= precision && u64::try_from(wanted_scale) == Ok(scale)
            }
            Self::Text => data_type == "TEXT",
            other => data_type == other.to_string(),
        }
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean => f.write_str("BOOLEAN"),
            Self::Number { precision, scale } => write!(f, "NUMBER({precision},{scale})"),
            Self::Float => f.write_str("FLOAT"),
            Self::Text => f.write_str("VARCHAR"),
            Self::Binary => f.write_str("BINARY"),
            Self::Date => f.write_str("DATE"),
            Self::TimestampTz => f.write_str("TIMESTAMP_TZ"),
            Self::TimestampNtz => f.write_str("TIMESTAMP_NTZ"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::Field;

    use super::*;

    #[test]
    fn names_and_texts_in_a_statement() {
        assert_eq!(quoted(&upper("top_songs")), "\"TOP_SONGS\"");
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's \\n"), "'it''s \\\\n'");
    }

    #[test]
    fn every_type_of_the_lake() {
        let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        for (ours, theirs, described) in [
            (DataType::Boolean, "BOOLEAN", ("BOOLEAN", 0, 0)),
            (DataType::Int8, "NUMBER(38,0)", ("NUMBER", 38, 0)),
            (DataType::Int64, "NUMBER(38,0)", ("NUMBER", 38, 0)),
            (DataType::Decimal128(10, 2), "NUMBER(10,2)", ("NUMBER", 12, 2)),
            (DataType::Float32, "FLOAT", ("FLOAT", 0, 0)),
            (DataType::Utf8, "VARCHAR", ("TEXT", 0, 0)),
            (DataType::Binary, "BINARY", ("BINARY", 0, 0)),
            (DataType::Date32, "DATE", ("DATE", 0, 0)),
            (utc.clone(), "TIMESTAMP_TZ", ("TIMESTAMP_TZ", 0, 0)),
            (DataType::Timestamp(TimeUnit::Microsecond, None), "TIMESTAMP_NTZ", ("TIMESTAMP_NTZ", 0, 0)),
        ] {
            let made = ColumnType::of(&ours).expect(theirs);
            assert_eq!(made.to_string(), theirs);
            assert!(made.fits(described.0, described.1, described.2), "{theirs} does not fit {described:?}");
        }
        assert_eq!(ColumnType::of(&DataType::List(Arc::new(Field::new("item", DataType::Utf8, true)))), None);
    }

    #[test]
    fn what_does_not_fit() {
        let number = ColumnType::of(&DataType::Int64).expect("a number");
        assert!(!number.fits("NUMBER", 10, 0) && !number.fits("NUMBER", 38, 2) && !number.fits("TEXT", 38, 0));
        let time = ColumnType::of(&DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))).expect("a time");
        assert!(!time.fits("TIMESTAMP_NTZ", 0, 0));
    }
}
