//! The parameters of a prepared statement.

use datafusion::arrow::datatypes::DataType;

/// One parameter of a statement.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// `$1` has number 1.
    pub number: usize,
    /// What its value must be, or be cast to; normalised.
    pub data_type: DataType,
}
