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

    /// The file as the engine wants it named. It takes the path out of a URL without undoing the URL's escapes, so that
    /// a path with a space or an umlaut works only if those are in the current folder's path and not behind it.
    pub(super) fn file_url(&self) -> Result<Url> {
        let file = self.file();
        let here = std::env::current_dir().and_then(|folder| folder.canonicalize()).ok();
        let relative = here.and_then(|here| Some(file.strip_prefix(here).ok()?.to_owned()));
        [Some(file), relative].iter().flatten().find_map(|path| plain_url(path)).ok_or_else(|| {
            let message = format!(
                "the broker cannot work in the folder {}: below the current folder its path may have only letters, \
                 digits and the signs .-_~; set --data-dir",
                self.path.display()
            );
            Error::new(ErrorKind::BadConfig, message)
        })
    }
}

/// The URL of a path that needs no escapes.
fn plain_url(path: &Path) -> Option<Url> {
    let text = path.to_str()?;
    let url = Url::parse(&format!("sqlite:///{text}")).ok()?;
    (url.path().strip_prefix('/') == Some(text)).then_some(url)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_keeps_its_identity_and_lets_one_in() {
        let parent = tempfile::tempdir().expect("a folder");
        let path = parent.path().join("deep").join("broker");
        let folder = Folder::open(&path).expect("opened");
        let cluster = folder.cluster().to_owned();
        let error = Folder::open(&path).expect_err("locked");
        assert_eq!(error.kind(), ErrorKind::BadConfig);
        drop(folder);
        assert_eq!(Folder::open(&path).expect("opened").cluster(), cluster);
    }

    #[test]
    fn a_folder_that_is_a_file_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let error = Folder::open(file.path()).expect_err("no folder");
        assert_eq!(error.kind(), ErrorKind::BadConfig);
        assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
    }

    #[test]
    fn a_path_that_the_engine_would_misread_is_refused() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = Folder::open(&parent.path().join("my music")).expect("opened");
        assert_eq!(folder.file_url().expect_err("refused").kind(), ErrorKind::BadConfig);
        let folder = Folder::open(&parent.path().join("music")).expect("opened");
        assert!(folder.file_url().expect("a URL").as_str().ends_with("/music/broker.db"));
    }
}
