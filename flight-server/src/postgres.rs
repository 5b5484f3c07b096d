//! The PostgreSQL door, for psql, ODBC, JDBC and Power BI: simple and extended protocol over the one query path.
//!
//! ```text
//! socket ─► connection: pump, message loop ─► handler: one protocol message at a time
//!                                               ├─ statement: about the session ─► session ─► tag
//!                                               └─ a query ─► query path ─► encode ─► rows
//! ```
//!
//! pgwire reads and writes the messages; the flow of a statement is ours, because rows have to stream in bounded memory and
//! a cancel has to reach a statement while it streams.
//!
//! **Invariant:** an error of a statement never ends its connection.

mod answer;
mod cancel;
mod connection;
mod decode;
mod encode;
mod extended;
mod handler;
mod numeric;
mod rows;
mod session;
mod simple;
mod statement;
mod text;
pub(crate) mod types;

use std::sync::Arc;
use std::time::Duration;

use pgwire::api::RandomPidSecretKeyGenerator;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Options;
use crate::error::Result;
use crate::query::QueryEngine;
use cancel::Cancels;

/// Waited after an accept that failed (no file handles left, for one), so that a lasting cause is no busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections of the door share.
struct Door {
    engine: QueryEngine,
    cancels: Arc<Cancels>,
    /// Numbers and secrets for cancel requests.
    keys: RandomPidSecretKeyGenerator,
    places: Arc<Semaphore>,
}

/// Serves until the token is cancelled; then every client is told so, and its connection closed.
///
/// # Errors
/// None so far: a connection that fails is its client's alone.
pub async fn serve(
    listener: TcpListener,
    engine: QueryEngine,
    options: Options,
    token: CancellationToken,
) -> Result<()> {
    let door = Arc::new(Door {
        engine,
        cancels: Arc::default(),
        keys: RandomPidSecretKeyGenerator::default(),
        places: Arc::new(Semaphore::new(options.connections_max.min(Semaphore::MAX_PERMITS))),
    });
    // Beyond the sessions there is room for those who are being told that there is none, and for cancel requests.
    let sockets_max = options.connections_max.saturating_mul(2).saturating_add(16);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = token.cancelled() => break,
            Some(ended) = connections.join_next() => report(ended),
            socket = accept(&listener), if connections.len() < sockets_max => {
                connections.spawn(connection::run(socket, Arc::clone(&door), token.child_token()));
            }
        }
    }
    while let Some(ended) = connections.join_next().await {
        report(ended);
    }
    Ok(())
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => return socket,
            Err(error) => {
                tracing::warn!(%error, "a postgresql connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A panic in one connection has ended that one; the others go on.
fn report(ended: std::result::Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a postgresql connection ended in a fault of ours; please report it");
    }
}
