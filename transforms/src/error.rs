//! The errors of this crate are the lake's. Those that a project's author reads name the file and, where known, the line.

use std::fmt;

pub use lakehouse::{Error, ErrorKind, Result};

/// A fault in a project's files, at a place in one of them.
pub(crate) fn fault_at(path: &str, line: Option<usize>, message: impl fmt::Display) -> Error {
    match line {
        Some(line) => Error::new(ErrorKind::BadConfig, format!("{path}:{line}: {message}")),
        None => Error::new(ErrorKind::BadConfig, format!("{path}: {message}")),
    }
}

/// Somebody else was first, or is further than this build can see: start the build over.
pub(crate) fn conflict(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Conflict, message)
}
