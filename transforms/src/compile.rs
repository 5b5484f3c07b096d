//! From a project's files to models that can be run: Jinja rendered, settings settled, tests read, in the order of the
//! dependencies.
//!
//! Each text is rendered twice. The first time finds the settings in it, by which the tables get their schemas; the second
//! time, `ref` can say where the other model's table is.

mod jinja;

use std::collections::{BTreeMap, BTreeSet};

use lakehouse::{DEFAULT_GROUP, TableName};
use serde_json::Value;

use crate::config::{Enabled, ModelConfig};
use crate::data_tests::{self, DataTest};
use crate::error::{Error, Result, fault_at};
use crate::graph;
use crate::project::{ModelFile, Project};
use jinja::{Rendered, Scope};

/// The layers that are schemas by their folders' names.
const LAYERS: [&str; 2] = ["silver", "gold"];
/// The schema of a model that neither names one nor lies in a layer.
const DEFAULT_SCHEMA: &str = "gold";

/// What a project's texts may ask for from outside.
#[derive(Debug, Clone, Default)]
pub struct Variables {
    /// For `var`: these win over those in `dbt_project.yml`.
    pub vars: BTreeMap<String, Value>,
    /// For `env_var`.
    pub environment: BTreeMap<String, String>,
}

/// Models ready to run.
#[derive(Debug, Clone)]
pub(crate) struct Compiled {
    /// Each after all that it reads.
    pub(crate) models: Vec<Model>,
}

/// One model, ready to run.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) table: TableName,
    pub(crate) config: ModelConfig,
    pub(crate) description: String,
    /// The columns that the project describes, with what it says of them.
    pub(crate) columns: Vec<(String, String)>,
    /// The query, with the names of real tables in it.
    pub(crate) sql: String,
    /// The line of the file for each line of the query.
    pub(crate) lines: Vec<usize>,
    /// The names of the models that it reads.
    pub(crate) parents: BTreeSet<String>,
    /// The tables that it reads, those of its parents included.
    pub(crate) inputs: BTreeSet<TableName>,
    pub(crate) tests: Vec<DataTest>,
}

impl Model {
    /// The set of models that this one is published with.
    pub(crate) fn group(&self) -> &str {
        self.config.publication_group.as_deref().unwrap_or(DEFAULT_GROUP)
    }

    /// A fault in this model's text, at a line of the query if it is known.
    pub(crate) fn error_at(&self, query_line: Option<usize>, message: impl std::fmt::Display) -> Error {
        let line = query_line.and_then(|line| self.lines.get(line.checked_sub(1)?).copied());
        fault_at(&self.path, line, message)
    }
}

impl Compiled {
    pub(crate) fn new(project: &Project, variables: &Variables) -> Result<Self> {
        let mut drafts = Vec::new();
        let tables: BTreeMap<String, TableName> =
            project.models.iter().map(|file| (file.name.clone(), TableName::new(DEFAULT_SCHEMA, &file.name))).collect();
        for file in &project.models {
            let scope = Scope { project, variables, tables: &tables };
            let rendered = scope.render(file)?;
            let config = settle(file, &rendered)?;
            if config.enabled == Enabled::Yes {
                drafts.push((file, config));
            }
        }
        // A model that is switched off is not there for the others either.
        let tables: BTreeMap<String, TableName> =
            drafts.iter().map(|(file, config)| (file.name.clone(), table_of(file, config))).collect();
        let scope = Scope { project, variables, tables: &tables };
        let models =
            drafts.into_iter().map(|(file, config)| model(&scope, file, config)).collect::<Result<Vec<_>>>()?;
        Ok(Self { models: graph::in_order(models)? })
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Model> {
        self.models.iter().find(|model| model.name == name)
    }

    /// The model that builds `table`, if one of this project does.
    pub(crate) fn builder_of(&self, table: &TableName) -> Option<&Model> {
        self.models.iter().find(|model| model.table == *table)
    }
}

fn settle(file: &ModelFile, rendered: &Rendered) -> Result<ModelConfig> {
    let mut settings = file.settings.clone();
    for (key, value, line) in &rendered.settings {
        settings.insert(
            key,
            value.clone(),
            &line.map_or_else(|| file.path.clone(), |line| format!("{}:{line}", file.path)),
        );
    }
    settings.resolve()
}

fn table_of(file: &ModelFile, config: &ModelConfig) -> TableName {
    let layer = file.layer.as_deref().filter(|layer| LAYERS.contains(layer));
    let schema = config.schema.as_deref().or(layer).unwrap_or(DEFAULT_SCHEMA);
    TableName::new(schema, &file.name)
}

fn model(scope: &Scope<'_>, file: &ModelFile, config: ModelConfig) -> Result<Model> {
    let rendered = scope.render(file)?;
    let mut inputs: BTreeSet<TableName> = rendered.parents.iter().map(|parent| scope.tables[parent].clone()).collect();
    inputs.extend(rendered.sources);
    let table = scope.tables[&file.name].clone();
    if let Err(error) = table.to_string().parse::<TableName>() {
        return Err(fault_at(&file.path, None, error));
    }
    let columns = file.properties.columns.iter();
    Ok(Model {
        tests: data_tests::read(file)?,
        name: file.name.clone(),
        path: file.path.clone(),
        description: file.properties.description.trim().to_owned(),
        columns: columns.map(|column| (column.name.clone(), column.description.trim().to_owned())).collect(),
        lines: jinja::line_map(&file.text),
        sql: rendered.sql,
        parents: rendered.parents,
        table,
        config,
        inputs,
    })
}

#[cfg(test)]
mod tests;
