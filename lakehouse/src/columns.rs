//! Columns that come to a table after it was made: a commit of nothing but new metadata.

use std::sync::Arc;

use arrow::datatypes::Field;
use buoyant_kernel::engine::arrow_conversion::TryIntoKernel as _;
use deltalake_core::kernel::transaction::TransactionError;
use deltalake_core::kernel::{Action, CommitInfo, MetadataExt as _, Snapshot, StructField, StructType};
use deltalake_core::logstore::{CommitOrBytes, LogStore as _};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::table::Table;
use crate::version::TableVersion;

/// So many times others may commit first while we try.
const ATTEMPTS_MAX: u32 = 100;

impl Table {
    /// Adds those of `fields` that the table lacks, as its last columns. Rows of old are NULL there.
    pub async fn add_columns(&self, fields: &[Field]) -> Result<Arc<TableVersion>> {
        let misfit = |source| Error::kernel(format!("the columns of {} do not fit a Delta table", self.name()), source);
        for _ in 0..ATTEMPTS_MAX {
            let failed = |source| Error::delta(format!("cannot read the columns of {}", self.name()), source);
            let snapshot = Snapshot::try_new(self.inner.log.as_ref(), None).await.map_err(failed)?;
            let schema = snapshot.metadata().parse_schema().map_err(misfit)?;
            let mut evolved: Vec<StructField> = schema.fields().cloned().collect();
            for field in fields.iter().filter(|field| schema.field(field.name()).is_none()) {
                evolved.push(field.try_into_kernel().map_err(|source| {
                    let message = format!("column {} does not fit a Delta table", field.name());
                    Error::with_source(ErrorKind::BadConfig, message, source)
                })?);
            }
            if evolved.len() == schema.num_fields() {
                return self.head().await;
            }
            let schema = StructType::try_new(evolved).map_err(misfit)?;
            let metadata = snapshot.metadata().clone().with_schema(&schema);
            let metadata = metadata.map_err(|source| Error::delta("cannot describe the columns", source.into()))?;
            let info = CommitInfo {
                timestamp: Some(self.inner.clock.now().timestamp_millis()),
                operation: Some("ADD COLUMNS".to_owned()),
                ..CommitInfo::default()
            };
            let mut bytes = Vec::new();
            for action in [Action::CommitInfo(info), Action::Metadata(metadata)] {
                serde_json::to_writer(&mut bytes, &action)
                    .map_err(|source| Error::with_source(ErrorKind::Bug, "cannot write down a commit", source))?;
                bytes.push(b'\n');
            }
            let entry = CommitOrBytes::LogBytes(bytes.into());
            match self.inner.log.write_commit_entry(snapshot.version() + 1, entry, Uuid::new_v4()).await {
                Ok(()) => return self.head().await,
                Err(TransactionError::VersionAlreadyExists(_)) => {}
                Err(source) => {
                    return Err(Error::delta(format!("cannot add columns to {}", self.name()), source.into()));
                }
            }
        }
        Err(Error::new(ErrorKind::Conflict, format!("others commit to {} all the time", self.name())))
    }
}
