//! `pg_catalog`: what PostgreSQL's tools ask about tables and columns, answered from the lake's own catalog.
//!
//! As much of it as `psql` needs for its lists. Tables that would be empty in a database without indexes, defaults or
//! extensions are there and empty.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, BooleanArray, Int64Array, ListArray, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::{CatalogProvider, MemTable, SchemaProvider, TableProvider};
use datafusion::common::DataFusionError;

use super::normalise::normalise_data_type;
use super::schemas::CATALOG;
use crate::postgres::types::{postgres_type, type_modifier, type_size};

type EngineResult<T> = Result<T, DataFusionError>;

/// The oid of the one owner.
const OWNER: i64 = 10;
/// The oid of the access method of tables.
const HEAP: i64 = 2;
/// The oid of the one database.
const DATABASE: i64 = 16_384;
const PG_CATALOG_OID: i64 = 11;
const INFORMATION_SCHEMA_OID: i64 = 13_000;

/// The schema `pg_catalog` over the schemas of the lake.
pub(super) struct PgCatalog {
    lake: Arc<dyn CatalogProvider>,
}

impl PgCatalog {
    pub(super) fn new(lake: Arc<dyn CatalogProvider>) -> Self {
        Self { lake }
    }
}

impl fmt::Debug for PgCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgCatalog").field("schemas", &self.lake.schema_names()).finish()
    }
}

/// Tables that hold nothing here, with the columns by which tools ask for them.
const EMPTY: [(&str, &[&str]); 10] = [
    ("pg_attrdef", &["adrelid", "adnum", "adbin"]),
    ("pg_collation", &["oid", "collname"]),
    ("pg_constraint", &["oid", "conname", "conrelid", "contype", "confrelid"]),
    ("pg_description", &["objoid", "classoid", "objsubid", "description"]),
    ("pg_enum", &["oid", "enumtypid", "enumsortorder", "enumlabel"]),
    ("pg_extension", &["oid", "extname", "extnamespace", "extversion"]),
    ("pg_index", &["indexrelid", "indrelid", "indisprimary", "indisunique"]),
    ("pg_inherits", &["inhrelid", "inhparent", "inhseqno"]),
    ("pg_range", &["rngtypid", "rngsubtype"]),
    ("pg_views", &["schemaname", "viewname", "viewowner", "definition"]),
];

const FILLED: [&str; 8] =
    ["pg_am", "pg_attribute", "pg_class", "pg_database", "pg_namespace", "pg_roles", "pg_tables", "pg_type"];

#[async_trait]
impl SchemaProvider for PgCatalog {
    fn table_names(&self) -> Vec<String> {
        FILLED.iter().chain(EMPTY.iter().map(|(name, _)| name)).map(|name| (*name).to_owned()).collect()
    }

    async fn table(&self, name: &str) -> EngineResult<Option<Arc<dyn TableProvider>>> {
        let sheet = match name {
            "pg_am" => access_methods(),
            "pg_attribute" => attributes(&self.relations().await?),
            "pg_class" => classes(&self.relations().await?),
            "pg_database" => databases(),
            "pg_namespace" => namespaces(&self.lake),
            "pg_roles" => roles(),
            "pg_tables" => tables(&self.relations().await?),
            "pg_type" => types(),
            other => match EMPTY.iter().find(|(name, _)| *name == other) {
                Some((_, columns)) => empty(columns),
                None => return Ok(None),
            },
        };
        let batch = RecordBatch::try_from_iter(sheet)?;
        Ok(Some(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?)))
    }

    fn table_exist(&self, name: &str) -> bool {
        FILLED.contains(&name) || EMPTY.iter().any(|(empty, _)| *empty == name)
    }
}

/// A table of the lake, as the catalogue lists it.
struct Relation {
    schema: String,
    name: String,
    columns: SchemaRef,
}

impl Relation {
    fn oid(&self) -> i64 {
        oid_of(&format!("{}.{}", self.schema, self.name))
    }
}

impl PgCatalog {
    async fn relations(&self) -> EngineResult<Vec<Relation>> {
        let mut relations = Vec::new();
        for schema_name in self.lake.schema_names() {
            let Some(schema) = self.lake.schema(&schema_name) else { continue };
            for name in schema.table_names() {
                // A table that cannot be read now is listed without columns: the list is no place to fail.
                let columns = match schema.table(&name).await {
                    Ok(Some(table)) => table.schema(),
                    _ => Arc::new(Schema::empty()),
                };
                relations.push(Relation { schema: schema_name.clone(), name, columns });
            }
        }
        Ok(relations)
    }
}

/// A number for a name that is the same in every session and publication (FNV-1a, folded into the range of user oids).
fn oid_of(name: &str) -> i64 {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    20_000 + i64::from(hash % 2_000_000_000)
}

fn namespace_oid(schema: &str) -> i64 {
    match schema {
        "pg_catalog" => PG_CATALOG_OID,
        "information_schema" => INFORMATION_SCHEMA_OID,
        other => oid_of(other),
    }
}

/// The columns of one catalogue table.
type Sheet = Vec<(&'static str, ArrayRef)>;

fn numbers(values: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(values.into_iter().collect::<Int64Array>())
}

fn texts<T: AsRef<str>>(values: impl IntoIterator<Item = T>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn flags(values: impl IntoIterator<Item = bool>) -> ArrayRef {
    Arc::new(values.into_iter().map(Some).collect::<BooleanArray>())
}

fn nulls(rows: usize) -> ArrayRef {
    Arc::new(StringArray::new_null(rows))
}

/// One row without a list of rights.
fn no_list() -> ArrayRef {
    let field = Arc::new(Field::new_list_field(DataType::Utf8, true));
    Arc::new(ListArray::new_null(field, 1))
}

fn empty(columns: &[&'static str]) -> Sheet {
    // Numbers are told by their names: oids and positions.
    let is_text = |name: &str| {
        ["name", "label", "bin", "description", "version", "owner", "definition", "contype"]
            .iter()
            .any(|text| name.contains(text))
    };
    columns.iter().map(|name| (*name, if is_text(name) { texts([""; 0]) } else { numbers([]) })).collect()
}

fn access_methods() -> Sheet {
    vec![("oid", numbers([HEAP])), ("amname", texts(["heap"])), ("amtype", texts(["t"]))]
}

fn roles() -> Sheet {
    let no = || flags([false]);
    vec![
        ("oid", numbers([OWNER])),
        ("rolname", texts(["lakebeat"])),
        ("rolsuper", no()),
        ("rolinherit", flags([true])),
        ("rolcreaterole", no()),
        ("rolcreatedb", no()),
        ("rolcanlogin", flags([true])),
        ("rolreplication", no()),
        ("rolbypassrls", no()),
        ("rolconnlimit", numbers([-1])),
        ("rolvaliduntil", nulls(1)),
    ]
}

fn databases() -> Sheet {
    vec![
        ("oid", numbers([DATABASE])),
        ("datname", texts([CATALOG])),
        ("datdba", numbers([OWNER])),
        ("encoding", numbers([6])),
        ("datlocprovider", texts(["c"])),
        ("datistemplate", flags([false])),
        ("datallowconn", flags([true])),
        ("datconnlimit", numbers([-1])),
        ("dattablespace", numbers([1_663])),
        ("datcollate", texts(["C"])),
        ("datctype", texts(["C.UTF-8"])),
        ("daticulocale", nulls(1)),
        ("datacl", no_list()),
    ]
}

fn namespaces(lake: &Arc<dyn CatalogProvider>) -> Sheet {
    let mut names = lake.schema_names();
    names.retain(|name| name != "information_schema" && name != "pg_catalog");
    names.extend(["information_schema".to_owned(), "pg_catalog".to_owned()]);
    vec![
        ("oid", numbers(names.iter().map(|name| namespace_oid(name)))),
        ("nspname", texts(&names)),
        ("nspowner", numbers(names.iter().map(|_| OWNER))),
        ("nspacl", nulls(names.len())),
    ]
}

fn classes(relations: &[Relation]) -> Sheet {
    let number = |value: i64| numbers(relations.iter().map(|_| value));
    let no = || flags(relations.iter().map(|_| false));
    let text = |value: &'static str| texts(relations.iter().map(|_| value));
    vec![
        ("oid", numbers(relations.iter().map(Relation::oid))),
        ("relname", texts(relations.iter().map(|relation| &relation.name))),
        ("relnamespace", numbers(relations.iter().map(|relation| namespace_oid(&relation.schema)))),
        ("reltype", number(0)),
        ("reloftype", number(0)),
        ("relowner", number(OWNER)),
        ("relam", number(HEAP)),
        ("relfilenode", number(0)),
        ("reltablespace", number(0)),
        ("relpages", number(0)),
        ("reltuples", number(-1)),
        ("reltoastrelid", number(0)),
        ("relhasindex", no()),
        ("relisshared", no()),
        ("relpersistence", text("p")),
        ("relkind", text("r")),
        ("relnatts", numbers(relations.iter().map(|relation| relation.columns.fields().len() as i64))),
        ("relchecks", number(0)),
        ("relhasrules", no()),
        ("relhastriggers", no()),
        ("relhassubclass", no()),
        ("relrowsecurity", no()),
        ("relforcerowsecurity", no()),
        ("relispopulated", flags(relations.iter().map(|_| true))),
        ("relreplident", text("d")),
        ("relispartition", no()),
        ("relacl", nulls(relations.len())),
        ("reloptions", nulls(relations.len())),
    ]
}

fn attributes(relations: &[Relation]) -> Sheet {
    let rows: Vec<_> = relations
        .iter()
        .flat_map(|relation| {
            let oid = relation.oid();
            relation.columns.fields().iter().enumerate().map(move |(index, field)| (oid, index as i64 + 1, field))
        })
        .collect();
    let kind = |field: &Field| postgres_type(&normalise_data_type(field.data_type()));
    let no = || flags(rows.iter().map(|_| false));
    let text = |value: &'static str| texts(rows.iter().map(|_| value));
    vec![
        ("attrelid", numbers(rows.iter().map(|(oid, _, _)| *oid))),
        ("attname", texts(rows.iter().map(|(_, _, field)| field.name()))),
        ("atttypid", numbers(rows.iter().map(|(_, _, field)| i64::from(kind(field).oid())))),
        ("attlen", numbers(rows.iter().map(|(_, _, field)| i64::from(type_size(&kind(field)))))),
        ("attnum", numbers(rows.iter().map(|(_, number, _)| *number))),
        ("atttypmod", numbers(rows.iter().map(|(_, _, field)| i64::from(type_modifier(field.data_type()))))),
        ("attnotnull", flags(rows.iter().map(|(_, _, field)| !field.is_nullable()))),
        ("atthasdef", no()),
        ("attisdropped", no()),
        ("attidentity", text("")),
        ("attgenerated", text("")),
        ("attcollation", numbers(rows.iter().map(|_| 0))),
    ]
}

fn tables(relations: &[Relation]) -> Sheet {
    let no = || flags(relations.iter().map(|_| false));
    vec![
        ("schemaname", texts(relations.iter().map(|relation| &relation.schema))),
        ("tablename", texts(relations.iter().map(|relation| &relation.name))),
        ("tableowner", texts(relations.iter().map(|_| "lakebeat"))),
        ("tablespace", nulls(relations.len())),
        ("hasindexes", no()),
        ("hasrules", no()),
        ("hastriggers", no()),
        ("rowsecurity", no()),
    ]
}

/// oid, name in `pg_type`, name in SQL, length, category, oid of the array.
const TYPES: [(i64, &str, &str, i64, &str, i64); 19] = [
    (16, "bool", "boolean", 1, "B", 1_000),
    (17, "bytea", "bytea", -1, "U", 1_001),
    (18, "char", "\"char\"", 1, "Z", 1_002),
    (19, "name", "name", 64, "S", 1_003),
    (20, "int8", "bigint", 8, "N", 1_016),
    (21, "int2", "smallint", 2, "N", 1_005),
    (23, "int4", "integer", 4, "N", 1_007),
    (25, "text", "text", -1, "S", 1_009),
    (26, "oid", "oid", 4, "N", 1_028),
    (700, "float4", "real", 4, "N", 1_021),
    (701, "float8", "double precision", 8, "N", 1_022),
    (1_042, "bpchar", "character", -1, "S", 1_014),
    (1_043, "varchar", "character varying", -1, "S", 1_015),
    (1_082, "date", "date", 4, "D", 1_182),
    (1_083, "time", "time without time zone", 8, "D", 1_183),
    (1_114, "timestamp", "timestamp without time zone", 8, "D", 1_115),
    (1_184, "timestamptz", "timestamp with time zone", 8, "D", 1_185),
    (1_186, "interval", "interval", 16, "T", 1_187),
    (1_700, "numeric", "numeric", -1, "N", 1_231),
];

fn types() -> Sheet {
    let number = |value: i64| numbers(TYPES.iter().map(|_| value));
    let text = |value: &'static str| texts(TYPES.iter().map(|_| value));
    vec![
        ("oid", numbers(TYPES.iter().map(|kind| kind.0))),
        ("typname", texts(TYPES.iter().map(|kind| kind.1))),
        ("typnamespace", number(PG_CATALOG_OID)),
        ("typowner", number(OWNER)),
        ("typlen", numbers(TYPES.iter().map(|kind| kind.3))),
        ("typtype", text("b")),
        ("typcategory", texts(TYPES.iter().map(|kind| kind.4))),
        ("typisdefined", flags(TYPES.iter().map(|_| true))),
        ("typdelim", text(",")),
        ("typrelid", number(0)),
        ("typelem", number(0)),
        ("typarray", numbers(TYPES.iter().map(|kind| kind.5))),
        ("typnotnull", flags(TYPES.iter().map(|_| false))),
        ("typbasetype", number(0)),
        ("typtypmod", number(-1)),
        ("typndims", number(0)),
        ("typcollation", number(0)),
        ("typdefault", nulls(TYPES.len())),
    ]
}

/// The name of a type by its oid, as `format_type` writes it.
pub(super) fn type_name(oid: i64) -> String {
    if let Some(kind) = TYPES.iter().find(|kind| kind.0 == oid) {
        return kind.2.to_owned();
    }
    match TYPES.iter().find(|kind| kind.5 == oid) {
        Some(element) => format!("{}[]", element.2),
        None => "???".to_owned(),
    }
}

/// The oid of a type by either of its names.
pub(super) fn type_oid(name: &str) -> Option<i64> {
    let name = name.strip_prefix("pg_catalog.").unwrap_or(name);
    TYPES.iter().find(|kind| kind.1 == name || kind.2 == name).map(|kind| kind.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_can_be_made() {
        for (name, columns) in EMPTY {
            assert!(RecordBatch::try_from_iter(empty(columns)).is_ok(), "{name}");
        }
        for sheet in [access_methods(), roles(), databases(), types(), classes(&[]), attributes(&[]), tables(&[])] {
            RecordBatch::try_from_iter(sheet).expect("columns of one length");
        }
        assert_eq!(type_name(1_016), "bigint[]");
    }
}
