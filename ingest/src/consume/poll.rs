//! The thread that polls librdkafka. It owns the consumer: all else asks it by a command and hears from it by the queue.
//!
//! The queue is bounded, so a lake that is slower than the topic slows the thread down, and librdkafka's own read-ahead is
//! bounded too. What the thread hands on carries the epoch of the assignment that it was read under: after a new assignment
//! nothing of an old one can be taken for it, which would make a gap.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::room::Rooms;
use super::source::{Command, Polled, Revocation, Source};
use super::{Options, Sharing};
use crate::records::{Record, Records};
use crate::{Error, ErrorKind, Result, kafka};

/// So many messages at most are handed on together.
const CHUNK_MESSAGES: usize = 4096;
/// So many bytes at most, unless one message alone has more.
const CHUNK_BYTES: usize = 1 << 20;
/// A commit is made of so many chunks at least, so that it goes beyond its limits by a fraction only.
const CHUNKS_A_COMMIT: usize = 4;
/// A chunk that does not fill up is handed on after this time.
const CHUNK_AGE: Duration = Duration::from_millis(10);
/// The age of a chunk is looked at when so many messages came in without a pause.
const MESSAGES_A_LOOK: usize = 128;
/// So many chunks wait in the queue.
const CHUNKS_WAITING: usize = 8;
/// So long at most the thread sleeps in librdkafka before it looks for commands.
const NAP: Duration = Duration::from_millis(20);

/// The thread, from outside. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Poller {
    commands: Sender<Command>,
    polled: mpsc::Receiver<Polled>,
    ended: oneshot::Receiver<()>,
}

impl Poller {
    /// Starts the thread. With [`Sharing::Group`] it joins the group at once, else it waits for a first `Assign`.
    pub(crate) fn start(options: &Options) -> Result<Self> {
        let config = kafka::consumer_config(&options.brokers, &options.group, &options.properties)?;
        let consumer = BaseConsumer::from_config_and_context(&config, Context::default())
            .map_err(|source| kafka::config_error("cannot make a consumer", source))?;
        if options.sharing == Sharing::Group {
            consumer
                .subscribe(&[&options.topic.name])
                .map_err(|source| kafka::unavailable(&options.brokers, "cannot join the consumer group", source))?;
        }
        let (commands, receiver) = std::sync::mpsc::channel();
        let (sender, polled) = mpsc::channel(CHUNKS_WAITING);
        let (end, ended) = oneshot::channel();
        let thread = Thread {
            topic: options.topic.name.clone(),
            brokers: options.brokers.clone(),
            consumer,
            commands: receiver,
            polled: sender,
            rooms: Rooms::new(),
            chunk_messages: (options.flush_rows / CHUNKS_A_COMMIT).clamp(1, CHUNK_MESSAGES),
            chunk_bytes: (options.flush_bytes / CHUNKS_A_COMMIT).clamp(1, CHUNK_BYTES),
            epoch: 0,
            chunk: Records::default(),
            chunk_since: Instant::now(),
        };
        // Not one of the runtime's threads: those are waited for at the end, and a broker that hangs must not hang us.
        std::thread::Builder::new()
            .name("ingest-poll".to_owned())
            .spawn(move || {
                thread.run();
                // Nobody waits any more: fine.
                let _ = end.send(());
            })
            .map_err(|source| Error::with_source(ErrorKind::Unavailable, "cannot start a thread", source))?;
        Ok(Self { commands, polled, ended })
    }
}

#[async_trait]
impl Source for Poller {
    async fn next(&mut self) -> Option<Polled> {
        self.polled.recv().await
    }

    fn ask(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    async fn end(self: Box<Self>) {
        let Self { commands, polled, ended } = *self;
        drop((commands, polled));
        let _ = ended.await;
    }
}

/// Notes rebalances instead of acting on them: the loop has to commit before partitions are let go of.
#[derive(Debug, Default)]
struct Context {
    /// Set when the consumer is being closed: then nobody is left to act, and partitions are let go of at once.
    closing: AtomicBool,
    /// Rebalances that the thread has not yet passed on.
    rebalances: Mutex<Vec<Polled>>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        kafka::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
        if self.closing.load(Ordering::Acquire) {
            if let Err(error) = consumer.unassign() {
                tracing::debug!(%error, "partitions not let go of");
            }
            return;
        }
        let event = match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                Polled::Assigned(list.elements().iter().map(|element| element.partition()).collect())
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS if consumer.assignment_lost() => {
                Polled::Revoked(Revocation::Lost)
            }
            _ => Polled::Revoked(Revocation::Asked),
        };
        self.rebalances.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    fn commit_callback(&self, result: rdkafka::error::KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            // Only lag tools look at these offsets.
            tracing::debug!(%error, "group offsets not committed");
        }
    }
}

/// Whoever was listening is gone: the thread ends.
struct Gone;

struct Thread {
    topic: String,
    brokers: String,
    consumer: BaseConsumer<Context>,
    commands: Receiver<Command>,
    polled: mpsc::Sender<Polled>,
    rooms: Rooms,
    chunk_messages: usize,
    chunk_bytes: usize,
    /// The assignment that messages are read under.
    epoch: u64,
    /// Messages that are not handed on yet.
    chunk: Records,
    /// When its first one came.
    chunk_since: Instant,
}

impl Thread {
    fn run(mut self) {
        while self.turn().is_ok() {}
        self.consumer.context().closing.store(true, Ordering::Release);
    }

    fn turn(&mut self) -> Result<(), Gone> {
        self.obey()?;
        // Each call with a timeout looks at the clock once more, which costs as much as all else that we do with a message.
        let mut waited = false;
        let polled = self.consumer.poll(Duration::ZERO).or_else(|| {
            waited = true;
            self.consumer.poll(if self.chunk.is_empty() { NAP } else { CHUNK_AGE })
        });
        let mut idle = false;
        match polled {
            Some(Ok(message)) => {
                if self.chunk.is_empty() {
                    self.chunk_since = Instant::now();
                }
                push(&mut self.chunk, &message);
            }
            Some(Err(error)) => {
                self.hand_on()?;
                self.report(error)?;
            }
            None => idle = true,
        }
        let full = self.chunk.len() >= self.chunk_messages || self.chunk.bytes() >= self.chunk_bytes;
        // Where messages need no waiting for, a chunk is soon full, and its age is looked at now and then only.
        let look = !self.chunk.is_empty() && (waited || self.chunk.len().is_multiple_of(MESSAGES_A_LOOK));
        if full || idle || look && self.chunk_since.elapsed() >= CHUNK_AGE {
            self.hand_on()?;
        }
        let rebalances =
            std::mem::take(&mut *self.consumer.context().rebalances.lock().unwrap_or_else(PoisonError::into_inner));
        for event in rebalances {
            self.hand_on()?;
            self.say(event)?;
        }
        Ok(())
    }

    fn say(&self, polled: Polled) -> Result<(), Gone> {
        self.polled.blocking_send(polled).map_err(|_| Gone)
    }

    fn hand_on(&mut self) -> Result<(), Gone> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let room = Records::with_capacity(
            self.chunk.len() + self.chunk.len() / 8,
            self.chunk.bytes() + self.chunk.bytes() / 8,
        );
        let records = std::mem::replace(&mut self.chunk, room);
        let room = self.rooms.wait_for(records.memory());
        self.say(Polled::Records { epoch: self.epoch, records, room })
    }

    fn report(&self, error: KafkaError) -> Result<(), Gone> {
        use RDKafkaErrorCode as Code;
        let epoch = self.epoch;
        let event = match error {
            KafkaError::PartitionEOF(partition) => Polled::Exhausted { epoch, partition },
            KafkaError::MessageConsumption(
                Code::AutoOffsetReset
                | Code::OffsetOutOfRange
                | Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::UnknownPartition,
            ) => Polled::OutOfRange { epoch },
            KafkaError::MessageConsumptionFatal(_)
            | KafkaError::MessageConsumption(Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed) => {
                let doing = format!("cannot read topic {}", self.topic);
                Polled::Failed(kafka::unavailable(&self.brokers, &doing, error))
            }
            // librdkafka would ask for the same batch for ever.
            KafkaError::MessageConsumption(Code::NotImplemented | Code::BadCompression) => {
                let message = format!(
                    "topic {} holds a batch that cannot be decompressed; it is damaged, or its codec is none of gzip, snappy, \
                     lz4, zstd: nothing was skipped, see what another consumer makes of it",
                    self.topic
                );
                Polled::Failed(Error::with_source(ErrorKind::BadData, message, error))
            }
            other => Polled::Trouble(other.to_string()),
        };
        self.say(event)
    }

    fn obey(&mut self) -> Result<(), Gone> {
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.perform(command)?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(Gone),
            }
        }
    }

    fn perform(&mut self, command: Command) -> Result<(), Gone> {
        let done = match command {
            Command::Assign { epoch, offsets } => {
                // What was read under the old assignment is of no use any more.
                self.chunk = Records::default();
                self.epoch = epoch;
                self.list(&offsets).and_then(|list| self.consumer.assign(&list))
            }
            Command::Unassign => {
                self.chunk = Records::default();
                self.consumer.unassign()
            }
            Command::Commit(offsets) => {
                let commit = self.list(&offsets).and_then(|list| self.consumer.commit(&list, CommitMode::Async));
                if let Err(error) = commit {
                    tracing::debug!(%error, "group offsets not committed");
                }
                Ok(())
            }
        };
        match done {
            Ok(()) => Ok(()),
            Err(source) => {
                let doing = format!("cannot turn to the partitions of topic {}", self.topic);
                self.say(Polled::Failed(kafka::unavailable(&self.brokers, &doing, source)))
            }
        }
    }

    fn list(&self, offsets: &BTreeMap<i32, i64>) -> Result<TopicPartitionList, KafkaError> {
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for (&partition, &offset) in offsets {
            list.add_partition_offset(&self.topic, partition, Offset::Offset(offset))?;
        }
        Ok(list)
    }
}

pub(crate) fn push(chunk: &mut Records, message: &BorrowedMessage<'_>) {
    let headers = message.headers().filter(|headers| headers.count() > 0).map(|headers| {
        let one = |header: rdkafka::message::Header<'_, &[u8]>| match header
            .value
            .map(|value| (std::str::from_utf8(value), value))
        {
            None => json!({ "key": header.key, "value": null }),
            Some((Ok(text), _)) => json!({ "key": header.key, "value": text }),
            Some((Err(_), bytes)) => json!({ "key": header.key, "value_base64": base64(bytes) }),
        };
        Value::from_iter(headers.iter().map(one)).to_string()
    });
    chunk.push(&Record {
        partition: message.partition(),
        offset: message.offset(),
        // One that does not fit the table's microseconds is as good as none, here as in what is read back from the table.
        timestamp_millis: message.timestamp().to_millis().filter(|millis| millis.checked_mul(1000).is_some()),
        key: message.key(),
        payload: message.payload(),
        headers: headers.as_deref(),
    });
}

fn base64(bytes: &[u8]) -> String {
    use ::base64::Engine as _;
    ::base64::engine::general_purpose::STANDARD.encode(bytes)
}
