//! What is in the tables of dead letters: counts by topic and reason, and the newest letters.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use arrow::array::Array as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, SecondsFormat, Utc};
use futures::TryStreamExt as _;
use lakehouse::{Filter, Lake, Scan, SessionFactory, TableName, TableVersion};
use serde::Serialize;

use super::reading::{Among, Letters, present};
use super::{Place, Selection, groups};
use crate::topic::TopicSpec;
use crate::{ErrorKind, Result};

/// So many bytes of a payload are shown.
const SHOWN_BYTES: usize = 240;

/// What is there.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Listing {
    /// One entry for each topic and reason.
    pub counts: Vec<Count>,
    /// The newest letters, newest first.
    pub samples: Vec<Sample>,
}

/// Letters of one topic that have one reason.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Count {
    /// The table that holds them.
    pub table: TableName,
    /// The topic.
    pub topic: String,
    /// The reason's code.
    pub reason: String,
    /// How many there are.
    pub letters: u64,
    /// How many of them have become rows since; nothing where no settings say in which table they would be.
    pub replayed: Option<u64>,
    /// When the first of them was written.
    pub first: DateTime<Utc>,
    /// When the last of them was written.
    pub last: DateTime<Utc>,
}

/// One letter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// How often the partition was made anew before.
    #[serde(skip_serializing_if = "is_zero")]
    pub incarnation: i32,
    /// The offset.
    pub offset: i64,
    /// The place in a message that holds several.
    pub index: i32,
    /// When it was written.
    pub time: DateTime<Utc>,
    /// The reason's code.
    pub reason: String,
    /// What exactly, for people.
    pub error: String,
    /// The payload's beginning.
    #[serde(flatten)]
    pub payload: Shown,
}

/// The beginning of a payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Where it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// Where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
    /// The length of all of it; nothing where there is no payload at all.
    pub payload_bytes: Option<usize>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_zero(number: &i32) -> bool {
    *number == 0
}

/// Counts what `selection` means in the tables of letters of `topics`, and shows the newest `limit` of them.
///
/// Letters of topics that are not among `topics` are counted too, where they share a table with one of them.
///
/// # Errors
/// `Unavailable` if the store does not answer.
pub async fn list(lake: &Lake, topics: &[TopicSpec], selection: &Selection, limit: usize) -> Result<Listing> {
    let tables: BTreeSet<&TableName> = topics.iter().map(|topic| &topic.dead_letters).collect();
    let mut listing = Listing::default();
    let mut newest = Newest::of(limit);
    for table in tables {
        let letters = match lake.table(table).head().await {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            letters => letters?,
        };
        let bronze = rows_of(lake, topics, table).await?;
        let one = OneTable { sessions: lake.session_factory(), letters, bronze };
        listing.counts.extend(one.count(selection, &mut newest).await?);
        newest.tables.push(one);
    }
    listing.samples = newest.read(selection).await?;
    Ok(listing)
}

/// The tables of rows, by topic, of those topics whose letters are in `letters`.
async fn rows_of(
    lake: &Lake,
    topics: &[TopicSpec],
    letters: &TableName,
) -> Result<BTreeMap<String, Option<Arc<TableVersion>>>> {
    let mut bronze = BTreeMap::new();
    for topic in topics.iter().filter(|topic| topic.dead_letters == *letters) {
        let head = match lake.table(&topic.table).head().await {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            head => Some(head?),
        };
        bronze.insert(topic.name.clone(), head);
    }
    Ok(bronze)
}

/// One table of letters, and what became of them.
struct OneTable {
    sessions: SessionFactory,
    letters: Arc<TableVersion>,
    /// The tables of rows by topic; none where there is no such table yet.
    bronze: BTreeMap<String, Option<Arc<TableVersion>>>,
}

/// A topic and a reason.
type Kind = (String, String);

impl OneTable {
    fn scan(&self, filter: Filter) -> Scan {
        Scan::new(self.letters.clone(), self.sessions.clone(), filter)
    }

    /// Goes through all letters without their payloads.
    async fn count(&self, selection: &Selection, newest: &mut Newest) -> Result<Vec<Count>> {
        let mut counts: BTreeMap<Kind, Count> = BTreeMap::new();
        let scan = self.scan(selection.filter());
        let columns = Letters::columns(&self.letters, &["topic", "reason", "_ingested_at"]);
        for group in groups(scan.files()?) {
            let mut batches = scan.read(group, &columns).await?;
            while let Some(batch) = batches.try_next().await? {
                let letters = Letters::of(&batch)?;
                let (topics, reasons, times) = (letters.text("topic")?, letters.text("reason")?, letters.times()?);
                let mut places: HashMap<Kind, Vec<Place>> = HashMap::new();
                for (row, &time) in times.iter().enumerate() {
                    let kind = (topics.value(row).to_owned(), reasons.value(row).to_owned());
                    let place = letters.places.get(row);
                    newest.offer(time, &kind.0, place);
                    places.entry(kind.clone()).or_default().push(place);
                    let count = counts.entry(kind).or_insert_with_key(|kind| self.none_of(kind, time));
                    count.letters += 1;
                    count.first = count.first.min(time);
                    count.last = count.last.max(time);
                }
                for (kind, places) in places {
                    let replayed = self.replayed(&kind.0, &places).await?;
                    let count = counts.get_mut(&kind).expect("just counted");
                    count.replayed = count.replayed.zip(replayed).map(|(sum, more)| sum + more);
                }
            }
        }
        Ok(counts.into_values().collect())
    }

    fn none_of(&self, (topic, reason): &Kind, time: DateTime<Utc>) -> Count {
        Count {
            table: self.letters.name.clone(),
            topic: topic.clone(),
            reason: reason.clone(),
            letters: 0,
            replayed: Some(0),
            first: time,
            last: time,
        }
    }

    async fn replayed(&self, topic: &str, places: &[Place]) -> Result<Option<u64>> {
        match self.bronze.get(topic) {
            None => Ok(None),
            Some(None) => Ok(Some(0)),
            Some(Some(bronze)) => {
                let wanted: HashSet<Place> = places.iter().copied().collect();
                let found = present(bronze, &self.sessions, &wanted, Among::Replayed).await?;
                Ok(Some(found.len() as u64))
            }
        }
    }
}

/// The newest letters of all tables: first where they are, then, in a second reading, what they are.
struct Newest {
    limit: usize,
    /// Time, topic and place of the newest so far, and the table that holds each.
    kept: BTreeSet<(DateTime<Utc>, String, Place, usize)>,
    tables: Vec<OneTable>,
}

impl Newest {
    fn of(limit: usize) -> Self {
        Self { limit, kept: BTreeSet::new(), tables: Vec::new() }
    }

    /// A letter of the table that is pushed next.
    fn offer(&mut self, time: DateTime<Utc>, topic: &str, place: Place) {
        let is_full = self.kept.len() >= self.limit;
        if is_full
            && self.kept.first().is_none_or(|oldest| (oldest.0, oldest.1.as_str(), oldest.2) >= (time, topic, place))
        {
            return;
        }
        self.kept.insert((time, topic.to_owned(), place, self.tables.len()));
        if self.kept.len() > self.limit {
            self.kept.pop_first();
        }
    }

    async fn read(&self, selection: &Selection) -> Result<Vec<Sample>> {
        const FURTHER: [&str; 5] = ["topic", "reason", "error", "payload", "_ingested_at"];
        let mut samples = Vec::new();
        for (number, table) in self.tables.iter().enumerate() {
            let wanted: HashSet<(&str, Place)> =
                self.kept.iter().filter(|kept| kept.3 == number).map(|kept| (kept.1.as_str(), kept.2)).collect();
            let Some(oldest) = self.kept.iter().find(|kept| kept.3 == number) else { continue };
            let scan = table.scan(selection.filter().and(Filter::since("_ingested_at", oldest.0)));
            let mut batches = scan.read_all(&Letters::columns(&table.letters, &FURTHER)).await?;
            while let Some(batch) = batches.try_next().await? {
                let letters = Letters::of(&batch)?;
                let (topics, times) = (letters.text("topic")?, letters.times()?);
                for (row, &time) in times.iter().enumerate() {
                    if wanted.contains(&(topics.value(row), letters.places.get(row))) {
                        samples.push(sample(&letters, row, topics.value(row), time)?);
                    }
                }
            }
        }
        samples.sort_by_cached_key(|one| {
            Reverse((one.time, one.topic.clone(), one.partition, one.incarnation, one.offset, one.index))
        });
        Ok(samples)
    }
}

fn sample(letters: &Letters<'_>, row: usize, topic: &str, time: DateTime<Utc>) -> Result<Sample> {
    let Place { partition, incarnation, offset, index } = letters.places.get(row);
    let payload = letters.bytes("payload")?;
    Ok(Sample {
        topic: topic.to_owned(),
        partition,
        incarnation,
        offset,
        index,
        time,
        reason: letters.text("reason")?.value(row).to_owned(),
        error: letters.text("error")?.value(row).to_owned(),
        payload: Shown::of(payload.is_valid(row).then(|| payload.value(row))),
    })
}

impl Shown {
    fn of(payload: Option<&[u8]>) -> Self {
        let Some(payload) = payload else { return Self { payload: None, payload_base64: None, payload_bytes: None } };
        let beginning = &payload[..payload.len().min(SHOWN_BYTES)];
        let text = match std::str::from_utf8(beginning) {
            Ok(text) => Some(text),
            // A letter of several bytes that the end of what is shown cuts in two is no fault of the payload.
            Err(fault) if fault.error_len().is_none() && beginning.len() < payload.len() => {
                std::str::from_utf8(&beginning[..fault.valid_up_to()]).ok()
            }
            Err(_) => None,
        };
        Self {
            payload: text.map(str::to_owned),
            payload_base64: text.is_none().then(|| STANDARD.encode(beginning)),
            payload_bytes: Some(payload.len()),
        }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(bytes) = self.payload_bytes else { return f.write_str("no payload") };
        match (&self.payload, &self.payload_base64) {
            // What a payload holds must not reach a terminal as a command.
            (Some(text), _) => write!(f, "{}", printable(text))?,
            (None, base64) => write!(f, "base64:{}", base64.as_deref().unwrap_or_default())?,
        }
        if bytes > SHOWN_BYTES { write!(f, "… ({bytes} bytes)") } else { Ok(()) }
    }
}

/// The text with control characters spelled out.
pub(crate) fn printable(text: &str) -> String {
    let spell =
        |letter: char| if letter.is_control() { letter.escape_default().to_string() } else { letter.to_string() };
    text.chars().map(spell).collect()
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, partition, incarnation, offset, index, time, reason, error, payload } = self;
        write!(f, "{topic} partition {partition} offset {offset}")?;
        if *index > 0 {
            write!(f, " index {index}")?;
        }
        if *incarnation > 0 {
            write!(f, " incarnation {incarnation}")?;
        }
        let time = time.to_rfc3339_opts(SecondsFormat::Millis, true);
        write!(f, " at {time}: {reason}: {}\n    {payload}", printable(error))
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(payload: Option<&[u8]>, expected: Expect) {
        expected.assert_eq(&Shown::of(payload).to_string());
    }

    #[test]
    fn payloads_are_shown_as_what_they_are() {
        check(None, expect!["no payload"]);
        check(Some(b""), expect![""]);
        check(Some("{\"a\":\"ä\"}".as_bytes()), expect![[r#"{"a":"ä"}"#]]);
        check(Some(b"\x1b[2Jnot\njson"), expect![[r"\u{1b}[2Jnot\njson"]]);
        check(Some(b"\xff\xfe"), expect!["base64://4="]);
        let long = "ä".repeat(SHOWN_BYTES);
        let shown = Shown::of(Some(format!("x{long}").as_bytes()));
        assert_eq!(
            (shown.payload.expect("text").len(), shown.payload_bytes),
            (SHOWN_BYTES - 1, Some(2 * SHOWN_BYTES + 1))
        );
        // Cut off in the payload itself it is not UTF-8.
        check(Some(&"ä".as_bytes()[..1]), expect!["base64:ww=="]);
    }
}
