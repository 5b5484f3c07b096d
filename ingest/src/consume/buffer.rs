//! The batch that fills up while the one before it is being written.

use tokio::time::Instant;

use crate::records::Records;

/// Messages that are not yet handed to a writer.
#[derive(Default)]
pub(super) struct Buffer {
    pub(super) records: Vec<Records>,
    pub(super) rows: usize,
    pub(super) bytes: usize,
    /// When the first one came.
    pub(super) since: Option<Instant>,
}

impl Buffer {
    pub(super) fn push(&mut self, records: Records) {
        if records.is_empty() {
            return;
        }
        self.rows += records.len();
        self.bytes += records.bytes();
        self.since.get_or_insert_with(Instant::now);
        self.records.push(records);
    }
}
