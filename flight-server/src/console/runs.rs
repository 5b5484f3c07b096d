//! `/api/v1/runs`: a build of the models for whoever asks, such as an outside orchestrator.
//!
//! The console builds nothing. It asks through the lake, and whichever process watches the models there takes it.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State as Extract};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lakehouse::{BUILD_REQUEST, Request};
use serde::Deserialize;
use serde_json::json;

use super::{State, failed, failure};
use crate::error::Error;

/// Where a build is asked for.
pub(super) const PATH: &str = "/api/v1/runs";

/// Nobody is kept waiting longer than this; how far the build is can be asked for again.
const WAIT_SECONDS_MAX: u64 = 300;

/// What may be said about the build.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wanted {
    /// Whether all rows are computed anew, and not only by what is new.
    full_refresh: bool,
    /// So long is waited for the end at most.
    wait_seconds: u64,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { full_refresh: false, wait_seconds: 30 }
    }
}

/// Asks for a build and waits for it a while: 200 once it has ended, well or not, and 202 while it has not.
pub(super) async fn ask(Extract(state): Extract<State>, body: Bytes) -> Response {
    let wanted = match body.trim_ascii() {
        b"" => Wanted::default(),
        json => match serde_json::from_slice(json) {
            Ok(wanted) => wanted,
            Err(error) => {
                let message =
                    format!("the body is not understood ({error}): leave it out, or send {{\"full_refresh\": true}}");
                return failure(StatusCode::BAD_REQUEST, &message);
            }
        },
    };
    match asked_and_waited(&state, &wanted).await {
        Ok(request) => shown(&request),
        Err(error) => failed(&error),
    }
}

async fn asked_and_waited(state: &State, wanted: &Wanted) -> Result<Request, Error> {
    let mut requests = state.shared.engine.lake().requests();
    let arguments = json!({ "full_refresh": wanted.full_refresh });
    let asked = requests.ask(BUILD_REQUEST, arguments, "console").await?;
    let at_most = Duration::from_secs(wanted.wait_seconds.min(WAIT_SECONDS_MAX));
    Ok(requests.wait(&asked.id, at_most).await?)
}

/// How far a build is.
pub(super) async fn show(Extract(state): Extract<State>, Path(id): Path<String>) -> Response {
    match state.shared.engine.lake().requests().find(&id).await {
        Ok(request) => shown(&request),
        Err(error) => failed(&Error::from(error)),
    }
}

fn shown(request: &Request) -> Response {
    let Request { id, state, answer, asked_at, done_at, .. } = request;
    let code = if state.is_open() { StatusCode::ACCEPTED } else { StatusCode::OK };
    let body = json!({ "id": id, "state": state, "answer": answer, "asked_at": asked_at, "done_at": done_at });
    let mut response = (code, axum::Json(body)).into_response();
    if let Ok(place) = HeaderValue::from_str(&format!("{PATH}/{id}")) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    response
}
