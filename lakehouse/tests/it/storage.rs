//! The storage suite: what must hold on every store.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use lakehouse::{Changes, Commit, ErrorKind, Operation, Outcome, StageOptions, TableName};

use crate::support::{commit_of, ids, lakes, name, numbers, opened_again, rows, s3_options, spec};

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_ledger_land_together() {
    for test in lakes().await {
        let table = test.lake.table(&name());
        assert!(!table.exists().await.expect("asked"));
        assert_eq!(table.head().await.expect_err("not there").kind(), ErrorKind::NotFound);
        table.ensure(&spec()).await.expect("made");
        table.ensure(&spec()).await.expect("made only once");
        let app_ids = ["a".to_owned(), "b".to_owned()];
        let ledger = table.ledger(&app_ids).await.expect("read");
        assert_eq!((ledger.version, ledger.entries.len()), (0, 0));

        let commit = commit_of(&table, 0..10, "a", 10).await;
        assert_eq!(table.append(0, commit).await.expect("committed"), Outcome::Committed(1));
        let ledger = table.ledger(&app_ids).await.expect("read");
        assert_eq!((ledger.version, ledger.entries.get("a"), ledger.entries.get("b")), (1, Some(&10), None));
        assert_eq!(ids(&test.lake, &table).await, (0..10).collect::<Vec<_>>());
        assert_eq!(test.lake.tables().await.expect("listed"), vec![name()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_owner_cannot_commit() {
    for test in lakes().await {
        let table = test.lake.table(&name());
        table.ensure(&spec()).await.expect("made");
        let (first, second) = (commit_of(&table, 0..5, "a", 5).await, commit_of(&table, 0..5, "a", 5).await);
        assert_eq!(table.append(0, first).await.expect("committed"), Outcome::Committed(1));
        assert_eq!(table.append(0, second).await.expect("answered"), Outcome::Lost { winner: 1 });
        // Not even with a higher number: the ledger has to be read again.
        let third = commit_of(&table, 5..9, "a", 9).await;
        assert_eq!(table.append(0, third).await.expect("answered"), Outcome::Lost { winner: 1 });
        assert_eq!(ids(&test.lake, &table).await, (0..5).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_of_other_partitions_do_not_disturb() {
    for test in lakes().await {
        let table = test.lake.table(&name());
        table.ensure(&spec()).await.expect("made");
        let (first, second) = (commit_of(&table, 0..5, "a", 5).await, commit_of(&table, 5..9, "b", 9).await);
        assert_eq!(table.append(0, first).await.expect("committed"), Outcome::Committed(1));
        assert_eq!(table.append(0, second).await.expect("committed"), Outcome::Committed(2));
        assert_eq!(ids(&test.lake, &table).await, (0..9).collect::<Vec<_>>());
        // Who computed from the whole table gives way to anybody.
        let third = commit_of(&table, 9..10, "c", 1).await;
        assert_eq!(table.replace(1, third).await.expect("answered"), Outcome::Lost { winner: 2 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_another_moved_is_not_passed_over_by_a_commit_of_other_entries() {
    for test in lakes().await {
        let table = test.lake.table(&name());
        table.ensure(&spec()).await.expect("made");
        // An owner of a and b has read the ledger at version 0. Somebody else moves a, while it commits something of b.
        let stale = commit_of(&table, 0..5, "a", 5).await;
        assert_eq!(table.append(0, stale).await.expect("committed"), Outcome::Committed(1));
        let mut ours = commit_of(&table, 5..9, "b", 9).await;
        ours.guarded.insert("a".to_owned());
        // Committed as version 2, its next batch would go on from there with what it knows of a, and double it.
        assert_eq!(table.append(0, ours).await.expect("answered"), Outcome::Lost { winner: 1 });
        assert_eq!(ids(&test.lake, &table).await, (0..5).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_was_quiet_goes_on_after_all_that_it_missed() {
    const MISSED: u64 = 40;
    for test in lakes().await {
        let table = test.lake.table(&name());
        table.ensure(&spec()).await.expect("made");
        for one in 0..MISSED as i64 {
            let other = commit_of(&table, one..one + 1, "a", one).await;
            assert_eq!(table.append(one as u64, other).await.expect("committed"), Outcome::Committed(one as u64 + 1));
        }
        let stale = commit_of(&table, 100..101, "a", 100).await;
        assert_eq!(table.append(20, stale).await.expect("answered"), Outcome::Lost { winner: 21 });
        let mut guarded = commit_of(&table, 100..101, "c", 1).await;
        guarded.guarded.insert("b".to_owned());
        let b = commit_of(&table, 40..41, "b", 1).await;
        assert_eq!(table.append(0, b).await.expect("committed"), Outcome::Committed(MISSED + 1));
        assert_eq!(table.append(0, guarded).await.expect("answered"), Outcome::Lost { winner: MISSED + 1 });
        let quiet = commit_of(&table, 41..42, "c", 1).await;
        assert_eq!(table.append(0, quiet).await.expect("committed"), Outcome::Committed(MISSED + 2));
        assert_eq!(ids(&test.lake, &table).await, (0..42).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_race_and_nothing_is_lost_or_doubled() {
    for test in lakes().await {
        let table = test.lake.table(&name());
        table.ensure(&spec()).await.expect("made");
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..4 {
            let lake = test.lake.clone();
            writers.spawn(async move {
                let table = lake.table(&name());
                let app_id = format!("writer {writer}");
                for round in 0..10 {
                    let first = (writer * 10 + round) * 10;
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
        assert_eq!(ids(&test.lake, &table).await, (0..400).collect::<Vec<_>>());
        assert_eq!(table.head().await.expect("there").version, 40);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_reads_the_same_from_checkpoint_and_log() {
    for test in lakes().await {
        let table = test.lake.table(&name());
        table.ensure(&spec()).await.expect("made");
        for number in 0..230 {
            let commit = commit_of(&table, number..number + 1, &format!("writer {}", number % 7), number).await;
            let version = u64::try_from(number).expect("positive");
            assert_eq!(table.append(version, commit).await.expect("committed"), Outcome::Committed(version + 1));
        }
        let lake = opened_again(&test).await;
        let again = lake.table(&name());
        assert_eq!(ids(&lake, &again).await, (0..230).collect::<Vec<_>>());
        let app_ids: Vec<_> = (0..8).map(|writer| format!("writer {writer}")).collect();
        let ledger = again.ledger(&app_ids).await.expect("read");
        let expected: Vec<_> = (0..7).map(|writer| (229 - writer) / 7 * 7 + writer).collect();
        assert_eq!(ledger.entries.values().copied().collect::<Vec<_>>(), expected);
        assert_eq!(again.at(100).await.expect("an old version").rows(), Some(100));
        if test.url.scheme() == "file" {
            let folder = test.url.to_file_path().expect("a path");
            let log = folder.join("bronze/things/_delta_log");
            assert!(log.join("00000000000000000200.checkpoint.parquet").exists(), "no checkpoint was written");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_what_commits_added() {
    for test in lakes().await {
        let table = test.lake.table(&name());
        table.ensure(&spec()).await.expect("made");
        for (version, first) in [(0, 0), (1, 10)] {
            let commit = commit_of(&table, first..first + 10, "a", first + 10).await;
            table.append(version, commit).await.expect("committed");
        }
        // Both files of day 0 go into one: no change, though neither old file is in the newest version.
        let head = table.head().await.expect("there");
        let mut compaction = Commit::new(Operation::Optimize);
        compaction.adds =
            table.stage_batches(&head, vec![rows(0..20)], &StageOptions::default()).await.expect("staged");
        compaction.removes = head.files.to_vec();
        table.replace(head.version, compaction).await.expect("committed");

        let rows_in = |changes: Changes| match changes {
            Changes::Appended { files } => files.iter().map(|file| file.rows.expect("counted")).sum::<u64>(),
            Changes::Rewritten { reason } => panic!("{reason}"),
        };
        assert_eq!(rows_in(table.changes(None, 3).await.expect("read")), 20);
        assert_eq!(rows_in(table.changes(Some(1), 3).await.expect("read")), 10);
        assert_eq!(rows_in(table.changes(Some(3), 3).await.expect("read")), 0);
        assert_eq!(ids(&test.lake, &table).await, (0..20).collect::<Vec<_>>());

        let head = table.head().await.expect("there");
        let mut removal = Commit::new(Operation::Overwrite);
        removal.removes = head.files.to_vec();
        table.replace(head.version, removal).await.expect("committed");
        assert!(matches!(table.changes(Some(3), 4).await.expect("read"), Changes::Rewritten { .. }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_read_only_the_files_that_can_match() {
    for test in lakes().await {
        let table = test.lake.table(&name());
        table.ensure(&spec()).await.expect("made");
        for version in 0..5 {
            let first = i64::try_from(version).expect("small") * 100;
            let commit = commit_of(&table, first..first + 100, "a", first + 100).await;
            table.append(version, commit).await.expect("committed");
        }
        let head = table.head().await.expect("there");
        assert_eq!(head.files.len(), 15);
        let context = test.lake.session_factory().context();
        context.register_table("t", head.provider()).expect("registered");
        for (filter, expected_rows, files_max) in [
            ("day = 'day/1'", 167, 5),
            ("day is null", 166, 5),
            ("id >= 450", 50, 3),
            ("at > timestamp '1970-01-01T00:06:59Z'", 81, 3),
            ("at = timestamp '1970-01-01T00:06:40.000400Z'", 1, 3),
            ("id >= 450 and day = 'day/0'", 17, 1),
            ("name = 'thing 7'", 1, 15),
        ] {
            let sql = format!("select count(*) from t where {filter}");
            assert_eq!(numbers(&context, &sql).await, vec![expected_rows], "{filter}");
            let plan = context.sql(&sql).await.expect("planned").create_physical_plan().await.expect("planned");
            let shown = datafusion::physical_plan::displayable(plan.as_ref()).indent(false).to_string();
            let files = shown.matches(".parquet").count();
            assert!(files <= files_max, "{filter} reads {files} files:\n{shown}");
        }
        // The bounds in the log are no values: these are computed from the rows.
        assert_eq!(numbers(&context, "select max(id) from t").await, vec![499]);
        assert_eq!(numbers(&context, "select count(*) from t").await, vec![500]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_other_columns_is_refused_by_name_and_type() {
    use arrow::datatypes::{DataType, Field, Schema};
    for test in lakes().await {
        let table = test.lake.table(&name());
        table.ensure(&spec()).await.expect("made");
        let other = |fields: Vec<Field>| lakehouse::TableSpec::new(Arc::new(Schema::new(fields)));
        let clash = table.ensure(&other(vec![Field::new("id", DataType::Utf8, true)])).await.expect_err("refused");
        assert_eq!(clash.kind(), ErrorKind::BadConfig);
        expect_test::expect![
            "column id of bronze.things is Int64 in the lake and Utf8 in the settings: change the settings, or name another table"
        ]
        .assert_eq(&clash.to_string());
        let unknown = TableName::new("bronze", "more");
        let unknown = test.lake.table(&unknown);
        let refused = unknown.ensure(&other(vec![Field::new("x", DataType::UInt64, true)])).await.expect_err("refused");
        assert_eq!(refused.kind(), ErrorKind::BadConfig);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_lake_is_refused() {
    let test = crate::support::on_disk().await;
    let mark = test.url.to_file_path().expect("a folder").join("_lakebeat.json");
    std::fs::write(&mark, r#"{"format":99,"written_by":"lakebeat 9.0.0"}"#).expect("written");
    let clock = Arc::new(lakehouse::SystemClock);
    let refused =
        lakehouse::Lake::open(&test.url, &lakehouse::StorageOptions::default(), clock).await.expect_err("refused");
    assert_eq!(refused.kind(), ErrorKind::NewerLake);
    assert!(refused.to_string().contains("lakebeat 9.0.0"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_s3_server_refuses_is_told_with_the_remedy() {
    let refused = async |bucket: &str, setting: &str, value: &str| {
        let mut options = s3_options();
        options.settings.insert(setting.to_owned(), value.to_owned());
        let url = url::Url::parse(&format!("s3://{bucket}/lake")).expect("valid URL");
        let clock = Arc::new(lakehouse::SystemClock);
        let error = lakehouse::Lake::open(&url, &options, clock).await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::BadConfig, "{error}");
        error.to_string()
    };
    let bucket = format!("test-{}", uuid::Uuid::new_v4());
    for (setting, value, said, remedy) in [
        ("aws_access_key_id", "nobody", "InvalidAccessKeyId", "check MINIO_ACCESS_KEY"),
        ("aws_secret_access_key", "wrong-secret", "SignatureDoesNotMatch", "check MINIO_SECRET_KEY"),
        ("aws_session_token", "wrong-token", "InvalidTokenId", "AWS_SESSION_TOKEN"),
    ] {
        let error = refused(&bucket, setting, value).await;
        assert!(error.contains(said) && error.contains(remedy) && error.contains(&bucket), "{error}");
        assert!(!error.contains("<?xml") && error.len() < 500, "{error}");
    }
    let error = refused("Not_A_Bucket", "aws_region", "us-east-1").await;
    assert!(error.contains("InvalidBucketName") && error.contains("MINIO_BUCKET"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_s3_server_that_is_away_is_unavailable_within_seconds() {
    let mut options = s3_options();
    options.settings.insert("aws_endpoint".to_owned(), "http://127.0.0.1:1".to_owned());
    let url = url::Url::parse("s3://bucket").expect("valid URL");
    let clock = Arc::new(lakehouse::SystemClock);
    let opening = lakehouse::Lake::open(&url, &options, clock);
    let error = tokio::time::timeout(std::time::Duration::from_secs(60), opening).await.expect("gives up");
    let error = error.expect_err("nobody listens there");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
}

/// What a broken server does with each request.
#[derive(Debug, Clone, Copy)]
enum Broken {
    Silent,
    HangsUp,
    Overloaded,
}

/// The address of a server that does the same with each request, and how many it was sent.
fn broken_server(broken: Broken) -> (String, Arc<AtomicU32>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    let asked = Arc::new(AtomicU32::new(0));
    let counted = asked.clone();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for mut connection in listener.incoming().map_while(Result::ok) {
            let read = connection.read(&mut [0; 4096]);
            counted.fetch_add(u32::from(read.is_ok_and(|bytes| bytes > 0)), Ordering::SeqCst);
            match broken {
                Broken::Silent => kept.push(connection),
                Broken::HangsUp => drop(connection),
                Broken::Overloaded => {
                    let answer = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                    let _ = connection.write_all(answer);
                }
            }
        }
    });
    (address, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_answers_is_asked_a_few_times() {
    for broken in [Broken::Silent, Broken::HangsUp, Broken::Overloaded] {
        let (address, asked) = broken_server(broken);
        let mut options = s3_options();
        options.settings.insert("aws_endpoint".to_owned(), address);
        options.settings.insert("timeout".to_owned(), "300ms".to_owned());
        let url = url::Url::parse("s3://bucket/lake").expect("valid URL");
        let clock = Arc::new(lakehouse::SystemClock);
        let error = lakehouse::Lake::open(&url, &options, clock).await.expect_err("no answer");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{broken:?}: {error}");
        let asked = asked.load(Ordering::SeqCst);
        assert!((2..=5).contains(&asked), "{broken:?}: asked {asked} times");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_authorities_that_is_none_is_told() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "no certificate").expect("written");
    for (file, what) in [(folder.path().join("missing.pem"), "cannot be read"), (empty, "holds no certificate")] {
        let mut options = s3_options();
        options.ca_file = Some(file.clone());
        let url = url::Url::parse("s3://bucket/lake").expect("valid URL");
        let clock = Arc::new(lakehouse::SystemClock);
        let error = lakehouse::Lake::open(&url, &options, clock).await.expect_err("no authority");
        assert_eq!(error.kind(), ErrorKind::BadConfig, "{error}");
        let shown = error.to_string();
        assert!(shown.contains(what) && shown.contains("AWS_CA_BUNDLE"), "{shown}");
        assert!(shown.contains(&file.display().to_string()), "{shown}");
    }
}
