//! From text to plan, and from plan to rows.

use std::ops::Deref as _;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execute_stream;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::Statement as Ast;
use lakehouse::Opaque;
use tokio_util::sync::CancellationToken;

use super::past::PastPlanner;
use super::schemas::{CATALOG, search_schema};
use super::stream::{Deadline, ResultStream, cancelled_error};
use super::{
    Connection, Prepared, Settings, Snapshot, allow, check_length, functions, normalise_schema, parameters, rewrite,
    schemas, time_travel,
};
use crate::error::Result;

/// A session for statements on one snapshot under these settings.
pub(super) fn session(snapshot: &Snapshot, settings: &Settings) -> Result<SessionState> {
    let mut state = snapshot.context().state();
    let options = state.config_mut().options_mut();
    options.catalog.default_catalog = CATALOG.to_owned();
    options.catalog.default_schema = search_schema(&settings.search_path);
    options.execution.time_zone = Some(settings.time_zone.clone());
    functions::register(&mut state, settings)?;
    state.register_relation_planner(Arc::new(PastPlanner))?;
    Ok(state)
}

/// Plans one statement on one snapshot.
pub(super) async fn prepare(
    connection: &Connection,
    snapshot: Arc<Snapshot>,
    sql: &str,
    declared: &[Option<DataType>],
) -> Result<Prepared> {
    check_length(sql, connection.engine.limits())?;
    let mut statement = allow::parse(sql)?;
    rewrite::rewrite(&mut statement)?;
    let (session, settings) = connection.session(&snapshot)?;
    time_travel::place(&mut statement, &settings)?;
    let (snapshot, session) = if reads_heads(&session, &statement)? {
        let snapshot = connection.engine.shared.snapshots.with_heads(&snapshot).await?;
        let session = Opaque::new(self::session(&snapshot, &settings)?);
        (snapshot, session)
    } else {
        (snapshot, session)
    };
    let plan = session.statement_to_plan(statement).await?;
    allow::check_plan(&plan)?;
    let parameters = parameters::find(&plan, declared)?;
    let schema = schema_of(&session, parameters::bind_nulls(&plan, &parameters)?)?;
    Ok(Prepared {
        sql: sql.into(),
        plan: Opaque::new(plan),
        session,
        settings,
        snapshot,
        schema,
        parameters: parameters.into(),
    })
}

/// Whether a statement reads anything but what the publication names.
fn reads_heads(session: &SessionState, statement: &Statement) -> Result<bool> {
    let options = session.config_options();
    let Some(catalog) = session.catalog_list().catalog(CATALOG) else {
        return Ok(true);
    };
    let references = session.resolve_table_references(statement)?;
    Ok(references.into_iter().any(|reference| {
        let resolved = reference.resolve(&options.catalog.default_catalog, &options.catalog.default_schema);
        !schemas::is_pinned(catalog.as_ref(), &resolved.schema, &resolved.table)
    }) || !matches!(statement, Statement::Statement(ast) if matches!(**ast, Ast::Query(_))))
}

/// The schema of the rows as they will be: after the analyser has settled the types.
fn schema_of(session: &SessionState, plan: LogicalPlan) -> Result<SchemaRef> {
    let analysed = match &plan {
        LogicalPlan::Explain(_) => plan,
        _ => session.analyzer().execute_and_check(plan, session.config_options(), |_, _| {})?,
    };
    Ok(normalise_schema(analysed.schema().as_arrow()))
}

/// Starts a prepared statement.
pub(super) async fn execute(
    connection: &Connection,
    prepared: &Prepared,
    values: Vec<ScalarValue>,
) -> Result<ResultStream> {
    let engine = &connection.engine;
    let limits = engine.limits();
    let limit =
        prepared.settings.statement_timeout.map_or(limits.statement_timeout, |own| own.min(limits.statement_timeout));
    let mut deadline = Deadline::after(limit);
    let mut registration = engine.shared.registry.enter(connection.door, &connection.user, Arc::clone(&prepared.sql));
    match start(prepared, values, &mut deadline, registration.token()).await {
        Ok(rows) => {
            Ok(ResultStream::new(Arc::clone(&prepared.schema), rows, registration, deadline, limits.batch_rows_max))
        }
        Err(error) => {
            registration.failed(&error);
            Err(error)
        }
    }
}

async fn start(
    prepared: &Prepared,
    values: Vec<ScalarValue>,
    deadline: &mut Deadline,
    token: &CancellationToken,
) -> Result<SendableRecordBatchStream> {
    let plan = parameters::bind(&prepared.plan, &prepared.parameters, values)?;
    // `now()` is the moment of this execution, not of the preparation.
    let mut session = prepared.session.deref().clone();
    session.mark_start_execution();
    let physical = tokio::select! {
        biased;
        () = token.cancelled() => return Err(cancelled_error()),
        error = deadline.passed() => return Err(error),
        physical = session.create_physical_plan(&plan) => physical?,
    };
    Ok(execute_stream(physical, session.task_ctx())?)
}
