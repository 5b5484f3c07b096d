//! What became of the letters that were sent.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::Mode;
use super::again::Failed;
use crate::letters::{Letter, printable};

/// So many examples of each reason are kept.
const EXAMPLES_MAX: usize = 5;

/// What a replay did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What the rows carry in `_replay_id`; nothing where none was written.
    pub id: Option<String>,
    /// The topic.
    pub topic: String,
    /// Whether anything was to be written.
    pub mode: Mode,
    /// Letters that were meant.
    pub selected: u64,
    /// Those that became rows.
    pub replayed: u64,
    /// Those that were rows already.
    pub already_there: u64,
    /// Those whose messages are not consumed yet: ingest stopped between its two commits, and its next start goes on there.
    pub not_yet_consumed: u64,
    /// Those that stay letters, by the reason that they have now.
    pub still_undecodable: BTreeMap<String, Undecodable>,
    /// Commits to the table of rows.
    pub commits: u64,
}

/// Letters that stay letters for one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Undecodable {
    /// How many.
    pub letters: u64,
    /// Some of them.
    pub examples: Vec<Example>,
}

/// One that stays a letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Example {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// The place in a message that holds several.
    pub index: i32,
    /// What is wrong with it now.
    pub error: String,
}

/// The same of one chunk.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) replayed: u64,
    pub(super) already_there: u64,
    pub(super) not_yet_consumed: u64,
    still_undecodable: BTreeMap<String, Undecodable>,
}

impl Outcome {
    pub(super) fn fail(&mut self, letters: &[&Letter], failed: Vec<Failed>) {
        for Failed { letter, reason, error } in failed {
            let place = letters[letter].place;
            let example = Example { partition: place.partition, offset: place.offset, index: place.index, error };
            self.still_undecodable.entry(reason).or_default().add(1, vec![example]);
        }
    }
}

impl Undecodable {
    fn add(&mut self, letters: u64, examples: Vec<Example>) {
        self.letters += letters;
        let room = EXAMPLES_MAX.saturating_sub(self.examples.len());
        self.examples.extend(examples.into_iter().take(room));
    }
}

impl Report {
    pub(super) fn new(topic: &str, mode: Mode) -> Self {
        Self {
            id: None,
            topic: topic.to_owned(),
            mode,
            selected: 0,
            replayed: 0,
            already_there: 0,
            not_yet_consumed: 0,
            still_undecodable: BTreeMap::new(),
            commits: 0,
        }
    }

    pub(super) fn add(&mut self, outcome: Outcome) {
        self.replayed += outcome.replayed;
        self.already_there += outcome.already_there;
        self.not_yet_consumed += outcome.not_yet_consumed;
        for (reason, undecodable) in outcome.still_undecodable {
            self.still_undecodable.entry(reason).or_default().add(undecodable.letters, undecodable.examples);
        }
    }

    pub(super) fn committed(&mut self, id: &str) {
        self.id.get_or_insert_with(|| id.to_owned());
        self.commits += 1;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, selected, replayed, already_there, commits, .. } = self;
        write!(f, "{selected} dead letters of topic {topic}: ")?;
        match (self.mode, &self.id) {
            (Mode::DryRun, _) => write!(f, "{replayed} would become rows")?,
            (Mode::Commit, None) => write!(f, "{replayed} became rows")?,
            (Mode::Commit, Some(id)) => write!(f, "{replayed} became rows in {commits} commits, _replay_id {id}")?,
        }
        write!(f, "; {already_there} were rows already")?;
        if self.not_yet_consumed > 0 {
            let left_out = self.not_yet_consumed;
            write!(f, "; {left_out} left out, their messages are not consumed yet: run ingest and repeat this")?;
        }
        for (reason, undecodable) in &self.still_undecodable {
            write!(f, "\n{} stay letters, {reason}:", undecodable.letters)?;
            for Example { partition, offset, index, error } in &undecodable.examples {
                write!(f, "\n  partition {partition} offset {offset} index {index}: {}", printable(error))?;
            }
        }
        Ok(())
    }
}
