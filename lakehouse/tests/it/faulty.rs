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
    /// So many reads of log entries are lost.
    lost_entries: AtomicU32,
    /// From the so manieth read of a data file on, all are lost; 0 is none.
    lost_read: AtomicU32,
}

fn take(count: &AtomicU32) -> bool {
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

impl Faulty {
    fn loses_read(&self) -> bool {
        let left = self.lost_read.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| (left > 1).then(|| left - 1));
        left == Err(1)
    }
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

async fn open_on(store: Arc<Faulty>) -> Lake {
    let url = Url::parse("memory:///lake/").expect("valid URL");
    Lake::open_on(store, &url, Arc::new(SystemClock)).await.expect("opens")
}

async fn faulty_lake() -> (Arc<Faulty>, Lake) {
    let store = Arc::new(Faulty::default());
    let lake = open_on(store.clone()).await;
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

/// A lake that held its own sessions, which hold the lake, once kept all that was known of it for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_is_closed_lets_go_of_its_store() {
    let (store, lake) = faulty_lake().await;
    let table = lake.table(&name());
    let commit = commit_of(&table, 0..3, "a", 3).await;
    table.append(0, commit).await.expect("committed");
    assert_eq!(ids(&lake, &table).await, [0, 1, 2]);
    drop((lake, table));
    assert_eq!(Arc::strong_count(&store), 1);
}

/// Whether the entry that stands there is ours cannot be told while nothing can be read: that is a store to wait for.
#[tokio::test(flavor = "multi_thread")]
async fn a_rival_that_cannot_be_read_is_a_store_that_is_away() {
    let (store, lake) = faulty_lake().await;
    let table = lake.table(&name());
    let commit = commit_of(&table, 0..3, "a", 3).await;
    store.answers_to_repeat.store(1, Ordering::SeqCst);
    store.lost_entries.store(u32::MAX, Ordering::SeqCst);
    let error = table.append(0, commit).await.expect_err("nobody knows");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    store.lost_entries.store(0, Ordering::SeqCst);
    assert_eq!(ids(&lake, &table).await, (0..3).collect::<Vec<_>>());
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

/// A store that went away while a footer was read was once taken for a damaged file, and ended the process that should have
/// waited.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_goes_away_while_rows_are_read_is_no_damaged_file() {
    let (store, lake) = faulty_lake().await;
    let table = lake.table(&name());
    let commit = commit_of(&table, 0..3, "a", 3).await;
    table.append(0, commit).await.expect("answered");
    for read in 1.. {
        store.lost_read.store(read, Ordering::SeqCst);
        // Another process: nothing is cached.
        let lake = open_on(store.clone()).await;
        let head = lake.table(&name()).head().await.expect("the log is there");
        let rows = lake.session_factory().context().read_table(head.provider()).expect("planned");
        let Err(error) = rows.collect().await else {
            assert!(read > 2, "the footer and the rows are not {} reads", read - 1);
            break;
        };
        let error = lakehouse::Error::query("cannot read it", error);
        assert_eq!(error.kind(), ErrorKind::Unavailable, "read {read}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_cannot_be_read_for_the_moment_is_no_damage() {
    let (store, lake) = faulty_lake().await;
    let table = lake.table(&name());
    for version in 0..100 {
        let commit = commit_of(&table, version..version + 1, "a", version).await;
        assert_eq!(
            table.append(version as u64, commit).await.expect("committed"),
            Outcome::Committed(version as u64 + 1)
        );
    }
    lake.settle().await;
    let mut lost = 0;
    loop {
        store.lost_read.store(lost + 1, Ordering::SeqCst);
        match open_on(store.clone()).await.table(&name()).head().await {
            Ok(head) => break assert_eq!(head.version, 100),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
        }
        lost += 1;
    }
    assert!(lost > 0, "it is read at all");
}
