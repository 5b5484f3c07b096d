//! Restoring: a table becomes again what it was at an older version, by a commit that brings files back and takes others out.
//! Nothing is lost by it: the versions in between are still there, and a restore can be restored.
//!
//! The ledger goes back in the same commit. Rows of bronze that are gone would never be read again under a ledger that stayed,
//! and a model's table would pass over what its sources have added since.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;

use futures::TryStreamExt as _;
use serde_json::Value;

use crate::commit::Outcome;
use crate::error::{Error, ErrorKind, Result};
use crate::file::{DataFile, StagedFile};
use crate::log::{Commit, NewColumns, Operation, RESTORED_KEY};
use crate::name::TableName;
use crate::progress::ingest_app_id;
use crate::table::Table;
use crate::version::TableVersion;

/// What a restore would do.
#[derive(Debug)]
pub struct RestorePlan {
    /// The table.
    pub table: TableName,
    /// The newest version, in whose place the older one is put.
    pub newest: u64,
    /// The version that is put back.
    pub version: u64,
    /// Files that come back, and their rows where that is known.
    pub comes_back: (usize, Option<u64>),
    /// Files that go, and their rows where that is known.
    pub goes: (usize, Option<u64>),
    commit: Commit,
}

impl RestorePlan {
    /// Whether the table is already what it would become.
    pub fn is_nothing(&self) -> bool {
        self.comes_back.0 + self.goes.0 == 0 && self.commit.columns.is_none()
    }
}

impl Table {
    /// Finds out what a restore of `version` takes. Nothing is changed.
    ///
    /// # Errors
    /// `NotFound` if there is no such version, or if one of its files was cleaned up since.
    pub async fn plan_restore(&self, version: u64) -> Result<RestorePlan> {
        let newest = self.head().await?;
        self.check_not_after(version, &newest)?;
        let older = self.inner.load(Some(version)).await?;
        let metadata = older.metadata().clone();
        let older = older.pin();
        let comes_back = only_in(&older, &newest);
        let goes = only_in(&newest, &older);
        self.check_there(&comes_back, version).await?;
        let mut commit = Commit::new(Operation::Restore);
        commit.transactions = self.ledger_as_of(version, newest.version).await?;
        commit.info.insert(RESTORED_KEY.to_owned(), Value::from(version));
        let same_columns = older.schema == newest.schema
            && older.partition_columns == newest.partition_columns
            && older.properties == newest.properties
            && older.notes == newest.notes;
        commit.columns = (!same_columns).then_some(NewColumns(metadata));
        commit.adds = comes_back.iter().cloned().map(StagedFile).collect();
        commit.removes = goes.clone();
        Ok(RestorePlan {
            table: self.name().clone(),
            newest: newest.version,
            version,
            comes_back: (comes_back.len(), rows_of(&comes_back)),
            goes: (goes.len(), rows_of(&goes)),
            commit,
        })
    }

    /// Does it. Any commit since the plan was made makes it void.
    pub async fn restore(&self, plan: RestorePlan) -> Result<Outcome> {
        self.replace(plan.newest, plan.commit).await
    }

    /// The ledger as it was at `version`. Entries that were only made since then can't be taken out of a log: they say what
    /// comes to the same.
    async fn ledger_as_of(&self, version: u64, newest: u64) -> Result<BTreeMap<String, i64>> {
        let mut ledger = BTreeMap::new();
        let mut entries = pin!(self.inner.lineage(version));
        while let Some(entry) = entries.try_next().await? {
            for (app_id, value) in entry.transactions {
                ledger.entry(app_id).or_insert(value);
            }
        }
        let mut begins = BTreeMap::new();
        let mut later = BTreeSet::new();
        let mut entries = pin!(self.inner.story(version + 1..=newest));
        while let Some(Some(entry)) = entries.try_next().await? {
            later.extend(entry.transactions.keys().cloned());
            let Some(info) = entry.ingest_info()? else { continue };
            for range in &info.ranges {
                begins.entry(ingest_app_id(&info.topic, range.partition)).or_insert(range.from);
            }
        }
        for app_id in later {
            // A partition that was not read then is read from where it was first read; any other entry counts from nothing.
            let begins = begins.get(&app_id).copied().unwrap_or(0);
            ledger.entry(app_id).or_insert(begins);
        }
        Ok(ledger)
    }

    async fn check_there(&self, files: &[Arc<DataFile>], version: u64) -> Result<()> {
        let Some(path) = self.first_gone(files).await? else { return Ok(()) };
        let message = format!(
            "version {version} of {} cannot be put back: its file {path} was cleaned up; `lakebeat table history` and \
             `lakebeat publication ls` name others",
            self.name()
        );
        Err(Error::new(ErrorKind::NotFound, message))
    }
}

/// The files of one version that another one does not have.
pub(crate) fn only_in(one: &TableVersion, other: &TableVersion) -> Vec<Arc<DataFile>> {
    let others: BTreeSet<&String> = other.files.iter().map(|file| &file.path).collect();
    one.files.iter().filter(|file| !others.contains(&file.path)).cloned().collect()
}

fn rows_of(files: &[Arc<DataFile>]) -> Option<u64> {
    files.iter().map(|file| file.rows).sum()
}
