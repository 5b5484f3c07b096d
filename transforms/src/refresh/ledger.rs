//! What a target's own Delta log says of how it was built: which version of each source, by which query, passing which
//! tests. It stands in the very commit that brought the rows, so it is true after a crash at any point.

use std::collections::BTreeMap;

use lakehouse::{Table, TableName};

use super::{Audit, TestsChanged};
use crate::compile::Model;
use crate::error::Result;
use crate::view::View;

/// Counts up when the engine starts to give other rows for the same query, so that all tables are built anew.
const ENGINE_VERSION: u64 = 1;

/// What the ledger of a target says.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// The target's version at which it was read.
    pub(crate) version: u64,
    /// The version of each source that is in the target.
    pub(crate) cursors: BTreeMap<TableName, u64>,
    pub(crate) fingerprint: Option<i64>,
    tests_fingerprint: Option<i64>,
}

impl Ledger {
    pub(crate) async fn read(table: &Table, model: &Model) -> Result<Self> {
        Ok(Self::of(model, table.ledger(&app_ids(model)).await?))
    }

    /// The ledger as it was at `version`.
    pub(crate) async fn at(table: &Table, version: u64, model: &Model) -> Result<Self> {
        Ok(Self::of(model, table.ledger_at(version, &app_ids(model)).await?))
    }

    fn of(model: &Model, read: lakehouse::Ledger) -> Self {
        let cursor = |source: &TableName| {
            let cursor = read.entries.get(&cursor_app_id(model, source))?;
            Some((source.clone(), u64::try_from(*cursor).ok()?))
        };
        Self {
            version: read.version,
            cursors: model.inputs.iter().filter_map(cursor).collect(),
            fingerprint: read.entries.get(&query_app_id(model)).copied(),
            tests_fingerprint: read.entries.get(&tests_app_id(model)).copied(),
        }
    }

    pub(crate) fn tests_changed(&self, model: &Model) -> TestsChanged {
        if self.tests_fingerprint == Some(tests_fingerprint(model, Audit::Tested)) {
            TestsChanged::No
        } else {
            TestsChanged::Yes
        }
    }
}

fn app_ids(model: &Model) -> Vec<String> {
    let cursors = model.inputs.iter().map(|source| cursor_app_id(model, source));
    cursors.chain([query_app_id(model), tests_app_id(model)]).collect()
}

/// The entries of a commit.
pub(crate) fn entries(model: &Model, pending: &super::Pending) -> BTreeMap<String, i64> {
    let cursors = pending.cursors.iter();
    let mut entries: BTreeMap<String, i64> =
        cursors.map(|(source, version)| (cursor_app_id(model, source), *version as i64)).collect();
    entries.insert(query_app_id(model), pending.fingerprint);
    entries.insert(tests_app_id(model), pending.tests_fingerprint);
    entries
}

/// The ledger entry with the version of `source` that is in the model's table.
pub(crate) fn cursor_app_id(model: &Model, source: &TableName) -> String {
    format!("refresh/{}/{source}", model.name)
}

fn query_app_id(model: &Model) -> String {
    format!("refresh/{}", model.name)
}

fn tests_app_id(model: &Model) -> String {
    format!("audit/{}", model.name)
}

/// A number for the query, the settings that shape its result, and the identity of each source.
pub(crate) fn fingerprint(model: &Model, inputs: &BTreeMap<TableName, View>) -> i64 {
    let config = &model.config;
    let mut text = format!("{ENGINE_VERSION}\0{}\0", model.sql);
    text.push_str(&format!(
        "{:?}\0{:?}\0{:?}\0{:?}",
        config.materialized, config.unique_key, config.order_by, config.partition_by
    ));
    for (name, view) in inputs {
        text.push_str(&format!("\0{name}\0{}", view.base.table_id));
    }
    hash(&text)
}

/// A number for the tests that the rows have passed.
pub(crate) fn tests_fingerprint(model: &Model, audit: Audit) -> i64 {
    if audit == Audit::Untested && !model.tests.is_empty() {
        return 0;
    }
    hash(&format!("{ENGINE_VERSION}\0{:?}", model.tests))
}

/// FNV-1a, in the positive half of the numbers. The standard library's hash may change with the compiler, and each change
/// would build every table anew.
fn hash(text: &str) -> i64 {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    (hash >> 1) as i64
}
