//! Staging: rows become Parquet files in a table's folder that no commit names yet. Nobody sees them until one does, and a
//! crash leaves at most files that a vacuum finds.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutPayload};

use crate::encode::{EncodedFile, Encoder};
use crate::error::{Error, Result};
use crate::file::{self, StagedFile};
use crate::storage;
use crate::table::Table;
use crate::version::TableVersion;

/// How files are staged.
#[derive(Debug, Clone)]
pub struct StageOptions {
    /// A file is closed and the next one begun at about this size, in bytes. Open files are held in memory, one a partition.
    pub file_bytes_max: usize,
    /// Together they take no more memory than this: the largest is closed early.
    pub open_bytes_max: usize,
}

impl Default for StageOptions {
    fn default() -> Self {
        Self { file_bytes_max: 64 << 20, open_bytes_max: 256 << 20 }
    }
}

impl Table {
    /// Writes what the stream yields, split by the values of `target`'s partition columns.
    ///
    /// Columns are found by name; a column that `target` has and the stream has not is left out, and read as NULL.
    pub async fn stage(
        &self,
        target: &TableVersion,
        mut batches: SendableRecordBatchStream,
        options: &StageOptions,
    ) -> Result<Vec<StagedFile>> {
        let mut encoder = self.encoder(target, options);
        let mut staged = Vec::new();
        let failed = |source| Error::query(format!("cannot compute the rows of {}", self.name()), source);
        while let Some(batch) = batches.try_next().await.map_err(failed)? {
            encoder.write(&batch)?;
            staged.extend(self.upload(encoder.take_full()).await?);
        }
        staged.extend(self.upload(encoder.finish()?).await?);
        Ok(staged)
    }

    /// Deletes staged files that no commit names and none will. One that cannot be deleted now is left for a vacuum.
    pub async fn discard(&self, files: &[StagedFile]) {
        for file in files {
            if let Err(error) = self.delete_file(&file.data_file().path).await {
                tracing::debug!(table = %self.name(), %error, "staged file not deleted");
            }
        }
    }

    /// Deletes a data file, if it is there.
    pub(crate) async fn delete_file(&self, path: &str) -> Result<()> {
        self.delete_at(&file::location(path)).await
    }

    /// Deletes what lies there in the table's folder, if it is there.
    pub(crate) async fn delete_at(&self, path: &Path) -> Result<()> {
        let deleted = storage::delete(self.store().as_ref(), path).await;
        deleted.map_err(|source| Error::store(format!("cannot delete {path} of {}", self.name()), source))
    }

    /// The same for rows that are already there.
    pub async fn stage_batches(
        &self,
        target: &TableVersion,
        batches: Vec<RecordBatch>,
        options: &StageOptions,
    ) -> Result<Vec<StagedFile>> {
        let mut encoder = self.encoder(target, options);
        let mut staged = Vec::new();
        for batch in &batches {
            encoder.write(batch)?;
            staged.extend(self.upload(encoder.take_full()).await?);
        }
        staged.extend(self.upload(encoder.finish()?).await?);
        Ok(staged)
    }

    /// Encodes rows into files of this table, in memory, for whoever wants to choose the thread for it.
    pub fn encoder(&self, target: &TableVersion, options: &StageOptions) -> Encoder {
        Encoder::new(target, options, self.inner.clock.clone(), self.inner.ids.clone())
    }

    /// Writes encoded files into the table's folder.
    ///
    /// # Errors
    /// Those of the store. Files that were written before are left for the cleaner.
    pub async fn upload(&self, files: Vec<EncodedFile>) -> Result<Vec<StagedFile>> {
        let mut staged = Vec::with_capacity(files.len());
        for EncodedFile { path, bytes, file } in files {
            self.store()
                .put(&path, PutPayload::from(bytes))
                .await
                .map_err(|source| Error::store(format!("cannot write a file of {}", self.name()), source))?;
            staged.push(StagedFile(Arc::new(file)));
        }
        Ok(staged)
    }
}
