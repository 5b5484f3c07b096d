//! What a build did, model by model and test by test, for people and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use lakehouse::{Publication, TableName};
use serde::Serialize;

use crate::data_tests::Severity;
use crate::refresh::RefreshKind;

/// The account of one build, run or test.
#[derive(Debug, Clone, Default, Serialize)]
pub struct BuildReport {
    /// The models, in the order in which they were built.
    pub models: Vec<ModelRun>,
    /// The tests.
    pub tests: Vec<TestRun>,
    /// What was published, a publication for each group in which something changed.
    pub publications: Vec<Publication>,
    /// Why a group was not published although it was meant to be.
    pub held: Vec<HeldGroup>,
}

/// What became of one model.
#[derive(Debug, Clone, Serialize)]
pub struct ModelRun {
    /// The model.
    pub model: String,
    /// Its table.
    pub table: TableName,
    /// How it ended.
    pub status: ModelStatus,
    /// How it was refreshed.
    pub refresh: Option<RefreshKind>,
    /// Why in this way; or what went wrong.
    pub reason: String,
    /// The version of each table that it reads, as far as these are known.
    pub sources: BTreeMap<TableName, u64>,
    /// Source files that were read.
    pub files_read: usize,
    /// Rows in the source files that were read.
    pub rows_read: u64,
    /// Rows in the files that were written.
    pub rows_written: u64,
    /// Rows in the files that went out. Most of them are in the written ones again where a refresh merges.
    pub rows_removed: u64,
    /// Files that came into the table.
    pub files_added: usize,
    /// Files that went out of it.
    pub files_removed: usize,
    /// The table's version afterwards.
    pub version: Option<u64>,
    /// When computing began.
    pub started_at: DateTime<Utc>,
    /// How long computing and staging took, in milliseconds.
    pub millis: u64,
}

/// How a model's run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelStatus {
    /// Its table has a new version.
    Built,
    /// Its table is as it should be already.
    Unchanged,
    /// It was computed, but a failed test keeps it from being committed.
    Held,
    /// Its query, or writing its rows, failed.
    Failed,
    /// Something that it reads failed.
    Skipped,
}

/// What became of one test.
#[derive(Debug, Clone, Serialize)]
pub struct TestRun {
    /// The test.
    pub test: String,
    /// The model whose table it is about.
    pub model: String,
    /// What has to hold: the name that a project gives to this kind of test.
    pub kind: &'static str,
    /// The columns that it is about.
    pub columns: Vec<String>,
    /// How it ended.
    pub status: TestStatus,
    /// Rows, or keys, that break the rule.
    pub failures: u64,
    /// What a broken rule means.
    pub severity: Severity,
    /// Which rows were looked at.
    pub scope: TestScope,
    /// What went wrong, if it could not be run.
    pub message: Option<String>,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// How long it took, in milliseconds.
    pub millis: u64,
}

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TestStatus {
    /// The rule holds.
    Pass,
    /// The rule is broken, and that is only reported.
    Warn,
    /// The rule is broken.
    Fail,
    /// The test could not be run.
    Error,
}

/// Which rows a test looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TestScope {
    /// All rows of the table.
    Table,
    /// The new rows; the others passed before.
    NewRows,
}

/// A group of models that keeps its last publication.
#[derive(Debug, Clone, Serialize)]
pub struct HeldGroup {
    /// The group.
    pub group: String,
    /// The models and tests at fault, or what else stands in the way.
    pub because: Vec<String>,
}

impl BuildReport {
    /// Whether a model failed, or a test whose severity is error, or something could not be published.
    pub fn failed(&self) -> bool {
        let model_failed = self.models.iter().any(|run| run.status.is_fault());
        model_failed || self.tests.iter().any(|run| run.status.is_fault()) || !self.held.is_empty()
    }

    /// Whether something was committed or published.
    pub fn changed(&self) -> bool {
        !self.publications.is_empty() || self.models.iter().any(|run| run.status == ModelStatus::Built)
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl ModelStatus {
    pub(crate) fn is_fault(self) -> bool {
        matches!(self, Self::Failed | Self::Skipped | Self::Held)
    }
}

impl TestStatus {
    pub(crate) fn is_fault(self) -> bool {
        matches!(self, Self::Fail | Self::Error)
    }
}

impl fmt::Display for BuildReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for run in &self.models {
            writeln!(f, "{run}")?;
        }
        let passed = self.tests.iter().filter(|run| run.status == TestStatus::Pass).count();
        for run in self.tests.iter().filter(|run| run.status != TestStatus::Pass) {
            writeln!(f, "{run}")?;
        }
        if !self.tests.is_empty() {
            writeln!(f, "{passed} of {} tests passed", self.tests.len())?;
        }
        for held in &self.held {
            writeln!(f, "group {} keeps its last publication, because of {}", held.group, held.because.join(", "))?;
        }
        for publication in &self.publications {
            writeln!(f, "published {} of group {}", publication.id, publication.group)?;
        }
        if self.publications.is_empty() && self.held.is_empty() && !self.changed() && self.tests.is_empty() {
            writeln!(f, "nothing new")?;
        }
        Ok(())
    }
}

impl fmt::Display for ModelRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, reason, rows_read, rows_written, millis, .. } = self;
        match self.status {
            ModelStatus::Built => {
                let refresh = self.refresh.map_or("", RefreshKind::word);
                write!(
                    f,
                    "built      {table}: {refresh}, {rows_read} rows read, {rows_written} written, {millis} ms ({reason})"
                )
            }
            ModelStatus::Unchanged => write!(f, "unchanged  {table}"),
            ModelStatus::Held => write!(f, "held       {table}: a test failed"),
            ModelStatus::Failed => write!(f, "failed     {table}: {reason}"),
            ModelStatus::Skipped => write!(f, "skipped    {table}: {reason}"),
        }
    }
}

impl fmt::Display for TestRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.status, &self.message) {
            (TestStatus::Pass, _) => write!(f, "pass       {}", self.test),
            (TestStatus::Warn, _) => write!(f, "warning    {}: {} break it", self.test, self.failures),
            (TestStatus::Fail, _) => write!(f, "FAILED     {}: {} break it", self.test, self.failures),
            (TestStatus::Error, message) => {
                write!(f, "FAILED     {}: {}", self.test, message.as_deref().unwrap_or_default())
            }
        }
    }
}
