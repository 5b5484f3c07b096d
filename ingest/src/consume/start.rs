//! Where to begin: the ledgers of both tables against what the broker holds. Nothing is skipped in silence.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lakehouse::{
    Ledger, Outcome, Table, cluster_app_id, fingerprint_app_id, incarnation_app_id, ingest_app_id, reset_app_id,
};

use super::identity::{self, AcceptedGap, Evidence, Gap, Known};
use super::intake::PartitionStart;
use super::recorded::recorded_letters;
use super::source::Broker;
use super::write::{Bound, Sink};
use crate::decode::Recorded;
use crate::kafka::Watermarks;
use crate::records::digest;
use crate::{Error, ErrorKind, Result};

/// So many commits are looked at for a message by which a partition that has lost its end can be known again.
const LOOK_BACK_MAX: u64 = 512;
/// So many commits are read together for that.
const WINDOW: u64 = 16;
/// A topic that has so many partitions less than before is noticed by its ledger.
const PARTITIONS_BEYOND: i32 = 8;
/// All brokers of a cluster know of new partitions after so long.
const METADATA_PAUSE: Duration = Duration::from_secs(1);

/// Where to begin, and what the batches from there on are bound to.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) bound: Bound,
    pub(super) partitions: BTreeMap<i32, PartitionStart>,
    /// Dead letters that were committed by somebody who did not come to commit the rows beside them.
    pub(super) recorded: Recorded,
}

/// Who asks where to begin.
pub(super) struct Asker<'a> {
    pub(super) sink: &'a Sink,
    pub(super) broker: &'a dyn Broker,
    /// The partitions that are ours.
    pub(super) partitions: &'a BTreeSet<i32>,
    /// Gaps that the user has accepted.
    pub(super) accepted: &'a [AcceptedGap],
    /// Partitions whose messages were seen to be others than those that were read before.
    pub(super) strangers: &'a BTreeSet<i32>,
}

/// Reads the ledgers and compares them with the broker. Gaps that were accepted are recorded, and gone on from.
///
/// # Errors
/// `BadData`, with the ranges that are gone and the flags that accept them, if the broker does not have what the ledger asks
/// for.
pub(super) async fn find(asker: &Asker<'_>) -> Result<Start> {
    let mut strangers = asker.strangers.clone();
    loop {
        let ledgers = Ledgers::read(asker).await?;
        let gaps = ledgers.gaps(asker, &strangers).await?;
        if gaps.is_empty() {
            return ledgers.start(asker).await;
        }
        let topic = &asker.sink.topic.name;
        let (accepted, open): (Vec<_>, Vec<_>) =
            gaps.into_iter().partition(|gap| asker.accepted.contains(&gap.accepted(topic)));
        if !open.is_empty() {
            return Err(identity::stop(topic, asker.sink.bronze.name(), &open));
        }
        // Whether it was recorded or another was first: the ledgers tell.
        if let Outcome::Committed(version) = asker.sink.accept(&ledgers.bound, &accepted).await? {
            let gaps: Vec<String> = accepted.iter().map(|gap| gap.accepted(topic).to_string()).collect();
            tracing::warn!(?gaps, version, "gaps were accepted, and are recorded in the ledger");
            // They are known by now, as what they are.
            strangers.clear();
        }
    }
}

/// What both ledgers say, and what the broker holds.
struct Ledgers {
    bound: Bound,
    /// What bronze's ledger knows of each partition, those included that the topic no longer has.
    known: BTreeMap<i32, Known>,
    watermarks: BTreeMap<i32, Watermarks>,
}

impl Ledgers {
    /// Reads them until no partition is in them that the topic was not seen to have and has after all: it may have grown since
    /// it was asked, and somebody else may have read of what is new.
    async fn read(asker: &Asker<'_>) -> Result<Self> {
        let topic = &asker.sink.topic.name;
        let mut all = asker.broker.partitions(topic).await?;
        loop {
            let ledgers = Self::read_beside(asker, &all).await?;
            if ledgers.known.iter().all(|(partition, known)| known.next == 0 || all.contains(partition)) {
                return Ok(ledgers);
            }
            tokio::time::sleep(METADATA_PAUSE).await;
            let before = std::mem::replace(&mut all, asker.broker.partitions(topic).await?);
            if all == before {
                return Ok(ledgers);
            }
        }
    }

    /// Reads them where the topic is said to have all these partitions.
    async fn read_beside(asker: &Asker<'_>, all: &BTreeSet<i32>) -> Result<Self> {
        let (sink, topic) = (asker.sink, asker.sink.topic.name.as_str());
        let beyond = all.last().map_or(0, |last| last + 1);
        let asked: Vec<i32> = asker.partitions.iter().copied().chain(beyond..beyond + PARTITIONS_BEYOND).collect();
        let mut app_ids = app_ids(topic, &asked);
        app_ids.push(cluster_app_id(topic));
        // The letters first. They are committed first, so a writer in between shows up as a lost race, never as letters
        // that we don't know of.
        let letters = sink.letters.ledger(&app_ids).await?;
        let bronze = sink.bronze.ledger(&app_ids).await?;
        refuse_amid_reset(&bronze, topic, asker.partitions)?;
        let known: BTreeMap<i32, Known> =
            asked.iter().filter_map(|&partition| Some((partition, known(&bronze, topic, partition)?))).collect();
        let incarnation = |partition: i32| known.get(&partition).map_or(0, |known| known.incarnation);
        let letters_ledger = asked.iter().filter_map(|&partition| {
            let upto = letters.entries.get(&ingest_app_id(topic, partition)).copied()?;
            // Letters of the partition that was there before say nothing about this one.
            let of = self::incarnation(&letters, topic, partition);
            (of == incarnation(partition)).then_some((partition, upto))
        });
        let bound = Bound {
            partitions: asker.partitions.clone(),
            bronze: bronze.version,
            letters: letters.version,
            letters_ledger: letters_ledger.collect(),
            cluster: bronze.entries.get(&cluster_app_id(topic)).copied(),
            incarnations: asker
                .partitions
                .iter()
                .map(|&partition| (partition, incarnation(partition)))
                .filter(|&(_, incarnation)| incarnation > 0)
                .collect(),
        };
        sink.look_at_columns(&bound.incarnations).await?;
        // No broker answers for a partition that is gone.
        let here: BTreeSet<i32> = asker.partitions.intersection(all).copied().collect();
        let watermarks = asker.broker.watermarks(topic, &here).await?;
        Ok(Self { bound, known, watermarks })
    }

    /// What keeps us from going on, of all partitions.
    async fn gaps(&self, asker: &Asker<'_>, strangers: &BTreeSet<i32>) -> Result<Vec<Gap>> {
        let clusters = self.bound.cluster.zip(asker.sink.cluster());
        let is_other_cluster = clusters.is_some_and(|(then, now)| then != now);
        // No topic ever loses partitions: one that has fewer is another one.
        let has_shrunk =
            self.known.iter().any(|(partition, known)| known.next > 0 && !self.watermarks.contains_key(partition));
        let is_another = is_other_cluster || has_shrunk;
        let strange = if is_another || !strangers.is_empty() {
            self.strangers(asker, strangers, is_another).await?
        } else {
            BTreeSet::new()
        };
        let mut gaps = Vec::new();
        for (&partition, &known) in &self.known {
            let Some(&here) = self.watermarks.get(&partition) else {
                // The topic has fewer partitions than it had.
                let nothing = Watermarks { low: 0, high: 0 };
                gaps.extend(
                    (known.next > 0).then(|| identity::judge(partition, known, nothing, Evidence::Strange)).flatten(),
                );
                continue;
            };
            let is_strange = strange.contains(&partition);
            let evidence = if is_strange || known.next > here.high {
                let otherwise = if is_strange { Evidence::Strange } else { Evidence::None };
                let intact = self.intact_upto(asker, partition, here).await?;
                intact.map_or(otherwise, |upto| Evidence::TailLost { upto })
            } else {
                Evidence::None
            };
            gaps.extend(identity::judge(partition, known, here, evidence));
        }
        Ok(gaps)
    }

    /// The partitions whose last message is another than the one that was read, with those that are known to be so. Where all
    /// else speaks for another topic (`presumption`), also those of which nothing can be compared.
    async fn strangers(
        &self,
        asker: &Asker<'_>,
        known_ones: &BTreeSet<i32>,
        presumption: bool,
    ) -> Result<BTreeSet<i32>> {
        let mut strange = known_ones.clone();
        let comparable = self
            .known
            .iter()
            .filter_map(|(&partition, known)| Some((partition, known.comparable(*self.watermarks.get(&partition)?)?)));
        let places: BTreeMap<i32, i64> = comparable.collect();
        let found = asker.broker.fingerprints(&asker.sink.topic.name, &places).await?;
        for (&partition, known) in self.known.iter().filter(|(_, known)| known.next > 0) {
            let is_other = match (known.last, found.get(&partition)) {
                (Some(last), Some(found)) => last != digest(found),
                _ => presumption,
            };
            if is_other {
                strange.insert(partition);
            }
        }
        Ok(strange)
    }

    /// Up to where a partition that ends before the ledger's offset, or has another message there, still holds what was read of
    /// it, if it does: up to the last message that a commit recorded and that is the same. Whether those behind it are the same
    /// or others, nobody can tell.
    async fn intact_upto(&self, asker: &Asker<'_>, partition: i32, here: Watermarks) -> Result<Option<i64>> {
        let topic = &asker.sink.topic.name;
        let Some(&Known { next, incarnation, .. }) = self.known.get(&partition) else { return Ok(None) };
        let place = (partition, incarnation);
        let recorded = recorded_messages(&asker.sink.bronze, self.bound.bronze, topic, place, here).await?;
        let recorded: Vec<_> = recorded.into_iter().filter(|&(offset, _)| offset + 1 < next).collect();
        let is_same = async |index: usize| {
            let (offset, fingerprint): &(i64, String) = &recorded[index];
            let found = asker.broker.fingerprints(topic, &BTreeMap::from([(partition, *offset)])).await?;
            Result::Ok(found.get(&partition) == Some(fingerprint))
        };
        // Most often it is the newest one, or none: of a topic that was made anew not even the oldest is the same.
        let (mut same, mut other) = match recorded.len() {
            0 => return Ok(None),
            _ if is_same(0).await? => return Ok(Some(recorded[0].0 + 1)),
            count if count == 1 || !is_same(count - 1).await? => return Ok(None),
            count => (count - 1, 0),
        };
        // The newest one is first, and all before a lost end are the same.
        while same - other > 1 {
            let middle = usize::midpoint(same, other);
            if is_same(middle).await? {
                same = middle;
            } else {
                other = middle;
            }
        }
        Ok(Some(recorded[same].0 + 1))
    }

    async fn start(self, asker: &Asker<'_>) -> Result<Start> {
        let Self { bound, known, watermarks } = self;
        let start = |(&partition, &here): (&i32, &Watermarks)| {
            let known = known.get(&partition);
            let next = known.map_or(here.low, |known| known.next);
            let last_taken = known.and_then(|known| known.last).filter(|_| next > here.low);
            (partition, PartitionStart { next, last_taken, watermarks: here })
        };
        let partitions = watermarks.iter().map(start).collect();
        let recorded = recorded_letters(asker.sink, &partitions, &bound).await?;
        Ok(Start { bound, partitions, recorded })
    }
}

/// The letters of a partition that is being reset are not yet what its ledger says.
fn refuse_amid_reset(bronze: &Ledger, topic: &str, partitions: &BTreeSet<i32>) -> Result<()> {
    let is_amid =
        |partition: &&i32| bronze.entries.get(&reset_app_id(topic, **partition)).is_some_and(|&mark| mark != 0);
    let Some(partition) = partitions.iter().find(is_amid) else { return Ok(()) };
    let message = format!(
        "topic {topic} partition {partition} is being reset; if nobody is at it any more, it was broken off: run `ingest reset` once \
         more for this partition"
    );
    Err(Error::new(ErrorKind::Unavailable, message))
}

/// The ledger's entries of these partitions.
pub(super) fn app_ids<'a>(topic: &str, partitions: impl IntoIterator<Item = &'a i32>) -> Vec<String> {
    let of_partition = |&partition: &i32| {
        [ingest_app_id, fingerprint_app_id, incarnation_app_id, reset_app_id].map(|app_id| app_id(topic, partition))
    };
    partitions.into_iter().flat_map(of_partition).collect()
}

/// How often a partition was made anew.
pub(super) fn incarnation(ledger: &Ledger, topic: &str, partition: i32) -> i32 {
    let entry = ledger.entries.get(&incarnation_app_id(topic, partition));
    entry.and_then(|&count| count.try_into().ok()).unwrap_or(0)
}

pub(super) fn known(ledger: &Ledger, topic: &str, partition: i32) -> Option<Known> {
    let entry = |app_id: String| ledger.entries.get(&app_id).copied();
    Some(Known {
        next: entry(ingest_app_id(topic, partition))?,
        last: entry(fingerprint_app_id(topic, partition)).filter(|&digest| digest != 0),
        incarnation: incarnation(ledger, topic, partition),
    })
}

/// The messages within the bounds of which a commit recorded what they were like: offsets and fingerprints, the newest first.
async fn recorded_messages(
    table: &Table,
    version: u64,
    topic: &str,
    (partition, incarnation): (i32, i32),
    here: Watermarks,
) -> Result<Vec<(i64, String)>> {
    let mut recorded = BTreeMap::new();
    let oldest = version.saturating_sub(LOOK_BACK_MAX);
    let mut upto = version;
    while upto > oldest {
        let from = upto.saturating_sub(WINDOW - 1).max(oldest + 1);
        for commit in table.story(from, upto).await?.into_iter().rev() {
            let Some(info) = commit.ingest_info()?.filter(|info| info.topic == topic) else { continue };
            let is_within = |at: i64| here.low < at && at <= here.high;
            let found = info.ranges.into_iter().find(|range| {
                let is_ours = range.partition == partition && range.incarnation == incarnation;
                is_ours && is_within(range.to) && !range.fingerprint.is_empty()
            });
            if let Some(range) = found {
                recorded.entry(range.to - 1).or_insert(range.fingerprint);
            }
        }
        upto = from - 1;
    }
    Ok(recorded.into_iter().rev().collect())
}
