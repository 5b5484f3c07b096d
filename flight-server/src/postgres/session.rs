//! The state of one PostgreSQL session besides its data: settings, the transaction, savepoints; and the statements that
//! change them.
//!
//! A transaction here is a moment: everything in it reads one publication. There is nothing to commit, but settings made
//! in a transaction that is rolled back are taken back, as in PostgreSQL.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use pgwire::messages::response::TransactionStatus;

use super::cancel::CancelSignal;
use super::statement::{Command, Scope};
use crate::error::{Error, Kind, Result};
use crate::query::{Connection, Settings, display_name};

/// The settings that a client is told of when they change, without asking (PostgreSQL 16, §55.2.7).
pub(super) const REPORTED: [&str; 11] = [
    "application_name",
    "client_encoding",
    "DateStyle",
    "default_transaction_read_only",
    "in_hot_standby",
    "integer_datetimes",
    "IntervalStyle",
    "is_superuser",
    "server_encoding",
    "standard_conforming_strings",
    "TimeZone",
];

/// Names of prepared statements that one connection may hold at once.
const STATEMENTS_MAX: usize = 10_000;
/// Savepoints in one transaction.
const SAVEPOINTS_MAX: usize = 10_000;

pub(super) struct Session {
    pub(super) connection: Connection,
    pub(super) cancel: Arc<CancelSignal>,
    /// What the client asked for in its startup message: what a reset goes back to.
    startup: Settings,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// The settings as they were when the transaction began: what a rollback goes back to.
    before: Option<Settings>,
    /// What `SET LOCAL` has changed: the end of the transaction takes it back.
    local: BTreeSet<String>,
    savepoints: Vec<String>,
    /// Names of the prepared statements, for `DEALLOCATE ALL`.
    statements: BTreeSet<String>,
    /// Counts synchronisations: a statement that is executed in the same group of messages in which it was parsed needs
    /// no second look for a newer publication.
    group: u64,
}

/// What a session statement answers.
pub(super) struct Reply {
    pub(super) tag: String,
    /// `SHOW`: the rows; [`columns`] names their columns.
    pub(super) rows: Option<Vec<Vec<String>>>,
    /// The state of the transaction afterwards; `None`: as before.
    pub(super) status: Option<TransactionStatus>,
    /// A warning, with its SQLSTATE.
    pub(super) warning: Option<(&'static str, String)>,
    /// Which portals and prepared statements go.
    pub(super) closes: Closes,
}

/// What a session statement closes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Closes {
    Nothing,
    Portals,
    Statements(Vec<String>),
}

impl Reply {
    fn done(tag: impl Into<String>) -> Self {
        Self { tag: tag.into(), rows: None, status: None, warning: None, closes: Closes::Nothing }
    }

    fn with_status(mut self, status: TransactionStatus) -> Self {
        self.status = Some(status);
        self
    }

    fn with_warning(mut self, state: &'static str, message: &str) -> Self {
        self.warning = Some((state, message.to_owned()));
        self
    }

    fn closing(mut self, closes: Closes) -> Self {
        self.closes = closes;
        self
    }
}

/// The names of the columns that a session statement answers with; empty for most.
pub(super) fn columns(command: &Command) -> Vec<String> {
    match command {
        Command::Show(Some(name)) => vec![display_name(name)],
        Command::Show(None) => vec!["name".to_owned(), "setting".to_owned()],
        _ => Vec::new(),
    }
}

impl Session {
    pub(super) fn new(connection: Connection, cancel: Arc<CancelSignal>) -> Self {
        Self { startup: connection.settings(), connection, cancel, inner: Mutex::default() }
    }

    /// Refuses what a failed transaction does not take.
    pub(super) fn check(&self, command: &Command, status: TransactionStatus) -> Result<()> {
        let ends = matches!(command, Command::Commit | Command::Rollback | Command::RollbackTo(_));
        if status == TransactionStatus::Error && !ends {
            return Err(Error::new(
                Kind::FailedTransaction,
                "current transaction is aborted, commands ignored until end of transaction block; send rollback",
            ));
        }
        Ok(())
    }

    /// The same for a query.
    pub(super) fn check_query(&self, status: TransactionStatus) -> Result<()> {
        self.check(&Command::Query { sql: String::new(), tag: "SELECT" }, status)
    }

    /// Runs a session statement.
    pub(super) async fn run(&self, command: &Command, status: TransactionStatus) -> Result<Reply> {
        self.check(command, status)?;
        match command {
            Command::Query { .. } => {
                Err(Error::new(Kind::Bug, "a query is not a session statement; please report this"))
            }
            Command::Set { name, value, scope } => self.set(name, value, *scope, status).await,
            Command::Reset(name) => self.reset(name.as_deref()).await,
            Command::Show(name) => self.show(name.as_deref()),
            Command::Begin { tag } => self.begin(tag, status).await,
            Command::Commit => self.end(status, End::Commit).await,
            Command::Rollback => self.end(status, End::Rollback).await,
            Command::Savepoint(name) => self.savepoint(name, status),
            Command::Release(name) => self.release(name, status),
            Command::RollbackTo(name) => self.rollback_to(name, status),
            Command::DiscardAll => self.discard_all(status).await,
            Command::Deallocate(name) => self.deallocate(name.as_deref()),
            Command::Nothing { tag } => Ok(Reply::done(*tag)),
            Command::Unsupported(message) => Err(Error::new(Kind::Unsupported, *message)),
        }
    }

    async fn set(&self, name: &str, value: &str, scope: Scope, status: TransactionStatus) -> Result<Reply> {
        if scope == Scope::Local && status == TransactionStatus::Idle {
            let warning = "set local can only be used in transaction blocks; it changed nothing";
            return Ok(Reply::done("SET").with_warning("25P01", warning));
        }
        if value.trim().eq_ignore_ascii_case("default") {
            self.reset(Some(name)).await?;
        } else {
            self.connection.set(name, value).await?;
        }
        let mut inner = self.lock();
        let key = name.to_lowercase();
        match scope {
            Scope::Local => inner.local.insert(key),
            Scope::Session => inner.local.remove(&key),
        };
        Ok(Reply::done("SET"))
    }

    async fn reset(&self, name: Option<&str>) -> Result<Reply> {
        let mut settings = self.connection.settings();
        match name {
            Some(name) => settings.restore(name, &self.startup)?,
            None => settings = self.startup.clone(),
        }
        self.connection.replace_settings(settings).await?;
        Ok(Reply::done("RESET"))
    }

    fn show(&self, name: Option<&str>) -> Result<Reply> {
        let settings = self.connection.settings();
        let rows = match name {
            Some(name) => vec![vec![settings.show(name)?]],
            None => settings.all().into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect(),
        };
        Ok(Reply { rows: Some(rows), ..Reply::done("SHOW") })
    }

    async fn begin(&self, tag: &str, status: TransactionStatus) -> Result<Reply> {
        if status != TransactionStatus::Idle {
            return Ok(Reply::done(tag).with_warning("25001", "there is already a transaction in progress"));
        }
        self.connection.pin_newest().await?;
        let mut inner = self.lock();
        inner.before = Some(self.connection.settings());
        inner.local.clear();
        inner.savepoints.clear();
        Ok(Reply::done(tag).with_status(TransactionStatus::Transaction))
    }

    /// `COMMIT` of a failed transaction rolls it back, and says so in its tag.
    async fn end(&self, status: TransactionStatus, end: End) -> Result<Reply> {
        let tag = match (end, status) {
            (End::Commit, TransactionStatus::Idle | TransactionStatus::Transaction) => "COMMIT",
            _ => "ROLLBACK",
        };
        if status == TransactionStatus::Idle {
            return Ok(Reply::done(tag).with_warning("25P01", "there is no transaction in progress"));
        }
        let (before, local) = {
            let mut inner = self.lock();
            inner.savepoints.clear();
            (inner.before.take(), std::mem::take(&mut inner.local))
        };
        self.connection.unpin();
        let mut reply = Reply::done(tag).with_status(TransactionStatus::Idle).closing(Closes::Portals);
        if let Some(before) = before {
            let settings = if tag == "COMMIT" { self.without_local(&before, &local)? } else { before };
            if let Err(error) = self.connection.replace_settings(settings.clone()).await {
                // The publication that was set before is not kept any more; all else must not stay changed for that.
                let mut settings = settings;
                settings.reset("lakebeat.publication")?;
                self.connection.replace_settings(settings).await?;
                reply = reply.with_warning("01000", &format!("{error}; the newest publication is read from now on"));
            }
        }
        Ok(reply)
    }

    /// The settings that hold now, but for those of `SET LOCAL`, which are as they were before.
    fn without_local(&self, before: &Settings, local: &BTreeSet<String>) -> Result<Settings> {
        let mut settings = self.connection.settings();
        for name in local {
            settings.restore(name, before)?;
        }
        Ok(settings)
    }

    fn savepoint(&self, name: &str, status: TransactionStatus) -> Result<Reply> {
        needs_transaction("savepoint", status)?;
        let mut inner = self.lock();
        if inner.savepoints.len() >= SAVEPOINTS_MAX {
            return Err(Error::new(
                Kind::OutOfResources,
                format!("a transaction has at most {SAVEPOINTS_MAX} savepoints"),
            ));
        }
        inner.savepoints.push(name.to_owned());
        Ok(Reply::done("SAVEPOINT"))
    }

    fn release(&self, name: &str, status: TransactionStatus) -> Result<Reply> {
        needs_transaction("release savepoint", status)?;
        let mut inner = self.lock();
        let at = position(&inner.savepoints, name)?;
        inner.savepoints.truncate(at);
        Ok(Reply::done("RELEASE"))
    }

    fn rollback_to(&self, name: &str, status: TransactionStatus) -> Result<Reply> {
        needs_transaction("rollback to savepoint", status)?;
        let mut inner = self.lock();
        let at = position(&inner.savepoints, name)?;
        inner.savepoints.truncate(at + 1);
        Ok(Reply::done("ROLLBACK").with_status(TransactionStatus::Transaction))
    }

    async fn discard_all(&self, status: TransactionStatus) -> Result<Reply> {
        if status != TransactionStatus::Idle {
            return Err(Error::new(Kind::ActiveTransaction, "discard all cannot run inside a transaction block"));
        }
        self.reset(None).await?;
        let statements = std::mem::take(&mut self.lock().statements);
        Ok(Reply::done("DISCARD ALL").closing(Closes::Statements(statements.into_iter().collect())))
    }

    fn deallocate(&self, name: Option<&str>) -> Result<Reply> {
        let mut inner = self.lock();
        match name {
            None => {
                let statements = std::mem::take(&mut inner.statements);
                Ok(Reply::done("DEALLOCATE ALL").closing(Closes::Statements(statements.into_iter().collect())))
            }
            Some(name) if inner.statements.remove(name) => {
                Ok(Reply::done("DEALLOCATE").closing(Closes::Statements(vec![name.to_owned()])))
            }
            Some(name) => {
                Err(Error::new(Kind::UndefinedStatement, format!("prepared statement \"{name}\" does not exist")))
            }
        }
    }

    /// Takes note of a prepared statement's name.
    ///
    /// # Errors
    /// `DuplicateStatement` if it is taken, `OutOfResources` if there are too many.
    pub(super) fn add_statement(&self, name: &str) -> Result<()> {
        let mut inner = self.lock();
        if inner.statements.contains(name) {
            return Err(Error::new(Kind::DuplicateStatement, format!("prepared statement \"{name}\" already exists")));
        }
        if inner.statements.len() >= STATEMENTS_MAX {
            return Err(Error::new(
                Kind::OutOfResources,
                format!("a connection holds at most {STATEMENTS_MAX} prepared statements; deallocate some"),
            ));
        }
        inner.statements.insert(name.to_owned());
        Ok(())
    }

    /// Forgets a prepared statement's name.
    pub(super) fn remove_statement(&self, name: &str) {
        self.lock().statements.remove(name);
    }

    /// The group of messages that is being read.
    pub(super) fn group(&self) -> u64 {
        self.lock().group
    }

    /// A group of messages ends.
    pub(super) fn next_group(&self) {
        self.lock().group += 1;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy)]
enum End {
    Commit,
    Rollback,
}

fn needs_transaction(what: &str, status: TransactionStatus) -> Result<()> {
    if status == TransactionStatus::Idle {
        return Err(Error::new(Kind::NoTransaction, format!("{what} can only be used in transaction blocks")));
    }
    Ok(())
}

/// The newest savepoint of a name.
fn position(savepoints: &[String], name: &str) -> Result<usize> {
    savepoints
        .iter()
        .rposition(|savepoint| savepoint == name)
        .ok_or_else(|| Error::new(Kind::UndefinedSavepoint, format!("savepoint \"{name}\" does not exist")))
}
