//! The broker's folder: its file, its identity, and the lock that keeps a second broker out.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::ErrorKind as IoErrorKind;
use std::path::{Path, PathBuf};

use url::Url;
use uuid::Uuid;

use crate::{Error, ErrorKind, Result};

/// The folder, locked for as long as this lives.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Which cluster this is; clients and the lake's ledger tell two brokers apart by it.
    cluster: String,
    _lock: File,
}

impl Folder {
    /// Creates the folder and the identity if they are not there.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let failed = |what: &str, source: std::io::Error| {
            let kind = match source.kind() {
                IoErrorKind::StorageFull | IoErrorKind::QuotaExceeded => ErrorKind::StorageFull,
                _ => ErrorKind::BadConfig,
            };
            let message = format!("cannot {what} the broker's folder {}; set --data-dir", path.display());
            Error::with_source(kind, message, source)
        };
        fs::create_dir_all(path).map_err(|source| failed("create", source))?;
        let path = path.canonicalize().map_err(|source| failed("find", source))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("lock"))
            .map_err(|source| failed("write to", source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = format!(
                    "another broker runs in the folder {}; stop it, or set --data-dir to another folder",
                    path.display()
                );
                return Err(Error::new(ErrorKind::BadConfig, message));
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock", source)),
        }
        let cluster = cluster_id(&path.join("cluster-id")).map_err(|source| failed("write to", source))?;
        Ok(Self { path, cluster, _lock: lock })
    }

    /// The identity, the same on each start.
    pub(super) fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The file with the topics.
    pub(super) fn file(&self) -> PathBuf {
        self.path.join("broker.db")
    }

    /// The file as the engine wants it named. It takes the path out of a URL without undoing the URL's escapes.
    pub(super) fn file_url(&self) -> Result<Url> {
        let file = self.file();
        let unusable = || {
            let message = format!(
                "the broker cannot work in the folder {}: its path may have only letters, digits and the signs .-_/~; \
                 set --data-dir",
                self.path.display()
            );
            Error::new(ErrorKind::BadConfig, message)
        };
        let text = file.to_str().ok_or_else(unusable)?;
        let url = Url::parse(&format!("sqlite:///{text}")).map_err(|_| unusable())?;
        if url.path().strip_prefix('/') == Some(text) { Ok(url) } else { Err(unusable()) }
    }
}

fn cluster_id(file: &Path) -> std::io::Result<String> {
    match fs::read_to_string(file) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Err(error) if error.kind() != IoErrorKind::NotFound => Err(error),
        Ok(_) | Err(_) => {
            let cluster = format!("lakebeat-{}", Uuid::new_v4().simple());
            // Renamed into place, so that a crash leaves the old file or the new one.
            let new = file.with_extension("new");
            fs::write(&new, &cluster)?;
            fs::rename(&new, file)?;
            Ok(cluster)
        }
    }
}
