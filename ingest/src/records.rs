//! Raw messages, many at a time, in a few large allocations: what the poll thread hands on and the decoder reads.
//!
//! A message of its own would cost three allocations and a pointer chase each; at a million messages a second that is
//! more than decoding them.

use std::ops::Range;

use uuid::Uuid;

/// One message of a topic, borrowed from wherever it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// The partition that holds it.
    pub partition: i32,
    /// Its offset in that partition.
    pub offset: i64,
    /// The message's timestamp in milliseconds since 1970, if it has one.
    pub timestamp_millis: Option<i64>,
    /// The key, if it has one.
    pub key: Option<&'a [u8]>,
    /// The payload; `None` is a tombstone.
    pub payload: Option<&'a [u8]>,
    /// The headers as JSON text, if it has any: `[{"key":"…","value":"…"}, …]`.
    pub headers: Option<&'a str>,
}

impl Record<'_> {
    /// The size of its key, payload and headers.
    pub fn bytes(&self) -> usize {
        self.key.map_or(0, <[u8]>::len) + self.payload.map_or(0, <[u8]>::len) + self.headers.map_or(0, str::len)
    }

    /// By this the same message is known again: a hash of its timestamp, key and payload, in hexadecimal.
    ///
    /// A topic that was deleted and made again holds other messages at the same offsets.
    pub fn fingerprint(&self) -> String {
        let mut bytes = Vec::with_capacity(64 + self.key.map_or(0, <[u8]>::len) + self.payload.map_or(0, <[u8]>::len));
        bytes.extend_from_slice(&self.timestamp_millis.unwrap_or(-1).to_le_bytes());
        for part in [self.key, self.payload] {
            let length = part.map_or(-1, |part| part.len() as i64);
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(part.unwrap_or_default());
        }
        Uuid::new_v5(&Uuid::NAMESPACE_OID, &bytes).simple().to_string()
    }
}

/// A fingerprint in 60 of the 63 bits that a ledger entry has room for; never 0, which stands for none.
pub fn digest(fingerprint: &str) -> i64 {
    const HEX_DIGITS: usize = 15;
    let leading = fingerprint.get(..HEX_DIGITS).unwrap_or(fingerprint);
    i64::from_str_radix(leading, 16).unwrap_or(0).max(1)
}

/// The same of any text.
pub(crate) fn digest_of_text(text: &str) -> i64 {
    digest(&Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()).simple().to_string())
}

/// Many messages, in the order in which they came.
#[derive(Debug, Default, Clone)]
pub struct Records {
    /// Keys, payloads and headers of all messages, one after the other.
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

/// Where a message lies in the bytes. 32-bit lengths: Kafka has no longer ones.
#[derive(Debug, Clone, Copy)]
struct Entry {
    partition: i32,
    offset: i64,
    timestamp_millis: Option<i64>,
    start: usize,
    key: Option<u32>,
    payload: Option<u32>,
    headers: Option<u32>,
}

impl Records {
    /// No messages, with room for some.
    pub fn with_capacity(messages: usize, bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), entries: Vec::with_capacity(messages) }
    }

    /// Takes a copy of one message.
    pub fn push(&mut self, record: &Record<'_>) {
        let start = self.bytes.len();
        let mut keep = |part: Option<&[u8]>| {
            let part = part?;
            self.bytes.extend_from_slice(part);
            Some(u32::try_from(part.len()).expect("a Kafka message is shorter than 2 GiB"))
        };
        let key = keep(record.key);
        let payload = keep(record.payload);
        let headers = keep(record.headers.map(str::as_bytes));
        let Record { partition, offset, timestamp_millis, .. } = *record;
        self.entries.push(Entry { partition, offset, timestamp_millis, start, key, payload, headers });
    }

    /// The number of messages.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The size of all keys, payloads and headers.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// What they take of memory.
    pub fn memory(&self) -> usize {
        self.bytes.len() + self.entries.len() * size_of::<Entry>()
    }

    /// The message at `index`.
    pub fn get(&self, index: usize) -> Record<'_> {
        let entry = self.entries[index];
        let mut at = entry.start;
        let mut part = |length: Option<u32>| {
            let range: Range<usize> = at..at + length? as usize;
            at = range.end;
            Some(&self.bytes[range])
        };
        let key = part(entry.key);
        let payload = part(entry.payload);
        let headers =
            part(entry.headers).map(|text| std::str::from_utf8(text).expect("headers were taken as a string"));
        Record {
            partition: entry.partition,
            offset: entry.offset,
            timestamp_millis: entry.timestamp_millis,
            key,
            payload,
            headers,
        }
    }

    /// All messages in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Record<'_>> {
        (0..self.len()).map(|index| self.get(index))
    }

    /// Partition and offset of all messages in their order, without touching their bytes.
    pub fn places(&self) -> impl ExactSizeIterator<Item = (i32, i64)> {
        self.entries.iter().map(|entry| (entry.partition, entry.offset))
    }

    /// Forgets the messages for which `keep` (called with their index, in order) says no. Their bytes stay until the end.
    pub fn retain(&mut self, mut keep: impl FnMut(usize) -> bool) {
        let mut index = 0;
        self.entries.retain(|_| {
            index += 1;
            keep(index - 1)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: i64, key: Option<&'static [u8]>, payload: Option<&'static [u8]>) -> Record<'static> {
        Record { partition: 1, offset, timestamp_millis: Some(7), key, payload, headers: None }
    }

    #[test]
    fn messages_come_back_as_they_went_in() {
        let with_headers = Record { headers: Some("[]"), ..record(9, None, Some(b"p")) };
        let all = [
            record(3, Some(b"k"), Some(b"payload")),
            record(4, None, None),
            record(5, Some(b""), Some(b"")),
            with_headers,
        ];
        let mut records = Records::default();
        all.iter().for_each(|record| records.push(record));
        assert_eq!(records.iter().collect::<Vec<_>>(), all);
        records.retain(|index| index != 1);
        assert_eq!(records.iter().collect::<Vec<_>>(), [all[0], all[2], all[3]]);
    }

    #[test]
    fn fingerprints_tell_empty_from_missing_and_key_from_payload() {
        let all = [
            record(0, None, None),
            record(0, Some(b""), None),
            record(0, None, Some(b"")),
            record(0, Some(b"ab"), Some(b"c")),
            record(0, Some(b"a"), Some(b"bc")),
            Record { timestamp_millis: None, ..record(0, None, None) },
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().map(Record::fingerprint).collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(record(1, None, None).fingerprint(), record(2, None, None).fingerprint());
    }
}
