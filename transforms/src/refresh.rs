//! Refreshing one model: decide how, compute the rows, stage them. Nothing is committed here.
//!
//! ```text
//!  ledger of the target ─► what is new in the sources ─► nothing ───────────────► (no commit)
//!                                                    ├─► new rows ─► merge ─────► adds (and removes)
//!                                                    └─► all rows ─► rebuild ───► adds, and all that was there removed
//! ```

mod ledger;
mod merge;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use lakehouse::{Changes, DataFile, Lake, StageOptions, StagedFile, Table, TableName, TableSpec, TableVersion};
use serde::Serialize;

use crate::class::Class;
use crate::compile::Model;
use crate::error::{Error, ErrorKind, Result, conflict};
use crate::query::{Query, Relations};
use crate::view::View;
pub(crate) use ledger::{Ledger, entries, fingerprint};

/// A cursor that lags by more commits than this, none of which brought rows, is moved on by a commit of its own, so that
/// the next look does not read them all again.
const IDLE_COMMITS_MAX: u64 = 100;

/// Whether a refresh may go by what is new.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RefreshMode {
    /// By what is new wherever that is as good as everything.
    #[default]
    Automatic,
    /// Everything anew.
    Full,
}

/// Whether what is staged is tested before it is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audit {
    /// It is; the ledger says which tests were passed.
    Tested,
    /// It is not; the ledger says that no tests were passed.
    Untested,
}

/// What a refresh did, or would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RefreshKind {
    /// Nothing that the model reads has changed.
    Unchanged,
    /// New rows were added.
    Append,
    /// New rows were added, and some took the place of others.
    Merge,
    /// All rows were computed anew.
    Full,
}

impl RefreshKind {
    /// The word for people.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::Append => "append",
            Self::Merge => "merge",
            Self::Full => "full",
        }
    }
}

/// What is to be done for one model, and why.
#[derive(Debug)]
pub(crate) struct Decision {
    pub(crate) kind: DecisionKind,
    pub(crate) reason: String,
}

#[derive(Debug)]
pub(crate) enum DecisionKind {
    /// Nothing to compute.
    Nothing(Cursors),
    /// The rows of these files of the one source are new.
    New {
        source: TableName,
        files: Vec<Arc<DataFile>>,
    },
    Everything,
}

/// What becomes of cursors when there is nothing new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cursors {
    Leave,
    Move,
}

/// A refresh, staged.
#[derive(Debug)]
pub(crate) struct Refresh {
    /// The model's table with what is staged.
    pub(crate) view: View,
    /// What goes into the ledger with it; none if there is nothing to commit.
    pub(crate) pending: Option<Pending>,
    pub(crate) kind: RefreshKind,
    pub(crate) reason: String,
    pub(crate) files_read: usize,
    pub(crate) rows_read: u64,
}

/// The ledger entries of a commit that is yet to come.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    /// For each source the version that was read. Where the source itself is yet to be committed, its version after that
    /// takes the place.
    pub(crate) cursors: BTreeMap<TableName, u64>,
    pub(crate) fingerprint: i64,
    pub(crate) tests_fingerprint: i64,
    /// Whether the tests last passed were other ones, so that rows of old need a second look.
    pub(crate) tests_changed: TestsChanged,
}

/// Whether a model's tests are those that its committed rows passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TestsChanged {
    Yes,
    No,
}

/// A model, planned, with its target and ledger: all that a decision needs.
pub(crate) struct Planned<'a> {
    lake: &'a Lake,
    model: &'a Model,
    inputs: &'a BTreeMap<TableName, View>,
    query: Query,
    pub(crate) class: Class,
}

impl<'a> Planned<'a> {
    /// Plans `model` over its inputs.
    pub(crate) async fn new(lake: &'a Lake, model: &'a Model, inputs: &'a BTreeMap<TableName, View>) -> Result<Self> {
        let relations = inputs.iter().map(|(name, view)| (name.clone(), view.provider())).collect();
        let query = Query::plan(lake, model, &relations).await?;
        let class = Class::of(model, &query.plan);
        Ok(Self { lake, model, inputs, query, class })
    }

    /// The model's table as the lake has to have it.
    fn spec(&self) -> Result<TableSpec> {
        let schema = self.query.columns();
        let config = &self.model.config;
        let named = config.partition_by.iter().chain(&config.unique_key);
        for column in named.chain(config.order_by.iter().map(|order| &order.column)) {
            if schema.field_with_name(column).is_err() {
                let hint = crate::suggest::hint(column, schema.fields().iter().map(|field| field.name().as_str()));
                return Err(self.model.error_at(
                    None,
                    format!("its settings name the column \"{column}\", which its query has not: {hint}"),
                ));
            }
        }
        Ok(TableSpec::new(schema).partitioned_by(config.partition_by.iter().cloned()))
    }

    /// Decides by the target's ledger what there is to do.
    pub(crate) async fn decide(&self, ledger: &Ledger, mode: RefreshMode) -> Result<Decision> {
        let everything = |reason: String| Ok(Decision { kind: DecisionKind::Everything, reason });
        if mode == RefreshMode::Full {
            return everything("a full refresh was asked for".to_owned());
        }
        match ledger.fingerprint {
            None => return everything("it was never built".to_owned()),
            Some(known) if known != fingerprint(self.model, self.inputs) => {
                return everything("its query, its settings or a source's identity changed".to_owned());
            }
            Some(_) => {}
        }
        let mut idle_commits = 0;
        let mut new = Vec::new();
        for (name, view) in self.inputs {
            let Some(cursor) = ledger.cursors.get(name).copied() else {
                return everything(format!("it never read {name}"));
            };
            if cursor > view.base.version {
                // Another build has gone on in the meantime; what we pinned is behind.
                let message = format!(
                    "{} was built from version {cursor} of {name}, later than {}",
                    self.model.name, view.base.version
                );
                return Err(conflict(message));
            }
            idle_commits = idle_commits.max(view.base.version - cursor);
            match view.changes_since(cursor).await? {
                Changes::Rewritten { reason } => return everything(reason),
                Changes::Appended { files } if files.is_empty() => {}
                Changes::Appended { files } => new.push((name, files)),
            }
        }
        match (new.pop(), &self.class) {
            (None, _) => {
                let cursors = if idle_commits > IDLE_COMMITS_MAX { Cursors::Move } else { Cursors::Leave };
                Ok(Decision {
                    kind: DecisionKind::Nothing(cursors),
                    reason: "nothing that it reads has changed".to_owned(),
                })
            }
            (Some(_), Class::Full { reason }) => everything(reason.clone()),
            (Some((source, files)), Class::Append | Class::KeyedMerge) => {
                let reason = format!("{} files are new in {source}", files.len());
                Ok(Decision { kind: DecisionKind::New { source: source.clone(), files }, reason })
            }
        }
    }

    /// Makes the target if it is missing, and reads its ledger at the very version that is then refreshed.
    async fn target(&self, table: &Table) -> Result<(Arc<TableVersion>, Ledger)> {
        let spec = self.spec()?;
        let base = table.ensure(&spec).await.map_err(|error| self.target_error(error))?;
        self.check_columns(&base, &spec.schema)?;
        let ledger = Ledger::read(table, self.model).await?;
        if ledger.version != base.version {
            return Err(conflict(format!("{} was written to in between", self.model.table)));
        }
        Ok((base, ledger))
    }

    /// Computes and stages whatever is to be done.
    pub(crate) async fn stage(self, mode: RefreshMode, audit: Audit) -> Result<Refresh> {
        let table = self.lake.table(&self.model.table);
        let (base, ledger) = self.target(&table).await?;
        let decision = self.decide(&ledger, mode).await?;
        let pending = Pending {
            cursors: self.inputs.iter().map(|(name, view)| (name.clone(), view.base.version)).collect(),
            fingerprint: fingerprint(self.model, self.inputs),
            tests_fingerprint: ledger::tests_fingerprint(self.model, audit),
            tests_changed: ledger.tests_changed(self.model),
        };
        // Rows that were committed without these tests have to pass them once, and that is worth remembering.
        let untested = audit == Audit::Tested && pending.tests_changed == TestsChanged::Yes;
        let mut view = View::of(table, base);
        let reason = decision.reason;
        match decision.kind {
            DecisionKind::Nothing(cursors) => {
                let pending = (cursors == Cursors::Move || untested).then_some(pending);
                Ok(Refresh { view, pending, kind: RefreshKind::Unchanged, reason, files_read: 0, rows_read: 0 })
            }
            DecisionKind::Everything => {
                let files: Vec<_> = self.inputs.values().flat_map(View::files).collect();
                let (files_read, rows_read) = (files.len(), rows_of(&files));
                view.adds = self.rebuild(&view).await?;
                view.removes = view.base.files.to_vec();
                let kind = RefreshKind::Full;
                Ok(Refresh { view, pending: Some(pending), kind, reason, files_read, rows_read })
            }
            DecisionKind::New { source, files } => {
                let (files_read, rows_read) = (files.len(), rows_of(&files));
                let kind = self.add(&mut view, &source, files).await?;
                Ok(Refresh { view, pending: Some(pending), kind, reason, files_read, rows_read })
            }
        }
    }

    async fn rebuild(self, view: &View) -> Result<Vec<StagedFile>> {
        let (lake, model, class) = (self.lake, self.model, self.class);
        let rows = self.query.stream(model).await?;
        let staged = view.table.stage(&view.base, rows, &StageOptions::default()).await?;
        if class == Class::KeyedMerge {
            let files = staged.iter().map(|file| file.data_file().clone()).collect();
            merge::check_keys(lake, model, view.base.provider_of(files)).await?;
        }
        Ok(staged)
    }

    /// Puts the rows that come of `files` into the table.
    async fn add(self, view: &mut View, source: &TableName, files: Vec<Arc<DataFile>>) -> Result<RefreshKind> {
        let new_rows = self.inputs[source].base.provider_of(files);
        let relations = Relations::from([(source.clone(), new_rows)]);
        let query = Query::plan(self.lake, self.model, &relations).await?;
        if self.class == Class::KeyedMerge {
            return merge::merge(self.lake, self.model, query, view).await;
        }
        let rows = query.stream(self.model).await?;
        view.adds = view.table.stage(&view.base, rows, &StageOptions::default()).await?;
        Ok(RefreshKind::Append)
    }

    /// The lake compares what a query needs with what is there; that there is more than the query gives is found here.
    fn check_columns(&self, base: &TableVersion, wanted: &SchemaRef) -> Result<()> {
        let config = &self.model.config;
        let gone = base.schema.fields().iter().find(|field| wanted.field_with_name(field.name()).is_err());
        if let Some(gone) = gone {
            return Err(
                self.changed(format!("the table has the column {}, which the query no longer gives", gone.name()))
            );
        }
        if base.partition_columns != config.partition_by {
            let (old, new) = (base.partition_columns.join(", "), config.partition_by.join(", "));
            return Err(self.changed(format!("the table is partitioned by ({old}) and the settings say ({new})")));
        }
        Ok(())
    }

    fn target_error(&self, error: Error) -> Error {
        // What the store says of rights and settings lies beneath as a source; a schema that differs is said by itself.
        if error.kind() == ErrorKind::BadConfig && error.source().is_none() {
            return self.changed(error.to_string());
        }
        error
    }

    fn changed(&self, what: String) -> Error {
        let remedy = "give the model another name, or delete the table's folder so that it is built anew";
        self.model.error_at(None, format!("{what}; the columns of a table cannot be changed yet: {remedy}"))
    }
}

/// What is known of a model without staging: for `explain`.
pub(crate) async fn look(planned: &Planned<'_>, mode: RefreshMode) -> Result<(Option<Ledger>, Decision)> {
    let table = planned.lake.table(&planned.model.table);
    if !table.exists().await? {
        let reason = "it was never built".to_owned();
        return Ok((None, Decision { kind: DecisionKind::Everything, reason }));
    }
    let ledger = Ledger::read(&table, planned.model).await?;
    let decision = planned.decide(&ledger, mode).await?;
    Ok((Some(ledger), decision))
}

pub(crate) fn rows_of(files: &[Arc<DataFile>]) -> u64 {
    files.iter().filter_map(|file| file.rows).sum()
}
