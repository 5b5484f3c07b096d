//! What must hold of every batch of payloads, whatever their bytes are: decoding never panics, each message is one row or one
//! dead letter, and which of the two and with what in it is what serde_json makes of the same text.
//!
//! One file for two users: the property test (`tests/it/payloads.rs`) has it as a module, and the fuzz target
//! (`fuzz/fuzz_targets/decode.rs`) links it as a library, the example `decoder_checks`.

#![allow(unreachable_pub, reason = "a library for the one, a module for the other")]

use std::collections::{BTreeMap, HashMap};

use arrow::array::{Array as _, AsArray as _};
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::record_batch::RecordBatch;
use chrono::DateTime;
use ingest::decode::{Decoded, Recorded, decode, decoder_for};
use ingest::records::{Record, Records};
use ingest::topic::TopicSpec;
use serde_json::Value;
use serde_json::value::RawValue;

/// Splits the bytes of a fuzzer into payloads: a byte that no JSON text holds as it is.
const SEPARATOR: u8 = 0x1e;
const PARTITION: i32 = 3;
const KEY: &[u8] = b"key";
/// Longer, and an error quotes what it should only name.
const ERROR_BYTES_MAX: usize = 1_000;

/// Formats by their names, so that a new one is one more here.
const FORMATS: [&str; 2] = ["json", "ndjson"];

/// Fields of all kinds. The limit is low, so that payloads beyond it are found.
fn topic(format: &str) -> TopicSpec {
    let mut topic: Value = serde_json::from_str(TOPIC).expect("the topic is JSON");
    topic["format"] = format.into();
    serde_json::from_value(topic).expect("the topic is described")
}

const TOPIC: &str = r#"{
        "name": "fuzzed", "table": "bronze.fuzzed", "payload_bytes_max": 3000,
        "fields": [
            {"name": "a", "column": "a"},
            {"name": "n", "column": "n", "type": "number"},
            {"name": "b", "column": "b", "type": "boolean"},
            {"name": "x", "column": "x", "type": "any"},
            {"name": "event_id", "column": "id"}
        ]
    }"#;

/// Checks the payloads that a fuzzer's bytes hold, as one batch.
///
/// # Panics
/// If something does not hold.
pub fn check_bytes(bytes: &[u8]) {
    let payloads: Vec<Option<&[u8]>> = bytes.split(|&byte| byte == SEPARATOR).map(Some).collect();
    check(&payloads);
}

/// Checks a batch of payloads in each format; `None` is a tombstone.
///
/// # Panics
/// If something does not hold.
pub fn check(payloads: &[Option<&[u8]>]) {
    for format in FORMATS {
        check_as(format, payloads);
    }
}

fn check_as(format: &str, payloads: &[Option<&[u8]>]) {
    let topic = topic(format);
    let mut records = Records::default();
    for (offset, payload) in (0..).zip(payloads) {
        records.push(&Record {
            partition: PARTITION,
            offset,
            timestamp_millis: Some(offset),
            key: Some(KEY),
            payload: *payload,
            headers: None,
        });
    }
    let mut decoded = Decoded::default();
    let now = DateTime::from_timestamp_micros(1).expect("a valid time");
    decode(decoder_for(&topic).as_ref(), &topic, &records, &Recorded::new(), now, &mut decoded)
        .expect("batches fit the schema");

    let mut found = Found::new();
    let mut letters = 0;
    for batch in &decoded.rows {
        assert_eq!(batch.schema(), topic.rows_spec().schema);
        collect(batch, ["_partition", "_offset", "_index"], &mut found, |row| read_row(batch, &topic, row));
    }
    for batch in &decoded.letters {
        assert_eq!(batch.schema(), topic.letters_spec().schema);
        letters += batch.num_rows();
        collect(batch, ["partition", "offset", "index"], &mut found, |row| read_letter(batch, row));
    }
    assert_eq!(decoded.dead_letters.values().sum::<u64>(), letters as u64, "letters are counted wrongly");
    for (offset, payload) in (0..).zip(payloads) {
        for (index, part) in (0..).zip(parts(&topic, format, *payload)) {
            let found = found
                .remove(&(offset, index))
                .unwrap_or_else(|| panic!("neither row nor letter ({format}, {index}): {}", shown(*payload)));
            part.compare(&found);
        }
    }
    assert!(found.is_empty(), "rows or letters of no message: {found:?}");
}

/// What became of each message, or of each line of it, by offset and index.
type Found = HashMap<(i64, i32), Outcome>;

/// What became of a message.
#[derive(Debug, PartialEq)]
enum Outcome {
    Row { values: Vec<Option<String>>, rescued: Option<String> },
    Letter { reason: String, payload: Option<Vec<u8>> },
}

fn collect(batch: &RecordBatch, place: [&str; 3], into: &mut Found, read: impl Fn(usize) -> Outcome) {
    let [partition, offset, index] = place;
    let offsets = batch.column_by_name(offset).expect("an offset").as_primitive::<Int64Type>();
    for row in 0..batch.num_rows() {
        assert_eq!(number(batch, partition, row), PARTITION);
        let place = (offsets.value(row), number(batch, index, row));
        assert!(into.insert(place, read(row)).is_none(), "{place:?} is there twice");
    }
}

fn text(batch: &RecordBatch, column: &str, row: usize) -> Option<String> {
    let column = batch.column_by_name(column).unwrap_or_else(|| panic!("no column {column}")).as_string::<i32>();
    column.is_valid(row).then(|| column.value(row).to_owned())
}

fn number(batch: &RecordBatch, column: &str, row: usize) -> i32 {
    batch.column_by_name(column).unwrap_or_else(|| panic!("no column {column}")).as_primitive::<Int32Type>().value(row)
}

fn read_row(batch: &RecordBatch, topic: &TopicSpec, row: usize) -> Outcome {
    assert_eq!(text(batch, "_key", row).as_deref().map(str::as_bytes), Some(KEY));
    Outcome::Row {
        values: topic.fields.iter().map(|field| text(batch, &field.column, row)).collect(),
        rescued: text(batch, "_rescued", row),
    }
}

/// A letter has an error that can be read.
fn read_letter(batch: &RecordBatch, row: usize) -> Outcome {
    let payload = batch.column_by_name("payload").expect("a payload").as_binary::<i32>();
    let error = text(batch, "error", row).expect("a letter says what was wrong");
    assert!(!error.is_empty() && error.len() <= ERROR_BYTES_MAX, "an error of {} bytes: {error:.200}", error.len());
    Outcome::Letter {
        reason: text(batch, "reason", row).expect("a letter has a reason"),
        payload: payload.is_valid(row).then(|| payload.value(row).to_vec()),
    }
}

/// A message, or a line of one, and what must become of it.
struct Part<'a> {
    bytes: Option<&'a [u8]>,
    expected: Expected,
    /// Whether serde_json itself takes or refuses the text depending on what it is read into, so that refusing it is right
    /// as well.
    is_odd: bool,
}

/// What serde_json makes of a text.
#[derive(Debug)]
enum Expected {
    Row { values: Vec<Option<String>>, rescued: Option<String> },
    Letter(&'static str),
}

impl Part<'_> {
    fn compare(&self, found: &Outcome) {
        let agrees = match (&self.expected, found) {
            (Expected::Row { values, rescued }, Outcome::Row { values: found_values, rescued: found_rescued }) => {
                let mut pairs = values.iter().zip(found_values);
                pairs.all(|(value, found)| same_text(value.as_deref(), found.as_deref()))
                    && same_text(rescued.as_deref(), found_rescued.as_deref())
            }
            (Expected::Letter(_), Outcome::Row { .. }) => false,
            (expected, Outcome::Letter { reason, payload }) => {
                assert_eq!(payload.as_deref(), self.bytes, "the letter is not what came");
                matches!(expected, Expected::Letter(expected) if expected == reason)
                    // serde_json ends at the first of several faults, and takes an odd text or not by what it is read into: which
                    // of its faults such a text is refused for is not laid down.
                    || self.is_odd && matches!(reason.as_str(), "not_json" | "too_deep" | "wrong_type")
            }
        };
        assert!(agrees, "{}\nmust be {:?}\n     is {found:?}", shown(self.bytes), self.expected);
    }
}

/// The same text, or JSON of the same meaning: white space is nobody's business, nor is the order of names.
fn same_text(expected: Option<&str>, found: Option<&str>) -> bool {
    expected == found
        || expected.zip(found).is_some_and(|(expected, found)| match serde_json::from_str::<Value>(expected) {
            Ok(value) => {
                (value.is_object() || value.is_array())
                    && serde_json::from_str::<Value>(found).is_ok_and(|found| found == value)
            }
            // What no reader can hold (half a surrogate pair, a number beyond all bounds), but can be told name by name.
            Err(_) => serde_json::from_str::<BTreeMap<String, &RawValue>>(expected).is_ok_and(|expected| {
                serde_json::from_str::<BTreeMap<String, &RawValue>>(found).is_ok_and(|found| {
                    expected.len() == found.len()
                        && expected.iter().zip(&found).all(|((name, value), (found_name, found))| {
                            name == found_name && value.get() == found.get()
                        })
                })
            }),
        })
}

/// All that must come of a message.
fn parts<'a>(topic: &TopicSpec, format: &str, payload: Option<&'a [u8]>) -> Vec<Part<'a>> {
    let whole = |reason| vec![Part { bytes: payload, expected: Expected::Letter(reason), is_odd: false }];
    let Some(bytes) = payload else { return whole("tombstone") };
    if bytes.is_empty() {
        return whole("empty");
    }
    if bytes.len() > topic.payload_bytes_max {
        return whole("too_large");
    }
    let part = |bytes| {
        let (expected, is_odd) = expected(topic, bytes);
        Part { bytes: Some(bytes), expected, is_odd }
    };
    if format == "json" {
        return vec![part(bytes)];
    }
    let lines = bytes.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let lines: Vec<_> = lines.filter(|line| !line.iter().all(u8::is_ascii_whitespace)).map(part).collect();
    if lines.is_empty() { whole("empty") } else { lines }
}

/// What serde_json makes of a text; and whether it is odd.
fn expected(topic: &TopicSpec, payload: &[u8]) -> (Expected, bool) {
    let letter = Expected::Letter;
    let Ok(text) = std::str::from_utf8(payload) else { return (letter("not_utf8"), false) };
    let Ok(raw) = serde_json::from_str::<&RawValue>(text) else { return (letter("not_json"), false) };
    // What is nested too deep hides from serde_json what is odd behind it, so it counts as odd itself.
    let unreadable = serde_json::from_str::<Value>(text).is_err();
    let is_odd = unreadable || text.contains("\\ud") || text.contains("\\uD");
    if !raw.get().starts_with('{') {
        return (letter("not_object"), is_odd);
    }
    // Of two with one name the last counts, here too.
    let Ok(mut fields) = serde_json::from_str::<BTreeMap<String, &RawValue>>(text) else {
        return (letter("not_json"), is_odd);
    };
    let mut values = Vec::new();
    let mut wrong = None;
    for field in &topic.fields {
        let kind = serde_json::to_value(field.kind).expect("a kind has a name");
        let value = fields
            .remove(&field.name)
            .map_or(Ok(None), |raw| expected_value(kind.as_str().unwrap_or_default(), raw.get()));
        wrong = wrong.or(value.as_ref().err().copied());
        values.push(value.unwrap_or_default());
    }
    if let Some(reason) = wrong {
        return (letter(reason), is_odd);
    }
    let parts: Vec<String> =
        fields.iter().map(|(name, raw)| format!("{}:{}", Value::from(name.as_str()), raw.get())).collect();
    let rescued = (!parts.is_empty()).then(|| format!("{{{}}}", parts.join(",")));
    let is_too_deep =
        rescued.as_deref().is_some_and(|text| serde_json::from_str::<Value>(text).is_err_and(|error| is_depth(&error)));
    if is_too_deep { (letter("too_deep"), is_odd) } else { (Expected::Row { values, rescued }, is_odd) }
}

fn expected_value(kind: &str, raw: &str) -> Result<Option<String>, &'static str> {
    let is = match raw.as_bytes()[0] {
        b'n' => return Ok(None),
        b'"' => "string",
        b't' | b'f' => "boolean",
        b'[' | b'{' => "nested",
        _ => "number",
    };
    match (kind, is) {
        ("string" | "any", "string") => serde_json::from_str(raw).map(Some).map_err(|_| "not_json"),
        ("any", "nested") if serde_json::from_str::<Value>(raw).is_err_and(|error| is_depth(&error)) => {
            Err("wrong_type")
        }
        ("any", _) => Ok(Some(raw.to_owned())),
        (kind, is) if kind == is => Ok(Some(raw.to_owned())),
        _ => Err("wrong_type"),
    }
}

/// serde_json names no kind for it.
fn is_depth(error: &serde_json::Error) -> bool {
    error.to_string().starts_with("recursion limit exceeded")
}

fn shown(payload: Option<&[u8]>) -> String {
    payload.map_or_else(|| "a tombstone".to_owned(), |bytes| format!("{:.2000}", bytes.escape_ascii().to_string()))
}
