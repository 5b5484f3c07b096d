//! The one error of this crate. Its kind says what a caller does next; its message names the thing and the remedy.

use std::error::Error as StdError;
use std::fmt;

use buoyant_kernel::Error as KernelError;
use deltalake_core::DeltaTableError;

use crate::storage::Refusal;

/// What every fallible call of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The store, or another system, cannot be reached or answers with a fault: try again later (exit status 3).
    Unavailable,
    /// A setting or an argument is wrong (exit status 2).
    BadConfig,
    /// Data in the lake is not what it must be (exit status 1).
    BadData,
    /// The named table, version or publication is not there.
    NotFound,
    /// Somebody else was first: load again and start over.
    Conflict,
    /// The lake was written by a newer version of this program (exit status 2).
    NewerLake,
    /// There is no space left, or a quota is used up.
    StorageFull,
    /// A fault of this program.
    Bug,
}

/// An error with its kind, what happened and to which thing, and what lies beneath.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error that has no other beneath it.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// An error that another one caused.
    pub fn with_source(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self { kind, message: message.into(), source: Some(source.into()) }
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Wraps an error of the object store; `doing` says what was being done to which path.
    pub(crate) fn store(doing: impl Into<String>, source: object_store::Error) -> Self {
        let kind = store_kind(&source);
        let mut message = doing.into();
        if let Some(refusal) = Refusal::find(&told(&source)) {
            // It says the same in a line as the store does in a page of XML.
            return Self::with_source(kind, message, refusal.to_string());
        }
        let is_s3 = matches!(source, object_store::Error::Generic { store: "S3", .. });
        match kind {
            ErrorKind::BadConfig => {
                message += " (check this user's rights to it, the credentials and the mount, or name another lake with --lake)";
            }
            ErrorKind::Unavailable if is_s3 => {
                message +=
                    " (is the S3 server running, and is that its address? see MINIO_ENDPOINT or AWS_ENDPOINT_URL)";
            }
            _ => {}
        }
        Self::with_source(kind, message, source)
    }

    /// Wraps an error of the Delta libraries.
    pub(crate) fn delta(doing: impl Into<String>, source: DeltaTableError) -> Self {
        let kind = match source {
            DeltaTableError::ObjectStore { source } => return Self::store(doing, source),
            DeltaTableError::NotATable(_) => ErrorKind::NotFound,
            DeltaTableError::KernelError(ref source) => kernel_kind(source),
            ref source => kind_beneath(source),
        };
        Self::with_source(kind, doing, source)
    }

    /// Wraps an error of the Delta kernel.
    pub(crate) fn kernel(doing: impl Into<String>, source: KernelError) -> Self {
        Self::with_source(kernel_kind(&source), doing, source)
    }

    /// Wraps an error of the query engine, keeping the kind of one of ours that went through it.
    pub fn query(doing: impl Into<String>, source: datafusion::error::DataFusionError) -> Self {
        use datafusion::error::DataFusionError;
        let kind = match source.find_root() {
            DataFusionError::ObjectStore(error) => store_kind(error),
            DataFusionError::ResourcesExhausted(_) => ErrorKind::Unavailable,
            DataFusionError::IoError(error) => io_kind(error).unwrap_or_else(|| kind_beneath(error)),
            DataFusionError::ParquetError(error) => footer_kind(error).unwrap_or_else(|| kind_beneath(error)),
            root => kind_beneath(root),
        };
        Self::with_source(kind, doing, source)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// What an object store's error means for the caller. What a disk says hides two levels down in an I/O error.
pub(crate) fn store_kind(error: &object_store::Error) -> ErrorKind {
    let is_local = matches!(error, object_store::Error::Generic { store: "LocalFileSystem", .. });
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(kind) = current.downcast_ref::<std::io::Error>().and_then(io_kind) {
            // A network too can say "permission denied", of a route that may well come back.
            if is_local || kind != ErrorKind::BadConfig {
                return kind;
            }
        }
        cause = current.source();
    }
    if let Some(kind) = Refusal::find(&told(error)).and_then(|refusal| refusal.kind()) {
        return kind;
    }
    match error {
        object_store::Error::NotFound { .. } => ErrorKind::NotFound,
        object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. } => ErrorKind::Conflict,
        object_store::Error::PermissionDenied { .. }
        | object_store::Error::Unauthenticated { .. }
        | object_store::Error::UnknownConfigurationKey { .. } => ErrorKind::BadConfig,
        _ => ErrorKind::Unavailable,
    }
}

/// An error and all that lies beneath it: what an HTTP client says leaves out why it could not connect.
fn told(error: &(dyn StdError + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// What the store's error that lies beneath another one means; without one, what was read is at fault.
fn kind_beneath(error: &(dyn StdError + 'static)) -> ErrorKind {
    let mut cause = Some(error);
    while let Some(current) = cause {
        if let Some(error) = current.downcast_ref::<Error>() {
            return error.kind();
        }
        if let Some(error) = current.downcast_ref::<object_store::Error>() {
            return store_kind(error);
        }
        cause = current.source();
    }
    ErrorKind::BadData
}

/// What a remote store said while a file's footer was read. DataFusion hands that on as text and nothing else; taken for a fault
/// of the file, it would end a process that only has to wait.
fn footer_kind(error: &parquet::errors::ParquetError) -> Option<ErrorKind> {
    let parquet::errors::ParquetError::General(text) = error else { return None };
    let is_remote = text.contains("Object Store error: Generic ") && !text.contains("Generic LocalFileSystem");
    is_remote.then(|| Refusal::find(text).and_then(|refusal| refusal.kind()).unwrap_or(ErrorKind::Unavailable))
}

/// The same for an error of the kernel, which does not name its causes as sources.
fn kernel_kind(error: &KernelError) -> ErrorKind {
    match error {
        KernelError::Backtraced { source, .. } => kernel_kind(source),
        KernelError::ObjectStore(source) => store_kind(source),
        KernelError::IOError(source) => io_kind(source).unwrap_or(ErrorKind::Unavailable),
        KernelError::GenericError { source } => kind_beneath(source.as_ref()),
        // A checkpoint that could not be read: what kept it from that may be the store.
        KernelError::Parquet(source) => kind_beneath(source),
        KernelError::Arrow(source) => kind_beneath(source),
        _ => ErrorKind::BadData,
    }
}

/// What an error of the disk means, if trying again would not help.
fn io_kind(error: &std::io::Error) -> Option<ErrorKind> {
    use std::io::ErrorKind as Io;
    match error.kind() {
        Io::StorageFull | Io::QuotaExceeded => Some(ErrorKind::StorageFull),
        Io::PermissionDenied | Io::ReadOnlyFilesystem => Some(ErrorKind::BadConfig),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_checkpoint_that_the_store_does_not_give_is_not_taken_for_a_damaged_one() {
        let away = object_store::Error::Generic { store: "S3", source: "connection refused".into() };
        let unread = KernelError::Parquet(parquet::errors::ParquetError::External(Box::new(away)));
        assert_eq!(Error::delta("cannot read the log", unread.into()).kind(), ErrorKind::Unavailable);
        let damaged = KernelError::Parquet(parquet::errors::ParquetError::EOF("too short".to_owned()));
        assert_eq!(Error::kernel("cannot read the log", damaged).kind(), ErrorKind::BadData);
    }

    #[test]
    fn what_a_disk_says_is_told_from_a_store_that_is_away() {
        const DISK: &str = "LocalFileSystem";
        for (store, said, kind) in [
            (DISK, io::ErrorKind::StorageFull, ErrorKind::StorageFull),
            (DISK, io::ErrorKind::PermissionDenied, ErrorKind::BadConfig),
            (DISK, io::ErrorKind::ReadOnlyFilesystem, ErrorKind::BadConfig),
            (DISK, io::ErrorKind::TimedOut, ErrorKind::Unavailable),
            ("S3", io::ErrorKind::PermissionDenied, ErrorKind::Unavailable),
        ] {
            let beneath = object_store::Error::Generic { store, source: io::Error::from(said).into() };
            let error = Error::store("cannot write gold/t", beneath);
            assert_eq!(error.kind(), kind, "{error}");
            assert_eq!(error.to_string().contains("--lake"), kind == ErrorKind::BadConfig, "{error}");
        }
    }
}
