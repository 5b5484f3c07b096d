//! SQL functions that models may use beyond those of the query engine.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, TimestampMicrosecondBuilder};
use arrow::datatypes::{DataType, TimeUnit};
use chrono::DateTime;
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use datafusion::prelude::SessionContext;

/// Makes the functions known to a session.
pub(crate) fn register(context: &SessionContext) {
    context.register_udf(ScalarUDF::new_from_impl(TryToTimestampTz::new()));
}

/// `try_to_timestamp_tz(text)`: a timestamp as RFC 3339 writes it, in UTC and microseconds; NULL if the text is none.
#[derive(Debug, PartialEq, Eq, Hash)]
struct TryToTimestampTz {
    signature: Signature,
}

impl TryToTimestampTz {
    fn new() -> Self {
        Self { signature: Signature::exact(vec![DataType::Utf8], Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for TryToTimestampTz {
    fn name(&self) -> &str {
        "try_to_timestamp_tz"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _argument_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let texts = ColumnarValue::values_to_arrays(&arguments.args)?;
        let [texts] = texts.as_slice() else {
            return exec_err!("try_to_timestamp_tz takes one text");
        };
        let Some(texts) = texts.as_string_opt::<i32>() else {
            return exec_err!("try_to_timestamp_tz takes a text and not {}", texts.data_type());
        };
        let mut timestamps = TimestampMicrosecondBuilder::with_capacity(texts.len());
        for text in texts {
            timestamps.append_option(text.and_then(parse_micros));
        }
        let timestamps: ArrayRef = Arc::new(timestamps.finish().with_timezone("UTC"));
        Ok(ColumnarValue::Array(timestamps))
    }
}

/// RFC 3339 to microseconds since 1970; digits below a microsecond are cut off.
fn parse_micros(text: &str) -> Option<i64> {
    let parsed = DateTime::parse_from_rfc3339(text).ok()?;
    // A leap second has no number of its own in a count of microseconds.
    (parsed.timestamp_subsec_nanos() < 1_000_000_000).then(|| parsed.timestamp_micros())
}

#[cfg(test)]
mod tests {
    use super::parse_micros;

    #[test]
    fn what_is_a_timestamp_and_what_is_none() {
        assert_eq!(parse_micros("1970-01-01T00:00:01Z"), Some(1_000_000));
        assert_eq!(parse_micros("1970-01-01T01:00:00.0000019+01:00"), Some(1));
        assert_eq!(parse_micros("1969-12-31T23:59:59.999999Z"), Some(-1));
        for none in ["", "yesterday", "2024-13-01T00:00:00Z", "2024-01-01", "2024-01-01T00:00:00", "1700000000"] {
            assert_eq!(parse_micros(none), None, "{none}");
        }
    }
}
