//! What a commit costs does not grow with what is there: neither the log is listed for it, nor the files counted up.

use std::sync::Arc;

use lakehouse::{Commit, Lake, Operation, StageOptions, SystemClock, Table, TableVersion};
use object_store::ObjectStoreExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use url::Url;

use crate::counting::{Counting, Requests};
use crate::support::{name, rows, spec};

async fn counted() -> (Arc<Counting>, Lake) {
    let store = Counting::over(Arc::new(InMemory::new()));
    let url = Url::parse("memory:///lake/").expect("valid URL");
    let lake = Lake::open_on(store.clone(), &url, Arc::new(SystemClock)).await.expect("opens");
    (store, lake)
}

/// Commits one row a version, each in a file of its own, up to that version.
async fn fill(table: &Table, upto: u64) {
    let columns = table.ensure(&spec()).await.expect("made");
    for version in columns.version..upto {
        commit(table, &columns, version).await;
    }
}

async fn commit(table: &Table, columns: &TableVersion, version: u64) {
    let mut commit = Commit::new(Operation::Write);
    let row = vec![rows([version as i64])];
    commit.adds = table.stage_batches(columns, row, &StageOptions::default()).await.expect("staged");
    commit.transactions.insert("a".to_owned(), version as i64);
    assert_eq!(table.append(version, commit).await.expect("committed").committed(), Some(version + 1));
}

/// What a commit asks of the store, its file included, right after that version.
async fn cost_after(store: &Counting, lake: &Lake, version: u64) -> Requests {
    let table = lake.table(&name());
    fill(&table, version).await;
    lake.settle().await;
    let columns = table.head().await.expect("there");
    let before = store.requests();
    commit(&table, &columns, version).await;
    store.requests().since(before)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_commit_asks_as_much_of_the_store_as_an_early_one() {
    let (store, lake) = counted().await;
    let early = cost_after(&store, &lake, 10).await;
    let late = cost_after(&store, &lake, 1_010).await;
    assert_eq!((early.gets, early.puts, early.lists), (0, 2, 0), "{early:?}");
    assert_eq!((late.gets, late.puts, late.lists), (0, 2, 0), "{late:?}");
    assert!(late.put_bytes <= early.put_bytes + 64, "{early:?}, then {late:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_for_long_reads_from_the_last_checkpoint() {
    let (store, lake) = counted().await;
    let table = lake.table(&name());
    fill(&table, 3).await;
    let url = lake.url().clone();
    let other = Lake::open_on(store.clone(), &url, Arc::new(SystemClock)).await.expect("opens");
    let seen = other.table(&name());
    assert_eq!(seen.head().await.expect("there").version, 3);
    for upto in [5, 60, 1_030] {
        fill(&table, upto).await;
        lake.settle().await;
        let before = store.requests();
        let head = seen.head().await.expect("there");
        let asked = store.requests().since(before);
        assert_eq!((head.version, head.files.len() as u64), (upto, upto));
        assert_eq!(seen.at(upto).await.expect("there").files, head.files);
        assert!(asked.gets < 300, "{upto}: {asked:?}");
    }
    // A version that was passed over is loaded once.
    let before = store.requests();
    assert_eq!(seen.at(500).await.expect("there").files.len(), 500);
    assert!(store.requests().since(before).gets > 0);
    let before = store.requests();
    assert_eq!(seen.at(500).await.expect("there").files.len(), 500);
    assert_eq!(store.requests().since(before), Requests::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_there_when_the_lake_has_settled() {
    let memory = Arc::new(InMemory::new());
    let url = Url::parse("memory:///lake/").expect("valid URL");
    let lake = Lake::open_on(memory.clone(), &url, Arc::new(SystemClock)).await.expect("opens");
    let table = lake.table(&name());
    fill(&table, 101).await;
    lake.settle().await;
    let checkpoint = Path::from("lake/bronze/things/_delta_log/00000000000000000100.checkpoint.parquet");
    assert!(memory.head(&checkpoint).await.is_ok());
    // Files that were taken out are not named in it for a week, which is what other engines do unless they are told.
    let head = table.head().await.expect("there");
    assert_eq!(head.properties.get("delta.deletedFileRetentionDuration").map(String::as_str), Some("interval 1 hours"));
}
