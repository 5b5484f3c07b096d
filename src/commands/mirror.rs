//! `mirror`: gold to Snowflake, once or again and again.

use crate::cli;
use crate::output;
use crate::pipeline;
use crate::settings::Settings;
use crate::stop;

pub(super) async fn run(mirror: &cli::Mirror, settings: &Settings) -> anyhow::Result<()> {
    let options = settings.snowflake.options()?;
    let lake = pipeline::open_lake(settings).await?;
    let token = stop::on_signal()?;
    if let Some(interval) = mirror.every {
        tracing::info!(url = %options.url, target = options.target(), ?interval, "mirroring");
        return Ok(snowflake_adapter::mirror_every(&lake, &options, interval, &token).await?);
    }
    let summary = snowflake_adapter::mirror_once(&lake, &options, &token).await?;
    output::result(&summary, settings.json)
}
