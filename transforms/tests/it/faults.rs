//! Models and tests that fail: what was published stands, and what else can go on goes on.

use std::path::Path;

use expect_test::expect;
use lakehouse::Lake;
use tempfile::TempDir;
use transforms::{BuildReport, ModelStatus, Options, Project};

use crate::lake::{Event, append, head, newest, open, store};

/// The bundled project, with some of its files replaced or added.
pub(crate) fn project(changed: &[(&str, &str)]) -> Project {
    let folder = TempDir::new().expect("a temporary folder");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models"), folder.path());
    for (path, text) in changed {
        std::fs::write(folder.path().join(path), text).expect("the file is written");
    }
    Project::load(folder.path()).expect("a valid project")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the folder is made");
    for entry in std::fs::read_dir(from).expect("the folder is read") {
        let entry = entry.expect("the folder is read");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("the file is copied");
        }
    }
}

async fn build(lake: &Lake, project: &Project) -> BuildReport {
    transforms::build(lake, project, &Options::default()).await.expect("the build runs")
}

fn status(report: &BuildReport, model: &str) -> ModelStatus {
    report.models.iter().find(|run| run.model == model).expect("the model was in the build").status
}

#[tokio::test]
async fn a_failed_model_keeps_the_last_publication_and_the_others_go_on() {
    let lake = open(&store()).await;
    append(&lake, &[Event::new(1, 10, 0, 0)]).await;
    build(&lake, &Project::bundled()).await;
    let published = newest(&lake).await;
    append(&lake, &[Event::new(2, 10, 0, 1)]).await;
    let broken = project(&[(
        "models/gold/top_songs.sql",
        "select song_id,\n  cast(song_id as int) as n\nfrom {{ ref('spotify_silver') }}",
    )]);
    let silver = head(&lake, "silver.spotify_silver").await.version;
    let report = build(&lake, &broken).await;
    assert!(report.failed());
    assert_eq!(status(&report, "top_songs"), ModelStatus::Failed);
    assert_eq!(status(&report, "user_engagement"), ModelStatus::Built);
    assert!(head(&lake, "silver.spotify_silver").await.version > silver);
    assert_eq!(newest(&lake).await, published);
    // Mended, it goes on.
    let report = build(&lake, &Project::bundled()).await;
    assert!(!report.failed(), "{report}");
    assert_ne!(newest(&lake).await, published);
}

#[tokio::test]
async fn a_fault_in_the_sql_names_file_line_and_remedy() {
    let lake = open(&store()).await;
    append(&lake, &[Event::new(1, 10, 0, 0)]).await;
    let reason = async |sql: &str| {
        let report = build(&lake, &project(&[("models/gold/top_songs.sql", sql)])).await;
        report.models.into_iter().find(|run| run.model == "top_songs").expect("it was in the build").reason
    };
    expect![[r#"
        models/gold/top_songs.sql:5: Schema error: No field named sonk_name. Did you mean 'silver.spotify_silver.song_name'?
        Valid fields are silver.spotify_silver.event_id, silver.spotify_silver.user_id, silver.spotify_silver.song_id, silver.spotify_silver.artist_name, silver.spotify_silver.song_name, silver.spotify_silver.event_type, silver.spotify_silver.device_type, silver.spotify_silver.country, silver.spotify_silver.event_timestamp, silver.spotify_silver.event_date, silver.spotify_silver._kafka_timestamp, silver.spotify_silver._partition, silver.spotify_silver._offset, silver.spotify_silver._index."#]].assert_eq(
        &reason("{{ config(\n  tags='x'\n) }}\nselect song_id,\n  sonk_name\nfrom {{ ref('spotify_silver') }}").await,
    );
    expect![[r#"models/gold/top_songs.sql:2: SQL error: ParserError("Expected: end of statement, found: . at Line: 2, Column: 21")"#]].assert_eq(&reason("select song_id,\n  from from {{ ref('spotify_silver') }}").await);
    expect!["models/gold/top_songs.sql:1: Error during planning: table 'lake.gold.user_engagement' not found (a model sees only what it names by ref or source)"].assert_eq(&reason("select 1 as one from gold.user_engagement").await);
    expect![
        "models/gold/top_songs.sql: Error during planning: DDL not supported: CreateMemoryTable (a model is one select)"
    ]
    .assert_eq(&reason("create table x as select 1").await);
    expect![[r#"
        models/gold/top_songs.sql:1: Error during planning: Invalid function 'nosuch'.
        Did you mean 'cosh'?"#]]
    .assert_eq(&reason("select nosuch(song_id) as x from {{ ref('spotify_silver') }}").await);
}

#[tokio::test]
async fn a_failed_test_moves_no_head_of_its_group() {
    let lake = open(&store()).await;
    append(&lake, &[Event::new(1, 10, 0, 0)]).await;
    build(&lake, &Project::bundled()).await;
    let published = newest(&lake).await;
    let strict = project(&[
        (
            "models/gold/more.yml",
            "models:\n  - name: strict\n    columns:\n      - name: event_type\n        data_tests:\n          - accepted_values: {values: [play, pause]}\n",
        ),
        ("models/gold/strict.sql", "select event_type from {{ ref('spotify_silver') }}"),
    ]);
    let report = build(&lake, &strict).await;
    assert!(!report.failed(), "{report}");
    assert_ne!(newest(&lake).await, published);
    let published = newest(&lake).await;
    let silver = head(&lake, "silver.spotify_silver").await.version;
    append(&lake, &[Event::new(2, 10, 0, 1)]).await;
    let report = build(&lake, &strict).await;
    assert!(report.failed());
    assert_eq!(status(&report, "spotify_silver"), ModelStatus::Held);
    assert_eq!(head(&lake, "silver.spotify_silver").await.version, silver);
    assert_eq!(newest(&lake).await, published);
    expect!["accepted_values_strict_event_type"]
        .assert_eq(&report.held.iter().flat_map(|held| held.because.clone()).collect::<Vec<_>>().join("\n"));
}

#[tokio::test]
async fn a_changed_query_builds_the_table_anew_and_changed_columns_are_refused() {
    let lake = open(&store()).await;
    append(&lake, &[Event::new(1, 10, 0, 0), Event::new(5, 10, 0, 1)]).await;
    build(&lake, &Project::bundled()).await;
    let columns = "select song_id, song_name, artist_name, count(*) as total_plays, count(*) as total_skips";
    let changed = format!("{columns} from {{{{ ref('spotify_silver') }}}} group by 1, 2, 3");
    let report = build(&lake, &project(&[("models/gold/top_songs.sql", &changed)])).await;
    let run = report.models.iter().find(|run| run.model == "top_songs").expect("it was in the build");
    expect!["its query, its settings or a source's identity changed"].assert_eq(&run.reason);
    let fewer = "select song_id, count(*) as total_plays from {{ ref('spotify_silver') }} group by 1";
    let report = build(&lake, &project(&[("models/gold/top_songs.sql", fewer)])).await;
    let run = report.models.iter().find(|run| run.model == "top_songs").expect("it was in the build");
    expect!["models/gold/top_songs.sql: the table has the column song_name, which the query no longer gives; the columns of a table cannot be changed yet: give the model another name, or delete the table's folder so that it is built anew"].assert_eq(&run.reason);
}

#[tokio::test]
async fn without_a_source_the_model_says_what_it_waits_for() {
    let lake = open(&store()).await;
    let report = build(&lake, &Project::bundled()).await;
    expect![[r#"
        failed     silver.spotify_silver: models/silver/spotify_silver.sql: the table bronze.spotify_events, which it reads, is not there yet: ingest makes it when the first events arrive
        skipped    gold.listening_by_minute: spotify_silver, which it reads, failed
        skipped    gold.top_songs: spotify_silver, which it reads, failed
        skipped    gold.user_engagement: spotify_silver, which it reads, failed
        group default keeps its last publication, because of spotify_silver
    "#]].assert_eq(&report.to_string());
}

#[tokio::test]
async fn a_model_that_names_a_table_which_it_does_not_read_goes_on() {
    let lake = open(&store()).await;
    // The planner drops the unused part, so the plan reads one table and the text names two.
    let text = "{{ config(materialized='incremental') }}\n-- depends_on: {{ ref('top_songs') }}\n\
                with songs as (select * from {{ ref('top_songs') }}) select event_id from {{ ref('spotify_silver') }}";
    let named = project(&[("models/gold/events.sql", text)]);
    for id in 0..3 {
        append(&lake, &[Event::new(id, 10, 0, i64::from(id))]).await;
        let report = build(&lake, &named).await;
        assert!(!report.failed(), "{report}");
        assert_eq!(head(&lake, "gold.events").await.rows(), Some(u64::from(id) + 1));
    }
}

#[tokio::test]
async fn a_part_of_the_project_is_not_published_on_what_nobody_has_tested() {
    let lake = open(&store()).await;
    let project = Project::bundled();
    append(&lake, &[Event::new(1, 10, 0, 0)]).await;
    build(&lake, &project).await;
    let published = newest(&lake).await;
    append(&lake, &[Event::new(2, 10, 0, 1)]).await;
    let only = |model: &str| Options { select: vec![model.to_owned()], ..Options::default() };
    transforms::run(&lake, &project, &only("spotify_silver")).await.expect("it runs");
    let report = transforms::build(&lake, &project, &only("top_songs")).await.expect("the build runs");
    let held: Vec<&str> = report.held.iter().flat_map(|group| &group.because).map(String::as_str).collect();
    assert_eq!(held, ["silver.spotify_silver is newer than published: select +top_songs"]);
    assert_eq!(newest(&lake).await, published);
    let report = transforms::build(&lake, &project, &only("+top_songs")).await.expect("the build runs");
    assert!(report.held.is_empty(), "{report}");
    assert_ne!(newest(&lake).await, published);
}
