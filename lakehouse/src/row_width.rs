//! How wide the rows of files are. A reader's batches are counted in rows, so whoever reads whole files bounds its memory by
//! this: the log's statistics do not tell, and compressed a thousand equal megabytes are one.

use std::sync::Arc;

use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::prelude::SessionContext;
use futures::{StreamExt as _, TryStreamExt as _};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::page_index::offset_index::OffsetIndexMetaData;

use crate::error::{Error, Result};
use crate::file::DataFile;
use crate::session::SessionFactory;
use crate::table::ENTRIES_AT_ONCE;
use crate::version::TableVersion;

/// A batch that is read takes about so much memory at most.
const BATCH_BYTES: u64 = 16 << 20;

impl SessionFactory {
    /// A session whose batches of rows of these files are no larger than memory allows for. Footers that it looks at are in the
    /// cache for the scan that follows.
    pub(crate) async fn context_for(&self, version: &TableVersion, files: &[Arc<DataFile>]) -> Result<SessionContext> {
        let context = self.context();
        let widest = self.widest_row(&context, version, files).await?.max(1);
        let config = context.copied_config();
        let rows = usize::try_from(BATCH_BYTES / widest).unwrap_or(usize::MAX).clamp(1, config.batch_size());
        *context.state_ref().write().config_mut() = config.with_batch_size(rows);
        Ok(context)
    }

    /// The bytes of the widest rows of these files: the average of those of a page, of which rows this wide are one each.
    async fn widest_row(
        &self,
        context: &SessionContext,
        version: &TableVersion,
        files: &[Arc<DataFile>],
    ) -> Result<u64> {
        let cache = context.runtime_env().cache_manager.get_file_metadata_cache();
        let width_of = |file: &Arc<DataFile>| {
            let (store, object, cache) = (self.lake().store().clone(), version.object_of(file), cache.clone());
            async move {
                let footer = DFParquetMetadata::new(store.as_ref(), &object).with_file_metadata_cache(Some(cache));
                footer.fetch_metadata().await.map(|footer| widest_row(&footer))
            }
        };
        let widths: Vec<_> = files.iter().map(width_of).collect();
        let mut widths = futures::stream::iter(widths).buffer_unordered(ENTRIES_AT_ONCE);
        let failed = |source| Error::query(format!("cannot read the footers of {}", version.name), source);
        let mut widest = 0;
        while let Some(width) = widths.try_next().await.map_err(failed)? {
            widest = width.max(widest);
        }
        Ok(widest)
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
    use bytes::Bytes;
    use parquet::file::metadata::{PageIndexPolicy, ParquetMetaDataReader};

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
