//! Statements that the server keeps for its clients: prepared ones, and planned ones that wait for their ticket.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::datatypes::{DataType, SchemaRef};
use tokio_util::sync::CancellationToken;

use super::parameters::{Binding, Values};
use super::session::Session;
use crate::error::{Error, Kind, Result};
use crate::query::{Prepared, ResultStream};

/// A statement that was planned when its FlightInfo was asked for, and runs on that publication whenever the ticket
/// comes back.
pub(super) struct Planned {
    session: Arc<Session>,
    prepared: Prepared,
    /// One run for each; a statement without parameters has one empty row.
    rows: Vec<Values>,
    cancel: CancellationToken,
}

impl Planned {
    /// A statement without parameters.
    ///
    /// # Errors
    /// `InvalidParameter` if it has some: there is nothing to bind them to.
    pub(super) async fn of_text(session: Arc<Session>, sql: &str) -> Result<Self> {
        let prepared = session.connection.prepare(sql).await?;
        refuse_unbound(&prepared)?;
        Ok(Self::new(session, prepared, vec![Values::new()]))
    }

    fn new(session: Arc<Session>, prepared: Prepared, rows: Vec<Values>) -> Self {
        Self { session, prepared, rows, cancel: CancellationToken::new() }
    }

    /// The schema of the rows, normalised.
    pub(super) fn schema(&self) -> &SchemaRef {
        self.prepared.schema()
    }

    /// Starts the run with this number; `None` after the last.
    pub(super) async fn run(&self, number: usize) -> Result<Option<ResultStream>> {
        let Some(values) = self.rows.get(number) else { return Ok(None) };
        if self.cancel.is_cancelled() {
            return Err(Error::new(Kind::Cancelled, "the statement was cancelled by request"));
        }
        let rows = self.session.connection.execute(&self.prepared, values.clone()).await?;
        Ok(Some(rows))
    }

    /// Ends the runs under way, and those to come.
    pub(super) fn cancel(&self) {
        self.cancel.cancel();
    }

    pub(super) fn cancellation(&self) -> &CancellationToken {
        &self.cancel
    }
}

/// A statement that a client prepared, with what it bound to it last.
pub(super) struct PreparedStatement {
    session: Arc<Session>,
    /// The types of its parameters as the statement alone says them, whatever was bound since.
    announced: Vec<DataType>,
    /// Held for a moment only, never across an await.
    state: Mutex<State>,
}

struct State {
    prepared: Prepared,
    rows: Option<Vec<Values>>,
}

impl PreparedStatement {
    pub(super) async fn of_text(session: Arc<Session>, sql: &str) -> Result<Self> {
        let prepared = session.connection.prepare(sql).await?;
        let announced = prepared.parameters().iter().map(|parameter| parameter.data_type.clone()).collect();
        Ok(Self { session, announced, state: Mutex::new(State { prepared, rows: None }) })
    }

    /// The statement as it was planned last.
    pub(super) fn prepared(&self) -> Prepared {
        self.lock().prepared.clone()
    }

    /// Takes a binding in the place of the one before.
    pub(super) async fn bind(&self, binding: Binding) -> Result<()> {
        let prepared = self.typed_by(&binding.types).await?;
        let mut state = self.lock();
        state.prepared = prepared;
        state.rows = Some(binding.rows);
        Ok(())
    }

    /// Plans it on the newest publication, for a ticket. What is bound stays bound.
    ///
    /// # Errors
    /// `InvalidParameter` if it has parameters and nothing is bound.
    pub(super) async fn plan(&self) -> Result<Planned> {
        let (prepared, rows) = {
            let state = self.lock();
            (state.prepared.clone(), state.rows.clone())
        };
        let prepared = self.session.connection.refresh(&prepared).await?;
        let rows = match rows {
            Some(rows) => rows,
            None => {
                refuse_unbound(&prepared)?;
                vec![Values::new()]
            }
        };
        self.lock().prepared = prepared.clone();
        Ok(Planned::new(Arc::clone(&self.session), prepared, rows))
    }

    /// The statement with the types of a binding where nothing in the statement says what a parameter is: `select ?` bound
    /// to a number is a number. Where the statement does say, the value is cast instead.
    async fn typed_by(&self, bound: &[DataType]) -> Result<Prepared> {
        let types = self.announced.iter().zip(bound).map(|(announced, bound)| {
            let is_open = *announced == DataType::Utf8 && !is_text_or_null(bound);
            if is_open { bound.clone() } else { announced.clone() }
        });
        match self.with_types(types.collect()).await {
            // A place that takes text and nothing else refuses the other type; then the value is cast to text.
            Err(_) => self.with_types(self.announced.clone()).await,
            prepared => prepared,
        }
    }

    async fn with_types(&self, types: Vec<DataType>) -> Result<Prepared> {
        let prepared = self.prepared();
        if prepared.parameters().iter().map(|parameter| &parameter.data_type).eq(&types) {
            return Ok(prepared);
        }
        let types: Vec<_> = types.into_iter().map(Some).collect();
        self.session.connection.prepare_with_types(prepared.sql(), &types).await
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Both fields are whole at any moment, whatever panicked in between.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refuse_unbound(prepared: &Prepared) -> Result<()> {
    match prepared.parameters().len() {
        0 => Ok(()),
        count => Err(Error::new(
            Kind::InvalidParameter,
            format!("the statement has {count} parameters, and none are bound: prepare it and bind them first"),
        )),
    }
}

fn is_text_or_null(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Null | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}
