//! Letters through the decoder, by today's settings. Pure.

use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, Int32Array, Int64Array, StringArray, UInt64Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{Field, Int64Type, Schema};
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, Utc};
use lakehouse::{INCARNATION_COLUMN, REPLAY_COLUMN};

use crate::decode::{self, Decoded, Decoder, Recorded};
use crate::letters::Letter;
use crate::records::{Record, Records};
use crate::topic::TopicSpec;
use crate::{Error, ErrorKind, Result};

/// The reason of a letter whose payload holds more than the one event that it stands for.
const SEVERAL_EVENTS: &str = "several_events";
/// The reason of a letter whose payload holds no event at all.
const NO_EVENT: &str = "no_event";

/// What became of some letters.
#[derive(Debug, Default)]
pub(super) struct Again {
    /// Rows, each at the place of its letter.
    pub(super) rows: Vec<RecordBatch>,
    pub(super) failed: Vec<Failed>,
}

/// One that can't be decoded.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// Its number among the letters.
    pub(super) letter: usize,
    pub(super) reason: String,
    pub(super) error: String,
}

/// Decodes letters. Each becomes a row, or fails.
///
/// In place of its offset each one goes through with its number: what comes back is told by that, whatever the format makes
/// of a payload.
pub(super) fn decode(
    decoder: &dyn Decoder,
    topic: &TopicSpec,
    letters: &[&Letter],
    replay_id: &str,
    now: DateTime<Utc>,
) -> Result<Again> {
    let mut records = Records::default();
    for (number, letter) in letters.iter().enumerate() {
        records.push(&Record { offset: number as i64, ..letter.record() });
    }
    let mut decoded = Decoded::default();
    decode::decode(decoder, topic, &records, &Recorded::new(), now, &mut decoded)?;
    let mut events = vec![0_u32; letters.len()];
    for batch in &decoded.rows {
        numbers(batch, "_offset")?.values().iter().for_each(|&number| events[number as usize] += 1);
    }
    for batch in &decoded.letters {
        numbers(batch, "offset")?.values().iter().for_each(|&number| events[number as usize] += 1);
    }
    let mut again = Again { rows: Vec::new(), failed: failures(&decoded.letters, &events)? };
    for (letter, &events) in events.iter().enumerate().filter(|(_, events)| **events != 1) {
        let (reason, error) = match events {
            0 => (NO_EVENT, "the payload holds no event".to_owned()),
            _ => (SEVERAL_EVENTS, format!("the payload holds {events} events, and a letter becomes one row")),
        };
        again.failed.push(Failed { letter, reason: reason.to_owned(), error });
    }
    again.failed.sort_by_key(|failed| failed.letter);
    for batch in decoded.rows {
        let rows = at_their_places(&batch, letters, &events, replay_id)?;
        if rows.num_rows() > 0 {
            again.rows.push(rows);
        }
    }
    Ok(again)
}

fn failures(batches: &[RecordBatch], events: &[u32]) -> Result<Vec<Failed>> {
    let mut failed = Vec::new();
    for batch in batches {
        let text = |name: &str| column(batch, name).and_then(|column| column.as_string_opt::<i32>().ok_or_else(wrong));
        let (numbers, reasons, errors) = (numbers(batch, "offset")?, text("reason")?, text("error")?);
        for (row, &number) in numbers.values().iter().enumerate() {
            if events[number as usize] == 1 {
                let (reason, error) = (reasons.value(row).to_owned(), errors.value(row).to_owned());
                failed.push(Failed { letter: number as usize, reason, error });
            }
        }
    }
    Ok(failed)
}

/// Rows with the places of their letters in place of their numbers.
fn at_their_places(batch: &RecordBatch, letters: &[&Letter], events: &[u32], replay_id: &str) -> Result<RecordBatch> {
    let misfit = |source| Error::with_source(ErrorKind::Bug, "decoded columns do not fit their places", source);
    let numbers = numbers(batch, "_offset")?;
    let single = |row: &u64| events[numbers.value(*row as usize) as usize] == 1;
    let kept: UInt64Array = (0..batch.num_rows() as u64).filter(single).collect();
    let rows = take_record_batch(batch, &kept).map_err(misfit)?;
    let places: Vec<_> = self::numbers(&rows, "_offset")?.values().iter().map(|&n| letters[n as usize].place).collect();
    let mut fields: Vec<_> = rows.schema().fields().iter().cloned().collect();
    let mut columns: Vec<ArrayRef> = rows.columns().to_vec();
    let incarnations = places.iter().map(|place| (place.incarnation > 0).then_some(place.incarnation));
    let placed: [(&str, ArrayRef); 4] = [
        ("_offset", Arc::new(Int64Array::from_iter_values(places.iter().map(|place| place.offset)))),
        ("_index", Arc::new(Int32Array::from_iter_values(places.iter().map(|place| place.index)))),
        (INCARNATION_COLUMN, Arc::new(incarnations.collect::<Int32Array>())),
        (REPLAY_COLUMN, Arc::new(StringArray::from(vec![replay_id; places.len()]))),
    ];
    for (name, values) in placed {
        match fields.iter().position(|field| field.name() == name) {
            Some(at) => columns[at] = values,
            None => {
                fields.push(Arc::new(Field::new(name, values.data_type().clone(), true)));
                columns.push(values);
            }
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(misfit)
}

fn numbers<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a Int64Array> {
    column(batch, name)?.as_primitive_opt::<Int64Type>().ok_or_else(wrong)
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch.column_by_name(name).ok_or_else(wrong)
}

fn wrong() -> Error {
    Error::new(ErrorKind::Bug, "the decoder gave other columns than those of its tables")
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Int32Type};

    use super::*;
    use crate::letters::Place;

    fn letter(offset: i64, index: i32, payload: Option<&str>) -> Letter {
        Letter {
            place: Place { partition: 2, incarnation: i32::from(offset > 100), offset, index },
            timestamp_millis: Some(1_500),
            key: Some(b"user".to_vec()),
            headers: None,
            payload: payload.map(|text| text.as_bytes().to_vec()),
        }
    }

    #[test]
    fn what_can_be_read_now_stands_at_the_place_of_its_letter() {
        let topic = TopicSpec::spotify();
        let decoder = decode::decoder_for(&topic);
        let letters = [
            letter(17, 0, Some(r#"{"event_id":"a"}"#)),
            letter(18, 0, None),
            letter(40, 3, Some("still no json")),
            letter(105, 2, Some(r#"{"event_id":"b"}"#)),
        ];
        let letters: Vec<&Letter> = letters.iter().collect();
        let now = DateTime::from_timestamp_micros(86_400_000_001).expect("a valid time");
        let again = decode(decoder.as_ref(), &topic, &letters, "r-1", now).expect("decoded");
        let [rows] = again.rows.as_slice() else { panic!("{} batches", again.rows.len()) };
        let named = |name: &str| rows.column_by_name(name).expect("a column");
        assert_eq!(named("_offset").as_primitive::<Int64Type>().values().as_ref(), [17, 105]);
        assert_eq!(named("_index").as_primitive::<Int32Type>().values().as_ref(), [0, 2]);
        assert_eq!(named("_partition").as_primitive::<Int32Type>().values().as_ref(), [2, 2]);
        assert_eq!(named("event_id").as_string::<i32>().iter().flatten().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(named("_key").as_string::<i32>().value(1), "user");
        assert_eq!(named(REPLAY_COLUMN).as_string::<i32>().value(0), "r-1");
        let incarnation = named(INCARNATION_COLUMN).as_primitive::<Int32Type>();
        assert_eq!(incarnation.iter().collect::<Vec<_>>(), [None, Some(1)]);
        assert_eq!(incarnation.data_type(), &DataType::Int32);
        let failed: Vec<_> = again.failed.iter().map(|failed| (failed.letter, failed.reason.as_str())).collect();
        assert_eq!(failed, [(1, "tombstone"), (2, "not_json")]);
    }
}
