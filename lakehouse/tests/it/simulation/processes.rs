//! The processes of a simulated lake, and what has to be true in the end.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt as _;
use lakehouse::{
    Changes, Cleaner, Clock, Commit, Compaction, DEFAULT_GROUP, Error, ErrorKind, Lake, ManualClock, Operation,
    Outcome, PinnedTable, StageOptions, TableName, TableVersion,
};
use tokio::task::JoinSet;
use url::Url;

use super::Bug;
use super::store::{Bucket, Random, Way};
use crate::support::{numbers, rows, spec};

/// What each writer and the builder do so many times.
const ROUNDS: u64 = 60;
/// The cursor of the builder.
const CURSOR: &str = "refresh/copy/bronze.things";

/// How a history ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) failures: Vec<String>,
    pub(crate) totals: Totals,
}

/// What happened in one history, or in many.
#[derive(Debug, Clone, Default)]
pub(crate) struct Totals {
    rows: u64,
    pub(crate) compactions: u64,
    pub(crate) files_cleaned: u64,
    pub(crate) log_entries_cleaned: u64,
    lost_races: u64,
    deaths: u64,
    reads: u64,
    publications: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.compactions += other.compactions;
        self.files_cleaned += other.files_cleaned;
        self.log_entries_cleaned += other.log_entries_cleaned;
        self.lost_races += other.lost_races;
        self.deaths += other.deaths;
        self.reads += other.reads;
        self.publications += other.publications;
    }
}

/// A clock that is not quite right.
#[derive(Debug)]
struct Skewed(Arc<ManualClock>, TimeDelta);

impl Clock for Skewed {
    fn now(&self) -> DateTime<Utc> {
        self.0.now() + self.1
    }
}

/// One history.
#[derive(Debug)]
struct World {
    seed: u64,
    bug: Option<Bug>,
    bucket: Arc<Bucket>,
    failures: Mutex<Vec<String>>,
    totals: Mutex<Totals>,
}

fn things() -> TableName {
    TableName::new("bronze", "things")
}

fn copy() -> TableName {
    TableName::new("gold", "copy")
}

/// Runs the history of a seed.
pub(crate) fn run(seed: u64, bug: Option<Bug>) -> Ended {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let world = Arc::new(World {
        seed,
        bug,
        bucket: Arc::new(Bucket::new()),
        failures: Mutex::default(),
        totals: Mutex::default(),
    });
    runtime.block_on(history(&world));
    let failures = std::mem::take(&mut *world.failures.lock().expect("no holder panics"));
    let totals = world.totals.lock().expect("no holder panics").clone();
    Ended { failures, totals }
}

async fn history(world: &Arc<World>) {
    let lake = world.open_undisturbed().await;
    lake.table(&things()).ensure(&spec()).await.expect("made");
    lake.table(&copy()).ensure(&spec()).await.expect("made");
    let mut work = JoinSet::new();
    work.spawn(write(world.clone(), 0));
    work.spawn(write(world.clone(), 1));
    work.spawn(build(world.clone()));
    let mut beside = JoinSet::new();
    beside.spawn(maintain(world.clone()));
    beside.spawn(read(world.clone(), 10));
    while let Some(ended) = work.join_next().await {
        ended.expect("no process panics");
    }
    beside.shutdown().await;
    judge(world).await;
}

impl World {
    fn random(&self, process: u64) -> Random {
        Random::new(self.seed, process)
    }

    fn fail(&self, what: impl Into<String>) {
        self.failures.lock().expect("no holder panics").push(what.into());
    }

    fn count(&self, change: impl FnOnce(&mut Totals)) {
        change(&mut self.totals.lock().expect("no holder panics"));
    }

    /// Whatever a process is told has to be that the store did not answer, or that another was first.
    fn note(&self, who: &str, error: &Error) {
        if !matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Conflict) {
            self.fail(format!("{who}: {:?}: {error}: {:?}", error.kind(), std::error::Error::source(error)));
        }
    }

    async fn open_undisturbed(&self) -> Lake {
        let way = Way::new(&self.bucket, self.random(99), 0);
        let clock = Arc::new(Skewed(self.bucket.clock.clone(), TimeDelta::zero()));
        Lake::open_on(Arc::new(way), &url(), clock).await.expect("opens")
    }

    /// One life of a process.
    async fn open(&self, process: u64, random: &mut Random) -> Lake {
        loop {
            let mut way = Way::new(&self.bucket, Random::new(random.next(), process), 15);
            let skew = TimeDelta::seconds(random.below(240) as i64 - 120);
            let is_maintenance = process == MAINTENANCE;
            match self.bug {
                Some(Bug::PublicationsUnseen) if is_maintenance => way.blind_for = Some("system/publications"),
                Some(Bug::ReadersUnseen) if is_maintenance => way.blind_for = Some("_leases/readers"),
                Some(Bug::CommitsOverwritten) => way.overwrites = true,
                _ => {}
            }
            let clock = Arc::new(Skewed(self.bucket.clock.clone(), skew));
            match Lake::open_on(Arc::new(way), &url(), clock).await {
                Ok(lake) => return lake,
                Err(error) => self.note("opening", &error),
            }
        }
    }
}

fn url() -> Url {
    Url::parse("memory:///").expect("valid URL")
}

const MAINTENANCE: u64 = 5;
/// The machine's own time hardly passes: so soon is told who reads.
const TOLD_AFTER: Duration = Duration::from_micros(100);

async fn nap(random: &mut Random, longest: u64) {
    for _ in 0..random.below(longest) {
        tokio::task::yield_now().await;
    }
}

/// What is done again and again, in one life after the other.
async fn live<F: Future<Output = Result<(), Error>>>(
    world: &World,
    (name, process): (&str, u64),
    rounds: u64,
    mut round: impl FnMut(Lake, Random) -> F,
) {
    let mut random = world.random(process);
    let mut lake = world.open(process, &mut random).await;
    for _ in 0..rounds {
        if random.happens(40) {
            world.count(|totals| totals.deaths += 1);
            lake = world.open(process, &mut random).await;
        }
        let telling = lake.clone();
        let ended = tokio::select! {
            ended = round(lake.clone(), Random::new(random.next(), process)) => ended,
            () = telling.tell_readers(name, TOLD_AFTER) => Ok(()),
        };
        if let Err(error) = ended {
            world.note(name, &error);
        }
        nap(&mut random, 3).await;
    }
}

/// Adds rows whose ids its ledger counts.
async fn write(world: Arc<World>, me: u64) {
    let app_id = format!("writer/{me}");
    live(&world, ("writer", me), ROUNDS, |lake, mut random| {
        let (world, app_id) = (world.clone(), app_id.clone());
        async move {
            let table = lake.table(&things());
            let ledger = table.ledger(std::slice::from_ref(&app_id)).await?;
            let next = ledger.entries.get(&app_id).copied().unwrap_or(0);
            let count = random.below(4) as i64 + 1;
            let first = me as i64 * 1_000_000 + next;
            let mut commit = Commit::new(Operation::Write);
            let head = table.head().await?;
            commit.adds =
                table.stage_batches(&head, vec![rows(first..first + count)], &StageOptions::default()).await?;
            commit.transactions.insert(app_id, next + count);
            // Now and then it sleeps on what it has staged, for an hour or more.
            let longest = if random.happens(15) { 4_000 } else { 3 };
            nap(&mut random, longest).await;
            if let Outcome::Lost { .. } = table.append(ledger.version, commit).await? {
                world.count(|totals| totals.lost_races += 1);
            }
            Ok(())
        }
    })
    .await;
}

/// Keeps a copy of bronze in gold, and publishes both.
async fn build(world: Arc<World>) {
    live(&world, ("builder", 4), ROUNDS, |lake, _| {
        let world = world.clone();
        async move {
            let (from, to) = (lake.table(&things()), lake.table(&copy()));
            let source = from.head().await?;
            let _held = source.hold();
            let ledger = to.ledger(&[CURSOR.to_owned()]).await?;
            let base = to.at(ledger.version).await?;
            let cursor = ledger.entries.get(CURSOR).map_or(0, |cursor| *cursor as u64);
            let mut commit = Commit::new(Operation::Write);
            let provider = match from.changes(Some(cursor), source.version).await? {
                Changes::Appended { files } if files.is_empty() => return Ok(()),
                Changes::Appended { files } => source.provider_of(files),
                Changes::Rewritten { .. } => {
                    commit.operation = Operation::Overwrite;
                    commit.removes = base.files.to_vec();
                    source.provider()
                }
            };
            let context = lake.session_factory().context();
            let new = context.read_table(provider).map_err(failed)?;
            let new = new.execute_stream().await.map_err(failed)?;
            commit.adds = to.stage(&base, new, &StageOptions::default()).await?;
            commit.transactions.insert(CURSOR.to_owned(), source.version as i64);
            let Outcome::Committed(version) = to.replace(base.version, commit).await? else {
                world.count(|totals| totals.lost_races += 1);
                return Ok(());
            };
            let built = PinnedTable { table_id: base.table_id.clone(), version };
            let tables = BTreeMap::from([(things(), PinnedTable::from(source.as_ref())), (copy(), built)]);
            lake.publish(DEFAULT_GROUP, tables).await?;
            world.count(|totals| totals.publications += 1);
            Ok(())
        }
    })
    .await;
}

/// An error of the engine, as the lake would tell it.
fn failed(error: datafusion::error::DataFusionError) -> Error {
    Error::query("cannot read", error)
}

/// Puts files together and cleans up, for ever.
async fn maintain(world: Arc<World>) {
    let mut random = world.random(MAINTENANCE);
    loop {
        let lake = world.open(MAINTENANCE, &mut random).await;
        let mut cleaner = cleaner(&lake);
        while !random.happens(30) {
            if let Err(error) = round(&world, &lake, &mut cleaner).await {
                world.note("maintenance", &error);
            }
            nap(&mut random, 60).await;
        }
        world.count(|totals| totals.deaths += 1);
    }
}

fn cleaner(lake: &Lake) -> Cleaner {
    let tables = [things(), copy(), TableName::new("system", "publications")];
    Cleaner::only(lake.clone(), tables).keeping_log(TimeDelta::minutes(40))
}

async fn round(world: &World, lake: &Lake, cleaner: &mut Cleaner) -> Result<(), Error> {
    for name in [things(), copy()] {
        let put_together = lake.compact(&lake.table(&name), None, Compaction::AsTheyPileUp).await?;
        world.count(|totals| totals.compactions += put_together.added);
    }
    let report = cleaner.clean().await?;
    world.count(|totals| {
        totals.files_cleaned += report.files;
        totals.log_entries_cleaned += report.log_entries;
    });
    Ok(())
}

/// Reads what is published, slowly, and tells others of it.
async fn read(world: Arc<World>, me: u64) {
    let mut random = world.random(me);
    let lake = world.open(me, &mut random).await;
    let telling = lake.clone();
    let reading = async {
        loop {
            if let Err(error) = read_once(&world, &lake, &mut random).await {
                world.note("reader", &error);
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = telling.tell_readers("reader", TOLD_AFTER) => {}
    }
}

async fn read_once(world: &World, lake: &Lake, random: &mut Random) -> Result<(), Error> {
    let publications = lake.publications().await?;
    // Most often the newest; now and then any that is kept.
    let which = if random.happens(300) { random.below(publications.len().max(1) as u64) as usize } else { 0 };
    let Some(publication) = publications.get(which) else {
        nap(random, 40).await;
        return Ok(());
    };
    let _held = lake.hold(publication);
    let tables = [things(), copy()].map(|name| (lake.table(&name), publication.tables[&name].version));
    let mut counts = Vec::new();
    for (table, version) in tables {
        let version = table.at(version).await?;
        counts.push(count_slowly(lake, &version, random).await?);
        nap(random, 200).await;
    }
    world.count(|totals| totals.reads += 1);
    if counts[0] != counts[1] {
        world.fail(format!("publication {} names {} rows and a copy of {}", publication.id, counts[0], counts[1]));
    }
    Ok(())
}

async fn count_slowly(lake: &Lake, version: &TableVersion, random: &mut Random) -> Result<usize, Error> {
    let context = lake.session_factory().context();
    let query = context.read_table(version.provider()).map_err(failed)?;
    let mut batches = query.execute_stream().await.map_err(failed)?;
    let mut count = 0;
    while let Some(batch) = batches.next().await {
        count += batch.map_err(failed)?.num_rows();
        nap(random, 60).await;
    }
    Ok(count)
}

/// What has to be true once all is quiet.
async fn judge(world: &World) {
    world.bucket.clock.advance(TimeDelta::hours(3));
    let lake = world.open_undisturbed().await;
    let mut cleaner = cleaner(&lake);
    for _ in 0..2 {
        if let Err(error) = round(world, &lake, &mut cleaner).await {
            world.fail(format!("maintenance in the end: {error}"));
        }
        lake.settle().await;
        world.bucket.clock.advance(TimeDelta::hours(3));
    }
    let lake = world.open_undisturbed().await;
    if let Err(what) = rows_are_right(world, &lake).await {
        world.fail(what);
    }
    match lake.verify().await {
        Ok(report) if !report.is_whole() => world.fail(format!("the audit: {}", report.faults[0])),
        Ok(_) => {}
        Err(error) => world.fail(format!("the audit: {error}")),
    }
}

async fn rows_are_right(world: &World, lake: &Lake) -> Result<(), String> {
    let told = |error: Error| error.to_string();
    let bronze = lake.table(&things());
    let app_ids = ["writer/0".to_owned(), "writer/1".to_owned()];
    let ledger = bronze.ledger(&app_ids).await.map_err(told)?;
    let next = |me: usize| ledger.entries.get(&app_ids[me]).copied().unwrap_or(0);
    let expected: Vec<i64> = (0..next(0)).chain(1_000_000..1_000_000 + next(1)).collect();
    world.count(|totals| totals.rows += expected.len() as u64);
    let found = ids_of(lake, &*bronze.head().await.map_err(told)?).await;
    if found != expected {
        return Err(format!("bronze: {}", difference(&found, &expected)));
    }
    let gold = lake.table(&copy());
    let cursor = gold.ledger(&[CURSOR.to_owned()]).await.map_err(told)?.entries.get(CURSOR).copied();
    let Some(cursor) = cursor else { return Ok(()) };
    let found = ids_of(lake, &*gold.head().await.map_err(told)?).await;
    // The version that it was built from may be cleaned up; its rows are still the first ones of each writer.
    let is_prefix = |me: i64| {
        let of_writer = found.iter().filter(|id| **id / 1_000_000 == me);
        of_writer.enumerate().all(|(place, id)| *id == me * 1_000_000 + place as i64)
    };
    if !is_prefix(0) || !is_prefix(1) {
        return Err(format!("the copy of version {cursor}: {}", difference(&found, &expected)));
    }
    Ok(())
}

async fn ids_of(lake: &Lake, version: &TableVersion) -> Vec<i64> {
    let context = lake.session_factory().context();
    context.register_table("t", version.provider()).expect("registered");
    numbers(&context, "select id from t order by id").await
}

fn difference(found: &[i64], expected: &[i64]) -> String {
    let at = found.iter().zip(expected).position(|(one, two)| one != two).unwrap_or(found.len().min(expected.len()));
    format!(
        "{} rows where there should be {}; from place {at} on {:?} instead of {:?}",
        found.len(),
        expected.len(),
        &found[at..(at + 4).min(found.len())],
        &expected[at..(at + 4).min(expected.len())]
    )
}
