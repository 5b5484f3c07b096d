//! Where a setting comes from: flag, environment, `.env`, `lakebeat.toml`, default, in this order. Read once, here.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;

use toml::{Table, Value};

use super::dotenv;
use crate::output::Fault;

/// One setting: its place in `lakebeat.toml`, and the environment variables that set it, ours first.
#[derive(Debug)]
pub(crate) struct Setting {
    /// `section.key`, or `key` at the top of the file.
    pub(crate) key: &'static str,
    /// The names in the environment. Names without `LAKEBEAT_` are those of the pipeline that this one replaces.
    pub(crate) variables: &'static [&'static str],
}

/// Everything outside the command line, unread.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    environment: BTreeMap<String, String>,
    dotenv: BTreeMap<String, String>,
    file: Table,
    /// The file's name, for messages.
    file_name: String,
}

impl Layers {
    /// Reads the environment, `.env` in the working folder, and the settings file.
    pub(crate) fn read(config: Option<&Path>, known: &[&Setting]) -> anyhow::Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
        let environment: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let dotenv = read_dotenv(Path::new(".env"), &environment)?;
        let default = Path::new("lakebeat.toml");
        let path = config.or(default.exists().then_some(default));
        let file = path.map_or_else(|| Ok(Table::new()), read_file)?;
        let file_name = path.map_or_else(String::new, |path| path.display().to_string());
        let layers = Self { environment, dotenv, file, file_name };
        layers.refuse_unknown(known)?;
        Ok(layers)
    }

    /// Of nothing but these variables.
    #[cfg(test)]
    pub(super) fn of_environment(variables: &[(&str, &str)]) -> Self {
        let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { environment, ..Self::default() }
    }

    /// Of these variables and a settings file of this text.
    #[cfg(test)]
    pub(super) fn of_environment_and_file(variables: &[(&str, &str)], file: &str) -> Self {
        let file = file.parse().expect("valid TOML");
        Self { file, file_name: "lakebeat.toml".to_owned(), ..Self::of_environment(variables) }
    }

    /// The value of a setting, the flag's if it was given; nothing if nobody sets it.
    pub(crate) fn pick<T>(&self, flag: (&str, Option<&String>), setting: &Setting) -> anyhow::Result<Option<T>>
    where
        T: FromStr,
        T::Err: Display,
    {
        let Some((source, text)) = self.find(flag, setting)? else { return Ok(None) };
        let parsed = text.parse::<T>();
        parsed.map(Some).map_err(|error| Fault::usage(format!("{source} is \"{text}\": {error}")).into())
    }

    fn find(&self, flag: (&str, Option<&String>), setting: &Setting) -> anyhow::Result<Option<(String, String)>> {
        if let (name, Some(value)) = flag {
            return Ok(Some((name.to_owned(), value.clone())));
        }
        for (layer, shown) in [(&self.environment, ""), (&self.dotenv, " in .env")] {
            for name in setting.variables {
                // An empty variable is how a shell or a compose file says "not set".
                if let Some(value) = layer.get(*name).filter(|value| !value.is_empty()) {
                    return Ok(Some((format!("{name}{shown}"), value.clone())));
                }
            }
        }
        let Some(value) = self.in_file(setting.key) else { return Ok(None) };
        let source = format!("{} in {}", setting.key, self.file_name);
        match value {
            Value::String(text) => Ok(Some((source, text.clone()))),
            Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Ok(Some((source, value.to_string()))),
            other => Err(Fault::usage(format!("{source} is a {}: write a text or a number", other.type_str())).into()),
        }
    }

    /// Whether a nearer layer than the settings file sets it.
    pub(crate) fn is_nearer_than_file(&self, setting: &Setting) -> bool {
        self.distance(setting) < 2
    }

    /// How far away the layer is that sets it: environment, `.env`, settings file, none.
    pub(crate) fn distance(&self, setting: &Setting) -> u8 {
        let is_set = |layer: &BTreeMap<String, String>| {
            setting.variables.iter().any(|name| layer.get(*name).is_some_and(|value| !value.is_empty()))
        };
        match () {
            () if is_set(&self.environment) => 0,
            () if is_set(&self.dotenv) => 1,
            () if self.in_file(setting.key).is_some() => 2,
            () => 3,
        }
    }

    /// A value of the settings file, by `section.key`.
    pub(crate) fn in_file(&self, key: &str) -> Option<&Value> {
        let mut parts = key.split('.');
        let first = self.file.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part))
    }

    /// The name of the settings file, for messages.
    pub(crate) fn file_name(&self) -> &str {
        &self.file_name
    }

    /// The variables that a project's `env_var` may ask for.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        let mut all = self.dotenv.clone();
        all.extend(self.environment.clone());
        all
    }

    fn refuse_unknown(&self, known: &[&Setting]) -> anyhow::Result<()> {
        let variables: Vec<&str> = known.iter().flat_map(|setting| setting.variables.iter().copied()).collect();
        for (layer, shown) in [(&self.environment, "the environment"), (&self.dotenv, ".env")] {
            for name in layer.keys().filter(|name| name.starts_with("LAKEBEAT_")) {
                // The build's own cache folder is no setting of the program.
                if name != "LAKEBEAT_CACHE" && !variables.contains(&name.as_str()) {
                    return Err(unknown(&format!("{name} in {shown}"), name, &variables));
                }
            }
        }
        let keys: Vec<&str> = known.iter().map(|setting| setting.key).chain(FILE_ONLY).collect();
        for key in keys_of(&self.file, "") {
            if !keys.contains(&key.as_str()) {
                return Err(unknown(&format!("{key} in {}", self.file_name), &key, &keys));
            }
        }
        Ok(())
    }
}

/// What only the file can hold: lists and tables, which have types of their own.
const FILE_ONLY: [&str; 2] = ["topics", "kafka.properties"];

/// Every key of the file as `section.key`; what is typed elsewhere is named, not entered.
fn keys_of(table: &Table, prefix: &str) -> Vec<String> {
    let mut keys = Vec::new();
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) if !FILE_ONLY.contains(&key.as_str()) => keys.extend(keys_of(inner, &key)),
            _ => keys.push(key),
        }
    }
    keys
}

fn unknown(shown: &str, name: &str, known: &[&str]) -> anyhow::Error {
    let nearest = known.iter().max_by(|a, b| strsim::jaro_winkler(name, a).total_cmp(&strsim::jaro_winkler(name, b)));
    let hint = nearest.map_or_else(String::new, |nearest| format!(": did you mean {nearest}?"));
    Fault::usage(format!("unknown setting {shown}{hint}")).into()
}

fn read_dotenv(path: &Path, environment: &BTreeMap<String, String>) -> anyhow::Result<BTreeMap<String, String>> {
    match std::fs::read(path) {
        Ok(bytes) => dotenv::parse(&bytes, environment),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(Fault::usage(format!("cannot read {}: {error}", path.display())).into()),
    }
}

fn read_file(path: &Path) -> anyhow::Result<Table> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Fault::usage(format!("cannot read the settings file {}: {error}", path.display())))?;
    text.parse()
        .map_err(|error| Fault::usage(format!("{} is not TOML: {}", path.display(), told(&error, &text))).into())
}

/// What is wrong, and where. The error's own text shows the line, in which a secret may stand.
fn told(error: &toml::de::Error, text: &str) -> String {
    let line = error.span().and_then(|span| text.get(..span.start)).map(|before| before.matches('\n').count() + 1);
    let place = line.map_or_else(String::new, |line| format!("line {line}: "));
    format!("{place}{}", error.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: Setting = Setting { key: "ports.kafka", variables: &["LAKEBEAT_KAFKA_PORT", "OLD_PORT"] };

    fn layers(environment: &[(&str, &str)], dotenv: &[(&str, &str)], file: &str) -> Layers {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Layers {
            environment: map(environment),
            dotenv: map(dotenv),
            file: file.parse().expect("valid TOML"),
            file_name: "lakebeat.toml".to_owned(),
        }
    }

    #[test]
    fn the_nearest_layer_wins() {
        let file = "[ports]\nkafka = 1";
        let none = ("--kafka-port", None);
        let pick = |layers: Layers, flag| layers.pick::<u16>(flag, &PORT).expect("valid");
        assert_eq!(pick(layers(&[], &[], ""), none), None);
        assert_eq!(pick(layers(&[], &[], file), none), Some(1));
        assert_eq!(pick(layers(&[], &[("OLD_PORT", "2")], file), none), Some(2));
        assert_eq!(pick(layers(&[("OLD_PORT", "3")], &[("OLD_PORT", "2")], file), none), Some(3));
        assert_eq!(pick(layers(&[("LAKEBEAT_KAFKA_PORT", ""), ("OLD_PORT", "3")], &[], file), none), Some(3));
        let flag = "5".to_owned();
        assert_eq!(pick(layers(&[("OLD_PORT", "3")], &[], file), ("--kafka-port", Some(&flag))), Some(5));
    }

    #[test]
    fn the_distance_of_a_layer() {
        let file = "[ports]\nkafka = 1";
        assert_eq!(layers(&[("OLD_PORT", "")], &[], "").distance(&PORT), 3);
        assert_eq!(layers(&[("OLD_PORT", "")], &[], file).distance(&PORT), 2);
        assert_eq!(layers(&[], &[("OLD_PORT", "2")], file).distance(&PORT), 1);
        assert_eq!(layers(&[("LAKEBEAT_KAFKA_PORT", "3")], &[("OLD_PORT", "2")], file).distance(&PORT), 0);
    }

    #[test]
    fn a_file_that_is_not_toml_is_told_without_its_text() {
        let text = "[kafka.properties]\n\"sasl.password\" = planted\n";
        let error = text.parse::<Table>().expect_err("no quotes");
        let shown = told(&error, text);
        assert!(shown.starts_with("line 2: ") && !shown.contains("planted"), "{shown}");
    }

    #[test]
    fn faults_name_the_place_and_the_nearest_name() {
        let wrong =
            layers(&[], &[], "[ports]\nkafka = \"x\"").pick::<u16>(("", None), &PORT).expect_err("not a number");
        expect_test::expect![[r#"ports.kafka in lakebeat.toml is "x": invalid digit found in string"#]]
            .assert_eq(&wrong.to_string());
        let unknown = layers(&[], &[], "[ports]\nkafak = 1").refuse_unknown(&[&PORT]).expect_err("unknown key");
        expect_test::expect!["unknown setting ports.kafak in lakebeat.toml: did you mean ports.kafka?"]
            .assert_eq(&unknown.to_string());
        let unknown =
            layers(&[("LAKEBEAT_KAFKAPORT", "1")], &[], "").refuse_unknown(&[&PORT]).expect_err("unknown name");
        expect_test::expect![
            "unknown setting LAKEBEAT_KAFKAPORT in the environment: did you mean LAKEBEAT_KAFKA_PORT?"
        ]
        .assert_eq(&unknown.to_string());
        layers(&[("OTHER", "1")], &[("ANYTHING", "1")], "").refuse_unknown(&[&PORT]).expect("not ours");
    }
}
