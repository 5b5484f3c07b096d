//! Cleaning: files that a later commit superseded go as soon as no kept publication names a version that holds them, and
//! nobody who planned a query or a refresh before can still be reading them.
//!
//! Gold tables are rewritten with each refresh; without this a lake that is never idle would fill any disk. Only files are
//! deleted of which the log says that they were live and no longer are: staged files are nobody's to judge here, and log
//! entries stay.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use futures::TryStreamExt as _;
use serde::Serialize;

use crate::error::Result;
use crate::lake::Lake;
use crate::log::CommitEntry;
use crate::name::TableName;
use crate::publication::Publication;
use crate::table::Table;

/// A query or a refresh that was planned before a file was superseded has this long to read it.
const READERS_GRACE: TimeDelta = TimeDelta::minutes(10);
/// A compaction's old files are what its commits added: whoever refreshes from those commits, and was away for a while,
/// reads them still.
const REFRESH_GRACE: TimeDelta = TimeDelta::hours(24);
/// A cleaner that starts looks back over so many commits of a table; what was superseded before them stays.
const LOOK_BACK_MAX: u64 = 20_000;

/// What a round of cleaning did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CleanReport {
    /// Files that were deleted.
    pub files: u64,
    /// Their size in bytes.
    pub bytes: u64,
}

impl CleanReport {
    /// Counts one more file.
    pub(crate) fn count(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

/// Deletes what is superseded, round by round. It remembers where it stands in each table's log.
#[derive(Debug)]
pub struct Cleaner {
    lake: Lake,
    /// The tables to clean; without any all that models or publications rewrite.
    only: Vec<TableName>,
    tables: HashMap<TableName, Position>,
}

/// How far one table's log was read, and what was found in it.
#[derive(Debug, Default)]
pub(crate) struct Position {
    next_version: u64,
    /// Live files: the version that added each, and its size.
    live: HashMap<String, (u64, u64)>,
    superseded: Vec<Superseded>,
}

/// A file that was live from one version to before another.
#[derive(Debug)]
pub(crate) struct Superseded {
    pub(crate) path: String,
    bytes: u64,
    added: u64,
    removed: u64,
    /// From then on it may go, if no publication needs it.
    due_at: DateTime<Utc>,
}

impl Cleaner {
    /// A cleaner that has seen nothing yet.
    pub fn new(lake: Lake) -> Self {
        Self::only(lake, [])
    }

    /// One that cleans these tables, of bronze too, and no others.
    pub fn only(lake: Lake, tables: impl IntoIterator<Item = TableName>) -> Self {
        Self { lake, only: tables.into_iter().collect(), tables: HashMap::new() }
    }

    /// One round over its tables. What was taken out of bronze is for those to clean up who took it out.
    pub async fn clean(&mut self) -> Result<CleanReport> {
        let mut report = CleanReport::default();
        // Publications first: one that comes later names versions that are live now or later.
        let kept = pins(&self.lake.publications().await?);
        let now = self.lake.clock().now();
        for name in self.names().await? {
            let table = self.lake.table(&name);
            let position = self.tables.entry(name.clone()).or_default();
            // A table of somebody else's that we cannot read must not keep the others from being cleaned.
            if let Err(error) = position.advance(&table).await {
                tracing::warn!(table = %name, %error, "not cleaned");
                continue;
            }
            let pinned = kept.get(&name).map_or(&[][..], Vec::as_slice);
            for gone in position.take_due(pinned, now) {
                if let Err(error) = table.delete_file(&gone.path).await {
                    tracing::warn!(table = %name, %error, "not cleaned; the next round tries again");
                    position.superseded.push(gone);
                    continue;
                }
                report.count(gone.bytes);
            }
        }
        Ok(report)
    }

    async fn names(&self) -> Result<Vec<TableName>> {
        if !self.only.is_empty() {
            return Ok(self.only.clone());
        }
        let mut names = self.lake.tables().await?;
        names.retain(|name| name.schema != "bronze");
        Ok(names)
    }
}

impl Position {
    /// The paths of the files that are superseded and stay for now.
    pub(crate) fn superseded(&self) -> impl Iterator<Item = &String> {
        self.superseded.iter().map(|gone| &gone.path)
    }

    async fn advance(&mut self, table: &Table) -> Result<()> {
        let newest = table.newest_version().await?;
        self.next_version = self.next_version.max(newest.saturating_sub(LOOK_BACK_MAX));
        let mut entries = table.inner.entries(self.next_version..=newest);
        while let Some(entry) = entries.try_next().await? {
            // One that was cleaned up before us: what it superseded is not known, and stays.
            entry.into_iter().for_each(|commit| self.take(commit));
            self.next_version += 1;
        }
        Ok(())
    }

    pub(crate) fn take(&mut self, commit: CommitEntry) {
        for remove in commit.removes {
            let Some((added, bytes)) = self.live.remove(&remove.path) else { continue };
            // A commit without a time is of a foreign writer: what it took out is not ours to delete.
            let Some(at) = commit.timestamp else { continue };
            let grace = if remove.data_change { READERS_GRACE } else { REFRESH_GRACE };
            let due_at = at + grace;
            self.superseded.push(Superseded { path: remove.path, bytes, added, removed: commit.version, due_at });
        }
        for add in commit.adds {
            // A file that is taken back in (a restore) is live again; versions of its first life may still be named.
            let before = self.superseded.extract_if(.., |gone| gone.path == add.file.path).map(|gone| gone.added).min();
            // Nor is what it added.
            if commit.timestamp.is_some() || before.is_some() {
                self.live.insert(add.file.path.clone(), (before.unwrap_or(commit.version), add.file.size));
            }
        }
    }

    pub(crate) fn take_due(&mut self, pinned: &[u64], now: DateTime<Utc>) -> Vec<Superseded> {
        let is_due = |gone: &mut Superseded| {
            let is_pinned = pinned.iter().any(|version| (gone.added..gone.removed).contains(version));
            if is_pinned {
                // Whoever plans a query on that publication now may read it for as long after the publication is dropped.
                gone.due_at = gone.due_at.max(now + READERS_GRACE);
            }
            gone.due_at <= now
        };
        self.superseded.extract_if(.., is_due).collect()
    }
}

/// The versions of each table that kept publications name.
pub(crate) fn pins(publications: &[Publication]) -> BTreeMap<TableName, Vec<u64>> {
    let mut pins: BTreeMap<TableName, Vec<u64>> = BTreeMap::new();
    for (name, pinned) in publications.iter().flat_map(|publication| &publication.tables) {
        pins.entry(name.clone()).or_default().push(pinned.version);
    }
    pins
}
