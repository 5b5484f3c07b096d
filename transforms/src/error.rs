//! The one error of this crate. Its kind says what a caller does next; its message names the file, the model, the remedy.

use std::error::Error as StdError;
use std::fmt;

pub use lakehouse::ErrorKind;

/// What every fallible call of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with its kind, what happened where, and what lies beneath.
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

    /// A fault in a project's files, at a place in one of them.
    pub(crate) fn at(path: &str, line: Option<usize>, message: impl fmt::Display) -> Self {
        match line {
            Some(line) => Self::new(ErrorKind::BadConfig, format!("{path}:{line}: {message}")),
            None => Self::new(ErrorKind::BadConfig, format!("{path}: {message}")),
        }
    }

    /// Somebody else was first, or is further than this build can see: start the build over.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
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

impl From<lakehouse::Error> for Error {
    /// The lake's errors say by themselves what happened to which table.
    fn from(error: lakehouse::Error) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}
