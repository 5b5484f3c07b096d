//! A small lake in memory, published, for the tests of all doors.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int16Array,
    Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use lakehouse::{
    Clock, Commit, DEFAULT_GROUP, Lake, Operation, Outcome, PinnedTable, Publication, StageOptions, StorageOptions,
    SystemClock, TableName, TableSpec,
};
use url::Url;

/// 2026-01-01 10:00:00.123456 UTC, in microseconds.
pub(crate) const INSTANT: i64 = 1_767_261_600_123_456;

/// A lake with `gold.top_songs` (three songs), `gold.every_type` (a row of values and a row of nulls) and
/// `bronze.events` (two rows).
pub(crate) struct TestLake {
    pub lake: Lake,
}

impl TestLake {
    pub(crate) async fn new() -> Self {
        let url = "memory:///".parse().expect("a URL");
        Self::open(&url, Arc::new(SystemClock)).await.filled().await
    }

    /// Any lake, as it is.
    pub(crate) async fn open(url: &Url, clock: Arc<dyn Clock>) -> Self {
        Self { lake: Lake::open(url, &StorageOptions::default(), clock).await.expect("a lake") }
    }

    /// With those tables in it.
    pub(crate) async fn filled(self) -> Self {
        self.write("bronze", "events", events(&["a", "b"])).await;
        self.write("gold", "every_type", every_type()).await;
        self.publish_songs(100).await;
        self
    }

    /// Replaces the songs: the first has so many plays, the others 20 and 3. Publishes.
    pub(crate) async fn publish_songs(&self, plays: i64) -> Publication {
        self.write("gold", "top_songs", songs(plays)).await;
        let mut tables = BTreeMap::new();
        for name in ["top_songs", "every_type"] {
            let name = TableName::new("gold", name);
            let head = self.lake.table(&name).head().await.expect("written before");
            tables.insert(name, PinnedTable { table_id: head.table_id.clone(), version: head.version });
        }
        self.lake.publish(DEFAULT_GROUP, tables).await.expect("nobody else publishes")
    }

    /// Adds one event to bronze, which is read at its head.
    pub(crate) async fn add_event(&self, event: &str) {
        let table = self.lake.table(&TableName::new("bronze", "events"));
        let head = table.head().await.expect("written before");
        let adds = table
            .stage_batches(&head, vec![events(&[event])], &StageOptions::default())
            .await
            .expect("the schema fits");
        let commit = Commit { adds, ..Commit::new(Operation::Write) };
        let outcome = table.append(head.version, commit).await.expect("the store works");
        assert!(matches!(outcome, Outcome::Committed(_)), "nobody else writes");
    }

    async fn write(&self, schema: &str, name: &str, batch: RecordBatch) {
        let table = self.lake.table(&TableName::new(schema, name));
        let head = table.ensure(&TableSpec::new(batch.schema())).await.expect("a table");
        let adds = table.stage_batches(&head, vec![batch], &StageOptions::default()).await.expect("the schema fits");
        let removes = head.files.to_vec();
        let commit = Commit { adds, removes, ..Commit::new(Operation::Overwrite) };
        let outcome = table.replace(head.version, commit).await.expect("the store works");
        assert!(matches!(outcome, Outcome::Committed(_)), "nobody else writes");
    }
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
        .expect("columns of one length")
}

fn songs(plays: i64) -> RecordBatch {
    batch(vec![
        ("song_id", Arc::new(StringArray::from(vec!["s1", "s2", "s3"]))),
        ("song_name", Arc::new(StringArray::from(vec!["Levitating", "Stronger", "God's Plan"]))),
        ("artist_name", Arc::new(StringArray::from(vec!["Dua Lipa", "Kanye West", "Drake"]))),
        ("total_plays", Arc::new(Int64Array::from(vec![plays, 20, 3]))),
        ("total_skips", Arc::new(Int64Array::from(vec![Some(5), Some(0), None]))),
    ])
}

fn events(ids: &[&str]) -> RecordBatch {
    batch(vec![("event_id", Arc::new(StringArray::from(ids.to_vec())))])
}

fn every_type() -> RecordBatch {
    let decimal = Decimal128Array::from(vec![Some(12_345), None]).with_precision_and_scale(38, 2).expect("it fits");
    let instant = TimestampMicrosecondArray::from(vec![Some(INSTANT), None]);
    batch(vec![
        ("a_bool", Arc::new(BooleanArray::from(vec![Some(true), None]))),
        ("a_short", Arc::new(Int16Array::from(vec![Some(-2), None]))),
        ("an_int", Arc::new(Int32Array::from(vec![Some(7), None]))),
        ("a_long", Arc::new(Int64Array::from(vec![Some(i64::MAX), None]))),
        ("a_float", Arc::new(Float32Array::from(vec![Some(0.1), None]))),
        ("a_double", Arc::new(Float64Array::from(vec![Some(1e20), None]))),
        ("a_text", Arc::new(StringArray::from(vec![Some("Grüße, {\"x\"}"), None]))),
        ("some_bytes", Arc::new(BinaryArray::from(vec![Some(&[0_u8, 255][..]), None]))),
        ("a_date", Arc::new(Date32Array::from(vec![Some(20_454), None]))),
        ("an_instant", Arc::new(instant.with_timezone("UTC"))),
        ("a_decimal", Arc::new(decimal)),
    ])
}
