//! The audit of bronze: that the ledger, the ranges that each commit recorded, and the rows that are really there agree.
//!
//! For each partition: the recorded ranges follow one another without gap or overlap, the last ends where the ledger
//! stands, and each range holds exactly the rows and the dead letters that it says, each offset once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use arrow::array::AsArray as _;
use arrow::datatypes::{Int32Type, Int64Type};
use datafusion::prelude::SessionContext;
use futures::TryStreamExt as _;
use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::lake::Lake;
use crate::name::TableName;
use crate::progress::{ConsumedRange, ingest_app_id};
use crate::table::Table;
use crate::version::TableVersion;

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
    /// The first offset that was ever consumed.
    pub from: i64,
    /// The next offset to read.
    pub to: i64,
    /// Rows in the table.
    pub rows: u64,
    /// Rows in the table of dead letters.
    pub dead_letters: u64,
    /// Offsets that held no message of ours.
    pub holes: u64,
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
            writeln!(
                f,
                "{} partition {} of {}: offsets {}..{} = {} rows + {} dead letters + {} holes, in {} commits",
                one.table,
                one.partition,
                one.topic,
                one.from,
                one.to,
                one.rows,
                one.dead_letters,
                one.holes,
                one.commits
            )?;
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

/// A partition of a topic, by its number.
type Partition = (String, i32);

/// What the log of one bronze table says about itself.
#[derive(Debug, Default)]
struct Account {
    /// The recorded ranges of each partition, in the order of the commits.
    ranges: BTreeMap<Partition, Vec<RecordedRange>>,
    /// The tables of the letters that they count.
    letters: BTreeSet<TableName>,
    /// The ledger after the last commit.
    ledger: BTreeMap<String, i64>,
}

#[derive(Debug)]
struct RecordedRange {
    version: u64,
    range: ConsumedRange,
    /// Rows and letters that were really found in it.
    rows_found: u64,
    letters_found: u64,
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
    let mut account = read_log(table, head.version, &mut report.faults).await?;
    if account.ranges.is_empty() {
        // A table of letters, or one that somebody else writes.
        return Ok(());
    }
    let context = lake.session_factory().context();
    count_rows(&context, &head, &mut account, &mut report.faults).await?;
    find_doubles(&context, &head, &mut report.faults).await?;
    // They are committed first, so every letter that a range of this version counts is in the newest version of theirs.
    for letters in account.letters.clone() {
        match lake.table(&letters).head().await {
            Ok(letters) => count_letters(&context, &letters, table.name(), &mut account).await?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    settle(table.name(), &account, report);
    Ok(())
}

async fn read_log(table: &Table, version: u64, faults: &mut Vec<Fault>) -> Result<Account> {
    let mut account = Account::default();
    for commit in table.commits(0, version).await? {
        account.ledger.extend(commit.transactions.clone());
        let Some(info) = commit.ingest_info()? else { continue };
        let recorded: u64 = info.ranges.iter().map(|range| range.rows).sum();
        if recorded != commit.rows_added() {
            faults.push(Fault {
                table: table.name().clone(),
                partition: info.ranges.first().map_or(0, |range| range.partition),
                what: format!(
                    "version {} says that it added {recorded} rows, but its files hold {}",
                    commit.version,
                    commit.rows_added()
                ),
            });
        }
        account.letters.insert(info.dead_letters);
        for range in info.ranges {
            let key = (info.topic.clone(), range.partition);
            let recorded = RecordedRange { version: commit.version, range, rows_found: 0, letters_found: 0 };
            account.ranges.entry(key).or_default().push(recorded);
        }
    }
    Ok(account)
}

impl Account {
    /// The recorded range that holds an offset.
    fn range_of(&mut self, partition: &Partition, offset: i64) -> Option<&mut RecordedRange> {
        let ranges = self.ranges.get_mut(partition)?;
        let after = ranges.partition_point(|recorded| recorded.range.from <= offset);
        let found = ranges.get_mut(after.checked_sub(1)?)?;
        (offset < found.range.to).then_some(found)
    }
}

/// Finds the range of every row. The table has no column for the topic: it has one topic, or one range that fits.
async fn count_rows(
    context: &SessionContext,
    head: &TableVersion,
    account: &mut Account,
    faults: &mut Vec<Fault>,
) -> Result<()> {
    let topics: Vec<String> = account.ranges.keys().map(|(topic, _)| topic.clone()).collect();
    let failed = |source| Error::query(format!("cannot read {}", head.name), source);
    let rows = context.read_table(head.provider()).map_err(failed)?;
    let rows = rows.select_columns(&["_partition", "_offset"]).map_err(failed)?;
    let mut batches = rows.execute_stream().await.map_err(failed)?;
    let mut strays = 0;
    while let Some(batch) = batches.try_next().await.map_err(failed)? {
        let partitions = batch.column(0).as_primitive::<Int32Type>();
        let offsets = batch.column(1).as_primitive::<Int64Type>();
        for (partition, offset) in partitions.values().iter().zip(offsets.values()) {
            let mut keys = topics.iter().map(|topic| (topic.clone(), *partition));
            let found = keys.find(|key| account.range_of(key, *offset).is_some());
            if let Some(range) = found.and_then(|key| account.range_of(&key, *offset)) {
                range.rows_found += 1;
                continue;
            }
            strays += 1;
            if strays <= EXAMPLES_MAX {
                let what = format!("a row with offset {offset} is in no range that a commit recorded");
                faults.push(Fault { table: head.name.clone(), partition: *partition, what });
            }
        }
    }
    Ok(())
}

async fn find_doubles(context: &SessionContext, head: &TableVersion, faults: &mut Vec<Fault>) -> Result<()> {
    let failed = |source| Error::query(format!("cannot look for doubles in {}", head.name), source);
    context.register_table("audited", head.provider()).map_err(failed)?;
    let doubles = context
        .sql(&format!(
            "select _partition, _offset, count(*) from audited \
             group by _partition, _offset, _index having count(*) > 1 order by 1, 2 limit {EXAMPLES_MAX}"
        ))
        .await
        .map_err(failed)?
        .collect()
        .await
        .map_err(failed)?;
    for batch in &doubles {
        let partitions = batch.column(0).as_primitive::<Int32Type>();
        let offsets = batch.column(1).as_primitive::<Int64Type>();
        let counts = batch.column(2).as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let what = format!("offset {} is there {} times", offsets.value(row), counts.value(row));
            faults.push(Fault { table: head.name.clone(), partition: partitions.value(row), what });
        }
    }
    Ok(())
}

async fn count_letters(
    context: &SessionContext,
    letters: &TableVersion,
    table: &TableName,
    account: &mut Account,
) -> Result<()> {
    let failed = |source| Error::query(format!("cannot read the dead letters of {table}"), source);
    let rows = context.read_table(letters.provider()).map_err(failed)?;
    let rows = rows.select_columns(&["topic", "partition", "offset"]).map_err(failed)?;
    let mut batches = rows.execute_stream().await.map_err(failed)?;
    while let Some(batch) = batches.try_next().await.map_err(failed)? {
        let topics = batch.column(0).as_string::<i32>();
        let partitions = batch.column(1).as_primitive::<Int32Type>();
        let offsets = batch.column(2).as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let key = (topics.value(row).to_owned(), partitions.value(row));
            // A letter in no range is of a batch whose bronze commit is still to come: the next start makes it.
            if let Some(range) = account.range_of(&key, offsets.value(row)) {
                range.letters_found += 1;
            }
        }
    }
    Ok(())
}

/// Compares what was recorded with what was found, and draws up the account of each partition.
fn settle(table: &TableName, account: &Account, report: &mut VerifyReport) {
    for ((topic, partition), ranges) in &account.ranges {
        let mut fault = |what| report.faults.push(Fault { table: table.clone(), partition: *partition, what });
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else { continue };
        for pair in ranges.windows(2) {
            if pair[1].range.from != pair[0].range.to {
                fault(format!(
                    "version {} begins at offset {}, but the one before it, {}, ended at {}",
                    pair[1].version, pair[1].range.from, pair[0].version, pair[0].range.to
                ));
            }
        }
        let ledger = account.ledger.get(&ingest_app_id(topic, *partition)).copied();
        if ledger != Some(last.range.to) {
            let stands = ledger.map_or_else(|| "has no entry".to_owned(), |offset| format!("stands at {offset}"));
            fault(format!("the ledger {stands}, but the last range ends at {}", last.range.to));
        }
        for recorded in ranges {
            for what in recorded.differences() {
                fault(what);
            }
        }
        report.partitions.push(PartitionReport {
            table: table.clone(),
            topic: topic.clone(),
            partition: *partition,
            from: first.range.from,
            to: last.range.to,
            rows: ranges.iter().map(|recorded| recorded.rows_found).sum(),
            dead_letters: ranges.iter().map(|recorded| recorded.letters_found).sum(),
            holes: ranges.iter().map(|recorded| recorded.range.holes).sum(),
            commits: ranges.len() as u64,
        });
    }
}

impl RecordedRange {
    fn differences(&self) -> Vec<String> {
        let Self { version, range, rows_found, letters_found } = self;
        let mut differences = Vec::new();
        let offsets = format!("offsets {}..{} of version {version}", range.from, range.to);
        if range.rows != *rows_found {
            differences.push(format!("{offsets} should hold {} rows, but {rows_found} are there", range.rows));
        }
        if range.dead_letters != *letters_found {
            let letters = range.dead_letters;
            differences.push(format!("{offsets} should have {letters} dead letters, but {letters_found} are there"));
        }
        let accounted = (range.rows + range.dead_letters + range.holes) as i64;
        if accounted < range.to - range.from {
            differences.push(format!("{offsets} account for only {accounted} of {}", range.to - range.from));
        }
        differences
    }
}
