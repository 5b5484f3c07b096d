//! The time of a history, in milliseconds since its beginning. Nobody waits for it: it jumps to the next thing that is due.
//!
//! Everybody who touches what others see (the store, the topic, the group) does so in milliseconds that are nobody else's: each
//! part has a slot, and acts only when the time leaves that remainder. So it never depends on the threads of the machine who
//! of two was first, though some of the work (decoding, the Delta kernel) is done on threads: time stands still until they are done.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ThreadId;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use lakehouse::Clock;
use std::sync::Arc;
use tokio::time::Instant;

/// So many slots there are.
const SLOTS: u64 = 16;
/// The slot of the world itself: of the producer, the group's coordinator and the audit.
pub(crate) const WORLD_SLOT: u64 = SLOTS - 1;

/// What a process does in its slots.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Doing {
    /// Reads and writes the store.
    Storing,
    /// Reads the topic.
    Reading,
    /// Asks the broker about the topic.
    Asking,
    /// Is started and ended.
    Living,
}

/// The slot in which a member of the group does something.
pub(crate) fn slot(member: u64, doing: Doing) -> u64 {
    let slot = member * 4 + doing as u64;
    assert!(slot < WORLD_SLOT, "there are slots for three members");
    slot
}

/// The time of a history, and what was noted in it.
#[derive(Debug)]
pub(crate) struct Time {
    start: Instant,
    /// The time for those who are on a thread without this clock.
    now: AtomicU64,
    /// From here on nothing fails any more.
    calm_at: u64,
    /// The thread that the history runs on.
    thread: ThreadId,
    trace: Mutex<Vec<String>>,
}

impl Time {
    /// Begins now. To be called on a runtime with one thread whose clock is paused.
    pub(crate) fn begin(calm_at: u64) -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            now: AtomicU64::new(0),
            calm_at,
            thread: std::thread::current().id(),
            trace: Mutex::default(),
        })
    }

    /// Whether the caller is on the history's own thread, where it may wait.
    pub(crate) fn may_wait(&self) -> bool {
        std::thread::current().id() == self.thread
    }

    pub(crate) fn now(&self) -> u64 {
        if self.may_wait() {
            let now = self.start.elapsed().as_millis() as u64;
            self.now.store(now, Ordering::Release);
        }
        self.now.load(Ordering::Acquire)
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.now() >= self.calm_at
    }

    /// The next time, `delay` from now or later, that belongs to a slot.
    pub(crate) fn due(&self, slot: u64, delay: u64) -> u64 {
        let earliest = self.now() + delay.max(1);
        earliest + (SLOTS + slot - earliest % SLOTS) % SLOTS
    }

    pub(crate) async fn until(&self, due: u64) {
        tokio::time::sleep_until(self.start + Duration::from_millis(due)).await;
        self.now();
    }

    /// Waits for a turn.
    pub(crate) async fn turn(&self, slot: u64, delay: u64) {
        self.until(self.due(slot, delay)).await;
    }

    /// Notes what happens.
    pub(crate) fn note(&self, who: &str, what: impl FnOnce() -> String) {
        let line = format!("{:>7} ms  {who:<6} {}", self.now(), what());
        self.trace.lock().expect("no holder of this lock panics").push(line);
    }

    /// What was noted.
    pub(crate) fn trace(&self) -> Vec<String> {
        self.trace.lock().expect("no holder of this lock panics").clone()
    }
}

/// The clock on the wall of one process: it goes as the time does, but nobody says that it is right.
#[derive(Debug)]
pub(crate) struct WallClock {
    pub(crate) time: Arc<Time>,
    pub(crate) ahead: TimeDelta,
}

impl Clock for WallClock {
    fn now(&self) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::days(20_000) + TimeDelta::milliseconds(self.time.now() as i64) + self.ahead
    }
}
