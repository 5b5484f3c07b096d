//! SQL models, kept fresh: a dbt project in, tested and published tables out.
//!
//! ```text
//!  project ─► compile ─► graph ─► for each model: class ─► refresh ─► audit ─► commit ─► publish
//!  files      Jinja,     order,   read off its    stage    data       cursor   one set
//!             YAML       select   logical plan    files    tests      and rows of versions
//! ```
//!
//! A model's table carries in its own Delta log which version of each source it was built from, in the same commit as the
//! rows. So a refresh reads only what is new, and a crash at any point repeats or continues, never doubles.
//!
//! This crate knows Jinja and logical plans. It never knows Kafka or a wire protocol.

mod asked;
mod audit;
mod class;
mod compile;
mod config;
mod data_tests;
mod engine;
mod error;
mod explain;
mod functions;
mod graph;
mod project;
mod query;
mod refresh;
mod report;
mod run_log;
mod select;
mod suggest;
mod verify;
mod view;
mod watch;

use lakehouse::Lake;
use tokio_util::sync::CancellationToken;

use compile::Compiled;
use engine::{Ended, Goal, Plan};
use run_log::{RunLog, Trigger};

pub use compile::Variables;
pub use config::Materialization;
pub use data_tests::Severity;
pub use error::{Error, ErrorKind, Result};
pub use explain::{Explanation, ModelListing, SourceState};
pub use project::Project;
pub use refresh::{RefreshKind, RefreshMode};
pub use report::{BuildReport, HeldGroup, ModelRun, ModelStatus, TestRun, TestScope, TestStatus};
pub use verify::{DeepReport, ModelAudit, verify};
pub use watch::{Cadence, WatchProgress};

/// Which models a command is about, and how they are built.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Selectors as in dbt: a name, `tag:…` or `path:…`, with `+` before or after; none means all models.
    pub select: Vec<String>,
    /// Whether a refresh may go by what is new.
    pub refresh: RefreshMode,
    /// Values for `var` and `env_var`.
    pub variables: Variables,
}

/// Refreshes, tests, commits and publishes. With nothing new it does nothing.
///
/// # Errors
/// `BadConfig` for a fault in the project, and whatever concerns the lake as a whole. A model or test that fails is no
/// error here: the report says so, and the last publication stands.
pub async fn build(lake: &Lake, project: &Project, options: &Options) -> Result<BuildReport> {
    run_to(lake, project, options, Goal::Publish).await
}

/// Refreshes and commits, without tests and without a publication.
///
/// # Errors
/// As [`build`].
pub async fn run(lake: &Lake, project: &Project, options: &Options) -> Result<BuildReport> {
    run_to(lake, project, options, Goal::Commit).await
}

/// Runs the data tests on the newest versions of the tables, all rows of them.
///
/// # Errors
/// `NotFound` if a table was never built; a test that fails is in the report.
pub async fn test(lake: &Lake, project: &Project, options: &Options) -> Result<BuildReport> {
    let project = Compiled::new(project, &options.variables)?;
    let selected = select::select(&project, &options.select)?;
    let mut report = BuildReport::default();
    for model in project.models.iter().filter(|model| selected.contains(&model.name)) {
        let table = lake.table(&model.table);
        let view = view::View::of(table.clone(), table.head().await?);
        report.tests.extend(audit::audit(lake, model, &view, None).await);
    }
    log_run(lake, &project, &report).await;
    Ok(report)
}

/// Says for each model how it is refreshed and why, and what the next build would read.
///
/// # Errors
/// `BadConfig` for a fault in the project.
pub async fn explain(lake: &Lake, project: &Project, options: &Options) -> Result<Vec<Explanation>> {
    let project = Compiled::new(project, &options.variables)?;
    let selected = select::select(&project, &options.select)?;
    let mut explanations = Vec::new();
    for model in project.models.iter().filter(|model| selected.contains(&model.name)) {
        explanations.push(explain::explain(lake, &project, model, options.refresh).await?);
    }
    Ok(explanations)
}

/// The models, each after all that it reads.
///
/// # Errors
/// `BadConfig` for a fault in the project.
pub fn ls(project: &Project, options: &Options) -> Result<Vec<ModelListing>> {
    let project = Compiled::new(project, &options.variables)?;
    let selected = select::select(&project, &options.select)?;
    let models = project.models.iter().filter(|model| selected.contains(&model.name));
    Ok(models.map(ModelListing::of).collect())
}

/// Builds whenever a source has something new or a door asks for it, until the token is cancelled: while it computes it ends at once, while it
/// commits after the publication. A build that fails is reported in `progress` and tried again after a pause.
///
/// # Errors
/// `BadConfig` for a fault in the project; `StorageFull` and `NewerLake` when they come up, since waiting does not help.
pub async fn watch(
    lake: &Lake,
    project: &Project,
    options: &Options,
    cadence: &Cadence,
    progress: tokio::sync::watch::Sender<WatchProgress>,
    token: CancellationToken,
) -> Result<()> {
    let project = Compiled::new(project, &options.variables)?;
    let selected = select::select(&project, &options.select)?;
    let watch = watch::Watch { lake, project: &project, selected, mode: options.refresh, cadence, progress };
    watch.run(&token).await
}

async fn run_to(lake: &Lake, project: &Project, options: &Options, goal: Goal) -> Result<BuildReport> {
    let project = Compiled::new(project, &options.variables)?;
    let selected = select::select(&project, &options.select)?;
    let plan = Plan { lake, project: &project, selected: &selected, mode: options.refresh, goal };
    let ended = plan.run(&CancellationToken::new()).await;
    if let Ok(Ended::Done(report)) = &ended {
        log_run(lake, &project, report).await;
    }
    lake.settle().await;
    match ended? {
        Ended::Done(report) => Ok(report),
        Ended::Cancelled => unreachable!("nobody else has this token"),
    }
}

/// Tells everybody what a command did.
async fn log_run(lake: &Lake, project: &Compiled, report: &BuildReport) {
    let mut log = RunLog::new(lake);
    log.note(Trigger::ByHand, project, report);
    log.write(&CancellationToken::new()).await;
}
