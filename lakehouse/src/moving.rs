//! Moving a lake: all that it is at one moment is copied to another place, on a disk or in a bucket. The copy is a lake like
//! the first one, ledgers included, and so it is a backup too.
//!
//! ```text
//!  pin ─► survey the logs ─► data files ─► logs: letters, bronze, silver, …, publications ─► mark of the lake
//! ```
//!
//! Others may write meanwhile. What is copied is fixed first, readers before what they read: publications, models, bronze,
//! letters. So nothing in the copy names what came later. Data files go before any log, since no log may name what is not there;
//! those of tables that models rewrite go first, since cleaning takes them first.
//!
//! A place that was empty bears a mark until all is there, and is no lake before. Each step passes over what is there already: a
//! copy that was broken off goes on where it was, and a copy of last week becomes one of today.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::buffered::BufWriter;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{GetResult, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use url::Url;

use crate::archive;
use crate::error::{Error, ErrorKind, Result};
use crate::file::{DataFile, location};
use crate::format;
use crate::lake::Lake;
use crate::name::TableName;
use crate::publication::Publication;
use crate::session::is_read_at_head;
use crate::storage::{self, Refusal, Storage, StorageOptions};
use crate::table::Table;
use crate::version::TableVersion;

/// So many objects are copied at once.
const OBJECTS_AT_ONCE: usize = 8;
/// A large one goes in parts of this size, and so many of them at once.
const BUFFER_BYTES: usize = 8 << 20;
const PARTS_AT_ONCE: usize = 2;
/// So often the heads of all models are looked at until none of them moved in between.
const LOOKS_MAX: u32 = 200;
/// The folder of a table's log.
const LOG_FOLDER: &str = "_delta_log";
/// The object of a log that names its newest checkpoint.
const LAST_CHECKPOINT: &str = "_last_checkpoint";

/// Where a lake is copied to. Nothing is made there before the copy begins.
#[derive(Debug)]
pub struct Destination {
    storage: Storage,
    /// The store with the lake as its root.
    store: Arc<dyn ObjectStore>,
}

/// What a copy takes.
#[derive(Debug, Clone, Serialize)]
pub struct CopyPlan {
    /// The lake that is copied.
    pub from: Url,
    /// Where to.
    pub to: Url,
    /// The tables, in the order in which their logs are copied.
    pub tables: Vec<TableCopy>,
    /// Whether the place bears the mark of a copy that is under way, or will.
    #[serde(skip)]
    is_new: bool,
}

/// What of a table is copied.
#[derive(Debug, Clone, Serialize)]
pub struct TableCopy {
    /// The table.
    pub table: TableName,
    /// The newest version in the copy.
    pub version: u64,
    /// Objects to be copied: data files and those of the log.
    pub files: u64,
    /// Their size.
    pub bytes: u64,
    /// Objects that are there already.
    pub there: u64,
    #[serde(skip)]
    data: Vec<Job>,
    /// In this order, step by step.
    #[serde(skip)]
    log: Vec<Vec<Job>>,
}

/// How far a copy has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyProgress {
    /// Objects that were copied.
    pub files: u64,
    /// Their size.
    pub bytes: u64,
}

/// One object that is to be copied. Its path is that from the lake on.
#[derive(Debug, Clone)]
struct Job {
    path: Path,
    size: u64,
    checksum: Option<u32>,
    kind: JobKind,
}

#[derive(Debug, Clone)]
enum JobKind {
    /// Has a name of its own, so that nobody else writes it.
    File,
    /// A log entry: whoever finds another one in its place has to stop.
    Entry,
    /// The name of the newest checkpoint, as it was when the version was fixed.
    Hint(Bytes),
}

impl CopyPlan {
    /// Whether all of it is there already.
    pub fn is_nothing(&self) -> bool {
        !self.is_new && self.total().files == 0
    }

    /// What there is to copy in all.
    pub fn total(&self) -> CopyProgress {
        let sum = |of: fn(&TableCopy) -> u64| self.tables.iter().map(of).sum();
        CopyProgress { files: sum(|table| table.files), bytes: sum(|table| table.bytes) }
    }
}

impl Destination {
    /// A place in the store that `url` names.
    ///
    /// # Errors
    /// `BadConfig` for a URL that no store is reached by.
    pub fn at(url: &Url, options: &StorageOptions) -> Result<Self> {
        Ok(Self::of(storage::reach(url, options)?))
    }

    /// A place in a store of the caller's. The store's root is that of `url`.
    pub fn on(store: Arc<dyn ObjectStore>, url: &Url) -> Result<Self> {
        Ok(Self::of(Storage::of(store, url)?))
    }

    fn of(storage: Storage) -> Self {
        let store = Arc::new(PrefixStore::new(storage.root.clone(), storage.prefix.clone()));
        Self { storage, store }
    }

    /// What lies there, by path. A bucket that is not there yet is empty.
    async fn list(&self, folder: Option<&Path>) -> Result<BTreeMap<Path, u64>> {
        let listed = self.store.list(folder).map_ok(|object| (object.location, object.size)).try_collect().await;
        let is_no_bucket = |error: &object_store::Error| {
            Refusal::find(&error.to_string()).is_some_and(|refusal| refusal.is_no_bucket())
        };
        match listed {
            Err(error) if is_no_bucket(&error) => Ok(BTreeMap::new()),
            listed => listed.map_err(|source| Error::store(format!("cannot look into {}", self.storage.url), source)),
        }
    }
}

impl Lake {
    /// Finds out what it takes to copy this lake, or only some tables of it, to another place. Nothing is changed.
    ///
    /// # Errors
    /// `BadConfig` if something else lies there: another lake, or a copy of this one that has gone its own way since.
    pub async fn plan_copy(&self, to: &Destination, only: &[TableName]) -> Result<CopyPlan> {
        check_apart(self.url(), &to.storage.url)?;
        let mut is_new = match format::look(&to.storage, to.store.as_ref()).await? {
            None => true,
            Some(mark) => mark.is_copy_of(self.url(), &to.storage.url)?,
        };
        let names = self.named(only).await?;
        let folders: Vec<Option<Path>> = match only {
            [] => vec![None],
            _ => names.iter().map(|name| Some(Path::from(name.folder()))).collect(),
        };
        let mut there = BTreeMap::new();
        for folder in &folders {
            there.extend(to.list(folder.as_ref()).await?);
        }
        let found = tables_in(&there);
        self.check_known(&found, &to.storage.url).await?;
        // A lake without a table is an empty place.
        is_new |= only.is_empty() && found.is_empty();
        let mut tables = Vec::new();
        for survey in self.survey(names).await? {
            check_same(self, to, &survey.head, &there).await?;
            tables.push((rank(&survey), plan_table(self, &survey, &there, is_new).await?));
        }
        tables.sort_by_key(|(rank, copy)| (*rank, copy.table.clone()));
        let tables = tables.into_iter().map(|(_, copy)| copy).collect();
        Ok(CopyPlan { from: self.url().clone(), to: to.storage.url.clone(), tables, is_new })
    }

    /// Does it. `progress` is told after each object.
    ///
    /// # Errors
    /// Those of both stores, and `BadData` for a file that is not what was written. What was copied before stays, and is passed
    /// over by the next copy.
    pub async fn copy(&self, plan: CopyPlan, to: &Destination, mut progress: impl FnMut(CopyProgress)) -> Result<()> {
        if plan.is_new {
            format::begin_copy(&to.storage, to.store.as_ref(), self.url()).await?;
        }
        let mut done = CopyProgress::default();
        let mut copied = |bytes: u64| {
            done = CopyProgress { files: done.files + 1, bytes: done.bytes + bytes };
            progress(done);
        };
        // Cleaning takes files of models soon, those of bronze late.
        let (bronze, models): (Vec<_>, Vec<_>) = plan.tables.iter().partition(|copy| copy.table.schema == "bronze");
        let data: Vec<&Job> = models.into_iter().chain(bronze).flat_map(|copy| &copy.data).collect();
        self.copy_all(to, &data, &mut copied).await?;
        for step in plan.tables.iter().flat_map(|copy| &copy.log) {
            self.copy_all(to, &step.iter().collect::<Vec<_>>(), &mut copied).await?;
        }
        if plan.is_new { format::end_copy(self.store().as_ref(), to.store.as_ref(), self.url()).await } else { Ok(()) }
    }

    async fn copy_all(&self, to: &Destination, jobs: &[&Job], copied: &mut impl FnMut(u64)) -> Result<()> {
        let copies = jobs.iter().map(|job| copy_one(self.store().clone(), to.store.clone(), (*job).clone()));
        let copies: Vec<_> = copies.collect();
        let mut copies = futures::stream::iter(copies).buffer_unordered(OBJECTS_AT_ONCE);
        while let Some(bytes) = copies.try_next().await? {
            copied(bytes);
        }
        Ok(())
    }

    /// The tables that are meant.
    async fn named(&self, only: &[TableName]) -> Result<Vec<TableName>> {
        let mut names = self.tables().await?;
        if let Some(missing) = only.iter().find(|name| !names.contains(name)) {
            let message = format!("there is no table {missing} in the lake at {}", self.url());
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        names.retain(|name| only.is_empty() || only.contains(name));
        Ok(names)
    }

    /// Tables of which this lake knows nothing make the place another lake.
    async fn check_known(&self, found: &BTreeSet<TableName>, url: &Url) -> Result<()> {
        for name in found {
            if !self.table(name).exists().await? {
                let message = format!(
                    "{url} holds the table {name}, which the lake at {} has not: it is another lake; choose an empty place",
                    self.url()
                );
                return Err(Error::new(ErrorKind::BadConfig, message));
            }
        }
        Ok(())
    }

    /// Fixes a version of each table, readers before what they read, and finds the files that it takes.
    async fn survey(&self, names: Vec<TableName>) -> Result<Vec<Survey>> {
        let of_publications = TableName::new("system", "publications");
        let mut surveys = Vec::new();
        // Files that publications need are copied with a single table too.
        let publications = match self.table(&of_publications).head().await {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            head => {
                let head = head?;
                let publications = self.publications_at(&head).await?;
                if names.contains(&of_publications) {
                    surveys.push(Survey::of(self, head, &[]).await?);
                }
                publications
            }
        };
        let others = names.into_iter().filter(|name| *name != of_publications);
        let (at_heads, models): (Vec<_>, Vec<_>) = others.partition(|name| is_read_at_head(&name.schema));
        for head in self.heads_at_once(&models).await? {
            surveys.push(Survey::of(self, head, &publications).await?);
        }
        let mut letters = Vec::new();
        for name in at_heads {
            let survey = Survey::of(self, self.table(&name).head().await?, &publications).await?;
            if survey.is_accounted {
                surveys.push(survey);
            } else {
                letters.push(name);
            }
        }
        // Letters are committed before the rows that count them: theirs has to be a later version.
        for name in letters {
            surveys.push(Survey::of(self, self.table(&name).head().await?, &publications).await?);
        }
        Ok(surveys)
    }

    /// The newest versions of these tables at one and the same moment: what each was when looked at twice, with no look of the
    /// second round before the last of the first.
    async fn heads_at_once(&self, names: &[TableName]) -> Result<Vec<Arc<TableVersion>>> {
        for _ in 0..LOOKS_MAX {
            let looks = names.iter().map(|name| async { self.table(name).head().await }).collect::<Vec<_>>();
            let heads: Vec<_> = futures::stream::iter(looks).buffered(OBJECTS_AT_ONCE).try_collect().await?;
            let looks = names.iter().map(|name| async { self.table(name).newest_version().await }).collect::<Vec<_>>();
            let again: Vec<u64> = futures::stream::iter(looks).buffered(OBJECTS_AT_ONCE).try_collect().await?;
            if heads.iter().map(|head| head.version).eq(again) {
                return Ok(heads);
            }
        }
        let message =
            format!("the tables of models never stood still in {LOOKS_MAX} looks: try again with fewer builds");
        Err(Error::new(ErrorKind::Conflict, message))
    }
}

/// A table at a version that is fixed, and what of it is copied.
struct Survey {
    head: Arc<TableVersion>,
    files: BTreeMap<String, Arc<DataFile>>,
    /// Whether commits of ingest account for its rows.
    is_accounted: bool,
}

impl Survey {
    /// Reads the log up to `head` for the files of this version and of those that publications name.
    async fn of(lake: &Lake, head: Arc<TableVersion>, publications: &[Publication]) -> Result<Self> {
        let pins = publications.iter().filter_map(|publication| publication.tables.get(&head.name));
        let pins = pins.filter(|pin| pin.table_id == head.table_id && pin.version < head.version);
        let wanted: BTreeSet<u64> = pins.map(|pin| pin.version).collect();
        let table = lake.table(&head.name);
        let mut survey = Self { head, files: BTreeMap::new(), is_accounted: false };
        survey.files.extend(survey.head.files.iter().map(|file| (file.path.clone(), file.clone())));
        let mut live: BTreeMap<String, Arc<DataFile>> = BTreeMap::new();
        let mut entries = table.inner.entries(0..=survey.head.version);
        while let Some(entry) = entries.try_next().await? {
            let Some(entry) = entry else {
                drop(entries);
                return survey.with_versions(&table, wanted).await;
            };
            survey.is_accounted |= entry.ingest_info()?.is_some();
            for remove in &entry.removes {
                live.remove(&remove.path);
            }
            live.extend(entry.adds.iter().map(|add| (add.file.path.clone(), add.file.clone())));
            if wanted.contains(&entry.version) {
                survey.files.extend(live.clone());
            }
        }
        drop(entries);
        Ok(survey)
    }

    /// The same where a part of the log was cleaned up: each version is loaded by itself.
    async fn with_versions(mut self, table: &Table, wanted: BTreeSet<u64>) -> Result<Self> {
        for version in wanted {
            let version = table.at(version).await?;
            self.files.extend(version.files.iter().map(|file| (file.path.clone(), file.clone())));
        }
        for entry in table.history(usize::MAX).await? {
            self.is_accounted |= entry.ingest_info()?.is_some();
        }
        Ok(self)
    }
}

/// What of one table is to be copied.
async fn plan_table(lake: &Lake, survey: &Survey, there: &BTreeMap<Path, u64>, is_new: bool) -> Result<TableCopy> {
    let head = &survey.head;
    let within = |path: &Path| Path::from_iter(head.name.folder().split('/').map(Into::into).chain(path.parts()));
    let data = survey.files.values().map(|file| Job {
        path: within(&location(&file.path)),
        size: file.size,
        checksum: file.checksum,
        kind: JobKind::File,
    });
    let mut copy = TableCopy {
        table: head.name.clone(),
        version: head.version,
        files: 0,
        bytes: 0,
        there: 0,
        data: data.collect(),
        log: Vec::new(),
    };
    for object in archived(lake, &lake.table(&head.name)).await? {
        let (path, size) = (within(&object.location), object.size);
        copy.data.push(Job { path, size, checksum: None, kind: JobKind::File });
    }
    let (mut entries, mut checkpoints, mut hint) = (Vec::new(), Vec::new(), Vec::new());
    for (object, kind) in log_objects(lake, &lake.table(&head.name), head.version).await? {
        let step = match kind {
            JobKind::Entry => &mut entries,
            JobKind::File => &mut checkpoints,
            JobKind::Hint(_) => &mut hint,
        };
        step.push(Job { path: within(&object.location), size: object.size, checksum: None, kind });
    }
    entries.sort_by(|one, other| one.path.cmp(&other.path));
    copy.log = if is_new {
        // The oldest entry last: without it nobody takes the rest for a table.
        let oldest = entries.drain(..1.min(entries.len())).collect();
        vec![entries, oldest, checkpoints]
    } else {
        // One after the other: whoever reads the copy meanwhile finds no gap.
        entries.into_iter().map(|entry| vec![entry]).chain([checkpoints]).collect()
    };
    let mut is_needed = |job: &Job| {
        let is_there = there.get(&job.path) == Some(&job.size);
        let (files, bytes) = if is_there { (0, 0) } else { (1, job.size) };
        (copy.files, copy.bytes, copy.there) = (copy.files + files, copy.bytes + bytes, copy.there + 1 - files);
        !is_there
    };
    copy.data.retain(&mut is_needed);
    copy.log.iter_mut().for_each(|step| step.retain(&mut is_needed));
    // What names the newest checkpoint can keep its size, and goes with whatever else there is.
    let others = copy.files;
    for job in hint {
        if others == 0 && there.contains_key(&job.path) {
            copy.there += 1;
            continue;
        }
        (copy.files, copy.bytes) = (copy.files + 1, copy.bytes + job.size);
        copy.log.push(vec![job]);
    }
    Ok(copy)
}

/// What the log said that is no longer in it.
async fn archived(lake: &Lake, table: &Table) -> Result<Vec<ObjectMeta>> {
    let failed =
        |source| Error::store(format!("cannot list the archive of {} in {}", table.name(), lake.url()), source);
    table.store().list(Some(&Path::from(archive::FOLDER))).try_collect().await.map_err(failed)
}

/// What belongs to a table's log up to `version`: entries, checkpoints, checksums, and the name of the newest checkpoint.
async fn log_objects(lake: &Lake, table: &Table, version: u64) -> Result<Vec<(ObjectMeta, JobKind)>> {
    let failed = |source| Error::store(format!("cannot list the log of {} in {}", table.name(), lake.url()), source);
    let store = table.store();
    let listed: Vec<ObjectMeta> = store.list(Some(&Path::from(LOG_FOLDER))).try_collect().await.map_err(failed)?;
    let mut found = Vec::new();
    for object in listed {
        let name = object.location.filename().unwrap_or_default();
        let kind = if let Some(entry) = entry_of(name) {
            (entry <= version).then_some(JobKind::Entry)
        } else if name == LAST_CHECKPOINT {
            hint(store.as_ref(), &object.location, version).await.map_err(failed)?.map(JobKind::Hint)
        } else {
            let of = name.split('.').next().filter(|number| number.len() == 20).and_then(|number| number.parse().ok());
            let is_up_to =
                of.is_some_and(|of: u64| of <= version) && [".crc", ".parquet"].iter().any(|end| name.ends_with(end));
            // Beside them lie the parts of checkpoints that other engines write.
            (is_up_to || object.location.as_ref().starts_with("_delta_log/_sidecars/")).then_some(JobKind::File)
        };
        found.extend(kind.map(|kind| (object, kind)));
    }
    if !found.iter().any(|(object, _)| object.location.filename().and_then(entry_of) == Some(version)) {
        let message =
            format!("the store lists the log of {} without its newest entry {version}: try again", table.name());
        return Err(Error::new(ErrorKind::Unavailable, message));
    }
    Ok(found)
}

/// What names the newest checkpoint, if that is not beyond `version`. Without it a checkpoint is found all the same.
async fn hint(store: &dyn ObjectStore, path: &Path, version: u64) -> object_store::Result<Option<Bytes>> {
    #[derive(Deserialize)]
    struct Hint {
        version: u64,
    }
    let bytes = store.get(path).await?.bytes().await?;
    let named = serde_json::from_slice::<Hint>(&bytes).map(|hint| hint.version);
    Ok(named.is_ok_and(|named| named <= version).then_some(bytes))
}

/// The version of a log entry of that name.
fn entry_of(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".json")?;
    (number.len() == 20).then(|| number.parse().ok())?
}

/// Letters before the rows that count them, sources before what reads them, publications last.
fn rank(survey: &Survey) -> u8 {
    match (survey.head.name.schema.as_str(), survey.head.name.name.as_str()) {
        ("bronze", _) => u8::from(survey.is_accounted),
        ("silver", _) => 2,
        ("system", "publications") => 5,
        ("system", _) => 4,
        _ => 3,
    }
}

/// The tables that have a log among these objects.
fn tables_in(objects: &BTreeMap<Path, u64>) -> BTreeSet<TableName> {
    let logs = objects.keys().filter_map(|path| {
        let mut parts = path.parts();
        let (schema, table, log) = (parts.next()?, parts.next()?, parts.next()?);
        (log.as_ref() == LOG_FOLDER).then(|| TableName::new(schema.as_ref(), table.as_ref()))
    });
    logs.collect()
}

/// A copy into itself would never end.
fn check_apart(from: &Url, to: &Url) -> Result<()> {
    let (from, to) = (from.as_str().replacen("s3a://", "s3://", 1), to.as_str().replacen("s3a://", "s3://", 1));
    let folder = |url: &str| format!("{}/", url.trim_end_matches('/'));
    let (from, to) = (folder(&from), folder(&to));
    // Stores in memory have no names: each is another one.
    if !from.starts_with("memory:") && (from.starts_with(&to) || to.starts_with(&from)) {
        let message = format!("{to} and the lake at {from} lie in one another: choose another place");
        return Err(Error::new(ErrorKind::BadConfig, message));
    }
    Ok(())
}

/// A table that is there already has to be this one as it was at an older version.
async fn check_same(lake: &Lake, to: &Destination, head: &TableVersion, there: &BTreeMap<Path, u64>) -> Result<()> {
    let folder = Path::from_iter([head.name.schema.as_str(), head.name.name.as_str(), LOG_FOLDER]);
    let logged = there.keys().filter(|path| path.prefix_matches(&folder));
    let Some((newest, path)) = logged.filter_map(|path| Some((entry_of(path.filename()?)?, path))).max() else {
        return Ok(());
    };
    let other = |what: String| {
        let message = format!("{} holds {what}: choose an empty place", to.storage.url);
        Err(Error::new(ErrorKind::BadConfig, message))
    };
    if newest > head.version {
        return other(format!("version {newest} of {}, and the newest here is {}", head.name, head.version));
    }
    let failed = |source| Error::store(format!("cannot compare the logs of {}", head.name), source);
    let theirs = to.store.get(path).await.map_err(failed)?.bytes().await.map_err(failed)?;
    let ours = match lake.store().get(path).await {
        Err(object_store::Error::NotFound { .. }) => {
            return other(format!("version {newest} of {}, which the log here no longer has", head.name));
        }
        ours => ours.map_err(failed)?.bytes().await.map_err(failed)?,
    };
    if ours != theirs {
        return other(format!(
            "another {}, or one that has gone its own way: its version {newest} is not ours",
            head.name
        ));
    }
    Ok(())
}

/// Copies an object; returns its size.
async fn copy_one(from: Arc<dyn ObjectStore>, to: Arc<dyn ObjectStore>, job: Job) -> Result<u64> {
    let writing = |source| Error::store(format!("cannot write {}", job.path), source);
    if let JobKind::Hint(bytes) = job.kind {
        to.put(&job.path, PutPayload::from(bytes)).await.map_err(writing)?;
        return Ok(job.size);
    }
    let found = match from.get(&job.path).await {
        Err(object_store::Error::NotFound { .. }) => {
            let message = format!(
                "{} is gone: if it was cleaned up meanwhile, repeat this, which goes on where it is; else `lakebeat verify` says \
                 what is missing",
                job.path
            );
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        found => found.map_err(|source| job.unread(source))?,
    };
    if matches!(job.kind, JobKind::File) {
        return copy_file(found, to, &job).await;
    }
    let bytes = found.bytes().await.map_err(|source| job.unread(source))?;
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match to.put_opts(&job.path, PutPayload::from(bytes.clone()), options).await {
        Err(object_store::Error::AlreadyExists { .. }) => check_taken(to.as_ref(), &job.path, &bytes).await?,
        written => written.map(drop).map_err(writing)?,
    }
    Ok(job.size)
}

async fn copy_file(found: GetResult, to: Arc<dyn ObjectStore>, job: &Job) -> Result<u64> {
    let writing = |source| Error::store(format!("cannot write {}", job.path), source);
    let mut chunks = found.into_stream();
    let mut writer = BufWriter::with_capacity(to, job.path.clone(), BUFFER_BYTES).with_max_concurrency(PARTS_AT_ONCE);
    let (mut size, mut hasher) = (0, crc32fast::Hasher::new());
    while let Some(chunk) = chunks.try_next().await.map_err(|source| job.unread(source))? {
        size += chunk.len() as u64;
        hasher.update(&chunk);
        writer.put(chunk).await.map_err(writing)?;
    }
    let checksum = hasher.finalize();
    if size != job.size || job.checksum.is_some_and(|written| written != checksum) {
        // What was begun there is no object yet.
        let _ = writer.abort().await;
        let message = format!("{} is not what was written: `lakebeat verify` says what else is damaged", job.path);
        return Err(Error::new(ErrorKind::BadData, message));
    }
    writer.shutdown().await.map_err(|error| {
        let other = |error: std::io::Error| object_store::Error::Generic { store: "copy", source: error.into() };
        writing(error.downcast().unwrap_or_else(other))
    })?;
    Ok(size)
}

impl Job {
    fn unread(&self, source: object_store::Error) -> Error {
        Error::store(format!("cannot read {}", self.path), source)
    }
}

/// An entry that came between the look and the copy is fine if it is the same: an S3 client repeats a request that did happen.
async fn check_taken(to: &dyn ObjectStore, path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |source| Error::store(format!("cannot read {path} in the copy"), source);
    let there = to.get(path).await.map_err(failed)?.bytes().await.map_err(failed)?;
    if there == bytes {
        return Ok(());
    }
    let message = format!("somebody else writes to the copy: it has another {path}; choose an empty place");
    Err(Error::new(ErrorKind::Conflict, message))
}
