//! The storage engine below, as something that can break and be built anew from its file.
//!
//! Its work runs in a task of its own that a panic ends, after which every call fails; a call whose caller went away
//! ends it too. So each call here is watched: after a panic, or an error of the file, the engine is thrown away and the
//! next call builds a new one. Nothing acknowledged is lost by that, since the file holds all state.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use rama::{Context, Service as _};
use tansu_storage::{
    BrokerRegistrationRequest, Error as StorageError, Request, RequestStorageService, Response, Storage as _,
    StorageContainer, UpdateError,
};
use tracing::{error, info, warn};
use url::Url;
use uuid::Uuid;

use crate::{Error, ErrorKind, Result};

/// The broker's number in its cluster of one.
pub(super) const NODE_ID: i32 = 1;

/// Failures in a row after which the broker gives up.
const FAILURES_MAX: u32 = 12;

/// The longest pause before another try.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What the engine is built from.
#[derive(Debug, Clone)]
pub(super) struct EngineSettings {
    pub(super) cluster: String,
    /// Where clients reach the broker.
    pub(super) advertised: Url,
    /// The file as `sqlite://` URL.
    pub(super) file: Url,
}

/// Why a call has no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// The request made the engine panic. It is no use to send it again.
    Panic,
    /// The file could not be read or written. It may work later.
    Storage,
}

/// The engine, or the wish for one.
#[derive(Debug)]
pub(super) struct Engine {
    settings: EngineSettings,
    /// Absent after a failure, until the next call.
    running: Option<RequestStorageService<StorageContainer>>,
    /// Failures since the last success.
    failures: u32,
}

impl Engine {
    /// Builds the engine; creates the file and its tables if they are not there.
    pub(super) async fn start(settings: EngineSettings) -> Result<Self> {
        let running = build(&settings).await.map_err(|source| {
            let file = settings.file.path();
            Error::with_source(ErrorKind::BadConfig, format!("cannot open the broker's file {file}"), source)
        })?;
        Ok(Self { settings, running: Some(running), failures: 0 })
    }

    /// Lets the engine answer one request. An `Err` here is the end of the broker, a [`Failure`] only of the request.
    pub(super) async fn call(&mut self, request: Request) -> Result<Result<Response, Failure>> {
        let name = request.to_string();
        let running = match self.running.take() {
            Some(running) => running,
            None => match self.rebuild().await? {
                Some(running) => running,
                None => return Ok(Err(Failure::Storage)),
            },
        };
        let outcome = AssertUnwindSafe(running.serve(Context::<()>::default(), request)).catch_unwind().await;
        let failure = match &outcome {
            Ok(Ok(response)) => match error_of(response) {
                Some(error) => failure_of(error).map(|failure| (failure, error.to_string())),
                None => None,
            },
            Ok(Err(error)) => Some((failure_of(error).unwrap_or(Failure::Panic), error.to_string())),
            Err(_panic) => Some((Failure::Panic, "panic".to_owned())),
        };
        match (failure, outcome) {
            (None, Ok(Ok(response))) => {
                self.running = Some(running);
                self.failures = 0;
                Ok(Ok(response))
            }
            (Some((failure @ Failure::Panic, _)), _) => {
                error!(request = name, "a request broke the storage engine; it starts again from its file");
                Ok(Err(failure))
            }
            (failure, _) => {
                let reason = failure.map(|(_, reason)| reason).unwrap_or_default();
                self.failures += 1;
                warn!(request = name, reason, failures = self.failures, "the broker's file failed");
                Ok(Err(Failure::Storage))
            }
        }
    }

    /// Builds the engine after a failure, with a pause that grows while it goes on failing.
    async fn rebuild(&mut self) -> Result<Option<RequestStorageService<StorageContainer>>> {
        if self.failures > FAILURES_MAX {
            let message = format!(
                "the broker's file {} failed {} times in a row; look for a full or broken disk and start again",
                self.settings.file.path(),
                self.failures
            );
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        if self.failures > 0 {
            let pause = Duration::from_millis(50).saturating_mul(1 << self.failures.min(10)).min(PAUSE_MAX);
            tokio::time::sleep(pause).await;
        }
        match build(&self.settings).await {
            Ok(running) => {
                info!("the storage engine runs again");
                Ok(Some(running))
            }
            Err(reason) => {
                self.failures += 1;
                warn!(%reason, failures = self.failures, "the storage engine does not start");
                Ok(None)
            }
        }
    }
}

async fn build(settings: &EngineSettings) -> Result<RequestStorageService<StorageContainer>, StorageError> {
    let container = StorageContainer::builder()
        .cluster_id(settings.cluster.clone())
        .node_id(NODE_ID)
        .advertised_listener(settings.advertised.clone())
        .storage(settings.file.clone())
        .silent(true)
        .build()
        .await?;
    container
        .register_broker(BrokerRegistrationRequest {
            broker_id: NODE_ID,
            cluster_id: settings.cluster.clone(),
            incarnation_id: Uuid::new_v4(),
            rack: None,
        })
        .await?;
    Ok(RequestStorageService::new(container))
}

/// Whether an error means that the engine must be built anew. The others are answers.
fn failure_of(error: &StorageError) -> Option<Failure> {
    match error {
        StorageError::OneshotRecv | StorageError::UnableToSend => Some(Failure::Panic),
        StorageError::LibSql(_) | StorageError::Pool(_) | StorageError::Io(_) | StorageError::Poison => {
            Some(Failure::Storage)
        }
        _ => None,
    }
}

/// The error in a response, if there is one.
fn error_of(response: &Response) -> Option<&StorageError> {
    match response {
        Response::AdvertisedListener(inner) => inner.as_ref().err(),
        Response::Brokers(inner) => inner.as_ref().err(),
        Response::ClusterId(inner) => inner.as_ref().err(),
        Response::CommittedOffsetTopitions(inner) => inner.as_ref().err(),
        Response::CreateTopic(inner) => inner.as_ref().err(),
        Response::DeleteGroups(inner) => inner.as_ref().err(),
        Response::DeleteRecords(inner) => inner.as_ref().err(),
        Response::DeleteTopic(inner) => inner.as_ref().err(),
        Response::DescribeConfig(inner) => inner.as_ref().err(),
        Response::DescribeGroups(inner) => inner.as_ref().err(),
        Response::DescribeTopicPartitions(inner) => inner.as_ref().err(),
        Response::Fetch(inner) => inner.as_ref().err(),
        Response::IncrementalAlterResponse(inner) => inner.as_ref().err(),
        Response::InitProducer(inner) => inner.as_ref().err(),
        Response::ListGroups(inner) => inner.as_ref().err(),
        Response::ListOffsets(inner) => inner.as_ref().err(),
        Response::Metadata(inner) => inner.as_ref().err(),
        Response::Node(inner) => inner.as_ref().err(),
        Response::OffsetCommit(inner) => inner.as_ref().err(),
        Response::OffsetFetch(inner) => inner.as_ref().err(),
        Response::OffsetStage(inner) => inner.as_ref().err(),
        Response::Produce(inner) => inner.as_ref().err(),
        Response::TxnAddOffsets(inner) | Response::TxnEnd(inner) => inner.as_ref().err(),
        Response::TxnAddPartitions(inner) => inner.as_ref().err(),
        Response::TxnOffsetCommit(inner) => inner.as_ref().err(),
        Response::UserScramCredential(inner) => inner.as_ref().err(),
        Response::DeleteUserScramCredential(inner)
        | Response::Maintain(inner)
        | Response::Ping(inner)
        | Response::RegisterBroker(inner)
        | Response::UpsertUserScramCredential(inner) => inner.as_ref().err(),
        Response::UpdateGroup(Err(UpdateError::Error(error))) => Some(error),
        Response::UpdateGroup(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_costs_one_request_and_no_data() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("broker.db");
        let settings = EngineSettings {
            cluster: "test".to_owned(),
            advertised: Url::parse("tcp://127.0.0.1:9092").expect("a URL"),
            file: Url::parse(&format!("sqlite:///{}", file.display())).expect("a URL"),
        };
        let mut engine = Engine::start(settings).await.expect("started");
        let topic = tansu_sans_io::create_topics_request::CreatableTopic::default()
            .name("kept".to_owned())
            .num_partitions(1)
            .replication_factor(1);
        let created = engine.call(Request::CreateTopic { topic, validate_only: false }).await.expect("no end");
        assert!(matches!(created, Ok(Response::CreateTopic(Ok(_)))));
        // This one is a `todo!()` in the engine.
        let broken = engine.call(Request::DeleteRecords(Vec::new())).await.expect("no end");
        assert_eq!(broken.err(), Some(Failure::Panic));
        let metadata = engine.call(Request::Metadata(None)).await.expect("no end");
        let Ok(Response::Metadata(Ok(metadata))) = metadata else { panic!("{metadata:?}") };
        assert_eq!(metadata.topics().len(), 1);
    }
}
