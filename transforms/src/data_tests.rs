//! Data tests: what must hold of a table's rows. Each is a query that counts the rows, or keys, that break the rule.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::error::{Result, fault_at};
use crate::project::ModelFile;
use crate::query::quoted;
use crate::suggest;

/// The tests that there are.
const KNOWN: [&str; 4] = ["not_null", "unique", "accepted_values", "dbt_utils.unique_combination_of_columns"];

/// One rule about one model's table.
#[derive(Debug, Clone)]
pub(crate) struct DataTest {
    pub(crate) name: String,
    pub(crate) check: Check,
    /// A condition that picks the rows that the rule is about.
    pub(crate) condition: Option<String>,
    pub(crate) severity: Severity,
}

/// What has to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Check {
    NotNull {
        column: String,
    },
    /// No two rows have the same values in these columns; rows with NULL in one of them are left out, as in dbt.
    Unique {
        columns: Vec<String>,
    },
    /// The values are SQL literals.
    Accepted {
        column: String,
        values: Vec<String>,
    },
}

/// What a broken rule means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Nothing of the model's group is committed or published.
    Error,
    /// It is reported.
    Warn,
}

impl Check {
    /// The name that a project gives to this kind of test.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::NotNull { .. } => "not_null",
            Self::Unique { .. } => "unique",
            Self::Accepted { .. } => "accepted_values",
        }
    }

    /// The columns that it is about.
    pub(crate) fn columns(&self) -> Vec<String> {
        match self {
            Self::NotNull { column } | Self::Accepted { column, .. } => vec![column.clone()],
            Self::Unique { columns } => columns.clone(),
        }
    }
}

impl DataTest {
    /// The query that counts what breaks the rule in `relation`.
    pub(crate) fn sql(&self, relation: &str) -> String {
        let condition = self.condition.as_ref().map_or_else(|| "true".to_owned(), |condition| format!("({condition})"));
        match &self.check {
            Check::NotNull { column } => {
                format!("select count(*) from {relation} where {condition} and {} is null", quoted(column))
            }
            Check::Unique { columns } => {
                let columns: Vec<String> = columns.iter().map(|column| quoted(column)).collect();
                let not_null: Vec<String> = columns.iter().map(|column| format!("{column} is not null")).collect();
                format!(
                    "select count(*) from (select 1 from {relation} where {condition} and {} group by {} having count(*) > 1)",
                    not_null.join(" and "),
                    columns.join(", ")
                )
            }
            Check::Accepted { column, values } => format!(
                "select count(*) from {relation} where {condition} and {} not in ({})",
                quoted(column),
                values.join(", ")
            ),
        }
    }

    /// Whether rows that passed once need no second look when others come: then the new rows alone are tested.
    /// Keys that the refresh itself keeps apart (`merge_key`) count among these.
    pub(crate) fn holds_row_by_row(&self, merge_key: &[String]) -> bool {
        match &self.check {
            Check::NotNull { .. } | Check::Accepted { .. } => true,
            Check::Unique { columns } => {
                !merge_key.is_empty() && merge_key.iter().all(|column| columns.contains(column))
            }
        }
    }
}

/// Reads the tests in a model's properties.
pub(crate) fn read(file: &ModelFile) -> Result<Vec<DataTest>> {
    let properties = &file.properties;
    let mut tests = Vec::new();
    for test in &properties.data_tests {
        tests.push(read_one(file, None, test)?);
    }
    for column in &properties.columns {
        for test in &column.data_tests {
            tests.push(read_one(file, Some(&column.name), test)?);
        }
    }
    Ok(tests)
}

fn read_one(file: &ModelFile, column: Option<&str>, test: &Value) -> Result<DataTest> {
    let wrong = |message: String| {
        let of = column.map_or_else(|| file.name.clone(), |column| format!("{}.{column}", file.name));
        fault_at(&file.properties_path, None, format!("a data test of {of}: {message}"))
    };
    let (kind, mut arguments) = match test {
        Value::String(kind) => (kind.clone(), BTreeMap::new()),
        Value::Object(entries) => arguments_of(entries).ok_or_else(|| wrong(format!("{test} is not understood")))?,
        other => return Err(wrong(format!("{other} is not understood: write a test's name"))),
    };
    if !KNOWN.contains(&kind.as_str()) {
        return Err(wrong(format!("the test \"{kind}\" is not supported: {}", suggest::hint(&kind, KNOWN))));
    }
    let severity = match take_text(&mut arguments, "severity").as_deref().map(str::to_lowercase).as_deref() {
        None | Some("error") => Severity::Error,
        Some("warn") => Severity::Warn,
        Some(other) => return Err(wrong(format!("severity \"{other}\": write error or warn"))),
    };
    let column = take_text(&mut arguments, "column_name").or_else(|| column.map(str::to_owned));
    let needs_column = || wrong(format!("{kind} belongs under a column"));
    let check = match kind.as_str() {
        "not_null" => Check::NotNull { column: column.clone().ok_or_else(needs_column)? },
        "unique" => Check::Unique { columns: vec![column.clone().ok_or_else(needs_column)?] },
        "accepted_values" => {
            let values =
                accepted(&mut arguments).ok_or_else(|| wrong("accepted_values needs a list \"values\"".to_owned()))?;
            Check::Accepted { column: column.clone().ok_or_else(needs_column)?, values }
        }
        _ => {
            let columns =
                arguments.remove("combination_of_columns").and_then(|columns| serde_json::from_value(columns).ok());
            Check::Unique {
                columns: columns.ok_or_else(|| wrong(format!("{kind} needs a list \"combination_of_columns\"")))?,
            }
        }
    };
    let name = take_text(&mut arguments, "name").unwrap_or_else(|| {
        let kind = kind.rsplit('.').next().unwrap_or(&kind);
        let column = column.map_or_else(String::new, |column| format!("_{column}"));
        format!("{kind}_{}{column}", file.name)
    });
    let condition = take_text(&mut arguments, "where");
    arguments.remove("description");
    if let Some(unknown) = arguments.keys().next() {
        let line_hint = suggest::hint(unknown, ["values", "severity", "where", "name", "quote", "column_name"]);
        return Err(wrong(format!("\"{unknown}\" is not known or not supported: {line_hint}")));
    }
    Ok(DataTest { name, check, condition, severity })
}

/// Takes a test written as a map apart: its kind, and its arguments with those of `arguments:` and `config:` among them.
fn arguments_of(entries: &serde_json::Map<String, Value>) -> Option<(String, BTreeMap<String, Value>)> {
    let mut entries = entries.clone();
    let beside: Vec<(String, Value)> = ["name", "description", "config"]
        .iter()
        .filter_map(|key| entries.remove(*key).map(|value| ((*key).to_owned(), value)))
        .collect();
    let mut entries = entries.into_iter();
    let (kind, arguments) = entries.next()?;
    let mut arguments: BTreeMap<String, Value> = match arguments {
        Value::Object(arguments) => arguments.into_iter().collect(),
        Value::Null => BTreeMap::new(),
        _ => return None,
    };
    arguments.extend(beside);
    for block in ["arguments", "config"] {
        if let Some(Value::Object(inner)) = arguments.remove(block) {
            arguments.extend(inner);
        }
    }
    entries.next().is_none().then_some((kind, arguments))
}

fn take_text(arguments: &mut BTreeMap<String, Value>, key: &str) -> Option<String> {
    match arguments.remove(key)? {
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    }
}

fn accepted(arguments: &mut BTreeMap<String, Value>) -> Option<Vec<String>> {
    let Value::Array(values) = arguments.remove("values")? else { return None };
    let quote = arguments.remove("quote") != Some(Value::Bool(false));
    let literal = |value: Value| match value {
        Value::String(text) if quote => format!("'{}'", text.replace('\'', "''")),
        Value::String(text) => text,
        other => other.to_string(),
    };
    (!values.is_empty()).then(|| values.into_iter().map(literal).collect())
}
