//! What the tests of the way from topic to table share: a broker, a lake, a producer, and the audit of what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::AsArray as _;
use arrow::datatypes::{Int32Type, Int64Type};
use ingest::consume::{self, Options, Progress, Stop, Summary};
use ingest::kafka::{self, Properties};
use ingest::simulate;
use ingest::topic::TopicSpec;
use ingest::{Result, broker};
use lakehouse::{Lake, StorageOptions, SystemClock, TableName};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use url::Url;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A partition and an offset in it.
pub(crate) type Place = (i32, i64);

/// A broker that runs in this process, and a folder for lakes.
pub(crate) struct Scene {
    pub(crate) topic: TopicSpec,
    folder: TempDir,
    address: SocketAddr,
    stop: CancellationToken,
    tasks: JoinSet<Result<()>>,
    runs: u32,
}

impl Scene {
    pub(crate) async fn new(partitions: i32) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let address = start_broker(&mut tasks, folder.path().join("broker-0"), &stop).await;
        let topic = TopicSpec { partitions, ..TopicSpec::spotify() };
        let scene = Self { topic, folder, address, stop, tasks, runs: 0 };
        scene.make_topic().await;
        scene
    }

    /// The same with an empty broker in the old one's place.
    pub(crate) async fn with_empty_broker(&mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("no panic").expect("no error");
        }
        self.runs += 1;
        self.stop = CancellationToken::new();
        let folder = self.folder.path().join(format!("broker-{}", self.runs));
        self.address = start_broker(&mut self.tasks, folder, &self.stop).await;
        self.make_topic().await;
    }

    pub(crate) async fn make_topic(&self) {
        kafka::ensure_topic(&self.brokers(), &self.topic, &Properties::new()).await.expect("a topic");
        kafka::ensure_topic(&self.brokers(), &self.topic, &Properties::new()).await.expect("twice is fine");
    }

    pub(crate) fn brokers(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn lake_folder(&self) -> PathBuf {
        self.folder.path().join("lake")
    }

    /// Opens the lake as another process would: nothing that is known of its tables is shared.
    pub(crate) async fn lake(&self) -> Lake {
        std::fs::create_dir_all(self.lake_folder()).expect("a folder");
        let url = Url::from_directory_path(self.lake_folder()).expect("an absolute path");
        Lake::open(&url, &StorageOptions::default(), Arc::new(SystemClock)).await.expect("a lake")
    }

    /// Small batches, so that there are many commits.
    pub(crate) fn options(&self, stop: Stop) -> Options {
        let flush_interval = Duration::from_millis(200);
        Options { stop, flush_interval, flush_rows: 150, ..Options::new(self.brokers(), self.topic.clone()) }
    }

    pub(crate) async fn ingest_to_end(&self) -> Result<Summary> {
        self.run_to_end(self.options(Stop::AtEnd)).await
    }

    pub(crate) async fn run_to_end(&self, options: Options) -> Result<Summary> {
        let (progress, _) = watch::channel(Progress::default());
        let lake = self.lake().await;
        let run = consume::run(&lake, options, progress, CancellationToken::new());
        timeout(PATIENCE, run).await.expect("in time")
    }

    /// Starts an ingest that ends when it is cancelled.
    pub(crate) async fn start_ingest(&self, options: Options) -> Running {
        let (sender, progress) = watch::channel(Progress::default());
        let (lake, token) = (self.lake().await, CancellationToken::new());
        let mut tasks = JoinSet::new();
        let cancelled = token.clone();
        tasks.spawn(async move { consume::run(&lake, options, sender, cancelled).await });
        Running { progress, token, tasks }
    }

    /// Produces simulated messages; returns what was delivered, by place.
    pub(crate) async fn simulate(&mut self, count: u64, dirty: f64) -> BTreeMap<Place, Value> {
        self.runs += 1;
        let log = self.folder.path().join(format!("delivered-{}.jsonl", self.runs));
        let options = simulate::Options {
            count: Some(count),
            rate: 0.0,
            seed: Some(u64::from(self.runs)),
            dirty,
            log: Some(log.clone()),
            ..simulate::Options::new(self.brokers(), &self.topic.name)
        };
        let run = simulate::run(options, Arc::new(SystemClock), CancellationToken::new());
        let report = timeout(PATIENCE, run).await.expect("in time").expect("delivered");
        assert_eq!((report.delivered, report.failed), (count, 0), "{report}");
        let lines = std::fs::read_to_string(log).expect("a log");
        let delivered: BTreeMap<Place, Value> = lines.lines().map(parse_delivered).collect();
        assert_eq!(delivered.len() as u64, count, "a place for each message");
        delivered
    }

    /// Produces these payloads to partition 0, one after the other.
    pub(crate) async fn produce(&self, payloads: &[&str]) {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.brokers()).set("message.timeout.ms", "20000");
        let producer: FutureProducer = config.create().expect("a producer");
        for payload in payloads {
            let record = FutureRecord::<str, str>::to(&self.topic.name).partition(0).payload(*payload);
            producer.send(record, PATIENCE).await.expect("acknowledged");
        }
    }

    /// All places in the table of rows and in that of dead letters, each as often as it is there.
    pub(crate) async fn places(&self) -> (Vec<Place>, Vec<Place>) {
        let lake = self.lake().await;
        let rows = read(&lake, &self.topic.table, ["_partition", "_offset"]).await;
        (rows, read(&lake, &self.topic.dead_letters, ["partition", "offset"]).await)
    }

    /// Each delivered message is in exactly one table, once, and in the one that it belongs to.
    pub(crate) async fn assert_accounted(&self, delivered: &BTreeMap<Place, Value>) {
        let (rows, letters) = self.places().await;
        let is_letter = |message: &Value| {
            let kind = message["kind"].as_str().expect("a kind");
            simulate::Kind::ALL.into_iter().any(|one| one.name() == kind && one.is_dead_letter())
        };
        let (wanted_letters, wanted_rows): (Vec<_>, Vec<_>) =
            delivered.iter().partition(|(_, message)| is_letter(message));
        let places =
            |messages: Vec<(&Place, &Value)>| messages.into_iter().map(|(&place, _)| place).collect::<BTreeSet<_>>();
        assert_same(rows, &places(wanted_rows), "rows");
        assert_same(letters, &places(wanted_letters), "letters");
        let report = self.lake().await.verify().await.expect("an audit");
        assert!(report.faults.is_empty(), "{report:?}");
    }
}

fn parse_delivered(line: &str) -> (Place, Value) {
    let message: Value = serde_json::from_str(line).expect("a line of JSON");
    let partition = message["partition"].as_i64().expect("a partition") as i32;
    ((partition, message["offset"].as_i64().expect("an offset")), message)
}

fn assert_same(mut found: Vec<Place>, wanted: &BTreeSet<Place>, what: &str) {
    found.sort_unstable();
    let once: BTreeSet<Place> = found.iter().copied().collect();
    let missing: Vec<_> = wanted.difference(&once).take(5).collect();
    let extra: Vec<_> = once.difference(wanted).take(5).collect();
    assert!(missing.is_empty() && extra.is_empty(), "{what}: missing {missing:?}, too many {extra:?}");
    assert_eq!(found.len(), once.len(), "{what}: some are there twice");
}

async fn read(lake: &Lake, table: &TableName, columns: [&str; 2]) -> Vec<Place> {
    let head = match lake.table(table).head().await {
        Err(error) if error.kind() == ingest::ErrorKind::NotFound => return Vec::new(),
        head => head.expect("a table"),
    };
    let rows = lake.session_factory().context().read_table(head.provider()).expect("a table");
    let batches = rows.select_columns(&columns).expect("columns").collect().await.expect("rows");
    let places = |batch: &arrow::record_batch::RecordBatch| {
        let partitions = batch.column(0).as_primitive::<Int32Type>().values().to_vec();
        let offsets = batch.column(1).as_primitive::<Int64Type>().values().to_vec();
        partitions.into_iter().zip(offsets).collect::<Vec<_>>()
    };
    batches.iter().flat_map(places).collect()
}

async fn start_broker(tasks: &mut JoinSet<Result<()>>, folder: PathBuf, stop: &CancellationToken) -> SocketAddr {
    let options = broker::Options::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), folder);
    let (ready, address) = oneshot::channel();
    tasks.spawn(broker::run(options, Arc::new(SystemClock), ready, stop.clone()));
    timeout(PATIENCE, address).await.expect("in time").expect("the broker serves")
}

/// An ingest that runs in this process.
pub(crate) struct Running {
    pub(crate) progress: watch::Receiver<Progress>,
    token: CancellationToken,
    tasks: JoinSet<Result<Summary>>,
}

impl Running {
    /// Waits until its progress is as wanted.
    pub(crate) async fn until(&mut self, wanted: impl FnMut(&Progress) -> bool) {
        let reached = timeout(PATIENCE, self.progress.wait_for(wanted)).await;
        reached.expect("in time").expect("it still runs");
    }

    pub(crate) async fn stop(mut self) -> Result<Summary> {
        self.token.cancel();
        self.ended().await
    }

    pub(crate) async fn ended(&mut self) -> Result<Summary> {
        let ended = timeout(PATIENCE, self.tasks.join_next()).await.expect("in time");
        ended.expect("one task").expect("no panic")
    }

    /// Breaks it off in the middle of whatever it does, as a killed process is.
    pub(crate) fn kill(mut self) {
        self.tasks.abort_all();
    }
}
