//! A producer of listening events with the contract of the bundled pipeline, clean and dirty ones.
//!
//! With a seed the same events come again, timestamps included: they begin at a fixed moment ([`event::SEEDED_START`]) and
//! advance by a fixed step for each message, whatever the rate. Without a seed they carry the time at which they are made.
//! Which partition a message lands in follows from its key, so a run of one seed differs from another only in offsets.

mod delivery;
mod event;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lakehouse::Clock;
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

pub use event::{Kind, Simulated, Simulator};

use crate::kafka::{self, Probe, Properties};
use crate::{Error, ErrorKind, Result};
use delivery::{Delivery, Sent, Tally};

/// What to produce.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the brokers are: `host:port`, several with commas.
    pub brokers: String,
    /// The topic; it has to be there.
    pub topic: String,
    /// Further settings of librdkafka.
    pub properties: Properties,
    /// How many messages; `None` is for ever.
    pub count: Option<u64>,
    /// Messages a second; 0 is as fast as it goes.
    pub rate: f64,
    /// How many listeners there are.
    pub users: u32,
    /// The same seed gives the same messages.
    pub seed: Option<u64>,
    /// The share of messages that are faulty in one of nine ways, 0 to 1.
    pub dirty: f64,
    /// A file that gets one JSON line for each message that a broker has confirmed: kind, event, place, key, payload.
    pub log: Option<PathBuf>,
}

impl Options {
    /// For ever, 20 messages a second of 100 listeners, clean.
    pub fn new(brokers: impl Into<String>, topic: impl Into<String>) -> Self {
        Self {
            brokers: brokers.into(),
            topic: topic.into(),
            properties: Properties::new(),
            count: None,
            rate: 20.0,
            users: 100,
            seed: None,
            dirty: 0.0,
            log: None,
        }
    }

    fn check(&self) -> Result<()> {
        let bad = |message: String| Err(Error::new(ErrorKind::BadConfig, message));
        if !(0.0..=1.0).contains(&self.dirty) {
            return bad(format!("dirty is {}: it is a share, between 0 and 1", self.dirty));
        }
        if !(self.rate >= 0.0 && self.rate.is_finite()) {
            return bad(format!("rate is {}: it is 0 (as fast as it goes) or messages a second", self.rate));
        }
        if self.users == 0 {
            return bad("users is 0: at least one listener is needed".to_owned());
        }
        Ok(())
    }
}

/// What was produced.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Messages that a broker has confirmed.
    pub delivered: u64,
    /// Messages that were given up, or not confirmed by the time of the end. A broker may have some of them.
    pub failed: u64,
    /// How long it took.
    pub seconds: f64,
    /// Confirmed messages by kind.
    pub kinds: BTreeMap<Kind, u64>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = if self.seconds > 0.0 { self.delivered as f64 / self.seconds } else { 0.0 };
        write!(f, "{} messages delivered in {:.1} s ({rate:.0} a second)", self.delivered, self.seconds)?;
        if self.failed > 0 {
            write!(f, ", {} not confirmed", self.failed)?;
        }
        for (kind, count) in &self.kinds {
            write!(f, "\n  {:<16} {count}", kind.name())?;
        }
        Ok(())
    }
}

/// Produces until the count is reached or `token` is cancelled, then waits for what is under way.
///
/// A broker that goes away is waited for (librdkafka tries again by itself, without doubling); its queue is bounded, so
/// nothing piles up meanwhile.
///
/// # Errors
/// `Unavailable` if no broker answers at the start; `NotFound` if the topic is not there; `BadConfig` for a wrong option.
pub async fn run(options: Options, clock: Arc<dyn Clock>, token: CancellationToken) -> Result<Report> {
    options.check()?;
    let probe = Probe::new(&options.brokers, &options.properties)?;
    let topic = options.topic.clone();
    kafka::blocking(move || probe.partitions(&topic)).await?;
    // The thread must end with this call, even if the call is dropped; the caller's token is none of ours to cancel.
    let token = token.child_token();
    let _cancel_on_drop = token.clone().drop_guard();
    kafka::blocking(move || Run::start(options, clock, token.clone())?.until_end()).await
}

/// So long at most a run waits at its end for the confirmation of what it has sent.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(60);
/// The same for a cancelled run.
const CONFIRM_TIMEOUT_CANCELLED: Duration = Duration::from_secs(3);
/// So long at most the thread sleeps before it looks whether it is cancelled.
const NAP: Duration = Duration::from_millis(50);
/// A producer that is further behind its schedule starts a new one instead of catching up in a burst.
const BEHIND_MAX: Duration = Duration::from_secs(1);

/// One run, on a thread of its own.
struct Run {
    options: Options,
    token: CancellationToken,
    simulator: Simulator,
    producer: BaseProducer<Delivery>,
    tally: Arc<Tally>,
    started: Instant,
    /// The moment of the schedule's message 0.
    schedule_start: Instant,
    /// Messages since then.
    scheduled: u64,
    sent: u64,
    /// When the cancellation was noticed at the end.
    cancelled_at: OnceCell<Instant>,
}

impl Run {
    fn start(options: Options, clock: Arc<dyn Clock>, token: CancellationToken) -> Result<Self> {
        let tally = Arc::new(Tally::new(options.log.as_deref())?);
        let producer = producer(&options, &tally)?;
        let simulator = Simulator::new(options.seed, options.users, options.dirty, clock);
        let now = Instant::now();
        Ok(Self {
            options,
            token,
            simulator,
            producer,
            tally,
            started: now,
            schedule_start: now,
            scheduled: 0,
            sent: 0,
            cancelled_at: OnceCell::new(),
        })
    }

    fn until_end(mut self) -> Result<Report> {
        while !self.token.is_cancelled() && self.options.count.is_none_or(|count| self.sent < count) {
            if !self.wait_for_turn() {
                break;
            }
            let message = self.simulator.next().expect("a simulator never ends");
            self.send(message)?;
        }
        self.finish()
    }

    /// Waits until the next message is due, serving confirmations meanwhile. No if the run was cancelled.
    fn wait_for_turn(&mut self) -> bool {
        if self.options.rate == 0.0 {
            // Confirmations have to be taken once in a while; a full queue takes them too.
            if self.sent.is_multiple_of(1024) {
                self.serve(Duration::ZERO);
            }
            return true;
        }
        let due = self.schedule_start + Duration::from_secs_f64(self.scheduled as f64 / self.options.rate);
        self.scheduled += 1;
        loop {
            let now = Instant::now();
            if now >= due {
                if now - due > BEHIND_MAX {
                    (self.schedule_start, self.scheduled) = (now, 0);
                }
                return true;
            }
            if self.token.is_cancelled() {
                return false;
            }
            self.serve((due - now).min(NAP));
        }
    }

    /// Puts a message in librdkafka's queue, waiting while that is full.
    fn send(&mut self, message: Simulated) -> Result<()> {
        let mut sent = Box::new(Sent { kind: message.kind, event_id: message.event_id });
        loop {
            let mut record = BaseRecord::with_opaque_to(&self.options.topic, sent).key(message.key.as_bytes());
            if let Some(payload) = &message.payload {
                record = record.payload(payload.as_slice());
            }
            let Err((error, record)) = self.producer.send(record) else {
                self.sent += 1;
                return Ok(());
            };
            sent = record.delivery_opaque;
            match error {
                KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => {
                    if self.token.is_cancelled() {
                        return Ok(());
                    }
                    self.serve(NAP);
                }
                KafkaError::MessageProduction(RDKafkaErrorCode::Fatal) => self.replace_producer()?,
                other => {
                    let doing = format!("cannot produce to topic {}", self.options.topic);
                    return Err(kafka::unavailable(&self.options.brokers, &doing, other));
                }
            }
        }
    }

    /// An idempotent producer that lost its place (its broker lost state) is done for; a new one begins a new sequence.
    fn replace_producer(&mut self) -> Result<()> {
        let reason = self.producer.client().fatal_error().map(|(_, reason)| reason);
        tracing::warn!(reason, "the producer lost its place and is replaced");
        self.producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
        self.serve(NAP);
        self.producer = producer(&self.options, &self.tally)?;
        Ok(())
    }

    fn serve(&self, timeout: Duration) {
        self.producer.poll(timeout);
        self.tally.flush_log();
    }

    fn finish(self) -> Result<Report> {
        let mut deadline = Instant::now() + CONFIRM_TIMEOUT;
        while self.producer.in_flight_count() > 0 && Instant::now() < deadline {
            if self.token.is_cancelled() {
                let cancelled_at = *self.cancelled_at.get_or_init(Instant::now);
                deadline = deadline.min(cancelled_at + CONFIRM_TIMEOUT_CANCELLED);
            }
            self.serve(NAP);
        }
        self.tally.flush_log();
        self.tally.report(self.sent, self.started.elapsed())
    }
}

fn producer(options: &Options, tally: &Arc<Tally>) -> Result<BaseProducer<Delivery>> {
    let mut config = kafka::client_config(&options.brokers, &options.properties)?;
    config.set("enable.idempotence", "true").set("acks", "all");
    kafka::set_default(&mut config, &options.properties, "linger.ms", "5");
    kafka::set_default(&mut config, &options.properties, "queue.buffering.max.messages", "100000");
    BaseProducer::from_config_and_context(&config, Delivery(tally.clone()))
        .map_err(|source| kafka::config_error("cannot make a producer", source))
}
