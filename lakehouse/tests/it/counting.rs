//! A store that counts what is asked of it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

/// How much was asked of a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    pub(crate) gets: u64,
    pub(crate) puts: u64,
    /// The bytes of those.
    pub(crate) put_bytes: u64,
    pub(crate) lists: u64,
}

impl Requests {
    /// What was asked since then.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            gets: self.gets - before.gets,
            puts: self.puts - before.puts,
            put_bytes: self.put_bytes - before.put_bytes,
            lists: self.lists - before.lists,
        }
    }
}

/// Another store, and what was asked of it.
#[derive(Debug)]
pub(crate) struct Counting {
    store: Arc<dyn ObjectStore>,
    gets: AtomicU64,
    puts: AtomicU64,
    put_bytes: AtomicU64,
    lists: AtomicU64,
}

impl Counting {
    pub(crate) fn over(store: Arc<dyn ObjectStore>) -> Arc<Self> {
        let none = AtomicU64::default;
        Arc::new(Self { store, gets: none(), puts: none(), put_bytes: none(), lists: none() })
    }

    pub(crate) fn requests(&self) -> Requests {
        let [gets, puts, put_bytes, lists] =
            [&self.gets, &self.puts, &self.put_bytes, &self.lists].map(|count| count.load(Ordering::Acquire));
        Requests { gets, puts, put_bytes, lists }
    }
}

impl fmt::Display for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, counted", self.store)
    }
}

#[async_trait]
impl ObjectStore for Counting {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.puts.fetch_add(1, Ordering::AcqRel);
        self.put_bytes.fetch_add(payload.content_length() as u64, Ordering::AcqRel);
        self.store.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.puts.fetch_add(1, Ordering::AcqRel);
        self.store.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.gets.fetch_add(1, Ordering::AcqRel);
        self.store.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.lists.fetch_add(1, Ordering::AcqRel);
        self.store.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.lists.fetch_add(1, Ordering::AcqRel);
        self.store.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.lists.fetch_add(1, Ordering::AcqRel);
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}
