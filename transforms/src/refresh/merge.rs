//! The keyed merge: new rows come into a table in which a key stands once, and of two rows with one key the first in the
//! configured order stays. The result is that of the query over all rows, whatever came when.
//!
//! Only files of the partitions that the new rows touch are looked at. Mostly no row there has a key of the new ones; then
//! the new rows are simply added. A new row that comes after the one that is there is dropped. One that comes before it
//! takes its place: the file with the old row is rewritten without it.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{AsArray as _, RecordBatch};
use arrow::datatypes::{Int64Type, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use lakehouse::{DEFAULT_SCHEMA, DataFile, Lake, StageOptions, StagedFile, TableName, TableVersion};

use super::RefreshKind;
use crate::compile::Model;
use crate::config::Direction;
use crate::error::{Error, ErrorKind, Result};
use crate::query::{self, Query, Relations, quoted};
use crate::view::View;

/// New rows up to this size are held in memory until it is known which of them stay; more are staged at once.
const FRESH_BYTES_MAX: usize = 64 << 20;

/// Stages what the rows of `query` do to the table in `view`.
pub(super) async fn merge(lake: &Lake, model: &Model, query: Query, view: &mut View) -> Result<RefreshKind> {
    let merge = Merge { lake, model, columns: query.columns() };
    let fresh = merge.fresh(query.stream(model).await?, view).await?;
    let fresh_rows = fresh.provider(view)?;
    check_keys(lake, model, fresh_rows.clone()).await?;
    let candidates = merge.candidates(fresh_rows.clone(), view).await?;
    let meetings = merge.meetings(fresh_rows.clone(), &candidates, view).await?;
    let beaten =
        meetings.iter().any(|batch| batch.column_by_name(WINS).is_some_and(|wins| wins.as_boolean().true_count() > 0));
    if meetings.iter().all(|batch| batch.num_rows() == 0) {
        view.adds = fresh.into_staged(view).await?;
        return Ok(RefreshKind::Append);
    }
    let rewritten = if beaten { merge.with_beaten_rows(&candidates, &meetings, view).await? } else { Vec::new() };
    let rows = merge.result(fresh_rows, &rewritten, &meetings, view).await?;
    view.adds = view.table.stage(&view.base, rows, &StageOptions::default()).await?;
    view.removes = rewritten;
    Ok(if beaten { RefreshKind::Merge } else { RefreshKind::Append })
}

/// Makes sure that no key is NULL: NULL equals nothing, so such a row would meet no other and come in again and again.
/// That a key stands once needs no look at the rows, since the query's own window function sees to it.
pub(super) async fn check_keys(lake: &Lake, model: &Model, rows: Arc<dyn TableProvider>) -> Result<()> {
    let context = query::session(lake, &Relations::from([(relation("fresh"), rows)]))?;
    let key: Vec<String> = model.config.unique_key.iter().map(|column| quoted(column)).collect();
    let null: Vec<String> = key.iter().map(|column| format!("{column} is null")).collect();
    let nulls = format!("select count(*) from fresh where {}", null.join(" or "));
    match count(&query::collect(&context, &nulls, model).await?) {
        0 => Ok(()),
        found => {
            let key = model.config.unique_key.join(", ");
            let message = format!("{found} rows have NULL in unique_key ({key}): filter them out in the query");
            Err(Error::new(ErrorKind::BadData, format!("{}: {message}", model.path)))
        }
    }
}

/// In a meeting of a new row and an old one: whether the new one comes first.
const WINS: &str = "_wins";

/// The new rows, in memory or staged.
enum Fresh {
    Held { schema: SchemaRef, batches: Vec<RecordBatch> },
    Staged(Vec<StagedFile>),
}

impl Fresh {
    fn provider(&self, view: &View) -> Result<Arc<dyn TableProvider>> {
        match self {
            Self::Held { schema, batches } => held(schema.clone(), batches.clone()),
            Self::Staged(files) => {
                Ok(view.base.provider_of(files.iter().map(|file| file.data_file().clone()).collect()))
            }
        }
    }

    async fn into_staged(self, view: &View) -> Result<Vec<StagedFile>> {
        match self {
            Self::Held { batches, .. } => {
                Ok(view.table.stage_batches(&view.base, batches, &StageOptions::default()).await?)
            }
            Self::Staged(files) => Ok(files),
        }
    }
}

struct Merge<'a> {
    lake: &'a Lake,
    model: &'a Model,
    /// The columns of the query, in its order.
    columns: SchemaRef,
}

impl Merge<'_> {
    /// Holds the rows in memory as long as they are few.
    async fn fresh(&self, mut rows: SendableRecordBatchStream, view: &View) -> Result<Fresh> {
        let schema = rows.schema();
        let mut batches = Vec::new();
        let mut bytes = 0;
        while let Some(batch) = rows.try_next().await.map_err(|error| query::run_error(self.model, error))? {
            bytes += batch.get_array_memory_size();
            batches.push(batch);
            if bytes > FRESH_BYTES_MAX {
                let all = stream::iter(batches.into_iter().map(Ok)).chain(rows);
                let all = Box::pin(RecordBatchStreamAdapter::new(schema, all));
                return Ok(Fresh::Staged(view.table.stage(&view.base, all, &StageOptions::default()).await?));
            }
        }
        Ok(Fresh::Held { schema, batches })
    }

    /// The files that can hold a row with one of the new keys: where the partition columns belong to the key, those of
    /// the same partitions.
    async fn candidates(&self, fresh: Arc<dyn TableProvider>, view: &View) -> Result<Vec<Arc<DataFile>>> {
        let partition_columns = &view.base.partition_columns;
        let pruned = partition_columns.iter().all(|column| self.model.config.unique_key.contains(column));
        if view.base.files.is_empty() || partition_columns.is_empty() || !pruned {
            return Ok(view.base.files.to_vec());
        }
        let touched = self.touched_partitions(fresh, view).await?;
        let mut candidates = Vec::new();
        for file in view.base.files.iter() {
            if touched.contains(&partition_of(file, &view.base)?) {
                candidates.push(file.clone());
            }
        }
        Ok(candidates)
    }

    async fn touched_partitions(
        &self,
        fresh: Arc<dyn TableProvider>,
        view: &View,
    ) -> Result<HashSet<Vec<ScalarValue>>> {
        let context = query::session(self.lake, &Relations::from([(relation("fresh"), fresh)]))?;
        let columns: Vec<String> = view.base.partition_columns.iter().map(|column| quoted(column)).collect();
        let distinct = format!("select distinct {} from fresh", columns.join(", "));
        let mut touched = HashSet::new();
        for batch in query::collect(&context, &distinct, self.model).await? {
            for row in 0..batch.num_rows() {
                let values = batch.columns().iter().zip(&view.base.partition_columns).map(|(column, name)| {
                    let value = ScalarValue::try_from_array(column, row)?;
                    value.cast_to(view.base.schema.field_with_name(name)?.data_type())
                });
                touched.insert(values.collect::<Result<_, _>>().map_err(|error| query::run_error(self.model, error))?);
            }
        }
        Ok(touched)
    }

    /// The keys that stand in both, each with whether the new row wins.
    async fn meetings(
        &self,
        fresh: Arc<dyn TableProvider>,
        candidates: &[Arc<DataFile>],
        view: &View,
    ) -> Result<Vec<RecordBatch>> {
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        let relations = Relations::from([
            (relation("fresh"), fresh),
            (relation("existing"), view.base.provider_of(candidates.to_vec())),
        ]);
        let context = query::session(self.lake, &relations)?;
        let key: Vec<String> = self.key().map(|column| format!("f.{column} as {column}")).collect();
        let sql = format!(
            "select {}, {} as {WINS} from fresh f join existing e on {}",
            key.join(", "),
            self.wins(),
            self.same_key("f", "e")
        );
        query::collect(&context, &sql, self.model).await
    }

    /// Those of `candidates` that hold a row whose place is taken. Keys that are beaten are rare; each file is asked.
    async fn with_beaten_rows(
        &self,
        candidates: &[Arc<DataFile>],
        meetings: &[RecordBatch],
        view: &View,
    ) -> Result<Vec<Arc<DataFile>>> {
        let mut found = Vec::new();
        for file in candidates {
            let relations = Relations::from([
                (relation("meetings"), held(meetings[0].schema(), meetings.to_vec())?),
                (relation("existing"), view.base.provider_of(vec![file.clone()])),
            ]);
            let context = query::session(self.lake, &relations)?;
            let sql = format!(
                "select count(*) from existing e left semi join (select * from meetings where {WINS}) m on {}",
                self.same_key("e", "m")
            );
            if count(&query::collect(&context, &sql, self.model).await?) > 0 {
                found.push(file.clone());
            }
        }
        Ok(found)
    }

    /// The new rows without those that lose, and the rows of the rewritten files without those that are beaten.
    async fn result(
        &self,
        fresh: Arc<dyn TableProvider>,
        rewritten: &[Arc<DataFile>],
        meetings: &[RecordBatch],
        view: &View,
    ) -> Result<SendableRecordBatchStream> {
        let relations = Relations::from([
            (relation("fresh"), fresh),
            (relation("meetings"), held(meetings[0].schema(), meetings.to_vec())?),
            (relation("rewritten"), view.base.provider_of(rewritten.to_vec())),
        ]);
        let context = query::session(self.lake, &relations)?;
        let rows = |name: &str, condition: &str| {
            let columns: Vec<String> =
                self.columns.fields().iter().map(|field| format!("r.{}", quoted(field.name()))).collect();
            format!(
                "select {} from {name} r left anti join (select * from meetings where {condition}) m on {}",
                columns.join(", "),
                self.same_key("r", "m")
            )
        };
        let winners = rows("fresh", &format!("not {WINS}"));
        let sql =
            if rewritten.is_empty() { winners } else { format!("{winners} union all {}", rows("rewritten", WINS)) };
        query::stream(&context, &sql, self.model).await
    }

    fn key(&self) -> impl Iterator<Item = String> {
        self.model.config.unique_key.iter().map(|column| quoted(column))
    }

    fn same_key(&self, left: &str, right: &str) -> String {
        let same: Vec<String> = self.key().map(|column| format!("{left}.{column} = {right}.{column}")).collect();
        same.join(" and ")
    }

    /// The condition that the new row `f` comes before the old row `e`: less in the first column of the order that
    /// differs. NULL is the greatest value. Of two rows that are the same in all of them, the old one stays.
    fn wins(&self) -> String {
        let before = self.model.config.order_by.iter().rev().fold("false".to_owned(), |rest, order| {
            let column = quoted(&order.column);
            let first = match order.direction {
                Direction::Ascending => {
                    format!("(f.{column} < e.{column}) or (f.{column} is not null and e.{column} is null)")
                }
                Direction::Descending => {
                    format!("(f.{column} > e.{column}) or (f.{column} is null and e.{column} is not null)")
                }
            };
            format!("({first} or ((f.{column} is not distinct from e.{column}) and {rest}))")
        });
        format!("coalesce({before}, false)")
    }
}

/// The values of a file's partition columns, in the types of the table.
fn partition_of(file: &DataFile, table: &TableVersion) -> Result<Vec<ScalarValue>> {
    let value = |name: &String| {
        let data_type = table.schema.field_with_name(name)?.data_type();
        match file.partition_values.get(name).and_then(Option::as_deref) {
            Some(value) => ScalarValue::try_from_string(value.to_owned(), data_type),
            None => ScalarValue::try_new_null(data_type),
        }
    };
    table.partition_columns.iter().map(value).collect::<Result<_, DataFusionError>>().map_err(|source| {
        let message = format!("the partition values of {} in {} cannot be read", file.path, table.name);
        Error::with_source(ErrorKind::BadData, message, source)
    })
}

fn held(schema: SchemaRef, batches: Vec<RecordBatch>) -> Result<Arc<dyn TableProvider>> {
    let table = MemTable::try_new(schema, vec![batches])
        .map_err(|source| Error::with_source(ErrorKind::Bug, "rows in memory do not fit their columns", source))?;
    Ok(Arc::new(table))
}

fn relation(name: &str) -> TableName {
    TableName::new(DEFAULT_SCHEMA, name)
}

fn count(batches: &[RecordBatch]) -> i64 {
    batches
        .iter()
        .filter(|batch| batch.num_rows() > 0)
        .map(|batch| batch.column(0).as_primitive::<Int64Type>().value(0))
        .sum()
}
