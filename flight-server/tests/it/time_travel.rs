//! Time travel in SQL, on a lake with several versions and publications.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use datafusion::arrow::util::display::array_value_to_string;
use flight_server::query::{Connection, Door, Limits, Prepared, QueryEngine};
use futures::TryStreamExt as _;
use lakehouse::{Cleaner, ManualClock, Outcome, TableName};
use url::Url;

use crate::lake::TestLake;

/// A lake on disk whose clock is ours, and somebody who asks.
struct Asked {
    folder: tempfile::TempDir,
    clock: Arc<ManualClock>,
    lake: TestLake,
    ana: Connection,
}

fn noon() -> DateTime<Utc> {
    "2026-11-24T12:00:00Z".parse().expect("a time")
}

impl Asked {
    /// The first song has 100 plays at noon, 200 an hour later, and 300 two hours later: versions 1, 2 and 3 of the table, and
    /// publications 1, 2 and 3. A third event comes together with the second of them.
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let clock = Arc::new(ManualClock::new(noon()));
        let lake = open(&folder, &clock).await.filled().await;
        let asked = Self { ana: connect(&lake), folder, clock, lake };
        asked.hours_later(1);
        asked.lake.publish_songs(200).await;
        asked.lake.add_event("c").await;
        asked.hours_later(1);
        asked.lake.publish_songs(300).await;
        asked
    }

    fn hours_later(&self, hours: i64) {
        self.clock.advance(TimeDelta::hours(hours));
    }

    /// The rows of the answer, or why there is none.
    async fn ask(&self, sql: &str) -> String {
        match self.ana.prepare(sql).await {
            Ok(prepared) => rows(&self.ana, &prepared).await,
            Err(error) => format!("{} {}", error.kind().sqlstate(), error.message()),
        }
    }
}

async fn open(folder: &tempfile::TempDir, clock: &Arc<ManualClock>) -> TestLake {
    let url = Url::from_directory_path(folder.path().join("lake")).expect("an absolute path");
    TestLake::open(&url, clock.clone()).await
}

fn connect(lake: &TestLake) -> Connection {
    QueryEngine::new(lake.lake.clone(), Limits::default()).connect(Door::Postgres, "ana")
}

async fn rows(connection: &Connection, prepared: &Prepared) -> String {
    let stream = connection.execute(prepared, Vec::new()).await.expect("it runs");
    let batches: Vec<_> = stream.try_collect().await.expect("it runs to its end");
    let mut rows = Vec::new();
    for batch in &batches {
        for row in 0..batch.num_rows() {
            let values = batch.columns().iter().map(|column| array_value_to_string(column, row).expect("shown"));
            rows.push(values.collect::<Vec<_>>().join("|"));
        }
    }
    rows.join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_read_as_it_was() {
    let asked = Asked::new().await;
    for (from, expected) in [
        ("top_songs", "300"),
        ("top_songs at version 1", "100"),
        ("gold.top_songs at version 2", "200"),
        ("lake.gold.top_songs version as of 3", "300"),
        ("\"gold\".\"top_songs\" at (version => 2) as t", "200"),
        ("Top_Songs for version as of 2 t", "200"),
        ("top_songs at publication 1", "100"),
        ("gold.top_songs at publication 3", "300"),
        ("top_songs at timestamp '2026-11-24 12:00:00+00'", "100"),
        ("top_songs at timestamp '2026-11-24 12:59:59.999Z'", "100"),
        ("top_songs for system_time as of '2026-11-24 15:00:00+02'", "200"),
        ("gold.top_songs timestamp as of timestamp '2026-11-24 14:00:00'", "300"),
    ] {
        let sql = format!("select total_plays from {from} where song_id = 's1'");
        assert_eq!(asked.ask(&sql).await, expected, "{sql}");
    }
    assert_eq!(asked.ask("select count(*) from top_songs at version 0").await, "0");
    assert_eq!(asked.ask("select count(*) from bronze.events at version 1").await, "2");
    assert_eq!(asked.ask("select count(*) from events at timestamp '2026-11-24 13:30:00'").await, "3");
    assert_eq!(asked.ask("select count(*) from system.publications at version 2").await, "2");
    // A literal without a zone is a time in the session's.
    asked.ana.set("timezone", "America/New_York").await.expect("a zone");
    let sql = "select max(total_plays) from top_songs at timestamp '2026-11-24 08:10:00'";
    assert_eq!(asked.ask(sql).await, "200");
}

#[tokio::test(flavor = "multi_thread")]
async fn moments_of_one_table_go_together() {
    let asked = Asked::new().await;
    for (sql, expected) in [
        (
            "select a.total_plays, b.total_plays, top_songs.total_plays
             from top_songs at version 1 a join gold.top_songs at version 2 b using (song_id) join top_songs using (song_id)
             where a.song_id = 's1'",
            "100|200|300",
        ),
        (
            "with old as (select * from top_songs at version 1)
             select n.total_plays - old.total_plays from gold.top_songs n, old where n.song_id = old.song_id order by 1 desc",
            "200 0 0",
        ),
        (
            "select (select max(total_plays) from top_songs at version 2) - (select max(total_plays) from top_songs at version 1)
                    as more, (select max(total_plays) from top_songs) as newest",
            "100|300",
        ),
        (
            "select max(total_plays) from top_songs at version 1 union all select max(total_plays) from top_songs at version 2
             order by 1",
            "100 200",
        ),
        (
            "select song_name from top_songs at version 1
             where exists (select 1 from top_songs at version 3 n where n.song_id = top_songs.song_id and n.total_plays = 300)",
            "Levitating",
        ),
        // Columns by the table's own name, however it is written.
        ("select gold.top_songs.total_plays from gold.top_songs at version 2 where top_songs.song_id = 's1'", "200"),
        ("select lake.gold.top_songs.total_plays from gold.top_songs at version 2 where lake.gold.top_songs.song_id = 's1'", "200"),
        ("select top_songs.* from top_songs at version 2 where top_songs.song_id = 's2'", "s2|Stronger|Kanye West|20|0"),
    ] {
        assert_eq!(asked.ask(sql).await, expected, "{sql}");
    }
    let plan = asked.ask("explain select * from gold.top_songs at version 2 where total_plays > 100").await;
    assert!(plan.contains("gold at version 2"), "{plan}");
    let plan = asked.ask("explain analyze select * from top_songs at version 2").await;
    assert!(plan.contains("output_rows=3"), "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_refused_with_what_is() {
    let asked = Asked::new().await;
    for (from, expected) in [
        ("top_songs at version 9", "42704 gold.top_songs has no version 9: the newest is 3"),
        (
            "top_songs at timestamp '2026-11-24 11:59:59'",
            "42704 gold.top_songs as of 2026-11-24T11:59:59Z was not there yet: the oldest version is 0, committed at 2026-11-24T12:00:00Z",
        ),
        (
            "top_songs at timestamp '2026-11-24 14:00:01'",
            "42704 what gold.top_songs will be at 2026-11-24T14:00:01Z is not known: it is 2026-11-24T14:00:00Z now",
        ),
        (
            "top_songs at publication 9",
            "42704 publication 9 does not exist (any more); `select * from system.publications` lists them",
        ),
        (
            "bronze.events at publication 3",
            "42704 publication 3 does not name bronze.events; `select * from system.publications` shows what it names",
        ),
        ("songs at version 1", "42P01 relation \"songs\" does not exist; `show tables` lists what there is"),
        (
            "gold.events at version 1",
            "42P01 relation \"gold.events\" does not exist; `show tables` lists what there is",
        ),
        ("system.tables at version 1", "0A000 system.tables has no past: it is computed when it is asked for"),
        ("pg_class at version 1", "42P01 relation \"pg_class\" does not exist; `show tables` lists what there is"),
        (
            "\"..\".\"gold\" at version 1",
            "42P01 relation \"...gold\" does not exist; `show tables` lists what there is",
        ),
    ] {
        assert_eq!(asked.ask(&format!("select * from {from}")).await, expected, "{from}");
    }
    let told = asked.ask("select nope from gold.top_songs at version 1").await;
    assert!(told.starts_with("42703 column \"nope\" does not exist; there are artist_name, song_id"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_of_the_past_are_shown_nowhere() {
    let asked = Asked::new().await;
    assert_eq!(asked.ask("select count(*) from top_songs at version 1").await, "3");
    for sql in [
        "select table_schema || '.' || table_name from information_schema.tables",
        "select nspname from pg_catalog.pg_namespace",
        "select relname from pg_catalog.pg_class",
        "show tables",
    ] {
        let told = asked.ask(sql).await;
        assert!(told.contains("gold") || told.contains("top_songs"), "{sql}: {told}");
        assert!(!told.contains(" at version"), "{sql}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_statement_keeps_its_moments_and_a_transaction_its_others() {
    let asked = Asked::new().await;
    let sql = "select (select max(total_plays) from top_songs at publication 2) as past, \
               (select max(total_plays) from top_songs) as now";
    let prepared = asked.ana.prepare(sql).await.expect("planned");
    asked.ana.pin_newest().await.expect("pinned");
    asked.hours_later(1);
    asked.lake.publish_songs(400).await;
    assert_eq!(rows(&asked.ana, &asked.ana.refresh(&prepared).await.expect("the same")).await, "200|300");
    assert_eq!(asked.ask("select max(total_plays) from top_songs at version 4").await, "400");
    asked.ana.unpin();
    assert_eq!(rows(&asked.ana, &asked.ana.refresh(&prepared).await.expect("planned again")).await, "200|400");
    asked.ana.set("lakebeat.publication", "1").await.expect("there");
    assert_eq!(asked.ask(sql).await, "200|100");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_went_back_hides_no_version() {
    let asked = Asked::new().await;
    // Version 4 says that it is of 13:10, after version 3 of 14:00.
    asked.clock.advance(TimeDelta::minutes(-50));
    asked.lake.publish_songs(400).await;
    asked.hours_later(2);
    for (time, expected) in [("13:30", "200"), ("13:59", "200"), ("14:00", "400"), ("15:00", "400")] {
        let sql = format!("select max(total_plays) from top_songs at timestamp '2026-11-24 {time}:00'");
        assert_eq!(asked.ask(&sql).await, expected, "{time}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn before_and_after_a_restore() {
    let asked = Asked::new().await;
    let table = asked.lake.lake.table(&TableName::new("gold", "top_songs"));
    let plan = table.plan_restore(1).await.expect("planned");
    assert_eq!(table.restore(plan).await.expect("restored"), Outcome::Committed(4));
    for (version, expected) in [(1, "100"), (3, "300"), (4, "100")] {
        let sql = format!("select max(total_plays) from top_songs at version {version}");
        assert_eq!(asked.ask(&sql).await, expected, "{version}");
    }
    assert_eq!(asked.ask("select max(total_plays) from top_songs").await, "300", "the restore is not published");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_whose_files_are_gone_is_not_kept() {
    let asked = Asked::new().await;
    // After a day one publication an hour is kept; of two in one hour, the last.
    asked.lake.publish_songs(301).await;
    asked.hours_later(24);
    asked.lake.publish_songs(400).await;
    // What was dropped a moment ago is spared.
    asked.hours_later(1);
    assert!(Cleaner::new(asked.lake.lake.clone()).clean().await.expect("cleaned").files > 0);
    let told = asked.ask("select * from top_songs at version 3").await;
    assert!(told.starts_with("42704 version 3 of gold.top_songs is not kept any more: its file "), "{told}");
    assert_eq!(asked.ask("select max(total_plays) from top_songs at version 4").await, "301");
    assert_eq!(asked.ask("select max(total_plays) from top_songs at publication 2").await, "200");
    let told = asked.ask("select * from top_songs at publication 3").await;
    assert!(told.starts_with("42704 publication 3 does not exist (any more)"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_does_not_name_a_table_that_was_made_anew() {
    let asked = Asked::new().await;
    std::fs::remove_dir_all(asked.folder.path().join("lake/gold/top_songs")).expect("there");
    let lake = open(&asked.folder, &asked.clock).await;
    lake.publish_songs(70).await;
    let asked = Asked { ana: connect(&lake), lake, ..asked };
    assert_eq!(
        asked.ask("select * from top_songs at publication 1").await,
        "42704 gold.top_songs was made anew since publication 1: the table that it names is no more"
    );
    assert_eq!(asked.ask("select max(total_plays) from top_songs at publication 4").await, "70");
    assert_eq!(
        asked.ask("select * from top_songs at version 3").await,
        "42704 gold.top_songs has no version 3: the newest is 1"
    );
}
