//! Superseded files go, and never one that a kept publication still names.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta};
use lakehouse::{Cleaner, DEFAULT_GROUP, Lake, ManualClock, StorageOptions, TableName};
use url::Url;

use crate::support::{numbers, replace_all};

/// Puts rows with these ids in the place of all that is there, and publishes.
async fn rebuild(lake: &Lake, ids: std::ops::Range<i64>) -> u64 {
    let table = lake.table(&TableName::new("gold", "one"));
    let pin = replace_all(&table, ids).await;
    let version = pin.version;
    lake.publish(DEFAULT_GROUP, BTreeMap::from([(table.name().clone(), pin)])).await.expect("published");
    version
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_no_publication_needs_is_deleted() {
    let clock = Arc::new(ManualClock::new(DateTime::from_timestamp(1_800_000_000, 0).expect("a time")));
    let url = Url::parse("memory:///lake/").expect("valid URL");
    let lake = Lake::open(&url, &StorageOptions::default(), clock.clone()).await.expect("opens");
    let mut cleaner = Cleaner::new(lake.clone());
    let versions = [rebuild(&lake, 0..3).await, rebuild(&lake, 0..6).await, rebuild(&lake, 0..9).await];
    assert_eq!(cleaner.clean().await.expect("cleaned").files, 0, "all three are kept for ten minutes");

    clock.advance(TimeDelta::minutes(11));
    let newest = rebuild(&lake, 0..12).await;
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
