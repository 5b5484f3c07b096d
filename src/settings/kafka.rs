//! How to reach Kafka, and which of its topics are meant.

use ingest::kafka::Properties;
use ingest::topic::{self, TopicSpec};
use toml::Value;

use super::TOPIC;
use super::layers::{Layers, Setting};
use crate::output::Fault;

/// A property of librdkafka that has names in the environment, so that no secret has to stand in a file.
const fn property(key: &'static str, variables: &'static [&'static str]) -> Setting {
    Setting { key, variables }
}

/// Under this in the settings file stands what librdkafka is to be told.
const PROPERTIES: &str = "kafka.properties";

const SECURITY: [Setting; 8] = [
    property("kafka.properties.security.protocol", &["LAKEBEAT_KAFKA_SECURITY_PROTOCOL", "KAFKA_SECURITY_PROTOCOL"]),
    property("kafka.properties.sasl.mechanism", &["LAKEBEAT_KAFKA_SASL_MECHANISM", "KAFKA_SASL_MECHANISM"]),
    property("kafka.properties.sasl.username", &["LAKEBEAT_KAFKA_SASL_USERNAME", "KAFKA_SASL_USERNAME"]),
    property("kafka.properties.sasl.password", &["LAKEBEAT_KAFKA_SASL_PASSWORD", "KAFKA_SASL_PASSWORD"]),
    property("kafka.properties.ssl.ca.location", &["LAKEBEAT_KAFKA_SSL_CA_LOCATION", "KAFKA_SSL_CA_LOCATION"]),
    property(
        "kafka.properties.ssl.certificate.location",
        &["LAKEBEAT_KAFKA_SSL_CERTIFICATE_LOCATION", "KAFKA_SSL_CERTIFICATE_LOCATION"],
    ),
    property("kafka.properties.ssl.key.location", &["LAKEBEAT_KAFKA_SSL_KEY_LOCATION", "KAFKA_SSL_KEY_LOCATION"]),
    property("kafka.properties.ssl.key.password", &["LAKEBEAT_KAFKA_SSL_KEY_PASSWORD", "KAFKA_SSL_KEY_PASSWORD"]),
];

/// Every setting here, so that an unknown name can be told.
pub(super) const ALL: &[&Setting] =
    &[&SECURITY[0], &SECURITY[1], &SECURITY[2], &SECURITY[3], &SECURITY[4], &SECURITY[5], &SECURITY[6], &SECURITY[7]];

/// What librdkafka is told: `[kafka.properties]`, and over that what the environment says.
pub(super) fn properties(layers: &Layers) -> anyhow::Result<Properties> {
    let mut properties = Vec::new();
    if let Some(value) = layers.in_file(PROPERTIES) {
        let table = value
            .as_table()
            .ok_or_else(|| Fault::usage("kafka.properties is not a table: write [kafka.properties]"))?;
        for (name, value) in table {
            flatten(name, value, &mut properties)?;
        }
    }
    for setting in &SECURITY {
        if layers.is_nearer_than_file(setting) {
            let name = setting.key.trim_start_matches(PROPERTIES).trim_start_matches('.');
            properties.extend(layers.pick::<String>(("", None), setting)?.map(|value| (name.to_owned(), value)));
        }
    }
    // Of two of one name the last one counts, which is the nearer one.
    Ok(properties.into_iter().collect())
}

/// `a.b = 1` without quotes is a table in a table to TOML, and a property to whoever wrote it.
fn flatten(name: &str, value: &Value, into: &mut Vec<(String, String)>) -> anyhow::Result<()> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => value.to_string(),
        Value::Table(inner) => {
            return inner.iter().try_for_each(|(key, value)| flatten(&format!("{name}.{key}"), value, into));
        }
        other => {
            let message = format!("{name} in [kafka.properties] is a {}: write a text or a number", other.type_str());
            return Err(Fault::usage(message).into());
        }
    };
    into.push((name.to_owned(), text));
    Ok(())
}

/// What is wrong with which setting of which topic.
fn told(topics: &Value, error: &serde_path_to_error::Error<toml::de::Error>) -> String {
    use serde_path_to_error::Segment;
    let name = error.path().iter().find_map(|segment| match segment {
        Segment::Seq { index } => topics.get(index)?.get("name")?.as_str(),
        _ => None,
    });
    let keys: Vec<&str> = error
        .path()
        .iter()
        .filter_map(|segment| match segment {
            Segment::Map { key } => Some(key.as_str()),
            _ => None,
        })
        .collect();
    let of_topic = name.map_or_else(String::new, |name| format!("topic {name}: "));
    let of_key = if keys.is_empty() { String::new() } else { format!("{}: ", keys.join(".")) };
    format!("{of_topic}{of_key}{}", error.inner().message())
}

/// The topics: the one that is named, or else all of `[[topics]]`, or else the bundled one.
pub(super) fn topics(layers: &Layers, flag: Option<&String>) -> anyhow::Result<Vec<TopicSpec>> {
    let name: Option<String> = layers.pick(("--topic", flag), &TOPIC)?;
    let mut described: Vec<TopicSpec> = match layers.in_file("topics") {
        Some(value) => serde_path_to_error::deserialize(value.clone())
            .map_err(|error| Fault::usage(format!("[[topics]] in {}: {}", layers.file_name(), told(value, &error))))?,
        None => Vec::new(),
    };
    if described.is_empty() {
        // Another name for the bundled topic, as the replaced pipeline's settings give it.
        let bundled = TopicSpec::spotify();
        described.push(TopicSpec { name: name.clone().unwrap_or_else(|| bundled.name.clone()), ..bundled });
    }
    topic::check_all(&described)?;
    let Some(name) = name else { return Ok(described) };
    let names = described.iter().map(|topic| topic.name.as_str()).collect::<Vec<_>>().join(", ");
    match described.into_iter().find(|topic| topic.name == name) {
        Some(topic) => Ok(vec![topic]),
        None => {
            let message = format!(
                "topic {name} is not described: [[topics]] in {} has {names}; name one of them with --topic, or describe \
                 it there",
                layers.file_name()
            );
            Err(Fault::usage(message).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[track_caller]
    fn check_properties(environment: &[(&str, &str)], file: &str, expected: Expect) {
        let found = properties(&Layers::of_environment_and_file(environment, file));
        expected.assert_eq(&found.map_or_else(|error| error.to_string(), |found| format!("{found:?}")));
    }

    #[test]
    fn the_environment_wins_and_secrets_are_hidden() {
        check_properties(&[], "", expect!["{}"]);
        let file =
            "[kafka.properties]\n\"sasl.username\" = \"file\"\n\"fetch.wait.max.ms\" = 7\nsasl.password = \"planted\"";
        check_properties(
            &[],
            file,
            expect![[r#"{"fetch.wait.max.ms": "7", "sasl.password": "(hidden)", "sasl.username": "file"}"#]],
        );
        check_properties(
            &[
                ("KAFKA_SASL_USERNAME", "old"),
                ("LAKEBEAT_KAFKA_SASL_USERNAME", "ours"),
                ("KAFKA_SSL_CA_LOCATION", "/ca.pem"),
            ],
            file,
            expect![[
                r#"{"fetch.wait.max.ms": "7", "sasl.password": "(hidden)", "sasl.username": "ours", "ssl.ca.location": "/ca.pem"}"#
            ]],
        );
        check_properties(
            &[],
            "[kafka.properties]\n\"sasl.password\" = [\"planted\"]",
            expect!["sasl.password in [kafka.properties] is a array: write a text or a number"],
        );
        let environment = [("KAFKA_SASL_PASSWORD", "from the environment")];
        let found = properties(&Layers::of_environment_and_file(&environment, file)).expect("valid");
        assert_eq!(found.get("sasl.password"), Some("from the environment"));
    }

    const TWO: &str = r#"
        [[topics]]
        name = "plays"
        table = "bronze.plays"
        fields = [{ name = "id", column = "id" }]
        [[topics]]
        name = "orders"
        table = "bronze.orders"
        fields = [{ name = "id", column = "id", type = "number" }]
    "#;

    #[track_caller]
    fn check_topics(environment: &[(&str, &str)], file: &str, expected: Expect) {
        let found = topics(&Layers::of_environment_and_file(environment, file), None);
        let shown = |topics: Vec<TopicSpec>| {
            topics.iter().map(|topic| format!("{} -> {}", topic.name, topic.table)).collect::<Vec<_>>().join(", ")
        };
        expected.assert_eq(&found.map_or_else(|error| error.to_string(), shown));
    }

    #[test]
    fn all_that_are_described_or_the_one_that_is_named() {
        check_topics(&[], "", expect!["spotify_events -> bronze.spotify_events"]);
        check_topics(&[("KAFKA_TOPIC", "plays")], "", expect!["plays -> bronze.spotify_events"]);
        check_topics(&[], TWO, expect!["plays -> bronze.plays, orders -> bronze.orders"]);
        check_topics(&[("KAFKA_TOPIC", "orders")], TWO, expect!["orders -> bronze.orders"]);
        check_topics(
            &[("KAFKA_TOPIC", "other")],
            TWO,
            expect![
                "topic other is not described: [[topics]] in lakebeat.toml has plays, orders; name one of them with --topic, or describe it there"
            ],
        );
        let clash = TWO.replace("bronze.orders", "bronze.plays");
        check_topics(
            &[],
            &clash,
            expect!["topics plays and orders both go to bronze.plays: each needs a table of its own"],
        );
        // Also where only one of them is asked for: the other one may be running.
        check_topics(
            &[("KAFKA_TOPIC", "orders")],
            &clash,
            expect!["topics plays and orders both go to bronze.plays: each needs a table of its own"],
        );
        check_topics(
            &[],
            &TWO.replace("\"number\"", "\"int\""),
            expect![
                "[[topics]] in lakebeat.toml: topic orders: fields.type: unknown variant `int`, expected one of `string`, `number`, `boolean`, `any`"
            ],
        );
    }
}
