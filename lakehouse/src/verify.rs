//! The audit of bronze: that the ledger, the ranges that each commit recorded, and the rows that are really there agree.
//!
//! For each partition: the recorded ranges follow one another without gap or overlap but for those that somebody accepted, the
//! last ends where the ledger stands, and each range holds exactly the rows and the dead letters that it says, each offset
//! once.

mod account;
mod found;
mod replayed;

use std::fmt;

use serde::Serialize;

use crate::error::{ErrorKind, Result};
use crate::lake::Lake;
use crate::name::TableName;
use crate::table::Table;

use account::Account;

/// So many faults of one kind are listed; the rest are counted.
const EXAMPLES_MAX: usize = 20;

/// What the audit found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct VerifyReport {
    /// One entry for each partition of each bronze table.
    pub partitions: Vec<PartitionReport>,
    /// What does not agree; empty for a lake that is whole.
    pub faults: Vec<Fault>,
}

/// The account of one partition.
#[derive(Debug, Clone, Serialize)]
pub struct PartitionReport {
    /// The bronze table.
    pub table: TableName,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// How often it was made anew.
    pub incarnation: i32,
    /// The first offset that was ever consumed.
    pub from: i64,
    /// The next offset to read.
    pub to: i64,
    /// Messages that were read.
    pub messages: u64,
    /// Rows in the table.
    pub rows: u64,
    /// Rows in the table of dead letters.
    pub dead_letters: u64,
    /// Dead letters that retention took out.
    pub expired_letters: u64,
    /// Offsets that held no message of ours.
    pub holes: u64,
    /// Offsets that were given up on purpose.
    pub skipped: u64,
    /// Commits that consumed something of it.
    pub commits: u64,
}

/// One thing that does not agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The table in which it shows.
    pub table: TableName,
    /// The partition.
    pub partition: i32,
    /// What was expected and what was found, with the offsets.
    pub what: String,
}

impl VerifyReport {
    /// Whether everything agrees.
    pub fn is_whole(&self) -> bool {
        self.faults.is_empty()
    }
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.partitions.is_empty() {
            writeln!(f, "nothing was ingested yet")?;
        }
        for one in &self.partitions {
            writeln!(f, "{one}")?;
        }
        for fault in &self.faults {
            writeln!(f, "FAULT {} partition {}: {}", fault.table, fault.partition, fault.what)?;
        }
        match self.faults.len() {
            0 => write!(f, "ok: no gap, no overlap, no double, ledger and rows agree"),
            count => write!(f, "{count} faults"),
        }
    }
}

impl fmt::Display for PartitionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, topic, partition, from, to, rows, dead_letters, holes, .. } = self;
        write!(f, "{table} partition {partition} of {topic}: offsets {from}..{to} = ")?;
        // Where a message can hold several events they are more than the offsets.
        if self.messages != rows + dead_letters + self.expired_letters {
            write!(f, "{} messages with ", self.messages)?;
        }
        write!(f, "{rows} rows + {dead_letters} dead letters + {holes} holes")?;
        if self.expired_letters > 0 {
            write!(f, " + {} expired letters", self.expired_letters)?;
        }
        if self.skipped > 0 {
            write!(f, " + {} given up", self.skipped)?;
        }
        if self.incarnation > 0 {
            write!(f, ", made anew {} times", self.incarnation)?;
        }
        write!(f, ", in {} commits", self.commits)
    }
}

impl Lake {
    /// Audits every bronze table.
    pub async fn verify(&self) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        for name in self.tables().await? {
            if name.schema == "bronze" {
                verify_table(self, &self.table(&name), &mut report).await?;
            }
        }
        Ok(report)
    }
}

async fn verify_table(lake: &Lake, table: &Table, report: &mut VerifyReport) -> Result<()> {
    let head = table.head().await?;
    let mut account = Account::default();
    for commit in table.commits(0, head.version).await? {
        account.take(table.name(), &commit)?;
    }
    if account.partitions.is_empty() {
        // A table of letters, or one that somebody else writes.
        return Ok(());
    }
    let mut faults = std::mem::take(&mut account.faults);
    let context = lake.session_factory().context();
    found::count_rows(&context, &head, &mut account, &mut faults).await?;
    found::find_doubles(&context, &head, &mut faults).await?;
    // They are committed first, so every letter that a range of this version counts is in the newest version of theirs.
    let (mut letters, mut expired) = (Vec::new(), Vec::new());
    for name in account.letters.clone() {
        let of_letters = lake.table(&name);
        let head = match of_letters.head().await {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            head => head?,
        };
        found::count_letters(&context, &head, &mut account).await?;
        for commit in of_letters.commits(0, head.version).await? {
            expired.extend(commit.expired_letters()?);
        }
        letters.push(head);
    }
    expired.iter().for_each(|gone| account.expire(gone));
    let replays = replayed::check(&context, &head, &account.replays, &account.topics(), &letters, &expired).await?;
    faults.extend(replays);
    report.partitions.extend(account.settle(table.name(), &mut faults));
    report.faults.append(&mut faults);
    Ok(())
}
