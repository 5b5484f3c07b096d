//! The one call by which a batch gets into a table. It is a part of its own so that a test can put a wrong one in its place
//! and see that it is found out.

use std::fmt;

use async_trait::async_trait;
use lakehouse::{Commit, Outcome, Table};

use crate::Result;

/// Appends to a table what is bound to the ledger that was read at a version of it.
#[async_trait]
pub trait Committer: fmt::Debug + Send + Sync {
    /// Commits after `read_version`, unless another has moved the same ledger since.
    ///
    /// # Errors
    /// After an error nobody knows whether it is in the log.
    async fn append(&self, table: &Table, read_version: u64, commit: Commit) -> Result<Outcome>;
}

/// The lake's own way: see [`Table::append`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Fenced;

#[async_trait]
impl Committer for Fenced {
    async fn append(&self, table: &Table, read_version: u64, commit: Commit) -> Result<Outcome> {
        table.append(read_version, commit).await
    }
}
