//! The functions of PostgreSQL that tell a client about its own session and server. They are constants of a connection,
//! so each connection has its own set.

use std::sync::Arc;

use datafusion::arrow::array::{Array, Int64Array, ListArray, StringArray};
use datafusion::arrow::buffer::OffsetBuffer;
use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::common::{DataFusionError, ScalarValue};
use datafusion::execution::{FunctionRegistry, SessionState};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use super::catalogue;
use super::schemas::CATALOG;
use super::settings::{SERVER_VERSION, Settings};
use crate::error::{Error, Kind, Result};

/// The owner of every table, to clients that ask.
const OWNER: &str = "lakebeat";

/// What `version()` says: tools look for the PostgreSQL number in it, people for the product.
fn version() -> String {
    format!(
        "PostgreSQL {SERVER_VERSION} (Lakebeat {}) on {}, 64-bit",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH
    )
}

/// Registers the functions of one connection.
pub(super) fn register(state: &mut SessionState, settings: &Settings) -> Result<()> {
    let settings = Arc::new(settings.clone());
    // Some functions (`now`, `to_timestamp`) keep the time zone that held when they were made.
    let options = Arc::clone(state.config_options());
    let with_zone: Vec<ScalarUDF> = state
        .scalar_functions()
        .values()
        .filter_map(|function| function.inner().with_updated_config(&options))
        .collect();
    let own = all(&settings).into_iter().map(ScalarUDF::from);
    for function in with_zone.into_iter().chain(own) {
        state.register_udf(Arc::new(function))?;
    }
    Ok(())
}

fn all(settings: &Arc<Settings>) -> Vec<SessionFunction> {
    let user = text(&settings.user);
    let schema = settings.search_path.first().map_or(ScalarValue::Utf8(None), |schema| text(schema));
    let nullary = [
        ("version", text(&version())),
        ("current_database", text(CATALOG)),
        ("current_catalog", text(CATALOG)),
        ("current_schema", schema),
        ("current_user", user.clone()),
        ("current_role", user.clone()),
        ("session_user", user.clone()),
        ("user", user),
        ("pg_client_encoding", text("UTF8")),
        ("pg_is_in_recovery", ScalarValue::Boolean(Some(false))),
        ("pg_my_temp_schema", ScalarValue::Int32(Some(0))),
        ("pg_backend_pid", ScalarValue::Int32(Some(0))),
        ("pg_advisory_unlock_all", ScalarValue::Utf8(None)),
    ];
    let anything = [
        ("pg_table_is_visible", ScalarValue::Boolean(Some(true))),
        ("pg_type_is_visible", ScalarValue::Boolean(Some(true))),
        ("pg_function_is_visible", ScalarValue::Boolean(Some(true))),
        ("has_table_privilege", ScalarValue::Boolean(Some(true))),
        ("has_schema_privilege", ScalarValue::Boolean(Some(true))),
        ("has_database_privilege", ScalarValue::Boolean(Some(true))),
        ("has_column_privilege", ScalarValue::Boolean(Some(true))),
        ("has_any_column_privilege", ScalarValue::Boolean(Some(true))),
        ("pg_relation_is_publishable", ScalarValue::Boolean(Some(false))),
        ("pg_get_userbyid", text(OWNER)),
        ("pg_encoding_to_char", text("UTF8")),
        ("obj_description", ScalarValue::Utf8(None)),
        ("col_description", ScalarValue::Utf8(None)),
        ("shobj_description", ScalarValue::Utf8(None)),
        ("pg_get_expr", ScalarValue::Utf8(None)),
        ("pg_get_indexdef", ScalarValue::Utf8(None)),
        ("pg_get_constraintdef", ScalarValue::Utf8(None)),
        ("pg_get_viewdef", ScalarValue::Utf8(None)),
        ("pg_get_partkeydef", ScalarValue::Utf8(None)),
        ("pg_get_serial_sequence", ScalarValue::Utf8(None)),
    ];
    let mut functions: Vec<SessionFunction> = nullary
        .into_iter()
        .map(|(name, value)| SessionFunction::new(name, Arity::None, Body::Constant(value)))
        .chain(anything.into_iter().map(|(name, value)| SessionFunction::new(name, Arity::Any, Body::Constant(value))))
        .collect();
    functions.push(SessionFunction::new("current_setting", Arity::Any, Body::Setting(Arc::clone(settings))));
    functions.push(SessionFunction::new("current_schemas", Arity::Any, Body::Schemas(Arc::clone(settings))));
    functions.push(SessionFunction::new("format_type", Arity::Any, Body::FormatType));
    functions.push(SessionFunction::new("to_regtype", Arity::Any, Body::TypeOid));
    functions
}

fn text(value: &str) -> ScalarValue {
    ScalarValue::Utf8(Some(value.to_owned()))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct SessionFunction {
    name: &'static str,
    signature: Signature,
    body: Body,
}

#[derive(Debug, Clone, Copy)]
enum Arity {
    None,
    Any,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum Body {
    /// The same whatever the arguments are.
    Constant(ScalarValue),
    /// `current_setting(name [, missing_ok])`.
    Setting(Arc<Settings>),
    /// `current_schemas(include_implicit)`.
    Schemas(Arc<Settings>),
    /// `format_type(oid, modifier)`.
    FormatType,
    /// `to_regtype(name)`: the oid; NULL for a type that is not there.
    TypeOid,
}

impl SessionFunction {
    fn new(name: &'static str, arity: Arity, body: Body) -> Self {
        // Stable: within one statement the same, so that it is computed once; not for ever.
        let signature = match arity {
            Arity::None => Signature::nullary(Volatility::Stable),
            Arity::Any => Signature::variadic_any(Volatility::Stable),
        };
        Self { name, signature, body }
    }
}

impl ScalarUDFImpl for SessionFunction {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> std::result::Result<DataType, DataFusionError> {
        Ok(match &self.body {
            Body::Constant(value) => value.data_type(),
            Body::Setting(_) | Body::FormatType => DataType::Utf8,
            Body::TypeOid => DataType::Int64,
            Body::Schemas(_) => DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true))),
        })
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> std::result::Result<ColumnarValue, DataFusionError> {
        match &self.body {
            Body::Constant(value) => Ok(ColumnarValue::Scalar(value.clone())),
            Body::Setting(settings) => {
                Ok(ColumnarValue::Scalar(ScalarValue::Utf8(current_setting(settings, &arguments.args)?)))
            }
            Body::Schemas(settings) => Ok(ColumnarValue::Scalar(schemas(settings))),
            Body::FormatType => format_type(&arguments),
            Body::TypeOid => type_oid(&arguments),
        }
    }
}

fn current_setting(
    settings: &Settings,
    arguments: &[ColumnarValue],
) -> std::result::Result<Option<String>, DataFusionError> {
    let name = match arguments.first() {
        Some(ColumnarValue::Scalar(value)) => value.try_as_str().flatten().map(str::to_owned),
        _ => None,
    };
    let Some(name) = name else {
        return Err(DataFusionError::External(Box::new(Error::new(
            Kind::InvalidValue,
            "current_setting takes the name of a setting as a text literal",
        ))));
    };
    match settings.show(&name) {
        Ok(value) => Ok(Some(value)),
        Err(_) if matches!(arguments.get(1), Some(ColumnarValue::Scalar(ScalarValue::Boolean(Some(true))))) => Ok(None),
        Err(error) => Err(DataFusionError::External(Box::new(error))),
    }
}

fn schemas(settings: &Settings) -> ScalarValue {
    let names = StringArray::from_iter_values(settings.search_path.iter());
    let offsets = OffsetBuffer::from_lengths([names.len()]);
    let field = Arc::new(Field::new_list_field(DataType::Utf8, true));
    ScalarValue::List(Arc::new(ListArray::new(field, offsets, Arc::new(names), None)))
}

fn format_type(arguments: &ScalarFunctionArgs) -> std::result::Result<ColumnarValue, DataFusionError> {
    let Some(oids) = arguments.args.first() else {
        return Err(DataFusionError::Plan("invalid function call: format_type takes an oid and a modifier".to_owned()));
    };
    let oids = oids.cast_to(&DataType::Int64, None)?.into_array(arguments.number_rows)?;
    let oids = datafusion::common::cast::as_int64_array(&oids)?;
    let names: StringArray = oids.iter().map(|oid| oid.map(catalogue::type_name)).collect();
    Ok(ColumnarValue::Array(Arc::new(names)))
}

fn type_oid(arguments: &ScalarFunctionArgs) -> std::result::Result<ColumnarValue, DataFusionError> {
    let Some(names) = arguments.args.first() else {
        return Err(DataFusionError::Plan("invalid function call: to_regtype takes the name of a type".to_owned()));
    };
    let names = names.cast_to(&DataType::Utf8, None)?.into_array(arguments.number_rows)?;
    let names = datafusion::common::cast::as_string_array(&names)?;
    let oids: Int64Array = names.iter().map(|name| name.and_then(catalogue::type_oid)).collect();
    Ok(ColumnarValue::Array(Arc::new(oids)))
}
