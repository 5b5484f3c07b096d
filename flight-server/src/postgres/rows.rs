//! From the query path's batches to rows on the wire, a batch at a time.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use pgwire::api::results::FieldInfo;
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::data::DataRow;

use super::cancel::CancelSignal;
use super::encode::RowEncoder;
use super::text::Zone;
use crate::query::ResultStream;

/// The rows of a statement. No more than one batch of them is held encoded.
pub(super) fn encode(
    batches: ResultStream,
    fields: &[FieldInfo],
    zone: &str,
    cancel: Arc<CancelSignal>,
) -> impl Stream<Item = PgWireResult<DataRow>> + Send + use<> {
    let encoder = RowEncoder::new(fields, Zone::parse(zone));
    stream::try_unfold((batches, encoder, cancel), |(mut batches, encoder, cancel)| async move {
        let batch = tokio::select! {
            biased;
            () = cancel.cancelled() => {
                // The statement ends itself, so that the registry knows how.
                batches.token().cancel();
                batches.next().await
            }
            batch = batches.next() => batch,
        };
        let Some(batch) = batch.transpose()? else {
            return Ok::<_, PgWireError>(None);
        };
        let rows = encoder.encode(&batch)?;
        Ok(Some((stream::iter(rows.into_iter().map(Ok)), (batches, encoder, cancel))))
    })
    .try_flatten()
}

/// Rows of text, as session statements answer.
pub(super) fn text_rows(rows: &[Vec<String>]) -> Vec<DataRow> {
    rows.iter()
        .map(|row| {
            let mut data = BytesMut::new();
            for value in row {
                data.put_i32(i32::try_from(value.len()).unwrap_or(i32::MAX));
                data.put_slice(value.as_bytes());
            }
            DataRow::new(data, i16::try_from(row.len()).unwrap_or(i16::MAX))
        })
        .collect()
}
