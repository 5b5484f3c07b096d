//! Questions about what a lake never has: indexes, defaults, policies, triggers, inheritance.
//!
//! PostgreSQL's tools ask them on the way to what they want to know, in SQL that the planner does not do (correlated
//! subqueries without an aggregate, arrays of oids). But what is selected from a table that is always empty is known
//! without planning: no rows; as a scalar, NULL; `EXISTS`, false. So those parts are answered before the planner sees
//! them.

use std::collections::BTreeSet;

use datafusion::sql::sqlparser::ast::{
    DataType, Expr, GroupByExpr, Ident, Join, JoinOperator, ObjectName, Query, Select, SelectItem, SetExpr,
    TableFactor, TableWithJoins, Value,
};

/// Tables of `pg_catalog` that are empty in every lake.
const ABSENT: [&str; 27] = [
    "pg_attrdef",
    "pg_collation",
    "pg_constraint",
    "pg_depend",
    "pg_description",
    "pg_enum",
    "pg_event_trigger",
    "pg_extension",
    "pg_foreign_data_wrapper",
    "pg_foreign_server",
    "pg_foreign_table",
    "pg_index",
    "pg_inherits",
    "pg_policy",
    "pg_publication",
    "pg_publication_namespace",
    "pg_publication_rel",
    "pg_range",
    "pg_rewrite",
    "pg_sequence",
    "pg_shdescription",
    "pg_statistic_ext",
    "pg_subscription",
    "pg_trigger",
    "pg_user_mapping",
    "pg_views",
    "pg_matviews",
];

/// What a query gives that reads a table which is always empty: the same columns, as text, and no rows. Others stay as
/// they are.
pub(super) fn answer_query(query: &mut Query) {
    if query.with.is_none() && answer_body(&mut query.body) {
        // The order of no rows may name what is no longer there.
        query.order_by = None;
    }
}

/// Whether a subquery as an expression has no rows.
pub(super) fn is_empty(query: &Query) -> bool {
    query.with.is_none() && matches!(query.body.as_ref(), SetExpr::Select(select) if select_is_empty(select))
}

fn answer_body(body: &mut SetExpr) -> bool {
    match body {
        SetExpr::Select(select) if select_is_empty(select) => {
            empty_select(select);
            true
        }
        SetExpr::Query(query) => {
            answer_query(query);
            false
        }
        SetExpr::SetOperation { left, right, .. } => {
            // Both sides, also when the first one was not empty.
            let left = answer_body(left);
            answer_body(right) && left
        }
        _ => false,
    }
}

/// An aggregate over no rows is a row, so only plain projections count.
fn select_is_empty(select: &Select) -> bool {
    let is_plain = matches!(&select.group_by, GroupByExpr::Expressions(expressions, _) if expressions.is_empty());
    is_plain && select.from.iter().any(is_empty_join) && select.projection.iter().all(is_plain_item)
}

fn is_empty_join(table: &TableWithJoins) -> bool {
    let keeps_right = |join: &Join| {
        matches!(
            join.join_operator,
            JoinOperator::Right(_)
                | JoinOperator::RightOuter(_)
                | JoinOperator::FullOuter(_)
                | JoinOperator::RightAnti(_)
        )
    };
    if table.joins.iter().any(keeps_right) {
        return false;
    }
    let needs_right = |join: &Join| {
        matches!(join.join_operator, JoinOperator::Join(_) | JoinOperator::Inner(_) | JoinOperator::CrossJoin(_))
    };
    is_absent(&table.relation) || table.joins.iter().any(|join| needs_right(join) && is_absent(&join.relation))
}

fn is_absent(table: &TableFactor) -> bool {
    let TableFactor::Table { name, args: None, .. } = table else {
        return false;
    };
    let parts: Vec<String> =
        name.0.iter().filter_map(|part| part.as_ident()).map(|part| part.value.to_lowercase()).collect();
    match parts.as_slice() {
        [table] => ABSENT.contains(&table.as_str()),
        [schema, table] => schema == "pg_catalog" && ABSENT.contains(&table.as_str()),
        _ => false,
    }
}

fn is_plain_item(item: &SelectItem) -> bool {
    let expression = match item {
        SelectItem::UnnamedExpr(expression) | SelectItem::ExprWithAlias { expr: expression, .. } => expression,
        _ => return false,
    };
    !matches!(expression, Expr::Function(function) if is_aggregate(&function.name))
}

fn is_aggregate(name: &ObjectName) -> bool {
    const AGGREGATES: [&str; 9] =
        ["count", "sum", "min", "max", "avg", "array_agg", "string_agg", "bool_and", "bool_or"];
    let last = name.0.last().and_then(|part| part.as_ident());
    last.is_some_and(|last| AGGREGATES.contains(&last.value.to_lowercase().as_str()))
}

fn empty_select(select: &mut Select) {
    let mut taken = BTreeSet::new();
    for item in &mut select.projection {
        let mut alias = match item {
            SelectItem::ExprWithAlias { alias, .. } => alias.clone(),
            SelectItem::UnnamedExpr(expression) => Ident::with_quote('"', column_name(expression)),
            _ => continue,
        };
        // The planner wants each name once.
        while !taken.insert(alias.value.clone()) {
            alias.value.push('_');
        }
        *item = SelectItem::ExprWithAlias { expr: null_text(), alias };
    }
    select.distinct = None;
    select.from.clear();
    select.having = None;
    select.selection = Some(Expr::value(Value::Boolean(false)));
}

fn null_text() -> Expr {
    Expr::Cast {
        kind: datafusion::sql::sqlparser::ast::CastKind::Cast,
        expr: Box::new(Expr::value(Value::Null)),
        data_type: DataType::Text,
        array: false,
        format: None,
    }
}

/// The name that PostgreSQL gives to a column.
fn column_name(expression: &Expr) -> String {
    match expression {
        Expr::Identifier(name) => name.value.clone(),
        Expr::CompoundIdentifier(parts) => parts.last().map_or_else(String::new, |last| last.value.clone()),
        Expr::Cast { expr, .. } | Expr::Nested(expr) => column_name(expr),
        Expr::Function(function) => {
            function.name.0.last().and_then(|part| part.as_ident()).map_or_else(String::new, |last| last.value.clone())
        }
        Expr::Case { .. } => "case".to_owned(),
        _ => "?column?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::parser::Statement;
    use datafusion::sql::sqlparser::ast::Statement as Ast;

    use super::*;
    use crate::query::allow;

    fn answered(sql: &str) -> String {
        let statement = allow::parse(sql).expect("an allowed statement");
        let Statement::Statement(mut ast) = statement else { panic!("a query: {sql}") };
        let Ast::Query(query) = ast.as_mut() else { panic!("a query: {sql}") };
        answer_query(query);
        query.to_string()
    }

    #[test]
    fn only_what_is_certainly_empty_is_answered() {
        for (sql, expected) in [
            (
                "select p.polname, array(select 1) x from pg_catalog.pg_policy p where p.a = 1 order by p.b",
                "SELECT CAST(NULL AS TEXT) AS \"polname\", CAST(NULL AS TEXT) AS x WHERE false",
            ),
            (
                "select pg_get_expr(1), pg_get_expr(2) from pg_policy",
                "SELECT CAST(NULL AS TEXT) AS \"pg_get_expr\", CAST(NULL AS TEXT) AS \"pg_get_expr_\" WHERE false",
            ),
            (
                "select c.oid from pg_class c, pg_inherits i where c.oid = i.inhparent",
                "SELECT CAST(NULL AS TEXT) AS \"oid\" WHERE false",
            ),
            ("select count(*) from pg_policy", "SELECT count(*) FROM pg_policy"),
            (
                "select c.oid from pg_class c left join pg_index i on true",
                "SELECT c.oid FROM pg_class c LEFT JOIN pg_index i ON true",
            ),
            ("select x from gold.pg_policy", "SELECT x FROM gold.pg_policy"),
        ] {
            assert_eq!(answered(sql), expected, "{sql}");
        }
    }
}
