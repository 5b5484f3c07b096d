//! The registry of statements: what runs now (for `system.queries`, `/metrics` and `query kill`) and what has run.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use lakehouse::Clock;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind};

/// So many statements that ended are remembered.
const ENDED_MAX: usize = 1_000;
/// So much is remembered of a statement's text and of its error, in characters.
const TEXT_MAX: usize = 1_000;

/// Through which door a statement came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Door {
    /// Arrow Flight SQL.
    Flight,
    /// The PostgreSQL wire protocol.
    Postgres,
    /// The web console and its REST interface.
    Console,
    /// `lakebeat sql`.
    CommandLine,
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flight => "flight",
            Self::Postgres => "postgres",
            Self::Console => "console",
            Self::CommandLine => "command_line",
        })
    }
}

/// The number of a statement, unique in one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryId(pub u64);

impl fmt::Display for QueryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How a statement ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// All rows were read.
    Done,
    /// It failed on its own.
    Failed,
    /// Somebody cancelled it, or it ran out of its time.
    Cancelled,
    /// The client went, or stopped reading before the last row (a cursor that was closed, a limit in the tool).
    Abandoned,
}

impl Outcome {
    /// How a statement ended that ended with this error.
    fn of(error: &Error) -> Self {
        match error.kind() {
            Kind::Cancelled | Kind::TimedOut => Self::Cancelled,
            _ => Self::Failed,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Abandoned => "abandoned",
        })
    }
}

/// A statement that runs now.
#[derive(Debug, Clone)]
pub struct RunningQuery {
    /// Its number.
    pub id: QueryId,
    /// Where it came in.
    pub door: Door,
    /// Who sent it.
    pub user: String,
    /// Its text.
    pub sql: Arc<str>,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// Rows handed to the door so far.
    pub rows: u64,
}

/// What has run since the start of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Totals {
    /// Where it came in.
    pub door: Door,
    /// How it ended.
    pub outcome: Outcome,
    /// How many statements.
    pub statements: u64,
    /// How many rows they gave.
    pub rows: u64,
}

/// A statement that runs or ran, as `system.queries` shows it.
#[derive(Debug, Clone)]
pub(super) struct QueryRecord {
    pub(super) id: QueryId,
    pub(super) door: Door,
    pub(super) user: String,
    /// Its text, or the beginning of it.
    pub(super) sql: Arc<str>,
    pub(super) started_at: DateTime<Utc>,
    /// None while it runs, as its outcome.
    pub(super) ended_at: Option<DateTime<Utc>>,
    pub(super) outcome: Option<Outcome>,
    pub(super) rows: u64,
    /// Bytes of these rows in memory.
    pub(super) bytes: u64,
    pub(super) error: Option<String>,
}

/// All statements of one process.
#[derive(Debug)]
pub(super) struct Registry {
    clock: Arc<dyn Clock>,
    next_id: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    running: BTreeMap<QueryId, Entry>,
    /// Those that ended last, the last one at the end.
    ended: VecDeque<QueryRecord>,
    totals: BTreeMap<(Door, Outcome), (u64, u64)>,
}

#[derive(Debug)]
struct Entry {
    door: Door,
    user: String,
    sql: Arc<str>,
    started_at: DateTime<Utc>,
    /// Shared with the ticket that counts.
    given: Arc<Given>,
    cancel: CancellationToken,
}

/// What a statement has given so far.
#[derive(Debug, Default)]
struct Given {
    rows: AtomicU64,
    bytes: AtomicU64,
}

impl Entry {
    fn record(&self, id: QueryId) -> QueryRecord {
        QueryRecord {
            id,
            door: self.door,
            user: self.user.clone(),
            sql: shortened(&self.sql).into(),
            started_at: self.started_at,
            ended_at: None,
            outcome: None,
            rows: self.given.rows.load(Ordering::Relaxed),
            bytes: self.given.bytes.load(Ordering::Relaxed),
            error: None,
        }
    }
}

/// The beginning of a text that is too long to be remembered.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl Registry {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, next_id: AtomicU64::new(1), inner: Mutex::new(Inner::default()) }
    }

    /// Enters a statement; it stays until the entry is dropped.
    pub(super) fn enter(self: &Arc<Self>, door: Door, user: &str, sql: Arc<str>) -> Registration {
        let id = QueryId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let given = Arc::new(Given::default());
        let cancel = CancellationToken::new();
        let entry = Entry {
            door,
            user: user.to_owned(),
            sql,
            started_at: self.clock.now(),
            given: Arc::clone(&given),
            cancel: cancel.clone(),
        };
        self.lock().running.insert(id, entry);
        Registration { registry: Arc::clone(self), id, given, cancel, outcome: Outcome::Abandoned, error: None }
    }

    /// What runs and what ran of late, oldest first.
    pub(super) fn records(&self) -> Vec<QueryRecord> {
        let inner = self.lock();
        let mut records: Vec<_> = inner.ended.iter().cloned().collect();
        records.extend(inner.running.iter().map(|(id, entry)| entry.record(*id)));
        records.sort_by_key(|record| record.id);
        records
    }

    pub(super) fn running(&self) -> Vec<RunningQuery> {
        let inner = self.lock();
        inner
            .running
            .iter()
            .map(|(id, entry)| RunningQuery {
                id: *id,
                door: entry.door,
                user: entry.user.clone(),
                sql: Arc::clone(&entry.sql),
                started_at: entry.started_at,
                rows: entry.given.rows.load(Ordering::Relaxed),
            })
            .collect()
    }

    pub(super) fn totals(&self) -> Vec<Totals> {
        let inner = self.lock();
        inner
            .totals
            .iter()
            .map(|((door, outcome), (statements, rows))| Totals {
                door: *door,
                outcome: *outcome,
                statements: *statements,
                rows: *rows,
            })
            .collect()
    }

    pub(super) fn cancel(&self, id: QueryId) -> bool {
        match self.lock().running.get(&id) {
            Some(entry) => {
                entry.cancel.cancel();
                true
            }
            None => false,
        }
    }

    fn leave(&self, id: QueryId, outcome: Outcome, error: Option<String>) {
        let ended_at = Some(self.clock.now());
        let mut inner = self.lock();
        if let Some(entry) = inner.running.remove(&id) {
            let record = QueryRecord { ended_at, outcome: Some(outcome), error, ..entry.record(id) };
            let (statements, rows) = inner.totals.entry((entry.door, outcome)).or_default();
            *statements += 1;
            *rows += record.rows;
            inner.ended.push_back(record);
            if inner.ended.len() > ENDED_MAX {
                inner.ended.pop_front();
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // Counters and entries: each is whole by itself, whatever panicked in between.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A statement's place in the registry. Dropping it takes the statement out, with the outcome last told.
pub(super) struct Registration {
    registry: Arc<Registry>,
    id: QueryId,
    given: Arc<Given>,
    cancel: CancellationToken,
    outcome: Outcome,
    error: Option<String>,
}

impl Registration {
    pub(super) fn id(&self) -> QueryId {
        self.id
    }

    /// Ends the statement when cancelled.
    pub(super) fn token(&self) -> &CancellationToken {
        &self.cancel
    }

    pub(super) fn count(&self, rows: u64, bytes: u64) {
        self.given.rows.fetch_add(rows, Ordering::Relaxed);
        self.given.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// All rows were read.
    pub(super) fn done(&mut self) {
        self.outcome = Outcome::Done;
    }

    pub(super) fn failed(&mut self, error: &Error) {
        self.outcome = Outcome::of(error);
        self.error = Some(shortened(error.message()));
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.leave(self.id, self.outcome, self.error.take());
    }
}
