//! The store as one life of a process sees it: requests get lost, answers get lost, some take long, some arrive long after
//! anybody waits for them, reads break off, and at one of its steps the process dies.
//!
//! A plain PUT is atomic in every object store, so there is none that is half done: what is half done here are a read that
//! breaks off, a request that nobody knows the end of, and everything that takes more than one request.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _, TryFutureExt as _, TryStreamExt as _};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio_util::sync::CancellationToken;

use super::random::{Random, number_of};
use super::time::{Doing, Time, slot};

/// A request that arrives so much later at most. In milliseconds.
const LATE_MAX: u64 = 5_000;

/// In the trace stands this where a request was made on a thread of the Delta kernel, at any moment of its millisecond.
pub(crate) const BESIDE: &str = "beside all steps";

/// What everybody sees in the end.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    pub(crate) contents: Arc<InMemory>,
    /// Writes whose sender no longer waits for them.
    late: Mutex<Vec<(u64, Write)>>,
}

/// A write on its way.
#[derive(Debug)]
struct Write {
    location: Path,
    payload: PutPayload,
    options: PutOptions,
}

impl Bucket {
    /// Whether no write is on its way any more.
    pub(crate) fn is_quiet(&self) -> bool {
        self.late.lock().expect("no holder of this lock panics").is_empty()
    }

    /// Lets the late writes arrive that are due.
    pub(crate) fn land(&self, time: &Time) {
        let now = time.now();
        let due = {
            let mut late = self.late.lock().expect("no holder of this lock panics");
            let (due, rest): (Vec<_>, Vec<_>) = late.drain(..).partition(|(at, _)| *at <= now);
            *late = rest;
            due
        };
        for (_, write) in due {
            let Write { location, payload, options } = write;
            let landed = self.contents.put_opts(&location, payload, options).now_or_never();
            let landed = landed.expect("memory answers at once").is_ok();
            let (path, done) = (plain(location.as_ref()), if landed { "done" } else { "refused" });
            time.note("store", || format!("late write of {path}: {done}"));
        }
    }
}

/// How much goes wrong, in so many requests of a thousand.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// Fail, and nothing is done.
    pub(crate) requests_lost: u64,
    /// Are done, and answered with an error.
    pub(crate) answers_lost: u64,
    /// Fail, and are done later.
    pub(crate) requests_late: u64,
    /// Creations that are done, and answered with "is there already".
    pub(crate) creations_repeated: u64,
    /// Reads that break off in the middle.
    pub(crate) reads_torn: u64,
    /// Take up to ten seconds.
    pub(crate) slow: u64,
    pub(crate) outages: Vec<Outage>,
}

/// A time in which no request is answered, and half of the writes are done.
#[derive(Debug, Clone)]
pub(crate) struct Outage {
    /// In milliseconds of the history.
    pub(crate) during: Range<u64>,
    /// Whether all of the store is away, or only the logs of the tables: stores throttle by prefix.
    pub(crate) whole: bool,
}

/// The step at which a process dies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Death {
    /// The number of the request.
    pub(crate) step: u64,
    pub(crate) how: Dying,
}

/// What becomes of the request at which a process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dying {
    /// It was never sent.
    Before,
    /// It was done, and the process did not hear of it.
    After,
    /// A write arrives when the process is long dead.
    InBetween,
}

impl Dying {
    pub(crate) const ALL: [Self; 3] = [Self::Before, Self::After, Self::InBetween];
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    RequestLost,
    RequestLate,
    AnswerLost,
    Repeated,
    Torn,
}

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Get,
    List,
    Put,
    Create,
    Other,
}

impl Kind {
    fn writes(self) -> bool {
        matches!(self, Self::Put | Self::Create)
    }
}

/// One process from its start to its end.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) time: Arc<Time>,
    pub(crate) seed: u64,
    /// Which of the processes.
    pub(crate) member: u64,
    /// How often that one was started before.
    pub(crate) number: u64,
    pub(crate) faults: Faults,
    pub(crate) death: Option<Death>,
    /// Cancelled when it dies.
    pub(crate) dead: CancellationToken,
    steps: AtomicU64,
    /// How often each thing was asked for.
    tries: Mutex<HashMap<(Kind, String), u64>>,
}

/// One request of a life.
struct Step {
    /// None on a thread of the Delta kernel.
    number: Option<u64>,
    fate: Fate,
    /// How long it takes to arrive.
    there: u64,
    /// How long the answer takes.
    back: u64,
    /// When it arrives if nobody waits any more; never, if there is none.
    lands_at: Option<u64>,
    dying: Option<Dying>,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            Some(number) => write!(f, "step {number}"),
            None => f.write_str(BESIDE),
        }
    }
}

impl Life {
    pub(crate) fn new(
        time: Arc<Time>,
        seed: u64,
        (member, number): (u64, u64),
        faults: Faults,
        death: Option<Death>,
    ) -> Self {
        Self {
            time,
            seed,
            member,
            number,
            faults,
            death,
            dead: CancellationToken::new(),
            steps: AtomicU64::new(0),
            tries: Mutex::default(),
        }
    }

    /// `a.0`, `a.1`, …; `b.0`, …
    pub(crate) fn name(&self) -> String {
        format!("{}.{}", char::from(b'a' + self.member as u8), self.number)
    }

    /// So many requests it has made.
    pub(crate) fn steps(&self) -> u64 {
        self.steps.load(Ordering::Acquire)
    }

    /// Randomness of this life alone.
    pub(crate) fn random(&self, about: &str, numbers: &[u64]) -> Random {
        let numbers: Vec<u64> = [self.member, self.number].into_iter().chain(numbers.iter().copied()).collect();
        Random::about(self.seed, about, &numbers)
    }

    fn step(&self, kind: Kind, path: &str) -> Step {
        let path = plain(path);
        let path = path.as_str();
        // What goes on beside the history's own thread is not counted: it would depend on the machine which of two was first.
        let number = self.time.may_wait().then(|| self.steps.fetch_add(1, Ordering::AcqRel));
        let tried = {
            let mut tries = self.tries.lock().expect("no holder of this lock panics");
            let tried = tries.entry((kind, path.to_owned())).or_default();
            *tried += 1;
            *tried
        };
        let mut random = self.random("step", &[kind as u64, number_of(path), tried]);
        let dying = self.death.filter(|death| number == Some(death.step)).map(|death| death.how);
        let now = self.time.now();
        let late = |random: &mut Random| Some(now + random.within(1..=LATE_MAX));
        let mut step = Step {
            number,
            fate: Fate::Done,
            there: random.within(1..=12),
            back: random.within(0..=12),
            lands_at: random.happens(500).then(|| now + random.within(1..=LATE_MAX)),
            dying,
        };
        if dying == Some(Dying::InBetween) {
            step.lands_at = late(&mut random);
        }
        if self.time.is_calm() {
            return step;
        }
        if random.happens(self.faults.slow) {
            step.there += random.within(100..=10_000);
        }
        step.fate = self.fate(kind, path, now, &mut random);
        if step.fate == Fate::RequestLate {
            step.lands_at = late(&mut random);
        }
        step
    }

    fn fate(&self, kind: Kind, path: &str, now: u64, random: &mut Random) -> Fate {
        let faults = &self.faults;
        let is_away = |outage: &Outage| outage.during.contains(&now) && (outage.whole || path.contains("_delta_log"));
        if faults.outages.iter().any(is_away) {
            return if kind.writes() && random.happens(500) { Fate::AnswerLost } else { Fate::RequestLost };
        }
        let fates = [
            (faults.requests_lost, Fate::RequestLost, true),
            (faults.answers_lost, Fate::AnswerLost, kind.writes()),
            (faults.requests_late, Fate::RequestLate, kind.writes()),
            (faults.creations_repeated, Fate::Repeated, kind == Kind::Create),
            (faults.reads_torn, Fate::Torn, kind == Kind::Get),
        ];
        let met = fates.into_iter().find(|(rate, _, applies)| *applies && random.happens(*rate));
        met.map_or(Fate::Done, |(_, fate, _)| fate)
    }

    /// Waits, where the caller can. The Delta kernel reads on threads of its own, for which time stands still.
    async fn wait(&self, delay: u64) {
        if self.time.may_wait() {
            self.time.turn(slot(self.member, Doing::Storing), delay).await;
        }
    }

    /// The end of this process: its task is broken off while it waits here.
    async fn die(&self, step: &Step) -> object_store::Error {
        self.time.note(&self.name(), || format!("dies at {step} ({:?})", step.dying));
        self.dead.cancel();
        self.stay_dead().await
    }

    async fn stay_dead(&self) -> object_store::Error {
        if self.time.may_wait() {
            std::future::pending::<()>().await;
        }
        broken("the process is dead")
    }
}

/// A path without the id of its file: what happens to a request must not hang on which of two threads was given an id first.
fn plain(path: &str) -> String {
    match path.rsplit_once("/part-") {
        Some((folder, _)) => format!("{folder}/part"),
        None => path.to_owned(),
    }
}

fn broken(what: &'static str) -> object_store::Error {
    object_store::Error::Generic { store: "simulation", source: what.into() }
}

/// The bucket as one life reaches it.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) bucket: Arc<Bucket>,
    pub(crate) life: Arc<Life>,
}

/// A write that arrives late, or never, if nobody waits for it any more.
struct Sent<'a> {
    access: &'a Access,
    write: Option<Write>,
    lands_at: Option<u64>,
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        if let (Some(write), Some(lands_at)) = (self.write.take(), self.lands_at) {
            self.access.bucket.late.lock().expect("no holder of this lock panics").push((lands_at, write));
        }
    }
}

impl Access {
    /// A request that changes nothing, up to the point where it is done.
    async fn ask(&self, kind: Kind, path: &str) -> Result<Step> {
        if self.life.dead.is_cancelled() {
            return Err(self.life.stay_dead().await);
        }
        let step = self.life.step(kind, path);
        self.life.wait(step.there).await;
        if step.dying.is_some() {
            return Err(self.life.die(&step).await);
        }
        if step.fate == Fate::RequestLost {
            return Err(broken("connection reset"));
        }
        Ok(step)
    }

    async fn write(&self, kind: Kind, write: Write) -> Result<PutResult> {
        let life = self.life.as_ref();
        if life.dead.is_cancelled() {
            return Err(life.stay_dead().await);
        }
        let path = plain(write.location.as_ref());
        let step = life.step(kind, &path);
        let mut sent = Sent { access: self, write: Some(write), lands_at: step.lands_at };
        life.wait(step.there).await;
        if step.dying == Some(Dying::Before) || step.dying.is_none() && step.fate == Fate::RequestLost {
            sent.lands_at = None;
        }
        if matches!(step.dying, Some(Dying::Before | Dying::InBetween)) {
            drop(sent);
            return Err(life.die(&step).await);
        }
        if step.dying.is_none() && matches!(step.fate, Fate::RequestLost | Fate::RequestLate) {
            life.time.note(&life.name(), || format!("{step} writes {path}: {:?}", step.fate));
            return Err(broken("connection reset"));
        }
        let Write { location, payload, options } = sent.write.take().expect("it was just put there");
        let done = self.bucket.contents.put_opts(&location, payload, options).await;
        life.time.note(&life.name(), || {
            let done = if done.is_ok() { "done" } else { "refused" };
            format!("{step} writes {path}: {done}, {:?}", step.fate)
        });
        if step.dying.is_some() {
            return Err(life.die(&step).await);
        }
        life.wait(step.back).await;
        match (step.fate, done) {
            (Fate::AnswerLost, _) => Err(broken("connection reset")),
            (Fate::Repeated, Ok(_)) => {
                Err(object_store::Error::AlreadyExists { path, source: "repeated by the client".into() })
            }
            (_, done) => done,
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "simulation for {}", self.life.name())
    }
}

#[async_trait]
impl ObjectStore for Access {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let kind = if matches!(options.mode, PutMode::Create) { Kind::Create } else { Kind::Put };
        self.write(kind, Write { location: location.clone(), payload, options }).await
    }

    /// Nothing that ingest writes is so large. If this is ever called, the simulation has to learn what half an upload is.
    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(object_store::Error::NotImplemented {
            operation: "uploads in parts".into(),
            implementer: "simulation".into(),
        })
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let step = self.ask(Kind::Get, location.as_ref()).await?;
        let mut found = self.bucket.contents.get_opts(location, options).await?;
        if step.fate == Fate::Torn {
            let whole = found.range.clone();
            let GetResult { payload, meta, range, attributes } = found;
            let GetResultPayload::Stream(bytes) = payload else {
                return Err(broken("connection reset"));
            };
            let half = ((whole.end - whole.start) / 2) as usize;
            let torn = bytes.map_ok(move |bytes| bytes.slice(..half.min(bytes.len())));
            let torn = torn.chain(futures::stream::once(async { Err(broken("connection reset")) }));
            found = GetResult { payload: GetResultPayload::Stream(torn.boxed()), meta, range, attributes };
        }
        Ok(found)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let access = self.clone();
        let asked = locations.and_then(move |path| {
            let access = access.clone();
            async move { access.ask(Kind::Other, path.as_ref()).await.map(|_| path) }
        });
        self.bucket.contents.delete_stream(asked.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (access, prefix) = (self.clone(), prefix.cloned());
        let listing = async move {
            let path = prefix.as_ref().map_or("", Path::as_ref);
            access.ask(Kind::List, path).await?;
            Ok::<_, object_store::Error>(access.bucket.contents.list(prefix.as_ref()))
        };
        listing.try_flatten_stream().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.ask(Kind::List, prefix.map_or("", Path::as_ref)).await?;
        self.bucket.contents.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.ask(Kind::Other, to.as_ref()).await?;
        self.bucket.contents.copy_opts(from, to, options).await
    }
}
