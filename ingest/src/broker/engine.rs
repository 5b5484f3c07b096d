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
    BrokerRegistrationRequest, Error as StorageError, Request, RequestStorageService, Response, StorageContainer,
    UpdateError,
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

/// SQLite's code for a disk without space: <https://www.sqlite.org/rescode.html#full>.
const SQLITE_FULL: i32 = 13;

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

/// What is wrong with the engine after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Nothing. An error there may have been, but as an answer.
    None,
    /// Its task is gone.
    Broken,
    /// The file failed.
    File,
    /// The disk is full.
    Full,
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
        let failed = |source: StorageError| {
            let file = settings.file.path();
            let kind = if fault_of(&source) == Fault::Full { ErrorKind::StorageFull } else { ErrorKind::BadConfig };
            Error::with_source(kind, format!("cannot open the broker's file {file}"), source)
        };
        let running = build(&settings).await.map_err(failed)?;
        let mut engine = Self { settings: settings.clone(), running: Some(running), failures: 0 };
        let registration = BrokerRegistrationRequest {
            broker_id: NODE_ID,
            cluster_id: settings.cluster.clone(),
            incarnation_id: Uuid::new_v4(),
            rack: None,
        };
        match engine.call(Request::RegisterBroker(registration)).await? {
            Ok(Response::RegisterBroker(Ok(()))) => Ok(engine),
            outcome => {
                let message = format!("cannot write to the broker's file {}: {outcome:?}", settings.file.path());
                Err(Error::new(ErrorKind::BadConfig, message))
            }
        }
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
        let (fault, reason) = match &outcome {
            Ok(Ok(response)) => match error_of(response) {
                Some(error) => (fault_of(error), error.to_string()),
                None => (Fault::None, String::new()),
            },
            Ok(Err(error)) => (Fault::Broken, error.to_string()),
            Err(_panic) => (Fault::Broken, "panic".to_owned()),
        };
        match (fault, outcome) {
            (Fault::None, Ok(Ok(response))) => {
                self.running = Some(running);
                self.failures = 0;
                Ok(Ok(response))
            }
            (Fault::None | Fault::Broken, _) => {
                error!(request = name, reason, "a request broke the storage engine; it starts again from its file");
                Ok(Err(Failure::Panic))
            }
            (fault @ (Fault::File | Fault::Full), _) => {
                self.failures = self.failures.saturating_add(1);
                // It may go on like this for hours; the log need not.
                if self.failures.is_power_of_two() {
                    warn!(request = name, reason, failures = self.failures, "the broker's file failed");
                }
                if fault == Fault::Full {
                    // SQLite has undone what did not fit, and reading works on.
                    self.running = Some(running);
                }
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
    Ok(RequestStorageService::new(container))
}

/// What an error says about the engine.
fn fault_of(error: &StorageError) -> Fault {
    match error {
        StorageError::OneshotRecv | StorageError::UnableToSend => Fault::Broken,
        StorageError::LibSql(error) => match error.as_ref() {
            libsql::Error::SqliteFailure(code, _) if code & 0xff == SQLITE_FULL => Fault::Full,
            _ => Fault::File,
        },
        StorageError::Pool(_) | StorageError::Io(_) | StorageError::Poison => Fault::File,
        _ => Fault::None,
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
