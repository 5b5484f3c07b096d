//! Settings of librdkafka from the user: any of them, all but a few that are ours. No secret among them is ever shown.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;

use super::check_brokers;
use crate::{Error, ErrorKind, Result};

/// Settings of librdkafka that exactly-once rests on, or that have a flag of their own: not for the user to set.
const OWN_PROPERTIES: [&str; 11] = [
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.protocol",
    "isolation.level",
    "metadata.broker.list",
    "partition.assignment.strategy",
];

/// Words by which a setting's name says that its value is a secret. Rather one too many: a hidden value is only a nuisance.
const SECRET_WORDS: [&str; 9] =
    ["password", "passphrase", "secret", "token", "pem", "private", "credential", "oauthbearer.config", "jaas"];

/// Settings of librdkafka by name. Printing them hides the secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, String>);

impl Properties {
    /// None at all.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of a setting.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Sets one, in the place of what was set before.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.insert(name.into(), value.into());
    }

    /// Sets one that is not set yet.
    pub fn set_default(&mut self, name: &str, value: impl Into<String>) {
        self.0.entry(name.to_owned()).or_insert_with(|| value.into());
    }

    /// Whether connections are encrypted, or begin with a login.
    pub fn asks_for_security(&self) -> bool {
        self.get("security.protocol").is_some_and(|protocol| !protocol.eq_ignore_ascii_case("plaintext"))
    }
}

impl FromIterator<(String, String)> for Properties {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(properties: I) -> Self {
        Self(properties.into_iter().collect())
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Properties {
    fn from(properties: [(&str, &str); N]) -> Self {
        properties.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |(name, value)| (name, if is_secret(name) { "(hidden)" } else { value });
        f.debug_map().entries(self.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).map(shown)).finish()
    }
}

/// Whether the value of that setting must not be shown.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_WORDS.iter().any(|word| name.contains(word))
}

/// The settings that all our clients share.
///
/// # Errors
/// `BadConfig` for a property that is ours to set, one that librdkafka does not take, or an address that is none.
pub(crate) fn client_config(brokers: &str, properties: &Properties) -> Result<ClientConfig> {
    check_brokers(brokers)?;
    let mut config = ClientConfig::new();
    for (name, value) in &properties.0 {
        if OWN_PROPERTIES.contains(&name.as_str()) {
            let message = format!("the Kafka property {name} is set by Lakebeat itself: take it out of the settings");
            return Err(Error::new(ErrorKind::BadConfig, message));
        }
        config.set(name, value);
    }
    config.set("bootstrap.servers", brokers);
    // A user who connects to a port without a broker shall hear of it within seconds.
    set_default(&mut config, properties, "client.id", "lakebeat");
    set_default(&mut config, properties, "socket.connection.setup.timeout.ms", "5000");
    set_default(&mut config, properties, "reconnect.backoff.max.ms", "2000");
    config.set_log_level(RDKafkaLogLevel::Warning);
    Ok(config)
}

/// The settings of the consumer that feeds the lake.
pub(crate) fn consumer_config(brokers: &str, group: &str, properties: &Properties) -> Result<ClientConfig> {
    let mut config = client_config(brokers, properties)?;
    config
        .set("group.id", group)
        // The ledger in the Delta log is the truth about progress; Kafka's is told afterwards.
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // An offset that is not there is a gap to report, never a reason to jump.
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        // Eager: a revocation names all partitions, so one drain hands over everything.
        .set("partition.assignment.strategy", "range,roundrobin");
    // A member that was killed keeps its partitions for this long; librdkafka's 45 s would be 45 s of stale tables.
    set_default(&mut config, properties, "session.timeout.ms", "10000");
    // librdkafka's own read-ahead of 64 MiB for each partition would be most of our memory. This much is a tenth of a second.
    set_default(&mut config, properties, READ_AHEAD, &READ_AHEAD_KBYTES.to_string());
    set_default(&mut config, properties, "queued.min.messages", "50000");
    set_default(&mut config, properties, "fetch.wait.max.ms", "100");
    // What a cluster may ask its clients for (KIP-714) is measured at each message, whether it asks or not.
    set_default(&mut config, properties, "enable.metrics.push", "false");
    // A partition whose read-ahead is full would not be fetched for a whole second, and runs dry long before.
    set_default(&mut config, properties, "fetch.queue.backoff.ms", "10");
    Ok(config)
}

/// The setting for how much a consumer reads ahead, in KiB.
pub const READ_AHEAD: &str = "queued.max.messages.kbytes";
/// What it is where nobody sets it.
pub const READ_AHEAD_KBYTES: usize = 4_096;

pub(crate) fn set_default(config: &mut ClientConfig, properties: &Properties, name: &str, value: &str) {
    if properties.get(name).is_none() {
        config.set(name, value);
    }
}

/// librdkafka refuses a setting. What it says of it shows the value, and so do its errors: neither goes on.
pub(crate) fn config_error(doing: &str, source: KafkaError) -> Error {
    match source {
        KafkaError::ClientConfig(_, why, name, _) => {
            let why = if is_secret(&name) { "its value is not taken".to_owned() } else { why };
            let message = format!(
                "{doing}: {name} in [kafka.properties]: {why}; librdkafka's CONFIGURATION.md has all names and values"
            );
            Error::new(ErrorKind::BadConfig, message)
        }
        KafkaError::ClientCreation(why) => {
            let message = format!("{doing} with these settings of [kafka.properties] and KAFKA_*: {why}");
            Error::new(ErrorKind::BadConfig, message)
        }
        source => Error::with_source(ErrorKind::Unavailable, doing.to_owned(), source),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use rdkafka::consumer::BaseConsumer;

    use super::*;

    #[test]
    fn properties_that_exactly_once_rests_on_are_refused_by_name() {
        let properties = Properties::from([("enable.auto.commit", "true")]);
        let error = client_config("localhost:9092", &properties).expect_err("auto commit would lose messages");
        assert_eq!(error.kind(), ErrorKind::BadConfig);
        assert!(error.to_string().contains("enable.auto.commit"), "{error}");
    }

    #[test]
    fn a_user_may_tune_the_rest() {
        let properties = Properties::from([("fetch.wait.max.ms", "7")]);
        let config = consumer_config("localhost:9092", "group", &properties).expect("a fine property");
        assert_eq!(config.get("fetch.wait.max.ms"), Some("7"));
        assert_eq!(config.get("enable.auto.commit"), Some("false"));
    }

    #[test]
    fn secrets_are_not_printed() {
        let properties = Properties::from([
            ("sasl.password", "planted"),
            ("sasl.username", "me"),
            ("sasl.oauthbearer.config", "planted"),
            ("sasl.oauthbearer.client.secret", "planted"),
            ("ssl.ca.location", "/ca.pem"),
            ("ssl.key.pem", "planted"),
            ("ssl.key.password", "planted"),
            ("SSL.Keystore.Password", "planted"),
        ]);
        let shown = format!("{properties:?}");
        assert!(!shown.contains("planted"), "{shown}");
        assert!(shown.contains(r#""sasl.username": "me""#) && shown.contains("/ca.pem"), "{shown}");
    }

    #[test]
    fn what_librdkafka_does_not_take_is_named_without_its_value() {
        let refused = |name: &str| {
            let config = client_config("localhost:9092", &Properties::from([(name, "planted")])).expect("not ours");
            let source = config.create::<BaseConsumer>().err().expect("no such setting, or no such value");
            let error = config_error("cannot make a Kafka client", source);
            assert_eq!(error.kind(), ErrorKind::BadConfig);
            let text = format!("{error} {error:?}");
            assert!(name == "security.protocol" || !text.contains("planted"), "{text}");
            error.to_string()
        };
        expect![[r#"cannot make a Kafka client: sasl.pasword in [kafka.properties]: No such configuration property: "sasl.pasword"; librdkafka's CONFIGURATION.md has all names and values"#]].assert_eq(&refused("sasl.pasword"));
        expect![[r#"cannot make a Kafka client: security.protocol in [kafka.properties]: Invalid value "planted" for configuration property "security.protocol"; librdkafka's CONFIGURATION.md has all names and values"#]].assert_eq(&refused("security.protocol"));
    }
}
