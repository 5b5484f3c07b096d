//! Settings of a model: from the project's file, from its properties, from `config(...)` in its text; the nearest wins.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::error::{Result, fault_at};
use crate::suggest;

/// The settings that are understood, and those of dbt that may stand there because they change no result.
const KNOWN: [&str; 10] = [
    "enabled",
    "materialized",
    "meta",
    "docs",
    "order_by",
    "partition_by",
    "publication_group",
    "schema",
    "tags",
    "unique_key",
];

/// Whether there is such a setting.
pub(crate) fn is_known(key: &str) -> bool {
    KNOWN.contains(&key)
}

/// Settings by name, each with the place where it was made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    values: BTreeMap<String, (Value, String)>,
    /// Tags add up over the places; all others replace one another.
    tags: Vec<String>,
}

impl Settings {
    /// Makes one setting; `origin` is the file, with the line where that is known.
    pub(crate) fn insert(&mut self, key: &str, value: Value, origin: &str) {
        if key == "tags" {
            self.tags.extend(texts(&value).unwrap_or_default());
        }
        self.values.insert(key.to_owned(), (value, origin.to_owned()));
    }

    /// Makes all the settings of a YAML block.
    pub(crate) fn extend(&mut self, block: &BTreeMap<String, Value>, origin: &str) {
        for (key, value) in block {
            self.insert(key, value.clone(), origin);
        }
    }

    /// Checks everything and says what it comes to.
    pub(crate) fn resolve(&self) -> Result<ModelConfig> {
        for (key, (_, origin)) in &self.values {
            if !is_known(key) {
                let hint = suggest::hint(key, KNOWN);
                return Err(fault_at(
                    origin,
                    None,
                    format!("the setting \"{key}\" is not known or not supported: {hint}"),
                ));
            }
        }
        let mut tags = self.tags.clone();
        tags.sort_unstable();
        tags.dedup();
        let config = ModelConfig {
            materialized: self.materialization()?,
            schema: self.text("schema")?,
            unique_key: self.list("unique_key")?,
            order_by: self.list("order_by")?.iter().map(|text| self.order(text)).collect::<Result<_>>()?,
            partition_by: self.list("partition_by")?,
            publication_group: self.text("publication_group")?,
            tags,
            enabled: self.enabled()?,
        };
        if !config.unique_key.is_empty() && config.order_by.is_empty() {
            let (_, origin) = &self.values["unique_key"];
            let message =
                "unique_key needs order_by: name the columns that decide which of two rows with one key stays";
            return Err(fault_at(origin, None, message));
        }
        Ok(config)
    }

    fn materialization(&self) -> Result<Materialization> {
        let Some((value, origin)) = self.values.get("materialized") else { return Ok(Materialization::Table) };
        match value.as_str() {
            Some("table") => Ok(Materialization::Table),
            Some("incremental") => Ok(Materialization::Incremental),
            _ => Err(fault_at(
                origin,
                None,
                format!("materialized={value} is not supported yet: use table or incremental"),
            )),
        }
    }

    fn enabled(&self) -> Result<Enabled> {
        match self.values.get("enabled") {
            None | Some((Value::Bool(true), _)) => Ok(Enabled::Yes),
            Some((Value::Bool(false), _)) => Ok(Enabled::No),
            Some((value, origin)) => Err(fault_at(origin, None, format!("enabled={value}: write true or false"))),
        }
    }

    fn text(&self, key: &str) -> Result<Option<String>> {
        match self.values.get(key) {
            None => Ok(None),
            Some((Value::String(text), _)) => Ok(Some(text.clone())),
            Some((value, origin)) => Err(fault_at(origin, None, format!("{key}={value}: write a name"))),
        }
    }

    fn list(&self, key: &str) -> Result<Vec<String>> {
        let Some((value, origin)) = self.values.get(key) else { return Ok(Vec::new()) };
        texts(value).ok_or_else(|| fault_at(origin, None, format!("{key}={value}: write a name or a list of names")))
    }

    /// Reads `column`, `column asc` or `column desc`.
    fn order(&self, text: &str) -> Result<OrderColumn> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (column, direction) = match words.as_slice() {
            [column] => (*column, Direction::Ascending),
            [column, word] if word.eq_ignore_ascii_case("asc") => (*column, Direction::Ascending),
            [column, word] if word.eq_ignore_ascii_case("desc") => (*column, Direction::Descending),
            _ => {
                let (_, origin) = &self.values["order_by"];
                let message = format!("order_by=\"{text}\": write a column, with asc or desc after it if you like");
                return Err(fault_at(origin, None, message));
            }
        };
        Ok(OrderColumn { column: column.to_owned(), direction })
    }
}

/// What the settings of a model come to.
#[derive(Debug, Clone)]
pub(crate) struct ModelConfig {
    pub(crate) materialized: Materialization,
    pub(crate) schema: Option<String>,
    /// The columns of which no two rows have the same values.
    pub(crate) unique_key: Vec<String>,
    /// The columns that decide which of two rows with one key stays: the first in this order.
    pub(crate) order_by: Vec<OrderColumn>,
    pub(crate) partition_by: Vec<String>,
    pub(crate) publication_group: Option<String>,
    pub(crate) tags: Vec<String>,
    pub(crate) enabled: Enabled,
}

/// How a model's table is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Materialization {
    /// Made anew when something that it reads has changed.
    Table,
    /// Brought up to date by what is new in its source, where the query allows it.
    Incremental,
}

/// Whether a model takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Enabled {
    Yes,
    No,
}

/// One column of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OrderColumn {
    pub(crate) column: String,
    pub(crate) direction: Direction,
}

/// NULL is the greatest value in either direction, as in PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Ascending,
    Descending,
}

fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}
