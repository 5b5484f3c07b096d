//! Messages that hold several rows: each line lands once, and the account of offsets holds.

use std::collections::BTreeMap;

use ingest::topic::{Format, TopicSpec};

use crate::scene::{Place, Scene};

const TWO: &str = "{\"event_id\":\"a\"}\n{\"event_id\":\"b\"}\n";
const MIXED: &str = "{\"event_id\":\"c\"}\nnonsense\n\n{\"event_id\":7}\r\n{\"event_id\":\"d\"}";
const NO_LINE: &str = "\n\r\n";

/// How often each place is there.
fn counted(places: Vec<Place>) -> BTreeMap<i64, usize> {
    let mut counts = BTreeMap::new();
    places.into_iter().for_each(|(_, offset)| *counts.entry(offset).or_default() += 1);
    counts
}

async fn check(scene: &Scene, rows: &[(i64, usize)], letters: &[(i64, usize)]) {
    let (found_rows, found_letters) = scene.places().await;
    assert_eq!(counted(found_rows), rows.iter().copied().collect(), "rows");
    assert_eq!(counted(found_letters), letters.iter().copied().collect(), "letters");
    let report = scene.lake().await.verify().await.expect("an audit");
    assert!(report.faults.is_empty(), "{report:?}");
}

async fn scene_of_lines() -> Scene {
    let mut scene = Scene::new(1).await;
    scene.topic = TopicSpec { format: Format::Ndjson, ..scene.topic };
    scene
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_lands_once_and_each_message_is_counted_once() {
    let scene = scene_of_lines().await;
    scene.produce(&[TWO, MIXED]).await;
    let first = scene.ingest_to_end().await.expect("a first run");
    assert_eq!((first.rows, first.dead_letters), (4, 2));
    scene.produce(&[NO_LINE, "{}", TWO]).await;
    let second = scene.ingest_to_end().await.expect("a second run");
    assert_eq!((second.rows, second.dead_letters, second.next_offsets[&0]), (3, 1, 5));
    check(&scene, &[(0, 2), (1, 2), (3, 1), (4, 2)], &[(1, 2), (2, 1)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_recorded_as_letters_are_not_repeated() {
    let scene = scene_of_lines().await;
    scene.produce(&[MIXED, NO_LINE]).await;
    scene.ingest_to_end().await.expect("a first time");
    // What a crash between the two commits leaves: letters, and a table of rows that knows nothing.
    std::fs::remove_dir_all(scene.lake_folder().join("bronze/spotify_events")).expect("the table's folder");
    let again = scene.ingest_to_end().await.expect("a second time");
    assert_eq!((again.rows, again.dead_letters), (2, 3));
    check(&scene, &[(0, 2)], &[(0, 2), (1, 1)]).await;
}
