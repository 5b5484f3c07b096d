//! The catalog as clients see it: the lake's schemas, PostgreSQL's `pg_catalog`, and search paths.
//!
//! A search path is a schema of its own, with a name that no client can write and that says what is in it. So a
//! connection with another path needs no other catalog, only another default schema. Schemas of the past are made likewise.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, SchemaProvider, TableProvider};
use datafusion::common::DataFusionError;
use datafusion::prelude::SessionContext;
use lakehouse::Lake;

use super::catalogue;
use super::past::{Past, PastSchema};
use crate::error::{Error, Kind, Result};

/// The one catalog; to PostgreSQL clients, the database.
pub(crate) const CATALOG: &str = "lake";

const SEARCH_PREFIX: &str = "\u{1}search:";
const PG_CATALOG: &str = "pg_catalog";

/// The table functions that a statement may use. They compute; they read nothing.
const TABLE_FUNCTIONS: [&str; 2] = ["generate_series", "range"];

/// The name of the schema that looks names up in these schemas.
pub(super) fn search_schema(path: &[String]) -> String {
    format!("{SEARCH_PREFIX}{}", path.join(","))
}

/// A table's name without the search path that the planner put before it.
pub(crate) fn shown_name(name: &str) -> &str {
    match name.find(SEARCH_PREFIX) {
        Some(start) => match name[start..].find('.') {
            Some(dot) => &name[start + dot + 1..],
            None => name,
        },
        None => name.strip_prefix("lake.").unwrap_or(name),
    }
}

/// Whether a table's name stands for what the publication names, and for nothing that moves on its own.
pub(super) fn is_pinned(catalog: &dyn CatalogProvider, schema: &str, table: &str) -> bool {
    if Past::of_schema(schema).is_some() {
        return true;
    }
    let has = |name: &str| catalog.schema(name).is_some_and(|schema| own_names(schema.as_ref()).contains(table));
    match schema.strip_prefix(SEARCH_PREFIX) {
        None => is_pinned_schema(schema) && has(schema),
        // The first schema of the path that has it decides; one that moves may have it by now.
        Some(path) => path.split(',').take_while(|name| is_pinned_schema(name)).any(has) && !table.starts_with("pg_"),
    }
}

/// A schema's own tables: the lake's default schema also resolves names of others.
pub(super) fn own_names(schema: &dyn SchemaProvider) -> BTreeSet<String> {
    schema.table_names().into_iter().collect()
}

fn is_pinned_schema(name: &str) -> bool {
    !matches!(name, "bronze" | "system" | "information_schema" | PG_CATALOG)
}

/// Puts the clients' view of the catalog into a session, and takes out what statements may not use.
pub(super) fn install(context: &SessionContext, lake: &Lake) -> Result<()> {
    let schemas = context
        .catalog(CATALOG)
        .ok_or_else(|| Error::new(Kind::Bug, "the session has no catalog named lake; please report this"))?;
    let pg_catalog = Arc::new(catalogue::PgCatalog::new(Arc::clone(&schemas)));
    let visible = VisibleCatalog { schemas, pg_catalog, lake: lake.clone() };
    context.register_catalog(CATALOG, Arc::new(visible));
    let state = context.state();
    for name in state.table_functions().keys() {
        if !TABLE_FUNCTIONS.contains(&name.as_str()) {
            context.deregister_udtf(name);
        }
    }
    Ok(())
}

#[derive(Debug)]
struct VisibleCatalog {
    schemas: Arc<dyn CatalogProvider>,
    pg_catalog: Arc<catalogue::PgCatalog>,
    /// For versions that the publication does not name.
    lake: Lake,
}

impl CatalogProvider for VisibleCatalog {
    /// `pg_catalog` is not among them: tools that list all schemas would list it as one of the user's.
    fn schema_names(&self) -> Vec<String> {
        self.schemas.schema_names()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        if name == PG_CATALOG {
            return Some(Arc::clone(&self.pg_catalog) as Arc<dyn SchemaProvider>);
        }
        if let Some(past) = Past::of_schema(name) {
            let (lake, catalog) = (self.lake.clone(), Arc::clone(&self.schemas));
            return Some(Arc::new(PastSchema { past, lake, catalog }));
        }
        let Some(path) = name.strip_prefix(SEARCH_PREFIX) else {
            return self.schemas.schema(name);
        };
        // As in PostgreSQL, the system's own names come first, so that no user table can take their place.
        let mut schemas = vec![Arc::clone(&self.pg_catalog) as Arc<dyn SchemaProvider>];
        schemas.extend(path.split(',').filter_map(|name| self.schemas.schema(name)));
        Some(Arc::new(SearchPath { schemas }))
    }
}

/// Several schemas, looked through in their order.
#[derive(Debug)]
struct SearchPath {
    schemas: Vec<Arc<dyn SchemaProvider>>,
}

#[async_trait]
impl SchemaProvider for SearchPath {
    fn table_names(&self) -> Vec<String> {
        self.schemas.iter().flat_map(|schema| schema.table_names()).collect()
    }

    async fn table(&self, name: &str) -> std::result::Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        for schema in &self.schemas {
            if let Some(table) = schema.table(name).await? {
                return Ok(Some(table));
            }
        }
        Ok(None)
    }

    fn table_exist(&self, name: &str) -> bool {
        self.schemas.iter().any(|schema| schema.table_exist(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_path_is_never_shown() {
        let schema = search_schema(&["gold".to_owned(), "silver".to_owned()]);
        assert_eq!(shown_name(&format!("lake.{schema}.top_songs")), "top_songs");
        assert_eq!(shown_name("lake.gold.top_songs"), "gold.top_songs");
    }
}
