//! Superseded files go, and never one that a kept publication still names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta};
use futures::StreamExt as _;
use lakehouse::{
    Changes, Cleaner, Compaction, DEFAULT_GROUP, Lake, ManualClock, PinnedTable, StorageOptions, Table, TableName,
};
use tokio::task::JoinSet;
use url::Url;

use crate::support::{commit_of, numbers, replace_all, spec};

/// Puts rows with these ids in the place of all that is there, and publishes.
async fn rebuild(lake: &Lake, ids: std::ops::Range<i64>) -> u64 {
    let table = lake.table(&TableName::new("gold", "one"));
    let pin = replace_all(&table, ids).await;
    let version = pin.version;
    lake.publish(DEFAULT_GROUP, BTreeMap::from([(table.name().clone(), pin)])).await.expect("published");
    version
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(DateTime::from_timestamp(1_800_000_000, 0).expect("a time")))
}

fn memory() -> Url {
    Url::parse("memory:///lake/").expect("valid URL")
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_no_publication_needs_is_deleted() {
    let clock = clock();
    let lake = Lake::open(&memory(), &StorageOptions::default(), clock.clone()).await.expect("opens");
    let mut cleaner = Cleaner::new(lake.clone());
    let versions = [rebuild(&lake, 0..3).await, rebuild(&lake, 0..6).await, rebuild(&lake, 0..9).await];
    assert_eq!(cleaner.clean().await.expect("cleaned").files, 0, "all three are kept for ten minutes");

    clock.advance(TimeDelta::minutes(11));
    let newest = rebuild(&lake, 0..12).await;
    // Who began to read before that has had the time to tell.
    clock.advance(TimeDelta::minutes(3));
    // Of the three of that minute the last one is kept: the files of the first two go, and older publications' own files.
    let report = cleaner.clean().await.expect("cleaned");
    assert_eq!(report.files, 6 + 2, "{report:?}");
    assert_eq!(cleaner.clean().await.expect("cleaned").files, 0);
    let table = lake.table(&TableName::new("gold", "one"));
    for (version, expected) in [(versions[2], 9), (newest, 12)] {
        let context = lake.session_factory().context();
        context.register_table("t", table.at(version).await.expect("kept").provider()).expect("registered");
        assert_eq!(numbers(&context, "select count(id) from t where id >= 0").await, vec![expected]);
    }
    assert_eq!(lake.publications().await.expect("read").len(), 2);
}

/// Reads on, to the end.
async fn count(rows: &mut datafusion::execution::SendableRecordBatchStream) -> usize {
    let mut count = 0;
    while let Some(batch) = rows.next().await {
        count += batch.expect("the files are there").num_rows();
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_runs_keeps_the_files_that_it_reads() {
    let clock = clock();
    let lake = Lake::open(&memory(), &StorageOptions::default(), clock.clone()).await.expect("opens");
    let mut cleaner = Cleaner::new(lake.clone());
    let old = rebuild(&lake, 0..30).await;
    let table = lake.table(&TableName::new("gold", "one"));
    let context = lake.session_factory().context();
    let query = context.read_table(table.at(old).await.expect("there").provider()).expect("planned");
    let mut rows = query.execute_stream().await.expect("begun");
    for _ in 0..3 {
        clock.advance(TimeDelta::weeks(2));
        rebuild(&lake, 0..3).await;
        cleaner.clean().await.expect("cleaned");
    }
    assert_eq!(count(&mut rows).await, 30);
    drop(rows);
    // It ended only now, so another one may have begun on that version a moment ago.
    assert_eq!(cleaner.clean().await.expect("cleaned").files, 0);
    clock.advance(TimeDelta::minutes(11));
    let gone = cleaner.clean().await.expect("cleaned").files;
    assert_eq!(gone, 3 + 3 + 1, "of the version that was read, of the newest but one, and of the list of publications");
    assert_eq!(cleaner.clean().await.expect("cleaned").waiting, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_process_reads_is_kept() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let url = Url::from_directory_path(folder.path()).expect("an absolute path");
    let clock = clock();
    let open = || async { Lake::open(&url, &StorageOptions::default(), clock.clone()).await.expect("opens") };
    let (builder, reader) = (open().await, open().await);
    rebuild(&builder, 0..30).await;
    let read = reader.newest_publication(DEFAULT_GROUP).await.expect("read").expect("published");
    let holds = reader.hold(&read);
    let telling = reader.clone();
    let mut told = JoinSet::new();
    told.spawn(async move { telling.tell_readers("reader", Duration::from_millis(50)).await });
    let leases = folder.path().join("_leases/readers");
    while std::fs::read_dir(&leases).map_or(0, Iterator::count) == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    clock.advance(TimeDelta::weeks(2));
    rebuild(&builder, 0..3).await;
    clock.advance(TimeDelta::weeks(2));
    rebuild(&builder, 0..6).await;
    assert_eq!(builder.publications().await.expect("read").len(), 1);
    // A cleaner that knows nothing of before, as in a process that has just begun.
    let data = || {
        let partitions = std::fs::read_dir(folder.path().join("gold/one")).expect("there");
        let paths = partitions.map(|partition| partition.expect("listed").path());
        let of_data = paths.filter(|path| !path.ends_with("_delta_log"));
        of_data.map(|path| std::fs::read_dir(path).expect("there").count()).sum::<usize>()
    };
    assert_eq!(data(), 9, "of each of three versions three");
    Cleaner::new(builder.clone()).clean().await.expect("cleaned");
    assert_eq!(data(), 9, "one is being read, one was published a moment ago");
    let pinned = read.tables.values().next().expect("one table");
    let table = reader.table(&TableName::new("gold", "one"));
    let context = reader.session_factory().context();
    context.register_table("t", table.at(pinned.version).await.expect("kept").provider()).expect("registered");
    assert_eq!(numbers(&context, "select count(name) from t").await, vec![30]);

    drop(holds);
    while std::fs::read_dir(&leases).map_or(0, Iterator::count) > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    told.shutdown().await;
    Cleaner::new(builder).clean().await.expect("cleaned");
    assert_eq!(data(), 6, "given up, it goes");
}

/// Adds rows as a stream would, one small file a commit.
async fn trickle(table: &Table, ids: std::ops::Range<i64>) {
    table.ensure(&spec()).await.expect("made");
    for id in ids {
        let commit = commit_of(table, [id * 3], "a", id).await;
        let version = table.head().await.expect("there").version;
        table.append(version, commit).await.expect("committed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_together_stays_for_a_refresh_that_has_not_read_it() {
    let clock = clock();
    let lake = Lake::open(&memory(), &StorageOptions::default(), clock.clone()).await.expect("opens");
    let source = TableName::new("bronze", "things");
    let table = lake.table(&source);
    trickle(&table, 0..20).await;
    let compacted = lake.compact(&table, None, Compaction::AsTheyPileUp).await.expect("compacted");
    assert_eq!(compacted.removed, 20);
    let mut cleaner = Cleaner::only(lake.clone(), [source.clone()]);
    clock.advance(TimeDelta::hours(1));
    assert_eq!(cleaner.clean().await.expect("cleaned").files, 0, "nobody knows who reads it");

    // Somebody has come as far as version 12: the files up to there are read, those after it are not.
    let pin = PinnedTable { table_id: table.head().await.expect("there").table_id.clone(), version: 12 };
    lake.publish(DEFAULT_GROUP, BTreeMap::from([(source.clone(), pin.clone())])).await.expect("published");
    assert_eq!(cleaner.clean().await.expect("cleaned").files, 0, "version 12 itself can be asked for");
    let newest = table.head().await.expect("there").version;
    let Changes::Appended { files } = table.changes(Some(12), newest).await.expect("read") else { panic!("appended") };
    assert_eq!(files.len(), 8);

    let pin = PinnedTable { version: newest, ..pin };
    clock.advance(TimeDelta::weeks(2));
    lake.publish(DEFAULT_GROUP, BTreeMap::from([(source, pin)])).await.expect("published");
    assert_eq!(cleaner.clean().await.expect("cleaned").files, 8, "version 12 was named a moment ago");
    clock.advance(TimeDelta::minutes(11));
    assert_eq!(cleaner.clean().await.expect("cleaned").files, 12);
    // Who comes now, with an older mark than any that was known, reads the whole table.
    let changes = table.changes(Some(12), newest).await.expect("read");
    let Changes::Rewritten { reason } = changes else { panic!("{changes:?}") };
    assert!(reason.contains("cleaned up"), "{reason}");
}

/// A machine whose clock is put back an hour, and right again after a while.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_set_back_does_no_harm() {
    let clock = clock();
    let lake = Lake::open(&memory(), &StorageOptions::default(), clock.clone()).await.expect("opens");
    let table = lake.table(&TableName::new("gold", "one"));
    let mut cleaner = Cleaner::new(lake.clone());
    let before = rebuild(&lake, 0..3).await;
    let lease = lake.take_lease("ingest/events", "one").await.expect("taken");

    clock.advance(TimeDelta::hours(-1));
    assert_eq!(lake.leases("ingest/events").await.expect("read").len(), 1, "its holder is alive");
    // A version that is never published: only its readers need it.
    let unpublished = replace_all(&table, 0..6).await.version;
    let newest = rebuild(&lake, 0..9).await;
    assert_eq!(cleaner.clean().await.expect("cleaned").files, 0);

    // Put right: whoever began to read a moment ago still has its time.
    clock.advance(TimeDelta::hours(1));
    lease.release().await;
    assert_eq!(cleaner.clean().await.expect("cleaned").files, 0);
    assert_eq!(Cleaner::new(lake.clone()).clean().await.expect("cleaned").files, 0);
    for (version, expected) in [(before, 3), (unpublished, 6), (newest, 9)] {
        let context = lake.session_factory().context();
        context.register_table("t", table.at(version).await.expect("kept").provider()).expect("registered");
        assert_eq!(numbers(&context, "select count(id) from t where id >= 0").await, vec![expected]);
    }
    let published = lake.newest_publication(DEFAULT_GROUP).await.expect("read").expect("one");
    assert_eq!(published.tables[table.name()].version, newest);

    clock.advance(TimeDelta::minutes(11));
    assert!(cleaner.clean().await.expect("cleaned").files >= 3, "those that only the unpublished version has");
    assert!(lake.verify().await.expect("audited").is_whole());
}
