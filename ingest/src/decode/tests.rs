//! What becomes of messages, whatever their format, and of the lines of those that hold several.

use arrow::array::{Array as _, AsArray as _};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use expect_test::{Expect, expect};

use super::*;
use crate::records::Record;

fn message(offset: i64, payload: Option<&'static str>) -> Record<'static> {
    let payload = payload.map(str::as_bytes);
    Record { partition: 2, offset, timestamp_millis: Some(1_500), key: Some(b"user"), payload, headers: None }
}

fn topic(format: Format, payload_bytes_max: usize) -> TopicSpec {
    TopicSpec { format, payload_bytes_max, ..TopicSpec::spotify() }
}

fn try_decode(topic: &TopicSpec, records: &[Record<'_>], recorded: &Recorded) -> Result<Decoded> {
    let mut all = Records::default();
    records.iter().for_each(|record| all.push(record));
    let mut into = Decoded::default();
    let now = DateTime::from_timestamp_micros(86_400_000_001).expect("a valid time");
    decode(decoder_for(topic).as_ref(), topic, &all, recorded, now, &mut into)?;
    Ok(into)
}

fn decoded(topic: &TopicSpec, records: &[Record<'_>], recorded: &Recorded) -> Decoded {
    try_decode(topic, records, recorded).expect("the letters are of these messages")
}

#[test]
fn each_message_becomes_a_row_or_a_letter() {
    let long = "x".repeat(65).leak();
    let messages = [
        message(10, Some(r#"{"event_id":"a","timestamp":"t"}"#)),
        message(11, None),
        message(12, Some("")),
        message(13, Some(long)),
        message(14, Some("{}")),
    ];
    let all = decoded(&topic(Format::Json, 64), &messages, &Recorded::new());
    let [rows] = all.rows.as_slice() else { panic!("{} batches", all.rows.len()) };
    assert_eq!(rows.schema(), TopicSpec::spotify().rows_spec().schema);
    let column = |name: &str| rows.column_by_name(name).expect("a column").clone();
    assert_eq!(column("_offset").as_primitive::<Int64Type>().values().as_ref(), [10, 14]);
    assert_eq!(column("_partition").as_primitive::<Int32Type>().values().as_ref(), [2, 2]);
    assert_eq!(column("_index").as_primitive::<Int32Type>().values().as_ref(), [0, 0]);
    assert_eq!(column("timestamp_str").as_string::<i32>().value(0), "t");
    assert!(column("event_id").is_null(1));
    assert_eq!(column("_key").as_string::<i32>().value(1), "user");
    assert_eq!(column("_kafka_timestamp").as_primitive::<TimestampMicrosecondType>().value(0), 1_500_000);
    let [letters] = all.letters.as_slice() else { panic!("{} batches", all.letters.len()) };
    assert_eq!(letters.schema(), TopicSpec::spotify().letters_spec().schema);
    let reasons = letters.column_by_name("reason").expect("a column").as_string::<i32>().clone();
    assert_eq!(reasons.iter().flatten().collect::<Vec<_>>(), ["tombstone", "empty", "too_large"]);
    let payloads = letters.column_by_name("payload").expect("a column").as_binary::<i32>().clone();
    assert!(payloads.is_null(0));
    assert_eq!(payloads.value(1), b"");
    assert_eq!(payloads.value(2), long.as_bytes(), "all of it: what is wrong with it may be the limit");
    assert_eq!(all.dead_letters, BTreeMap::from([(2, 3)]));
}

/// The rows and letters of one message: offset, index, and the id or what is wrong with which payload.
fn shown(decoded: &Decoded) -> String {
    let mut lines = Vec::new();
    for batch in &decoded.rows {
        let column = |name: &str| batch.column_by_name(name).expect("a column");
        let (offsets, places) =
            (column("_offset").as_primitive::<Int64Type>(), column("_index").as_primitive::<Int32Type>());
        let (ids, keys) = (column("event_id").as_string::<i32>(), column("_key").as_string::<i32>());
        for row in 0..batch.num_rows() {
            let (offset, index) = (offsets.value(row), places.value(row));
            lines.push(format!("{offset}.{index}: row {} of {}", ids.value(row), keys.value(row)));
        }
    }
    for batch in &decoded.letters {
        let column = |name: &str| batch.column_by_name(name).expect("a column");
        let (offsets, places) =
            (column("offset").as_primitive::<Int64Type>(), column("index").as_primitive::<Int32Type>());
        let (reasons, errors) = (column("reason").as_string::<i32>(), column("error").as_string::<i32>());
        let payloads = column("payload").as_binary::<i32>();
        for row in 0..batch.num_rows() {
            let (offset, index, payload) = (offsets.value(row), places.value(row), payloads.value(row));
            let (reason, error) = (reasons.value(row), errors.value(row));
            lines.push(format!("{offset}.{index}: {reason} {:?} ({error})", String::from_utf8_lossy(payload)));
        }
    }
    lines.join("\n")
}

fn check_lines(payload: &'static str, expected: Expect) {
    let messages = [message(7, Some(payload))];
    expected.assert_eq(&shown(&decoded(&topic(Format::Ndjson, 100), &messages, &Recorded::new())));
}

#[test]
fn each_line_becomes_a_row_or_a_letter() {
    check_lines(
        "{\"event_id\":\"a\"}\n{\"event_id\":\"b\"}\n",
        expect![[r#"
        7.0: row a of user
        7.1: row b of user"#]],
    );
    check_lines("{\"event_id\":\"a\"}", expect!["7.0: row a of user"]);
    check_lines(
        "\r\n{\"event_id\":\"a\"}\r\n \t\n\n{\"event_id\":\"b\"}\n{\"event_id\":\"c\",\"event_id\":\"last\"}",
        expect![[r#"
        7.0: row a of user
        7.1: row b of user
        7.2: row last of user"#]],
    );
    check_lines(
        "{\"event_id\":\"a\"}\nnonsense\r\n{\"event_id\":5}\n[]\n{\"event_id\":\"b\"}{}\n{\"event_id\":\"c\"}",
        expect![[r#"
        7.0: row a of user
        7.5: row c of user
        7.1: not_json "nonsense" (expected ident at line 1 column 2)
        7.2: wrong_type "{\"event_id\":5}" (field "event_id" holds a number where a string is expected)
        7.3: not_object "[]" (the payload is an array, not an object)
        7.4: not_json "{\"event_id\":\"b\"}{}" (trailing characters at line 1 column 17)"#]],
    );
    // A line feed ends a line wherever it stands: in JSON it can stand in no string.
    check_lines(
        "{\n}",
        expect![[r#"
        7.0: not_json "{" (EOF while parsing an object at line 1 column 1)
        7.1: not_json "}" (expected value at line 1 column 1)"#]],
    );
}

#[test]
fn a_message_without_lines_or_too_large_is_one_letter() {
    check_lines("\n \r\n\n", expect![[r#"7.0: empty "\n \r\n\n" (the payload has no line with anything on it)"#]]);
    let messages = [message(7, Some("{}\n".repeat(34).leak()))];
    let all = decoded(&topic(Format::Ndjson, 100), &messages, &Recorded::new());
    assert!(shown(&all).starts_with("7.0: too_large \"{}\\n{}"), "{}", shown(&all));
    assert!(all.rows.is_empty());
}

#[test]
fn a_large_key_is_not_repeated_without_end() {
    let key = vec![b'k'; 1 << 20];
    let lines = |count: usize| "{}\n".repeat(count);
    let one = |payload: &str| {
        let record = Record { key: Some(&key), payload: Some(payload.as_bytes()), ..message(7, None) };
        decoded(&topic(Format::Ndjson, 1 << 20), &[record], &Recorded::new())
    };
    let few = one(&lines(64));
    assert!(few.letters.is_empty());
    assert_eq!(few.rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 64);
    assert!(few.rows.len() >= 7, "each batch has few bytes, but there are {} for 64 MiB", few.rows.len());
    let many = one(&lines(65));
    assert!(many.rows.is_empty());
    assert_eq!(many.letters[0].num_rows(), 1);
}

#[test]
fn batches_have_few_rows_and_few_bytes() {
    let nonsense = "x".repeat(1 << 20).leak();
    let large: Vec<_> = (0..20).map(|offset| message(offset, Some(nonsense))).collect();
    let all = decoded(&topic(Format::Json, 2 << 20), &large, &Recorded::new());
    assert_eq!(all.letters.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [8, 8, 4]);
    let small: Vec<_> = (0..20_000).map(|offset| message(offset, Some("x"))).collect();
    let all = decoded(&topic(Format::Json, 2 << 20), &small, &Recorded::new());
    assert_eq!(all.letters.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [8192, 8192, 3616]);
    assert_eq!(all.dead_letters, BTreeMap::from([(2, 20_000)]));
    let one = [message(0, Some("{}\n".repeat(20_000).leak()))];
    let all = decoded(&topic(Format::Ndjson, 1 << 20), &one, &Recorded::new());
    assert_eq!(all.rows.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [8192, 8192, 3616]);
}

#[test]
fn deep_nesting_is_a_letter_of_its_own_line() {
    let deep = format!("{{\"more\":{}{}}}\n{{\"event_id\":\"a\"}}", "[".repeat(10_000), "]".repeat(10_000));
    let messages = [message(7, Some(deep.leak()))];
    let all = shown(&decoded(&topic(Format::Ndjson, 1 << 20), &messages, &Recorded::new()));
    assert!(all.starts_with("7.1: row a of user\n7.0: too_deep "), "{all}");
}

fn recorded(letters: &[(Record<'_>, i32)]) -> Recorded {
    letters.iter().map(|(record, index)| ((record.partition, record.offset, *index), record.fingerprint())).collect()
}

#[test]
fn a_recorded_letter_is_neither_repeated_nor_taken_as_a_row() {
    let messages = [message(10, Some("{}")), message(11, Some("nonsense")), message(12, Some("nonsense"))];
    let recorded = recorded(&[(messages[0], 0), (messages[1], 0)]);
    let all = decoded(&topic(Format::Json, 64), &messages, &recorded);
    assert!(all.rows.is_empty());
    assert_eq!(all.letters[0].num_rows(), 1);
    assert_eq!(all.dead_letters, BTreeMap::from([(2, 3)]));
}

#[test]
fn a_recorded_line_is_neither_repeated_nor_taken_as_a_row() {
    let lines = message(10, Some("{\"event_id\":\"a\"}\nbad\n{\"event_id\":\"c\"}\nworse"));
    let empty = message(11, Some("\n"));
    let line = |payload, index| (message(10, Some(payload)), index);
    let recorded = recorded(&[line("bad", 1), line("{\"event_id\":\"c\"}", 2), (empty, 0)]);
    let all = decoded(&topic(Format::Ndjson, 64), &[lines, empty], &recorded);
    let found = shown(&all);
    let expected = expect![[r#"
        10.0: row a of user
        10.3: not_json "worse" (expected value at line 1 column 1)"#]];
    expected.assert_eq(&found);
    assert_eq!(all.dead_letters, BTreeMap::from([(2, 4)]));
}

#[test]
fn a_message_recorded_as_a_whole_stays_one_letter() {
    let lines = message(10, Some("{\"event_id\":\"a\"}\n{\"event_id\":\"b\"}"));
    let all = decoded(&topic(Format::Ndjson, 64), &[lines], &recorded(&[(lines, 0)]));
    assert!(all.rows.is_empty() && all.letters.is_empty());
    assert_eq!(all.dead_letters, BTreeMap::from([(2, 1)]));
}

#[test]
fn a_recorded_letter_of_another_message_is_noticed() {
    let found = message(10, Some("{}\nbad\n{}"));
    for (format, letter) in [
        (Format::Json, (message(10, Some("other")), 0)),
        (Format::Ndjson, (message(10, Some("other")), 0)),
        (Format::Ndjson, (message(10, Some("other")), 1)),
        (Format::Ndjson, (Record { key: None, ..message(10, Some("bad")) }, 1)),
        (Format::Ndjson, (Record { timestamp_millis: None, ..message(10, Some("bad")) }, 1)),
    ] {
        let error =
            try_decode(&topic(format, 64), &[found], &recorded(&[letter])).expect_err("another message").to_string();
        assert!(error.contains("spotify_events partition 2") && error.contains("offset 10"), "{format:?}: {error}");
    }
}
