//! Data files: what the Delta log says of one Parquet file, live or staged.

use std::collections::BTreeMap;
use std::sync::Arc;

use deltalake_core::kernel::{Add, LogicalFileView, Remove};
use object_store::path::Path;

/// One Parquet file of a table, as the log describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// The path, relative to the table's folder.
    pub path: String,
    /// The size in bytes.
    pub size: u64,
    /// When the file was written, in milliseconds since 1970.
    pub modified_millis: i64,
    /// The value of each partition column, in Delta's spelling; `None` is NULL.
    pub partition_values: BTreeMap<String, Option<String>>,
    /// Delta's statistics of the file, as JSON.
    pub stats: Option<String>,
    /// The number of rows, if the statistics have it.
    pub rows: Option<u64>,
    /// The CRC-32 of its bytes, if we wrote it: a disk that turns a bit says nothing, and Parquet does not either.
    pub checksum: Option<u32>,
}

/// Under this tag of a file stands its checksum, in hexadecimal. Other engines pass over tags that they do not know.
const CHECKSUM_TAG: &str = "lakebeat.crc32";

impl DataFile {
    /// A file as the Delta kernel yields it from checkpoint and log.
    #[expect(deprecated, reason = "nothing else tells the tags of a file")]
    pub(crate) fn from_view(view: &LogicalFileView) -> Self {
        Self::from_add(view.add_action())
    }

    pub(crate) fn from_add(add: Add) -> Self {
        let tagged = add.tags.and_then(|mut tags| tags.remove(CHECKSUM_TAG).flatten());
        Self {
            path: add.path,
            size: add.size.try_into().unwrap_or(0),
            modified_millis: add.modification_time,
            partition_values: add.partition_values.into_iter().collect(),
            rows: add.stats.as_deref().and_then(rows_in_stats),
            stats: add.stats,
            checksum: tagged.and_then(|text| u32::from_str_radix(&text, 16).ok()),
        }
    }

    pub(crate) fn to_add(&self, change: DataChange) -> Add {
        Add {
            path: self.path.clone(),
            partition_values: self.partition_values.clone().into_iter().collect(),
            size: self.size as i64,
            modification_time: self.modified_millis,
            data_change: change == DataChange::Changes,
            stats: self.stats.clone(),
            tags: self.checksum.map(|sum| [(CHECKSUM_TAG.to_owned(), Some(format!("{sum:08x}")))].into()),
            ..Add::default()
        }
    }

    pub(crate) fn to_remove(&self, change: DataChange, now_millis: i64) -> Remove {
        Remove {
            path: self.path.clone(),
            data_change: change == DataChange::Changes,
            deletion_timestamp: Some(now_millis),
            extended_file_metadata: Some(true),
            partition_values: Some(self.partition_values.clone().into_iter().collect()),
            size: Some(self.size as i64),
            ..Remove::default()
        }
    }
}

/// Where a file lies whose path the log has, from the table's folder on. A `%` in it is a part of the name: engines escape partition
/// values in the names of folders.
pub(crate) fn location(path: &str) -> Path {
    Path::parse(path).unwrap_or_else(|_| Path::from(path))
}

/// Whether a commit changes what a table says, or only how it is stored (a compaction).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DataChange {
    Changes,
    Rearranges,
}

/// A Parquet file that is written but that no commit names yet: nobody sees it.
#[derive(Debug, Clone)]
pub struct StagedFile(pub(crate) Arc<DataFile>);

impl StagedFile {
    /// What the log will say of the file.
    pub fn data_file(&self) -> &Arc<DataFile> {
        &self.0
    }

    /// The number of rows in the file.
    pub fn rows(&self) -> u64 {
        self.0.rows.expect("a file that we staged has its row count")
    }

    /// The size of the file in bytes.
    pub fn bytes(&self) -> u64 {
        self.0.size
    }
}

fn rows_in_stats(stats: &str) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Rows {
        #[serde(rename = "numRecords")]
        num_records: Option<u64>,
    }
    serde_json::from_str::<Rows>(stats).ok()?.num_records
}
