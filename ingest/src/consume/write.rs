//! One batch into the lake: decoded, letters first, then rows and offsets in one commit.
//!
//! A batch is bound to the versions at which the ledgers were read. Whoever finds another commit of the same ledger there
//! is a stale owner: nothing is repeated, the batch is dropped and its messages are read again from the new ledger.

use std::collections::BTreeMap;
use std::sync::Arc;

use lakehouse::{
    Commit, ConsumedRange, INGEST_KEY, IngestInfo, Lake, Operation, Outcome, SessionFactory, StageOptions, Table,
    TableVersion, ingest_app_id,
};

use super::commit::Committer;
use super::intake::Range;
use super::limit::{Counted, Limit, Reasons};
use crate::decode::{self, Decoded, Decoder, Recorded};
use crate::records::Records;
use crate::topic::TopicSpec;
use crate::{Error, ErrorKind, Result};

/// Where batches go.
pub(super) struct Sink {
    pub(super) topic: TopicSpec,
    pub(super) bronze: Table,
    pub(super) letters: Table,
    pub(super) sessions: SessionFactory,
    /// What the broker calls its cluster; empty if it does not tell.
    cluster_id: String,
    /// Only the columns of these two count; any version has the same.
    bronze_columns: Arc<TableVersion>,
    letter_columns: Arc<TableVersion>,
    decoder: Box<dyn Decoder>,
    limit: Limit,
    clock: Arc<dyn lakehouse::Clock>,
    committer: Arc<dyn Committer>,
}

/// The ledgers that the next batch goes on from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Bound {
    /// The version of the table of rows at which its ledger was read, or that our own last commit made.
    pub(super) bronze: u64,
    /// The same of the dead letters.
    pub(super) letters: u64,
    /// The entries of the dead letters' ledger: they may be ahead of bronze's, and never go back.
    pub(super) letters_ledger: BTreeMap<i32, i64>,
}

/// Messages to commit together.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) bound: Bound,
    pub(super) ranges: Vec<Range>,
    pub(super) records: Vec<Records>,
    pub(super) recorded: Arc<Recorded>,
}

/// How a batch ended.
#[derive(Debug)]
pub(super) enum Written {
    /// It is in the lake.
    Committed { bound: Bound, ranges: Vec<ConsumedRange> },
    /// Somebody else moved the ledger of this table first.
    Lost { table: String, winner: u64 },
}

impl Sink {
    /// Makes the tables if they are missing.
    pub(super) async fn open(
        lake: &Lake,
        topic: &TopicSpec,
        cluster_id: Option<String>,
        committer: Arc<dyn Committer>,
    ) -> Result<Self> {
        let bronze = lake.table(&topic.table);
        let letters = lake.table(&topic.dead_letters);
        Ok(Self {
            bronze_columns: bronze.ensure(&topic.rows_spec()).await?,
            letter_columns: letters.ensure(&topic.letters_spec()).await?,
            limit: Limit::open(topic, &bronze).await?,
            topic: topic.clone(),
            bronze,
            letters,
            sessions: lake.session_factory(),
            cluster_id: cluster_id.unwrap_or_default(),
            decoder: decode::decoder_for(topic),
            clock: lake.clock().clone(),
            committer,
        })
    }
}

/// Commits a batch.
///
/// # Errors
/// After an error nobody knows what of the batch is in the lake. The ledgers do: they have to be read again.
pub(super) async fn write(sink: Arc<Sink>, batch: Batch) -> Result<Written> {
    let Batch { mut bound, ranges, records, recorded } = batch;
    let (decoding_sink, decoding_ranges) = (sink.clone(), ranges.clone());
    let decoding = move || decode_all(&decoding_sink, &records, &recorded, &decoding_ranges);
    let (decoded, consumed) = tokio::task::spawn_blocking(decoding)
        .await
        .map_err(|source| Error::with_source(ErrorKind::Bug, "decoding was broken off", source))??;
    let counted = Counted::of(&consumed);
    let mut reasons = Reasons::default();
    decoded.letters.iter().for_each(|letters| reasons.add(letters));
    sink.limit.check(counted, &reasons)?;
    if !decoded.letters.is_empty() {
        match sink.write_letters(&mut bound, &ranges, &decoded).await? {
            Outcome::Committed(version) => bound.letters = version,
            Outcome::Lost { winner } => return Ok(Written::Lost { table: sink.letters.name().to_string(), winner }),
        }
    }
    match sink.write_rows(&bound, &consumed, decoded).await? {
        Outcome::Committed(version) => {
            bound.bronze = version;
            sink.limit.count(counted);
            Ok(Written::Committed { bound, ranges: consumed })
        }
        Outcome::Lost { winner } => Ok(Written::Lost { table: sink.bronze.name().to_string(), winner }),
    }
}

fn decode_all(
    sink: &Sink,
    records: &[Records],
    recorded: &Recorded,
    ranges: &[Range],
) -> Result<(Decoded, Vec<ConsumedRange>)> {
    let mut decoded = Decoded::default();
    let now = sink.clock.now();
    for records in records {
        decode::decode(sink.decoder.as_ref(), &sink.topic, records, recorded, now, &mut decoded)?;
    }
    let consumed = ranges.iter().map(|range| {
        let dead_letters = decoded.dead_letters.get(&range.partition).copied().unwrap_or(0);
        ConsumedRange {
            partition: range.partition,
            from: range.from,
            to: range.to,
            incarnation: 0,
            messages: Some(range.records),
            rows: range.records - dead_letters,
            dead_letters,
            holes: range.holes,
            end_offset: range.end_offset,
            fingerprint: range.fingerprint.clone(),
        }
    });
    let consumed = consumed.collect();
    Ok((decoded, consumed))
}

impl Sink {
    async fn write_letters(&self, bound: &mut Bound, ranges: &[Range], decoded: &Decoded) -> Result<Outcome> {
        let batches = decoded.letters.clone();
        let mut commit = Commit::new(Operation::Write);
        commit.adds = self.letters.stage_batches(&self.letter_columns, batches, &StageOptions::default()).await?;
        for range in ranges.iter().filter(|range| decoded.letter_partitions.contains_key(&range.partition)) {
            let upto = bound.letters_ledger.entry(range.partition).or_insert(range.to);
            *upto = range.to.max(*upto);
            commit.transactions.insert(ingest_app_id(&self.topic.name, range.partition), *upto);
        }
        self.committer.append(&self.letters, bound.letters, commit).await
    }

    async fn write_rows(&self, bound: &Bound, consumed: &[ConsumedRange], decoded: Decoded) -> Result<Outcome> {
        let mut commit = Commit::new(Operation::Write);
        if !decoded.rows.is_empty() {
            let options = StageOptions::default();
            commit.adds = self.bronze.stage_batches(&self.bronze_columns, decoded.rows, &options).await?;
        }
        let entry = |range: &ConsumedRange| (ingest_app_id(&self.topic.name, range.partition), range.to);
        commit.transactions = consumed.iter().map(entry).collect();
        let mut info = IngestInfo::new(&self.topic.name, &self.cluster_id, self.letters.name().clone());
        info.ranges = consumed.to_vec();
        let info = serde_json::to_value(info)
            .map_err(|source| Error::with_source(ErrorKind::Bug, "cannot write down what was consumed", source))?;
        commit.info.insert(INGEST_KEY.to_owned(), info);
        self.committer.append(&self.bronze, bound.bronze, commit).await
    }
}
