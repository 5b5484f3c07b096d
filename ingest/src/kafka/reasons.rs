//! What librdkafka says while it tries to reach a broker, and what of it will not mend by trying on.
//!
//! A call that asks a broker something only ever ends in "timed out": that the login is wrong, or the certificate nobody's
//! that we trust, librdkafka tells beside it, and tries again for ever. Here that becomes an error that says what to set.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::{Error, ErrorKind};

/// So many reasons are kept.
const KEPT_MAX: usize = 16;
/// A broker that closes its connections so many times in a row does not do so because it is just starting.
const CLOSED_AT_ONCE: usize = 3;

/// The newest reasons why a client could not reach its brokers. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reasons(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    /// The newest last, each once: librdkafka does not repeat itself either.
    reasons: VecDeque<Reason>,
    /// How often no broker was left, which it does repeat.
    times_down: usize,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reason {
    code: Option<RDKafkaErrorCode>,
    text: String,
}

impl ClientContext for Reasons {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let code = error.rdkafka_error_code();
        if code == Some(RDKafkaErrorCode::AllBrokersDown) {
            kept.times_down += 1;
            return;
        }
        let reason = Reason { code, text: plain(reason).to_owned() };
        kept.reasons.retain(|known| *known != reason);
        if kept.reasons.len() == KEPT_MAX {
            kept.reasons.pop_front();
        }
        kept.reasons.push_back(reason);
    }
}

impl ConsumerContext for Reasons {}

/// librdkafka reports each lost connection as an error although it connects again by itself, so nothing here is one.
pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::warn!(facility, message, "librdkafka");
        }
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => tracing::info!(facility, message, "librdkafka"),
        _ => tracing::debug!(facility, message, "librdkafka"),
    }
}

impl Reasons {
    /// Forgets what was, since a broker has answered.
    pub(crate) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Kept::default();
    }

    /// The reason that trying on does not mend, as the error that it is.
    pub(crate) fn hindrance(&self, brokers: &str) -> Option<Error> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (kind, text, remedy) = refusal(&kept).or_else(|| closing(&kept))?;
        Some(Error::new(kind, format!("no way to the Kafka broker at {brokers}: {text}: {remedy}")))
    }

    /// The newest reason, for people.
    pub(crate) fn newest(&self) -> Option<String> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.reasons.back().map(|reason| reason.text.clone())
    }
}

/// What a broker, or our side, has refused in so many words.
fn refusal(kept: &Kept) -> Option<(ErrorKind, String, &'static str)> {
    let told = kept.reasons.iter().rev().find_map(|reason| Some((reason, remedy(reason)?)));
    told.map(|(reason, remedy)| (ErrorKind::BadConfig, reason.text.clone(), remedy))
}

/// What to do about a refusal.
fn remedy(reason: &Reason) -> Option<&'static str> {
    let says = |words: &str| reason.text.contains(words);
    match reason.code {
        Some(RDKafkaErrorCode::Authentication) if says("Unsupported SASL mechanism") => {
            Some("it does not take this kind of login; set KAFKA_SASL_MECHANISM (sasl.mechanism) to one that it names")
        }
        Some(RDKafkaErrorCode::Authentication) => Some(
            "the login is refused; check KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD and KAFKA_SASL_MECHANISM, or sasl.* in \
             [kafka.properties]",
        ),
        Some(RDKafkaErrorCode::SSL) if says("hostname mismatch") || says("IP address mismatch") => Some(
            "the broker's certificate is for another name; set the brokers to a name that it is for, or \
             ssl.endpoint.identification.algorithm to none in [kafka.properties]",
        ),
        Some(RDKafkaErrorCode::SSL) if says("verify") => Some(
            "the broker's certificate is of nobody that we trust; set KAFKA_SSL_CA_LOCATION (ssl.ca.location) to the file \
             of the authority that signed it",
        ),
        Some(RDKafkaErrorCode::SSL) if says("alert") => Some(
            "the broker refuses our side of TLS; where it wants a certificate of ours, set KAFKA_SSL_CERTIFICATE_LOCATION and \
             KAFKA_SSL_KEY_LOCATION",
        ),
        _ => None,
    }
}

/// A broker that closes each connection most likely speaks another protocol on that port. It does not say so, and what stands
/// before a broker that is away may do the same: so this is no proof that the settings are wrong.
fn closing(kept: &Kept) -> Option<(ErrorKind, String, &'static str)> {
    // One that wants a login or TLS may go without a word, so that nothing else is heard of.
    let only_closes = kept.reasons.iter().all(|reason| reason.text.contains("Disconnected"));
    if kept.times_down < CLOSED_AT_ONCE || !only_closes {
        return None;
    }
    let (text, remedy) = if kept.reasons.iter().any(|reason| reason.text.contains("PLAINTEXT broker listener")) {
        (
            "it closes each connection within the TLS handshake",
            "that port does not speak TLS, or nobody does there; set KAFKA_SECURITY_PROTOCOL (security.protocol) to plaintext \
             or sasl_plaintext, or name the port that does",
        )
    } else {
        (
            "it closes each connection at once",
            "where it wants TLS or a login, set KAFKA_SECURITY_PROTOCOL (security.protocol) to ssl, sasl_ssl or \
             sasl_plaintext, or name the port that wants neither",
        )
    };
    Some((ErrorKind::Unavailable, text.to_owned(), remedy))
}

/// The reason without what librdkafka says of its own state behind it.
fn plain(text: &str) -> &str {
    text.split(" (after ").next().unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(told: &[(RDKafkaErrorCode, &str)], expected: Expect) {
        let reasons = Reasons::default();
        for (code, text) in told {
            reasons.error(KafkaError::Global(*code), text);
        }
        let found = reasons.hindrance("b:9093");
        expected.assert_eq(&found.map_or_else(|| "goes on".to_owned(), |error| format!("{:?} {error}", error.kind())));
    }

    #[test]
    fn what_does_not_mend_is_an_error_with_its_remedy() {
        use RDKafkaErrorCode as Code;
        check(&[], expect!["goes on"]);
        check(
            &[
                (
                    Code::BrokerTransportFailure,
                    "b:9093/bootstrap: Connect to ipv4#127.0.0.1:9093 failed: Connection refused (after 0ms in state CONNECT)",
                ),
                (Code::AllBrokersDown, "1/1 brokers are down"),
            ],
            expect!["goes on"],
        );
        check(
            &[
                (
                    Code::Authentication,
                    "sasl_ssl://b:9093/bootstrap: SASL authentication error: Authentication failed (after 3ms in state AUTH_REQ)",
                ),
                (Code::AllBrokersDown, "1/1 brokers are down"),
            ],
            expect![
                "BadConfig no way to the Kafka broker at b:9093: sasl_ssl://b:9093/bootstrap: SASL authentication error: Authentication failed: the login is refused; check KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD and KAFKA_SASL_MECHANISM, or sasl.* in [kafka.properties]"
            ],
        );
        check(&[(Code::SSL, "ssl://b:9093/bootstrap: SSL handshake failed: Disconnected")], expect!["goes on"]);
        check(
            &[(
                Code::Authentication,
                "sasl_ssl://b:9093/bootstrap: SASL SCRAM-SHA-256 mechanism handshake failed: Broker: Unsupported SASL mechanism: broker's supported mechanisms: PLAIN (after 306ms in state AUTH_HANDSHAKE)",
            )],
            expect![
                "BadConfig no way to the Kafka broker at b:9093: sasl_ssl://b:9093/bootstrap: SASL SCRAM-SHA-256 mechanism handshake failed: Broker: Unsupported SASL mechanism: broker's supported mechanisms: PLAIN: it does not take this kind of login; set KAFKA_SASL_MECHANISM (sasl.mechanism) to one that it names"
            ],
        );
    }

    #[test]
    fn what_is_closed_again_and_again_is_most_likely_another_protocol() {
        use RDKafkaErrorCode as Code;
        let down = (Code::AllBrokersDown, "1/1 brokers are down");
        // librdkafka tells each reason once, and that no broker is left each time.
        let plain = (
            Code::BrokerTransportFailure,
            "b:9093/bootstrap: Disconnected: connection closed by peer: receive 0 after POLLIN",
        );
        let tls = (
            Code::BrokerTransportFailure,
            "ssl://b:9092/bootstrap: SSL handshake failed: Disconnected: SSL connection closed by peer: connecting to a PLAINTEXT broker listener?",
        );
        let refused = (
            Code::BrokerTransportFailure,
            "b:9093/bootstrap: Connect to ipv4#127.0.0.1:9093 failed: Connection refused",
        );
        for starting in [plain, tls] {
            check(&[starting, down, down], expect!["goes on"]);
        }
        check(&[refused, down, down, down, down, plain, down], expect!["goes on"]);
        for told in [[plain, down, down, down], [down; 4]] {
            check(
                &told,
                expect![
                    "Unavailable no way to the Kafka broker at b:9093: it closes each connection at once: where it wants TLS or a login, set KAFKA_SECURITY_PROTOCOL (security.protocol) to ssl, sasl_ssl or sasl_plaintext, or name the port that wants neither"
                ],
            );
        }
        check(
            &[tls, down, down, down],
            expect![
                "Unavailable no way to the Kafka broker at b:9093: it closes each connection within the TLS handshake: that port does not speak TLS, or nobody does there; set KAFKA_SECURITY_PROTOCOL (security.protocol) to plaintext or sasl_plaintext, or name the port that does"
            ],
        );
    }

    #[test]
    fn reasons_are_kept_once_and_the_newest_only() {
        let reasons = Reasons::default();
        let told = |text: &str| reasons.error(KafkaError::Global(RDKafkaErrorCode::BrokerTransportFailure), text);
        reasons.error(KafkaError::Global(RDKafkaErrorCode::Authentication), "refused");
        for _ in 0..100 {
            told("Connection refused (after 1ms)");
            reasons.error(KafkaError::Global(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        }
        assert!(reasons.hindrance("b:9093").is_some(), "what is repeated pushes nothing out");
        assert_eq!(reasons.newest().as_deref(), Some("Connection refused"));
        for index in 0..KEPT_MAX {
            told(&format!("reason {index}"));
        }
        assert!(reasons.hindrance("b:9093").is_none());
        reasons.clear();
        assert_eq!(reasons.newest(), None);
    }
}
