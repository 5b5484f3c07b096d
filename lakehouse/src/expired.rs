//! What retention took out of a table of dead letters: recorded in the commit that did it, so that an audit still adds up.

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::log::CommitEntry;

/// Under this key of a commit's information stands which letters it took out.
pub const EXPIRED_KEY: &str = "expired_letters";

/// Letters of one partition that went because they were older than their topic keeps them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpiredLetters {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Counts how often the partition was made anew.
    #[serde(default)]
    pub incarnation: i32,
    /// How many went.
    pub letters: u64,
    /// The offset of the first of them.
    pub from: i64,
    /// The offset after the last of them. Letters in between may have stayed.
    pub to: i64,
}

impl CommitEntry {
    /// The letters that this commit took out because of their age; none if it is any other commit.
    pub fn expired_letters(&self) -> Result<Vec<ExpiredLetters>> {
        let Some(value) = self.info.get(EXPIRED_KEY) else { return Ok(Vec::new()) };
        serde_json::from_value(value.clone()).map_err(|source| {
            let message = format!("what retention recorded in version {} is damaged", self.version);
            Error::with_source(ErrorKind::BadData, message, source)
        })
    }
}
