//! What became of each message: counts by kind, and the log of all that a broker has confirmed.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::ProducerContext;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Kind, Report};
use crate::{Error, ErrorKind, Result};

/// What is remembered of a message until a broker confirms it.
pub(super) struct Sent {
    pub(super) kind: Kind,
    pub(super) event_id: Option<Uuid>,
}

/// Takes librdkafka's confirmations.
pub(super) struct Delivery(pub(super) Arc<Tally>);

impl ClientContext for Delivery {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        crate::kafka::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ProducerContext for Delivery {
    type DeliveryOpaque = Box<Sent>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Box<Sent>) {
        let mut counts = self.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(message) => {
                *counts.delivered.entry(sent.kind).or_default() += 1;
                if let Some(log) = &mut counts.log {
                    let line = log_line(&sent, message);
                    let written = writeln!(log, "{line}");
                    counts.note(written);
                }
            }
            Err((error, _)) => tracing::warn!(%error, kind = sent.kind.name(), "message not delivered"),
        }
    }
}

/// The counts and the log.
pub(super) struct Tally {
    counts: Mutex<Counts>,
}

struct Counts {
    delivered: BTreeMap<Kind, u64>,
    log: Option<BufWriter<File>>,
    /// The first failure to write the log; it is reported at the end, since a callback can't.
    log_error: Option<std::io::Error>,
}

impl Counts {
    fn note(&mut self, written: std::io::Result<()>) {
        if let Err(error) = written {
            self.log_error.get_or_insert(error);
        }
    }
}

impl Tally {
    /// Counts from nought. The log is appended to, so that several runs can share one file.
    pub(super) fn new(log: Option<&Path>) -> Result<Self> {
        let open = |path: &Path| {
            OpenOptions::new().create(true).append(true).open(path).map(BufWriter::new).map_err(|source| {
                Error::with_source(ErrorKind::BadConfig, format!("cannot write the log {}", path.display()), source)
            })
        };
        let log = log.map(open).transpose()?;
        let delivered = Kind::ALL.into_iter().map(|kind| (kind, 0)).collect();
        Ok(Self { counts: Mutex::new(Counts { delivered, log, log_error: None }) })
    }

    pub(super) fn flush_log(&self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flushed) = counts.log.as_mut().map(BufWriter::flush) {
            counts.note(flushed);
        }
    }

    pub(super) fn report(&self, sent: u64, took: Duration) -> Result<Report> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = counts.log_error.take() {
            let message = "the log of delivered messages is not complete";
            return Err(Error::with_source(ErrorKind::Unavailable, message, source));
        }
        let kinds = counts.delivered.clone();
        let delivered = kinds.values().sum();
        Ok(Report { delivered, failed: sent.saturating_sub(delivered), seconds: took.as_secs_f64(), kinds })
    }
}

fn log_line(sent: &Sent, message: &rdkafka::message::BorrowedMessage<'_>) -> Value {
    let mut line = json!({
        "kind": sent.kind.name(),
        "event_id": sent.event_id,
        "partition": message.partition(),
        "offset": message.offset(),
        "key": message.key().map(String::from_utf8_lossy),
    });
    match message.payload().map(|payload| (std::str::from_utf8(payload), payload)) {
        None => line["payload"] = Value::Null,
        Some((Ok(text), _)) => line["payload"] = text.into(),
        Some((Err(_), bytes)) => line["payload_base64"] = STANDARD.encode(bytes).into(),
    }
    line
}
