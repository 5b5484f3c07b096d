//! The mirror: gold as one publication names it, in Snowflake, as one transaction leaves it there.
//!
//! ```text
//!  publication ─► plan ─► export ─► stage ─► load ──► apply ─────────► record
//!  (the lake's)   what    Parquet   PUT      COPY     one transaction, system.mirror_runs,
//!                 is new  parts              INTO     all tables       with the ledger entry
//! ```
//!
//! What is mirrored already is known from the lake's own ledger, so that an unchanged publication costs no request. What
//! Snowflake holds stands in two tables of its own beside the data, written in the same transaction as the rows: a
//! mirror that was killed anywhere finds there whether it had come to its end.
//!
//! This crate knows Snowflake's HTTP protocol. It knows nothing of Kafka, of wire protocols, or of how models are built.

mod client;
mod export;
mod mirror;
mod plan;
mod result;
mod runs;
mod state;
mod types;

use std::fmt;
use std::time::Duration;

use lakehouse::Lake;
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;

// What goes wrong here, goes wrong between the lake and another system: the lake's kinds say what a caller does.
pub use lakehouse::{Error, ErrorKind, Result};

pub use client::account_url;

/// The longest pause after a run that failed, if the interval is not longer.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(300);

/// Where the mirror is, and who may write it.
#[derive(Debug, Clone)]
pub struct Options {
    /// The service, such as `https://myorg-myaccount.snowflakecomputing.com`; see [`account_url`].
    pub url: Url,
    /// The account's name, without region.
    pub account: String,
    /// The user's name.
    pub user: String,
    /// The user's password, or a programmatic access token, which Snowflake takes in its place.
    pub password: Secret,
    /// The warehouse that loads; the user's default one if none is named.
    pub warehouse: Option<String>,
    /// The role that loads; the user's default one if none is named.
    pub role: Option<String>,
    /// The database of the mirror. It is made if it is missing and the role may.
    pub database: String,
    /// The schema of the mirror in it.
    pub schema: String,
}

impl Options {
    /// The mirror's place, as people write it.
    pub fn target(&self) -> String {
        format!("{}.{}", types::upper(&self.database), types::upper(&self.schema))
    }
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The publication was loaded and committed.
    Mirrored,
    /// The publication was there already; no request was sent.
    Unchanged,
    /// Snowflake had the publication already, or a newer one, and the lake did not know: now it does.
    Found,
    /// Nothing is published yet.
    NothingPublished,
    /// The run was told to stop before it came to its end.
    Stopped,
}

/// The account of one run.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// How it ended.
    pub outcome: Outcome,
    /// The mirror's place.
    pub target: String,
    /// The publication that it now holds, as far as this run knows.
    pub publication: Option<u64>,
    /// Tables that were loaded; the others were as they had to be.
    pub tables: u64,
    /// Rows that were loaded.
    pub rows: u64,
    /// Bytes that were uploaded.
    pub bytes: u64,
    /// Statements that were sent.
    pub statements: u64,
    /// How long it took.
    pub seconds: f64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, tables, rows, bytes, statements, seconds, .. } = self;
        let publication = self.publication.unwrap_or_default();
        match self.outcome {
            Outcome::Mirrored => write!(
                f,
                "publication #{publication} is in {target}: {tables} tables loaded, {rows} rows, {bytes} bytes, \
                 {statements} statements, {seconds:.1} s"
            ),
            Outcome::Unchanged => write!(f, "publication #{publication} is mirrored already in {target}"),
            Outcome::Found => write!(f, "publication #{publication} was found in {target}; nothing was loaded"),
            Outcome::NothingPublished => {
                write!(f, "nothing is published yet, so {target} is as it was: `lakebeat transform build` publishes")
            }
            Outcome::Stopped => write!(f, "stopped; {target} holds one publication whole, the old one or the new one"),
        }
    }
}

/// Brings the mirror to the newest publication, if it is not there yet.
///
/// # Errors
/// `BadConfig` for a wrong login, missing rights, or tables there that are not the mirror's or no longer fit;
/// `Unavailable` if Snowflake cannot be reached, also after a few attempts; `BadData` if it refuses a statement. After
/// an error it holds what it held before.
pub async fn mirror_once(lake: &Lake, options: &Options, token: &CancellationToken) -> Result<Summary> {
    mirror::run(lake, options, token).await
}

/// The same again and again, every `interval` from start to start, until `token` is cancelled.
///
/// # Errors
/// Those that waiting does not heal: `BadConfig`, `NewerLake`, `StorageFull`, `Bug`. All others are logged, and the run
/// is tried again.
pub async fn mirror_every(lake: &Lake, options: &Options, interval: Duration, token: &CancellationToken) -> Result<()> {
    let mut pause = Duration::ZERO;
    loop {
        let started = Instant::now();
        let wait = match mirror_once(lake, options, token).await {
            Ok(summary) => {
                pause = Duration::ZERO;
                match summary.outcome {
                    Outcome::Mirrored | Outcome::Found => tracing::info!("{summary}"),
                    _ => tracing::debug!("{summary}"),
                }
                interval.saturating_sub(started.elapsed())
            }
            Err(error) if ends_the_loop(error.kind()) => return Err(error),
            Err(error) => {
                pause = (pause * 2).clamp(interval, RETRY_PAUSE_MAX.max(interval));
                tracing::error!(%error, retry_in = ?pause, "not mirrored");
                pause
            }
        };
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Logs in and out again.
///
/// # Errors
/// As for [`mirror_once`].
pub async fn check(options: &Options) -> Result<()> {
    client::Client::new(options)?.login().await?.close().await;
    Ok(())
}

/// Waiting does not help here; a person has to.
fn ends_the_loop(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::BadConfig | ErrorKind::NewerLake | ErrorKind::StorageFull | ErrorKind::Bug)
}
