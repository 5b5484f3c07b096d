//! The one error of this crate, with a kind for what went wrong as a client sees it. Each door translates the kind into
//! its own language: a SQLSTATE for PostgreSQL, a gRPC code for Flight SQL, an HTTP status for the console.

use std::fmt;

use datafusion::arrow::error::ArrowError;
use datafusion::common::{DataFusionError, SchemaError};

/// What a statement, or the server itself, failed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The settings of the server do not hold together (exit status 2).
    BadConfig,
    /// The store or a listener cannot be reached or used now (exit status 3).
    Unavailable,
    /// The text is not SQL that we can parse.
    Syntax,
    /// A table or schema that is not there.
    UndefinedTable,
    /// A column that is not there.
    UndefinedColumn,
    /// A column name that two tables have.
    AmbiguousColumn,
    /// A function that is not there, or not with these argument types.
    UndefinedFunction,
    /// A prepared statement, portal, ticket or publication that is not there.
    UndefinedObject,
    /// Types that do not go together.
    TypeMismatch,
    /// The statement is SQL, but it does not hold together for another reason.
    InvalidStatement,
    /// The statement would change something: every door is read-only.
    ReadOnly,
    /// The statement reaches for something that SQL may not touch here.
    Forbidden,
    /// SQL that we know of and do not do.
    Unsupported,
    /// A setting that is unknown or does not take this value.
    InvalidSetting,
    /// The number or the types of the parameters do not fit the statement.
    InvalidParameter,
    /// A value that cannot be read as the type that it should have.
    InvalidValue,
    /// A value outside the range of its type.
    OutOfRange,
    /// Division by zero.
    DivisionByZero,
    /// Somebody cancelled the statement.
    Cancelled,
    /// The statement ran longer than it may.
    TimedOut,
    /// The statement needs more memory or disk than it may use.
    OutOfResources,
    /// Too many connections or statements at once.
    TooMany,
    /// The transaction has failed; only its end is accepted.
    FailedTransaction,
    /// Something that only goes in a transaction, outside of one.
    NoTransaction,
    /// Something that only goes outside of a transaction, in one.
    ActiveTransaction,
    /// A savepoint that is not there.
    UndefinedSavepoint,
    /// A prepared statement that is not there.
    UndefinedStatement,
    /// A prepared statement whose name is taken.
    DuplicateStatement,
    /// A cursor or portal that is not there.
    UndefinedPortal,
    /// A database that is not there.
    UndefinedDatabase,
    /// The client does not keep to the protocol.
    Protocol,
    /// The server is stopping.
    ShuttingDown,
    /// A fault of ours.
    Bug,
}

impl Kind {
    /// The SQLSTATE of this kind (PostgreSQL 16, appendix A).
    pub fn sqlstate(self) -> &'static str {
        match self {
            Self::BadConfig => "F0000",
            Self::Unavailable => "58030",
            Self::Syntax => "42601",
            Self::UndefinedTable => "42P01",
            Self::UndefinedColumn => "42703",
            Self::AmbiguousColumn => "42702",
            Self::UndefinedFunction => "42883",
            Self::UndefinedObject => "42704",
            Self::TypeMismatch => "42804",
            Self::InvalidStatement => "42000",
            Self::ReadOnly => "25006",
            Self::Forbidden => "42501",
            Self::Unsupported => "0A000",
            Self::InvalidSetting => "22023",
            Self::InvalidParameter | Self::Protocol => "08P01",
            Self::NoTransaction => "25P01",
            Self::ActiveTransaction => "25001",
            Self::UndefinedSavepoint => "3B001",
            Self::UndefinedStatement => "26000",
            Self::DuplicateStatement => "42P05",
            Self::UndefinedPortal => "34000",
            Self::UndefinedDatabase => "3D000",
            Self::ShuttingDown => "57P01",
            Self::InvalidValue => "22P02",
            Self::OutOfRange => "22003",
            Self::DivisionByZero => "22012",
            Self::Cancelled | Self::TimedOut => "57014",
            Self::OutOfResources => "53200",
            Self::TooMany => "53300",
            Self::FailedTransaction => "25P02",
            Self::Bug => "XX000",
        }
    }

    /// The gRPC code of this kind.
    pub fn grpc_code(self) -> tonic::Code {
        use tonic::Code;
        match self {
            Self::Unavailable | Self::ShuttingDown => Code::Unavailable,
            Self::UndefinedTable
            | Self::UndefinedObject
            | Self::UndefinedStatement
            | Self::UndefinedPortal
            | Self::UndefinedSavepoint
            | Self::UndefinedDatabase => Code::NotFound,
            Self::DuplicateStatement => Code::AlreadyExists,
            Self::ReadOnly | Self::Forbidden => Code::PermissionDenied,
            Self::Unsupported => Code::Unimplemented,
            Self::OutOfRange => Code::OutOfRange,
            Self::Cancelled => Code::Cancelled,
            Self::TimedOut => Code::DeadlineExceeded,
            Self::OutOfResources | Self::TooMany => Code::ResourceExhausted,
            Self::FailedTransaction | Self::NoTransaction | Self::ActiveTransaction | Self::BadConfig => {
                Code::FailedPrecondition
            }
            Self::Bug => Code::Internal,
            Self::Syntax
            | Self::UndefinedColumn
            | Self::AmbiguousColumn
            | Self::UndefinedFunction
            | Self::TypeMismatch
            | Self::InvalidStatement
            | Self::InvalidSetting
            | Self::InvalidParameter
            | Self::Protocol
            | Self::InvalidValue
            | Self::DivisionByZero => Code::InvalidArgument,
        }
    }
}

/// An error with its kind, a message for people (lowercase, naming the thing and the remedy) and what lies beneath.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of nearly everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of ours, with nothing beneath.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// An error with what caused it.
    pub fn with_source(
        kind: Kind,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, message: message.into(), source: Some(source.into()) }
    }

    /// What a caller decides by.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The message alone, without what lies beneath: what a client is shown.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}

impl From<lakehouse::Error> for Error {
    fn from(error: lakehouse::Error) -> Self {
        use lakehouse::ErrorKind;
        let kind = match error.kind() {
            ErrorKind::Unavailable | ErrorKind::Conflict => Kind::Unavailable,
            ErrorKind::BadConfig | ErrorKind::NewerLake => Kind::BadConfig,
            ErrorKind::NotFound => Kind::UndefinedTable,
            ErrorKind::StorageFull => Kind::OutOfResources,
            _ => Kind::Bug,
        };
        Self::with_source(kind, error.to_string(), error)
    }
}

impl From<ArrowError> for Error {
    fn from(error: ArrowError) -> Self {
        let (kind, message) = arrow_kind(&error);
        Self::with_source(kind, message, error)
    }
}

impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        // An error of ours that went through the engine comes out as it went in.
        if let DataFusionError::External(inner) = error {
            return match inner.downcast::<Error>() {
                Ok(ours) => *ours,
                Err(inner) => match inner.downcast::<lakehouse::Error>() {
                    Ok(lake) => Self::from(*lake),
                    Err(inner) => Self::with_source(Kind::Bug, inner.to_string(), inner),
                },
            };
        }
        let (kind, message) = classify(&error);
        Self::with_source(kind, message, error)
    }
}

/// Kind and message of an error of the query engine. It tells most things apart by type; where it says everything with
/// one kind of plan error, the text decides.
fn classify(error: &DataFusionError) -> (Kind, String) {
    match error {
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => classify(inner),
        DataFusionError::Shared(inner) => classify(inner),
        DataFusionError::Collection(errors) => errors
            .first()
            .map(classify)
            .unwrap_or_else(|| (Kind::Bug, "the query engine failed without a reason".to_owned())),
        DataFusionError::External(inner) => {
            if let Some(ours) = inner.downcast_ref::<Error>() {
                return (ours.kind, ours.message.clone());
            }
            if let Some(inner) = inner.downcast_ref::<DataFusionError>() {
                return classify(inner);
            }
            if let Some(lake) = inner.downcast_ref::<lakehouse::Error>() {
                return match lake.kind() {
                    lakehouse::ErrorKind::Unavailable => (Kind::Unavailable, lake.to_string()),
                    _ => (Kind::Bug, lake.to_string()),
                };
            }
            (Kind::Bug, inner.to_string())
        }
        DataFusionError::SQL(parser, _) => (Kind::Syntax, syntax_message(&parser.to_string())),
        DataFusionError::SchemaError(schema, _) => schema_kind(schema),
        DataFusionError::NotImplemented(message) => (Kind::Unsupported, lowercase_first(message)),
        DataFusionError::ResourcesExhausted(message) => {
            (Kind::OutOfResources, format!("the query needs more memory than it may use: {}", lowercase_first(message)))
        }
        DataFusionError::ObjectStore(store) => (Kind::Unavailable, format!("the lake cannot be read: {store}")),
        DataFusionError::IoError(io) => (Kind::Unavailable, format!("the lake cannot be read: {io}")),
        DataFusionError::ParquetError(parquet) => (Kind::Unavailable, format!("a data file cannot be read: {parquet}")),
        DataFusionError::ArrowError(arrow, _) => arrow_kind(arrow),
        DataFusionError::Plan(message) | DataFusionError::Configuration(message) => plan_kind(message),
        DataFusionError::Execution(message) => execution_kind(message),
        DataFusionError::Internal(message) => (Kind::Bug, first_line(message)),
        other => (Kind::Bug, first_line(&other.strip_backtrace())),
    }
}

fn schema_kind(error: &SchemaError) -> (Kind, String) {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let mut names: Vec<&str> = valid_fields.iter().map(|column| column.name.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            let mut message = format!("column \"{}\" does not exist", column_name(field));
            if !names.is_empty() {
                let more = if names.len() > 12 { ", …" } else { "" };
                names.truncate(12);
                message.push_str(&format!("; there are {}{more}", names.join(", ")));
            }
            (Kind::UndefinedColumn, message)
        }
        SchemaError::AmbiguousReference { field } => (
            Kind::AmbiguousColumn,
            format!("column reference \"{}\" is ambiguous; say which table it is of", field.name),
        ),
        other => (Kind::InvalidStatement, lowercase_first(&other.to_string())),
    }
}

fn column_name(column: &datafusion::common::Column) -> String {
    match &column.relation {
        Some(relation) => format!("{}.{}", relation.table(), column.name),
        None => column.name.clone(),
    }
}

fn plan_kind(message: &str) -> (Kind, String) {
    let text = first_line(message);
    let lower = text.to_lowercase();
    if let Some(name) = text.strip_prefix("table '").and_then(|rest| rest.strip_suffix("' not found")) {
        return (Kind::UndefinedTable, undefined_relation(name));
    }
    if lower.contains("failed to resolve schema") || lower.contains("failed to resolve catalog") {
        return (Kind::UndefinedTable, text);
    }
    if lower.contains("invalid function") || lower.contains("no function matches") || lower.contains("table function") {
        return (Kind::UndefinedFunction, text);
    }
    if lower.contains("coerc") || lower.contains("cannot infer common") || lower.contains("failed to unify") {
        return (Kind::TypeMismatch, text);
    }
    if lower.contains("placeholder") || lower.contains("parameter") {
        return (Kind::InvalidParameter, text);
    }
    (Kind::InvalidStatement, text)
}

/// What is said of a table that is not there, from the engine's full name of it.
pub(crate) fn undefined_relation(name: &str) -> String {
    let shown = crate::query::shown_name(name);
    format!("relation \"{shown}\" does not exist; `show tables` lists what there is")
}

fn execution_kind(message: &str) -> (Kind, String) {
    let text = first_line(message);
    let lower = text.to_lowercase();
    if lower.contains("error parsing") || lower.contains("cannot cast") || lower.contains("invalid") {
        return (Kind::InvalidValue, text);
    }
    if lower.contains("overflow") || lower.contains("out of range") {
        return (Kind::OutOfRange, text);
    }
    (Kind::InvalidStatement, text)
}

fn arrow_kind(error: &ArrowError) -> (Kind, String) {
    match error {
        ArrowError::DivideByZero => (Kind::DivisionByZero, "division by zero".to_owned()),
        ArrowError::ArithmeticOverflow(message) => (Kind::OutOfRange, lowercase_first(message)),
        ArrowError::CastError(message)
        | ArrowError::ParseError(message)
        | ArrowError::InvalidArgumentError(message) => {
            let lower = message.to_lowercase();
            let kind = if lower.contains("overflow") || lower.contains("out of range") || lower.contains("can't cast") {
                Kind::OutOfRange
            } else {
                Kind::InvalidValue
            };
            (kind, lowercase_first(message))
        }
        ArrowError::ComputeError(message) => execution_kind(message),
        ArrowError::ExternalError(inner) => match inner.downcast_ref::<DataFusionError>() {
            Some(inner) => classify(inner),
            None => (Kind::Bug, inner.to_string()),
        },
        ArrowError::NotYetImplemented(message) => (Kind::Unsupported, lowercase_first(message)),
        other => (Kind::Bug, other.to_string()),
    }
}

fn syntax_message(message: &str) -> String {
    let message = message.strip_prefix("sql parser error: ").unwrap_or(message);
    format!("syntax error: {}", lowercase_first(message))
}

/// The engine's own messages may carry a backtrace or a list of candidates behind the first line.
fn first_line(message: &str) -> String {
    lowercase_first(message.lines().next().unwrap_or(message))
}

fn lowercase_first(message: &str) -> String {
    let mut letters = message.chars();
    match (letters.next(), letters.clone().next()) {
        // "SQL …" and other words in capitals stay as they are.
        (Some(first), Some(second)) if first.is_uppercase() && !second.is_uppercase() => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_errors_get_the_sqlstate_of_their_cause() {
        let cases = [
            (DataFusionError::Plan("table 'lake.gold.nope' not found".to_owned()), "42P01"),
            (DataFusionError::NotImplemented("Unsupported logical plan".to_owned()), "0A000"),
            (DataFusionError::ResourcesExhausted("pool".to_owned()), "53200"),
            (DataFusionError::ArrowError(Box::new(ArrowError::DivideByZero), None), "22012"),
            (DataFusionError::External(Box::new(Error::new(Kind::Cancelled, "cancelled"))), "57014"),
            (DataFusionError::Plan("Invalid function 'foo'.\nDid you mean 'floor'?".to_owned()), "42883"),
        ];
        for (error, state) in cases {
            let text = error.to_string();
            assert_eq!(Error::from(error).kind().sqlstate(), state, "{text}");
        }
    }

    #[test]
    fn an_undefined_table_is_named_as_the_user_knows_it() {
        let error = Error::from(DataFusionError::Plan("table 'lake.gold.nope' not found".to_owned()));
        assert_eq!(error.message(), "relation \"gold.nope\" does not exist; `show tables` lists what there is");
    }
}
