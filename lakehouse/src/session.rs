//! Sessions: what a query sees of the lake. Silver and gold as one publication names them, bronze and the system tables at
//! their heads, all under the catalog `lake`.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref as _;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{
    CatalogProvider, CatalogProviderList as _, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider,
    SchemaProvider, TableProvider,
};
use datafusion::common::config::Dialect;
use datafusion::error::{DataFusionError, Result as QueryResult};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};
use tokio::sync::OnceCell;

use crate::error::{Error, ErrorKind, Result};
use crate::lake::Lake;
use crate::name::TableName;
use crate::opaque::Opaque;
use crate::provider::store_url;
use crate::publication::Publication;
use crate::system::{self, SystemSource, SystemTable};

/// The catalog that holds the lake's schemas; also the database that a PostgreSQL client connects to.
pub const CATALOG: &str = "lake";
/// The schema whose tables need no prefix.
pub const DEFAULT_SCHEMA: &str = "gold";
/// Where an unqualified name is looked up, in this order.
pub const SEARCH_PATH: [&str; 3] = ["gold", "silver", "bronze"];
/// The schemas that a session shows even while they are empty, so that a tool's tree is the same on the first day.
const SCHEMAS: [&str; 4] = ["bronze", "silver", "gold", "system"];

/// How much of the machine queries may take.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// The memory of all running queries together, in bytes; what needs more spills to disk.
    pub memory_bytes_max: usize,
    /// The threads of one query.
    pub parallelism: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        let parallelism = std::thread::available_parallelism().map_or(2, |cores| cores.get());
        Self { memory_bytes_max: 1 << 30, parallelism }
    }
}

/// A state without tables, which each session starts from: the function registry is built once. It knows nothing of the lake
/// but its store: the lake holds it, and would never be let go of.
pub(crate) type BaseState = Opaque<SessionState>;

/// Makes sessions that share memory, spill files and footer caches.
#[derive(Clone)]
pub struct SessionFactory {
    lake: Lake,
    base: BaseState,
    /// System tables that other parts of this process compute.
    sources: Vec<Arc<dyn SystemSource>>,
}

impl fmt::Debug for SessionFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionFactory").field("lake", self.lake.url()).finish_non_exhaustive()
    }
}

impl SessionFactory {
    pub(crate) fn new(lake: &Lake, base: BaseState) -> Self {
        Self { lake: lake.clone(), base, sources: Vec::new() }
    }

    /// The same, whose sessions show one more system table.
    #[must_use]
    pub fn with_system_table(mut self, source: Arc<dyn SystemSource>) -> Self {
        self.sources.push(source);
        self
    }

    pub(crate) fn lake(&self) -> &Lake {
        &self.lake
    }

    /// A session without tables of the lake, for plans over providers that the caller has and may register.
    pub fn context(&self) -> SessionContext {
        let catalog = MemoryCatalogProvider::new();
        catalog
            .register_schema(DEFAULT_SCHEMA, Arc::new(MemorySchemaProvider::new()))
            .expect("a catalog in memory takes any schema");
        self.with_catalog(Arc::new(catalog))
    }

    /// A session on one publication. Without one, silver and gold are empty.
    pub async fn at_publication(&self, publication: Option<&Publication>) -> Result<SessionContext> {
        let mut schemas: BTreeMap<String, BTreeMap<String, Slot>> =
            SCHEMAS.iter().map(|schema| ((*schema).to_owned(), BTreeMap::new())).collect();
        for (name, slot) in self.system_tables() {
            schemas.entry(name.schema).or_default().insert(name.name, slot);
        }
        for name in self.lake.known_heads().await? {
            let slot = Slot::Head(self.lake.clone(), name.clone());
            schemas.entry(name.schema).or_default().entry(name.name).or_insert(slot);
        }
        for (name, pinned) in publication.iter().flat_map(|publication| &publication.tables) {
            if is_read_at_head(&name.schema) {
                continue;
            }
            let version = self.lake.table(name).at(pinned.version).await?;
            if version.table_id != pinned.table_id {
                let message = format!("{name} was made anew since publication: build again to publish the new one");
                return Err(Error::new(ErrorKind::Conflict, message));
            }
            let slot = Slot::Pinned(version.provider());
            schemas.entry(name.schema.clone()).or_default().insert(name.name.clone(), slot);
        }
        Ok(self.with_catalog(Arc::new(LakeCatalog::new(schemas))))
    }

    /// The system tables that are there in every lake, whether somebody has written to them yet or not.
    fn system_tables(&self) -> Vec<(TableName, Slot)> {
        let computed = SystemTable::ALL.iter().map(|table| {
            let slot = Slot::System(*table, self.lake.clone());
            (system::named(table.name()), slot)
        });
        let written = system::written().into_iter().map(|(name, schema)| {
            let slot = Slot::Written(self.lake.clone(), name.clone(), schema);
            (name, slot)
        });
        let given = self.sources.iter().map(|source| (system::named(source.name()), Slot::Given(source.clone())));
        computed.chain(written).chain(given).collect()
    }

    fn with_catalog(&self, catalog: Arc<dyn CatalogProvider>) -> SessionContext {
        let catalogs = MemoryCatalogProviderList::new();
        catalogs.register_catalog(CATALOG.to_owned(), catalog);
        let state = SessionStateBuilder::new_from_existing(self.base.deref().clone())
            .with_session_id(uuid::Uuid::new_v4().to_string())
            .with_catalog_list(Arc::new(catalogs))
            .build();
        SessionContext::new_with_state(state)
    }
}

/// Bronze and the system tables are read at their heads; all else only as a publication names it.
pub(crate) fn is_read_at_head(schema: &str) -> bool {
    matches!(schema, "bronze" | "system")
}

pub(crate) fn base_state(lake: &Lake, options: &SessionOptions) -> Result<BaseState> {
    let runtime = runtime(lake, options)?;
    let state = SessionStateBuilder::new().with_config(config(options)).with_runtime_env(runtime);
    Ok(Opaque::new(state.with_default_features().build()))
}

fn runtime(lake: &Lake, options: &SessionOptions) -> Result<Arc<RuntimeEnv>> {
    let consumers = std::num::NonZeroUsize::new(5).expect("five is not zero");
    let pool = TrackConsumersPool::new(FairSpillPool::new(options.memory_bytes_max), consumers);
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(pool))
        .build_arc()
        .map_err(|source| Error::query("cannot set up the query engine", source))?;
    runtime.register_object_store(store_url().as_ref(), lake.store().clone());
    Ok(runtime)
}

fn config(options: &SessionOptions) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_information_schema(true)
        .with_create_default_catalog_and_schema(false)
        .with_default_catalog_and_schema(CATALOG, DEFAULT_SCHEMA)
        .with_target_partitions(options.parallelism);
    let settings = config.options_mut();
    // Clients of both wire doors know Utf8 and Binary; views would have to be turned back at the door.
    settings.sql_parser.map_string_types_to_utf8view = false;
    settings.sql_parser.dialect = Dialect::Generic;
    settings.execution.parquet.schema_force_view_types = false;
    settings.execution.parquet.pushdown_filters = true;
    settings.execution.parquet.reorder_filters = true;
    settings.execution.time_zone = Some("UTC".to_owned());
    config
}

/// What stands behind a table's name.
#[derive(Clone)]
enum Slot {
    /// A version that is fixed.
    Pinned(Arc<dyn TableProvider>),
    /// The newest version at the moment of planning.
    Head(Lake, TableName),
    /// The same of a table that is shown without rows as long as nobody has made it.
    Written(Lake, TableName, SchemaRef),
    /// Computed at the moment of planning.
    System(SystemTable, Lake),
    /// Computed by another part of this process.
    Given(Arc<dyn SystemSource>),
}

impl Slot {
    async fn provider(&self) -> Result<Arc<dyn TableProvider>> {
        match self {
            Self::Pinned(provider) => Ok(provider.clone()),
            Self::Head(lake, name) => Ok(lake.table(name).head().await?.provider()),
            Self::Written(lake, name, schema) => match lake.table(name).head().await {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    system::provider_of(&name.name, RecordBatch::new_empty(schema.clone()))
                }
                head => Ok(head?.provider()),
            },
            Self::System(table, lake) => system::provider(*table, lake).await,
            Self::Given(source) => system::provider_of(source.name(), source.rows()?),
        }
    }
}

/// The catalog `lake` as one session sees it.
#[derive(Debug)]
struct LakeCatalog {
    schemas: BTreeMap<String, Arc<LakeSchema>>,
}

impl LakeCatalog {
    fn new(schemas: BTreeMap<String, BTreeMap<String, Slot>>) -> Self {
        let mut made: BTreeMap<String, Arc<LakeSchema>> =
            schemas.into_iter().map(|(name, tables)| (name, Arc::new(LakeSchema::new(tables)))).collect();
        // An unqualified name is a name in the default schema: what that schema has not, it looks up along the path.
        if let Some(default) = made.get(DEFAULT_SCHEMA) {
            let path = SEARCH_PATH.iter().filter(|schema| **schema != DEFAULT_SCHEMA);
            let further = path.filter_map(|schema| made.get(*schema).cloned()).collect();
            let default = LakeSchema { tables: default.tables.clone(), further };
            made.insert(DEFAULT_SCHEMA.to_owned(), Arc::new(default));
        }
        Self { schemas: made }
    }
}

impl CatalogProvider for LakeCatalog {
    fn schema_names(&self) -> Vec<String> {
        self.schemas.keys().cloned().collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        self.schemas.get(name).map(|schema| schema.clone() as Arc<dyn SchemaProvider>)
    }
}

/// The provider of a slot, once somebody asked for it.
type Resolved = Arc<OnceCell<Arc<dyn TableProvider>>>;

/// One schema of it.
struct LakeSchema {
    tables: BTreeMap<String, (Slot, Resolved)>,
    /// Schemas where a name is looked up that is not in this one.
    further: Vec<Arc<LakeSchema>>,
}

impl LakeSchema {
    fn new(tables: BTreeMap<String, Slot>) -> Self {
        let tables = tables.into_iter().map(|(name, slot)| (name, (slot, Arc::default()))).collect();
        Self { tables, further: Vec::new() }
    }

    /// Resolved once a session: two mentions of a table in one statement are the same version of it.
    async fn resolve(&self, name: &str) -> QueryResult<Option<Arc<dyn TableProvider>>> {
        let Some((slot, cell)) = self.tables.get(name) else { return Ok(None) };
        let provider = cell.get_or_try_init(|| slot.provider()).await;
        provider.map(|provider| Some(provider.clone())).map_err(|error| DataFusionError::External(Box::new(error)))
    }
}

impl fmt::Debug for LakeSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.tables.keys()).finish()
    }
}

#[async_trait]
impl SchemaProvider for LakeSchema {
    fn table_names(&self) -> Vec<String> {
        self.tables.keys().cloned().collect()
    }

    async fn table(&self, name: &str) -> QueryResult<Option<Arc<dyn TableProvider>>> {
        if let Some(found) = self.resolve(name).await? {
            return Ok(Some(found));
        }
        for schema in &self.further {
            if let Some(found) = schema.resolve(name).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn table_exist(&self, name: &str) -> bool {
        self.tables.contains_key(name) || self.further.iter().any(|schema| schema.tables.contains_key(name))
    }
}
