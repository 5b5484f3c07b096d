//! Time travel: a table as it was at a version or at a moment that a reader names.
//!
//! Source for the rule of moments: Delta's own time travel, which lets the newest version speak that was committed at or before
//! the moment, and by which a commit is never earlier than the one before it, whatever its writer's clock said.

use std::pin::pin;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use futures::TryStreamExt as _;
use object_store::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::restore::only_in;
use crate::table::{Table, TableInner};
use crate::version::TableVersion;

/// Clocks are set back by hand, most often by the hour of daylight saving time. So far back a search looks for commits that are
/// later than those after them; it reads one entry for each commit of that time.
const CLOCK_SET_BACK_MAX: TimeDelta = TimeDelta::hours(2);

impl Table {
    /// The table as it was at `version`, with all its files still there.
    ///
    /// # Errors
    /// `NotFound` if there is no such version, or if it is not kept any more.
    pub async fn as_of_version(&self, version: u64) -> Result<Arc<TableVersion>> {
        let newest = self.head().await?;
        self.check_not_after(version, &newest)?;
        if version == newest.version {
            return Ok(newest);
        }
        let found = match self.at(version).await {
            Ok(found) => found,
            Err(error) => return Err(self.not_kept(version).await?.unwrap_or(error)),
        };
        match self.first_gone(&only_in(&found, &newest)).await? {
            None => Ok(found),
            Some(path) => {
                let message = format!(
                    "version {version} of {} is not kept any more: its file {path} was cleaned up; `lakebeat publication ls` \
                     names versions that are kept",
                    self.name()
                );
                Err(Error::new(ErrorKind::NotFound, message))
            }
        }
    }

    /// The table as it was at a moment: the newest version that was committed then or before.
    ///
    /// A moment after the last commit is that last version, for a lake that stands still makes no commits. One that is still to
    /// come is refused: the same question would have another answer later.
    ///
    /// # Errors
    /// `NotFound` if the moment is before the first version, still to come, or if the version is not kept any more.
    pub async fn as_of(&self, moment: DateTime<Utc>) -> Result<Arc<TableVersion>> {
        let newest = self.newest_version().await?;
        let oldest = self.oldest_kept().await?;
        let Some(version) = self.inner.newest_until(moment, oldest, newest).await? else {
            return Err(self.too_early(moment, oldest).await?);
        };
        let now = self.inner.clock.now();
        if version == newest && moment > now {
            let message =
                format!("what {} will be at {} is not known: it is {} now", self.name(), shown(moment), shown(now));
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        self.as_of_version(version).await
    }

    /// Refuses a version that nobody has committed yet.
    pub(crate) fn check_not_after(&self, version: u64, newest: &TableVersion) -> Result<()> {
        if version <= newest.version {
            return Ok(());
        }
        let message = format!("{} has no version {version}: the newest is {}", self.name(), newest.version);
        Err(Error::new(ErrorKind::NotFound, message))
    }

    /// What to say of a version that cannot be loaded, if the reason is that the log was cleaned up.
    async fn not_kept(&self, version: u64) -> Result<Option<Error>> {
        // Before the log begins only those versions are kept that publications name.
        let oldest = self.oldest_kept().await?.max(self.inner.log_begins().await?);
        if version >= oldest {
            return Ok(None);
        }
        let since = self.committed_at(oldest).await?;
        let message =
            format!("version {version} of {} is not kept any more: the oldest is {oldest}{since}", self.name());
        Ok(Some(Error::new(ErrorKind::NotFound, message)))
    }

    async fn too_early(&self, moment: DateTime<Utc>, oldest: u64) -> Result<Error> {
        let since = self.committed_at(oldest).await?;
        let why = if oldest == 0 { "was not there yet" } else { "is not kept any more" };
        let message = format!("{} as of {} {why}: the oldest version is {oldest}{since}", self.name(), shown(moment));
        Ok(Error::new(ErrorKind::NotFound, message))
    }

    /// When a version was committed, to be put after its number.
    async fn committed_at(&self, version: u64) -> Result<String> {
        let entry = self.inner.read_story(version).await?;
        let timestamp = entry.and_then(|entry| entry.timestamp);
        Ok(timestamp.map_or_else(String::new, |timestamp| format!(", committed at {}", shown(timestamp))))
    }

    /// The oldest version that can still be loaded: the first one, or the oldest checkpoint if the log was cleaned up.
    async fn oldest_kept(&self) -> Result<u64> {
        if self.inner.read_entry(0).await?.is_some() {
            return Ok(0);
        }
        let failed = |source| Error::store(format!("cannot list the log of {}", self.name()), source);
        let (store, folder) = (self.store(), Path::from("_delta_log"));
        let found: Vec<Option<u64>> = store
            .list(Some(&folder))
            .map_ok(|object| checkpoint_in(&object.location))
            .try_collect()
            .await
            .map_err(failed)?;
        Ok(found.into_iter().flatten().min().unwrap_or(0))
    }
}

impl TableInner {
    /// The newest of these versions that was committed at `moment` or before, where no commit counts as earlier than the one
    /// before it: so it is the one right before the first that is later.
    async fn newest_until(&self, moment: DateTime<Utc>, oldest: u64, newest: u64) -> Result<Option<u64>> {
        // Where a commit is earlier by more than clocks are set back, none before it is later than the moment.
        let certainly_before = moment - CLOCK_SET_BACK_MAX;
        let (mut from, mut upto) = (oldest, newest + 1);
        while from < upto {
            let middle = from + (upto - from) / 2;
            let timestamp = self.read_story(middle).await?.and_then(|entry| entry.timestamp);
            if timestamp.is_some_and(|timestamp| timestamp <= certainly_before) {
                from = middle + 1;
            } else {
                upto = middle;
            }
        }
        let mut entries = pin!(self.story(from..=newest));
        while let Some(entry) = entries.try_next().await? {
            // A foreign writer's commit without a time counts as one at the time of the one before it.
            if entry.and_then(|entry| entry.timestamp).is_some_and(|timestamp| timestamp > moment) {
                break;
            }
            from += 1;
        }
        Ok((from > oldest).then(|| from - 1))
    }
}

/// The version whose checkpoint, or part of a checkpoint, has that path.
fn checkpoint_in(path: &Path) -> Option<u64> {
    let (number, rest) = path.filename()?.split_once('.')?;
    (number.len() == 20 && rest.starts_with("checkpoint.")).then(|| number.parse().ok())?
}

fn shown(moment: DateTime<Utc>) -> String {
    moment.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_told_from_what_else_lies_there() {
        for (name, version) in [
            ("00000000000000000100.checkpoint.parquet", Some(100)),
            ("00000000000000000200.checkpoint.0000000001.0000000002.parquet", Some(200)),
            ("00000000000000000107.json", None),
            ("00000000000000000100.crc", None),
            ("_last_checkpoint", None),
            ("100.checkpoint.parquet", None),
        ] {
            assert_eq!(checkpoint_in(&Path::from("_delta_log").join(name)), version, "{name}");
        }
    }
}
