//! What a topic holds and where it lands: data, not code. Another topic is another [`TopicSpec`].

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use lakehouse::{TableName, TableSpec};
use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// A topic, its fields, and the two tables that its messages go to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicSpec {
    /// The topic's name in Kafka.
    pub name: String,
    /// The table for what can be decoded.
    pub table: TableName,
    /// The table for what can't.
    #[serde(default = "dead_letters")]
    pub dead_letters: TableName,
    /// How a payload is written down.
    #[serde(default)]
    pub format: Format,
    /// The fields that become columns, in the order of the columns. Other fields go to `_rescued`.
    pub fields: Vec<FieldSpec>,
    /// How many partitions the topic gets where it has to be made.
    #[serde(default = "partitions")]
    pub partitions: i32,
    /// A longer payload becomes a dead letter. In bytes.
    #[serde(default = "payload_bytes_max")]
    pub payload_bytes_max: usize,
}

/// How a payload is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One JSON object a message.
    #[default]
    Json,
    /// One JSON object a line, so that a message can hold several.
    Ndjson,
}

/// A field of the payload and the column that it lands in. Every column is text, as it came: types are the models' business.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldSpec {
    /// The field's name in the payload.
    pub name: String,
    /// The column's name in the table.
    pub column: String,
    /// What the payload has to hold there, if it holds anything.
    #[serde(default, rename = "type")]
    pub kind: FieldKind,
}

/// What a field may hold. `null`, or no such field, is NULL; anything else than this makes the message a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FieldKind {
    /// A string. The column gets its content.
    #[default]
    String,
    /// A number. The column gets its digits as they came.
    Number,
    /// `true` or `false`.
    Boolean,
    /// Anything. The column gets a string's content, and the JSON text of anything else.
    Any,
}

impl FieldSpec {
    /// A string field that lands in a column of the same name.
    pub fn string(name: &str) -> Self {
        Self { name: name.to_owned(), column: name.to_owned(), kind: FieldKind::String }
    }
}

impl TopicSpec {
    /// The bundled topic: listening events.
    pub fn spotify() -> Self {
        const SAME: [&str; 8] =
            ["event_id", "user_id", "song_id", "artist_name", "song_name", "event_type", "device_type", "country"];
        let mut fields: Vec<_> = SAME.into_iter().map(FieldSpec::string).collect();
        // `timestamp` is a keyword in SQL, and the column holds the text as it came.
        fields.push(FieldSpec { column: "timestamp_str".to_owned(), ..FieldSpec::string("timestamp") });
        Self {
            name: "spotify_events".to_owned(),
            table: TableName::new("bronze", "spotify_events"),
            dead_letters: dead_letters(),
            format: Format::Json,
            fields,
            partitions: partitions(),
            payload_bytes_max: payload_bytes_max(),
        }
    }

    /// Refuses a description that can't work: no name, two fields of one name, two columns of one name, a column of ours.
    ///
    /// # Errors
    /// `BadConfig`, naming the field.
    pub fn check(&self) -> Result<()> {
        let bad =
            |message: String| Err(Error::new(ErrorKind::BadConfig, format!("topic \"{}\": {message}", self.name)));
        let name_is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let is_dots = matches!(self.name.as_str(), "." | "..");
        if self.name.is_empty() || self.name.len() > 249 || is_dots || !self.name.chars().all(name_is_valid) {
            return bad("a topic's name has 1 to 249 letters, digits, '.', '_' or '-', and more than dots".to_owned());
        }
        if self.partitions < 1 {
            return bad(format!("partitions is {}: at least 1 is needed", self.partitions));
        }
        if self.table == self.dead_letters {
            return bad(format!("rows and dead letters both go to {}: name two tables", self.table));
        }
        for (index, field) in self.fields.iter().enumerate() {
            let before = &self.fields[..index];
            if before.iter().any(|other| other.name == field.name) {
                return bad(format!("field \"{}\" is there twice", field.name));
            }
            let taken = before.iter().any(|other| other.column.eq_ignore_ascii_case(&field.column));
            if taken || OWN_COLUMNS.iter().any(|own| own.eq_ignore_ascii_case(&field.column)) {
                return bad(format!("column \"{}\" of field \"{}\" is taken: name another", field.column, field.name));
            }
        }
        Ok(())
    }

    /// The table for rows: the fields' columns, then where each row came from.
    pub fn rows_spec(&self) -> TableSpec {
        let business = self.fields.iter().map(|field| Field::new(&field.column, DataType::Utf8, true));
        let own = [
            Field::new("_rescued", DataType::Utf8, true),
            Field::new("_key", DataType::Utf8, true),
            Field::new("_headers", DataType::Utf8, true),
            Field::new("_partition", DataType::Int32, true),
            Field::new("_offset", DataType::Int64, true),
            Field::new("_index", DataType::Int32, true),
            Field::new("_kafka_timestamp", timestamp(), true),
            Field::new("_ingested_at", timestamp(), true),
            Field::new("_ingest_date", DataType::Date32, true),
        ];
        partitioned(business.chain(own).collect())
    }

    /// The table for dead letters: all that is needed to see what was wrong, and to send it through again.
    pub fn letters_spec(&self) -> TableSpec {
        partitioned(vec![
            Field::new("topic", DataType::Utf8, true),
            Field::new("partition", DataType::Int32, true),
            Field::new("offset", DataType::Int64, true),
            Field::new("index", DataType::Int32, true),
            Field::new("key", DataType::Binary, true),
            Field::new("headers", DataType::Utf8, true),
            Field::new("payload", DataType::Binary, true),
            Field::new("reason", DataType::Utf8, true),
            Field::new("error", DataType::Utf8, true),
            // A corrected letter that is sent through again becomes the row that it should have been, timestamp included.
            Field::new("_kafka_timestamp", timestamp(), true),
            Field::new("_ingested_at", timestamp(), true),
            Field::new("_ingest_date", DataType::Date32, true),
        ])
    }
}

/// Columns that every table of rows has besides the fields' own.
const OWN_COLUMNS: [&str; 9] = [
    "_rescued",
    "_key",
    "_headers",
    "_partition",
    "_offset",
    "_index",
    "_kafka_timestamp",
    "_ingested_at",
    "_ingest_date",
];

/// The zone is part of the type: Delta keeps one kind of timestamp, in UTC.
pub(crate) const ZONE: &str = "UTC";

fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(ZONE.into()))
}

fn partitioned(fields: Vec<Field>) -> TableSpec {
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    TableSpec::new(schema).partitioned_by(["_ingest_date"])
}

fn dead_letters() -> TableName {
    TableName::new("bronze", "dead_letters")
}

fn partitions() -> i32 {
    4
}

/// Kafka's own default limit for a message (`message.max.bytes`).
fn payload_bytes_max() -> usize {
    1_048_576
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_topic_is_valid_and_has_nine_fields() {
        let topic = TopicSpec::spotify();
        topic.check().expect("the bundled topic is valid");
        assert_eq!(topic.fields.len(), 9);
        assert_eq!(topic.rows_spec().schema.fields().len(), 18);
        let last = topic.fields.last().expect("nine fields");
        assert_eq!((last.name.as_str(), last.column.as_str()), ("timestamp", "timestamp_str"));
    }

    #[test]
    fn a_topic_needs_little_text() {
        let text =
            r#"{"name":"orders","table":"bronze.orders","fields":[{"name":"id","column":"id","type":"number"}]}"#;
        let topic: TopicSpec = serde_json::from_str(text).expect("the text is complete");
        topic.check().expect("the topic is valid");
        assert_eq!(topic.fields[0].kind, FieldKind::Number);
        assert_eq!(topic.dead_letters.to_string(), "bronze.dead_letters");
    }

    #[test]
    fn clashing_names_are_refused_by_name() {
        let mut topic = TopicSpec::spotify();
        topic.fields.push(FieldSpec::string("_Offset"));
        let error = topic.check().expect_err("_offset is ours").to_string();
        assert!(error.contains("\"_Offset\""), "{error}");
        let mut topic = TopicSpec::spotify();
        topic.fields.push(FieldSpec { column: "other".to_owned(), ..FieldSpec::string("country") });
        assert!(topic.check().is_err());
        let spaced = TopicSpec { name: "a topic".to_owned(), ..TopicSpec::spotify() };
        assert!(spaced.check().is_err());
    }
}
