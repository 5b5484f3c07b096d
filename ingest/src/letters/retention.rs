//! Letters that are older than their topic keeps them go, file by file: those of whole days, and only once the rows beside them
//! are committed.
//!
//! A commit takes out what is too old and records how many letters of which partitions that were, so that an audit still adds
//! up. The files themselves go some time later, when nobody can be reading them any more.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{Days, NaiveDate};
use futures::TryStreamExt as _;
use lakehouse::{
    Cleaner, Commit, DataFile, EXPIRED_KEY, ErrorKind, ExpiredLetters, Filter, Lake, Operation, Outcome, Scan, Table,
    TableVersion, incarnation_app_id, ingest_app_id,
};

use super::Letters;
use crate::topic::TopicSpec;
use crate::{Error, Result};

/// Between two rounds.
const INTERVAL: Duration = Duration::from_secs(3600);
/// So many files at most go in one commit.
const FILES_MAX: usize = 1_000;
/// The column by whose values the table's folders are made.
const DATE_COLUMN: &str = "_ingest_date";

/// Keeps the letters of one topic from growing for ever.
pub(crate) struct Retention {
    lake: Lake,
    topic: TopicSpec,
    days: u64,
    letters: Table,
    cleaner: Cleaner,
    /// Files that hold letters of others as well: theirs to judge. They were read once.
    shared: HashSet<String>,
}

/// What of one partition stands in a file: how many letters, the first offset and the one after the last.
type Tally = BTreeMap<(i32, i32), (u64, i64, i64)>;

impl Retention {
    /// None for a topic whose letters are kept for ever.
    pub(crate) fn of(lake: &Lake, topic: &TopicSpec) -> Option<Self> {
        let days = topic.dead_letter_days.filter(|&days| days > 0)?;
        Some(Self {
            lake: lake.clone(),
            topic: topic.clone(),
            days: days.into(),
            letters: lake.table(&topic.dead_letters),
            cleaner: Cleaner::only(lake.clone(), [topic.dead_letters.clone()]),
            shared: HashSet::new(),
        })
    }

    /// Goes on for ever. What fails is tried again in the next round: nothing else depends on it.
    pub(crate) async fn run(mut self) {
        loop {
            self.round().await;
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// One round, which ends early where the store does not answer.
    pub(crate) async fn round(&mut self) {
        match self.expire().await {
            Ok(0) => {}
            Ok(letters) => tracing::info!(letters, topic = self.topic.name, days = self.days, "dead letters expired"),
            Err(error) => tracing::warn!(%error, topic = self.topic.name, "old dead letters stay for now"),
        }
        match self.cleaner.clean().await {
            Ok(report) => tracing::debug!(files = report.files, bytes = report.bytes, "cleaned dead letters"),
            Err(error) => tracing::warn!(%error, topic = self.topic.name, "files of dead letters stay for now"),
        }
    }

    /// Takes out what is too old. Says how many letters that were.
    pub(crate) async fn expire(&mut self) -> Result<u64> {
        let mut expired = 0;
        loop {
            let head = match self.letters.head().await {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(expired),
                head => head?,
            };
            let old = self.old_files(&head)?;
            let (mut removes, mut tally) = (Vec::new(), Tally::new());
            for file in old {
                if let Some(of_file) = self.tally(&head, &file).await? {
                    add(&mut tally, &of_file);
                    removes.push(file);
                }
                if removes.len() == FILES_MAX {
                    break;
                }
            }
            if removes.is_empty() {
                return Ok(expired);
            }
            let is_all = removes.len() < FILES_MAX;
            let letters = tally.values().map(|(letters, ..)| letters).sum::<u64>();
            match self.commit(head.version, removes, tally).await? {
                Outcome::Committed(_) => expired += letters,
                // Another process does the same: what is still there goes in the next round.
                Outcome::Lost { .. } => return Ok(expired),
            }
            if is_all {
                return Ok(expired);
            }
        }
    }

    /// Files of days that are over for long enough, and that may hold letters of ours.
    fn old_files(&self, head: &Arc<TableVersion>) -> Result<Vec<Arc<DataFile>>> {
        let today = self.lake.clock().now().date_naive();
        let Some(first_kept) = today.checked_sub_days(Days::new(self.days)) else { return Ok(Vec::new()) };
        let ours = Filter::text_in("topic", std::slice::from_ref(&self.topic.name));
        let mut files = Scan::new(head.clone(), self.lake.session_factory(), ours).files()?;
        files.retain(|file| {
            let day = file.partition_values.get(DATE_COLUMN).and_then(Option::as_deref);
            let day = day.and_then(|day| day.parse::<NaiveDate>().ok());
            day.is_some_and(|day| day < first_kept) && !self.shared.contains(&file.path)
        });
        Ok(files)
    }

    /// What a file holds; nothing if it has to stay.
    async fn tally(&mut self, head: &Arc<TableVersion>, file: &Arc<DataFile>) -> Result<Option<Tally>> {
        let scan = Scan::new(head.clone(), self.lake.session_factory(), Filter::everything());
        let mut batches = scan.read(vec![file.clone()], &Letters::columns(head, &["topic"])).await?;
        let mut tally = Tally::new();
        while let Some(batch) = batches.try_next().await? {
            let letters = Letters::of(&batch)?;
            let topics = letters.text("topic")?;
            for row in 0..batch.num_rows() {
                if topics.value(row) != self.topic.name {
                    self.shared.insert(file.path.clone());
                    return Ok(None);
                }
                let place = letters.places.get(row);
                let one = BTreeMap::from([((place.partition, place.incarnation), (1, place.offset, place.offset + 1))]);
                add(&mut tally, &one);
            }
        }
        Ok(self.is_consumed(&tally).await?.then_some(tally))
    }

    /// Letters beyond bronze's ledger are what keeps the next start from writing them once more.
    async fn is_consumed(&self, tally: &Tally) -> Result<bool> {
        let topic = &self.topic.name;
        let of_partition =
            |&(partition, _): &(i32, i32)| [ingest_app_id(topic, partition), incarnation_app_id(topic, partition)];
        let app_ids: Vec<String> = tally.keys().flat_map(of_partition).collect();
        let ledger = self.lake.table(&self.topic.table).ledger(&app_ids).await?.entries;
        Ok(tally.iter().all(|(&(partition, incarnation), &(_, _, to))| {
            let now = ledger.get(&incarnation_app_id(topic, partition)).copied().unwrap_or(0);
            let next = ledger.get(&ingest_app_id(topic, partition)).copied();
            i64::from(incarnation) < now || next.is_some_and(|next| to <= next)
        }))
    }

    async fn commit(&self, version: u64, removes: Vec<Arc<DataFile>>, tally: Tally) -> Result<Outcome> {
        let expired = tally.into_iter().map(|((partition, incarnation), (letters, from, to))| ExpiredLetters {
            topic: self.topic.name.clone(),
            partition,
            incarnation,
            letters,
            from,
            to,
        });
        let expired = serde_json::to_value(expired.collect::<Vec<_>>())
            .map_err(|source| Error::with_source(ErrorKind::Bug, "cannot write down what expired", source))?;
        let mut commit = Commit::new(Operation::Delete);
        commit.removes = removes;
        commit.info.insert(EXPIRED_KEY.to_owned(), expired);
        self.letters.append(version, commit).await
    }
}

fn add(tally: &mut Tally, more: &Tally) {
    for (&key, &(letters, from, to)) in more {
        let sum = tally.entry(key).or_insert((0, from, to));
        *sum = (sum.0 + letters, sum.1.min(from), sum.2.max(to));
    }
}
