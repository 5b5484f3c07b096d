//! The parameters of a prepared statement: which there are, of what type, and how values take their place.
//!
//! A type is what the client declared, else what the planner infers from the place, else text, as in PostgreSQL. A value is
//! cast to that type before it takes its place, so that the schema of the rows does not depend on the values.

use std::collections::BTreeMap;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, ParamValues, ScalarValue};
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::{Expr, LogicalPlan};

use super::normalise::normalise_data_type;
use crate::error::{Error, Kind, Result};

/// As in PostgreSQL, whose protocol counts parameters in 16 bits.
const PARAMETERS_MAX: usize = 65_535;

/// One parameter of a statement.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// `$1` has number 1.
    pub number: usize,
    /// What its value must be, or be cast to; normalised.
    pub data_type: DataType,
}

/// The parameters of a plan.
pub(super) fn find(plan: &LogicalPlan, declared: &[Option<DataType>]) -> Result<Vec<Parameter>> {
    let types = inferred(plan)?;
    let count = types.keys().max().copied().unwrap_or(0).max(declared.len());
    let parameters = (1..=count)
        .map(|number| {
            let inferred = types.get(&number).cloned().flatten();
            let data_type = declared
                .get(number - 1)
                .cloned()
                .flatten()
                .or(inferred)
                .filter(|data_type| *data_type != DataType::Null)
                .unwrap_or(DataType::Utf8);
            Parameter { number, data_type: normalise_data_type(&data_type) }
        })
        .collect();
    Ok(parameters)
}

/// Puts values in the place of parameters.
///
/// # Errors
/// `InvalidParameter` if there are too few or too many; `InvalidValue` if one cannot be cast to its type.
pub(super) fn bind(plan: &LogicalPlan, parameters: &[Parameter], values: Vec<ScalarValue>) -> Result<LogicalPlan> {
    if values.len() != parameters.len() {
        return Err(Error::new(
            Kind::InvalidParameter,
            format!("the statement has {} parameters, and {} values were given", parameters.len(), values.len()),
        ));
    }
    let values = values
        .into_iter()
        .zip(parameters)
        .map(|(value, parameter)| cast(value, parameter))
        .collect::<Result<Vec<_>>>()?;
    replace(plan, values)
}

/// The plan with a typed NULL for each parameter: its schema is the one of every execution.
pub(super) fn bind_nulls(plan: &LogicalPlan, parameters: &[Parameter]) -> Result<LogicalPlan> {
    let nulls = parameters
        .iter()
        .map(|parameter| ScalarValue::try_new_null(&parameter.data_type).map_err(Error::from))
        .collect::<Result<Vec<_>>>()?;
    replace(plan, nulls)
}

fn replace(plan: &LogicalPlan, values: Vec<ScalarValue>) -> Result<LogicalPlan> {
    if values.is_empty() {
        return Ok(plan.clone());
    }
    Ok(plan.clone().replace_params_with_values(&ParamValues::from(values))?)
}

fn cast(value: ScalarValue, parameter: &Parameter) -> Result<ScalarValue> {
    if value.data_type() == parameter.data_type {
        return Ok(value);
    }
    value.cast_to(&parameter.data_type).map_err(|error| {
        Error::with_source(
            Kind::InvalidValue,
            format!("the value of parameter ${} cannot be read as {}", parameter.number, parameter.data_type),
            error,
        )
    })
}

/// The numbers of the parameters in a plan with the type that the planner inferred for each, if it did.
fn inferred(plan: &LogicalPlan) -> Result<BTreeMap<usize, Option<DataType>>> {
    let mut types: BTreeMap<usize, Option<DataType>> = BTreeMap::new();
    plan.apply_with_subqueries(|node| {
        let is_limit = matches!(node, LogicalPlan::Limit(_));
        node.apply_expressions(|expression| {
            expression.apply(|part| {
                if let Expr::Placeholder(placeholder) = part {
                    let number = number_of(placeholder)?;
                    let inferred = placeholder.field.as_ref().map(|field| field.data_type().clone());
                    // The planner says nothing about `LIMIT $1`; it can only be a count.
                    let inferred = inferred.or_else(|| is_limit.then_some(DataType::Int64));
                    let known = types.entry(number).or_default();
                    if known.is_none() {
                        *known = inferred;
                    }
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(types)
}

fn number_of(placeholder: &Placeholder) -> std::result::Result<usize, DataFusionError> {
    placeholder
        .id
        .strip_prefix('$')
        .and_then(|digits| digits.parse::<usize>().ok())
        .filter(|number| (1..=PARAMETERS_MAX).contains(number))
        .ok_or_else(|| {
            DataFusionError::External(Box::new(Error::new(
                Kind::InvalidParameter,
                format!(
                    "parameter {} is not $1 to ${PARAMETERS_MAX}; parameters have numbers, not names",
                    placeholder.id
                ),
            )))
        })
}
