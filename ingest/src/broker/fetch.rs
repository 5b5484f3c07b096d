//! Answers `Fetch` and `ListOffsets` from the stored records.
//!
//! A fetch that finds too little waits on the bell of [`Records`] instead of asking again and again, so that a record
//! reaches a waiting consumer at once.

use std::time::Duration;

use tansu_sans_io::fetch_request::{FetchPartition, FetchRequest, FetchTopic};
use tansu_sans_io::fetch_response::{FetchResponse, FetchableTopicResponse, PartitionData};
use tansu_sans_io::list_offsets_request::{ListOffsetsPartition, ListOffsetsRequest};
use tansu_sans_io::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsResponse, ListOffsetsTopicResponse,
};
use tansu_sans_io::{ErrorCode, NULL_TOPIC_ID, record::deflated};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::records::{Bounds, PartitionId, Range, Records};

/// The most that one answer carries, whatever the client would take: it is held in memory.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The longest that a fetch waits, whatever the client asks for.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// `ListOffsets` for the end of the log.
const LATEST: i64 = -1;
/// `ListOffsets` for the start of the log.
const EARLIEST: i64 = -2;

/// What one look at the log found.
struct Found {
    topics: Vec<FetchableTopicResponse>,
    /// Bytes of records in it.
    bytes: usize,
    /// Something in it is an error, which the client should learn without delay.
    refused: bool,
}

/// Answers as soon as there is enough, or what there is when the client's patience or the broker ends.
pub(super) async fn fetch(request: FetchRequest, records: &Records, token: &CancellationToken) -> FetchResponse {
    let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0)).min(WAIT_MAX);
    let deadline = Instant::now() + wait;
    let enough = usize::try_from(request.min_bytes).unwrap_or(0).min(ANSWER_BYTES_MAX);
    let mut appends = records.appends();
    let topics = loop {
        appends.borrow_and_update();
        let found = look(&request, records).await;
        if found.refused || found.bytes >= enough || Instant::now() >= deadline {
            break found.topics;
        }
        tokio::select! {
            waited = timeout_at(deadline, appends.changed()) => {
                // Time is up, so what was just found is the answer.
                if waited.is_err() {
                    break found.topics;
                }
            }
            () = token.cancelled() => break found.topics,
        }
    };
    FetchResponse::default()
        .throttle_time_ms(Some(0))
        .error_code(Some(ErrorCode::None.into()))
        // No session: each request names all that it wants.
        .session_id(Some(0))
        // An empty list is written as a tagged field, which a client of version 12 refuses.
        .node_endpoints(None)
        .responses(Some(topics))
}

async fn look(request: &FetchRequest, records: &Records) -> Found {
    let budget = request.max_bytes.map_or(ANSWER_BYTES_MAX, |bytes| usize::try_from(bytes).unwrap_or(0));
    let budget = budget.min(ANSWER_BYTES_MAX);
    let mut found = Found { topics: Vec::new(), bytes: 0, refused: false };
    for topic in request.topics.as_deref().unwrap_or_default() {
        let mut partitions = Vec::new();
        for partition in topic.partitions.as_deref().unwrap_or_default() {
            let room = budget.saturating_sub(found.bytes);
            let data = look_at(topic, partition, room, records).await;
            let bytes = |frame: &deflated::Frame| frame.batches.iter().map(|batch| batch.record_data.len()).sum();
            found.bytes += data.records.as_ref().map_or(0, bytes);
            found.refused |= data.error_code != i16::from(ErrorCode::None);
            partitions.push(data);
        }
        found.topics.push(
            FetchableTopicResponse::default()
                .topic(topic.topic.clone())
                .topic_id(Some(NULL_TOPIC_ID))
                .partitions(Some(partitions)),
        );
    }
    found
}

/// One partition's part of the answer. An answer that has no room left is one without records; the first one returns at
/// least one record, or a long one would never arrive.
async fn look_at(topic: &FetchTopic, wanted: &FetchPartition, room: usize, records: &Records) -> PartitionData {
    let name = topic.topic.as_deref().unwrap_or_default();
    let (bounds, outcome) = match place(records, name, wanted.partition).await {
        Ok((partition, bounds)) => (bounds, read(records, partition, bounds, wanted, room).await),
        Err(code) => (Bounds { low: -1, high: -1 }, Err(code)),
    };
    let (batches, code) = match outcome {
        Ok(batches) => (batches, ErrorCode::None),
        Err(code) => (Vec::new(), code),
    };
    PartitionData::default()
        .partition_index(wanted.partition)
        .error_code(code.into())
        .high_watermark(bounds.high)
        .last_stable_offset(Some(bounds.high))
        .log_start_offset(Some(bounds.low))
        .diverging_epoch(None)
        .current_leader(None)
        .snapshot_id(None)
        .aborted_transactions(Some(Vec::new()))
        .preferred_read_replica(Some(-1))
        .records((!batches.is_empty()).then_some(deflated::Frame { batches }))
}

async fn read(
    records: &Records,
    partition: PartitionId,
    bounds: Bounds,
    wanted: &FetchPartition,
    room: usize,
) -> Result<Vec<deflated::Batch>, ErrorCode> {
    if !(bounds.low..=bounds.high).contains(&wanted.fetch_offset) {
        return Err(ErrorCode::OffsetOutOfRange);
    }
    let bytes_max = usize::try_from(wanted.partition_max_bytes).unwrap_or(0).min(room);
    if bytes_max == 0 || wanted.fetch_offset == bounds.high {
        return Ok(Vec::new());
    }
    let range = Range { from: wanted.fetch_offset, upto: bounds.high, bytes_max };
    records.read(partition, range).await.map_err(unreadable)
}

/// The partition and where its log starts and ends.
async fn place(records: &Records, topic: &str, index: i32) -> Result<(PartitionId, Bounds), ErrorCode> {
    let partition = records.partition(topic, index).await.map_err(unreadable)?;
    let partition = partition.ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let bounds = records.bounds(partition).await.map_err(unreadable)?;
    Ok((partition, bounds))
}

fn unreadable(error: libsql::Error) -> ErrorCode {
    warn!(%error, "the broker's file cannot be read");
    ErrorCode::KafkaStorageError
}

/// Answers where a log starts, where it ends, or which offset a time has.
pub(super) async fn list_offsets(request: ListOffsetsRequest, records: &Records) -> ListOffsetsResponse {
    let mut topics = Vec::new();
    for topic in request.topics.unwrap_or_default() {
        let mut partitions = Vec::new();
        for wanted in topic.partitions.unwrap_or_default() {
            let outcome = offset_of(records, &topic.name, &wanted).await;
            let (offset, timestamp, code) = match outcome {
                Ok((offset, timestamp)) => (offset, timestamp, ErrorCode::None),
                Err(code) => (-1, -1, code),
            };
            partitions.push(
                ListOffsetsPartitionResponse::default()
                    .partition_index(wanted.partition_index)
                    .error_code(code.into())
                    .old_style_offsets(Some(Vec::from_iter((offset >= 0).then_some(offset))))
                    .timestamp(Some(timestamp))
                    .offset(Some(offset))
                    .leader_epoch(Some(0)),
            );
        }
        topics.push(ListOffsetsTopicResponse::default().name(topic.name).partitions(Some(partitions)));
    }
    ListOffsetsResponse::default().throttle_time_ms(Some(0)).topics(Some(topics))
}

/// Offset and time; both -1 if nothing is as young as asked.
async fn offset_of(records: &Records, topic: &str, wanted: &ListOffsetsPartition) -> Result<(i64, i64), ErrorCode> {
    let (partition, bounds) = place(records, topic, wanted.partition_index).await?;
    match wanted.timestamp {
        LATEST => Ok((bounds.high, -1)),
        EARLIEST => Ok((bounds.low, -1)),
        timestamp if timestamp >= 0 => {
            Ok(records.first_since(partition, timestamp).await.map_err(unreadable)?.unwrap_or((-1, -1)))
        }
        _ => Err(ErrorCode::UnsupportedVersion),
    }
}
