//! The YAML files of a project: `dbt_project.yml`, and the files beside the models with sources, descriptions and tests.
//!
//! Keys that dbt knows and that change nothing here are taken; keys that would change something and are not supported are
//! errors with file and line.

use std::collections::BTreeMap;

use lakehouse::TableName;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::Source;
use crate::config::{self, Settings};
use crate::error::{Result, fault_at};

/// `dbt_project.yml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ProjectFile {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) vars: BTreeMap<String, Value>,
    #[serde(default = "default_model_paths")]
    model_paths: Vec<String>,
    #[serde(default)]
    models: Map<String, Value>,
    // What dbt itself needs, and what speaks of folders that `refuse_unsupported` looks after.
    #[serde(rename = "version")]
    _version: Option<Value>,
    #[serde(rename = "config-version")]
    _config_version: Option<Value>,
    #[serde(rename = "profile")]
    _profile: Option<String>,
    #[serde(rename = "require-dbt-version")]
    _require_dbt_version: Option<Value>,
    #[serde(rename = "target-path")]
    _target_path: Option<String>,
    #[serde(rename = "log-path")]
    _log_path: Option<String>,
    #[serde(rename = "clean-targets")]
    _clean_targets: Option<Vec<String>>,
    #[serde(rename = "packages-install-path")]
    _packages_install_path: Option<String>,
    #[serde(rename = "analysis-paths")]
    _analysis_paths: Option<Vec<String>>,
    #[serde(rename = "asset-paths")]
    _asset_paths: Option<Vec<String>>,
    #[serde(rename = "docs-paths")]
    _docs_paths: Option<Vec<String>>,
    #[serde(rename = "macro-paths")]
    _macro_paths: Option<Vec<String>>,
    #[serde(rename = "seed-paths")]
    _seed_paths: Option<Vec<String>>,
    #[serde(rename = "snapshot-paths")]
    _snapshot_paths: Option<Vec<String>>,
    #[serde(rename = "test-paths")]
    _test_paths: Option<Vec<String>>,
}

/// A file with properties.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PropertiesFile {
    #[serde(default)]
    sources: Vec<SourceProperties>,
    #[serde(default)]
    pub(super) models: Vec<ModelProperties>,
    #[serde(rename = "version")]
    _version: Option<Value>,
}

/// What is said of a model outside its text.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelProperties {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) description: String,
    #[serde(default)]
    pub(crate) config: BTreeMap<String, Value>,
    #[serde(default, alias = "tests")]
    pub(crate) data_tests: Vec<Value>,
    #[serde(default)]
    pub(crate) columns: Vec<ColumnProperties>,
    #[serde(rename = "docs")]
    _docs: Option<Value>,
    #[serde(rename = "meta")]
    _meta: Option<Value>,
}

/// What is said of a column.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ColumnProperties {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) description: String,
    #[serde(default, alias = "tests")]
    pub(crate) data_tests: Vec<Value>,
    #[serde(rename = "data_type")]
    _data_type: Option<String>,
    #[serde(rename = "meta")]
    _meta: Option<Value>,
    #[serde(rename = "quote")]
    _quote: Option<bool>,
    #[serde(rename = "tags")]
    _tags: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceProperties {
    name: String,
    schema: Option<String>,
    #[serde(default)]
    tables: Vec<SourceTable>,
    #[serde(rename = "description")]
    _description: Option<String>,
    #[serde(rename = "database")]
    _database: Option<String>,
    #[serde(rename = "loader")]
    _loader: Option<String>,
    #[serde(rename = "meta")]
    _meta: Option<Value>,
    #[serde(rename = "tags")]
    _tags: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceTable {
    name: String,
    identifier: Option<String>,
    #[serde(rename = "description")]
    _description: Option<String>,
    #[serde(rename = "columns", default)]
    _columns: Vec<SourceColumn>,
    #[serde(rename = "meta")]
    _meta: Option<Value>,
    #[serde(rename = "tags")]
    _tags: Option<Value>,
}

/// A source's column has no tests here: a source is not built, so nothing could be held back.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceColumn {
    #[serde(rename = "name")]
    _name: String,
    #[serde(rename = "description")]
    _description: Option<String>,
    #[serde(rename = "data_type")]
    _data_type: Option<String>,
    #[serde(rename = "meta")]
    _meta: Option<Value>,
}

impl ProjectFile {
    /// The folder for models in which `path` lies.
    pub(super) fn model_folder<'a>(&'a self, path: &str) -> Option<&'a str> {
        let mut folders = self.model_paths.iter().map(|folder| folder.trim_end_matches('/'));
        folders.find(|folder| path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')))
    }

    /// The settings that hold for models in `folders`; the inner ones come last and win. The outermost level may be the
    /// project's name, as dbt wants it, or be left out.
    pub(super) fn settings_for(&self, folders: &[&str]) -> Result<Settings> {
        let mut settings = Settings::default();
        take_level(&self.models, &mut settings)?;
        let mut level = &self.models;
        let outermost = [self.name.as_str()];
        let outermost = if matches!(level.get(&self.name), Some(Value::Object(_))) { &outermost[..] } else { &[] };
        for folder in outermost.iter().chain(folders) {
            match level.get(*folder) {
                Some(Value::Object(below)) => level = below,
                _ => break,
            }
            take_level(level, &mut settings)?;
        }
        Ok(settings)
    }
}

/// Takes the settings of one level: keys with a plus, and known keys that are not folders.
fn take_level(level: &Map<String, Value>, settings: &mut Settings) -> Result<()> {
    for (key, value) in level {
        if let Some(key) = key.strip_prefix('+') {
            settings.insert(key, value.clone(), super::PROJECT_FILE);
        } else if !value.is_object() {
            if !config::is_known(key) {
                let message =
                    format!("\"{key}\" under models is neither a folder nor a setting: write +{key} for a setting");
                return Err(fault_at(super::PROJECT_FILE, None, message));
            }
            settings.insert(key, value.clone(), super::PROJECT_FILE);
        }
    }
    Ok(())
}

impl PropertiesFile {
    pub(super) fn sources(&self, path: &str) -> Result<Vec<Source>> {
        let mut found = Vec::new();
        for source in &self.sources {
            let schema = source.schema.as_deref().unwrap_or(&source.name);
            for table in &source.tables {
                let name = TableName::new(schema, table.identifier.as_deref().unwrap_or(&table.name));
                let name: TableName = name.to_string().parse().map_err(|error| fault_at(path, None, error))?;
                found.push(Source { source: source.name.clone(), name: table.name.clone(), table: name });
            }
        }
        Ok(found)
    }
}

/// Reads a YAML file; an empty one is as good as one with nothing in it.
pub(super) fn parse<T: DeserializeOwned>(path: &str, text: &str) -> Result<T> {
    let text = if text.trim().is_empty() { "{}" } else { text };
    serde_yaml_ng::from_str(text).map_err(|error| {
        let line = error.location().map(|location| location.line());
        fault_at(path, line, error)
    })
}

/// The first line on which a name stands, for errors about something that was read long ago.
pub(crate) fn line_of(text: &str, name: &str) -> Option<usize> {
    text.lines().position(|line| line.contains(name)).map(|index| index + 1)
}

fn default_model_paths() -> Vec<String> {
    vec!["models".to_owned()]
}
