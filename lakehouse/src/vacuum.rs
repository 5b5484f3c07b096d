//! Vacuum: what lies in a table's folder and nobody needs. Files that were superseded go by the rules of the cleaner, however long
//! ago that was; files that no commit ever named go when they are a day old by the store's own time: a build that is on its
//! way stages files long before it commits them.

use std::collections::{BTreeMap, BTreeSet};

use chrono::TimeDelta;
use futures::TryStreamExt as _;
use object_store::ObjectMeta;
use object_store::path::Path;
use serde::Serialize;

use crate::cleaning::{CleanReport, Position};
use crate::error::{Error, Result};
use crate::file::location;
use crate::lake::Lake;
use crate::name::TableName;
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
    /// Files that no commit names.
    pub untracked: CleanReport,
    /// Superseded files that stay: a publication names them, or somebody may still be reading them.
    pub kept: CleanReport,
    #[serde(skip)]
    files: Vec<Path>,
}

impl Lake {
    /// Finds out what a vacuum of `table` would delete. Nothing is changed.
    pub async fn plan_vacuum(&self, table: &Table) -> Result<VacuumPlan> {
        let now = self.clock().now();
        // In this order: what is committed after the folder was listed is not in the list, and publications that come later name
        // versions that are live now or later.
        let listed = listed(table).await?;
        let kept = self.kept().await?;
        let (mut log, named) = read_log(table).await?;
        let mut plan = VacuumPlan {
            table: table.name().clone(),
            superseded: CleanReport::default(),
            untracked: CleanReport::default(),
            kept: CleanReport::default(),
            files: Vec::new(),
        };
        let due: BTreeSet<Path> =
            log.take_due(&kept.of(table.name()), now).iter().map(|gone| location(&gone.path)).collect();
        let stays: BTreeSet<Path> = log.superseded().map(|path| location(path)).collect();
        let oldest = self.store_time().await? - STAGED_GRACE;
        for (path, object) in &listed {
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
        Ok(plan)
    }

    /// Does it.
    pub async fn vacuum(&self, table: &Table, plan: VacuumPlan) -> Result<()> {
        for path in &plan.files {
            table.delete_at(path).await?;
        }
        Ok(())
    }
}

/// What the whole log superseded, and all files that it ever named. None of those if a part of it is gone: then nobody knows.
async fn read_log(table: &Table) -> Result<(Position, Option<BTreeSet<Path>>)> {
    let (mut position, mut named) = (Position::default(), Some(BTreeSet::new()));
    let newest = table.newest_version().await?;
    let mut entries = table.inner.entries(0..=newest);
    while let Some(entry) = entries.try_next().await? {
        match entry {
            Some(entry) => {
                named.iter_mut().for_each(|named| named.extend(entry.adds.iter().map(|add| location(&add.file.path))));
                position.take(entry);
            }
            None => named = None,
        }
    }
    Ok((position, named))
}

/// The data files in the table's folder. Those of the log are none, nor are those of a change feed.
async fn listed(table: &Table) -> Result<BTreeMap<Path, ObjectMeta>> {
    let failed = |source| Error::store(format!("cannot list the files of {}", table.name()), source);
    let store = table.store();
    let found: Vec<ObjectMeta> = store.list(None).try_collect().await.map_err(failed)?;
    let is_data = |object: &ObjectMeta| {
        let is_file = object.location.filename().is_some_and(|name| name.ends_with(".parquet"));
        let folder = object.location.parts().next();
        is_file && folder.is_some_and(|part| part.as_ref() != "_delta_log" && part.as_ref() != "_change_data")
    };
    Ok(found.into_iter().filter(is_data).map(|object| (object.location.clone(), object)).collect())
}
