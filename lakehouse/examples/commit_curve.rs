//! How long a commit takes when the table is new and when it has taken thousands: by the committer of Lakebeat, and by the
//! ordinary path of the Delta library on the same table.
//!
//! `commit_curve URL` makes the table in the lake at `URL`, whose store is described by the environment (`AWS_…`), commits a
//! file at a time, and prints one JSON object.
#![allow(clippy::print_stdout, reason = "its result goes to stdout")]
#![allow(clippy::disallowed_methods, reason = "its caller says by the environment where the store is")]

#[path = "../tests/it/counting.rs"]
mod counting;

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use deltalake_core::kernel::transaction::CommitBuilder;
use deltalake_core::kernel::{Action, Add, EagerSnapshot};
use deltalake_core::logstore::{LogStoreRef, StorageConfig, default_logstore};
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use deltalake_core::table::state::DeltaTableState;
use lakehouse::{Commit, Lake, Operation, StageOptions, StagedFile, SystemClock, Table, TableName, TableSpec};
use object_store::ObjectStore;
use object_store::prefix::PrefixStore;
use serde_json::json;
use url::Url;

use counting::{Counting, Requests};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// After so many commits it is measured.
const MARKS: [u64; 3] = [10, 1_000, 10_000];
/// So many commits of ours are measured there, and then so many of the library's.
const OURS: usize = 50;
const THEIRS: usize = 20;
/// Rows in a commit's file.
const ROWS: i64 = 100;

#[tokio::main]
async fn main() -> Result<()> {
    let url = Url::parse(&std::env::args().nth(1).ok_or("commit_curve URL")?)?;
    let environment = std::env::vars().filter(|(name, _)| name.starts_with("AWS_"));
    let (store, _) = object_store::parse_url_opts(&url, environment)?;
    let curve = Curve::begin(Counting::over(Arc::from(store)), url).await?;
    println!("{}", curve.run().await?);
    Ok(())
}

struct Curve {
    store: Arc<Counting>,
    lake: Lake,
    table: Table,
    log: LogStoreRef,
}

/// How long each of some commits took, and what they asked of the store together.
struct Measured {
    times: Vec<Duration>,
    asked: Requests,
}

impl Curve {
    async fn begin(store: Arc<Counting>, url: Url) -> Result<Self> {
        let lake = Lake::open_on(store.clone(), &url, Arc::new(SystemClock)).await?;
        let name = TableName::new("bronze", "curve");
        let table = lake.table(&name);
        table.ensure(&TableSpec::new(schema())).await?;
        let root: Arc<dyn ObjectStore> = store.clone();
        let folder = format!("{}/bronze/curve", url.path().trim_matches('/'));
        let location = url.join(&format!("{}/bronze/curve/", url.path()))?;
        let log = default_logstore(
            Arc::new(PrefixStore::new(root.clone(), folder)),
            root,
            &location,
            &StorageConfig::default(),
        );
        Ok(Self { store, lake, table, log })
    }

    async fn run(&self) -> Result<serde_json::Value> {
        let mut points = Vec::new();
        for mark in MARKS {
            let mut version = self.table.head().await?.version;
            while version < mark {
                version = self.commit(version).await?.1;
            }
            // Each hundredth commit has a checkpoint written beside those that follow it: here beside none of the fifty.
            self.lake.settle().await;
            let ours = self.ours(version).await?;
            let theirs = self.theirs().await?;
            points.push(json!({ "commits": mark, "ours": ours.told(), "library": theirs.told() }));
        }
        self.lake.settle().await;
        Ok(json!({ "points": points, "rows_a_commit": ROWS }))
    }

    /// Commits one file; returns how long the commit took, without the writing of the file.
    async fn commit(&self, version: u64) -> Result<(Duration, u64)> {
        let mut commit = Commit::new(Operation::Write);
        commit.adds = self.staged().await?;
        commit.transactions.insert("curve".to_owned(), version as i64);
        let began = Instant::now();
        let committed = self.table.append(version, commit).await?.committed().ok_or("another writer")?;
        Ok((began.elapsed(), committed))
    }

    async fn ours(&self, mut version: u64) -> Result<Measured> {
        let before = self.store.requests();
        let mut times = Vec::new();
        for _ in 0..OURS {
            let (time, committed) = self.commit(version).await?;
            times.push(time);
            version = committed;
        }
        Ok(Measured { times, asked: self.store.requests().since(before) })
    }

    /// The library's ordinary path: a table that is open, and a commit that brings it up to date.
    async fn theirs(&self) -> Result<Measured> {
        let mut state = DeltaTableState::new(EagerSnapshot::try_new(self.log.as_ref(), None).await?);
        let before = self.store.requests();
        let mut times = Vec::new();
        for _ in 0..THEIRS {
            let actions = self.staged().await?.iter().map(added).collect();
            let operation = DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None };
            let began = Instant::now();
            let builder = CommitBuilder::default().with_actions(actions);
            let committed = builder.build(Some(&state), self.log.clone(), operation).await?;
            times.push(began.elapsed());
            state = committed.snapshot;
        }
        Ok(Measured { times, asked: self.store.requests().since(before) })
    }

    async fn staged(&self) -> Result<Vec<StagedFile>> {
        let numbers = Arc::new(Int64Array::from_iter_values(0..ROWS));
        let rows = RecordBatch::try_new(schema(), vec![numbers])?;
        let columns = self.table.at(0).await?;
        Ok(self.table.stage_batches(&columns, vec![rows], &StageOptions::default()).await?)
    }
}

impl Measured {
    fn told(mut self) -> serde_json::Value {
        self.times.sort();
        let milliseconds = |time: &Duration| time.as_secs_f64() * 1_000.0;
        let commits = self.times.len() as f64;
        json!({
            "median_ms": milliseconds(&self.times[self.times.len() / 2]),
            "slowest_ms": self.times.last().map(milliseconds),
            // The writing of the file is among them.
            "puts": self.asked.puts as f64 / commits,
            "gets": self.asked.gets as f64 / commits,
            "lists": self.asked.lists as f64 / commits,
            "bytes": self.asked.put_bytes as f64 / commits,
        })
    }
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("number", DataType::Int64, true)]))
}

fn added(staged: &StagedFile) -> Action {
    let file = staged.data_file();
    Action::Add(Add {
        path: file.path.clone(),
        size: file.size as i64,
        modification_time: file.modified_millis,
        data_change: true,
        stats: file.stats.clone(),
        ..Add::default()
    })
}
