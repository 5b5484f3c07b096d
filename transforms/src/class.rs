//! How a model can be refreshed, read off its logical plan. Where the plan does not prove that a cheaper way gives the same
//! rows as a full rebuild, the answer is a full rebuild, with the reason.

use std::fmt;

use datafusion::common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion::logical_expr::expr::{Sort, WindowFunction};
use datafusion::logical_expr::{BinaryExpr, Expr, Filter, LogicalPlan, Operator, Volatility, Window};

use crate::compile::Model;
use crate::config::{Direction, Materialization, ModelConfig, OrderColumn};

/// How a model is refreshed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Class {
    /// Each new source row makes at most one new row, whatever else there is: new rows are added.
    Append,
    /// As `Append`, and of the rows with one key the first in an order stays: new rows are added, or take a place.
    KeyedMerge,
    /// All of it is computed anew.
    Full {
        /// Why nothing cheaper would do.
        reason: String,
    },
}

impl Class {
    /// Reads the class of `model` off its plan.
    pub(crate) fn of(model: &Model, plan: &LogicalPlan) -> Self {
        if model.config.materialized == Materialization::Table {
            return full("it is materialized as table");
        }
        if let Err(reason) = check_operators(plan) {
            return full(reason);
        }
        if model.inputs.len() > 1 {
            let count = model.inputs.len();
            return full(format!("its text names {count} tables, and only of one can the new rows be told apart"));
        }
        if model.config.unique_key.is_empty() {
            return match find_window(plan) {
                None => Self::Append,
                Some(_) => full("it has a window function, but no unique_key and order_by in its settings"),
            };
        }
        match check_dedup(&model.config, plan) {
            Ok(()) => Self::KeyedMerge,
            Err(reason) => full(reason),
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Append => "append",
            Self::KeyedMerge => "keyed merge",
            Self::Full { .. } => "full",
        })
    }
}

/// Why the query may give other rows when it runs again on the same ones, if its functions say so.
pub(crate) fn unrepeatable(plan: &LogicalPlan) -> Option<String> {
    let mut reason = None;
    let visited = plan.apply_with_subqueries(|node| {
        for expression in node.expressions() {
            expression.apply(|part| {
                reason = reason.take().or_else(|| unsteady(part));
                Ok(TreeNodeRecursion::Continue)
            })?;
        }
        Ok(if reason.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    reason.or_else(|| visited.err().map(|error| format!("its plan cannot be read: {error}")))
}

/// The columns of the result that a query groups by: they tell its rows apart. None if it does not end in groups, or drops one
/// of the columns.
pub(crate) fn group_columns(plan: &LogicalPlan) -> Option<Vec<String>> {
    let mut columns: Vec<(String, String)> =
        plan.schema().fields().iter().map(|field| (field.name().clone(), field.name().clone())).collect();
    let mut node = plan;
    let groups = loop {
        match node {
            LogicalPlan::Aggregate(aggregate) => break aggregate,
            LogicalPlan::Projection(projection) => {
                columns.retain_mut(|(_, below)| {
                    source_of(&projection.expr, below).map(|source| *below = source).is_some()
                });
            }
            LogicalPlan::SubqueryAlias(_) | LogicalPlan::Filter(_) | LogicalPlan::Sort(_) => {}
            _ => return None,
        }
        node = only_input(node)?;
    };
    let grouped = groups.schema.fields().iter().take(groups.group_expr.len());
    let passed_on = |group: &str| columns.iter().find(|(_, below)| below == group).map(|(name, _)| name.clone());
    grouped.map(|field| passed_on(field.name())).collect()
}

fn full(reason: impl Into<String>) -> Class {
    Class::Full { reason: reason.into() }
}

/// Every operator has to work row by row (the window of the dedup apart), on one table, with functions that give the same
/// result each time.
fn check_operators(plan: &LogicalPlan) -> Result<(), String> {
    let mut scans = 0;
    let mut reason = None;
    let visit = plan.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Window(_) => {}
            LogicalPlan::TableScan(_) => scans += 1,
            other => reason = Some(format!("its query has the operator {}", operator(other))),
        }
        for expression in node.expressions() {
            expression.apply(|part| {
                reason = reason.take().or_else(|| not_row_by_row(part));
                Ok(TreeNodeRecursion::Continue)
            })?;
        }
        Ok(if reason.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    match (visit, reason) {
        (Err(error), _) => Err(format!("its plan cannot be read: {error}")),
        (_, Some(reason)) => Err(reason),
        _ if scans != 1 => Err(format!("it reads {scans} tables, and not one")),
        _ => Ok(()),
    }
}

fn unsteady(expression: &Expr) -> Option<String> {
    match expression {
        Expr::ScalarFunction(function) if function.func.signature().volatility != Volatility::Immutable => {
            Some(format!("the function {} does not give the same result each time", function.name()))
        }
        _ => None,
    }
}

fn not_row_by_row(expression: &Expr) -> Option<String> {
    match expression {
        Expr::ScalarFunction(_) => unsteady(expression),
        Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::SetComparison(_) => {
            Some("its query has a subquery in an expression".to_owned())
        }
        Expr::HigherOrderFunction(_) => Some("its query has a function that takes functions".to_owned()),
        Expr::ScalarVariable(..) | Expr::Placeholder(_) => Some("its query has a variable in it".to_owned()),
        _ => None,
    }
}

fn operator(plan: &LogicalPlan) -> String {
    let text = plan.display().to_string();
    text.split([':', ' ']).next().unwrap_or_default().to_owned()
}

fn find_window(plan: &LogicalPlan) -> Option<&Window> {
    let mut node = plan;
    loop {
        match node {
            LogicalPlan::Window(window) => return Some(window),
            _ => node = only_input(node)?,
        }
    }
}

fn only_input(plan: &LogicalPlan) -> Option<&LogicalPlan> {
    match plan.inputs().as_slice() {
        [input] => Some(input),
        _ => None,
    }
}

/// The query has to end in "the first row of each key": one `row_number() over (partition by KEY order by ORDER)`, a
/// filter that keeps number one, and above that nothing but columns passed on. A filter above it would hide a winner, and
/// with it the reason why a later row must not come in.
fn check_dedup(config: &ModelConfig, plan: &LogicalPlan) -> Result<(), String> {
    let mut wanted: Vec<(String, String)> = Vec::new();
    for column in config.unique_key.iter().chain(config.order_by.iter().map(|order| &order.column)) {
        wanted.push((column.clone(), column.clone()));
    }
    let mut number: Option<String> = None;
    let mut node = plan;
    let window = loop {
        match node {
            LogicalPlan::Window(window) => break window,
            LogicalPlan::Projection(projection) => {
                for (column, below) in &mut wanted {
                    *below = source_of(&projection.expr, below).ok_or_else(|| {
                        format!(
                            "its query does not pass the column {column} of unique_key or order_by through as it is"
                        )
                    })?;
                }
                if let Some(below) = &mut number {
                    *below = source_of(&projection.expr, below).ok_or("its filter is not on the row number")?;
                }
            }
            LogicalPlan::SubqueryAlias(_) => {}
            LogicalPlan::Filter(filter) if number.is_none() => {
                number =
                    Some(first_only(filter).ok_or("it filters rows after the window function by more than \"= 1\"")?);
            }
            _ => {
                return Err(
                    "its query does not end in a window function that keeps the first row of each key".to_owned()
                );
            }
        }
        node = only_input(node).ok_or("its query has no window function that keeps the first row of each key")?;
    };
    check_window(config, window, number.as_deref(), &wanted)
}

fn check_window(
    config: &ModelConfig,
    window: &Window,
    number: Option<&str>,
    wanted: &[(String, String)],
) -> Result<(), String> {
    let below = |column: &str| wanted.iter().find(|(name, _)| name == column).map(|(_, below)| below.as_str());
    let [expression] = window.window_expr.as_slice() else {
        return Err("its query has several window functions".to_owned());
    };
    let column = window.schema.fields().last().map(|field| field.name().as_str());
    let Expr::WindowFunction(function) = unaliased(expression) else {
        return Err("its window function cannot be read".to_owned());
    };
    let WindowFunction { fun, params } = function.as_ref();
    if fun.name() != "row_number" || params.filter.is_some() || number.is_none() || number != column {
        return Err("its query does not keep the rows whose row_number() is 1".to_owned());
    }
    let mut keys: Vec<&str> = params.partition_by.iter().filter_map(column_name).collect();
    let mut wanted_keys: Vec<&str> = config.unique_key.iter().filter_map(|column| below(column)).collect();
    keys.sort_unstable();
    wanted_keys.sort_unstable();
    if keys.len() != params.partition_by.len() || keys != wanted_keys {
        return Err("its row_number() is not partitioned by the columns of unique_key".to_owned());
    }
    let same_order = params.order_by.len() == config.order_by.len()
        && params
            .order_by
            .iter()
            .zip(&config.order_by)
            .all(|(sort, order)| sorts_by(sort, order, below(&order.column)));
    if !same_order {
        return Err("its row_number() is not ordered by the columns of order_by".to_owned());
    }
    if find_window(&window.input).is_some() {
        return Err("its query has several window functions".to_owned());
    }
    Ok(())
}

/// NULL counts as the greatest value: last when ascending, first when descending.
fn sorts_by(sort: &Sort, order: &OrderColumn, column: Option<&str>) -> bool {
    let ascending = order.direction == Direction::Ascending;
    column.is_some() && column_name(&sort.expr) == column && sort.asc == ascending && sort.nulls_first != ascending
}

/// The column below that a projection passes on as `name`.
fn source_of(expressions: &[Expr], name: &str) -> Option<String> {
    let mut found = expressions
        .iter()
        .filter(|expression| expression.schema_name().to_string() == name || named(expression) == Some(name));
    let source = column_name(unaliased(found.next()?))?.to_owned();
    found.next().is_none().then_some(source)
}

fn named(expression: &Expr) -> Option<&str> {
    match expression {
        Expr::Alias(alias) => Some(&alias.name),
        other => column_name(other),
    }
}

fn column_name(expression: &Expr) -> Option<&str> {
    match expression {
        Expr::Column(column) => Some(&column.name),
        _ => None,
    }
}

fn unaliased(expression: &Expr) -> &Expr {
    match expression {
        Expr::Alias(alias) => unaliased(&alias.expr),
        other => other,
    }
}

/// The column of which a filter keeps the value one.
fn first_only(filter: &Filter) -> Option<String> {
    let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) = &filter.predicate else { return None };
    let Expr::Literal(value, _) = right.as_ref() else { return None };
    // The planner may have given the number the literal's type, or the literal the number's.
    let is_one = value.to_string() == "1";
    let column = match left.as_ref() {
        Expr::Cast(cast) => column_name(&cast.expr),
        other => column_name(other),
    };
    column.filter(|_| is_one).map(str::to_owned)
}

#[cfg(test)]
mod tests;
