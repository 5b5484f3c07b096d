//! Vacuum: what lies in a table's folder and nobody needs. Files that were superseded go by the rules of the cleaner, however long
//! ago that was; files that no commit ever named go when they are a day old by the store's own time: a build that is on its
//! way stages files long before it commits them. So do uploads that were broken off.

use std::collections::{BTreeMap, BTreeSet};

use chrono::TimeDelta;
use futures::TryStreamExt as _;
use object_store::ObjectMeta;
use object_store::path::Path;
use serde::Serialize;

use crate::archive;
use crate::cleaning::{CleanReport, Position};
use crate::error::{Error, Result};
use crate::file::location;
use crate::kept::{Kept, KeptOf};
use crate::lake::Lake;
use crate::log::CommitEntry;
use crate::name::TableName;
use crate::storage::{BrokenOff, broken_off};
use crate::table::Table;

/// A file that no commit names may belong to a build that runs.
const STAGED_GRACE: TimeDelta = TimeDelta::hours(24);

/// What a vacuum would delete.
#[derive(Debug, Clone, Serialize)]
pub struct VacuumPlan {
    /// The table.
    pub table: TableName,
    /// Files that a later commit superseded and that no kept publication names.
    pub superseded: CleanReport,
    /// Files that no commit names, and what uploads left that were broken off.
    pub untracked: CleanReport,
    /// Superseded files that stay: a publication names them, or somebody may still be reading them.
    pub kept: CleanReport,
    #[serde(skip)]
    files: Vec<Path>,
    #[serde(skip)]
    broken_off: Vec<BrokenOff>,
}

impl VacuumPlan {
    pub(crate) fn files(&self) -> u64 {
        self.superseded.files + self.untracked.files
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.superseded.bytes + self.untracked.bytes
    }
}

impl Lake {
    /// Finds out what a vacuum of `table` would delete. Nothing is changed.
    pub async fn plan_vacuum(&self, table: &Table) -> Result<VacuumPlan> {
        let listed = listed(table).await?;
        let kept = self.kept().await?;
        self.plan(table, &kept, &listed).await.map(|(plan, _)| plan)
    }

    /// The same for a cleaner, which goes on from where this has come to.
    pub(crate) async fn look_through(&self, table: &Table, kept: &Kept) -> Result<(VacuumPlan, Position)> {
        let listed = listed(table).await?;
        let (plan, mut log) = self.plan(table, kept, &listed).await?;
        log.retain(|path| listed.contains_key(&location(path)));
        Ok((plan, log))
    }

    /// The folder was listed before the log is read: what is committed in between is not in the list.
    async fn plan(
        &self,
        table: &Table,
        kept: &Kept,
        listed: &BTreeMap<Path, ObjectMeta>,
    ) -> Result<(VacuumPlan, Position)> {
        let kept = kept.of(table.name());
        let (mut log, named) = read_log(table, &kept).await?;
        let mut plan = VacuumPlan {
            table: table.name().clone(),
            superseded: CleanReport::default(),
            untracked: CleanReport::default(),
            kept: CleanReport::default(),
            files: Vec::new(),
            broken_off: broken_off(table.inner.log.config().location()).await?,
        };
        let due = log.take_due(&kept, self.clock().now());
        let due: BTreeSet<Path> = due.iter().map(|gone| location(&gone.path)).collect();
        let stays: BTreeSet<Path> = log.superseded().map(|path| location(path)).collect();
        let oldest = self.store_time().await? - STAGED_GRACE;
        for (path, object) in listed {
            if stays.contains(path) {
                plan.kept.count(object.size);
            } else if due.contains(path) {
                plan.superseded.count(object.size);
                plan.files.push(path.clone());
            } else if named.as_ref().is_some_and(|named| !named.contains(path)) && object.last_modified < oldest {
                plan.untracked.count(object.size);
                plan.files.push(path.clone());
            }
        }
        plan.broken_off.retain(|upload| upload.written_at < oldest);
        plan.broken_off.iter().for_each(|upload| plan.untracked.count(upload.bytes));
        Ok((plan, log))
    }

    /// Does it.
    pub async fn vacuum(&self, table: &Table, plan: VacuumPlan) -> Result<()> {
        for path in &plan.files {
            table.delete_at(path).await?;
        }
        for upload in &plan.broken_off {
            upload.delete().await?;
        }
        Ok(())
    }
}

/// What the log superseded, and all files that it names, or that a version names which somebody may ask for. None of those if a
/// part of the log is gone that should be there: then nobody knows.
async fn read_log(table: &Table, kept: &KeptOf<'_>) -> Result<(Position, Option<BTreeSet<Path>>)> {
    let mut position = Position::begin(table).await?;
    let mut named: BTreeSet<Path> = position.live().map(|path| location(path)).collect();
    for version in kept.versions_below(table.inner.log_begins().await?) {
        named.extend(table.at(version).await?.files.iter().map(|file| location(&file.path)));
    }
    let mut is_whole = true;
    let seen = |entry: Option<&CommitEntry>| match entry {
        Some(entry) => named.extend(entry.adds.iter().map(|add| location(&add.file.path))),
        None => is_whole = false,
    };
    position.read_on(table, seen).await?;
    Ok((position, is_whole.then_some(named)))
}

/// The data files in the table's folder. Those of the log are none, nor are those of a change feed.
async fn listed(table: &Table) -> Result<BTreeMap<Path, ObjectMeta>> {
    let failed = |source| Error::store(format!("cannot list the files of {}", table.name()), source);
    let store = table.store();
    let found: Vec<ObjectMeta> = store.list(None).try_collect().await.map_err(failed)?;
    let is_data = |object: &ObjectMeta| {
        let is_file = object.location.filename().is_some_and(|name| name.ends_with(".parquet"));
        let folder = object.location.parts().next();
        is_file && folder.is_some_and(|part| !["_delta_log", "_change_data", archive::FOLDER].contains(&part.as_ref()))
    };
    Ok(found.into_iter().filter(is_data).map(|object| (object.location.clone(), object)).collect())
}
