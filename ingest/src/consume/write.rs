//! One batch into the lake: letters first, then rows and offsets in one commit.
//!
//! A batch is bound to the versions at which the ledgers were read. Whoever finds another commit of the same ledger there
//! is a stale owner: nothing is repeated, the batch is dropped and its messages are read again from the new ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use lakehouse::{
    Commit, ConsumedRange, EncodedFile, IngestInfo, Lake, Operation, Outcome, SessionFactory, Table, TableVersion,
    cluster_app_id, fingerprint_app_id, incarnation_app_id, ingest_app_id,
};

use super::commit::Committer;
use super::encode::{Encoded, Work};
use super::identity::Gap;
use super::incarnation;
use super::intake::Range;
use super::limit::{Counted, Limit};
use crate::columns;
use crate::decode::{self, Counts, Decoder};
use crate::records::{digest, digest_of_text};
use crate::topic::TopicSpec;
use crate::{Error, ErrorKind, Result};

/// A ledger's fingerprint where there is no message to compare with.
pub(super) const NO_FINGERPRINT: i64 = 0;

/// Where batches go.
pub(super) struct Sink {
    pub(super) topic: TopicSpec,
    pub(super) bronze: Table,
    pub(super) letters: Table,
    pub(super) sessions: SessionFactory,
    /// What the broker calls its cluster; empty if it does not tell.
    cluster_id: String,
    /// Others may add columns, which is seen with the next look at the ledger.
    columns: Mutex<Columns>,
    pub(super) decoder: Box<dyn Decoder>,
    limit: Limit,
    pub(super) clock: Arc<dyn lakehouse::Clock>,
    committer: Arc<dyn Committer>,
}

/// The tables as they were last seen. Only their columns count.
#[derive(Clone)]
pub(super) struct Columns {
    pub(super) rows: Arc<TableVersion>,
    pub(super) letters: Arc<TableVersion>,
}

impl Columns {
    async fn look(bronze: &Table, letters: &Table, topic: &TopicSpec) -> Result<Self> {
        let rows = columns::prepare(bronze, topic).await?;
        Ok(Self { rows, letters: letters.ensure(&topic.letters_spec()).await? })
    }
}

/// The ledgers that the next batch goes on from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Bound {
    /// The partitions that are ours. No commit of others that moves one of them lies before these versions, not even one that
    /// our own last commits had no part in.
    pub(super) partitions: BTreeSet<i32>,
    /// The version of the table of rows at which its ledger was read, or that our own last commit made.
    pub(super) bronze: u64,
    /// The same of the dead letters.
    pub(super) letters: u64,
    /// The entries of the dead letters' ledger: they may be ahead of bronze's, and never go back.
    pub(super) letters_ledger: BTreeMap<i32, i64>,
    /// A digest of the cluster that bronze's ledger names.
    pub(super) cluster: Option<i64>,
    /// How often each partition was made anew, where it was.
    pub(super) incarnations: BTreeMap<i32, i32>,
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
        columns::refuse_table_of_another(&bronze, topic).await?;
        Ok(Self {
            columns: Mutex::new(Columns::look(&bronze, &letters, topic).await?),
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

    /// Goes by the columns that the tables have now. To be called after their ledgers were read: a batch that is bound to them
    /// then either fits the columns, or loses to the commit that changed them since.
    pub(super) async fn look_at_columns(&self, incarnations: &BTreeMap<i32, i32>) -> Result<()> {
        if !incarnations.is_empty() {
            // They have it, unless the settings name another table since then.
            self.add_incarnation_column().await?;
        }
        let newest = Columns::look(&self.bronze, &self.letters, &self.topic).await?;
        *self.columns.lock().expect("no holder of this lock panics") = newest;
        Ok(())
    }

    async fn add_incarnation_column(&self) -> Result<()> {
        self.bronze.add_columns(&[incarnation::column()]).await?;
        self.letters.add_columns(&[incarnation::column()]).await?;
        Ok(())
    }

    pub(super) fn columns(&self) -> Columns {
        self.columns.lock().expect("no holder of this lock panics").clone()
    }
}

/// Commits a batch.
///
/// # Errors
/// After an error nobody knows what of the batch is in the lake. The ledgers do: they have to be read again.
pub(super) async fn write(sink: Arc<Sink>, batch: Batch) -> Result<Written> {
    let Batch { mut bound, ranges, work } = batch;
    let Encoded { rows, letters, counts, reasons } = work.finish().await?;
    let consumed = consumed(&ranges, &counts, &bound.incarnations);
    check_complete(&consumed)?;
    let counted = Counted::of(&consumed);
    sink.limit.check(counted, &reasons)?;
    if !letters.is_empty() {
        match sink.write_letters(&mut bound, &ranges, &counts, letters).await? {
            Outcome::Committed(version) => bound.letters = version,
            Outcome::Lost { winner } => return Ok(Written::Lost { table: sink.letters.name().to_string(), winner }),
        }
    }
    match sink.write_rows(&bound, &consumed, rows).await? {
        Outcome::Committed(version) => {
            bound.bronze = version;
            bound.cluster = sink.cluster().or(bound.cluster);
            sink.limit.count(counted);
            Ok(Written::Committed { bound, ranges: consumed })
        }
        Outcome::Lost { winner } => Ok(Written::Lost { table: sink.bronze.name().to_string(), winner }),
    }
}

/// What became of the offsets of `ranges`.
fn consumed(ranges: &[Range], counts: &BTreeMap<i32, Counts>, incarnations: &BTreeMap<i32, i32>) -> Vec<ConsumedRange> {
    let one = |range: &Range| {
        let Counts { rows, dead_letters, .. } = counts.get(&range.partition).copied().unwrap_or_default();
        ConsumedRange {
            partition: range.partition,
            from: range.from,
            to: range.to,
            incarnation: incarnations.get(&range.partition).copied().unwrap_or(0),
            messages: Some(range.records),
            rows,
            dead_letters,
            holes: range.holes,
            end_offset: range.end_offset,
            fingerprint: range.fingerprint.clone(),
        }
    };
    ranges.iter().map(one).collect()
}

/// Each message is a row or a letter at least. A batch that has fewer would move the ledger past what nobody has.
fn check_complete(consumed: &[ConsumedRange]) -> Result<()> {
    match consumed.iter().find(|range| range.rows + range.dead_letters < range.messages()) {
        None => Ok(()),
        Some(ConsumedRange { partition, from, to, .. }) => {
            let message =
                format!("a batch lacks messages of partition {partition} offsets {from}..{to}: nothing was committed");
            Err(Error::new(ErrorKind::Bug, message))
        }
    }
}

impl Sink {
    /// A commit that is void if anybody has moved the ledger of any partition of ours: the next batch goes on from the version
    /// that this one makes, whichever partitions it holds.
    fn commit(&self, bound: &Bound) -> Commit {
        let guarded = bound.partitions.iter().map(|&partition| ingest_app_id(&self.topic.name, partition)).collect();
        Commit { guarded, ..Commit::new(Operation::Write) }
    }

    async fn write_letters(
        &self,
        bound: &mut Bound,
        ranges: &[Range],
        counts: &BTreeMap<i32, Counts>,
        files: Vec<EncodedFile>,
    ) -> Result<Outcome> {
        let mut commit = self.commit(bound);
        commit.adds = self.letters.upload(files).await?;
        let has_letters = |range: &&Range| counts.get(&range.partition).is_some_and(|counts| counts.new_letters > 0);
        for range in ranges.iter().filter(has_letters) {
            let upto = bound.letters_ledger.entry(range.partition).or_insert(range.to);
            *upto = range.to.max(*upto);
            commit.transactions.insert(ingest_app_id(&self.topic.name, range.partition), *upto);
            if let Some(&incarnation) = bound.incarnations.get(&range.partition) {
                commit.transactions.insert(incarnation_app_id(&self.topic.name, range.partition), incarnation.into());
            }
        }
        self.committer.append(&self.letters, bound.letters, commit).await
    }

    async fn write_rows(&self, bound: &Bound, consumed: &[ConsumedRange], files: Vec<EncodedFile>) -> Result<Outcome> {
        let mut commit = self.commit(bound);
        commit.adds = self.bronze.upload(files).await?;
        let topic = &self.topic.name;
        for range in consumed {
            commit.transactions.insert(ingest_app_id(topic, range.partition), range.to);
            commit
                .transactions
                .insert(fingerprint_app_id(topic, range.partition), fingerprint_entry(&range.fingerprint));
        }
        commit.transactions.extend(self.new_cluster(bound));
        let mut info = self.info();
        info.ranges = consumed.to_vec();
        commit.record_ingest(&info)?;
        self.committer.append(&self.bronze, bound.bronze, commit).await
    }

    /// Gives up offsets on the user's word: the ledger moves to where reading goes on, and the commit says why.
    pub(super) async fn accept(&self, bound: &Bound, gaps: &[Gap]) -> Result<Outcome> {
        if gaps.iter().any(|gap| gap.0.incarnation > 0) {
            // Where that is a commit of its own, the one below is void, and the next reading of the ledger repeats it.
            self.add_incarnation_column().await?;
        }
        let mut commit = Commit::new(Operation::Write);
        let topic = &self.topic.name;
        for Gap(skip) in gaps {
            commit.transactions.insert(ingest_app_id(topic, skip.partition), skip.next);
            commit.transactions.insert(fingerprint_app_id(topic, skip.partition), NO_FINGERPRINT);
            if skip.incarnation > 0 {
                commit.transactions.insert(incarnation_app_id(topic, skip.partition), skip.incarnation.into());
            }
        }
        commit.transactions.extend(self.new_cluster(bound));
        let mut info = self.info();
        info.skips = gaps.iter().map(|gap| gap.0.clone()).collect();
        commit.record_ingest(&info)?;
        self.committer.append(&self.bronze, bound.bronze, commit).await
    }

    /// A digest of the cluster's id, if the broker tells it.
    pub(super) fn cluster(&self) -> Option<i64> {
        Some(self.cluster_id.as_str()).filter(|id| !id.is_empty()).map(digest_of_text)
    }

    /// The ledger entry of the cluster, where it is another than it was.
    fn new_cluster(&self, bound: &Bound) -> Option<(String, i64)> {
        let cluster = self.cluster().filter(|&cluster| bound.cluster != Some(cluster))?;
        Some((cluster_app_id(&self.topic.name), cluster))
    }

    fn info(&self) -> IngestInfo {
        IngestInfo::new(&self.topic.name, &self.cluster_id, self.letters.name().clone())
    }
}

/// What the ledger keeps of a fingerprint.
fn fingerprint_entry(fingerprint: &str) -> i64 {
    if fingerprint.is_empty() { NO_FINGERPRINT } else { digest(fingerprint) }
}
