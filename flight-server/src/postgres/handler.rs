//! The messages of one connection: what is common to all of them, and the greeting.
//!
//! pgwire calls in here for each message (PostgreSQL 16, §55.2). [`super::simple`] and [`super::extended`] have the two
//! protocols.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use futures::Sink;
use pgwire::api::auth::{
    ServerParameterProvider, StartupHandler, finish_authentication, protocol_negotiation,
    save_startup_parameters_to_metadata,
};
use pgwire::api::{ClientInfo, METADATA_DATABASE, METADATA_USER, PidSecretKeyGenerator};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::Door;
use super::cancel::{CancelGuard, CancelSignal};
use super::session::{REPORTED, Session};
use crate::error::{Error, Kind, Result};
use crate::query::{CATALOG, Settings};

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

    pub(super) fn session(&self) -> Result<&Session> {
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
