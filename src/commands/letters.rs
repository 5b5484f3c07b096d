//! `dead-letters ls` and `ingest replay`.

use crate::cli;
use crate::output::Fault;
use crate::settings::Settings;

pub(super) async fn ls(
    _topic: Option<String>,
    _letters: cli::Letters,
    _limit: u32,
    _settings: &Settings,
) -> anyhow::Result<()> {
    Err(Fault::usage("dead-letters ls is not built yet").into())
}

pub(super) async fn replay(_replay: cli::Replay, _settings: &Settings) -> anyhow::Result<()> {
    Err(Fault::usage("ingest replay is not built yet").into())
}
