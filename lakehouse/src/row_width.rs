//! How wide the rows of files are. A reader's batches are counted in rows, so whoever reads whole files bounds its memory by
//! this: the log's statistics do not tell, and compressed a thousand equal megabytes are one.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::prelude::SessionContext;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use parquet::arrow::async_reader::MetadataFetch;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use parquet::file::page_index::offset_index::OffsetIndexMetaData;

use crate::error::{Error, Result};
use crate::file::DataFile;
use crate::session::SessionFactory;
use crate::table::{ENTRIES_AT_ONCE, Table};

/// A batch that is read takes about so much memory at most.
const BATCH_BYTES: u64 = 16 << 20;
/// So many rows a batch are read of files whose rows are of an ordinary width.
const BATCH_ROWS: u64 = 8192;

impl Table {
    /// A session whose batches of rows of these files are no larger than memory allows for.
    pub(crate) async fn context_for(
        &self,
        sessions: &SessionFactory,
        files: &[Arc<DataFile>],
    ) -> Result<SessionContext> {
        let widest = self.widest_row(files).await?.max(1);
        let rows = (BATCH_BYTES / widest).clamp(1, BATCH_ROWS);
        let context = sessions.context();
        let config = context.copied_config().with_batch_size(rows as usize);
        *context.state_ref().write().config_mut() = config;
        Ok(context)
    }

    /// The bytes of the widest rows of these files: the average of those of a page, of which rows this wide are one each.
    async fn widest_row(&self, files: &[Arc<DataFile>]) -> Result<u64> {
        let widths: Vec<_> = files.iter().map(|file| self.widest_row_of(file.clone())).collect();
        let mut widths = futures::stream::iter(widths).buffer_unordered(ENTRIES_AT_ONCE);
        let mut widest = 0;
        while let Some(width) = widths.try_next().await? {
            widest = width.max(widest);
        }
        Ok(widest)
    }

    async fn widest_row_of(&self, file: Arc<DataFile>) -> Result<u64> {
        let fetch = Fetch { store: self.store(), path: Path::from_iter(file.path.split('/')) };
        let reader = ParquetMetaDataReader::new().with_offset_index_policy(PageIndexPolicy::Optional);
        let footer = reader.load_and_finish(fetch, file.size).await;
        let failed = |source| Error::query(format!("cannot read the footer of {}", file.path), source);
        footer.map(|footer| widest_row(&footer)).map_err(|error| failed(error.into()))
    }
}

/// Where a footer is read from.
struct Fetch {
    store: Arc<dyn ObjectStore>,
    path: Path,
}

impl MetadataFetch for Fetch {
    fn fetch(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        let bytes = async move { self.store.get_range(&self.path, range).await };
        bytes.map(|bytes| bytes.map_err(|error| ParquetError::External(Box::new(error)))).boxed()
    }
}

fn widest_row(footer: &ParquetMetaData) -> u64 {
    let groups = footer.row_groups().iter().enumerate();
    let width = |(index, group): (usize, &RowGroupMetaData)| {
        let pages = footer.offset_index().and_then(|groups| groups.get(index));
        let by_pages = pages.map(|columns| columns.iter().map(|column| widest_value(column, group)).sum::<u64>());
        // Files of others may lack the index. What they are encoded into is less than what they are in memory, but not much.
        let average = share(group.total_byte_size(), group.num_rows());
        by_pages.unwrap_or(0).max(average)
    };
    groups.map(width).max().unwrap_or(0)
}

/// The average of that page of a column which has the longest text.
fn widest_value(column: &OffsetIndexMetaData, group: &RowGroupMetaData) -> u64 {
    let Some(texts) = column.unencoded_byte_array_data_bytes() else { return 0 };
    let starts = column.page_locations().iter().map(|page| page.first_row_index);
    let ends = starts.clone().skip(1).chain([group.num_rows()]);
    texts.iter().zip(starts.zip(ends)).map(|(&bytes, (start, end))| share(bytes, end - start)).max().unwrap_or(0)
}

fn share(bytes: i64, rows: i64) -> u64 {
    u64::try_from(bytes / rows.max(1)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use arrow::array::{RecordBatch, StringArray};

    use super::*;
    use crate::layout;

    /// The width of the widest rows of a file of these, a batch each.
    fn width(batches: &[Vec<usize>]) -> u64 {
        let mut file = None;
        for lengths in batches {
            let texts: StringArray = lengths.iter().map(|&length| Some("x".repeat(length))).collect();
            let rows = RecordBatch::try_from_iter([("text", Arc::new(texts) as _)]).expect("rows");
            let file = file.get_or_insert_with(|| layout::open_file(&rows).expect("a file"));
            file.write(&rows).expect("written");
        }
        let bytes = file.expect("a file").into_inner().expect("closed");
        let reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional);
        widest_row(&reader.parse_and_finish(&Bytes::from(bytes)).expect("a footer"))
    }

    #[test]
    fn wide_rows_are_told_by_what_they_are_in_memory() {
        assert!(width(&[vec![100; 5_000]]) < 200);
        // They compress, and repeat, to next to nothing.
        assert!(width(&[vec![4 << 20; 8]]) >= 4 << 20);
        // A few among many, which are no more than a thousand bytes each on average.
        assert!(width(&[vec![100; 20_000], vec![4 << 20; 4], vec![100; 20_000]]) >= 1 << 20);
    }
}
