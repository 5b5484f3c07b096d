//! Requests: what one part of the program asks of another, in one process or in two, through the lake: `system.requests`.
//!
//! ```text
//!  ask ─► asked ─► taken by exactly one ─► done or failed ─► who waits reads the answer
//!                    └─ its time lapses: it can be taken again
//! ```
//!
//! They are rows of one small file that each step rewrites, so two who take the same request race for one version of the
//! table, and one wins. A look costs one request to the store as long as nothing was asked.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use crate::commit::Outcome;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::Lake;
use crate::log::{Commit, Operation};
use crate::name::TableName;
use crate::schema::TableSpec;
use crate::stage::StageOptions;
use crate::system::{self, timestamp_type};
use crate::table::Table;

/// The kind of request that asks for a build of the models.
pub const BUILD_REQUEST: &str = "build";

/// Whoever takes a request has this long to answer it; then it can be taken again.
const TAKEN_MAX: TimeDelta = TimeDelta::minutes(10);
/// Requests are kept for a week.
const KEPT: TimeDelta = TimeDelta::days(7);
/// At most so many are kept, and may be open.
const REQUESTS_MAX: usize = 1_000;
/// So many others may come first before one gives up.
const RACES_MAX: u32 = 20;
/// Whoever waits for an answer looks for it this often.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Something that was asked for. Written down, as a row, it has its JSON as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Its id.
    pub id: String,
    /// What is asked for.
    pub kind: String,
    /// How exactly.
    #[serde(with = "as_text")]
    pub arguments: Value,
    /// Who asks.
    pub asked_by: String,
    /// When.
    pub asked_at: DateTime<Utc>,
    /// How far it is.
    pub state: RequestState,
    /// Who took it last.
    pub taken_by: Option<String>,
    /// Until when it is theirs alone.
    pub taken_until: Option<DateTime<Utc>>,
    /// What came of it, NULL until then.
    #[serde(with = "as_text")]
    pub answer: Value,
    /// When it was answered.
    pub done_at: Option<DateTime<Utc>>,
}

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestState {
    /// Nobody has taken it yet.
    Asked,
    /// Somebody is at it.
    Taken,
    /// It was done, and answered.
    Done,
    /// It could not be done; the answer says why.
    Failed,
}

impl RequestState {
    /// Whether it still has to be answered.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Asked | Self::Taken)
    }
}

impl Request {
    fn can_be_taken(&self, now: DateTime<Utc>) -> bool {
        match self.state {
            RequestState::Asked => true,
            RequestState::Taken => self.taken_until.is_none_or(|until| until <= now),
            RequestState::Done | RequestState::Failed => false,
        }
    }
}

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let texts = |names: &[&'static str]| names.iter().map(|name| (*name, DataType::Utf8)).collect::<Vec<_>>();
    let mut columns = texts(&["id", "kind", "arguments", "asked_by"]);
    columns.push(("asked_at", timestamp_type()));
    columns.extend(texts(&["state", "taken_by"]));
    columns.push(("taken_until", timestamp_type()));
    columns.extend(texts(&["answer"]));
    columns.push(("done_at", timestamp_type()));
    let fields = columns.into_iter().map(|(name, data_type)| Field::new(name, data_type, true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
});

/// Where the requests stand.
pub(crate) fn table_name() -> TableName {
    system::named("requests")
}

/// Their columns.
pub(crate) fn schema() -> SchemaRef {
    SCHEMA.clone()
}

/// The requests of a lake, as one who asks or answers sees them. It remembers what it has read.
#[derive(Debug)]
pub struct Requests {
    lake: Lake,
    table: Table,
    /// All of them, as of that version of the table.
    seen: Option<(u64, Vec<Request>)>,
}

impl Lake {
    /// What parts of the program ask of one another.
    pub fn requests(&self) -> Requests {
        Requests { lake: self.clone(), table: self.table(&table_name()), seen: None }
    }
}

impl Requests {
    /// Asks for something.
    ///
    /// # Errors
    /// `Conflict` if too much is asked for that nobody answers.
    pub async fn ask(&mut self, kind: &str, arguments: Value, asked_by: &str) -> Result<Request> {
        self.table.ensure(&TableSpec::new(schema())).await?;
        let request = Request {
            id: self.lake.ids().fresh().to_string(),
            kind: kind.to_owned(),
            arguments,
            asked_by: asked_by.to_owned(),
            asked_at: self.lake.clock().now(),
            state: RequestState::Asked,
            taken_by: None,
            taken_until: None,
            answer: Value::Null,
            done_at: None,
        };
        let asked = self.change(|all, _| {
            let open = all.iter().filter(|request| request.state.is_open()).count();
            (open < REQUESTS_MAX).then(|| {
                all.push(request.clone());
                request.clone()
            })
        });
        asked.await?.ok_or_else(|| {
            let message = format!(
                "{REQUESTS_MAX} requests are open in {}: is anything running that answers them, such as `lakebeat up`?",
                self.table.name()
            );
            Error::new(ErrorKind::Conflict, message)
        })
    }

    /// Takes the oldest request of a kind that nobody is at. Nobody else gets it until its time is over.
    pub async fn take(&mut self, kind: &str, taker: &str) -> Result<Option<Request>> {
        self.change(|all, now| {
            let request = all.iter_mut().find(|request| request.kind == kind && request.can_be_taken(now))?;
            request.state = RequestState::Taken;
            request.taken_by = Some(taker.to_owned());
            request.taken_until = Some(now + TAKEN_MAX);
            Some(request.clone())
        })
        .await
    }

    /// Answers a request that was taken: with what came of it, or why it could not be done.
    ///
    /// # Errors
    /// `Conflict` if its time was over and another took it.
    pub async fn finish(&mut self, taken: &Request, outcome: Result<Value, String>) -> Result<Request> {
        let (state, answer) = match outcome {
            Ok(answer) => (RequestState::Done, answer),
            Err(why) => (RequestState::Failed, serde_json::json!({ "error": why })),
        };
        let finished = self.change(|all, now| {
            let request = all.iter_mut().find(|request| request.id == taken.id)?;
            if request.state != RequestState::Taken || request.taken_by != taken.taken_by {
                return None;
            }
            (request.state, request.answer, request.done_at) = (state, answer.clone(), Some(now));
            Some(request.clone())
        });
        finished.await?.ok_or_else(|| {
            let message = format!("request {} took longer than {TAKEN_MAX}, and another took it", taken.id);
            Error::new(ErrorKind::Conflict, message)
        })
    }

    /// A request by its id, as it is now.
    ///
    /// # Errors
    /// `NotFound` if there is none of that id (any more).
    pub async fn find(&mut self, id: &str) -> Result<Request> {
        let (_, all) = self.read().await?;
        let found = all.iter().find(|request| request.id == id).cloned();
        found.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no request {id}: they are kept for a week"))
        })
    }

    /// The same once it is answered, or when the time is over.
    pub async fn wait(&mut self, id: &str, at_most: Duration) -> Result<Request> {
        let end = Instant::now() + at_most;
        loop {
            let request = self.find(id).await?;
            if !request.state.is_open() || Instant::now() >= end {
                return Ok(request);
            }
            tokio::time::sleep_until(end.min(Instant::now() + LOOK_INTERVAL)).await;
        }
    }

    /// Rewrites the requests as `change` says, on the newest version of them; `None` leaves them as they are.
    async fn change<T>(&mut self, change: impl Fn(&mut Vec<Request>, DateTime<Utc>) -> Option<T>) -> Result<Option<T>> {
        for _ in 0..RACES_MAX {
            let (version, mut all) = self.read().await?;
            let now = self.lake.clock().now();
            let Some(changed) = change(&mut all, now) else { return Ok(None) };
            thin(&mut all, now);
            let head = self.table.at(version).await?;
            let mut commit = Commit::new(Operation::Overwrite);
            let rows = system::to_batch(self.table.name(), &schema(), &all)?;
            commit.adds = self.table.stage_batches(&head, vec![rows], &StageOptions::default()).await?;
            commit.removes = head.files.to_vec();
            let staged = commit.adds.clone();
            // Strictly the next version: what was decided goes by all that stands there.
            match self.table.replace(version, commit).await? {
                Outcome::Committed(version) => {
                    self.seen = Some((version, all));
                    return Ok(Some(changed));
                }
                Outcome::Lost { .. } => self.table.discard(&staged).await,
            }
        }
        let message = format!("{RACES_MAX} others wrote to {} first; try again", self.table.name());
        Err(Error::new(ErrorKind::Conflict, message))
    }

    /// All requests, and the version that they are of. Costs one request to the store where nothing has changed.
    async fn read(&mut self) -> Result<(u64, Vec<Request>)> {
        // As long as nobody has asked for anything there is no table; its first entry tells, and no listing is needed.
        if self.seen.is_none() && self.table.inner.read_entry(0).await?.is_none() {
            return Ok((0, Vec::new()));
        }
        let version = self.table.newest_version().await?;
        if let Some((seen, all)) = &self.seen
            && *seen == version
        {
            return Ok((version, all.clone()));
        }
        let head = self.table.at(version).await?;
        let failed = |source| Error::query(format!("cannot read {}", head.name), source);
        let context = self.lake.session_factory().context();
        let rows = context.read_table(head.provider()).map_err(failed)?.collect().await.map_err(failed)?;
        let mut all: Vec<Request> = system::from_batches(&head.name, &rows)?;
        all.sort_by(|one, other| (one.asked_at, &one.id).cmp(&(other.asked_at, &other.id)));
        self.seen = Some((version, all.clone()));
        Ok((version, all))
    }
}

/// Drops what is a week old, and the oldest answered ones where there are too many.
fn thin(all: &mut Vec<Request>, now: DateTime<Utc>) {
    all.retain(|request| request.asked_at > now - KEPT);
    let mut surplus = all.len().saturating_sub(REQUESTS_MAX);
    all.retain(|request| {
        let goes = surplus > 0 && !request.state.is_open();
        surplus -= usize::from(goes);
        !goes
    });
}

/// JSON in a column of text; null is NULL.
mod as_text {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};
    use serde_json::Value;

    pub(super) fn serialize<S: Serializer>(value: &Value, serializer: S) -> Result<S::Ok, S::Error> {
        (!value.is_null()).then(|| value.to_string()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        match Option::<String>::deserialize(deserializer)? {
            Some(text) => serde_json::from_str(&text).map_err(D::Error::custom),
            None => Ok(Value::Null),
        }
    }
}
