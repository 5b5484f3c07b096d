//! The rows of a running statement: normalised batches, a time limit, a way to cancel, and a count in the registry.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use futures::{FutureExt, Stream, StreamExt};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::normalise::normalise_batch;
use super::running::{QueryId, Registration};
use crate::error::{Error, Kind, Result};

/// The rows of one statement. Nothing is computed before it is asked for, but for what the engine reads ahead within its
/// memory; dropping it stops everything.
pub struct ResultStream {
    schema: SchemaRef,
    /// `None` after the end or an error: all of the engine's memory is given back at that moment.
    rows: Option<SendableRecordBatchStream>,
    /// What is left of a batch that was larger than a door takes at once.
    rest: Option<RecordBatch>,
    batch_rows_max: usize,
    registration: Registration,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
    deadline: Deadline,
}

/// When a statement must have ended.
pub(super) struct Deadline {
    sleep: Pin<Box<Sleep>>,
    limit: Duration,
}

impl Deadline {
    pub(super) fn after(limit: Duration) -> Self {
        Self { sleep: Box::pin(tokio::time::sleep_until(Instant::now() + limit)), limit }
    }

    /// Waits for the deadline, and gives the error that it means.
    pub(super) async fn passed(&mut self) -> Error {
        self.sleep.as_mut().await;
        self.error()
    }

    fn error(&self) -> Error {
        Error::new(
            Kind::TimedOut,
            format!(
                "the statement ran longer than its limit of {:?} and was stopped; narrow it, or raise statement_timeout",
                self.limit
            ),
        )
    }
}

/// The error of a statement that somebody cancelled.
pub(crate) fn cancelled_error() -> Error {
    Error::new(Kind::Cancelled, "the statement was cancelled by request")
}

impl ResultStream {
    pub(super) fn new(
        schema: SchemaRef,
        rows: SendableRecordBatchStream,
        registration: Registration,
        deadline: Deadline,
        batch_rows_max: usize,
    ) -> Self {
        Self {
            schema,
            rows: Some(rows),
            rest: None,
            batch_rows_max: batch_rows_max.max(1),
            cancelled: Box::pin(registration.token().clone().cancelled_owned()),
            registration,
            deadline,
        }
    }

    /// The schema of every batch.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The statement's number in the registry.
    pub fn id(&self) -> QueryId {
        self.registration.id()
    }

    /// Cancelling this ends the statement with an error at its next poll.
    pub fn token(&self) -> CancellationToken {
        self.registration.token().clone()
    }

    /// Gives back all of the engine's memory.
    fn free(&mut self) {
        self.rows = None;
        self.rest = None;
    }

    fn fail(&mut self, error: Error) -> Poll<Option<Result<RecordBatch>>> {
        self.free();
        self.registration.failed(&error);
        Poll::Ready(Some(Err(error)))
    }

    /// Hands out the first part of a batch that is too large, and keeps the rest.
    fn slice(&mut self, batch: RecordBatch) -> RecordBatch {
        let rows = batch.num_rows();
        if rows <= self.batch_rows_max {
            return batch;
        }
        self.rest = Some(batch.slice(self.batch_rows_max, rows - self.batch_rows_max));
        batch.slice(0, self.batch_rows_max)
    }

    fn hand_out(&mut self, batch: RecordBatch) -> Poll<Option<Result<RecordBatch>>> {
        let part = self.slice(batch);
        self.registration.count(part.num_rows() as u64, bytes_of(&part));
        Poll::Ready(Some(Ok(part)))
    }
}

/// The bytes of these rows, of which the buffers may hold more.
fn bytes_of(rows: &RecordBatch) -> u64 {
    rows.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap_or(0) as u64).sum()
}

impl Stream for ResultStream {
    type Item = Result<RecordBatch>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.rows.is_none() {
            return Poll::Ready(None);
        }
        if this.cancelled.poll_unpin(context).is_ready() {
            return this.fail(cancelled_error());
        }
        if this.deadline.sleep.poll_unpin(context).is_ready() {
            let error = this.deadline.error();
            return this.fail(error);
        }
        if let Some(rest) = this.rest.take() {
            return this.hand_out(rest);
        }
        loop {
            let Some(rows) = this.rows.as_mut() else {
                return Poll::Ready(None);
            };
            match rows.poll_next_unpin(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => {
                    this.free();
                    this.registration.done();
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(Err(error))) => return this.fail(Error::from(error)),
                Poll::Ready(Some(Ok(batch))) if batch.num_rows() == 0 => {}
                Poll::Ready(Some(Ok(batch))) => {
                    return match normalise_batch(batch, &this.schema) {
                        Ok(batch) => this.hand_out(batch),
                        Err(error) => this.fail(error),
                    };
                }
            }
        }
    }
}
