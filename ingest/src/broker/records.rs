//! Reads the stored records, straight from the SQLite file; [`super::writes`] has the other direction.
//!
//! The storage engine below has its own ways for both, and they are not good enough. Each of its reads walks the whole
//! log behind the asked offset, so that catching up costs the square of the backlog; it prepares a statement for each
//! record that it stores; it panics over a partition or a producer that it does not know; it deletes all topics where
//! one is meant; and it never moves the start of a log. Here a read is one walk along the primary key that stops when the
//! answer is full, and an append is one transaction, producer's sequence and all. Many readers work beside one writer
//! (SQLite's WAL).

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use libsql::params::IntoParams;
use libsql::{Connection, Database, Value};
use tansu_sans_io::record::deflated::Batch;
use tokio::sync::watch;

use super::batch::{BatchBuilder, Header};

/// How long a statement waits for another's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Records that one delete statement takes away, so that producers never wait long for it.
pub(super) const TRIM_CHUNK: i64 = 10_000;

/// What a record takes on the wire beside its key and its value, about.
const RECORD_BYTES: usize = 12;

/// Bit of the attributes that survives storing: whether the timestamp is the producer's or the broker's.
pub(super) const TIMESTAMP_TYPE: i16 = 0b1000;

/// The row number of a partition in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PartitionId(pub(super) i64);

/// Where the log of a partition starts and where its next record goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) low: i64,
    pub(super) high: i64,
}

/// What a read asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    /// The first offset to return.
    pub(super) from: i64,
    /// The first offset not to return.
    pub(super) upto: i64,
    /// When to stop; one record is returned even if it is longer.
    pub(super) bytes_max: usize,
}

/// The file, its readers, and a bell that rings when something was appended.
#[derive(Debug)]
pub(super) struct Records {
    database: Database,
    /// Name under which the engine keeps everything of this broker.
    pub(super) cluster: String,
    /// Connections that nobody uses now.
    idle: Mutex<Vec<Connection>>,
    /// Partitions that were looked up; emptied whenever a topic comes or goes.
    partitions: Mutex<HashMap<(String, i32), PartitionId>>,
    /// Counts appends; waiting fetches watch it.
    pub(super) appends: watch::Sender<u64>,
}

impl Records {
    /// Opens the file, which the engine has made and filled with its tables.
    pub(super) async fn open(path: &Path, cluster: &str) -> libsql::Result<Self> {
        let database = libsql::Builder::new_local(path).build().await?;
        let records = Self {
            database,
            cluster: cluster.to_owned(),
            idle: Mutex::new(Vec::new()),
            partitions: Mutex::new(HashMap::new()),
            appends: watch::Sender::new(0),
        };
        // Without it each delete of a record, and each read of one with headers, walks all headers.
        let index = "create index if not exists lakebeat_header_offset on header (topition, offset_id)";
        records.execute(index, ()).await?;
        Ok(records)
    }

    /// The partition, if the topic has it.
    pub(super) async fn partition(&self, topic: &str, index: i32) -> libsql::Result<Option<PartitionId>> {
        let key = (topic.to_owned(), index);
        if let Some(id) = self.cached(&key) {
            return Ok(Some(id));
        }
        let sql = "select tp.id from cluster c join topic t on t.cluster = c.id join topition tp on tp.topic = t.id \
                   where c.name = ?1 and t.name = ?2 and tp.partition = ?3";
        let row = self.first(sql, (self.cluster.as_str(), topic, index)).await?;
        let found = row.and_then(|row| row.integer(0)).map(PartitionId);
        if let Some(id) = found {
            self.partitions.lock().unwrap_or_else(PoisonError::into_inner).insert(key, id);
        }
        Ok(found)
    }

    /// Forgets the looked-up partitions: a topic came or went.
    pub(super) fn forget_partitions(&self) {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Where the log starts and ends.
    pub(super) async fn bounds(&self, partition: PartitionId) -> libsql::Result<Bounds> {
        let sql = "select low, high from watermark where topition = ?1";
        let row = self.first(sql, [partition.0]).await?.unwrap_or_default();
        Ok(Bounds { low: row.integer(0).unwrap_or(0), high: row.integer(1).unwrap_or(0) })
    }

    /// The first record that is not older than `timestamp` (milliseconds): its offset and its time.
    pub(super) async fn first_since(
        &self,
        partition: PartitionId,
        timestamp: i64,
    ) -> libsql::Result<Option<(i64, i64)>> {
        let sql = "select offset_id, timestamp from record where topition = ?1 and timestamp >= ?2 \
                   order by offset_id limit 1";
        let row = self.first(sql, (partition.0, timestamp)).await?;
        Ok(row.and_then(|row| row.integer(0).zip(row.integer(1))))
    }

    /// Packs stored records into batches.
    pub(super) async fn read(&self, partition: PartitionId, range: Range) -> libsql::Result<Vec<Batch>> {
        let connection = self.connection().await?;
        let rows = stored(&connection, partition, range).await?;
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(Vec::new()) };
        let mut headers = headers(&connection, partition, first.offset, last.offset).await?;
        self.keep(connection);
        let mut batches = Vec::new();
        let mut open: Option<BatchBuilder> = None;
        for row in &rows {
            let full = open.take_if(|builder| builder.attributes() != row.attributes);
            batches.extend(full.map(BatchBuilder::finish));
            let builder = open.get_or_insert_with(|| BatchBuilder::new(row.offset, row.timestamp, row.attributes));
            let own = headers.remove(&row.offset).unwrap_or_default();
            builder.push(row.offset, row.timestamp, blob(&row.key), blob(&row.value), &own);
        }
        batches.extend(open.map(BatchBuilder::finish));
        Ok(batches)
    }

    /// A watch on appends: subscribe first, then read, then wait.
    pub(super) fn appends(&self) -> watch::Receiver<u64> {
        self.appends.subscribe()
    }

    /// All partitions of this broker.
    pub(super) async fn all_partitions(&self) -> libsql::Result<Vec<PartitionId>> {
        self.partitions_where("?2 = 0", 0).await
    }

    pub(super) async fn partitions_where(&self, condition: &str, value: i64) -> libsql::Result<Vec<PartitionId>> {
        let sql = format!(
            "select tp.id from cluster c join topic t on t.cluster = c.id \
             join topition tp on tp.topic = t.id where c.name = ?1 and {condition}"
        );
        let connection = self.connection().await?;
        let mut rows = connection.query(&sql, (self.cluster.as_str(), value)).await?;
        let mut partitions = Vec::new();
        while let Some(row) = rows.next().await? {
            partitions.push(PartitionId(row.get(0)?));
        }
        drop(rows);
        self.keep(connection);
        Ok(partitions)
    }

    /// Bytes of the file that hold something.
    pub(super) async fn used_bytes(&self) -> libsql::Result<u64> {
        let sql = "select (page_count - freelist_count) * page_size \
                   from pragma_page_count(), pragma_freelist_count(), pragma_page_size()";
        let row = self.first(sql, ()).await?;
        Ok(row.and_then(|row| row.integer(0)).and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0))
    }

    /// The first offset at or behind `low` that arrived at `arrived` (UTC, `YYYY-MM-DD HH:MM:SS`) or later, looking at
    /// no more than a chunk of records.
    pub(super) async fn first_arrived_since(
        &self,
        partition: PartitionId,
        low: i64,
        arrived: &str,
    ) -> libsql::Result<i64> {
        let sql = "select coalesce(min(offset_id) filter (where created_at >= ?3), max(offset_id) + 1, ?2) from \
                   (select offset_id, created_at from record where topition = ?1 and offset_id >= ?2 \
                    order by offset_id limit ?4)";
        let row = self.first(sql, (partition.0, low, arrived, TRIM_CHUNK)).await?;
        Ok(row.and_then(|row| row.integer(0)).unwrap_or(low))
    }

    /// What the engine stored of a consumer group, as JSON.
    pub(super) async fn group_detail(&self, group: &str) -> libsql::Result<Option<String>> {
        let sql = "select d.detail from cluster c join consumer_group g on g.cluster = c.id \
                   join consumer_group_detail d on d.consumer_group = g.id where c.name = ?1 and g.name = ?2";
        Ok(self.first(sql, (self.cluster.as_str(), group)).await?.and_then(|row| row.text(0)))
    }

    /// Moves what is in the write-ahead log into the file.
    pub(super) async fn checkpoint(&self) -> libsql::Result<()> {
        self.first("pragma wal_checkpoint(truncate)", ()).await.map(|_| ())
    }

    /// The first row of a query.
    pub(super) async fn first(&self, sql: &str, parameters: impl IntoParams) -> libsql::Result<Option<Values>> {
        let connection = self.connection().await?;
        let values = first(&connection, sql, parameters).await?;
        self.keep(connection);
        Ok(values)
    }

    async fn execute(&self, sql: &str, parameters: impl IntoParams) -> libsql::Result<()> {
        let connection = self.connection().await?;
        connection.execute(sql, parameters).await?;
        self.keep(connection);
        Ok(())
    }

    /// A connection that nobody else uses. After an error it is dropped instead of kept.
    pub(super) async fn connection(&self) -> libsql::Result<Connection> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(connection) = idle {
            return Ok(connection);
        }
        let connection = self.database.connect()?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        // As the engine has it: a commit is in the file when the process ends, and not before a loss of power.
        connection.execute("pragma synchronous = normal", ()).await?;
        Ok(connection)
    }

    pub(super) fn keep(&self, connection: Connection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }

    fn cached(&self, key: &(String, i32)) -> Option<PartitionId> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }
}

/// The first row of a query, with the statement behind it done.
pub(super) async fn first(
    connection: &Connection,
    sql: &str,
    parameters: impl IntoParams,
) -> libsql::Result<Option<Values>> {
    let mut rows = connection.query(sql, parameters).await?;
    let row = rows.next().await?;
    // A row reads from its statement, which must be done before somebody else gets the connection.
    let values = row.map(|row| (0..row.column_count()).map(|column| row.get_value(column)).collect()).transpose()?;
    Ok(values.map(Values))
}

/// A record as it is stored.
struct Stored {
    offset: i64,
    attributes: i16,
    timestamp: i64,
    key: Value,
    value: Value,
}

/// The records of a range, until the answer is full.
async fn stored(connection: &Connection, partition: PartitionId, range: Range) -> libsql::Result<Vec<Stored>> {
    let sql = "select offset_id, attributes, timestamp, k, v from record \
               where topition = ?1 and offset_id >= ?2 and offset_id < ?3 order by offset_id";
    let mut rows = connection.query(sql, (partition.0, range.from, range.upto)).await?;
    let mut records = Vec::new();
    let mut bytes = 0;
    while let Some(row) = rows.next().await? {
        let (key, value) = (row.get_value(3)?, row.get_value(4)?);
        bytes += blob(&key).map_or(0, <[u8]>::len) + blob(&value).map_or(0, <[u8]>::len) + RECORD_BYTES;
        if bytes > range.bytes_max && !records.is_empty() {
            break;
        }
        let attributes = integer(&row.get_value(1)?).and_then(|attributes| i16::try_from(attributes).ok());
        records.push(Stored {
            offset: row.get(0)?,
            attributes: attributes.unwrap_or(0) & TIMESTAMP_TYPE,
            timestamp: integer(&row.get_value(2)?).unwrap_or(-1),
            key,
            value,
        });
    }
    Ok(records)
}

/// The headers of the records of a range, in their order.
async fn headers(
    connection: &Connection,
    partition: PartitionId,
    first: i64,
    last: i64,
) -> libsql::Result<HashMap<i64, Vec<Header>>> {
    let sql = "select offset_id, k, v from header where topition = ?1 and offset_id between ?2 and ?3 \
               order by offset_id, rowid";
    let mut rows = connection.query(sql, (partition.0, first, last)).await?;
    let mut headers: HashMap<i64, Vec<Header>> = HashMap::new();
    while let Some(row) = rows.next().await? {
        let (key, value) = (row.get_value(1)?, row.get_value(2)?);
        let own = headers.entry(row.get(0)?).or_default();
        own.push((blob(&key).map(Vec::from), blob(&value).map(Vec::from)));
    }
    Ok(headers)
}

/// A row that was read to its end.
#[derive(Debug, Default)]
pub(super) struct Values(Vec<Value>);

impl Values {
    pub(super) fn integer(&self, column: usize) -> Option<i64> {
        self.0.get(column).and_then(integer)
    }

    fn text(self, column: usize) -> Option<String> {
        match self.0.into_iter().nth(column) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Integer(integer) => Some(*integer),
        _ => None,
    }
}

fn blob(value: &Value) -> Option<&[u8]> {
    match value {
        Value::Blob(bytes) => Some(bytes),
        Value::Text(text) => Some(text.as_bytes()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use tansu_sans_io::ErrorCode;
    use tansu_sans_io::record::inflated;

    /// A file with one partition of records that arrived one a day, the first on 1 March.
    async fn filled(folder: &Path, days: i64) -> (Records, PartitionId) {
        let path = folder.join("broker.db");
        let records = Records::open_with_tables(&path).await;
        for day in 0..days {
            let sql = "insert into record (topition, offset_id, attributes, timestamp, k, v, created_at) \
                       values (1, ?1, 0, ?1, 'k', 'v', datetime('2026-03-01', ?2))";
            records.execute(sql, (day, format!("+{day} days"))).await.expect("inserted");
        }
        records
            .execute("insert into header (topition, offset_id, k, v) values (1, 2, 'h', null)", ())
            .await
            .expect("in");
        records.execute("update watermark set low = 0, high = ?1", [days]).await.expect("updated");
        let partition = records.partition("topic", 0).await.expect("read").expect("there");
        (records, partition)
    }

    impl Records {
        /// The tables that the engine would make, with one topic of one partition.
        async fn open_with_tables(path: &Path) -> Self {
            let database = libsql::Builder::new_local(path).build().await.expect("opened");
            let connection = database.connect().expect("connected");
            let tables = "create table cluster (id integer primary key, name text);
                create table topic (id integer primary key, cluster integer, name text, uuid text);
                create table topition (id integer primary key, topic integer, partition integer);
                create table watermark (topition integer, low integer, high integer, last_updated text);
                create table record (topition integer, offset_id integer, attributes integer, timestamp integer,
                    k blob, v blob, created_at text default current_timestamp, primary key (topition, offset_id));
                create table header (topition integer, offset_id integer, k blob, v blob);
                create table producer (id integer primary key, cluster integer);
                create table producer_epoch (id integer primary key, producer integer, epoch integer);
                create table producer_detail (producer_epoch integer, topition integer, sequence integer,
                    last_updated text, unique (producer_epoch, topition));
                insert into producer values (5, 1); insert into producer_epoch values (1, 5, 0);
                insert into cluster values (1, 'here'); insert into topic values (1, 1, 'topic', 'uuid');
                insert into topition values (1, 1, 0); insert into watermark (topition) values (1);";
            connection.execute_batch(tables).await.expect("made");
            Self::open(path, "here").await.expect("opened")
        }
    }

    #[tokio::test]
    async fn old_records_are_found_and_dropped() {
        let folder = tempfile::tempdir().expect("a folder");
        let (records, partition) = filled(folder.path(), 10).await;
        let upto = records.first_arrived_since(partition, 0, "2026-03-04 00:00:00").await.expect("read");
        assert_eq!(upto, 3);
        assert_eq!(records.trim(partition, upto).await.expect("trimmed"), Bounds { low: 3, high: 10 });
        assert_eq!(records.bounds(partition).await.expect("read"), Bounds { low: 3, high: 10 });
        let range = Range { from: 0, upto: 10, bytes_max: 1_000 };
        let batches = records.read(partition, range).await.expect("read");
        assert_eq!((batches[0].base_offset, batches[0].record_count), (3, 7));
        // All of them may be old; the end of the log stays where it is.
        let upto = records.first_arrived_since(partition, 3, "2027-01-01 00:00:00").await.expect("read");
        assert_eq!(records.trim(partition, upto).await.expect("trimmed"), Bounds { low: 10, high: 10 });
        assert_eq!(records.first_arrived_since(partition, 10, "2027-01-01 00:00:00").await.expect("read"), 10);
    }

    #[tokio::test]
    async fn a_read_stops_when_it_is_full_but_never_before_the_first_record() {
        let folder = tempfile::tempdir().expect("a folder");
        let (records, partition) = filled(folder.path(), 5).await;
        let count = async |bytes_max| {
            let range = Range { from: 1, upto: 5, bytes_max };
            let batches = records.read(partition, range).await.expect("read");
            batches.iter().map(|batch| batch.record_count).sum::<u32>()
        };
        assert_eq!(count(1).await, 1);
        assert_eq!(count(2 * (RECORD_BYTES + 2)).await, 2);
        assert_eq!(count(1_000).await, 4);
        let range = Range { from: 2, upto: 3, bytes_max: 1 };
        let batch = records.read(partition, range).await.expect("read").remove(0);
        let batch = inflated::Batch::try_from(batch).expect("decodes");
        assert_eq!(batch.records[0].headers[0].key.as_deref(), Some(&b"h"[..]));
        assert_eq!(batch.records[0].headers[0].value, None);
    }

    #[tokio::test]
    async fn a_producer_gets_each_batch_stored_once_and_in_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let (records, partition) = filled(folder.path(), 0).await;
        let append = async |producer_id, producer_epoch, base_sequence, count| {
            let mut builder = BatchBuilder::new(0, 0, 0);
            for offset in 0..count {
                builder.push(offset, 0, None, Some(b"v"), &[]);
            }
            let batch = Batch { producer_id, producer_epoch, base_sequence, ..builder.finish() };
            let own = crate::broker::batch::records(&batch).expect("decodes");
            records.append(partition, &batch, &own).await.expect("written")
        };
        assert_eq!(append(5, 0, 0, 2).await, Ok(0));
        assert_eq!(append(5, 0, 2, 3).await, Ok(2));
        assert_eq!(append(5, 0, 2, 3).await, Err(ErrorCode::DuplicateSequenceNumber));
        assert_eq!(append(5, 0, 9, 1).await, Err(ErrorCode::OutOfOrderSequenceNumber));
        assert_eq!(append(6, 0, 0, 1).await, Err(ErrorCode::UnknownProducerId));
        assert_eq!(append(-1, -1, -1, 1).await, Ok(5));
        // A client that raised its epoch after an error starts its sequence again.
        assert_eq!(append(5, 1, 4, 1).await, Err(ErrorCode::OutOfOrderSequenceNumber));
        assert_eq!(append(5, 1, 0, 1).await, Ok(6));
        assert_eq!(append(5, 0, 5, 1).await, Err(ErrorCode::InvalidProducerEpoch));
        assert_eq!(append(5, 1, 1, 1).await, Ok(7));
        assert_eq!(records.bounds(partition).await.expect("read"), Bounds { low: 0, high: 8 });
    }
}
