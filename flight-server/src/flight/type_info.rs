//! The SQL types that a column can have: `CommandGetXdbcTypeInfo`, 19 columns that ODBC drivers read by position.

use arrow_flight::error::Result;
use arrow_flight::sql::metadata::{XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder};
use arrow_flight::sql::{Nullable, Searchable, XdbcDataType as Xdbc, XdbcDatetimeSubcode as Subcode};

/// One type: name, XDBC code, column size, quote of its literals, parameters of its declaration, kind.
type Row = (&'static str, Xdbc, i32, Option<&'static str>, &'static [&'static str], Kind);

#[derive(Clone, Copy)]
enum Kind {
    /// Signed, with the radix in which its size counts.
    Number(i32),
    Text,
    Moment(Subcode),
    Other,
}

/// The builder orders them by code, as the protocol asks.
const TYPES: &[Row] = &[
    ("BOOLEAN", Xdbc::XdbcBit, 1, None, &[], Kind::Other),
    ("TINYINT", Xdbc::XdbcTinyint, 8, None, &[], Kind::Number(2)),
    ("BIGINT", Xdbc::XdbcBigint, 64, None, &[], Kind::Number(2)),
    ("BYTEA", Xdbc::XdbcVarbinary, i32::MAX, Some("'"), &[], Kind::Other),
    ("DECIMAL", Xdbc::XdbcDecimal, 38, None, &["precision", "scale"], Kind::Number(10)),
    ("INTEGER", Xdbc::XdbcInteger, 32, None, &[], Kind::Number(2)),
    ("SMALLINT", Xdbc::XdbcSmallint, 16, None, &[], Kind::Number(2)),
    ("REAL", Xdbc::XdbcReal, 24, None, &[], Kind::Number(2)),
    ("DOUBLE", Xdbc::XdbcDouble, 53, None, &[], Kind::Number(2)),
    ("INTERVAL", Xdbc::XdbcInterval, 64, Some("'"), &[], Kind::Other),
    ("VARCHAR", Xdbc::XdbcVarchar, i32::MAX, Some("'"), &[], Kind::Text),
    ("DATE", Xdbc::XdbcDate, 10, Some("'"), &[], Kind::Moment(Subcode::XdbcSubcodeYear)),
    ("TIME", Xdbc::XdbcTime, 15, Some("'"), &[], Kind::Moment(Subcode::XdbcSubcodeTime)),
    ("TIMESTAMP", Xdbc::XdbcTimestamp, 26, Some("'"), &[], Kind::Moment(Subcode::XdbcSubcodeTimestamp)),
    (
        "TIMESTAMP WITH TIME ZONE",
        Xdbc::XdbcTimestamp,
        32,
        Some("'"),
        &[],
        Kind::Moment(Subcode::XdbcSubcodeTimestampWithTimezone),
    ),
];

/// The answer to every `CommandGetXdbcTypeInfo`, built once when the door opens.
pub(super) fn build() -> Result<XdbcTypeInfoData> {
    let mut types = XdbcTypeInfoDataBuilder::new();
    for row in TYPES {
        types.append(describe(row));
    }
    types.build()
}

fn describe((name, code, size, quote, parameters, kind): &Row) -> XdbcTypeInfo {
    let radix = match kind {
        Kind::Number(radix) => Some(*radix),
        _ => None,
    };
    let (sql_data_type, datetime_subcode) = match kind {
        // ODBC splits a moment into the one code DATETIME and what kind of moment it is.
        Kind::Moment(subcode) => (Xdbc::XdbcDatetime, Some(*subcode)),
        _ => (*code, None),
    };
    let scaled = *code == Xdbc::XdbcDecimal;
    XdbcTypeInfo {
        type_name: (*name).to_owned(),
        data_type: *code,
        column_size: Some(*size),
        literal_prefix: quote.map(str::to_owned),
        literal_suffix: quote.map(str::to_owned),
        create_params: Some(parameters.iter().map(|parameter| (*parameter).to_owned()).collect()),
        nullable: Nullable::NullabilityNullable,
        case_sensitive: matches!(kind, Kind::Text),
        searchable: if matches!(kind, Kind::Text) { Searchable::Full } else { Searchable::Basic },
        unsigned_attribute: radix.map(|_| false),
        fixed_prec_scale: false,
        auto_increment: radix.map(|_| false),
        local_type_name: Some((*name).to_owned()),
        minimum_scale: scaled.then_some(0),
        maximum_scale: scaled.then_some(38),
        sql_data_type,
        datetime_subcode,
        num_prec_radix: radix,
        interval_precision: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nineteen_columns_and_a_filter_by_code() {
        let types = build().expect("the constants fit the builder");
        let all = types.record_batch(None).expect("the whole batch");
        assert_eq!((all.num_columns(), all.num_rows()), (19, TYPES.len()));
        assert_eq!(types.record_batch(Xdbc::XdbcTimestamp as i32).expect("a filter").num_rows(), 2);
        assert_eq!(types.record_batch(4242).expect("a filter").num_rows(), 0);
    }
}
