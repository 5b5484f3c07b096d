//! What the server says of itself: `CommandGetSqlInfo`.
//!
//! Drivers ask this at connect, some for single ids, some for all at once, and older JDBC drivers keep a null for each
//! id that is missing; so every id of `FlightSql.proto` that has a value here is answered, and nothing beyond them. The
//! union branch (string, bool, bigint, bitmask, list) of each id is fixed by the protocol, because drivers cast by id.

use std::collections::BTreeMap;

use arrow_flight::error::Result;
use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder};
use arrow_flight::sql::{
    SqlInfo, SqlNullOrdering, SqlOuterJoinsSupportLevel, SqlSupportedCaseSensitivity, SqlSupportedGroupBy,
    SqlSupportedResultSetType, SqlSupportedSubqueries, SqlSupportedTransaction, SqlSupportedUnions, SqlSupportsConvert,
    SqlTransactionIsolationLevel, SupportedSqlGrammar,
};
use datafusion::execution::session_state::SessionState;

/// The answer to every `CommandGetSqlInfo`, built once when the door opens.
pub(super) fn build(functions: &Functions, handle_lifetime_ms: i32) -> Result<SqlInfoData> {
    let mut info = SqlInfoDataBuilder::new();
    server(&mut info, handle_lifetime_ms);
    names(&mut info);
    grammar(&mut info);
    words(&mut info, functions);
    limits(&mut info);
    transactions(&mut info);
    results(&mut info);
    info.append(SqlInfo::SqlSupportsConvert, conversions());
    info.build()
}

fn server(info: &mut SqlInfoDataBuilder, handle_lifetime_ms: i32) {
    info.append(SqlInfo::FlightSqlServerName, "Lakebeat");
    info.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    // The version of the columnar format, not of a library.
    info.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    info.append(SqlInfo::FlightSqlServerReadOnly, true);
    info.append(SqlInfo::FlightSqlServerSql, true);
    info.append(SqlInfo::FlightSqlServerSubstrait, false);
    info.append(SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::None as i32);
    info.append(SqlInfo::FlightSqlServerCancel, true);
    info.append(SqlInfo::FlightSqlServerBulkIngestion, false);
    info.append(SqlInfo::FlightSqlServerIngestTransactionsSupported, false);
    info.append(SqlInfo::FlightSqlServerStatementTimeout, handle_lifetime_ms);
    info.append(SqlInfo::FlightSqlServerTransactionTimeout, 0_i32);
    for id in [SqlInfo::SqlDdlCatalog, SqlInfo::SqlDdlSchema, SqlInfo::SqlDdlTable] {
        info.append(id, false);
    }
}

fn names(info: &mut SqlInfoDataBuilder) {
    // Unquoted names are folded to lower case; quoted ones are taken as they are.
    info.append(SqlInfo::SqlIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase as i32);
    info.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    info.append(SqlInfo::SqlQuotedIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityUnknown as i32);
    info.append(SqlInfo::SqlAllTablesAreSelectable, true);
    info.append(SqlInfo::SqlSearchStringEscape, "\\");
    info.append(SqlInfo::SqlExtraNameCharacters, "");
    info.append(SqlInfo::SqlSchemaTerm, "schema");
    info.append(SqlInfo::SqlProcedureTerm, "procedure");
    info.append(SqlInfo::SqlCatalogTerm, "catalog");
    info.append(SqlInfo::SqlCatalogAtStart, true);
    // Names may be qualified in queries, and in nothing else: there are no procedures, indexes or grants.
    info.append(SqlInfo::SqlSchemasSupportedActions, 0_i32);
    info.append(SqlInfo::SqlCatalogsSupportedActions, 0_i32);
}

fn grammar(info: &mut SqlInfoDataBuilder) {
    for (id, supported) in [
        (SqlInfo::SqlSupportsColumnAliasing, true),
        (SqlInfo::SqlNullPlusNullIsNull, true),
        (SqlInfo::SqlSupportsTableCorrelationNames, true),
        (SqlInfo::SqlSupportsDifferentTableCorrelationNames, false),
        (SqlInfo::SqlSupportsExpressionsInOrderBy, true),
        (SqlInfo::SqlSupportsOrderByUnrelated, true),
        (SqlInfo::SqlSupportsLikeEscapeClause, true),
        (SqlInfo::SqlSupportsNonNullableColumns, true),
        (SqlInfo::SqlSupportsIntegrityEnhancementFacility, false),
        (SqlInfo::SqlSelectForUpdateSupported, false),
        (SqlInfo::SqlStoredProceduresSupported, false),
        (SqlInfo::SqlCorrelatedSubqueriesSupported, true),
    ] {
        info.append(id, supported);
    }
    info.append(SqlInfo::SqlNullOrdering, SqlNullOrdering::SqlNullsSortedHigh as i32);
    info.append(SqlInfo::SqlSupportedGroupBy, bits(&[SqlSupportedGroupBy::SqlGroupByUnrelated as i32]));
    info.append(
        SqlInfo::SqlSupportedGrammar,
        bits(&[SupportedSqlGrammar::SqlMinimumGrammar as i32, SupportedSqlGrammar::SqlCoreGrammar as i32]),
    );
    // Entry level of SQL-92 (bit 0).
    info.append(SqlInfo::SqlAnsi92SupportedLevel, bits(&[0]));
    info.append(SqlInfo::SqlOuterJoinsSupportLevel, SqlOuterJoinsSupportLevel::SqlFullOuterJoins as i32);
    info.append(SqlInfo::SqlSupportedPositionedCommands, 0_i32);
    info.append(
        SqlInfo::SqlSupportedSubqueries,
        bits(&[
            SqlSupportedSubqueries::SqlSubqueriesInComparisons as i32,
            SqlSupportedSubqueries::SqlSubqueriesInExists as i32,
            SqlSupportedSubqueries::SqlSubqueriesInIns as i32,
        ]),
    );
    info.append(
        SqlInfo::SqlSupportedUnions,
        bits(&[SqlSupportedUnions::SqlUnion as i32, SqlSupportedUnions::SqlUnionAll as i32]),
    );
}

fn words(info: &mut SqlInfoDataBuilder, functions: &Functions) {
    // Words that this dialect reserves beyond SQL:2003, which is what JDBC's getSQLKeywords asks.
    let keywords: &[&str] = &["ANTI", "EXPLAIN", "ILIKE", "LIMIT", "OFFSET", "QUALIFY", "SEMI", "SHOW"];
    info.append(SqlInfo::SqlKeywords, keywords);
    info.append(SqlInfo::SqlNumericFunctions, functions.numeric.clone());
    info.append(SqlInfo::SqlStringFunctions, functions.string.clone());
    info.append(SqlInfo::SqlSystemFunctions, functions.system.clone());
    info.append(SqlInfo::SqlDatetimeFunctions, functions.datetime.clone());
}

/// Zero is the protocol's word for "no limit, or not known".
fn limits(info: &mut SqlInfoDataBuilder) {
    for id in [
        SqlInfo::SqlMaxBinaryLiteralLength,
        SqlInfo::SqlMaxCharLiteralLength,
        SqlInfo::SqlMaxColumnNameLength,
        SqlInfo::SqlMaxColumnsInGroupBy,
        SqlInfo::SqlMaxColumnsInIndex,
        SqlInfo::SqlMaxColumnsInOrderBy,
        SqlInfo::SqlMaxColumnsInSelect,
        SqlInfo::SqlMaxColumnsInTable,
        SqlInfo::SqlMaxConnections,
        SqlInfo::SqlMaxCursorNameLength,
        SqlInfo::SqlMaxIndexLength,
        SqlInfo::SqlDbSchemaNameLength,
        SqlInfo::SqlMaxProcedureNameLength,
        SqlInfo::SqlMaxCatalogNameLength,
        SqlInfo::SqlMaxRowSize,
        SqlInfo::SqlMaxStatementLength,
        SqlInfo::SqlMaxStatements,
        SqlInfo::SqlMaxTableNameLength,
        SqlInfo::SqlMaxTablesInSelect,
        SqlInfo::SqlMaxUsernameLength,
    ] {
        info.append(id, 0_i64);
    }
    info.append(SqlInfo::SqlMaxRowSizeIncludesBlobs, true);
}

fn transactions(info: &mut SqlInfoDataBuilder) {
    let none = SqlTransactionIsolationLevel::SqlTransactionNone as i32;
    info.append(SqlInfo::SqlDefaultTransactionIsolation, none);
    info.append(SqlInfo::SqlSupportedTransactionsIsolationLevels, bits(&[none]));
    for id in [
        SqlInfo::SqlTransactionsSupported,
        SqlInfo::SqlDataDefinitionCausesTransactionCommit,
        SqlInfo::SqlBatchUpdatesSupported,
        SqlInfo::SqlSavepointsSupported,
        SqlInfo::SqlNamedParametersSupported,
        SqlInfo::SqlLocatorsUpdateCopy,
        SqlInfo::SqlStoredFunctionsUsingCallSyntaxSupported,
    ] {
        info.append(id, false);
    }
    info.append(SqlInfo::SqlDataDefinitionsInTransactionsIgnored, true);
}

fn results(info: &mut SqlInfoDataBuilder) {
    // SQL_RESULT_SET_CONCURRENCY_READ_ONLY is bit 1.
    let read_only = bits(&[1]);
    let forward_only = SqlSupportedResultSetType::SqlResultSetTypeForwardOnly as i32;
    info.append(SqlInfo::SqlSupportedResultSetTypes, bits(&[forward_only]));
    info.append(SqlInfo::SqlSupportedConcurrenciesForResultSetForwardOnly, read_only);
    for id in [
        SqlInfo::SqlSupportedConcurrenciesForResultSetUnspecified,
        SqlInfo::SqlSupportedConcurrenciesForResultSetScrollSensitive,
        SqlInfo::SqlSupportedConcurrenciesForResultSetScrollInsensitive,
    ] {
        info.append(id, 0_i32);
    }
}

/// Which type can be cast to which.
fn conversions() -> BTreeMap<i32, Vec<i32>> {
    use SqlSupportsConvert as Convert;
    let numbers = [
        Convert::SqlConvertBigint as i32,
        Convert::SqlConvertDecimal as i32,
        Convert::SqlConvertFloat as i32,
        Convert::SqlConvertInteger as i32,
        Convert::SqlConvertNumeric as i32,
        Convert::SqlConvertReal as i32,
        Convert::SqlConvertSmallint as i32,
        Convert::SqlConvertTinyint as i32,
    ];
    let (text, bit) = (Convert::SqlConvertVarchar as i32, Convert::SqlConvertBit as i32);
    let (date, timestamp) = (Convert::SqlConvertDate as i32, Convert::SqlConvertTimestamp as i32);
    let with_text = |more: &[i32]| numbers.iter().chain([&text]).chain(more).copied().collect::<Vec<_>>();
    let mut map: BTreeMap<i32, Vec<i32>> = numbers.iter().map(|number| (*number, with_text(&[bit]))).collect();
    map.insert(bit, with_text(&[bit]));
    map.insert(
        text,
        with_text(&[bit, date, timestamp, Convert::SqlConvertTime as i32, Convert::SqlConvertVarbinary as i32]),
    );
    map.insert(date, vec![text, date, timestamp]);
    map.insert(timestamp, vec![text, date, timestamp, Convert::SqlConvertTime as i32]);
    map
}

/// The names of the engine's scalar functions by the groups that JDBC and ODBC know.
#[derive(Debug, Default)]
pub(super) struct Functions {
    numeric: Vec<String>,
    string: Vec<String>,
    datetime: Vec<String>,
    system: Vec<String>,
}

impl Functions {
    /// Reads them from the engine, so that the list is never longer than the truth.
    pub(super) fn of(state: &SessionState) -> Self {
        let mut functions = Self::default();
        for (name, function) in state.scalar_functions() {
            let section = function.documentation().map_or("", |documentation| documentation.doc_section.label);
            let group = match section {
                "Math Functions" => &mut functions.numeric,
                "String Functions" | "Regular Expression Functions" | "Binary String Functions" => {
                    &mut functions.string
                }
                "Time and Date Functions" => &mut functions.datetime,
                _ => &mut functions.system,
            };
            group.push(name.to_uppercase());
        }
        for group in [&mut functions.numeric, &mut functions.string, &mut functions.datetime, &mut functions.system] {
            group.sort_unstable();
        }
        functions
    }
}

fn bits(positions: &[i32]) -> i32 {
    positions.iter().fold(0, |mask, position| mask | (1 << position))
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, UInt32Array};
    use arrow::datatypes::UInt32Type;

    use super::*;

    fn ids(requested: Vec<u32>) -> Vec<u32> {
        let data = build(&Functions::default(), 1000).expect("the constants fit the builder");
        let batch = data.record_batch(requested).expect("filtering a valid batch");
        let names: &UInt32Array = batch.column(0).as_primitive::<UInt32Type>();
        names.values().to_vec()
    }

    #[test]
    fn every_standard_id_is_answered() {
        // 6 and 7 are the Substrait versions, which the protocol leaves out where Substrait is not supported.
        let expected: Vec<u32> = (0..=5).chain(8..=11).chain(100..=101).chain(500..=576).collect();
        assert_eq!(ids(vec![]), expected);
    }

    #[test]
    fn asked_ids_come_alone_and_unknown_ids_are_left_out() {
        assert_eq!(ids(vec![8, 3, 99_999]), vec![3, 8]);
    }
}
