//! The log of one table: whether it is all there, and what it says, entry by entry from the first, of the files of the versions
//! that somebody names.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use futures::TryStreamExt as _;
use object_store::path::Path;

use crate::error::{Error, Result};
use crate::file::DataFile;
use crate::log::CommitEntry;
use crate::table::Table;
use crate::version::TableVersion;

use super::EXAMPLES_MAX;

/// The entries that lie in a table's log.
#[derive(Debug)]
pub(super) struct Entries {
    /// The newest one.
    pub(super) newest: u64,
    /// Those before it that are missing.
    pub(super) missing: Vec<RangeInclusive<u64>>,
}

impl Entries {
    pub(super) async fn list(table: &Table, begins: u64) -> Result<Self> {
        let folder = Path::from("_delta_log");
        let failed = |source| Error::store(format!("cannot list the log of {}", table.name()), source);
        let listing = table.store().list(Some(&folder)).map_ok(|object| entry_in(&object.location));
        let found: BTreeSet<Option<u64>> = listing.try_collect().await.map_err(failed)?;
        let (mut missing, mut next) = (Vec::new(), begins);
        // What lies before its beginning is left of a clean-up that was broken off.
        for version in found.into_iter().flatten().filter(|&version| version >= begins) {
            if version > next {
                missing.push(next..=version - 1);
            }
            next = version + 1;
        }
        Ok(Self { newest: next.saturating_sub(1), missing })
    }
}

/// The version whose entry has that path. Checkpoints and checksums have other names.
fn entry_in(path: &Path) -> Option<u64> {
    let number = path.filename()?.strip_suffix(".json")?;
    (number.len() == 20).then(|| number.parse().ok())?
}

/// The files of a table, followed through its log.
#[derive(Debug)]
pub(super) struct Files<'a> {
    /// The versions whose files somebody needs.
    wanted: &'a BTreeSet<u64>,
    live: BTreeMap<String, Arc<DataFile>>,
    /// The files of those versions.
    named: BTreeMap<String, Arc<DataFile>>,
}

impl<'a> Files<'a> {
    pub(super) fn of(wanted: &'a BTreeSet<u64>) -> Self {
        Self { wanted, live: BTreeMap::new(), named: BTreeMap::new() }
    }

    /// Begins with the files of the version at which the log begins.
    pub(super) fn begin(&mut self, version: &TableVersion) {
        self.live = version.files.iter().map(|file| (file.path.clone(), file.clone())).collect();
        self.note(version.version);
    }

    /// A version that is wanted, and that only a checkpoint has.
    pub(super) fn name(&mut self, version: &TableVersion) {
        self.named.extend(version.files.iter().map(|file| (file.path.clone(), file.clone())));
    }

    fn note(&mut self, version: u64) {
        if self.wanted.contains(&version) {
            self.named.extend(self.live.clone());
        }
    }

    /// Takes in one commit after the other, oldest first.
    pub(super) fn take(&mut self, commit: &CommitEntry) {
        for remove in &commit.removes {
            self.live.remove(&remove.path);
        }
        for add in &commit.adds {
            self.live.insert(add.file.path.clone(), add.file.clone());
        }
        self.note(commit.version);
    }

    /// In what a version that was loaded from a checkpoint differs from what the entries say.
    pub(super) fn differences(&self, loaded: &TableVersion) -> Vec<String> {
        let loaded: BTreeMap<&String, u64> = loaded.files.iter().map(|file| (&file.path, file.size)).collect();
        let only_here = self.live.values().filter(|file| loaded.get(&file.path) != Some(&file.size));
        let only_there = loaded.keys().filter(|path| !self.live.contains_key(**path));
        let told = only_here
            .map(|file| format!("the log names file {}, but the checkpoint does not", file.path))
            .chain(only_there.map(|path| format!("the checkpoint names file {path}, but the log does not")));
        told.take(EXAMPLES_MAX).collect()
    }

    /// The files of the versions that are wanted, and those that are live now.
    pub(super) fn all(mut self) -> Vec<Arc<DataFile>> {
        self.named.extend(self.live);
        self.named.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_told_from_what_else_lies_there() {
        let entry = |name: &str| entry_in(&Path::from("_delta_log").join(name));
        assert_eq!(entry("00000000000000000107.json"), Some(107));
        assert_eq!(entry("00000000000000000100.checkpoint.parquet"), None);
        assert_eq!(entry("_last_checkpoint"), None);
        assert_eq!(entry("107.json"), None);
    }
}
