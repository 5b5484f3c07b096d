//! The deep audit: each model's table against its query, run anew in full on the very versions that the table was built from.
//!
//! The published version is looked at, and the newest one too where it holds other rows: other engines read that. Which version
//! of each source is in a version of a table stands in the table's own log. So nothing has to stand still meanwhile: all is
//! pinned before the first row is read.
//!
//! What cannot be compared (a source that is no longer kept, a query that has changed since) is told, and keeps the audit from
//! saying that all is well.

mod compare;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use lakehouse::{Changes, Fault, Lake, PinnedTable, Publication, TableName, TableVersion};
use serde::Serialize;

use crate::Options;
use crate::class;
use crate::compile::{Compiled, Model};
use crate::error::{Error, ErrorKind, Result};
use crate::project::Project;
use crate::query::Query;
use crate::refresh::{Ledger, fingerprint};
use crate::select::select;
use crate::view::View;

use compare::Comparison;

/// What the deep audit found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct DeepReport {
    /// One entry for each version of a model's table that was looked at.
    pub models: Vec<ModelAudit>,
    /// The rows that differ: the first of each table, and how many more there are.
    pub faults: Vec<Fault>,
}

/// What became of one version of a model's table.
#[derive(Debug, Clone, Serialize)]
pub struct ModelAudit {
    /// The table.
    pub table: TableName,
    /// Its version.
    pub version: u64,
    /// The newest publication that names this version; none for a newest version that is not published.
    pub publication: Option<u64>,
    /// The versions of its sources that the query ran on.
    pub sources: BTreeMap<TableName, u64>,
    /// Rows of the table that were compared.
    pub compared_rows: u64,
    /// Rows of the table, if the log says how many.
    pub rows: Option<u64>,
    /// Rows that are not what the query gives.
    pub differing_rows: u64,
    /// Why nothing was compared, if nothing was.
    pub not_checked: Option<String>,
}

impl DeepReport {
    /// The versions that could not be compared.
    pub fn not_checked(&self) -> usize {
        self.models.iter().filter(|audit| audit.not_checked.is_some()).count()
    }
}

impl fmt::Display for ModelAudit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} version {}", self.table, self.version)?;
        if let Some(publication) = self.publication {
            write!(f, " (publication {publication})")?;
        }
        if let Some(reason) = &self.not_checked {
            return write!(f, ": not checked: {reason}");
        }
        let sources: Vec<_> = self.sources.iter().map(|(name, version)| format!("{name} version {version}")).collect();
        let verdict = if self.differing_rows == 0 { "is" } else { "is not" };
        write!(f, " {verdict} what its query makes of {}: ", sources.join(", "))?;
        match self.rows {
            Some(rows) if rows != self.compared_rows => write!(f, "{} of {rows} rows compared", self.compared_rows)?,
            _ => write!(f, "{} rows compared", self.compared_rows)?,
        }
        if self.differing_rows > 0 {
            write!(f, ", {} differ", self.differing_rows)?;
        }
        Ok(())
    }
}

/// Recomputes the models of `project` and compares them with their tables, row by row; with `sample`, a share of the keys that
/// is always the same one.
///
/// # Errors
/// `BadConfig` for a fault in the project; `Unavailable` if the store does not answer. What one table lacks is in the report.
pub async fn verify(lake: &Lake, project: &Project, options: &Options, sample: Option<f64>) -> Result<DeepReport> {
    let project = Compiled::new(project, &options.variables)?;
    let selected = select(&project, &options.select)?;
    let publications = lake.publications().await?;
    let models = project.models.iter().filter(|model| selected.contains(&model.name));
    let mut pinned = Vec::new();
    for model in models {
        pinned.extend(pin(lake, model, &publications).await?.into_iter().map(|pin| (model, pin)));
    }
    let audit = Audit { lake, publications: &publications, sample };
    let mut report = DeepReport::default();
    for (model, pin) in pinned {
        audit.audit(model, pin, &mut report).await?;
    }
    if options.select.is_empty() {
        report.models.extend(of_nobody(&project, &publications));
    }
    Ok(report)
}

/// A version of a model's table, fixed before anything is read.
struct Pin {
    version: u64,
    table_id: Option<String>,
    publication: Option<u64>,
}

/// The published version of a model's table, and the newest one where it has other rows.
async fn pin(lake: &Lake, model: &Model, publications: &[Publication]) -> Result<Vec<Pin>> {
    let table = lake.table(&model.table);
    let mut pins = Vec::new();
    let published =
        newest_of(publications, model.group()).and_then(|one| Some((one.id, one.tables.get(&model.table)?)));
    if let Some((id, PinnedTable { table_id, version })) = published {
        pins.push(Pin { version: *version, table_id: Some(table_id.clone()), publication: Some(id) });
    }
    // A model that was never built has nothing that could be wrong; that a published table is gone is told by the lake's audit.
    if !table.exists().await? {
        return Ok(pins);
    }
    let newest = match table.head().await {
        Err(error) if is_found(&error) => return Ok(pins),
        head => head?.version,
    };
    let is_news = match pins.first() {
        Some(published) if published.version >= newest => false,
        Some(published) => !is_same(lake, &model.table, published.version, newest).await?,
        None => true,
    };
    if is_news {
        pins.push(Pin { version: newest, table_id: None, publication: None });
    }
    Ok(pins)
}

/// Whether no row came or went between two versions.
async fn is_same(lake: &Lake, name: &TableName, from: u64, to: u64) -> Result<bool> {
    if from == to {
        return Ok(true);
    }
    match lake.table(name).changes(Some(from), to).await {
        Ok(changes) => Ok(matches!(changes, Changes::Appended { files } if files.is_empty())),
        Err(error) if is_found(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn newest_of<'a>(publications: &'a [Publication], group: &str) -> Option<&'a Publication> {
    publications.iter().find(|publication| publication.group == group)
}

/// Published tables that this project neither builds nor reads: somebody else's project would have to say what is in them.
fn of_nobody(project: &Compiled, publications: &[Publication]) -> Vec<ModelAudit> {
    let groups: BTreeSet<&str> = publications.iter().map(|publication| publication.group.as_str()).collect();
    let newest = groups.into_iter().filter_map(|group| newest_of(publications, group));
    let tables = newest.flat_map(|one| one.tables.iter().map(|(name, pinned)| (name, pinned.version, one.id)));
    let is_known = |name: &TableName| {
        project.models.iter().any(|model| model.table == *name || model.inputs.contains(name))
            || name.schema == "bronze"
    };
    let unknown = tables.filter(|(name, ..)| !is_known(name));
    let told = unknown.map(|(name, version, publication)| {
        let reason = "no model of this project builds it: name its project with --project".to_owned();
        ModelAudit { not_checked: Some(reason), ..ModelAudit::new(name, version, Some(publication)) }
    });
    told.collect()
}

impl ModelAudit {
    fn new(table: &TableName, version: u64, publication: Option<u64>) -> Self {
        Self {
            table: table.clone(),
            version,
            publication,
            sources: BTreeMap::new(),
            compared_rows: 0,
            rows: None,
            differing_rows: 0,
            not_checked: None,
        }
    }
}

struct Audit<'a> {
    lake: &'a Lake,
    publications: &'a [Publication],
    sample: Option<f64>,
}

/// Why a version is not compared.
enum Stop {
    NotChecked(String),
    Failed(Error),
}

impl From<Error> for Stop {
    /// What the lake or the project lacks for one table is told of that table; a store that is away concerns all.
    fn from(error: Error) -> Self {
        if is_found(&error) { Self::NotChecked(error.to_string()) } else { Self::Failed(error) }
    }
}

fn is_found(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::BadData | ErrorKind::BadConfig)
}

impl Audit<'_> {
    async fn audit(&self, model: &Model, pin: Pin, report: &mut DeepReport) -> Result<()> {
        let mut audit = ModelAudit::new(&model.table, pin.version, pin.publication);
        match self.compare(model, &pin, &mut audit).await {
            Ok(found) => {
                audit.compared_rows = found.compared_rows;
                audit.differing_rows = found.differing_rows;
                let version = pin.version;
                let faults = found.told.into_iter().map(|what| Fault {
                    table: model.table.clone(),
                    partition: None,
                    what: format!("version {version}: {what}"),
                });
                report.faults.extend(faults);
            }
            Err(Stop::NotChecked(reason)) => audit.not_checked = Some(reason),
            Err(Stop::Failed(error)) => return Err(error),
        }
        report.models.push(audit);
        Ok(())
    }

    async fn compare(&self, model: &Model, pin: &Pin, audit: &mut ModelAudit) -> Result<Comparison, Stop> {
        let table = self.lake.table(&model.table);
        let found = table.at(pin.version).await?;
        audit.rows = found.rows();
        if pin.table_id.as_ref().is_some_and(|id| *id != found.table_id) {
            return Err(Stop::NotChecked("another table has this name now: build again".to_owned()));
        }
        let ledger = Ledger::at(&table, pin.version, model).await?;
        let mut sources = BTreeMap::new();
        for name in &model.inputs {
            let Some(cursor) = ledger.cursors.get(name) else {
                let reason = format!("its log does not say which version of {name} it was built from: build it again");
                return Err(Stop::NotChecked(reason));
            };
            let version = self.source(name, *cursor).await?;
            audit.sources.insert(name.clone(), version.version);
            sources.insert(name.clone(), View::of(self.lake.table(name), version));
        }
        if ledger.fingerprint != Some(fingerprint(model, &sources)) {
            let reason = "its query, its settings or a source's identity changed since it was built: build it again";
            return Err(Stop::NotChecked(reason.to_owned()));
        }
        let relations = sources.iter().map(|(name, view)| (name.clone(), view.provider())).collect();
        let query = Query::plan(self.lake, model, &relations).await?;
        if let Some(reason) = class::unrepeatable(&query.plan) {
            return Err(Stop::NotChecked(reason));
        }
        Ok(compare::compare(self.lake, model, query, &found, self.sample).await?)
    }

    /// The source with the rows that it had at `cursor`. A version that a publication keeps is as good where nothing but small
    /// files was changed in between: those of the cursor itself may be gone.
    async fn source(&self, name: &TableName, cursor: u64) -> Result<Arc<TableVersion>> {
        let table = self.lake.table(name);
        let named = self.publications.iter().filter_map(|publication| publication.tables.get(name));
        let kept = named.map(|pinned| pinned.version).filter(|version| *version >= cursor).min();
        let newest = table.head().await?.version;
        for other in kept.into_iter().chain([newest]).filter(|version| *version >= cursor) {
            if is_same(self.lake, name, cursor, other).await? {
                return table.at(other).await;
            }
        }
        table.at(cursor).await
    }
}
