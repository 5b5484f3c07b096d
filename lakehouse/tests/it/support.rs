//! Lakes and rows for the tests.

use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::prelude::SessionContext;
use lakehouse::{
    Commit, Lake, Operation, Outcome, PinnedTable, StageOptions, StorageOptions, SystemClock, Table, TableName,
    TableSpec, timestamp_type,
};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use url::Url;

/// A lake, and what keeps its folder alive.
pub(crate) struct TestLake {
    pub(crate) lake: Lake,
    pub(crate) url: Url,
    _folder: Option<tempfile::TempDir>,
}

/// One lake in memory, one on disk and one in a bucket: every test of the suite runs on all of them.
pub(crate) async fn lakes() -> Vec<TestLake> {
    vec![in_memory().await, on_disk().await, in_a_bucket().await]
}

pub(crate) async fn in_memory() -> TestLake {
    let url = Url::parse("memory:///lake/").expect("valid URL");
    TestLake { lake: open(&url).await, url, _folder: None }
}

pub(crate) async fn on_disk() -> TestLake {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let url = Url::from_directory_path(folder.path().join("a lake")).expect("an absolute path");
    TestLake { lake: open(&url).await, url, _folder: Some(folder) }
}

/// A lake in a bucket that is not there yet, on the server that the test's caller has started.
pub(crate) async fn in_a_bucket() -> TestLake {
    let url = Url::parse(&format!("s3://test-{}/a%20lake/", uuid::Uuid::new_v4())).expect("valid URL");
    TestLake { lake: open(&url).await, url, _folder: None }
}

/// Another process's view of the lake: nothing is shared but what is stored. Only memory is nobody else's to see.
pub(crate) async fn opened_again(test: &TestLake) -> Lake {
    if test.url.scheme() == "memory" { test.lake.clone() } else { open(&test.url).await }
}

pub(crate) async fn open(url: &Url) -> Lake {
    Lake::open(url, &options(url), Arc::new(SystemClock)).await.expect("the lake opens")
}

fn options(url: &Url) -> StorageOptions {
    if url.scheme() == "s3" { s3_options() } else { StorageOptions::default() }
}

/// The settings of the S3 server of the tests. `make test` starts one; by hand: `scripts/with-minio.sh COMMAND`.
#[expect(clippy::disallowed_methods, reason = "a test learns from its caller where the server is")]
pub(crate) fn s3_options() -> StorageOptions {
    let endpoint =
        std::env::var("TEST_S3_ENDPOINT").expect("run this by `make test`, or by scripts/with-minio.sh COMMAND");
    let key = std::env::var("TEST_S3_KEY").expect("set together with the endpoint");
    let settings = [
        ("aws_endpoint", endpoint.as_str()),
        ("aws_allow_http", "true"),
        ("aws_region", "us-east-1"),
        ("aws_access_key_id", &key),
        ("aws_secret_access_key", &key),
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
    StorageOptions { settings: settings.into(), ca_file: None }
}

/// The bucket of a lake.
pub(crate) fn bucket(url: &Url) -> AmazonS3 {
    let name = url.host_str().expect("a bucket");
    let settings = s3_options().settings.into_iter();
    let builder = AmazonS3Builder::new().with_bucket_name(name);
    let set = |builder: AmazonS3Builder, (name, value): (String, String)| {
        builder.with_config(name.parse::<AmazonS3ConfigKey>().expect("a setting"), value)
    };
    settings.fold(builder, set).build().expect("valid settings")
}

pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("day", DataType::Utf8, true),
        Field::new("name", DataType::Utf8, true),
        Field::new("at", timestamp_type(), true),
    ]))
}

pub(crate) fn spec() -> TableSpec {
    TableSpec::new(schema()).partitioned_by(["day"])
}

pub(crate) fn name() -> TableName {
    TableName::new("bronze", "things")
}

/// Rows with these ids; the day follows from the id.
pub(crate) fn rows(ids: impl IntoIterator<Item = i64>) -> RecordBatch {
    let ids: Vec<i64> = ids.into_iter().collect();
    let days: StringArray = ids.iter().map(|id| (id % 3 != 2).then(|| format!("day/{}", id % 3))).collect();
    let names = StringArray::from_iter_values(ids.iter().map(|id| format!("thing {id}")));
    let times = TimestampMicrosecondArray::from_iter_values(ids.iter().map(|id| id * 1_000_001)).with_timezone("UTC");
    let columns: Vec<Arc<dyn arrow::array::Array>> =
        vec![Arc::new(Int64Array::from(ids)), Arc::new(days), Arc::new(names), Arc::new(times)];
    RecordBatch::try_new(schema(), columns).expect("valid rows")
}

/// A commit that adds rows with these ids and moves the ledger entry `app_id` to `to`.
pub(crate) async fn commit_of(table: &Table, ids: impl IntoIterator<Item = i64>, app_id: &str, to: i64) -> Commit {
    let head = table.head().await.expect("the table is there");
    let mut commit = Commit::new(Operation::Write);
    commit.adds = table.stage_batches(&head, vec![rows(ids)], &StageOptions::default()).await.expect("staged");
    commit.transactions.insert(app_id.to_owned(), to);
    commit
}

/// Puts rows with these ids in the place of all that is there; makes the table if it is missing.
pub(crate) async fn replace_all(table: &Table, ids: impl IntoIterator<Item = i64>) -> PinnedTable {
    let head = table.ensure(&spec()).await.expect("made");
    let mut commit = Commit::new(Operation::Overwrite);
    commit.adds = table.stage_batches(&head, vec![rows(ids)], &StageOptions::default()).await.expect("staged");
    commit.removes = head.files.to_vec();
    let outcome = table.replace(head.version, commit).await.expect("committed");
    let Outcome::Committed(version) = outcome else { panic!("{outcome:?}") };
    PinnedTable { table_id: head.table_id.clone(), version }
}

/// The ids in the newest version, in order.
pub(crate) async fn ids(lake: &Lake, table: &Table) -> Vec<i64> {
    let head = table.head().await.expect("the table is there");
    let context = lake.session_factory().context();
    context.register_table("t", head.provider()).expect("registered");
    numbers(&context, "select id from t order by id").await
}

/// The first column of a query's result.
pub(crate) async fn numbers(context: &SessionContext, sql: &str) -> Vec<i64> {
    let batches = context.sql(sql).await.expect("planned").collect().await.expect("run");
    let column = |batch: &RecordBatch| {
        let values = arrow::compute::cast(batch.column(0), &DataType::Int64).expect("numbers");
        let values = values.as_any().downcast_ref::<Int64Array>().expect("just cast").clone();
        values.iter().map(|value| value.expect("not null")).collect::<Vec<_>>()
    };
    batches.iter().flat_map(column).collect()
}
