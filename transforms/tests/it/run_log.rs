//! What builds tell of themselves, and builds that are asked for through the lake.

use std::sync::Arc;
use std::time::Duration;

use expect_test::expect;
use lakehouse::{BUILD_REQUEST, Lake, Request, RequestState};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use transforms::{Cadence, Options, Project, WatchProgress};

use crate::faults::project;
use crate::lake::{Event, append, head, newest, open, rows, store};

const RUNS: &str = "system.model_runs";
const TESTS: &str = "system.test_results";

async fn told(lake: &Lake, table: &str, columns: &[&str]) -> String {
    rows(lake, head(lake, table).await.as_ref(), columns).await.join("\n")
}

async fn told_of_runs(lake: &Lake) -> String {
    told(lake, RUNS, &["model", "status", "class", "trigger", "publication", "rows_read", "rows_added", "error"]).await
}

async fn build(lake: &Lake, project: &Project) {
    transforms::build(lake, project, &Options::default()).await.expect("the build runs");
}

/// A watch that builds as fast as it goes, until `until` is over.
async fn watching<T>(
    lake: &Lake,
    project: &Project,
    until: impl AsyncFnOnce(watch::Receiver<WatchProgress>) -> T,
) -> T {
    let (progress, seen) = watch::channel(WatchProgress::default());
    let token = CancellationToken::new();
    let (options, cadence) = (Options::default(), fast());
    let watch = transforms::watch(lake, project, &options, &cadence, progress, token.clone());
    let work = async {
        let done = until(seen).await;
        token.cancel();
        done
    };
    let both = async { tokio::join!(watch, work) };
    let (ended, done) = tokio::time::timeout(Duration::from_secs(60), both).await.expect("it ends when it is told to");
    ended.expect("it ends well");
    done
}

fn fast() -> Cadence {
    Cadence { interval: Duration::from_millis(20), poll: Duration::from_millis(5), idle_poll: Duration::from_millis(5) }
}

#[tokio::test]
async fn a_build_tells_what_became_of_each_model_and_each_test() {
    let lake = open(&store()).await;
    append(&lake, &[Event::new(1, 10, 0, 0), Event::new(2, 10, 0, 1)]).await;
    build(&lake, &Project::bundled()).await;
    expect![[r#"
        listening_by_minute | ok | full | by_hand | 1 | 2 | 2 | ∅
        spotify_silver | ok | full | by_hand | 1 | 2 | 2 | ∅
        top_songs | ok | full | by_hand | 1 | 2 | 2 | ∅
        user_engagement | ok | full | by_hand | 1 | 2 | 2 | ∅"#]]
    .assert_eq(&told_of_runs(&lake).await);
    expect![[r#"
        gold | listening_by_minute | 1 | {"silver.spotify_silver":1} | 2
        gold | top_songs | 1 | {"silver.spotify_silver":1} | 2
        gold | user_engagement | 1 | {"silver.spotify_silver":1} | 2
        silver | spotify_silver | 1 | {"bronze.spotify_events":1} | 1"#]]
    .assert_eq(&told(&lake, RUNS, &["table_schema", "table_name", "version", "source_versions", "files_read"]).await);
    expect![[r#"
        accepted_values_spotify_silver_device_type | spotify_silver | device_type | accepted_values | warn | pass | 0
        accepted_values_spotify_silver_event_type | spotify_silver | event_type | accepted_values | warn | pass | 0
        not_null_listening_by_minute_events | listening_by_minute | events | not_null | error | pass | 0
        not_null_listening_by_minute_minute | listening_by_minute | minute | not_null | error | pass | 0
        not_null_listening_by_minute_song_id | listening_by_minute | song_id | not_null | error | pass | 0
        not_null_spotify_silver_event_date | spotify_silver | event_date | not_null | error | pass | 0
        not_null_spotify_silver_event_id | spotify_silver | event_id | not_null | error | pass | 0
        not_null_spotify_silver_event_timestamp | spotify_silver | event_timestamp | not_null | error | pass | 0
        not_null_spotify_silver_song_id | spotify_silver | song_id | not_null | error | pass | 0
        not_null_spotify_silver_user_id | spotify_silver | user_id | not_null | error | pass | 0
        not_null_top_songs_song_id | top_songs | song_id | not_null | error | pass | 0
        not_null_top_songs_total_plays | top_songs | total_plays | not_null | error | pass | 0
        not_null_top_songs_total_skips | top_songs | total_skips | not_null | error | pass | 0
        not_null_user_engagement_day | user_engagement | day | not_null | error | pass | 0
        not_null_user_engagement_user_id | user_engagement | user_id | not_null | error | pass | 0
        unique_combination_of_columns_spotify_silver | spotify_silver | event_id, event_date | unique | error | pass | 0
        unique_combination_of_columns_top_songs | top_songs | song_id, song_name, artist_name | unique | error | pass | 0
        unique_combination_of_columns_user_engagement | user_engagement | user_id, device_type, country, day | unique | error | pass | 0
        unique_top_songs_song_id | top_songs | song_id | unique | warn | pass | 0"#]].assert_eq(
        &told(&lake, TESTS, &["test", "model", "column_name", "kind", "severity", "status", "failures"]).await,
    );
    let version = head(&lake, RUNS).await.version;
    build(&lake, &Project::bundled()).await;
    assert_eq!(head(&lake, RUNS).await.version, version, "a build without news is not worth a commit");
}

#[tokio::test]
async fn failed_models_and_tests_are_told_with_what_is_wrong() {
    let lake = open(&store()).await;
    append(&lake, &[Event::new(1, 10, 0, 0), Event::new(2, 10, 0, 1)]).await;
    let strict = "models:\n  - name: strict\n    columns:\n      - name: event_type\n        data_tests:\n          - accepted_values: {values: [play]}\n";
    let broken = project(&[
        ("models/gold/more.yml", strict),
        (
            "models/gold/strict.sql",
            "{{ config(publication_group='other') }} select event_type from {{ ref('spotify_silver') }}",
        ),
        ("models/gold/top_songs.sql", "select cast(song_id as int) as n from {{ ref('spotify_silver') }}"),
    ]);
    build(&lake, &broken).await;
    expect![[r#"
        listening_by_minute | ok | ∅ | it was never built
        spotify_silver | ok | ∅ | it was never built
        strict | held | ∅ | it was never built
        top_songs | failed | ∅ | ∅
        user_engagement | ok | ∅ | it was never built"#]]
    .assert_eq(&told(&lake, RUNS, &["model", "status", "publication", "reason"]).await);
    let errors = told(&lake, RUNS, &["model", "error"]).await;
    assert!(errors.contains("top_songs | cannot compute the rows of gold.top_songs"), "{errors}");
    assert!(errors.contains("strict | a test failed"), "{errors}");
    let results = told(&lake, TESTS, &["model", "status", "failures"]).await;
    assert!(results.contains("strict | fail | 2"), "{results}");
}

#[tokio::test]
async fn a_watch_commits_its_runs_more_seldom_than_it_builds() {
    let lake = open(&store()).await;
    let builds = 8;
    watching(&lake, &Project::bundled(), async |mut seen| {
        for id in 0..builds {
            append(&lake, &[Event::new(id, 100, 0, i64::from(id))]).await;
            seen.wait_for(|progress| progress.builds > u64::from(id)).await.expect("the watch goes on");
        }
    })
    .await;
    let runs = head(&lake, RUNS).await;
    assert_eq!(runs.rows(), Some(4 * u64::from(builds)), "four models, each build");
    assert!(runs.version < u64::from(builds), "{} commits of {builds} builds", runs.version);
    let triggers = told(&lake, RUNS, &["trigger"]).await;
    assert_eq!(triggers.matches("first").count(), 4);
    assert_eq!(triggers.matches("new_data").count(), 4 * (builds as usize - 1));
}

#[tokio::test]
async fn the_same_fault_again_and_again_is_told_once() {
    let lake = open(&store()).await;
    append(&lake, &[Event::new(1, 10, 0, 0)]).await;
    let broken = project(&[("models/gold/top_songs.sql", "select nosuch from {{ ref('spotify_silver') }}")]);
    watching(&lake, &broken, async |mut seen| {
        seen.wait_for(|progress| progress.failures >= 2).await.expect("the watch goes on");
        let told = head(&lake, RUNS).await.version;
        seen.wait_for(|progress| progress.failures >= 5).await.expect("the watch goes on");
        assert_eq!(head(&lake, RUNS).await.version, told, "nothing is new");
        // The same fault over other rows is another one.
        append(&lake, &[Event::new(2, 10, 0, 1)]).await;
        let failures = seen.borrow_and_update().failures;
        seen.wait_for(|progress| progress.failures > failures + 1).await.expect("the watch goes on");
        assert!(head(&lake, RUNS).await.version > told);
    })
    .await;
}

#[tokio::test]
async fn builds_go_on_where_their_runs_cannot_be_written_and_are_told_later() {
    let store = store();
    let lake = open(&store).await;
    let entry = Path::from("lake/system/model_runs/_delta_log/00000000000000000000.json");
    store.put(&entry, "not a log".into()).await.expect("the store works");
    watching(&lake, &Project::bundled(), async |mut seen| {
        for id in 0..3 {
            append(&lake, &[Event::new(id, 100, 0, i64::from(id))]).await;
            let progress = seen.wait_for(|progress| progress.builds > u64::from(id)).await.expect("the watch goes on");
            assert_eq!(progress.error, None);
        }
        store.delete(&entry).await.expect("the store works");
    })
    .await;
    assert_eq!(newest(&lake).await.expect("it was published").id, 3);
    assert_eq!(head(&lake, RUNS).await.rows(), Some(12));
}

/// Asks for a build, and waits for the answer.
async fn ask(lake: &Lake, arguments: Value) -> Request {
    let mut requests = lake.requests();
    let asked = requests.ask(BUILD_REQUEST, arguments, "a test").await.expect("asked");
    requests.wait(&asked.id, Duration::from_secs(30)).await.expect("there")
}

#[tokio::test]
async fn a_build_that_is_asked_for_is_answered_with_its_publication() {
    let store: Arc<dyn ObjectStore> = store();
    let lake = open(&store).await;
    append(&lake, &[Event::new(1, 10, 0, 0)]).await;
    watching(&lake, &Project::bundled(), async |mut seen| {
        seen.wait_for(|progress| progress.builds >= 1).await.expect("the watch goes on");
        // Another process asks.
        let other = open(&store).await;
        let nothing_new = ask(&other, json!({})).await;
        assert_eq!(nothing_new.state, RequestState::Done);
        assert_eq!(nothing_new.answer, json!({ "publication": 1, "changed": false }));
        let anew = ask(&other, json!({ "full_refresh": true })).await;
        assert_eq!(anew.answer, json!({ "publication": 2, "changed": true }));
        assert!(anew.taken_by.is_some_and(|taker| taker.starts_with("transforms ")));
    })
    .await;
    let runs = told(&lake, RUNS, &["trigger", "class"]).await;
    assert_eq!(runs.matches("request | full").count(), 4, "{runs}");
}

#[tokio::test]
async fn a_build_that_was_asked_for_and_fails_says_why() {
    let lake = open(&store()).await;
    append(&lake, &[Event::new(1, 10, 0, 0)]).await;
    let broken = project(&[("models/gold/top_songs.sql", "select nosuch from {{ ref('spotify_silver') }}")]);
    let answered = watching(&lake, &broken, async |_| ask(&lake, json!({})).await).await;
    assert_eq!(answered.state, RequestState::Failed);
    assert!(answered.answer["error"].as_str().is_some_and(|error| error.contains("top_songs")), "{}", answered.answer);
}
