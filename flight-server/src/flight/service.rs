//! The Flight SQL service: each call finds its session, and hands over to the module that knows the answer.
//!
//! **Invariant:** no call reaches the query path without a session, and no handle is used by anybody but its owner.

use std::fmt::Display;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::metadata::{SqlInfoData, XdbcTypeInfoData};
use arrow_flight::sql::server::{DoPutError, FlightSqlService, PeekableFlightDataStream};
use arrow_flight::sql::{
    ActionBeginTransactionRequest, ActionBeginTransactionResult, ActionCancelQueryRequest, ActionCancelQueryResult,
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
    Any, CommandGetCatalogs, CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys,
    CommandGetImportedKeys, CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables,
    CommandGetXdbcTypeInfo, CommandPreparedStatementQuery, CommandPreparedStatementUpdate, CommandStatementIngest,
    CommandStatementQuery, CommandStatementUpdate, DoPutPreparedStatementResult, ProstMessageExt, SqlInfo,
    TicketStatementQuery,
};
use arrow_flight::{Action, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse, Ticket};
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use prost::Message;
use std::pin::Pin;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::handles::Handles;
use super::result::{FlightStream, one_batch, rows, schema_bytes, wire_schema};
use super::session::{Session, Sessions};
use super::statement::{Planned, PreparedStatement};
use super::{Options, internal, metadata, parameters, sql_info, status, type_info};
use crate::query::QueryEngine;

/// The answer to DoAction.
pub(super) type ActionStream = BoxStream<'static, Result<arrow_flight::Result, Status>>;

type HandshakeStream = Pin<Box<dyn Stream<Item = Result<HandshakeResponse, Status>> + Send>>;

/// What all connections to the door share.
pub(super) struct Service {
    sessions: Sessions,
    /// Planned statements that wait for DoGet.
    tickets: Handles<Planned>,
    /// Prepared statements, from their creation until they are closed or forgotten.
    prepared: Handles<PreparedStatement>,
    sql_info: SqlInfoData,
    type_info: XdbcTypeInfoData,
}

impl Service {
    pub(super) fn new(engine: QueryEngine, options: &Options) -> Result<Self, Status> {
        let clock = Arc::clone(engine.lake().clock());
        let state = engine.lake().session_factory().context().state();
        let lifetime_ms = i32::try_from(options.handle_lifetime.as_millis()).unwrap_or(i32::MAX);
        Ok(Self {
            sessions: Sessions::new(engine, options.sessions_max, options.session_lifetime),
            tickets: Handles::new("ticket", options.handles_max, options.handle_lifetime, Arc::clone(&clock)),
            prepared: Handles::new("prepared statement", options.handles_max, options.handle_lifetime, clock),
            sql_info: sql_info::build(&sql_info::Functions::of(&state), lifetime_ms).map_err(internal)?,
            type_info: type_info::build().map_err(internal)?,
        })
    }

    pub(super) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    pub(super) fn tickets(&self) -> &Handles<Planned> {
        &self.tickets
    }

    /// The schema of a statement, which is planned for it and not kept.
    pub(super) async fn schema_of_statement(&self, sql: &str, metadata: &MetadataMap) -> Result<Bytes, Status> {
        let session = self.sessions.caller(metadata)?;
        let prepared = session.connection.prepare(sql).await.map_err(status)?;
        schema_bytes(&wire_schema(prepared.schema()))
    }

    fn caller<T>(&self, request: &Request<T>) -> Result<Arc<Session>, Status> {
        self.sessions.caller(request.metadata())
    }

    /// Keeps a planned statement and announces it: its schema, and a ticket that only this user may redeem.
    fn announce(
        &self,
        session: &Session,
        planned: Planned,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let schema = wire_schema(planned.schema());
        let statement_handle = self.tickets.insert(session.user(), planned)?;
        flight_info(&TicketStatementQuery { statement_handle }, &schema, request)
    }

    /// Announces a metadata command, which is its own ticket: its answer is made when it is fetched.
    fn announce_metadata(
        &self,
        command: &impl ProstMessageExt,
        schema: &SchemaRef,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.caller(&request)?;
        flight_info(command, &wire_schema(schema), request)
    }
}

fn flight_info(
    command: &impl ProstMessageExt,
    schema: &Schema,
    request: Request<FlightDescriptor>,
) -> Result<Response<FlightInfo>, Status> {
    let ticket = Ticket { ticket: command.as_any().encode_to_vec().into() };
    // No location: the ticket is good here and nowhere else.
    let endpoint = FlightEndpoint { ticket: Some(ticket), ..FlightEndpoint::default() };
    Ok(Response::new(FlightInfo {
        schema: schema_bytes(schema)?,
        flight_descriptor: Some(request.into_inner()),
        endpoint: vec![endpoint],
        // Not known before the last row.
        total_records: -1,
        total_bytes: -1,
        ..FlightInfo::default()
    }))
}

fn refuse_write(what: impl Display) -> Status {
    Status::unimplemented(format!(
        "{what} is refused: this door only reads; events come in through Kafka, and tables are made by models"
    ))
}

#[tonic::async_trait]
impl FlightSqlService for Service {
    type FlightService = Self;

    async fn do_handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<HandshakeStream>, Status> {
        let token = self.sessions.log_in(request.metadata())?;
        let header = format!("Bearer {token}").parse().map_err(internal)?;
        let answer = HandshakeResponse { protocol_version: 0, payload: token.into() };
        // JDBC and Go take the token from the header, others from the payload.
        let mut response: Response<HandshakeStream> = Response::new(stream::iter([Ok(answer)]).boxed());
        response.metadata_mut().insert("authorization", header);
        Ok(response)
    }

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let session = self.caller(&request)?;
        let planned = Planned::of_text(Arc::clone(&session), &query.query).await.map_err(status)?;
        self.announce(&session, planned, request)
    }

    async fn do_get_statement(
        &self,
        ticket: TicketStatementQuery,
        request: Request<Ticket>,
    ) -> Result<Response<FlightStream>, Status> {
        let session = self.caller(&request)?;
        rows(self.tickets.get(&ticket.statement_handle, session.user())?).await
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let session = self.caller(&request)?;
        let statement = PreparedStatement::of_text(Arc::clone(&session), &query.query).await.map_err(status)?;
        let prepared = statement.prepared();
        let parameter_schema = match prepared.parameters() {
            [] => Bytes::new(),
            parameters => schema_bytes(&parameters::schema(parameters))?,
        };
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: self.prepared.insert(session.user(), statement)?,
            dataset_schema: schema_bytes(&wire_schema(prepared.schema()))?,
            parameter_schema,
        })
    }

    async fn do_put_prepared_statement_query(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let session = self.caller(&request)?;
        let statement = self.prepared.get(&query.prepared_statement_handle, session.user())?;
        let expected = statement.prepared().parameters().len();
        let binding = parameters::read(request.into_inner(), expected).await?;
        statement.bind(binding).await.map_err(status)?;
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(query.prepared_statement_handle) })
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let session = self.caller(&request)?;
        let statement = self.prepared.get(&query.prepared_statement_handle, session.user())?;
        let planned = statement.plan().await.map_err(status)?;
        self.announce(&session, planned, request)
    }

    /// For clients that fetch a prepared statement without asking for its FlightInfo first.
    async fn do_get_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<Ticket>,
    ) -> Result<Response<FlightStream>, Status> {
        let session = self.caller(&request)?;
        let statement = self.prepared.get(&query.prepared_statement_handle, session.user())?;
        rows(Arc::new(statement.plan().await.map_err(status)?)).await
    }

    async fn do_action_close_prepared_statement(
        &self,
        query: ActionClosePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<(), Status> {
        let session = self.caller(&request)?;
        self.prepared.remove(&query.prepared_statement_handle, session.user())?;
        Ok(())
    }

    async fn do_action_cancel_query(
        &self,
        query: ActionCancelQueryRequest,
        request: Request<Action>,
    ) -> Result<ActionCancelQueryResult, Status> {
        let session = self.caller(&request)?;
        let info = FlightInfo::decode(query.info).map_err(|error| {
            Status::invalid_argument(format!("the FlightInfo to cancel cannot be decoded: {error}"))
        })?;
        // The two enumerations have the same numbers.
        let result = self.cancel(session.user(), info)? as i32;
        Ok(ActionCancelQueryResult { result })
    }

    async fn do_action_fallback(&self, request: Request<Action>) -> Result<Response<ActionStream>, Status> {
        self.act(request.metadata(), request.get_ref()).await
    }

    async fn get_flight_info_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.announce_metadata(&query, &query.into_builder().schema(), request)
    }

    async fn do_get_catalogs(
        &self,
        _query: CommandGetCatalogs,
        request: Request<Ticket>,
    ) -> Result<Response<FlightStream>, Status> {
        let session = self.caller(&request)?;
        let snapshot = session.connection.snapshot().await.map_err(status)?;
        Ok(one_batch(metadata::catalogs(&snapshot)?))
    }

    async fn get_flight_info_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.announce_metadata(&query, &query.clone().into_builder().schema(), request)
    }

    async fn do_get_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<Ticket>,
    ) -> Result<Response<FlightStream>, Status> {
        let session = self.caller(&request)?;
        let snapshot = session.connection.snapshot().await.map_err(status)?;
        Ok(one_batch(metadata::schemas(&snapshot, query)?))
    }

    async fn get_flight_info_tables(
        &self,
        query: CommandGetTables,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.announce_metadata(&query, &metadata::tables_schema(&query), request)
    }

    async fn do_get_tables(
        &self,
        query: CommandGetTables,
        request: Request<Ticket>,
    ) -> Result<Response<FlightStream>, Status> {
        let session = self.caller(&request)?;
        let snapshot = session.connection.snapshot().await.map_err(status)?;
        Ok(one_batch(metadata::tables(&snapshot, query).await?))
    }

    async fn get_flight_info_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.announce_metadata(&query, &query.into_builder().schema(), request)
    }

    async fn do_get_table_types(
        &self,
        _query: CommandGetTableTypes,
        request: Request<Ticket>,
    ) -> Result<Response<FlightStream>, Status> {
        self.caller(&request)?;
        Ok(one_batch(metadata::table_types()?))
    }

    async fn get_flight_info_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.announce_metadata(&query, &self.sql_info.schema(), request)
    }

    async fn do_get_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<Ticket>,
    ) -> Result<Response<FlightStream>, Status> {
        self.caller(&request)?;
        Ok(one_batch(self.sql_info.record_batch(query.info).map_err(internal)?))
    }

    async fn get_flight_info_xdbc_type_info(
        &self,
        query: CommandGetXdbcTypeInfo,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.announce_metadata(&query, &self.type_info.schema(), request)
    }

    async fn do_get_xdbc_type_info(
        &self,
        query: CommandGetXdbcTypeInfo,
        request: Request<Ticket>,
    ) -> Result<Response<FlightStream>, Status> {
        self.caller(&request)?;
        Ok(one_batch(self.type_info.record_batch(query.data_type).map_err(internal)?))
    }

    async fn get_flight_info_primary_keys(
        &self,
        query: CommandGetPrimaryKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.announce_metadata(&query, &metadata::no_primary_keys().schema(), request)
    }

    async fn do_get_primary_keys(
        &self,
        _query: CommandGetPrimaryKeys,
        request: Request<Ticket>,
    ) -> Result<Response<FlightStream>, Status> {
        self.empty(metadata::no_primary_keys(), &request)
    }

    async fn get_flight_info_exported_keys(
        &self,
        query: CommandGetExportedKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.announce_metadata(&query, &metadata::no_foreign_keys().schema(), request)
    }

    async fn do_get_exported_keys(
        &self,
        _query: CommandGetExportedKeys,
        request: Request<Ticket>,
    ) -> Result<Response<FlightStream>, Status> {
        self.empty(metadata::no_foreign_keys(), &request)
    }

    async fn get_flight_info_imported_keys(
        &self,
        query: CommandGetImportedKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.announce_metadata(&query, &metadata::no_foreign_keys().schema(), request)
    }

    async fn do_get_imported_keys(
        &self,
        _query: CommandGetImportedKeys,
        request: Request<Ticket>,
    ) -> Result<Response<FlightStream>, Status> {
        self.empty(metadata::no_foreign_keys(), &request)
    }

    async fn get_flight_info_cross_reference(
        &self,
        query: CommandGetCrossReference,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        self.announce_metadata(&query, &metadata::no_foreign_keys().schema(), request)
    }

    async fn do_get_cross_reference(
        &self,
        _query: CommandGetCrossReference,
        request: Request<Ticket>,
    ) -> Result<Response<FlightStream>, Status> {
        self.empty(metadata::no_foreign_keys(), &request)
    }

    async fn do_put_statement_update(
        &self,
        ticket: CommandStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        self.caller(&request)?;
        let verb = ticket.query.split_whitespace().next().unwrap_or("a statement").to_lowercase();
        Err(refuse_write(format_args!("{verb} (an update)")))
    }

    async fn do_put_prepared_statement_update(
        &self,
        _query: CommandPreparedStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        self.caller(&request)?;
        Err(refuse_write("an update by prepared statement"))
    }

    async fn do_put_statement_ingest(
        &self,
        ticket: CommandStatementIngest,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        self.caller(&request)?;
        Err(refuse_write(format_args!("bulk ingestion into \"{}\"", ticket.table)))
    }

    async fn do_put_fallback(
        &self,
        request: Request<PeekableFlightDataStream>,
        message: Any,
    ) -> Result<Response<<Self as FlightService>::DoPutStream>, Status> {
        self.caller(&request)?;
        Err(refuse_write(format_args!("the command {}", message.type_url)))
    }

    async fn do_put_error_callback(
        &self,
        _request: Request<PeekableFlightDataStream>,
        error: DoPutError,
    ) -> Result<Response<<Self as FlightService>::DoPutStream>, Status> {
        Err(Status::invalid_argument(format!("DoPut says not what it is for: {error}")))
    }

    async fn do_action_begin_transaction(
        &self,
        _query: ActionBeginTransactionRequest,
        request: Request<Action>,
    ) -> Result<ActionBeginTransactionResult, Status> {
        self.caller(&request)?;
        Err(Status::unimplemented(
            "transactions are not supported by this door: each statement reads one publication, and nothing is written",
        ))
    }

    async fn register_sql_info(&self, _id: i32, _result: &SqlInfo) {}
}

impl Service {
    fn empty<T>(&self, batch: RecordBatch, request: &Request<T>) -> Result<Response<FlightStream>, Status> {
        self.caller(request)?;
        Ok(one_batch(batch))
    }
}
