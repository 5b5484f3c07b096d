//! Dead letters after they were written: listed, replayed once, expired, and too many of them.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array as _, AsArray as _};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use chrono::TimeDelta;
use ingest::ErrorKind;
use ingest::consume::{self, Options, Progress, Stop};
use ingest::letters::{self, Selection};
use ingest::replay::{self, Mode, Report};
use ingest::topic::{FieldKind, Format, TopicSpec};
use lakehouse::{Clock as _, Lake, ManualClock, REPLAY_COLUMN, StorageOptions, SystemClock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::scene::{Place, Scene};

/// `country` is a number in some of them: a letter as long as the topic says that it is text.
const PAYLOADS: [&str; 6] = [
    r#"{"event_id":"a"}"#,
    r#"{"event_id":"b","country":7}"#,
    "nonsense",
    r#"{"event_id":"c","country":8}"#,
    r#"{"event_id":"d"}"#,
    "[]",
];

fn lenient(topic: &TopicSpec) -> TopicSpec {
    let mut topic = topic.clone();
    topic.fields.iter_mut().filter(|field| field.name == "country").for_each(|field| field.kind = FieldKind::Any);
    topic
}

fn options(topic: &TopicSpec) -> replay::Options {
    replay::Options { topic: topic.clone(), selection: Selection::default(), payloads: None, mode: Mode::Commit }
}

async fn replay(scene: &Scene, options: replay::Options) -> Report {
    replay::run(&scene.lake().await, options).await.expect("replayed")
}

/// The rows that replays brought: place, index and event id, in the order of the places.
async fn replayed_rows(scene: &Scene) -> Vec<(Place, i32, Option<String>)> {
    let lake = scene.lake().await;
    let head = lake.table(&scene.topic.table).head().await.expect("a table");
    if !head.has_column(REPLAY_COLUMN) {
        return Vec::new();
    }
    let rows = lake.session_factory().context().read_table(head.provider()).expect("a table");
    let columns = ["_partition", "_offset", "_index", "event_id", REPLAY_COLUMN];
    let batches = rows.select_columns(&columns).expect("columns").collect().await.expect("rows");
    let mut found = Vec::new();
    for batch in &batches {
        let texts = |column: usize| batch.column(column).as_string::<i32>();
        for row in (0..batch.num_rows()).filter(|&row| texts(4).is_valid(row)) {
            let place = (
                batch.column(0).as_primitive::<Int32Type>().value(row),
                batch.column(1).as_primitive::<Int64Type>().value(row),
            );
            let id = texts(3).is_valid(row).then(|| texts(3).value(row).to_owned());
            found.push((place, batch.column(2).as_primitive::<Int32Type>().value(row), id));
        }
    }
    found.sort();
    found
}

async fn assert_whole(scene: &Scene) {
    let report = scene.lake().await.verify().await.expect("an audit");
    assert!(report.is_whole(), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_that_can_be_read_by_now_become_rows_once() {
    let scene = Scene::new(1).await;
    scene.produce(&PAYLOADS).await;
    scene.ingest_to_end().await.expect("six messages");
    let mended = lenient(&scene.topic);
    let dry = replay(&scene, replay::Options { mode: Mode::DryRun, ..options(&mended) }).await;
    assert_eq!((dry.selected, dry.replayed, dry.commits, dry.id), (4, 2, 0, None));
    assert_eq!(replayed_rows(&scene).await, vec![]);

    let first = replay(&scene, options(&mended)).await;
    assert_eq!((first.selected, first.replayed, first.already_there, first.commits), (4, 2, 0, 1));
    let reasons: Vec<_> = first.still_undecodable.iter().map(|(reason, of)| (reason.as_str(), of.letters)).collect();
    assert_eq!(reasons, [("not_json", 1), ("not_object", 1)]);
    let wanted = vec![((0, 1), 0, Some("b".to_owned())), ((0, 3), 0, Some("c".to_owned()))];
    assert_eq!(replayed_rows(&scene).await, wanted);
    assert_whole(&scene).await;

    let again = replay(&scene, options(&mended)).await;
    assert_eq!((again.replayed, again.already_there, again.commits, &again.id), (0, 2, 0, &None));
    assert_eq!(replayed_rows(&scene).await, wanted);
    // What came later is ingested as ever, with the settings of old and the column that it knows nothing of.
    scene.produce(&[r#"{"event_id":"e"}"#, "more nonsense"]).await;
    scene.ingest_to_end().await.expect("two more");
    assert_eq!(replayed_rows(&scene).await, wanted);
    assert_whole(&scene).await;

    let (lake, all) = (scene.lake().await, Selection::default());
    let listing = letters::list(&lake, std::slice::from_ref(&scene.topic), &all, 2).await.expect("listed");
    let counts: Vec<_> =
        listing.counts.iter().map(|count| (count.reason.as_str(), count.letters, count.replayed)).collect();
    assert_eq!(counts, [("not_json", 2, Some(0)), ("not_object", 1, Some(0)), ("wrong_type", 2, Some(2))]);
    let shown: Vec<_> = listing.samples.iter().map(|one| (one.offset, one.payload.to_string())).collect();
    assert_eq!(shown, [(7, "more nonsense".to_owned()), (5, "[]".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_selected_by_reason_place_and_time() {
    let scene = Scene::new(1).await;
    scene.produce(&PAYLOADS).await;
    scene.ingest_to_end().await.expect("six messages");
    let lake = scene.lake().await;
    let now = SystemClock.now();
    let all = || Selection::default();
    for (selection, wanted) in [
        (all(), vec![5, 3, 2, 1]),
        (Selection { reasons: vec!["not_json".to_owned(), "not_object".to_owned()], ..all() }, vec![5, 2]),
        (Selection { reasons: vec!["tombstone".to_owned()], ..all() }, vec![]),
        (Selection { offsets: vec![1..=2, 5..=9], ..all() }, vec![5, 2, 1]),
        (Selection { partitions: vec![1], ..all() }, vec![]),
        (Selection { partitions: vec![1, 0], ..all() }, vec![5, 3, 2, 1]),
        (Selection { topic: Some("other".to_owned()), ..all() }, vec![]),
        (Selection { since: Some(now - TimeDelta::hours(1)), until: Some(now), ..all() }, vec![5, 3, 2, 1]),
        (Selection { since: Some(now), ..all() }, vec![]),
        (Selection { until: Some(now - TimeDelta::hours(1)), ..all() }, vec![]),
    ] {
        let listing = letters::list(&lake, std::slice::from_ref(&scene.topic), &selection, 10).await.expect("listed");
        let found: Vec<i64> = listing.samples.iter().map(|one| one.offset).collect();
        let counted: u64 = listing.counts.iter().map(|count| count.letters).sum();
        assert_eq!((found, counted), (wanted.clone(), wanted.len() as u64), "{selection:?}");
        if selection.topic.is_none() {
            let dry = replay::Options { selection, mode: Mode::DryRun, ..options(&scene.topic) };
            assert_eq!(replay(&scene, dry).await.selected, counted);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn corrected_payloads_go_to_the_letters_that_they_name() {
    let scene = Scene::new(1).await;
    scene.produce(&PAYLOADS).await;
    scene.ingest_to_end().await.expect("six messages");
    let file = scene.lake_folder().join("payloads.jsonl");
    let with = |lines: &str| {
        std::fs::write(&file, lines).expect("written");
        replay::Options { payloads: Some(file.clone()), ..options(&scene.topic) }
    };
    let lake = scene.lake().await;
    for (lines, word) in [
        ("{\"partition\":0,\"offset\":2,\"payload\":{}}\n{\"partition\":0,\"offset\":4,\"payload\":{}}", "line 2"),
        ("{\"partition\":0,\"offset\":2,\"payload\":{}}\n{\"partition\":0,\"offset\":4", "line 2"),
    ] {
        let error = replay::run(&lake, with(lines)).await.expect_err("a bad line");
        assert_eq!(error.kind(), ErrorKind::BadConfig);
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(replayed_rows(&scene).await, vec![], "nothing was written");
    }
    let lines = "{\"partition\":0,\"offset\":2,\"index\":0,\"payload\":{\"event_id\":\"two\"}}\n\
                 {\"partition\":0,\"offset\":5,\"payload\":\"still wrong\"}\n";
    let report = replay(&scene, with(lines)).await;
    assert_eq!((report.selected, report.replayed), (2, 1));
    assert_eq!(report.still_undecodable["not_json"].examples[0].offset, 5);
    assert_eq!(replayed_rows(&scene).await, vec![((0, 2), 0, Some("two".to_owned()))]);
    // A place that is a row stays the row that it is.
    let report = replay(&scene, with(&lines.replace("two", "other"))).await;
    assert_eq!((report.replayed, report.already_there), (0, 1));
    assert_eq!(replayed_rows(&scene).await, vec![((0, 2), 0, Some("two".to_owned()))]);
    assert_whole(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_a_message_keeps_its_place_in_it() {
    let mut scene = Scene::new(1).await;
    scene.topic.format = Format::Ndjson;
    scene.produce(&["{\"event_id\":\"a\"}\nnonsense\n{\"event_id\":\"c\"}\n[]"]).await;
    scene.ingest_to_end().await.expect("one message");
    let file = scene.lake_folder().join("payloads.jsonl");
    let lines = "{\"partition\":0,\"offset\":0,\"index\":1,\"payload\":{\"event_id\":\"b\"}}\n\
                 {\"partition\":0,\"offset\":0,\"index\":3,\"payload\":\"{}\\n{}\"}\n";
    std::fs::write(&file, lines).expect("written");
    let report = replay(&scene, replay::Options { payloads: Some(file), ..options(&scene.topic) }).await;
    assert_eq!((report.selected, report.replayed), (2, 1), "{report}");
    let stays = &report.still_undecodable["several_events"].examples[0];
    assert_eq!((stays.offset, stays.index), (0, 3));
    assert_eq!(replayed_rows(&scene).await, vec![((0, 0), 1, Some("b".to_owned()))]);
    assert_whole(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replays_and_an_ingest_at_once_double_nothing() {
    let mut scene = Scene::new(2).await;
    let before = scene.simulate(2_000, 0.4).await;
    scene.ingest_to_end().await.expect("a first part");
    scene.simulate(2_000, 0.4).await;
    let mended = lenient_all(&scene.topic);
    let (one, two) = (scene.lake().await, scene.lake().await);
    let mut ingest = scene.start_ingest(scene.options(Stop::Never)).await;
    let (one, two) = tokio::join!(replay::run(&one, options(&mended)), replay::run(&two, options(&mended)));
    let (one, two) = (one.expect("replayed"), two.expect("replayed"));
    ingest.until(|progress| progress.lag == 0 && progress.partitions.len() == 2 && progress.events > 0).await;
    ingest.stop().await.expect("a quiet end");
    let rows = replayed_rows(&scene).await;
    assert_eq!(one.replayed + two.replayed, rows.len() as u64, "{one} {two}");
    let wrong_types = before.values().filter(|message| message["kind"] == "wrong_type").count();
    assert!(rows.len() >= wrong_types && wrong_types > 0, "{} of {wrong_types}", rows.len());
    let places: std::collections::BTreeSet<_> = rows.iter().map(|row| row.0).collect();
    assert_eq!(places.len(), rows.len(), "some are there twice");
    let rest = replay(&scene, options(&mended)).await;
    assert_eq!(rest.already_there, rows.len() as u64);
    assert_whole(&scene).await;
}

fn lenient_all(topic: &TopicSpec) -> TopicSpec {
    let mut topic = topic.clone();
    topic.fields.iter_mut().for_each(|field| field.kind = FieldKind::Any);
    topic
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_killed_is_finished_by_the_next() {
    let mut scene = Scene::new(1).await;
    scene.simulate(1_500, 0.5).await;
    scene.ingest_to_end().await.expect("ingested");
    let mended = lenient_all(&scene.topic);
    for round in 0..12_u64 {
        let (lake, options) = (scene.lake().await, options(&mended));
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move { replay::run(&lake, options).await });
        // Not a wait for something: another moment each time.
        tokio::time::sleep(Duration::from_millis(4 * round)).await;
        tasks.abort_all();
        while tasks.join_next().await.is_some() {}
        assert_whole(&scene).await;
    }
    replay(&scene, options(&mended)).await;
    let rows = replayed_rows(&scene).await;
    assert!(!rows.is_empty());
    let places: std::collections::BTreeSet<_> = rows.iter().map(|row| row.0).collect();
    assert_eq!(places.len(), rows.len(), "some are there twice");
    assert_whole(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_whose_rows_are_still_to_come_are_left_out() {
    let scene = Scene::new(1).await;
    scene.produce(&PAYLOADS).await;
    scene.ingest_to_end().await.expect("six messages");
    // What a crash between the two commits leaves, as far as it can: letters, and a table of rows that knows nothing of them.
    std::fs::remove_dir_all(scene.lake_folder().join("bronze/spotify_events")).expect("the table's folder");
    let lake = scene.lake().await;
    lake.table(&scene.topic.table).ensure(&scene.topic.rows_spec()).await.expect("made");
    let mended = lenient(&scene.topic);
    let report = replay(&scene, options(&mended)).await;
    assert_eq!((report.selected, report.replayed, report.not_yet_consumed), (4, 0, 4), "{report}");
    assert!(report.to_string().contains("4 left out"), "{report}");
    scene.ingest_to_end().await.expect("the rest");
    assert_eq!(replay(&scene, options(&mended)).await.replayed, 2);
    assert_whole(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_row_is_the_row_that_it_should_have_been() {
    let scene = Scene::new(1).await;
    scene.produce(&PAYLOADS[..2]).await;
    scene.ingest_to_end().await.expect("two messages");
    replay(&scene, options(&lenient(&scene.topic))).await;
    let lake = scene.lake().await;
    let head = lake.table(&scene.topic.table).head().await.expect("a table");
    let rows = lake.session_factory().context().read_table(head.provider()).expect("a table");
    let batches = rows.collect().await.expect("rows");
    let batch = arrow::compute::concat_batches(&batches[0].schema(), &batches).expect("one batch");
    let offsets = batch.column_by_name("_offset").expect("a column").as_primitive::<Int64Type>();
    let row = (0..batch.num_rows()).find(|&row| offsets.value(row) == 1).expect("the replayed row");
    let text = |name: &str| batch.column_by_name(name).expect("a column").as_string::<i32>().value(row).to_owned();
    assert_eq!((text("event_id"), text("country"), text(REPLAY_COLUMN).len()), ("b".to_owned(), "7".to_owned(), 36));
    let times = batch.column_by_name("_kafka_timestamp").expect("a column").as_primitive::<TimestampMicrosecondType>();
    let other = 1 - row;
    assert!(times.is_valid(row) && (times.value(row) - times.value(other)).abs() < 60_000_000);
}

/// The scene's lake with a clock that is turned by hand.
async fn lake_at(scene: &Scene, clock: &Arc<ManualClock>) -> Lake {
    std::fs::create_dir_all(scene.lake_folder()).expect("a folder");
    let url = Url::from_directory_path(scene.lake_folder()).expect("an absolute path");
    Lake::open(&url, &StorageOptions::default(), clock.clone()).await.expect("a lake")
}

async fn ingest_at(scene: &Scene, topic: &TopicSpec, clock: &Arc<ManualClock>) {
    let options = Options { topic: topic.clone(), ..scene.options(Stop::AtEnd) };
    let (progress, _) = watch::channel(Progress::default());
    let lake = lake_at(scene, clock).await;
    consume::run(&lake, options, progress, CancellationToken::new()).await.expect("ingested");
}

fn files_of(scene: &Scene, day: &str) -> usize {
    let folder = scene.lake_folder().join("bronze/dead_letters").join(format!("_ingest_date={day}"));
    std::fs::read_dir(folder).map_or(0, |entries| {
        let is_data = |entry: &std::fs::DirEntry| entry.path().extension().is_some_and(|ending| ending == "parquet");
        entries.flatten().filter(is_data).count()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn old_letters_expire_and_the_account_still_adds_up() {
    let scene = Scene::new(1).await;
    let clock = Arc::new(ManualClock::new("2026-03-01T10:00:00Z".parse().expect("a time")));
    let topic = TopicSpec { dead_letter_days: Some(2), ..scene.topic.clone() };
    scene.produce(&PAYLOADS).await;
    ingest_at(&scene, &topic, &clock).await;
    let report = replay::run(&lake_at(&scene, &clock).await, options(&lenient(&topic))).await.expect("replayed");
    assert_eq!(report.replayed, 2);
    clock.advance(TimeDelta::days(2));
    scene.produce(&["later nonsense"]).await;
    ingest_at(&scene, &topic, &clock).await;
    assert_eq!(scene.places().await.1.len(), 5, "two days are not over");
    clock.advance(TimeDelta::days(1));
    ingest_at(&scene, &TopicSpec { name: topic.name.clone(), ..scene.topic.clone() }, &clock).await;
    assert_eq!(scene.places().await.1.len(), 5, "nobody asked for it");

    ingest_at(&scene, &topic, &clock).await;
    assert_eq!(scene.places().await.1, [(0, 6)]);
    assert_eq!(files_of(&scene, "2026-03-01"), 1, "somebody may still be reading it");
    let report = scene.lake().await.verify().await.expect("an audit");
    assert!(report.is_whole(), "{report}");
    let one = &report.partitions[0];
    assert_eq!((one.rows, one.dead_letters, one.expired_letters), (2, 1, 4), "{report}");
    clock.advance(TimeDelta::minutes(11));
    ingest_at(&scene, &topic, &clock).await;
    assert_eq!((files_of(&scene, "2026-03-01"), files_of(&scene, "2026-03-03")), (0, 1));
    assert_whole(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_letters_stop_it_before_they_are_committed() {
    let mut scene = Scene::new(1).await;
    let good = scene.simulate(1_200, 0.0).await;
    let mut topic: TopicSpec = scene.topic.clone();
    topic.max_dead_letter_ratio = Some(0.5.try_into().expect("a share"));
    scene.topic = topic.clone();
    scene.ingest_to_end().await.expect("all good");
    // A producer changes a type: what is written from then on can't be read.
    let changed: Vec<String> = (0..1_300).map(|number| format!(r#"{{"event_id":"{number}","country":7}}"#)).collect();
    scene.produce(&changed.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let error = scene.ingest_to_end().await.expect_err("too many");
    assert_eq!(error.kind(), ErrorKind::BadData);
    for word in ["spotify_events", "max_dead_letter_ratio = 0.5", "wrong_type", "partition 0 offset 1", "country"] {
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
    let (_, letters) = scene.places().await;
    assert!(letters.len() <= 600, "{} letters came through", letters.len());
    // Started again it stops at the same place: what was before is in the ledger.
    scene.ingest_to_end().await.expect_err("still too many");
    assert_eq!(scene.places().await.1.len(), letters.len());

    scene.topic = lenient(&topic);
    scene.ingest_to_end().await.expect("mended");
    let (rows, after) = scene.places().await;
    assert_eq!((rows.len() + after.len(), after.len()), (good.len() + 1_300, letters.len()));
    assert_whole(&scene).await;
}
