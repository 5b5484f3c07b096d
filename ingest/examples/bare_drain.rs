//! The yardstick of `make bench`: a topic drained by librdkafka, arrow-json and the Parquet encoder with nothing in between.
//!
//! No ledger, no dead letters, no lake: what it encodes is thrown away. What `lakebeat ingest` costs beyond this is the
//! price of exactly once. The topic must hold clean events only.
//!
//! `bare_drain --brokers HOST:PORT --topic NAME --until-end` prints one JSON object.
#![allow(clippy::print_stdout, reason = "its result goes to stdout")]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::json::ReaderBuilder;
use arrow::json::reader::Decoder;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tikv_jemallocator::Jemalloc;

/// That of `lakebeat`, so that what is compared are not the allocators.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Rows in one Arrow batch, and in one file: as `lakebeat ingest` has them by default.
const BATCH_ROWS: usize = 8192;
const FILE_ROWS: usize = 100_000;
const TIMEOUT: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn Error>> {
    let (brokers, topic) = arguments()?;
    let started = Instant::now();
    let consumer = consumer(&brokers)?;
    let mut ends = assign(&consumer, &topic)?;
    let mut drain = Drain::new()?;
    while !ends.is_empty() {
        match consumer.poll(TIMEOUT).ok_or("the broker sends nothing more")? {
            Ok(message) => {
                drain.push(message.payload().ok_or("a message without a payload")?)?;
                let end = ends.get(&message.partition()).copied();
                if end.is_some_and(|end| message.offset() + 1 >= end) {
                    ends.remove(&message.partition());
                }
            }
            // Beyond the last message there may be offsets that hold none.
            Err(KafkaError::PartitionEOF(partition)) => drop(ends.remove(&partition)),
            Err(error) => return Err(error.into()),
        }
    }
    drain.finish_file()?;
    let (cpu_seconds, peak_rss_bytes) = costs()?;
    println!(
        r#"{{"events":{},"bytes":{},"parquet_bytes":{},"seconds":{:.3},"cpu_seconds":{cpu_seconds:.2},"peak_rss_bytes":{peak_rss_bytes}}}"#,
        drain.events,
        drain.bytes,
        drain.parquet_bytes,
        started.elapsed().as_secs_f64(),
    );
    Ok(())
}

fn arguments() -> Result<(String, String), Box<dyn Error>> {
    let (mut brokers, mut topic, mut until_end) = (None, None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--brokers" => brokers = arguments.next(),
            "--topic" => topic = arguments.next(),
            "--until-end" => until_end = Some(()),
            other => return Err(format!("{other} is no flag of this program").into()),
        }
    }
    let usage = "usage: bare_drain --brokers HOST:PORT --topic NAME --until-end";
    until_end.and(brokers.zip(topic)).ok_or_else(|| usage.into())
}

/// The same read-ahead as `lakebeat ingest` has.
fn consumer(brokers: &str) -> Result<BaseConsumer, KafkaError> {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "bare-drain")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .set("queued.max.messages.kbytes", "4096")
        .set("queued.min.messages", "50000")
        .set("fetch.wait.max.ms", "100")
        .set("fetch.queue.backoff.ms", "10")
        .create()
}

/// Begins at the start of every partition; returns the present end of each that holds something.
fn assign(consumer: &BaseConsumer, topic: &str) -> Result<BTreeMap<i32, i64>, Box<dyn Error>> {
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT)?;
    let partitions = metadata.topics().first().map(|found| found.partitions()).unwrap_or_default();
    let mut ends = BTreeMap::new();
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        let (low, high) = consumer.fetch_watermarks(topic, partition.id(), TIMEOUT)?;
        if low < high {
            ends.insert(partition.id(), high);
            list.add_partition_offset(topic, partition.id(), Offset::Offset(low))?;
        }
    }
    consumer.assign(&list)?;
    Ok(ends)
}

/// Payloads → Arrow → Parquet, file after file.
struct Drain {
    decoder: Decoder,
    schema: SchemaRef,
    writer: ArrowWriter<Vec<u8>>,
    rows_in_file: usize,
    events: usize,
    bytes: usize,
    parquet_bytes: usize,
}

impl Drain {
    fn new() -> Result<Self, Box<dyn Error>> {
        let names = [
            "event_id",
            "user_id",
            "song_id",
            "artist_name",
            "song_name",
            "event_type",
            "device_type",
            "country",
            "timestamp",
        ];
        let fields: Vec<_> = names.into_iter().map(|name| Field::new(name, DataType::Utf8, true)).collect();
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        let decoder = ReaderBuilder::new(schema.clone()).with_batch_size(BATCH_ROWS).build_decoder()?;
        let writer = file(&schema)?;
        Ok(Self { decoder, schema, writer, rows_in_file: 0, events: 0, bytes: 0, parquet_bytes: 0 })
    }

    fn push(&mut self, payload: &[u8]) -> Result<(), Box<dyn Error>> {
        let mut rest = payload;
        loop {
            // It stops short of the end of a payload when its batch is full.
            let taken = self.decoder.decode(rest)?;
            rest = &rest[taken..];
            if rest.is_empty() {
                break;
            }
            self.flush()?;
        }
        self.events += 1;
        self.bytes += payload.len();
        if self.rows_in_file + self.decoder.len() >= FILE_ROWS {
            self.finish_file()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Box<dyn Error>> {
        if let Some(batch) = self.decoder.flush()? {
            self.rows_in_file += batch.num_rows();
            self.writer.write(&batch)?;
        }
        Ok(())
    }

    fn finish_file(&mut self) -> Result<(), Box<dyn Error>> {
        self.flush()?;
        let full = std::mem::replace(&mut self.writer, file(&self.schema)?);
        self.parquet_bytes += full.into_inner()?.len();
        self.rows_in_file = 0;
        Ok(())
    }
}

fn file(schema: &SchemaRef) -> Result<ArrowWriter<Vec<u8>>, Box<dyn Error>> {
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    Ok(ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties))?)
}

/// Processor time of all threads, in seconds, and the most memory that was ever held, in bytes: from Linux's /proc.
fn costs() -> Result<(f64, u64), Box<dyn Error>> {
    // Fields 14 and 15 of proc(5); the second one, the name, may hold spaces and ends with the last parenthesis.
    const TICKS_A_SECOND: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).map(str::parse::<u64>).sum::<Result<_, _>>()?;
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("/proc/self/status has no VmHWM")?;
    let kibibytes: u64 = peak.trim().trim_end_matches(" kB").parse()?;
    Ok((ticks as f64 / TICKS_A_SECOND, kibibytes * 1024))
}
