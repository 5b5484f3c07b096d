//! Journals: system tables to which parts of the program add what they did. They keep a week, a folder a day, so that what is
//! older goes by whole files.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use chrono::{NaiveDate, TimeDelta};
use serde::Serialize;

use crate::commit::Outcome;
use crate::compaction::Compaction;
use crate::error::{Error, ErrorKind, Result};
use crate::file::DataFile;
use crate::lake::Lake;
use crate::log::{Commit, Operation};
use crate::name::TableName;
use crate::schema::TableSpec;
use crate::stage::StageOptions;
use crate::system::{self, timestamp_type};
use crate::version::TableVersion;

/// The rows of so many days before today stay.
const KEPT: TimeDelta = TimeDelta::days(7);
/// The column of the day, by which the files are split.
const DATE: &str = "run_date";
/// So often another process may come first with taking out the same old files.
const RACES_MAX: u32 = 5;

/// One of the journals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Journal {
    /// What became of each model in each build.
    ModelRuns,
    /// What became of each data test.
    TestResults,
}

impl Journal {
    pub(crate) const ALL: &[Self] = &[Self::ModelRuns, Self::TestResults];

    /// Its table.
    pub fn table(self) -> TableName {
        system::named(match self {
            Self::ModelRuns => "model_runs",
            Self::TestResults => "test_results",
        })
    }

    pub(crate) fn schema(self) -> SchemaRef {
        use DataType::{Date32, Float64, Int64, Utf8};
        let columns = match self {
            Self::ModelRuns => vec![
                ("run_id", Utf8),
                ("model", Utf8),
                ("table_schema", Utf8),
                ("table_name", Utf8),
                ("publication", Int64),
                ("trigger", Utf8),
                ("status", Utf8),
                ("class", Utf8),
                ("reason", Utf8),
                ("error", Utf8),
                ("started_at", timestamp_type()),
                ("ended_at", timestamp_type()),
                ("seconds", Float64),
                ("rows_read", Int64),
                ("rows_added", Int64),
                ("rows_removed", Int64),
                ("files_read", Int64),
                ("version", Int64),
                ("source_versions", Utf8),
                (DATE, Date32),
            ],
            Self::TestResults => vec![
                ("run_id", Utf8),
                ("test", Utf8),
                ("model", Utf8),
                ("column_name", Utf8),
                ("kind", Utf8),
                ("severity", Utf8),
                ("status", Utf8),
                ("failures", Int64),
                ("message", Utf8),
                ("started_at", timestamp_type()),
                ("seconds", Float64),
                (DATE, Date32),
            ],
        };
        let fields = columns.into_iter().map(|(name, data_type)| Field::new(name, data_type, true));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }
}

impl Lake {
    /// Adds rows to a journal in one commit, which takes out what is too old. A row is an object with the columns' names;
    /// `run_date` says on which day it was.
    ///
    /// # Errors
    /// `Bug` for rows that do not fit the columns, and those of the store.
    pub async fn write_journal(&self, journal: Journal, rows: &[impl Serialize]) -> Result<()> {
        let table = self.table(&journal.table());
        let mut head = table.ensure(&TableSpec::new(journal.schema()).partitioned_by([DATE])).await?;
        let batch = system::to_batch(table.name(), &journal.schema(), rows)?;
        let first_kept = (self.clock().now() - KEPT).date_naive();
        let mut commit = Commit::new(Operation::Write);
        commit.adds = table.stage_batches(&head, vec![batch], &StageOptions::default()).await?;
        for _ in 0..RACES_MAX {
            commit.removes = older_than(first_kept, &head);
            if let Outcome::Committed(_) = table.append(head.version, commit.clone()).await? {
                // The rows are there; that they lie in few files is for the next time as well.
                if let Err(error) = self.compact(&table, None, Compaction::AsTheyPileUp).await {
                    tracing::warn!(table = %table.name(), %error, "small files were not put together");
                }
                return Ok(());
            }
            head = table.head().await?;
        }
        table.discard(&commit.adds).await;
        let message = format!("could not write to {}: {RACES_MAX} other commits came first; try again", table.name());
        Err(Error::new(ErrorKind::Conflict, message))
    }
}

/// The files of days before `day`.
fn older_than(day: NaiveDate, head: &TableVersion) -> Vec<Arc<DataFile>> {
    let of_day = |file: &DataFile| file.partition_values.get(DATE)?.as_deref()?.parse::<NaiveDate>().ok();
    head.files.iter().filter(|file| of_day(file).is_some_and(|date| date < day)).cloned().collect()
}
