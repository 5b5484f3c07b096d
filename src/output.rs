//! What goes to stdout and stderr, and the exit status: 0 done; 1 the work found a fault; 2 wrong usage or configuration;
//! 3 something that is needed cannot be reached.

use std::fmt;
use std::io::Write as _;

use lakehouse::ErrorKind;
use serde::Serialize;

/// An error of the program itself, with the exit status that it means.
#[derive(Debug)]
pub(crate) struct Fault {
    status: u8,
    message: String,
}

impl Fault {
    /// The work itself found a fault.
    pub(crate) fn found(message: impl Into<String>) -> Self {
        Self { status: 1, message: message.into() }
    }

    /// Wrong usage or configuration.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { status: 2, message: message.into() }
    }

    /// Something that is needed cannot be reached.
    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self { status: 3, message: message.into() }
    }

    /// The exit status that an error means, whichever crate it is from.
    pub(crate) fn status_of(error: &anyhow::Error) -> u8 {
        for cause in error.chain() {
            if let Some(fault) = cause.downcast_ref::<Self>() {
                return fault.status;
            }
            if let Some(error) = cause.downcast_ref::<lakehouse::Error>() {
                return status_of_kind(error.kind());
            }
            if let Some(error) = cause.downcast_ref::<flight_server::Error>() {
                return match error.kind() {
                    flight_server::Kind::BadConfig => 2,
                    flight_server::Kind::Unavailable => 3,
                    _ => 1,
                };
            }
        }
        1
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

fn status_of_kind(kind: ErrorKind) -> u8 {
    match kind {
        // What is not there was named by somebody.
        ErrorKind::BadConfig | ErrorKind::NewerLake | ErrorKind::NotFound => 2,
        ErrorKind::Unavailable => 3,
        _ => 1,
    }
}

/// Prints a result: as JSON, or as its own text.
pub(crate) fn result<T: Serialize + fmt::Display>(value: &T, json: bool) -> anyhow::Result<()> {
    if json { print_json(value) } else { print(&value.to_string()) }
}

/// Prints a result as JSON, on lines that a person can read too.
pub(crate) fn print_json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value)?)
}

/// Prints a line to stdout. A reader that has gone (`| head`) is no fault of ours.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// An error with its causes, each once.
pub(crate) fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Errors of the crates print what lies beneath by themselves.
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Prints an error to stderr.
pub(crate) fn complain(error: &anyhow::Error) {
    // Nothing is left to do if even stderr is gone.
    let _ = writeln!(std::io::stderr(), "error: {}", told(error));
}

/// Prints rows as a plain table, columns padded to their widest value.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> anyhow::Result<()> {
    let width = |column: usize| {
        let values = rows.iter().filter_map(|row| row.get(column)).map(|value| value.chars().count());
        values.chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |values: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<_> = values.zip(&widths).map(|(value, width)| format!("{value:<width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    print(&line(&mut header.iter().copied()))?;
    for row in rows {
        print(&line(&mut row.iter().map(String::as_str)))?;
    }
    Ok(())
}
