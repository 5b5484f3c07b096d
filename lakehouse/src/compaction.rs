//! Putting small files together. A table that is written to every second gets a file a second, and each one costs every
//! later query a little.
//!
//! Files are merged with others of about their own size, so that a row is rewritten a handful of times in its life and not
//! each time that a file comes in beside it. A commit of nothing else says so (`dataChange` is false): readers of changes pass
//! over it, and a writer who adds rows at the same moment goes on after it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::commit::Outcome;
use crate::error::{Error, Result};
use crate::file::{DataFile, StagedFile};
use crate::lake::Lake;
use crate::log::{Commit, Operation};
use crate::stage::StageOptions;
use crate::table::Table;
use crate::version::TableVersion;

/// So many files of one size are put together.
const FILES_MIN: usize = 8;
/// Files from this size on are left as they are.
const FILE_BYTES_MAX: u64 = 32 << 20;
/// So much is rewritten in one go, and a few files more than that at most; nobody has to wait for more.
const REWRITTEN_BYTES_MAX: u64 = 128 << 20;

/// Which small files are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compaction {
    /// Where there are enough files of one size: for rounds beside a writer, since a row is moved a handful of times in its life.
    AsTheyPileUp,
    /// All that are small, two at the least: for somebody who asks for it.
    Thorough,
}

/// What a round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CompactReport {
    /// Files that were put together.
    pub removed: u64,
    /// Files that they became.
    pub added: u64,
    /// The bytes of those that were put together.
    pub bytes: u64,
}

impl Lake {
    /// Puts small files of the newest version of `table` together, if there are enough of them. Losing to a commit that takes
    /// out one of the same files is no fault: the next round goes by what is there then.
    ///
    /// Files that differ in the bounds of the column `apart` are not put together: what each of them is about stays told by its
    /// statistics alone.
    pub async fn compact(&self, table: &Table, apart: Option<&str>, which: Compaction) -> Result<CompactReport> {
        let base = table.head().await?;
        let groups = due(&base, apart, which);
        if groups.is_empty() {
            return Ok(CompactReport::default());
        }
        let mut commit = Commit::new(Operation::Optimize);
        let mut rewritten = 0;
        for files in groups {
            if rewritten >= REWRITTEN_BYTES_MAX {
                break;
            }
            match self.put_together(table, &base, &files).await {
                Ok(adds) => {
                    rewritten += files.iter().map(|file| file.size).sum::<u64>();
                    commit.adds.extend(adds);
                    commit.removes.extend(files);
                }
                // The others need not wait for files that nobody can read.
                Err(error) => tracing::warn!(table = %table.name(), %error, "some small files stay for now"),
            }
        }
        let (adds, removes) = (commit.adds.len(), commit.removes.len());
        if removes == 0 {
            return Ok(CompactReport::default());
        }
        let staged = commit.adds.clone();
        match table.append(base.version, commit).await? {
            Outcome::Committed(version) => {
                tracing::debug!(table = %table.name(), version, adds, removes, "small files put together");
                Ok(CompactReport { removed: removes as u64, added: adds as u64, bytes: rewritten })
            }
            Outcome::Lost { winner } => {
                tracing::debug!(table = %table.name(), winner, "another commit came first");
                table.discard(&staged).await;
                Ok(CompactReport::default())
            }
        }
    }

    async fn put_together(
        &self,
        table: &Table,
        base: &TableVersion,
        files: &[Arc<DataFile>],
    ) -> Result<Vec<StagedFile>> {
        let context = self.session_factory().context_for(base, files).await?;
        let rows = context.read_table(base.provider_of(files.to_vec())).map_err(|error| failed(table, error))?;
        let rows = rows.execute_stream().await.map_err(|error| failed(table, error))?;
        table.stage(base, rows, &StageOptions::default()).await
    }
}

fn failed(table: &Table, error: datafusion::error::DataFusionError) -> Error {
    Error::query(format!("cannot put small files of {} together", table.name()), error)
}

/// The values of the partition columns, the bounds of the column that is kept apart, and a size class.
type Kind<'a> = (Vec<Option<&'a str>>, Option<String>, u32);

/// The files to put together, each group of one kind.
fn due(table: &TableVersion, apart: Option<&str>, which: Compaction) -> Vec<Vec<Arc<DataFile>>> {
    let mut groups: BTreeMap<Kind<'_>, Vec<Arc<DataFile>>> = BTreeMap::new();
    for file in table.files.iter().filter(|file| file.size < FILE_BYTES_MAX) {
        let partition =
            table.partition_columns.iter().map(|column| file.partition_values.get(column).and_then(Option::as_deref));
        let bounds = apart.map(|column| bounds(file, column));
        let class = if which == Compaction::Thorough { 0 } else { size_class(file.size) };
        groups.entry((partition.collect(), bounds, class)).or_default().push(file.clone());
    }
    let files_min = if which == Compaction::Thorough { 2 } else { FILES_MIN };
    let mut due: Vec<_> = groups.into_values().filter(|files| files.len() >= files_min).collect();
    for files in &mut due {
        files.truncate(files_min.max(fitting(files, REWRITTEN_BYTES_MAX)));
    }
    due
}

/// How many of the first of these files together have no more bytes than that.
fn fitting(files: &[Arc<DataFile>], bytes_max: u64) -> usize {
    let sums = files.iter().scan(0, |sum, file| {
        *sum += file.size;
        Some(*sum)
    });
    sums.take_while(|&sum| sum <= bytes_max).count()
}

/// Each class is eight times the size of the one below; the smallest holds everything up to 32 kB, where it is the footer
/// that counts and not the rows.
fn size_class(bytes: u64) -> u32 {
    (bytes >> 15).checked_ilog2().map_or(0, |log| 1 + log / 3)
}

/// The smallest and the largest value of a column, as the file's statistics write them.
fn bounds(file: &DataFile, column: &str) -> String {
    let stats: serde_json::Value =
        file.stats.as_deref().and_then(|stats| serde_json::from_str(stats).ok()).unwrap_or_default();
    format!("{} {}", stats["minValues"][column], stats["maxValues"][column])
}
