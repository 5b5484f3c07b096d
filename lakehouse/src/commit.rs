//! The committer: create-if-absent of the next log entry, and what to do when it is taken.
//!
//! Neither the log nor the file list is ever read to commit. An error is "unknown", not "no": an S3 store repeats a
//! conditional PUT after a server error, so our own success can come back as "already exists". Every commit carries an id
//! of its own, and that id is looked for first.

use std::time::Duration;

use bytes::Bytes;
use deltalake_core::kernel::transaction::TransactionError;
use deltalake_core::logstore::{CommitOrBytes, LogStore as _};
use futures::TryStreamExt as _;
use object_store::path::Path;
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result, store_kind};
use crate::log::{self, Commit, CommitEntry};
use crate::storage;
use crate::table::{Table, TableInner};

/// So many other commits may lie between the version that a writer has read and the one that it makes.
const COMMITS_BETWEEN_MAX: u64 = 10_000;
/// A writer that has found so many versions taken, one after the other, has missed more of them: it looks where the log ends.
const TAKEN_IN_A_ROW_MAX: u32 = 3;
/// So often a log entry is tried to be written while the store gives no clear answer.
const ATTEMPTS_MAX: u32 = 5;
/// The pause before the second attempt, or up to half as much more; it doubles each time.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(100);

/// How a commit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the log, as this version.
    Committed(u64),
    /// Somebody else's commit, as version `winner`, makes this one void: drop it, load again, start over.
    Lost {
        /// The version that was first.
        winner: u64,
    },
}

/// What a writer makes of a commit that is already there where its own should go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rivals {
    /// Goes on after it, unless it moves the same ledger, changes the table, or takes out the same files.
    StepAside,
    /// Gives way to any.
    GiveWay,
}

impl Outcome {
    /// The version that it is in the log as, if it is.
    pub fn committed(self) -> Option<u64> {
        match self {
            Self::Committed(version) => Some(version),
            Self::Lost { .. } => None,
        }
    }
}

impl Table {
    /// Commits rows that do not depend on what else is in the table, only on their ledger as of `read_version`.
    ///
    /// Commits of others in between are fine as long as they neither move one of the same ledger entries or of those that this
    /// one guards, nor change the table's columns or settings, nor take out a file that this one takes out.
    pub async fn append(&self, read_version: u64, commit: Commit) -> Result<Outcome> {
        self.commit(read_version, commit, Rivals::StepAside).await
    }

    /// Commits what was computed from the whole table at `read_version`: any other commit since makes it void.
    pub async fn replace(&self, read_version: u64, commit: Commit) -> Result<Outcome> {
        self.commit(read_version, commit, Rivals::GiveWay).await
    }

    async fn commit(&self, read_version: u64, commit: Commit, rivals: Rivals) -> Result<Outcome> {
        let id = self.inner.ids.fresh();
        let bytes = log::encode(&commit, id, Some(read_version), self.inner.clock.now())?;
        let is_void = |rival: &CommitEntry| rivals == Rivals::GiveWay || excludes(rival, &commit);
        let (mut version, mut taken) = (read_version + 1, 0);
        while version <= read_version + COMMITS_BETWEEN_MAX {
            let Some(rival) = self.inner.claim(version, &bytes, id).await? else {
                if !self.inner.holds(read_version, version).await? {
                    return Ok(Outcome::Lost { winner: version });
                }
                self.inner.commits.send_replace(());
                self.checkpoint_if_due(version).await;
                return Ok(Outcome::Committed(version));
            };
            if is_void(&rival) {
                return Ok(Outcome::Lost { winner: version });
            }
            (version, taken) = (version + 1, taken + 1);
            if taken >= TAKEN_IN_A_ROW_MAX {
                let (end, winner) = self.inner.pass_over(version, is_void).await?;
                if let Some(winner) = winner {
                    return Ok(Outcome::Lost { winner });
                }
                (version, taken) = (end, 0);
            }
        }
        let message = format!(
            "gave up a commit to {} after {COMMITS_BETWEEN_MAX} commits of others in between: fewer writers are needed",
            self.name()
        );
        Err(Error::new(ErrorKind::Conflict, message))
    }
}

impl TableInner {
    /// Reads on from `version` to where nothing stands yet, or to the first commit that `is_void` says yes to.
    async fn pass_over(&self, version: u64, is_void: impl Fn(&CommitEntry) -> bool) -> Result<(u64, Option<u64>)> {
        let mut end = version;
        let mut entries = self.entries(version..);
        while let Some(Some(rival)) = entries.try_next().await? {
            if is_void(&rival) {
                return Ok((end, Some(end)));
            }
            end += 1;
        }
        Ok((end, None))
    }

    /// Whether a commit that was bound to `read_version` and is written as `version` stands in the log, and not where the log was
    /// cleaned up since: there every place looks free. If it does, nothing before it can be missing.
    async fn holds(&self, read_version: u64, version: u64) -> Result<bool> {
        if self.seen.is_fresh(read_version) {
            self.seen.note(version);
            return Ok(true);
        }
        if self.read_entry(read_version).await?.is_some() {
            self.seen.note(version);
            return Ok(true);
        }
        let misplaced = Path::from(format!("_delta_log/{version:020}.json"));
        let deleted = storage::delete(self.log.object_store(None).as_ref(), &misplaced).await;
        deleted.map_err(|source| Error::store(format!("cannot take back a commit to {}", self.name), source))?;
        Ok(false)
    }

    /// Tries to be the one who writes `version`. `None`: it is ours. `Some`: what stands there instead.
    async fn claim(&self, version: u64, bytes: &Bytes, id: Uuid) -> Result<Option<CommitEntry>> {
        let mut pause = ATTEMPT_PAUSE;
        for attempt in 1.. {
            let entry = CommitOrBytes::LogBytes(bytes.clone());
            let failure = match self.log.write_commit_entry(version, entry, id).await {
                Ok(()) => return Ok(None),
                Err(failure) => failure,
            };
            // Whatever the store answered, what stands in the log is the truth.
            match self.read_entry(version).await {
                Ok(Some(entry)) if entry.has_id(id) => return Ok(None),
                Ok(Some(entry)) => return Ok(Some(entry)),
                Ok(None) | Err(_) if attempt < ATTEMPTS_MAX && is_transient(&failure) => {
                    tracing::warn!(table = %self.name, version, attempt, error = %failure, "commit not answered, trying again");
                    tokio::time::sleep(pause + jitter(pause, id)).await;
                    pause *= 2;
                }
                // Taken, but by whom cannot be read: that is what is wrong.
                Err(unreadable) if is_taken(&failure) => return Err(unreadable),
                Ok(None) | Err(_) => return Err(self.commit_error(version, failure)),
            }
        }
        unreachable!("the loop ends by returning")
    }

    fn commit_error(&self, version: u64, failure: TransactionError) -> Error {
        let doing = format!("cannot commit version {version} of {}", self.name);
        match failure {
            TransactionError::ObjectStore { source } => Error::store(doing, source),
            taken @ TransactionError::VersionAlreadyExists(_) => Error::with_source(
                ErrorKind::Unavailable,
                format!("{doing}: the store says that it is there, and has none"),
                taken,
            ),
            other => Error::delta(doing, other.into()),
        }
    }
}

/// Up to half of a pause. Writers that a store has cut off together shall not come back together, and each commit's id is random.
fn jitter(pause: Duration, id: Uuid) -> Duration {
    pause.mul_f64(f64::from(id.as_bytes()[0]) / 512.0)
}

fn is_taken(failure: &TransactionError) -> bool {
    matches!(failure, TransactionError::VersionAlreadyExists(_))
}

/// Whether the store may answer otherwise if it is asked again. A full disk will not, and the caller has to know.
fn is_transient(failure: &TransactionError) -> bool {
    match failure {
        TransactionError::ObjectStore { source } => store_kind(source) == ErrorKind::Unavailable,
        other => is_taken(other),
    }
}

/// Whether `rival` leaves no room for `ours` after it.
fn excludes(rival: &CommitEntry, ours: &Commit) -> bool {
    let is_ours = |app_id: &String| ours.transactions.contains_key(app_id) || ours.guarded.contains(app_id);
    let same_ledger = rival.transactions.keys().any(is_ours);
    let table_changed = rival.metadata.is_some() || rival.protocol.is_some();
    let same_file = rival.removes.iter().any(|gone| ours.removes.iter().any(|file| file.path == gone.path));
    same_ledger || table_changed || same_file
}
