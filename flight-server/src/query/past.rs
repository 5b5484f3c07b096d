//! The catalog's schemas of the past, and how a table of one is planned.
//!
//! `"gold at version 12"` is such a schema, and `"gold,silver,bronze at version 12"` one for a name without a schema. Like a
//! search path, its name says what is in it: nothing lists it, and each table is looked up when a statement is planned.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, SchemaProvider, TableProvider};
use datafusion::common::{DataFusionError, TableReference};
use datafusion::logical_expr::LogicalPlanBuilder;
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::sql::sqlparser::ast::TableFactor;
use lakehouse::{Lake, Publication, Table, TableName, TableVersion};

use super::schemas::own_names;
use super::snapshot::find_publication;
use super::time_travel::Moment;
use crate::error::{Error, Kind, Result};

const AT: &str = " at ";

/// What a schema of the past holds: the tables of other schemas, the first that has one, as they were at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Past {
    pub(super) schemas: Vec<String>,
    pub(super) moment: Moment,
}

impl Past {
    /// Reads a schema's name; `None` for any other schema.
    pub(super) fn of_schema(name: &str) -> Option<Self> {
        let (schemas, moment) = name.rsplit_once(AT)?;
        let moment = Moment::read(moment, "UTC").ok()?;
        Some(Self { schemas: schemas.split(',').map(str::to_owned).collect(), moment })
    }

    /// A table's name as the statement has it.
    fn shown(&self, table: &str) -> String {
        match self.schemas.as_slice() {
            [schema] => format!("{schema}.{table}"),
            _ => table.to_owned(),
        }
    }
}

impl fmt::Display for Past {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{AT}{}", self.schemas.join(","), self.moment)
    }
}

/// A schema of the past.
pub(super) struct PastSchema {
    pub(super) past: Past,
    pub(super) lake: Lake,
    /// The lake's schemas as they are now.
    pub(super) catalog: Arc<dyn CatalogProvider>,
}

impl fmt::Debug for PastSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PastSchema").field(&self.past).finish()
    }
}

#[async_trait]
impl SchemaProvider for PastSchema {
    fn table_names(&self) -> Vec<String> {
        Vec::new()
    }

    async fn table(&self, name: &str) -> std::result::Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        match self.find(name).await {
            Ok(version) => Ok(Some(version.provider())),
            Err(error) => Err(DataFusionError::External(Box::new(error))),
        }
    }

    fn table_exist(&self, _name: &str) -> bool {
        true
    }
}

impl PastSchema {
    async fn find(&self, name: &str) -> Result<Arc<TableVersion>> {
        match self.past.moment {
            Moment::Version(version) => self.table_of(name).await?.as_of_version(version).await.map_err(not_there),
            Moment::Timestamp(time) => self.table_of(name).await?.as_of(time).await.map_err(not_there),
            Moment::Publication(id) => self.published(name, &find_publication(&self.lake, id).await?).await,
        }
    }

    /// The table that a name stands for now; also one that no publication names any more.
    async fn table_of(&self, name: &str) -> Result<Table> {
        let has =
            |schema: &String| self.catalog.schema(schema).is_some_and(|own| own_names(own.as_ref()).contains(name));
        if let Some(schema) = self.past.schemas.iter().find(|schema| has(schema)) {
            let table = self.lake.table(&TableName::new(schema, name));
            if table.exists().await? {
                return Ok(table);
            }
            let message = format!("{schema}.{name} has no past: it is computed when it is asked for");
            return Err(Error::new(Kind::Unsupported, message));
        }
        let known = self.lake.tables().await?;
        match self.names(name).find(|wanted| known.contains(wanted)) {
            Some(found) => Ok(self.lake.table(&found)),
            None => Err(Error::new(
                Kind::UndefinedTable,
                format!("relation \"{}\" does not exist; `show tables` lists what there is", self.past.shown(name)),
            )),
        }
    }

    async fn published(&self, name: &str, publication: &Publication) -> Result<Arc<TableVersion>> {
        let Some((name, pinned)) = self.names(name).find_map(|name| publication.tables.get_key_value(&name)) else {
            let message = format!(
                "publication {} does not name {}; `select * from system.publications` shows what it names",
                publication.id,
                self.past.shown(name)
            );
            return Err(Error::new(Kind::UndefinedObject, message));
        };
        let table = self.lake.table(name);
        if table.head().await.map_err(not_there)?.table_id != pinned.table_id {
            let message = format!(
                "{name} was made anew since publication {}: the table that it names is no more",
                publication.id
            );
            return Err(Error::new(Kind::UndefinedObject, message));
        }
        table.as_of_version(pinned.version).await.map_err(not_there)
    }

    fn names(&self, name: &str) -> impl Iterator<Item = TableName> {
        self.past.schemas.iter().map(move |schema| TableName::new(schema, name))
    }
}

/// A version that is not there is another thing than a table that is not.
fn not_there(error: lakehouse::Error) -> Error {
    match error.kind() {
        lakehouse::ErrorKind::NotFound => Error::with_source(Kind::UndefinedObject, error.to_string(), error),
        _ => error.into(),
    }
}

/// Gives a table of the past the name that the statement has for it, so that its columns can be qualified by that. The scan keeps
/// the other one: it tells two moments of one table apart.
#[derive(Debug)]
pub(super) struct PastPlanner;

impl RelationPlanner for PastPlanner {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> std::result::Result<RelationPlanning, DataFusionError> {
        let TableFactor::Table { name, alias: None, args: None, .. } = &relation else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let reference = context.object_name_to_table_reference(name.clone())?;
        let Some(past) = reference.schema().and_then(Past::of_schema) else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let own_name = match past.schemas.as_slice() {
            [schema] => TableReference::partial(schema.as_str(), reference.table()),
            _ => TableReference::bare(reference.table()),
        };
        let source = context.context_provider().get_table_source(reference.clone())?;
        let plan = LogicalPlanBuilder::scan(reference, source, None)?.alias(own_name)?.build()?;
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, None))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schemas_name_says_what_is_in_it() {
        let time = "2026-11-24T10:00:00.123Z".parse().expect("a time");
        for moment in [Moment::Version(12), Moment::Timestamp(time), Moment::Publication(7)] {
            for schemas in [vec!["gold"], vec!["gold", "silver", "bronze"], vec!["look at version 3"]] {
                let past = Past { schemas: schemas.into_iter().map(str::to_owned).collect(), moment };
                assert_eq!(Past::of_schema(&past.to_string()), Some(past));
            }
        }
        for other in ["gold", "at version 12", "gold at version", "gold at version x", "gold at noon"] {
            assert_eq!(Past::of_schema(other), None, "{other}");
        }
    }
}
