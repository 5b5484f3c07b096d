//! A file of corrected payloads: JSON lines, each naming a letter by its place.
//!
//! ```json
//! {"partition":0,"offset":17,"index":0,"payload":{"event_id":"…"}}
//! ```
//!
//! `payload` is an object, which is taken as it is written, or a string, whose content is the payload; `payload_base64` is for
//! bytes. The file is read twice: first all of it, so that a fault in its last line is known before anything is written, then
//! line by line where a payload is needed. Between the two only places and line positions are in memory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::letters::{Letter, Place};
use crate::topic::TopicSpec;
use crate::{Error, ErrorKind, Result};

/// More lines than this are refused: each takes some memory.
const LINES_MAX: usize = 1_000_000;
/// A longer line is refused. In bytes.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// Corrected payloads by the place of their letter.
#[derive(Debug)]
pub(super) struct Payloads {
    path: PathBuf,
    file: File,
    lines: HashMap<Place, Line>,
}

/// Where a payload stands in the file.
#[derive(Debug, Clone, Copy)]
struct Line {
    number: usize,
    start: u64,
    bytes: usize,
    /// Whether there is such a letter.
    is_named: bool,
}

/// A line as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    partition: i32,
    offset: i64,
    #[serde(default)]
    index: i32,
    #[serde(default)]
    incarnation: i32,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
    #[serde(default)]
    payload_base64: Option<String>,
}

impl Payloads {
    /// Reads the file to its end.
    ///
    /// # Errors
    /// `BadConfig`, naming the line, if one is damaged or names a letter that another one has named.
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        let file = File::open(&path).map_err(|source| unreadable(&path, source))?;
        let mut reader = BufReader::new(file);
        let mut lines: HashMap<Place, Line> = HashMap::new();
        let (mut line, mut start) = (Vec::new(), 0);
        for number in 1.. {
            line.clear();
            let read = reader.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut line);
            let bytes = read.map_err(|source| unreadable(&path, source))?;
            if bytes == 0 {
                break;
            }
            if bytes as u64 > LINE_BYTES_MAX {
                return Err(bad(&path, number, &format!("it is longer than {LINE_BYTES_MAX} bytes")));
            }
            if !line.trim_ascii().is_empty() {
                let (place, _) = parse(&line).map_err(|fault| bad(&path, number, &fault))?;
                let here = Line { number, start, bytes, is_named: false };
                if let Some(before) = lines.insert(place, here) {
                    let fault = format!("it names {}, as line {} does", named(place), before.number);
                    return Err(bad(&path, number, &fault));
                }
            }
            if lines.len() > LINES_MAX {
                return Err(bad(&path, number, &format!("a file has at most {LINES_MAX} lines: make several of it")));
            }
            start += bytes as u64;
        }
        Ok(Self { path, file: reader.into_inner(), lines })
    }

    /// Notes that there is such a letter.
    pub(super) fn found(&mut self, place: Place) {
        if let Some(line) = self.lines.get_mut(&place) {
            line.is_named = true;
        }
    }

    /// Refuses a line that names no letter.
    pub(super) fn check_all_named(&self, topic: &TopicSpec) -> Result<()> {
        let strays = self.lines.iter().filter(|(_, line)| !line.is_named);
        let Some((&place, line)) = strays.min_by_key(|(_, line)| line.number) else { return Ok(()) };
        let fault = format!(
            "{} has no dead letter of topic {} at {}, or the other flags leave it out",
            topic.dead_letters,
            topic.name,
            named(place)
        );
        Err(bad(&self.path, line.number, &fault))
    }

    /// Gives a letter its corrected payload. Says whether the file has one for it.
    pub(super) fn correct(&mut self, letter: &mut Letter) -> Result<bool> {
        let Some(line) = self.lines.get(&letter.place).copied() else { return Ok(false) };
        let mut text = vec![0; line.bytes];
        let read = self.file.seek(SeekFrom::Start(line.start)).and_then(|_| self.file.read_exact(&mut text));
        read.map_err(|source| unreadable(&self.path, source))?;
        match parse(&text) {
            Ok((place, payload)) if place == letter.place => {
                letter.payload = Some(payload);
                Ok(true)
            }
            _ => Err(bad(&self.path, line.number, "it was changed while it was read: repeat this with a file at rest")),
        }
    }
}

/// The place that a line names, and the payload for it; or what is wrong with the line.
fn parse(line: &[u8]) -> Result<(Place, Vec<u8>), String> {
    // serde_json counts from the beginning of what it is given, which is one line.
    let written: Written<'_> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let Written { partition, offset, index, incarnation, payload, payload_base64 } = written;
    let place = Place { partition, incarnation, offset, index };
    let payload = match (payload.map(RawValue::get), payload_base64) {
        (Some(text), None) if text.starts_with('{') => text.as_bytes().to_vec(),
        (Some(text), None) if text.starts_with('"') => {
            serde_json::from_str::<String>(text).map_err(|error| error.to_string())?.into_bytes()
        }
        (None, Some(text)) => {
            STANDARD.decode(text).map_err(|error| format!("payload_base64 is not base64: {error}"))?
        }
        (Some(_), Some(_)) => return Err(format!("{} has payload and payload_base64: give one", named(place))),
        _ => {
            let what = "needs a payload: an object, a string with its text, or payload_base64 with its bytes";
            return Err(format!("{} {what}", named(place)));
        }
    };
    Ok((place, payload))
}

fn named(place: Place) -> String {
    let Place { partition, incarnation, offset, index } = place;
    let incarnation = if incarnation > 0 { format!(" incarnation {incarnation}") } else { String::new() };
    format!("partition {partition} offset {offset} index {index}{incarnation}")
}

fn bad(path: &Path, line: usize, fault: &str) -> Error {
    Error::new(ErrorKind::BadConfig, format!("line {line} of {}: {fault}; nothing was written", path.display()))
}

fn unreadable(path: &Path, source: std::io::Error) -> Error {
    Error::with_source(ErrorKind::BadConfig, format!("cannot read the payloads in {}", path.display()), source)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use expect_test::{Expect, expect};

    use super::*;

    /// The file's payloads for the letters at offsets 0 to 9 of partition 0, as `offset=payload` words.
    fn check(lines: &str, expected: Expect) {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(lines.as_bytes()).expect("written");
        let shown = match open_named(file.path()) {
            Ok(mut payloads) => shown(&mut payloads),
            Err(error) => error.to_string().replace(&file.path().display().to_string(), "FILE"),
        };
        expected.assert_eq(&shown);
    }

    fn place(offset: i64) -> Place {
        Place { partition: 0, incarnation: 0, offset, index: 0 }
    }

    fn open_named(path: &Path) -> Result<Payloads> {
        let mut payloads = Payloads::open(path.to_owned())?;
        (0..10).for_each(|offset| payloads.found(place(offset)));
        payloads.check_all_named(&TopicSpec::spotify())?;
        Ok(payloads)
    }

    fn shown(payloads: &mut Payloads) -> String {
        let correct = |offset| {
            let mut letter =
                Letter { place: place(offset), timestamp_millis: None, key: None, headers: None, payload: None };
            let is_there = payloads.correct(&mut letter).expect("read again");
            is_there.then(|| format!("{offset}={}", String::from_utf8_lossy(&letter.payload.unwrap_or_default())))
        };
        (0..10).filter_map(correct).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn payloads_are_objects_texts_or_bytes() {
        check(
            "{\"partition\":0,\"offset\":3,\"payload\":{\"b\": 1,\"a\":[1.50]}}\n\n\
             {\"partition\":0,\"offset\":1,\"index\":0,\"payload\":\"{\\\"a\\\":\\\"\\u00e4\\\"}\"}\r\n\
             {\"partition\":0,\"offset\":2,\"payload_base64\":\"e30=\"}",
            expect![[r#"1={"a":"ä"} 2={} 3={"b": 1,"a":[1.50]}"#]],
        );
        check("", expect![""]);
    }

    #[test]
    fn a_line_that_is_no_good_is_named_before_anything_is_written() {
        check(
            "{\"partition\":0,\"offset\":1,\"payload\":{}}\nnonsense\n",
            expect!["line 2 of FILE: expected ident at line 1 column 2; nothing was written"],
        );
        check(
            r#"{"partition":0,"offset":1}"#,
            expect![
                "line 1 of FILE: partition 0 offset 1 index 0 needs a payload: an object, a string with its text, or payload_base64 with its bytes; nothing was written"
            ],
        );
        check(
            r#"{"partition":0,"offset":1,"payload":[1]}"#,
            expect![
                "line 1 of FILE: partition 0 offset 1 index 0 needs a payload: an object, a string with its text, or payload_base64 with its bytes; nothing was written"
            ],
        );
        check(
            r#"{"partition":0,"offset":1,"payload":"","payload_base64":""}"#,
            expect![
                "line 1 of FILE: partition 0 offset 1 index 0 has payload and payload_base64: give one; nothing was written"
            ],
        );
        check(
            r#"{"partition":0,"offset":1,"payload_base64":"*"}"#,
            expect!["line 1 of FILE: payload_base64 is not base64: Invalid symbol 42, offset 0.; nothing was written"],
        );
        check(
            r#"{"partition":0,"offset":1,"paylod":"x"}"#,
            expect![
                "line 1 of FILE: unknown field `paylod`, expected one of `partition`, `offset`, `index`, `incarnation`, `payload`, `payload_base64` at line 1 column 34; nothing was written"
            ],
        );
        check(
            "{\"partition\":0,\"offset\":1,\"payload\":{}}\n{\"partition\":0,\"offset\":99,\"payload\":{}}\n",
            expect![
                "line 2 of FILE: bronze.dead_letters has no dead letter of topic spotify_events at partition 0 offset 99 index 0, or the other flags leave it out; nothing was written"
            ],
        );
        check(
            "{\"partition\":0,\"offset\":1,\"payload\":{}}\n{\"partition\":0,\"offset\":1,\"payload\":\"\"}\n",
            expect!["line 2 of FILE: it names partition 0 offset 1 index 0, as line 1 does; nothing was written"],
        );
    }
}
