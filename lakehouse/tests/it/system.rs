//! System tables: shown from the first day, kept for a week, and the way in which parts of the program ask one another.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch};
use chrono::{DateTime, TimeDelta};
use datafusion::prelude::SessionContext;
use lakehouse::{
    BUILD_REQUEST, ConsumedRange, Error, ErrorKind, IngestInfo, Journal, Lake, ManualClock, Outcome, RequestState,
    Requests, StorageOptions, SystemSource, TableName,
};
use object_store::memory::InMemory;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use url::Url;

use crate::counting::Counting;
use crate::support::{commit_of, in_memory, lakes, numbers, opened_again, spec};

/// A lake in memory whose clock is ours.
async fn with_clock() -> (Arc<ManualClock>, Lake) {
    let clock = Arc::new(ManualClock::new(DateTime::from_timestamp(1_800_000_000, 0).expect("a time")));
    let url = Url::parse("memory:///lake/").expect("valid URL");
    let lake = Lake::open(&url, &StorageOptions::default(), clock.clone()).await.expect("opens");
    (clock, lake)
}

async fn session(lake: &Lake) -> SessionContext {
    lake.session_factory().at_publication(None).await.expect("opened")
}

async fn number(lake: &Lake, sql: &str) -> i64 {
    numbers(&session(lake).await, sql).await[0]
}

fn run(lake: &Lake, model: &str) -> Value {
    let now = lake.clock().now();
    json!({ "run_id": "r", "model": model, "status": "ok", "rows_read": 3, "seconds": 0.5, "started_at": now,
            "run_date": now.date_naive() })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_system_table_is_there_before_its_first_row() {
    for test in lakes().await {
        let lake = &test.lake;
        let names = ["ingest_progress", "model_runs", "publications", "requests", "tables", "test_results"];
        for name in names {
            assert_eq!(number(lake, &format!("select count(*) from system.{name}")).await, 0, "{name}");
            let columns = format!("select count(*) from information_schema.columns where table_name = '{name}'");
            assert!(number(lake, &columns).await > 3, "{name}");
        }
        let all = "select count(*) from information_schema.tables where table_schema = 'system'";
        assert_eq!(number(lake, all).await, names.len() as i64);
        assert!(lake.tables().await.expect("listed").is_empty(), "to show them is not to make them");

        lake.write_journal(Journal::ModelRuns, &[run(lake, "songs")]).await.expect("written");
        lake.requests().ask(BUILD_REQUEST, json!({}), "somebody").await.expect("asked");
        let other = opened_again(&test).await;
        for name in ["model_runs", "requests"] {
            assert_eq!(number(&other, &format!("select count(*) from system.{name}")).await, 1, "{name}");
        }
        let same = "select count(*) from system.model_runs where seconds = 0.5 and started_at <= now() and publication is null";
        assert_eq!(number(&other, same).await, 1);
        assert_eq!(number(&other, all).await, names.len() as i64);
    }
}

#[tokio::test]
async fn a_journal_keeps_a_week_in_few_files() {
    let (clock, lake) = with_clock().await;
    for _ in 0..9 {
        for round in 0..20 {
            lake.write_journal(Journal::ModelRuns, &[run(&lake, &format!("m{round}"))]).await.expect("written");
        }
        clock.advance(TimeDelta::days(1));
    }
    let head = lake.table(&Journal::ModelRuns.table()).head().await.expect("there");
    // The day of the last write and the seven before it.
    assert_eq!(head.rows(), Some(8 * 20));
    assert!(head.files.len() <= 8 * 8, "{} files", head.files.len());
    assert_eq!(number(&lake, "select count(distinct run_date) from system.model_runs").await, 8);
    assert_eq!(number(&lake, "select count(distinct model) from system.model_runs").await, 20);
    assert!(lake.verify().await.expect("audited").is_whole());
}

#[tokio::test]
async fn what_is_no_column_of_a_journal_is_refused() {
    let lake = in_memory().await.lake;
    let row = json!({ "run_id": "r", "mood": "good" });
    let error = lake.write_journal(Journal::TestResults, &[row]).await.expect_err("not taken");
    assert_eq!(error.kind(), ErrorKind::Bug);
    assert!(error.to_string().contains("system.test_results"), "{error}");
}

#[tokio::test]
async fn journals_are_written_from_many_sides_at_once() {
    for test in lakes().await {
        let mut writers = JoinSet::new();
        for _ in 0..4 {
            let lake = opened_again(&test).await;
            writers.spawn(async move {
                for _ in 0..5 {
                    lake.write_journal(Journal::ModelRuns, &[run(&lake, "m")]).await.expect("written");
                }
            });
        }
        writers.join_all().await;
        assert_eq!(number(&test.lake, "select count(*) from system.model_runs").await, 20);
    }
}

/// Counts how often it was asked.
#[derive(Debug, Default)]
struct Asked(std::sync::atomic::AtomicI64);

impl SystemSource for Asked {
    fn name(&self) -> &'static str {
        "asked"
    }

    fn rows(&self) -> Result<RecordBatch, Error> {
        let times = self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
        Ok(RecordBatch::try_from_iter([("times", Arc::new(Int64Array::from(vec![times])) as _)]).expect("a column"))
    }
}

#[tokio::test]
async fn a_part_of_the_program_adds_a_table_that_is_computed_when_it_is_read() {
    let lake = in_memory().await.lake;
    let sessions = lake.session_factory().with_system_table(Arc::new(Asked::default()));
    for expected in 1..=3 {
        let session = sessions.at_publication(None).await.expect("opened");
        assert_eq!(numbers(&session, "select times from system.asked").await, [expected]);
        // One session shows one moment.
        assert_eq!(numbers(&session, "select a.times from system.asked a, system.asked b").await, [expected]);
    }
    assert!(session(&lake).await.sql("select * from system.asked").await.is_err(), "nobody else has it");
}

/// Adds that many rows of a partition, as ingest would.
async fn consume(lake: &Lake, partition: i32, rows: i64) {
    let table = lake.table(&TableName::new("bronze", "things"));
    let head = table.ensure(&spec()).await.expect("made");
    let mut commit = commit_of(&table, 0..rows, &format!("p{partition}"), rows).await;
    let mut info = IngestInfo::new("t", "", TableName::new("bronze", "dead_letters"));
    info.ranges.push(ConsumedRange {
        partition,
        from: 0,
        to: rows,
        incarnation: 0,
        messages: None,
        rows: rows as u64,
        dead_letters: 0,
        holes: 0,
        end_offset: rows,
        fingerprint: String::new(),
    });
    commit.record_ingest(&info).expect("plain data");
    assert!(matches!(table.append(head.version, commit).await.expect("committed"), Outcome::Committed(_)));
}

#[tokio::test]
async fn progress_tells_how_fast_rows_come_and_how_old_the_last_are() {
    let (clock, lake) = with_clock().await;
    // The first row of all only begins the time.
    consume(&lake, 0, 1_000).await;
    for _ in 0..10 {
        clock.advance(TimeDelta::seconds(1));
        consume(&lake, 0, 30).await;
        consume(&lake, 1, 10).await;
    }
    let rates = "select round(rows_per_second) from system.ingest_progress order by partition";
    assert_eq!(numbers(&session(&lake).await, rates).await, [30, 10]);
    clock.advance(TimeDelta::seconds(10));
    assert_eq!(numbers(&session(&lake).await, rates).await, [15, 5]);
    let ages = "select freshness_seconds from system.ingest_progress order by partition";
    assert_eq!(numbers(&session(&lake).await, ages).await, [10, 10]);
    clock.advance(TimeDelta::seconds(60));
    assert_eq!(numbers(&session(&lake).await, rates).await, [0, 0]);
}

async fn take(requests: &mut Requests, taker: &str) -> Option<lakehouse::Request> {
    requests.take(BUILD_REQUEST, taker).await.expect("looked")
}

#[tokio::test]
async fn of_many_takers_exactly_one_gets_a_request() {
    for test in lakes().await {
        let mut asker = test.lake.requests();
        let mut asked = Vec::new();
        for number in 0..3 {
            asked.push(asker.ask(BUILD_REQUEST, json!({ "number": number }), "asker").await.expect("asked").id);
        }
        asker.ask("something else", Value::Null, "asker").await.expect("asked");
        let mut takers = JoinSet::new();
        for taker in 0..5 {
            let mut requests = opened_again(&test).await.requests();
            takers.spawn(async move {
                let mut taken = Vec::new();
                while let Some(request) = take(&mut requests, &format!("taker {taker}")).await {
                    let answer = json!({ "was": request.arguments["number"] });
                    requests.finish(&request, Ok(answer)).await.expect("it is ours");
                    taken.push(request.id);
                }
                taken
            });
        }
        let mut taken: Vec<String> = takers.join_all().await.into_iter().flatten().collect();
        taken.sort_unstable();
        let mut expected = asked.clone();
        expected.sort_unstable();
        assert_eq!(taken, expected);
        for (number, id) in asked.iter().enumerate() {
            let request = asker.wait(id, Duration::from_secs(30)).await.expect("there");
            assert_eq!((request.state, &request.answer), (RequestState::Done, &json!({ "was": number })));
            assert!(request.done_at.is_some() && request.taken_by.is_some());
        }
        assert_eq!(number(&test.lake, "select count(*) from system.requests where state = 'done'").await, 3);
        assert_eq!(number(&test.lake, "select count(*) from system.requests where answer is null").await, 1);
    }
}

#[tokio::test]
async fn the_request_of_a_taker_that_died_can_be_taken_again() {
    let (clock, lake) = with_clock().await;
    let asked = lake.requests().ask(BUILD_REQUEST, json!({}), "asker").await.expect("asked");
    let (mut dead, mut alive) = (lake.requests(), lake.requests());
    let taken = take(&mut dead, "dead").await.expect("it is there");
    assert_eq!(take(&mut alive, "alive").await, None);
    assert_eq!(alive.wait(&asked.id, Duration::ZERO).await.expect("there").state, RequestState::Taken);
    clock.advance(TimeDelta::hours(1));
    let again = take(&mut alive, "alive").await.expect("its time is over");
    assert_eq!(again.id, asked.id);
    // It was not dead after all, and comes too late.
    let late = dead.finish(&taken, Ok(Value::Null)).await.expect_err("another has it");
    assert_eq!(late.kind(), ErrorKind::Conflict);
    alive.finish(&again, Err("no models".to_owned())).await.expect("it is ours");
    let answered = lake.requests().find(&asked.id).await.expect("there");
    assert_eq!((answered.state, answered.answer), (RequestState::Failed, json!({ "error": "no models" })));
    // What is a week old goes with the next change.
    clock.advance(TimeDelta::days(8));
    let next = lake.requests().ask(BUILD_REQUEST, json!({}), "asker").await.expect("asked");
    assert_eq!(lake.requests().find(&asked.id).await.expect_err("gone").kind(), ErrorKind::NotFound);
    assert_eq!(take(&mut alive, "alive").await.map(|request| request.id), Some(next.id));
}

#[tokio::test]
async fn a_look_for_requests_where_none_is_new_costs_one_read() {
    let store = Counting::over(Arc::new(InMemory::new()));
    let url = Url::parse("memory:///lake/").expect("valid URL");
    let clock = Arc::new(lakehouse::SystemClock);
    let lake = Lake::open_on(store.clone(), &url, clock).await.expect("opens");
    let mut requests = lake.requests();
    for asked in [0, 2] {
        for _ in 0..asked {
            lake.requests().ask(BUILD_REQUEST, json!({}), "asker").await.expect("asked");
        }
        while let Some(request) = take(&mut requests, "taker").await {
            requests.finish(&request, Ok(Value::Null)).await.expect("it is ours");
        }
        let before = store.requests();
        assert_eq!(take(&mut requests, "taker").await, None);
        let cost = store.requests().since(before);
        assert_eq!((cost.gets, cost.puts, cost.lists), (1, 0, 0), "after {asked} requests: {cost:?}");
    }
}
