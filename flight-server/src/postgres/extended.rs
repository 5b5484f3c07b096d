//! The extended protocol: statements that are parsed, bound to values, described and executed one message at a time.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::common::ScalarValue;
use futures::{Sink, SinkExt};
use pgwire::api::portal::{Format, Portal, PortalExecutionState};
use pgwire::api::query::{ExtendedQueryHandler, send_ready_for_query};
use pgwire::api::results::{
    DescribePortalResponse, DescribeResponse, DescribeStatementResponse, FieldInfo, QueryResponse, Response,
};
use pgwire::api::stmt::{QueryParser, StoredStatement};
use pgwire::api::store::{Entry, PortalStore};
use pgwire::api::{ClientInfo, ClientPortalStore, DEFAULT_NAME, Type};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::extendedquery::{
    Bind, BindComplete, Close, CloseComplete, Execute, Parse, ParseComplete, PortalSuspended, Sync as SyncMessage,
    TARGET_TYPE_BYTE_PORTAL, TARGET_TYPE_BYTE_STATEMENT,
};
use pgwire::messages::response::{EmptyQueryResponse, TransactionStatus};

use super::answer::{
    Describe, Sent, complete, not_called, or_cancelled, run_session, send_rows, session_fields, start, wrong_formats,
};
use super::handler::Handler;
use super::session::{Session, columns};
use super::statement::{self, Command};
use super::{decode, types};
use crate::error::{Error, Kind, Result};
use crate::query::Prepared;

/// A prepared statement of the extended protocol.
#[derive(Clone)]
pub(super) enum Statement {
    /// About the session.
    Session(Command),
    /// About data.
    Query {
        prepared: Prepared,
        tag: &'static str,
        /// The types that the client declared, as it sends its values.
        declared: Vec<Option<Type>>,
        /// The group of messages in which it was parsed.
        group: u64,
    },
}

impl Handler {
    /// What a parse message prepares; `None` for an empty statement.
    async fn parse(&self, status: TransactionStatus, sql: &str, types: &[Option<Type>]) -> Result<Option<Statement>> {
        let session = self.session()?;
        let statements = statement::split(sql);
        let sql = match statements.as_slice() {
            [] => return Ok(None),
            [one] => *one,
            _ => {
                let message = "cannot insert multiple commands into a prepared statement";
                return Err(Error::new(Kind::Syntax, message));
            }
        };
        let command = statement::classify(sql)?;
        session.check(&command, status)?;
        let Command::Query { sql, tag } = &command else {
            return Ok(Some(Statement::Session(command)));
        };
        let declared: Vec<_> = types.iter().map(|declared| declared.as_ref().and_then(types::declared_type)).collect();
        let prepared = or_cancelled(session, session.connection.prepare_with_types(sql, &declared)).await?;
        Ok(Some(Statement::Query { prepared, tag, declared: types.to_vec(), group: session.group() }))
    }
}

/// The columns that a statement answers with; none for most session statements.
fn result_fields(statement: &Statement, format: &Format) -> Result<Vec<FieldInfo>> {
    match statement {
        Statement::Session(command) if columns(command).is_empty() => Ok(Vec::new()),
        Statement::Session(command) => session_fields(command, format),
        Statement::Query { prepared, .. } => types::fields(prepared.schema(), format),
    }
}

/// The types in which the client is to send its values: as it declared them, else as the planner has them.
fn parameter_types(statement: &Statement) -> Vec<Type> {
    let Statement::Query { prepared, declared, .. } = statement else {
        return Vec::new();
    };
    let own = |index: usize| {
        declared.get(index).cloned().flatten().filter(|declared| types::declared_type(declared).is_some())
    };
    prepared
        .parameters()
        .iter()
        .enumerate()
        .map(|(index, parameter)| own(index).unwrap_or_else(|| types::postgres_type(&parameter.data_type)))
        .collect()
}

#[async_trait]
impl ExtendedQueryHandler for Handler {
    type Statement = Statement;
    type QueryParser = NoParser;

    fn query_parser(&self) -> Arc<NoParser> {
        Arc::new(NoParser)
    }

    async fn on_parse<C>(&self, client: &mut C, message: Parse) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let session = self.session()?;
        session.cancel.renew();
        let types: Vec<Option<Type>> = message.type_oids.iter().map(|oid| Type::from_oid(*oid)).collect();
        let statement = self.parse(client.transaction_status(), &message.query, &types).await?;
        // An unnamed statement takes the place of the one before; a name is taken until it is closed.
        if let Some(name) = message.name.as_deref().filter(|name| !name.is_empty()) {
            session.add_statement(name)?;
        }
        let name = message.name.filter(|name| !name.is_empty()).unwrap_or_else(|| DEFAULT_NAME.to_owned());
        match statement {
            Some(statement) => {
                client.portal_store().put_statement(Arc::new(StoredStatement::new(name, statement, types)));
            }
            None => client.portal_store().put_empty_statement(&name),
        }
        client.feed(PgWireBackendMessage::ParseComplete(ParseComplete::new())).await?;
        Ok(())
    }

    async fn on_bind<C>(&self, client: &mut C, message: Bind) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let statement_name = message.statement_name.as_deref().unwrap_or(DEFAULT_NAME);
        let portal_name = message.portal_name.as_deref().unwrap_or(DEFAULT_NAME);
        match client.portal_store().get_statement(statement_name) {
            Some(Entry::Value(statement)) => {
                check_bind(&message, &statement.statement)?;
                let portal = Portal::try_new(&message, statement)?;
                client.portal_store().put_portal(Arc::new(portal));
            }
            Some(Entry::Empty) => client.portal_store().put_empty_portal(portal_name),
            None => return Err(no_statement(statement_name).into()),
        }
        client.feed(PgWireBackendMessage::BindComplete(BindComplete::new())).await?;
        Ok(())
    }

    async fn on_execute<C>(&self, client: &mut C, message: Execute) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let session = self.session()?;
        session.cancel.renew();
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        let portal = match client.portal_store().get_portal(name) {
            Some(Entry::Value(portal)) => portal,
            Some(Entry::Empty) => {
                client.feed(PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new())).await?;
                return Ok(());
            }
            None => {
                let message = format!("portal \"{}\" does not exist", shown(name));
                return Err(Error::new(Kind::UndefinedPortal, message).into());
            }
        };
        match &portal.statement.statement {
            Statement::Session(command) => {
                run_session(session, client, command, &portal.result_column_format, Describe::No).await
            }
            Statement::Query { .. } => {
                // PostgreSQL's zero means all.
                let rows_max = usize::try_from(message.max_rows).ok().filter(|rows| *rows > 0).unwrap_or(usize::MAX);
                run_portal(session, client, &portal, rows_max).await
            }
        }
    }

    async fn on_sync<C>(&self, client: &mut C, _message: SyncMessage) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        self.session()?.next_group();
        let status = client.transaction_status();
        // Outside of a transaction block this ends the transaction, and portals live in one.
        if status == TransactionStatus::Idle {
            client.portal_store().clear_portals();
        }
        send_ready_for_query(client, status).await
    }

    async fn on_close<C>(&self, client: &mut C, message: Close) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        match message.target_type {
            TARGET_TYPE_BYTE_STATEMENT => {
                self.session()?.remove_statement(name);
                client.portal_store().rm_statement(name);
            }
            TARGET_TYPE_BYTE_PORTAL => client.portal_store().rm_portal(name),
            other => {
                let message = format!("close of something unknown ({other})");
                return Err(Error::new(Kind::Protocol, message).into());
            }
        }
        client.feed(PgWireBackendMessage::CloseComplete(CloseComplete::new())).await?;
        Ok(())
    }

    async fn do_describe_statement<C>(
        &self,
        _client: &mut C,
        target: &StoredStatement<Statement>,
    ) -> PgWireResult<DescribeStatementResponse>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let fields = result_fields(&target.statement, &Format::UnifiedText)?;
        if fields.is_empty() {
            return Ok(DescribeStatementResponse::no_data());
        }
        Ok(DescribeStatementResponse::new(parameter_types(&target.statement), fields))
    }

    async fn do_describe_portal<C>(
        &self,
        _client: &mut C,
        target: &Portal<Statement>,
    ) -> PgWireResult<DescribePortalResponse>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let format = &target.result_column_format;
        Ok(DescribePortalResponse::new(result_fields(&target.statement.statement, format)?))
    }

    async fn do_query<C>(
        &self,
        _client: &mut C,
        _portal: &Portal<Statement>,
        _max_rows: usize,
    ) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        Err(not_called())
    }
}

/// Formats and values must be as many as there are parameters and columns; pgwire would count past the end.
fn check_bind(message: &Bind, statement: &Statement) -> Result<()> {
    let parameters = parameter_types(statement).len();
    if message.parameters.len() != parameters {
        return Err(Error::new(
            Kind::Protocol,
            format!(
                "bind message supplies {} parameters, but the prepared statement requires {parameters}",
                message.parameters.len()
            ),
        ));
    }
    let columns = match statement {
        Statement::Session(command) => columns(command).len(),
        Statement::Query { prepared, .. } => prepared.schema().fields().len(),
    };
    for (formats, of) in [(&message.parameter_format_codes, parameters), (&message.result_column_format_codes, columns)]
    {
        if formats.len() > 1 && formats.len() != of {
            return Err(wrong_formats(formats.len(), of));
        }
        if let Some(unknown) = formats.iter().find(|format| !(0..=1).contains(*format)) {
            return Err(Error::new(Kind::Protocol, format!("unsupported format code: {unknown}")));
        }
    }
    Ok(())
}

fn tag_of(statement: &Statement) -> &'static str {
    match statement {
        Statement::Query { tag, .. } => tag,
        Statement::Session(_) => "",
    }
}

fn no_statement(name: &str) -> Error {
    Error::new(Kind::UndefinedStatement, format!("prepared statement \"{}\" does not exist", shown(name)))
}

fn shown(name: &str) -> &str {
    if name == DEFAULT_NAME { "" } else { name }
}

/// Starts a portal, or goes on with one, and sends its next rows.
async fn run_portal<C>(
    session: &Session,
    client: &mut C,
    portal: &Portal<Statement>,
    rows_max: usize,
) -> PgWireResult<()>
where
    C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
    C::Error: Debug,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    session.check_query(client.transaction_status())?;
    let state = portal.state();
    let mut state = state.lock().await;
    if matches!(*state, PortalExecutionState::Initial) {
        let response = start_portal(session, portal).await?;
        *state = PortalExecutionState::Suspended(response);
    }
    let sent = match &mut *state {
        PortalExecutionState::Suspended(response) => send_rows(client, response, rows_max).await,
        // Asked again after its end: nothing more.
        _ => Ok(Sent { rows: 0, is_finished: true }),
    };
    let answer = match sent {
        Ok(Sent { is_finished: false, .. }) => PgWireBackendMessage::PortalSuspended(PortalSuspended::new()),
        Ok(Sent { rows, .. }) => {
            *state = PortalExecutionState::Finished;
            complete(tag_of(&portal.statement.statement), rows)
        }
        Err(error) => {
            *state = PortalExecutionState::Finished;
            return Err(error);
        }
    };
    client.feed(answer).await?;
    Ok(())
}

async fn start_portal(session: &Session, portal: &Portal<Statement>) -> Result<QueryResponse> {
    let Statement::Query { prepared, tag, group, .. } = &portal.statement.statement else {
        return Err(Error::new(Kind::Bug, "a session statement has no rows to stream; please report this"));
    };
    let values = parameter_values(portal)?;
    let format = &portal.result_column_format;
    if *group == session.group() {
        return start(session, prepared, values, format, tag).await;
    }
    // Prepared some time ago: it reads what is newest now, as a new statement would.
    let current = or_cancelled(session, session.connection.refresh(prepared)).await?;
    if current.schema() != prepared.schema() {
        return Err(Error::new(
            Kind::Unsupported,
            "cached plan must not change result type: a table has changed since; prepare the statement again",
        ));
    }
    start(session, &current, values, format, tag).await
}

fn parameter_values(portal: &Portal<Statement>) -> Result<Vec<ScalarValue>> {
    let types = parameter_types(&portal.statement.statement);
    portal
        .parameters
        .iter()
        .zip(&types)
        .enumerate()
        .map(|(index, (bytes, data_type))| {
            decode::value(bytes.as_deref(), data_type, portal.parameter_format.format_for(index))
        })
        .collect()
}

/// pgwire asks for a parser; ours needs the session, so [`Handler::on_parse`] does its work.
pub(super) struct NoParser;

#[async_trait]
impl QueryParser for NoParser {
    type Statement = Statement;

    async fn parse_sql<C>(&self, _client: &C, _sql: &str, _types: &[Option<Type>]) -> PgWireResult<Option<Statement>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        Err(not_called())
    }

    fn get_parameter_types(&self, _statement: &Statement) -> PgWireResult<Vec<Type>> {
        Err(not_called())
    }

    fn get_result_schema(&self, _statement: &Statement, _format: Option<&Format>) -> PgWireResult<Vec<FieldInfo>> {
        Err(not_called())
    }
}
