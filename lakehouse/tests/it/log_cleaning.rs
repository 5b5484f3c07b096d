//! Old log entries go, and nothing that they said is lost.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta};
use lakehouse::{
    Changes, Cleaner, DEFAULT_GROUP, Lake, ManualClock, Outcome, PinnedTable, StorageOptions, Table, TableName,
};
use url::Url;

use crate::support::{commit_of, ids, numbers, spec};

/// A lake on disk, at a time that tests set.
struct Scene {
    folder: tempfile::TempDir,
    clock: Arc<ManualClock>,
}

fn things() -> TableName {
    TableName::new("gold", "things")
}

impl Scene {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::new(DateTime::from_timestamp(1_800_000_000, 0).expect("a time")));
        Self { folder: tempfile::tempdir().expect("a temporary folder"), clock }
    }

    /// The lake, as one more process opens it.
    async fn open(&self) -> Lake {
        let url = Url::from_directory_path(self.folder.path()).expect("an absolute path");
        Lake::open(&url, &StorageOptions::default(), self.clock.clone()).await.expect("opens")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("gold/things/_delta_log")
    }

    /// The versions whose files of that kind lie in the log.
    fn versions(&self, kind: &str) -> Vec<u64> {
        let named = std::fs::read_dir(self.log()).expect("there").map(|file| file.expect("listed").file_name());
        let numbers = named.filter_map(|name| name.to_str()?.strip_suffix(kind)?.parse().ok());
        let mut numbers: Vec<u64> = numbers.collect();
        numbers.sort_unstable();
        numbers
    }
}

/// Adds a row with each of these ids, one commit each.
async fn add(lake: &Lake, rows: std::ops::Range<i64>) -> Table {
    let table = lake.table(&things());
    table.ensure(&spec()).await.expect("made");
    for id in rows {
        let commit = commit_of(&table, [id], "a", id + 1).await;
        let version = table.ledger(&["a".to_owned()]).await.expect("read").version;
        assert!(matches!(table.append(version, commit).await.expect("answered"), Outcome::Committed(_)));
    }
    lake.settle().await;
    table
}

async fn clean(lake: &Lake) -> u64 {
    let mut cleaner = Cleaner::new(lake.clone()).keeping_log(TimeDelta::zero());
    cleaner.clean().await.expect("cleaned").log_entries
}

async fn assert_whole(lake: &Lake) {
    let report = lake.verify().await.expect("verified");
    assert!(report.is_whole(), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_begins_at_a_checkpoint_and_says_what_it_said() {
    let scene = Scene::new();
    let lake = scene.open().await;
    let table = add(&lake, 0..430).await;
    assert_eq!(clean(&lake).await, 400);
    assert_eq!(scene.versions(".json"), (400..=430).collect::<Vec<_>>());
    assert_eq!(scene.versions(".checkpoint.parquet"), [400]);
    assert_eq!(clean(&lake).await, 0, "what is left is needed");

    let again = scene.open().await;
    let reopened = again.table(&things());
    assert_eq!(ids(&again, &reopened).await, (0..430).collect::<Vec<_>>());
    let ledger = reopened.ledger(&["a".to_owned(), "b".to_owned()]).await.expect("read");
    assert_eq!((ledger.version, ledger.entries), (430, BTreeMap::from([("a".to_owned(), 430)])));
    let history = reopened.history(1_000).await.expect("read");
    assert_eq!(history.len(), 431);
    let told = history.iter().map(|entry| entry.rows_added()).collect::<Vec<_>>();
    assert_eq!(told, [vec![1; 430], vec![0]].concat(), "archived or not");
    assert_eq!(history[300].transactions, BTreeMap::from([("a".to_owned(), 130)]));
    let changes = reopened.changes(Some(100), 430).await.expect("read");
    assert!(matches!(changes, Changes::Rewritten { .. }), "{changes:?}");
    let changes = reopened.changes(Some(410), 430).await.expect("read");
    let Changes::Appended { files } = changes else { panic!("{changes:?}") };
    assert_eq!(files.len(), 20);
    assert_whole(&again).await;

    // Both go on, and the next beginning goes as the first did.
    add(&again, 430..900).await;
    assert_eq!(clean(&again).await, 500);
    scene.clock.advance(TimeDelta::hours(2));
    assert_eq!(ids(&lake, &table).await, (0..900).collect::<Vec<_>>());
    assert_eq!(table.history(1_000).await.expect("read").len(), 901);
    assert_whole(&lake).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn published_versions_outlive_their_entries() {
    let scene = Scene::new();
    let lake = scene.open().await;
    let table = add(&lake, 0..150).await;
    let pin = PinnedTable { table_id: table.head().await.expect("there").table_id.clone(), version: 123 };
    lake.publish(DEFAULT_GROUP, BTreeMap::from([(things(), pin)])).await.expect("published");
    add(&lake, 150..350).await;
    // It is what the slowest refresh goes on from as well, so nothing behind it may go.
    assert_eq!(clean(&lake).await, 100);
    let newest = PinnedTable { table_id: table.head().await.expect("there").table_id.clone(), version: 345 };
    lake.publish(DEFAULT_GROUP, BTreeMap::from([(things(), newest)])).await.expect("published");
    assert_eq!(clean(&lake).await, 200);
    assert_eq!(scene.versions(".json").first(), Some(&300));
    assert_eq!(scene.versions(".checkpoint.parquet"), [123, 300], "one for the version that is named");

    let again = scene.open().await;
    let context = again.session_factory().context();
    let version = again.table(&things()).at(123).await.expect("kept");
    context.register_table("t", version.provider()).expect("registered");
    assert_eq!(numbers(&context, "select count(*) from t").await, [123]);
    assert_whole(&again).await;
    // Put back, it brings its ledger along.
    let table = again.table(&things());
    let plan = table.plan_restore(123).await.expect("planned");
    assert!(matches!(table.restore(plan).await.expect("restored"), Outcome::Committed(351)));
    assert_eq!(ids(&again, &table).await, (0..123).collect::<Vec<_>>());
    assert_eq!(table.ledger(&["a".to_owned()]).await.expect("read").entries["a"], 123);
    assert_whole(&again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_slept_while_the_log_was_cleaned_finds_out() {
    let scene = Scene::new();
    let (lake, sleeper) = (scene.open().await, scene.open().await);
    add(&lake, 0..50).await;
    let asleep = sleeper.table(&things());
    let stale = commit_of(&asleep, [-1], "b", 1).await;
    let bound_to = asleep.ledger(&["b".to_owned()]).await.expect("read").version;
    assert_eq!(bound_to, 50);
    add(&lake, 50..350).await;
    assert_eq!(clean(&lake).await, 300);
    scene.clock.advance(TimeDelta::hours(2));

    // The place after version 50 looks free, and is none.
    let outcome = asleep.append(bound_to, stale).await.expect("answered");
    assert_eq!(outcome, Outcome::Lost { winner: 51 });
    assert_eq!(scene.versions(".json").first(), Some(&300), "nothing is left behind");
    let bound_to = asleep.ledger(&["b".to_owned()]).await.expect("read").version;
    assert_eq!(bound_to, 350);
    let commit = commit_of(&asleep, [1_000], "b", 1).await;
    assert_eq!(asleep.append(bound_to, commit).await.expect("answered"), Outcome::Committed(351));
    let expected: Vec<i64> = (0..350).chain([1_000]).collect();
    assert_eq!(ids(&lake, &lake.table(&things())).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_after_a_long_sleep_sees_the_newest() {
    let scene = Scene::new();
    let (lake, sleeper) = (scene.open().await, scene.open().await);
    add(&lake, 0..50).await;
    let asleep = sleeper.table(&things());
    assert_eq!(asleep.head().await.expect("there").version, 50);
    add(&lake, 50..350).await;
    clean(&lake).await;
    scene.clock.advance(TimeDelta::hours(2));
    assert_eq!(asleep.head().await.expect("there").version, 350);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cleaning_that_was_broken_off_goes_on() {
    let scene = Scene::new();
    let lake = scene.open().await;
    add(&lake, 0..330).await;
    assert_eq!(clean(&lake).await, 300);
    // As if the process had ended before the last of them was deleted.
    let entry = scene.log().join(format!("{:020}.json", 299));
    std::fs::write(entry, "left").expect("written");
    assert_whole(&lake).await;
    add(&lake, 330..620).await;
    assert_eq!(clean(&lake).await, 301, "what was left goes as well");
    assert_eq!(scene.versions(".json").first(), Some(&600));
    assert_whole(&scene.open().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_with_a_gap_is_left_alone() {
    let scene = Scene::new();
    let lake = scene.open().await;
    add(&lake, 0..330).await;
    std::fs::remove_file(scene.log().join(format!("{:020}.json", 42))).expect("there");
    assert_eq!(clean(&lake).await, 0);
    assert_eq!(scene.versions(".json").len(), 330, "the one that is missing is missed");
    let report = scene.open().await.verify().await.expect("verified");
    assert!(report.to_string().contains("log entries 42 to 42 are gone"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_lake_is_marked_before_its_log_is_cleaned() {
    let scene = Scene::new();
    let lake = scene.open().await;
    let mark = scene.folder.path().join("_lakebeat.json");
    std::fs::write(&mark, r#"{"format":1,"written_by":"lakebeat 0.1.0"}"#).expect("written");
    add(&lake, 0..130).await;
    assert!(std::fs::read_to_string(&mark).expect("there").contains("\"format\":1"));
    assert_eq!(clean(&lake).await, 100);
    assert!(
        std::fs::read_to_string(&mark).expect("there").contains("\"format\":2"),
        "an older program must not read it"
    );
}
