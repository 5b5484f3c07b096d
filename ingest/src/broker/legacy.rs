//! Lifts what producers of before 2017 send (message formats 0 and 1) to the format that the engine understands.
//!
//! The engine takes the old bytes for a batch of the new format and reads nonsense out of them: a record of the oldest
//! format was acknowledged and never seen again. Old formats come only in versions 0 to 2 of the produce request, so
//! those are decoded here. Formats: <https://kafka.apache.org/documentation/#messageset>.

use bytes::{Buf, Bytes};
use tansu_sans_io::ErrorCode;
use tansu_sans_io::produce_request::{PartitionProduceData, ProduceRequest, TopicProduceData};
use tansu_sans_io::produce_response::{PartitionProduceResponse, ProduceResponse, TopicProduceResponse};
use tansu_sans_io::record::deflated;

use super::batch::{BatchBuilder, split};
use super::compression::{CODEC, inflate};

/// The last version of the produce request that can carry an old format.
pub(super) const PRODUCE_VERSION_MAX: i16 = 2;

/// Position of the format number in all formats.
const MAGIC_AT: usize = 16;

/// Decodes the body of a produce request of version 0 to 2. The outer error is a request that cannot be understood at
/// all; the inner one is the answer to one that is refused.
pub(super) fn produce_request(mut body: Bytes) -> Option<Result<ProduceRequest, ProduceResponse>> {
    let acks = body.try_get_i16().ok()?;
    let timeout_ms = body.try_get_i32().ok()?;
    let mut topics = Vec::new();
    let mut refusals = Vec::new();
    let mut refused = false;
    for _ in 0..count(&mut body)? {
        let name = string(&mut body)?;
        let mut partitions = Vec::new();
        let mut codes = Vec::new();
        for _ in 0..count(&mut body)? {
            let index = body.try_get_i32().ok()?;
            let length = usize::try_from(body.try_get_i32().ok()?).ok()?;
            if length > body.remaining() {
                return None;
            }
            let lifted = lift(body.split_to(length));
            refused |= lifted.is_err();
            codes.push((index, lifted.as_ref().err().copied().unwrap_or(ErrorCode::InvalidRecord)));
            let batches = lifted.unwrap_or_default();
            partitions.push(PartitionProduceData::default().index(index).records(Some(deflated::Frame { batches })));
        }
        refusals.push((name.clone(), codes));
        topics.push(TopicProduceData::default().name(name).partition_data(Some(partitions)));
    }
    Some(if refused {
        Err(refusal(refusals))
    } else {
        Ok(ProduceRequest::default().acks(acks).timeout_ms(timeout_ms).topic_data(Some(topics)))
    })
}

/// Refuses all partitions of a request, so that none of it is stored and all of it can be sent again.
fn refusal(topics: Vec<(String, Vec<(i32, ErrorCode)>)>) -> ProduceResponse {
    let topics = topics.into_iter().map(|(name, codes)| {
        let partitions = codes.into_iter().map(|(index, code)| {
            PartitionProduceResponse::default()
                .index(index)
                .error_code(code.into())
                .base_offset(-1)
                .log_append_time_ms(Some(-1))
        });
        TopicProduceResponse::default().name(name).partition_responses(Some(partitions.collect()))
    });
    ProduceResponse::default().responses(Some(topics.collect())).throttle_time_ms(Some(0))
}

/// The records of one partition in the new format.
fn lift(encoded: Bytes) -> Result<Vec<deflated::Batch>, ErrorCode> {
    match encoded.get(MAGIC_AT) {
        Some(2) => split(encoded).ok_or(ErrorCode::CorruptMessage),
        Some(0 | 1) => Ok(vec![lift_messages(encoded)?]),
        _ => Err(ErrorCode::CorruptMessage),
    }
}

fn lift_messages(encoded: Bytes) -> Result<deflated::Batch, ErrorCode> {
    let mut batch: Option<BatchBuilder> = None;
    let mut offset = 0;
    for message in messages(encoded)? {
        // A compressed message is a wrapper, whose value is a set of messages.
        let inner = match (message.attributes & CODEC, message.value.clone()) {
            (0, _) => vec![message],
            (_, Some(packed)) => messages(inflate(message.attributes, packed)?)?,
            (_, None) => return Err(ErrorCode::CorruptMessage),
        };
        for message in inner {
            let builder = batch.get_or_insert_with(|| BatchBuilder::new(0, message.timestamp, 0));
            builder.push(offset, message.timestamp, message.key.as_deref(), message.value.as_deref(), &[]);
            offset += 1;
        }
    }
    batch.map(BatchBuilder::finish).ok_or(ErrorCode::InvalidRecord)
}

fn messages(mut encoded: Bytes) -> Result<Vec<Message>, ErrorCode> {
    let mut messages = Vec::new();
    while !encoded.is_empty() {
        messages.push(message(&mut encoded).ok_or(ErrorCode::CorruptMessage)?);
    }
    Ok(messages)
}

/// A message of format 0 or 1.
struct Message {
    attributes: i16,
    /// Milliseconds; -1 in format 0, which has none.
    timestamp: i64,
    key: Option<Bytes>,
    value: Option<Bytes>,
}

fn message(encoded: &mut Bytes) -> Option<Message> {
    let _offset = encoded.try_get_i64().ok()?;
    let length = usize::try_from(encoded.try_get_i32().ok()?).ok()?;
    if length > encoded.len() {
        return None;
    }
    let mut message = encoded.split_to(length);
    let _checksum = message.try_get_u32().ok()?;
    let magic = message.try_get_i8().ok()?;
    let attributes = i16::from(message.try_get_i8().ok()?);
    let timestamp = match magic {
        0 => -1,
        1 => message.try_get_i64().ok()?,
        _ => return None,
    };
    let key = field(&mut message)?;
    let value = field(&mut message)?;
    Some(Message { attributes, timestamp, key, value })
}

/// A field with a length in front; -1 is null. The outer `None` is a field that is cut off.
fn field(encoded: &mut Bytes) -> Option<Option<Bytes>> {
    match encoded.try_get_i32().ok()? {
        -1 => Some(None),
        length => {
            let length = usize::try_from(length).ok()?;
            (length <= encoded.len()).then(|| Some(encoded.split_to(length)))
        }
    }
}

fn count(body: &mut Bytes) -> Option<i32> {
    body.try_get_i32().ok().filter(|count| *count >= 0)
}

fn string(body: &mut Bytes) -> Option<String> {
    let length = usize::try_from(body.try_get_i16().ok()?).ok()?;
    if length > body.len() {
        return None;
    }
    String::from_utf8(body.split_to(length).to_vec()).ok()
}
