//! A model's query, planned over given tables, and run.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::{CatalogProvider as _, MemoryCatalogProvider, MemorySchemaProvider, TableProvider};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use datafusion::logical_expr::{LogicalPlan, cast};
use datafusion::prelude::{DataFrame, SessionContext, ident};
use lakehouse::{CATALOG, DEFAULT_SCHEMA, Lake, TableName};

use crate::compile::Model;
use crate::error::{Error, Result};
use crate::functions;

/// Tables by the name under which a query finds them.
pub(crate) type Relations = BTreeMap<TableName, Arc<dyn TableProvider>>;

/// A model's query, planned.
pub(crate) struct Query {
    context: SessionContext,
    pub(crate) plan: LogicalPlan,
}

impl Query {
    /// Plans the query of `model` over `relations`, and nothing else: it sees no table that is not among them.
    ///
    /// # Errors
    /// `BadConfig` for a fault in the SQL, with the model's file and line.
    pub(crate) async fn plan(lake: &Lake, model: &Model, relations: &Relations) -> Result<Self> {
        let context = session(lake, relations)?;
        let plan = context.state().create_logical_plan(&model.sql).await.map_err(|error| sql_error(model, &error))?;
        let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        read_only.verify_plan(&plan).map_err(|error| sql_error(model, &error))?;
        Ok(Self { context, plan })
    }

    /// The columns of the result, in types that a Delta table keeps.
    pub(crate) fn columns(&self) -> SchemaRef {
        let fields = self.plan.schema().fields().iter();
        let fields = fields.map(|field| Field::new(field.name(), stored_type(field.data_type()), true));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    /// The rows as a relation of another query, with the columns of `schema`.
    pub(crate) fn relation(self, schema: &SchemaRef, model: &Model) -> Result<Arc<dyn TableProvider>> {
        let frame = DataFrame::new(self.context.state(), self.plan);
        let columns = schema
            .fields()
            .iter()
            .map(|field| cast(ident(field.name()), field.data_type().clone()).alias(field.name()));
        let stored = frame.select(columns.collect::<Vec<_>>()).map_err(|error| run_error(model, error))?;
        Ok(stored.into_view())
    }

    pub(crate) async fn stream(self, model: &Model) -> Result<SendableRecordBatchStream> {
        let frame = DataFrame::new(self.context.state(), self.plan);
        frame.execute_stream().await.map_err(|error| run_error(model, error))
    }
}

/// A session that sees `relations` alone.
pub(crate) fn session(lake: &Lake, relations: &Relations) -> Result<SessionContext> {
    let context = lake.session_factory().context();
    // With the places of the words in the text, an error can say where it is.
    context.state_ref().write().config_mut().options_mut().sql_parser.collect_spans = true;
    functions::register(&context);
    let catalog = MemoryCatalogProvider::new();
    let broken = |error| Error::with_source(crate::ErrorKind::Bug, "cannot set up a session", error);
    catalog.register_schema(DEFAULT_SCHEMA, Arc::new(MemorySchemaProvider::new())).map_err(broken)?;
    for (name, provider) in relations {
        let schema = match catalog.schema(&name.schema) {
            Some(schema) => schema,
            None => {
                let schema = Arc::new(MemorySchemaProvider::new());
                catalog.register_schema(&name.schema, schema.clone()).map_err(broken)?;
                schema
            }
        };
        schema.register_table(name.name.clone(), provider.clone()).map_err(broken)?;
    }
    context.register_catalog(CATALOG, Arc::new(catalog));
    Ok(context)
}

/// Runs a query of the engine's own and collects the result, which has to be small.
pub(crate) async fn collect(context: &SessionContext, sql: &str, model: &Model) -> Result<Vec<RecordBatch>> {
    let frame = context.sql(sql).await.map_err(|error| run_error(model, error))?;
    frame.collect().await.map_err(|error| run_error(model, error))
}

/// Runs a query of the engine's own as a stream.
pub(crate) async fn stream(context: &SessionContext, sql: &str, model: &Model) -> Result<SendableRecordBatchStream> {
    let frame = context.sql(sql).await.map_err(|error| run_error(model, error))?;
    frame.execute_stream().await.map_err(|error| run_error(model, error))
}

/// A name in a query, safe whatever letters are in it.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// An error of a query that was planned well and then failed on the rows, or on the machine.
pub(crate) fn run_error(model: &Model, error: DataFusionError) -> Error {
    Error::query(format!("{}: the query of model {} failed", model.path, model.name), error)
}

fn sql_error(model: &Model, error: &DataFusionError) -> Error {
    let line = error.diagnostic().and_then(|diagnostic| diagnostic.span).map(|span| span.start.line as usize);
    let message = error.strip_backtrace();
    let line = line.or_else(|| line_in(&message));
    let remedy = if message.contains("not found") && message.contains("table") {
        " (a model sees only what it names by ref or source)"
    } else if message.contains("not supported:") {
        " (a model is one select)"
    } else {
        ""
    };
    model.error_at(line, format!("{message}{remedy}"))
}

/// The parser says where it stopped in words: "… at Line: 3, Column: 7".
fn line_in(message: &str) -> Option<usize> {
    let (_, after) = message.split_once("Line: ")?;
    after.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

/// The engine knows widths, units and encodings that a Delta table does not.
fn stored_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
        DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::Float16 => DataType::Float32,
        DataType::Date64 => DataType::Date32,
        DataType::Timestamp(_, _) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        DataType::Dictionary(_, values) => stored_type(values),
        DataType::List(element)
        | DataType::LargeList(element)
        | DataType::FixedSizeList(element, _)
        | DataType::ListView(element)
        | DataType::LargeListView(element) => DataType::List(Arc::new(stored_field("element", element))),
        DataType::Struct(fields) => {
            DataType::Struct(fields.iter().map(|field| stored_field(field.name(), field)).collect())
        }
        other => other.clone(),
    }
}

/// What a list or a struct holds, called what Delta calls it: the name is a part of the type.
fn stored_field(name: &str, field: &Field) -> Field {
    Field::new(name, stored_type(field.data_type()), true)
}
