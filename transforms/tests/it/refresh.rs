//! What a refresh does and does not do.

use arrow::datatypes::{DataType, Field};
use expect_test::expect;
use transforms::{ModelStatus, Options, Project, RefreshKind, RefreshMode};

use crate::lake::{Event, append, bronze, head, newest, open, store};
use crate::oracle::Tables;

#[tokio::test]
async fn nothing_new_writes_nothing() {
    let lake = open(&store()).await;
    let project = Project::bundled();
    append(&lake, &[Event::new(1, 10, 0, 0), Event::new(2, 11, 0, 1)]).await;
    let report = transforms::build(&lake, &project, &Options::default()).await.expect("the build runs");
    assert!(report.models.iter().all(|run| run.status == ModelStatus::Built), "{report}");
    let (publication, silver) = (newest(&lake).await, head(&lake, "silver.spotify_silver").await.version);
    for _ in 0..3 {
        // A commit of nothing but dead letters moves bronze, and brings nothing.
        append(&lake, &[]).await;
        let report = transforms::build(&lake, &project, &Options::default()).await.expect("the build runs");
        assert!(!report.changed(), "{report}");
        assert_eq!(newest(&lake).await, publication);
        assert_eq!(head(&lake, "silver.spotify_silver").await.version, silver);
    }
}

#[tokio::test]
async fn only_new_rows_are_read_and_a_late_first_copy_takes_the_place() {
    let lake = open(&store()).await;
    let project = Project::bundled();
    let build = async || {
        let report = transforms::build(&lake, &project, &Options::default()).await.expect("the build runs");
        assert!(!report.failed(), "{report}");
        report.models.into_iter().next().expect("silver comes first")
    };
    let mut all: Vec<Event> = (0..30).map(|id| Event::new(id, 100, 0, i64::from(id))).collect();
    append(&lake, &all).await;
    assert_eq!(build().await.refresh, Some(RefreshKind::Full));
    for (new, kind, written) in [
        // New keys only.
        (vec![Event::new(40, 200, 0, 30), Event::new(41, 200, 0, 31)], RefreshKind::Append, 2),
        // A copy that comes later in the stream changes nothing.
        (vec![Event::new(3, 300, 0, 32)], RefreshKind::Append, 0),
        // One that comes first takes the place: its day's file is rewritten.
        (vec![Event::new(3, 50, 1, 0), Event::new(42, 300, 0, 33)], RefreshKind::Merge, 11),
        // And both at once, with a copy among the new rows themselves.
        (vec![Event::new(3, 40, 1, 1), Event::new(3, 30, 1, 2), Event::new(6, 400, 0, 34)], RefreshKind::Merge, 11),
    ] {
        append(&lake, &new).await;
        let rows = new.len() as u64;
        all.extend(new);
        let run = build().await;
        assert_eq!((run.refresh, run.rows_read, run.rows_written), (Some(kind), rows, written), "{run}");
        assert_eq!(Tables::at_heads(&lake).await, Tables::expected(&all));
    }
}

#[tokio::test]
async fn a_column_that_comes_to_the_source_makes_nothing_anew() {
    let store = store();
    let lake = open(&store).await;
    let project = Project::bundled();
    let mut all: Vec<Event> = (0..30).map(|id| Event::new(id, 100, 0, i64::from(id))).collect();
    append(&lake, &all).await;
    transforms::build(&lake, &project, &Options::default()).await.expect("the build runs");
    let publication = newest(&lake).await;
    let added = [Field::new("more", DataType::Utf8, true)];
    bronze(&lake).add_columns(&added).await.expect("added");
    let report = transforms::build(&lake, &project, &Options::default()).await.expect("the build runs");
    assert!(!report.changed(), "{report}");
    assert_eq!(newest(&lake).await, publication);

    let new = [Event::new(40, 200, 0, 30), Event::new(3, 300, 0, 31)];
    append(&lake, &new).await;
    all.extend(new);
    // Another process than the one that saw the table before.
    let lake = open(&store).await;
    let report = transforms::build(&lake, &project, &Options::default()).await.expect("the build runs");
    let silver = report.models.first().expect("silver comes first");
    assert_eq!((silver.refresh, silver.rows_read, silver.rows_written), (Some(RefreshKind::Append), 2, 1), "{silver}");
    assert_eq!(Tables::at_heads(&lake).await, Tables::expected(&all));
}

#[tokio::test]
async fn small_files_are_put_together_and_nothing_else_changes() {
    let lake = open(&store()).await;
    let project = Project::bundled();
    let mut all = Vec::new();
    for id in 0..40 {
        let new = [Event::new(id * 3, 100, 0, i64::from(id))];
        append(&lake, &new).await;
        all.extend(new);
        transforms::build(&lake, &project, &Options::default()).await.expect("the build runs");
    }
    let silver = head(&lake, "silver.spotify_silver").await;
    assert!(silver.files.len() < 20, "{} files in one partition", silver.files.len());
    assert_eq!(Tables::at_heads(&lake).await, Tables::expected(&all));
    let report = transforms::build(&lake, &project, &Options::default()).await.expect("the build runs");
    assert!(!report.changed(), "{report}");
}

#[tokio::test]
async fn explain_says_what_the_next_build_would_read() {
    let lake = open(&store()).await;
    let project = Project::bundled();
    append(&lake, &[Event::new(1, 10, 0, 0)]).await;
    let explain = async || {
        let explanations = transforms::explain(&lake, &project, &Options::default()).await.expect("it explains");
        explanations.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    expect![[r#"
        silver.spotify_silver: keyed merge
          bronze.spotify_events: read nothing, newest is 1
          next: read 1 files: it was never built, 1 rows
        gold.listening_by_minute: unknown (silver.spotify_silver, which it reads, is not built yet)
          next: silver.spotify_silver, which it reads, is not built yet, 0 rows
        gold.top_songs: unknown (silver.spotify_silver, which it reads, is not built yet)
          next: silver.spotify_silver, which it reads, is not built yet, 0 rows
        gold.user_engagement: unknown (silver.spotify_silver, which it reads, is not built yet)
          next: silver.spotify_silver, which it reads, is not built yet, 0 rows"#]]
    .assert_eq(&explain().await);
    transforms::build(&lake, &project, &Options::default()).await.expect("the build runs");
    append(&lake, &[Event::new(2, 10, 0, 1), Event::new(3, 10, 0, 2)]).await;
    expect![[r#"
        silver.spotify_silver: keyed merge
          bronze.spotify_events: read up to version 1, newest is 2
          next: read 1 files: 1 files are new in bronze.spotify_events, 2 rows
        gold.listening_by_minute: full (it is materialized as table)
          silver.spotify_silver: read up to version 1, newest is 1
          next: nothing: nothing that it reads has changed, 0 rows
        gold.top_songs: full (it is materialized as table)
          silver.spotify_silver: read up to version 1, newest is 1
          next: nothing: nothing that it reads has changed, 0 rows
        gold.user_engagement: full (it is materialized as table)
          silver.spotify_silver: read up to version 1, newest is 1
          next: nothing: nothing that it reads has changed, 0 rows"#]]
    .assert_eq(&explain().await);
}

#[tokio::test]
async fn a_full_refresh_and_a_selection_do_as_they_are_told() {
    let lake = open(&store()).await;
    let project = Project::bundled();
    append(&lake, &[Event::new(1, 10, 0, 0)]).await;
    transforms::build(&lake, &project, &Options::default()).await.expect("the build runs");
    let full = Options { refresh: RefreshMode::Full, select: vec!["top_songs".to_owned()], ..Options::default() };
    let report = transforms::build(&lake, &project, &full).await.expect("the build runs");
    let [run] = report.models.as_slice() else { panic!("one model was selected: {report}") };
    assert_eq!((run.refresh, run.status), (Some(RefreshKind::Full), ModelStatus::Built));
    let publication = newest(&lake).await.expect("it was published");
    assert_eq!(publication.tables.len(), 5, "the others stay as they were published: {publication:?}");
}

#[tokio::test]
async fn the_tests_of_the_bundled_project_run() {
    let lake = open(&store()).await;
    let project = Project::bundled();
    append(&lake, &[Event::new(1, 10, 0, 0), Event { event_type: "shout", ..Event::new(2, 10, 0, 1) }]).await;
    transforms::build(&lake, &project, &Options::default()).await.expect("the build runs");
    let report = transforms::test(&lake, &project, &Options::default()).await.expect("the tests run");
    assert!(!report.failed(), "{report}");
    expect![[r#"
        warning    accepted_values_spotify_silver_event_type: 1 break it
        18 of 19 tests passed
    "#]]
    .assert_eq(&report.to_string());
}
