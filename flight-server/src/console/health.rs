//! Health checks for supervisors and load balancers.

use std::time::Duration;

use axum::extract::State as Extract;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use lakehouse::DEFAULT_GROUP;
use serde_json::json;

use super::State;

/// A lake that needs longer than this to say what is newest is not ready.
const PATIENCE: Duration = Duration::from_secs(5);

/// The process lives: it can answer.
pub(super) async fn alive() -> Response {
    axum::Json(json!({ "alive": true })).into_response()
}

/// The lake can be read, and there is a publication to serve.
pub(super) async fn ready(Extract(state): Extract<State>) -> Response {
    let newest = state.shared.engine.lake().newest_publication(DEFAULT_GROUP);
    match tokio::time::timeout(PATIENCE, newest).await {
        Ok(Ok(Some(publication))) => {
            axum::Json(json!({ "ready": true, "publication": publication.id })).into_response()
        }
        Ok(Ok(None)) => unready("there is no publication yet: waiting for the first build"),
        Ok(Err(error)) => unready(&format!("the lake cannot be read: {error}")),
        Err(_) => unready(&format!("the lake did not answer within {} s", PATIENCE.as_secs())),
    }
}

fn unready(reason: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, axum::Json(json!({ "ready": false, "reason": reason }))).into_response()
}
