//! Kafka → Delta, exactly once: the loop that everything of an ingest process runs in.
//!
//! ```text
//!  poll (a thread) ──Polled──► running (one loop) ──Batch──► write (one at a time)
//!   owns the consumer          intake: offsets      ▲         letters, rows + offsets
//!        ▲                     buffer ─► encode     └──────── Written: committed, lost, or an error
//!        └──────Command────────┘
//! ```
//!
//! There is one way back from everything that goes wrong between the topic and the lake: drop what is in memory, read the
//! ledgers again, and read the topic again from there (`start`). Kafka is the queue; nothing that matters is only in memory.
//!
//! - Another owner was first (`Lost`): that way, at once.
//! - The store does not answer: that way, with a growing pause, for as long as it takes.
//! - The disk is full: the process ends with an error of kind `StorageFull`. All that is not committed is still in Kafka, and
//!   the next start goes on there. It does not wait, because what fills the disk is often the broker beside it.
//! - The lake may not be written (rights, a read-only mount): the process ends with `BadConfig`.
//! - Too many messages of late can't be decoded, and the topic has a limit for that (`limit`): the process ends before it commits.
//! - The topic is not what the ledger says (a gap, a topic made anew): the process ends with the range that is gone.
//!
//! Memory has a bound that no message can move by more than its own size, whatever the commits' limits are:
//!
//! - librdkafka reads 4 MiB ahead of each partition (`queued.max.messages.kbytes`), and one answer of each broker;
//! - 12 MiB of messages, or one larger message, are on their way from the poll thread into files (`room`); one more chunk of
//!   1 MiB, or of one message, fills up;
//! - each table has one open Arrow batch of 8 MiB;
//! - two batches are there as files in memory, one that fills up and one that is being committed. The messages of each have
//!   `flush_bytes` at most, the files a tenth of that or so.

mod buffer;
mod commit;
mod encode;
mod identity;
mod incarnation;
mod intake;
mod limit;
pub(crate) mod poll;
mod recorded;
mod reset;
mod room;
mod running;
mod source;
mod start;
mod totals;
mod write;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lakehouse::Lake;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::kafka::{Kafka, Properties};
use crate::letters::Retention;
use crate::small_files::SmallFiles;
use crate::topic::TopicSpec;
use crate::{Error, ErrorKind, Result};

pub use commit::{Committer, Fenced};
pub use identity::AcceptedGap;
pub use reset::{Move, Position, ResetOptions, ResetReport, reset, writers_of};
pub use room::Room;
pub use source::{Broker, Command, Polled, Revocation, Source};

/// So long at most the end of a run waits for its lease to be given up.
const RELEASE_TIMEOUT: Duration = Duration::from_millis(500);

/// What to consume, and how it is cut into commits.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the brokers are: `host:port`, several with commas.
    pub brokers: String,
    /// The consumer group, by which lag tools know us, and which shares partitions out with [`Sharing::Group`].
    pub group: String,
    /// Who else reads the topic into the same table.
    pub sharing: Sharing,
    /// The topic and its tables.
    pub topic: TopicSpec,
    /// When to end.
    pub stop: Stop,
    /// A message is committed this long after it came, at the latest: what freshness costs in commits.
    pub flush_interval: Duration,
    /// So many messages are committed without waiting. More make larger files and use more memory.
    pub flush_rows: usize,
    /// So many bytes of messages are committed without waiting. In memory they are files by then, a tenth of that.
    pub flush_bytes: usize,
    /// A run to the end gives up when the broker has said nothing for so long. One without an end waits for ever.
    pub silence_max: Duration,
    /// So often small files are put together.
    pub compaction_interval: Duration,
    /// Gaps that the user accepts: what is gone, and is gone on without.
    pub accepted_gaps: Vec<AcceptedGap>,
    /// Further settings of librdkafka.
    pub properties: Properties,
}

impl Options {
    /// For ever, alone, one commit a second or 100,000 messages or 48 MiB.
    pub fn new(brokers: impl Into<String>, topic: TopicSpec) -> Self {
        Self {
            brokers: brokers.into(),
            group: "lakebeat".to_owned(),
            sharing: Sharing::Alone,
            topic,
            stop: Stop::Never,
            flush_interval: Duration::from_secs(1),
            flush_rows: 100_000,
            flush_bytes: 48 << 20,
            silence_max: Duration::from_secs(60),
            compaction_interval: Duration::from_secs(60),
            accepted_gaps: Vec::new(),
            properties: Properties::new(),
        }
    }

    fn check(&self) -> Result<()> {
        self.topic.check()?;
        for (name, is_zero) in [("flush rows", self.flush_rows == 0), ("flush bytes", self.flush_bytes == 0)] {
            if is_zero {
                return Err(Error::new(ErrorKind::BadConfig, format!("{name} is 0: at least 1 is needed")));
            }
        }
        Ok(())
    }
}

/// When to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// When cancelled.
    Never,
    /// When all is committed that was in the topic at the start.
    AtEnd,
}

/// Who reads the topic into the table. Exactly-once does not rest on this: two that read all of it are slow, not wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sharing {
    /// This process alone. Begins at once, and needs no group coordinator.
    Alone,
    /// All processes of the group, each some of the partitions.
    Group,
}

/// How things stand.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Progress {
    /// Messages committed since the start of the process.
    pub events: u64,
    /// Dead letters among what they held.
    pub dead_letters: u64,
    /// Messages committed a second, over the last seconds.
    pub events_per_second: f64,
    /// Messages in the topic that are not committed.
    pub lag: i64,
    /// Next offset to commit and end offset, by partition.
    pub partitions: BTreeMap<i32, PartitionProgress>,
    /// The table's version that our last commit made.
    pub table_version: Option<u64>,
    /// What keeps ingest from going on, while something does.
    pub waiting_for: Option<String>,
}

/// How far one partition is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PartitionProgress {
    /// The next offset to commit.
    pub next_offset: i64,
    /// The offset after the last in the topic.
    pub end_offset: i64,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Why it ended.
    pub ended: Ended,
    /// Rows committed.
    pub rows: u64,
    /// Dead letters committed, or found committed already.
    pub dead_letters: u64,
    /// Offsets that hold no message of ours.
    pub holes: u64,
    /// Commits to the table of rows.
    pub commits: u64,
    /// Messages that came although they were taken already, and were dropped.
    pub repeats: u64,
    /// Batches dropped because another process had moved the ledger.
    pub lost: u64,
    /// The next offset to read, by partition.
    pub next_offsets: BTreeMap<i32, i64>,
}

impl Summary {
    /// Of a run that was cancelled before it had begun.
    fn nothing_done() -> Self {
        Self {
            ended: Ended::Cancelled,
            rows: 0,
            dead_letters: 0,
            holes: 0,
            commits: 0,
            repeats: 0,
            lost: 0,
            next_offsets: BTreeMap::new(),
        }
    }
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// It was cancelled, and has committed what it had, or left it to the next start.
    Cancelled,
    /// All is committed that was in the topic at the start.
    AtEnd,
}

/// Consumes until cancelled, or until the end that was there at the start. Cancelled, it ends within five seconds.
///
/// # Errors
/// `Unavailable` if the broker or the store can't be reached at the start (later both are waited for), `NotFound` if there is
/// no such topic, `BadData` if the topic lacks what the ledger asks for, `StorageFull` if there is no space left.
pub async fn run(
    lake: &Lake,
    options: Options,
    progress: watch::Sender<Progress>,
    token: CancellationToken,
) -> Result<Summary> {
    options.check()?;
    let parts = Parts { broker: Arc::new(Kafka::new(&options)?), committer: Arc::new(Fenced) };
    run_on(lake, options, parts, progress, token).await
}

/// What a run is made of besides its lake.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Where the messages come from.
    pub broker: Arc<dyn Broker>,
    /// How batches get into the tables.
    pub committer: Arc<dyn Committer>,
}

/// The same on a broker and a committer of the caller's, such as those of a simulation.
///
/// # Errors
/// As [`run`].
pub async fn run_on(
    lake: &Lake,
    options: Options,
    parts: Parts,
    progress: watch::Sender<Progress>,
    token: CancellationToken,
) -> Result<Summary> {
    options.check()?;
    let Parts { broker, committer } = parts;
    let opening = async {
        let partitions = broker.partitions(&options.topic.name).await?;
        let cluster_id = broker.cluster_id().await;
        Ok((partitions, write::Sink::open(lake, &options.topic, cluster_id, committer).await?))
    };
    let Some((partitions, sink)) = token.run_until_cancelled(opening).await.transpose()? else {
        return Ok(Summary::nothing_done());
    };
    // It writes nothing yet: what fails up to here leaves no lease behind.
    let consuming = running::Consuming::start(options.clone(), sink, broker, progress)?;
    let Options { topic, stop, compaction_interval, .. } = options;
    let purpose = writers_of(&topic.table);
    let mut lease = lake.take_lease(&purpose, &holder()).await?;
    let care = Care {
        retention: Retention::of(lake, &topic),
        small_files: SmallFiles::of(lake, &topic, (purpose, lease.info().clone()), compaction_interval),
    };
    let ended = tokio::select! {
        ended = care.beside(consuming.run(partitions, token.clone()), stop, token) => ended,
        () = lease.keep() => unreachable!("a lease is kept for ever"),
    };
    // A store that is away must not keep a process that ends.
    let _ = tokio::time::timeout(RELEASE_TIMEOUT, lease.release()).await;
    lake.settle().await;
    ended
}

/// What is done for the tables besides writing to them.
struct Care {
    retention: Option<Retention>,
    small_files: SmallFiles,
}

impl Care {
    /// Runs beside the loop, which never waits for it; letters that are due go after one that has an end.
    async fn beside(
        self,
        consuming: impl Future<Output = Result<Summary>>,
        stop: Stop,
        token: CancellationToken,
    ) -> Result<Summary> {
        let Self { retention, small_files } = self;
        // It goes with the loop.
        let mut beside = JoinSet::new();
        beside.spawn(small_files.run());
        match (stop, retention) {
            (Stop::Never, Some(retention)) => {
                beside.spawn(retention.run());
                consuming.await
            }
            (Stop::AtEnd, Some(mut retention)) => {
                let summary = consuming.await?;
                token.run_until_cancelled(retention.round()).await;
                Ok(summary)
            }
            (_, None) => consuming.await,
        }
    }
}

/// How others see this process.
fn holder() -> String {
    format!("process {}", std::process::id())
}
