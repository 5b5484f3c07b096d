//! `/api/v1/status`: how far everything is. Read from the lake, so that it is right whichever process did the work.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State as Extract;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, TimeDelta, Utc};
use lakehouse::{DEFAULT_GROUP, IngestProgress, Lake, Publication, TableName, TableVersion};
use serde::Serialize;
use tokio::sync::Mutex;

use super::connect::{Snippet, snippets};
use super::{Addresses, IngestNow, State, failed};
use crate::error::{Error, Kind, Result};

/// Many pages and a scraper ask at once; the lake is asked at most this often.
const FRESH: TimeDelta = TimeDelta::milliseconds(500);
/// New tables are looked for this often: listing is the dearest question to a store.
const LISTING_FRESH: TimeDelta = TimeDelta::seconds(10);

/// How far everything is, at one moment.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Status {
    version: &'static str,
    now: DateTime<Utc>,
    lake: String,
    addresses: AddressStatus,
    connect: Vec<Snippet>,
    pub(super) ingest: IngestStatus,
    pub(super) publication: Option<PublicationStatus>,
    pub(super) tables: Vec<TableStatus>,
}

#[derive(Debug, Clone, Serialize)]
struct AddressStatus {
    flight: String,
    postgres: String,
    console: String,
}

/// What came in so far.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct IngestStatus {
    /// Rows in the bronze tables.
    pub(super) rows: u64,
    /// Rows in the tables of dead letters.
    pub(super) dead_letters: u64,
    /// Messages that the topics hold beyond what is committed: now where ingest runs in this process, else at the last
    /// commit of each partition.
    pub(super) lag: i64,
    /// What keeps the ingest of this process from going on, while something does.
    waiting_for: Option<String>,
    pub(super) partitions: Vec<IngestProgress>,
}

impl IngestStatus {
    /// Takes over what the ingest of this process knows. An end that a commit recorded since then is newer.
    fn learn(&mut self, topics: Vec<IngestNow>) {
        let mut waiting = Vec::new();
        let is_alone = topics.len() == 1;
        for now in topics {
            for partition in self.partitions.iter_mut().filter(|partition| partition.topic == now.topic) {
                if let Some(&end) = now.end_offsets.get(&partition.partition) {
                    partition.end_offset = partition.end_offset.max(end);
                    partition.lag = (partition.end_offset - partition.next_offset).max(0);
                }
            }
            let named = |what| if is_alone { what } else { format!("{}: {what}", now.topic) };
            waiting.extend(now.waiting_for.map(named));
        }
        self.waiting_for = Some(waiting.join("; ")).filter(|text| !text.is_empty());
        self.add_up_lag();
    }

    fn add_up_lag(&mut self) {
        self.lag = self.partitions.iter().map(|partition| partition.lag).sum();
    }
}

/// A publication and its age.
#[derive(Debug, Clone, Serialize)]
pub(super) struct PublicationStatus {
    pub(super) id: u64,
    pub(super) published_at: DateTime<Utc>,
    pub(super) age_seconds: f64,
    /// The version of each table in it.
    versions: BTreeMap<String, u64>,
}

/// One table: as it is published, or its head where publications do not name it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct TableStatus {
    pub(super) name: String,
    pub(super) version: u64,
    /// Not known where another engine wrote files without statistics.
    pub(super) rows: Option<u64>,
    pub(super) files: usize,
    pub(super) bytes: u64,
}

impl PublicationStatus {
    pub(super) fn of(publication: &Publication, now: DateTime<Utc>) -> Self {
        let versions = publication.tables.iter().map(|(name, pinned)| (name.to_string(), pinned.version)).collect();
        let age = (now - publication.published_at).num_milliseconds().max(0);
        Self { id: publication.id, published_at: publication.published_at, age_seconds: age as f64 / 1000.0, versions }
    }
}

impl TableStatus {
    fn of(table: &TableVersion) -> Self {
        Self {
            name: table.name.to_string(),
            version: table.version,
            rows: table.rows(),
            files: table.files.len(),
            bytes: table.bytes(),
        }
    }
}

/// The last answer, and the last listing.
#[derive(Default)]
pub(super) struct Cache {
    last: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    status: Option<Arc<Status>>,
    listing: Option<(DateTime<Utc>, Vec<TableName>)>,
}

impl Cache {
    /// How far everything is, at most [`FRESH`] old. Whoever comes while the lake is asked waits for the same answer.
    pub(super) async fn newest(
        &self,
        lake: &Lake,
        addresses: &Addresses,
        ingest: Option<Vec<IngestNow>>,
    ) -> Result<Arc<Status>> {
        let mut known = self.last.lock().await;
        let now = lake.clock().now();
        if let Some(status) = known.status.as_ref().filter(|status| is_within(status.now, now, FRESH)) {
            return Ok(Arc::clone(status));
        }
        let names = match known.listing.take().filter(|(listed_at, _)| is_within(*listed_at, now, LISTING_FRESH)) {
            Some(listing) => listing,
            None => (now, lake.tables().await?),
        };
        let mut status = read(lake, addresses, &names.1, now).await?;
        if let Some(ingest) = ingest {
            status.ingest.learn(ingest);
        }
        let status = Arc::new(status);
        known.listing = Some(names);
        known.status = Some(Arc::clone(&status));
        Ok(status)
    }
}

pub(super) async fn show(Extract(state): Extract<State>) -> Response {
    match state.shared.status().await {
        Ok(status) => axum::Json(status.as_ref()).into_response(),
        Err(error) => failed(&error),
    }
}

async fn read(lake: &Lake, addresses: &Addresses, names: &[TableName], now: DateTime<Utc>) -> Result<Status> {
    let publication = lake.newest_publication(DEFAULT_GROUP).await?;
    let tables = tables(lake, names, publication.as_ref()).await?;
    let progress = lake.ingest_progress().await?;
    Ok(Status {
        version: env!("CARGO_PKG_VERSION"),
        now,
        lake: shown(lake.url()),
        addresses: AddressStatus {
            flight: format!("grpc://{}", addresses.flight),
            postgres: format!("postgresql://{}/lake", addresses.postgres),
            console: format!("http://{}", addresses.console),
        },
        connect: snippets(addresses),
        ingest: ingest(&tables, progress),
        publication: publication.as_ref().map(|publication| PublicationStatus::of(publication, now)),
        tables,
    })
}

async fn tables(lake: &Lake, names: &[TableName], publication: Option<&Publication>) -> Result<Vec<TableStatus>> {
    let mut tables = Vec::new();
    for name in names {
        let pinned = publication.and_then(|publication| publication.tables.get(name));
        let table = lake.table(name);
        let version = match pinned {
            // Bronze is in a publication too, as what the others were built from; it is read at its head.
            Some(pinned) if !is_bronze(name) => table.at(pinned.version).await,
            _ => table.head().await,
        };
        match version.map_err(Error::from) {
            Ok(version) => tables.push(TableStatus::of(&version)),
            // Dropped since it was listed.
            Err(error) if error.kind() == Kind::UndefinedTable => {}
            Err(error) => return Err(error),
        }
    }
    Ok(tables)
}

fn ingest(tables: &[TableStatus], progress: Vec<IngestProgress>) -> IngestStatus {
    let mut ingest = IngestStatus::default();
    for table in tables.iter().filter(|table| table.name.starts_with("bronze.")) {
        let rows = table.rows.unwrap_or(0);
        if is_dead_letters(&table.name) { ingest.dead_letters += rows } else { ingest.rows += rows }
    }
    // The dead letters have a ledger of their own, which moves only with a letter: bronze's is the truth about progress.
    ingest.partitions = progress.into_iter().filter(|partition| !is_dead_letters(&partition.table.name)).collect();
    ingest.add_up_lag();
    ingest
}

fn is_bronze(name: &TableName) -> bool {
    name.schema == "bronze"
}

fn is_dead_letters(name: &str) -> bool {
    name.ends_with("dead_letters")
}

/// The lake's place without what a URL can carry in secret.
fn shown(url: &url::Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    if !url.username().is_empty() || url.password().is_some() {
        // Both setters fail only for URLs without a host, which carry no user either.
        let _ = url.set_password(None);
        let _ = url.set_username("");
    }
    url.to_string()
}

/// Whether `then` is at most `age` before `now`; a clock that was set back makes everything old.
fn is_within(then: DateTime<Utc>, now: DateTime<Utc>, age: TimeDelta) -> bool {
    let passed = now - then;
    passed >= TimeDelta::zero() && passed <= age
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, rows: u64) -> TableStatus {
        TableStatus { name: name.to_owned(), version: 1, rows: Some(rows), files: 1, bytes: 1 }
    }

    fn partition(table: &str, partition: i32, lag: i64) -> IngestProgress {
        IngestProgress {
            table: TableName::new("bronze", table),
            topic: "events".to_owned(),
            partition,
            next_offset: 10,
            end_offset: 10 + lag,
            lag,
            rows: 1,
            dead_letters: 0,
            committed_at: None,
            rows_per_second: 0.0,
        }
    }

    #[test]
    fn dead_letters_are_counted_apart_and_their_ledger_is_not_progress() {
        let tables = [table("bronze.events", 90), table("bronze.dead_letters", 7), table("gold.top_songs", 6)];
        let progress = vec![partition("events", 0, 3), partition("events", 1, 4), partition("dead_letters", 0, 50)];
        let ingest = ingest(&tables, progress);
        assert_eq!((ingest.rows, ingest.dead_letters, ingest.lag, ingest.partitions.len()), (90, 7, 7, 2));
    }

    #[test]
    fn lag_is_what_the_ingest_of_this_process_knows_where_that_is_more() {
        let mut status = ingest(&[], vec![partition("events", 0, 0), partition("events", 1, 4)]);
        let events = IngestNow {
            topic: "events".to_owned(),
            end_offsets: BTreeMap::from([(0, 110), (1, 12), (2, 9)]),
            waiting_for: Some("the store".to_owned()),
        };
        status.learn(vec![events.clone()]);
        assert_eq!((status.lag, status.waiting_for.as_deref()), (104, Some("the store")));
        let others = IngestNow { topic: "others".to_owned(), ..IngestNow::default() };
        status.learn(vec![others.clone()]);
        assert_eq!((status.lag, status.waiting_for.as_deref()), (104, None));
        status.learn(vec![others, events]);
        assert_eq!((status.lag, status.waiting_for.as_deref()), (104, Some("events: the store")));
    }

    #[test]
    fn the_shown_url_has_no_secret() {
        let url = url::Url::parse("s3://key:secret@bucket/lake/?token=x").expect("a url");
        assert_eq!(shown(&url), "s3://bucket/lake/");
    }
}
