//! What a run has done, for its progress while it runs and its summary at the end.

use std::collections::BTreeMap;

use lakehouse::ConsumedRange;
use tokio::time::Instant;

/// What a run has done so far.
#[derive(Default)]
pub(super) struct Totals {
    pub(super) messages: u64,
    pub(super) rows: u64,
    pub(super) dead_letters: u64,
    pub(super) holes: u64,
    pub(super) commits: u64,
    pub(super) repeats: u64,
    pub(super) lost: u64,
    pub(super) committed: BTreeMap<i32, i64>,
    pub(super) table_version: Option<u64>,
    /// Messages at the last look at the rate, when that was, and the rate.
    rate: Option<(u64, Instant, f64)>,
}

impl Totals {
    /// Adds one commit, which made this version of bronze.
    pub(super) fn count(&mut self, table_version: u64, ranges: &[ConsumedRange]) {
        self.commits += 1;
        self.table_version = Some(table_version);
        for range in ranges {
            self.messages += range.messages();
            self.rows += range.rows;
            self.dead_letters += range.dead_letters;
            self.holes += range.holes;
            self.committed.insert(range.partition, range.to);
        }
    }

    /// Messages a second, of late.
    pub(super) fn events_per_second(&self) -> f64 {
        self.rate.map_or(0.0, |(_, _, rate)| rate)
    }

    /// Over about five seconds, so that a commit a second does not make the number jump.
    pub(super) fn measure_rate(&mut self) {
        let (now, events) = (Instant::now(), self.messages);
        let (before, since, rate) = self.rate.unwrap_or((events, now, 0.0));
        let seconds = (now - since).as_secs_f64();
        if seconds == 0.0 {
            self.rate = Some((events, now, rate));
            return;
        }
        let newest = (events - before) as f64 / seconds;
        let weight = (seconds / 5.0).min(1.0);
        let rate = rate + (newest - rate) * weight;
        self.rate = Some((events, now, if rate < 0.05 { 0.0 } else { rate }));
    }
}
