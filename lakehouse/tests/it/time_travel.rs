//! A table as it was at a version or at a moment.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use lakehouse::{Cleaner, ErrorKind, Lake, ManualClock, Outcome, StorageOptions, Table};
use url::Url;

use crate::support::{commit_of, lakes, name, numbers, replace_all, spec};

/// Adds a row in a file of its own.
async fn add(table: &Table, id: i64) -> u64 {
    let version = table.ensure(&spec()).await.expect("made").version;
    let commit = commit_of(table, [id], "a", id + 1).await;
    assert_eq!(table.append(version, commit).await.expect("committed"), Outcome::Committed(version + 1));
    version + 1
}

fn noon() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).expect("a time")
}

/// A lake on disk whose clock is ours.
async fn on_disk() -> (tempfile::TempDir, Arc<ManualClock>, Lake) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let clock = Arc::new(ManualClock::new(noon()));
    let lake = open(&folder, &clock).await;
    (folder, clock, lake)
}

/// The same lake as another process sees it.
async fn open(folder: &tempfile::TempDir, clock: &Arc<ManualClock>) -> Lake {
    let url = Url::from_directory_path(folder.path().join("lake")).expect("an absolute path");
    Lake::open(&url, &StorageOptions::default(), clock.clone()).await.expect("opens")
}

async fn refusal(table: &Table, moment: DateTime<Utc>) -> String {
    let error = table.as_of(moment).await.expect_err("no such version");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    error.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_version_reads_as_it_was() {
    for test in lakes().await {
        let table = test.lake.table(&name());
        for id in 0..4 {
            add(&table, id).await;
        }
        replace_all(&table, 7..9).await;
        for (version, expected) in [(0, vec![]), (1, vec![0]), (4, vec![0, 1, 2, 3]), (5, vec![7, 8])] {
            let context = test.lake.session_factory().context();
            let then = table.as_of_version(version).await.expect("kept");
            context.register_table("t", then.provider()).expect("registered");
            assert_eq!(numbers(&context, "select id from t order by id").await, expected, "version {version}");
        }
        let error = table.as_of_version(6).await.expect_err("still to come");
        assert_eq!(error.to_string(), "bronze.things has no version 6: the newest is 5");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_is_the_last_version_before_it_also_where_the_clock_went_back() {
    let (_folder, clock, lake) = on_disk().await;
    let table = lake.table(&name());
    // Minutes after noon at which the versions are committed; twice the clock goes back.
    let minutes = [0, 10, 20, 30, 40, -20, -10, 5, 25, 41, 60, 70, 15, 71, 200, 400, 300, 500];
    let mut last = 0;
    for (version, at) in minutes.into_iter().enumerate() {
        clock.advance(TimeDelta::minutes(at - last));
        last = at;
        match version {
            0 => drop(table.ensure(&spec()).await.expect("made")),
            _ => assert_eq!(add(&table, version as i64).await, version as u64),
        }
    }
    let mut latest = i64::MIN;
    let counted: Vec<i64> = minutes
        .iter()
        .map(|minute| {
            latest = latest.max(*minute);
            latest
        })
        .collect();
    for minute in 0..=500 {
        let expected = counted.iter().rposition(|at| *at <= minute).expect("the first is at noon");
        let found = table.as_of(noon() + TimeDelta::minutes(minute)).await.expect("kept").version;
        assert_eq!(found, expected as u64, "{minute} minutes after noon");
    }
    // Between the last commit and now it is what it is now; later nobody knows.
    clock.advance(TimeDelta::minutes(9));
    assert_eq!(table.as_of(noon() + TimeDelta::minutes(509)).await.expect("kept").version, 17);
    let told = refusal(&table, noon() + TimeDelta::minutes(510)).await;
    assert_eq!(told, "what bronze.things will be at 2027-01-15T16:30:00Z is not known: it is 2027-01-15T16:29:00Z now");
    let told = refusal(&table, noon() - TimeDelta::milliseconds(1)).await;
    assert_eq!(
        told,
        "bronze.things as of 2027-01-15T07:59:59.999Z was not there yet: the oldest version is 0, committed at 2027-01-15T08:00:00Z"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cleaned_up_is_said_to_be_gone() {
    let (folder, clock, lake) = on_disk().await;
    let table = lake.table(&name());
    for id in 0..104 {
        if id == 50 {
            replace_all(&table, 0..2).await;
        } else {
            add(&table, id).await;
        }
        clock.advance(TimeDelta::minutes(1));
    }
    lake.settle().await;
    let log = folder.path().join("lake/bronze/things/_delta_log");
    assert!(log.join("00000000000000000100.checkpoint.parquet").exists());

    // The files that version 51 put others in the place of.
    assert_eq!(table.as_of_version(50).await.expect("kept").files.len(), 50);
    Cleaner::only(lake.clone(), [name()]).clean().await.expect("cleaned");
    let error = table.as_of_version(50).await.expect_err("without its files").to_string();
    assert!(error.starts_with("version 50 of bronze.things is not kept any more: its file day="), "{error}");
    assert_eq!(table.as_of_version(51).await.expect("kept").files.len(), 2);

    // The entries that the checkpoint made superfluous.
    for version in 0..100 {
        std::fs::remove_file(log.join(format!("{version:020}.json"))).expect("there");
    }
    let table = open(&folder, &clock).await.table(&name());
    let error = table.as_of_version(99).await.expect_err("without its entries");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let oldest = "the oldest version is 100, committed at 2027-01-15T09:39:00Z";
    assert_eq!(
        error.to_string(),
        format!("version 99 of bronze.things is not kept any more: {}", oldest.replace("oldest version", "oldest"))
    );
    assert_eq!(table.as_of_version(100).await.expect("kept").version, 100);
    let at = |minute| noon() + TimeDelta::minutes(minute);
    let told = refusal(&table, at(98)).await;
    assert_eq!(told, format!("bronze.things as of 2027-01-15T09:38:00Z is not kept any more: {oldest}"));
    for (minute, version) in [(99, 100), (100, 101), (103, 104)] {
        assert_eq!(table.as_of(at(minute)).await.expect("kept").version, version, "{minute}");
    }
}
