//! What each protocol message does (PostgreSQL 16, §55.2). pgwire calls in here; the order of answers is the protocol's.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use futures::{Sink, SinkExt, StreamExt};
use pgwire::api::auth::{
    ServerParameterProvider, StartupHandler, finish_authentication, protocol_negotiation,
    save_startup_parameters_to_metadata,
};
use pgwire::api::portal::{Format, Portal, PortalExecutionState};
use pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler, send_ready_for_query};
use pgwire::api::results::{
    DescribePortalResponse, DescribeResponse, DescribeStatementResponse, FieldFormat, FieldInfo, QueryResponse,
    Response, Tag,
};
use pgwire::api::stmt::{QueryParser, StoredStatement};
use pgwire::api::store::{Entry, PortalStore};
use pgwire::api::{
    ClientInfo, ClientPortalStore, DEFAULT_NAME, METADATA_DATABASE, METADATA_USER, PgWireConnectionState,
    PidSecretKeyGenerator, Type,
};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::data::{FieldDescription, RowDescription};
use pgwire::messages::extendedquery::{
    Bind, BindComplete, Close, CloseComplete, Execute, Parse, ParseComplete, PortalSuspended, Sync as SyncMessage,
    TARGET_TYPE_BYTE_PORTAL, TARGET_TYPE_BYTE_STATEMENT,
};
use pgwire::messages::response::{EmptyQueryResponse, NoticeResponse, TransactionStatus};
use pgwire::messages::simplequery::Query;
use pgwire::messages::startup::ParameterStatus;
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::cancel::{CancelGuard, CancelSignal};
use super::rows::{self, text_rows};
use super::session::{Closes, REPORTED, Reply, Session, columns};
use super::statement::{self, Command};
use super::{Door, decode, types};
use crate::error::{Error, Kind, Result};
use crate::query::{CATALOG, Prepared, Settings, cancelled_error};

/// The messages of one connection.
pub(super) struct Handler {
    door: Arc<Door>,
    gone: CancellationToken,
    /// There from the greeting on.
    started: OnceLock<Started>,
}

struct Started {
    session: Session,
    _cancel: CancelGuard,
    _place: OwnedSemaphorePermit,
}

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

/// An error for the wire.
pub(super) fn error_info(severity: &str, error: &Error) -> ErrorInfo {
    if error.kind() == Kind::Bug {
        tracing::error!(error = ?error, "a statement failed on a fault of ours; please report it");
    }
    let mut info = ErrorInfo::new(severity.to_owned(), error.kind().sqlstate().to_owned(), error.message().to_owned());
    info.severity_nonlocalized = Some(severity.to_owned());
    info
}

impl From<Error> for PgWireError {
    fn from(error: Error) -> Self {
        Self::UserError(Box::new(error_info("ERROR", &error)))
    }
}

fn fatal(error: &Error) -> PgWireError {
    PgWireError::UserError(Box::new(error_info("FATAL", error)))
}

impl Handler {
    pub(super) fn new(door: Arc<Door>, gone: CancellationToken) -> Self {
        Self { door, gone, started: OnceLock::new() }
    }

    fn session(&self) -> Result<&Session> {
        self.started
            .get()
            .map(|started| &started.session)
            .ok_or_else(|| Error::new(Kind::Protocol, "a statement came before the greeting"))
    }

    /// Makes the session that a startup message asks for.
    async fn start<C: ClientInfo>(&self, client: &mut C) -> Result<Settings> {
        let place = Arc::clone(&self.door.places)
            .try_acquire_owned()
            .map_err(|_| Error::new(Kind::TooMany, "sorry, too many clients already; close some connections"))?;
        let metadata = client.metadata();
        let database = metadata.get(METADATA_DATABASE).map_or(CATALOG, String::as_str);
        if database != CATALOG {
            return Err(Error::new(
                Kind::UndefinedDatabase,
                format!("database \"{database}\" does not exist; the database is \"{CATALOG}\""),
            ));
        }
        let user = metadata.get(METADATA_USER).map_or("", String::as_str);
        let connection = self.door.engine.connect(crate::query::Door::Postgres, user);
        for (name, value) in startup_settings(metadata) {
            connection.set(&name, &value).await?;
        }
        // What a client asks for in its startup message is what a reset goes back to.
        let settings = connection.settings();
        let (id, secret) = self.door.keys.generate(client);
        client.set_pid_and_secret_key(id, secret.clone());
        let signal = Arc::new(CancelSignal::new(self.gone.clone()));
        let cancel = self.door.cancels.register(id, secret, Arc::clone(&signal));
        let started = Started { session: Session::new(connection, signal), _cancel: cancel, _place: place };
        if self.started.set(started).is_err() {
            return Err(Error::new(Kind::Protocol, "a connection starts only once"));
        }
        Ok(settings)
    }
}

/// The settings in a startup message: by their own names, and in `options` as `-c name=value`.
fn startup_settings(metadata: &HashMap<String, String>) -> Vec<(String, String)> {
    let is_ours =
        |name: &str| ["user", "database", "replication", "options"].contains(&name) || name.starts_with("_pq_.");
    let mut settings: Vec<(String, String)> =
        metadata.iter().filter(|(name, _)| !is_ours(name)).map(|(name, value)| (name.clone(), value.clone())).collect();
    settings.sort();
    let options = metadata.get("options").map_or("", String::as_str);
    for option in options.split_whitespace() {
        let option = option.trim_start_matches("--").trim_start_matches("-c");
        if let Some((name, value)) = option.split_once('=') {
            settings.push((name.to_owned(), value.to_owned()));
        }
    }
    settings
}

struct Greeting<'a>(&'a Settings);

impl ServerParameterProvider for Greeting<'_> {
    fn server_parameters<C: ClientInfo>(&self, _client: &C) -> Option<HashMap<String, String>> {
        let told = REPORTED.iter().chain(&["server_version", "session_authorization", "search_path"]);
        Some(told.filter_map(|name| Some(((*name).to_owned(), self.0.show(name).ok()?))).collect())
    }
}

#[async_trait]
impl StartupHandler for Handler {
    async fn on_startup<C>(&self, client: &mut C, message: PgWireFrontendMessage) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let PgWireFrontendMessage::Startup(startup) = message else {
            return Err(fatal(&Error::new(Kind::Protocol, "a connection starts with a startup message")));
        };
        protocol_negotiation(client, &startup).await?;
        save_startup_parameters_to_metadata(client, &startup);
        let settings = self.start(client).await.map_err(|error| fatal(&error))?;
        finish_authentication(client, &Greeting(&settings)).await
    }
}

#[async_trait]
impl SimpleQueryHandler for Handler {
    /// All statements of a query message, in order; the first error ends it.
    async fn on_query<C>(&self, client: &mut C, query: Query) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let session = self.session()?;
        session.next_group();
        let statements = statement::split(&query.query);
        if statements.is_empty() {
            client.feed(PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new())).await?;
        }
        // Several statements in one message are one transaction, so they see one moment.
        let is_one_moment = statements.len() > 1 && client.transaction_status() == TransactionStatus::Idle;
        if is_one_moment {
            session.connection.pin_newest().await?;
        }
        let mut result = Ok(());
        for sql in statements {
            session.cancel.renew();
            result = run_simple(session, client, sql).await;
            if result.is_err() {
                break;
            }
        }
        if is_one_moment && client.transaction_status() == TransactionStatus::Idle {
            session.connection.unpin();
        }
        result?;
        client.set_state(PgWireConnectionState::ReadyForQuery);
        let status = client.transaction_status();
        send_ready_for_query(client, status).await
    }

    async fn do_query<C>(&self, _client: &mut C, _query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        Err(not_called())
    }
}

async fn run_simple<C>(session: &Session, client: &mut C, sql: &str) -> PgWireResult<()>
where
    C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
    C::PortalStore: PortalStore,
    C::Error: Debug,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let command = statement::classify(sql)?;
    session.check(&command, client.transaction_status())?;
    let Command::Query { sql, tag } = &command else {
        return run_session(session, client, &command, &Format::UnifiedText, Describe::Yes).await;
    };
    let prepared = or_cancelled(session, session.connection.prepare(sql)).await?;
    let mut response = start(session, &prepared, Vec::new(), &Format::UnifiedText, tag).await?;
    send_row_description(client, &response.row_schema()).await?;
    let rows = send_rows(client, &mut response, usize::MAX).await?.rows;
    client.feed(complete(tag, rows)).await?;
    Ok(())
}

/// Whether rows are announced before they come: in the simple protocol.
#[derive(Clone, Copy, PartialEq)]
enum Describe {
    Yes,
    No,
}

/// Runs a session statement and answers it.
async fn run_session<C>(
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

fn close<C>(session: &Session, client: &C, reply: &Reply)
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

fn session_fields(command: &Command, format: &Format) -> Result<Vec<FieldInfo>> {
    let columns = columns(command);
    if let Format::Individual(codes) = format
        && codes.len() != columns.len()
    {
        return Err(wrong_formats(codes.len(), columns.len()));
    }
    // Text is the same in both formats.
    Ok(columns.iter().enumerate().map(|(index, name)| types::text_field(name, format.format_for(index))).collect())
}

fn wrong_formats(formats: usize, columns: usize) -> Error {
    Error::new(Kind::Protocol, format!("bind message has {formats} formats for {columns} columns or parameters"))
}

/// Waits for the query path, or for a cancel request, or for the client to go.
async fn or_cancelled<T>(session: &Session, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        () = session.cancel.cancelled() => Err(cancelled_error()),
        result = work => result,
    }
}

/// Starts a statement of the query path; its rows are encoded as they are read.
async fn start(
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

async fn send_row_description<C>(client: &mut C, fields: &[FieldInfo]) -> PgWireResult<()>
where
    C: Sink<PgWireBackendMessage> + Unpin + Send,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let description = RowDescription::new(fields.iter().map(FieldDescription::from).collect());
    client.feed(PgWireBackendMessage::RowDescription(description)).await?;
    Ok(())
}

/// How far a portal was read.
struct Sent {
    rows: usize,
    is_finished: bool,
}

/// Sends up to so many rows, each as it comes.
async fn send_rows<C>(client: &mut C, response: &mut QueryResponse, rows_max: usize) -> PgWireResult<Sent>
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

fn complete(tag: &str, rows: usize) -> PgWireBackendMessage {
    // Only these say how many rows there were.
    let tag = if tag == "SELECT" { Tag::new(tag).with_rows(rows) } else { Tag::new(tag) };
    PgWireBackendMessage::CommandComplete(tag.into())
}

fn not_called() -> PgWireError {
    PgWireError::from(Error::new(Kind::Bug, "a message took a way that does not exist; please report this"))
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
        Ok(Some(Statement::Query { prepared, tag: *tag, declared: types.to_vec(), group: session.group() }))
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
            Statement::Query { prepared, tag, group, .. } => {
                // PostgreSQL's zero means all.
                let rows_max = usize::try_from(message.max_rows).ok().filter(|rows| *rows > 0).unwrap_or(usize::MAX);
                let is_fresh = *group == session.group();
                run_portal(session, client, &portal, prepared, is_fresh, *tag, rows_max).await
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
    prepared: &Prepared,
    is_fresh: bool,
    tag: &'static str,
    rows_max: usize,
) -> PgWireResult<()>
where
    C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
    C::Error: Debug,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    session.check(&Command::Query { sql: String::new(), tag }, client.transaction_status())?;
    let state = portal.state();
    let mut state = state.lock().await;
    if matches!(*state, PortalExecutionState::Initial) {
        let response = start_portal(session, portal, prepared, is_fresh, tag).await?;
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
            complete(tag, rows)
        }
        Err(error) => {
            *state = PortalExecutionState::Finished;
            return Err(error);
        }
    };
    client.feed(answer).await?;
    Ok(())
}

async fn start_portal(
    session: &Session,
    portal: &Portal<Statement>,
    prepared: &Prepared,
    is_fresh: bool,
    tag: &str,
) -> Result<QueryResponse> {
    let values = parameter_values(portal)?;
    let format = &portal.result_column_format;
    if is_fresh {
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

fn parameter_values(portal: &Portal<Statement>) -> Result<Vec<datafusion::common::ScalarValue>> {
    let types = parameter_types(&portal.statement.statement);
    portal
        .parameters
        .iter()
        .zip(&types)
        .enumerate()
        .map(|(index, (bytes, data_type))| {
            let is_binary = portal.parameter_format.format_for(index) == FieldFormat::Binary;
            decode::value(bytes.as_deref(), data_type, is_binary)
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
