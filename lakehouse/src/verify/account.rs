//! What the log of one bronze table says about itself: for each partition the stretches of offsets that were consumed, given
//! up, or set back, told in the order of the commits. Pure: what is really there is counted elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;
use crate::expired::ExpiredLetters;
use crate::log::CommitEntry;
use crate::name::TableName;
use crate::progress::{ConsumedRange, IngestInfo, Rewind, Skip, incarnation_app_id, ingest_app_id};

use super::replayed::Recorded;
use super::{Fault, PartitionReport};

/// A partition of a topic, by its number.
pub(super) type Partition = (String, i32);

/// A row's or a letter's place: partition, incarnation and offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) partition: i32,
    pub(super) incarnation: i32,
    pub(super) offset: i64,
}

/// What the log of one table says.
#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) partitions: BTreeMap<Partition, History>,
    /// The tables of the letters that the ranges count.
    pub(super) letters: BTreeSet<TableName>,
    /// Rows by the replay that brought them.
    pub(super) replays: BTreeMap<String, Recorded>,
    /// The ledger after the last commit.
    ledger: BTreeMap<String, i64>,
    /// What of the log does not fit together.
    pub(super) faults: Vec<Fault>,
}

/// What became of one partition.
#[derive(Debug, Default)]
pub(super) struct History {
    /// The first offset that was ever consumed.
    first: Option<i64>,
    /// The next offset to read.
    next: Option<i64>,
    /// How often the partition was made anew.
    incarnation: i32,
    /// Commits that consumed something of it.
    commits: u64,
    /// What was consumed, by incarnation and in the order of the offsets.
    stretches: BTreeMap<i32, Vec<Stretch>>,
    /// Offsets that were given up and stand in no stretch.
    skipped: Vec<Skip>,
    /// Letters that retention took out.
    expired: Vec<ExpiredLetters>,
    /// How often the ledger was set back.
    rewinds: u64,
}

/// A run of offsets that was consumed.
#[derive(Debug)]
pub(super) struct Stretch {
    version: u64,
    range: ConsumedRange,
    /// Rows and letters that were really found in it.
    pub(super) rows_found: u64,
    pub(super) letters_found: u64,
}

impl Account {
    /// Takes in one commit after the other, oldest first.
    pub(super) fn take(&mut self, table: &TableName, commit: &CommitEntry) -> Result<()> {
        self.ledger.extend(commit.transactions.clone());
        let Some(info) = commit.ingest_info()? else { return Ok(()) };
        self.letters.insert(info.dead_letters.clone());
        if let Some(what) = wrong_row_count(commit, &info) {
            self.faults.push(Fault::of_table(table, what));
        }
        if let Some(replay) = info.replay {
            self.replays.entry(replay.id).or_insert(Recorded::Rows(0)).add(replay.rows);
        }
        if !info.rewinds.is_empty() {
            self.replays.values_mut().for_each(Recorded::rewind);
        }
        let mut take = |partition: i32, change: &dyn Fn(&mut History) -> Option<String>| {
            let history = self.partitions.entry((info.topic.clone(), partition)).or_default();
            if let Some(what) = change(history) {
                self.faults.push(Fault::of_partition(table, partition, what));
            }
        };
        for rewind in &info.rewinds {
            take(rewind.partition, &|history| history.rewind(commit.version, rewind));
        }
        for skip in &info.skips {
            take(skip.partition, &|history| history.skip(commit.version, skip));
        }
        for range in &info.ranges {
            take(range.partition, &|history| history.consume(commit.version, range));
        }
        Ok(())
    }

    /// Takes in what retention took out of a table of letters.
    pub(super) fn expire(&mut self, gone: &ExpiredLetters) {
        if let Some(history) = self.partitions.get_mut(&(gone.topic.clone(), gone.partition)) {
            history.expired.push(gone.clone());
        }
    }

    /// The topics of the table.
    pub(super) fn topics(&self) -> BTreeSet<String> {
        self.partitions.keys().map(|(topic, _)| topic.clone()).collect()
    }

    /// The stretch that holds a place.
    pub(super) fn stretch_of(&mut self, topic: &str, place: Place) -> Option<&mut Stretch> {
        let history = self.partitions.get_mut(&(topic.to_owned(), place.partition))?;
        let stretches = history.stretches.get_mut(&place.incarnation)?;
        let after = stretches.partition_point(|stretch| stretch.range.from <= place.offset);
        let found = stretches.get_mut(after.checked_sub(1)?)?;
        (place.offset < found.range.to).then_some(found)
    }

    /// Compares what was recorded with what was found, and draws up the account of each partition.
    pub(super) fn settle(&self, table: &TableName, faults: &mut Vec<Fault>) -> Vec<PartitionReport> {
        let mut reports = Vec::new();
        for ((topic, partition), history) in &self.partitions {
            let mut fault = |what| faults.push(Fault::of_partition(table, *partition, what));
            let entry = |app_id: String| self.ledger.get(&app_id).copied();
            let ledger = entry(ingest_app_id(topic, *partition));
            if ledger != history.next {
                let stands = ledger.map_or_else(|| "has no entry".to_owned(), |offset| format!("stands at {offset}"));
                let next = history.next.unwrap_or_default();
                fault(format!("the ledger {stands}, but the last range ends at {next}"));
            }
            let incarnation = entry(incarnation_app_id(topic, *partition)).unwrap_or(0);
            if incarnation != i64::from(history.incarnation) {
                fault(format!(
                    "the ledger counts incarnation {incarnation}, but the commits tell of {}",
                    history.incarnation
                ));
            }
            history.stretches().flat_map(|stretch| stretch.differences(&history.expired)).for_each(&mut fault);
            history.wrong_expiry().into_iter().for_each(&mut fault);
            reports.push(history.report(table, topic, *partition));
        }
        reports
    }
}

/// A commit's files have to hold the rows that it says it brought. One that took rows out brought others along.
fn wrong_row_count(commit: &CommitEntry, info: &IngestInfo) -> Option<String> {
    let recorded: u64 = info.ranges.iter().map(|range| range.rows).sum();
    let recorded = recorded + info.replay.as_ref().map_or(0, |replay| replay.rows);
    let is_wrong = info.rewinds.is_empty() && recorded != commit.rows_added();
    is_wrong.then(|| {
        format!(
            "version {} says that it added {recorded} rows, but its files hold {}",
            commit.version,
            commit.rows_added()
        )
    })
}

impl History {
    fn consume(&mut self, version: u64, range: &ConsumedRange) -> Option<String> {
        let fault = match (self.next, self.stretches.values().next_back().and_then(|stretches| stretches.last())) {
            (Some(next), Some(last)) if next != range.from => Some(format!(
                "version {version} begins at offset {}, but the one before it, {}, ended at {next}",
                range.from, last.version
            )),
            (Some(next), None) if next != range.from => {
                Some(format!("version {version} begins at offset {}, but the ledger stood at {next}", range.from))
            }
            _ if range.incarnation != self.incarnation => Some(format!(
                "version {version} consumed incarnation {}, but the ledger counted {}",
                range.incarnation, self.incarnation
            )),
            _ => None,
        };
        self.first.get_or_insert(range.from);
        self.next = Some(range.to);
        self.commits += 1;
        self.stretches.entry(range.incarnation).or_default().push(Stretch::of(version, range.clone()));
        fault
    }

    fn skip(&mut self, version: u64, skip: &Skip) -> Option<String> {
        let stood = self.next.replace(skip.next);
        self.first.get_or_insert(skip.from);
        if skip.incarnation == self.incarnation {
            self.skipped.push(skip.clone());
        }
        self.incarnation = skip.incarnation;
        // What was made anew gave up all that was read; everything else gives up what comes next.
        let is_next = stood.is_none_or(|stood| stood == skip.from || stood == skip.to);
        (!is_next).then(|| {
            format!(
                "version {version} gave up offsets {}..{}, but the ledger stood at {}",
                skip.from,
                skip.to,
                stood.unwrap_or_default()
            )
        })
    }

    fn rewind(&mut self, version: u64, rewind: &Rewind) -> Option<String> {
        let stood = self.next.replace(rewind.to);
        self.rewinds += 1;
        self.skipped.retain(|skip| skip.incarnation != self.incarnation || skip.from < rewind.to);
        for skip in self.skipped.iter_mut().filter(|skip| skip.incarnation == self.incarnation) {
            skip.to = skip.to.min(rewind.to);
        }
        let stretches = self.stretches.entry(self.incarnation).or_default();
        stretches.retain(|stretch| stretch.range.from < rewind.to);
        let mut cut = None;
        if let Some(last) = stretches.last_mut().filter(|last| last.range.to > rewind.to) {
            match &rewind.kept {
                Some(kept) if kept.from == last.range.from && kept.to == rewind.to => last.range = kept.clone(),
                _ => {
                    cut = Some(format!(
                        "version {version} cut the offsets {}..{} at {}, and does not say what was left",
                        last.range.from, last.range.to, rewind.to
                    ));
                }
            }
        }
        if stood.is_some_and(|stood| stood != rewind.from) {
            return Some(format!(
                "version {version} went back from offset {}, but the ledger stood at {}",
                rewind.from,
                stood.unwrap_or_default()
            ));
        }
        cut
    }

    pub(super) fn stretches(&self) -> impl Iterator<Item = &Stretch> {
        self.stretches.values().flatten()
    }

    /// What is missing of the letters has to be just what retention took out. Where the ledger was set back since, some of
    /// that belonged to offsets that are read again.
    fn wrong_expiry(&self) -> Option<String> {
        let sum = |count: fn(&Stretch) -> u64| self.stretches().map(count).sum::<u64>();
        let (recorded, found) = (sum(|stretch| stretch.range.dead_letters), sum(|stretch| stretch.letters_found));
        let expired: u64 = self.expired.iter().map(|gone| gone.letters).sum();
        // Letters of offsets that were given up, after a crash before their rows, expire too and were never recorded.
        let is_plain = self.rewinds == 0 && self.skipped.is_empty() && self.incarnation == 0;
        let fits = if is_plain { found + expired == recorded } else { found + expired >= recorded };
        (expired > 0 && !fits).then(|| {
            format!("of {recorded} dead letters {expired} expired, so the rest should be there, but {found} are")
        })
    }

    fn report(&self, table: &TableName, topic: &str, partition: i32) -> PartitionReport {
        let sum = |count: fn(&Stretch) -> u64| self.stretches().map(count).sum();
        PartitionReport {
            table: table.clone(),
            topic: topic.to_owned(),
            partition,
            incarnation: self.incarnation,
            from: self.first.unwrap_or_default(),
            to: self.next.unwrap_or_default(),
            messages: sum(|stretch| stretch.range.messages()),
            rows: sum(|stretch| stretch.rows_found),
            dead_letters: sum(|stretch| stretch.letters_found),
            expired_letters: self.expired.iter().map(|gone| gone.letters).sum(),
            holes: sum(|stretch| stretch.range.holes),
            skipped: self.skipped.iter().map(|skip| (skip.to - skip.from).max(0) as u64).sum(),
            commits: self.commits,
        }
    }
}

impl Stretch {
    fn of(version: u64, range: ConsumedRange) -> Self {
        Self { version, range, rows_found: 0, letters_found: 0 }
    }

    fn differences(&self, expired: &[ExpiredLetters]) -> Vec<String> {
        let Self { version, range, rows_found, letters_found } = self;
        let mut differences = Vec::new();
        let offsets = format!("offsets {}..{} of version {version}", range.from, range.to);
        if range.rows != *rows_found {
            differences.push(format!("{offsets} should hold {} rows, but {rows_found} are there", range.rows));
        }
        let touches = |gone: &ExpiredLetters| {
            gone.incarnation == range.incarnation && gone.from < range.to && range.from < gone.to
        };
        // How many of a stretch's letters expired is not recorded, only how many of the partition's.
        let may_be_fewer = expired.iter().any(touches);
        let fits =
            if may_be_fewer { *letters_found <= range.dead_letters } else { *letters_found == range.dead_letters };
        if !fits {
            let letters = range.dead_letters;
            differences.push(format!("{offsets} should have {letters} dead letters, but {letters_found} are there"));
        }
        let (length, messages) = (range.to - range.from, range.messages());
        if (messages + range.holes) as i64 != length {
            differences.push(format!("{offsets} account for {} of {length}", messages + range.holes));
        }
        // A message holds one row or letter at least.
        if range.rows + range.dead_letters < messages {
            differences.push(format!(
                "{offsets} had {messages} messages, but only {} rows and dead letters came of them",
                range.rows + range.dead_letters
            ));
        }
        differences
    }
}
