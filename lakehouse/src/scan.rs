//! Reading a part of one version for those who know no SQL: by conditions, in an order of files of the caller's, streamed.
//!
//! A table may be larger than memory. Whoever goes through all of it takes its files some at a time.

use std::ops::RangeInclusive;
use std::sync::Arc;

use arrow::array::RecordBatch;
use chrono::{DateTime, Utc};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Expr, lit};
use datafusion::prelude::ident;
use futures::StreamExt as _;
use futures::stream::BoxStream;

use crate::error::{Error, Result};
use crate::file::DataFile;
use crate::pruning;
use crate::session::SessionFactory;
use crate::version::TableVersion;

/// Which rows are meant.
#[derive(Debug, Clone, Default)]
pub struct Filter(Option<Expr>);

impl Filter {
    /// All rows.
    pub fn everything() -> Self {
        Self(None)
    }

    /// Rows with one of these texts; without any text all rows.
    pub fn text_in(column: &str, values: &[impl AsRef<str>]) -> Self {
        let values: Vec<_> = values.iter().map(|value| lit(value.as_ref())).collect();
        Self((!values.is_empty()).then(|| ident(column).in_list(values, false)))
    }

    /// Rows with a number in one of these ranges; without any range all rows.
    pub fn number_in(column: &str, ranges: &[RangeInclusive<i64>]) -> Self {
        let within = |range: &RangeInclusive<i64>| ident(column).between(lit(*range.start()), lit(*range.end()));
        Self(ranges.iter().map(within).reduce(Expr::or))
    }

    /// Rows with this time or a later one.
    pub fn since(column: &str, time: DateTime<Utc>) -> Self {
        Self(Some(ident(column).gt_eq(lit(timestamp(time)))))
    }

    /// Rows with an earlier time.
    pub fn before(column: &str, time: DateTime<Utc>) -> Self {
        Self(Some(ident(column).lt(lit(timestamp(time)))))
    }

    /// Rows that have a value there.
    pub fn present(column: &str) -> Self {
        Self(Some(ident(column).is_not_null()))
    }

    /// Rows that both mean.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(match (self.0, other.0) {
            (Some(one), Some(two)) => Some(one.and(two)),
            (one, two) => one.or(two),
        })
    }

    /// Rows that one of them means; without any filter all rows.
    pub fn any(filters: impl IntoIterator<Item = Self>) -> Self {
        let either = |one: Self, two: Self| Self(one.0.zip(two.0).map(|(one, two)| one.or(two)));
        filters.into_iter().reduce(either).unwrap_or_default()
    }
}

fn timestamp(time: DateTime<Utc>) -> ScalarValue {
    ScalarValue::TimestampMicrosecond(Some(time.timestamp_micros()), Some("UTC".into()))
}

/// The rows of one version that a filter means.
#[derive(Debug, Clone)]
pub struct Scan {
    version: Arc<TableVersion>,
    sessions: SessionFactory,
    filter: Filter,
}

impl Scan {
    /// Nothing is read yet.
    pub fn new(version: Arc<TableVersion>, sessions: SessionFactory, filter: Filter) -> Self {
        Self { version, sessions, filter }
    }

    /// The files that may hold such rows, as the log's statistics tell.
    pub fn files(&self) -> Result<Vec<Arc<DataFile>>> {
        let Some(condition) = self.filter.0.clone() else { return Ok(self.version.files.to_vec()) };
        let files = pruning::files_for(&self.version, &self.sessions.context(), condition);
        files.map_err(|source| self.failed(source))
    }

    /// Streams columns of such rows in these files, in whatever order.
    pub async fn read(
        &self,
        files: Vec<Arc<DataFile>>,
        columns: &[&str],
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        if files.is_empty() {
            return Ok(futures::stream::empty().boxed());
        }
        let context = self.sessions.context_for(&self.version, &files).await?;
        let rows = context.read_table(self.version.provider_of(files));
        let filtered = match self.filter.0.clone() {
            Some(expression) => rows.and_then(|rows| rows.filter(expression)),
            None => rows,
        };
        let selected = filtered.and_then(|rows| {
            let columns = columns.iter().map(|column| ident(*column)).collect::<Vec<_>>();
            rows.select(columns)
        });
        let batches = selected.map_err(|source| self.failed(source))?.execute_stream().await;
        let batches = batches.map_err(|source| self.failed(source))?;
        let name = self.version.name.clone();
        let failed = move |source| Error::query(format!("cannot read {name}"), source);
        Ok(batches.map(move |batch| batch.map_err(&failed)).boxed())
    }

    /// The same of all files.
    pub async fn read_all(&self, columns: &[&str]) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        self.read(self.files()?, columns).await
    }

    fn failed(&self, source: datafusion::error::DataFusionError) -> Error {
        Error::query(format!("cannot read {}", self.version.name), source)
    }
}
