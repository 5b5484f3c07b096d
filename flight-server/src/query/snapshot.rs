//! What a statement sees: a session over one publication, cached until there is a newer one.

use std::sync::{Arc, Mutex, PoisonError};

use datafusion::prelude::SessionContext;
use lakehouse::{DEFAULT_GROUP, Lake, Opaque, Publication, SystemSource};

use super::schemas;
use crate::error::{Error, Kind, Result};

/// The lake at one publication, as a session of the query engine.
pub struct Snapshot {
    publication: Option<Publication>,
    context: Opaque<SessionContext>,
}

impl Snapshot {
    /// The publication; `None` before the first one.
    pub fn publication(&self) -> Option<&Publication> {
        self.publication.as_ref()
    }

    /// The number of the publication; 0 before the first one.
    pub fn id(&self) -> u64 {
        self.publication.as_ref().map_or(0, |publication| publication.id)
    }

    /// The session: catalog `lake` with its schemas. For reading the catalog; statements go through a connection.
    pub fn context(&self) -> &SessionContext {
        &self.context
    }
}

/// Makes snapshots, and keeps the newest.
pub(super) struct Snapshots {
    lake: Lake,
    /// The system table that the doors add to those of the lake.
    queries: Arc<dyn SystemSource>,
    /// Held for a moment only. Two statements may make the same snapshot at the same time; either is right.
    newest: Mutex<Option<Arc<Snapshot>>>,
}

impl Snapshots {
    pub(super) fn new(lake: Lake, queries: Arc<dyn SystemSource>) -> Self {
        Self { lake, queries, newest: Mutex::new(None) }
    }

    /// The snapshot of the newest publication: asks the lake each time (a poll of the next log entry), and makes a new
    /// session only when there is a newer one.
    pub(super) async fn newest(&self) -> Result<Arc<Snapshot>> {
        let publication = self.lake.newest_publication(DEFAULT_GROUP).await?;
        let id = publication.as_ref().map_or(0, |publication| publication.id);
        if let Some(cached) = self.cached(id) {
            return Ok(cached);
        }
        let snapshot = Arc::new(self.make(publication).await?);
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&snapshot));
        Ok(snapshot)
    }

    /// The same publication with everything else as it is at this moment: bronze and the system tables at their heads,
    /// tables that have appeared. A session resolves each of those once, so a statement that reads them gets its own.
    pub(super) async fn with_heads(&self, snapshot: &Snapshot) -> Result<Arc<Snapshot>> {
        Ok(Arc::new(self.make(snapshot.publication.clone()).await?))
    }

    /// The snapshot of one publication by its number.
    pub(super) async fn at(&self, id: u64) -> Result<Arc<Snapshot>> {
        if let Some(cached) = self.cached(id) {
            return Ok(cached);
        }
        let publication = find_publication(&self.lake, id).await?;
        if publication.group != DEFAULT_GROUP {
            return Err(unknown_publication(id));
        }
        Ok(Arc::new(self.make(Some(publication)).await?))
    }

    fn cached(&self, id: u64) -> Option<Arc<Snapshot>> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.as_ref().filter(|snapshot| snapshot.id() == id).cloned()
    }

    async fn make(&self, publication: Option<Publication>) -> Result<Snapshot> {
        let sessions = self.lake.session_factory().with_system_table(Arc::clone(&self.queries));
        let context = sessions.at_publication(publication.as_ref()).await?;
        schemas::install(&context, &self.lake)?;
        Ok(Snapshot { publication, context: Opaque::new(context) })
    }
}

/// The publication of that number, of any group.
pub(super) async fn find_publication(lake: &Lake, id: u64) -> Result<Publication> {
    let found = lake.publications().await?.into_iter().find(|publication| publication.id == id);
    found.ok_or_else(|| unknown_publication(id))
}

fn unknown_publication(id: u64) -> Error {
    Error::new(
        Kind::UndefinedObject,
        format!("publication {id} does not exist (any more); `select * from system.publications` lists them"),
    )
}
