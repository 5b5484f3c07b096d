//! `system.queries`: what the doors of this process run now, and what they ran of late.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use datafusion::arrow::array::{ArrayRef, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
use datafusion::arrow::record_batch::RecordBatch;
use lakehouse::{Clock, Error, ErrorKind, SystemSource};

use super::running::{QueryRecord, Registry};

/// The table over the registry of one process.
#[derive(Debug)]
pub(super) struct Queries {
    pub(super) registry: Arc<Registry>,
    pub(super) clock: Arc<dyn Clock>,
}

impl SystemSource for Queries {
    fn name(&self) -> &'static str {
        "queries"
    }

    fn rows(&self) -> Result<RecordBatch, Error> {
        let (records, now) = (self.registry.records(), self.clock.now());
        let columns = columns(&records, now).into_iter().map(|(name, values)| (name, values, true));
        RecordBatch::try_from_iter_with_nullable(columns)
            .map_err(|source| Error::with_source(ErrorKind::Bug, "cannot compute system.queries", source))
    }
}

fn columns(records: &[QueryRecord], now: DateTime<Utc>) -> Vec<(&'static str, ArrayRef)> {
    let texts = |text: &dyn Fn(&QueryRecord) -> Option<String>| -> ArrayRef {
        Arc::new(records.iter().map(text).collect::<StringArray>())
    };
    let numbers = |number: &dyn Fn(&QueryRecord) -> u64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(records.iter().map(|record| number(record) as i64)))
    };
    let started_at =
        TimestampMicrosecondArray::from_iter_values(records.iter().map(|record| record.started_at.timestamp_micros()));
    // A clock that was set back makes no time negative.
    let seconds = |record: &QueryRecord| (record.ended_at.unwrap_or(now) - record.started_at).as_seconds_f64().max(0.0);
    vec![
        ("id", numbers(&|record| record.id.0)),
        ("user_name", texts(&|record| Some(record.user.clone()))),
        ("door", texts(&|record| Some(record.door.to_string()))),
        ("sql", texts(&|record| Some(record.sql.to_string()))),
        ("state", texts(&|record| Some(record.outcome.map_or("running".to_owned(), |outcome| outcome.to_string())))),
        ("started_at", Arc::new(started_at.with_timezone("UTC"))),
        ("seconds", Arc::new(Float64Array::from_iter_values(records.iter().map(seconds)))),
        ("rows", numbers(&|record| record.rows)),
        ("bytes", numbers(&|record| record.bytes)),
        ("error", texts(&|record| record.error.clone())),
    ]
}
