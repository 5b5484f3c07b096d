//! A store that fails on purpose, over any real one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use chrono::TimeDelta;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryFutureExt as _, TryStreamExt as _};
use lakehouse::{Lake, SystemClock};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt as _,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use url::Url;

use crate::support::{TestLake, bucket, lakes, name, spec};

/// What happens to the next requests.
#[derive(Debug)]
pub(crate) struct Faulty {
    store: Arc<dyn ObjectStore>,
    /// So many log entries are written, but answered with an error.
    pub(crate) answers_to_lose: AtomicU32,
    /// So many are written and then written again by the client, which hears that the entry is there already.
    pub(crate) answers_to_repeat: AtomicU32,
    /// So many are not written.
    pub(crate) requests_to_lose: AtomicU32,
    /// So many reads of log entries are lost.
    pub(crate) lost_entries: AtomicU32,
    /// From the so manieth read of a data file on, all are lost; 0 is none.
    pub(crate) lost_read: AtomicU32,
    /// So many writes more are done before the store goes away, and one; 0 is for ever.
    writes_left: AtomicU32,
    /// So many uploads end in the middle, as by the death of their process: nobody takes back what is there.
    pub(crate) uploads_to_break_off: AtomicU32,
    /// So many data files get their name with half of what belongs in them.
    pub(crate) files_to_truncate: AtomicU32,
    /// Nothing more can be written.
    pub(crate) is_full: AtomicBool,
    /// Listed files are two days older than they are.
    pub(crate) is_long_ago: Arc<AtomicBool>,
    /// What lists do not know yet, while they lag.
    lag: Arc<Mutex<Option<Lag>>>,
}

/// What was written and deleted since lists began to lag.
#[derive(Debug, Default)]
struct Lag {
    written: BTreeSet<Path>,
    deleted: BTreeMap<Path, ObjectMeta>,
}

fn take(count: &AtomicU32) -> bool {
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

impl Faulty {
    pub(crate) fn over(store: Arc<dyn ObjectStore>) -> Self {
        Self {
            store,
            answers_to_lose: AtomicU32::default(),
            answers_to_repeat: AtomicU32::default(),
            requests_to_lose: AtomicU32::default(),
            lost_entries: AtomicU32::default(),
            lost_read: AtomicU32::default(),
            writes_left: AtomicU32::default(),
            uploads_to_break_off: AtomicU32::default(),
            files_to_truncate: AtomicU32::default(),
            is_full: AtomicBool::default(),
            is_long_ago: Arc::default(),
            lag: Arc::default(),
        }
    }

    /// From now on lists show what is there now, until they catch up.
    pub(crate) fn let_lists_lag(&self) {
        *self.lag.lock().expect("no holder panics") = Some(Lag::default());
    }

    pub(crate) fn let_lists_catch_up(&self) {
        *self.lag.lock().expect("no holder panics") = None;
    }

    fn loses_read(&self) -> bool {
        let left = self.lost_read.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| (left > 1).then(|| left - 1));
        left == Err(1)
    }

    /// After so many writes from now on, no other is done.
    pub(crate) fn stop_after_writes(&self, writes: u64) {
        self.writes_left.store(writes as u32 + 1, Ordering::SeqCst);
    }

    pub(crate) fn go_on(&self) {
        self.writes_left.store(0, Ordering::SeqCst);
    }

    fn loses_write(&self) -> bool {
        let left =
            self.writes_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| (left > 1).then(|| left - 1));
        left == Err(1)
    }

    fn is_written(&self, location: &Path) {
        if let Some(lag) = self.lag.lock().expect("no holder panics").as_mut() {
            lag.written.insert(location.clone());
        }
    }

    /// Writes half of it in the way of large files, and leaves it at that.
    async fn break_off(&self, location: &Path, payload: PutPayload) -> Result<PutResult> {
        let mut upload = self.store.put_multipart(location).await?;
        upload.put_part(half(payload)).await?;
        // A process that is killed runs no destructor.
        std::mem::forget(upload);
        Err(broken())
    }

    /// All objects as lists show them now, in their order.
    fn listed(&self, prefix: Option<&Path>) -> impl Future<Output = Result<Vec<ObjectMeta>>> + Send + 'static {
        let (lag, is_long_ago) = (self.lag.clone(), self.is_long_ago.clone());
        let (found, prefix) = (self.store.list(prefix), prefix.cloned().unwrap_or_default());
        async move {
            let mut found: Vec<ObjectMeta> = found.try_collect().await?;
            if let Some(lag) = lag.lock().expect("no holder panics").as_ref() {
                found.retain(|object| !lag.written.contains(&object.location));
                found.extend(lag.deleted.values().filter(|gone| gone.location.prefix_matches(&prefix)).cloned());
            }
            if is_long_ago.load(Ordering::SeqCst) {
                found.iter_mut().for_each(|object| object.last_modified -= TimeDelta::days(2));
            }
            found.sort_by(|a, b| a.location.cmp(&b.location));
            Ok(found)
        }
    }
}

fn half(payload: PutPayload) -> PutPayload {
    let bytes = bytes::Bytes::from(payload);
    bytes.slice(..bytes.len() / 2).into()
}

fn broken() -> object_store::Error {
    object_store::Error::Generic { store: "faulty", source: "connection reset".into() }
}

fn full() -> object_store::Error {
    object_store::Error::Generic {
        store: "faulty",
        source: std::io::Error::from(std::io::ErrorKind::StorageFull).into(),
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if self.loses_write() {
            return Err(broken());
        }
        if self.is_full.load(Ordering::SeqCst) {
            return Err(full());
        }
        let is_commit = matches!(options.mode, PutMode::Create) && location.as_ref().contains("_delta_log");
        let is_data = location.as_ref().ends_with(".parquet");
        if (is_commit || is_data) && take(&self.uploads_to_break_off) {
            return self.break_off(location, payload).await;
        }
        if is_data && take(&self.files_to_truncate) {
            self.store.put_opts(location, half(payload), options).await?;
            return Err(broken());
        }
        if is_commit && take(&self.requests_to_lose) {
            return Err(broken());
        }
        let done = self.store.put_opts(location, payload, options).await?;
        self.is_written(location);
        if is_commit && take(&self.answers_to_lose) {
            return Err(broken());
        }
        if is_commit && take(&self.answers_to_repeat) {
            let path = location.to_string();
            return Err(object_store::Error::AlreadyExists { path, source: "repeated by the client".into() });
        }
        Ok(done)
    }

    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.is_written(at);
        self.store.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let is_data = location.as_ref().ends_with(".parquet");
        if is_data && self.loses_read() {
            return Err(broken());
        }
        if location.as_ref().contains("_delta_log") && take(&self.lost_entries) {
            return Err(broken());
        }
        self.store.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (store, lag) = (self.store.clone(), self.lag.clone());
        let noted = locations.and_then(move |path| {
            let (store, lag) = (store.clone(), lag.clone());
            async move {
                let there = store.head(&path).await;
                if let (Ok(object), Some(lag)) = (there, lag.lock().expect("no holder panics").as_mut()) {
                    lag.deleted.insert(path.clone(), object);
                }
                Ok(path)
            }
        });
        self.store.delete_stream(noted.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let listed = self.listed(prefix).map_ok(|found| futures::stream::iter(found.into_iter().map(Ok)));
        listed.try_flatten_stream().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let folder = prefix.cloned().unwrap_or_default();
        let (mut objects, mut common_prefixes) = (Vec::new(), BTreeSet::new());
        for object in self.listed(prefix).await? {
            let parts = Vec::from_iter(object.location.prefix_match(&folder).into_iter().flatten());
            match parts.as_slice() {
                [_] => objects.push(object.clone()),
                [below, ..] => drop(common_prefixes.insert(folder.clone().join(below.clone()))),
                [] => {}
            }
        }
        Ok(ListResult { common_prefixes: Vec::from_iter(common_prefixes), objects })
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}

/// A lake on a store that can be made to fail.
pub(crate) struct FaultyLake {
    pub(crate) store: Arc<Faulty>,
    pub(crate) lake: Lake,
    /// What lies beneath.
    pub(crate) test: TestLake,
}

/// One in memory, one on disk and one in a bucket, each with a table.
pub(crate) async fn faulty_lakes() -> Vec<FaultyLake> {
    let mut found = Vec::new();
    for test in lakes().await {
        let store: Arc<dyn ObjectStore> = match test.url.scheme() {
            "s3" => Arc::new(bucket(&test.url)),
            "file" => Arc::new(LocalFileSystem::new()),
            _ => Arc::new(InMemory::new()),
        };
        let store = Arc::new(Faulty::over(store));
        let lake = open_on(&store, &test.url).await;
        lake.table(&name()).ensure(&spec()).await.expect("made");
        found.push(FaultyLake { store, lake, test });
    }
    found
}

impl FaultyLake {
    /// As another process sees it: nothing is known of it yet.
    pub(crate) async fn opened_again(&self) -> Lake {
        open_on(&self.store, &self.test.url).await
    }
}

async fn open_on(store: &Arc<Faulty>, url: &Url) -> Lake {
    Lake::open_on(store.clone(), url, Arc::new(SystemClock)).await.expect("opens")
}
