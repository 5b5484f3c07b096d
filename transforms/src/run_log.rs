//! What builds did, for everybody to see: `system.model_runs` and `system.test_results`.
//!
//! A watch builds once a second, and a commit for each build would double what it writes. So rows are collected and written
//! now and then, at once after a fault, and at the end. Nothing of a build hangs on them: what cannot be written is tried
//! again with what comes later, and the oldest go where there are too many.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use lakehouse::{Journal, Lake, TableName};
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::compile::Compiled;
use crate::data_tests::Severity;
use crate::error::Result;
use crate::refresh::RefreshKind;
use crate::report::{BuildReport, ModelRun, ModelStatus, TestRun, TestStatus};

/// Between two writes, where no fault hurries the next one.
const INTERVAL: Duration = Duration::from_secs(10);
/// So many rows of each table wait to be written at most.
const ROWS_MAX: usize = 10_000;
/// Whoever was told to stop waits so long at most for the rows that are left.
const STOP_MAX: Duration = Duration::from_secs(2);

/// Why there was a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Trigger {
    /// It is the first of a watch.
    First,
    /// A source has something new.
    NewData,
    /// The last one failed.
    Retry,
    /// A door asked for it.
    Request,
    /// Somebody gave the command.
    ByHand,
}

/// Rows that are to be written.
pub(crate) struct RunLog {
    lake: Lake,
    runs: Vec<RunRow>,
    tests: Vec<TestRow>,
    due_at: Instant,
    /// The last build, if it failed: the same fault over the same rows is told once, so that a lake at rest stays at rest.
    fault: Option<String>,
}

/// A row of `system.model_runs`.
#[derive(Debug, Serialize)]
struct RunRow {
    run_id: String,
    model: String,
    table_schema: String,
    table_name: String,
    publication: Option<u64>,
    trigger: Trigger,
    status: RunStatus,
    class: Option<RefreshKind>,
    reason: Option<String>,
    error: Option<String>,
    started_at: DateTime<Utc>,
    ended_at: DateTime<Utc>,
    seconds: f64,
    rows_read: u64,
    rows_added: u64,
    rows_removed: u64,
    files_read: usize,
    version: Option<u64>,
    source_versions: Option<String>,
    run_date: NaiveDate,
}

/// How a run ended, in words for a table.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum RunStatus {
    Ok,
    Failed,
    Skipped,
    Held,
}

/// A row of `system.test_results`.
#[derive(Debug, Serialize)]
struct TestRow {
    run_id: String,
    test: String,
    model: String,
    column_name: String,
    kind: &'static str,
    severity: Severity,
    status: TestStatus,
    failures: u64,
    message: Option<String>,
    started_at: DateTime<Utc>,
    seconds: f64,
    run_date: NaiveDate,
}

impl RunLog {
    pub(crate) fn new(lake: &Lake) -> Self {
        Self { lake: lake.clone(), runs: Vec::new(), tests: Vec::new(), due_at: Instant::now(), fault: None }
    }

    /// Notes what a build did. Models that stayed as they were are not worth a row.
    pub(crate) fn note(&mut self, trigger: Trigger, project: &Compiled, report: &BuildReport) {
        let fault = report.failed().then(|| fault_of(report));
        if fault.is_some() && fault == self.fault {
            return;
        }
        let run_id = self.lake.ids().fresh().to_string();
        let publications: BTreeMap<&str, u64> =
            report.publications.iter().map(|publication| (publication.group.as_str(), publication.id)).collect();
        for run in report.models.iter().filter(|run| run.status != ModelStatus::Unchanged) {
            let group = project.find(&run.model).map(|model| model.group());
            let publication = group.and_then(|group| publications.get(group).copied());
            self.runs.push(run_row(&run_id, trigger, publication, run));
        }
        self.tests.extend(report.tests.iter().map(|test| test_row(&run_id, test)));
        if fault.is_some() {
            self.due_at = Instant::now();
        }
        self.fault = fault;
    }

    /// Writes what waits, if it is time to.
    pub(crate) async fn write_if_due(&mut self, token: &CancellationToken) {
        if Instant::now() >= self.due_at {
            self.write(token).await;
        }
    }

    /// Writes what waits. Once the token is cancelled there is not much time left for it.
    pub(crate) async fn write(&mut self, token: &CancellationToken) {
        if self.runs.is_empty() && self.tests.is_empty() {
            return;
        }
        let overdue = async {
            token.cancelled().await;
            tokio::time::sleep(STOP_MAX).await;
        };
        let written = tokio::select! {
            written = self.write_rows() => written,
            () = overdue => {
                tracing::warn!("the last runs are not in system.model_runs: the store did not take them in time");
                return;
            }
        };
        if let Err(error) = written {
            let (runs, tests) = (drop_oldest(&mut self.runs), drop_oldest(&mut self.tests));
            let dropped = runs + tests;
            tracing::warn!(%error, dropped, "runs are not in system.model_runs yet; builds go on, and it is tried again");
        }
        self.due_at = Instant::now() + INTERVAL;
    }

    async fn write_rows(&mut self) -> Result<()> {
        if !self.runs.is_empty() {
            self.lake.write_journal(Journal::ModelRuns, &self.runs).await?;
            self.runs.clear();
        }
        if !self.tests.is_empty() {
            self.lake.write_journal(Journal::TestResults, &self.tests).await?;
            self.tests.clear();
        }
        Ok(())
    }
}

fn drop_oldest<T>(rows: &mut Vec<T>) -> usize {
    rows.drain(..rows.len().saturating_sub(ROWS_MAX)).count()
}

/// What failed, and on which rows: the same text means that nothing is new.
fn fault_of(report: &BuildReport) -> String {
    let mut text = String::new();
    for run in report.models.iter().filter(|run| run.status != ModelStatus::Unchanged) {
        let _ = writeln!(text, "{} {:?} {} {:?}", run.model, run.status, run.reason, run.sources);
    }
    for test in report.tests.iter().filter(|test| test.status != TestStatus::Pass) {
        let _ = writeln!(text, "{} {:?} {} {:?}", test.test, test.status, test.failures, test.message);
    }
    for held in &report.held {
        let _ = writeln!(text, "{} {:?}", held.group, held.because);
    }
    text
}

fn run_row(run_id: &str, trigger: Trigger, publication: Option<u64>, run: &ModelRun) -> RunRow {
    let (status, reason, error) = match run.status {
        ModelStatus::Built | ModelStatus::Unchanged => (RunStatus::Ok, Some(run.reason.clone()), None),
        ModelStatus::Held => (RunStatus::Held, Some(run.reason.clone()), Some("a test failed".to_owned())),
        ModelStatus::Failed => (RunStatus::Failed, None, Some(run.reason.clone())),
        ModelStatus::Skipped => (RunStatus::Skipped, None, Some(run.reason.clone())),
    };
    RunRow {
        run_id: run_id.to_owned(),
        model: run.model.clone(),
        table_schema: run.table.schema.clone(),
        table_name: run.table.name.clone(),
        publication,
        trigger,
        status,
        class: run.refresh,
        reason,
        error,
        started_at: run.started_at,
        ended_at: run.started_at + TimeDelta::milliseconds(i64::try_from(run.millis).unwrap_or(0)),
        seconds: seconds(run.millis),
        rows_read: run.rows_read,
        rows_added: run.rows_written,
        rows_removed: run.rows_removed,
        files_read: run.files_read,
        version: run.version,
        source_versions: source_versions(&run.sources),
        run_date: run.started_at.date_naive(),
    }
}

fn source_versions(sources: &BTreeMap<TableName, u64>) -> Option<String> {
    if sources.is_empty() {
        return None;
    }
    Some(serde_json::to_string(sources).expect("names and numbers are JSON"))
}

fn test_row(run_id: &str, test: &TestRun) -> TestRow {
    TestRow {
        run_id: run_id.to_owned(),
        test: test.test.clone(),
        model: test.model.clone(),
        column_name: test.columns.join(", "),
        kind: test.kind,
        severity: test.severity,
        status: test.status,
        failures: test.failures,
        message: test.message.clone(),
        started_at: test.started_at,
        seconds: seconds(test.millis),
        run_date: test.started_at.date_naive(),
    }
}

fn seconds(millis: u64) -> f64 {
    millis as f64 / 1_000.0
}
