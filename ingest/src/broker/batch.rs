//! Builds record batches of the message format 2, the only one that the broker keeps and sends.
//!
//! Both ends use it: [`super::records`] packs stored rows for a consumer, [`super::legacy`] lifts what an old producer
//! sent. Format: <https://kafka.apache.org/documentation/#recordbatch>.

use bytes::{Buf as _, BufMut, Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};
use tansu_sans_io::record::deflated::Batch;

/// Bytes of a batch behind its length field and before its records.
const HEADER_BYTES: usize = 49;

/// The most records for which room is made ahead, since their number is only a claim.
const CAPACITY_MAX: u32 = 10_000;

/// A header of a record: key and value, either of which may be absent.
pub(super) type Header = (Option<Vec<u8>>, Option<Vec<u8>>);

/// A batch that is being filled.
#[derive(Debug)]
pub(super) struct BatchBuilder {
    /// Offset of the first record; those of the others are kept as distances from it.
    base_offset: i64,
    /// Bit 3 says whether the timestamps are the producer's or the broker's.
    attributes: i16,
    /// Time of the first record in milliseconds; those of the others are kept as distances from it.
    base_timestamp: i64,
    /// The latest time of all records in milliseconds.
    max_timestamp: i64,
    /// Distance of the last record from the first.
    last_offset_delta: i32,
    /// How many records there are.
    count: u32,
    /// The records as they go over the wire, without compression.
    data: BytesMut,
}

impl BatchBuilder {
    /// An empty batch whose first record will have this offset and this time.
    pub(super) fn new(base_offset: i64, base_timestamp: i64, attributes: i16) -> Self {
        Self {
            base_offset,
            attributes,
            base_timestamp,
            max_timestamp: base_timestamp,
            last_offset_delta: 0,
            count: 0,
            data: BytesMut::new(),
        }
    }

    /// The attributes that all records of this batch share.
    pub(super) fn attributes(&self) -> i16 {
        self.attributes
    }

    /// Adds a record. Offsets grow, and none is more than `i32::MAX` behind the first.
    pub(super) fn push(
        &mut self,
        offset: i64,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header],
    ) {
        let offset_delta = offset - self.base_offset;
        let timestamp_delta = timestamp.wrapping_sub(self.base_timestamp);
        let mut length = 1 + varint_bytes(timestamp_delta) + varint_bytes(offset_delta);
        length += field_bytes(key) + field_bytes(value) + varint_bytes(to_i64(headers.len()));
        for (header_key, header_value) in headers {
            length += field_bytes(Some(header_key.as_deref().unwrap_or_default()));
            length += field_bytes(header_value.as_deref());
        }
        self.data.reserve(length + 5);
        put_varint(&mut self.data, to_i64(length));
        self.data.put_u8(0);
        put_varint(&mut self.data, timestamp_delta);
        put_varint(&mut self.data, offset_delta);
        put_field(&mut self.data, key);
        put_field(&mut self.data, value);
        put_varint(&mut self.data, to_i64(headers.len()));
        for (header_key, header_value) in headers {
            // A header's key cannot be null on the wire.
            put_field(&mut self.data, Some(header_key.as_deref().unwrap_or_default()));
            put_field(&mut self.data, header_value.as_deref());
        }
        self.count += 1;
        self.max_timestamp = self.max_timestamp.max(timestamp);
        self.last_offset_delta = i32::try_from(offset_delta).unwrap_or(i32::MAX);
    }

    /// The batch with its checksum.
    pub(super) fn finish(self) -> Batch {
        let mut batch = Batch {
            base_offset: self.base_offset,
            batch_length: i32::try_from(HEADER_BYTES + self.data.len()).unwrap_or(i32::MAX),
            partition_leader_epoch: 0,
            magic: 2,
            crc: 0,
            attributes: self.attributes,
            last_offset_delta: self.last_offset_delta,
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            record_count: self.count,
            record_data: self.data.freeze(),
        };
        batch.crc = checksum(&batch);
        batch
    }
}

/// The CRC-32C that the batch must carry.
pub(super) fn checksum(batch: &Batch) -> u32 {
    let mut head = BytesMut::with_capacity(HEADER_BYTES);
    head.put_i16(batch.attributes);
    head.put_i32(batch.last_offset_delta);
    head.put_i64(batch.base_timestamp);
    head.put_i64(batch.max_timestamp);
    head.put_i64(batch.producer_id);
    head.put_i16(batch.producer_epoch);
    head.put_i32(batch.base_sequence);
    head.put_u32(batch.record_count);
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(&head);
    digest.update(&batch.record_data);
    u32::try_from(digest.finalize() & u64::from(u32::MAX)).expect("masked to 32 bits")
}

/// Splits the records field of a produce request of format 2 into its batches; `None` if it is cut off.
pub(super) fn split(mut encoded: Bytes) -> Option<Vec<Batch>> {
    let mut batches = Vec::new();
    while !encoded.is_empty() {
        let length = encoded.get(8..12).and_then(|bytes| bytes.try_into().ok()).map(i32::from_be_bytes)?;
        let end = usize::try_from(length).ok()?.checked_add(12)?;
        if end > encoded.len() {
            return None;
        }
        batches.push(Batch::try_from(encoded.split_to(end)).ok()?);
    }
    Some(batches)
}

/// A record of a batch, as slices of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Milliseconds.
    pub(super) timestamp: i64,
    pub(super) key: Option<Bytes>,
    pub(super) value: Option<Bytes>,
    pub(super) headers: Vec<(Bytes, Option<Bytes>)>,
}

/// Takes apart a batch without compression; `None` if its records are not what it claims. Offsets are not read: the
/// broker gives them anew, one by one.
pub(super) fn records(batch: &Batch) -> Option<Vec<Record>> {
    let mut data = batch.record_data.clone();
    let mut records = Vec::with_capacity(batch.record_count.min(CAPACITY_MAX) as usize);
    while !data.is_empty() {
        let length = usize::try_from(take_varint(&mut data)?).ok()?;
        if length > data.len() {
            return None;
        }
        let mut record = data.split_to(length);
        let _attributes = record.try_get_u8().ok()?;
        let timestamp = batch.base_timestamp.checked_add(take_varint(&mut record)?)?;
        let _offset_delta = take_varint(&mut record)?;
        let key = take_field(&mut record)?;
        let value = take_field(&mut record)?;
        let mut headers = Vec::new();
        for _ in 0..take_varint(&mut record)? {
            headers.push((take_field(&mut record)??, take_field(&mut record)?));
        }
        if !record.is_empty() {
            return None;
        }
        records.push(Record { timestamp, key, value, headers });
    }
    (records.len() == batch.record_count as usize).then_some(records)
}

fn take_varint(data: &mut Bytes) -> Option<i64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = data.try_get_u8().ok()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
        }
    }
    None
}

/// The outer `None` is a field that is cut off, the inner one null.
fn take_field(data: &mut Bytes) -> Option<Option<Bytes>> {
    match take_varint(data)? {
        -1 => Some(None),
        length => {
            let length = usize::try_from(length).ok()?;
            (length <= data.len()).then(|| Some(data.split_to(length)))
        }
    }
}

fn to_i64(length: usize) -> i64 {
    i64::try_from(length).expect("no buffer is longer than i64::MAX")
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

fn varint_bytes(value: i64) -> usize {
    let bits = 64 - zigzag(value).leading_zeros() as usize;
    bits.div_ceil(7).max(1)
}

fn put_varint(buffer: &mut BytesMut, value: i64) {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        buffer.put_u8(u8::try_from(rest & 0x7f).expect("seven bits") | 0x80);
        rest >>= 7;
    }
    buffer.put_u8(u8::try_from(rest).expect("seven bits"));
}

fn field_bytes(field: Option<&[u8]>) -> usize {
    field.map_or(1, |bytes| varint_bytes(to_i64(bytes.len())) + bytes.len())
}

fn put_field(buffer: &mut BytesMut, field: Option<&[u8]>) {
    match field {
        Some(bytes) => {
            put_varint(buffer, to_i64(bytes.len()));
            buffer.put_slice(bytes);
        }
        None => put_varint(buffer, -1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tansu_sans_io::record::inflated;

    #[test]
    fn a_batch_reads_back_as_it_was_filled() {
        let mut builder = BatchBuilder::new(40, 1_000, 0);
        builder.push(40, 1_000, Some(b"k"), Some(b"value"), &[]);
        builder.push(43, 900, None, None, &[(Some(b"h".to_vec()), None)]);
        let batch = builder.finish();
        let encoded = Bytes::from(batch.clone());
        assert_eq!(split(encoded).expect("whole"), vec![batch.clone()]);
        assert_eq!(batch.crc, checksum(&batch));
        let own = records(&batch).expect("decodes");
        assert_eq!((own[0].timestamp, own[1].timestamp), (1_000, 900));
        assert_eq!((own[0].value.as_deref(), own[1].value.as_deref()), (Some(&b"value"[..]), None));
        assert_eq!(own[1].headers, [(Bytes::from_static(b"h"), None)]);
        let inflated = inflated::Batch::try_from(batch).expect("decodes");
        assert_eq!(inflated.records.len(), 2);
        assert_eq!(inflated.records[0].key.as_deref(), Some(&b"k"[..]));
        assert_eq!(inflated.records[0].value.as_deref(), Some(&b"value"[..]));
        assert_eq!((inflated.records[1].offset_delta, inflated.records[1].timestamp_delta), (3, -100));
        assert_eq!(inflated.records[1].key, None);
        assert_eq!(inflated.records[1].headers.len(), 1);
    }

    #[test]
    fn a_cut_batch_is_refused() {
        let mut builder = BatchBuilder::new(0, 0, 0);
        builder.push(0, 0, None, Some(b"x"), &[]);
        let encoded = Bytes::from(builder.finish());
        assert!(split(encoded.slice(..encoded.len() - 1)).is_none());
        assert!(split(encoded.slice(..5)).is_none());
        let mut batch = split(encoded).expect("whole").remove(0);
        batch.record_count = 2;
        assert_eq!(records(&batch), None);
        batch.record_data = batch.record_data.slice(1..);
        assert_eq!(records(&batch), None);
    }
}
