//! One batch into the lake: letters first, then rows and offsets in one commit.
//!
//! A batch is bound to the versions at which the ledgers were read. Whoever finds another commit of the same ledger there
//! is a stale owner: nothing is repeated, the batch is dropped and its messages are read again from the new ledger.

use std::collections::BTreeMap;
use std::sync::Arc;

use lakehouse::{
    Commit, ConsumedRange, EncodedFile, INGEST_KEY, IngestInfo, Lake, Operation, Outcome, SessionFactory, Table,
    TableVersion, ingest_app_id,
};

use super::commit::Committer;
use super::encode::{Encoded, Work};
use super::intake::Range;
use crate::decode::{self, Counts, Decoder};
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
    pub(super) bronze_columns: Arc<TableVersion>,
    pub(super) letter_columns: Arc<TableVersion>,
    pub(super) decoder: Box<dyn Decoder>,
    pub(super) clock: Arc<dyn lakehouse::Clock>,
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
    pub(super) work: Work,
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
    let Batch { mut bound, ranges, work } = batch;
    let Encoded { rows, letters, counts } = work.finish().await?;
    if !letters.is_empty() {
        match sink.write_letters(&mut bound, &ranges, &counts, letters).await? {
            Outcome::Committed(version) => bound.letters = version,
            Outcome::Lost { winner } => return Ok(Written::Lost { table: sink.letters.name().to_string(), winner }),
        }
    }
    let consumed = consumed(ranges, &counts);
    match sink.write_rows(&bound, &consumed, rows).await? {
        Outcome::Committed(version) => {
            bound.bronze = version;
            Ok(Written::Committed { bound, ranges: consumed })
        }
        Outcome::Lost { winner } => Ok(Written::Lost { table: sink.bronze.name().to_string(), winner }),
    }
}

/// What became of the offsets of `ranges`.
fn consumed(ranges: Vec<Range>, counts: &BTreeMap<i32, Counts>) -> Vec<ConsumedRange> {
    let one = |range: Range| {
        let Counts { rows, dead_letters, .. } = counts.get(&range.partition).copied().unwrap_or_default();
        ConsumedRange {
            partition: range.partition,
            from: range.from,
            to: range.to,
            incarnation: 0,
            messages: Some(range.records),
            rows,
            dead_letters,
            holes: range.holes,
            end_offset: range.end_offset,
            fingerprint: range.fingerprint,
        }
    };
    ranges.into_iter().map(one).collect()
}

impl Sink {
    async fn write_letters(
        &self,
        bound: &mut Bound,
        ranges: &[Range],
        counts: &BTreeMap<i32, Counts>,
        files: Vec<EncodedFile>,
    ) -> Result<Outcome> {
        let mut commit = Commit::new(Operation::Write);
        commit.adds = self.letters.upload(files).await?;
        let has_letters = |range: &&Range| counts.get(&range.partition).is_some_and(|counts| counts.new_letters > 0);
        for range in ranges.iter().filter(has_letters) {
            let upto = bound.letters_ledger.entry(range.partition).or_insert(range.to);
            *upto = range.to.max(*upto);
            commit.transactions.insert(ingest_app_id(&self.topic.name, range.partition), *upto);
        }
        self.committer.append(&self.letters, bound.letters, commit).await
    }

    async fn write_rows(&self, bound: &Bound, consumed: &[ConsumedRange], files: Vec<EncodedFile>) -> Result<Outcome> {
        let mut commit = Commit::new(Operation::Write);
        commit.adds = self.bronze.upload(files).await?;
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
