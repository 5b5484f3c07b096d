//! Writes to the stored records: appends, and what takes records away.
//!
//! Only the guard calls these, one at a time, so that they take turns with the engine's own writes to the file.

use std::cmp::Ordering;

use libsql::{Connection, Transaction, TransactionBehavior};
use tansu_sans_io::ErrorCode;
use tansu_sans_io::record::deflated::Batch;

use super::batch::Record;
use super::records::{Bounds, PartitionId, Records, TIMESTAMP_TYPE, TRIM_CHUNK, first};

impl Records {
    /// Drops the records before `upto` and raises the start of the log to it.
    pub(super) async fn trim(&self, partition: PartitionId, upto: i64) -> libsql::Result<Bounds> {
        let bounds = self.bounds(partition).await?;
        let upto = upto.min(bounds.high);
        let mut low = bounds.low;
        while low < upto {
            low = low.saturating_add(TRIM_CHUNK).min(upto);
            let connection = self.connection().await?;
            let transaction = connection.transaction().await?;
            for sql in [
                "delete from header where topition = ?1 and offset_id < ?2",
                "delete from record where topition = ?1 and offset_id < ?2",
                "update watermark set low = ?2 where topition = ?1",
            ] {
                transaction.execute(sql, (partition.0, low)).await?;
            }
            transaction.commit().await?;
            self.keep(connection);
        }
        Ok(Bounds { low, high: bounds.high })
    }

    /// Deletes a topic, named by its name or its UUID, and says whether it was there. The engine's own statement for it
    /// deletes all topics.
    pub(super) async fn delete_topic(&self, topic: &str) -> libsql::Result<bool> {
        let sql = "select t.id from cluster c join topic t on t.cluster = c.id \
                   where c.name = ?1 and (t.name = ?2 or t.uuid = ?2)";
        let row = self.first(sql, (self.cluster.as_str(), topic)).await?;
        let Some(id) = row.and_then(|row| row.integer(0)) else { return Ok(false) };
        // The records go first and bit by bit; should the process end in between, the topic is still there to delete.
        for partition in self.partitions_where("t.id = ?2", id).await? {
            self.trim(partition, i64::MAX).await?;
        }
        let connection = self.connection().await?;
        let transaction = connection.transaction().await?;
        for table in ["watermark", "consumer_offset", "producer_detail", "header", "record"] {
            let sql = format!("delete from {table} where topition in (select id from topition where topic = ?1)");
            transaction.execute(&sql, [id]).await?;
        }
        for sql in [
            "delete from topic_configuration where topic = ?1",
            "delete from topition where topic = ?1",
            "delete from topic where id = ?1",
        ] {
            transaction.execute(sql, [id]).await?;
        }
        transaction.commit().await?;
        self.keep(connection);
        self.forget_partitions();
        Ok(true)
    }

    /// Stores a batch behind the last record and returns the offset of its first. The inner error is the answer to a
    /// batch that does not follow on what its producer sent before.
    pub(super) async fn append(
        &self,
        partition: PartitionId,
        batch: &Batch,
        records: &[Record],
    ) -> libsql::Result<Result<i64, ErrorCode>> {
        let connection = self.connection().await?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).await?;
        if batch.is_idempotent()
            && let Err(code) = self.advance_producer(&transaction, partition, batch).await?
        {
            transaction.rollback().await?;
            self.keep(connection);
            return Ok(Err(code));
        }
        let high = first(&transaction, "select high from watermark where topition = ?1", [partition.0]).await?;
        let offset = high.and_then(|row| row.integer(0)).unwrap_or(0);
        let last = insert(&transaction, partition, offset, batch.attributes & TIMESTAMP_TYPE, records).await?;
        let sql = "update watermark set low = coalesce(low, 0), high = ?2, last_updated = current_timestamp \
                   where topition = ?1";
        transaction.execute(sql, (partition.0, last)).await?;
        transaction.commit().await?;
        self.keep(connection);
        self.appends.send_modify(|count| *count = count.wrapping_add(1));
        Ok(Ok(offset))
    }

    /// Checks that a batch is the next one of its producer, and notes which has to come then.
    async fn advance_producer(
        &self,
        transaction: &Transaction,
        partition: PartitionId,
        batch: &Batch,
    ) -> libsql::Result<Result<(), ErrorCode>> {
        let sql = "select pe.id, pe.epoch from cluster c join producer p on p.cluster = c.id \
                   join producer_epoch pe on pe.producer = p.id where c.name = ?1 and p.id = ?2 \
                   order by pe.epoch desc limit 1";
        let Some(newest) = first(transaction, sql, (self.cluster.as_str(), batch.producer_id)).await? else {
            return Ok(Err(ErrorCode::UnknownProducerId));
        };
        let epoch = newest.integer(1).unwrap_or(0);
        let row = match i64::from(batch.producer_epoch).cmp(&epoch) {
            Ordering::Less => return Ok(Err(ErrorCode::InvalidProducerEpoch)),
            Ordering::Equal => newest.integer(0),
            // After an error clients raise the epoch by themselves, and start a new sequence under it.
            Ordering::Greater => {
                let sql = "insert into producer_epoch (producer, epoch) values (?1, ?2) returning id";
                let parameters = (batch.producer_id, i64::from(batch.producer_epoch));
                first(transaction, sql, parameters).await?.and_then(|row| row.integer(0))
            }
        };
        let sql = "select sequence from producer_detail where producer_epoch = ?1 and topition = ?2";
        let expected = first(transaction, sql, (row, partition.0)).await?.and_then(|row| row.integer(0)).unwrap_or(0);
        match i64::from(batch.base_sequence).cmp(&expected) {
            // A client takes that for what it is: the batch was stored, and only the answer got lost.
            Ordering::Less => return Ok(Err(ErrorCode::DuplicateSequenceNumber)),
            Ordering::Greater => return Ok(Err(ErrorCode::OutOfOrderSequenceNumber)),
            Ordering::Equal => {}
        }
        // After the largest number a sequence starts again at zero.
        let next = (expected + i64::from(batch.record_count)) & i64::from(i32::MAX);
        let sql = "insert into producer_detail (producer_epoch, topition, sequence) values (?1, ?2, ?3) \
                   on conflict (producer_epoch, topition) do update set sequence = excluded.sequence";
        transaction.execute(sql, (row, partition.0, next)).await?;
        Ok(Ok(()))
    }
}

/// Inserts records from an offset on and returns the offset behind the last.
async fn insert(
    connection: &Connection,
    partition: PartitionId,
    first: i64,
    attributes: i16,
    records: &[Record],
) -> libsql::Result<i64> {
    let sql = "insert into record (topition, offset_id, attributes, timestamp, k, v) values (?1, ?2, ?3, ?4, ?5, ?6)";
    let record_statement = connection.prepare(sql).await?;
    let sql = "insert into header (topition, offset_id, k, v) values (?1, ?2, ?3, ?4)";
    let header_statement = connection.prepare(sql).await?;
    let mut offset = first;
    for record in records {
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        let parameters = (partition.0, offset, i64::from(attributes), record.timestamp, key, value);
        record_statement.execute(parameters).await?;
        record_statement.reset();
        for (key, value) in &record.headers {
            header_statement.execute((partition.0, offset, &key[..], value.as_deref())).await?;
            header_statement.reset();
        }
        offset += 1;
    }
    Ok(offset)
}
