//! What has to be true: every message is one row or one letter, once and with what it held; the ledger stands at the end; the
//! lake's own audit finds nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type};
use ingest::topic::TopicSpec;
use lakehouse::{ErrorKind, Lake, TableName, ingest_app_id};
use tokio::sync::OnceCell;
use url::Url;

use super::broker::{Partition, Verdict, id_of};
use super::random::{Random, SeededIds};
use super::store::Bucket;
use super::time::{Time, WallClock};

/// What is wrong with a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) what: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// A message is there more than once.
    Doubled,
    /// A message is not there.
    Lost,
    /// Something is there that is no message, or not what it held.
    Altered,
    /// The lake's audit found a fault.
    Audit,
    /// The end was not reached although nothing failed any more.
    Stuck,
    /// A process ended for a reason that there was not.
    Stopped,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.what)
    }
}

/// The URL of the lake that is simulated.
pub(crate) fn lake_url() -> Url {
    Url::parse("memory:///lake/").expect("a valid URL")
}

/// Looks at the lake as it is, past all faults.
pub(crate) struct Oracle {
    bucket: Arc<Bucket>,
    time: Arc<Time>,
    topic: TopicSpec,
    lake: OnceCell<Lake>,
}

/// Messages that were found, each with what it holds: by partition and offset.
type Found = BTreeMap<(i32, i64), Vec<Option<Vec<u8>>>>;

impl Oracle {
    pub(crate) fn new(bucket: Arc<Bucket>, time: Arc<Time>, topic: TopicSpec) -> Self {
        Self { bucket, time, topic, lake: OnceCell::new() }
    }

    async fn lake(&self) -> &Lake {
        let open = || async {
            let clock = WallClock { time: self.time.clone(), ahead: chrono::TimeDelta::zero() };
            let ids = SeededIds::new(Random::about(0, "oracle", &[]));
            let store = self.bucket.contents.clone();
            Lake::open_with_ids(store, &lake_url(), Arc::new(clock), Arc::new(ids)).await.expect("memory is there")
        };
        self.lake.get_or_init(open).await
    }

    /// Whether all is committed that the topic holds.
    pub(crate) async fn is_at_end(&self, partitions: &[Partition]) -> bool {
        let app_ids: Vec<String> =
            (0..partitions.len() as i32).map(|partition| ingest_app_id(&self.topic.name, partition)).collect();
        let ledger = match self.lake().await.table(&self.topic.table).ledger(&app_ids).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return false,
            ledger => ledger.expect("memory is there"),
        };
        let mut wanted = app_ids.iter().zip(partitions).filter(|(_, partition)| !partition.slots.is_empty());
        wanted.all(|(app_id, partition)| ledger.entries.get(app_id) == Some(&partition.end()))
    }

    /// The lake's own audit, which holds at any moment.
    pub(crate) async fn audit(&self) -> Vec<Failure> {
        match self.lake().await.verify().await {
            Ok(report) => {
                report.faults.iter().map(|fault| Failure::new(FailureKind::Audit, fault.to_string())).collect()
            }
            Err(error) => vec![Failure::new(FailureKind::Audit, format!("the audit failed: {error}"))],
        }
    }

    /// How often small files were put together.
    pub(crate) async fn compactions(&self) -> u64 {
        let mut found = 0;
        for table in [&self.topic.table, &self.topic.dead_letters] {
            let table = self.lake().await.table(table);
            let Ok(head) = table.head().await else { continue };
            let commits = table.commits(0, head.version).await.expect("memory is there");
            found += commits.iter().filter(|commit| commit.operation == "OPTIMIZE").count() as u64;
        }
        found
    }

    /// What is wrong with the end of a history.
    pub(crate) async fn check(&self, partitions: &[Partition]) -> Vec<Failure> {
        let mut failures = Vec::new();
        if !self.is_at_end(partitions).await {
            failures.push(Failure::new(FailureKind::Lost, "the ledger does not stand at the end of the topic"));
        }
        let rows = self.read(&self.topic.table, ["_partition", "_offset", "id"]).await;
        let letters = self.read(&self.topic.dead_letters, ["partition", "offset", "payload"]).await;
        failures.extend(compare(Verdict::Row, rows, partitions));
        failures.extend(compare(Verdict::Letter, letters, partitions));
        failures.extend(self.audit().await);
        failures
    }

    async fn read(&self, table: &TableName, columns: [&str; 3]) -> Found {
        let lake = self.lake().await;
        let head = match lake.table(table).head().await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Found::new(),
            head => head.expect("memory is there"),
        };
        let rows = lake.session_factory().context().read_table(head.provider()).expect("a table");
        let batches = rows.select_columns(&columns).expect("its columns").collect().await.expect("memory is there");
        let mut found = Found::new();
        for batch in &batches {
            take(batch, &mut found);
        }
        found
    }
}

fn take(batch: &RecordBatch, found: &mut Found) {
    let partitions = batch.column(0).as_primitive::<Int32Type>();
    let offsets = batch.column(1).as_primitive::<Int64Type>();
    for row in 0..batch.num_rows() {
        let contents = batch.column(2);
        let held = contents.is_valid(row).then(|| match contents.as_string_opt::<i32>() {
            Some(texts) => texts.value(row).as_bytes().to_vec(),
            None => contents.as_binary::<i32>().value(row).to_vec(),
        });
        found.entry((partitions.value(row), offsets.value(row))).or_default().push(held);
    }
}

fn compare(verdict: Verdict, mut found: Found, partitions: &[Partition]) -> Vec<Failure> {
    let mut failures = Vec::new();
    for (number, partition) in (0..).zip(partitions) {
        for (offset, message) in partition.messages().filter(|(_, message)| message.verdict == verdict) {
            let place = format!("{verdict:?} of partition {number} offset {offset}");
            let wanted = match verdict {
                Verdict::Row => Some(id_of(number, offset).into_bytes()),
                Verdict::Letter => message.payload.clone(),
            };
            match found.remove(&(number, offset)).as_deref() {
                None => failures.push(Failure::new(FailureKind::Lost, place)),
                Some([one]) if *one == wanted => {}
                Some([one]) => failures.push(Failure::new(FailureKind::Altered, format!("{place} holds {one:?}"))),
                Some(many) => {
                    let what = format!("{place} is there {} times", many.len());
                    failures.push(Failure::new(FailureKind::Doubled, what));
                }
            }
        }
    }
    let strays = found.keys().map(|place| Failure::new(FailureKind::Altered, format!("{verdict:?} at {place:?}")));
    failures.extend(strays);
    failures
}
