//! A table as one build sees it: a version that is fixed, and what the build itself has staged for it but not committed.
//!
//! Models further down read their sources through this, so that a whole build can be computed and tested before the first
//! commit moves anything that another reader sees.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::catalog::TableProvider;
use lakehouse::{Changes, DataFile, Reading, StagedFile, Table, TableName, TableVersion};

use crate::error::Result;

/// A version and what is staged on top of it.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) table: Table,
    pub(crate) base: Arc<TableVersion>,
    pub(crate) adds: Vec<StagedFile>,
    pub(crate) removes: Vec<Arc<DataFile>>,
    /// What a build began from stays until it is published, however long that takes.
    _reading: Arc<Reading>,
}

impl View {
    /// The table as it is committed.
    pub(crate) fn of(table: Table, base: Arc<TableVersion>) -> Self {
        let reading = Arc::new(base.hold());
        Self { table, base, adds: Vec::new(), removes: Vec::new(), _reading: reading }
    }

    pub(crate) fn name(&self) -> &TableName {
        &self.base.name
    }

    /// The files that are live once what is staged is committed.
    pub(crate) fn files(&self) -> Vec<Arc<DataFile>> {
        let gone: BTreeMap<&str, ()> = self.removes.iter().map(|file| (file.path.as_str(), ())).collect();
        let kept = self.base.files.iter().filter(|file| !gone.contains_key(file.path.as_str()));
        kept.chain(self.adds.iter().map(StagedFile::data_file)).cloned().collect()
    }

    pub(crate) fn provider(&self) -> Arc<dyn TableProvider> {
        self.base.provider_of(self.files())
    }

    /// What is new since `cursor`, committed or staged.
    pub(crate) async fn changes_since(&self, cursor: u64) -> Result<Changes> {
        if !self.removes.is_empty() {
            let reason = format!("this build takes rows out of {}", self.name());
            return Ok(Changes::Rewritten { reason });
        }
        // The cursor is where most builds stand already: then there is nothing to read.
        let committed = if cursor == self.base.version {
            Changes::Appended { files: Vec::new() }
        } else {
            self.table.changes(Some(cursor), self.base.version).await?
        };
        Ok(match committed {
            Changes::Appended { mut files } => {
                files.extend(self.adds.iter().map(|staged| staged.data_file().clone()));
                Changes::Appended { files }
            }
            rewritten => rewritten,
        })
    }
}
