//! How much memory messages take on their way from the thread that reads them into files.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// So many bytes of messages are on their way. A message that is larger goes alone.
const BYTES_MAX: u32 = 12 << 20;

/// The right to hold messages in memory, given back when it is dropped. The default holds none, for messages that somebody
/// else bounds.
#[derive(Debug, Default)]
pub struct Room {
    _held: Option<OwnedSemaphorePermit>,
}

/// Where room is given.
#[derive(Debug, Clone)]
pub(super) struct Rooms(Arc<Semaphore>);

impl Rooms {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(BYTES_MAX as usize)))
    }

    /// Waits on this thread until there is room for so many bytes. Whoever holds some only has to encode or to drop what it is
    /// for, so it does not wait for ever.
    pub(super) fn wait_for(&self, bytes: usize) -> Room {
        let bytes = u32::try_from(bytes).unwrap_or(BYTES_MAX).min(BYTES_MAX);
        let permit = futures::executor::block_on(self.0.clone().acquire_many_owned(bytes));
        Room { _held: Some(permit.expect("nobody closes it")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_larger_than_all_room_goes_alone() {
        let rooms = Rooms::new();
        let large = rooms.wait_for(100 << 20);
        assert_eq!(rooms.0.available_permits(), 0);
        let next = std::thread::spawn({
            let rooms = rooms.clone();
            move || rooms.wait_for(1)
        });
        drop(large);
        let small = next.join().expect("it got its room");
        assert_eq!(rooms.0.available_permits(), BYTES_MAX as usize - 1);
        drop(small);
        assert_eq!(rooms.0.available_permits(), BYTES_MAX as usize);
    }
}
