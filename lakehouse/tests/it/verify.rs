//! The audit finds what is planted.

use std::sync::Arc;

use arrow::array::{Int32Array, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use lakehouse::{
    Commit, ConsumedRange, INGEST_KEY, IngestInfo, Lake, ManualClock, Operation, Outcome, PlaceColumns, Rewind, Skip,
    SkipReason, StageOptions, StorageOptions, Table, TableName, TableSpec, TableVersion, Tail, VerifyReport,
    ingest_app_id,
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
    let mut info = info();
    info.ranges = vec![range(from, to, claimed)];
    commit(lake, info, to, offsets).await;
}

fn info() -> IngestInfo {
    IngestInfo::new("t", "", TableName::new("bronze", "dead_letters"))
}

fn range(from: i64, to: i64, rows: u64) -> ConsumedRange {
    ConsumedRange {
        partition: 0,
        from,
        to,
        incarnation: 0,
        messages: Some(rows),
        rows,
        dead_letters: 0,
        holes: (to - from) as u64 - rows,
        end_offset: to,
        fingerprint: String::new(),
    }
}

async fn table(lake: &Lake) -> (Table, Arc<TableVersion>) {
    let table = lake.table(&TableName::new("bronze", "events"));
    let head = table.ensure(&TableSpec::new(schema())).await.expect("made");
    (table, head)
}

/// Commits rows at `offsets` with what `info` says, after which the ledger stands at `next`.
async fn commit(lake: &Lake, info: IngestInfo, next: i64, offsets: &[i64]) {
    let (table, head) = table(lake).await;
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
    let mut commit = Commit::new(Operation::Write);
    commit.adds = table.stage_batches(&head, vec![batch], &StageOptions::default()).await.expect("staged");
    commit.transactions.insert(ingest_app_id("t", 0), next);
    commit.info.insert(INGEST_KEY.to_owned(), serde_json::to_value(info).expect("plain data"));
    let outcome = table.append(head.version, commit).await.expect("committed");
    assert!(matches!(outcome, Outcome::Committed(_)));
}

/// Sets the ledger back from `from` to `to`; `keep` says what is left of the range that it cuts.
async fn rewind(lake: &Lake, from: i64, to: i64, kept: Option<ConsumedRange>) {
    let (table, head) = table(lake).await;
    let sessions = lake.session_factory();
    let tail = Tail { partition: 0, incarnation: 0, from: to };
    let gone = table.stage_without(&sessions, &head, PlaceColumns::ROWS, &[tail]).await.expect("staged");
    let mut commit = Commit::new(Operation::Write);
    (commit.removes, commit.adds) = (gone.removes, gone.adds);
    commit.transactions.insert(ingest_app_id("t", 0), to);
    let mut info = info();
    info.rewinds = vec![Rewind { partition: 0, from, to, rows: gone.rows, kept }];
    commit.info.insert(INGEST_KEY.to_owned(), serde_json::to_value(info).expect("plain data"));
    let outcome = table.replace(head.version, commit).await.expect("committed");
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
        ok: no gap, no overlap, no double, ledger and rows agree; all 2 files are whole"#]]
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
        version 2 begins at offset 5, but the one before it, 1, ended at 3
        version 3 begins at offset 6, but the one before it, 2, ended at 7
        version 4 says that it added 2 rows, but its files hold 1
        a row with offset 99 is in no range that a commit recorded
        offset 6 is there 2 times
        offsets 5..7 of version 2 should hold 2 rows, but 1 are there
        offsets 6..8 of version 3 should hold 2 rows, but 3 are there
        offsets 8..10 of version 4 should hold 2 rows, but 1 are there
        offsets 10..11 of version 5 should hold 1 rows, but 0 are there
    "#]]
    .assert_eq(&faults(&test.lake).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_on_purpose_is_told_and_is_no_fault() {
    let test = in_memory().await;
    ingest(&test.lake, 0, 3, 3, &[0, 1, 2]).await;
    let gone = Skip { partition: 0, from: 3, to: 7, next: 7, incarnation: 0, reason: SkipReason::Expired };
    commit(&test.lake, IngestInfo { skips: vec![gone], ..info() }, 7, &[]).await;
    ingest(&test.lake, 7, 9, 2, &[7, 8]).await;
    let report = test.lake.verify().await.expect("audited");
    expect_test::expect![[r#"
        bronze.events partition 0 of t: offsets 0..9 = 5 rows + 0 dead letters + 0 holes + 4 given up, in 2 commits
        ok: no gap, no overlap, no double, ledger and rows agree; all 2 files are whole"#]]
    .assert_eq(&report.to_string());
    // One that gives up what was read, or what is still to come, is none.
    let wrong = Skip { partition: 0, from: 20, to: 30, next: 30, incarnation: 0, reason: SkipReason::Reset };
    commit(&test.lake, IngestInfo { skips: vec![wrong], ..info() }, 30, &[]).await;
    expect_test::expect![[r#"
        version 4 gave up offsets 20..30, but the ledger stood at 9
    "#]]
    .assert_eq(&faults(&test.lake).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_was_set_back_took_its_rows_along() {
    let test = in_memory().await;
    ingest(&test.lake, 0, 4, 4, &[0, 1, 2, 3]).await;
    ingest(&test.lake, 4, 8, 4, &[4, 5, 6, 7]).await;
    rewind(&test.lake, 8, 2, Some(range(0, 2, 2))).await;
    let report = test.lake.verify().await.expect("audited");
    assert!(report.is_whole(), "{report}");
    assert_eq!((report.partitions[0].to, report.partitions[0].rows), (2, 2));
    ingest(&test.lake, 2, 8, 6, &[2, 3, 4, 5, 6, 7]).await;
    expect_test::expect![[r#"
        bronze.events partition 0 of t: offsets 0..8 = 8 rows + 0 dead letters + 0 holes, in 3 commits
        ok: no gap, no overlap, no double, ledger and rows agree; all 2 files are whole"#]]
    .assert_eq(&test.lake.verify().await.expect("audited").to_string());
    // Nobody knows any more what is left of a range that was cut and not counted again.
    rewind(&test.lake, 8, 5, None).await;
    expect_test::expect![[r#"
        version 5 cut the offsets 2..8 at 5, and does not say what was left
        offsets 2..8 of version 4 should hold 6 rows, but 3 are there
    "#]]
    .assert_eq(&faults(&test.lake).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_put_back_accounts_for_what_it_is() {
    let test = in_memory().await;
    ingest(&test.lake, 0, 3, 3, &[0, 1, 2]).await;
    ingest(&test.lake, 3, 6, 3, &[3, 4, 5]).await;
    // Another partition, which was not read before.
    let of_another = ConsumedRange { partition: 1, ..range(10, 12, 0) };
    let mut later = Commit::new(Operation::Write);
    later.transactions.insert(ingest_app_id("t", 1), 12);
    later.record_ingest(&IngestInfo { ranges: vec![of_another], ..info() }).expect("plain data");
    let (table, head) = table(&test.lake).await;
    table.append(head.version, later).await.expect("committed");
    assert_eq!(faults(&test.lake).await, "");

    let plan = table.plan_restore(1).await.expect("planned");
    table.restore(plan).await.expect("restored");
    let report = test.lake.verify().await.expect("audited");
    assert!(report.is_whole(), "{report}");
    assert_eq!((report.partitions.len(), report.partitions[0].to, report.partitions[0].rows), (1, 3, 3));
    let ledger = table.ledger(&[ingest_app_id("t", 0), ingest_app_id("t", 1)]).await.expect("read");
    assert_eq!(ledger.entries.into_values().collect::<Vec<_>>(), [3, 10], "each is read from where it was then");
    let progress = test.lake.ingest_progress().await.expect("read");
    assert_eq!((progress.len(), progress[0].next_offset), (1, 3));
    ingest(&test.lake, 3, 5, 2, &[3, 4]).await;
    let report = test.lake.verify().await.expect("audited");
    assert!(report.is_whole(), "{report}");
    assert_eq!((report.partitions[0].to, report.partitions[0].rows), (5, 5));

    let plan = table.plan_restore(3).await.expect("planned");
    table.restore(plan).await.expect("restored");
    let report = test.lake.verify().await.expect("audited");
    assert!(report.is_whole(), "{report}");
    assert_eq!(report.partitions.iter().map(|one| one.to).collect::<Vec<_>>(), [6, 12]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_seen_until_it_is_given_up_or_lapses() {
    let clock = Arc::new(ManualClock::new(chrono::DateTime::UNIX_EPOCH));
    let url = url::Url::parse("memory:///lake/").expect("a valid URL");
    let lake = Lake::open(&url, &StorageOptions::default(), clock.clone()).await.expect("opens");
    let holders = async || -> Vec<String> {
        let held = lake.leases("ingest/events").await.expect("listed");
        held.into_iter().map(|lease| lease.holder).collect()
    };
    let one = lake.take_lease("ingest/events", "one").await.expect("taken");
    let other = lake.take_lease("ingest/orders", "other").await.expect("taken");
    assert_eq!(holders().await, ["one"]);
    one.release().await;
    assert!(holders().await.is_empty());
    let killed = lake.take_lease("ingest/events", "killed").await.expect("taken");
    drop(killed);
    assert_eq!(holders().await, ["killed"]);
    clock.advance(chrono::TimeDelta::seconds(46));
    assert!(holders().await.is_empty());
    other.release().await;
    assert!(lake.tables().await.expect("listed").is_empty());
}
