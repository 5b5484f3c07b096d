//! The Flight SQL door: Arrow in, Arrow out, for programs, notebooks, ADBC and JDBC.
//!
//! ```text
//! GetFlightInfo(statement) ─► query path: parse, check, plan once, on one publication ─► ticket (random handle)
//! DoGet(ticket) ───────────► the same plan, run ─► normalised batches below 2 MB ─► gRPC stream
//! ```
//!
//! Our own service on arrow-flight's trait, because what drivers do around a statement (handshake, metadata trees,
//! sessions, schemas compared exactly) is where stock servers fail.
//!
//! **Invariant:** the schema in FlightInfo, in a prepared statement and before the rows is the same one.

mod actions;
mod connections;
mod door;
mod handles;
mod metadata;
mod parameters;
mod protocol;
mod result;
mod service;
mod session;
mod sql_info;
mod statement;
mod type_info;

use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Server;

use crate::error::{Error, Kind, Result};
use crate::query::QueryEngine;
use door::FlightSqlDoor;
use service::Service;

/// Settings of the Flight SQL door.
#[derive(Debug, Clone)]
pub struct Options {
    /// Connections at once; the next is closed as soon as it is open.
    pub connections_max: usize,
    /// How long a ticket or a prepared statement lives after its last use.
    pub handle_lifetime: Duration,
    /// Tickets, and prepared statements, that are kept at most; each.
    pub handles_max: usize,
    /// How long a session (a login) lives after its last call.
    pub session_lifetime: Duration,
    /// Sessions that are kept at most; the one that has been quiet for longest makes room.
    pub sessions_max: usize,
    /// How long running statements may go on when the server is asked to stop.
    pub drain: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections_max: 1_000,
            handle_lifetime: Duration::from_secs(600),
            handles_max: 4096,
            session_lifetime: Duration::from_secs(8 * 3600),
            sessions_max: 10_000,
            drain: Duration::from_secs(2),
        }
    }
}

/// A dead peer is found by asking it, so that what it started does not run on.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves until `token` is cancelled: then no new calls are taken, and those under way have [`Options::drain`] to end.
///
/// # Errors
/// `Unavailable` if the listener fails, `Bug` if the service cannot be built.
pub async fn serve(
    listener: TcpListener,
    engine: QueryEngine,
    options: Options,
    token: CancellationToken,
) -> Result<()> {
    let service = Service::new(engine, &options).map_err(|status| {
        Error::new(Kind::Bug, format!("the flight sql service cannot start: {}", status.message()))
    })?;
    let incoming = connections::accept(listener, options.connections_max);
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(FlightServiceServer::new(FlightSqlDoor(service)))
        .serve_with_incoming_shutdown(incoming, token.clone().cancelled_owned());
    let overdue = async {
        token.cancelled().await;
        tokio::time::sleep(options.drain).await;
    };
    tokio::select! {
        served = serving => served
            .map_err(|error| Error::with_source(Kind::Unavailable, format!("the flight sql door failed: {error}"), error)),
        () = overdue => {
            tracing::info!("flight sql statements still under way were cut off");
            Ok(())
        }
    }
}

/// An error of the query path as a gRPC status.
fn status(error: Error) -> Status {
    Status::new(error.kind().grpc_code(), error.message())
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        status(error)
    }
}

/// A fault of ours as a gRPC status.
fn internal(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}
