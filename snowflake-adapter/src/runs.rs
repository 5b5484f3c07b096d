//! The lake's own record of the mirror: a row of `system.mirror_runs` for each run that changed something, and in the same
//! commit the ledger entry that says which publication the target holds.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use chrono::{DateTime, Utc};
use lakehouse::{Commit, Lake, Operation, StageOptions, Table, TableName, TableSpec, timestamp_type};

use crate::{Error, ErrorKind, Options, Outcome, Result, Summary};

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("started_at", timestamp_type(), true),
        Field::new("target", DataType::Utf8, true),
        Field::new("publication", DataType::Int64, true),
        Field::new("tables", DataType::Int64, true),
        Field::new("rows", DataType::Int64, true),
        Field::new("bytes", DataType::Int64, true),
        Field::new("statements", DataType::Int64, true),
        Field::new("seconds", DataType::Float64, true),
        Field::new("outcome", DataType::Utf8, true),
    ]))
});

/// The record of one target.
pub(crate) struct Runs {
    table: Table,
    /// The target's ledger entry. The service belongs to it: a schema of the same name elsewhere is another one.
    app_id: String,
}

impl Runs {
    pub(crate) fn of(lake: &Lake, options: &Options) -> Self {
        let place = options.url.origin().ascii_serialization();
        let place = place.split_once("://").map_or(place.as_str(), |(_, host)| host);
        let app_id = format!("mirror/{place}/{}", options.target());
        Self { table: lake.table(&TableName::new("system", "mirror_runs")), app_id }
    }

    /// The publication that the target held after the last run.
    pub(crate) async fn mirrored(&self) -> Result<Option<u64>> {
        let ledger = match self.table.ledger(std::slice::from_ref(&self.app_id)).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            ledger => ledger?,
        };
        Ok(ledger.entries.get(&self.app_id).and_then(|id| u64::try_from(*id).ok()))
    }

    /// Writes down a run that has come to its end.
    pub(crate) async fn record(&self, started_at: DateTime<Utc>, summary: &Summary) -> Result<()> {
        let head = self.table.ensure(&TableSpec::new(SCHEMA.clone())).await?;
        let publication = to_number(summary.publication.unwrap_or_default());
        let ledger = self.table.ledger(std::slice::from_ref(&self.app_id)).await?;
        if ledger.entries.get(&self.app_id).is_some_and(|newest| *newest >= publication) {
            return Ok(());
        }
        let mut commit = Commit::new(Operation::Write);
        let rows = vec![to_batch(started_at, summary)?];
        commit.adds = self.table.stage_batches(&head, rows, &StageOptions::default()).await?;
        commit.transactions.insert(self.app_id.clone(), publication);
        // One who was first has written down that the same target holds this publication, or a newer one.
        let outcome = self.table.append(ledger.version, commit).await?;
        tracing::debug!(?outcome, "written down");
        Ok(())
    }
}

fn to_batch(started_at: DateTime<Utc>, summary: &Summary) -> Result<RecordBatch> {
    let number = |number: u64| Arc::new(Int64Array::from(vec![to_number(number)])) as ArrayRef;
    let text = |text: &str| Arc::new(StringArray::from(vec![text])) as ArrayRef;
    let outcome = if summary.outcome == Outcome::Found { "found" } else { "mirrored" };
    let columns = vec![
        Arc::new(TimestampMicrosecondArray::from(vec![started_at.timestamp_micros()]).with_timezone("UTC")) as ArrayRef,
        text(&summary.target),
        number(summary.publication.unwrap_or_default()),
        number(summary.tables),
        number(summary.rows),
        number(summary.bytes),
        number(summary.statements),
        Arc::new(Float64Array::from(vec![summary.seconds])),
        text(outcome),
    ];
    RecordBatch::try_new(SCHEMA.clone(), columns)
        .map_err(|source| Error::with_source(ErrorKind::Bug, "a run of the mirror does not fit its table", source))
}

fn to_number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
