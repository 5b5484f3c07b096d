//! The archive of a log: what its older entries say of everything but files, bundled, so that they need not lie there one by one.
//!
//! A checkpoint tells the files and the ledger of its version. How the ledger came to stand there, offset by offset, only the
//! entries tell, and the audit wants to know it for ever.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use chrono::DateTime;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use crate::error::{Error, ErrorKind, Result};
use crate::log::CommitEntry;
use crate::table::{ENTRIES_AT_ONCE, TableInner};

/// Where a table keeps its archive. Other engines pass over folders of such names.
pub(crate) const FOLDER: &str = "_history";
/// So many entries go into one bundle.
const BUNDLE_ENTRIES_MAX: u64 = 10_000;

/// What is known of a table's archive.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    /// By its first version the version after the last of each bundle.
    bundles: BTreeMap<u64, u64>,
    /// The one that was read last: whoever reads on wants the next entry of it.
    open: Option<(u64, Arc<[CommitEntry]>)>,
}

impl Archive {
    /// The first version that is not in it.
    fn end(&self) -> u64 {
        let mut end = 0;
        for (&from, &upto) in &self.bundles {
            // Two cleaners at the same time may have made bundles that overlap.
            if from <= end {
                end = end.max(upto);
            }
        }
        end
    }

    fn bundle_of(&self, version: u64) -> Option<(u64, u64)> {
        let holds = |(_, upto): &(u64, u64)| version < *upto;
        self.bundles.range(..=version).map(|(from, upto)| (*from, *upto)).find(holds)
    }
}

impl TableInner {
    /// The version at which the log begins: what is older is in the archive.
    pub(crate) async fn log_begins(&self) -> Result<u64> {
        let failed = |source| Error::store(format!("cannot list the archive of {}", self.name), source);
        let folder = Path::from(FOLDER);
        let store = self.log.object_store(None);
        let listed = store.list(Some(&folder)).map_ok(|object| range_in(&object.location));
        let found: Vec<_> = listed.try_collect().await.map_err(failed)?;
        let mut archive = self.archive.lock().await;
        archive.bundles = found.into_iter().flatten().collect();
        Ok(archive.end())
    }

    /// What the entry of a version says, be it in the log or in the archive; `None` if it is in neither.
    pub(crate) async fn read_story(&self, version: u64) -> Result<Option<CommitEntry>> {
        if let Some(found) = self.read_archived(version).await? {
            return Ok(Some(found));
        }
        if let Some(found) = self.read_entry(version).await? {
            return Ok(Some(found));
        }
        self.log_begins().await?;
        self.read_archived(version).await
    }

    /// The same for these versions in their order, some at a time.
    pub(crate) fn story(
        &self,
        versions: impl Iterator<Item = u64> + Send,
    ) -> impl Stream<Item = Result<Option<CommitEntry>>> + Send {
        futures::stream::iter(versions.map(|version| self.read_story(version))).buffered(ENTRIES_AT_ONCE)
    }

    async fn read_archived(&self, version: u64) -> Result<Option<CommitEntry>> {
        let mut archive = self.archive.lock().await;
        let Some((from, upto)) = archive.bundle_of(version) else { return Ok(None) };
        let entries = match &archive.open {
            Some((open, entries)) if *open == from => entries.clone(),
            _ => {
                let entries: Arc<[CommitEntry]> = self.read_bundle(from, upto).await?.into();
                archive.open = Some((from, entries.clone()));
                entries
            }
        };
        Ok(entries.get((version - from) as usize).cloned())
    }

    async fn read_bundle(&self, from: u64, upto: u64) -> Result<Vec<CommitEntry>> {
        let path = path_of(from, upto);
        let failed = |source| Error::store(format!("cannot read {path} of {}", self.name), source);
        let store = self.log.object_store(None);
        let bytes = store.get(&path).await.map_err(failed)?.bytes().await.map_err(failed)?;
        let entries = decode(bytes).map_err(|what| {
            Error::with_source(ErrorKind::BadData, format!("{path} of {} is damaged", self.name), what)
        })?;
        let is_complete = entries.iter().map(|entry| entry.version).eq(from..upto);
        let damaged = || Error::new(ErrorKind::BadData, format!("{path} of {} is not complete", self.name));
        is_complete.then_some(entries).ok_or_else(damaged)
    }

    /// Puts the entries of these versions into the archive. They are still in the log.
    ///
    /// # Errors
    /// `BadData` if one of them is not there.
    pub(crate) async fn archive(&self, from: u64, upto: u64) -> Result<()> {
        let mut next = from;
        while next < upto {
            let end = upto.min(next + BUNDLE_ENTRIES_MAX);
            self.archive_bundle(next, end).await?;
            next = end;
        }
        Ok(())
    }

    async fn archive_bundle(&self, from: u64, upto: u64) -> Result<()> {
        let found: Vec<_> = self.entries(from..upto).try_collect().await?;
        let entries: Option<Vec<CommitEntry>> = found.into_iter().collect();
        let gap = || {
            let message = format!("of the log entries {from} to {} of {} some are gone", upto - 1, self.name);
            Error::new(ErrorKind::BadData, message)
        };
        let bytes = encode(&entries.ok_or_else(gap)?)
            .map_err(|what| Error::with_source(ErrorKind::Bug, "cannot write down an archive", what))?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let path = path_of(from, upto);
        match self.log.object_store(None).put_opts(&path, PutPayload::from(bytes), options).await {
            // The same entries, by another cleaner.
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
            Err(source) => Err(Error::store(format!("cannot write {path} of {}", self.name), source)),
        }
    }
}

fn path_of(from: u64, upto: u64) -> Path {
    Path::from(FOLDER).join(format!("{from:020}-{upto:020}.parquet"))
}

fn range_in(path: &Path) -> Option<(u64, u64)> {
    let (from, upto) = path.filename()?.strip_suffix(".parquet")?.split_once('-')?;
    Some((from.parse().ok()?, upto.parse().ok()?))
}

type Fault = Box<dyn std::error::Error + Send + Sync>;

fn encode(entries: &[CommitEntry]) -> std::result::Result<Vec<u8>, Fault> {
    let json = |values: Vec<serde_json::Result<String>>| values.into_iter().collect::<serde_json::Result<Vec<_>>>();
    let info = json(entries.iter().map(|entry| serde_json::to_string(&entry.info)).collect())?;
    let transactions = json(entries.iter().map(|entry| serde_json::to_string(&entry.transactions)).collect())?;
    let times = entries.iter().map(|entry| entry.timestamp.map(|at| at.timestamp_micros()));
    let columns: [(&str, ArrayRef); 6] = [
        ("version", Arc::new(Int64Array::from_iter_values(entries.iter().map(|entry| entry.version as i64)))),
        ("committed_at", Arc::new(times.collect::<Int64Array>())),
        ("operation", Arc::new(StringArray::from_iter_values(entries.iter().map(|entry| &entry.operation)))),
        ("rows_added", Arc::new(Int64Array::from_iter_values(entries.iter().map(|entry| entry.rows_added() as i64)))),
        ("transactions", Arc::new(StringArray::from(transactions))),
        ("info", Arc::new(StringArray::from(info))),
    ];
    let batch = RecordBatch::try_from_iter(columns)?;
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties))?;
    writer.write(&batch)?;
    Ok(writer.into_inner()?)
}

fn decode(bytes: Bytes) -> std::result::Result<Vec<CommitEntry>, Fault> {
    let mut entries = Vec::new();
    for batch in ParquetRecordBatchReaderBuilder::try_new(bytes)?.build()? {
        let batch = batch?;
        let column = |name: &str| batch.column_by_name(name).ok_or_else(|| format!("it has no column {name}"));
        let other = |name: &str| format!("column {name} is of another type");
        let number = |name: &str| column(name)?.as_primitive_opt::<Int64Type>().ok_or_else(|| other(name));
        let text = |name: &str| column(name)?.as_string_opt::<i32>().ok_or_else(|| other(name));
        let (versions, times, rows) = (number("version")?, number("committed_at")?, number("rows_added")?);
        let (operations, transactions, info) = (text("operation")?, text("transactions")?, text("info")?);
        for row in 0..batch.num_rows() {
            let at = (!times.is_null(row)).then(|| DateTime::from_timestamp_micros(times.value(row))).flatten();
            let mut entry = CommitEntry::new(versions.value(row) as u64);
            entry.timestamp = at;
            entry.operation = operations.value(row).to_owned();
            entry.transactions = serde_json::from_str(transactions.value(row))?;
            entry.info = serde_json::from_str(info.value(row))?;
            entry.archived_rows = Some(rows.value(row) as u64);
            entries.push(entry);
        }
    }
    Ok(entries)
}
