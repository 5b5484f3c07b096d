//! The audit of what replays brought: each row stands at the place of a letter, and there are as many of each replay as its
//! commits say. That no place is there twice is found with all other rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _};
use arrow::datatypes::{DataType, Int32Type, Int64Type};
use arrow::record_batch::RecordBatch;
use datafusion::prelude::SessionContext;

use crate::error::{Error, Result};
use crate::expired::ExpiredLetters;
use crate::progress::{INCARNATION_COLUMN, REPLAY_COLUMN};
use crate::version::TableVersion;

use super::{EXAMPLES_MAX, Fault};

/// How many rows of a replay have to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recorded {
    /// So many.
    Rows(u64),
    /// So many or fewer: a ledger was set back since, and rows of any kind were taken out.
    RowsAtMost(u64),
}

/// Audits what replays brought to `head`. `recorded` is what the commits say of each replay; `letters` are the tables of
/// letters of the table's `topics`, and `expired` what retention took out of those.
pub(super) async fn check(
    context: &SessionContext,
    head: &TableVersion,
    recorded: &BTreeMap<String, Recorded>,
    topics: &BTreeSet<String>,
    letters: &[Arc<TableVersion>],
    expired: &[ExpiredLetters],
) -> Result<Vec<Fault>> {
    let audit = Audit { context, head, topics };
    let mut faults = Vec::new();
    let mut found = if head.has_column(REPLAY_COLUMN) { audit.rows_by_replay().await? } else { BTreeMap::new() };
    for (id, recorded) in recorded {
        let rows = found.remove(id).unwrap_or(0);
        let (fits, wanted) = match *recorded {
            Recorded::Rows(wanted) => (rows == wanted, wanted),
            Recorded::RowsAtMost(wanted) => (rows <= wanted, wanted),
        };
        if !fits {
            faults.push(audit.fault(format!("replay {id} should have brought {wanted} rows, but {rows} are there")));
        }
    }
    for (id, rows) in found {
        faults.push(audit.fault(format!("{rows} rows are of replay {id}, which no commit recorded")));
    }
    if head.has_column(REPLAY_COLUMN) {
        faults.extend(audit.rows_without_letter(letters, expired).await?);
    }
    Ok(faults)
}

impl Recorded {
    /// One more commit of the replay.
    pub(super) fn add(&mut self, rows: u64) {
        match self {
            Self::Rows(sum) | Self::RowsAtMost(sum) => *sum += rows,
        }
    }

    /// Rows were taken out.
    pub(super) fn rewind(&mut self) {
        if let Self::Rows(rows) = *self {
            *self = Self::RowsAtMost(rows);
        }
    }
}

struct Audit<'a> {
    context: &'a SessionContext,
    head: &'a TableVersion,
    topics: &'a BTreeSet<String>,
}

impl Audit<'_> {
    fn fault(&self, what: String) -> Fault {
        Fault::of_table(&self.head.name, what)
    }

    async fn query(&self, sql: &str) -> Result<Vec<RecordBatch>> {
        let failed = |source| Error::query(format!("cannot audit what was replayed to {}", self.head.name), source);
        self.context.sql(sql).await.map_err(failed)?.collect().await.map_err(failed)
    }

    /// Makes a table known under a name, in the place of what had it before.
    fn name(&self, name: &str, version: &TableVersion) -> Result<()> {
        let failed = |source| Error::query(format!("cannot audit {}", version.name), source);
        self.context.deregister_table(name).map_err(failed)?;
        self.context.register_table(name, version.provider()).map_err(failed)?;
        Ok(())
    }

    async fn rows_by_replay(&self) -> Result<BTreeMap<String, u64>> {
        self.name("replayed_to", self.head)?;
        let sql = format!(
            "select {REPLAY_COLUMN}, count(*) from replayed_to where {REPLAY_COLUMN} is not null group by {REPLAY_COLUMN}"
        );
        let mut rows = BTreeMap::new();
        for batch in self.query(&sql).await? {
            let (ids, counts) = (batch.column(0).as_string::<i32>(), batch.column(1).as_primitive::<Int64Type>());
            rows.extend((0..batch.num_rows()).map(|row| (ids.value(row).to_owned(), counts.value(row) as u64)));
        }
        Ok(rows)
    }

    /// Rows of replays at whose place no letter is, nor ever was.
    async fn rows_without_letter(
        &self,
        letters: &[Arc<TableVersion>],
        expired: &[ExpiredLetters],
    ) -> Result<Vec<Fault>> {
        let mut known = Vec::new();
        for (number, letters) in letters.iter().enumerate() {
            let name = format!("letters_{number}");
            self.name(&name, letters)?;
            known.push(format!(
                "not exists (select 1 from {name} where {name}.partition = rows.p and {name}.\"offset\" = rows.o \
                 and {name}.\"index\" = rows.i and {} = rows.n and {name}.topic in ({}))",
                incarnation_of(letters, &format!("{name}.")),
                self.topics.iter().map(|topic| quoted(topic)).collect::<Vec<_>>().join(", "),
            ));
        }
        for gone in expired.iter().filter(|gone| self.topics.contains(&gone.topic)) {
            let ExpiredLetters { partition, incarnation, from, to, .. } = gone;
            known.push(format!(
                "not (rows.p = {partition} and rows.n = {incarnation} and rows.o >= {from} and rows.o < {to})"
            ));
        }
        let is_unknown = if known.is_empty() { "true".to_owned() } else { known.join(" and ") };
        // The side of a hash join that is kept in memory can't be spilled; one that sorts can.
        self.query("set datafusion.optimizer.prefer_hash_join = false").await?;
        let strays = self
            .query(&format!(
                "select p, o, i, id from (select _partition as p, _offset as o, _index as i, {} as n, {REPLAY_COLUMN} as id \
                 from replayed_to where {REPLAY_COLUMN} is not null) as rows where {is_unknown} \
                 order by p, o, i limit {EXAMPLES_MAX}",
                incarnation_of(self.head, "")
            ))
            .await?;
        let mut faults = Vec::new();
        for batch in &strays {
            let number = |column: usize| batch.column(column).as_primitive::<Int32Type>();
            let (offsets, ids) = (batch.column(1).as_primitive::<Int64Type>(), texts(batch.column(3)));
            for row in 0..batch.num_rows() {
                let (offset, index) = (offsets.value(row), number(2).value(row));
                let id = ids.as_string::<i32>().value(row);
                let what = format!("a row at offset {offset} index {index} is of replay {id}, but no letter was there");
                faults.push(Fault::of_partition(&self.head.name, number(0).value(row), what));
            }
        }
        Ok(faults)
    }
}

fn incarnation_of(version: &TableVersion, of_table: &str) -> String {
    match version.has_column(INCARNATION_COLUMN) {
        true => format!("coalesce({of_table}{INCARNATION_COLUMN}, 0)"),
        false => "0".to_owned(),
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A sort may give texts in another encoding.
fn texts(column: &ArrayRef) -> ArrayRef {
    if column.data_type() == &DataType::Utf8 {
        return column.clone();
    }
    arrow::compute::cast(column, &DataType::Utf8).expect("ids are text in any encoding")
}
