//! The small files of a topic's tables are put together while ingest goes on: a commit a second is a file a second.
//!
//! What was put together is deleted when every refresh has read it, a day later at the latest. It runs beside
//! the loop and never in its way: its commits take out no rows, and a writer goes on after them. Of several writers of a table
//! the one whose lease is the oldest does it.

use std::time::Duration;

use lakehouse::{Cleaner, Compaction, ErrorKind, Lake, LeaseInfo, Table};

use crate::Error;
use crate::topic::TopicSpec;

/// The longest pause between two rounds while nothing is found to do.
const IDLE_INTERVAL: Duration = Duration::from_secs(600);

/// Whether a round found something to do, or to do later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    Work,
}

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
        let mut is_idle = false;
        loop {
            let mut commits = self.lake.commits();
            tokio::time::sleep(self.interval).await;
            if is_idle {
                // A lake to which nobody writes is left alone. Another process may write, and leave this to us.
                let _ = tokio::time::timeout(IDLE_INTERVAL, commits.changed()).await;
            }
            let round = self.round().await;
            is_idle = matches!(round, Ok(Found::Nothing));
            if let Err(error) = round {
                tracing::warn!(%error, "small files stay for now");
            }
        }
    }

    async fn round(&mut self) -> Result<Found, Error> {
        if !self.lease.is_oldest_of(&self.lake.leases(&self.purpose).await?) {
            return Ok(Found::Nothing);
        }
        let mut put_together = 0;
        // Several topics may share a table of letters; retention takes out files of one topic only.
        for (table, apart) in [(&self.rows, None), (&self.letters, Some("topic"))] {
            match self.lake.compact(table, apart, Compaction::AsTheyPileUp).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                compacted => put_together += compacted?.removed,
            }
        }
        let report = self.cleaner.clean().await?;
        tracing::debug!(files = report.files, bytes = report.bytes, "superseded files of bronze deleted");
        let is_nothing = put_together + report.files + report.waiting + report.log_entries == 0;
        Ok(if is_nothing { Found::Nothing } else { Found::Work })
    }
}
