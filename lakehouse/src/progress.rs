//! How far ingest has come, read from the ledgers of the bronze tables: what each of its commits recorded about itself.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;

use chrono::{DateTime, TimeDelta, Utc};
use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::lake::Lake;
use crate::log::{Commit, CommitEntry};
use crate::name::TableName;
use crate::table::Table;

/// Under this key of a commit's information stands what ingest consumed.
pub const INGEST_KEY: &str = "ingest";
/// The column that tells the rows of a partition that was made anew from those of the one before. A table gets it when that
/// happens for the first time; no value is the first incarnation.
pub const INCARNATION_COLUMN: &str = "_incarnation";
/// The column that names the replay which brought a row. A table gets it with its first replay; no value is a row that was
/// consumed.
pub const REPLAY_COLUMN: &str = "_replay_id";
/// The last commit of every partition is looked for until so many commits in a row were of partitions seen before.
const LOOK_BACK_MAX: u32 = 30;
/// Rows a second are those of this time, or of the commits that were looked at if these are younger.
const RATE_WINDOW: TimeDelta = TimeDelta::minutes(1);

/// The ledger entry of one partition of one topic: the next offset to read. Bronze and the dead letters each have one.
pub fn ingest_app_id(topic: &str, partition: i32) -> String {
    format!("ingest/{topic}/{partition}")
}

/// The entry that tells what the last message before the ledger's offset was: a digest, 0 if there is nothing to compare.
pub fn fingerprint_app_id(topic: &str, partition: i32) -> String {
    format!("fingerprint/{topic}/{partition}")
}

/// The entry that counts how often a partition was made anew; missing, it never was.
pub fn incarnation_app_id(topic: &str, partition: i32) -> String {
    format!("incarnation/{topic}/{partition}")
}

/// The entry that tells which cluster the topic was read from: a digest of its id.
pub fn cluster_app_id(topic: &str) -> String {
    format!("cluster/{topic}")
}

/// The entry that counts the commits which sent dead letters of a topic through again.
pub fn replay_app_id(topic: &str) -> String {
    format!("replay/{topic}")
}

/// The entry that is 1 from the commit that sets a partition's ledger until the letters beyond it are gone as well, and 0 after.
/// Nobody may begin to write in between: the letters that are still there would be counted, and then taken away.
pub fn reset_app_id(topic: &str, partition: i32) -> String {
    format!("reset/{topic}/{partition}")
}

/// What one commit of ingest did to the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngestInfo {
    /// The topic.
    pub topic: String,
    /// The cluster that it was read from; empty if the broker does not tell.
    pub cluster_id: String,
    /// The table of the letters that the ranges count.
    #[serde(default = "dead_letters_name")]
    pub dead_letters: TableName,
    /// One entry for each partition of which something was consumed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<ConsumedRange>,
    /// Offsets that were given up on purpose.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skips: Vec<Skip>,
    /// Partitions whose ledger was set back, with the rows from there on taken out in the same commit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rewinds: Vec<Rewind>,
    /// Dead letters that were sent through again by this commit, which moves no partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
}

impl IngestInfo {
    /// Of a commit that has done nothing yet.
    pub fn new(topic: impl Into<String>, cluster_id: impl Into<String>, dead_letters: TableName) -> Self {
        Self {
            topic: topic.into(),
            cluster_id: cluster_id.into(),
            dead_letters,
            ranges: Vec::new(),
            skips: Vec::new(),
            rewinds: Vec::new(),
            replay: None,
        }
    }
}

/// Offsets that were given up on purpose, and where reading goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skip {
    /// The partition.
    pub partition: i32,
    /// The first offset that was given up.
    pub from: i64,
    /// The offset after the last that was given up.
    pub to: i64,
    /// The next offset to read: `to`, or the beginning of a partition that was made anew.
    pub next: i64,
    /// The incarnation of the partition from there on.
    #[serde(default)]
    pub incarnation: i32,
    /// Why.
    pub reason: SkipReason,
}

/// Why offsets were given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// The broker no longer has them: its retention was shorter than the time that nobody read.
    Expired,
    /// The topic was deleted and made again: what stands at these offsets now is something else.
    MadeAnew,
    /// The broker lost the end of the partition, and writes other messages there.
    TailLost,
    /// Somebody set the ledger forward.
    Reset,
}

/// A partition whose ledger was set back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewind {
    /// The partition.
    pub partition: i32,
    /// The next offset to read before.
    pub from: i64,
    /// The next offset to read since.
    pub to: i64,
    /// Rows that were taken out, replayed ones included.
    pub rows: u64,
    /// What is left of the recorded range that holds `to` in its middle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<ConsumedRange>,
}

/// Dead letters that became rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// What the rows carry in `_replay_id`.
    pub id: String,
    /// Rows of this commit.
    pub rows: u64,
}

/// A run of offsets of one partition, and what became of it: `to - from` = `messages` + `holes`, and each message holds
/// `rows` and `dead_letters`, one or more of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumedRange {
    /// The partition.
    pub partition: i32,
    /// The first offset.
    pub from: i64,
    /// The offset after the last: the next one to read.
    pub to: i64,
    /// Counts how often the partition was made anew.
    #[serde(default)]
    pub incarnation: i32,
    /// Messages. None in what was recorded when each message was one row or one letter.
    #[serde(default)]
    pub messages: Option<u64>,
    /// Rows in this table.
    pub rows: u64,
    /// Letters in the table of dead letters.
    pub dead_letters: u64,
    /// Offsets that hold no message of ours: transaction markers, compacted messages.
    pub holes: u64,
    /// The end of the partition when it was consumed.
    pub end_offset: i64,
    /// A digest of the last message, by which a topic that was made anew is recognised; empty if there was none.
    pub fingerprint: String,
}

/// How far one partition was consumed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IngestProgress {
    /// The table that it lands in.
    pub table: TableName,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The next offset to read.
    pub next_offset: i64,
    /// The end of the partition at the last commit.
    pub end_offset: i64,
    /// Messages between the two.
    pub lag: i64,
    /// Rows of the last commit.
    pub rows: u64,
    /// Dead letters of the last commit.
    pub dead_letters: u64,
    /// When it was committed.
    pub committed_at: Option<DateTime<Utc>>,
    /// Rows a second of late: in the last minute, or since the oldest of the commits that were looked at.
    pub rows_per_second: f64,
}

/// What commits that do not name their table of letters mean.
fn dead_letters_name() -> TableName {
    TableName::new("bronze", "dead_letters")
}

impl ConsumedRange {
    /// Messages that were read in it.
    pub fn messages(&self) -> u64 {
        self.messages.unwrap_or(self.rows + self.dead_letters)
    }
}

impl Commit {
    /// Writes down what ingest does with this commit.
    pub fn record_ingest(&mut self, info: &IngestInfo) -> Result<()> {
        let info = serde_json::to_value(info).map_err(|source| {
            Error::with_source(ErrorKind::Bug, "cannot write down what a commit of ingest does", source)
        })?;
        self.info.insert(INGEST_KEY.to_owned(), info);
        Ok(())
    }
}

impl Table {
    /// The topics that were consumed into this table of late; none if there is no such table.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn topics(&self) -> Result<BTreeSet<String>> {
        match table_progress(self).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeSet::new()),
            progress => Ok(progress?.into_iter().map(|one| one.topic).collect()),
        }
    }
}

impl CommitEntry {
    /// What ingest recorded in this commit; nothing if it is of another writer.
    pub fn ingest_info(&self) -> Result<Option<IngestInfo>> {
        let Some(value) = self.info.get(INGEST_KEY) else { return Ok(None) };
        serde_json::from_value(value.clone()).map(Some).map_err(|source| {
            let message = format!("what ingest recorded in version {} is damaged", self.version);
            Error::with_source(ErrorKind::BadData, message, source)
        })
    }
}

impl Lake {
    /// How far every partition of every bronze table was consumed.
    pub async fn ingest_progress(&self) -> Result<Vec<IngestProgress>> {
        let mut progress = Vec::new();
        for name in self.known_heads().await? {
            if name.schema == "bronze" {
                progress.extend(table_progress(&self.table(&name)).await?);
            }
        }
        Ok(progress)
    }
}

async fn table_progress(table: &Table) -> Result<Vec<IngestProgress>> {
    let mut newest: BTreeMap<(String, i32), IngestProgress> = BTreeMap::new();
    let version = table.newest_version().await?;
    let now = table.inner.clock.now();
    let (mut late, mut since) = (Vec::new(), now - RATE_WINDOW);
    let mut entries = pin!(table.inner.lineage(version));
    let mut commits_without_news = 0;
    let mut oldest = now;
    while commits_without_news < LOOK_BACK_MAX {
        let Some(commit) = entries.try_next().await? else { break };
        let known = newest.len();
        oldest = commit.timestamp.unwrap_or(oldest);
        if let Some(info) = commit.ingest_info()? {
            for range in &info.ranges {
                let key = (info.topic.clone(), range.partition);
                late.push((key.clone(), oldest, range.rows));
                newest.entry(key).or_insert_with(|| progress_of(table.name(), &info.topic, range, commit.timestamp));
            }
        }
        commits_without_news = if newest.len() > known { 0 } else { commits_without_news + 1 };
    }
    // The rows of the oldest commit came in before it: it only begins the time in which those of the others did.
    since = since.max(oldest);
    let seconds = (now - since).as_seconds_f64();
    for (key, at, rows) in late {
        if at > since && seconds > 0.0 {
            newest.entry(key).and_modify(|partition| partition.rows_per_second += rows as f64 / seconds);
        }
    }
    Ok(newest.into_values().collect())
}

fn progress_of(
    table: &TableName,
    topic: &str,
    range: &ConsumedRange,
    committed_at: Option<DateTime<Utc>>,
) -> IngestProgress {
    IngestProgress {
        table: table.clone(),
        topic: topic.to_owned(),
        partition: range.partition,
        next_offset: range.to,
        end_offset: range.end_offset,
        lag: (range.end_offset - range.to).max(0),
        rows: range.rows,
        dead_letters: range.dead_letters,
        committed_at,
        rows_per_second: 0.0,
    }
}
