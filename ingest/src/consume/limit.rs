//! The share of dead letters at which the process stops, before it commits: messages that a wrong setting or a broken producer
//! makes undecodable become rows once that is mended, instead of a million letters.
//!
//! What is judged are the newest 1,000 events or more: the batch that is about to be committed, and as many batches before it
//! as that takes. Fewer are too few to judge. After a restart those before it are read from the ledger, so a process that is
//! started again and again does not commit a little more each time. A batch that is itself below the share never stops
//! anything, whatever came before it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use arrow::array::AsArray as _;
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::record_batch::RecordBatch;
use lakehouse::{ConsumedRange, Table};

use crate::topic::TopicSpec;
use crate::{Error, ErrorKind, Result};

/// So many events at least are judged together.
const WINDOW_EVENTS: u64 = 1_000;
/// So many commits are looked at after a restart.
const LOOK_BACK_MAX: u64 = 256;

/// Whether a batch may be committed.
pub(super) struct Limit {
    topic: String,
    ratio: Option<f64>,
    /// What was committed last, oldest first.
    before: Mutex<VecDeque<Counted>>,
}

/// Events of one batch: rows and letters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counted {
    events: u64,
    letters: u64,
}

impl Counted {
    pub(super) fn of<'a>(ranges: impl IntoIterator<Item = &'a ConsumedRange>) -> Self {
        let add = |sum: Self, range: &ConsumedRange| Self {
            events: sum.events + range.rows + range.dead_letters,
            letters: sum.letters + range.dead_letters,
        };
        ranges.into_iter().fold(Self::default(), add)
    }

    fn exceeds(self, ratio: f64) -> bool {
        self.letters as f64 > ratio * self.events as f64
    }
}

impl Limit {
    /// Reads from the table's log what was committed last, where that is asked for.
    pub(super) async fn open(topic: &TopicSpec, bronze: &Table) -> Result<Self> {
        let ratio = topic.max_dead_letter_ratio.map(f64::from);
        let before = if ratio.is_some() { committed_last(topic, bronze).await? } else { VecDeque::new() };
        Ok(Self { topic: topic.name.clone(), ratio, before: Mutex::new(before) })
    }

    /// Refuses a batch with too many letters.
    ///
    /// # Errors
    /// `BadData`, naming the most frequent reason and a letter that has it.
    pub(super) fn check(&self, batch: Counted, reasons: &Reasons) -> Result<()> {
        let Some(ratio) = self.ratio.filter(|&ratio| batch.exceeds(ratio)) else { return Ok(()) };
        let before = self.before.lock().expect("no holder of this lock panics");
        let judged = judged(batch, &before);
        if judged.events < WINDOW_EVENTS || !judged.exceeds(ratio) {
            return Ok(());
        }
        let message = format!(
            "{} of the last {} events of topic {} would be dead letters, more than max_dead_letter_ratio = {ratio} of the topic \
             allows{}. The last {} events are not committed: mend the producer or the topic's settings, and start again; or raise \
             max_dead_letter_ratio, and they become dead letters",
            judged.letters,
            judged.events,
            self.topic,
            reasons.most_frequent().map_or_else(String::new, |reason| format!("; most often {reason}")),
            batch.events
        );
        Err(Error::new(ErrorKind::BadData, message))
    }

    /// Remembers a batch that was committed.
    pub(super) fn count(&self, batch: Counted) {
        if self.ratio.is_none() {
            return;
        }
        let mut before = self.before.lock().expect("no holder of this lock panics");
        before.push_back(batch);
        let mut events: u64 = before.iter().map(|counted| counted.events).sum();
        while let Some(oldest) = before.front()
            && events - oldest.events >= WINDOW_EVENTS
        {
            events -= oldest.events;
            before.pop_front();
        }
    }
}

/// The batch, and as much of what was before it as it takes.
fn judged(batch: Counted, before: &VecDeque<Counted>) -> Counted {
    let mut judged = batch;
    for counted in before.iter().rev() {
        if judged.events >= WINDOW_EVENTS {
            break;
        }
        judged.events += counted.events;
        judged.letters += counted.letters;
    }
    judged
}

async fn committed_last(topic: &TopicSpec, bronze: &Table) -> Result<VecDeque<Counted>> {
    let newest = bronze.head().await?.version;
    let (mut before, mut events) = (VecDeque::new(), 0);
    for version in (newest.saturating_sub(LOOK_BACK_MAX)..=newest).rev() {
        for commit in bronze.story(version, version).await? {
            let Some(info) = commit.ingest_info()?.filter(|info| info.topic == topic.name) else { continue };
            let counted = Counted::of(&info.ranges);
            events += counted.events;
            before.push_front(counted);
        }
        if events >= WINDOW_EVENTS {
            break;
        }
    }
    Ok(before)
}

/// Why there are letters in a batch.
#[derive(Debug, Default)]
pub(super) struct Reasons(BTreeMap<String, Seen>);

/// How often a reason was seen, and the first letter that has it.
#[derive(Debug)]
struct Seen {
    letters: u64,
    example: String,
}

impl Reasons {
    /// Takes note of letters that are about to be written.
    pub(super) fn note(&mut self, letters: &RecordBatch) -> Result<()> {
        let wrong = || Error::new(ErrorKind::Bug, "the decoder gave other columns than those of the dead letters");
        let text = |name: &str| letters.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
        let (reason, error) = text("reason").zip(text("error")).ok_or_else(wrong)?;
        let column = |name: &str| letters.column_by_name(name).ok_or_else(wrong);
        let partition = column("partition")?.as_primitive_opt::<Int32Type>().ok_or_else(wrong)?;
        let offset = column("offset")?.as_primitive_opt::<Int64Type>().ok_or_else(wrong)?;
        for row in 0..letters.num_rows() {
            if let Some(seen) = self.0.get_mut(reason.value(row)) {
                seen.letters += 1;
                continue;
            }
            let (partition, offset) = (partition.value(row), offset.value(row));
            let example = format!("partition {partition} offset {offset}: {}", error.value(row));
            self.0.insert(reason.value(row).to_owned(), Seen { letters: 1, example });
        }
        Ok(())
    }

    /// The most frequent one with its number and an example.
    fn most_frequent(&self) -> Option<String> {
        let (reason, seen) = self.0.iter().max_by_key(|(_, seen)| seen.letters)?;
        Some(format!("{reason} ({} times), as at {}", seen.letters, seen.example))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(ratio: f64, before: &[(u64, u64)]) -> Limit {
        let limit = Limit { topic: "t".to_owned(), ratio: Some(ratio), before: Mutex::default() };
        before.iter().for_each(|&(events, letters)| limit.count(Counted { events, letters }));
        limit
    }

    fn stops(limit: &Limit, events: u64, letters: u64) -> bool {
        limit.check(Counted { events, letters }, &Reasons::default()).is_err()
    }

    #[test]
    fn the_share_counts_from_a_thousand_events_on() {
        let fresh = limit(0.5, &[]);
        assert!(!stops(&fresh, 999, 999), "too few to judge");
        assert!(stops(&fresh, 1_000, 501));
        assert!(!stops(&fresh, 1_000, 500));
        let error = fresh
            .check(Counted { events: 2_000, letters: 2_000 }, &Reasons::default())
            .expect_err("all of them")
            .to_string();
        assert!(error.starts_with("2000 of the last 2000 events of topic t would"), "{error}");
    }

    #[test]
    fn what_was_before_counts_only_as_far_as_it_is_needed() {
        let good = limit(0.1, &[(5_000, 0), (600, 0), (300, 0)]);
        assert!(!stops(&good, 100, 100), "100 of 1,000 are just as many as allowed");
        assert!(stops(&good, 101, 101), "of the last 1,001");
        let bad = limit(0.1, &[(900, 900)]);
        assert!(!stops(&bad, 500, 50), "a batch that is below the share goes on, whatever was before");
        assert!(stops(&bad, 500, 51));
    }

    #[test]
    fn zero_allows_none_and_one_allows_all() {
        assert!(stops(&limit(0.0, &[(1_000, 0)]), 10, 1));
        assert!(!stops(&limit(0.0, &[(1_000, 0)]), 10, 0));
        assert!(!stops(&limit(1.0, &[]), 5_000, 5_000));
        let unset = Limit { topic: String::new(), ratio: None, before: Mutex::default() };
        unset.count(Counted { events: 7, letters: 7 });
        assert!(!stops(&unset, 5_000, 5_000) && unset.before.lock().expect("free").is_empty());
    }

    #[test]
    fn only_what_can_still_count_is_remembered() {
        let limit = limit(0.5, &[(400, 1), (400, 2), (400, 3), (400, 4)]);
        let kept: Vec<u64> = limit.before.lock().expect("free").iter().map(|counted| counted.letters).collect();
        assert_eq!(kept, [2, 3, 4]);
    }
}
