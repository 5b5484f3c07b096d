//! `/api/v1/dashboard`: the numbers on top of the page, asked in SQL through the one query path.

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, SchemaRef};
use axum::extract::State as Extract;
use axum::response::{IntoResponse, Response};
use futures::TryStreamExt;
use lakehouse::Publication;
use serde::Serialize;
use tokio::sync::Mutex;

use super::status::PublicationStatus;
use super::{State, failed};
use crate::error::{Error, Kind, Result};
use crate::query::{Connection, Door, QueryEngine};

/// Users are counted once, however many rows they have.
const TOTALS: &str = "
    select songs.plays, songs.skips, listeners.users, songs.artists
    from (
        select coalesce(sum(total_plays), 0) as plays, coalesce(sum(total_skips), 0) as skips,
               count(distinct artist_name) as artists
        from gold.top_songs
    ) as songs
    cross join (select count(distinct user_id) as users from gold.user_engagement) as listeners";

const TOP_SONGS: &str = "
    select song_name, artist_name, total_plays, total_skips
    from gold.top_songs
    order by total_plays desc, song_name, artist_name
    limit 10";

/// The page asks each second: what takes longer than this would only pile up.
const TIME_LIMIT: &str = "10s";

/// The last answer, kept until there is a newer publication. Whoever comes while it is computed waits for the same one.
#[derive(Default)]
pub(super) struct Cache {
    last: Mutex<Option<Arc<Computed>>>,
}

/// The numbers of one publication.
struct Computed {
    publication: Publication,
    numbers: Numbers,
}

#[derive(Debug, Default, Serialize)]
struct Numbers {
    totals: Option<Totals>,
    top_songs: Vec<Song>,
    /// Why there are no numbers although there is a publication.
    #[serde(skip_serializing_if = "Option::is_none")]
    notice: Option<String>,
}

#[derive(Debug, Serialize)]
struct Totals {
    plays: i64,
    skips: i64,
    users: i64,
    artists: i64,
}

#[derive(Debug, Serialize)]
struct Song {
    song_name: String,
    artist_name: String,
    total_plays: i64,
    total_skips: i64,
}

#[derive(Serialize)]
struct Document<'a> {
    publication: Option<PublicationStatus>,
    #[serde(flatten)]
    numbers: &'a Numbers,
}

pub(super) async fn show(Extract(state): Extract<State>) -> Response {
    let engine = &state.shared.engine;
    match state.shared.dashboard.newest(engine).await {
        Ok(Some(computed)) => {
            let publication = PublicationStatus::of(&computed.publication, engine.lake().clock().now());
            axum::Json(Document { publication: Some(publication), numbers: &computed.numbers }).into_response()
        }
        Ok(None) => axum::Json(Document { publication: None, numbers: &Numbers::default() }).into_response(),
        Err(error) => failed(&error),
    }
}

impl Cache {
    /// The numbers of the newest publication; `None` before the first.
    async fn newest(&self, engine: &QueryEngine) -> Result<Option<Arc<Computed>>> {
        let mut last = self.last.lock().await;
        let connection = engine.connect(Door::Console, "console");
        connection.set("statement_timeout", TIME_LIMIT).await?;
        // Both statements on one publication, so that totals and songs agree.
        connection.pin_newest().await?;
        let snapshot = connection.snapshot().await?;
        let Some(publication) = snapshot.publication() else { return Ok(None) };
        if let Some(known) = last.as_ref().filter(|known| known.publication == *publication) {
            return Ok(Some(Arc::clone(known)));
        }
        let numbers = compute(&connection).await?;
        let computed = Arc::new(Computed { publication: publication.clone(), numbers });
        *last = Some(Arc::clone(&computed));
        Ok(Some(computed))
    }
}

async fn compute(connection: &Connection) -> Result<Numbers> {
    match ask(connection).await {
        // Another project's lake has other tables; that is no fault.
        Err(error) if matches!(error.kind(), Kind::UndefinedTable | Kind::UndefinedColumn) => {
            let notice = Some(format!("the totals need gold.top_songs and gold.user_engagement: {error}"));
            Ok(Numbers { notice, ..Numbers::default() })
        }
        numbers => numbers,
    }
}

async fn ask(connection: &Connection) -> Result<Numbers> {
    let (schema, batches) = rows(connection, TOTALS).await?;
    let totals = batches.iter().find(|batch| batch.num_rows() == 1).ok_or_else(|| unexpected("no row", &schema))?;
    let number = |column: usize| integer(totals, column, 0);
    let totals = Totals { plays: number(0)?, skips: number(1)?, users: number(2)?, artists: number(3)? };
    let (_, batches) = rows(connection, TOP_SONGS).await?;
    let mut top_songs = Vec::new();
    for batch in &batches {
        for row in 0..batch.num_rows() {
            top_songs.push(Song {
                song_name: text(batch, 0, row)?,
                artist_name: text(batch, 1, row)?,
                total_plays: integer(batch, 2, row)?,
                total_skips: integer(batch, 3, row)?,
            });
        }
    }
    Ok(Numbers { totals: Some(totals), top_songs, notice: None })
}

async fn rows(connection: &Connection, sql: &str) -> Result<(SchemaRef, Vec<RecordBatch>)> {
    let stream = connection.query(sql).await?;
    let schema = Arc::clone(stream.schema());
    Ok((schema, stream.try_collect().await?))
}

fn integer(batch: &RecordBatch, column: usize, row: usize) -> Result<i64> {
    let values = batch.column(column).as_primitive_opt::<Int64Type>();
    values.map(|values| values.value(row)).ok_or_else(|| unexpected("a column that is no bigint", &batch.schema()))
}

fn text(batch: &RecordBatch, column: usize, row: usize) -> Result<String> {
    let values = batch.column(column).as_string_opt::<i32>();
    values
        .map(|values| values.value(row).to_owned())
        .ok_or_else(|| unexpected("a column that is no text", &batch.schema()))
}

fn unexpected(what: &str, schema: &SchemaRef) -> Error {
    let columns: Vec<String> =
        schema.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type())).collect();
    Error::new(Kind::TypeMismatch, format!("the dashboard's query gave {what}: {}", columns.join(", ")))
}
