//! What this crate asks of librdkafka besides messages: settings, topics, watermarks, and errors that say what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use serde::Serialize;

use crate::consume::poll::Poller;
use crate::consume::{Broker, Options, Source};
use crate::topic::TopicSpec;
use crate::{Error, ErrorKind, Result};

/// How long a broker may take to answer a question before we say that it can't be reached.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The same for a question that is asked each second anyway. Short, since a process that ends waits for it.
const SMALL_TALK_TIMEOUT: Duration = Duration::from_secs(2);

/// A topic that we make has a copy on each broker, but no more than these. With one alone, what a broker has confirmed would
/// be lost with it.
const COPIES_MAX: i32 = 3;
/// How long a cluster may take to choose its leaders.
const SETTLING_MAX: Duration = Duration::from_secs(15);
const SETTLING_PAUSE: Duration = Duration::from_millis(200);

/// Settings of librdkafka that exactly-once rests on, or that have a flag of their own: not for the user to set.
const OWN_PROPERTIES: [&str; 11] = [
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.protocol",
    "isolation.level",
    "metadata.broker.list",
    "partition.assignment.strategy",
];

/// Settings of librdkafka by name, from the user.
pub type Properties = BTreeMap<String, String>;

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
    let admin: AdminClient<Logging> = client_config(brokers, properties)?
        .create_with_context(Logging)
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
}

impl Kafka {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        Ok(Self { probe: Arc::new(Probe::new(&options.brokers, &options.properties)?) })
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

    fn read(&self, options: &Options) -> Result<Box<dyn Source>> {
        Ok(Box::new(Poller::start(options)?))
    }
}

/// A connection for questions about topics and offsets; it reads no messages. Its calls block.
pub(crate) struct Probe {
    brokers: String,
    consumer: BaseConsumer<Logging>,
}

impl Probe {
    pub(crate) fn new(brokers: &str, properties: &Properties) -> Result<Self> {
        let consumer = client_config(brokers, properties)?
            .set("isolation.level", "read_committed")
            .create_with_context(Logging)
            .map_err(|source| config_error("cannot make a Kafka client", source))?;
        Ok(Self { brokers: brokers.to_owned(), consumer })
    }

    fn check(&self) -> Result<BrokerCheck> {
        let metadata = self
            .consumer
            .fetch_metadata(None, REQUEST_TIMEOUT)
            .map_err(|source| unavailable(&self.brokers, "cannot ask who is there", source))?;
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
                Err(unavailable(&self.brokers, &doing, source))
            }
        }
    }

    fn partitions_now(&self, topic: &str) -> KafkaResult<BTreeSet<i32>> {
        let metadata = self.consumer.fetch_metadata(Some(topic), REQUEST_TIMEOUT)?;
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
            let (low, high) = patiently(until, || self.consumer.fetch_watermarks(topic, partition, REQUEST_TIMEOUT))
                .map_err(|source| unavailable(&self.brokers, &doing, source))?;
            Ok((partition, Watermarks { low, high }))
        };
        partitions.iter().map(one).collect()
    }

    /// The offsets after the last, of all partitions in one request to each broker.
    pub(crate) fn ends(&self, topic: &str, partitions: &BTreeSet<i32>) -> Result<BTreeMap<i32, i64>> {
        let doing = format!("cannot ask for the end of topic {topic}");
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for &partition in partitions {
            list.add_partition_offset(topic, partition, Offset::End)
                .map_err(|source| Error::with_source(ErrorKind::Bug, doing.clone(), source))?;
        }
        let found = self
            .consumer
            .offsets_for_times(list, SMALL_TALK_TIMEOUT)
            .map_err(|source| unavailable(&self.brokers, &doing, source))?;
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

/// The settings that all our clients share.
///
/// # Errors
/// `BadConfig` for a property that is ours to set, or an address that is none.
pub(crate) fn client_config(brokers: &str, properties: &Properties) -> Result<ClientConfig> {
    check_brokers(brokers)?;
    let mut config = ClientConfig::new();
    for (name, value) in properties {
        if OWN_PROPERTIES.contains(&name.as_str()) {
            let message = format!("the Kafka property {name} is set by Lakebeat itself: take it out of the settings");
            return Err(Error::new(ErrorKind::BadConfig, message));
        }
        config.set(name, value);
    }
    config.set("bootstrap.servers", brokers);
    // A user who connects to a port without a broker shall hear of it within seconds.
    set_default(&mut config, properties, "client.id", "lakebeat");
    set_default(&mut config, properties, "socket.connection.setup.timeout.ms", "5000");
    set_default(&mut config, properties, "reconnect.backoff.max.ms", "2000");
    config.set_log_level(RDKafkaLogLevel::Warning);
    Ok(config)
}

/// The settings of the consumer that feeds the lake.
pub(crate) fn consumer_config(brokers: &str, group: &str, properties: &Properties) -> Result<ClientConfig> {
    let mut config = client_config(brokers, properties)?;
    config
        .set("group.id", group)
        // The ledger in the Delta log is the truth about progress; Kafka's is told afterwards.
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // An offset that is not there is a gap to report, never a reason to jump.
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        // Eager: a revocation names all partitions, so one drain hands over everything.
        .set("partition.assignment.strategy", "range,roundrobin");
    // A member that was killed keeps its partitions for this long; librdkafka's 45 s would be 45 s of stale tables.
    set_default(&mut config, properties, "session.timeout.ms", "10000");
    // librdkafka's own read-ahead of 64 MiB for each partition would be most of our memory. This much is a tenth of a second.
    set_default(&mut config, properties, "queued.max.messages.kbytes", "4096");
    set_default(&mut config, properties, "queued.min.messages", "50000");
    set_default(&mut config, properties, "fetch.wait.max.ms", "100");
    // What a cluster may ask its clients for (KIP-714) is measured at each message, whether it asks or not.
    set_default(&mut config, properties, "enable.metrics.push", "false");
    // A partition whose read-ahead is full would not be fetched for a whole second, and runs dry long before.
    set_default(&mut config, properties, "fetch.queue.backoff.ms", "10");
    Ok(config)
}

pub(crate) fn set_default(config: &mut ClientConfig, properties: &Properties, name: &str, value: &str) {
    if !properties.contains_key(name) {
        config.set(name, value);
    }
}

/// Passes what librdkafka logs on to our log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Logging;

impl ClientContext for Logging {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl rdkafka::consumer::ConsumerContext for Logging {}

/// librdkafka reports each lost connection as an error although it connects again by itself, so nothing here is one.
pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::warn!(facility, message, "librdkafka");
        }
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => tracing::info!(facility, message, "librdkafka"),
        _ => tracing::debug!(facility, message, "librdkafka"),
    }
}

/// A broker does not answer, or answers with a fault.
pub(crate) fn unavailable(brokers: &str, doing: &str, source: KafkaError) -> Error {
    let message = format!(
        "{doing}: no good answer from the Kafka broker at {brokers} (is it running, and is that its address? \
         set --brokers or KAFKA_BOOTSTRAP_SERVERS)"
    );
    Error::with_source(ErrorKind::Unavailable, message, source)
}

/// librdkafka refuses a setting.
pub(crate) fn config_error(doing: &str, source: KafkaError) -> Error {
    let kind = match &source {
        KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) => ErrorKind::BadConfig,
        _ => ErrorKind::Unavailable,
    };
    Error::with_source(kind, format!("{doing} (see the Kafka properties in the settings)"), source)
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
    fn properties_that_exactly_once_rests_on_are_refused_by_name() {
        let properties = Properties::from([("enable.auto.commit".to_owned(), "true".to_owned())]);
        let error = client_config("localhost:9092", &properties).expect_err("auto commit would lose messages");
        assert_eq!(error.kind(), ErrorKind::BadConfig);
        assert!(error.to_string().contains("enable.auto.commit"), "{error}");
    }

    #[test]
    fn a_user_may_tune_the_rest() {
        let properties = Properties::from([("fetch.wait.max.ms".to_owned(), "7".to_owned())]);
        let config = consumer_config("localhost:9092", "group", &properties).expect("a fine property");
        assert_eq!(config.get("fetch.wait.max.ms"), Some("7"));
        assert_eq!(config.get("enable.auto.commit"), Some("false"));
    }

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

    #[tokio::test]
    async fn a_port_without_a_broker_is_unavailable_and_named() {
        let properties = Properties::from([("socket.connection.setup.timeout.ms".to_owned(), "1000".to_owned())]);
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
