//! The small files of a topic's tables are put together while ingest goes on: a commit a second is a file a second.
//!
//! What was put together is deleted a day later, when no refresh that was away for a while reads it any more. It runs beside
//! the loop and never in its way: its commits take out no rows, and a writer goes on after them. Of several writers of a table
//! the one whose lease is the oldest does it.

use std::time::Duration;

use lakehouse::{Cleaner, Compaction, ErrorKind, Lake, LeaseInfo, Table};

use crate::Error;
use crate::topic::TopicSpec;

/// Keeps the number of files of one topic's tables low.
pub(crate) struct SmallFiles {
    lake: Lake,
    rows: Table,
    letters: Table,
    /// Our lease on the table of rows, and what it is on.
    lease: LeaseInfo,
    purpose: String,
    cleaner: Cleaner,
    interval: Duration,
}

impl SmallFiles {
    pub(crate) fn of(
        lake: &Lake,
        topic: &TopicSpec,
        (purpose, lease): (String, LeaseInfo),
        interval: Duration,
    ) -> Self {
        Self {
            lake: lake.clone(),
            rows: lake.table(&topic.table),
            letters: lake.table(&topic.dead_letters),
            lease,
            purpose,
            cleaner: Cleaner::only(lake.clone(), [topic.table.clone(), topic.dead_letters.clone()]),
            interval,
        }
    }

    /// Goes on for ever. What fails is tried again in the next round: nothing else depends on it.
    pub(crate) async fn run(mut self) {
        loop {
            tokio::time::sleep(self.interval).await;
            if let Err(error) = self.round().await {
                tracing::warn!(%error, "small files stay for now");
            }
        }
    }

    async fn round(&mut self) -> Result<(), Error> {
        if !self.lease.is_oldest_of(&self.lake.leases(&self.purpose).await?) {
            return Ok(());
        }
        // Several topics may share a table of letters; retention takes out files of one topic only.
        for (table, apart) in [(&self.rows, None), (&self.letters, Some("topic"))] {
            match self.lake.compact(table, apart, Compaction::AsTheyPileUp).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                compacted => drop(compacted?),
            }
        }
        let report = self.cleaner.clean().await?;
        tracing::debug!(files = report.files, bytes = report.bytes, "superseded files of bronze deleted");
        Ok(())
    }
}
