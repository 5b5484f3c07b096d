//! What Snowflake holds: the mirror's own two tables beside the data, and the columns of what is there.
//!
//! `_MIRROR_STATE` has one row: whose mirror this is, the publication that it holds, and the attempt that put it there. Who
//! applies a publication first moves that row from the attempt that it has read to its own, as a compare-and-set: of two
//! mirrors one finds the row moved and gives up. `_MIRROR_TABLES` says for each table which version of it that is.

use std::collections::BTreeMap;

use crate::client::{ALREADY_THERE, NOT_THERE, Session};
use crate::types::{literal, quoted, upper};
use crate::{Error, ErrorKind, Options, Result};

/// The table with the one row.
pub(crate) const STATE: &str = "\"_MIRROR_STATE\"";
/// The table with a row for each table.
pub(crate) const TABLES: &str = "\"_MIRROR_TABLES\"";
/// So begin the names of tables that rows are loaded into before they are applied.
pub(crate) const STAGING: &str = "_LAKEBEAT_STAGING_";

/// What the mirror holds.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// The newest publication whose rows are here; 0 before the first.
    pub(crate) publication: u64,
    /// The attempt that applied it.
    pub(crate) attempt: String,
    /// Its tables by their names on this side.
    pub(crate) tables: BTreeMap<String, Held>,
}

/// What is held of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    /// The table's id in the lake; empty if the table is no longer published, and still has to be dropped here.
    pub(crate) table_id: String,
    /// Its version in the lake.
    pub(crate) version: u64,
}

/// A column that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) data_type: String,
    pub(crate) precision: u64,
    pub(crate) scale: u64,
}

/// The columns of each table that is there.
pub(crate) type Existing = BTreeMap<String, Vec<Found>>;

/// Goes into the mirror's schema. It is made only if it is missing: a role that may not make any can still use one.
pub(crate) async fn enter(session: &mut Session, options: &Options) -> Result<()> {
    let database = quoted(&upper(&options.database));
    let schema = format!("{database}.{}", quoted(&upper(&options.schema)));
    let enter = format!("USE SCHEMA {schema}");
    let doing = format!("use the schema {}", options.target());
    if session.run_unless(&NOT_THERE, &doing, &enter).await?.is_some() {
        return Ok(());
    }
    let making = format!("make the schema {}", options.target());
    let make = format!("CREATE SCHEMA IF NOT EXISTS {schema}");
    // The schema first: a role that may make one in a database that is there need not be one that may make databases.
    if session.run_unless(&NOT_THERE, &making, &make).await?.is_none() {
        session.run(&making, &format!("CREATE DATABASE IF NOT EXISTS {database}")).await?;
        session.run(&making, &make).await?;
    }
    session.run(&doing, &enter).await?;
    Ok(())
}

/// Reads the state; makes it if it is missing.
///
/// # Errors
/// `BadConfig` if this is the mirror of another lake.
pub(crate) async fn read(session: &mut Session, lake_id: &str, target: &str) -> Result<State> {
    let select = format!("SELECT LAKE, PUBLICATION, ATTEMPT FROM {STATE}");
    let doing = format!("read what {target} holds");
    let rows = match session.run_unless(&NOT_THERE, &doing, &select).await? {
        Some(rows) => rows,
        None => {
            make(session, lake_id, target).await?;
            session.run(&doing, &select).await?
        }
    };
    let mut state = State::default();
    let row = rows.iter().next().ok_or_else(|| {
        let message = format!("_MIRROR_STATE in {target} has lost its row: drop that table to load everything anew");
        Error::new(ErrorKind::BadConfig, message)
    })?;
    let owner = row.text("LAKE");
    if owner != lake_id {
        let message = format!(
            "{target} is the mirror of another lake ({owner}; this one is {lake_id}): name another schema with \
             LAKEBEAT_SNOWFLAKE_SCHEMA, or drop its table _MIRROR_STATE to hand it over"
        );
        return Err(Error::new(ErrorKind::BadConfig, message));
    }
    state.publication = row.number("PUBLICATION");
    state.attempt = row.text("ATTEMPT");
    let select = format!("SELECT TABLE_NAME, TABLE_ID, DELTA_VERSION FROM {TABLES}");
    for row in session.run(&doing, &select).await?.iter() {
        // Where nobody has applied anything since the state was made, what is written of versions is not to be trusted.
        let table_id = if state.attempt.is_empty() { String::new() } else { row.text("TABLE_ID") };
        let held = Held { table_id, version: row.number("DELTA_VERSION") };
        state.tables.insert(row.text("TABLE_NAME"), held);
    }
    Ok(state)
}

/// The row comes with its table in one statement, so that of two mirrors that both find none one makes it, and the other is
/// told that it is there.
async fn make(session: &mut Session, lake_id: &str, target: &str) -> Result<()> {
    let doing = format!("make the mirror's own tables in {target}");
    let tables = "TABLE_NAME VARCHAR, TABLE_ID VARCHAR, DELTA_VERSION NUMBER(38,0), ROW_COUNT NUMBER(38,0), \
                  PUBLICATION NUMBER(38,0), APPLIED_AT TIMESTAMP_TZ";
    session.run(&doing, &format!("CREATE TABLE IF NOT EXISTS {TABLES} ({tables})")).await?;
    let state = format!(
        "CREATE TABLE {STATE} AS SELECT CAST({} AS VARCHAR) AS LAKE, \
         CAST(0 AS NUMBER(38,0)) AS PUBLICATION, CAST('' AS VARCHAR) AS ATTEMPT, \
         CAST(CURRENT_TIMESTAMP() AS TIMESTAMP_TZ) AS APPLIED_AT",
        literal(lake_id)
    );
    session.run_unless(&ALREADY_THERE, &doing, &state).await?;
    Ok(())
}

/// The columns of the tables of these names, and of staging tables.
pub(crate) async fn existing(session: &mut Session, options: &Options, names: &[String]) -> Result<Existing> {
    let names: Vec<String> = names.iter().map(|name| literal(name)).collect();
    let or_named = if names.is_empty() { String::new() } else { format!(" OR TABLE_NAME IN ({})", names.join(", ")) };
    let sql = format!(
        "SELECT TABLE_NAME, COLUMN_NAME, DATA_TYPE, NUMERIC_PRECISION, NUMERIC_SCALE FROM INFORMATION_SCHEMA.COLUMNS \
         WHERE TABLE_SCHEMA = {} AND (STARTSWITH(TABLE_NAME, {}){or_named}) ORDER BY TABLE_NAME, ORDINAL_POSITION",
        literal(&upper(&options.schema)),
        literal(STAGING)
    );
    let mut existing = Existing::new();
    for row in session.run(&format!("list the tables of {}", options.target()), &sql).await?.iter() {
        let found = Found {
            name: row.text("COLUMN_NAME"),
            data_type: row.text("DATA_TYPE"),
            precision: row.number("NUMERIC_PRECISION"),
            scale: row.number("NUMERIC_SCALE"),
        };
        existing.entry(row.text("TABLE_NAME")).or_default().push(found);
    }
    Ok(existing)
}
