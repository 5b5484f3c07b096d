//! How far ingest has come, read from the ledgers of the bronze tables: what each of its commits recorded about itself.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::lake::Lake;
use crate::log::CommitEntry;
use crate::name::TableName;
use crate::table::Table;

/// Under this key of a commit's information stands what ingest consumed.
pub const INGEST_KEY: &str = "ingest";
/// The last commit of every partition is looked for until so many commits in a row were of partitions seen before.
const LOOK_BACK_MAX: u32 = 30;

/// The ledger entry of one partition of one topic. Bronze and the dead letters each have one of that name.
pub fn ingest_app_id(topic: &str, partition: i32) -> String {
    format!("ingest/{topic}/{partition}")
}

/// What one commit of ingest consumed.
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
    pub ranges: Vec<ConsumedRange>,
}

/// A run of offsets of one partition, and what became of it. `to - from` = `rows` + `dead_letters` + `holes`, where each
/// message holds one row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumedRange {
    /// The partition.
    pub partition: i32,
    /// The first offset.
    pub from: i64,
    /// The offset after the last: the next one to read.
    pub to: i64,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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
}

/// What commits that do not name their table of letters mean.
fn dead_letters_name() -> TableName {
    TableName::new("bronze", "dead_letters")
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
    let mut version = table.head().await?.version;
    let mut commits_without_news = 0;
    while commits_without_news < LOOK_BACK_MAX {
        let Some(commit) = table.inner.read_entry(version).await? else { break };
        let known = newest.len();
        if let Some(info) = commit.ingest_info()? {
            for range in &info.ranges {
                let key = (info.topic.clone(), range.partition);
                newest.entry(key).or_insert_with(|| progress_of(table.name(), &info.topic, range, commit.timestamp));
            }
        }
        commits_without_news = if newest.len() > known { 0 } else { commits_without_news + 1 };
        let Some(before) = version.checked_sub(1) else { break };
        version = before;
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
    }
}
