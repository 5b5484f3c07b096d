//! A look at single messages, by which a partition is known again. Rare: only where something speaks against the ledger.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

use super::{Properties, Reasons, config_error, consumer_config, set_default, unavailable};
use crate::Result;
use crate::consume::poll::push;
use crate::records::Records;

/// So long the broker has for all of them.
const TIMEOUT: Duration = Duration::from_secs(10);

/// librdkafka assigns nothing to a consumer without a group; nobody joins this one.
const GROUP: &str = "lakebeat-look";

/// Reads one message of each of some partitions.
pub(super) struct Look<'a> {
    pub(super) brokers: &'a str,
    pub(super) properties: &'a Properties,
    pub(super) topic: &'a str,
}

impl Look<'_> {
    /// The fingerprints of the messages at these offsets; one that is not there is left out. Blocks.
    ///
    /// # Errors
    /// `Unavailable` if the broker does not answer in time.
    pub(super) fn fingerprints(&self, offsets: &BTreeMap<i32, i64>) -> Result<BTreeMap<i32, String>> {
        let mut found = BTreeMap::new();
        if offsets.is_empty() {
            return Ok(found);
        }
        let failed =
            |source| unavailable(self.brokers, &format!("cannot read single messages of {}", self.topic), source);
        let consumer = self.consumer()?;
        consumer.assign(&self.list(offsets).map_err(failed)?).map_err(failed)?;
        let mut open = offsets.clone();
        let until = Instant::now() + TIMEOUT;
        while !open.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            match consumer.poll(left) {
                None => return Err(failed(KafkaError::MessageConsumption(RDKafkaErrorCode::RequestTimedOut))),
                Some(Ok(message)) => {
                    let partition = message.partition();
                    if open.remove(&partition) == Some(message.offset()) {
                        let mut one = Records::default();
                        push(&mut one, &message);
                        found.insert(partition, one.get(0).fingerprint());
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
                // An offset that is gone is an answer too. Which one it is, it does not say: the rest has to be asked again.
                Some(Err(KafkaError::MessageConsumption(
                    RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange,
                ))) => return Ok(found),
                Some(Err(error)) => tracing::debug!(%error, "librdkafka"),
            }
        }
        Ok(found)
    }

    /// It is in no group: it only assigns, and commits nothing.
    fn consumer(&self) -> Result<BaseConsumer<Reasons>> {
        let mut config = consumer_config(self.brokers, GROUP, self.properties)?;
        // One message is wanted, and one is given even if it is larger.
        set_default(&mut config, self.properties, "fetch.message.max.bytes", "16384");
        config.create_with_context(Reasons::default()).map_err(|source| config_error("cannot make a consumer", source))
    }

    fn list(&self, offsets: &BTreeMap<i32, i64>) -> std::result::Result<TopicPartitionList, KafkaError> {
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for (&partition, &offset) in offsets {
            list.add_partition_offset(self.topic, partition, Offset::Offset(offset))?;
        }
        Ok(list)
    }
}
