//! What both protocols answer with: the outcome of a session statement, and the rows of a query.

use std::fmt::Debug;
use std::sync::Arc;

use futures::{Sink, SinkExt, StreamExt};
use pgwire::api::portal::Format;
use pgwire::api::results::{FieldInfo, QueryResponse, Tag};
use pgwire::api::store::PortalStore;
use pgwire::api::{ClientInfo, ClientPortalStore};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::data::{FieldDescription, RowDescription};
use pgwire::messages::response::NoticeResponse;
use pgwire::messages::startup::ParameterStatus;

use super::rows::{self, text_rows};
use super::session::{Closes, REPORTED, Reply, Session, columns};
use super::statement::Command;
use super::types;
use crate::error::{Error, Kind, Result};
use crate::query::{Prepared, cancelled_error};

/// Whether rows are announced before they come: in the simple protocol.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Describe {
    Yes,
    No,
}

/// Runs a session statement and answers it.
pub(super) async fn run_session<C>(
    session: &Session,
    client: &mut C,
    command: &Command,
    format: &Format,
    describe: Describe,
) -> PgWireResult<()>
where
    C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
    C::PortalStore: PortalStore,
    C::Error: Debug,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let before = session.connection.settings();
    let reply = or_cancelled(session, session.run(command, client.transaction_status())).await?;
    if let Some(status) = reply.status {
        client.set_transaction_status(status);
    }
    close(session, client, &reply);
    if let Some((state, message)) = &reply.warning {
        let info = ErrorInfo::new("WARNING".to_owned(), (*state).to_owned(), message.clone());
        client.feed(PgWireBackendMessage::NoticeResponse(NoticeResponse::from(info))).await?;
    }
    if let Some(rows) = &reply.rows {
        let fields = session_fields(command, format)?;
        if describe == Describe::Yes {
            send_row_description(client, &fields).await?;
        }
        for row in text_rows(rows) {
            client.feed(PgWireBackendMessage::DataRow(row)).await?;
        }
    }
    let after = session.connection.settings();
    for name in REPORTED {
        let (old, new) = (before.show(name)?, after.show(name)?);
        if old != new {
            let status = ParameterStatus::new(name.to_owned(), new);
            client.feed(PgWireBackendMessage::ParameterStatus(status)).await?;
        }
    }
    client.feed(PgWireBackendMessage::CommandComplete(Tag::new(&reply.tag).into())).await?;
    Ok(())
}

pub(super) fn close<C>(session: &Session, client: &C, reply: &Reply)
where
    C: ClientPortalStore,
    C::PortalStore: PortalStore,
{
    match &reply.closes {
        Closes::Nothing => {}
        Closes::Portals => client.portal_store().clear_portals(),
        Closes::Statements(names) => {
            for name in names {
                client.portal_store().rm_statement(name);
                session.remove_statement(name);
            }
        }
    }
}

pub(super) fn session_fields(command: &Command, format: &Format) -> Result<Vec<FieldInfo>> {
    let columns = columns(command);
    if let Format::Individual(codes) = format
        && codes.len() != columns.len()
    {
        return Err(wrong_formats(codes.len(), columns.len()));
    }
    // Text is the same in both formats.
    Ok(columns.iter().enumerate().map(|(index, name)| types::text_field(name, format.format_for(index))).collect())
}

pub(super) fn wrong_formats(formats: usize, columns: usize) -> Error {
    Error::new(Kind::Protocol, format!("bind message has {formats} formats for {columns} columns or parameters"))
}

/// Waits for the query path, or for a cancel request, or for the client to go.
pub(super) async fn or_cancelled<T>(session: &Session, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        () = session.cancel.cancelled() => Err(cancelled_error()),
        result = work => result,
    }
}

/// Starts a statement of the query path; its rows are encoded as they are read.
pub(super) async fn start(
    session: &Session,
    prepared: &Prepared,
    values: Vec<datafusion::common::ScalarValue>,
    format: &Format,
    tag: &str,
) -> Result<QueryResponse> {
    let fields = Arc::new(types::fields(prepared.schema(), format)?);
    let stream = or_cancelled(session, session.connection.execute(prepared, values)).await?;
    let zone = session.connection.settings().time_zone;
    let rows = rows::encode(stream, &fields, &zone, Arc::clone(&session.cancel));
    let mut response = QueryResponse::new(fields, rows);
    response.set_command_tag(tag);
    Ok(response)
}

pub(super) async fn send_row_description<C>(client: &mut C, fields: &[FieldInfo]) -> PgWireResult<()>
where
    C: Sink<PgWireBackendMessage> + Unpin + Send,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let description = RowDescription::new(fields.iter().map(FieldDescription::from).collect());
    client.feed(PgWireBackendMessage::RowDescription(description)).await?;
    Ok(())
}

/// How far a portal was read.
pub(super) struct Sent {
    pub(super) rows: usize,
    pub(super) is_finished: bool,
}

/// Sends up to so many rows, each as it comes.
pub(super) async fn send_rows<C>(client: &mut C, response: &mut QueryResponse, rows_max: usize) -> PgWireResult<Sent>
where
    C: Sink<PgWireBackendMessage> + Unpin + Send,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let mut rows = 0;
    while rows < rows_max {
        match response.data_rows().next().await {
            Some(row) => client.feed(PgWireBackendMessage::DataRow(row?)).await?,
            None => return Ok(Sent { rows, is_finished: true }),
        }
        rows += 1;
    }
    Ok(Sent { rows, is_finished: false })
}

pub(super) fn complete(tag: &str, rows: usize) -> PgWireBackendMessage {
    // Only these say how many rows there were.
    let tag = if tag == "SELECT" { Tag::new(tag).with_rows(rows) } else { Tag::new(tag) };
    PgWireBackendMessage::CommandComplete(tag.into())
}

pub(super) fn not_called() -> PgWireError {
    PgWireError::from(Error::new(Kind::Bug, "a message took a way that does not exist; please report this"))
}
