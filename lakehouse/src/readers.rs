//! Readers: the versions that somebody is reading now, so that nobody takes their files away.
//!
//! What was superseded stays for some minutes, longer than nearly every query runs: those cost nothing here. Who reads on is told
//! to other processes by one lease for all readers of this one, written only while there are such.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::TryStreamExt as _;
use object_store::{ObjectMeta, ObjectStoreExt as _};
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::lake::Lake;
use crate::lease::{Lease, LeaseInfo, folder};
use crate::name::TableName;
use crate::publication::Publication;
use crate::storage::delete;

/// What leases of readers are on.
const PURPOSE: &str = "readers";
/// Who has been reading for so long is told of; a lease that stands is renewed as often.
pub const READERS_TOLD_AFTER: Duration = Duration::from_secs(15);
/// By the store's own clock. A process that was killed keeps its versions for so long; one that lives has tried many times.
const LAPSES_AFTER: TimeDelta = TimeDelta::minutes(5);

/// Versions of tables.
pub(crate) type Versions = BTreeMap<TableName, BTreeSet<u64>>;

/// The versions that are being read in this process.
#[derive(Debug, Default)]
pub struct Readers {
    /// Each with how many read it, and since when somebody has been.
    held: Mutex<BTreeMap<(TableName, u64), (usize, Instant)>>,
}

/// Somebody reads these versions until this is dropped: their files stay.
#[derive(Debug)]
pub struct Reading {
    readers: Arc<Readers>,
    versions: Vec<(TableName, u64)>,
}

impl Readers {
    pub(crate) fn begin(self: &Arc<Self>, versions: Vec<(TableName, u64)>) -> Reading {
        let mut held = self.lock();
        for version in &versions {
            held.entry(version.clone()).or_insert_with(|| (0, Instant::now())).0 += 1;
        }
        drop(held);
        Reading { readers: self.clone(), versions }
    }

    /// What has been read for so long at least.
    fn held_for(&self, age: Duration) -> Versions {
        let mut versions = Versions::new();
        for ((name, version), (_, since)) in self.lock().iter() {
            if since.elapsed() >= age {
                versions.entry(name.clone()).or_default().insert(*version);
            }
        }
        versions
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(TableName, u64), (usize, Instant)>> {
        // Each change is of one entry: a panic between two of them leaves nothing half done.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut held = self.readers.lock();
        for version in &self.versions {
            let Some((count, _)) = held.get_mut(version) else { continue };
            *count -= 1;
            if *count == 0 {
                held.remove(version);
            }
        }
    }
}

impl Lake {
    /// Keeps all versions that a publication names from being cleaned up, for whoever goes on to read by it: an open
    /// transaction, a ticket.
    pub fn hold(&self, publication: &Publication) -> Reading {
        let versions = publication.tables.iter().map(|(name, pinned)| (name.clone(), pinned.version));
        self.readers().begin(versions.collect())
    }

    /// Tells other processes, for ever, what has been read in this one for so long. To be run beside whatever reads.
    pub async fn tell_readers(&self, holder: &str, after: Duration) {
        let mut lease: Option<Lease> = None;
        loop {
            tokio::time::sleep(after).await;
            let versions = self.readers().held_for(after);
            lease = match (lease, versions.is_empty()) {
                (None, true) => None,
                (Some(lease), true) => {
                    lease.release().await;
                    None
                }
                (lease, false) => self.tell(lease, holder, versions).await,
            };
        }
    }

    async fn tell(&self, lease: Option<Lease>, holder: &str, versions: Versions) -> Option<Lease> {
        let mut lease = lease.unwrap_or_else(|| self.new_lease(PURPOSE, holder));
        lease.read(versions);
        if let Err(error) = lease.renew().await {
            tracing::warn!(%error, "nobody knows which versions are being read; trying again");
        }
        Some(lease)
    }

    /// What is being read now, here and by other processes.
    pub(crate) async fn read_now(&self) -> Result<Versions> {
        let mut versions = self.readers().held_for(Duration::ZERO);
        for lease in self.readers_leases().await? {
            for (name, read) in lease.reads {
                versions.entry(name).or_default().extend(read);
            }
        }
        Ok(versions)
    }

    async fn readers_leases(&self) -> Result<Vec<LeaseInfo>> {
        let failed = |source| Error::store("cannot read the leases of readers", source);
        let found: Vec<ObjectMeta> = self.store().list(Some(&folder(PURPOSE))).try_collect().await.map_err(failed)?;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let oldest = self.store_time().await? - LAPSES_AFTER;
        let mut leases = Vec::new();
        for object in found {
            if object.last_modified < oldest {
                delete(self.store().as_ref(), &object.location).await.map_err(failed)?;
                continue;
            }
            let bytes = match self.store().get(&object.location).await {
                Ok(found) => found.bytes().await.map_err(failed)?,
                // Given up since it was listed.
                Err(object_store::Error::NotFound { .. }) => continue,
                Err(source) => return Err(failed(source)),
            };
            // A lease that is being written may be half there on a plain disk. Then nobody knows what it holds.
            let lease = serde_json::from_slice(&bytes).map_err(|source| {
                let message = format!("the readers' lease {} cannot be understood", object.location);
                Error::with_source(ErrorKind::Unavailable, message, source)
            })?;
            leases.push(lease);
        }
        Ok(leases)
    }

    /// What time it is for the store: our own clock may be ahead of it.
    pub(crate) async fn store_time(&self) -> Result<DateTime<Utc>> {
        let probe = self.take_lease("clock", "probe").await?;
        let written = self.store().head(probe.path()).await;
        probe.release().await;
        let written = written.map_err(|source| Error::store("cannot ask the store for the time", source))?;
        Ok(written.last_modified)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_held_until_its_last_reader_is_done() {
        let readers = Arc::new(Readers::default());
        let version = (TableName::new("gold", "one"), 7);
        let first = readers.begin(vec![version.clone()]);
        let second = readers.begin(vec![version.clone()]);
        drop(first);
        assert_eq!(readers.held_for(Duration::ZERO), Versions::from([(version.0, BTreeSet::from([7]))]));
        assert_eq!(readers.held_for(READERS_TOLD_AFTER), Versions::new());
        drop(second);
        assert_eq!(readers.held_for(Duration::ZERO), Versions::new());
    }
}
