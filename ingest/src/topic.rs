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
    /// Dead letters go so many days after the day on which they were written; none and 0 keep them for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter_days: Option<u32>,
    /// The process stops, before it commits, when more than this share of the last messages would become dead letters; none
    /// never stops it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_dead_letter_ratio: Option<Ratio>,
}

/// A share of a whole, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Ratio(f64);

/// It is a number, which is equal to itself.
impl Eq for Ratio {}

impl TryFrom<f64> for Ratio {
    type Error = String;

    fn try_from(value: f64) -> Result<Self, String> {
        if (0.0..=1.0).contains(&value) { Ok(Self(value)) } else { Err(format!("{value} is no share: write 0 to 1")) }
    }
}

impl From<Ratio> for f64 {
    fn from(ratio: Ratio) -> Self {
        ratio.0
    }
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

impl FieldKind {
    /// The word for it, in the settings and in the table's log.
    pub fn code(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::Any => "any",
        }
    }
}

impl FieldSpec {
    /// A string field that lands in a column of the same name.
    pub fn string(name: &str) -> Self {
        Self { name: name.to_owned(), column: name.to_owned(), kind: FieldKind::String }
    }

    /// The field's column, which says what it is filled from.
    pub(crate) fn arrow(&self) -> Field {
        let kind = (KIND_NOTE.to_owned(), self.kind.code().to_owned());
        Field::new(&self.column, DataType::Utf8, true).with_metadata([kind].into())
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
            dead_letter_days: None,
            max_dead_letter_ratio: None,
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
            if field.column.is_empty() || field.column.contains(NOT_IN_A_COLUMN) {
                return bad(format!(
                    "column \"{}\" of field \"{}\" cannot be read by every engine: name one without blanks and ,;{{}}()=",
                    field.column, field.name
                ));
            }
            if taken || OWN_COLUMNS.iter().any(|own| own.eq_ignore_ascii_case(&field.column)) {
                return bad(format!("column \"{}\" of field \"{}\" is taken: name another", field.column, field.name));
            }
        }
        Ok(())
    }

    /// Whether messages of the bundled topic are messages of this one, as far as their fields' names tell.
    pub fn takes_bundled_events(&self) -> bool {
        let has = |wanted: &FieldSpec| self.fields.iter().any(|field| field.name == wanted.name);
        Self::spotify().fields.iter().all(has)
    }

    /// The table for rows: the fields' columns, then where each row came from.
    pub fn rows_spec(&self) -> TableSpec {
        let business = self.fields.iter().map(FieldSpec::arrow);
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

/// Refuses topics that get in each other's way: of one name, or of one table. Dead letters may share theirs.
///
/// # Errors
/// `BadConfig`, naming both topics, or what is wrong with one of them.
pub fn check_all(topics: &[TopicSpec]) -> Result<()> {
    for (index, topic) in topics.iter().enumerate() {
        topic.check()?;
        for other in &topics[..index] {
            let (first, second) = (&other.name, &topic.name);
            let message = if first == second {
                format!("topic {first} is described twice: take one of the two out of [[topics]]")
            } else if other.table == topic.table {
                format!("topics {first} and {second} both go to {}: each needs a table of its own", topic.table)
            } else if other.table == topic.dead_letters {
                format!(
                    "rows of topic {first} and dead letters of {second} both go to {}: name two tables",
                    other.table
                )
            } else if other.dead_letters == topic.table {
                format!(
                    "dead letters of topic {first} and rows of {second} both go to {}: name two tables",
                    topic.table
                )
            } else {
                continue;
            };
            return Err(Error::new(ErrorKind::BadConfig, message));
        }
    }
    Ok(())
}

/// Under this key the log of a table notes which kind a column was filled from: they are all text.
pub(crate) const KIND_NOTE: &str = "lakebeat.kind";

/// What Parquet readers of old take for their own in a column's name, and Spark refuses.
const NOT_IN_A_COLUMN: [char; 10] = [' ', ',', ';', '{', '}', '(', ')', '\n', '\t', '='];

/// Columns that every table of rows has besides the fields' own.
const OWN_COLUMNS: [&str; 11] = [
    "_rescued",
    "_key",
    "_headers",
    "_partition",
    "_offset",
    "_index",
    "_kafka_timestamp",
    "_ingested_at",
    "_ingest_date",
    "_replay_id",
    "_incarnation",
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
    fn what_becomes_of_dead_letters_can_be_set() {
        let with = |settings: &str| {
            let text = format!(r#"{{"name":"orders","table":"bronze.orders","fields":[],{settings}}}"#);
            serde_json::from_str::<TopicSpec>(&text)
        };
        let topic = with(r#""dead_letter_days":30,"max_dead_letter_ratio":0.25"#).expect("valid");
        assert_eq!((topic.dead_letter_days, topic.max_dead_letter_ratio.map(f64::from)), (Some(30), Some(0.25)));
        for wrong in [r#""max_dead_letter_ratio":1.5"#, r#""max_dead_letter_ratio":-1"#, r#""dead_letter_days":-1"#] {
            assert!(with(wrong).is_err(), "{wrong} was taken");
        }
        let error = with(r#""max_dead_letter_ratio":50"#).expect_err("a percentage").to_string();
        assert!(error.contains("0 to 1"), "{error}");
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
        let mut topic = TopicSpec::spotify();
        topic.fields.push(FieldSpec { column: "a b".to_owned(), ..FieldSpec::string("spaced") });
        let error = topic.check().expect_err("no column of Spark's").to_string();
        assert!(error.contains("\"a b\"") && error.contains("\"spaced\""), "{error}");
        let spaced = TopicSpec { name: "a topic".to_owned(), ..TopicSpec::spotify() };
        assert!(spaced.check().is_err());
    }

    #[test]
    fn topics_that_clash_are_refused_with_both_names() {
        let plays = TopicSpec::spotify();
        let table = |name: &str| TableName::new("bronze", name);
        let orders = TopicSpec { name: "orders".to_owned(), table: table("orders"), ..plays.clone() };
        check_all(&[plays.clone(), orders.clone()]).expect("they share the table of dead letters, and nothing else");
        for (clashing, words) in [
            (plays.clone(), ["spotify_events", "twice"]),
            (TopicSpec { table: plays.table.clone(), ..orders.clone() }, ["spotify_events", "orders"]),
            (
                TopicSpec { table: plays.dead_letters.clone(), dead_letters: table("x"), ..orders.clone() },
                ["orders", "letters"],
            ),
            (TopicSpec { dead_letters: plays.table.clone(), ..orders }, ["orders", "letters"]),
        ] {
            let error = check_all(&[plays.clone(), clashing]).expect_err("a clash").to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }
}
