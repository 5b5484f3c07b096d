//! Where the lake lies: a URL becomes an object store. `file://`, `s3://` and `memory://`.
//!
//! An S3 store commits by conditional PUT (`If-None-Match: *`), so that the Delta log needs no lock table and no AWS SDK.
//! `object_store` does not fsync: a killed process loses nothing, a power cut may lose the last seconds on `file://`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use url::Url;

use crate::error::{Error, ErrorKind, Result};

/// Settings of the store, by the names that `object_store` knows (`aws_access_key_id`, `aws_endpoint`, …).
#[derive(Clone, Default)]
pub struct StorageOptions {
    /// Each setting with its value. Values can be secrets: they are never printed.
    pub settings: BTreeMap<String, String>,
}

impl fmt::Debug for StorageOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.settings.keys()).finish()
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
}

/// Opens the store that `url` names. For `file://` the folder is made if it is missing.
pub(crate) fn open(url: &Url, options: &StorageOptions) -> Result<Storage> {
    let mut url = url.clone();
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    let prefix = Path::from_url_path(url.path()).map_err(|source| {
        Error::with_source(ErrorKind::BadConfig, format!("the lake's URL {url} has an impossible path"), source)
    })?;
    let root: Arc<dyn ObjectStore> = match url.scheme() {
        "file" => open_folder(&url)?,
        "memory" => Arc::new(InMemory::new()),
        "s3" | "s3a" => open_s3(&url, options)?,
        other => {
            return Err(Error::new(
                ErrorKind::BadConfig,
                format!("the lake's URL {url} begins with {other}://: use file://, s3:// or a folder's path"),
            ));
        }
    };
    Ok(Storage { root, url, prefix })
}

fn open_folder(url: &Url) -> Result<Arc<dyn ObjectStore>> {
    let folder = url
        .to_file_path()
        .map_err(|()| Error::new(ErrorKind::BadConfig, format!("{url} is not a path on this machine")))?;
    std::fs::create_dir_all(&folder).map_err(|source| {
        let message =
            format!("cannot make the lake's folder {}: choose another with --data-dir or --lake", folder.display());
        Error::with_source(ErrorKind::BadConfig, message, source)
    })?;
    Ok(Arc::new(LocalFileSystem::new()))
}

fn open_s3(url: &Url, options: &StorageOptions) -> Result<Arc<dyn ObjectStore>> {
    let bucket = url
        .host_str()
        .ok_or_else(|| Error::new(ErrorKind::BadConfig, format!("{url} names no bucket: write s3://bucket/path")))?;
    let mut builder = AmazonS3Builder::new().with_bucket_name(bucket);
    for (name, value) in &options.settings {
        let key: AmazonS3ConfigKey = name.parse().map_err(|source| {
            Error::with_source(ErrorKind::BadConfig, format!("\"{name}\" is not a setting of an S3 store"), source)
        })?;
        builder = builder.with_config(key, value);
    }
    let store = builder.build().map_err(|source| {
        Error::with_source(ErrorKind::BadConfig, format!("the settings for {url} do not fit"), source)
    })?;
    Ok(Arc::new(store))
}
