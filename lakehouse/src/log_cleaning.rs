//! Cleaning the log: entries that are old go, so that a table that is written to each second does not fill the disk with its log.
//!
//! Only a beginning of the log goes, up to a checkpoint, and only once all that it said is kept elsewhere: what it said of the
//! ledger in the archive, and each version that somebody may still ask for in a checkpoint of its own. Entries go the oldest
//! first, one after the other: whoever finds one knows that those after it were not taken away.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutPayload};
use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};
use crate::kept::KeptOf;
use crate::lake::Lake;
use crate::table::Table;

/// Entries stay for so long, whoever needs them.
pub(crate) const LOG_KEPT: TimeDelta = TimeDelta::hours(1);
/// A refresh that is further behind reads the whole table anyway.
const CURSOR_KEPT: TimeDelta = TimeDelta::hours(24);
/// It is not worth the requests for fewer entries than these.
const ENTRIES_MIN: u64 = 100;

/// What lies in the folder of a log.
#[derive(Debug, Default)]
struct Listed {
    /// The entries by version, and when the store took each.
    entries: BTreeMap<u64, DateTime<Utc>>,
    /// Checkpoints of one file each.
    checkpoints: BTreeSet<u64>,
    checksums: BTreeSet<u64>,
}

/// The file by which readers find the newest checkpoint.
#[derive(Debug, Deserialize)]
struct Hint {
    version: u64,
}

impl Lake {
    /// Takes out of a table's log what is older than `age` and of no more use. Says how many entries that were.
    pub(crate) async fn clean_log(&self, table: &Table, kept: &KeptOf<'_>, age: TimeDelta) -> Result<u64> {
        let listed = Listed::of(table).await?;
        let Some(hint) = read_hint(table).await? else { return Ok(0) };
        let now = self.store_time().await?;
        let Some(upto) = listed.end_of_use(now, age, kept, hint.version) else { return Ok(0) };
        let begins = table.inner.log_begins().await?;
        if upto < begins + ENTRIES_MIN {
            return Ok(0);
        }
        table.inner.archive(begins, upto).await?;
        let named: BTreeSet<u64> = kept.versions_below(upto).collect();
        checkpoint_each(table, named.difference(&listed.checkpoints).copied().filter(|&version| version >= begins))
            .await?;
        self.raise_format().await?;
        listed.delete_below(table, upto, &named).await
    }
}

impl Listed {
    async fn of(table: &Table) -> Result<Self> {
        let failed = |source| Error::store(format!("cannot list the log of {}", table.name()), source);
        let (store, folder) = (table.store(), Path::from("_delta_log"));
        let mut objects = store.list(Some(&folder));
        let mut listed = Self::default();
        while let Some(object) = objects.try_next().await.map_err(failed)? {
            match parse(&object.location) {
                Some((version, "json")) => drop(listed.entries.insert(version, object.last_modified)),
                Some((version, "checkpoint.parquet")) => drop(listed.checkpoints.insert(version)),
                Some((version, "crc")) => drop(listed.checksums.insert(version)),
                _ => {}
            }
        }
        Ok(listed)
    }

    /// The checkpoint before which nobody needs an entry.
    fn end_of_use(&self, now: DateTime<Utc>, age: TimeDelta, kept: &KeptOf<'_>, newest: u64) -> Option<u64> {
        let written = |version: u64| self.entries.get(&version).copied();
        let cursor = kept.refreshed_upto().filter(|cursor| written(*cursor).is_some_and(|at| now - at < CURSOR_KEPT));
        let upto = cursor.unwrap_or(u64::MAX).min(newest);
        let is_old = |version: &u64| written(*version).is_some_and(|at| at <= now - age);
        self.checkpoints.range(..=upto).rev().copied().find(is_old)
    }

    /// Deletes what is before `upto`, apart from checkpoints of versions that are named.
    async fn delete_below(&self, table: &Table, upto: u64, named: &BTreeSet<u64>) -> Result<u64> {
        let mut deleted = 0;
        for version in self.entries.range(..upto).map(|(version, _)| *version) {
            delete(table, version, "json").await?;
            deleted += 1;
        }
        for version in self.checkpoints.range(..upto).filter(|version| !named.contains(version)) {
            delete(table, *version, "checkpoint.parquet").await?;
        }
        for version in self.checksums.range(..upto).filter(|version| !named.contains(version)) {
            delete(table, *version, "crc").await?;
        }
        Ok(deleted)
    }
}

async fn delete(table: &Table, version: u64, kind: &str) -> Result<()> {
    table.delete_at(&Path::from(format!("_delta_log/{version:020}.{kind}"))).await
}

/// A version and what stands after it.
fn parse(path: &Path) -> Option<(u64, &str)> {
    let (number, kind) = path.filename()?.split_once('.')?;
    Some(((number.len() == 20).then(|| number.parse().ok())??, kind))
}

/// Whoever makes an older checkpoint leaves the way to the newest as it was.
async fn checkpoint_each(table: &Table, versions: impl Iterator<Item = u64>) -> Result<()> {
    let mut versions = versions.peekable();
    if versions.peek().is_none() {
        return Ok(());
    }
    let failed = |source| Error::store(format!("cannot keep the last checkpoint of {}", table.name()), source);
    let (store, hint) = (table.store(), hint_path());
    let before = store.get(&hint).await.map_err(failed)?.bytes().await.map_err(failed)?;
    for version in versions {
        table.checkpoint(version).await?;
    }
    store.put(&hint, PutPayload::from(before)).await.map_err(failed)?;
    Ok(())
}

fn hint_path() -> Path {
    Path::from("_delta_log/_last_checkpoint")
}

async fn read_hint(table: &Table) -> Result<Option<Hint>> {
    let failed = |source| Error::store(format!("cannot read the last checkpoint of {}", table.name()), source);
    let bytes = match table.store().get(&hint_path()).await {
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        found => found.map_err(failed)?.bytes().await.map_err(failed)?,
    };
    let damaged = |source| {
        let message = format!("the last checkpoint of {} is not told as it should be", table.name());
        Error::with_source(ErrorKind::BadData, message, source)
    };
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_log_are_told_apart() {
        let parse =
            |name: &str| parse(&Path::from("_delta_log").join(name)).map(|(version, kind)| (version, kind.to_owned()));
        assert_eq!(parse("00000000000000000107.json"), Some((107, "json".to_owned())));
        assert_eq!(parse("00000000000000000100.checkpoint.parquet"), Some((100, "checkpoint.parquet".to_owned())));
        assert_eq!(parse("_last_checkpoint"), None);
        assert_eq!(parse("107.json"), None);
    }
}
