//! One version of one table: its columns and its files, fixed for good. Everything that reads, reads one of these.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use buoyant_kernel::Engine;
use deltalake_core::DeltaTableError;
use deltalake_core::kernel::{Metadata, Snapshot};
use deltalake_core::logstore::LogStore;
use futures::TryStreamExt as _;

use crate::error::{Error, ErrorKind, Result};
use crate::evolve::{self, Notes};
use crate::file::DataFile;
use crate::log::{CommitEntry, unsupported};
use crate::name::TableName;
use crate::readers::{Readers, Reading};
use crate::schema;
use crate::table::{Ledger, Table};

/// A table as it was after one commit.
#[derive(Debug, Clone)]
pub struct TableVersion {
    /// The table's name.
    pub name: TableName,
    /// The id that the table got when it was made; another table of the same name has another.
    pub table_id: String,
    /// The commit's number.
    pub version: u64,
    /// The columns, partition columns included.
    pub schema: SchemaRef,
    /// The columns by whose values the files are split.
    pub partition_columns: Vec<String>,
    /// The table's properties.
    pub properties: BTreeMap<String, String>,
    /// The live files, in the order of their paths.
    pub files: Arc<[Arc<DataFile>]>,
    /// What is noted about columns: by column, then by key.
    pub notes: Arc<BTreeMap<String, BTreeMap<String, String>>>,
    /// Where it is noted who reads it.
    pub readers: Arc<Readers>,
}

impl TableVersion {
    /// The number of rows, if every file says how many it has.
    pub fn rows(&self) -> Option<u64> {
        self.files.iter().map(|file| file.rows).sum()
    }

    /// Whether it has a column of that name.
    pub fn has_column(&self, name: &str) -> bool {
        self.schema.field_with_name(name).is_ok()
    }

    /// What is noted about a column under that key, see [`crate::Table::add_columns`].
    pub fn note(&self, column: &str, key: &str) -> Option<&str> {
        self.notes.get(column)?.get(key).map(String::as_str)
    }

    /// Keeps this version from being cleaned up for as long as the caller goes on from it.
    pub fn hold(&self) -> Reading {
        self.readers.begin(vec![(self.name.clone(), self.version)])
    }

    /// The size of the live files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// The newest version that we know of a table, moved on by each further log entry: nothing is listed and nothing replayed.
#[derive(Debug)]
pub(crate) struct Head {
    name: TableName,
    readers: Arc<Readers>,
    version: u64,
    metadata: Metadata,
    schema: SchemaRef,
    notes: Arc<Notes>,
    /// The live files by path.
    files: BTreeMap<String, Arc<DataFile>>,
    /// Ledger entries that moved since this state was first loaded.
    transactions: BTreeMap<String, i64>,
    /// The version at which it was first loaded; older ledger entries are read from the log up to there.
    pub(crate) loaded_version: u64,
}

impl Head {
    /// Loads the newest version, or a given one, through the Delta kernel: checkpoint first, then the entries after it.
    pub(crate) async fn load(
        name: &TableName,
        log: &dyn LogStore,
        readers: &Arc<Readers>,
        version: Option<u64>,
    ) -> Result<Self> {
        if !is_there(name, log).await? {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no table {name} in this lake")));
        }
        let snapshot = match Snapshot::try_new(log, version).await {
            // It is there, as was just seen. Taken for none, all that it says would be forgotten.
            Err(DeltaTableError::NotATable(_)) if version.is_none() => {
                let message =
                    format!("the store does not list the log of table {name} yet, though it is there: try again");
                return Err(Error::new(ErrorKind::Unavailable, message));
            }
            loaded => loaded.map_err(|source| load_error(name, version, source))?,
        };
        schema::check_readable(name, snapshot.protocol(), snapshot.metadata())?;
        let mut views = snapshot.file_views(log, None);
        let mut files = BTreeMap::new();
        while let Some(view) =
            views.try_next().await.map_err(|source| Error::delta(format!("cannot read the log of {name}"), source))?
        {
            if view.deletion_vector_descriptor().is_some() {
                return Err(unsupported(name, "deletion vectors"));
            }
            let file = DataFile::from_view(&view);
            files.insert(file.path.clone(), Arc::new(file));
        }
        drop(views);
        Ok(Self {
            name: name.clone(),
            readers: readers.clone(),
            version: snapshot.version(),
            schema: schema::arrow_schema(name, snapshot.metadata())?,
            notes: Arc::new(evolve::notes(name, snapshot.metadata())?),
            metadata: snapshot.metadata().clone(),
            files,
            transactions: BTreeMap::new(),
            loaded_version: snapshot.version(),
        })
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Moves on by the entry right after this version. After an error it is what it was.
    pub(crate) fn advance(&mut self, entry: CommitEntry) -> Result<()> {
        debug_assert_eq!(entry.version, self.version + 1);
        if let Some(protocol) = &entry.protocol {
            schema::check_readable(&self.name, protocol, entry.metadata.as_ref().unwrap_or(&self.metadata))?;
        }
        if let Some(metadata) = entry.metadata {
            let schema = schema::arrow_schema(&self.name, &metadata)?;
            self.notes = Arc::new(evolve::notes(&self.name, &metadata)?);
            (self.schema, self.metadata) = (schema, metadata);
        }
        for remove in entry.removes {
            self.files.remove(&remove.path);
        }
        for add in entry.adds {
            self.files.insert(add.file.path.clone(), add.file);
        }
        self.transactions.extend(entry.transactions);
        self.version = entry.version;
        Ok(())
    }

    /// The ledger entry of `app_id` if it moved since this state was loaded.
    pub(crate) fn transaction(&self, app_id: &str) -> Option<i64> {
        self.transactions.get(app_id).copied()
    }

    /// Remembers ledger entries that were read from the log as of the version at which this state was loaded.
    pub(crate) fn remember(&mut self, older: BTreeMap<String, i64>) {
        for (app_id, version) in older {
            self.transactions.entry(app_id).or_insert(version);
        }
    }

    pub(crate) fn pin(&self) -> TableVersion {
        TableVersion {
            name: self.name.clone(),
            table_id: self.metadata.id().to_owned(),
            version: self.version,
            schema: self.schema.clone(),
            partition_columns: self.metadata.partition_columns().to_vec(),
            properties: self.metadata.configuration().clone().into_iter().collect(),
            files: self.files.values().cloned().collect(),
            notes: self.notes.clone(),
            readers: self.readers.clone(),
        }
    }
}

impl Table {
    /// Reads the ledger entries of `app_ids` as they were at `version`.
    ///
    /// # Errors
    /// Those of a log that does not go back so far.
    pub async fn ledger_at(&self, version: u64, app_ids: &[String]) -> Result<Ledger> {
        let entries = transactions_at(self.name(), self.inner.log.as_ref(), version, app_ids.to_vec()).await?;
        Ok(Ledger { version, entries })
    }
}

/// Reads ledger entries as of `version` through the Delta kernel: without a file list, but the log again for each entry that
/// no checksum file has. Cheap at a version that has a checkpoint of ours, which always comes with one.
pub(crate) async fn transactions_at(
    name: &TableName,
    log: &dyn LogStore,
    version: u64,
    app_ids: Vec<String>,
) -> Result<BTreeMap<String, i64>> {
    let engine = log.engine(None);
    let root = log.config().location().clone();
    let read = move || read_transactions(engine.as_ref(), root, version, &app_ids);
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|source| {
            Error::with_source(ErrorKind::Bug, format!("reading the ledger of {name} was broken off"), source)
        })?
        .map_err(|source| Error::kernel(format!("cannot read the ledger of {name} at version {version}"), source))
}

fn read_transactions(
    engine: &dyn Engine,
    root: url::Url,
    version: u64,
    app_ids: &[String],
) -> buoyant_kernel::DeltaResult<BTreeMap<String, i64>> {
    let snapshot = buoyant_kernel::Snapshot::builder_for(root).at_version(version).build(engine)?;
    let mut found = BTreeMap::new();
    for app_id in app_ids {
        if let Some(value) = snapshot.get_app_id_version(app_id, engine)? {
            found.insert(app_id.clone(), value);
        }
    }
    Ok(found)
}

/// Whether the table has a log. The kernel's own answer for one that has none differs from store to store.
pub(crate) async fn is_there(name: &TableName, log: &dyn LogStore) -> Result<bool> {
    let failed = |source| Error::delta(format!("cannot look for the log of {name}"), source);
    // The first entry is there unless a clean-up took it, and costs one request where a listing costs more.
    Ok(log.read_commit_entry(0).await.map_err(failed)?.is_some()
        || log.is_delta_table_location().await.map_err(failed)?)
}

fn load_error(name: &TableName, version: Option<u64>, source: DeltaTableError) -> Error {
    match version {
        Some(version) => Error::delta(format!("cannot load version {version} of table {name}: is it kept?"), source),
        None => Error::delta(format!("cannot load table {name}"), source),
    }
}
