//! The table provider: a fixed list of files becomes one plain Parquet scan.
//!
//! The library's own Delta scan can neither be pinned to a publication cheaply, nor read just the files that a commit added,
//! nor be sent to another machine. What is read here was pinned before: nothing of the log is looked at.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use async_trait::async_trait;
use chrono::DateTime;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, DFSchema, Statistics};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::{CachedParquetFileReaderFactory, ParquetFileReaderFactory};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::Result;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use object_store::ObjectMeta;
use parquet::arrow::async_reader::AsyncFileReader;

use crate::file::{self, DataFile};
use crate::name::TableName;
use crate::pruning;
use crate::readers::{Readers, Reading};
use crate::stats;
use crate::version::TableVersion;

/// Under this URL a session finds the lake's store; file paths are relative to the lake.
pub(crate) fn store_url() -> ObjectStoreUrl {
    ObjectStoreUrl::parse("lake://files").expect("a constant, valid URL")
}

impl TableVersion {
    /// Reads this version.
    pub fn provider(&self) -> Arc<dyn TableProvider> {
        self.provider_of(self.files.to_vec())
    }

    pub(crate) fn object_of(&self, file: &DataFile) -> ObjectMeta {
        object(&self.name.folder(), file)
    }

    /// Reads just these files, as rows of this table: those that a commit added, or staged ones.
    pub fn provider_of(&self, files: Vec<Arc<DataFile>>) -> Arc<dyn TableProvider> {
        Arc::new(FilesProvider::new(self, files))
    }
}

/// A file as the lake's store has it. Footers are kept by what is said here.
fn object(folder: &str, file: &DataFile) -> ObjectMeta {
    ObjectMeta {
        location: file::location(&format!("{folder}/{}", file.path)),
        last_modified: DateTime::from_timestamp_millis(file.modified_millis).unwrap_or_default(),
        size: file.size,
        e_tag: None,
        version: None,
    }
}

/// A list of files of one table.
#[derive(Debug)]
pub(crate) struct FilesProvider {
    /// The version that a scan holds while it runs, and where that is noted.
    version: (TableName, u64),
    readers: Arc<Readers>,
    /// The table's folder, relative to the lake.
    folder: String,
    /// The columns as a query sees them.
    schema: SchemaRef,
    /// The columns as a scan has them: those of the files first, then the partition columns.
    scan_schema: TableSchema,
    /// For each column that a query sees its place in `scan_schema`.
    places: Vec<usize>,
    files: Vec<Arc<DataFile>>,
}

impl FilesProvider {
    fn new(table: &TableVersion, files: Vec<Arc<DataFile>>) -> Self {
        let is_partition = |field: &Arc<Field>| table.partition_columns.contains(field.name());
        let file_fields: Vec<_> = table.schema.fields().iter().filter(|field| !is_partition(field)).cloned().collect();
        let partition_fields: Vec<_> = table
            .partition_columns
            .iter()
            .filter_map(|name| table.schema.field_with_name(name).ok())
            .map(|field| Arc::new(field.clone()))
            .collect();
        let scan_schema = TableSchema::builder(Arc::new(Schema::new(file_fields)))
            .with_table_partition_cols(partition_fields)
            .build();
        let places = table
            .schema
            .fields()
            .iter()
            .map(|field| scan_schema.table_schema().index_of(field.name()).expect("the same columns in another order"))
            .collect();
        Self {
            version: (table.name.clone(), table.version),
            readers: table.readers.clone(),
            folder: table.name.folder(),
            schema: table.schema.clone(),
            scan_schema,
            places,
            files,
        }
    }

    fn predicate(&self, state: &dyn Session, filters: &[Expr]) -> Result<Option<Arc<dyn PhysicalExpr>>> {
        let Some(filter) = conjunction(filters.to_vec()) else { return Ok(None) };
        let schema = DFSchema::try_from(self.scan_schema.table_schema().as_ref().clone())?;
        state.create_physical_expr(filter, &schema).map(Some)
    }

    /// As many of the files as surely hold that many rows.
    fn enough_for(&self, limit: Option<usize>) -> Vec<Arc<DataFile>> {
        let mut rows = 0;
        let is_enough = |file: &Arc<DataFile>| {
            rows += file.rows.unwrap_or(0);
            limit.is_some_and(|limit| rows >= limit as u64)
        };
        let last = self.files.iter().position(is_enough);
        self.files[..last.map_or(self.files.len(), |last| last + 1)].to_vec()
    }

    fn partitioned_file(&self, file: &DataFile) -> PartitionedFile {
        let mut partitioned = PartitionedFile::new_from_meta(object(&self.folder, file));
        partitioned.partition_values = self
            .scan_schema
            .table_partition_cols()
            .iter()
            .map(|field| {
                let value = file.partition_values.get(field.name()).and_then(Option::as_deref);
                stats::partition_value(value, field.data_type())
            })
            .collect();
        // Set directly: the builder would state a null count of 0 even for a partition that is NULL.
        partitioned.statistics = Some(Arc::new(self.statistics_of(std::slice::from_ref(&file))));
        partitioned
    }

    /// Only row counts are exact: bounds in the log are bounds, and a planner that took them for values would answer
    /// `max(…)` with them.
    fn statistics_of(&self, files: &[impl AsRef<DataFile>]) -> Statistics {
        let rows: Option<u64> = files.iter().map(|file| file.as_ref().rows).sum();
        let bytes: u64 = files.iter().map(|file| file.as_ref().size).sum();
        Statistics {
            num_rows: rows.map_or(Precision::Absent, |rows| Precision::Exact(rows as usize)),
            total_byte_size: Precision::Inexact(bytes as usize),
            column_statistics: vec![ColumnStatistics::new_unknown(); self.schema.fields().len()],
        }
    }
}

impl AsRef<DataFile> for DataFile {
    fn as_ref(&self) -> &DataFile {
        self
    }
}

#[async_trait]
impl TableProvider for FilesProvider {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    fn statistics(&self) -> Option<Statistics> {
        Some(self.statistics_of(&self.files))
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let predicate = self.predicate(state, filters)?;
        let files = match &predicate {
            Some(predicate) => pruning::prune(predicate, self.scan_schema.table_schema(), &self.files)?,
            None => self.enough_for(limit),
        };
        let runtime = state.runtime_env();
        let reader = HoldingReaderFactory {
            files: CachedParquetFileReaderFactory::new(
                runtime.object_store(store_url())?,
                runtime.cache_manager.get_file_metadata_cache(),
            ),
            _reading: self.readers.begin(vec![self.version.clone()]),
        };
        let mut source = ParquetSource::new(self.scan_schema.clone())
            .with_table_parquet_options(state.default_table_options().parquet)
            .with_parquet_file_reader_factory(Arc::new(reader));
        if let Some(predicate) = predicate {
            source = source.with_predicate(predicate);
        }
        let columns: Vec<usize> = match projection {
            Some(wanted) => wanted.iter().map(|column| self.places[*column]).collect(),
            None => self.places.clone(),
        };
        let groups = spread(&files, state.config().target_partitions());
        let groups = groups
            .into_iter()
            .map(|group| FileGroup::new(group.iter().map(|file| self.partitioned_file(file)).collect()))
            .collect();
        let config = FileScanConfigBuilder::new(store_url(), Arc::new(source))
            .with_file_groups(groups)
            .with_statistics(self.statistics_of(&files))
            .with_projection_indices(Some(columns))?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}

/// Opens the files of a scan, and keeps them from being cleaned up for as long as the scan is there.
#[derive(Debug)]
struct HoldingReaderFactory {
    files: CachedParquetFileReaderFactory,
    _reading: Reading,
}

impl ParquetFileReaderFactory for HoldingReaderFactory {
    fn create_reader(
        &self,
        partition: usize,
        file: PartitionedFile,
        size_hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>> {
        self.files.create_reader(partition, file, size_hint, metrics)
    }
}

/// Spreads the files over `groups_max` groups of about the same size. Large files are cut further by the planner.
fn spread(files: &[Arc<DataFile>], groups_max: usize) -> Vec<Vec<Arc<DataFile>>> {
    let mut groups: Vec<(u64, Vec<Arc<DataFile>>)> = vec![(0, Vec::new()); groups_max.clamp(1, files.len().max(1))];
    for file in files {
        let smallest = groups.iter_mut().min_by_key(|(bytes, _)| *bytes).expect("there is at least one group");
        smallest.0 += file.size.max(1);
        smallest.1.push(file.clone());
    }
    groups.into_iter().map(|(_, group)| group).collect()
}
