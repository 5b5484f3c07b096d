//! The audit finds what is planted.

use std::sync::Arc;

use arrow::array::{Int32Array, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use lakehouse::{
    Commit, ConsumedRange, INGEST_KEY, IngestInfo, Lake, Operation, Outcome, StageOptions, TableName, TableSpec,
    VerifyReport, ingest_app_id,
};

use crate::support::in_memory;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("_partition", DataType::Int32, true),
        Field::new("_offset", DataType::Int64, true),
        Field::new("_index", DataType::Int32, true),
    ]))
}

/// Commits rows at `offsets`, recorded as the range `from..to` with `claimed` rows.
async fn ingest(lake: &Lake, from: i64, to: i64, claimed: u64, offsets: &[i64]) {
    let table = lake.table(&TableName::new("bronze", "events"));
    let head = table.ensure(&TableSpec::new(schema())).await.expect("made");
    let count = offsets.len();
    let batch = RecordBatch::try_new(
        schema(),
        vec![
            Arc::new(Int32Array::from(vec![0; count])),
            Arc::new(Int64Array::from(offsets.to_vec())),
            Arc::new(Int32Array::from(vec![0; count])),
        ],
    )
    .expect("valid rows");
    let range = ConsumedRange {
        partition: 0,
        from,
        to,
        incarnation: 0,
        messages: Some(claimed),
        rows: claimed,
        dead_letters: 0,
        holes: (to - from) as u64 - claimed,
        end_offset: to,
        fingerprint: String::new(),
    };
    let mut info = IngestInfo::new("t", "", TableName::new("bronze", "dead_letters"));
    info.ranges = vec![range];
    let mut commit = Commit::new(Operation::Write);
    commit.adds = table.stage_batches(&head, vec![batch], &StageOptions::default()).await.expect("staged");
    commit.transactions.insert(ingest_app_id("t", 0), to);
    commit.info.insert(INGEST_KEY.to_owned(), serde_json::to_value(info).expect("plain data"));
    let outcome = table.append(head.version, commit).await.expect("committed");
    assert!(matches!(outcome, Outcome::Committed(_)));
}

async fn faults(lake: &Lake) -> String {
    let report: VerifyReport = lake.verify().await.expect("audited");
    report.faults.iter().map(|fault| format!("{}\n", fault.what)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_lake_has_no_faults() {
    let test = in_memory().await;
    assert_eq!(faults(&test.lake).await, "");
    ingest(&test.lake, 0, 3, 3, &[0, 1, 2]).await;
    ingest(&test.lake, 3, 6, 2, &[3, 5]).await;
    let report = test.lake.verify().await.expect("audited");
    assert!(report.is_whole(), "{report}");
    expect_test::expect![[r#"
        bronze.events partition 0 of t: offsets 0..6 = 5 rows + 0 dead letters + 1 holes, in 2 commits
        ok: no gap, no overlap, no double, ledger and rows agree"#]]
    .assert_eq(&report.to_string());
    let progress = test.lake.ingest_progress().await.expect("read");
    assert_eq!((progress.len(), progress[0].next_offset, progress[0].lag), (1, 6, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_overlaps_doubles_and_losses_are_found() {
    let test = in_memory().await;
    ingest(&test.lake, 0, 3, 3, &[0, 1, 2]).await;
    ingest(&test.lake, 5, 7, 2, &[5, 6]).await;
    ingest(&test.lake, 6, 8, 2, &[6, 7]).await;
    ingest(&test.lake, 8, 10, 2, &[8]).await;
    ingest(&test.lake, 10, 11, 1, &[99]).await;
    expect_test::expect![[r#"
        version 4 says that it added 2 rows, but its files hold 1
        a row with offset 99 is in no range that a commit recorded
        offset 6 is there 2 times
        version 2 begins at offset 5, but the one before it, 1, ended at 3
        version 3 begins at offset 6, but the one before it, 2, ended at 7
        offsets 5..7 of version 2 should hold 2 rows, but 1 are there
        offsets 6..8 of version 3 should hold 2 rows, but 3 are there
        offsets 8..10 of version 4 should hold 2 rows, but 1 are there
        offsets 10..11 of version 5 should hold 1 rows, but 0 are there
    "#]]
    .assert_eq(&faults(&test.lake).await);
}
