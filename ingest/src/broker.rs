//! The embedded broker: speaks Kafka's protocol on one port and keeps everything in one SQLite file.
//!
//! It stands at the very front of the flow, in place of a Kafka cluster, for whoever has none:
//!
//! ```text
//! client ── connection ─┬─ Fetch, ListOffsets ──────────────────────────── records ─┐
//!                       └─ routes ── guard ─┬─ produce, delete ──────────── writes ─┤
//!                                           └─ groups, topics, settings ── engine ──┴─ broker.db
//! ```
//!
//! The protocol's messages, the consumer groups and the tables are those of the `tansu` crates. They have holes that a
//! client of almost any age steps into, and one that fell in took the broker from all; so here each request passes a
//! [`guard`], records go to and from the file by themselves ([`records`], [`writes`]), and what breaks is built anew from the file
//! ([`engine`]).
//!
//! **Invariant:** whatever a client sends, the other clients are served and nothing acknowledged is lost. Acknowledged is
//! written to the file; the file survives the end of the process at any moment, but the last moments before a loss of
//! power may be missing (SQLite's WAL with `synchronous = normal`, and the engine lets no one choose).

mod batch;
mod compression;
mod connection;
mod engine;
mod fetch;
mod folder;
mod guard;
mod legacy;
mod records;
mod versions;
mod writes;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lakehouse::Clock;
use tansu_storage::{RequestChannelService, bounded_channel};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use url::Url;

use crate::{Error, ErrorKind, Result};
use connection::Router;
use engine::{Engine, EngineSettings};
use folder::Folder;
use guard::Guard;
use records::Records;

/// The most clients at a time; more wait until one goes.
const CONNECTIONS_MAX: usize = 1_000;

/// Requests that wait for the guard; more wait in their connections.
const REQUESTS_MAX: usize = 64;

/// How long clients have, at the end, to get the answer that they wait for.
const DRAIN_MAX: Duration = Duration::from_millis(1_200);

/// How long the guard has, after that, to finish its request.
const CLOSE_MAX: Duration = Duration::from_millis(800);

/// What the broker is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The name or address under which clients reach the listener.
    pub advertised_host: String,
    /// The folder of the broker's file. It is created, and no two brokers can use it at a time.
    pub data_dir: PathBuf,
    /// What is dropped.
    pub retention: Retention,
}

impl Options {
    /// Options with the defaults for all but the address and the folder.
    pub fn new(listen: SocketAddr, data_dir: impl Into<PathBuf>) -> Self {
        // "All addresses" is none that a client could connect to.
        let host = if listen.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { listen.ip() };
        Self { listen, advertised_host: host.to_string(), data_dir: data_dir.into(), retention: Retention::default() }
    }
}

/// When records are dropped. Both limits hold for all topics, whether anybody has read the records or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Records that arrived longer ago than this are dropped.
    pub age: Duration,
    /// When the file holds more bytes than this, the oldest records of each partition are dropped, bit by bit.
    pub bytes: u64,
}

impl Default for Retention {
    /// Seven days, five gigabytes.
    fn default() -> Self {
        Self { age: Duration::from_hours(7 * 24), bytes: 5_000_000_000 }
    }
}

/// Runs the broker until the token is cancelled; then it ends within two seconds. Sends the address that it listens on
/// once clients are served.
///
/// Errors: `BadConfig` for a port or a folder that cannot be used, `StorageFull` and `Unavailable` for a file that fails
/// again and again.
pub async fn run(
    options: Options,
    clock: Arc<dyn Clock>,
    ready: oneshot::Sender<SocketAddr>,
    token: CancellationToken,
) -> Result<()> {
    // Its own end stops the broker's parts as the caller's does, but says nothing to the caller's.
    let token = token.child_token();
    let folder = Folder::open(&options.data_dir)?;
    let (listener, address) = bind(options.listen).await?;
    let settings = EngineSettings {
        cluster: folder.cluster().to_owned(),
        advertised: advertised(&options.advertised_host, address)?,
        file: folder.file_url()?,
    };
    let engine = Engine::start(settings).await?;
    let records = Records::open(&folder.file(), folder.cluster()).await.map_err(|source| {
        let message = format!("cannot open the broker's file {}", folder.file().display());
        Error::with_source(ErrorKind::Unavailable, message, source)
    })?;
    let records = Arc::new(records);
    let (sender, requests) = bounded_channel(REQUESTS_MAX);
    let guard = Guard {
        requests,
        engine,
        records: Arc::clone(&records),
        retention: options.retention,
        clock,
        quiet_until: Instant::now(),
    };
    let mut guards = JoinSet::new();
    guards.spawn(guard.run());
    let router = Arc::new(Router::new(RequestChannelService::new(sender), records)?);
    debug!(%address, folder = %options.data_dir.display(), "the broker serves");
    // Whoever waited may have given up, which the token says as well.
    _ = ready.send(address);
    let mut connections = JoinSet::new();
    let outcome = tokio::select! {
        () = accept(&listener, &router, &mut connections, &token) => Ok(()),
        Some(ended) = guards.join_next() => flatten(ended),
    };
    drop(listener);
    token.cancel();
    drain(&mut connections).await;
    drop(router);
    outcome?;
    match timeout(CLOSE_MAX, guards.join_next()).await {
        Ok(Some(ended)) => flatten(ended),
        // The folder's lock goes with the process; SQLite undoes what was half done.
        Ok(None) | Err(_) => Ok(()),
    }
}

async fn bind(listen: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
    let failed = |source: std::io::Error| {
        let why = match source.kind() {
            std::io::ErrorKind::AddrInUse => "is taken by another program",
            _ => "cannot be used",
        };
        let message = format!("the broker's address {listen} {why}; choose another port with --kafka-port");
        Error::with_source(ErrorKind::BadConfig, message, source)
    };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// What clients are told about where the broker is.
fn advertised(host: &str, address: SocketAddr) -> Result<Url> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    Url::parse(&format!("tcp://{host}:{}", address.port())).map_err(|source| {
        Error::with_source(ErrorKind::BadConfig, format!("{host} is no host that clients could reach"), source)
    })
}

/// Takes in clients until the token is cancelled.
async fn accept(
    listener: &TcpListener,
    router: &Arc<Router>,
    connections: &mut JoinSet<()>,
    token: &CancellationToken,
) {
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => {
                    if let Err(error) = stream.set_nodelay(true) {
                        debug!(%error, "answers may wait for one another");
                    }
                    let (router, token) = (Arc::clone(router), token.clone());
                    connections.spawn(async move { router.serve(stream, &token).await });
                }
                // Out of file handles, as a rule: it passes when a client goes.
                Err(error) => {
                    warn!(%error, "a client cannot be taken in");
                    sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = token.cancelled() => return,
        }
    }
}

/// Lets the connections finish what they are at, then ends them.
async fn drain(connections: &mut JoinSet<()>) {
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(DRAIN_MAX, all).await.is_err() {
        connections.shutdown().await;
    }
}

fn flatten(ended: Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    ended.unwrap_or_else(|source| Err(Error::with_source(ErrorKind::Bug, "the broker's guard broke", source)))
}
