//! Which files a predicate can't match, told by partition values and statistics, so that they are never opened.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray as _, BooleanArray, RecordBatch, UInt64Array};
use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, DFSchema, Result, ScalarValue};
use datafusion::physical_expr::utils::{collect_columns, reassign_expr_columns};
use datafusion::physical_expr::{PhysicalExpr, conjunction_opt, split_conjunction};
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use datafusion::prelude::{Expr, SessionContext};
use serde_json::Value;

use crate::file::DataFile;
use crate::stats::{self, Bound};
use crate::version::TableVersion;

/// The files of a version that may hold a row for which `condition` is true.
pub(crate) fn files_for(
    version: &TableVersion,
    context: &SessionContext,
    condition: Expr,
) -> Result<Vec<Arc<DataFile>>> {
    let columns = DFSchema::try_from(version.schema.as_ref().clone())?;
    let predicate = context.create_physical_expr(condition, &columns)?;
    prune(&predicate, &version.schema, &version.files)
}

/// The files that may hold a row for which `predicate` is true.
pub(crate) fn prune(
    predicate: &Arc<dyn PhysicalExpr>,
    schema: &SchemaRef,
    files: &[Arc<DataFile>],
) -> Result<Vec<Arc<DataFile>>> {
    let files = &by_partitions(predicate, schema, files)?[..];
    let builder = PruningPredicateBuilder::new().with_file_schema(schema.clone());
    let Ok(pruning) = builder.try_build(predicate.clone()) else {
        // A predicate that can't be turned into bounds prunes nothing.
        return Ok(files.to_vec());
    };
    if pruning.always_true() {
        return Ok(files.to_vec());
    }
    let keep = pruning.prune(&LoggedStatistics::new(schema, files))?;
    Ok(files.iter().zip(keep).filter(|(_, keep)| *keep).map(|(file, _)| file.clone()).collect())
}

/// The files left by those conditions that ask for nothing but partition values: these are known, so that the conditions are
/// computed, whatever is in them. Bounds know less: none of NULL, of a boolean or of a function's result.
fn by_partitions(
    predicate: &Arc<dyn PhysicalExpr>,
    schema: &SchemaRef,
    files: &[Arc<DataFile>],
) -> Result<Vec<Arc<DataFile>>> {
    let Some(first) = files.first() else { return Ok(Vec::new()) };
    let is_partition = |name: &str| first.partition_values.contains_key(name);
    let asks_only_partitions = |condition: &&Arc<dyn PhysicalExpr>| {
        let columns = collect_columns(condition);
        !columns.is_empty() && columns.iter().all(|column| is_partition(column.name()))
    };
    let conditions = split_conjunction(predicate).into_iter().filter(asks_only_partitions).cloned();
    let Some(condition) = conjunction_opt(conditions) else { return Ok(files.to_vec()) };
    let fields: Vec<_> = schema.fields().iter().filter(|field| is_partition(field.name())).cloned().collect();
    let values = |field: &FieldRef| {
        let text = |file: &Arc<DataFile>| file.partition_values.get(field.name()).cloned().flatten();
        ScalarValue::iter_to_array(
            files.iter().map(|file| stats::partition_value(text(file).as_deref(), field.data_type())),
        )
    };
    let columns = fields.iter().map(values).collect::<Result<Vec<_>>>()?;
    let nullable = fields.iter().map(|field| field.as_ref().clone().with_nullable(true)).collect::<Vec<_>>();
    let rows = RecordBatch::try_new(Arc::new(Schema::new(nullable)), columns)?;
    let found = reassign_expr_columns(condition, &rows.schema()).and_then(|condition| condition.evaluate(&rows));
    // A query that fails on a value fails when it reads it, if it comes to that.
    let Ok(found) = found else { return Ok(files.to_vec()) };
    let found = found.into_array(files.len())?;
    let is_true = found.as_boolean().iter().map(|found| found == Some(true));
    Ok(files.iter().zip(is_true).filter(|(_, is_true)| *is_true).map(|(file, _)| file.clone()).collect())
}

/// What the log says of some files, in the form that DataFusion prunes by.
struct LoggedStatistics<'a> {
    schema: &'a SchemaRef,
    files: &'a [Arc<DataFile>],
    /// Each file's statistics; `Null` where the log has none.
    stats: Vec<Value>,
}

impl<'a> LoggedStatistics<'a> {
    fn new(schema: &'a SchemaRef, files: &'a [Arc<DataFile>]) -> Self {
        let parse = |file: &Arc<DataFile>| {
            file.stats.as_deref().and_then(|stats| serde_json::from_str(stats).ok()).unwrap_or(Value::Null)
        };
        Self { schema, files, stats: files.iter().map(parse).collect() }
    }

    fn bounds(&self, column: &Column, bound: Bound) -> Option<ArrayRef> {
        let data_type = self.schema.field_with_name(&column.name).ok()?.data_type();
        let values =
            self.files.iter().zip(&self.stats).map(|(file, stats)| match file.partition_values.get(&column.name) {
                Some(value) => stats::partition_value(value.as_deref(), data_type),
                None => stats::bound_in(stats, &column.name, data_type, bound),
            });
        ScalarValue::iter_to_array(values).ok()
    }
}

impl PruningStatistics for LoggedStatistics<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, Bound::Minimum)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, Bound::Maximum)
    }

    fn num_containers(&self) -> usize {
        self.files.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let count = |(file, stats): (&Arc<DataFile>, &Value)| match file.partition_values.get(&column.name) {
            Some(None) => file.rows,
            Some(Some(value)) if value.is_empty() => file.rows,
            Some(Some(_)) => Some(0),
            None => stats["nullCount"][&column.name].as_u64(),
        };
        Some(Arc::new(self.files.iter().zip(&self.stats).map(count).collect::<UInt64Array>()))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(self.files.iter().map(|file| file.rows).collect::<UInt64Array>()))
    }

    fn contained(&self, _column: &Column, _values: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}
