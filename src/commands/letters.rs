//! `dead-letters ls` and `ingest replay`.

use chrono::{DateTime, SecondsFormat, Utc};
use ingest::letters::{self, Selection};
use ingest::replay;

use crate::cli;
use crate::output;
use crate::pipeline;
use crate::settings::Settings;
use crate::topics;

pub(super) async fn ls(
    topic: Option<String>,
    letters: cli::Letters,
    limit: u32,
    settings: &Settings,
) -> anyhow::Result<()> {
    let lake = pipeline::open_lake(settings).await?;
    let topics = settings.topics.as_slice();
    let listing = letters::list(&lake, topics, &selection(topic, letters), limit as usize).await?;
    if settings.json {
        return output::print_json(&listing);
    }
    if listing.counts.is_empty() {
        return output::print("no dead letters");
    }
    let rows: Vec<_> = listing
        .counts
        .iter()
        .map(|count| {
            vec![
                count.topic.clone(),
                count.reason.clone(),
                count.letters.to_string(),
                count.replayed.map_or_else(|| "?".to_owned(), |replayed| replayed.to_string()),
                time(count.first),
                time(count.last),
            ]
        })
        .collect();
    output::table(&["topic", "reason", "letters", "replayed", "first", "last"], &rows)?;
    listing.samples.iter().try_for_each(|sample| output::print(&format!("\n{sample}")))
}

pub(super) async fn replay(replay: cli::Replay, settings: &Settings) -> anyhow::Result<()> {
    let lake = pipeline::open_lake(settings).await?;
    let options = replay::Options {
        topic: topics::only(settings)?.clone(),
        selection: selection(None, replay.letters),
        payloads: replay.payloads,
        mode: if replay.dry_run { replay::Mode::DryRun } else { replay::Mode::Commit },
    };
    output::result(&replay::run(&lake, options).await?, settings.json)
}

fn selection(topic: Option<String>, letters: cli::Letters) -> Selection {
    let cli::Letters { reason, partition, offsets, since, until } = letters;
    Selection { topic, reasons: reason, partitions: partition, offsets, since, until }
}

fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}
