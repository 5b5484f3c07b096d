//! One history: a topic that fills up, one to three processes that are started, killed and started again, and a store that
//! fails them; then calm, in which all has to come to its end.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::TimeDelta;
use ingest::consume::{self, Options, Parts, Progress, Sharing, Summary};
use ingest::{ErrorKind, Result};
use lakehouse::Lake;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::broker::{Cluster, Connection, topic};
use super::bugs::{Bug, committer};
use super::oracle::{Failure, FailureKind, Oracle, lake_url};
use super::random::{Random, SeededIds};
use super::store::{Access, Bucket, Death, Dying, Faults, Life, Outage};
use super::time::{Doing, Time, WORLD_SLOT, WallClock, slot};

/// So long after the last fault everything has to be in the lake. In milliseconds.
const CALM_MAX: u64 = 300_000;
/// So long a process may take to end. In milliseconds.
const GOODBYE_MAX: u64 = 60_000;

/// So far a process's clock may be ahead of the others'. In minutes: less than the day that files which were put together are
/// kept for those who still read them.
const AHEAD_MAX: u64 = 1_400;

/// What a history is made of.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) members: u64,
    pub(crate) sharing: Sharing,
    pub(crate) partitions: u64,
    /// Messages in the topic at the start, and those that come until all is calm.
    pub(crate) messages: (u64, u64),
    /// From here on nothing fails any more. In milliseconds.
    pub(crate) calm_at: u64,
    pub(crate) flush_rows: u64,
    /// In milliseconds.
    pub(crate) flush_interval: u64,
    /// How often small files are put together, in milliseconds.
    pub(crate) compaction_interval: u64,
    pub(crate) faults: Faults,
    /// At which of its requests a process dies; none, if it does not.
    pub(crate) mortality: Option<(u64, u64)>,
    /// The first process dies at just this request.
    pub(crate) first_death: Option<Death>,
    /// So many lives of a thousand are ended politely, after some time.
    pub(crate) quits: u64,
    /// So many questions to the broker of a thousand get no answer.
    pub(crate) unanswered: u64,
    /// So often of a thousand times a reader stumbles.
    pub(crate) stumbles: u64,
    /// So often of a thousand times the group takes an owner for dead that is not.
    pub(crate) forgotten: u64,
    /// When the topic gets one more partition.
    pub(crate) grows_at: Option<u64>,
    pub(crate) bug: Option<Bug>,
}

impl Plan {
    /// The history of a seed.
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = Random::about(seed, "plan", &[]);
        let calm_at = random.within(3_000..=25_000);
        let rate = random.one_of(&[0, 0, 10, 30, 100]);
        let outages = (0..random.one_of(&[0, 0, 2, 5])).map(|_| {
            let from = random.within(0..=calm_at);
            let whole = random.happens(500);
            Outage { during: from..from + random.within(1_500..=4_000), whole }
        });
        let outages = outages.collect();
        let faults = Faults {
            requests_lost: rate,
            answers_lost: random.one_of(&[0, rate, 100]),
            requests_late: random.one_of(&[0, rate]),
            creations_repeated: random.one_of(&[0, rate, 200]),
            reads_torn: random.one_of(&[0, rate]),
            slow: random.one_of(&[0, 0, 5, 20]),
            outages,
        };
        Self {
            seed,
            members: random.within(1..=3),
            sharing: random.one_of(&[Sharing::Group, Sharing::Group, Sharing::Group, Sharing::Alone, Sharing::Alone]),
            partitions: random.within(1..=4),
            messages: (random.within(0..=150), random.within(40..=300)),
            calm_at,
            flush_rows: random.one_of(&[1, 1, 5, 1_000]),
            flush_interval: random.one_of(&[50, 300, 1_000]),
            // It is drawn apart from the rest, so that seeds of old keep their histories in all else.
            compaction_interval: Random::about(seed, "compaction", &[]).one_of(&[500, 3_000, 60_000]),
            faults,
            mortality: random.one_of(&[None, None, Some((0, 120)), Some((20, 400))]),
            first_death: None,
            quits: random.one_of(&[0, 0, 300]),
            unanswered: random.one_of(&[0, 50, 200]),
            stumbles: random.one_of(&[0, 20, 100]),
            forgotten: random.one_of(&[5, 20, 40]),
            grows_at: random.happens(250).then(|| random.within(0..=calm_at)),
            bug: None,
        }
    }

    /// A small history in which nothing fails but one process, at this request.
    pub(crate) fn with_one_death(death: Option<Death>) -> Self {
        Self {
            seed: 1,
            members: 1,
            sharing: Sharing::Alone,
            partitions: 2,
            messages: (14, 8),
            calm_at: 1_500,
            flush_rows: 6,
            flush_interval: 300,
            compaction_interval: 60_000,
            faults: Faults::default(),
            mortality: None,
            first_death: death,
            quits: 0,
            unanswered: 0,
            stumbles: 0,
            forgotten: 0,
            grows_at: None,
            bug: None,
        }
    }

    fn death(&self, (member, number): (u64, u64), calm: bool) -> Option<Death> {
        if (member, number) == (0, 0) && self.first_death.is_some() {
            return self.first_death;
        }
        if calm {
            return None;
        }
        let mut random = Random::about(self.seed, "death", &[member, number]);
        let (from, to) = self.mortality?;
        let step = random.within(from..=to);
        Some(Death { step, how: random.one_of(&Dying::ALL) })
    }

    fn options(&self) -> Options {
        Options {
            sharing: self.sharing,
            flush_rows: self.flush_rows as usize,
            flush_interval: Duration::from_millis(self.flush_interval),
            compaction_interval: Duration::from_millis(self.compaction_interval),
            ..Options::new("simulated", topic())
        }
    }
}

/// How a history went.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) failures: Vec<Failure>,
    pub(crate) trace: Vec<String>,
    /// Requests of the process that was started first.
    pub(crate) first_steps: u64,
    pub(crate) totals: Totals,
}

/// What happened in a history, or in several.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Totals {
    pub(crate) milliseconds: u64,
    pub(crate) messages: u64,
    pub(crate) requests: u64,
    pub(crate) lives: u64,
    pub(crate) deaths: u64,
    /// Batches that were dropped by those who stayed alive.
    pub(crate) lost: u64,
    /// Commits that put small files together.
    pub(crate) compactions: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: &Self) {
        self.milliseconds += other.milliseconds;
        self.messages += other.messages;
        self.requests += other.requests;
        self.lives += other.lives;
        self.deaths += other.deaths;
        self.lost += other.lost;
        self.compactions += other.compactions;
    }
}

/// Runs a history on a runtime of its own, with one thread and a clock that nobody waits for.
pub(crate) fn run(plan: &Plan) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    // The time begins on the runtime: elsewhere it would be that of the machine.
    runtime.expect("a runtime").block_on(async { World::begin(plan).run().await })
}

/// What all processes share.
struct World {
    plan: Plan,
    time: Arc<Time>,
    bucket: Arc<Bucket>,
    cluster: Arc<Cluster>,
    /// Cancelled when all is done.
    stop: CancellationToken,
    failures: Mutex<Vec<Failure>>,
    totals: Mutex<Totals>,
    first_steps: AtomicU64,
    /// Set when a process has died and nobody has looked at the lake since.
    unaudited: AtomicBool,
}

impl World {
    fn begin(plan: &Plan) -> Arc<Self> {
        let time = Time::begin(plan.calm_at);
        let cluster = Cluster::new(time.clone(), plan.seed, plan.partitions as usize, plan.forgotten);
        Arc::new(Self {
            plan: plan.clone(),
            time,
            bucket: Arc::default(),
            cluster: Arc::new(cluster),
            stop: CancellationToken::new(),
            failures: Mutex::default(),
            totals: Mutex::default(),
            first_steps: AtomicU64::new(0),
            unaudited: AtomicBool::new(false),
        })
    }

    async fn run(self: Arc<Self>) -> Report {
        let oracle = Oracle::new(self.bucket.clone(), self.time.clone(), topic());
        let mut processes = JoinSet::new();
        for member in 0..self.plan.members {
            processes.spawn(self.clone().keep_alive(member));
        }
        self.cluster.produce(self.plan.messages.0);
        self.storm(&oracle).await;
        self.calm(&oracle).await;
        self.stop.cancel();
        let ended = async {
            while let Some(ended) = processes.join_next().await {
                if ended.is_err() {
                    self.fail(FailureKind::Stopped, "a process panicked");
                }
            }
        };
        if tokio::time::timeout(Duration::from_millis(GOODBYE_MAX), ended).await.is_err() {
            self.fail(FailureKind::Stuck, "a process does not end when it is asked to");
        }
        let partitions = self.cluster.partitions();
        let found = oracle.check(&partitions).await;
        let mut failures = std::mem::take(&mut *self.failures.lock().expect("no holder of this lock panics"));
        failures.extend(found);
        let mut totals = *self.totals.lock().expect("no holder of this lock panics");
        totals.milliseconds = self.time.now();
        totals.compactions = oracle.compactions().await;
        totals.messages = partitions.iter().map(|partition| partition.messages().count() as u64).sum();
        Report { failures, trace: self.time.trace(), first_steps: self.first_steps.load(Ordering::Acquire), totals }
    }

    /// The time in which things fail.
    async fn storm(&self, oracle: &Oracle) {
        let mut random = Random::about(self.plan.seed, "world", &[]);
        let (_, coming) = self.plan.messages;
        let mut produced = 0;
        let mut grows_at = self.plan.grows_at;
        while !self.time.is_calm() && self.is_fine() {
            self.tick().await;
            if grows_at.take_if(|at| *at <= self.time.now()).is_some() {
                self.cluster.grow();
            }
            let due = (coming * self.time.now() / self.plan.calm_at).min(coming);
            self.cluster.produce(due - produced);
            produced = due;
            if self.unaudited.swap(false, Ordering::AcqRel) && random.happens(200) {
                let found = oracle.audit().await;
                self.failures.lock().expect("no holder of this lock panics").extend(found);
            }
        }
        self.cluster.close();
    }

    /// The time in which everything has to come right.
    async fn calm(&self, oracle: &Oracle) {
        self.time.note("world", || "nothing fails any more".to_owned());
        let deadline = self.time.now() + CALM_MAX;
        let mut next_look = 0;
        while self.is_fine() {
            self.tick().await;
            if self.time.now() > deadline {
                return self.fail(FailureKind::Stuck, "the end is not reached although nothing fails any more");
            }
            if self.time.now() < next_look || !self.bucket.is_quiet() {
                continue;
            }
            next_look = self.time.now() + 500;
            if oracle.is_at_end(&self.cluster.partitions()).await {
                return;
            }
        }
    }

    async fn tick(&self) {
        self.time.turn(WORLD_SLOT, 48).await;
        self.bucket.land(&self.time);
        self.cluster.tick();
    }

    fn is_fine(&self) -> bool {
        self.failures.lock().expect("no holder of this lock panics").is_empty()
    }

    fn fail(&self, kind: FailureKind, what: impl Into<String>) {
        self.failures.lock().expect("no holder of this lock panics").push(Failure::new(kind, what));
    }

    /// Starts a process again and again, as a supervisor does.
    async fn keep_alive(self: Arc<Self>, member: u64) {
        for number in 0.. {
            let plan = &self.plan;
            let death = plan.death((member, number), self.time.is_calm());
            let life = Life::new(self.time.clone(), plan.seed, (member, number), plan.faults.clone(), death);
            let life = Arc::new(life);
            let mut random = life.random("start", &[]);
            let pause = self.time.turn(slot(member, Doing::Living), random.within(1..=2_000));
            if self.stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
            self.time.note(&life.name(), || "starts".to_owned());
            let ended = self.live(&life, &mut random).await;
            self.account(&life, &ended);
            if self.stop.is_cancelled() {
                return;
            }
        }
    }

    /// One life. None if it ends with its death.
    async fn live(&self, life: &Arc<Life>, random: &mut Random) -> Option<Result<Summary>> {
        let token = CancellationToken::new();
        let run = self.process(life.clone(), token.clone(), random);
        tokio::pin!(run);
        let quits_at = random.happens(self.plan.quits).then(|| self.time.now() + random.within(0..=10_000));
        loop {
            tokio::select! {
                biased;
                () = life.dead.cancelled() => return None,
                // Work on a thread may have failed because of the death, and be heard of first.
                result = &mut run => return (!life.dead.is_cancelled()).then_some(result),
                () = self.stop.cancelled(), if !token.is_cancelled() => token.cancel(),
                () = self.time.until(quits_at.unwrap_or(0)), if quits_at.is_some() && !token.is_cancelled() => token.cancel(),
            }
        }
    }

    /// What a process does.
    fn process(
        &self,
        life: Arc<Life>,
        token: CancellationToken,
        random: &mut Random,
    ) -> impl Future<Output = Result<Summary>> + use<> {
        let ahead = TimeDelta::minutes(random.within(0..=AHEAD_MAX) as i64);
        let clock = Arc::new(WallClock { time: self.time.clone(), ahead });
        let ids = Arc::new(SeededIds::new(life.random("ids", &[])));
        let access = Arc::new(Access { bucket: self.bucket.clone(), life: life.clone() });
        let plan = &self.plan;
        let broker = Connection::new(self.cluster.clone(), life, plan.unanswered, plan.stumbles);
        let parts = Parts { broker: Arc::new(broker), committer: committer(plan.bug, &self.bucket) };
        let options = plan.options();
        async move {
            let lake = Lake::open_with_ids(access, &lake_url(), clock, ids).await?;
            let (progress, _) = watch::channel(Progress::default());
            consume::run_on(&lake, options, parts, progress, token).await
        }
    }

    fn account(&self, life: &Life, ended: &Option<Result<Summary>>) {
        let mut totals = self.totals.lock().expect("no holder of this lock panics");
        totals.lives += 1;
        totals.requests += life.steps();
        if (life.member, life.number) == (0, 0) {
            self.first_steps.store(life.steps(), Ordering::Release);
        }
        match ended {
            None => {
                totals.deaths += 1;
                self.unaudited.store(true, Ordering::Release);
            }
            Some(Ok(summary)) => {
                totals.lost += summary.lost;
                self.time.note(&life.name(), || format!("ends: {summary:?}"));
            }
            // What a supervisor tries again.
            Some(Err(error)) if error.kind() == ErrorKind::Unavailable => {
                self.time.note(&life.name(), || format!("gives up: {error}"));
            }
            Some(Err(error)) => {
                self.time.note(&life.name(), || format!("stops: {error}"));
                self.fail(FailureKind::Stopped, format!("{} stops: {error}", life.name()));
            }
        }
    }
}
