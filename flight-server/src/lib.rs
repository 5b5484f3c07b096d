//! Three doors onto one lake: Flight SQL for programs, the PostgreSQL wire protocol for BI tools, a web console for people.
//!
//! ```text
//!  programs, ADBC, JDBC ─► flight   ─┐
//!  Power BI, ODBC, psql ─► postgres ─┼─► query: parse, allow, plan on ─► rows of
//!  people               ─► console  ─┘   the newest publication          one moment
//!  lakebeat sql         ─► query::run_once ─► (the same)
//! ```
//!
//! This crate knows wire protocols. It never knows Kafka, nor how models are built.

pub mod console;
pub mod error;
pub mod flight;
pub mod postgres;
pub mod query;

use std::net::SocketAddr;

use lakehouse::Lake;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use error::{Error, Kind, Result};
use query::{Limits, QueryEngine};

/// Who may reach the doors while there are no logins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Exposure {
    /// Only programs on this machine. Another address is an error at the start.
    #[default]
    LoopbackOnly,
    /// Everybody who can reach the address, without a login and unencrypted: somebody said so.
    Insecure,
}

/// What can be set about the doors.
#[derive(Debug, Clone)]
pub struct Options {
    /// What one statement may take.
    pub limits: Limits,
    /// Who may reach the doors.
    pub exposure: Exposure,
    /// Connections at once on one door. The next one is told that there are too many.
    pub connections_max: usize,
    /// What the ingest of the same process knows of each of its topics, if there is one.
    pub ingest: Option<watch::Receiver<Vec<console::IngestNow>>>,
}

impl Default for Options {
    fn default() -> Self {
        Self { limits: Limits::default(), exposure: Exposure::default(), connections_max: 1_000, ingest: None }
    }
}

/// The sockets of the doors, bound by the caller, so that a taken port is known before anything starts.
pub struct Listeners {
    /// Flight SQL.
    pub flight: TcpListener,
    /// The PostgreSQL wire protocol.
    pub postgres: TcpListener,
    /// The web console, the REST interface, `/metrics`, `/healthz`.
    pub console: TcpListener,
}

/// Serves the lake on three doors until the token is cancelled. Then no door takes anything new, statements that run are
/// cancelled, and all connections are closed. The first door that fails ends all.
///
/// # Errors
/// `BadConfig` for an address that others can reach, unless the options say so; `Unavailable` when a listener fails.
pub async fn serve(lake: Lake, listeners: Listeners, options: Options, token: CancellationToken) -> Result<()> {
    let addresses = console::Addresses {
        flight: local_address(&listeners.flight)?,
        postgres: local_address(&listeners.postgres)?,
        console: local_address(&listeners.console)?,
    };
    for address in [addresses.flight, addresses.postgres, addresses.console] {
        check_exposure(address, options.exposure)?;
    }
    let engine = QueryEngine::new(lake, options.limits.clone());
    // A door that fails takes the others with it, but not the caller's token.
    let token = token.child_token();
    let mut doors = JoinSet::new();
    let flight_options = flight::Options { connections_max: options.connections_max, ..flight::Options::default() };
    doors.spawn(flight::serve(listeners.flight, engine.clone(), flight_options, token.clone()));
    doors.spawn(postgres::serve(listeners.postgres, engine.clone(), options.clone(), token.clone()));
    let state = console::State::new(engine, addresses, options.ingest);
    doors.spawn(console::serve(listeners.console, state, token.clone()));

    let mut first_error = None;
    while let Some(ended) = doors.join_next().await {
        let result = ended.unwrap_or_else(|panic| {
            Err(Error::with_source(Kind::Bug, "a door stopped without a reason; please report this", panic))
        });
        if let Err(error) = result {
            first_error.get_or_insert(error);
        }
        token.cancel();
    }
    first_error.map_or(Ok(()), Err)
}

/// Refuses an address that other machines can reach, as long as there are no logins to ask them for.
///
/// # Errors
/// `BadConfig`, naming the address and the two ways out.
pub fn check_exposure(address: SocketAddr, exposure: Exposure) -> Result<()> {
    if address.ip().is_loopback() || exposure == Exposure::Insecure {
        return Ok(());
    }
    Err(Error::new(
        Kind::BadConfig,
        format!(
            "{address} can be reached from other machines, and what listens there asks for no login: listen on 127.0.0.1, or \
             say --insecure if everybody who can reach it may use it"
        ),
    ))
}

fn local_address(listener: &TcpListener) -> Result<SocketAddr> {
    listener
        .local_addr()
        .map_err(|error| Error::with_source(Kind::Unavailable, format!("a listener is not usable: {error}"), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_served_without_login() {
        for (address, exposure, allowed) in [
            ("127.0.0.1:5433", Exposure::LoopbackOnly, true),
            ("[::1]:5433", Exposure::LoopbackOnly, true),
            ("0.0.0.0:5433", Exposure::LoopbackOnly, false),
            ("192.168.1.5:5433", Exposure::LoopbackOnly, false),
            ("0.0.0.0:5433", Exposure::Insecure, true),
        ] {
            let address: SocketAddr = address.parse().expect("an address");
            assert_eq!(check_exposure(address, exposure).is_ok(), allowed, "{address}");
        }
    }
}
