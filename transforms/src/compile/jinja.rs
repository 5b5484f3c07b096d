//! Jinja as models use it: `source`, `ref`, `config`, `var`, `env_var`, `this`, `is_incremental`, and the language itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use lakehouse::TableName;
use minijinja::value::{Kwargs, Rest, Value as JinjaValue, from_args};
use minijinja::{Environment, Error as JinjaError, ErrorKind as JinjaErrorKind, State, UndefinedBehavior};
use serde_json::Value;

use super::Variables;
use crate::error::{Error, Result, fault_at};
use crate::project::{ModelFile, Project};
use crate::suggest;

/// So many steps a text may take; one that wants more runs in a circle.
const FUEL: u64 = 10_000_000;

/// What a text can see.
pub(super) struct Scope<'a> {
    pub(super) project: &'a Project,
    pub(super) variables: &'a Variables,
    /// The table of each model.
    pub(super) tables: &'a BTreeMap<String, TableName>,
}

/// What rendering a text brought.
#[derive(Debug, Default, Clone)]
pub(super) struct Rendered {
    pub(super) sql: String,
    /// Settings that the text makes, each with its line.
    pub(super) settings: Vec<(String, Value, Option<usize>)>,
    pub(super) parents: BTreeSet<String>,
    pub(super) sources: BTreeSet<TableName>,
}

impl Scope<'_> {
    pub(super) fn render(&self, file: &ModelFile) -> Result<Rendered> {
        let found = Arc::new(Mutex::new(Rendered::default()));
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        self.add_relations(&mut environment, &found);
        self.add_values(&mut environment, file);
        add_config(&mut environment, &found, config_line(&file.text));
        let sql =
            environment.render_named_str(&file.path, &file.text, ()).map_err(|error| template_error(file, &error))?;
        let mut rendered = found.lock().expect("no holder of this lock panics").clone();
        rendered.sql = sql.trim_end().to_owned();
        Ok(rendered)
    }

    /// `ref` and `source`: names in, a table's name out, and a note of the dependency.
    fn add_relations(&self, environment: &mut Environment<'_>, found: &Arc<Mutex<Rendered>>) {
        let (tables, notes) = (self.tables.clone(), found.clone());
        environment.add_function("ref", move |arguments: Rest<String>| {
            let [name] = arguments.as_slice() else {
                return Err(wrong("ref takes the name of one model of this project"));
            };
            let Some(table) = tables.get(name) else {
                let hint = suggest::hint(name, tables.keys().map(String::as_str));
                return Err(wrong(format!("there is no model \"{name}\": {hint}")));
            };
            notes.lock().expect("no holder of this lock panics").parents.insert(name.clone());
            Ok(quoted(table))
        });
        let (sources, notes) = (self.project.sources.clone(), found.clone());
        environment.add_function("source", move |source: String, name: String| {
            let Some(table) = sources.iter().find(|known| known.source == source && known.name == name) else {
                let known: Vec<String> =
                    sources.iter().map(|known| format!("{}.{}", known.source, known.name)).collect();
                let hint = suggest::hint(&format!("{source}.{name}"), known.iter().map(String::as_str));
                return Err(wrong(format!("there is no source table \"{source}.{name}\": {hint}")));
            };
            notes.lock().expect("no holder of this lock panics").sources.insert(table.table.clone());
            Ok(quoted(&table.table))
        });
    }

    /// `var`, `env_var`, `this`, `is_incremental`.
    fn add_values(&self, environment: &mut Environment<'_>, file: &ModelFile) {
        let mut variables = self.project.variables.clone();
        variables.extend(self.variables.vars.clone());
        environment.add_function("var", move |name: String, default: Option<JinjaValue>| {
            if let Some(value) = variables.get(&name) {
                return Ok(JinjaValue::from_serialize(value));
            }
            let hint = suggest::hint(&name, variables.keys().map(String::as_str));
            default.ok_or_else(|| wrong(format!("the variable \"{name}\" has no value: {hint}")))
        });
        let variables = self.variables.environment.clone();
        environment.add_function("env_var", move |name: String, default: Option<String>| {
            let value = variables.get(&name).cloned().or(default);
            value.ok_or_else(|| {
                wrong(format!("the environment variable \"{name}\" is not set: set it, or give a default"))
            })
        });
        if let Some(table) = self.tables.get(&file.name) {
            environment.add_global("this", quoted(table));
        }
        // The author writes the query for the whole table, and the engine itself finds out what is new. A branch written
        // by hand for that purpose is left out: it could only say less than the query.
        environment.add_function("is_incremental", || false);
    }
}

fn add_config(environment: &mut Environment<'_>, found: &Arc<Mutex<Rendered>>, line: Option<usize>) {
    let notes = found.clone();
    environment.add_function("config", move |_: &State<'_, '_>, arguments: Rest<JinjaValue>| {
        let (positional, named): (&[JinjaValue], Kwargs) = from_args(&arguments)?;
        if !positional.is_empty() {
            return Err(wrong("config takes settings by name, such as config(materialized='table')"));
        }
        let mut notes = notes.lock().expect("no holder of this lock panics");
        for key in named.args() {
            let value: JinjaValue = named.peek(key)?;
            let value = serde_json::to_value(&value)
                .map_err(|error| wrong(format!("the setting {key} cannot be read: {error}")))?;
            notes.settings.push((key.to_owned(), value, line));
        }
        Ok(String::new())
    });
}

/// For each line of the rendered text the line of the source that it came from. What stands between Jinja's braces leaves
/// no line ends behind; a loop or a branch shifts what follows, so below one the line is only near.
pub(super) fn line_map(source: &str) -> Vec<usize> {
    let mut lines = vec![1];
    let mut current = 1;
    let mut closing: Option<&str> = None;
    let mut rest = source;
    while !rest.is_empty() {
        let opened = [("{{", "}}"), ("{%", "%}"), ("{#", "#}")].into_iter().find(|(open, _)| rest.starts_with(open));
        let length = match (closing, opened) {
            (Some(close), _) if rest.starts_with(close) => {
                closing = None;
                2
            }
            (None, Some((_, close))) => {
                closing = Some(close);
                2
            }
            _ => {
                let letter = rest.chars().next().expect("the rest is not empty");
                if letter == '\n' {
                    current += 1;
                    match closing {
                        None => lines.push(current),
                        Some(_) => *lines.last_mut().expect("it begins with one line") = current,
                    }
                }
                letter.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    lines
}

fn config_line(source: &str) -> Option<usize> {
    source.lines().position(|line| line.contains("config(")).map(|index| index + 1)
}

fn quoted(table: &TableName) -> String {
    format!("\"{}\".\"{}\"", table.schema, table.name)
}

fn wrong(message: impl Into<String>) -> JinjaError {
    JinjaError::new(JinjaErrorKind::InvalidOperation, message.into())
}

/// Our own messages say enough; those of the template engine need its kind before them, and a word on what there is.
fn template_error(file: &ModelFile, error: &JinjaError) -> Error {
    let remedy = match error.kind() {
        JinjaErrorKind::UnknownFunction | JinjaErrorKind::UnknownMethod | JinjaErrorKind::UndefinedError => {
            " (a model can use config, source, ref, var, env_var, this and is_incremental)"
        }
        _ => "",
    };
    let message = match (error.kind(), error.detail()) {
        (JinjaErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}{remedy}"),
        (kind, None) => format!("{kind}{remedy}"),
    };
    fault_at(&file.path, error.line(), message)
}
