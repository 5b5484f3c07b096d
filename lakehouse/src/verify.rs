//! The audit of the lake.
//!
//! For each table: its log is all there and says the same as its last checkpoint; each file of the newest version, and of those
//! that publications name, is there, is what was written, and holds what the log says of it; each publication finds its
//! version.
//!
//! For each partition of bronze besides: the recorded ranges follow one another without gap or overlap but for those that
//! somebody accepted, the last ends where the ledger stands, and each range holds exactly the rows and the dead letters that it
//! says, each offset once.

mod account;
mod files;
mod found;
mod log;
mod publications;
mod replayed;

use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use futures::TryStreamExt as _;
use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::lake::Lake;
use crate::name::TableName;
use crate::table::Table;
use crate::version::TableVersion;

use account::Account;
use publications::Pins;

/// So many faults of one kind are listed; the rest are counted.
const EXAMPLES_MAX: usize = 20;

/// What the audit found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct VerifyReport {
    /// One entry for each partition of each bronze table.
    pub partitions: Vec<PartitionReport>,
    /// One entry for each table.
    pub tables: Vec<TableReport>,
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

/// What of a table was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct TableReport {
    /// The table.
    pub table: TableName,
    /// The newest version.
    pub version: u64,
    /// The versions that publications name.
    pub published: u64,
    /// Files of these versions.
    pub files: u64,
    /// Their size.
    pub bytes: u64,
}

/// One thing that does not agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The table in which it shows.
    pub table: TableName,
    /// The partition of the topic, where it shows in one.
    pub partition: Option<i32>,
    /// What was expected and what was found, with the offsets or the file.
    pub what: String,
}

impl Fault {
    fn of_table(table: &TableName, what: String) -> Self {
        Self { table: table.clone(), partition: None, what }
    }

    fn of_partition(table: &TableName, partition: i32, what: String) -> Self {
        Self { table: table.clone(), partition: Some(partition), what }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.partition {
            Some(partition) => write!(f, "{} partition {partition}: {}", self.table, self.what),
            None => write!(f, "{}: {}", self.table, self.what),
        }
    }
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
            writeln!(f, "FAULT {fault}")?;
        }
        let files: u64 = self.tables.iter().map(|table| table.files).sum();
        match self.faults.len() {
            0 => write!(f, "ok: no gap, no overlap, no double, ledger and rows agree; all {files} files are whole"),
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
    /// Audits every table.
    pub async fn verify(&self) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        let pins = match self.publications().await {
            Ok(publications) => Pins::of(publications),
            // The audit of their own table says what is wrong.
            Err(error) if is_found(&error) => Pins::default(),
            Err(error) => return Err(error),
        };
        let names = self.tables().await?;
        report.faults.extend(pins.of_missing(&names));
        for name in names {
            match audit(self, &self.table(&name), &pins, &mut report).await {
                Err(error) if is_found(&error) => report.faults.push(Fault::of_table(&name, error.to_string())),
                audited => audited?,
            }
        }
        Ok(report)
    }
}

/// What the log names and the store has not, or has damaged, is just what is looked for.
fn is_found(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::BadData | ErrorKind::NotFound)
}

async fn audit(lake: &Lake, table: &Table, pins: &Pins, report: &mut VerifyReport) -> Result<()> {
    let name = table.name();
    let begins = table.inner.log_begins().await?;
    let log::Entries { newest, missing } = log::Entries::list(table, begins).await?;
    if !missing.is_empty() {
        let told = missing.iter().map(|gap| format!("log entries {} to {} are gone", gap.start(), gap.end()));
        report.faults.extend(told.map(|what| Fault::of_table(name, what)));
        return Ok(());
    }
    let wanted = pins.versions(name);
    let (mut files, mut account) = (log::Files::of(&wanted), Account::default());
    if begins > 0 {
        for version in wanted.range(..begins) {
            files.name(table.at(*version).await?.as_ref());
        }
        files.begin(&table.inner.load(Some(begins)).await?.pin());
    }
    let mut commits = pin!(table.inner.story(0..=newest));
    while let Some(commit) = commits.try_next().await? {
        let Some(commit) = commit else { continue };
        if commit.version > begins || begins == 0 {
            files.take(&commit);
        }
        if let Some(version) = commit.restored() {
            account = account_of(table, version).await?;
        }
        account.take(name, &commit)?;
    }
    // Loaded anew: what this process has followed entry by entry says nothing about the checkpoint.
    let head = Arc::new(table.inner.load(Some(newest)).await?.pin());
    let mut wrong = pins.faults(&head);
    wrong.extend(files.differences(&head));
    let files = files.all();
    report.tables.push(TableReport {
        table: name.clone(),
        version: head.version,
        published: wanted.len() as u64,
        files: files.len() as u64,
        bytes: files.iter().map(|file| file.size).sum(),
    });
    wrong.extend(files::faults(table, &head, files).await?);
    let is_readable = wrong.is_empty();
    report.faults.extend(wrong.into_iter().map(|what| Fault::of_table(name, what)));
    // A table of letters, one of models, or one that somebody else writes has nothing to account for.
    if is_readable && !account.partitions.is_empty() {
        audit_rows(lake, &head, account, report).await?;
    }
    Ok(())
}

/// What the log accounts for up to a version that was put back.
async fn account_of(table: &Table, version: u64) -> Result<Account> {
    let newest_first: Vec<_> = table.inner.lineage(version).try_collect().await?;
    let mut account = Account::default();
    for commit in newest_first.iter().rev() {
        account.take(table.name(), commit)?;
    }
    Ok(account)
}

/// Compares the rows of a table with what its log accounts for.
async fn audit_rows(lake: &Lake, head: &TableVersion, mut account: Account, report: &mut VerifyReport) -> Result<()> {
    let mut faults = std::mem::take(&mut account.faults);
    let context = lake.session_factory().context();
    found::count_rows(&context, head, &mut account, &mut faults).await?;
    found::find_doubles(&context, head, &mut faults).await?;
    // They are committed first, so every letter that a range of this version counts is in the newest version of theirs.
    let (mut letters, mut expired) = (Vec::new(), Vec::new());
    for name in account.letters.clone() {
        let of_letters = lake.table(&name);
        let head = match of_letters.head().await {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            head => head?,
        };
        found::count_letters(&context, &head, &mut account).await?;
        let mut commits = pin!(of_letters.inner.story(0..=head.version));
        while let Some(Some(commit)) = commits.try_next().await? {
            expired.extend(commit.expired_letters()?);
        }
        letters.push(head);
    }
    expired.iter().for_each(|gone| account.expire(gone));
    let replays = replayed::check(&context, head, &account.replays, &account.topics(), &letters, &expired).await?;
    faults.extend(replays);
    report.partitions.extend(account.settle(&head.name, &mut faults));
    report.faults.append(&mut faults);
    Ok(())
}
