//! `table export|import`: a lake is copied from here to there.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lakehouse::{CopyPlan, CopyProgress, Destination, Lake, StorageOptions, SystemClock, TableName};
use url::Url;

use super::care::Consent;
use crate::cli::Copying;
use crate::output::{self, Fault};
use crate::settings::Settings;

/// So often it is told how far a copy is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn export(copying: &Copying, settings: &Settings) -> anyhow::Result<()> {
    let (to, storage) = other(settings)?;
    let lake = find(&settings.lake, &settings.storage).await?;
    copy(&lake, &Destination::at(to, storage)?, copying, settings).await
}

pub(super) async fn import(copying: &Copying, settings: &Settings) -> anyhow::Result<()> {
    let (from, storage) = other(settings)?;
    let lake = find(from, storage).await?;
    copy(&lake, &Destination::at(&settings.lake, &settings.storage)?, copying, settings).await
}

fn other(settings: &Settings) -> anyhow::Result<&(Url, StorageOptions)> {
    settings.other_lake.as_ref().ok_or_else(|| Fault::usage("name the other lake").into())
}

async fn find(url: &Url, storage: &StorageOptions) -> anyhow::Result<Lake> {
    Ok(Lake::find(url, storage, Arc::new(SystemClock)).await?)
}

async fn copy(lake: &Lake, to: &Destination, copying: &Copying, settings: &Settings) -> anyhow::Result<()> {
    let only = copying.table.iter().map(|name| name.parse()).collect::<Result<Vec<TableName>, _>>()?;
    let plan = lake.plan_copy(to, &only).await?;
    if settings.json {
        output::print_json(&plan)?;
    } else {
        tell(&plan)?;
    }
    let total = plan.total();
    if plan.is_nothing() || !Consent::of(copying.dry_run, copying.yes).is_given()? {
        return Ok(());
    }
    let mut told_at = Instant::now();
    let progress = |done: CopyProgress| {
        if done.files == total.files || told_at.elapsed() >= PROGRESS_INTERVAL {
            told_at = Instant::now();
            // Who has closed stderr does not want to know.
            let _ = writeln!(
                std::io::stderr(),
                "copied {} of {} files, {} of {} bytes",
                done.files,
                total.files,
                done.bytes,
                total.bytes
            );
        }
    };
    Ok(lake.copy(plan, to, progress).await?)
}

fn tell(plan: &CopyPlan) -> anyhow::Result<()> {
    let header = ["table", "version", "files to copy", "bytes", "there already"];
    let row = |name: String, version: String, numbers: [u64; 3]| {
        [name, version].into_iter().chain(numbers.map(|number| number.to_string())).collect::<Vec<_>>()
    };
    let tables = plan.tables.iter();
    let rows = tables.map(|one| row(one.table.to_string(), one.version.to_string(), [one.files, one.bytes, one.there]));
    output::table(&header, &rows.collect::<Vec<_>>())?;
    let CopyProgress { files, bytes } = plan.total();
    output::print(&match plan.is_nothing() {
        true => format!("{} has all of {} already", plan.to, plan.from),
        false => format!("{files} files, {bytes} bytes: {} to {}", plan.from, plan.to),
    })
}
