//! A lake is copied to another place and back, by itself and while others write, and is there the lake that it was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lakehouse::{
    CopyPlan, DEFAULT_GROUP, Destination, ErrorKind, Lake, PinnedTable, StorageOptions, SystemClock, Table, TableName,
};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};
use url::Url;

use crate::faulty::Faulty;
use crate::support::{TestLake, commit_of, ids, in_a_bucket, name, on_disk, open, replace_all, s3_options, spec};

fn gold() -> TableName {
    TableName::new("gold", "one")
}

/// Adds a row to bronze; the ledger goes with it.
async fn add(lake: &Lake, id: i64) {
    let table = lake.table(&name());
    let version = table.ensure(&spec()).await.expect("made").version;
    let commit = commit_of(&table, [id], "a", id + 1).await;
    assert!(table.append(version, commit).await.expect("committed").committed().is_some());
}

/// Rewrites gold with so many rows and publishes it with the bronze that is there.
async fn publish(lake: &Lake, rows: i64) {
    let pin = replace_all(&lake.table(&gold()), 0..rows).await;
    let bronze = PinnedTable::from(lake.table(&name()).head().await.expect("there").as_ref());
    let tables = BTreeMap::from([(gold(), pin), (name(), bronze)]);
    lake.publish(DEFAULT_GROUP, tables).await.expect("published");
}

/// Bronze with a checkpoint, gold rewritten some times, and publications.
async fn fill(lake: &Lake) {
    for id in 0..105 {
        add(lake, id).await;
    }
    for rows in 1..5 {
        publish(lake, rows).await;
    }
    lake.settle().await;
}

fn memory() -> (Arc<dyn ObjectStore>, Url) {
    (Arc::new(InMemory::new()), Url::parse("memory:///copy/").expect("a valid URL"))
}

async fn opened(store: &Arc<dyn ObjectStore>, url: &Url) -> lakehouse::Result<Lake> {
    Lake::open_on(store.clone(), url, Arc::new(SystemClock)).await
}

fn destination(store: &Arc<dyn ObjectStore>, url: &Url) -> Destination {
    Destination::on(store.clone(), url).expect("a valid place")
}

async fn copied(lake: &Lake, to: &Destination) -> CopyPlan {
    let plan = lake.plan_copy(to, &[]).await.expect("planned");
    let mut last = lakehouse::CopyProgress::default();
    lake.copy(plan.clone(), to, |done| last = done).await.expect("copied");
    assert_eq!(last, plan.total(), "what was told is what was planned");
    plan
}

async fn is_whole(lake: &Lake) {
    let report = lake.verify().await.expect("audited");
    assert!(report.is_whole(), "{report}");
}

/// The copy says in every table what the lake says, at the head and in each publication.
async fn is_same(one: &Lake, other: &Lake) {
    is_whole(other).await;
    assert_eq!(one.tables().await.expect("listed"), other.tables().await.expect("listed"));
    let publications = one.publications().await.expect("read");
    assert_eq!(publications, other.publications().await.expect("read"));
    for name in one.tables().await.expect("listed") {
        let (left, right) = (one.table(&name), other.table(&name));
        let heads = (left.head().await.expect("there"), right.head().await.expect("there"));
        assert_eq!((&heads.0.table_id, heads.0.version), (&heads.1.table_id, heads.1.version), "{name}");
        assert_eq!(heads.0.files, heads.1.files, "{name}");
        let ledger = ["a".to_owned()];
        assert_eq!(left.ledger(&ledger).await.expect("read"), right.ledger(&ledger).await.expect("read"), "{name}");
    }
}

fn options(url: &Url) -> StorageOptions {
    if url.scheme() == "s3" { s3_options() } else { StorageOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_disk_into_a_bucket_and_back() {
    let disk = on_disk().await;
    fill(&disk.lake).await;
    // Lakes without a table are empty places.
    let TestLake { url, .. } = in_a_bucket().await;
    let fresh = Url::parse(&format!("s3://fresh-{}/x/", uuid::Uuid::new_v4())).expect("a valid URL");
    for bucket in [url, fresh] {
        copied(&disk.lake, &Destination::at(&bucket, &options(&bucket)).expect("reached")).await;
        let there = Lake::find(&bucket, &options(&bucket), Arc::new(SystemClock)).await.expect("the copy opens");
        is_same(&disk.lake, &there).await;
        let back = on_disk().await;
        copied(&there, &Destination::at(&back.url, &options(&back.url)).expect("reached")).await;
        let back = open(&back.url).await;
        is_same(&disk.lake, &back).await;
        // What ingest and builds do goes on from there.
        add(&back, 105).await;
        publish(&back, 9).await;
        is_whole(&back).await;
        assert_eq!(ids(&back, &back.table(&name())).await, (0..106).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn again_only_what_is_new_is_copied() {
    let disk = on_disk().await;
    fill(&disk.lake).await;
    let (store, url) = memory();
    let first = copied(&disk.lake, &destination(&store, &url)).await;
    let again = disk.lake.plan_copy(&destination(&store, &url), &[]).await.expect("planned");
    assert!(again.is_nothing(), "{again:?}");
    assert_eq!(again.tables.iter().map(|table| table.there).sum::<u64>(), first.total().files);
    for id in 105..210 {
        add(&disk.lake, id).await;
    }
    publish(&disk.lake, 7).await;
    disk.lake.settle().await;
    let more = copied(&disk.lake, &destination(&store, &url)).await;
    assert!(more.total().files < first.total().files + 20, "{more:?}");
    is_same(&disk.lake, &opened(&store, &url).await.expect("opens")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_broken_off_is_no_lake_and_goes_on_where_it_was() {
    let disk = on_disk().await;
    fill(&disk.lake).await;
    let all = {
        let (store, url) = memory();
        disk.lake.plan_copy(&destination(&store, &url), &[]).await.expect("planned").total().files
    };
    for writes in (1..all).step_by(17).chain([all - 1, all]) {
        let faulty = Arc::new(Faulty::over(Arc::new(InMemory::new())));
        let (store, url): (Arc<dyn ObjectStore>, _) = (faulty.clone(), memory().1);
        let to = destination(&store, &url);
        let plan = disk.lake.plan_copy(&to, &[]).await.expect("planned");
        // One write more is the mark.
        faulty.stop_after_writes(writes);
        let mut done = 0;
        let error = disk.lake.copy(plan, &to, |progress| done = progress.files).await.expect_err("it is broken off");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "after {writes} writes: {error}");
        faulty.go_on();
        let refused = opened(&store, &url).await.expect_err("it is no lake yet");
        assert!(refused.to_string().contains("was broken off"), "after {writes} writes: {refused}");
        let other = on_disk().await;
        let refused = other.lake.plan_copy(&to, &[]).await.expect_err("of another lake");
        assert!(refused.to_string().contains("unfinished copy of the lake at"), "{refused}");
        let rest = copied(&disk.lake, &to).await.total().files;
        assert!(rest <= all - done, "after {writes} writes: {rest} more, of {all}");
        is_same(&disk.lake, &opened(&store, &url).await.expect("opens")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_copied_while_others_write_belongs_together() {
    let disk = on_disk().await;
    fill(&disk.lake).await;
    let writer = async |lake: Lake| {
        for id in 105.. {
            add(&lake, id).await;
            publish(&lake, id % 50).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let (store, url) = memory();
    let copies = async {
        for _ in 0..5 {
            copied(&disk.lake, &destination(&store, &url)).await;
            let copy = opened(&store, &url).await.expect("opens");
            is_whole(&copy).await;
            let newest = copy.newest_publication(DEFAULT_GROUP).await.expect("read").expect("published");
            let head = copy.table(&name()).head().await.expect("there");
            assert!(head.version >= newest.tables[&name()].version);
            let ledger = copy.table(&name()).ledger(&["a".to_owned()]).await.expect("read").entries["a"];
            assert_eq!(ids(&copy, &copy.table(&name())).await, (0..ledger).collect::<Vec<_>>());
        }
    };
    tokio::select! {
        () = writer(disk.lake.clone()) => {}
        () = copies => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_lake_is_not_written_over() {
    let disk = on_disk().await;
    fill(&disk.lake).await;
    let refused = async |store: &Arc<dyn ObjectStore>, url: &Url| {
        let error = disk.lake.plan_copy(&destination(store, url), &[]).await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::BadConfig, "{error}");
        error.to_string()
    };
    // Tables of the same names, and one of another name.
    let (store, url) = memory();
    let other = opened(&store, &url).await.expect("opens");
    add(&other, 0).await;
    assert!(refused(&store, &url).await.contains("another bronze.things"));
    let (store, url) = memory();
    let other = opened(&store, &url).await.expect("opens");
    replace_all(&other.table(&TableName::new("gold", "other")), 0..3).await;
    assert!(refused(&store, &url).await.contains("holds the table gold.other, which the lake at"));
    // A copy that was written to.
    let (store, url) = memory();
    copied(&disk.lake, &destination(&store, &url)).await;
    add(&opened(&store, &url).await.expect("opens"), 105).await;
    assert!(refused(&store, &url).await.contains("version 106 of bronze.things, and the newest here is 105"));
    add(&disk.lake, 106).await;
    assert!(refused(&store, &url).await.contains("gone its own way"));
    let within = disk.url.join("within/").expect("a valid URL");
    let error = disk.lake.plan_copy(&Destination::at(&within, &options(&within)).expect("reached"), &[]).await;
    assert!(error.expect_err("refused").to_string().contains("lie in one another"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_table_comes_back_from_the_copy() {
    let disk = on_disk().await;
    fill(&disk.lake).await;
    let (store, url) = memory();
    copied(&disk.lake, &destination(&store, &url)).await;
    let copy = opened(&store, &url).await.expect("opens");
    std::fs::remove_dir_all(disk.url.to_file_path().expect("a path").join("gold/one")).expect("lost");
    assert!(!open(&disk.url).await.verify().await.expect("audited").is_whole());
    let to = Destination::at(&disk.url, &StorageOptions::default()).expect("reached");
    let plan = copy.plan_copy(&to, &[gold()]).await.expect("planned");
    assert_eq!(plan.tables.iter().map(|table| table.table.clone()).collect::<Vec<_>>(), [gold()]);
    copy.copy(plan, &to, |_| ()).await.expect("copied");
    is_same(&copy, &open(&disk.url).await).await;
    let missing = copy.plan_copy(&to, &[TableName::new("gold", "none")]).await.expect_err("there is none");
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_damaged_is_not_taken_along() {
    let (store, url) = memory();
    let lake = opened(&store, &url).await.expect("opens");
    fill(&lake).await;
    let table: Table = lake.table(&gold());
    let file = table.head().await.expect("there").files[0].path.clone();
    let path = Path::from_iter("copy/gold/one".split('/').chain(file.split('/')));
    let mut bytes = store.get(&path).await.expect("there").bytes().await.expect("read").to_vec();
    bytes[20] ^= 1;
    store.put(&path, PutPayload::from(bytes)).await.expect("written");
    let (copy, copy_url) = memory();
    let to = destination(&copy, &copy_url);
    let plan = lake.plan_copy(&to, &[]).await.expect("planned");
    let error = lake.copy(plan, &to, |_| ()).await.expect_err("told");
    assert_eq!(error.kind(), ErrorKind::BadData);
    assert!(error.to_string().contains(&file), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_is_not_there_is_not_made() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let url = Url::from_directory_path(folder.path().join("none")).expect("an absolute path");
    let error = Lake::find(&url, &StorageOptions::default(), Arc::new(SystemClock)).await.expect_err("there is none");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let test = on_disk().await;
    fill(&test.lake).await;
    test.lake
        .plan_copy(&Destination::at(&url, &StorageOptions::default()).expect("reached"), &[])
        .await
        .expect("planned");
    assert!(!folder.path().join("none").exists(), "a plan makes nothing");
}
