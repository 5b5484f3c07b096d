//! One build: stage all, test all, commit all, publish once.
//!
//! ```text
//!  pin the sources ─► stage each model ─► test what is staged ─► commit, sources before readers ─► publish ─► compact
//!                     (on staged parents)
//! ```
//!
//! Until the first commit nothing has happened that anybody could see. A crash between two commits leaves tables whose
//! ledgers say how far each is; the next build goes on from there. Whoever loses a race to another build starts over.

mod publish;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use lakehouse::{Commit, Compaction, Lake, Operation, Outcome, TableName};
use serde_json::{Map, json};
use tokio_util::sync::CancellationToken;

use crate::audit;
use crate::compile::{Compiled, Model};
use crate::error::{Error, ErrorKind, Result, conflict};
use crate::refresh::{self, Audit, Planned, Refresh, RefreshKind, RefreshMode};
use crate::report::{BuildReport, ModelRun, ModelStatus, millis};
use crate::view::View;

/// So often a build starts over because another one was first.
const RACES_MAX: u32 = 8;

/// What a build is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Tables that are tested and published.
    Publish,
    /// Tables that are committed, no more.
    Commit,
}

/// What is to be built, and how.
pub(crate) struct Plan<'a> {
    pub(crate) lake: &'a Lake,
    pub(crate) project: &'a Compiled,
    pub(crate) selected: &'a BTreeSet<String>,
    pub(crate) mode: RefreshMode,
    pub(crate) goal: Goal,
}

/// How a build ended.
pub(crate) enum Ended {
    Done(BuildReport),
    /// The token was cancelled before anything was committed.
    Cancelled,
}

impl Plan<'_> {
    /// Builds. Cancelling ends it at once while it computes, and after the publication while it commits.
    pub(crate) async fn run(&self, token: &CancellationToken) -> Result<Ended> {
        let mut report = BuildReport::default();
        let mut mode = self.mode;
        for _ in 0..RACES_MAX {
            let staged = tokio::select! {
                staged = self.stage(mode) => staged,
                () = token.cancelled() => return Ok(Ended::Cancelled),
            };
            let outcome = match staged {
                Ok(mut pass) => {
                    let outcome = pass.finish(&mut report).await;
                    pass.hand_over(&mut report);
                    outcome
                }
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => return Ok(Ended::Done(report)),
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    tracing::info!(%error, "another build was first, starting over");
                    // What this one has rebuilt and committed already is not rebuilt again.
                    if report.changed() {
                        mode = RefreshMode::Automatic;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let message = format!("gave up after {RACES_MAX} races against other builds of this lake: run one at a time");
        Err(Error::new(ErrorKind::Conflict, message))
    }

    /// Computes everything and tests it. Nothing is committed, apart from the making of tables that are missing.
    async fn stage(&self, mode: RefreshMode) -> Result<Pass<'_>> {
        let mut pass = Pass {
            plan: self,
            views: BTreeMap::new(),
            refreshes: BTreeMap::new(),
            runs: Vec::new(),
            tests: Vec::new(),
            committed: BTreeMap::new(),
        };
        for model in self.project.models.iter().filter(|model| self.selected.contains(&model.name)) {
            let (started_at, started) = (self.lake.clock().now(), Instant::now());
            let staged = match pass.first_fault(model) {
                Some(parent) => Err(Stop::Skipped(format!("{parent}, which it reads, failed"))),
                None => pass.stage_model(model, mode).await.map_err(Stop::Failed),
            };
            pass.take(model, staged, started_at, started.elapsed())?;
        }
        if self.goal == Goal::Publish {
            pass.audit().await;
        }
        Ok(pass)
    }
}

/// Why a model was not staged.
enum Stop {
    Skipped(String),
    Failed(Error),
}

/// One attempt at a build.
struct Pass<'a> {
    plan: &'a Plan<'a>,
    /// Every table that was looked at: pinned once, so that all models see the same.
    views: BTreeMap<TableName, View>,
    /// What is staged, by model.
    refreshes: BTreeMap<String, Refresh>,
    runs: Vec<ModelRun>,
    tests: Vec<crate::report::TestRun>,
    /// The versions that this attempt has made.
    committed: BTreeMap<TableName, u64>,
}

impl Pass<'_> {
    fn first_fault(&self, model: &Model) -> Option<&str> {
        let faulty = |run: &&ModelRun| model.parents.contains(&run.model) && run.status.is_fault();
        self.runs.iter().find(faulty).map(|run| run.model.as_str())
    }

    async fn stage_model(&mut self, model: &Model, mode: RefreshMode) -> Result<Refresh> {
        let mut inputs = BTreeMap::new();
        for name in &model.inputs {
            inputs.insert(name.clone(), self.pin(model, name).await?);
        }
        let audit = match self.plan.goal {
            Goal::Publish => Audit::Tested,
            Goal::Commit => Audit::Untested,
        };
        let lake = self.plan.lake;
        match Planned::new(lake, model, &inputs).await?.stage(mode, audit).await {
            // What a source added long ago can have been put into larger files and cleaned away since.
            Err(error) if error.kind() == ErrorKind::NotFound && mode == RefreshMode::Automatic => {
                tracing::warn!(model = %model.name, %error, "a file with new rows is gone, reading everything");
                Planned::new(lake, model, &inputs).await?.stage(RefreshMode::Full, audit).await
            }
            staged => staged,
        }
    }

    /// The table as all models of this attempt see it.
    async fn pin(&mut self, model: &Model, name: &TableName) -> Result<View> {
        if let Some(view) = self.views.get(name) {
            return Ok(view.clone());
        }
        let table = self.plan.lake.table(name);
        let base = table.head().await.map_err(|error| missing_input(self.plan.project, model, name, error))?;
        let view = View::of(table, base);
        self.views.insert(name.clone(), view.clone());
        Ok(view)
    }

    /// Notes how staging a model ended. Only what concerns the whole build is an error here.
    fn take(
        &mut self,
        model: &Model,
        staged: Result<Refresh, Stop>,
        started_at: DateTime<Utc>,
        took: Duration,
    ) -> Result<()> {
        let version_of = |name: &TableName| Some((name.clone(), self.views.get(name)?.base.version));
        let mut run = ModelRun {
            model: model.name.clone(),
            table: model.table.clone(),
            status: ModelStatus::Unchanged,
            refresh: None,
            reason: String::new(),
            sources: model.inputs.iter().filter_map(version_of).collect(),
            files_read: 0,
            rows_read: 0,
            rows_written: 0,
            rows_removed: 0,
            files_added: 0,
            files_removed: 0,
            version: None,
            started_at,
            millis: millis(took),
        };
        match staged {
            Ok(refresh) => {
                run.refresh = Some(refresh.kind);
                run.reason = refresh.reason.clone();
                run.files_read = refresh.files_read;
                run.rows_read = refresh.rows_read;
                run.rows_written = refresh.view.adds.iter().map(|file| file.rows()).sum();
                run.rows_removed = refresh::rows_of(&refresh.view.removes);
                run.files_added = refresh.view.adds.len();
                run.files_removed = refresh.view.removes.len();
                run.version = Some(refresh.view.base.version);
                self.views.insert(model.table.clone(), refresh.view.clone());
                self.refreshes.insert(model.name.clone(), refresh);
            }
            Err(Stop::Skipped(reason)) => {
                run.status = ModelStatus::Skipped;
                run.reason = reason;
            }
            Err(Stop::Failed(error)) if concerns_all(error.kind()) => return Err(error),
            Err(Stop::Failed(error)) => {
                tracing::error!(model = %model.name, %error, "model failed");
                run.status = ModelStatus::Failed;
                run.reason = error.to_string();
            }
        }
        self.runs.push(run);
        Ok(())
    }

    /// Tests what is staged. What was tested when it was committed is not tested again.
    async fn audit(&mut self) {
        for (name, refresh) in &self.refreshes {
            let model = self.plan.project.find(name).expect("what is staged is a model of the project");
            if refresh.pending.is_some() {
                let runs = audit::audit(self.plan.lake, model, &refresh.view, refresh.pending.as_ref()).await;
                self.tests.extend(runs);
            }
        }
    }

    /// Commits, publishes, compacts.
    async fn finish(&mut self, report: &mut BuildReport) -> Result<()> {
        let held_groups = self.groups_with_failed_tests();
        let mut held = BTreeSet::new();
        for model in &self.plan.project.models {
            let Some(refresh) = self.refreshes.get(&model.name) else { continue };
            // What was computed from rows that are not committed must not be committed either.
            if held_groups.contains(model.group()) || !held.is_disjoint(&model.parents) {
                held.insert(model.name.clone());
                self.hold(&model.name);
            } else if refresh.pending.is_some() {
                self.commit(model).await?;
            }
        }
        if self.plan.goal == Goal::Publish {
            self.publish(report).await?;
        }
        self.compact().await;
        Ok(())
    }

    fn groups_with_failed_tests(&self) -> BTreeSet<String> {
        let failed = self.tests.iter().filter(|test| test.status.is_fault());
        failed.filter_map(|test| Some(self.plan.project.find(&test.model)?.group().to_owned())).collect()
    }

    /// Leaves staged files where they are; no commit will ever name them.
    fn hold(&mut self, name: &str) {
        let staged = self.refreshes.get(name).is_some_and(|refresh| refresh.pending.is_some());
        for run in self.runs.iter_mut().filter(|run| run.model == name && staged) {
            run.status = ModelStatus::Held;
        }
    }

    async fn commit(&mut self, model: &Model) -> Result<()> {
        let refresh = &self.refreshes[&model.name];
        let mut pending = refresh.pending.clone().expect("the caller looked");
        for (source, version) in &mut pending.cursors {
            if let Some(committed) = self.committed.get(source) {
                *version = *committed;
            }
        }
        let operation = if refresh.kind == RefreshKind::Full { Operation::Overwrite } else { Operation::Write };
        let mut commit = Commit::new(operation);
        commit.adds = refresh.view.adds.clone();
        commit.removes = refresh.view.removes.clone();
        commit.transactions = refresh::entries(model, &pending);
        commit.info = info(model, refresh);
        let base = &refresh.view.base;
        // Strictly the next version: what was computed and tested is the table as it was at `base`.
        let version = match refresh.view.table.replace(base.version, commit).await? {
            Outcome::Committed(version) => version,
            Outcome::Lost { winner } => {
                return Err(conflict(format!("version {winner} of {} was committed by another", model.table)));
            }
        };
        self.committed.insert(model.table.clone(), version);
        let changed = refresh.kind != RefreshKind::Unchanged;
        for run in self.runs.iter_mut().filter(|run| run.model == model.name) {
            run.version = Some(version);
            run.sources.clone_from(&pending.cursors);
            if changed {
                run.status = ModelStatus::Built;
                tracing::debug!(
                    model = %run.model, refresh = run.refresh.map_or("", RefreshKind::word), reason = run.reason, version,
                    rows_read = run.rows_read, rows_written = run.rows_written, millis = run.millis, "model built"
                );
            }
        }
        Ok(())
    }

    /// Puts small files together where a refresh keeps adding them. It is no part of the build: if it fails, or another
    /// commit comes first, the next build tries again.
    async fn compact(&self) {
        for name in self.committed.keys() {
            let table = self.plan.lake.table(name);
            if let Err(error) = self.plan.lake.compact(&table, None, Compaction::AsTheyPileUp).await {
                tracing::warn!(table = %name, %error, "small files were not put together");
            }
        }
    }

    /// Brings what this attempt did into the report. What an earlier attempt built, a later one finds unchanged.
    fn hand_over(self, report: &mut BuildReport) {
        for run in self.runs {
            match report.models.iter_mut().find(|known| known.model == run.model) {
                Some(known) if known.status == ModelStatus::Built && run.status == ModelStatus::Unchanged => {}
                Some(known) => *known = run,
                None => report.models.push(run),
            }
        }
        for test in self.tests {
            match report.tests.iter_mut().find(|known| known.test == test.test && known.model == test.model) {
                Some(known) => *known = test,
                None => report.tests.push(test),
            }
        }
    }
}

/// Faults that are no model's own: the build starts over, or ends.
fn concerns_all(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Conflict | ErrorKind::StorageFull | ErrorKind::NewerLake)
}

fn missing_input(project: &Compiled, model: &Model, name: &TableName, error: Error) -> Error {
    if error.kind() != ErrorKind::NotFound {
        return error;
    }
    let remedy = match project.builder_of(name) {
        Some(parent) => format!("build {} first, or select +{}", parent.name, model.name),
        None => "ingest makes it when the first events arrive".to_owned(),
    };
    Error::new(
        ErrorKind::NotFound,
        format!("{}: the table {name}, which it reads, is not there yet: {remedy}", model.path),
    )
}

/// What the commit records about itself, for the table's history.
fn info(model: &Model, refresh: &Refresh) -> Map<String, serde_json::Value> {
    let rows_written: u64 = refresh.view.adds.iter().map(|file| file.rows()).sum();
    let refresh = json!({
        "model": model.name,
        "kind": refresh.kind,
        "reason": refresh.reason,
        "rows_read": refresh.rows_read,
        "rows_written": rows_written,
    });
    Map::from_iter([("refresh".to_owned(), refresh)])
}
