//! Building whenever there is something new, as long as nobody says stop.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use lakehouse::{ErrorKind, Lake, Request, TableName};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::asked::{self, Asked};
use crate::compile::Compiled;
use crate::engine::{Ended, Goal, Plan};
use crate::error::Result;
use crate::refresh::RefreshMode;
use crate::report::BuildReport;
use crate::run_log::{RunLog, Trigger};

/// The longest pause after a build that failed.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(30);

/// How often is looked, and how often built.
#[derive(Debug, Clone)]
pub struct Cadence {
    /// From the start of one build to the start of the next at least this long. As often is looked for a build that was
    /// asked for.
    pub interval: Duration,
    /// So long is waited between two looks at the sources while they move. A look is one small request for each of them.
    pub poll: Duration,
    /// So long at most while they do not. What this process commits is seen at once all the same.
    pub idle_poll: Duration,
}

impl Default for Cadence {
    fn default() -> Self {
        Self { interval: Duration::from_secs(1), poll: Duration::from_millis(100), idle_poll: Duration::from_secs(2) }
    }
}

impl Cadence {
    /// The pause after a look that found nothing, when the last news are so old: a tenth of that, so that a stream that pauses is
    /// soon seen to go on, and one that has ended is hardly looked at.
    fn wait(&self, quiet: Duration) -> Duration {
        (quiet / 10).clamp(self.poll, self.idle_poll.max(self.poll))
    }
}

/// How a watch stands.
#[derive(Debug, Clone, Default, Serialize)]
pub struct WatchProgress {
    /// Builds so far that changed something.
    pub builds: u64,
    /// Builds that failed since the last one that did not.
    pub failures: u32,
    /// When the last build ended.
    pub built_at: Option<DateTime<Utc>>,
    /// What went wrong in the last build.
    pub error: Option<String>,
    /// The newest publication that the watch made.
    pub publication: Option<u64>,
    /// The account of the last build that changed something, or failed.
    pub report: Option<Arc<BuildReport>>,
}

/// Versions of the sources, by name; one that is not there yet is missing.
type Heads = BTreeMap<TableName, (String, u64)>;

pub(crate) struct Watch<'a> {
    pub(crate) lake: &'a Lake,
    pub(crate) project: &'a Compiled,
    pub(crate) selected: BTreeSet<String>,
    /// Only the first build is full if a full refresh was asked for.
    pub(crate) mode: RefreshMode,
    pub(crate) cadence: &'a Cadence,
    pub(crate) progress: watch::Sender<WatchProgress>,
}

impl Watch<'_> {
    pub(crate) async fn run(mut self, token: &CancellationToken) -> Result<()> {
        let mut log = RunLog::new(self.lake);
        let ended = self.build_on_news(&mut log, token).await;
        log.write(token).await;
        ended
    }

    async fn build_on_news(&mut self, log: &mut RunLog, token: &CancellationToken) -> Result<()> {
        let mut built_from = Heads::new();
        let mut pause = Duration::ZERO;
        let mut trigger = Trigger::First;
        let mut asked = Asked::new(self.lake, self.cadence.interval);
        let mut commits = self.lake.commits();
        let mut last_news = Instant::now();
        loop {
            let started = Instant::now();
            // What is committed from here on is either seen by this look, or wakes the next one.
            commits.mark_unchanged();
            let request = asked.next().await;
            let ended = match self.heads().await {
                Ok(heads) if heads == built_from && request.is_none() => None,
                Ok(heads) => {
                    let ended = self.build(request.as_ref(), trigger, log, token).await;
                    built_from = heads;
                    Some(ended)
                }
                Err(error) => Some(Err(error)),
            };
            let is_idle = ended.is_none();
            if !is_idle {
                last_news = started;
            }
            if let (Some(request), Some(ended)) = (&request, &ended) {
                asked.answer(request, ended).await;
            }
            let wait = match ended {
                None => self.cadence.wait(last_news.elapsed()),
                Some(Ok(Ended::Cancelled)) => return Ok(()),
                Some(Ok(Ended::Done(report))) if !report.failed() => {
                    (pause, trigger) = (Duration::ZERO, Trigger::NewData);
                    self.note(report);
                    self.cadence.interval.saturating_sub(started.elapsed())
                }
                Some(Err(error)) if ends_the_watch(error.kind()) => return Err(error),
                Some(fault) => {
                    // Whatever is new or not: a build that failed is tried again.
                    built_from.clear();
                    trigger = Trigger::Retry;
                    pause = (pause * 2).clamp(self.cadence.interval, RETRY_PAUSE_MAX);
                    self.note_fault(fault, pause);
                    pause
                }
            };
            let next = Instant::now() + wait;
            log.write_if_due(token).await;
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                Ok(()) = commits.changed(), if is_idle => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    async fn build(
        &mut self,
        request: Option<&Request>,
        trigger: Trigger,
        log: &mut RunLog,
        token: &CancellationToken,
    ) -> Result<Ended> {
        let asked_for = request.map_or(RefreshMode::Automatic, asked::mode_of);
        let plan = Plan {
            lake: self.lake,
            project: self.project,
            selected: &self.selected,
            mode: if asked_for == RefreshMode::Full { asked_for } else { self.mode },
            goal: Goal::Publish,
        };
        let ended = plan.run(token).await;
        if let Ok(Ended::Done(report)) = &ended {
            log.note(if request.is_some() { Trigger::Request } else { trigger }, self.project, report);
            if !report.failed() {
                self.mode = RefreshMode::Automatic;
            }
        }
        ended
    }

    /// The newest versions of all that the selected models read and the watch does not build itself.
    async fn heads(&self) -> Result<Heads> {
        let models = self.project.models.iter().filter(|model| self.selected.contains(&model.name));
        let built =
            |name: &TableName| self.project.builder_of(name).is_some_and(|model| self.selected.contains(&model.name));
        let sources: BTreeSet<&TableName> =
            models.flat_map(|model| &model.inputs).filter(|name| !built(name)).collect();
        let mut heads = Heads::new();
        for name in sources {
            match self.lake.table(name).head().await {
                Ok(head) => {
                    heads.insert(name.clone(), (head.table_id.clone(), head.version));
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(heads)
    }

    fn note(&self, report: BuildReport) {
        let now = self.lake.clock().now();
        self.progress.send_modify(|progress| {
            progress.failures = 0;
            progress.error = None;
            progress.built_at = Some(now);
            if report.changed() {
                progress.builds += 1;
                progress.publication = report.publications.last().map(|last| last.id).or(progress.publication);
                progress.report = Some(Arc::new(report));
            }
        });
    }

    fn note_fault(&self, fault: Result<Ended>, pause: Duration) {
        let now = self.lake.clock().now();
        let (error, report) = match fault {
            Ok(Ended::Done(report)) => (faults(&report), Some(Arc::new(report))),
            Ok(Ended::Cancelled) => return,
            Err(error) => (error.to_string(), None),
        };
        tracing::warn!(error, retry_in = ?pause, "build failed");
        self.progress.send_modify(|progress| {
            progress.failures += 1;
            progress.built_at = Some(now);
            progress.error = Some(error);
            progress.report = report.or(progress.report.take());
        });
    }
}

/// Waiting does not help here; a person has to.
fn ends_the_watch(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::StorageFull | ErrorKind::NewerLake)
}

/// What went wrong in a build.
pub(crate) fn faults(report: &BuildReport) -> String {
    let models = report.models.iter().filter(|run| run.status.is_fault()).map(ToString::to_string);
    let tests = report.tests.iter().filter(|run| run.status.is_fault()).map(ToString::to_string);
    models.chain(tests).collect::<Vec<_>>().join("; ")
}
