//! Stands between the clients and the storage engine: one request at a time, none of which may do harm to the others.
//!
//! The engine has holes (`todo!()`) and traps (a panic on what it does not find) that any client can step into. The
//! guard answers those requests by itself, with the error code that a broker would give or with what the client must
//! have meant; all others go to the [`Engine`], which is built anew if one of them breaks it. It also owns the retention,
//! because that writes to the same file and so has to wait for its turn.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use futures::FutureExt as _;
use lakehouse::Clock;
use tansu_sans_io::ErrorCode;
use tansu_sans_io::create_topics_request::CreatableTopic;
use tansu_sans_io::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use tansu_sans_io::delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult};
use tansu_sans_io::incremental_alter_configs_request::AlterConfigsResource;
use tansu_sans_io::incremental_alter_configs_response::AlterConfigsResourceResponse;
use tansu_sans_io::record::deflated::Batch;
use tansu_storage::{
    Error as StorageError, NamedGroupDetail, ProducerIdResponse, Request, RequestReceiver, Response, TopicId, Topition,
    TxnAddPartitionsRequest, TxnAddPartitionsResponse,
};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use super::Retention;
use super::batch::{self, checksum};
use super::compression::{CODEC, inflate};
use super::engine::{Engine, Failure};
use super::records::Records;
use crate::Result;

/// How often old records are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// The most partitions that one topic can have: each is a row that every metadata request reads.
const PARTITIONS_MAX: i32 = 1_000;

/// The longest name of a topic, as Kafka has it.
const TOPIC_NAME_MAX: usize = 249;

/// How long nothing is said about refused batches after one was mentioned: a client may try ten times a second.
const QUIET: Duration = Duration::from_secs(5);

/// The most looks for old records at one sweep and partition, so that the guard gets back to its clients.
const SWEEP_CHUNKS_MAX: usize = 50;

/// Share of a partition's records that goes when the file is too big: one in so many.
const TRIM_SHARE: i64 = 20;

/// Operations on a setting beside set (0) and delete (1): append to and subtract from a list.
const LIST_OPERATIONS: [i8; 2] = [2, 3];

/// The one task that touches the engine.
#[derive(Debug)]
pub(super) struct Guard {
    pub(super) requests: RequestReceiver,
    pub(super) engine: Engine,
    pub(super) records: Arc<Records>,
    pub(super) retention: Retention,
    pub(super) clock: Arc<dyn Clock>,
    /// Until then nothing is said about refused batches.
    pub(super) quiet_until: Instant,
}

impl Guard {
    /// Answers requests until nobody can send one any more.
    pub(super) async fn run(mut self) -> Result<()> {
        let mut sweep = interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                request = self.requests.recv() => {
                    let Some((request, reply)) = request else { break };
                    match AssertUnwindSafe(self.answer(request)).catch_unwind().await {
                        // The client may have gone; that is no reason to stop.
                        Ok(Ok(Some(response))) => drop(reply.send(response)),
                        Ok(Ok(None)) => {}
                        Ok(Err(end)) => return Err(end),
                        Err(_panic) => error!("a request broke the broker's guard, which goes on"),
                    }
                }
                _ = sweep.tick() => self.sweep().await,
            }
        }
        if let Err(error) = self.records.checkpoint().await {
            debug!(%error, "the write-ahead log stays until the next start");
        }
        Ok(())
    }

    /// The response, or nothing: then the client's connection is closed.
    async fn answer(&mut self, request: Request) -> Result<Option<Response>> {
        let response = match request {
            Request::Produce { transaction_id, topition, batch } => {
                let outcome = self.produce(transaction_id.as_deref(), &topition, batch).await;
                Response::Produce(outcome.map_err(|refusal| {
                    if Instant::now() >= self.quiet_until {
                        self.quiet_until = Instant::now() + QUIET;
                        let (topic, partition) = (topition.topic(), topition.partition());
                        warn!(topic, partition, code = %refusal.code, reason = refusal.reason, "a batch is refused");
                    }
                    StorageError::Api(refusal.code)
                }))
            }
            Request::InitProducer { transaction_id, producer_epoch, producer_id, transaction_timeout_ms } => {
                debug!(?producer_id, ?producer_epoch, "a producer asks for an id");
                match transaction_id {
                    Some(_) => Response::InitProducer(Ok(no_transactions())),
                    // Whoever comes with an id, or in an early version without the field, gets a new one.
                    None => self.init_producer(transaction_timeout_ms).await?,
                }
            }
            Request::CreateTopic { topic, validate_only } => match checked(topic) {
                Err(code) => Response::CreateTopic(Err(StorageError::Api(code))),
                Ok(topic) if validate_only => Response::CreateTopic(self.would_create(&topic).await),
                Ok(topic) => {
                    self.records.forget_partitions();
                    let request = Request::CreateTopic { topic, validate_only: false };
                    return self.forward(request).await;
                }
            },
            Request::DeleteTopic(topic) => Response::DeleteTopic(Ok(self.delete_topic(&topic).await)),
            Request::DeleteRecords(topics) => Response::DeleteRecords(Ok(self.delete_records(topics).await)),
            Request::IncrementalAlterResource(resource) => match list_operation(&resource) {
                Some(setting) => Response::IncrementalAlterResponse(Ok(refuse_list_operation(&resource, &setting))),
                None => return self.forward(Request::IncrementalAlterResource(resource)).await,
            },
            Request::OffsetFetch { group_id, topics, require_stable } => {
                // The engine asserts that no partition is asked for twice.
                let topics = topics.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
                return self.forward(Request::OffsetFetch { group_id, topics, require_stable }).await;
            }
            Request::DescribeGroups { group_ids, .. } => {
                Response::DescribeGroups(Ok(self.describe_groups(group_ids.unwrap_or_default()).await))
            }
            // Clients are not told of transactions; these are for those that try all the same.
            Request::TxnAddPartitions(request) => Response::TxnAddPartitions(Ok(refuse_partitions(&request))),
            Request::TxnAddOffsets { .. } => Response::TxnAddOffsets(Ok(ErrorCode::InvalidRequest)),
            Request::TxnEnd { .. } => Response::TxnEnd(Ok(ErrorCode::InvalidRequest)),
            Request::TxnOffsetCommit(_) => Response::TxnOffsetCommit(Err(StorageError::Api(ErrorCode::InvalidRequest))),
            // Read elsewhere, from the file itself; the engine panics over a partition that it does not know.
            Request::Fetch { .. } | Request::OffsetStage(_) | Request::ListOffsets { .. } => return Ok(None),
            request => return self.forward(request).await,
        };
        Ok(Some(response))
    }

    async fn forward(&mut self, request: Request) -> Result<Option<Response>> {
        Ok(self.engine.call(request).await?.ok())
    }

    async fn init_producer(&mut self, transaction_timeout_ms: i32) -> Result<Response> {
        let request = Request::InitProducer {
            transaction_id: None,
            transaction_timeout_ms,
            producer_id: Some(-1),
            producer_epoch: Some(-1),
        };
        Ok(self.engine.call(request).await?.unwrap_or_else(|failure| {
            Response::InitProducer(Ok(ProducerIdResponse { error: code_of(failure), id: -1, epoch: -1 }))
        }))
    }

    async fn produce(&self, transaction: Option<&str>, topition: &Topition, batch: Batch) -> Result<i64, Refusal> {
        let batch = plain(transaction, batch)?;
        let records = batch::records(&batch).ok_or(ErrorCode::InvalidRecord)?;
        let partition = self.records.partition(topition.topic(), topition.partition()).await?;
        let partition = partition.ok_or(ErrorCode::UnknownTopicOrPartition)?;
        Ok(self.records.append(partition, &batch, &records).await??)
    }

    /// Whether the topic could be created, without creating it.
    async fn would_create(&self, topic: &CreatableTopic) -> Result<Uuid, StorageError> {
        match self.records.partition(&topic.name, 0).await? {
            Some(_) => Err(StorageError::Api(ErrorCode::TopicAlreadyExists)),
            None => Ok(Uuid::nil()),
        }
    }

    async fn delete_topic(&self, topic: &TopicId) -> ErrorCode {
        let name = match topic {
            TopicId::Name(name) => name.clone(),
            TopicId::Id(id) => id.to_string(),
        };
        match self.records.delete_topic(&name).await {
            Ok(true) => ErrorCode::None,
            Ok(false) => ErrorCode::UnknownTopicOrPartition,
            Err(error) => {
                warn!(%error, name, "a topic cannot be deleted");
                ErrorCode::KafkaStorageError
            }
        }
    }

    async fn describe_groups(&self, names: Vec<String>) -> Vec<NamedGroupDetail> {
        let mut groups = Vec::with_capacity(names.len());
        for name in names {
            let detail = self.records.group_detail(&name).await;
            groups.push(match detail.map(|detail| detail.map(|json| serde_json::from_str(&json))) {
                Ok(Some(Ok(detail))) => NamedGroupDetail::found(name, detail),
                Ok(None) => NamedGroupDetail::error_code(name, ErrorCode::GroupIdNotFound),
                Ok(Some(Err(_))) | Err(_) => NamedGroupDetail::error_code(name, ErrorCode::UnknownServerError),
            });
        }
        groups
    }

    async fn delete_records(&self, topics: Vec<DeleteRecordsTopic>) -> Vec<DeleteRecordsTopicResult> {
        let mut results = Vec::with_capacity(topics.len());
        for topic in topics {
            let mut partitions = Vec::new();
            for partition in topic.partitions.unwrap_or_default() {
                let outcome = self.delete_before(&topic.name, &partition).await;
                let (low, code) = match outcome {
                    Ok(low) => (low, ErrorCode::None),
                    Err(code) => (-1, code),
                };
                partitions.push(
                    DeleteRecordsPartitionResult::default()
                        .partition_index(partition.partition_index)
                        .low_watermark(low)
                        .error_code(code.into()),
                );
            }
            results.push(DeleteRecordsTopicResult::default().name(topic.name).partitions(Some(partitions)));
        }
        results
    }

    /// Drops the records before an offset (-1: all) and returns the new start of the log.
    async fn delete_before(&self, topic: &str, partition: &DeleteRecordsPartition) -> Result<i64, ErrorCode> {
        let storage = |error: libsql::Error| {
            warn!(%error, topic, "records cannot be deleted");
            ErrorCode::KafkaStorageError
        };
        let found = self.records.partition(topic, partition.partition_index).await.map_err(storage)?;
        let id = found.ok_or(ErrorCode::UnknownTopicOrPartition)?;
        let bounds = self.records.bounds(id).await.map_err(storage)?;
        let upto = if partition.offset == -1 { bounds.high } else { partition.offset };
        if !(0..=bounds.high).contains(&upto) {
            return Err(ErrorCode::OffsetOutOfRange);
        }
        self.records.trim(id, upto).await.map(|bounds| bounds.low).map_err(storage)
    }

    /// Drops records that are too old, and the oldest if there are too many.
    async fn sweep(&self) {
        if let Err(error) = self.try_sweep().await {
            warn!(%error, "old records cannot be dropped now");
        }
    }

    async fn try_sweep(&self) -> libsql::Result<()> {
        let age = TimeDelta::from_std(self.retention.age).unwrap_or(TimeDelta::MAX);
        let oldest = self.clock.now().checked_sub_signed(age).map(|time| time.format("%Y-%m-%d %H:%M:%S").to_string());
        let full = self.records.used_bytes().await? > self.retention.bytes;
        for partition in self.records.all_partitions().await? {
            let before = self.records.bounds(partition).await?;
            let mut low = before.low;
            if full {
                low += (before.high - before.low) / TRIM_SHARE;
                self.records.trim(partition, low).await?;
            }
            for _ in 0..SWEEP_CHUNKS_MAX {
                let Some(oldest) = &oldest else { break };
                let upto = self.records.first_arrived_since(partition, low, oldest).await?;
                if upto <= low {
                    break;
                }
                self.records.trim(partition, upto).await?;
                low = upto;
            }
            if low > before.low {
                info!(?partition, from = before.low, upto = low, "dropped old records");
            }
        }
        Ok(())
    }
}

/// Why a batch is not kept.
struct Refusal {
    code: ErrorCode,
    /// What the file said, if it is to blame.
    reason: Option<String>,
}

impl From<ErrorCode> for Refusal {
    fn from(code: ErrorCode) -> Self {
        Self { code, reason: None }
    }
}

impl From<libsql::Error> for Refusal {
    fn from(error: libsql::Error) -> Self {
        // A code on which producers try again: there may be space later.
        Self { code: ErrorCode::KafkaStorageError, reason: Some(error.to_string()) }
    }
}

/// The code that tells a producer whether to try again.
fn code_of(failure: Failure) -> ErrorCode {
    match failure {
        Failure::Panic => ErrorCode::UnknownServerError,
        Failure::Storage => ErrorCode::KafkaStorageError,
    }
}

/// The batch without compression, or why it cannot be kept, whatever is stored already.
fn plain(transaction: Option<&str>, mut batch: Batch) -> Result<Batch, ErrorCode> {
    if batch.magic != 2 {
        return Err(ErrorCode::UnsupportedForMessageFormat);
    }
    if transaction.is_some() || batch.is_transactional() || batch.is_control() {
        return Err(ErrorCode::InvalidTxnState);
    }
    if batch.crc != checksum(&batch) {
        return Err(ErrorCode::CorruptMessage);
    }
    batch.record_data = inflate(batch.attributes, batch.record_data)?;
    batch.attributes &= !CODEC;
    if batch.record_count == 0 || i64::from(batch.record_count) != i64::from(batch.last_offset_delta) + 1 {
        return Err(ErrorCode::InvalidRecord);
    }
    Ok(batch)
}

/// Refuses what the engine would create in a broken form, and fills in what the client leaves to the broker.
fn checked(topic: CreatableTopic) -> Result<CreatableTopic, ErrorCode> {
    let partitions = match topic.num_partitions {
        -1 => 1,
        partitions => partitions,
    };
    let allowed = |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-');
    let dots = topic.name == "." || topic.name == "..";
    if topic.name.is_empty() || topic.name.len() > TOPIC_NAME_MAX || dots || !topic.name.chars().all(allowed) {
        return Err(ErrorCode::InvalidTopicException);
    }
    if !(1..=PARTITIONS_MAX).contains(&partitions) {
        return Err(ErrorCode::InvalidPartitions);
    }
    if topic.replication_factor < -1 || topic.replication_factor == 0 {
        return Err(ErrorCode::InvalidReplicationFactor);
    }
    // There is one broker, so there is one copy, whatever a script for a real cluster asks for.
    Ok(topic.num_partitions(partitions).replication_factor(1))
}

fn no_transactions() -> ProducerIdResponse {
    ProducerIdResponse { error: ErrorCode::UnsupportedVersion, id: -1, epoch: -1 }
}

fn refuse_partitions(request: &TxnAddPartitionsRequest) -> TxnAddPartitionsResponse {
    match request {
        TxnAddPartitionsRequest::VersionZeroToThree { .. } => TxnAddPartitionsResponse::VersionZeroToThree(Vec::new()),
        TxnAddPartitionsRequest::VersionFourPlus { .. } => TxnAddPartitionsResponse::VersionFourPlus(Vec::new()),
    }
}

/// The setting on which the request wants an operation that the engine has not.
fn list_operation(resource: &AlterConfigsResource) -> Option<String> {
    let configs = resource.configs.as_deref().unwrap_or_default();
    configs.iter().find(|config| LIST_OPERATIONS.contains(&config.config_operation)).map(|config| config.name.clone())
}

fn refuse_list_operation(resource: &AlterConfigsResource, setting: &str) -> AlterConfigsResourceResponse {
    AlterConfigsResourceResponse::default()
        .error_code(ErrorCode::InvalidRequest.into())
        .error_message(Some(format!(
            "{setting}: the embedded broker can set and delete settings, not append or subtract"
        )))
        .resource_type(resource.resource_type)
        .resource_name(resource.resource_name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::batch::BatchBuilder;
    use crate::broker::engine::EngineSettings;
    use crate::broker::folder::Folder;
    use crate::broker::records::Bounds;

    use lakehouse::ManualClock;
    use tansu_storage::bounded_channel;
    use url::Url;

    const TOPIC: &str = "songs";

    /// A guard over a fresh file with one topic of one partition.
    async fn guard(path: &std::path::Path, retention: Retention, clock: Arc<ManualClock>) -> Guard {
        let folder = Folder::open(path).expect("opened");
        let settings = EngineSettings {
            cluster: folder.cluster().to_owned(),
            advertised: Url::parse("tcp://127.0.0.1:9092").expect("a URL"),
            file: folder.file_url().expect("a URL"),
        };
        let engine = Engine::start(settings).await.expect("started");
        let records = Arc::new(Records::open(&folder.file(), folder.cluster()).await.expect("opened"));
        let (_, requests) = bounded_channel(1);
        let mut guard = Guard { requests, engine, records, retention, clock, quiet_until: Instant::now() };
        create(&mut guard, TOPIC, 1).await.expect("created");
        guard
    }

    async fn create(guard: &mut Guard, name: &str, partitions: i32) -> Result<Uuid, StorageError> {
        let topic = CreatableTopic::default().name(name.to_owned()).num_partitions(partitions).replication_factor(3);
        let request = Request::CreateTopic { topic, validate_only: false };
        match guard.answer(request).await.expect("no end").expect("an answer") {
            Response::CreateTopic(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }

    async fn produce(guard: &mut Guard, batch: Batch) -> Result<i64, ErrorCode> {
        let request = Request::Produce { transaction_id: None, topition: Topition::new(TOPIC, 0), batch };
        match guard.answer(request).await.expect("no end").expect("an answer") {
            Response::Produce(Ok(offset)) => Ok(offset),
            Response::Produce(Err(StorageError::Api(code))) => Err(code),
            other => panic!("{other:?}"),
        }
    }

    fn batch(records: i64) -> Batch {
        let mut builder = BatchBuilder::new(0, 0, 0);
        for offset in 0..records {
            builder.push(offset, offset, Some(b"key"), Some(&[b'v'; 500]), &[]);
        }
        builder.finish()
    }

    async fn bounds(guard: &Guard) -> Bounds {
        let partition = guard.records.partition(TOPIC, 0).await.expect("read").expect("there");
        guard.records.bounds(partition).await.expect("read")
    }

    #[tokio::test]
    async fn records_go_when_they_are_old() {
        let folder = tempfile::tempdir().expect("a folder");
        // The file notes the arrival by the machine's clock.
        let clock = Arc::new(ManualClock::new(lakehouse::SystemClock.now()));
        let mut guard = guard(folder.path(), Retention::default(), Arc::clone(&clock)).await;
        produce(&mut guard, batch(100)).await.expect("kept");
        clock.advance(TimeDelta::days(6));
        guard.sweep().await;
        assert_eq!(bounds(&guard).await, Bounds { low: 0, high: 100 });
        clock.advance(TimeDelta::days(2));
        guard.sweep().await;
        assert_eq!(bounds(&guard).await, Bounds { low: 100, high: 100 });
        assert_eq!(produce(&mut guard, batch(1)).await, Ok(100));
    }

    #[tokio::test]
    async fn the_oldest_records_go_when_there_are_too_many() {
        let folder = tempfile::tempdir().expect("a folder");
        let clock = Arc::new(ManualClock::new(lakehouse::SystemClock.now()));
        let retention = Retention { bytes: 1_000_000, ..Retention::default() };
        let mut guard = guard(folder.path(), retention, clock).await;
        for _ in 0..4 {
            produce(&mut guard, batch(1_000)).await.expect("kept");
        }
        for _ in 0..100 {
            guard.sweep().await;
        }
        let bounds = bounds(&guard).await;
        assert_eq!(bounds.high, 4_000);
        assert!((1_000..3_900).contains(&bounds.low), "{bounds:?}");
        assert!(guard.records.used_bytes().await.expect("read") <= retention.bytes);
    }

    #[tokio::test]
    async fn a_topic_goes_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let clock = Arc::new(ManualClock::new(lakehouse::SystemClock.now()));
        let mut guard = guard(folder.path(), Retention::default(), clock).await;
        produce(&mut guard, batch(3)).await.expect("kept");
        create(&mut guard, "other", 2).await.expect("created");
        assert!(matches!(create(&mut guard, "other", 2).await, Err(StorageError::Api(ErrorCode::TopicAlreadyExists))));
        assert_eq!(guard.delete_topic(&TopicId::Name("other".to_owned())).await, ErrorCode::None);
        assert_eq!(guard.delete_topic(&TopicId::Name("other".to_owned())).await, ErrorCode::UnknownTopicOrPartition);
        assert_eq!(bounds(&guard).await, Bounds { low: 0, high: 3 });
        create(&mut guard, "other", 1).await.expect("created again");
    }

    #[tokio::test]
    async fn what_cannot_be_kept_is_refused_by_its_code() {
        let folder = tempfile::tempdir().expect("a folder");
        let clock = Arc::new(ManualClock::new(lakehouse::SystemClock.now()));
        let mut guard = guard(folder.path(), Retention::default(), clock).await;
        let sealed = |batch: Batch| Batch { crc: checksum(&batch), ..batch };
        let cases = [
            (Batch { magic: 1, ..batch(1) }, ErrorCode::UnsupportedForMessageFormat),
            (Batch { crc: 1, ..batch(1) }, ErrorCode::CorruptMessage),
            (sealed(Batch { attributes: 0b1_0000, ..batch(1) }), ErrorCode::InvalidTxnState),
            (
                sealed(Batch { record_count: u32::MAX, last_offset_delta: i32::MAX, ..batch(1) }),
                ErrorCode::InvalidRecord,
            ),
            (sealed(Batch { record_count: 2, last_offset_delta: 1, ..batch(1) }), ErrorCode::InvalidRecord),
            (sealed(Batch { attributes: 1, ..batch(1) }), ErrorCode::CorruptMessage),
            (sealed(Batch { attributes: 7, ..batch(1) }), ErrorCode::UnsupportedCompressionType),
            (
                sealed(Batch { producer_id: 99, producer_epoch: 0, base_sequence: 0, ..batch(1) }),
                ErrorCode::UnknownProducerId,
            ),
        ];
        for (batch, code) in cases {
            assert_eq!(produce(&mut guard, batch).await, Err(code));
        }
        assert_eq!(produce(&mut guard, batch(2)).await, Ok(0));
        for (name, partitions) in [("", 1), ("..", 1), ("a/b", 1), ("many", 100_000), ("none", 0)] {
            assert!(create(&mut guard, name, partitions).await.is_err(), "{name}");
        }
    }
}
