//! A table of the lake: a cheap handle that knows the newest version and moves on by reading only new log entries.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use deltalake_core::kernel::{Metadata, MetadataExt as _};
use deltalake_core::logstore::{CommitOrBytes, LogStore, LogStoreRef};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use object_store::ObjectStore;
use tokio::sync::Mutex;

use crate::clock::Clock;
use crate::commit::CHECKPOINT_INTERVAL;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ids;
use crate::log::{self, CommitEntry};
use crate::name::TableName;
use crate::schema::{self, TableSpec};
use crate::version::{self, Head, TableVersion};

/// How many versions that were the newest a moment ago are kept at hand. A publication lags the heads by one refresh, so
/// a reader that pins it finds its versions here and loads nothing.
const RECENT_VERSIONS_MAX: usize = 32;

/// So many log entries are read at once, where many are read.
pub(crate) const ENTRIES_AT_ONCE: usize = 16;

/// A handle on one table. Clones share what is known of it.
#[derive(Debug, Clone)]
pub struct Table {
    pub(crate) inner: Arc<TableInner>,
}

#[derive(Debug)]
pub(crate) struct TableInner {
    pub(crate) name: TableName,
    pub(crate) log: LogStoreRef,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<dyn Ids>,
    /// The newest known state. The lock is held while new entries are read, so that two callers never read them twice.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    head: Option<Head>,
    /// The last versions that were the newest, the newest last.
    recent: VecDeque<Arc<TableVersion>>,
}

/// Ledger entries of a table, and the version at which they were read. A commit that is bound to them goes right after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    /// The table's version at which the entries were read.
    pub version: u64,
    /// The entries by application id; one that is missing was never written.
    pub entries: BTreeMap<String, i64>,
}

impl Table {
    pub(crate) fn new(name: TableName, log: LogStoreRef, clock: Arc<dyn Clock>, ids: Arc<dyn Ids>) -> Self {
        Self { inner: Arc::new(TableInner { name, log, clock, ids, known: Mutex::default() }) }
    }

    /// The table's name.
    pub fn name(&self) -> &TableName {
        &self.inner.name
    }

    /// The newest version. Costs one request for the next log entry where nothing changed.
    ///
    /// # Errors
    /// `NotFound` if there is no such table.
    pub async fn head(&self) -> Result<Arc<TableVersion>> {
        let mut known = self.inner.known.lock().await;
        self.inner.advance(&mut known).await?;
        Ok(known.newest())
    }

    /// The newest version, and all that its log says of its columns.
    pub(crate) async fn head_and_metadata(&self) -> Result<(Arc<TableVersion>, Metadata)> {
        let mut known = self.inner.known.lock().await;
        self.inner.advance(&mut known).await?;
        let head = known.head.as_ref().expect("a head was just loaded");
        Ok((known.newest(), head.metadata().clone()))
    }

    /// Whether the table is there, be it one that can be read or not.
    pub async fn exists(&self) -> Result<bool> {
        if self.inner.known.lock().await.head.is_some() {
            return Ok(true);
        }
        version::is_there(&self.inner.name, self.inner.log.as_ref()).await
    }

    /// The table as it was at `version`.
    pub async fn at(&self, version: u64) -> Result<Arc<TableVersion>> {
        let mut known = self.inner.known.lock().await;
        if known.head.as_ref().is_none_or(|head| head.version() < version) {
            self.inner.advance(&mut known).await?;
        }
        if let Some(found) = known.recent.iter().find(|recent| recent.version == version) {
            return Ok(found.clone());
        }
        drop(known);
        let head = Head::load(&self.inner.name, self.inner.log.as_ref(), Some(version)).await?;
        Ok(Arc::new(head.pin()))
    }

    /// Makes the table if it is missing; otherwise makes sure that it has the columns of `spec`.
    ///
    /// # Errors
    /// `BadConfig` if a column is missing in the lake or has another type there; the message names both types.
    pub async fn ensure(&self, spec: &TableSpec) -> Result<Arc<TableVersion>> {
        let existing = match self.head().await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.create(spec).await?;
                self.head().await?
            }
            found => found?,
        };
        schema::check_same(self.name(), &existing.schema, spec)?;
        Ok(existing)
    }

    /// Somebody else who makes it at the same moment is as good as we are: `ensure` compares the columns afterwards.
    async fn create(&self, spec: &TableSpec) -> Result<()> {
        let (metadata, protocol) = schema::creation(self.name(), spec)?;
        let metadata = metadata
            .with_table_id(self.inner.ids.fresh().to_string())
            .map_err(|source| Error::delta(format!("cannot describe table {}", self.name()), source.into()))?;
        let id = self.inner.ids.fresh();
        let bytes = log::encode_creation(metadata, protocol, id, self.inner.clock.now())?;
        match self.inner.log.write_commit_entry(0, CommitOrBytes::LogBytes(bytes), id).await {
            Ok(()) => Ok(()),
            Err(deltalake_core::kernel::transaction::TransactionError::VersionAlreadyExists(_)) => Ok(()),
            Err(source) => Err(Error::delta(format!("cannot make table {}", self.name()), source.into())),
        }
    }

    /// Reads the ledger entries of `app_ids` at the newest version.
    ///
    /// # Errors
    /// Whatever keeps the ledger from being read is an error: it is never taken for an empty ledger.
    pub async fn ledger(&self, app_ids: &[String]) -> Result<Ledger> {
        let mut known = self.inner.known.lock().await;
        self.inner.advance(&mut known).await?;
        let head = known.head.as_mut().expect("a head was just loaded");
        let unknown: Vec<String> =
            app_ids.iter().filter(|app_id| head.transaction(app_id).is_none()).cloned().collect();
        if !unknown.is_empty() {
            head.remember(self.inner.transactions_at(head.loaded_version, unknown).await?);
        }
        let entries = app_ids.iter().filter_map(|app_id| Some((app_id.clone(), head.transaction(app_id)?))).collect();
        Ok(Ledger { version: head.version(), entries })
    }

    /// The commits from `from` to `upto`, both included, oldest first.
    pub async fn commits(&self, from: u64, upto: u64) -> Result<Vec<CommitEntry>> {
        let mut entries = Vec::new();
        for version in from..=upto {
            let entry = self.inner.read_entry(version).await?.ok_or_else(|| {
                let message = format!("log entry {version} of {} is gone: it was cleaned up or lost", self.name());
                Error::new(ErrorKind::NotFound, message)
            })?;
            entries.push(entry);
        }
        Ok(entries)
    }

    /// The newest `limit` commits, newest first.
    pub async fn history(&self, limit: usize) -> Result<Vec<CommitEntry>> {
        let newest = self.head().await?.version;
        let oldest = (newest + 1).saturating_sub(limit as u64);
        let mut entries = Vec::new();
        for version in (oldest..=newest).rev() {
            match self.inner.read_entry(version).await? {
                Some(entry) => entries.push(entry),
                None => break,
            }
        }
        Ok(entries)
    }

    /// The store with this table's folder as its root.
    pub(crate) fn store(&self) -> Arc<dyn ObjectStore> {
        self.inner.log.object_store(None)
    }
}

impl TableInner {
    /// Reads one log entry; `None` if there is none of that number.
    pub(crate) async fn read_entry(&self, version: u64) -> Result<Option<CommitEntry>> {
        let bytes = self
            .log
            .read_commit_entry(version)
            .await
            .map_err(|source| Error::delta(format!("cannot read log entry {version} of {}", self.name), source))?;
        bytes.map(|bytes| log::decode(&self.name, version, &bytes)).transpose()
    }

    /// Reads these entries in their order, some at a time.
    pub(crate) fn entries(
        &self,
        versions: impl Iterator<Item = u64> + Send,
    ) -> impl Stream<Item = Result<Option<CommitEntry>>> + Send {
        futures::stream::iter(versions.map(|version| self.read_entry(version))).buffered(ENTRIES_AT_ONCE)
    }

    /// Reads ledger entries as of `version`: from the log's newest entries back to the last checkpoint of ours, all of them
    /// in one go, and what is older from there.
    async fn transactions_at(&self, version: u64, app_ids: Vec<String>) -> Result<BTreeMap<String, i64>> {
        let checkpoint = version - version % CHECKPOINT_INTERVAL;
        let mut missing: BTreeSet<String> = app_ids.into_iter().collect();
        let mut found = BTreeMap::new();
        let mut older = checkpoint;
        let mut entries = self.entries((checkpoint + 1..=version).rev());
        while let Some(entry) = entries.try_next().await? {
            if missing.is_empty() {
                break;
            }
            let Some(entry) = entry else {
                // Somebody cleaned the log up to here, and left a checkpoint at a place of their own.
                older = version;
                break;
            };
            for (app_id, value) in entry.transactions {
                if missing.remove(&app_id) {
                    found.insert(app_id, value);
                }
            }
        }
        drop(entries);
        // A table's first entry makes it, and moves no ledger.
        if !missing.is_empty() && older > 0 {
            let missing = missing.into_iter().collect();
            found.extend(version::transactions_at(&self.name, self.log.as_ref(), older, missing).await?);
        }
        Ok(found)
    }

    /// Brings `known` to the newest version.
    async fn advance(&self, known: &mut Known) -> Result<()> {
        if known.head.is_none() {
            known.head = Some(Head::load(&self.name, self.log.as_ref(), None).await?);
        }
        let head = known.head.as_mut().expect("a head was just loaded");
        while let Some(entry) = self.read_entry(head.version() + 1).await? {
            if let Err(error) = head.advance(entry) {
                // Half-moved state must not be read: the next caller loads anew and meets the same error, or not.
                known.head = None;
                return Err(error);
            }
        }
        known.remember_newest();
        Ok(())
    }
}

impl Known {
    fn remember_newest(&mut self) {
        let head = self.head.as_ref().expect("called with a head");
        if self.recent.back().is_some_and(|recent| recent.version == head.version()) {
            return;
        }
        self.recent.push_back(Arc::new(head.pin()));
        if self.recent.len() > RECENT_VERSIONS_MAX {
            self.recent.pop_front();
        }
    }

    fn newest(&self) -> Arc<TableVersion> {
        self.recent.back().expect("the newest version was just remembered").clone()
    }
}
