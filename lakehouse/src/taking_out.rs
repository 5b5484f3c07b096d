//! Taking rows out: the files that hold some of them are written again without them.
//!
//! Nothing is committed here. What comes of it goes into one commit beside whatever has to change at the same moment, and
//! that commit is void if the table has moved since: rows that came in between would be judged by nobody.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use arrow::array::AsArray as _;
use arrow::datatypes::Int64Type;
use datafusion::prelude::{Expr, SessionContext, coalesce, ident, lit};
use futures::TryStreamExt as _;

use crate::error::{Error, ErrorKind, Result};
use crate::file::{DataFile, StagedFile};
use crate::progress::{ConsumedRange, INCARNATION_COLUMN, REPLAY_COLUMN, Skip, SkipReason};
use crate::pruning;
use crate::session::SessionFactory;
use crate::stage::StageOptions;
use crate::table::Table;
use crate::version::TableVersion;

/// Files to take out, and what comes in their place.
#[derive(Debug, Default)]
pub struct TakenOut {
    /// The files that hold rows to take out.
    pub removes: Vec<Arc<DataFile>>,
    /// The same without those rows.
    pub adds: Vec<StagedFile>,
    /// How many rows are gone.
    pub rows: u64,
}

/// All from one offset of a partition on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// The partition.
    pub partition: i32,
    /// Only of this incarnation; those before it stay.
    pub incarnation: i32,
    /// The first offset to take out.
    pub from: i64,
}

/// What a table calls the place that a row came from.
#[derive(Debug, Clone, Copy)]
pub struct PlaceColumns<'a> {
    /// The column of the partition.
    pub partition: &'a str,
    /// The column of the offset.
    pub offset: &'a str,
    /// The column of the topic, and the topic, where a table holds several.
    pub topic: Option<(&'a str, &'a str)>,
}

impl PlaceColumns<'static> {
    /// Those of a table of rows.
    pub const ROWS: Self = Self { partition: "_partition", offset: "_offset", topic: None };
}

impl<'a> PlaceColumns<'a> {
    /// Those of the dead letters of a topic.
    pub fn letters(topic: &'a str) -> Self {
        Self { partition: "partition", offset: "offset", topic: Some(("topic", topic)) }
    }

    fn are_in(&self, tails: &[Tail], table: &TableVersion) -> Option<Expr> {
        let of_topic = self.topic.map(|(column, topic)| ident(column).eq(lit(topic)));
        let one = |tail: &Tail| {
            let place = ident(self.partition).eq(lit(tail.partition));
            let place = place.and(ident(self.offset).gt_eq(lit(tail.from)));
            if !table.has_column(INCARNATION_COLUMN) {
                return place;
            }
            place.and(coalesce(vec![ident(INCARNATION_COLUMN), lit(0)]).eq(lit(tail.incarnation)))
        };
        let any = tails.iter().map(one).reduce(Expr::or)?;
        Some(match of_topic {
            Some(of_topic) => of_topic.and(any),
            None => any,
        })
    }
}

impl TableVersion {
    /// How many rows a tail has, those that a replay brought included.
    pub async fn count_tail(&self, context: &SessionContext, columns: PlaceColumns<'_>, tail: &Tail) -> Result<u64> {
        let Some(filter) = columns.are_in(std::slice::from_ref(tail), self) else { return Ok(0) };
        let failed = |source| Error::query(format!("cannot count rows of {}", self.name), source);
        let rows = context.read_table(self.provider()).and_then(|rows| rows.filter(filter)).map_err(failed)?;
        Ok(rows.count().await.map_err(failed)? as u64)
    }

    /// How many rows each offset of a tail has, up to before the offset `upto`, without those that a replay brought.
    pub async fn count_places(
        &self,
        context: &SessionContext,
        columns: PlaceColumns<'_>,
        tail: &Tail,
        upto: i64,
    ) -> Result<BTreeMap<i64, u64>> {
        let failed = |source| Error::query(format!("cannot count rows of {}", self.name), source);
        let mut filter = ident(columns.offset).lt(lit(upto));
        filter = columns.are_in(std::slice::from_ref(tail), self).into_iter().fold(filter, Expr::and);
        if self.has_column(REPLAY_COLUMN) {
            filter = filter.and(ident(REPLAY_COLUMN).is_null());
        }
        let rows = context.read_table(self.provider()).and_then(|rows| rows.filter(filter)).map_err(failed)?;
        let rows = rows.select_columns(&[columns.offset]).map_err(failed)?;
        let mut batches = rows.execute_stream().await.map_err(failed)?;
        let mut counts = BTreeMap::new();
        while let Some(batch) = batches.try_next().await.map_err(failed)? {
            for &offset in batch.column(0).as_primitive::<Int64Type>().values() {
                *counts.entry(offset).or_insert(0) += 1;
            }
        }
        Ok(counts)
    }
}

impl Table {
    /// The range in whose middle a tail begins, as the commits up to `version` recorded it last. None if it begins between
    /// two, or in offsets that were given up.
    ///
    /// # Errors
    /// `BadConfig` if it begins before the offset from which the partition's end was lost: the rows below that are of the
    /// incarnation before, and would be doubled.
    pub async fn recorded_range(&self, version: u64, topic: &str, tail: &Tail) -> Result<Option<ConsumedRange>> {
        let mut entries = pin!(self.inner.lineage(version));
        while let Some(entry) = entries.try_next().await? {
            let Some(info) = entry.ingest_info()?.filter(|info| info.topic == topic) else { continue };
            let kept = info.rewinds.into_iter().filter_map(|rewind| rewind.kept);
            let ours = |range: &ConsumedRange| {
                (range.partition, range.incarnation) == (tail.partition, tail.incarnation) && range.from <= tail.from
            };
            // The newest one that does not begin behind the tail: it holds the tail's beginning, or nothing does.
            if let Some(range) = info.ranges.into_iter().chain(kept).find(ours) {
                return Ok(Some(range).filter(|range| range.from < tail.from && tail.from < range.to));
            }
            let is_loss = |skip: &&Skip| {
                let of_tail = (skip.partition, skip.incarnation) == (tail.partition, tail.incarnation);
                of_tail && skip.reason == SkipReason::TailLost && tail.from < skip.next
            };
            if let Some(loss) = info.skips.iter().find(is_loss) {
                return Err(before_loss(self, topic, loss));
            }
            let holds = |skip: &Skip| skip.partition == tail.partition && skip.from < tail.from && tail.from < skip.to;
            if info.skips.iter().any(holds) {
                return Ok(None);
            }
        }
        Ok(None)
    }
}

fn before_loss(table: &Table, topic: &str, loss: &Skip) -> Error {
    let Skip { partition, next, .. } = loss;
    let message = format!(
        "topic {topic} partition {partition} lost its end at offset {next}, which was accepted; the rows of {} below that are \
         of the time before and stay: set it to {next} or later",
        table.name()
    );
    Error::new(ErrorKind::BadConfig, message)
}

impl Table {
    /// Stages `version` without the rows of `tails`.
    pub async fn stage_without(
        &self,
        sessions: &SessionFactory,
        version: &TableVersion,
        columns: PlaceColumns<'_>,
        tails: &[Tail],
    ) -> Result<TakenOut> {
        let Some(gone) = columns.are_in(tails, version) else { return Ok(TakenOut::default()) };
        let failed = |source| Error::query(format!("cannot take rows out of {}", self.name()), source);
        let candidates = pruning::files_for(version, &sessions.context(), gone.clone()).map_err(failed)?;
        let context = sessions.context_for(version, &candidates).await?;
        let read = |filter: Expr| context.read_table(version.provider_of(candidates.clone()))?.filter(filter);
        let rows = read(gone.clone()).map_err(failed)?.count().await.map_err(failed)? as u64;
        if rows == 0 {
            return Ok(TakenOut::default());
        }
        // A row of which the condition is not known stays.
        let kept = read(gone.is_not_true()).map_err(failed)?.execute_stream().await.map_err(failed)?;
        let adds = self.stage(version, kept, &StageOptions::default()).await?;
        Ok(TakenOut { removes: candidates, adds, rows })
    }
}
