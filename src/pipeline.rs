//! The whole system on one screen: `up`.
//!
//! ```text
//! broker ─► topic ─► simulator
//!              └───► ingest ─► bronze ─► transforms ─► silver, gold ─► publication ─► doors
//! ```
//!
//! Everything is a task of one set, and the first error ends all. What tasks have to tell one another goes through the lake.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use ingest::{broker, consume, kafka, simulate};
use lakehouse::{Cleaner, Lake, READERS_TOLD_AFTER, SessionOptions, SystemClock};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use transforms::Project;

use crate::output::Fault;
use crate::settings::{Ports, Settings};
use crate::status::{self, Addresses};
use crate::topics::{self, Watched};

/// What drains has this long; the process ends within five seconds of a signal.
const DRAIN_MAX: Duration = Duration::from_secs(4);

/// Ingest is in this process, and its commits are seen at once; those of another process after this time at the latest.
const FOREIGN_COMMITS_POLL: Duration = Duration::from_secs(30);
/// Between two rounds of cleaning, while there is something to clean.
const CLEANING_INTERVAL: Duration = Duration::from_secs(60);
/// The same while nothing moves.
const IDLE_CLEANING_INTERVAL: Duration = Duration::from_secs(3600);

/// What of `up` the command line turns on and off.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) simulator: Simulator,
    pub(crate) project: Project,
}

/// Whether events are made up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Simulator {
    On,
    Off,
}

/// The tasks, each with its name for messages.
type Tasks = JoinSet<(String, anyhow::Result<()>)>;

/// Runs everything until the token is cancelled or something fails.
pub(crate) async fn up(settings: &Settings, parts: Parts, stop: CancellationToken) -> anyhow::Result<()> {
    check_security(settings)?;
    // Ports first: a taken one must not leave half a pipeline behind.
    let listeners = bind_doors(&settings.ports).await?;
    let Some(lake) = stop.run_until_cancelled(open_lake(settings)).await.transpose()? else { return Ok(()) };
    // The broker outlives what reads from it, so that ingest can commit its last batch.
    let (work, broker_stop) = (stop.child_token(), CancellationToken::new());
    let mut tasks = Tasks::new();
    let brokers = match &settings.brokers {
        Some(brokers) => brokers.clone(),
        None => start_broker(settings, &mut tasks, broker_stop.clone()).await?,
    };
    let topics_made = make_topics(settings, &brokers);
    let Some(()) = stop.run_until_cancelled(topics_made).await.transpose()? else {
        return supervise(tasks, work, broker_stop).await;
    };

    let addresses = Addresses {
        kafka: brokers.clone(),
        flight: listeners.flight.local_addr()?,
        postgres: listeners.postgres.local_addr()?,
        console: listeners.console.local_addr()?,
        lake: lake.url().to_string(),
    };
    if parts.simulator == Simulator::On {
        start_simulator(settings, &brokers, &mut tasks, work.clone());
    }
    let shown = start_ingest(settings, &lake, &brokers, &mut tasks, work.clone());
    start_transforms(settings, &lake, parts.project, &mut tasks, work.clone());
    let (told, known) = watch::channel(Vec::new());
    let relaying = topics::relay(shown.clone(), told, work.clone());
    tasks.spawn(named("telling the doors", async move {
        relaying.await;
        Ok(())
    }));
    let doors = flight_server::Options { ingest: Some(known), ..door_options(settings) };
    start_doors(&lake, listeners, doors, &mut tasks, work.clone());
    start_cleaner(&lake, &mut tasks, work.clone());
    status::banner(&addresses);
    tasks.spawn(named("status", status::show(lake.clone(), shown, work.clone())));

    supervise(tasks, work, broker_stop).await
}

/// Waits for the end: a signal, or the first task that fails. Then drains: first what works, last the broker.
async fn supervise(mut tasks: Tasks, work: CancellationToken, broker_stop: CancellationToken) -> anyhow::Result<()> {
    let mut first_error = None;
    while !work.is_cancelled() {
        tokio::select! {
            () = work.cancelled() => {}
            ended = tasks.join_next() => match ended {
                Some(ended) => first_error = outcome(ended).err(),
                None => break,
            }
        }
        if first_error.is_some() {
            break;
        }
    }
    work.cancel();
    tracing::info!("draining");
    let drained = tokio::time::timeout(DRAIN_MAX, async {
        loop {
            // Only the broker is left: nobody reads from it any more.
            if tasks.len() <= 1 {
                broker_stop.cancel();
            }
            let Some(ended) = tasks.join_next().await else { break };
            if let Err(error) = outcome(ended) {
                first_error.get_or_insert(error);
            }
        }
    });
    if drained.await.is_err() {
        tracing::warn!("not everything ended in time; the ledger makes that safe");
    }
    first_error.map_or(Ok(()), Err)
}

fn outcome(ended: Result<(String, anyhow::Result<()>), tokio::task::JoinError>) -> anyhow::Result<()> {
    match ended {
        Ok((name, result)) => result.with_context(|| format!("{name} stopped")),
        Err(panic) => Err(Fault::found(format!("a part of the program broke: {panic}")).into()),
    }
}

async fn named(name: &str, task: impl Future<Output = anyhow::Result<()>>) -> (String, anyhow::Result<()>) {
    (name.to_owned(), task.await)
}

/// The embedded broker has neither TLS nor a login, and who asks for them must not be served without.
fn check_security(settings: &Settings) -> anyhow::Result<()> {
    if settings.brokers.is_some() || !settings.kafka_properties.asks_for_security() {
        return Ok(());
    }
    let message = "KAFKA_SECURITY_PROTOCOL (security.protocol in [kafka.properties]) asks for a broker with TLS or a login, \
                   which the embedded one has not: name yours with --brokers, or take the setting out";
    Err(Fault::usage(message).into())
}

/// Makes the topics that are missing.
async fn make_topics(settings: &Settings, brokers: &str) -> anyhow::Result<()> {
    for topic in &settings.topics {
        kafka::ensure_topic(brokers, topic, &settings.kafka_properties).await?;
    }
    Ok(())
}

/// Opens the lake, with the limits that queries have on it.
pub(crate) async fn open_lake(settings: &Settings) -> anyhow::Result<Lake> {
    let lake = Lake::open(&settings.lake, &settings.storage, Arc::new(SystemClock)).await?;
    lake.limit_sessions(&SessionOptions {
        memory_bytes_max: settings.query_memory_bytes,
        ..SessionOptions::default()
    })?;
    tell_readers(lake.clone());
    Ok(lake)
}

/// Queries of this process may run for longer than superseded files stay.
#[expect(clippy::disallowed_methods, reason = "it goes on until the process ends, and has nothing to end with")]
fn tell_readers(lake: Lake) {
    let holder = format!("process {}", std::process::id());
    tokio::spawn(async move { lake.tell_readers(&holder, READERS_TOLD_AFTER).await });
}

async fn start_broker(settings: &Settings, tasks: &mut Tasks, stop: CancellationToken) -> anyhow::Result<String> {
    let (ready, started) = oneshot::channel();
    let running = broker::run(broker_options(settings), Arc::new(SystemClock), ready, stop);
    tasks.spawn(named("the embedded broker", async { Ok(running.await?) }));
    match started.await {
        Ok(address) => Ok(address.to_string()),
        // It ended before it was ready: its own error says why.
        Err(_) => match tasks.join_next().await {
            Some(ended) => {
                Err(outcome(ended).err().unwrap_or_else(|| Fault::found("the embedded broker ended").into()))
            }
            None => Err(Fault::found("the embedded broker did not start").into()),
        },
    }
}

pub(crate) fn broker_options(settings: &Settings) -> broker::Options {
    let listen = SocketAddr::new(settings.ports.listen, settings.ports.kafka);
    broker::Options::new(listen, settings.data_dir.join("broker"))
}

/// Simulated events go to the topic that they fit, and to no other.
fn start_simulator(settings: &Settings, brokers: &str, tasks: &mut Tasks, stop: CancellationToken) {
    let Some(topic) = topics::simulated(&settings.topics) else {
        let names = settings.topics.iter().map(|topic| topic.name.as_str()).collect::<Vec<_>>().join(", ");
        tracing::warn!(
            topics = names,
            "nothing is simulated: listening events, which the simulator makes, fit none of the topics; produce to them \
             yourself, and say so with --no-simulate"
        );
        return;
    };
    let options = simulate::Options {
        properties: settings.kafka_properties.clone(),
        rate: settings.rate,
        users: settings.users,
        ..simulate::Options::new(brokers, &topic.name)
    };
    tasks.spawn(named("the simulator", async {
        simulate::run(options, Arc::new(SystemClock), stop).await?;
        Ok(())
    }));
}

fn start_ingest(
    settings: &Settings,
    lake: &Lake,
    brokers: &str,
    tasks: &mut Tasks,
    stop: CancellationToken,
) -> Vec<Watched> {
    let mut shown = Vec::new();
    for options in topics::ingest_options(settings, brokers) {
        let (lake, stop, topic) = (lake.clone(), stop.clone(), options.topic.name.clone());
        let (progress, watched) = watch::channel(consume::Progress::default());
        shown.push(Watched { topic: topic.clone(), progress: watched });
        tasks.spawn(async move {
            let ended = consume::run(&lake, options, progress, stop).await;
            (format!("ingest of topic {topic}"), ended.map(|_| ()).map_err(Into::into))
        });
    }
    shown
}

fn start_transforms(settings: &Settings, lake: &Lake, project: Project, tasks: &mut Tasks, stop: CancellationToken) {
    let (lake, options) = (lake.clone(), transform_options(settings));
    tasks.spawn(named("transforms", async move {
        let (progress, _) = watch::channel(transforms::WatchProgress::default());
        let cadence = transforms::Cadence { idle_poll: FOREIGN_COMMITS_POLL, ..transforms::Cadence::default() };
        Ok(transforms::watch(&lake, &project, &options, &cadence, progress, stop).await?)
    }));
}

/// What the models may ask for from outside.
pub(crate) fn transform_options(settings: &Settings) -> transforms::Options {
    let mut options = transforms::Options::default();
    options.variables.environment = settings.environment.clone();
    options
}

fn start_doors(
    lake: &Lake,
    listeners: flight_server::Listeners,
    options: flight_server::Options,
    tasks: &mut Tasks,
    stop: CancellationToken,
) {
    let lake = lake.clone();
    tasks.spawn(named("the doors", async move { Ok(flight_server::serve(lake, listeners, options, stop).await?) }));
}

fn start_cleaner(lake: &Lake, tasks: &mut Tasks, stop: CancellationToken) {
    let lake = lake.clone();
    tasks.spawn(named("cleaning", async move {
        clean(&lake, stop).await;
        Ok(())
    }));
}

pub(crate) fn door_options(settings: &Settings) -> flight_server::Options {
    let mut options = flight_server::Options { exposure: settings.ports.exposure, ..flight_server::Options::default() };
    options.limits.statement_timeout = settings.query_timeout;
    options
}

/// Superseded files go in the same process that supersedes them, until the token is cancelled.
pub(crate) async fn clean(lake: &Lake, stop: CancellationToken) {
    let mut cleaner = Cleaner::new(lake.clone());
    let mut interval = CLEANING_INTERVAL;
    loop {
        let mut commits = lake.commits();
        let round = async {
            tokio::time::sleep(CLEANING_INTERVAL).await;
            // While nothing is committed here there is little to do, and a lake that is idle is left alone.
            let _ = tokio::time::timeout(interval - CLEANING_INTERVAL, commits.changed()).await;
            cleaner.clean().await
        };
        match stop.run_until_cancelled(round).await {
            None => return,
            Some(Ok(report)) => {
                tracing::debug!(files = report.files, bytes = report.bytes, waiting = report.waiting, "cleaned");
                let is_idle = report.files + report.waiting == 0;
                interval = if is_idle { IDLE_CLEANING_INTERVAL } else { CLEANING_INTERVAL };
            }
            // What can't be deleted now is deleted later; nothing else depends on it.
            Some(Err(error)) => tracing::warn!(%error, "cleaning put off"),
        }
    }
}

/// Refuses to listen where other machines can reach us, unless somebody said that they may. Before anything is opened.
pub(crate) fn check_exposure(ports: &Ports, port: u16) -> anyhow::Result<()> {
    Ok(flight_server::check_exposure(SocketAddr::new(ports.listen, port), ports.exposure)?)
}

/// Binds the three doors.
pub(crate) async fn bind_doors(ports: &Ports) -> anyhow::Result<flight_server::Listeners> {
    check_exposure(ports, ports.flight)?;
    Ok(flight_server::Listeners {
        flight: bind(ports, ports.flight, "--flight-port").await?,
        postgres: bind(ports, ports.postgres, "--postgres-port").await?,
        console: bind(ports, ports.console, "--console-port").await?,
    })
}

async fn bind(ports: &Ports, port: u16, flag: &str) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(ports.listen, port);
    TcpListener::bind(address).await.map_err(|error| {
        let message = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                format!("port {port} is taken: end what listens there, or choose another with {flag}")
            }
            std::io::ErrorKind::PermissionDenied => {
                format!("port {port} may not be opened by this user: choose another with {flag}")
            }
            _ => format!("cannot listen on {address} ({error}): choose another with {flag} or --listen"),
        };
        Fault::usage(message).into()
    })
}
