//! `transform explain` and `transform ls`: what there is, and what the next build would do. Nothing is written.

use std::collections::BTreeMap;
use std::fmt;

use lakehouse::{ErrorKind, Lake, TableName};
use serde::Serialize;

use crate::class::Class;
use crate::compile::{Compiled, Model};
use crate::config::Materialization;
use crate::error::Result;
use crate::refresh::{self, DecisionKind, Planned, RefreshMode};
use crate::view::View;

/// One line of `ls`.
#[derive(Debug, Clone, Serialize)]
pub struct ModelListing {
    /// The model.
    pub model: String,
    /// Its table.
    pub table: TableName,
    /// How the table is kept.
    pub materialized: Materialization,
    /// The group that it is published with.
    pub group: String,
    /// The file.
    pub path: String,
    /// The tables that it reads.
    pub reads: Vec<TableName>,
    /// Its tags.
    pub tags: Vec<String>,
    /// The number of data tests.
    pub tests: usize,
    /// What the project says of it.
    pub description: String,
    /// What the project says of its columns, by name.
    pub columns: BTreeMap<String, String>,
}

/// What the engine makes of one model.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// The model.
    pub model: String,
    /// Its table.
    pub table: TableName,
    /// How it is refreshed: append, keyed merge or full.
    pub class: String,
    /// Why not more cheaply, if it is full; or what keeps it from being planned.
    pub reason: String,
    /// What it reads.
    pub sources: Vec<SourceState>,
    /// What the next build would do.
    pub next: String,
    /// The files that it would read.
    pub files: Vec<String>,
    /// The rows in these files.
    pub rows: u64,
}

/// How far a model has read a source.
#[derive(Debug, Clone, Serialize)]
pub struct SourceState {
    /// The source.
    pub table: TableName,
    /// The version that is in the model's table.
    pub cursor: Option<u64>,
    /// The newest version.
    pub head: u64,
}

impl ModelListing {
    pub(crate) fn of(model: &Model) -> Self {
        Self {
            model: model.name.clone(),
            table: model.table.clone(),
            materialized: model.config.materialized,
            group: model.group().to_owned(),
            path: model.path.clone(),
            reads: model.inputs.iter().cloned().collect(),
            tags: model.config.tags.clone(),
            tests: model.tests.len(),
            description: model.description.clone(),
            columns: model.columns.iter().cloned().collect(),
        }
    }
}

/// Explains a model by the newest versions of what it reads.
pub(crate) async fn explain(lake: &Lake, project: &Compiled, model: &Model, mode: RefreshMode) -> Result<Explanation> {
    let mut explanation = Explanation {
        model: model.name.clone(),
        table: model.table.clone(),
        class: "unknown".to_owned(),
        reason: String::new(),
        sources: Vec::new(),
        next: String::new(),
        files: Vec::new(),
        rows: 0,
    };
    let mut inputs = BTreeMap::new();
    for name in &model.inputs {
        let table = lake.table(name);
        match table.head().await {
            Ok(head) => inputs.insert(name.clone(), View::of(table, head)),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let how = if project.builder_of(name).is_some() { "built" } else { "ingested" };
                explanation.reason = format!("{name}, which it reads, is not {how} yet");
                explanation.next.clone_from(&explanation.reason);
                return Ok(explanation);
            }
            Err(error) => return Err(error),
        };
    }
    let planned = Planned::new(lake, model, &inputs).await?;
    let (ledger, decision) = refresh::look(&planned, mode).await?;
    explanation.class = planned.class.to_string();
    if let Class::Full { reason } = &planned.class {
        explanation.reason.clone_from(reason);
    }
    let cursor = |name: &TableName| ledger.as_ref()?.cursors.get(name).copied();
    let state = |(name, view): (&TableName, &View)| SourceState {
        table: name.clone(),
        cursor: cursor(name),
        head: view.base.version,
    };
    explanation.sources = inputs.iter().map(state).collect();
    let read = match decision.kind {
        DecisionKind::Nothing(_) => Vec::new(),
        DecisionKind::New { source, files } => files.into_iter().map(|file| (source.clone(), file)).collect(),
        DecisionKind::Everything => {
            let files =
                inputs.iter().flat_map(|(name, view)| view.files().into_iter().map(move |file| (name.clone(), file)));
            files.collect()
        }
    };
    explanation.next = match (read.is_empty(), &ledger) {
        (true, Some(_)) => format!("nothing: {}", decision.reason),
        _ => format!("read {} files: {}", read.len(), decision.reason),
    };
    explanation.rows = read.iter().filter_map(|(_, file)| file.rows).sum();
    explanation.files = read.iter().map(|(name, file)| format!("{}/{}", name.folder(), file.path)).collect();
    Ok(explanation)
}

impl fmt::Display for ModelListing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reads: Vec<String> = self.reads.iter().map(ToString::to_string).collect();
        write!(f, "{}  ← {}  ({})", self.table, reads.join(", "), self.path)
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.table, self.class)?;
        if !self.reason.is_empty() {
            write!(f, " ({})", self.reason)?;
        }
        for source in &self.sources {
            let cursor = source.cursor.map_or_else(|| "nothing".to_owned(), |cursor| format!("up to version {cursor}"));
            write!(f, "\n  {}: read {cursor}, newest is {}", source.table, source.head)?;
        }
        write!(f, "\n  next: {}, {} rows", self.next, self.rows)
    }
}
