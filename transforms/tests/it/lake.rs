//! A lake in memory with a bronze table of events, and how the tests look at it.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Date32Array, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use lakehouse::{
    Commit, Lake, Operation, Outcome, Publication, StageOptions, SystemClock, Table, TableName, TableSpec, TableVersion,
};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use url::Url;

/// One bronze row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) event_id: Option<String>,
    pub(crate) user_id: Option<String>,
    pub(crate) song_id: Option<String>,
    pub(crate) event_type: &'static str,
    pub(crate) device_type: Option<&'static str>,
    pub(crate) timestamp: Option<String>,
    pub(crate) kafka_timestamp: i64,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

impl Event {
    /// A good event, whose id says all about it.
    pub(crate) fn new(id: u32, kafka_timestamp: i64, partition: i32, offset: i64) -> Self {
        Self {
            event_id: Some(format!("event-{id}")),
            user_id: Some(format!("user-{}", id % 5)),
            song_id: Some(format!("song-{}", id % 6)),
            event_type: ["play", "pause", "skip", "add_to_playlist"][id as usize % 4],
            device_type: [Some("mobile"), Some("desktop"), Some("web"), None][id as usize % 4],
            timestamp: Some(format!("2026-01-{:02}T12:{:02}:00.5Z", 1 + id % 3, id % 60)),
            kafka_timestamp,
            partition,
            offset,
        }
    }
}

/// A store that several lakes can share, as several processes share a bucket.
pub(crate) fn store() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

/// A lake on `store` that knows nothing of other lakes on it.
pub(crate) async fn open(store: &Arc<dyn ObjectStore>) -> Lake {
    let url = Url::parse("memory:///lake/").expect("a valid URL");
    Lake::open_on(store.clone(), &url, Arc::new(SystemClock)).await.expect("a lake in memory opens")
}

pub(crate) fn bronze(lake: &Lake) -> Table {
    lake.table(&TableName::new("bronze", "spotify_events"))
}

fn timestamps() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

pub(crate) fn bronze_spec() -> TableSpec {
    const TEXTS: [&str; 9] = [
        "event_id",
        "user_id",
        "song_id",
        "artist_name",
        "song_name",
        "event_type",
        "device_type",
        "country",
        "timestamp_str",
    ];
    let mut fields: Vec<Field> = TEXTS.iter().map(|name| Field::new(*name, DataType::Utf8, true)).collect();
    fields.extend([
        Field::new("_partition", DataType::Int32, true),
        Field::new("_offset", DataType::Int64, true),
        Field::new("_index", DataType::Int32, true),
        Field::new("_kafka_timestamp", timestamps(), true),
        Field::new("_ingest_date", DataType::Date32, true),
    ]);
    TableSpec::new(Arc::new(Schema::new(fields))).partitioned_by(["_ingest_date"])
}

fn batch(events: &[Event]) -> RecordBatch {
    let texts = |text: &dyn Fn(&Event) -> Option<String>| -> ArrayRef {
        Arc::new(events.iter().map(text).collect::<StringArray>())
    };
    let columns: Vec<ArrayRef> = vec![
        texts(&|event| event.event_id.clone()),
        texts(&|event| event.user_id.clone()),
        texts(&|event| event.song_id.clone()),
        texts(&|event| event.song_id.as_ref().map(|song| format!("artist of {song}"))),
        texts(&|event| event.song_id.as_ref().map(|song| format!("name of {song}"))),
        texts(&|event| Some(event.event_type.to_owned())),
        texts(&|event| event.device_type.map(str::to_owned)),
        texts(&|_| Some("DE".to_owned())),
        texts(&|event| event.timestamp.clone()),
        Arc::new(events.iter().map(|event| event.partition).collect::<Int32Array>()),
        Arc::new(events.iter().map(|event| event.offset).collect::<Int64Array>()),
        Arc::new(events.iter().map(|_| 0).collect::<Int32Array>()),
        Arc::new(
            TimestampMicrosecondArray::from_iter_values(events.iter().map(|event| event.kafka_timestamp))
                .with_timezone("UTC"),
        ),
        Arc::new(Date32Array::from_iter_values(events.iter().map(|_| 20_000))),
    ];
    RecordBatch::try_new(bronze_spec().schema, columns).expect("the columns fit")
}

/// Adds events to bronze in one commit. None at all makes the commit of a batch of nothing but dead letters.
pub(crate) async fn append(lake: &Lake, events: &[Event]) {
    append_batch(lake, batch(events)).await;
}

/// The same with rows of bronze.
pub(crate) async fn append_batch(lake: &Lake, rows: RecordBatch) {
    let table = bronze(lake);
    let version = table.ensure(&bronze_spec()).await.expect("bronze is made");
    let mut commit = Commit::new(Operation::Write);
    commit.adds = table.stage_batches(&version, vec![rows], &StageOptions::default()).await.expect("rows are staged");
    let outcome = table.append(version.version, commit).await.expect("rows are committed");
    assert!(matches!(outcome, Outcome::Committed(_)), "nobody else writes to bronze here");
}

/// The rows of a table's version as text, sorted; the columns in the order of `columns`.
pub(crate) async fn rows(lake: &Lake, table: &TableVersion, columns: &[&str]) -> Vec<String> {
    let frame = lake.session_factory().context().read_table(table.provider()).expect("a table can be read");
    let frame = frame.select_columns(columns).expect("the table has the columns");
    let options = FormatOptions::default().with_null("∅");
    let mut rows = Vec::new();
    for batch in frame.collect().await.expect("the table is read") {
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &options).expect("a printable column"))
            .collect();
        for row in 0..batch.num_rows() {
            rows.push(columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(" | "));
        }
    }
    rows.sort();
    rows
}

pub(crate) async fn head(lake: &Lake, name: &str) -> Arc<TableVersion> {
    let name: TableName = name.parse().expect("a valid name");
    lake.table(&name).head().await.expect("the table is there")
}

pub(crate) async fn newest(lake: &Lake) -> Option<Publication> {
    lake.newest_publication(lakehouse::DEFAULT_GROUP).await.expect("publications can be read")
}
