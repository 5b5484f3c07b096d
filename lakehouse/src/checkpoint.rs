//! Checkpoints: all that the log says up to a version in one file, so that a table opens without reading every entry.
//!
//! They are written beside the commits: reading back a long list of files takes longer the longer it is, and no commit waits
//! for that. One that could not be written is only late.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::error::{Error, ErrorKind, Result};
use crate::table::Table;

/// A checkpoint is written each time the version can be divided by this.
pub(crate) const CHECKPOINT_INTERVAL: u64 = 100;

/// The checkpoints of one table that are being written.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    /// Those of all tables of the lake, for whoever is about to end.
    all: TaskTracker,
    turn: Arc<Semaphore>,
}

impl Checkpoints {
    pub(crate) fn of(all: &TaskTracker) -> Self {
        Self { all: all.clone(), turn: Arc::new(Semaphore::new(1)) }
    }
}

impl Table {
    /// Begins to write a checkpoint of `version` if it is time for one. Waits only while the last one is still not written: a
    /// store that takes longer for each than a hundred commits do must not be given more and more of them.
    pub(crate) async fn checkpoint_if_due(&self, version: u64) {
        if !version.is_multiple_of(CHECKPOINT_INTERVAL) {
            return;
        }
        let Checkpoints { all, turn } = &self.inner.checkpoints;
        let turn = turn.clone().acquire_owned().await.expect("nobody closes it");
        let table = self.clone();
        all.spawn(async move {
            if let Err(error) = table.checkpoint(version).await {
                tracing::warn!(table = %table.name(), version, %error, "checkpoint not written; the next one will be");
            }
            drop(turn);
        });
    }

    /// Writes a checkpoint of `version`, and the checksum file that makes its ledger quick to read.
    pub(crate) async fn checkpoint(&self, version: u64) -> Result<()> {
        let engine = self.inner.log.engine(None);
        let root = self.inner.log.config().location().clone();
        let write = move || {
            let snapshot = buoyant_kernel::Snapshot::builder_for(root).at_version(version).build(engine.as_ref())?;
            let (_, snapshot) = snapshot.checkpoint(engine.as_ref(), None)?;
            if let Err(error) = snapshot.write_checksum(engine.as_ref()) {
                tracing::debug!(%error, "no checksum file");
            }
            buoyant_kernel::DeltaResult::Ok(())
        };
        tokio::task::spawn_blocking(write)
            .await
            .map_err(|source| Error::with_source(ErrorKind::Bug, "a checkpoint was broken off", source))?
            .map_err(|source| Error::kernel(format!("cannot checkpoint {} at version {version}", self.name()), source))
    }
}
