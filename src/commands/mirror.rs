//! `mirror`: gold to Snowflake, once or again and again.

use super::open_lake_until;
use crate::cli;
use crate::output;
use crate::settings::Settings;
use crate::stop;

pub(super) async fn run(mirror: &cli::Mirror, settings: &Settings) -> anyhow::Result<()> {
    let options = settings.snowflake.options()?;
    let token = stop::on_signal()?;
    let Some(lake) = open_lake_until(&token, settings).await? else { return Ok(()) };
    if let Some(interval) = mirror.every {
        tracing::info!(url = %options.url, target = options.target(), ?interval, "mirroring");
        return Ok(snowflake_adapter::mirror_every(&lake, &options, interval, &token).await?);
    }
    let summary = snowflake_adapter::mirror_once(&lake, &options, &token).await?;
    output::result(&summary, settings.json)
}
