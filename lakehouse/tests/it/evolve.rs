//! Columns that come to a table after it was made.

use std::collections::BTreeSet;

use arrow::datatypes::{DataType, Field};
use lakehouse::{Changes, Commit, ErrorKind, Operation, Outcome, TableVersion};
use tokio::task::JoinSet;

use crate::support::{commit_of, ids, in_memory, lakes, name, numbers, opened_again, spec};

const KEY: &str = "lakebeat.kind";

fn noted(name: &str, data_type: DataType, kind: &str) -> Field {
    Field::new(name, data_type, true).with_metadata([(KEY.to_owned(), kind.to_owned())].into())
}

fn column_names(table: &TableVersion) -> Vec<&str> {
    table.schema.fields().iter().map(|field| field.name().as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_old_are_null_in_an_added_column() {
    for test in lakes().await {
        let table = test.lake.table(&name());
        let made = table.ensure(&spec()).await.expect("made");
        table.append(0, commit_of(&table, 0..5, "a", 5).await).await.expect("committed");
        let added = [noted("extra", DataType::Utf8, "number"), Field::new("round", DataType::Int32, true)];
        let evolved = table.add_columns(&added).await.expect("added");
        assert_eq!(evolved.version, 2);
        assert_eq!(column_names(&evolved), ["id", "day", "name", "at", "extra", "round"]);
        assert_eq!((&evolved.table_id, &evolved.partition_columns), (&made.table_id, &made.partition_columns));
        assert_eq!(evolved.properties, made.properties);
        assert_eq!((evolved.note("extra", KEY), evolved.note("round", KEY)), (Some("number"), None));
        // Nothing new, nothing written.
        assert_eq!(table.add_columns(&added).await.expect("there").version, 2);
        // A note can change, and is read back from the store.
        let evolved = table.add_columns(&[noted("extra", DataType::Utf8, "any")]).await.expect("noted");
        assert_eq!((evolved.version, evolved.schema.fields().len()), (3, 6));
        let again = opened_again(&test).await.table(&name()).head().await.expect("there");
        assert_eq!((again.note("extra", KEY), &again.schema), (Some("any"), &evolved.schema));
        let history: Vec<_> =
            table.history(2).await.expect("read").into_iter().map(|commit| commit.operation).collect();
        assert_eq!(history, ["CHANGE COLUMN", "ADD COLUMNS"]);

        table.append(3, commit_of(&table, 5..8, "a", 8).await).await.expect("committed");
        assert_eq!(ids(&test.lake, &table).await, (0..8).collect::<Vec<_>>());
        let context = test.lake.session_factory().context();
        context.register_table("t", table.head().await.expect("there").provider()).expect("registered");
        assert_eq!(numbers(&context, "select count(*) from t where extra is null and round is null").await, [8]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_cannot_be_added_is_named() {
    let test = in_memory().await;
    let table = test.lake.table(&name());
    table.ensure(&spec()).await.expect("made");
    for (field, words) in [
        (Field::new("name", DataType::Int64, true), ["column name of bronze.things", "Utf8", "Int64"]),
        (Field::new("Name", DataType::Utf8, true), ["column Name", "bronze.things", "has name"]),
        (Field::new("must", DataType::Utf8, false), ["column must", "bronze.things", "never null"]),
        (Field::new("odd", DataType::UInt64, true), ["column odd", "bronze.things", "UInt64"]),
    ] {
        let error = table.add_columns(&[field]).await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::BadConfig);
        assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
    }
    assert_eq!(table.head().await.expect("there").version, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_writes_by_older_columns_loses_and_who_adds_others_does_not() {
    for test in lakes().await {
        let table = test.lake.table(&name());
        table.ensure(&spec()).await.expect("made");
        let stale = commit_of(&table, 0..5, "a", 5).await;
        let evolved = table.add_columns(&[Field::new("extra", DataType::Utf8, true)]).await.expect("added");
        assert_eq!(table.append(0, stale.clone()).await.expect("answered"), Outcome::Lost { winner: 1 });
        assert_eq!(table.append(evolved.version, stale).await.expect("answered"), Outcome::Committed(2));

        // Four processes with a column each, between commits of rows: none is lost, and none is there twice.
        let mut tasks = JoinSet::new();
        for index in 0..4 {
            let table = opened_again(&test).await.table(&name());
            tasks.spawn(async move {
                table.add_columns(&[Field::new(format!("column_{index}"), DataType::Utf8, true)]).await.expect("added");
            });
        }
        for round in 0..6 {
            let version = table.ledger(&["a".to_owned()]).await.expect("read").version;
            let commit = commit_of(&table, 5 + round..6 + round, "a", 6 + round).await;
            // What lost to a change of columns is committed the second time, as ingest does it.
            let mut outcome = table.append(version, commit.clone()).await.expect("answered");
            while let Outcome::Lost { .. } = outcome {
                let version = table.head().await.expect("there").version;
                outcome = table.append(version, commit.clone()).await.expect("answered");
            }
        }
        while let Some(ended) = tasks.join_next().await {
            ended.expect("no panic");
        }
        let newest = table.head().await.expect("there");
        let names: BTreeSet<_> = column_names(&newest).into_iter().collect();
        assert_eq!((names.len(), newest.schema.fields().len()), (9, 9), "{names:?}");
        assert_eq!(ids(&test.lake, &table).await, (0..11).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_added_column_is_no_change_of_the_rows() {
    for test in lakes().await {
        let table = test.lake.table(&name());
        table.ensure(&spec()).await.expect("made");
        table.append(0, commit_of(&table, 0..9, "a", 9).await).await.expect("committed");
        table.add_columns(&[noted("extra", DataType::Utf8, "string")]).await.expect("added");
        table.add_columns(&[noted("extra", DataType::Utf8, "any")]).await.expect("noted");
        table.append(3, commit_of(&table, 9..12, "a", 12).await).await.expect("committed");
        for (after, expected) in [(None, 12), (Some(1), 3), (Some(2), 3), (Some(3), 3), (Some(4), 0)] {
            // Another process does not remember what the table was like before.
            let table = opened_again(&test).await.table(&name());
            let rows = match table.changes(after, 4).await.expect("read") {
                Changes::Appended { files } => files.iter().map(|file| file.rows.expect("counted")).sum::<u64>(),
                Changes::Rewritten { reason } => panic!("{reason}"),
            };
            assert_eq!(rows, expected, "after {after:?}");
        }
        // With rows taken out besides it is one.
        let mut removal = Commit::new(Operation::Overwrite);
        removal.removes = table.head().await.expect("there").files.to_vec();
        table.replace(4, removal).await.expect("committed");
        assert!(matches!(table.changes(Some(1), 5).await.expect("read"), Changes::Rewritten { .. }));
    }
}
