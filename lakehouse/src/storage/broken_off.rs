//! What uploads into a folder leave behind when their process is killed: a file is written as `name#1` before it gets its name,
//! and `object_store` shows such files in no listing. A bucket has none: an object is there as a whole or not at all.

use std::io;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use url::Url;

use crate::error::{Error, ErrorKind, Result};

/// A file that never got its name.
#[derive(Debug, Clone)]
pub(crate) struct BrokenOff {
    path: PathBuf,
    /// Its size.
    pub(crate) bytes: u64,
    /// When it was last written to. An upload that is on its way looks the same.
    pub(crate) written_at: DateTime<Utc>,
}

impl BrokenOff {
    /// Deletes it, if it is there.
    pub(crate) async fn delete(&self) -> Result<()> {
        match tokio::fs::remove_file(&self.path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("delete", &self.path, error)),
            _ => Ok(()),
        }
    }
}

/// All that lie below the place that `url` names; none where that is no folder.
pub(crate) async fn broken_off(url: &Url) -> Result<Vec<BrokenOff>> {
    let root = (url.scheme() == "file").then(|| url.to_file_path().ok()).flatten();
    let mut folders = Vec::from_iter(root);
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        match entries(folder.clone(), &mut folders, &mut found).await {
            // Somebody else deletes at the same time.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            looked => looked.map_err(|error| failed("look into", &folder, error))?,
        }
    }
    Ok(found)
}

async fn entries(folder: PathBuf, folders: &mut Vec<PathBuf>, found: &mut Vec<BrokenOff>) -> io::Result<()> {
    let mut entries = tokio::fs::read_dir(folder).await?;
    while let Some(entry) = entries.next_entry().await? {
        if entry.file_type().await?.is_dir() {
            folders.push(entry.path());
        } else if entry.file_name().to_str().is_some_and(is_unnamed) {
            let metadata = match entry.metadata().await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            let written_at = metadata.modified()?.into();
            found.push(BrokenOff { path: entry.path(), bytes: metadata.len(), written_at });
        }
    }
    Ok(())
}

/// How `object_store` tells them: by what follows the first `#`.
fn is_unnamed(name: &str) -> bool {
    let number = name.split_once('#').map_or("", |(_, number)| number);
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

fn failed(doing: &str, path: &std::path::Path, source: io::Error) -> Error {
    Error::with_source(ErrorKind::Unavailable, format!("cannot {doing} {}", path.display()), source)
}

#[cfg(test)]
mod tests {
    use super::is_unnamed;

    #[test]
    fn what_has_no_name_yet_is_told_from_what_has_one() {
        for (name, expected) in [
            ("a.parquet#1", true),
            ("a.json#12", true),
            ("a.parquet", false),
            ("a#", false),
            ("#b", false),
            ("a#1b", false),
        ] {
            assert_eq!(is_unnamed(name), expected, "{name}");
        }
    }
}
