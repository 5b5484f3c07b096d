//! What publications need of the tables that they name.

use std::collections::{BTreeMap, BTreeSet};

use crate::name::TableName;
use crate::publication::{PinnedTable, Publication};
use crate::version::TableVersion;

use super::Fault;

/// Versions of tables, each with the newest publication that names it.
#[derive(Debug, Default)]
pub(super) struct Pins {
    tables: BTreeMap<TableName, BTreeMap<u64, (u64, PinnedTable)>>,
}

impl Pins {
    /// What all publications that are kept name; they come newest first.
    pub(super) fn of(publications: Vec<Publication>) -> Self {
        let mut pins = Self::default();
        for Publication { id, tables, .. } in publications {
            for (name, pinned) in tables {
                pins.tables.entry(name).or_default().entry(pinned.version).or_insert((id, pinned));
            }
        }
        pins
    }

    /// The versions of a table that publications name.
    pub(super) fn versions(&self, name: &TableName) -> BTreeSet<u64> {
        self.tables.get(name).map(|versions| versions.keys().copied().collect()).unwrap_or_default()
    }

    /// Pins of a table that no version of it answers.
    pub(super) fn faults(&self, newest: &TableVersion) -> Vec<String> {
        let pins = self.tables.get(&newest.name).into_iter().flat_map(BTreeMap::values);
        pins.filter_map(|(id, pinned)| unresolved(*id, pinned, newest)).collect()
    }

    /// Tables that publications name and that are not there.
    pub(super) fn of_missing(&self, there: &[TableName]) -> Vec<Fault> {
        let missing = self.tables.iter().filter(|(name, _)| !there.contains(name));
        let told = missing.map(|(name, versions)| {
            let publications: BTreeSet<u64> = versions.values().map(|(id, _)| *id).collect();
            let newest = publications.last().copied().unwrap_or_default();
            Fault::of_table(name, format!("the table is gone, but publication {newest} names it"))
        });
        told.collect()
    }
}

fn unresolved(publication: u64, pinned: &PinnedTable, newest: &TableVersion) -> Option<String> {
    let PinnedTable { table_id, version } = pinned;
    if *table_id != newest.table_id {
        return Some(format!("publication {publication} names another table that had this name"));
    }
    (*version > newest.version)
        .then(|| format!("publication {publication} names version {version}, but the newest is {}", newest.version))
}
