//! Messages → files in memory: decoded and encoded chunk by chunk while the batch fills up, on threads where it keeps nobody
//! waiting. That is nearly all of the work, and it goes on while the batch before is being committed.
//!
//! A chunk is let go of as soon as it is encoded, so a batch takes the room of its files, a tenth of its messages or so.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use lakehouse::{EncodedFile, Encoder, StageOptions};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::{JoinError, JoinSet};

use super::incarnation;
use super::limit::Reasons;
use super::room::Room;
use super::write::Sink;
use crate::decode::{Counts, Landing, OpenBatches, Output, Recorded};
use crate::records::Records;
use crate::{Error, ErrorKind, Result};

/// A batch as files in memory.
pub(super) struct Encoded {
    pub(super) rows: Vec<EncodedFile>,
    pub(super) letters: Vec<EncodedFile>,
    /// What the messages of each partition became.
    pub(super) counts: BTreeMap<i32, Counts>,
    /// Why there are letters.
    pub(super) reasons: Reasons,
}

/// A batch on its way into files.
pub(super) struct Encoding {
    sink: Arc<Sink>,
    recorded: Arc<Recorded>,
    open: OpenBatches,
    files: Files,
}

/// What full batches go into.
struct Files {
    rows: Encoder,
    letters: Encoder,
    reasons: Reasons,
    /// How often each partition was made anew, where it was.
    incarnations: BTreeMap<i32, i32>,
}

impl Output for Files {
    fn rows(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows.write(incarnation::mark(batch, "_partition", &self.incarnations)?.as_ref())
    }

    fn letters(&mut self, batch: &RecordBatch) -> Result<()> {
        self.reasons.note(batch)?;
        self.letters.write(incarnation::mark(batch, "partition", &self.incarnations)?.as_ref())
    }
}

impl Encoding {
    /// Begins a batch with the columns that the tables have now. Its rows are ingested now.
    pub(super) fn new(sink: Arc<Sink>, recorded: Arc<Recorded>, incarnations: BTreeMap<i32, i32>) -> Self {
        let (options, columns) = (StageOptions::default(), sink.columns());
        let files = Files {
            rows: sink.bronze.encoder(&columns.rows, &options),
            letters: sink.letters.encoder(&columns.letters, &options),
            reasons: Reasons::default(),
            incarnations,
        };
        Self { open: OpenBatches::new(&sink.topic, sink.clock.now()), sink, recorded, files }
    }

    fn take(&mut self, records: &Records) -> Result<()> {
        let Self { sink, recorded, open, files } = self;
        Landing::new(&sink.topic, recorded, open, files).take(sink.decoder.as_ref(), records)
    }

    fn finish(self) -> Result<Encoded> {
        let Self { open, mut files, .. } = self;
        let counts = open.finish(&mut files)?;
        let Files { rows, letters, reasons, .. } = files;
        Ok(Encoded { rows: rows.finish()?, letters: letters.finish()?, counts, reasons })
    }
}

/// The work on one batch: each chunk waits for the one before it. Dropped, it is broken off.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// The task of the newest chunk, which holds that of the one before.
    newest: JoinSet<Result<Encoding>>,
}

impl Work {
    /// Adds a chunk. `begin` makes the batch if it is the first one; `room` is given back when it is encoded.
    pub(super) fn push(&mut self, records: Records, room: Room, begin: impl FnOnce() -> Encoding) {
        let mut before = std::mem::take(&mut self.newest);
        let first = before.is_empty().then(begin);
        self.newest.spawn(async move {
            let mut encoding = match first {
                Some(encoding) => encoding,
                None => next(&mut before).await?,
            };
            let encode = move || {
                encoding.take(&records)?;
                drop((records, room));
                Ok(encoding)
            };
            off_thread(encode).await
        });
    }

    /// Waits for all chunks, and closes the files.
    ///
    /// # Errors
    /// Those of decoding: a recorded letter is of another message.
    pub(super) async fn finish(mut self) -> Result<Encoded> {
        let encoding = next(&mut self.newest).await?;
        off_thread(move || encoding.finish()).await
    }
}

async fn next(tasks: &mut JoinSet<Result<Encoding>>) -> Result<Encoding> {
    let none = || Error::new(ErrorKind::Bug, "a batch without messages was to be written");
    flatten(tasks.join_next().await.ok_or_else(none)?)
}

/// Does what takes long where it keeps nobody waiting. In a runtime of one thread, which is that of a simulation, it is done
/// on that thread: so nothing goes on beside it, and a run is the same each time.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return work();
    }
    flatten(tokio::task::spawn_blocking(work).await)
}

fn flatten<T>(joined: Result<Result<T>, JoinError>) -> Result<T> {
    joined.unwrap_or_else(|source| Err(Error::with_source(ErrorKind::Bug, "encoding was broken off", source)))
}
