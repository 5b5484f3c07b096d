//! The mark of the format that a lake is written in.

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::error::{Error, ErrorKind, Result};
use crate::storage::Storage;

/// The format that this program writes. A lake of a higher one is refused, one of a lower one is read as it is.
const FORMAT_VERSION: u32 = 1;
/// Where the lake keeps its mark.
const FORMAT_FILE: &str = "_lakebeat.json";

#[derive(Debug, Serialize, Deserialize)]
struct Format {
    format: u32,
    written_by: String,
}

/// Reads the lake's mark, or leaves one in a lake that has none; that it can be left is also the proof that the place can
/// be written. `store` has the lake as its root.
pub(crate) async fn check(storage: &Storage, store: &dyn ObjectStore) -> Result<()> {
    let url = &storage.url;
    let path = Path::from(FORMAT_FILE);
    let found = match store.get(&path).await {
        Ok(found) => found.bytes().await,
        Err(object_store::Error::NotFound { .. }) => return leave(storage, store, &path).await,
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
    Ok(())
}

async fn leave(storage: &Storage, store: &dyn ObjectStore, path: &Path) -> Result<()> {
    match (write(store, path).await, &storage.bucket) {
        // A missing bucket and a missing object are told apart by writing: only the first keeps us from that.
        (Err(object_store::Error::NotFound { .. }), Some(bucket)) => {
            bucket.make().await?;
            write(store, path).await.map_err(|source| cannot_write(&storage.url, source))
        }
        (written, _) => written.map_err(|source| cannot_write(&storage.url, source)),
    }
}

async fn write(store: &dyn ObjectStore, path: &Path) -> object_store::Result<()> {
    let format = Format { format: FORMAT_VERSION, written_by: format!("lakebeat {}", env!("CARGO_PKG_VERSION")) };
    let bytes = serde_json::to_vec(&format).expect("a number and a text can be written as JSON");
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match store.put_opts(path, PutPayload::from(bytes), options).await {
        Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
        Err(source) => Err(source),
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
