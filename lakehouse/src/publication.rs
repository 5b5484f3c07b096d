//! Publications: which version of each table belongs together. A build ends in one, and every door reads by the newest.
//!
//! They are rows of `system.publications`, one small file that each publication rewrites, so that it is thinned in the same
//! step. The newest of each group also stands in that commit's own entry, so that a door learns of it by one request for
//! the next log entry.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, LazyLock};

use arrow::array::{Array as _, AsArray as _, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimestampMicrosecondType};
use chrono::{DateTime, TimeDelta, Utc};
use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Mutex;

use crate::commit::Outcome;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::Lake;
use crate::log::{Commit, CommitEntry, Operation};
use crate::name::TableName;
use crate::schema::TableSpec;
use crate::stage::StageOptions;
use crate::system::{self, timestamp_type};
use crate::table::Table;
use crate::version::TableVersion;

/// The group of all models that no project splits off.
pub const DEFAULT_GROUP: &str = "default";
/// In a commit's entry the newest publication of each group stands under this key.
const NEWEST_KEY: &str = "publications";
/// Who began to read has told so before that time is over, see [`Lake::tell_readers`].
const LATELY: TimeDelta = TimeDelta::minutes(2);
/// So many other publications may come first before one gives up.
const RACES_MAX: u32 = 20;
/// So many entries are looked back for one of ours; entries between are foreign.
const LOOK_BACK_MAX: u64 = 100;

/// A set of table versions that belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    /// Counts up over all groups.
    pub id: u64,
    /// The group of models.
    pub group: String,
    /// When it was made.
    pub published_at: DateTime<Utc>,
    /// Each table of the group, and what it was built from.
    pub tables: BTreeMap<TableName, PinnedTable>,
}

/// One version of one table. The id tells it from another table that later gets the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedTable {
    /// The table's id.
    pub table_id: String,
    /// Its version.
    pub version: u64,
}

impl From<&TableVersion> for PinnedTable {
    fn from(table: &TableVersion) -> Self {
        Self { table_id: table.table_id.clone(), version: table.version }
    }
}

/// What this process knows of the newest publications.
#[derive(Debug, Default)]
pub(crate) struct NewestPublications {
    known: Mutex<Option<Newest>>,
}

/// The newest publication of each group, as of one version of `system.publications`.
#[derive(Debug, Clone, Default)]
struct Newest {
    version: u64,
    by_group: BTreeMap<String, Publication>,
}

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("publication", DataType::Int64, true),
        Field::new("publication_group", DataType::Utf8, true),
        Field::new("published_at", timestamp_type(), true),
        Field::new("tables", DataType::Utf8, true),
    ]))
});

/// Where the publications stand.
pub(crate) fn table_name() -> TableName {
    system::named("publications")
}

/// Their columns.
pub(crate) fn schema() -> SchemaRef {
    SCHEMA.clone()
}

impl Lake {
    fn publications_table(&self) -> Table {
        self.table(&table_name())
    }

    /// The newest publication of a group; nothing before its first build. Costs one request where nothing changed.
    pub async fn newest_publication(&self, group: &str) -> Result<Option<Publication>> {
        let mut known = self.newest().known.lock().await;
        let table = self.publications_table();
        let newest = match known.take() {
            Some(newest) => newest,
            None => match newest_in_log(&table).await {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                newest => newest?,
            },
        };
        let newest = known.insert(advance(&table, newest).await?);
        Ok(newest.by_group.get(group).cloned())
    }

    /// All publications that are kept, newest first.
    pub async fn publications(&self) -> Result<Vec<Publication>> {
        let head = match self.publications_table().head().await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            head => head?,
        };
        self.publications_at(&head).await
    }

    /// Those that a version of `system.publications` keeps, newest first.
    pub(crate) async fn publications_at(&self, head: &TableVersion) -> Result<Vec<Publication>> {
        let mut publications = read_rows(self, head).await?;
        publications.reverse();
        Ok(publications)
    }

    /// All publications that are kept, or were until a moment ago.
    pub(crate) async fn publications_of_late(&self) -> Result<Vec<Publication>> {
        let mut publications = self.publications().await?;
        let table = self.publications_table();
        let before = match version_before(&table, self.clock().now() - LATELY).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(publications),
            before => before?,
        };
        for publication in read_rows(self, table.at(before).await?.as_ref()).await? {
            if !publications.iter().any(|kept| kept.id == publication.id) {
                publications.push(publication);
            }
        }
        Ok(publications)
    }

    /// Publishes `tables` as the newest of `group`. What is already the newest is not published again.
    ///
    /// # Errors
    /// `Conflict` if a newer version of one of the tables is already published.
    pub async fn publish(&self, group: &str, tables: BTreeMap<TableName, PinnedTable>) -> Result<Publication> {
        let table = self.publications_table();
        for _ in 0..RACES_MAX {
            let head = table.ensure(&TableSpec::new(SCHEMA.clone())).await?;
            let newest = newest_at(&table, head.version).await?;
            if let Some(last) = newest.by_group.get(group) {
                if last.tables == tables {
                    return Ok(last.clone());
                }
                refuse_older(last, &tables)?;
            }
            let id = newest.by_group.values().map(|last| last.id).max().unwrap_or(0) + 1;
            let publication =
                Publication { id, group: group.to_owned(), published_at: self.clock().now(), tables: tables.clone() };
            let commit = self.publication_commit(&table, &head, newest, &publication).await?;
            if let Outcome::Committed(_) = table.replace(head.version, commit).await? {
                return Ok(publication);
            }
        }
        let message = format!("could not publish {group}: {RACES_MAX} other publications came first; try again");
        Err(Error::new(ErrorKind::Conflict, message))
    }

    async fn publication_commit(
        &self,
        table: &Table,
        head: &TableVersion,
        mut newest: Newest,
        publication: &Publication,
    ) -> Result<Commit> {
        let mut kept = read_rows(self, head).await?;
        kept.push(publication.clone());
        let kept = thin(kept, publication.published_at);
        newest.by_group.insert(publication.group.clone(), publication.clone());
        let mut commit = Commit::new(Operation::Overwrite);
        commit.adds = table.stage_batches(head, vec![to_batch(&kept)?], &StageOptions::default()).await?;
        commit.removes = head.files.to_vec();
        commit.transactions.insert(format!("publication/{}", publication.group), publication.id as i64);
        commit.info.insert(NEWEST_KEY.to_owned(), json(&newest.by_group)?);
        Ok(commit)
    }
}

/// A publication never moves a version back: that would show readers an older moment. Only a rollback does.
fn refuse_older(last: &Publication, tables: &BTreeMap<TableName, PinnedTable>) -> Result<()> {
    for (name, pinned) in tables {
        if let Some(published) = last.tables.get(name)
            && published.table_id == pinned.table_id
            && published.version > pinned.version
        {
            let message = format!(
                "version {} of {name} is older than version {}, which publication {} names: build again",
                pinned.version, published.version, last.id
            );
            return Err(Error::new(ErrorKind::Conflict, message));
        }
    }
    Ok(())
}

/// The newest version that was there at that moment, or the oldest that is known of.
async fn version_before(table: &Table, moment: DateTime<Utc>) -> Result<u64> {
    let newest = table.newest_version().await?;
    let mut entries = pin!(table.inner.entries((0..=newest).rev()));
    let mut version = newest;
    while let Some(Some(entry)) = entries.try_next().await? {
        version = entry.version;
        if entry.timestamp.is_none_or(|at| at <= moment) {
            break;
        }
    }
    Ok(version)
}

async fn newest_in_log(table: &Table) -> Result<Newest> {
    let version = table.newest_version().await?;
    newest_at(table, version).await
}

/// Looks for the newest publications in the entries up to `version`, newest first.
async fn newest_at(table: &Table, version: u64) -> Result<Newest> {
    for at in (version.saturating_sub(LOOK_BACK_MAX)..=version).rev() {
        let Some(entry) = table.inner.read_entry(at).await? else { break };
        if let Some(by_group) = publications_in(&entry)? {
            return Ok(Newest { version, by_group });
        }
    }
    Ok(Newest { version, by_group: BTreeMap::new() })
}

async fn advance(table: &Table, known: Newest) -> Result<Newest> {
    let version = table.newest_version().await?;
    if version == known.version {
        return Ok(known);
    }
    newest_at(table, version).await
}

fn publications_in(entry: &CommitEntry) -> Result<Option<BTreeMap<String, Publication>>> {
    let Some(value) = entry.info.get(NEWEST_KEY) else { return Ok(None) };
    serde_json::from_value(value.clone()).map(Some).map_err(|source| {
        let message = format!("log entry {} of system.publications is damaged", entry.version);
        Error::with_source(ErrorKind::BadData, message, source)
    })
}

/// Keeps every publication for ten minutes, one a minute for an hour, one an hour for a week, and the newest of each group.
fn thin(publications: Vec<Publication>, now: DateTime<Utc>) -> Vec<Publication> {
    let slot = |publication: &Publication| {
        let age = now - publication.published_at;
        let seconds = publication.published_at.timestamp();
        if age <= TimeDelta::minutes(10) {
            Some((0, publication.id as i64))
        } else if age <= TimeDelta::hours(1) {
            Some((1, seconds.div_euclid(60)))
        } else if age <= TimeDelta::weeks(1) {
            Some((2, seconds.div_euclid(3600)))
        } else {
            None
        }
    };
    let mut newest: BTreeMap<String, u64> = BTreeMap::new();
    for publication in &publications {
        newest.insert(publication.group.clone(), publication.id);
    }
    // The last of each slot stays: it is the one that readers of that time saw longest.
    let mut slots = BTreeMap::new();
    for publication in publications {
        let place = match slot(&publication) {
            Some(place) => place,
            None if newest.get(&publication.group) == Some(&publication.id) => (3, publication.id as i64),
            None => continue,
        };
        slots.insert((publication.group.clone(), place), publication);
    }
    let mut kept: Vec<_> = slots.into_values().collect();
    kept.sort_by_key(|publication| publication.id);
    kept
}

fn to_batch(publications: &[Publication]) -> Result<RecordBatch> {
    let tables = publications.iter().map(|one| json(&one.tables).map(|tables| tables.to_string()));
    let columns: Vec<Arc<dyn arrow::array::Array>> = vec![
        Arc::new(Int64Array::from_iter_values(publications.iter().map(|one| one.id as i64))),
        Arc::new(StringArray::from_iter_values(publications.iter().map(|one| one.group.as_str()))),
        Arc::new(
            TimestampMicrosecondArray::from_iter_values(
                publications.iter().map(|one| one.published_at.timestamp_micros()),
            )
            .with_timezone("UTC"),
        ),
        Arc::new(StringArray::from(tables.collect::<Result<Vec<_>>>()?)),
    ];
    RecordBatch::try_new(SCHEMA.clone(), columns)
        .map_err(|source| Error::with_source(ErrorKind::Bug, "publications do not fit their table", source))
}

async fn read_rows(lake: &Lake, head: &TableVersion) -> Result<Vec<Publication>> {
    let failed = |source| Error::query("cannot read system.publications", source);
    let context = lake.session_factory().context();
    let batches = context.read_table(head.provider()).map_err(failed)?.collect().await.map_err(failed)?;
    let mut publications = Vec::new();
    for batch in &batches {
        publications.extend(from_batch(batch)?);
    }
    publications.sort_by_key(|publication| publication.id);
    Ok(publications)
}

fn from_batch(batch: &RecordBatch) -> Result<Vec<Publication>> {
    let damaged = || Error::new(ErrorKind::BadData, "a row of system.publications is damaged");
    let ids = batch.column(0).as_primitive::<Int64Type>();
    let groups = batch.column(1).as_string_opt::<i32>().ok_or_else(damaged)?;
    let times = batch.column(2).as_primitive::<TimestampMicrosecondType>();
    let tables = batch.column(3).as_string_opt::<i32>().ok_or_else(damaged)?;
    let row = |row: usize| {
        Ok(Publication {
            id: ids.value(row) as u64,
            group: groups.value(row).to_owned(),
            published_at: DateTime::from_timestamp_micros(times.value(row)).ok_or_else(damaged)?,
            tables: serde_json::from_str(tables.value(row)).map_err(|_| damaged())?,
        })
    };
    (0..batch.num_rows()).filter(|row| !ids.is_null(*row)).map(row).collect()
}

fn json(value: &impl Serialize) -> Result<Value> {
    serde_json::to_value(value)
        .map_err(|source| Error::with_source(ErrorKind::Bug, "cannot write down a publication", source))
}
