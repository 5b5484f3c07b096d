//! Whether what the broker holds is what was read before, and what is gone if it is not. Pure.
//!
//! A partition is known by three things of the ledger: the next offset to read, a digest of the message before it, and the
//! cluster that it was read from. Kafka has ids for topics, but librdkafka's calls do not tell them.

use std::fmt;
use std::str::FromStr;

use lakehouse::{Skip, SkipReason, TableName};

use crate::kafka::Watermarks;
use crate::{Error, ErrorKind, Result};

/// What the ledger says of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    /// The next offset to read.
    pub(super) next: i64,
    /// A digest of the message before it, if there is one to compare with.
    pub(super) last: Option<i64>,
    /// How often the partition was made anew.
    pub(super) incarnation: i32,
}

impl Known {
    /// The offset of the message by which the partition can be compared, where the broker may still have it.
    pub(super) fn comparable(&self, here: Watermarks) -> Option<i64> {
        self.last.filter(|_| here.low < self.next && self.next <= here.high).map(|_| self.next - 1)
    }
}

/// What was found out about the messages that the ledger knows, beyond the bounds of the partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evidence {
    /// Nothing speaks against them.
    None,
    /// They are others.
    Strange,
    /// The ledger is beyond the end, and up to before this offset there is what was read.
    TailLost { upto: i64 },
}

/// Offsets that can't be gone on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gap(pub(super) Skip);

/// What keeps one partition from being gone on with, if anything does.
pub(super) fn judge(partition: i32, known: Known, here: Watermarks, evidence: Evidence) -> Option<Gap> {
    let Known { next, incarnation, .. } = known;
    let skip = |from, to, next, incarnation, reason| Gap(Skip { partition, from, to, next, incarnation, reason });
    let made_anew = || skip(0, next, here.low, incarnation + 1, SkipReason::MadeAnew);
    match evidence {
        Evidence::Strange => Some(made_anew()),
        Evidence::TailLost { upto } => Some(skip(upto, next, upto, incarnation + 1, SkipReason::TailLost)),
        Evidence::None if next > here.high => Some(made_anew()),
        Evidence::None if next < here.low => Some(skip(next, here.low, here.low, incarnation, SkipReason::Expired)),
        Evidence::None => None,
    }
}

/// The error for gaps that nobody has accepted: what is gone of each partition, and the flags that accept it.
pub(super) fn stop(topic: &str, table: &TableName, gaps: &[Gap]) -> Error {
    let lines: Vec<String> = gaps.iter().map(|gap| gap.told(topic, table)).collect();
    let flags: Vec<String> = gaps.iter().map(|gap| format!("--accept-gap {}", gap.accepted(topic))).collect();
    let message = format!(
        "{}. Nothing was skipped. Bring back what is gone, let the topic's settings name another table, or go on without it: {}",
        lines.join("; "),
        flags.join(" ")
    );
    Error::new(ErrorKind::BadData, message)
}

impl Gap {
    /// What one has to say to go on without it.
    pub(super) fn accepted(&self, topic: &str) -> AcceptedGap {
        let Skip { partition, from, to, .. } = self.0;
        AcceptedGap { topic: topic.to_owned(), partition, from, to }
    }

    fn told(&self, topic: &str, table: &TableName) -> String {
        let Skip { partition, from, to, next, reason, .. } = self.0;
        match reason {
            SkipReason::Expired | SkipReason::Reset => format!(
                "offsets {from}..{to} of topic {topic} partition {partition} are gone: {table} was filled up to {from}, and the \
                 earliest that the broker still has is {next} (give the topic a longer retention)"
            ),
            SkipReason::TailLost => format!(
                "topic {topic} partition {partition} has lost its end after it was read into {table}: what stands at offsets \
                 {from}..{to} now, or will stand there, is something else as far as anybody can tell; reading goes on at {from}"
            ),
            SkipReason::MadeAnew => format!(
                "topic {topic} partition {partition} is not the one that was read before: its offsets {from}..{to} as they stand \
                 in {table} are gone, with whatever followed them; another topic of that name begins at offset {next}"
            ),
        }
    }
}

/// A gap that the user accepts: the flag's text is `topic:partition:from-to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptedGap {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The first offset that is gone.
    pub from: i64,
    /// The offset after the last that is gone.
    pub to: i64,
}

impl fmt::Display for AcceptedGap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}-{}", self.topic, self.partition, self.from, self.to)
    }
}

impl FromStr for AcceptedGap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (rest, range) = text.rsplit_once(':')?;
            let (topic, partition) = rest.rsplit_once(':')?;
            let (from, to) = range.split_once('-')?;
            let gap = Self {
                topic: topic.to_owned(),
                partition: partition.parse().ok()?,
                from: from.parse().ok()?,
                to: to.parse().ok()?,
            };
            (!gap.topic.is_empty() && gap.partition >= 0 && 0 <= gap.from && gap.from <= gap.to).then_some(gap)
        };
        parse().ok_or_else(|| "write topic:partition:from-to, such as spotify_events:3:500-720".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(next: i64, low: i64, high: i64, evidence: Evidence, expected: Expect) {
        let known = Known { next, last: None, incarnation: 1 };
        let gap = judge(3, known, Watermarks { low, high }, evidence);
        let told = |gap: Gap| {
            let error = stop("events", &TableName::new("bronze", "t"), std::slice::from_ref(&gap));
            format!("{error}\nnext {} of incarnation {}", gap.0.next, gap.0.incarnation)
        };
        expected.assert_eq(&gap.map_or_else(|| "fine".to_owned(), told));
    }

    #[test]
    fn what_the_ledger_asks_for_has_to_be_there() {
        check(7, 7, 9, Evidence::None, expect!["fine"]);
        check(9, 7, 9, Evidence::None, expect!["fine"]);
        check(9, 9, 9, Evidence::None, expect!["fine"]);
        check(
            5,
            7,
            9,
            Evidence::None,
            expect![[r#"
                offsets 5..7 of topic events partition 3 are gone: bronze.t was filled up to 5, and the earliest that the broker still has is 7 (give the topic a longer retention). Nothing was skipped. Bring back what is gone, let the topic's settings name another table, or go on without it: --accept-gap events:3:5-7
                next 7 of incarnation 1"#]],
        );
        check(
            12,
            7,
            9,
            Evidence::None,
            expect![[r#"
                topic events partition 3 is not the one that was read before: its offsets 0..12 as they stand in bronze.t are gone, with whatever followed them; another topic of that name begins at offset 7. Nothing was skipped. Bring back what is gone, let the topic's settings name another table, or go on without it: --accept-gap events:3:0-12
                next 7 of incarnation 2"#]],
        );
        check(
            12,
            7,
            9,
            Evidence::TailLost { upto: 8 },
            expect![[r#"
                topic events partition 3 has lost its end after it was read into bronze.t: what stands at offsets 8..12 now, or will stand there, is something else as far as anybody can tell; reading goes on at 8. Nothing was skipped. Bring back what is gone, let the topic's settings name another table, or go on without it: --accept-gap events:3:8-12
                next 8 of incarnation 2"#]],
        );
        check(
            8,
            7,
            9,
            Evidence::Strange,
            expect![[r#"
                topic events partition 3 is not the one that was read before: its offsets 0..8 as they stand in bronze.t are gone, with whatever followed them; another topic of that name begins at offset 7. Nothing was skipped. Bring back what is gone, let the topic's settings name another table, or go on without it: --accept-gap events:3:0-8
                next 7 of incarnation 2"#]],
        );
    }

    #[test]
    fn what_is_accepted_is_written_as_the_error_says_it() {
        for text in ["events:3:5-7", "a.b-c_d:0:0-0"] {
            assert_eq!(text.parse::<AcceptedGap>().expect("a gap").to_string(), text);
        }
        for wrong in [
            "",
            "events",
            "events:3",
            "events:3:5",
            ":3:5-7",
            "events:-1:5-7",
            "events:3:7-5",
            "events:3:-5-7",
            "events:x:5-7",
        ] {
            assert!(wrong.parse::<AcceptedGap>().is_err(), "{wrong} was taken");
        }
    }
}
