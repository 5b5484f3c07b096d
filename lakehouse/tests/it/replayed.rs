//! The audit of replayed rows and expired letters finds what is planted.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use lakehouse::{
    Commit, ConsumedRange, EXPIRED_KEY, ExpiredLetters, INGEST_KEY, IngestInfo, Lake, Operation, Outcome,
    REPLAY_COLUMN, Replay, StageOptions, Table, TableName, TableSpec, ingest_app_id, replay_app_id,
};

use crate::support::in_memory;

const TOPIC: &str = "t";

fn bronze(lake: &Lake) -> Table {
    lake.table(&TableName::new("bronze", "events"))
}

fn letters(lake: &Lake) -> Table {
    lake.table(&TableName::new("bronze", "dead_letters"))
}

fn schema(columns: [&str; 3], last: &str) -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new(columns[0], DataType::Int32, true),
        Field::new(columns[1], DataType::Int64, true),
        Field::new(columns[2], DataType::Int32, true),
        Field::new(last, DataType::Utf8, true),
    ]))
}

fn batch(schema: &SchemaRef, offsets: &[i64], text: Option<&str>) -> RecordBatch {
    let count = offsets.len();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from(vec![0; count])),
        Arc::new(Int64Array::from(offsets.to_vec())),
        Arc::new(Int32Array::from(vec![0; count])),
        Arc::new(StringArray::from(vec![text; count])),
    ];
    RecordBatch::try_new(schema.clone(), columns).expect("valid rows")
}

fn info() -> IngestInfo {
    IngestInfo::new(TOPIC, "", TableName::new("bronze", "dead_letters"))
}

async fn commit(table: &Table, mut commit: Commit, rows: RecordBatch, info: &IngestInfo) {
    let head = table.ensure(&TableSpec::new(rows.schema())).await.expect("made");
    commit.adds = table.stage_batches(&head, vec![rows], &StageOptions::default()).await.expect("staged");
    commit.info.insert(INGEST_KEY.to_owned(), serde_json::to_value(info).expect("plain data"));
    let outcome = table.append(head.version, commit).await.expect("committed");
    assert!(matches!(outcome, Outcome::Committed(_)));
}

/// Offsets 0 to 9: the even ones are rows, the odd ones letters.
async fn ingested(lake: &Lake) {
    let of_letters = schema(["partition", "offset", "index"], "topic");
    let table = letters(lake);
    let head = table.ensure(&TableSpec::new(of_letters.clone())).await.expect("made");
    let mut of_odd = Commit::new(Operation::Write);
    let rows = vec![batch(&of_letters, &[1, 3, 5, 7, 9], Some(TOPIC))];
    of_odd.adds = table.stage_batches(&head, rows, &StageOptions::default()).await.expect("staged");
    table.append(head.version, of_odd).await.expect("committed");
    let range = ConsumedRange {
        partition: 0,
        from: 0,
        to: 10,
        incarnation: 0,
        messages: Some(10),
        rows: 5,
        dead_letters: 5,
        holes: 0,
        end_offset: 10,
        fingerprint: String::new(),
    };
    let mut of_even = Commit::new(Operation::Write);
    of_even.transactions.insert(ingest_app_id(TOPIC, 0), 10);
    let of_rows = schema(["_partition", "_offset", "_index"], REPLAY_COLUMN);
    let rows = batch(&of_rows, &[0, 2, 4, 6, 8], None);
    commit(&bronze(lake), of_even, rows, &IngestInfo { ranges: vec![range], ..info() }).await;
}

/// A replay that says that it brought `claimed` rows, and brings those at `offsets`.
async fn replayed(lake: &Lake, id: &str, claimed: u64, offsets: &[i64]) {
    let mut commit = Commit::new(Operation::Write);
    commit.transactions.insert(replay_app_id(TOPIC), 1);
    let info = IngestInfo { replay: Some(Replay { id: id.to_owned(), rows: claimed }), ..info() };
    let of_rows = schema(["_partition", "_offset", "_index"], REPLAY_COLUMN);
    self::commit(&bronze(lake), commit, batch(&of_rows, offsets, Some(id)), &info).await;
}

/// Takes all files of letters out, and says that it was so many.
async fn expired(lake: &Lake, claimed: u64) {
    let table = letters(lake);
    let head = table.head().await.expect("a table");
    let gone =
        ExpiredLetters { topic: TOPIC.to_owned(), partition: 0, incarnation: 0, letters: claimed, from: 1, to: 10 };
    let mut commit = Commit::new(Operation::Delete);
    commit.removes = head.files.to_vec();
    commit.info.insert(EXPIRED_KEY.to_owned(), serde_json::to_value(vec![gone]).expect("plain data"));
    table.append(head.version, commit).await.expect("committed");
}

async fn faults(lake: &Lake) -> String {
    let report = lake.verify().await.expect("audited");
    report.faults.iter().map(|fault| format!("{}\n", fault.what)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn replays_that_are_what_they_say_are_whole() {
    let test = in_memory().await;
    ingested(&test.lake).await;
    replayed(&test.lake, "one", 2, &[1, 3]).await;
    replayed(&test.lake, "one", 1, &[5]).await;
    replayed(&test.lake, "two", 1, &[9]).await;
    assert_eq!(faults(&test.lake).await, "");
    expired(&test.lake, 5).await;
    let report = test.lake.verify().await.expect("audited");
    expect_test::expect![[r#"
        bronze.events partition 0 of t: offsets 0..10 = 5 rows + 0 dead letters + 0 holes + 5 expired letters, in 1 commits
        ok: no gap, no overlap, no double, ledger and rows agree; all 4 files are whole"#]]
    .assert_eq(&report.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn replays_that_are_not_are_found() {
    let test = in_memory().await;
    ingested(&test.lake).await;
    replayed(&test.lake, "no letter", 2, &[1, 11]).await;
    replayed(&test.lake, "a row", 1, &[4]).await;
    replayed(&test.lake, "doubled", 1, &[1]).await;
    replayed(&test.lake, "too few", 2, &[3]).await;
    expect_test::expect![[r#"
        version 5 says that it added 2 rows, but its files hold 1
        offset 1 is there 2 times
        offset 4 is there 2 times
        replay too few should have brought 2 rows, but 1 are there
        a row at offset 4 index 0 is of replay a row, but no letter was there
        a row at offset 11 index 0 is of replay no letter, but no letter was there
    "#]]
    .assert_eq(&faults(&test.lake).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_that_went_without_being_counted_are_missed() {
    let test = in_memory().await;
    ingested(&test.lake).await;
    expired(&test.lake, 4).await;
    expect_test::expect![[r#"
        of 5 dead letters 4 expired, so the rest should be there, but 0 are
    "#]]
    .assert_eq(&faults(&test.lake).await);
}
