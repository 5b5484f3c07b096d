//! Leases: who is at work on what, so that nobody takes away what another one stands on.
//!
//! A lease is a small object that its holder writes again now and then; one that was not renewed in time has lapsed. It is a
//! courtesy between processes that may reach each other by nothing but the store. No commit rests on it: what keeps two
//! writers apart is the fence of the log itself.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutPayload};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::lake::Lake;
use crate::readers::Versions;
use crate::storage::delete;

/// The folder of all leases. Its name begins with a line, so it is no schema.
const FOLDER: &str = "_leases";
/// A holder that was killed is taken to be at work for so long.
const LAPSES_AFTER: TimeDelta = TimeDelta::seconds(45);
/// So often a lease is renewed: two renewals may fail before it lapses.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(15);

/// What a lease says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseInfo {
    /// Who holds it, for people: a host and a process.
    pub holder: String,
    /// When it was taken.
    pub since: DateTime<Utc>,
    /// When it was last renewed.
    pub renewed_at: DateTime<Utc>,
    /// The versions that the holder reads, by table.
    #[serde(default, skip_serializing_if = "Versions::is_empty")]
    pub(crate) reads: Versions,
}

/// A lease that is held. Dropped without [`Lease::release`] it lapses by itself.
#[derive(Debug)]
pub struct Lease {
    lake: Lake,
    path: Path,
    info: LeaseInfo,
}

impl Lake {
    /// Takes a lease on `purpose`. Others may hold one on it as well.
    pub async fn take_lease(&self, purpose: &str, holder: &str) -> Result<Lease> {
        let mut lease = self.new_lease(purpose, holder);
        lease.renew().await?;
        Ok(lease)
    }

    /// One that is not written yet.
    pub(crate) fn new_lease(&self, purpose: &str, holder: &str) -> Lease {
        let now = self.clock().now();
        let info = LeaseInfo { holder: holder.to_owned(), since: now, renewed_at: now, reads: Versions::new() };
        let path = folder(purpose).join(format!("{}.json", self.ids().fresh()));
        Lease { lake: self.clone(), path, info }
    }

    /// The leases on `purpose` that have not lapsed. Those that have are deleted.
    pub async fn leases(&self, purpose: &str) -> Result<Vec<LeaseInfo>> {
        let failed = |source| Error::store(format!("cannot read the leases on {purpose}"), source);
        let folder = folder(purpose);
        let found: Vec<_> = self.store().list(Some(&folder)).try_collect().await.map_err(failed)?;
        let mut held = Vec::new();
        for object in found {
            let bytes = match self.store().get(&object.location).await {
                Ok(found) => found.bytes().await.map_err(failed)?,
                Err(object_store::Error::NotFound { .. }) => continue,
                Err(source) => return Err(failed(source)),
            };
            match serde_json::from_slice::<LeaseInfo>(&bytes) {
                Ok(info) if self.clock().now() - info.renewed_at < LAPSES_AFTER => held.push(info),
                // Lapsed, or half-written by a process that ended in the middle of it.
                _ => delete(self.store().as_ref(), &object.location).await.map_err(failed)?,
            }
        }
        Ok(held)
    }
}

impl LeaseInfo {
    /// Whether it is the oldest of these, by which holders agree on one of them without a word. Its own place among them is
    /// taken as given: a listing may lag.
    pub fn is_oldest_of(&self, others: &[Self]) -> bool {
        let age = |lease: &Self| (lease.since, lease.holder.clone());
        others.iter().all(|other| age(self) <= age(other))
    }
}

impl Lease {
    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What it says.
    pub fn info(&self) -> &LeaseInfo {
        &self.info
    }

    /// Renews the lease for ever. A renewal that fails is tried again at the next turn.
    pub async fn keep(&mut self) {
        loop {
            tokio::time::sleep(RENEWAL_INTERVAL).await;
            if let Err(error) = self.renew().await {
                tracing::debug!(%error, "lease not renewed");
            }
        }
    }

    /// Gives the lease up.
    pub async fn release(self) {
        if let Err(error) = delete(self.lake.store().as_ref(), &self.path).await {
            tracing::debug!(%error, "lease not given up; it lapses by itself");
        }
    }

    /// What it says from its next renewal on.
    pub(crate) fn read(&mut self, versions: Versions) {
        self.info.reads = versions;
    }

    pub(crate) async fn renew(&mut self) -> Result<()> {
        self.info.renewed_at = self.lake.clock().now();
        let bytes = serde_json::to_vec(&self.info)
            .map_err(|source| Error::with_source(ErrorKind::Bug, "cannot write down a lease", source))?;
        let put = self.lake.store().put(&self.path, PutPayload::from(bytes)).await;
        put.map(drop).map_err(|source| Error::store("cannot write a lease", source))
    }
}

pub(crate) fn folder(purpose: &str) -> Path {
    Path::from_iter([FOLDER].into_iter().chain(purpose.split('/')))
}
