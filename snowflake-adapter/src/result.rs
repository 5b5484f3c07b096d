//! Rows of an answer. Snowflake sends them as JSON or as an Arrow stream in base64; here every value is a text.

use arrow::array::RecordBatch;
use arrow::ipc::reader::StreamReader;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::client::Data;
use crate::{Error, ErrorKind, Result};

/// The rows of one result.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    columns: Vec<String>,
    rows: Vec<Vec<Option<String>>>,
}

impl Rows {
    pub(crate) fn decode(doing: &str, data: Data) -> Result<Self> {
        if data.chunks.is_some_and(|chunks| !chunks.is_empty()) {
            let message = format!("cannot {doing}: the answer came in parts, which a small one never does");
            return Err(Error::new(ErrorKind::BadData, message));
        }
        let columns = data.rowtype.into_iter().map(|column| column.name).collect();
        let rows = match (data.rowset, data.rowset_base64) {
            (Some(rows), _) => rows,
            (None, Some(text)) if !text.is_empty() => decode_arrow(&text).map_err(|source| {
                Error::with_source(ErrorKind::BadData, format!("cannot {doing}: its answer cannot be read"), source)
            })?,
            _ => Vec::new(),
        };
        Ok(Self { columns, rows })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        self.rows.iter().map(|values| Row { columns: &self.columns, values })
    }

    /// The number in the first column of the first row: a count, or how many rows a statement changed.
    pub(crate) fn number(&self) -> Result<u64> {
        let text = self.rows.first().and_then(|row| row.first()).and_then(Option::as_deref).unwrap_or_default();
        text.parse().map_err(|source| {
            Error::with_source(
                ErrorKind::BadData,
                format!("Snowflake answered \"{text}\" where a number belongs"),
                source,
            )
        })
    }
}

/// One row of them.
pub(crate) struct Row<'a> {
    columns: &'a [String],
    values: &'a [Option<String>],
}

impl Row<'_> {
    /// The value of a column, whatever the case of its name; nothing for NULL.
    pub(crate) fn get(&self, column: &str) -> Option<&str> {
        let at = self.columns.iter().position(|name| name.eq_ignore_ascii_case(column))?;
        self.values.get(at)?.as_deref()
    }

    pub(crate) fn text(&self, column: &str) -> String {
        self.get(column).unwrap_or_default().to_owned()
    }

    pub(crate) fn number(&self, column: &str) -> u64 {
        self.get(column).and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

type Undecoded = Box<dyn std::error::Error + Send + Sync>;

fn decode_arrow(text: &str) -> Result<Vec<Vec<Option<String>>>, Undecoded> {
    let bytes = STANDARD.decode(text)?;
    let mut rows = Vec::new();
    for batch in StreamReader::try_new(bytes.as_slice(), None)? {
        rows.extend(texts(&batch?)?);
    }
    Ok(rows)
}

fn texts(batch: &RecordBatch) -> Result<Vec<Vec<Option<String>>>, Undecoded> {
    let options = FormatOptions::default();
    let columns = batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options));
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    let value = |column: usize, row: usize| {
        let is_null = batch.column(column).is_null(row);
        (!is_null).then(|| columns[column].value(row).to_string())
    };
    Ok((0..batch.num_rows()).map(|row| (0..columns.len()).map(|column| value(column, row)).collect()).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int8Array, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};
    use arrow::ipc::writer::StreamWriter;

    use super::*;

    fn data(text: &str) -> Data {
        serde_json::from_str(text).expect("an answer")
    }

    #[test]
    fn json_and_arrow_are_the_same_rows() {
        let schema = Schema::new(vec![Field::new("N", DataType::Int8, true), Field::new("T", DataType::Utf8, true)]);
        let columns: Vec<arrow::array::ArrayRef> =
            vec![Arc::new(Int8Array::from(vec![Some(7), None])), Arc::new(StringArray::from(vec![None, Some("é'\"")]))];
        let batch = RecordBatch::try_new(Arc::new(schema), columns).expect("fits");
        let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).expect("a stream");
        writer.write(&batch).expect("written");
        let text = STANDARD.encode(writer.into_inner().expect("ended"));
        let arrow = format!(r#"{{"rowtype": [{{"name": "N"}}, {{"name": "T"}}], "rowsetBase64": "{text}"}}"#);
        let json = r#"{"rowtype": [{"name": "N"}, {"name": "T"}], "rowset": [["7", null], [null, "é'\""]]}"#;
        let rows = Rows::decode("ask", data(json)).expect("JSON");
        assert_eq!(Rows::decode("ask", data(&arrow)).expect("Arrow"), rows);
        assert_eq!(rows.number().expect("a number"), 7);
        let last = rows.iter().last().expect("a row");
        assert_eq!((last.get("n"), last.get("t"), last.get("x")), (None, Some("é'\""), None));
    }

    #[test]
    fn what_is_no_answer() {
        assert_eq!(Rows::decode("ask", data(r#"{"rowsetBase64": ""}"#)).expect("no rows"), Rows::default());
        assert!(Rows::default().number().is_err());
        assert!(Rows::decode("ask", data(r#"{"rowsetBase64": "!"}"#)).is_err());
        assert!(Rows::decode("ask", data(r#"{"rowset": [], "chunks": [{"url": "x"}]}"#)).is_err());
    }
}
