//! The web console: a page for people, JSON for programs, metrics for Prometheus, and the two health checks.
//!
//! | path | answer |
//! |---|---|
//! | `/` | the page; it asks the two JSON documents each second |
//! | `/api/v1/status` | ingest progress, newest publication, tables, addresses |
//! | `/api/v1/dashboard` | totals and top songs, by the one query path |
//! | `/api/v1/runs` | POST asks for a build of the models, and tells the publication that came of it |
//! | `/api/v1/runs/{id}` | how far that build is |
//! | `/metrics` | Prometheus text |
//! | `/healthz`, `/readyz` | the process lives; the lake can be read and holds a publication |
//!
//! **Invariant:** nothing here changes anything but by a request in `system.requests`, which another part answers.

mod connect;
mod dashboard;
mod guard;
mod health;
mod metrics;
mod page;
mod runs;
mod status;

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use connect::{Snippet, snippets};

use crate::error::{Error, Kind, Result};
use crate::query::QueryEngine;
use guard::HostCheck;

/// How long answers under way may take once the server is asked to stop.
const DRAIN: Duration = Duration::from_secs(2);

/// Where the doors listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Flight SQL.
    pub flight: SocketAddr,
    /// PostgreSQL.
    pub postgres: SocketAddr,
    /// This console.
    pub console: SocketAddr,
}

/// What the ingest of one topic, in the same process, knows that is not in the lake yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IngestNow {
    /// The topic that it reads.
    pub topic: String,
    /// The end of each of its partitions.
    pub end_offsets: BTreeMap<i32, i64>,
    /// What keeps it from going on, while something does.
    pub waiting_for: Option<String>,
}

/// What all requests share.
#[derive(Clone)]
pub struct State {
    shared: Arc<Shared>,
}

struct Shared {
    engine: QueryEngine,
    addresses: Addresses,
    host_check: HostCheck,
    ingest: Option<watch::Receiver<Vec<IngestNow>>>,
    status: status::Cache,
    dashboard: dashboard::Cache,
}

impl State {
    /// A console over this query path. On a loopback address it answers to names of this machine alone. Without an `ingest`
    /// in the same process, lag is what the last commits recorded.
    pub fn new(engine: QueryEngine, addresses: Addresses, ingest: Option<watch::Receiver<Vec<IngestNow>>>) -> Self {
        let is_loopback = addresses.console.ip().is_loopback();
        let host_check = if is_loopback { HostCheck::LoopbackNames } else { HostCheck::AnyName };
        let shared = Shared {
            engine,
            addresses,
            host_check,
            ingest,
            status: status::Cache::default(),
            dashboard: dashboard::Cache::default(),
        };
        Self { shared: Arc::new(shared) }
    }
}

impl Shared {
    async fn status(&self) -> Result<Arc<status::Status>> {
        let ingest = self.ingest.as_ref().map(|ingest| ingest.borrow().clone());
        self.status.newest(self.engine.lake(), &self.addresses, ingest).await
    }
}

/// The console as a service, without a listener.
pub fn app(state: State) -> Router {
    Router::new()
        .route("/", get(page::index))
        .route("/assets/console.css", get(page::style))
        .route("/assets/console.js", get(page::script))
        .route("/api/v1/status", get(status::show))
        .route("/api/v1/dashboard", get(dashboard::show))
        .route(runs::PATH, post(runs::ask))
        .route("/api/v1/runs/{id}", get(runs::show))
        .route("/metrics", get(metrics::show))
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .fallback(unknown)
        .layer(axum::middleware::from_fn_with_state(state.clone(), guard::check))
        .with_state(state)
}

/// Serves until `token` is cancelled; answers under way then have two seconds to end.
///
/// # Errors
/// `Unavailable` if the listener fails.
pub async fn serve(listener: TcpListener, state: State, token: CancellationToken) -> Result<()> {
    let stop = token.clone().cancelled_owned();
    let serving = axum::serve(listener, app(state)).with_graceful_shutdown(stop).into_future();
    let overdue = async {
        token.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = serving => served
            .map_err(|error| Error::with_source(Kind::Unavailable, format!("the console failed: {error}"), error)),
        () = overdue => Ok(()),
    }
}

async fn unknown() -> Response {
    failure(
        StatusCode::NOT_FOUND,
        "there is nothing here: / is the page, /api/v1/status and /api/v1/dashboard the data",
    )
}

/// An error as JSON.
fn failure(code: StatusCode, message: &str) -> Response {
    (code, axum::Json(json!({ "error": message }))).into_response()
}

/// An error of the query path or the lake as an HTTP answer.
fn failed(error: &Error) -> Response {
    let code = match error.kind() {
        Kind::Unavailable | Kind::BadConfig => StatusCode::SERVICE_UNAVAILABLE,
        Kind::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        Kind::UndefinedTable | Kind::UndefinedObject => StatusCode::NOT_FOUND,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    failure(code, error.message())
}
