//! Publications, and what a session sees of the lake.

use std::collections::BTreeMap;

use lakehouse::{DEFAULT_GROUP, ErrorKind, Lake, Outcome, PinnedTable, Table, TableName};

use crate::support::{commit_of, lakes, numbers, opened_again, spec};

async fn add(table: &Table, first: i64, count: i64) -> PinnedTable {
    let head = table.ensure(&spec()).await.expect("made");
    let commit = commit_of(table, first..first + count, "refresh", first).await;
    let outcome = table.append(head.version, commit).await.expect("committed");
    let Outcome::Committed(version) = outcome else { panic!("{outcome:?}") };
    PinnedTable { table_id: head.table_id.clone(), version }
}

async fn count(lake: &Lake, sql: &str) -> i64 {
    let newest = lake.newest_publication(DEFAULT_GROUP).await.expect("read");
    let context = lake.session_factory().at_publication(newest.as_ref()).await.expect("opened");
    numbers(&context, sql).await[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_gold_only_as_published() {
    for test in lakes().await {
        let lake = &test.lake;
        assert_eq!(lake.newest_publication(DEFAULT_GROUP).await.expect("read"), None);
        let (one, two) = (TableName::new("gold", "one"), TableName::new("silver", "two"));
        let pins = BTreeMap::from([
            (one.clone(), add(&lake.table(&one), 0, 10).await),
            (two.clone(), add(&lake.table(&two), 0, 5).await),
        ]);
        let first = lake.publish(DEFAULT_GROUP, pins.clone()).await.expect("published");
        assert_eq!(count(lake, "select count(*) from gold.one").await, 10);
        // Committed, but not published: nobody sees it.
        let newer = add(&lake.table(&one), 10, 7).await;
        assert_eq!(count(lake, "select count(*) from one").await, 10);
        assert_eq!(count(lake, "select count(*) from two").await, 5);

        assert_eq!(lake.publish(DEFAULT_GROUP, pins.clone()).await.expect("the same again").id, first.id);
        let mut newer_pins = pins.clone();
        newer_pins.insert(one.clone(), newer);
        let second = lake.publish(DEFAULT_GROUP, newer_pins).await.expect("published");
        assert_eq!(second.id, first.id + 1);
        assert_eq!(count(lake, "select count(*) from lake.gold.one").await, 17);
        let error = lake.publish(DEFAULT_GROUP, pins).await.expect_err("never back");
        assert_eq!(error.kind(), ErrorKind::Conflict);

        let kept = lake.publications().await.expect("read");
        assert_eq!(kept.iter().map(|one| one.id).collect::<Vec<_>>(), [second.id, first.id]);
        assert_eq!(count(lake, "select count(*) from system.publications").await, 2);
        let other = opened_again(&test).await;
        assert_eq!(other.newest_publication(DEFAULT_GROUP).await.expect("read"), Some(second));
        assert_eq!(count(&other, "select count(*) from gold.one").await, 17);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn publishers_race_and_none_is_lost() {
    for test in lakes().await {
        let name = TableName::new("gold", "one");
        let pin = add(&test.lake.table(&name), 0, 10).await;
        let mut publishers = tokio::task::JoinSet::new();
        for group in 0..5 {
            let (lake, tables) = (test.lake.clone(), BTreeMap::from([(name.clone(), pin.clone())]));
            publishers
                .spawn(async move { lake.publish(&format!("group {group}"), tables).await.expect("published").id });
        }
        let mut ids = publishers.join_all().await;
        ids.sort_unstable();
        assert_eq!(ids, [1, 2, 3, 4, 5]);
        for group in 0..5 {
            let newest = test.lake.newest_publication(&format!("group {group}")).await.expect("read");
            assert!(newest.is_some(), "group {group} was lost");
        }
    }
}
