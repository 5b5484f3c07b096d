//! What silver and gold must hold, computed from the events alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, SubsecRound as _, Timelike as _, Utc};
use lakehouse::{Lake, Publication, TableName, TableVersion};

use crate::lake::{Event, head, rows};

const SILVER: [&str; 12] = [
    "event_id",
    "user_id",
    "song_id",
    "artist_name",
    "song_name",
    "event_type",
    "device_type",
    "country",
    "event_timestamp",
    "event_date",
    "_partition",
    "_offset",
];
const TOP_SONGS: [&str; 5] = ["song_id", "song_name", "artist_name", "total_plays", "total_skips"];
const ENGAGEMENT: [&str; 8] = ["user_id", "device_type", "country", "day", "plays", "pauses", "skips", "playlist_adds"];
const BY_MINUTE: [&str; 9] =
    ["minute", "song_id", "song_name", "artist_name", "device_type", "country", "event_type", "day", "events"];

/// The rows of each table as text, sorted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tables {
    pub(crate) silver: Vec<String>,
    pub(crate) top_songs: Vec<String>,
    pub(crate) engagement: Vec<String>,
    pub(crate) by_minute: Vec<String>,
}

impl Tables {
    /// What must be there after all of `events`, in whatever order they came.
    pub(crate) fn expected(events: &[Event]) -> Self {
        let mut silver: BTreeMap<(String, String), (DateTime<Utc>, &Event)> = BTreeMap::new();
        for event in events {
            let Some((key, timestamp)) = key(event) else { continue };
            let place = |event: &Event| (event.kafka_timestamp, event.partition, event.offset);
            silver
                .entry(key)
                .and_modify(|(kept_timestamp, kept)| {
                    if place(event) < place(kept) {
                        (*kept_timestamp, *kept) = (timestamp, event);
                    }
                })
                .or_insert((timestamp, event));
        }
        let kept: Vec<(DateTime<Utc>, &Event)> = silver.into_values().collect();
        Self {
            silver: sorted(kept.iter().map(|(timestamp, event)| silver_row(*timestamp, event))),
            top_songs: counted(&kept, |_, event| song(event), |event| flags(event, &["play", "skip"])),
            engagement: counted(
                &kept,
                |timestamp, event| {
                    format!("{} | {} | DE | {}", text(&event.user_id), device(event), timestamp.date_naive())
                },
                |event| flags(event, &["play", "pause", "skip", "add_to_playlist"]),
            ),
            by_minute: counted(
                &kept,
                |timestamp, event| {
                    let minute = timestamp.with_second(0).expect("every minute begins").trunc_subsecs(0);
                    let (song, device, kind) = (song(event), device(event), event.event_type);
                    format!("{} | {song} | {device} | DE | {kind} | {}", spelled(minute), timestamp.date_naive())
                },
                |_| vec![1],
            ),
        }
    }

    /// What is there, at the heads.
    pub(crate) async fn at_heads(lake: &Lake) -> Self {
        let names = ["silver.spotify_silver", "gold.top_songs", "gold.user_engagement", "gold.listening_by_minute"];
        let mut versions = Vec::new();
        for name in names {
            versions.push(head(lake, name).await);
        }
        Self::of(lake, &versions).await
    }

    /// What a publication shows.
    pub(crate) async fn published(lake: &Lake, publication: &Publication) -> Self {
        let names = ["silver.spotify_silver", "gold.top_songs", "gold.user_engagement", "gold.listening_by_minute"];
        let mut versions = Vec::new();
        for name in names {
            let name: TableName = name.parse().expect("a valid name");
            let pinned = &publication.tables[&name];
            versions.push(lake.table(&name).at(pinned.version).await.expect("what is published is kept"));
        }
        Self::of(lake, &versions).await
    }

    async fn of(lake: &Lake, versions: &[Arc<TableVersion>]) -> Self {
        Self {
            silver: rows(lake, &versions[0], &SILVER).await,
            top_songs: rows(lake, &versions[1], &TOP_SONGS).await,
            engagement: rows(lake, &versions[2], &ENGAGEMENT).await,
            by_minute: rows(lake, &versions[3], &BY_MINUTE).await,
        }
    }
}

/// The key under which an event stands once, and its time; nothing for an event that does not count.
fn key(event: &Event) -> Option<((String, String), DateTime<Utc>)> {
    event.user_id.as_ref()?;
    event.song_id.as_ref()?;
    let timestamp: DateTime<Utc> = DateTime::parse_from_rfc3339(event.timestamp.as_ref()?).ok()?.into();
    Some(((event.event_id.clone()?, timestamp.date_naive().to_string()), timestamp))
}

fn silver_row(timestamp: DateTime<Utc>, event: &Event) -> String {
    let (id, user) = (text(&event.event_id), text(&event.user_id));
    let (song, artist, name) = (text(&event.song_id), artist(event), name(event));
    let (kind, device, day) = (event.event_type, device(event), timestamp.date_naive());
    let (partition, offset) = (event.partition, event.offset);
    format!(
        "{id} | {user} | {song} | {artist} | {name} | {kind} | {device} | DE | {} | {day} | {partition} | {offset}",
        spelled(timestamp)
    )
}

fn counted(
    kept: &[(DateTime<Utc>, &Event)],
    group: impl Fn(DateTime<Utc>, &Event) -> String,
    count: impl Fn(&Event) -> Vec<u64>,
) -> Vec<String> {
    let mut groups: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (timestamp, event) in kept {
        let counts = count(event);
        let sums = groups.entry(group(*timestamp, event)).or_insert_with(|| vec![0; counts.len()]);
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    sorted(groups.into_iter().map(|(group, sums)| {
        let sums: Vec<String> = sums.iter().map(ToString::to_string).collect();
        format!("{group} | {}", sums.join(" | "))
    }))
}

fn flags(event: &Event, kinds: &[&str]) -> Vec<u64> {
    kinds.iter().map(|kind| u64::from(event.event_type == *kind)).collect()
}

fn song(event: &Event) -> String {
    format!("{} | {} | {}", text(&event.song_id), name(event), artist(event))
}

fn name(event: &Event) -> String {
    format!("name of {}", text(&event.song_id))
}

fn artist(event: &Event) -> String {
    format!("artist of {}", text(&event.song_id))
}

fn device(event: &Event) -> &'static str {
    event.device_type.unwrap_or("∅")
}

fn text(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or("∅")
}

/// As Arrow prints it: no more digits of a second than there are.
fn spelled(timestamp: DateTime<Utc>) -> String {
    timestamp.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
}

fn sorted(rows: impl Iterator<Item = String>) -> Vec<String> {
    let mut rows: Vec<String> = rows.collect();
    rows.sort();
    rows
}
