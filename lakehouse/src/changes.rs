//! What is new in a table between two of its versions, for those who refresh from it.
//!
//! It comes from the commits, not from the two file lists: a file that was added and then compacted away in between is in
//! neither list, yet its rows are new. Compactions, checkpoints and commits of nothing but ledger entries change nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::error::{ErrorKind, Result};
use crate::evolve;
use crate::file::DataFile;
use crate::table::Table;

/// What happened between two versions.
#[derive(Debug, Clone)]
pub enum Changes {
    /// Rows were added, in these files, and nothing else.
    Appended {
        /// The files, each once, in the order of the commits.
        files: Vec<Arc<DataFile>>,
    },
    /// More than that: only the whole table tells what it says now.
    Rewritten {
        /// What it was.
        reason: String,
    },
}

impl Table {
    /// What the commits after `after` (none: from the very first) up to and with `upto` added.
    pub async fn changes(&self, after: Option<u64>, upto: u64) -> Result<Changes> {
        let from = after.map_or(0, |after| after + 1);
        if from > upto + 1 {
            let reason = format!("{} went back from version {} to {upto}", self.name(), from - 1);
            return Ok(Changes::Rewritten { reason });
        }
        let commits = match self.commits(from, upto).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Changes::Rewritten {
                    reason: format!("the log of {} no longer goes back to version {from}", self.name()),
                });
            }
            commits => commits?,
        };
        // A repeated commit can name a file again: files are told apart by path.
        let mut seen = BTreeMap::new();
        let mut files = Vec::new();
        for commit in commits {
            let version = commit.version;
            if commit.metadata.is_some() && version > 0 && !self.only_added_columns(version).await? {
                let reason = format!("version {version} of {} changed its columns or settings", self.name());
                return Ok(Changes::Rewritten { reason });
            }
            if commit.removes.iter().any(|remove| remove.data_change) {
                return Ok(Changes::Rewritten {
                    reason: format!("version {version} of {} took rows out", self.name()),
                });
            }
            for add in commit.adds.into_iter().filter(|add| add.data_change) {
                if seen.insert(add.file.path.clone(), ()).is_none() {
                    files.push(add.file);
                }
            }
        }
        if let Some(reason) = self.lost(&files, upto).await? {
            return Ok(Changes::Rewritten { reason });
        }
        Ok(Changes::Appended { files })
    }

    /// Files that were put together with others since, and cleaned up before somebody who was away could read them.
    async fn lost(&self, files: &[Arc<DataFile>], upto: u64) -> Result<Option<String>> {
        if files.is_empty() {
            return Ok(None);
        }
        let live: BTreeSet<String> = self.at(upto).await?.files.iter().map(|file| file.path.clone()).collect();
        let superseded: Vec<_> = files.iter().filter(|file| !live.contains(&file.path)).cloned().collect();
        let gone = self.first_gone(&superseded).await?;
        Ok(gone.map(|path| format!("{path} of {} was put together with others, and is cleaned up", self.name())))
    }

    /// Whether all that the new metadata of `version` did was to add columns: then no row says anything else than before.
    async fn only_added_columns(&self, version: u64) -> Result<bool> {
        let before = match self.at(version - 1).await {
            Ok(before) => before,
            Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
            // Cleaned up: nobody can tell any more.
            Err(_) => return Ok(false),
        };
        Ok(evolve::only_adds_columns(&before, self.at(version).await?.as_ref()))
    }
}
