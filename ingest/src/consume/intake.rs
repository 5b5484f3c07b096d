//! Which offsets are taken, which come again, which never were: the bookkeeping of the partitions that are ours. Pure.

use std::collections::BTreeMap;

use crate::kafka::Watermarks;
use crate::records::{Records, digest};

/// Where one partition begins, as the ledger and the broker say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PartitionStart {
    /// The next offset to take.
    pub(super) next: i64,
    /// A digest of the message before it, if one was recorded: it is read first and compared.
    pub(super) last_taken: Option<i64>,
    /// What the broker holds.
    pub(super) watermarks: Watermarks,
}

impl PartitionStart {
    /// The first offset to ask the broker for.
    pub(super) fn seek(&self) -> i64 {
        if self.last_taken.is_some() { self.next - 1 } else { self.next }
    }
}

/// A run of offsets that was taken, before it is known what its messages are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) partition: i32,
    pub(super) from: i64,
    pub(super) to: i64,
    pub(super) records: u64,
    pub(super) holes: u64,
    pub(super) end_offset: i64,
    pub(super) fingerprint: String,
}

/// The message before the ledger's offset is another one than was recorded: the partition is not the one that was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stranger {
    pub(super) partition: i32,
}

/// The partitions that are ours.
#[derive(Debug, Default)]
pub(super) struct Intake {
    partitions: BTreeMap<i32, Partition>,
}

#[derive(Debug)]
struct Partition {
    /// The next offset to take: all below is committed, being written, or in the buffer.
    next: i64,
    /// A digest of the message before `next`; none once it was seen, or can't be seen any more.
    last_taken: Option<i64>,
    /// The newest end that we have heard of.
    end: i64,
    /// The end when the partition was first given to us.
    end_at_start: i64,
    /// Whether the broker said that there is no more, since the last assignment.
    exhausted: bool,
    /// What the buffer holds of it.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    from: i64,
    records: u64,
    holes: u64,
    fingerprint: String,
    /// Where the last message stands among those that are being admitted.
    last_index: Option<usize>,
}

impl Intake {
    /// Begins anew at these places. Partitions that were ours before keep the end that they had at their first start.
    pub(super) fn restart(&mut self, starts: &BTreeMap<i32, PartitionStart>) {
        let before = std::mem::take(&mut self.partitions);
        let partition = |(&partition, start): (&i32, &PartitionStart)| {
            let end = start.watermarks.high;
            let begun = Partition {
                next: start.next,
                last_taken: start.last_taken,
                end,
                end_at_start: before.get(&partition).map_or(end, |before| before.end_at_start),
                exhausted: false,
                open: None,
            };
            (partition, begun)
        };
        self.partitions = starts.iter().map(partition).collect();
    }

    /// Takes note of `records`, and takes those out of it that are not to be taken. Says how many those are.
    pub(super) fn admit(&mut self, records: &mut Records) -> Result<u64, Stranger> {
        let mut refused: Vec<usize> = Vec::new();
        let mut compared = 0;
        for (index, (partition, offset)) in records.places().enumerate() {
            let Some(ours) = self.partitions.get_mut(&partition) else {
                refused.push(index);
                continue;
            };
            if let Some(expected) = ours.last_taken.take()
                && offset == ours.next - 1
            {
                if digest(&records.get(index).fingerprint()) != expected {
                    return Err(Stranger { partition });
                }
                compared += 1;
            }
            if offset < ours.next {
                refused.push(index);
                continue;
            }
            ours.take(offset, index);
        }
        for open in self.partitions.values_mut().filter_map(|ours| ours.open.as_mut()) {
            if let Some(index) = open.last_index.take() {
                open.fingerprint = records.get(index).fingerprint();
            }
        }
        if !refused.is_empty() {
            let mut next_refused = refused.iter().copied().peekable();
            records.retain(|index| next_refused.next_if_eq(&index).is_none());
        }
        Ok(refused.len() as u64 - compared)
    }

    /// The broker has no more of this partition for now.
    pub(super) fn exhausted(&mut self, partition: i32) {
        if let Some(ours) = self.partitions.get_mut(&partition) {
            ours.exhausted = true;
            // Nothing came before the end: the message to compare with was compacted away.
            ours.last_taken = None;
        }
    }

    /// New ends, as the broker tells them.
    pub(super) fn learn_ends(&mut self, ends: &BTreeMap<i32, i64>) {
        for (partition, &end) in ends {
            if let Some(ours) = self.partitions.get_mut(partition) {
                ours.end = end.max(ours.next);
            }
        }
    }

    /// Whether everything was taken that was there at the start.
    pub(super) fn is_at_end(&self) -> bool {
        self.partitions.values().all(|ours| {
            let verified = ours.last_taken.is_none();
            verified && (ours.exhausted || ours.next >= ours.end_at_start)
        })
    }

    /// What the buffer holds, which is then empty.
    pub(super) fn take_ranges(&mut self) -> Vec<Range> {
        let range = |(&partition, ours): (&i32, &mut Partition)| {
            let open = ours.open.take()?;
            Some(Range {
                partition,
                from: open.from,
                to: ours.next,
                records: open.records,
                holes: open.holes,
                end_offset: ours.end.max(ours.next),
                fingerprint: open.fingerprint,
            })
        };
        self.partitions.iter_mut().filter_map(range).collect()
    }

    /// Next and end offset of each partition.
    pub(super) fn places(&self) -> impl Iterator<Item = (i32, i64, i64)> {
        self.partitions.iter().map(|(&partition, ours)| (partition, ours.next, ours.end.max(ours.next)))
    }
}

impl Partition {
    fn take(&mut self, offset: i64, index: usize) {
        let open = self.open.get_or_insert_with(|| Open {
            from: self.next,
            records: 0,
            holes: 0,
            fingerprint: String::new(),
            last_index: None,
        });
        open.last_index = Some(index);
        open.records += 1;
        open.holes += (offset - self.next) as u64;
        self.next = offset + 1;
        self.end = self.end.max(self.next);
        self.exhausted = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Record;

    fn records(places: &[(i32, i64)]) -> Records {
        let mut records = Records::default();
        for &(partition, offset) in places {
            let payload = Some(if offset % 2 == 0 { b"even".as_slice() } else { b"odd" });
            records.push(&Record { partition, offset, timestamp_millis: None, key: None, payload, headers: None });
        }
        records
    }

    fn start(next: i64, last_taken: Option<i64>, high: i64) -> PartitionStart {
        PartitionStart { next, last_taken, watermarks: Watermarks { low: 0, high } }
    }

    fn intake(starts: impl Into<BTreeMap<i32, PartitionStart>>) -> Intake {
        let mut intake = Intake::default();
        intake.restart(&starts.into());
        intake
    }

    #[test]
    fn holes_are_counted_and_ranges_touch() {
        let mut intake = intake([(0, start(5, None, 20)), (1, start(0, None, 1))]);
        let mut batch = records(&[(0, 5), (1, 0), (0, 6), (0, 9)]);
        assert_eq!(intake.admit(&mut batch).expect("fine"), 0);
        let ranges = intake.take_ranges();
        let shown: Vec<_> =
            ranges.iter().map(|r| (r.partition, r.from, r.to, r.records, r.holes, r.end_offset)).collect();
        assert_eq!(shown, [(0, 5, 10, 3, 2, 20), (1, 0, 1, 1, 0, 1)]);
        assert_eq!(ranges[0].fingerprint, batch.get(3).fingerprint());
        assert!(intake.take_ranges().is_empty());
        intake.admit(&mut records(&[(0, 12)])).expect("fine");
        assert_eq!((intake.take_ranges()[0].from, intake.is_at_end()), (10, false));
        intake.admit(&mut records(&[(0, 19)])).expect("fine");
        assert!(intake.is_at_end());
    }

    #[test]
    fn what_comes_again_or_is_not_ours_is_refused() {
        let mut intake = intake([(0, start(5, None, 9))]);
        let mut batch = records(&[(0, 3), (0, 4), (0, 5), (7, 1), (0, 5), (0, 6)]);
        assert_eq!(intake.admit(&mut batch).expect("fine"), 4);
        assert_eq!(batch.places().collect::<Vec<_>>(), [(0, 5), (0, 6)]);
        assert_eq!(intake.take_ranges()[0].holes, 0);
    }

    #[test]
    fn a_topic_made_anew_is_told_by_its_last_message() {
        let odd = digest(&records(&[(0, 1)]).get(0).fingerprint());
        let mut same = intake([(0, start(8, Some(odd), 8))]);
        assert!(!same.is_at_end(), "not before the message was compared");
        assert_eq!(same.admit(&mut records(&[(0, 7)])).expect("the same message"), 0);
        assert!(same.is_at_end());
        assert!(same.take_ranges().is_empty());
        let mut other = intake([(0, start(9, Some(odd), 20))]);
        let stranger = other.admit(&mut records(&[(0, 8), (0, 9)])).expect_err("another message");
        assert_eq!(stranger, Stranger { partition: 0 });
        // The message was compacted away: what follows can't be compared, and is taken.
        let mut compacted = intake([(0, start(9, Some(odd), 20))]);
        assert_eq!(compacted.admit(&mut records(&[(0, 10), (0, 8)])).expect("nothing to compare"), 1);
    }

    #[test]
    fn a_second_start_keeps_the_first_end() {
        let mut intake = intake([(0, start(0, None, 2))]);
        intake.restart(&[(0, start(1, None, 50))].into());
        intake.admit(&mut records(&[(0, 1)])).expect("fine");
        assert!(intake.is_at_end());
        intake.exhausted(0);
        assert_eq!(intake.places().collect::<Vec<_>>(), [(0, 2, 50)]);
    }
}
