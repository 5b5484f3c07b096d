//! The loop. It takes one event after the other; what it may do depends on its phase, which is a type: [`Consuming`] takes
//! messages, [`Draining`] only brings home what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lakehouse::ConsumedRange;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::buffer::Buffer;
use super::encode::Encoding;
use super::intake::Intake;
use super::source::{Broker, Command, Polled, Revocation, Source};
use super::start;
use super::totals::Totals;
use super::write::{self, Batch, Bound, Sink, Written};
use super::{Ended, Options, PartitionProgress, Progress, Sharing, Stop, Summary};
use crate::decode::Recorded;
use crate::{Error, ErrorKind, Result};

/// So often the ends of the partitions are asked for, and progress is told.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Each so many times the topic is asked for new partitions too.
const PARTITIONS_EVERY: u64 = 15;
/// The pause after a first fault of the store; it doubles each time.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// So long at most the end of a run waits for commits. What they leave behind is still in Kafka.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// So long at most it waits for the consumer to say good-bye to its broker.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// All that can happen.
enum Event {
    Polled(Polled),
    Written(Result<Written>),
    Probed(Result<Probed>),
    ProbeDue,
    FlushDue,
    Cancelled,
}

/// What the broker says about the topic now and then.
struct Probed {
    ends: BTreeMap<i32, i64>,
    /// How far the partitions were taken when they were asked for.
    taken: BTreeMap<i32, i64>,
    /// All partitions, where they were asked for.
    partitions: Option<BTreeSet<i32>>,
}

/// What comes after an event.
enum Next {
    Go,
    End(Ended),
}

/// The phase in which messages are taken.
pub(super) struct Consuming {
    options: Options,
    sink: Arc<Sink>,
    broker: Arc<dyn Broker>,
    source: Box<dyn Source>,
    progress: watch::Sender<Progress>,
    /// The partitions that are ours.
    assigned: BTreeSet<i32>,
    intake: Intake,
    /// Partitions that were seen to be others than those that were read, until the start has dealt with them.
    strangers: BTreeSet<i32>,
    /// Whether the broker did not know the ends of all of them when it was last asked.
    is_away: bool,
    /// Counts assignments; what the poll thread read under an older one is dropped.
    epoch: u64,
    bound: Bound,
    recorded: Arc<Recorded>,
    buffer: Buffer,
    /// The batch that is being written: one at most, since the next one is bound to what it commits.
    writing: JoinSet<Result<Written>>,
    /// The question that is under way at the broker: one at most.
    probing: JoinSet<Result<Probed>>,
    next_probe: Instant,
    probes: u64,
    /// The pause before the ledgers are read again.
    pause: Duration,
    /// What keeps us from going on, while something does.
    waiting_for: Option<String>,
    /// When the broker last had something to say.
    heard: Instant,
    totals: Totals,
}

impl Consuming {
    pub(super) fn start(
        options: Options,
        sink: Sink,
        broker: Arc<dyn Broker>,
        progress: watch::Sender<Progress>,
    ) -> Result<Self> {
        Ok(Self {
            source: broker.read(&options)?,
            options,
            sink: Arc::new(sink),
            broker,
            progress,
            assigned: BTreeSet::new(),
            intake: Intake::default(),
            strangers: BTreeSet::new(),
            is_away: false,
            epoch: 0,
            bound: Bound::default(),
            recorded: Arc::default(),
            buffer: Buffer::default(),
            writing: JoinSet::new(),
            probing: JoinSet::new(),
            next_probe: Instant::now() + PROBE_INTERVAL,
            probes: 0,
            pause: PAUSE_MIN,
            waiting_for: None,
            heard: Instant::now(),
            totals: Totals::default(),
        })
    }

    /// Consumes to the end. `partitions` are ours where nobody shares them out.
    pub(super) async fn run(mut self, partitions: BTreeSet<i32>, token: CancellationToken) -> Result<Summary> {
        if self.options.sharing == Sharing::Alone {
            self.assigned = partitions;
            let Some(()) = token.run_until_cancelled(self.begin()).await.transpose()? else {
                return Draining { phase: self, ended: Ended::Cancelled }.finish().await;
            };
        }
        loop {
            let next = match self.next_event(&token).await {
                Event::Cancelled => Next::End(Ended::Cancelled),
                event => {
                    // What waits for a store that is away must still end when asked to. The event goes first, so that
                    // one that was taken is never dropped.
                    tokio::select! {
                        biased;
                        next = self.handle(event) => next?,
                        () = token.cancelled() => Next::End(Ended::Cancelled),
                    }
                }
            };
            if let Next::End(ended) = next {
                return Draining { phase: self, ended }.finish().await;
            }
        }
    }

    async fn next_event(&mut self, token: &CancellationToken) -> Event {
        let is_writing = !self.writing.is_empty();
        let flush_at = self.buffer.since.map(|since| since + self.options.flush_interval);
        // While a batch is being written the next one fills up; beyond that the topic has to wait.
        let has_room = self.buffer.rows < self.options.flush_rows && self.buffer.bytes < self.options.flush_bytes;
        tokio::select! {
            biased;
            () = token.cancelled() => Event::Cancelled,
            Some(written) = self.writing.join_next() => Event::Written(flatten(written)),
            Some(probed) = self.probing.join_next() => Event::Probed(flatten(probed)),
            () = tokio::time::sleep_until(flush_at.unwrap_or(self.next_probe)), if flush_at.is_some() && !is_writing => Event::FlushDue,
            () = tokio::time::sleep_until(self.next_probe) => Event::ProbeDue,
            polled = polled(self.source.as_mut()), if has_room => Event::Polled(polled),
        }
    }

    async fn handle(&mut self, event: Event) -> Result<Next> {
        match event {
            Event::Polled(polled) => self.take(polled).await?,
            Event::Written(written) => self.settle(written).await?,
            Event::Probed(probed) => self.learn(probed).await?,
            Event::ProbeDue => self.ask_broker()?,
            Event::FlushDue => self.flush(),
            Event::Cancelled => return Ok(Next::End(Ended::Cancelled)),
        }
        if self.buffer.rows >= self.options.flush_rows || self.buffer.bytes >= self.options.flush_bytes {
            self.flush();
        }
        Ok(if self.is_at_end() { Next::End(Ended::AtEnd) } else { Next::Go })
    }

    /// Whether all is taken that was there at the start. What is not yet committed of it does not wait any longer.
    fn is_at_end(&mut self) -> bool {
        let may_end = self.options.stop == Stop::AtEnd && !self.assigned.is_empty();
        if !(may_end && self.intake.is_at_end()) {
            return false;
        }
        self.flush();
        self.writing.is_empty()
    }

    async fn take(&mut self, polled: Polled) -> Result<()> {
        match polled {
            Polled::Records { epoch, mut records, room } if epoch == self.epoch => {
                self.heard = Instant::now();
                match self.intake.admit(&mut records) {
                    Ok(repeats) => {
                        self.totals.repeats += repeats;
                        let incarnations = &self.bound.incarnations;
                        let begin = || Encoding::new(self.sink.clone(), self.recorded.clone(), incarnations.clone());
                        self.buffer.push(records, room, begin);
                    }
                    // The start looks at the other partitions too, and says what is gone.
                    Err(stranger) => {
                        self.strangers.insert(stranger.partition);
                        // What was taken of these messages before the strange one came to no batch: a drain must not count it.
                        self.forget();
                        self.intake.restart(&BTreeMap::new());
                        self.begin_again().await?;
                    }
                }
            }
            Polled::Exhausted { epoch, partition } if epoch == self.epoch => self.intake.exhausted(partition),
            Polled::OutOfRange { epoch } if epoch == self.epoch => {
                self.look_again("the broker has no such offset, or no such partition").await?;
            }
            Polled::Records { .. } | Polled::Exhausted { .. } | Polled::OutOfRange { .. } => {}
            Polled::Assigned(partitions) => {
                tracing::info!(?partitions, topic = self.options.topic.name, "partitions assigned");
                self.assigned = partitions;
                self.begin_again().await?;
            }
            Polled::Revoked(how) => self.hand_over(how).await,
            Polled::Trouble(error) => tracing::info!(%error, "Kafka has trouble; librdkafka goes on trying"),
            Polled::Failed(error) => return Err(self.with_places(error)),
        }
        Ok(())
    }

    /// Data that nobody can read is told with where that is, as far as it is known, and how one goes on without it.
    fn with_places(&self, error: Error) -> Error {
        if error.kind() != ErrorKind::BadData {
            return error;
        }
        let places: Vec<String> = self
            .intake
            .places()
            .map(|(partition, next, _)| format!("partition {partition} at offset {next}"))
            .collect();
        let message = format!(
            "{error}. Reading stood at {}; to go on behind what is damaged, as a recorded gap: ingest reset --topic {} --partition N \
             --to OFFSET",
            places.join(", "),
            self.options.topic.name
        );
        Error::new(ErrorKind::BadData, message)
    }

    /// The topic is not what it was a moment ago: the start says which range is gone, if one is.
    async fn look_again(&mut self, seen: &str) -> Result<()> {
        self.drain().await;
        self.wait_after(&Error::new(ErrorKind::Unavailable, seen)).await;
        self.begin_again().await
    }

    /// Commits what is there and lets go of all partitions.
    async fn hand_over(&mut self, how: Revocation) {
        tracing::info!(?how, topic = self.options.topic.name, "partitions taken back");
        if how == Revocation::Asked {
            self.drain().await;
        }
        self.forget();
        self.assigned.clear();
        self.intake.restart(&BTreeMap::new());
        self.source.ask(Command::Unassign);
    }

    /// Drops what is in memory. A batch that is being written is broken off: the ledgers will tell how it ended.
    fn forget(&mut self) {
        self.epoch += 1;
        self.buffer = Buffer::default();
        // What it commits from now on would be committed by nobody's knowledge, but the ledgers are read before anything else.
        self.writing = JoinSet::new();
    }

    /// Reads the ledgers and turns to what they say comes next.
    async fn begin(&mut self) -> Result<()> {
        let asker = start::Asker {
            sink: &self.sink,
            broker: self.broker.as_ref(),
            partitions: &self.assigned,
            accepted: &self.options.accepted_gaps,
            strangers: &self.strangers,
        };
        let start = start::find(&asker).await?;
        self.strangers.clear();
        self.forget();
        // What is being asked is of an assignment that has just ended.
        self.probing = JoinSet::new();
        self.intake.restart(&start.partitions);
        self.bound = start.bound;
        self.recorded = Arc::new(start.recorded);
        let offsets: BTreeMap<i32, i64> =
            start.partitions.iter().map(|(&partition, start)| (partition, start.seek())).collect();
        for (&partition, start) in &start.partitions {
            self.totals.committed.insert(partition, start.next);
        }
        tracing::info!(topic = self.options.topic.name, ?offsets, table_version = self.bound.bronze, "reading");
        self.source.ask(Command::Assign { epoch: self.epoch, offsets });
        self.heard = Instant::now();
        self.waiting_for = None;
        self.tell();
        Ok(())
    }

    /// The same after something went wrong: tries for as long as the store or the broker can't be reached.
    async fn begin_again(&mut self) -> Result<()> {
        loop {
            match self.begin().await {
                Err(error) if error.kind() == ErrorKind::Unavailable => self.wait_after(&error).await,
                result => return result,
            }
        }
    }

    async fn wait_after(&mut self, error: &Error) {
        tracing::warn!(%error, pause = ?self.pause, "cannot go on yet; nothing is lost, Kafka keeps it");
        self.waiting_for = Some(error.to_string());
        self.tell();
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    /// Hands the buffer to a writer, unless one is at work.
    fn flush(&mut self) {
        if !self.writing.is_empty() || self.buffer.rows == 0 {
            return;
        }
        let buffer = std::mem::take(&mut self.buffer);
        let batch = Batch { bound: self.bound.clone(), ranges: self.intake.take_ranges(), work: buffer.work };
        self.writing.spawn(write::write(self.sink.clone(), batch));
    }

    async fn settle(&mut self, written: Result<Written>) -> Result<()> {
        match written {
            Ok(Written::Committed { bound, ranges }) => {
                self.pause = PAUSE_MIN;
                self.count(bound, ranges);
                Ok(())
            }
            Ok(Written::Lost { table, winner }) => {
                tracing::info!(
                    table,
                    winner,
                    "another commit was first: of the same partitions, or of new columns; reading the ledger again"
                );
                self.totals.lost += 1;
                self.forget();
                // Two that read the same partitions would otherwise lose to each other by turns at full speed.
                tokio::time::sleep(self.options.flush_interval / 2).await;
                self.begin_again().await
            }
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Conflict) => {
                self.forget();
                self.wait_after(&error).await;
                self.begin_again().await
            }
            Err(error) if error.kind() == ErrorKind::StorageFull => {
                let message = format!(
                    "no space left for {}; what is not committed is still in Kafka: make space and start again",
                    self.options.topic.table
                );
                Err(Error::with_source(ErrorKind::StorageFull, message, error))
            }
            Err(error) => Err(error),
        }
    }

    fn count(&mut self, bound: Bound, ranges: Vec<ConsumedRange>) {
        self.totals.count(bound.bronze, &ranges);
        self.bound = bound;
        self.source.ask(Command::Commit(ranges.iter().map(|range| (range.partition, range.to)).collect()));
        self.tell();
    }

    fn ask_broker(&mut self) -> Result<()> {
        if self.options.stop == Stop::AtEnd && self.heard.elapsed() > self.options.silence_max {
            let message = format!(
                "the Kafka broker at {} has said nothing for {} s; what is not committed is still there: start again",
                self.options.brokers,
                self.options.silence_max.as_secs()
            );
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        self.next_probe = Instant::now() + PROBE_INTERVAL;
        self.totals.measure_rate();
        self.tell();
        if !self.probing.is_empty() {
            return Ok(());
        }
        self.probes += 1;
        let is_alone = self.options.sharing == Sharing::Alone;
        // A group of more members than partitions leaves some without one: those ask to hear whether the broker is there.
        let asks_partitions = is_alone && self.probes.is_multiple_of(PARTITIONS_EVERY) || self.assigned.is_empty();
        let (broker, topic, assigned) = (self.broker.clone(), self.options.topic.name.clone(), self.assigned.clone());
        let taken = self.intake.places().map(|(partition, next, _)| (partition, next)).collect();
        self.probing.spawn(async move {
            let partitions = if asks_partitions { Some(broker.partitions(&topic).await?) } else { None };
            let ends = broker.ends(&topic, &assigned).await?;
            Ok(Probed { ends, taken, partitions: partitions.filter(|_| is_alone) })
        });
        Ok(())
    }

    async fn learn(&mut self, probed: Result<Probed>) -> Result<()> {
        match probed {
            Ok(Probed { ends, taken, partitions }) => {
                self.heard = Instant::now();
                self.waiting_for = None;
                if taken.iter().any(|(partition, taken)| ends.get(partition).is_some_and(|end| end < taken)) {
                    return self.look_again("a partition ends before what was read of it").await;
                }
                // A partition without an end has no leader, or is gone. Whether it is the same one that comes back has to be seen.
                let was_away = std::mem::replace(&mut self.is_away, ends.len() < self.assigned.len());
                if was_away && !self.is_away {
                    return self.look_again("partitions were away for a moment").await;
                }
                self.intake.learn_ends(&ends);
                if let Some(partitions) = partitions.filter(|partitions| !partitions.is_subset(&self.assigned)) {
                    tracing::info!(?partitions, topic = self.options.topic.name, "the topic has new partitions");
                    self.drain().await;
                    self.assigned = partitions;
                    self.begin_again().await?;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the ends of the partitions are not known");
                self.waiting_for = Some(error.to_string());
            }
        }
        Ok(())
    }

    /// Commits all that was taken. What fails is left to the next reading of the ledgers.
    async fn drain(&mut self) {
        loop {
            self.flush();
            match self.writing.join_next().await.map(flatten) {
                None => return,
                Some(Ok(Written::Committed { bound, ranges })) => self.count(bound, ranges),
                Some(Ok(Written::Lost { table, winner })) => {
                    tracing::info!(table, winner, "another process commits the same partitions");
                    self.totals.lost += 1;
                    return self.forget();
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "the last messages were not committed; they are still in Kafka");
                    return self.forget();
                }
            }
        }
    }

    fn tell(&self) {
        let totals = &self.totals;
        let partitions: BTreeMap<i32, PartitionProgress> = self
            .intake
            .places()
            .map(|(partition, next, end_offset)| {
                let next_offset = totals.committed.get(&partition).copied().unwrap_or(next);
                (partition, PartitionProgress { next_offset, end_offset })
            })
            .collect();
        self.progress.send_replace(Progress {
            events: totals.messages,
            dead_letters: totals.dead_letters,
            events_per_second: totals.events_per_second(),
            lag: partitions.values().map(|one| (one.end_offset - one.next_offset).max(0)).sum(),
            partitions,
            table_version: totals.table_version,
            waiting_for: self.waiting_for.clone(),
        });
    }
}

/// The phase in which only what is there is brought home.
struct Draining {
    phase: Consuming,
    ended: Ended,
}

impl Draining {
    async fn finish(self) -> Result<Summary> {
        let Self { mut phase, ended } = self;
        let in_time = tokio::time::timeout(DRAIN_TIMEOUT, phase.drain()).await;
        if in_time.is_err() {
            tracing::warn!("the last messages were not committed in time; they are still in Kafka");
        }
        let Consuming { source, totals, .. } = phase;
        if tokio::time::timeout(GOODBYE_TIMEOUT, source.end()).await.is_err() {
            tracing::debug!("the broker does not answer the consumer's good-bye");
        }
        let Totals { rows, dead_letters, holes, commits, repeats, lost, committed, .. } = totals;
        Ok(Summary { ended, rows, dead_letters, holes, commits, repeats, lost, next_offsets: committed })
    }
}

/// What the reader has to say next. Nothing is lost where this is not awaited to its end.
async fn polled(source: &mut dyn Source) -> Polled {
    let ended = || Polled::Failed(Error::new(ErrorKind::Bug, "the thread that polls Kafka has ended"));
    source.next().await.unwrap_or_else(ended)
}

/// A task that was broken off or panicked is an error like any other.
fn flatten<T>(joined: Result<Result<T>, JoinError>) -> Result<T> {
    joined.unwrap_or_else(|source| Err(Error::with_source(ErrorKind::Bug, "a part of ingest was broken off", source)))
}
