//! All topics of one process: what the ingest of each is started with, how they run side by side, and what they tell.
//!
//! Each topic has a consumer, tables and a ledger of its own; nothing is shared but the memory, of which each gets its part.

use std::collections::BTreeMap;

use anyhow::Context as _;
use flight_server::console::IngestNow;
use ingest::consume::{self, Progress, Summary};
use ingest::kafka::{READ_AHEAD, READ_AHEAD_KBYTES};
use ingest::topic::TopicSpec;
use lakehouse::Lake;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::output::Fault;
use crate::settings::Settings;

/// However many topics there are, each has so much room for a batch: many tiny commits cost more than the memory.
const FLUSH_BYTES_MIN: usize = 4 << 20;
/// The same for what its consumer reads ahead.
const READ_AHEAD_KBYTES_MIN: usize = 1_024;

/// What the ingest of each topic is started with, whoever starts it.
pub(crate) fn ingest_options(settings: &Settings, brokers: &str) -> Vec<consume::Options> {
    settings.topics.iter().map(|topic| options_of(settings, topic, brokers)).collect()
}

fn options_of(settings: &Settings, topic: &TopicSpec, brokers: &str) -> consume::Options {
    let options = consume::Options::new(brokers, topic.clone());
    let sharing = if settings.group.is_some() { consume::Sharing::Group } else { consume::Sharing::Alone };
    let mut properties = settings.kafka_properties.clone();
    let read_ahead = share(READ_AHEAD_KBYTES, settings.topics.len(), READ_AHEAD_KBYTES_MIN);
    properties.set_default(READ_AHEAD, read_ahead.to_string());
    consume::Options {
        group: settings.group.clone().unwrap_or_else(|| options.group.clone()),
        sharing,
        flush_interval: settings.flush_interval,
        flush_rows: settings.flush_rows,
        flush_bytes: share(settings.flush_bytes, settings.topics.len(), FLUSH_BYTES_MIN),
        accepted_gaps: settings.accepted_gaps.clone(),
        properties,
        ..options
    }
}

/// The topic, for commands that deal with one.
pub(crate) fn only(settings: &Settings) -> anyhow::Result<&TopicSpec> {
    if let [topic] = settings.topics.as_slice() {
        return Ok(topic);
    }
    let names = settings.topics.iter().map(|topic| topic.name.as_str()).collect::<Vec<_>>().join(", ");
    Err(Fault::usage(format!("which of the topics {names}? name one with --topic")).into())
}

/// One topic's part of what all may take together, but not less than makes sense.
fn share(all: usize, topics: usize, least: usize) -> usize {
    (all / topics.max(1)).max(least).min(all)
}

/// The topic that simulated events fit, if there is one.
pub(crate) fn simulated(topics: &[TopicSpec]) -> Option<&TopicSpec> {
    topics.iter().find(|topic| topic.takes_bundled_events())
}

/// How the ingest of one topic is doing.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    pub(crate) topic: String,
    pub(crate) progress: watch::Receiver<Progress>,
}

/// Runs the ingests side by side until each has ended, or until the first one fails, which ends the others.
pub(crate) async fn run_all(
    lake: &Lake,
    all: Vec<consume::Options>,
    token: CancellationToken,
) -> anyhow::Result<BTreeMap<String, Summary>> {
    let work = token.child_token();
    let mut tasks = JoinSet::new();
    for options in all {
        let (lake, stop, topic) = (lake.clone(), work.clone(), options.topic.name.clone());
        tasks.spawn(async move {
            let (progress, _) = watch::channel(Progress::default());
            (topic, consume::run(&lake, options, progress, stop).await)
        });
    }
    let mut summaries = BTreeMap::new();
    let mut first_error = None;
    while let Some(ended) = tasks.join_next().await {
        let failure = match ended {
            Ok((topic, Ok(summary))) => {
                summaries.insert(topic, summary);
                continue;
            }
            Ok((topic, Err(error))) => Err(error).with_context(|| stopped(&topic)),
            Err(panic) => Err(Fault::found(format!("a part of the program broke: {panic}")).into()),
        };
        work.cancel();
        first_error.get_or_insert(failure);
    }
    first_error.unwrap_or(Ok(summaries))
}

/// What is said of an ingest that failed.
pub(crate) fn stopped(topic: &str) -> String {
    format!("ingest of topic {topic} stopped")
}

/// How all ingests are doing together.
pub(crate) fn together(all: &[Watched]) -> Progress {
    let mut sum = Progress::default();
    let mut waiting = Vec::new();
    for Watched { topic, progress } in all {
        let now = progress.borrow();
        sum.events += now.events;
        sum.dead_letters += now.dead_letters;
        sum.events_per_second += now.events_per_second;
        sum.lag += now.lag;
        waiting.extend(now.waiting_for.as_ref().map(|what| match all.len() {
            1 => what.clone(),
            _ => format!("{topic}: {what}"),
        }));
    }
    sum.waiting_for = Some(waiting.join("; ")).filter(|text| !text.is_empty());
    sum
}

/// How each is doing, where there are several: `orders: 7 events, lag 0; plays: …`.
pub(crate) fn apart(all: &[Watched]) -> Option<String> {
    let one = |Watched { topic, progress }: &Watched| {
        let now = progress.borrow();
        format!("{topic}: {} events, lag {}", now.events, now.lag)
    };
    (all.len() > 1).then(|| all.iter().map(one).collect::<Vec<_>>().join("; "))
}

/// Tells the doors what the ingests know, in their own words, until the token is cancelled.
pub(crate) async fn relay(all: Vec<Watched>, told: watch::Sender<Vec<IngestNow>>, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    for (index, mut watched) in all.into_iter().enumerate() {
        let (told, stop) = (told.clone(), stop.clone());
        told.send_modify(|all| all.push(IngestNow::default()));
        tasks.spawn(async move {
            // Ingest that has ended has nothing more to tell.
            while let Some(Ok(())) = stop.run_until_cancelled(watched.progress.changed()).await {
                let progress = watched.progress.borrow_and_update().clone();
                let ends = progress.partitions.iter().map(|(&partition, at)| (partition, at.end_offset));
                let now = IngestNow {
                    topic: watched.topic.clone(),
                    end_offsets: ends.collect(),
                    waiting_for: progress.waiting_for,
                };
                told.send_modify(|all| all[index] = now);
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(topic: &str, progress: Progress) -> Watched {
        Watched { topic: topic.to_owned(), progress: watch::channel(progress).1 }
    }

    #[test]
    fn memory_is_shared_out() {
        assert_eq!(share(48 << 20, 1, FLUSH_BYTES_MIN), 48 << 20);
        assert_eq!(share(48 << 20, 3, FLUSH_BYTES_MIN), 16 << 20);
        assert_eq!(share(48 << 20, 100, FLUSH_BYTES_MIN), FLUSH_BYTES_MIN);
        assert_eq!(share(1_000, 2, FLUSH_BYTES_MIN), 1_000, "what somebody set so low stays as it is");
    }

    #[test]
    fn several_topics_are_told_of_by_name() {
        let waiting = Progress { events: 5, lag: 2, waiting_for: Some("the store".to_owned()), ..Progress::default() };
        let going = Progress { events: 1, dead_letters: 1, lag: 3, ..Progress::default() };
        let one = [watched("plays", waiting)];
        assert_eq!((together(&one).waiting_for.as_deref(), apart(&one)), (Some("the store"), None));
        let all = [one[0].clone(), watched("orders", going)];
        let sum = together(&all);
        assert_eq!((sum.events, sum.dead_letters, sum.lag), (6, 1, 5));
        assert_eq!(sum.waiting_for.as_deref(), Some("plays: the store"));
        assert_eq!(apart(&all).as_deref(), Some("plays: 5 events, lag 2; orders: 1 events, lag 3"));
    }
}
