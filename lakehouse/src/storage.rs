//! Where the lake lies: a URL becomes an object store. `file://`, `s3://` and `memory://`.
//!
//! An S3 store commits by conditional PUT (`If-None-Match: *`), so that the Delta log needs no lock table and no AWS SDK.
//! `object_store` does not fsync: a killed process loses nothing, a power cut may lose the last seconds on `file://`.

mod broken_off;
mod s3;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use url::Url;

use crate::error::{Error, ErrorKind, Result};

pub(crate) use broken_off::{BrokenOff, broken_off};
use s3::Bucket;
pub(crate) use s3::Refusal;

/// Settings of the store, by the names that `object_store` knows (`aws_access_key_id`, `aws_endpoint`, …).
#[derive(Clone, Default)]
pub struct StorageOptions {
    /// Each setting with its value. Values can be secrets: they are never printed.
    pub settings: BTreeMap<String, String>,
    /// A PEM file with the authorities that may have signed the store's certificate, besides those that this machine trusts.
    pub ca_file: Option<PathBuf>,
}

impl fmt::Debug for StorageOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.settings.keys()).finish()
    }
}

/// Deletes an object, if it is there.
pub(crate) async fn delete(store: &dyn ObjectStore, path: &Path) -> object_store::Result<()> {
    match store.delete(path).await {
        Err(object_store::Error::NotFound { .. }) => Ok(()),
        deleted => deleted,
    }
}

/// A store that reaches everything, and the place of the lake in it.
#[derive(Debug, Clone)]
pub(crate) struct Storage {
    /// The store from its very root, as the Delta kernel wants it.
    pub(crate) root: Arc<dyn ObjectStore>,
    /// The lake's URL, always with a slash at its end.
    pub(crate) url: Url,
    /// The lake's folder in `root`.
    pub(crate) prefix: Path,
    /// What can make the place of the lake, if it is a bucket.
    pub(crate) bucket: Option<Bucket>,
}

impl Storage {
    /// A store of the caller's. Its root is that of `url`.
    pub(crate) fn of(root: Arc<dyn ObjectStore>, url: &Url) -> Result<Self> {
        let mut url = url.clone();
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        let prefix = Path::from_url_path(url.path()).map_err(|source| {
            Error::with_source(ErrorKind::BadConfig, format!("the lake's URL {url} has an impossible path"), source)
        })?;
        Ok(Self { root, url, prefix, bucket: None })
    }
}

/// Opens the store that `url` names. For `file://` the folder is made if it is missing.
pub(crate) fn open(url: &Url, options: &StorageOptions) -> Result<Storage> {
    if url.scheme() == "file" {
        make_folder(url)?;
    }
    reach(url, options)
}

/// The same, and nothing is made.
pub(crate) fn reach(url: &Url, options: &StorageOptions) -> Result<Storage> {
    let mut bucket = None;
    let root: Arc<dyn ObjectStore> = match url.scheme() {
        "file" => Arc::new(LocalFileSystem::new()),
        "memory" => Arc::new(InMemory::new()),
        "s3" | "s3a" => bucket.insert(Bucket::new(url, options)?).store(),
        other => {
            return Err(Error::new(
                ErrorKind::BadConfig,
                format!("the lake's URL {url} begins with {other}://: use file://, s3:// or a folder's path"),
            ));
        }
    };
    Ok(Storage { bucket, ..Storage::of(root, url)? })
}

fn make_folder(url: &Url) -> Result<()> {
    let folder = url
        .to_file_path()
        .map_err(|()| Error::new(ErrorKind::BadConfig, format!("{url} is not a path on this machine")))?;
    std::fs::create_dir_all(&folder).map_err(|source| {
        let message =
            format!("cannot make the lake's folder {}: choose another with --data-dir or --lake", folder.display());
        Error::with_source(ErrorKind::BadConfig, message, source)
    })
}
