//! Dead letters once they are in their table: looked at ([`list`]), sent through again ([`crate::replay`]), and taken out when
//! they are too old (`retention`).
//!
//! There can be more of them than memory holds. All that goes through the table takes its files in groups of some thousand
//! letters, by age, and keeps of each group only what it came for.

mod listing;
mod reading;
mod retention;

use std::ops::RangeInclusive;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use lakehouse::{DataFile, Filter};

pub(crate) use listing::printable;
pub use listing::{Count, Listing, Sample, Shown, list};
pub(crate) use reading::{Among, Letter, Letters, present};
pub(crate) use retention::Retention;

/// Files are read together until they hold so many letters.
const GROUP_LETTERS: u64 = 20_000;

/// Which letters are meant. What is empty or missing does not matter.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// The topic.
    pub topic: Option<String>,
    /// Codes of reasons, any of which will do.
    pub reasons: Vec<String>,
    /// Partitions, any of which will do.
    pub partitions: Vec<i32>,
    /// Offsets, both ends included, any of which will do.
    pub offsets: Vec<RangeInclusive<i64>>,
    /// Written at this time or later.
    pub since: Option<DateTime<Utc>>,
    /// Written before this time.
    pub until: Option<DateTime<Utc>>,
}

impl Selection {
    pub(crate) fn filter(&self) -> Filter {
        let partitions: Vec<_> = self.partitions.iter().map(|&number| number.into()..=number.into()).collect();
        let bound = |time: Option<DateTime<Utc>>, bound: fn(&str, DateTime<Utc>) -> Filter| {
            time.map_or_else(Filter::everything, |time| bound("_ingested_at", time))
        };
        Filter::text_in("topic", self.topic.as_slice())
            .and(Filter::text_in("reason", &self.reasons))
            .and(Filter::number_in("partition", &partitions))
            .and(Filter::number_in("offset", &self.offsets))
            .and(bound(self.since, Filter::since))
            .and(bound(self.until, Filter::before))
    }
}

/// Where a letter, or the row that it became, comes from. No two have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) partition: i32,
    /// Counts how often the partition was made anew.
    pub(crate) incarnation: i32,
    pub(crate) offset: i64,
    /// The place in a message that holds several.
    pub(crate) index: i32,
}

/// Files in groups that are read together, the oldest first: what was written together was consumed together, so the rows
/// beside a group of letters are in few files too.
pub(crate) fn groups(mut files: Vec<Arc<DataFile>>) -> Vec<Vec<Arc<DataFile>>> {
    files.sort_by(|a, b| (a.modified_millis, &a.path).cmp(&(b.modified_millis, &b.path)));
    let mut groups: Vec<(u64, Vec<Arc<DataFile>>)> = Vec::new();
    for file in files {
        // A file that does not say how many it holds stands alone.
        let letters = file.rows.unwrap_or(GROUP_LETTERS);
        match groups.last_mut() {
            Some((sum, group)) if *sum + letters <= GROUP_LETTERS => {
                *sum += letters;
                group.push(file);
            }
            _ => groups.push((letters, vec![file])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_by_age_some_at_a_time() {
        let file = |name: &str, age: i64, rows: Option<u64>| {
            Arc::new(DataFile {
                path: name.to_owned(),
                size: 1,
                modified_millis: age,
                partition_values: Default::default(),
                stats: None,
                rows,
                checksum: None,
            })
        };
        let files = vec![
            file("d", 4, Some(7)),
            file("a", 1, Some(10_000)),
            file("c", 3, None),
            file("b", 2, Some(10_000)),
            file("e", 4, Some(60_000)),
            file("f", 5, Some(1)),
        ];
        let names: Vec<String> =
            groups(files).iter().map(|group| group.iter().map(|file| file.path.as_str()).collect()).collect();
        assert_eq!(names, ["ab", "c", "d", "e", "f"]);
        assert!(groups(Vec::new()).is_empty());
    }
}
