//! Builds that another part of the program asks for through the lake, such as the console.

use std::time::Duration;

use lakehouse::{BUILD_REQUEST, DEFAULT_GROUP, Lake, Request, Requests};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::engine::Ended;
use crate::error::Result;
use crate::refresh::RefreshMode;
use crate::watch::faults;

/// The requests that a watch answers.
pub(crate) struct Asked {
    lake: Lake,
    requests: Requests,
    /// By this name the watch takes requests.
    taker: String,
    /// So long is waited between two looks. A look at requests of which none is new costs one of the store.
    interval: Duration,
    look_at: Instant,
}

impl Asked {
    pub(crate) fn new(lake: &Lake, interval: Duration) -> Self {
        let taker = format!("transforms {}", lake.ids().fresh());
        Self { lake: lake.clone(), requests: lake.requests(), taker, interval, look_at: Instant::now() }
    }

    /// Takes the next request, if there is one and it is time to look.
    pub(crate) async fn next(&mut self) -> Option<Request> {
        if Instant::now() < self.look_at {
            return None;
        }
        self.look_at = Instant::now() + self.interval;
        match self.requests.take(BUILD_REQUEST, &self.taker).await {
            Ok(request) => request,
            // New data is built all the same.
            Err(error) => {
                tracing::warn!(%error, "requests for builds cannot be read now");
                None
            }
        }
    }

    /// Says what came of the build that was asked for.
    pub(crate) async fn answer(&mut self, request: &Request, ended: &Result<Ended>) {
        let outcome = match ended {
            Ok(Ended::Done(report)) if report.failed() => Err(faults(report)),
            Ok(Ended::Done(report)) => {
                let published = report.publications.last().map(|publication| publication.id);
                Ok(json!({ "publication": published.or(self.newest().await), "changed": report.changed() }))
            }
            Ok(Ended::Cancelled) => Err("the program was stopped while it built: ask again".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = self.requests.finish(request, outcome).await {
            tracing::warn!(request = request.id, %error, "a request for a build is not answered");
        }
    }

    async fn newest(&self) -> Option<u64> {
        let newest = self.lake.newest_publication(DEFAULT_GROUP).await;
        newest.ok().flatten().map(|publication| publication.id)
    }
}

/// How the models are refreshed in a build that was asked for.
pub(crate) fn mode_of(request: &Request) -> RefreshMode {
    match request.arguments.get("full_refresh") {
        Some(Value::Bool(true)) => RefreshMode::Full,
        _ => RefreshMode::Automatic,
    }
}
