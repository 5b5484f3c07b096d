//! The mark of the format that a lake is written in.

use std::time::Duration;

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::error::{Error, ErrorKind, Result, store_kind};
use crate::lake::Lake;
use crate::storage::Storage;

/// The format that this program writes. A lake of a higher one is refused, one of a lower one is read as it is.
/// 2: a log may begin at a checkpoint, with what it said before in an archive.
const FORMAT_VERSION: u32 = 2;
/// Where the lake keeps its mark.
const FORMAT_FILE: &str = "_lakebeat.json";
/// So long a store may take to answer for the first time.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// What the mark says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Format {
    format: u32,
    written_by: String,
    /// The lake that is being copied here. It is none before all of it has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unfinished_copy_of: Option<String>,
}

impl Format {
    /// Whether it marks a copy of the lake at `from` that is not finished, and that a further copy goes on with. A lake that is
    /// finished is none.
    pub(crate) fn is_copy_of(&self, from: &Url, to: &Url) -> Result<bool> {
        match &self.unfinished_copy_of {
            Some(other) if other != from.as_str() => {
                let message = format!(
                    "{to} holds an unfinished copy of the lake at {other}: delete it, or choose an empty place"
                );
                Err(Error::new(ErrorKind::BadConfig, message))
            }
            unfinished => Ok(unfinished.is_some()),
        }
    }
}

impl Lake {
    /// Notes that a lake of an older program is now written in a way that such a program does not know.
    pub(crate) async fn raise_format(&self) -> Result<()> {
        let failed = |source| Error::store(format!("cannot write the format of the lake at {}", self.url()), source);
        let path = Path::from(FORMAT_FILE);
        let bytes = self.store().get(&path).await.map_err(failed)?.bytes().await.map_err(failed)?;
        let is_older = |found: Format| found.format < FORMAT_VERSION;
        if serde_json::from_slice(&bytes).is_ok_and(is_older) {
            self.store().put(&path, PutPayload::from(Format::ours().bytes())).await.map_err(failed)?;
        }
        Ok(())
    }
}

/// Reads the lake's mark, or leaves one in a lake that has none; that it can be left is also the proof that the place can
/// be written. `store` has the lake as its root.
pub(crate) async fn check(storage: &Storage, store: &dyn ObjectStore) -> Result<()> {
    let checks = async {
        read_or_leave(storage, store).await?;
        if storage.bucket.is_some() { check_conditions(store, &storage.url).await } else { Ok(()) }
    };
    in_time(&storage.url, checks).await
}

/// Reads the mark of the lake, if there is one and this program can read what it stands for.
pub(crate) async fn look(storage: &Storage, store: &dyn ObjectStore) -> Result<Option<Format>> {
    in_time(&storage.url, read(&storage.url, store)).await
}

async fn in_time<T>(url: &Url, looking: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(OPEN_TIMEOUT, looking).await.unwrap_or_else(|_| {
        let message = format!(
            "the store of the lake at {url} takes connections and does not answer: see MINIO_ENDPOINT or AWS_ENDPOINT_URL"
        );
        Err(Error::new(ErrorKind::Unavailable, message))
    })
}

/// Marks a place without tables as one that becomes a copy of the lake at `from`.
pub(crate) async fn begin_copy(storage: &Storage, store: &dyn ObjectStore, from: &Url) -> Result<()> {
    let mark = Format { unfinished_copy_of: Some(from.to_string()), ..Format::ours() };
    leave(storage, store, mark, PutMode::Overwrite).await
}

/// The mark of the lake that was copied is that of the copy from here on.
pub(crate) async fn end_copy(from: &dyn ObjectStore, to: &dyn ObjectStore, from_url: &Url) -> Result<()> {
    let path = Path::from(FORMAT_FILE);
    let failed = |source| Error::store(format!("cannot copy the mark {FORMAT_FILE} of the lake at {from_url}"), source);
    let mark = from.get(&path).await.map_err(failed)?.bytes().await.map_err(failed)?;
    to.put(&path, PutPayload::from(mark)).await.map(drop).map_err(failed)
}

/// All commits rest on that two writers of one name are told apart. A server that passes over the condition would let one
/// write over the other's, and nobody would ever know.
async fn check_conditions(store: &dyn ObjectStore, url: &Url) -> Result<()> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match store.put_opts(&Path::from(FORMAT_FILE), PutPayload::from(Format::ours().bytes()), options).await {
        Ok(_) => {
            let message = format!(
                "the store of the lake at {url} does not honour conditional writes (If-None-Match), by which commits are told \
                 apart: use MinIO, AWS S3, or another store that does"
            );
            Err(Error::new(ErrorKind::BadConfig, message))
        }
        Err(error) if matches!(store_kind(&error), ErrorKind::Unavailable) => {
            Err(Error::store(format!("cannot try a conditional write on the lake at {url}"), error))
        }
        // That it is there already is the right answer. Who may only read writes nothing that could clash.
        Err(_) => Ok(()),
    }
}

async fn read_or_leave(storage: &Storage, store: &dyn ObjectStore) -> Result<()> {
    match read(&storage.url, store).await? {
        None => leave(storage, store, Format::ours(), PutMode::Create).await,
        Some(Format { unfinished_copy_of: Some(from), .. }) => {
            let message = format!(
                "{} is a copy of the lake at {from} that was broken off: repeat the export or import, which goes on where it was, \
                 or delete it",
                storage.url
            );
            Err(Error::new(ErrorKind::BadConfig, message))
        }
        Some(_) => Ok(()),
    }
}

async fn read(url: &Url, store: &dyn ObjectStore) -> Result<Option<Format>> {
    let found = match store.get(&Path::from(FORMAT_FILE)).await {
        Ok(found) => found.bytes().await,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(source) => Err(source),
    };
    let bytes = found.map_err(|source| Error::store(format!("cannot read the lake at {url}"), source))?;
    let format: Format = serde_json::from_slice(&bytes).map_err(|source| {
        Error::with_source(ErrorKind::BadData, format!("{FORMAT_FILE} in the lake at {url} is damaged"), source)
    })?;
    if format.format > FORMAT_VERSION {
        let message = format!(
            "the lake at {url} has format {}, written by {}; this program reads up to format {FORMAT_VERSION}: \
             use a newer lakebeat, or another lake with --lake",
            format.format, format.written_by
        );
        return Err(Error::new(ErrorKind::NewerLake, message));
    }
    Ok(Some(format))
}

async fn leave(storage: &Storage, store: &dyn ObjectStore, mark: Format, mode: PutMode) -> Result<()> {
    match (write(store, &mark, mode.clone()).await, &storage.bucket) {
        // A missing bucket and a missing object are told apart by writing: only the first keeps us from that.
        (Err(object_store::Error::NotFound { .. }), Some(bucket)) => {
            bucket.make().await?;
            write(store, &mark, mode).await.map_err(|source| cannot_write(&storage.url, source))
        }
        (written, _) => written.map_err(|source| cannot_write(&storage.url, source)),
    }
}

async fn write(store: &dyn ObjectStore, mark: &Format, mode: PutMode) -> object_store::Result<()> {
    let options = PutOptions { mode, ..PutOptions::default() };
    match store.put_opts(&Path::from(FORMAT_FILE), PutPayload::from(mark.bytes()), options).await {
        Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
        Err(source) => Err(source),
    }
}

impl Format {
    fn ours() -> Self {
        let written_by = format!("lakebeat {}", env!("CARGO_PKG_VERSION"));
        Self { format: FORMAT_VERSION, written_by, unfinished_copy_of: None }
    }

    fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a number and texts can be written as JSON")
    }
}

fn cannot_write(url: &Url, source: object_store::Error) -> Error {
    let error = Error::store(format!("cannot write to the lake at {url}"), source);
    match error.kind() {
        // A folder that this user may not write shows as a plain I/O error.
        ErrorKind::Unavailable if url.scheme() == "file" => {
            let message = "the lake's folder cannot be written: choose another with --data-dir or --lake";
            Error::with_source(ErrorKind::BadConfig, message, error)
        }
        _ => error,
    }
}
