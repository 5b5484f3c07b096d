//! Catalogs, schemas, tables and keys, as the trees of BI tools ask for them. Every filter is optional.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_flight::sql::metadata::{GetCatalogsBuilder, GetDbSchemasBuilder, GetTablesBuilder};
use arrow_flight::sql::{CommandGetDbSchemas, CommandGetTableTypes, CommandGetTables};
use datafusion::catalog::SchemaProvider;
use datafusion::datasource::TableType;
use tonic::Status;

use super::internal;
use super::result::wire_schema;
use crate::error::Error;
use crate::query::{Snapshot, normalise_schema};

/// Schemas that describe others; trees of tables do without them.
const HIDDEN: [&str; 2] = ["information_schema", "pg_catalog"];

const TABLE: &str = "TABLE";
const VIEW: &str = "VIEW";

/// The answer to `CommandGetCatalogs`.
pub(super) fn catalogs(snapshot: &Snapshot) -> Result<RecordBatch, Status> {
    let mut builder = GetCatalogsBuilder::new();
    for catalog in snapshot.context().catalog_names() {
        builder.append(catalog);
    }
    builder.build().map_err(internal)
}

/// The answer to `CommandGetDbSchemas`.
pub(super) fn schemas(snapshot: &Snapshot, query: CommandGetDbSchemas) -> Result<RecordBatch, Status> {
    let mut builder = GetDbSchemasBuilder::from(query);
    for (catalog, schema, _) in schema_providers(snapshot) {
        builder.append(catalog, schema);
    }
    builder.build().map_err(internal)
}

/// The answer to `CommandGetTables`; the schemas in it are those that a query on the table announces.
pub(super) async fn tables(snapshot: &Snapshot, mut query: CommandGetTables) -> Result<RecordBatch, Status> {
    query.table_types = known_types(&query.table_types);
    let include_schema = query.include_schema;
    let mut builder = GetTablesBuilder::from(query);
    for (catalog, schema, provider) in schema_providers(snapshot) {
        for table in provider.table_names() {
            let (kind, columns) = describe(provider.as_ref(), &table, include_schema).await?;
            builder.append(&catalog, &schema, &table, kind, &columns).map_err(internal)?;
        }
    }
    builder.build().map_err(internal)
}

/// The columns of the answer to `CommandGetTables`.
pub(super) fn tables_schema(query: &CommandGetTables) -> SchemaRef {
    GetTablesBuilder::from(query.clone()).schema()
}

/// The answer to `CommandGetTableTypes`.
pub(super) fn table_types() -> Result<RecordBatch, Status> {
    let mut builder = CommandGetTableTypes {}.into_builder();
    builder.append(TABLE);
    builder.append(VIEW);
    builder.build().map_err(internal)
}

/// The empty answer to `CommandGetPrimaryKeys`: a lake declares no keys.
pub(super) fn no_primary_keys() -> RecordBatch {
    RecordBatch::new_empty(Arc::new(Schema::new(vec![
        Field::new("catalog_name", DataType::Utf8, true),
        Field::new("db_schema_name", DataType::Utf8, true),
        Field::new("table_name", DataType::Utf8, false),
        Field::new("column_name", DataType::Utf8, false),
        Field::new("key_name", DataType::Utf8, true),
        Field::new("key_sequence", DataType::Int32, false),
    ])))
}

/// The empty answer to `CommandGetExportedKeys`, `CommandGetImportedKeys` and `CommandGetCrossReference`.
pub(super) fn no_foreign_keys() -> RecordBatch {
    RecordBatch::new_empty(Arc::new(Schema::new(vec![
        Field::new("pk_catalog_name", DataType::Utf8, true),
        Field::new("pk_db_schema_name", DataType::Utf8, true),
        Field::new("pk_table_name", DataType::Utf8, false),
        Field::new("pk_column_name", DataType::Utf8, false),
        Field::new("fk_catalog_name", DataType::Utf8, true),
        Field::new("fk_db_schema_name", DataType::Utf8, true),
        Field::new("fk_table_name", DataType::Utf8, false),
        Field::new("fk_column_name", DataType::Utf8, false),
        Field::new("key_sequence", DataType::Int32, false),
        Field::new("fk_key_name", DataType::Utf8, true),
        Field::new("pk_key_name", DataType::Utf8, true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ])))
}

/// Catalog, schema and its provider, for each schema that is shown.
fn schema_providers(snapshot: &Snapshot) -> Vec<(String, String, Arc<dyn SchemaProvider>)> {
    let mut found = Vec::new();
    for catalog_name in snapshot.context().catalog_names() {
        let Some(catalog) = snapshot.context().catalog(&catalog_name) else { continue };
        for schema_name in catalog.schema_names() {
            if HIDDEN.contains(&schema_name.as_str()) {
                continue;
            }
            if let Some(provider) = catalog.schema(&schema_name) {
                found.push((catalog_name.clone(), schema_name, provider));
            }
        }
    }
    found
}

/// Type and columns of a table. Without `include_schema` the columns are not asked for, since opening a table can cost a
/// read of its log.
async fn describe(
    provider: &dyn SchemaProvider,
    table: &str,
    include_schema: bool,
) -> Result<(&'static str, SchemaRef), Status> {
    if !include_schema {
        let kind = provider.table_type(table).await.map_err(Error::from)?;
        return Ok((type_name(kind.unwrap_or(TableType::Base)), Arc::new(Schema::empty())));
    }
    match provider.table(table).await.map_err(Error::from)? {
        Some(found) => {
            let columns = wire_schema(&normalise_schema(&found.schema()));
            Ok((type_name(found.table_type()), columns))
        }
        // Dropped between the listing and now.
        None => Ok((TABLE, Arc::new(Schema::empty()))),
    }
}

fn type_name(kind: TableType) -> &'static str {
    match kind {
        TableType::View => VIEW,
        TableType::Base | TableType::Temporary => TABLE,
    }
}

/// Filters in our own words: clients also say `BASE TABLE` (SQL's word) and lower case.
fn known_types(asked: &[String]) -> Vec<String> {
    let known = |kind: &String| match kind.to_uppercase().as_str() {
        "BASE TABLE" => TABLE.to_owned(),
        other => other.to_owned(),
    };
    asked.iter().map(known).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_type_filters_of_real_clients_are_understood() {
        let asked = ["BASE TABLE", "table", "VIEW", "SYSTEM TABLE"].map(str::to_owned);
        assert_eq!(known_types(&asked), ["TABLE", "TABLE", "VIEW", "SYSTEM TABLE"]);
    }
}
