//! The store as one process sees it: requests get lost, answers get lost, others come in between, and time passes.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use lakehouse::{Clock as _, ManualClock};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64, about: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0xff51_afd7_ed55_8ccd) ^ about);
        random.next();
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Whether what happens so many times in a thousand happens now.
    pub(crate) fn happens(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

/// What all processes share: what is stored, and the time.
#[derive(Debug)]
pub(crate) struct Bucket {
    contents: InMemory,
    pub(crate) clock: Arc<ManualClock>,
    /// When each object was written, by the store's clock.
    written: Mutex<HashMap<Path, DateTime<Utc>>>,
}

impl Bucket {
    pub(crate) fn new() -> Self {
        let clock = Arc::new(ManualClock::new(DateTime::from_timestamp(1_800_000_000, 0).expect("a time")));
        Self { contents: InMemory::new(), clock, written: Mutex::default() }
    }

    fn date(&self, mut object: ObjectMeta) -> ObjectMeta {
        let written = self.written.lock().expect("no holder of this lock panics");
        object.last_modified = written.get(&object.location).copied().unwrap_or(object.last_modified);
        object
    }
}

/// One process's way to the store.
#[derive(Debug)]
pub(crate) struct Way {
    bucket: Arc<Bucket>,
    random: Mutex<Random>,
    /// So many requests of a thousand fail, one way or the other.
    faults: u64,
    /// Folders that are not shown.
    pub(crate) blind_for: Option<&'static str>,
    /// Whether a creation takes the place of what is there.
    pub(crate) overwrites: bool,
}

enum Fate {
    Done,
    RequestLost,
    AnswerLost,
    Repeated,
}

fn lost() -> object_store::Error {
    object_store::Error::Generic { store: "simulated", source: "connection reset".into() }
}

impl Way {
    pub(crate) fn new(bucket: &Arc<Bucket>, random: Random, faults: u64) -> Self {
        let random = Mutex::new(random);
        Self { bucket: bucket.clone(), random, faults, blind_for: None, overwrites: false }
    }

    fn random(&self) -> MutexGuard<'_, Random> {
        self.random.lock().expect("no holder of this lock panics")
    }

    /// Others come first; then the request is decided upon.
    async fn fate(&self) -> Fate {
        let (others, passes, fate) = {
            let mut random = self.random();
            let fate = match random.happens(self.faults).then(|| random.below(3)) {
                None => Fate::Done,
                Some(0) => Fate::RequestLost,
                Some(1) => Fate::AnswerLost,
                Some(_) => Fate::Repeated,
            };
            (random.below(3), random.below(4_000), fate)
        };
        for _ in 0..others {
            tokio::task::yield_now().await;
        }
        self.bucket.clock.advance(TimeDelta::milliseconds(passes as i64));
        fate
    }

    fn hides(&self, location: &Path) -> bool {
        self.blind_for.is_some_and(|folder| location.as_ref().contains(folder))
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated")
    }
}

#[async_trait]
impl ObjectStore for Way {
    async fn put_opts(&self, location: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        let fate = self.fate().await;
        if matches!(fate, Fate::RequestLost) {
            return Err(lost());
        }
        let creates = options.mode == PutMode::Create;
        if creates && self.overwrites {
            options.mode = PutMode::Overwrite;
        }
        let done = self.bucket.contents.put_opts(location, payload, options).await?;
        let now = self.bucket.clock.now();
        self.bucket.written.lock().expect("no holder of this lock panics").insert(location.clone(), now);
        match fate {
            Fate::AnswerLost => Err(lost()),
            Fate::Repeated if creates => Err(object_store::Error::AlreadyExists {
                path: location.to_string(),
                source: "repeated by the client".into(),
            }),
            _ => Ok(done),
        }
    }

    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.bucket.contents.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if matches!(self.fate().await, Fate::RequestLost | Fate::AnswerLost) {
            return Err(lost());
        }
        if self.hides(location) {
            return Err(object_store::Error::NotFound { path: location.to_string(), source: "hidden".into() });
        }
        let mut found = self.bucket.contents.get_opts(location, options).await?;
        found.meta = self.bucket.date(found.meta);
        Ok(found)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        // One at a time, at once: what a process deletes in the middle of something has to be the rest of it later.
        let is_lost = {
            let mut random = self.random();
            let faults = self.faults;
            random.happens(faults)
        };
        if is_lost {
            return futures::stream::once(async { Err(lost()) }).boxed();
        }
        self.bucket.contents.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (bucket, hidden) = (self.bucket.clone(), self.blind_for);
        let is_lost = self.random().happens(self.faults);
        if is_lost {
            return futures::stream::once(async { Err(lost()) }).boxed();
        }
        let shown = move |object: &ObjectMeta| hidden.is_none_or(|folder| !object.location.as_ref().contains(folder));
        let listed = self.bucket.contents.list(prefix);
        listed
            .map_ok(move |object| bucket.date(object))
            .try_filter(move |object| std::future::ready(shown(object)))
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        if matches!(self.fate().await, Fate::RequestLost | Fate::AnswerLost) {
            return Err(lost());
        }
        self.bucket.contents.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.bucket.contents.copy_opts(from, to, options).await
    }
}
