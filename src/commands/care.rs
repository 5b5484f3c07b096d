//! `table compact|vacuum|restore`: care of one table, by hand. What cannot be undone is told and asked before.

use std::io::{IsTerminal as _, Write as _};

use lakehouse::{CleanReport, Compaction, Lake, Outcome, Table, TableName};
use serde_json::json;

use crate::output::{self, Fault};
use crate::pipeline;
use crate::settings::Settings;

/// Whether it may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consent {
    /// No: it is only told.
    DryRun,
    /// Yes.
    Given,
    /// If somebody says so when asked.
    Asked,
}

/// Which version is put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Version(u64),
    Publication(u64),
}

impl Consent {
    pub(super) fn of(dry_run: bool, yes: bool) -> Self {
        match (dry_run, yes) {
            (true, _) => Self::DryRun,
            (false, true) => Self::Given,
            (false, false) => Self::Asked,
        }
    }

    /// Asks, if that is needed.
    pub(super) fn is_given(self) -> anyhow::Result<bool> {
        match self {
            Self::DryRun => Ok(false),
            Self::Given => Ok(true),
            Self::Asked if std::io::stdin().is_terminal() => {
                let mut stderr = std::io::stderr();
                write!(stderr, "Go on? [y/N] ")?;
                stderr.flush()?;
                let mut answer = String::new();
                std::io::stdin().read_line(&mut answer)?;
                Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
            }
            Self::Asked => {
                let message =
                    "there is nobody to ask: say --yes to do it, or --dry-run to be told only what it would do";
                Err(Fault::usage(message).into())
            }
        }
    }
}

async fn table_of(name: &str, settings: &Settings) -> anyhow::Result<(Lake, Table)> {
    let name: TableName = name.parse()?;
    let lake = pipeline::open_lake(settings).await?;
    let table = lake.table(&name);
    // That there is no such table is told before anything else.
    table.head().await?;
    Ok((lake, table))
}

pub(super) async fn compact(name: &str, settings: &Settings) -> anyhow::Result<()> {
    let (lake, table) = table_of(name, settings).await?;
    // Several topics may share a table of letters; retention takes out files of one topic only.
    let is_letters = settings.topics.iter().any(|topic| topic.dead_letters == *table.name());
    let apart = is_letters.then_some("topic");
    let (mut removed, mut added, mut bytes) = (0, 0, 0);
    loop {
        let round = lake.compact(&table, apart, Compaction::Thorough).await?;
        if round.removed <= round.added {
            break;
        }
        (removed, added, bytes) = (removed + round.removed, added + round.added, bytes + round.bytes);
    }
    lake.settle().await;
    let files = table.head().await?.files.len();
    if settings.json {
        let report =
            json!({ "table": table.name(), "removed": removed, "added": added, "bytes": bytes, "files": files });
        return output::print_json(&report);
    }
    output::print(&match removed {
        0 => format!("{name} has {files} files, and none to put together"),
        _ => format!("{name} has {files} files: {removed} of {bytes} bytes were put together into {added}"),
    })
}

pub(super) async fn vacuum(name: &str, consent: Consent, settings: &Settings) -> anyhow::Result<()> {
    let (lake, table) = table_of(name, settings).await?;
    let plan = lake.plan_vacuum(&table).await?;
    let told = |what: &str, files: &CleanReport| format!("{} files, {} bytes: {what}", files.files, files.bytes);
    if settings.json {
        output::print_json(&plan)?;
    } else {
        output::print(&told("superseded, to be deleted", &plan.superseded))?;
        output::print(&told("named by no commit, or broken off, for a day or more: to be deleted", &plan.untracked))?;
        output::print(&told("superseded, and needed by a publication or a reader: they stay", &plan.kept))?;
    }
    let files = plan.superseded.files + plan.untracked.files;
    if files == 0 || !consent.is_given()? {
        return Ok(());
    }
    lake.vacuum(&table, plan).await?;
    tracing::info!(table = name, files, "deleted");
    Ok(())
}

pub(super) async fn restore(name: &str, wanted: Wanted, consent: Consent, settings: &Settings) -> anyhow::Result<()> {
    let (lake, table) = table_of(name, settings).await?;
    if table.name().schema == "system" {
        return Err(Fault::usage(format!("{name} is Lakebeat's own; what it says is not put back")).into());
    }
    let version = match wanted {
        Wanted::Version(version) => version,
        Wanted::Publication(id) => version_in(&lake, id, table.name()).await?,
    };
    let writers = lake.leases(&ingest::consume::writers_of(table.name())).await?;
    if let Some(writer) = writers.first().filter(|_| consent != Consent::DryRun) {
        let message =
            format!("{} writes to {name} now: stop it first, or wait 45 s after it was killed", writer.holder);
        return Err(Fault::usage(message).into());
    }
    let plan = table.plan_restore(version).await?;
    let rows = |rows: Option<u64>| rows.map_or_else(|| "?".to_owned(), |rows| rows.to_string());
    if settings.json {
        let files = |(files, rows): (usize, Option<u64>)| json!({ "files": files, "rows": rows });
        let (comes_back, goes) = (files(plan.comes_back), files(plan.goes));
        output::print_json(
            &json!({ "table": name, "from": plan.newest, "to": version, "comes_back": comes_back, "goes": goes }),
        )?;
    } else {
        output::print(&format!(
            "{name} is at version {}; version {version} is put back by a commit of its own: {} rows in {} files go, {} rows in {} \
             files come back, and the ledger goes back with them",
            plan.newest,
            rows(plan.goes.1),
            plan.goes.0,
            rows(plan.comes_back.1),
            plan.comes_back.0
        ))?;
    }
    if plan.is_nothing() || !consent.is_given()? {
        return Ok(());
    }
    match table.restore(plan).await? {
        Outcome::Committed(version) => tracing::info!(table = name, version, "restored"),
        Outcome::Lost { winner } => {
            let message = format!("another commit came first, as version {winner}: nothing was restored; try again");
            return Err(Fault::found(message).into());
        }
    }
    lake.settle().await;
    Ok(())
}

async fn version_in(lake: &Lake, id: u64, table: &TableName) -> anyhow::Result<u64> {
    let publications = lake.publications().await?;
    let named = publications.iter().find(|publication| publication.id == id).and_then(|found| found.tables.get(table));
    let missing =
        || Fault::usage(format!("no publication {id} that names {table} is kept: see `lakebeat publication ls`"));
    Ok(named.ok_or_else(missing)?.version)
}
