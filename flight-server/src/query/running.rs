//! The registry of statements: what runs now (for `system.queries`, `/metrics` and `query kill`) and what has run.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use lakehouse::Clock;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind};

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
    pub(super) fn of(error: &Error) -> Self {
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

/// All statements of one process.
pub(super) struct Registry {
    clock: Arc<dyn Clock>,
    next_id: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    running: BTreeMap<QueryId, Entry>,
    totals: BTreeMap<(Door, Outcome), (u64, u64)>,
}

struct Entry {
    door: Door,
    user: String,
    sql: Arc<str>,
    started_at: DateTime<Utc>,
    /// Shared with the ticket that counts.
    rows: Arc<AtomicU64>,
    cancel: CancellationToken,
}

impl Registry {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, next_id: AtomicU64::new(1), inner: Mutex::new(Inner::default()) }
    }

    /// Enters a statement; it stays until the entry is dropped.
    pub(super) fn enter(self: &Arc<Self>, door: Door, user: &str, sql: Arc<str>) -> Registration {
        let id = QueryId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let rows = Arc::new(AtomicU64::new(0));
        let cancel = CancellationToken::new();
        let entry = Entry {
            door,
            user: user.to_owned(),
            sql,
            started_at: self.clock.now(),
            rows: Arc::clone(&rows),
            cancel: cancel.clone(),
        };
        self.lock().running.insert(id, entry);
        Registration { registry: Arc::clone(self), id, rows, cancel, outcome: Outcome::Abandoned }
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
                rows: entry.rows.load(Ordering::Relaxed),
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

    fn leave(&self, id: QueryId, outcome: Outcome) {
        let mut inner = self.lock();
        if let Some(entry) = inner.running.remove(&id) {
            let (statements, rows) = inner.totals.entry((entry.door, outcome)).or_default();
            *statements += 1;
            *rows += entry.rows.load(Ordering::Relaxed);
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
    rows: Arc<AtomicU64>,
    cancel: CancellationToken,
    outcome: Outcome,
}

impl Registration {
    pub(super) fn id(&self) -> QueryId {
        self.id
    }

    /// Ends the statement when cancelled.
    pub(super) fn token(&self) -> &CancellationToken {
        &self.cancel
    }

    pub(super) fn count(&self, rows: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
    }

    pub(super) fn ended(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.leave(self.id, self.outcome);
    }
}
