//! Parts of a version are read by conditions, and files that can't hold such rows are not looked at.

use std::collections::BTreeSet;

use arrow::array::{AsArray as _, RecordBatch};
use arrow::datatypes::Int64Type;
use chrono::DateTime;
use futures::TryStreamExt as _;
use lakehouse::{Filter, Scan};

use crate::support::{commit_of, in_memory, name, spec};

#[tokio::test(flavor = "multi_thread")]
async fn conditions_choose_rows_and_files() {
    let test = in_memory().await;
    let table = test.lake.table(&name());
    table.ensure(&spec()).await.expect("made");
    for (number, ids) in [0..30, 30..60, 60..90].into_iter().enumerate() {
        let version = table.head().await.expect("a head").version;
        let commit = commit_of(&table, ids, "writer", number as i64).await;
        table.append(version, commit).await.expect("committed");
    }
    let head = table.head().await.expect("a head");
    // Three files of each commit, one a day; a thing's time is about its number in seconds.
    let second = |second: i64| DateTime::from_timestamp(second, 0).expect("a time");
    let no_texts: [&str; 0] = [];
    for (filter, rows, files) in [
        (Filter::everything(), 90, 9),
        (Filter::number_in("id", &[]), 90, 9),
        (Filter::number_in("id", &[5..=5]), 1, 3),
        (Filter::number_in("id", &[5..=9, 80..=200]), 15, 6),
        (Filter::text_in("name", &["thing 7", "thing 8", "no such"]), 2, 9),
        (Filter::text_in("name", &no_texts), 90, 9),
        (Filter::text_in("day", &["day/1"]), 30, 3),
        (Filter::present("day"), 60, 6),
        (Filter::since("at", second(59)).and(Filter::before("at", second(61))), 2, 6),
        (Filter::any([Filter::number_in("id", &[1..=1]), Filter::text_in("day", &["day/1"])]), 30, 4),
        (Filter::any([Filter::number_in("id", &[1..=1]), Filter::everything()]), 90, 9),
        (Filter::number_in("id", &[1..=1]).and(Filter::number_in("id", &[2..=2])), 0, 9),
    ] {
        let shown = format!("{filter:?}");
        let scan = Scan::new(head.clone(), test.lake.session_factory(), filter);
        let found = scan.files().expect("pruned");
        let batches: Vec<RecordBatch> =
            scan.read(found.clone(), &["id"]).await.expect("planned").try_collect().await.expect("read");
        let ids: BTreeSet<i64> =
            batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect();
        assert_eq!(ids.len(), rows, "{shown}");
        assert!(found.len() <= files, "{} files for {shown}", found.len());
    }
    let nothing = Scan::new(head, test.lake.session_factory(), Filter::everything());
    let batches: Vec<RecordBatch> =
        nothing.read(Vec::new(), &["id"]).await.expect("planned").try_collect().await.expect("read");
    assert!(batches.is_empty());
}
