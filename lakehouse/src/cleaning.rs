//! Cleaning: files that a later commit superseded go as soon as nothing that is kept needs them, and nobody who planned a query
//! or a refresh before can still be reading them.
//!
//! Gold tables are rewritten with each refresh; without this a lake that is never idle would fill any disk. Only files are
//! deleted of which the log says that they were live and no longer are: staged files are nobody's to judge here, and log
//! entries stay.

use std::collections::HashMap;
use std::pin::pin;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use futures::TryStreamExt as _;
use serde::Serialize;

use crate::checkpoint::CHECKPOINT_INTERVAL;
use crate::error::Result;
use crate::kept::{Kept, KeptOf};
use crate::lake::Lake;
use crate::log::CommitEntry;
use crate::log_cleaning::LOG_KEPT;
use crate::name::TableName;
use crate::table::Table;

/// A query or a refresh that was planned before a file was superseded has this long to read it. Queries of ours tell by a lease
/// if they need longer; other engines cannot.
const READERS_GRACE: TimeDelta = TimeDelta::minutes(10);
/// A compaction's old files are what the commits before it added. Whoever refreshes from those commits, and was away, reads them
/// still; after this time the whole table is read instead.
const REFRESH_GRACE: TimeDelta = TimeDelta::hours(24);
/// Between two looks at a table's log lie so many entries.
const LOG_LOOK_INTERVAL: u64 = CHECKPOINT_INTERVAL;
/// So often the table's folder is looked through for what no commit names.
const VACUUM_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// What a round of cleaning did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CleanReport {
    /// Files that were deleted.
    pub files: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// Superseded files that nobody needs and somebody may still be reading: they go in a while.
    pub waiting: u64,
    /// Log entries that were deleted.
    pub log_entries: u64,
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
    /// How old entries of a log grow.
    log_kept: TimeDelta,
}

/// How far one table's log was read, and what was found in it.
#[derive(Debug)]
pub(crate) struct Position {
    next_version: u64,
    live: HashMap<String, Live>,
    superseded: Vec<Superseded>,
    /// The version at which the log was last looked through.
    log_looked_at: u64,
    vacuumed_at: Instant,
    /// The latest time of a commit so far. The next one counts as no earlier: by a clock that was set back, and is put right
    /// again, its readers' time would be over at once.
    latest: DateTime<Utc>,
}

/// A file that is live.
#[derive(Debug, Clone, Copy)]
struct Live {
    /// The version that added it, for the first time.
    added: u64,
    bytes: u64,
    /// Whether its rows came with it: then a refresh from that commit reads it, whatever became of it since.
    is_new: bool,
}

/// A file that was live from one version to before another.
#[derive(Debug)]
pub(crate) struct Superseded {
    pub(crate) path: String,
    file: Live,
    removed: u64,
    removed_at: DateTime<Utc>,
    /// Whether its rows went to other files, and are not gone.
    is_moved: bool,
    /// Until then somebody may be reading it who began when it was last needed.
    grace_ends: DateTime<Utc>,
}

impl Cleaner {
    /// A cleaner that has seen nothing yet.
    pub fn new(lake: Lake) -> Self {
        Self::only(lake, [])
    }

    /// One that cleans these tables, of bronze too, and no others.
    pub fn only(lake: Lake, tables: impl IntoIterator<Item = TableName>) -> Self {
        Self { lake, only: tables.into_iter().collect(), tables: HashMap::new(), log_kept: LOG_KEPT }
    }

    /// The same, but log entries stay for this time. No process may be away from a table for longer without finding that out: give
    /// it an hour or more where others write.
    #[must_use]
    pub fn keeping_log(mut self, age: TimeDelta) -> Self {
        self.log_kept = age;
        self
    }

    /// One round over its tables. What was taken out of bronze is for those to clean up who took it out.
    pub async fn clean(&mut self) -> Result<CleanReport> {
        let mut report = CleanReport::default();
        // First what is needed: a publication or a reader that comes later needs versions that are live now or later.
        let kept = self.lake.kept().await?;
        let now = self.lake.clock().now();
        for name in self.names().await? {
            let table = self.lake.table(&name);
            // A table of somebody else's that we cannot read must not keep the others from being cleaned.
            if let Err(error) = self.follow(&table, &kept, &mut report).await {
                tracing::warn!(table = %name, %error, "not cleaned");
                continue;
            }
            let Some(position) = self.tables.get_mut(&name) else { continue };
            for gone in position.take_due(&kept.of(&name), now) {
                if let Err(error) = table.delete_file(&gone.path).await {
                    tracing::warn!(table = %name, %error, "not cleaned; the next round tries again");
                    position.superseded.push(gone);
                    continue;
                }
                report.count(gone.file.bytes);
            }
            report.waiting += position.waiting(&kept.of(&name));
            if position.is_log_due() {
                match self.lake.clean_log(&table, &kept.of(&name), self.log_kept).await {
                    Ok(entries) => report.log_entries += entries,
                    Err(error) => tracing::warn!(table = %name, %error, "its log was not cleaned"),
                }
            }
        }
        Ok(report)
    }

    /// Reads on in the table's log. Once a day, and at first, its folder is looked through as well: a process that was killed leaves
    /// files that nobody follows any more.
    async fn follow(&mut self, table: &Table, kept: &Kept, report: &mut CleanReport) -> Result<()> {
        let known = self.tables.get_mut(table.name());
        if let Some(position) = known.filter(|position| position.vacuumed_at.elapsed() < VACUUM_INTERVAL) {
            return position.advance(table).await;
        }
        let (plan, position) = self.lake.look_through(table, kept).await?;
        report.files += plan.files();
        report.bytes += plan.bytes();
        self.lake.vacuum(table, plan).await?;
        self.tables.insert(table.name().clone(), position);
        Ok(())
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

    /// Stands where the log begins. What the checkpoint there names was added before, nobody knows when.
    pub(crate) async fn begin(table: &Table) -> Result<Self> {
        let mut position = Self {
            next_version: table.inner.log_begins().await?,
            live: HashMap::new(),
            superseded: Vec::new(),
            log_looked_at: 0,
            vacuumed_at: Instant::now(),
            latest: DateTime::default(),
        };
        if position.next_version > 0 {
            for file in table.at(position.next_version).await?.files.iter() {
                position.live.insert(file.path.clone(), Live { added: 0, bytes: file.size, is_new: false });
            }
            position.next_version += 1;
        }
        Ok(position)
    }

    /// The files that are live.
    pub(crate) fn live(&self) -> impl Iterator<Item = &String> {
        self.live.keys()
    }

    /// Forgets superseded files that are gone already.
    pub(crate) fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.superseded.retain(|gone| is_there(&gone.path));
    }

    /// Takes in all that was committed since, and tells `seen` of each commit; of an entry that is gone it tells nothing.
    pub(crate) async fn read_on(&mut self, table: &Table, mut seen: impl FnMut(Option<&CommitEntry>)) -> Result<()> {
        let newest = table.newest_version().await?;
        let mut entries = pin!(table.inner.entries(self.next_version..=newest));
        while let Some(entry) = entries.try_next().await? {
            seen(entry.as_ref());
            // One that was cleaned up before us: what it superseded is not known, and stays.
            entry.into_iter().for_each(|commit| self.take(commit));
            self.next_version += 1;
        }
        Ok(())
    }

    async fn advance(&mut self, table: &Table) -> Result<()> {
        self.read_on(table, |_| {}).await
    }

    pub(crate) fn take(&mut self, commit: CommitEntry) {
        self.latest = self.latest.max(commit.timestamp.unwrap_or_default());
        for remove in commit.removes {
            let Some(file) = self.live.remove(&remove.path) else { continue };
            // A commit without a time is of a foreign writer: what it took out is not ours to delete.
            let Some(removed_at) = commit.timestamp.map(|_| self.latest) else { continue };
            self.superseded.push(Superseded {
                path: remove.path,
                file,
                removed: commit.version,
                removed_at,
                is_moved: !remove.data_change,
                grace_ends: removed_at + READERS_GRACE,
            });
        }
        for add in commit.adds {
            // A file that is taken back in (a restore) is live again; versions of its first life may still be named.
            let before = self.superseded.extract_if(.., |gone| gone.path == add.file.path).map(|gone| gone.file);
            let before = before.min_by_key(|file| file.added);
            // Nor is what it added.
            if commit.timestamp.is_some() || before.is_some() {
                let file = Live { added: commit.version, bytes: add.file.size, is_new: add.data_change };
                self.live.insert(add.file.path.clone(), before.unwrap_or(file));
            }
        }
    }

    pub(crate) fn take_due(&mut self, kept: &KeptOf<'_>, now: DateTime<Utc>) -> Vec<Superseded> {
        let is_due = |gone: &mut Superseded| {
            if kept.is_named(gone.file.added..gone.removed) {
                // Whoever plans a query on that version now may read it for as long after it is no longer kept.
                gone.grace_ends = gone.grace_ends.max(now + READERS_GRACE);
            }
            gone.grace_ends <= now && !gone.is_wanted_by_refresh(kept, now)
        };
        self.superseded.extract_if(.., is_due).collect()
    }

    /// A log is looked through after so many entries as are worth it.
    fn is_log_due(&mut self) -> bool {
        let is_due = self.next_version >= self.log_looked_at + LOG_LOOK_INTERVAL;
        if is_due {
            self.log_looked_at = self.next_version;
        }
        is_due
    }

    fn waiting(&self, kept: &KeptOf<'_>) -> u64 {
        self.superseded.iter().filter(|gone| !kept.is_named(gone.file.added..gone.removed)).count() as u64
    }
}

impl Superseded {
    fn is_wanted_by_refresh(&self, kept: &KeptOf<'_>, now: DateTime<Utc>) -> bool {
        self.is_moved
            && self.file.is_new
            && now < self.removed_at + REFRESH_GRACE
            && kept.refreshed_upto().is_none_or(|cursor| cursor < self.file.added)
    }
}
