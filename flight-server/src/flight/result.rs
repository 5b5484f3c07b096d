//! Rows on the wire: the schema as the encoder sends it, batches below the size that clients accept, and one stream for
//! all runs of a ticket.

use std::pin::Pin;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::encode::{FlightDataEncoder, FlightDataEncoderBuilder};
use arrow_flight::error::FlightError;
use arrow_flight::{FlightData, IpcMessage, SchemaAsIpc};
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt, TryStreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status};

use super::statement::Planned;
use super::{internal, status};
use crate::error::Result;
use crate::query::ResultStream;

/// The answer to DoGet.
pub(super) type FlightStream = Pin<Box<dyn Stream<Item = std::result::Result<FlightData, Status>> + Send>>;

/// Bytes of column data in one message. gRPC clients refuse messages above 4 MB unless told otherwise; half of that
/// leaves room for the encoding.
const MESSAGE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The schema as the encoder puts it before the rows. The encoder changes some types (large lists, unions) on its own, so
/// whatever announces a schema asks it, and never differs from what DoGet sends.
pub(super) fn wire_schema(schema: &SchemaRef) -> SchemaRef {
    let encoder = encoder(schema, stream::empty().boxed());
    encoder.known_schema().unwrap_or_else(|| Arc::clone(schema))
}

/// A schema as an encapsulated IPC message.
pub(super) fn schema_bytes(schema: &arrow::datatypes::Schema) -> std::result::Result<Bytes, Status> {
    let options = IpcWriteOptions::default();
    let IpcMessage(bytes) = SchemaAsIpc::new(schema, &options).try_into().map_err(internal)?;
    Ok(bytes)
}

/// One batch as the whole answer.
pub(super) fn one_batch(batch: RecordBatch) -> Response<FlightStream> {
    let schema = batch.schema();
    respond(&schema, stream::iter([Ok(batch)]).boxed())
}

/// The rows of a ticket: each run of the statement after the one before. The first is started here, so that what is
/// wrong with the statement is the status of the call and not an end in the middle of the rows.
pub(super) async fn rows(planned: Arc<Planned>) -> std::result::Result<Response<FlightStream>, Status> {
    let schema = Arc::clone(planned.schema());
    let mut runs = Runs { planned, next: 0, current: None };
    runs.advance().await.map_err(status)?;
    let batches = stream::try_unfold(runs, |mut runs| async move {
        let batch = runs.next_batch().await.map_err(|error| FlightError::from(status(error)))?;
        Ok(batch.map(|batch| (batch, runs)))
    });
    Ok(respond(&schema, batches.boxed()))
}

fn respond(
    schema: &SchemaRef,
    batches: BoxStream<'static, std::result::Result<RecordBatch, FlightError>>,
) -> Response<FlightStream> {
    let pieces = batches.map_ok(|batch| stream::iter(pieces(batch, MESSAGE_BYTES_MAX)).map(Ok)).try_flatten().boxed();
    Response::new(Box::pin(encoder(schema, pieces).map_err(Status::from)))
}

fn encoder(
    schema: &SchemaRef,
    batches: BoxStream<'static, std::result::Result<RecordBatch, FlightError>>,
) -> FlightDataEncoder {
    FlightDataEncoderBuilder::new()
        .with_schema(Arc::clone(schema))
        // Its own split counts whole buffers, also those that slices share, and assumes that all rows are alike.
        .with_max_flight_data_size(usize::MAX)
        .build(batches)
}

/// Halves a batch until each part is small enough. A single row cannot be halved: it goes as it is.
fn pieces(batch: RecordBatch, bytes_max: usize) -> Vec<RecordBatch> {
    let mut done = Vec::new();
    let mut waiting = vec![batch];
    while let Some(batch) = waiting.pop() {
        let rows = batch.num_rows();
        if rows <= 1 || slice_bytes(&batch) <= bytes_max {
            done.push(batch);
        } else {
            waiting.push(batch.slice(rows / 2, rows - rows / 2));
            waiting.push(batch.slice(0, rows / 2));
        }
    }
    done
}

/// Bytes that the rows of this batch take, not those of the buffers that they are a part of.
fn slice_bytes(batch: &RecordBatch) -> usize {
    let bytes = |column: &Arc<dyn Array>| {
        let data = column.to_data();
        data.get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size())
    };
    batch.columns().iter().map(bytes).sum()
}

/// The runs of one ticket: one for each bound row of parameters, or just one.
struct Runs {
    planned: Arc<Planned>,
    /// The row of parameters that the next run takes.
    next: usize,
    current: Option<ResultStream>,
}

impl Runs {
    /// Starts the next run; without one left there is no current run.
    async fn advance(&mut self) -> Result<()> {
        self.current = self.planned.run(self.next).await?;
        self.next += 1;
        Ok(())
    }

    async fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        while let Some(current) = &mut self.current {
            if let Some(batch) = next_unless_cancelled(current, self.planned.cancellation()).await {
                return batch.map(Some);
            }
            self.advance().await?;
        }
        Ok(None)
    }
}

/// The next batch. When the ticket is cancelled, the statement is told and asked once more, so that it ends as cancelled
/// in the registry and not as abandoned.
async fn next_unless_cancelled(rows: &mut ResultStream, cancel: &CancellationToken) -> Option<Result<RecordBatch>> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => rows.token().cancel(),
        batch = rows.next() => return batch,
    }
    rows.next().await
}

#[cfg(test)]
mod tests {
    use arrow::array::StringArray;
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    #[test]
    fn pieces_keep_order_and_are_small_whatever_the_rows_look_like() {
        let long = "x".repeat(1000);
        // All the weight is in the last rows: a split by the average row would send them in one piece.
        let words: Vec<&str> = (0..100).map(|row| if row < 90 { "s" } else { long.as_str() }).collect();
        let column: Arc<dyn Array> = Arc::new(StringArray::from(words.clone()));
        let batch = RecordBatch::try_from_iter([("word", column)]).expect("one column");
        let parts = pieces(batch, 3000);
        assert!(parts.iter().all(|part| slice_bytes(part) <= 3000));
        let joined: Vec<String> = parts
            .iter()
            .flat_map(|part| {
                part.column(0)
                    .as_any()
                    .downcast_ref::<StringArray>()
                    .expect("text")
                    .iter()
                    .flatten()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(joined, words);
    }

    #[test]
    fn a_row_that_is_too_large_goes_alone() {
        let column: Arc<dyn Array> = Arc::new(StringArray::from(vec!["y".repeat(50), "z".repeat(50)]));
        let batch = RecordBatch::try_from_iter([("word", column)]).expect("one column");
        assert_eq!(pieces(batch, 10).len(), 2);
    }

    #[test]
    fn the_announced_schema_is_the_encoders() {
        let item = Arc::new(Field::new("item", DataType::Utf8, true));
        let schema = Arc::new(Schema::new(vec![Field::new("list", DataType::LargeList(Arc::clone(&item)), true)]));
        assert_eq!(wire_schema(&schema).field(0).data_type(), &DataType::List(item));
    }
}
