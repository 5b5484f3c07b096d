//! `mirror`: gold to Snowflake, once or again and again.

use snowflake_adapter::Outcome;

use super::open_lake_until;
use crate::cli;
use crate::output::{self, Fault};
use crate::settings::Settings;
use crate::stop;

pub(super) async fn run(mirror: &cli::Mirror, settings: &Settings) -> anyhow::Result<()> {
    let options = settings.snowflake.options()?;
    let token = stop::on_signal()?;
    let lake = open_lake_until(&token, settings).await?;
    if let Some(interval) = mirror.every {
        let Some(lake) = lake else { return Ok(()) };
        tracing::info!(url = %options.url, target = options.target(), ?interval, "mirroring");
        return Ok(snowflake_adapter::mirror_every(&lake, &options, interval, &token).await?);
    }
    // Who asked for one run has to know that it has not come to its end.
    let stopped = || Fault::found("stopped before the newest publication was mirrored");
    let lake = lake.ok_or_else(stopped)?;
    let summary = snowflake_adapter::mirror_once(&lake, &options, &token).await?;
    output::result(&summary, settings.json)?;
    if summary.outcome == Outcome::Stopped { Err(stopped().into()) } else { Ok(()) }
}
