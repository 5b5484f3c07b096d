//! What this crate asks of librdkafka besides messages: settings, topics, watermarks, and errors that say what to do.

mod messages;
mod properties;
mod reasons;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use serde::Serialize;

pub use properties::{Properties, READ_AHEAD, READ_AHEAD_KBYTES};
pub(crate) use properties::{client_config, config_error, consumer_config, set_default};
pub(crate) use reasons::log;

use crate::consume::poll::Poller;
use crate::consume::{Broker, Options, Source};
use crate::topic::TopicSpec;
use crate::{Error, ErrorKind, Result};
use reasons::Reasons;

/// How long a broker may take to answer a question before we say that it can't be reached.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// As long as nobody has answered yet we look after these times whether anybody ever will.
const FIRST_ANSWER_TIMEOUTS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];

/// The same for a question that is asked each second anyway. Short, since a process that ends waits for it.
const SMALL_TALK_TIMEOUT: Duration = Duration::from_secs(2);

/// A topic that we make has a copy on each broker, but no more than these. With one alone, what a broker has confirmed would
/// be lost with it.
const COPIES_MAX: i32 = 3;
/// How long a cluster may take to choose its leaders.
const SETTLING_MAX: Duration = Duration::from_secs(15);
const SETTLING_PAUSE: Duration = Duration::from_millis(200);
/// So many things that librdkafka has to say are taken in after each question.
const EVENTS_AT_ONCE: usize = 64;

/// A partition's first and next-to-be-written offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Watermarks {
    /// The earliest offset that the broker still has.
    pub low: i64,
    /// The offset after the last that can be read.
    pub high: i64,
}

/// What a broker says of itself.
#[derive(Debug, Clone, Serialize)]
pub struct BrokerCheck {
    /// The cluster's id, if the broker gives one.
    pub cluster_id: Option<String>,
    /// The brokers of the cluster, `host:port`.
    pub brokers: Vec<String>,
    /// Each topic's number of partitions.
    pub topics: BTreeMap<String, usize>,
}

/// Asks the brokers who they are.
///
/// # Errors
/// `Unavailable` if none answers within 10 s.
pub async fn check(brokers: &str, properties: &Properties) -> Result<BrokerCheck> {
    let probe = Arc::new(Probe::new(brokers, properties)?);
    blocking(move || probe.check()).await
}

/// Makes the topic if it is missing. One that is there stays as it is, whatever its number of partitions.
///
/// # Errors
/// `Unavailable` if no broker answers within 10 s; `BadConfig` if the broker refuses the topic.
pub async fn ensure_topic(brokers: &str, topic: &TopicSpec, properties: &Properties) -> Result<()> {
    topic.check()?;
    let probe = Arc::new(Probe::new(brokers, properties)?);
    let (name, asked) = (topic.name.clone(), probe.clone());
    match blocking(move || asked.partitions(&name)).await {
        Ok(found) if found.len() != topic.partitions as usize => {
            tracing::info!(topic = topic.name, partitions = found.len(), wanted = topic.partitions, "topic is there");
            return Ok(());
        }
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let admin: AdminClient<Reasons> = client_config(brokers, properties)?
        .create_with_context(Reasons::default())
        .map_err(|source| config_error("cannot make an admin client", source))?;
    let cluster = blocking(move || probe.check()).await?;
    let copies = i32::try_from(cluster.brokers.len()).unwrap_or(COPIES_MAX).clamp(1, COPIES_MAX);
    let wanted = NewTopic::new(&topic.name, topic.partitions, TopicReplication::Fixed(copies));
    let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT)).operation_timeout(Some(REQUEST_TIMEOUT));
    let results = admin
        .create_topics([&wanted], &options)
        .await
        .map_err(|source| unavailable(brokers, &format!("cannot make topic {}", topic.name), source))?;
    match results.into_iter().next() {
        Some(Ok(_)) | Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
        Some(Err((_, code))) => {
            let message = format!("the broker at {brokers} refuses to make topic {}", topic.name);
            Err(Error::with_source(ErrorKind::BadConfig, message, KafkaError::AdminOp(code)))
        }
        None => Err(Error::new(ErrorKind::Bug, format!("no answer about topic {}", topic.name))),
    }
}

/// Kafka as the loop sees it: questions go to a [`Probe`], messages come from a [`Poller`].
pub(crate) struct Kafka {
    probe: Arc<Probe>,
    properties: Properties,
}

impl Kafka {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let probe = Arc::new(Probe::new(&options.brokers, &options.properties)?);
        Ok(Self { probe, properties: options.properties.clone() })
    }
}

impl fmt::Debug for Kafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kafka").field("brokers", &self.probe.brokers).finish_non_exhaustive()
    }
}

#[async_trait]
impl Broker for Kafka {
    async fn partitions(&self, topic: &str) -> Result<BTreeSet<i32>> {
        let (probe, topic) = (self.probe.clone(), topic.to_owned());
        blocking(move || probe.partitions(&topic)).await
    }

    async fn cluster_id(&self) -> Option<String> {
        let probe = self.probe.clone();
        blocking(move || Ok(probe.cluster_id())).await.ok().flatten()
    }

    async fn watermarks(&self, topic: &str, partitions: &BTreeSet<i32>) -> Result<BTreeMap<i32, Watermarks>> {
        let (probe, topic, partitions) = (self.probe.clone(), topic.to_owned(), partitions.clone());
        blocking(move || probe.watermarks(&topic, &partitions)).await
    }

    async fn ends(&self, topic: &str, partitions: &BTreeSet<i32>) -> Result<BTreeMap<i32, i64>> {
        let (probe, topic, partitions) = (self.probe.clone(), topic.to_owned(), partitions.clone());
        blocking(move || probe.ends(&topic, &partitions)).await
    }

    async fn fingerprints(&self, topic: &str, offsets: &BTreeMap<i32, i64>) -> Result<BTreeMap<i32, String>> {
        fingerprints(&self.probe.brokers, &self.properties, topic, offsets).await
    }

    fn read(&self, options: &Options) -> Result<Box<dyn Source>> {
        Ok(Box::new(Poller::start(options)?))
    }
}

/// The fingerprint of one message of each of some partitions; one that is not there is left out.
pub(crate) async fn fingerprints(
    brokers: &str,
    properties: &Properties,
    topic: &str,
    offsets: &BTreeMap<i32, i64>,
) -> Result<BTreeMap<i32, String>> {
    let (brokers, properties) = (brokers.to_owned(), properties.clone());
    let (topic, offsets) = (topic.to_owned(), offsets.clone());
    blocking(move || {
        messages::Look { brokers: &brokers, properties: &properties, topic: &topic }.fingerprints(&offsets)
    })
    .await
}

/// A connection for questions about topics and offsets; it reads no messages. Its calls block.
pub(crate) struct Probe {
    brokers: String,
    consumer: BaseConsumer<Reasons>,
    reasons: Reasons,
    /// Whether a broker has ever answered. Until then what is wrong is most likely wrong in the settings.
    answered: AtomicBool,
}

impl Probe {
    pub(crate) fn new(brokers: &str, properties: &Properties) -> Result<Self> {
        let reasons = Reasons::default();
        let consumer = client_config(brokers, properties)?
            .set("isolation.level", "read_committed")
            .create_with_context(reasons.clone())
            .map_err(|source| config_error("cannot make a Kafka client", source))?;
        Ok(Self { brokers: brokers.to_owned(), consumer, reasons, answered: AtomicBool::new(false) })
    }

    /// Asks something. The first time it gives up early where nobody will ever answer.
    fn ask<T>(&self, question: impl Fn(Duration) -> KafkaResult<T>) -> KafkaResult<T> {
        let mut left = REQUEST_TIMEOUT;
        for timeout in FIRST_ANSWER_TIMEOUTS {
            if self.answered.load(Ordering::Relaxed) {
                break;
            }
            left -= timeout;
            let answer = self.listen(question(timeout));
            if answer.as_ref().err().is_none_or(is_answer) || self.reasons.hindrance(&self.brokers).is_some() {
                return answer;
            }
        }
        self.listen(question(left))
    }

    /// Takes in what librdkafka told us while it was asked. It waits for that to be fetched, and would keep all of it.
    fn listen<T>(&self, answer: KafkaResult<T>) -> KafkaResult<T> {
        for _ in 0..EVENTS_AT_ONCE {
            let _ = self.consumer.poll(Duration::ZERO);
        }
        if answer.as_ref().err().is_none_or(is_answer) {
            self.answered.store(true, Ordering::Relaxed);
            self.reasons.clear();
        }
        answer
    }

    /// The error for a question without a good answer.
    fn failed(&self, doing: &str, source: KafkaError) -> Error {
        let never_answered = !self.answered.load(Ordering::Relaxed);
        if let Some(error) = self.reasons.hindrance(&self.brokers).filter(|_| never_answered) {
            return error;
        }
        let reason = self.reasons.newest().map_or_else(String::new, |reason| format!(" ({reason})"));
        unavailable(&self.brokers, &format!("{doing}{reason}"), source)
    }

    fn check(&self) -> Result<BrokerCheck> {
        let metadata = self
            .ask(|timeout| self.consumer.fetch_metadata(None, timeout))
            .map_err(|source| self.failed("cannot ask who is there", source))?;
        Ok(BrokerCheck {
            cluster_id: self.cluster_id(),
            brokers: metadata.brokers().iter().map(|broker| format!("{}:{}", broker.host(), broker.port())).collect(),
            topics: metadata.topics().iter().map(|topic| (topic.name().to_owned(), topic.partitions().len())).collect(),
        })
    }

    /// The cluster's id, which comes with the answer to any question about topics: ask after one of those.
    pub(crate) fn cluster_id(&self) -> Option<String> {
        // A broker without an id would keep us for as long as we are ready to wait.
        self.consumer.client().fetch_cluster_id(Duration::from_millis(200))
    }

    /// The partitions of a topic.
    pub(crate) fn partitions(&self, topic: &str) -> Result<BTreeSet<i32>> {
        match patiently(Instant::now() + SETTLING_MAX, || self.partitions_now(topic)) {
            Ok(partitions) if !partitions.is_empty() => Ok(partitions),
            Ok(_)
            | Err(KafkaError::MetadataFetch(
                RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition,
            )) => Err(Error::new(
                ErrorKind::NotFound,
                format!("topic {topic} is not there at {}: make it, or name another with --topic", self.brokers),
            )),
            Err(source) => {
                let doing = format!("cannot ask for the partitions of topic {topic}");
                Err(self.failed(&doing, source))
            }
        }
    }

    fn partitions_now(&self, topic: &str) -> KafkaResult<BTreeSet<i32>> {
        let metadata = self.ask(|timeout| self.consumer.fetch_metadata(Some(topic), timeout))?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(BTreeSet::new());
        };
        match found.error() {
            Some(code) => Err(KafkaError::MetadataFetch(code.into())),
            None => Ok(found.partitions().iter().map(|partition| partition.id()).collect()),
        }
    }

    /// The first and last offsets of some partitions.
    pub(crate) fn watermarks(&self, topic: &str, partitions: &BTreeSet<i32>) -> Result<BTreeMap<i32, Watermarks>> {
        let until = Instant::now() + SETTLING_MAX;
        let one = |&partition: &i32| {
            let doing = format!("cannot ask for the offsets of topic {topic} partition {partition}");
            let question = || self.ask(|timeout| self.consumer.fetch_watermarks(topic, partition, timeout));
            let (low, high) = patiently(until, question).map_err(|source| self.failed(&doing, source))?;
            Ok((partition, Watermarks { low, high }))
        };
        partitions.iter().map(one).collect()
    }

    /// The first offset of that time or later, where there is one.
    pub(crate) fn offsets_at(
        &self,
        topic: &str,
        partitions: &BTreeSet<i32>,
        time: DateTime<Utc>,
    ) -> Result<BTreeMap<i32, i64>> {
        self.offsets(topic, partitions, Offset::Offset(time.timestamp_millis()), REQUEST_TIMEOUT)
    }

    /// The offsets after the last, of all partitions in one request to each broker.
    pub(crate) fn ends(&self, topic: &str, partitions: &BTreeSet<i32>) -> Result<BTreeMap<i32, i64>> {
        self.offsets(topic, partitions, Offset::End, SMALL_TALK_TIMEOUT)
    }

    /// `asked` is a place, or a time in milliseconds, as `offsets_for_times` takes both.
    fn offsets(
        &self,
        topic: &str,
        partitions: &BTreeSet<i32>,
        asked: Offset,
        timeout: Duration,
    ) -> Result<BTreeMap<i32, i64>> {
        // librdkafka takes a question for nothing for a mistake.
        if partitions.is_empty() {
            return Ok(BTreeMap::new());
        }
        let doing = format!("cannot ask for offsets of topic {topic}");
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for &partition in partitions {
            list.add_partition_offset(topic, partition, asked)
                .map_err(|source| Error::with_source(ErrorKind::Bug, doing.clone(), source))?;
        }
        let found = self.listen(self.consumer.offsets_for_times(list, timeout));
        let found = found.map_err(|source| self.failed(&doing, source))?;
        let known = found.elements().into_iter().filter_map(|element| match (element.error(), element.offset()) {
            (Ok(()), Offset::Offset(offset)) => Some((element.partition(), offset)),
            _ => None,
        });
        Ok(known.collect())
    }
}

/// Asks again while a cluster that has just started, or lost a broker, still chooses who leads which partition.
fn patiently<T>(until: Instant, ask: impl Fn() -> KafkaResult<T>) -> KafkaResult<T> {
    loop {
        match ask() {
            Err(error) if is_settling(&error) && Instant::now() < until => {
                tracing::debug!(%error, "the cluster is not settled yet");
                std::thread::sleep(SETTLING_PAUSE);
            }
            result => return result,
        }
    }
}

/// Whether somebody has answered, be it that there is no such thing.
fn is_answer(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    let silence = [Code::OperationTimedOut, Code::BrokerTransportFailure, Code::AllBrokersDown, Code::Resolve];
    !error.rdkafka_error_code().is_some_and(|code| silence.contains(&code))
}

fn is_settling(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::NotLeaderForPartition
                | Code::LeaderNotAvailable
                | Code::ReplicaNotAvailable
                | Code::KafkaStorageError
                | Code::FencedLeaderEpoch
                | Code::UnknownLeaderEpoch
        )
    )
}

/// A list of brokers that can be tried. librdkafka passes over what it cannot read, and then waits for nobody.
fn check_brokers(brokers: &str) -> Result<()> {
    for broker in brokers.split(',').map(str::trim) {
        let port = broker.rsplit_once(':').map(|(_, port)| port).filter(|_| !broker.ends_with(']'));
        if broker.is_empty() || port.is_some_and(|port| port.parse::<u16>().is_err()) {
            let message = format!(
                "\"{broker}\" in the brokers \"{brokers}\" is no host:port: set --brokers or KAFKA_BOOTSTRAP_SERVERS"
            );
            return Err(Error::new(ErrorKind::BadConfig, message));
        }
    }
    Ok(())
}

/// A broker does not answer, or answers with a fault.
pub(crate) fn unavailable(brokers: &str, doing: &str, source: KafkaError) -> Error {
    use RDKafkaErrorCode as Code;
    let refused = [Code::TopicAuthorizationFailed, Code::GroupAuthorizationFailed, Code::ClusterAuthorizationFailed];
    if source.rdkafka_error_code().is_some_and(|code| refused.contains(&code)) {
        let message = format!(
            "{doing}: the Kafka broker at {brokers} does not allow it: grant the user of this login READ and DESCRIBE on the topic, \
             and READ on the group that --group names"
        );
        return Error::with_source(ErrorKind::BadConfig, message, source);
    }
    let message = format!(
        "{doing}: no good answer from the Kafka broker at {brokers} (is it running, and is that its address? \
         set --brokers or KAFKA_BOOTSTRAP_SERVERS)"
    );
    Error::with_source(ErrorKind::Unavailable, message, source)
}

/// Runs a call that blocks away from the async threads.
pub(crate) async fn blocking<T: Send + 'static>(call: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => result,
        Err(source) => Err(Error::with_source(ErrorKind::Bug, "a call to Kafka was broken off", source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_none_are_named() {
        for brokers in ["localhost:9092", "a:1, b:2", "kafka", "[::1]:9092", "[::1]", "PLAINTEXT://a:9092"] {
            assert!(check_brokers(brokers).is_ok(), "{brokers}");
        }
        for brokers in ["localhost:port", "a:1,,b:2", "", "a:99999"] {
            let error = check_brokers(brokers).expect_err("no address");
            assert!(error.to_string().contains("--brokers") && error.to_string().contains(brokers), "{error}");
        }
    }

    #[test]
    fn what_the_broker_does_not_allow_is_no_broker_that_is_away() {
        let refused = KafkaError::MessageConsumption(RDKafkaErrorCode::TopicAuthorizationFailed);
        let error = unavailable("a:1", "cannot read topic events", refused);
        assert_eq!(error.kind(), ErrorKind::BadConfig);
        assert!(error.to_string().contains("READ and DESCRIBE"), "{error}");
    }

    #[tokio::test]
    async fn a_port_without_a_broker_is_unavailable_and_named() {
        let properties = Properties::from([("socket.connection.setup.timeout.ms", "1000")]);
        let probe = Arc::new(Probe::new("127.0.0.1:1", &properties).expect("the settings are fine"));
        let error = blocking(move || {
            probe
                .consumer
                .fetch_metadata(None, Duration::from_millis(300))
                .map_err(|source| unavailable(&probe.brokers, "cannot ask", source))
                .map(|_| ())
        });
        let error = error.await.expect_err("nobody listens there");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    }
}
