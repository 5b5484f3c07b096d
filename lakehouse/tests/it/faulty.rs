//! A store that fails on purpose, and what the committer makes of it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use lakehouse::{ErrorKind, Lake, Outcome, SystemClock};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use url::Url;

use crate::support::{commit_of, ids, name, spec};

/// What happens to the next creations of a log entry.
#[derive(Debug, Default)]
struct Faulty {
    store: InMemory,
    /// So many are done, but answered with an error.
    answers_to_lose: AtomicU32,
    /// So many are done and then done again by the client, which hears that the entry is there already.
    answers_to_repeat: AtomicU32,
    /// So many are not done.
    requests_to_lose: AtomicU32,
}

fn take(count: &AtomicU32) -> bool {
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

fn broken() -> object_store::Error {
    object_store::Error::Generic { store: "faulty", source: "connection reset".into() }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let is_commit = matches!(options.mode, PutMode::Create) && location.as_ref().contains("_delta_log");
        if !is_commit {
            return self.store.put_opts(location, payload, options).await;
        }
        if take(&self.requests_to_lose) {
            return Err(broken());
        }
        let done = self.store.put_opts(location, payload, options).await?;
        if take(&self.answers_to_lose) {
            return Err(broken());
        }
        if take(&self.answers_to_repeat) {
            let path = location.to_string();
            return Err(object_store::Error::AlreadyExists { path, source: "repeated by the client".into() });
        }
        Ok(done)
    }

    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.store.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}

async fn faulty_lake() -> (Arc<Faulty>, Lake) {
    let store = Arc::new(Faulty::default());
    let url = Url::parse("memory:///lake/").expect("valid URL");
    let lake = Lake::open_on(store.clone(), &url, Arc::new(SystemClock)).await.expect("opens");
    lake.table(&name()).ensure(&spec()).await.expect("made");
    (store, lake)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_not_a_failure() {
    let (store, lake) = faulty_lake().await;
    let table = lake.table(&name());
    for fault in [&store.answers_to_lose, &store.answers_to_repeat] {
        let ledger = table.ledger(&["a".to_owned()]).await.expect("read");
        let first = ledger.entries.get("a").copied().unwrap_or(0);
        let commit = commit_of(&table, first..first + 3, "a", first + 3).await;
        fault.store(1, Ordering::SeqCst);
        let outcome = table.append(ledger.version, commit).await.expect("answered");
        assert_eq!(outcome, Outcome::Committed(ledger.version + 1));
    }
    assert_eq!(ids(&lake, &table).await, (0..6).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_request_is_repeated_and_then_an_error() {
    let (store, lake) = faulty_lake().await;
    let table = lake.table(&name());
    store.requests_to_lose.store(2, Ordering::SeqCst);
    let commit = commit_of(&table, 0..3, "a", 3).await;
    assert_eq!(table.append(0, commit).await.expect("answered"), Outcome::Committed(1));

    store.requests_to_lose.store(u32::MAX, Ordering::SeqCst);
    let commit = commit_of(&table, 3..6, "a", 6).await;
    let error = table.append(1, commit).await.expect_err("the store never takes it");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    store.requests_to_lose.store(0, Ordering::SeqCst);
    assert_eq!(ids(&lake, &table).await, (0..3).collect::<Vec<_>>());
}
