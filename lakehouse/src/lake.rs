//! The lake: one folder or bucket with tables in it, and the mark of the format it is written in.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use deltalake_core::logstore::{StorageConfig, default_logstore};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::ObjectStore;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use url::Url;

use crate::checkpoint::Checkpoints;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format;
use crate::ids::{Ids, RandomIds};
use crate::name::TableName;
use crate::publication::NewestPublications;
use crate::readers::Readers;
use crate::seen::Seen;
use crate::session::{self, BaseState, SessionFactory, SessionOptions, is_read_at_head};
use crate::storage::{self, Storage, StorageOptions};
use crate::table::{Table, TableInner};

/// A lake, open. Clones share what is known of its tables.
#[derive(Debug, Clone)]
pub struct Lake {
    inner: Arc<LakeInner>,
}

#[derive(Debug)]
struct LakeInner {
    storage: Storage,
    /// The store with the lake as its root.
    store: Arc<dyn ObjectStore>,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn Ids>,
    /// A handle for each table that was asked for, so that what is known of it is shared.
    tables: Mutex<HashMap<TableName, Table>>,
    newest: NewestPublications,
    /// The versions that are being read in this process.
    readers: Arc<Readers>,
    /// Told of each commit of this process.
    commits: watch::Sender<()>,
    /// What goes on beside the callers' own work.
    background: TaskTracker,
    /// Made at the first query, with the options given then or the defaults.
    sessions: OnceLock<BaseState>,
    /// The tables that are read at their heads, and when they were last listed.
    heads: tokio::sync::Mutex<Option<(Instant, Vec<TableName>)>>,
}

/// A table of bronze that appears is seen by queries after this time at the latest.
const LISTING_AGE_MAX: Duration = Duration::from_secs(2);

/// A process that ends waits so long at most for what it writes beside its commits: nothing is lost without it.
const SETTLE_MAX: Duration = Duration::from_secs(3);
/// So many folders are looked into at once.
const FOLDERS_AT_ONCE: usize = 16;

impl Lake {
    /// Opens the lake at `url`, and makes it if nothing is there.
    ///
    /// # Errors
    /// `BadConfig` if the place can't be written or the URL is of no known kind, `NewerLake` if a newer program wrote it,
    /// `Unavailable` if the store does not answer.
    pub async fn open(url: &Url, options: &StorageOptions, clock: Arc<dyn Clock>) -> Result<Self> {
        Self::over(storage::open(url, options)?, clock, Arc::new(RandomIds)).await
    }

    /// Opens the lake at `url` if there is one; none is made.
    ///
    /// # Errors
    /// `NotFound` if there is no lake, and those of [`Lake::open`].
    pub async fn find(url: &Url, options: &StorageOptions, clock: Arc<dyn Clock>) -> Result<Self> {
        let storage = storage::reach(url, options)?;
        let store = PrefixStore::new(storage.root.clone(), storage.prefix.clone());
        if format::look(&storage, &store).await?.is_none() {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no lake at {}", storage.url)));
        }
        Self::over(storage, clock, Arc::new(RandomIds)).await
    }

    /// Opens a lake on a store of the caller's, such as one that fails on purpose. The store's root is that of `url`.
    pub async fn open_on(store: Arc<dyn ObjectStore>, url: &Url, clock: Arc<dyn Clock>) -> Result<Self> {
        Self::open_with_ids(store, url, clock, Arc::new(RandomIds)).await
    }

    /// The same with ids of the caller's too, so that what is written can be the same each time.
    pub async fn open_with_ids(
        store: Arc<dyn ObjectStore>,
        url: &Url,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn Ids>,
    ) -> Result<Self> {
        Self::over(Storage::of(store, url)?, clock, ids).await
    }

    async fn over(storage: Storage, clock: Arc<dyn Clock>, ids: Arc<dyn Ids>) -> Result<Self> {
        let store: Arc<dyn ObjectStore> = Arc::new(PrefixStore::new(storage.root.clone(), storage.prefix.clone()));
        format::check(&storage, store.as_ref()).await?;
        let inner = LakeInner {
            storage,
            store,
            clock,
            ids,
            tables: Mutex::default(),
            newest: NewestPublications::default(),
            readers: Arc::default(),
            commits: watch::Sender::default(),
            background: TaskTracker::new(),
            sessions: OnceLock::new(),
            heads: tokio::sync::Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Where the lake lies.
    pub fn url(&self) -> &Url {
        &self.inner.storage.url
    }

    /// The clock that everything in this lake goes by.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }

    /// Where new ids come from.
    pub fn ids(&self) -> &dyn Ids {
        self.inner.ids.as_ref()
    }

    /// The store with the lake as its root.
    pub(crate) fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.inner.store
    }

    pub(crate) fn newest(&self) -> &NewestPublications {
        &self.inner.newest
    }

    pub(crate) fn readers(&self) -> &Arc<Readers> {
        &self.inner.readers
    }

    /// Changes with each commit that this process makes to any table: whoever waits for news need not ask the store for them.
    pub fn commits(&self) -> watch::Receiver<()> {
        self.inner.commits.subscribe()
    }

    /// A handle on a table, which need not be there yet.
    pub fn table(&self, name: &TableName) -> Table {
        let mut tables = self.inner.tables.lock().expect("no holder of this lock panics");
        tables.entry(name.clone()).or_insert_with(|| self.new_table(name)).clone()
    }

    fn new_table(&self, name: &TableName) -> Table {
        let storage = &self.inner.storage;
        let location =
            storage.url.join(&format!("{}/", name.folder())).expect("a table's name is two plain path segments");
        let folder =
            Path::from_iter(storage.prefix.parts().chain([name.schema.as_str().into(), name.name.as_str().into()]));
        let store = Arc::new(PrefixStore::new(storage.root.clone(), folder));
        let log = default_logstore(store, storage.root.clone(), &location, &StorageConfig::default());
        Table::new(TableInner {
            name: name.clone(),
            log,
            clock: self.inner.clock.clone(),
            ids: self.inner.ids.clone(),
            readers: self.inner.readers.clone(),
            commits: self.inner.commits.clone(),
            known: Default::default(),
            archive: Default::default(),
            seen: Seen::new(self.inner.clock.clone()),
            checkpoints: Checkpoints::of(&self.inner.background),
        })
    }

    /// Waits, for some seconds at most, for what is written beside the commits. To be called before a process ends.
    pub async fn settle(&self) {
        let background = &self.inner.background;
        background.close();
        if tokio::time::timeout(SETTLE_MAX, background.wait()).await.is_err() {
            tracing::debug!("a checkpoint is not written in time; the next one will be");
        }
        background.reopen();
    }

    /// Makes sessions on this lake. All callers share one, so that they share its memory limit and its caches.
    pub fn session_factory(&self) -> SessionFactory {
        let base = self.inner.sessions.get_or_init(|| {
            let base = session::base_state(self, &SessionOptions::default());
            base.expect("the defaults of the query engine are valid")
        });
        SessionFactory::new(self, base.clone())
    }

    /// Sets how much of the machine queries may take. To be called before the first of them.
    pub fn limit_sessions(&self, options: &SessionOptions) -> Result<()> {
        let base = session::base_state(self, options)?;
        self.inner
            .sessions
            .set(base)
            .map_err(|_| Error::new(ErrorKind::Bug, "a session was made before the limits were set"))
    }

    /// The tables that are read at their heads. Listed now and then, not for every query.
    pub(crate) async fn known_heads(&self) -> Result<Vec<TableName>> {
        let mut heads = self.inner.heads.lock().await;
        if let Some((listed_at, names)) = heads.as_ref()
            && listed_at.elapsed() < LISTING_AGE_MAX
        {
            return Ok(names.clone());
        }
        let mut names = self.tables().await?;
        names.retain(|name| is_read_at_head(&name.schema));
        *heads = Some((Instant::now(), names.clone()));
        Ok(names)
    }

    /// The names of all tables, by listing the folders. Not for the way of a query.
    pub async fn tables(&self) -> Result<Vec<TableName>> {
        let schemas = self.folders(None).await?.into_iter().map(|schema| self.names_in(schema));
        let names: Vec<_> = futures::stream::iter(schemas).buffered(FOLDERS_AT_ONCE).try_concat().await?;
        let looked = names.into_iter().map(|name| self.if_there(name));
        let found: Vec<_> = futures::stream::iter(looked).buffered(FOLDERS_AT_ONCE).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn names_in(&self, schema: String) -> Result<Vec<TableName>> {
        let names = self.folders(Some(&schema)).await?.into_iter().map(|table| TableName::new(schema.clone(), table));
        Ok(names.filter(|name| name.to_string().parse::<TableName>().is_ok()).collect())
    }

    /// A folder without a log is none of ours, or a table whose making was broken off.
    async fn if_there(&self, name: TableName) -> Result<Option<TableName>> {
        Ok(self.table(&name).exists().await?.then_some(name))
    }

    async fn folders(&self, within: Option<&str>) -> Result<Vec<String>> {
        let prefix = within.map(Path::from);
        let listing = self
            .inner
            .store
            .list_with_delimiter(prefix.as_ref())
            .await
            .map_err(|source| Error::store(format!("cannot list the tables of {}", self.url()), source))?;
        let mut folders: Vec<_> = listing
            .common_prefixes
            .iter()
            .filter_map(|path| path.filename().map(str::to_owned))
            .filter(|folder| !folder.starts_with(['_', '.']))
            .collect();
        folders.sort();
        Ok(folders)
    }
}
