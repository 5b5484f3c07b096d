//! What of each table is still needed: the versions that somebody may ask for, and how far its refreshers have come.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::Result;
use crate::lake::Lake;
use crate::name::TableName;
use crate::publication::Publication;
use crate::readers::Versions;

/// What is kept, of all tables.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    versions: Versions,
    /// By table the oldest version that the newest publication of some group was built from, or names.
    refreshed_upto: BTreeMap<TableName, u64>,
}

/// What is kept of one table.
#[derive(Debug)]
pub(crate) struct KeptOf<'a> {
    kept: &'a Kept,
    table: &'a TableName,
}

impl Lake {
    /// Finds out what is kept: the versions that publications name, and did until a moment ago, and those that are being read.
    pub(crate) async fn kept(&self) -> Result<Kept> {
        // In this order: who began to read from a publication before it was dropped has told so by the time that even the
        // publications of a moment ago no longer have it.
        let versions = self.read_now().await?;
        let mut kept = Kept { versions, refreshed_upto: BTreeMap::new() };
        let publications = self.publications_of_late().await?;
        let mut newest: BTreeMap<&str, &Publication> = BTreeMap::new();
        for publication in &publications {
            for (name, pinned) in &publication.tables {
                kept.versions.entry(name.clone()).or_default().insert(pinned.version);
            }
            let of_group = newest.entry(&publication.group).or_insert(publication);
            if of_group.id < publication.id {
                *of_group = publication;
            }
        }
        for (name, pinned) in newest.into_values().flat_map(|publication| &publication.tables) {
            let upto = kept.refreshed_upto.entry(name.clone()).or_insert(pinned.version);
            *upto = pinned.version.min(*upto);
        }
        Ok(kept)
    }
}

impl Kept {
    pub(crate) fn of<'a>(&'a self, table: &'a TableName) -> KeptOf<'a> {
        KeptOf { kept: self, table }
    }
}

impl KeptOf<'_> {
    /// Whether somebody may ask for one of these versions.
    pub(crate) fn is_named(&self, versions: Range<u64>) -> bool {
        let named = self.kept.versions.get(self.table);
        named.is_some_and(|named| !versions.is_empty() && named.range(versions).next().is_some())
    }

    /// The versions before `upto` that somebody may ask for.
    pub(crate) fn versions_below(&self, upto: u64) -> impl Iterator<Item = u64> {
        self.kept.versions.get(self.table).into_iter().flat_map(move |named| named.range(..upto)).copied()
    }

    /// The version from which the slowest refresh goes on, as far as publications tell.
    pub(crate) fn refreshed_upto(&self) -> Option<u64> {
        if self.table.schema == "system" {
            // Nobody refreshes from those.
            return Some(u64::MAX);
        }
        self.kept.refreshed_upto.get(self.table).copied()
    }
}
