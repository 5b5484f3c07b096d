//! The one query path behind every door.
//!
//! ```text
//! door ──► Connection::prepare(sql) ──► Prepared ──► Connection::execute(prepared, parameters) ──► ResultStream
//!            parse, allow-list,           plan, schema                time limit, cancel, registry,
//!            plan on the newest           and parameter types,        one normalised schema for
//!            publication (or the pin)     pinned to one moment        description and rows
//!            or the moments it names
//! ```
//!
//! **Invariant:** nothing that a client sends reaches the planner without [`allow`]; no plan reads a table that
//! neither the session factory has registered nor [`past`] has found; the schema of a [`Prepared`] is exactly the schema of its rows.

mod absent;
mod allow;
mod catalogue;
mod functions;
mod normalise;
mod parameters;
mod past;
mod planner;
mod queries;
mod rewrite;
mod running;
mod schemas;
mod settings;
mod snapshot;
mod stream;
mod time_travel;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use futures::FutureExt as _;
use lakehouse::{Lake, Opaque, Publication, Reading};

pub use normalise::{normalise_batch, normalise_data_type, normalise_schema};
pub use parameters::Parameter;
pub use running::{Door, Outcome, QueryId, RunningQuery, Totals};
pub use settings::Settings;
pub use snapshot::Snapshot;
pub use stream::ResultStream;

pub(crate) use schemas::{CATALOG, shown_name};
pub(crate) use settings::display_name;
pub(crate) use stream::cancelled_error;

use crate::error::{Error, Kind, Result};
use queries::Queries;
use running::Registry;
use snapshot::Snapshots;

/// How much one statement may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The longest a statement may run, from its start to its last row. A client may set a shorter one for itself.
    pub statement_timeout: Duration,
    /// Rows in a batch handed to a door at most; larger ones are sliced (no copy).
    pub batch_rows_max: usize,
    /// Characters in a statement at most.
    pub statement_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { statement_timeout: Duration::from_secs(15 * 60), batch_rows_max: 8_192, statement_bytes_max: 1 << 20 }
    }
}

/// What all doors of one process share: the lake, the planner's snapshots and the registry of running statements.
#[derive(Clone)]
pub struct QueryEngine {
    shared: Arc<Shared>,
}

struct Shared {
    lake: Lake,
    limits: Limits,
    /// The session of the newest publication, made again when there is a newer one.
    snapshots: Snapshots,
    registry: Arc<Registry>,
}

impl QueryEngine {
    /// A query path over this lake.
    pub fn new(lake: Lake, limits: Limits) -> Self {
        let clock = Arc::clone(lake.clock());
        let registry = Arc::new(Registry::new(Arc::clone(&clock)));
        let queries = Arc::new(Queries { registry: Arc::clone(&registry), clock });
        Self { shared: Arc::new(Shared { snapshots: Snapshots::new(lake.clone(), queries), lake, limits, registry }) }
    }

    /// The lake that is served.
    pub fn lake(&self) -> &Lake {
        &self.shared.lake
    }

    /// The limits that hold for each statement.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// A connection (for Flight SQL: a session) of one user through one door. Cheap; dropping it frees all it has.
    pub fn connect(&self, door: Door, user: &str) -> Connection {
        Connection {
            engine: self.clone(),
            door,
            user: user.to_owned(),
            state: Mutex::new(ConnectionState {
                settings: Settings::of_user(user),
                transaction: None,
                publication: None,
                session: None,
            }),
        }
    }

    /// What runs now, oldest first.
    pub fn running(&self) -> Vec<RunningQuery> {
        self.shared.registry.running()
    }

    /// What has run since the start, by door and outcome; for `/metrics`.
    pub fn totals(&self) -> Vec<Totals> {
        self.shared.registry.totals()
    }

    /// Cancels a running statement; `false` if there is none of this id (any more).
    pub fn cancel(&self, id: QueryId) -> bool {
        self.shared.registry.cancel(id)
    }
}

/// One client's side of the query path: its settings and its pin. All methods take `&self`, so that a door may share it
/// between calls.
///
/// What is deep in the engine is boxed here: else each handler of each door would be checked through all of it.
pub struct Connection {
    engine: QueryEngine,
    door: Door,
    user: String,
    /// Held for a moment only, never across an await.
    state: Mutex<ConnectionState>,
}

struct ConnectionState {
    settings: Settings,
    /// What all statements of the open transaction see.
    transaction: Option<Pinned>,
    /// What `lakebeat.publication` names, once it was looked up.
    publication: Option<Pinned>,
    /// The session that planned the last statement: it serves the next one if neither snapshot nor settings changed.
    session: Option<PlannedWith>,
}

/// What statements to come will read. Its files stay until then.
#[derive(Clone)]
struct Pinned {
    snapshot: Arc<Snapshot>,
    _reading: Option<Arc<Reading>>,
}

struct PlannedWith {
    snapshot: Arc<Snapshot>,
    settings: Settings,
    state: Opaque<SessionState>,
}

impl Connection {
    /// The query path that this is a connection to.
    pub fn engine(&self) -> &QueryEngine {
        &self.engine
    }

    /// The user's name, as the client said or proved it.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// A copy of the settings that hold now.
    pub fn settings(&self) -> Settings {
        self.lock().settings.clone()
    }

    /// Sets one setting; the next statement sees it.
    ///
    /// # Errors
    /// As [`Settings::set`]; `UndefinedObject` for a publication that is not there.
    pub async fn set(&self, name: &str, value: &str) -> Result<()> {
        let mut changed = self.settings();
        changed.set(name, value)?;
        self.replace_settings(changed).await
    }

    /// Puts other settings in the place of all.
    ///
    /// # Errors
    /// `UndefinedObject` for a publication that is not there; then nothing is changed.
    pub async fn replace_settings(&self, settings: Settings) -> Result<()> {
        let known = {
            let state = self.lock();
            state.publication.clone().filter(|known| Some(known.snapshot.id()) == settings.publication)
        };
        let publication = match (settings.publication, known) {
            (None, _) => None,
            (Some(_), Some(known)) => Some(known),
            (Some(id), None) => Some(self.pinned(self.engine.shared.snapshots.at(id).boxed().await?)),
        };
        let mut state = self.lock();
        state.settings = settings;
        state.publication = publication;
        Ok(())
    }

    /// Pins the following statements to what is newest now (the start of a transaction) until [`Self::unpin`].
    pub async fn pin_newest(&self) -> Result<()> {
        let snapshot = self.planned_on().await?;
        self.lock().transaction = Some(self.pinned(snapshot));
        Ok(())
    }

    fn pinned(&self, snapshot: Arc<Snapshot>) -> Pinned {
        let reading = snapshot.publication().map(|publication| Arc::new(self.engine.lake().hold(publication)));
        Pinned { snapshot, _reading: reading }
    }

    /// Ends a pin: the next statement sees the newest publication again.
    pub fn unpin(&self) {
        self.lock().transaction = None;
    }

    /// What the next statement would see, with bronze and the system tables as they are now; for reading the catalog.
    pub async fn snapshot(&self) -> Result<Arc<Snapshot>> {
        let snapshot = self.planned_on().await?;
        self.engine.shared.snapshots.with_heads(&snapshot).boxed().await
    }

    /// What the next statement is planned on: the publication that was set, the one of the transaction, or the newest.
    async fn planned_on(&self) -> Result<Arc<Snapshot>> {
        let pinned = {
            let state = self.lock();
            state.publication.clone().or_else(|| state.transaction.clone())
        };
        match pinned {
            Some(pinned) => Ok(pinned.snapshot),
            None => self.engine.shared.snapshots.newest().boxed().await,
        }
    }

    /// The planner's session for this snapshot with the settings that hold now.
    fn session(&self, snapshot: &Arc<Snapshot>) -> Result<(Opaque<SessionState>, Settings)> {
        let mut state = self.lock();
        if let Some(last) = &state.session
            && Arc::ptr_eq(&last.snapshot, snapshot)
            && last.settings == state.settings
        {
            return Ok((last.state.clone(), last.settings.clone()));
        }
        let settings = state.settings.clone();
        let made = Opaque::new(planner::session(snapshot, &settings)?);
        state.session =
            Some(PlannedWith { snapshot: Arc::clone(snapshot), settings: settings.clone(), state: made.clone() });
        Ok((made, settings))
    }

    /// Parses, checks and plans one statement on what is newest now, or pinned. Placeholders are `?` or `$1`, not
    /// both in one statement.
    pub async fn prepare(&self, sql: &str) -> Result<Prepared> {
        self.prepare_with_types(sql, &[]).await
    }

    /// As [`Self::prepare`], with the types that the client declared for the first parameters (`None`: not declared).
    pub async fn prepare_with_types(&self, sql: &str, declared: &[Option<DataType>]) -> Result<Prepared> {
        let snapshot = self.planned_on().await?;
        planner::prepare(self, snapshot, sql, declared).boxed().await
    }

    /// The same statement on what is newest now (or pinned): as it is when nothing was published since, else planned
    /// again. A door calls it where a statement that was prepared long ago is executed, so that nothing is stale; it
    /// does not where the client holds a ticket for one moment.
    pub async fn refresh(&self, prepared: &Prepared) -> Result<Prepared> {
        let snapshot = self.planned_on().await?;
        let same_settings = self.lock().settings == prepared.settings;
        if same_settings && Arc::ptr_eq(&snapshot, &prepared.snapshot) {
            return Ok(prepared.clone());
        }
        let declared: Vec<_> = prepared.parameters.iter().map(|parameter| Some(parameter.data_type.clone())).collect();
        planner::prepare(self, snapshot, &prepared.sql, &declared).boxed().await
    }

    /// Starts a prepared statement on the publication it is pinned to. `values` are `$1`, `$2`, … in order; each is cast
    /// to the type of its parameter. Dropping the stream cancels the statement.
    pub async fn execute(&self, prepared: &Prepared, values: Vec<ScalarValue>) -> Result<ResultStream> {
        planner::execute(self, prepared, values).boxed().await
    }

    /// Prepares and executes one statement without parameters.
    pub async fn query(&self, sql: &str) -> Result<ResultStream> {
        let prepared = self.prepare(sql).await?;
        self.execute(&prepared, Vec::new()).await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ConnectionState> {
        // What is inside is a set of plain values: a panic between two of them leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A statement that was parsed, found harmless, and planned on one publication. Cheap to clone; it may outlive its
/// connection (a ticket).
#[derive(Clone)]
pub struct Prepared {
    /// The statement as the client wrote it.
    sql: Arc<str>,
    plan: Opaque<LogicalPlan>,
    /// The session that planned it, and that will run it: settings, functions, memory pool.
    session: Opaque<SessionState>,
    /// What `session` was made from.
    settings: Settings,
    snapshot: Arc<Snapshot>,
    schema: SchemaRef,
    parameters: Arc<[Parameter]>,
}

impl Prepared {
    /// The statement as the client wrote it.
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// The schema of the rows, normalised.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The parameters in the order of their numbers, normalised; text where nothing says otherwise.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The publication that it reads; `None` before the first one.
    pub fn publication(&self) -> Option<&Publication> {
        self.snapshot.publication()
    }
}

/// One statement through the query path, for a command line: its schema and its rows.
///
/// # Errors
/// As [`Connection::prepare`] and [`Connection::execute`].
pub async fn run_once(lake: Lake, sql: &str) -> Result<ResultStream> {
    let engine = QueryEngine::new(lake, Limits::default());
    engine.connect(Door::CommandLine, "local").query(sql).await
}

/// The refusal of a statement that is longer than the limit.
fn check_length(sql: &str, limits: &Limits) -> Result<()> {
    if sql.len() > limits.statement_bytes_max {
        return Err(Error::new(
            Kind::OutOfResources,
            format!("the statement has {} bytes; at most {} are accepted", sql.len(), limits.statement_bytes_max),
        ));
    }
    Ok(())
}
