//! Committers that are wrong, each in the way of a system that lost or doubled rows. The simulation has to find each of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ingest::Result;
use ingest::consume::{Committer, Fenced};
use lakehouse::{Commit, Operation, Outcome, StageOptions, Table};
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::store::Bucket;

/// A way to commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Commits after whatever is there, as often as it takes.
    NoFence,
    /// Reads the newest version right before the commit, and not the ledger as of it.
    VersionWithoutLedger,
    /// Takes an error for a commit that was not made, and makes it again.
    LostAnswerTakenForFailure,
    /// Commits the rows, and then what was consumed.
    RowsBeforeLedger,
    /// Commits again after the one that was first.
    ConflictRetriedBlindly,
    /// Looks only at the partitions that the batch has messages of, and goes on with the others from the version that it made.
    OthersUnguarded,
}

impl Bug {
    pub(crate) const ALL: [Self; 6] = [
        Self::NoFence,
        Self::VersionWithoutLedger,
        Self::LostAnswerTakenForFailure,
        Self::RowsBeforeLedger,
        Self::ConflictRetriedBlindly,
        Self::OthersUnguarded,
    ];
}

/// The committer with this bug, or without one.
pub(crate) fn committer(bug: Option<Bug>, bucket: &Arc<Bucket>) -> Arc<dyn Committer> {
    match bug {
        None => Arc::new(Fenced),
        Some(bug) => Arc::new(Wrong { bug, bucket: bucket.clone() }),
    }
}

/// A committer with a bug.
#[derive(Debug)]
struct Wrong {
    bug: Bug,
    /// Where rows are found again that were staged.
    bucket: Arc<Bucket>,
}

impl Wrong {
    /// The same rows in other files: a log that names one file twice has it once.
    async fn staged_again(&self, table: &Table, commit: &Commit) -> Result<Commit> {
        let mut batches = Vec::new();
        for file in &commit.adds {
            let folder = table.name().to_string().replace('.', "/");
            let path = Path::from(format!("lake/{folder}/{}", file.data_file().path));
            let found = self.bucket.contents.get(&path).await.expect("it was staged");
            let bytes = found.bytes().await.expect("memory is there");
            let rows = ParquetRecordBatchReaderBuilder::try_new(bytes).and_then(|rows| rows.build()).expect("a file");
            batches.extend(rows.map(|batch| batch.expect("rows")));
        }
        let adds = table.stage_batches(table.head().await?.as_ref(), batches, &StageOptions::default()).await?;
        Ok(Commit { adds, ..commit.clone() })
    }

    /// Commits what the process still has in memory after whatever is there.
    async fn commit_again(&self, table: &Table, commit: &Commit) -> Result<Outcome> {
        let again = self.staged_again(table, commit).await?;
        table.append(table.head().await?.version, again).await
    }
}

#[async_trait]
impl Committer for Wrong {
    async fn append(&self, table: &Table, read_version: u64, commit: Commit) -> Result<Outcome> {
        match self.bug {
            Bug::NoFence => loop {
                let newest = table.head().await?.version;
                if let Outcome::Committed(version) = table.append(newest, commit.clone()).await? {
                    return Ok(Outcome::Committed(version));
                }
            },
            Bug::VersionWithoutLedger => {
                let newest = table.head().await?.version;
                table.append(newest, commit).await
            }
            Bug::LostAnswerTakenForFailure => {
                let mut outcome = table.append(read_version, commit.clone()).await;
                for _ in 0..5 {
                    if outcome.is_ok() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    outcome = self.commit_again(table, &commit).await;
                }
                outcome
            }
            Bug::RowsBeforeLedger => {
                let mut rows = Commit::new(Operation::Write);
                rows.adds = commit.adds.clone();
                if !rows.adds.is_empty() {
                    table.append(read_version, rows).await?;
                }
                table.append(read_version, Commit { adds: Vec::new(), ..commit }).await
            }
            Bug::ConflictRetriedBlindly => match table.append(read_version, commit.clone()).await? {
                Outcome::Lost { winner } => table.append(winner, commit).await,
                committed => Ok(committed),
            },
            Bug::OthersUnguarded => table.append(read_version, Commit { guarded: BTreeSet::new(), ..commit }).await,
        }
    }
}
