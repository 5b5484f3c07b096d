//! Names of tables: a schema (`bronze`, `silver`, `gold`, `system`, or one of the user's) and a table in it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// A table's name, written `schema.table`. Its folder in the lake is `schema/table`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TableName {
    /// The layer or schema, such as `gold`.
    pub schema: String,
    /// The table within the schema.
    pub name: String,
}

impl TableName {
    /// A name from its two parts.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }

    /// The table's folder, relative to the lake.
    pub fn folder(&self) -> String {
        format!("{}/{}", self.schema, self.name)
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

impl FromStr for TableName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let part_is_valid = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
                && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        match text.split_once('.') {
            Some((schema, name)) if part_is_valid(schema) && part_is_valid(name) => Ok(Self::new(schema, name)),
            _ => Err(Error::new(
                ErrorKind::BadConfig,
                format!("\"{text}\" is not a table name: write schema.table in lower case, such as gold.top_songs"),
            )),
        }
    }
}

impl TryFrom<String> for TableName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<TableName> for String {
    fn from(name: TableName) -> Self {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_two_plain_parts() {
        assert_eq!("gold.top_songs".parse::<TableName>().expect("valid"), TableName::new("gold", "top_songs"));
        for wrong in ["gold", "gold.", ".x", "gold.top.songs", "Gold.x", "gold.x/y", "gold...", "1.a"] {
            assert!(wrong.parse::<TableName>().is_err(), "{wrong} was taken");
        }
    }
}
