//! A table of the lake: a cheap handle that knows the newest version and moves on by reading only new log entries.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::pin;
use std::sync::Arc;

use deltalake_core::kernel::{Metadata, MetadataExt as _};
use deltalake_core::logstore::{CommitOrBytes, LogStore, LogStoreRef};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tokio::sync::{Mutex, watch};

use crate::archive::Archive;
use crate::checkpoint::{CHECKPOINT_INTERVAL, Checkpoints};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::file::{DataFile, location};
use crate::ids::Ids;
use crate::log::{self, CommitEntry};
use crate::name::TableName;
use crate::readers::Readers;
use crate::schema::{self, TableSpec};
use crate::seen::Seen;
use crate::version::{self, Head, TableVersion};

/// How many versions that somebody asked for are kept at hand. A publication lags the heads by one refresh, so a reader that
/// pins it finds its versions here and loads nothing.
const RECENT_VERSIONS_MAX: usize = 32;

/// Whoever has missed so many entries reads on with many at once.
const ENTRIES_ONE_BY_ONE_MAX: u64 = 4;
/// Whoever has missed so many loads the table anew, from its last checkpoint.
const ENTRIES_MISSED_MAX: u64 = 2 * CHECKPOINT_INTERVAL;

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
    pub(crate) readers: Arc<Readers>,
    /// Told of each commit of this process.
    pub(crate) commits: watch::Sender<()>,
    /// The newest known state. The lock is held while new entries are read, so that two callers never read them twice.
    pub(crate) known: Mutex<Known>,
    pub(crate) archive: Mutex<Archive>,
    pub(crate) seen: Seen,
    pub(crate) checkpoints: Checkpoints,
}

#[derive(Debug, Default)]
pub(crate) struct Known {
    head: Option<Head>,
    /// The versions that were asked for last, the last one at the end. A version is made of the head only then: its list of
    /// files takes longer the more there are, and who commits needs none.
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
    pub(crate) fn new(inner: TableInner) -> Self {
        Self { inner: Arc::new(inner) }
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
        self.inner.advance(&mut known, None).await?;
        Ok(known.newest())
    }

    /// The number of the newest version, for those who do not need its list of files.
    pub(crate) async fn newest_version(&self) -> Result<u64> {
        let mut known = self.inner.known.lock().await;
        Ok(self.inner.advance(&mut known, None).await?.version())
    }

    /// The newest version, and all that its log says of its columns.
    pub(crate) async fn head_and_metadata(&self) -> Result<(Arc<TableVersion>, Metadata)> {
        let mut known = self.inner.known.lock().await;
        let metadata = self.inner.advance(&mut known, None).await?.metadata().clone();
        Ok((known.newest(), metadata))
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
        if let Some(found) = known.find(version) {
            return Ok(found);
        }
        if self.inner.advance(&mut known, Some(version)).await?.version() == version {
            return Ok(known.newest());
        }
        drop(known);
        let head = self.inner.load(Some(version)).await?;
        let found = Arc::new(head.pin());
        self.inner.known.lock().await.remember(found.clone());
        Ok(found)
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
        let head = self.inner.advance(&mut known, None).await?;
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
        let mut found = Vec::new();
        let mut entries = self.inner.entries(from..=upto);
        while let Some(entry) = entries.try_next().await? {
            let Some(entry) = entry else {
                let version = from + found.len() as u64;
                let message = format!("log entry {version} of {} is gone: it was cleaned up or lost", self.name());
                return Err(Error::new(ErrorKind::NotFound, message));
            };
            found.push(entry);
        }
        Ok(found)
    }

    /// The same, also of commits that only the archive of the log still tells of: without their files.
    pub async fn story(&self, from: u64, upto: u64) -> Result<Vec<CommitEntry>> {
        let entries: Vec<_> = self.inner.story(from..=upto).try_collect().await?;
        Ok(entries.into_iter().flatten().collect())
    }

    /// The newest `limit` commits, newest first.
    pub async fn history(&self, limit: usize) -> Result<Vec<CommitEntry>> {
        let newest = self.newest_version().await?;
        let oldest = (newest + 1).saturating_sub(limit as u64);
        let mut found = Vec::new();
        let mut entries = pin!(self.inner.story((oldest..=newest).rev()));
        while let Some(Some(entry)) = entries.try_next().await? {
            found.push(entry);
        }
        Ok(found)
    }

    /// The first of these files that is not there (any more).
    pub(crate) async fn first_gone(&self, files: &[Arc<DataFile>]) -> Result<Option<Path>> {
        let store = self.store();
        let looked = files.iter().map(|file| {
            let (store, path) = (store.clone(), location(&file.path));
            async move {
                match store.head(&path).await {
                    Ok(_) => Ok(None),
                    Err(object_store::Error::NotFound { .. }) => Ok(Some(path)),
                    Err(source) => Err(Error::store(format!("cannot look for {path}"), source)),
                }
            }
        });
        let looked: Vec<_> = looked.collect();
        let mut looked = futures::stream::iter(looked).buffered(ENTRIES_AT_ONCE);
        while let Some(found) = looked.try_next().await? {
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The store with this table's folder as its root.
    pub(crate) fn store(&self) -> Arc<dyn ObjectStore> {
        self.inner.log.object_store(None)
    }
}

impl TableInner {
    /// Loads the newest version, or a given one, whatever is known already.
    pub(crate) async fn load(&self, version: Option<u64>) -> Result<Head> {
        Head::load(&self.name, self.log.as_ref(), &self.readers, version).await
    }

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

    /// The entries from `version` back to the first, without those that a restore has undone since.
    pub(crate) fn lineage(&self, version: u64) -> impl Stream<Item = Result<CommitEntry>> + Send {
        let from = move |version: u64| self.story((0..=version).rev()).boxed();
        futures::stream::try_unfold(Some(from(version)), move |entries| async move {
            let Some(mut entries) = entries else { return Ok(None) };
            // One that is gone was cleaned up by somebody else, and so were those before it.
            let Some(Some(entry)) = entries.try_next().await? else { return Ok(None) };
            let next = entry.restored().map_or(entries, from);
            Ok(Some((entry, Some(next))))
        })
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

    /// Brings `known` to the newest version, or up to `upto` if that is newer than what is known.
    async fn advance<'a>(&self, known: &'a mut Known, upto: Option<u64>) -> Result<&'a mut Head> {
        let head = match &mut known.head {
            Some(head) => head,
            none => none.insert(self.load(None).await?),
        };
        if upto.is_none_or(|upto| head.version() < upto) {
            self.move_on(head, upto.unwrap_or(u64::MAX)).await?;
        }
        Ok(head)
    }

    /// Most often there is one entry or none, and a request for each is the least; who was away for long reads many at once,
    /// and who was away for very long begins again at a checkpoint.
    async fn move_on(&self, head: &mut Head, upto: u64) -> Result<()> {
        self.read_on(head, upto).await?;
        if head.version() == upto {
            return Ok(());
        }
        // The log ends here, or it was cleaned up to further than this while nobody looked.
        if !self.seen.is_fresh(head.version()) && self.read_entry(head.version()).await?.is_none() {
            *head = self.load((upto < u64::MAX).then_some(upto)).await?;
        }
        self.seen.note(head.version());
        Ok(())
    }

    async fn read_on(&self, head: &mut Head, upto: u64) -> Result<()> {
        let known = head.version();
        while head.version() < upto.min(known + ENTRIES_ONE_BY_ONE_MAX) {
            match self.read_entry(head.version() + 1).await? {
                Some(entry) => head.advance(entry)?,
                None => return Ok(()),
            }
        }
        let far = known + ENTRIES_MISSED_MAX;
        if far < upto && self.read_entry(far).await?.is_some() {
            *head = self.load((upto < u64::MAX).then_some(upto)).await?;
        }
        let mut entries = pin!(self.entries(head.version() + 1..=upto));
        while let Some(Some(entry)) = entries.try_next().await? {
            head.advance(entry)?;
        }
        Ok(())
    }
}

impl Known {
    fn find(&self, version: u64) -> Option<Arc<TableVersion>> {
        self.recent.iter().find(|recent| recent.version == version).cloned()
    }

    fn remember(&mut self, version: Arc<TableVersion>) {
        self.recent.push_back(version);
        if self.recent.len() > RECENT_VERSIONS_MAX {
            self.recent.pop_front();
        }
    }

    fn newest(&mut self) -> Arc<TableVersion> {
        let head = self.head.as_ref().expect("called with a head");
        if let Some(found) = self.find(head.version()) {
            return found;
        }
        let newest = Arc::new(head.pin());
        self.remember(newest.clone());
        newest
    }
}
