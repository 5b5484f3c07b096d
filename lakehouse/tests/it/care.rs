//! Care of a table by hand: putting files together, deleting what nobody needs, going back.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta};
use lakehouse::{CleanReport, Compaction, ErrorKind, Lake, ManualClock, Outcome, StageOptions, StorageOptions, Table};
use url::Url;

use crate::support::{commit_of, ids, in_memory, lakes, name, replace_all, rows, spec};

/// Adds a row in a file of its own, as one that ingest has read up to.
async fn add(table: &Table, id: i64) {
    let version = table.ensure(&spec()).await.expect("made").version;
    let commit = commit_of(table, [id], "a", id + 1).await;
    assert_eq!(table.append(version, commit).await.expect("committed"), Outcome::Committed(version + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_gets_one_file_a_partition() {
    for test in lakes().await {
        let table = test.lake.table(&name());
        for id in 0..7 {
            add(&table, id).await;
        }
        let few = test.lake.compact(&table, None, Compaction::AsTheyPileUp).await.expect("a round");
        assert_eq!(few.removed, 0, "so few are left alone");
        let all = test.lake.compact(&table, None, Compaction::Thorough).await.expect("a round");
        assert_eq!((all.removed, all.added), (7, 3));
        assert_eq!(test.lake.compact(&table, None, Compaction::Thorough).await.expect("a round").removed, 0);
        assert_eq!(table.head().await.expect("there").files.len(), 3);
        assert_eq!(ids(&test.lake, &table).await, (0..7).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_version_comes_back_with_its_ledger() {
    for test in lakes().await {
        let table = test.lake.table(&name());
        for id in 0..4 {
            add(&table, id).await;
        }
        let mut later = commit_of(&table, [4], "a", 5).await;
        later.transactions.insert("b".to_owned(), 9);
        assert_eq!(table.append(4, later).await.expect("committed"), Outcome::Committed(5));

        let plan = table.plan_restore(2).await.expect("planned");
        assert_eq!((plan.goes, plan.comes_back), ((3, Some(3)), (0, Some(0))));
        assert_eq!(table.restore(plan).await.expect("restored"), Outcome::Committed(6));
        assert_eq!(ids(&test.lake, &table).await, [0, 1]);
        let ledger = table.ledger(&["a".to_owned(), "b".to_owned()]).await.expect("read");
        assert_eq!((ledger.entries["a"], ledger.entries["b"]), (2, 0), "b was not there yet");
        // What goes on from there does so as if nothing had come after it.
        add(&table, 2).await;
        assert_eq!(ids(&test.lake, &table).await, [0, 1, 2]);

        // That too can be taken back.
        let plan = table.plan_restore(5).await.expect("planned");
        assert_eq!((plan.goes, plan.comes_back), ((1, Some(1)), (3, Some(3))));
        assert_eq!(table.restore(plan).await.expect("restored"), Outcome::Committed(8));
        assert_eq!(ids(&test.lake, &table).await, (0..5).collect::<Vec<_>>());
        assert!(table.plan_restore(5).await.expect("planned").is_nothing());
        let history = table.history(1).await.expect("read");
        assert_eq!((history[0].operation.as_str(), history[0].restored()), ("RESTORE", Some(5)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_void_once_another_commits() {
    let test = in_memory().await;
    let table = test.lake.table(&name());
    add(&table, 0).await;
    add(&table, 1).await;
    let plan = table.plan_restore(1).await.expect("planned");
    add(&table, 2).await;
    assert_eq!(table.restore(plan).await.expect("answered"), Outcome::Lost { winner: 3 });
    assert_eq!(table.plan_restore(9).await.expect_err("not there").kind(), ErrorKind::NotFound);
}

/// A lake on disk whose clock is ours.
async fn on_disk() -> (tempfile::TempDir, Arc<ManualClock>, Lake) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let clock = Arc::new(ManualClock::new(DateTime::from_timestamp(1_800_000_000, 0).expect("a time")));
    let url = Url::from_directory_path(folder.path().join("lake")).expect("an absolute path");
    let lake = Lake::open(&url, &StorageOptions::default(), clock.clone()).await.expect("opens");
    (folder, clock, lake)
}

fn data_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "_delta_log") {
            found.extend(data_files(&path));
        } else if path.extension().is_some_and(|ending| ending == "parquet") {
            found.push(path);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_nobody_needs_is_deleted() {
    let (folder, clock, lake) = on_disk().await;
    let table = lake.table(&name());
    replace_all(&table, 0..1).await;
    replace_all(&table, 0..3).await;
    let head = table.head().await.expect("there");
    // Two files of a build that was broken off: one was long ago, the other may still run.
    let folder = folder.path().join("lake/bronze/things");
    let committed = data_files(&folder);
    for id in [7, 8] {
        table.stage_batches(&head, vec![rows([id])], &StageOptions::default()).await.expect("staged");
    }
    let staged: Vec<_> = data_files(&folder).into_iter().filter(|path| !committed.contains(path)).collect();
    assert_eq!(staged.len(), 2);
    let file = File::options().write(true).open(&staged[0]).expect("there");
    let written = file.metadata().and_then(|metadata| metadata.modified()).expect("a time");
    file.set_modified(written - Duration::from_secs(25 * 3_600)).expect("made older");

    let plan = lake.plan_vacuum(&table).await.expect("planned");
    assert_eq!((plan.superseded.files, plan.untracked.files, plan.kept.files), (0, 1, 1), "{plan:?}");
    clock.advance(TimeDelta::minutes(11));
    let plan = lake.plan_vacuum(&table).await.expect("planned");
    assert_eq!((plan.superseded.files, plan.untracked.files, plan.kept), (1, 1, CleanReport::default()), "{plan:?}");
    let before = data_files(&folder).len();
    lake.vacuum(&table, plan).await.expect("cleaned");
    assert_eq!((before, data_files(&folder).len()), (6, 4));
    assert!(!staged[0].exists() && staged[1].exists());
    assert_eq!(ids(&lake, &table).await, [0, 1, 2]);
    assert!(lake.verify().await.expect("audited").is_whole());

    let error = table.plan_restore(1).await.expect_err("its file is gone");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("was cleaned up"), "{error}");
}
