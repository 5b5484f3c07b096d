//! How far a log went of late.
//!
//! Entries are cleaned up when they are old, the oldest first. To whoever has slept for so long the place after the entry that it
//! knows looks free, and the log looks to end there. So what was not seen for a while has to be looked for again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use crate::clock::Clock;

/// An entry that was the newest so lately is still there: a cleaner waits several times as long.
const LATELY: Duration = Duration::from_secs(600);
/// So often it is noted how far the log goes.
const NOTED_EVERY: Duration = Duration::from_secs(30);

/// The newest entries of a log, each with the time at which it was that.
#[derive(Debug)]
pub(crate) struct Seen {
    clock: Arc<dyn Clock>,
    newest: Mutex<VecDeque<Sight>>,
}

/// By two clocks: one may stop while the machine sleeps, the other one is set by people.
#[derive(Debug, Clone, Copy)]
struct Sight {
    version: u64,
    at: Instant,
    by_clock: DateTime<Utc>,
}

impl Sight {
    fn age(&self, clock: &dyn Clock) -> Duration {
        let by_clock = (clock.now() - self.by_clock).abs().to_std().unwrap_or(Duration::MAX);
        self.at.elapsed().max(by_clock)
    }
}

impl Seen {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, newest: Mutex::default() }
    }

    /// The entry of that version is the newest now.
    pub(crate) fn note(&self, version: u64) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.back().is_none_or(|last| last.age(self.clock.as_ref()) >= NOTED_EVERY) {
            newest.retain(|sight| sight.age(self.clock.as_ref()) < LATELY);
            newest.push_back(Sight { version, at: Instant::now(), by_clock: self.clock.now() });
        }
    }

    /// Whether that version, or one before it, was the newest so lately that nobody has cleaned it up.
    pub(crate) fn is_fresh(&self, version: u64) -> bool {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.iter().any(|sight| sight.version <= version && sight.age(self.clock.as_ref()) < LATELY)
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn what_was_not_seen_of_late_has_to_be_looked_for() {
        let clock = Arc::new(ManualClock::new(DateTime::UNIX_EPOCH));
        let seen = Seen::new(clock.clone());
        assert!(!seen.is_fresh(7));
        seen.note(7);
        assert!(seen.is_fresh(7) && seen.is_fresh(8) && !seen.is_fresh(6));
        clock.advance(TimeDelta::minutes(5));
        seen.note(90);
        assert!(seen.is_fresh(7), "it was the newest five minutes ago");
        clock.advance(TimeDelta::minutes(6));
        assert!(!seen.is_fresh(8) && seen.is_fresh(90));
        clock.advance(TimeDelta::minutes(-60));
        assert!(!seen.is_fresh(90), "nobody knows how long ago that was");
    }
}
