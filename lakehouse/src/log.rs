//! The Delta log, entry by entry: what a commit of ours is, how it is written down, and how any commit is read back.
//!
//! Source: the Delta transaction protocol, <https://github.com/delta-io/delta/blob/master/PROTOCOL.md>, §Actions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use deltalake_core::kernel::{Action, CommitInfo, Metadata, Protocol, Transaction};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::file::{DataChange, DataFile, StagedFile};
use crate::name::TableName;

/// Under this key of `commitInfo` stands what Lakebeat records about a commit.
const INFO_KEY: &str = "lakebeat";
/// Under this key of our part stands the commit's unique id, by which a lost answer is told from a lost race.
const COMMIT_ID_KEY: &str = "commit_id";

/// Under this key a restore notes the version that it put back.
pub(crate) const RESTORED_KEY: &str = "restored";

/// What a commit does, in the words that other engines use in a table's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Makes the table.
    CreateTable,
    /// Adds rows, and may take others out.
    Write,
    /// Puts new contents in the place of the old ones.
    Overwrite,
    /// Puts the same rows into fewer files.
    Optimize,
    /// Adds columns, in which the rows of old are NULL.
    AddColumns,
    /// Changes what is noted about columns.
    ChangeColumn,
    /// Takes rows out.
    Delete,
    /// Puts back what the table was at an older version.
    Restore,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::CreateTable => "CREATE TABLE",
            Self::Write | Self::Overwrite => "WRITE",
            Self::Optimize => "OPTIMIZE",
            Self::AddColumns => "ADD COLUMNS",
            Self::ChangeColumn => "CHANGE COLUMN",
            Self::Delete => "DELETE",
            Self::Restore => "RESTORE",
        }
    }

    fn parameters(self) -> Map<String, Value> {
        let mode = match self {
            Self::Write => "Append",
            Self::Overwrite => "Overwrite",
            Self::CreateTable
            | Self::Optimize
            | Self::AddColumns
            | Self::ChangeColumn
            | Self::Delete
            | Self::Restore => return Map::new(),
        };
        Map::from_iter([("mode".to_owned(), Value::from(mode))])
    }

    pub(crate) fn data_change(self) -> DataChange {
        match self {
            Self::Optimize => DataChange::Rearranges,
            _ => DataChange::Changes,
        }
    }
}

/// What one atomic commit puts into a table.
#[derive(Debug, Clone)]
pub struct Commit {
    /// What it does.
    pub operation: Operation,
    /// Files that it brings in.
    pub adds: Vec<StagedFile>,
    /// Files that it takes out.
    pub removes: Vec<Arc<DataFile>>,
    /// The ledger: per application id the number that holds after this commit.
    pub transactions: BTreeMap<String, i64>,
    /// Entries of the ledger that the caller goes on from later, although this commit does not move them. Who commits at a
    /// version vouches for all of it, so another's commit that moves one of these makes this one void too.
    pub guarded: BTreeSet<String>,
    /// What else is worth recording; it lands in `commitInfo` under `lakebeat`.
    pub info: Map<String, Value>,
    /// The columns that the table has from here on, where they change.
    pub columns: Option<NewColumns>,
}

/// Columns that go with a commit. Only this crate makes such commits.
#[derive(Debug, Clone)]
pub struct NewColumns(pub(crate) Metadata);

impl Commit {
    /// An empty commit of that kind.
    pub fn new(operation: Operation) -> Self {
        Self {
            operation,
            adds: Vec::new(),
            removes: Vec::new(),
            transactions: BTreeMap::new(),
            guarded: BTreeSet::new(),
            info: Map::new(),
            columns: None,
        }
    }
}

/// A commit read back from the log.
#[derive(Debug, Clone)]
pub struct CommitEntry {
    /// The version that the commit made.
    pub version: u64,
    /// When its writer says that it was written.
    pub timestamp: Option<DateTime<Utc>>,
    /// The operation's name, as its writer gives it.
    pub operation: String,
    /// The ledger entries that it moved.
    pub transactions: BTreeMap<String, i64>,
    /// Files that came in.
    pub adds: Vec<LoggedFile>,
    /// Files that went out, by path.
    pub removes: Vec<LoggedRemove>,
    /// What Lakebeat recorded under `lakebeat`; empty for commits of other writers.
    pub info: Map<String, Value>,
    /// A new schema or other table settings, if the commit changed them.
    pub(crate) metadata: Option<Metadata>,
    /// New protocol versions, if the commit changed them.
    pub(crate) protocol: Option<Protocol>,
    /// The rows that came in, where the archive has the entry: it does not tell the files.
    pub(crate) archived_rows: Option<u64>,
}

/// A file that a commit brought in.
#[derive(Debug, Clone)]
pub struct LoggedFile {
    /// The file.
    pub file: Arc<DataFile>,
    /// Whether its rows are new, or only moved here from other files.
    pub data_change: bool,
}

/// A file that a commit took out.
#[derive(Debug, Clone)]
pub struct LoggedRemove {
    /// The path, relative to the table's folder.
    pub path: String,
    /// Whether its rows are gone, or only moved to other files.
    pub data_change: bool,
}

impl CommitEntry {
    /// The number of rows in the files that came in.
    pub fn rows_added(&self) -> u64 {
        self.archived_rows.unwrap_or_else(|| self.adds.iter().filter_map(|add| add.file.rows).sum())
    }

    /// The version that the table was put back to by this commit, if it was.
    pub fn restored(&self) -> Option<u64> {
        self.info.get(RESTORED_KEY).and_then(Value::as_u64)
    }

    /// Whether this very commit has that id.
    pub(crate) fn has_id(&self, id: Uuid) -> bool {
        self.info.get(COMMIT_ID_KEY).and_then(Value::as_str).is_some_and(|text| text == id.to_string())
    }
}

/// Writes a commit down, one action a line.
pub(crate) fn encode(commit: &Commit, id: Uuid, read_version: Option<u64>, now: DateTime<Utc>) -> Result<Bytes> {
    let change = commit.operation.data_change();
    let now_millis = now.timestamp_millis();
    let mut actions = vec![Action::CommitInfo(commit_info(commit, id, read_version, now_millis))];
    actions.extend(commit.columns.clone().map(|columns| Action::Metadata(columns.0)));
    actions.extend(commit.transactions.iter().map(|(app_id, version)| {
        Action::Txn(Transaction { app_id: app_id.clone(), version: *version, last_updated: Some(now_millis) })
    }));
    actions.extend(commit.removes.iter().map(|file| Action::Remove(file.to_remove(change, now_millis))));
    actions.extend(commit.adds.iter().map(|staged| Action::Add(staged.data_file().to_add(change))));
    encode_actions(&actions)
}

/// Writes down the commit that makes a table.
pub(crate) fn encode_creation(metadata: Metadata, protocol: Protocol, id: Uuid, now: DateTime<Utc>) -> Result<Bytes> {
    let commit = Commit::new(Operation::CreateTable);
    encode_actions(&[
        Action::CommitInfo(commit_info(&commit, id, None, now.timestamp_millis())),
        Action::Protocol(protocol),
        Action::Metadata(metadata),
    ])
}

fn encode_actions(actions: &[Action]) -> Result<Bytes> {
    let mut lines = Vec::new();
    for action in actions {
        serde_json::to_writer(&mut lines, action)
            .map_err(|source| Error::with_source(ErrorKind::Bug, "cannot write down a commit", source))?;
        lines.push(b'\n');
    }
    Ok(lines.into())
}

fn commit_info(commit: &Commit, id: Uuid, read_version: Option<u64>, now_millis: i64) -> CommitInfo {
    let mut ours = commit.info.clone();
    ours.insert(COMMIT_ID_KEY.to_owned(), Value::from(id.to_string()));
    let only_adds = commit.operation == Operation::Write && commit.removes.is_empty();
    CommitInfo {
        timestamp: Some(now_millis),
        operation: Some(commit.operation.name().to_owned()),
        operation_parameters: Some(commit.operation.parameters().into_iter().collect()),
        read_version,
        is_blind_append: Some(only_adds),
        engine_info: Some(concat!("lakebeat:", env!("CARGO_PKG_VERSION")).to_owned()),
        info: [(INFO_KEY.to_owned(), Value::Object(ours))].into(),
        ..CommitInfo::default()
    }
}

/// Reads the entry of one version.
pub(crate) fn decode(table: &TableName, version: u64, bytes: &Bytes) -> Result<CommitEntry> {
    let actions = deltalake_core::logstore::get_actions(version, bytes)
        .map_err(|source| Error::delta(format!("log entry {version} of {table} is damaged"), source))?;
    let mut entry = CommitEntry::new(version);
    for action in actions {
        entry.take(action, table)?;
    }
    Ok(entry)
}

impl CommitEntry {
    /// One that says nothing yet.
    pub(crate) fn new(version: u64) -> Self {
        Self {
            version,
            timestamp: None,
            operation: String::new(),
            transactions: BTreeMap::new(),
            adds: Vec::new(),
            removes: Vec::new(),
            info: Map::new(),
            metadata: None,
            protocol: None,
            archived_rows: None,
        }
    }

    fn take(&mut self, action: Action, table: &TableName) -> Result<()> {
        match action {
            Action::CommitInfo(mut info) => {
                self.timestamp = info.timestamp.and_then(DateTime::from_timestamp_millis);
                self.operation = info.operation.unwrap_or_default();
                if let Some(Value::Object(ours)) = info.info.remove(INFO_KEY) {
                    self.info = ours;
                }
            }
            Action::Txn(transaction) => {
                self.transactions.insert(transaction.app_id, transaction.version);
            }
            Action::Add(add) if add.deletion_vector.is_some() => {
                return Err(unsupported(table, "deletion vectors"));
            }
            Action::Add(add) => {
                let data_change = add.data_change;
                self.adds.push(LoggedFile { file: Arc::new(DataFile::from_add(add)), data_change });
            }
            Action::Remove(remove) => {
                self.removes.push(LoggedRemove { path: remove.path, data_change: remove.data_change });
            }
            Action::Metadata(metadata) => self.metadata = Some(metadata),
            Action::Protocol(protocol) => self.protocol = Some(protocol),
            Action::Cdc(_) | Action::DomainMetadata(_) => {}
        }
        Ok(())
    }
}

/// The error for a table that another engine wrote with features that we do not read.
pub(crate) fn unsupported(table: &TableName, feature: &str) -> Error {
    Error::new(
        ErrorKind::BadData,
        format!(
            "table {table} uses {feature}, which Lakebeat does not read: rewrite it without, from the engine that wrote it"
        ),
    )
}
