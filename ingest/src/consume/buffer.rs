//! The batch that fills up while the one before it is being written.

use tokio::time::Instant;

use super::encode::{Encoding, Work};
use super::room::Room;
use crate::records::Records;

/// Messages that are not yet handed to a writer: on their way into files, chunk after chunk as they come.
#[derive(Default)]
pub(super) struct Buffer {
    pub(super) work: Work,
    pub(super) rows: usize,
    pub(super) bytes: usize,
    /// When the first one came.
    pub(super) since: Option<Instant>,
}

impl Buffer {
    /// Takes messages in. `begin` makes the batch if they are the first ones; `room` is given back when they are encoded.
    pub(super) fn push(&mut self, records: Records, room: Room, begin: impl FnOnce() -> Encoding) {
        if records.is_empty() {
            return;
        }
        self.rows += records.len();
        self.bytes += records.bytes();
        self.since.get_or_insert_with(Instant::now);
        self.work.push(records, room, begin);
    }
}
