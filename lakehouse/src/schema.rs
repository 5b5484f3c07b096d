//! Arrow's schema and Delta's, one for the other.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use buoyant_kernel::engine::arrow_conversion::{TryIntoArrow as _, TryIntoKernel as _};
use deltalake_core::kernel::{Metadata, Protocol, StructType, new_metadata};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::log::unsupported;
use crate::name::TableName;

/// What a table is made like.
#[derive(Debug, Clone)]
pub struct TableSpec {
    /// The columns, partition columns included, in the order in which a query shows them.
    pub schema: SchemaRef,
    /// The columns by whose values the files are split.
    pub partition_columns: Vec<String>,
    /// Properties of the Delta table besides ours.
    pub properties: BTreeMap<String, String>,
}

impl TableSpec {
    /// A table of these columns, not partitioned.
    pub fn new(schema: SchemaRef) -> Self {
        Self { schema, partition_columns: Vec::new(), properties: BTreeMap::new() }
    }

    /// The same, split by these columns.
    pub fn partitioned_by<S: Into<String>>(mut self, columns: impl IntoIterator<Item = S>) -> Self {
        self.partition_columns = columns.into_iter().map(Into::into).collect();
        self
    }
}

/// The two actions with which a table begins.
pub(crate) fn creation(name: &TableName, spec: &TableSpec) -> Result<(Metadata, Protocol)> {
    for column in &spec.partition_columns {
        let refused = match spec.schema.field_with_name(column) {
            Err(_) => "which is not one of its columns".to_owned(),
            // The protocol spells no lists and structs, and bytes so that hardly an engine reads them.
            Ok(field) if field.data_type().is_nested() || field.data_type() == &DataType::Binary => {
                format!("which is {}: name a column of another type, or cast it in the query", field.data_type())
            }
            Ok(_) => continue,
        };
        let message = format!("table {name} is partitioned by {column}, {refused}");
        return Err(Error::new(ErrorKind::BadConfig, message));
    }
    for field in spec.schema.fields() {
        check_type(name, field.name(), field.data_type())?;
    }
    let schema: StructType = spec.schema.as_ref().try_into_kernel().map_err(|source| {
        Error::with_source(ErrorKind::BadConfig, format!("the columns of {name} do not fit a Delta table"), source)
    })?;
    let mut properties = spec.properties.clone();
    // Other engines' writers would drop log entries that a kept publication still needs.
    properties.insert("delta.enableExpiredLogCleanup".to_owned(), "false".to_owned());
    // So long a checkpoint remembers files that were taken out. A table that is rewritten each second would name more of them
    // in a day than it has rows; the log itself keeps them all.
    properties.insert("delta.deletedFileRetentionDuration".to_owned(), "interval 1 hours".to_owned());
    let metadata = new_metadata(&schema, spec.partition_columns.clone(), properties)
        .map_err(|source| Error::delta(format!("cannot describe table {name}"), source.into()))?;
    let protocol = serde_json::from_value(serde_json::json!({ "minReaderVersion": 1, "minWriterVersion": 2 }))
        .map_err(|source| Error::with_source(ErrorKind::Bug, "cannot describe the Delta protocol", source))?;
    Ok((metadata, protocol))
}

/// The Arrow schema that a table's metadata describes.
pub(crate) fn arrow_schema(name: &TableName, metadata: &Metadata) -> Result<SchemaRef> {
    let schema = metadata.parse_schema().map_err(|source| damaged(name, source))?;
    let schema: arrow::datatypes::Schema = (&schema).try_into_arrow().map_err(|source| {
        Error::with_source(ErrorKind::BadData, format!("the schema of {name} has a type that Arrow has not"), source)
    })?;
    // Field metadata (comments, column mapping) would make equal schemas differ between calls.
    let fields: Vec<_> =
        schema.fields().iter().map(|field| field.as_ref().clone().with_metadata(Default::default())).collect();
    Ok(Arc::new(arrow::datatypes::Schema::new(fields)))
}

/// Refuses what the protocol asks of a reader and this one cannot give.
pub(crate) fn check_readable(name: &TableName, protocol: &Protocol, metadata: &Metadata) -> Result<()> {
    const READ: [&str; 3] = ["timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"];
    let protocol = serde_json::to_value(protocol)
        .map_err(|source| Error::with_source(ErrorKind::Bug, "cannot read the Delta protocol", source))?;
    let features = protocol["readerFeatures"].as_array().cloned().unwrap_or_default();
    for feature in features.iter().filter_map(|feature| feature.as_str()) {
        if !READ.contains(&feature) {
            return Err(unsupported(name, &format!("the Delta feature {feature}")));
        }
    }
    if protocol["minReaderVersion"].as_i64().unwrap_or(1) > 3 {
        return Err(unsupported(name, "a newer Delta protocol"));
    }
    let mapping = metadata.configuration().get("delta.columnMapping.mode");
    if mapping.is_some_and(|mode| mode != "none") {
        return Err(unsupported(name, "column mapping"));
    }
    Ok(())
}

/// Refuses to go on with a table whose columns are not those that its writer is about to write.
pub(crate) fn check_same(name: &TableName, existing: &SchemaRef, wanted: &TableSpec) -> Result<()> {
    for field in wanted.schema.fields() {
        let found = existing.field_with_name(field.name()).map_err(|_| {
            let message = format!(
                "table {name} has no column {}: name another table in the settings, or add the column",
                field.name()
            );
            Error::new(ErrorKind::BadConfig, message)
        })?;
        if found.data_type() != field.data_type() {
            return Err(type_differs(name, field.name(), found.data_type(), field.data_type()));
        }
    }
    for field in existing.fields() {
        if !field.is_nullable() && wanted.schema.field_with_name(field.name()).is_err() {
            let message = format!("table {name} needs a value for column {}, which is not written", field.name());
            return Err(Error::new(ErrorKind::BadConfig, message));
        }
    }
    Ok(())
}

/// The error for a column that is there with another type than its writer is about to write.
pub(crate) fn type_differs(name: &TableName, column: &str, found: &DataType, wanted: &DataType) -> Error {
    let message = format!(
        "column {column} of {name} is {found} in the lake and {wanted} in the settings: change the settings, or name \
         another table"
    );
    Error::new(ErrorKind::BadConfig, message)
}

/// The error for metadata whose columns cannot be read.
pub(crate) fn damaged(name: &TableName, source: buoyant_kernel::Error) -> Error {
    Error::kernel(format!("the schema of {name} in its log is damaged"), source)
}

/// Delta knows one width and one unit where Arrow knows many; a table that silently came back with other types than it was
/// made with would not compare equal, so only the types that survive the way there and back are taken.
pub(crate) fn check_type(name: &TableName, column: &str, data_type: &DataType) -> Result<()> {
    let survives = match data_type {
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Float32
        | DataType::Float64
        | DataType::Utf8
        | DataType::Binary
        | DataType::Date32
        | DataType::Decimal128(_, _) => true,
        DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) => zone.as_ref() == "UTC",
        DataType::List(_) | DataType::Struct(_) => true,
        _ => false,
    };
    if survives {
        return Ok(());
    }
    let message =
        format!("column {column} of {name} is {data_type}, which a Delta table cannot keep: cast it in the query");
    Err(Error::new(ErrorKind::BadConfig, message))
}
