//! Every message lands in one table, once: across restarts, kills, two owners, and a crash between the two commits.

use std::collections::BTreeMap;
use std::time::Duration;

use ingest::consume::{Ended, Options, Sharing, Stop};
use ingest::topic::TopicSpec;

use crate::scene::Scene;

#[tokio::test(flavor = "multi_thread")]
async fn each_message_is_a_row_or_a_letter_across_restarts() {
    let mut scene = Scene::new(3).await;
    let mut delivered = scene.simulate(3_000, 0.2).await;
    let mut first = scene.start_ingest(scene.options(Stop::Never)).await;
    first.until(|progress| progress.events > 700).await;
    let summary = first.stop().await.expect("a quiet end");
    assert_eq!(summary.ended, Ended::Cancelled);
    delivered.extend(scene.simulate(1_000, 0.2).await);
    let rest = scene.ingest_to_end().await.expect("the rest");
    assert_eq!(rest.ended, Ended::AtEnd);
    let taken = summary.rows + summary.dead_letters + rest.rows + rest.dead_letters;
    assert_eq!((taken, rest.holes, rest.lost), (4_000, 0, 0));
    scene.assert_accounted(&delivered).await;
    let nothing = scene.ingest_to_end().await.expect("nothing is left");
    assert_eq!((nothing.rows, nothing.dead_letters, nothing.commits), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_nothing_is_lost_or_doubled() {
    let mut scene = Scene::new(2).await;
    let mut delivered = BTreeMap::new();
    for round in 0..10_u64 {
        delivered.extend(scene.simulate(400, 0.1).await);
        let mut ingest = scene.start_ingest(Options { flush_rows: 40, ..scene.options(Stop::Never) }).await;
        if round % 2 == 0 {
            ingest.until(|progress| !progress.partitions.is_empty()).await;
        } else {
            ingest.until(|progress| progress.events > 0).await;
        }
        // Not a wait for something: a moment in the middle of a commit, another one each time.
        tokio::time::sleep(Duration::from_micros(1_700 * round)).await;
        ingest.kill();
    }
    scene.ingest_to_end().await.expect("the rest");
    scene.assert_accounted(&delivered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_owners_of_the_same_partitions_double_nothing() {
    let mut scene = Scene::new(2).await;
    let delivered = scene.simulate(3_000, 0.1).await;
    let mut one = scene.start_ingest(scene.options(Stop::AtEnd)).await;
    let mut two = scene.start_ingest(scene.options(Stop::AtEnd)).await;
    let (one, two) = (one.ended().await.expect("an end"), two.ended().await.expect("an end"));
    scene.assert_accounted(&delivered).await;
    assert_eq!(one.rows + one.dead_letters + two.rows + two.dead_letters, 3_000, "{one:?} {two:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_shares_the_partitions_and_takes_over() {
    let mut scene = Scene::new(4).await;
    let mut delivered = scene.simulate(2_000, 0.1).await;
    let options = Options { sharing: Sharing::Group, ..scene.options(Stop::Never) };
    let mut one = scene.start_ingest(options.clone()).await;
    one.until(|progress| progress.events > 0).await;
    let mut two = scene.start_ingest(options).await;
    two.until(|progress| !progress.partitions.is_empty()).await;
    delivered.extend(scene.simulate(2_000, 0.1).await);
    two.until(|progress| progress.events > 0).await;
    one.stop().await.expect("a quiet end");
    delivered.extend(scene.simulate(500, 0.1).await);
    two.until(|progress| progress.partitions.len() == 4 && progress.lag == 0).await;
    let places: i64 = two.progress.borrow().partitions.values().map(|one| one.next_offset).sum();
    assert_eq!(places, 4_500);
    two.stop().await.expect("a quiet end");
    scene.assert_accounted(&delivered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_a_partition_waits_for_its_turn() {
    let mut scene = Scene::new(1).await;
    let delivered = scene.simulate(500, 0.1).await;
    let group = |client: &str, stop| {
        let mut options = Options { sharing: Sharing::Group, ..scene.options(stop) };
        options.properties.set("client.id", client);
        options
    };
    // The group's leader gives the one partition to the first of the names.
    let mut one = scene.start_ingest(group("a", Stop::Never)).await;
    one.until(|progress| progress.events == 500).await;
    // All is read that it was to read, but not by itself, and the other may die before its last commit.
    let silence_max = Duration::from_secs(8);
    let mut two = scene.start_ingest(Options { silence_max, ..group("b", Stop::AtEnd) }).await;
    let early = tokio::time::timeout(silence_max + Duration::from_secs(4), two.ended()).await;
    assert!(early.is_err(), "{early:?}");
    one.stop().await.expect("a quiet end");
    assert_eq!(two.ended().await.expect("an end").ended, Ended::AtEnd);
    scene.assert_accounted(&delivered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_committed_without_their_rows_are_not_repeated() {
    let mut scene = Scene::new(2).await;
    let delivered = scene.simulate(1_500, 0.3).await;
    scene.ingest_to_end().await.expect("a first time");
    let (_, letters) = scene.places().await;
    // What a crash between the two commits leaves, as far as it can: letters, and a table of rows that knows nothing.
    std::fs::remove_dir_all(scene.lake_folder().join("bronze/spotify_events")).expect("the table's folder");
    let again = scene.ingest_to_end().await.expect("a second time");
    assert_eq!(again.dead_letters, letters.len() as u64);
    scene.assert_accounted(&delivered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_letter_stays_one_and_a_new_one_is_added_beside_it() {
    let mut scene = Scene::new(1).await;
    let plain = scene.topic.clone();
    scene.produce(&[r#"{"event_id":"a"}"#, "nonsense", r#"{"event_id":"much longer than the others"}"#]).await;
    scene.topic = TopicSpec { payload_bytes_max: 30, ..plain.clone() };
    scene.ingest_to_end().await.expect("the long one is a letter");
    let (rows, mut letters) = scene.places().await;
    letters.sort_unstable();
    assert_eq!((rows, letters), (vec![(0, 0)], vec![(0, 1), (0, 2)]));
    std::fs::remove_dir_all(scene.lake_folder().join("bronze/spotify_events")).expect("the table's folder");
    scene.topic = plain;
    scene.ingest_to_end().await.expect("it could be read by now");
    let (rows, mut letters) = scene.places().await;
    letters.sort_unstable();
    assert_eq!((rows, letters), (vec![(0, 0)], vec![(0, 1), (0, 2)]));
    std::fs::remove_dir_all(scene.lake_folder().join("bronze/spotify_events")).expect("the table's folder");
    scene.topic.payload_bytes_max = 10;
    scene.ingest_to_end().await.expect("and now none can");
    let (rows, mut letters) = scene.places().await;
    letters.sort_unstable();
    assert_eq!((rows, letters), (vec![], vec![(0, 0), (0, 1), (0, 2)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn small_files_are_put_together_beside_the_writer() {
    let mut scene = Scene::new(2).await;
    let options = Options {
        flush_rows: 20,
        flush_interval: Duration::from_millis(20),
        compaction_interval: Duration::from_millis(50),
        ..scene.options(Stop::Never)
    };
    let mut ingest = scene.start_ingest(options).await;
    let mut delivered = BTreeMap::new();
    for _ in 0..5 {
        delivered.extend(scene.simulate(300, 0.2).await);
    }
    ingest.until(|progress| progress.events == 1_500).await;
    let table = scene.lake().await.table(&scene.topic.table);
    let put_together = async || {
        let commits = table.history(1_000).await.expect("a history");
        commits.iter().any(|commit| commit.operation == "OPTIMIZE")
            && table.head().await.expect("a table").files.len() < commits.len() / 2
    };
    tokio::time::timeout(crate::scene::PATIENCE, async {
        while !put_together().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("in time");
    ingest.stop().await.expect("a quiet end");
    scene.assert_accounted(&delivered).await;
}
