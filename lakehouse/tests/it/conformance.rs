//! The conformance suite: what must hold on every store when it fails, in memory, on disk and in a bucket alike.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::TryStreamExt as _;
use lakehouse::{Compaction, ErrorKind, Outcome, StageOptions, Table};
use object_store::{ObjectMeta, ObjectStore as _};

use crate::faulty::{FaultyLake, faulty_lakes};
use crate::support::{commit_of, ids, name, rows};

/// Commits rows with these ids after whatever is there.
async fn add(table: &Table, ids: std::ops::Range<i64>) {
    let ledger = table.ledger(&["a".to_owned()]).await.expect("read");
    let commit = commit_of(table, ids.clone(), "a", ids.end).await;
    assert_eq!(table.append(ledger.version, commit).await.expect("answered"), Outcome::Committed(ledger.version + 1));
}

/// All data files that the lake's store shows.
async fn data_files(FaultyLake { store, test, .. }: &FaultyLake) -> Vec<ObjectMeta> {
    let folder = object_store::path::Path::from_url_path(test.url.path()).expect("a path");
    let all: Vec<_> = store.list(Some(&folder)).try_collect().await.expect("listed");
    let is_data = |object: &ObjectMeta| object.location.as_ref().ends_with(".zstd.parquet");
    all.into_iter().filter(is_data).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_not_a_failure() {
    for FaultyLake { store, lake, test: _test } in faulty_lakes().await {
        let table = lake.table(&name());
        for fault in [&store.answers_to_lose, &store.answers_to_repeat] {
            let ledger = table.ledger(&["a".to_owned()]).await.expect("read");
            let first = ledger.entries.get("a").copied().unwrap_or(0);
            fault.store(1, Ordering::SeqCst);
            add(&table, first..first + 3).await;
            assert_eq!(fault.load(Ordering::SeqCst), 0);
        }
        assert_eq!(ids(&lake, &table).await, (0..6).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_race_while_answers_and_requests_are_lost() {
    const ROUNDS: i64 = 8;
    for faulty in faulty_lakes().await {
        faulty.store.requests_to_lose.store(3, Ordering::SeqCst);
        faulty.store.answers_to_lose.store(5, Ordering::SeqCst);
        faulty.store.answers_to_repeat.store(5, Ordering::SeqCst);
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..2 {
            // Each in a process of its own.
            let lake = faulty.opened_again().await;
            writers.spawn(async move {
                let table = lake.table(&name());
                let app_id = format!("writer {writer}");
                for round in 0..ROUNDS {
                    let first = (writer * ROUNDS + round) * 10;
                    let ledger = table.ledger(std::slice::from_ref(&app_id)).await.expect("read");
                    let commit = commit_of(&table, first..first + 10, &app_id, round + 1).await;
                    let outcome = table.append(ledger.version, commit).await.expect("answered");
                    assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
                }
            });
        }
        while let Some(ended) = writers.join_next().await {
            ended.expect("no writer failed");
        }
        let table = faulty.lake.table(&name());
        assert_eq!(ids(&faulty.lake, &table).await, (0..2 * ROUNDS * 10).collect::<Vec<_>>());
        assert_eq!(table.head().await.expect("there").version, 2 * ROUNDS as u64);
    }
}

/// A lake that held its own sessions, which hold the lake, once kept all that was known of it for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_is_closed_lets_go_of_its_store() {
    for FaultyLake { store, lake, test: _test } in faulty_lakes().await {
        let table = lake.table(&name());
        add(&table, 0..3).await;
        assert_eq!(ids(&lake, &table).await, [0, 1, 2]);
        drop((lake, table));
        assert_eq!(std::sync::Arc::strong_count(&store), 1);
    }
}

/// Whether the entry that stands there is ours cannot be told while nothing can be read: that is a store to wait for.
#[tokio::test(flavor = "multi_thread")]
async fn a_rival_that_cannot_be_read_is_a_store_that_is_away() {
    for FaultyLake { store, lake, test: _test } in faulty_lakes().await {
        let table = lake.table(&name());
        let commit = commit_of(&table, 0..3, "a", 3).await;
        store.answers_to_repeat.store(1, Ordering::SeqCst);
        store.lost_entries.store(u32::MAX, Ordering::SeqCst);
        let error = table.append(0, commit).await.expect_err("nobody knows");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        store.lost_entries.store(0, Ordering::SeqCst);
        assert_eq!(ids(&lake, &table).await, (0..3).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_request_is_repeated_and_then_an_error() {
    for FaultyLake { store, lake, test: _test } in faulty_lakes().await {
        let table = lake.table(&name());
        store.requests_to_lose.store(2, Ordering::SeqCst);
        add(&table, 0..3).await;

        store.requests_to_lose.store(u32::MAX, Ordering::SeqCst);
        let commit = commit_of(&table, 3..6, "a", 6).await;
        let error = table.append(1, commit).await.expect_err("the store never takes it");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let tries = u32::MAX - store.requests_to_lose.swap(0, Ordering::SeqCst);
        assert_eq!(tries, 5, "it is tried again, and not for ever");
        assert_eq!(ids(&lake, &table).await, (0..3).collect::<Vec<_>>());
    }
}

/// A store that went away while a footer was read was once taken for a damaged file, and ended the process that should have
/// waited.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_goes_away_while_rows_are_read_is_no_damaged_file() {
    for faulty in faulty_lakes().await {
        add(&faulty.lake.table(&name()), 0..3).await;
        for read in 1.. {
            faulty.store.lost_read.store(read, Ordering::SeqCst);
            // Another process: nothing is cached.
            let lake = faulty.opened_again().await;
            let head = lake.table(&name()).head().await.expect("the log is there");
            let rows = lake.session_factory().context().read_table(head.provider()).expect("planned");
            let Err(error) = rows.collect().await else {
                assert!(read > 2, "the footer and the rows are not {} reads", read - 1);
                break;
            };
            let error = lakehouse::Error::query("cannot read it", error);
            assert_eq!(error.kind(), ErrorKind::Unavailable, "read {read}: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_cannot_be_read_for_the_moment_is_no_damage() {
    for faulty in faulty_lakes().await {
        let table = faulty.lake.table(&name());
        for id in 0..100 {
            add(&table, id..id + 1).await;
        }
        faulty.lake.settle().await;
        let mut lost = 0;
        loop {
            faulty.store.lost_read.store(lost + 1, Ordering::SeqCst);
            match faulty.opened_again().await.table(&name()).head().await {
                Ok(head) => break assert_eq!(head.version, 100),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
            }
            lost += 1;
        }
        assert!(lost > 0, "it is read at all");
    }
}

/// Whoever begins to read while lists lag sees all that was committed all the same: what comes after the entries that a list
/// shows is asked for one by one.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_lags_hides_no_commit() {
    for faulty in faulty_lakes().await {
        let table = faulty.lake.table(&name());
        add(&table, 0..1).await;
        faulty.store.let_lists_lag();
        for upto in [7, 102] {
            let known = table.head().await.expect("there").version as i64;
            for id in known..upto {
                add(&table, id..id + 1).await;
            }
            faulty.lake.settle().await;
            let other = faulty.opened_again().await;
            assert_eq!(ids(&other, &other.table(&name())).await, (0..upto).collect::<Vec<_>>());
        }
        let other = faulty.opened_again().await;
        add(&other.table(&name()), 102..103).await;
        add(&table, 103..104).await;
        assert_eq!(ids(&faulty.lake, &table).await, (0..104).collect::<Vec<_>>());
        assert!(other.verify().await.expect("audited").is_whole());
        faulty.store.let_lists_catch_up();
        assert!(other.verify().await.expect("audited").is_whole());
    }
}

/// A table that no list shows yet is there for those who know its name.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_no_list_shows_yet_is_waited_for() {
    for faulty in faulty_lakes().await {
        faulty.store.let_lists_lag();
        let fresh = lakehouse::TableName::new("bronze", "fresh");
        let table = faulty.lake.table(&fresh);
        let made = table.ensure(&crate::support::spec()).await;
        let seen = faulty.opened_again().await.table(&fresh).head().await;
        for error in [made.err(), seen.err()].into_iter().flatten() {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        }
        faulty.store.let_lists_catch_up();
        table.ensure(&crate::support::spec()).await.expect("made once");
        add(&table, 0..3).await;
        let other = faulty.opened_again().await;
        assert_eq!(ids(&other, &other.table(&fresh)).await, [0, 1, 2]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_list_shows_though_it_is_deleted_does_no_harm() {
    for FaultyLake { store, lake, test: _test } in faulty_lakes().await {
        let table = lake.table(&name());
        for id in 0..4 {
            add(&table, id..id + 1).await;
        }
        lake.compact(&table, None, Compaction::Thorough).await.expect("a round");
        let head = table.head().await.expect("there");
        table.stage_batches(&head, vec![rows([9])], &StageOptions::default()).await.expect("staged");
        store.is_long_ago.store(true, Ordering::SeqCst);
        store.let_lists_lag();
        let lease = lake.take_lease("ingest/things", "one").await.expect("taken");
        lease.release().await;
        for _ in 0..2 {
            // The second time all that goes is gone already.
            let plan = lake.plan_vacuum(&table).await.expect("planned");
            assert_eq!(plan.untracked.files, 1, "{plan:?}");
            lake.vacuum(&table, plan).await.expect("cleaned");
        }
        assert!(lake.leases("ingest/things").await.expect("read").is_empty());
        assert_eq!(ids(&lake, &table).await, [0, 1, 2, 3]);
        assert!(lake.verify().await.expect("audited").is_whole());
    }
}

/// Half a data file, half a log entry: each time the process dies in the middle, and another one does it again.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_leaves_nothing_that_is_read() {
    for faulty in faulty_lakes().await {
        let FaultyLake { store, lake, .. } = &faulty;
        let table = lake.table(&name());
        add(&table, 0..3).await;
        let (head, before) = (table.head().await.expect("there"), data_files(&faulty).await.len());

        store.uploads_to_break_off.store(1, Ordering::SeqCst);
        let staged = table.stage_batches(&head, vec![rows(3..6)], &StageOptions::default()).await;
        assert_eq!(staged.expect_err("broken off").kind(), ErrorKind::Unavailable);
        assert_eq!(data_files(&faulty).await.len(), before, "nothing has its name");

        let commit = commit_of(&table, 3..6, "a", 6).await;
        store.uploads_to_break_off.store(u32::MAX, Ordering::SeqCst);
        let error = table.append(head.version, commit.clone()).await.expect_err("broken off each time");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        store.uploads_to_break_off.store(0, Ordering::SeqCst);
        let again = faulty.opened_again().await;
        assert_eq!(ids(&again, &again.table(&name())).await, [0, 1, 2]);
        assert_eq!(table.append(head.version, commit).await.expect("answered"), Outcome::Committed(2));
        assert_eq!(ids(&again, &again.table(&name())).await, (0..6).collect::<Vec<_>>());
        assert!(again.verify().await.expect("audited").is_whole());
        check_remains(&faulty, &table).await;
    }
}

/// On disk a file without a name is left for each upload; they go when they are a day old. In memory and in a bucket nothing
/// is left that anybody can see.
async fn check_remains(faulty: &FaultyLake, table: &Table) {
    let is_on_disk = faulty.test.url.scheme() == "file";
    let folder = is_on_disk.then(|| faulty.test.url.to_file_path().expect("a path"));
    let remains = || folder.as_deref().map(unnamed).unwrap_or_default();
    let left = remains();
    assert_eq!(left.len(), if is_on_disk { 6 } else { 0 }, "{left:?}");
    let plan = faulty.lake.plan_vacuum(table).await.expect("planned");
    assert_eq!(plan.untracked.files, 0, "they may be on their way: {plan:?}");
    for path in left.iter().skip(1) {
        let file = std::fs::File::options().write(true).open(path).expect("there");
        let written = file.metadata().and_then(|metadata| metadata.modified()).expect("a time");
        file.set_modified(written - Duration::from_secs(25 * 3_600)).expect("made older");
    }
    let plan = faulty.lake.plan_vacuum(table).await.expect("planned");
    assert_eq!(plan.untracked.files, left.len().saturating_sub(1) as u64, "{plan:?}");
    faulty.lake.vacuum(table, plan).await.expect("cleaned");
    assert_eq!(remains(), left[..left.len().min(1)]);
    assert_eq!(ids(&faulty.lake, table).await, (0..6).collect::<Vec<_>>());
    assert!(faulty.lake.verify().await.expect("audited").is_whole());
}

/// Files that never got their name, in a folder and all below it.
fn unnamed(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(unnamed(&path));
        } else if path.to_string_lossy().contains('#') {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Where a store gives a name to half a file, no commit names it.
#[tokio::test(flavor = "multi_thread")]
async fn half_a_file_under_its_name_is_never_read_and_goes_in_time() {
    for faulty in faulty_lakes().await {
        let FaultyLake { store, lake, .. } = &faulty;
        let table = lake.table(&name());
        add(&table, 0..3).await;
        let head = table.head().await.expect("there");
        let before = data_files(&faulty).await.len();
        store.files_to_truncate.store(1, Ordering::SeqCst);
        let staged = table.stage_batches(&head, vec![rows([3])], &StageOptions::default()).await;
        assert_eq!(staged.expect_err("cut off").kind(), ErrorKind::Unavailable);
        assert_eq!(data_files(&faulty).await.len(), before + 1);
        add(&table, 3..6).await;
        assert_eq!(ids(lake, &table).await, (0..6).collect::<Vec<_>>());

        assert_eq!(lake.plan_vacuum(&table).await.expect("planned").untracked.files, 0, "it may be on its way");
        store.is_long_ago.store(true, Ordering::SeqCst);
        let plan = lake.plan_vacuum(&table).await.expect("planned");
        assert_eq!((plan.untracked.files, plan.superseded.files), (1, 0), "{plan:?}");
        lake.vacuum(&table, plan).await.expect("cleaned");
        assert_eq!(ids(lake, &table).await, (0..6).collect::<Vec<_>>());
        assert!(lake.verify().await.expect("audited").is_whole());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_is_told_at_once_and_harms_nothing() {
    for FaultyLake { store, lake, test: _test } in faulty_lakes().await {
        let table = lake.table(&name());
        add(&table, 0..3).await;
        let head = table.head().await.expect("there");
        let commit = commit_of(&table, 3..6, "a", 6).await;
        store.is_full.store(true, Ordering::SeqCst);
        let staged = table.stage_batches(&head, vec![rows(3..6)], &StageOptions::default()).await;
        for error in [staged.expect_err("full"), table.append(1, commit.clone()).await.expect_err("full")] {
            assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
            assert!(error.to_string().contains("bronze.things"), "{error}");
        }
        assert_eq!(ids(&lake, &table).await, [0, 1, 2]);
        store.is_full.store(false, Ordering::SeqCst);
        assert_eq!(table.append(1, commit).await.expect("answered"), Outcome::Committed(2));
        assert_eq!(ids(&lake, &table).await, (0..6).collect::<Vec<_>>());
        assert!(lake.verify().await.expect("audited").is_whole());
    }
}
