//! What clients hold a handle to: planned statements (tickets) and prepared statements.
//!
//! A handle is 128 random bits, so it cannot be guessed; what it stands for stays on the server, with its owner and the
//! moment at which it is forgotten. The map is bounded, so that clients that never close anything cannot fill memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use lakehouse::Clock;
use tonic::Status;
use uuid::Uuid;

/// A bounded map from handle to `T`.
pub(super) struct Handles<T> {
    /// What a handle stands for, as messages call it: "ticket", "prepared statement".
    noun: &'static str,
    entries: Mutex<HashMap<Uuid, Entry<T>>>,
    /// How many entries fit.
    capacity: usize,
    /// How long an entry lives after its last use.
    lifetime: Duration,
    clock: Arc<dyn Clock>,
}

struct Entry<T> {
    /// Who asked for it; nobody else may use it.
    owner: String,
    /// The last moment at which it was made or used.
    touched_at: DateTime<Utc>,
    /// A used ticket may be redeemed again (a retried read), but is the first to go when room is needed.
    used: bool,
    value: Arc<T>,
}

impl<T> Handles<T> {
    pub(super) fn new(noun: &'static str, capacity: usize, lifetime: Duration, clock: Arc<dyn Clock>) -> Self {
        Self { noun, entries: Mutex::default(), capacity, lifetime, clock }
    }

    /// Keeps `value` for `owner` and returns its handle.
    ///
    /// Fails with `ResourceExhausted` when the map is full of things that are neither expired nor used.
    pub(super) fn insert(&self, owner: &str, value: T) -> Result<Bytes, Status> {
        let now = self.clock.now();
        let mut entries = self.lock();
        if entries.len() >= self.capacity {
            entries.retain(|_, entry| !entry.is_expired(now, self.lifetime));
        }
        if entries.len() >= self.capacity && !evict_oldest_used(&mut entries) {
            return Err(Status::resource_exhausted(format!(
                "{} {}s are open, which is the limit: read or close some first",
                self.capacity, self.noun
            )));
        }
        let handle = Uuid::new_v4();
        let entry = Entry { owner: owner.to_owned(), touched_at: now, used: false, value: Arc::new(value) };
        entries.insert(handle, entry);
        Ok(Bytes::copy_from_slice(handle.as_bytes()))
    }

    /// Returns what `handle` stands for, and lets it live for another lifetime.
    ///
    /// Fails with `NotFound` when it is unknown, closed or expired, and with `PermissionDenied` when it is another user's.
    pub(super) fn get(&self, handle: &[u8], caller: &str) -> Result<Arc<T>, Status> {
        let now = self.clock.now();
        let mut entries = self.lock();
        let key = self.parse(handle)?;
        match entries.get_mut(&key) {
            Some(entry) if entry.is_expired(now, self.lifetime) => {
                entries.remove(&key);
                Err(self.unknown())
            }
            Some(entry) if entry.owner != caller => Err(self.not_yours()),
            Some(entry) => {
                entry.touched_at = now;
                entry.used = true;
                Ok(Arc::clone(&entry.value))
            }
            None => Err(self.unknown()),
        }
    }

    /// Forgets `handle` and returns what it stood for. Closing twice is no error, since drivers do.
    pub(super) fn remove(&self, handle: &[u8], caller: &str) -> Result<Option<Arc<T>>, Status> {
        let mut entries = self.lock();
        let key = self.parse(handle)?;
        if entries.get(&key).is_some_and(|entry| entry.owner != caller) {
            return Err(self.not_yours());
        }
        Ok(entries.remove(&key).map(|entry| entry.value))
    }

    fn parse(&self, handle: &[u8]) -> Result<Uuid, Status> {
        Uuid::from_slice(handle)
            .map_err(|_| Status::invalid_argument(format!("the {} handle is not one of this server's", self.noun)))
    }

    fn unknown(&self) -> Status {
        Status::not_found(format!(
            "the {} is unknown, closed or expired (they are kept for {} s after their last use): ask for it again",
            self.noun,
            self.lifetime.as_secs()
        ))
    }

    fn not_yours(&self) -> Status {
        Status::permission_denied(format!("the {} belongs to another user", self.noun))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Entry<T>>> {
        // Each critical section leaves the map whole, so a panic elsewhere is no reason to stop serving.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Entry<T> {
    fn is_expired(&self, now: DateTime<Utc>, lifetime: Duration) -> bool {
        (now - self.touched_at).to_std().is_ok_and(|age| age > lifetime)
    }
}

fn evict_oldest_used<T>(entries: &mut HashMap<Uuid, Entry<T>>) -> bool {
    let oldest = entries.iter().filter(|(_, entry)| entry.used).min_by_key(|(_, entry)| entry.touched_at);
    let Some(key) = oldest.map(|(key, _)| *key) else { return false };
    entries.remove(&key);
    true
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use lakehouse::ManualClock;
    use tonic::Code;

    use super::*;

    fn handles(clock: &Arc<ManualClock>) -> Handles<&'static str> {
        Handles::new("ticket", 2, Duration::from_secs(60), Arc::clone(clock) as Arc<dyn Clock>)
    }

    #[test]
    fn only_the_owner_may_use_a_handle() {
        let clock = Arc::new(ManualClock::new(DateTime::UNIX_EPOCH));
        let handles = handles(&clock);
        let handle = handles.insert("ann", "plan").expect("room");
        assert_eq!(*handles.get(&handle, "ann").expect("hers"), "plan");
        assert_eq!(handles.get(&handle, "bob").expect_err("not his").code(), Code::PermissionDenied);
        assert_eq!(handles.remove(&handle, "bob").expect_err("not his").code(), Code::PermissionDenied);
        assert_eq!(handles.get(b"junk", "ann").expect_err("no handle").code(), Code::InvalidArgument);
        handles.remove(&handle, "ann").expect("hers");
        assert_eq!(handles.get(&handle, "ann").expect_err("closed").code(), Code::NotFound);
        assert!(handles.remove(&handle, "ann").expect("closing twice is fine").is_none());
    }

    #[test]
    fn a_handle_lives_from_its_last_use() {
        let clock = Arc::new(ManualClock::new(DateTime::UNIX_EPOCH));
        let handles = handles(&clock);
        let handle = handles.insert("ann", "plan").expect("room");
        clock.advance(TimeDelta::seconds(50));
        handles.get(&handle, "ann").expect("still there");
        clock.advance(TimeDelta::seconds(50));
        handles.get(&handle, "ann").expect("used 50 s ago");
        clock.advance(TimeDelta::seconds(61));
        assert_eq!(handles.get(&handle, "ann").expect_err("expired").code(), Code::NotFound);
    }

    #[test]
    fn a_full_map_lets_go_of_used_handles_and_refuses_otherwise() {
        let clock = Arc::new(ManualClock::new(DateTime::UNIX_EPOCH));
        let handles = handles(&clock);
        let first = handles.insert("ann", "one").expect("room");
        handles.insert("ann", "two").expect("room");
        assert_eq!(handles.insert("ann", "three").expect_err("full").code(), Code::ResourceExhausted);
        handles.get(&first, "ann").expect("there");
        let third = handles.insert("ann", "three").expect("the used one makes room");
        assert_eq!(handles.get(&first, "ann").expect_err("gone").code(), Code::NotFound);
        handles.get(&third, "ann").expect("there");
    }
}
