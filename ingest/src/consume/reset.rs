//! Setting the ledger by hand: forward is a gap that is recorded, back takes the rows from there on out in the same commit, so
//! that reading them again doubles nothing. Kafka's own offsets have no say in it.
//!
//! Bronze first, then the letters. Bronze's commit marks the partitions, and a last one takes the marks away: nobody begins to
//! write in between, and a reset of the same partitions that comes after a crash first takes out what the one before has left.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use lakehouse::{
    Commit, ConsumedRange, Lake, Ledger, Operation, PlaceColumns, Rewind, Skip, SkipReason, Table, TableName,
    TableVersion, Tail, fingerprint_app_id, ingest_app_id, replay_app_id, reset_app_id,
};
use serde::Serialize;

use super::identity::{self, Evidence};
use super::start;
use super::write::NO_FINGERPRINT;
use crate::columns;
use crate::kafka::{self, Probe, Properties, Watermarks};
use crate::records::digest;
use crate::topic::TopicSpec;
use crate::{Error, ErrorKind, Result};

/// The mark of a partition whose letters have not followed its ledger yet.
const AMID_RESET: i64 = 1;
/// So many times others may commit to the same table while we do.
const ATTEMPTS_MAX: u32 = 8;

/// What to set, and to where.
#[derive(Debug, Clone)]
pub struct ResetOptions {
    /// Where the brokers are: `host:port`, several with commas.
    pub brokers: String,
    /// Further settings of librdkafka.
    pub properties: Properties,
    /// The topic and its tables.
    pub topic: TopicSpec,
    /// The partitions; all if none is named.
    pub partitions: BTreeSet<i32>,
    /// Where reading goes on.
    pub to: Position,
}

/// A place in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// The first offset that the broker has.
    Earliest,
    /// The end: what is there now is not read.
    Latest,
    /// This offset.
    Offset(i64),
    /// The first message of that time or later.
    Time(DateTime<Utc>),
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "earliest" => return Ok(Self::Earliest),
            "latest" => return Ok(Self::Latest),
            _ => {}
        }
        let offset = text.parse().ok().filter(|&offset: &i64| offset >= 0).map(Self::Offset);
        let time = || DateTime::parse_from_rfc3339(text).ok().map(|time| Self::Time(time.to_utc()));
        offset
            .or_else(time)
            .ok_or_else(|| "write earliest, latest, an offset, or a time such as 2026-01-31T08:00:00Z".to_owned())
    }
}

/// What was set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResetReport {
    /// The topic.
    pub topic: String,
    /// The table of rows.
    pub table: TableName,
    /// One entry for each partition that moved.
    pub moves: Vec<Move>,
    /// Rows that were taken out.
    pub rows_taken_out: u64,
    /// Dead letters that were taken out.
    pub dead_letters_taken_out: u64,
}

/// A partition that was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Move {
    /// The partition.
    pub partition: i32,
    /// The next offset to read, before.
    pub from: i64,
    /// The next offset to read, since.
    pub to: i64,
}

impl fmt::Display for ResetReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.moves.is_empty() {
            return write!(f, "{} stands there already", self.table);
        }
        for one in &self.moves {
            let Move { partition, from, to } = one;
            let told = if to > from { "a recorded gap" } else { "to be read again" };
            writeln!(f, "{} partition {partition}: from offset {from} to {to}, {told}", self.topic)?;
        }
        let Self { rows_taken_out, dead_letters_taken_out, table, .. } = self;
        write!(f, "{rows_taken_out} rows of {table} and {dead_letters_taken_out} dead letters were taken out")
    }
}

/// What others see a writer of `table` by.
pub fn writers_of(table: &TableName) -> String {
    format!("ingest/{table}")
}

/// Sets the ledger.
///
/// # Errors
/// `BadConfig` while a writer is at work, for a partition that is not there, and for a place that the broker does not have;
/// `Conflict` if others committed to the table all the time.
pub async fn reset(lake: &Lake, options: &ResetOptions) -> Result<ResetReport> {
    options.topic.check()?;
    refuse_beside_writers(lake, &options.topic).await?;
    columns::refuse_table_of_another(&lake.table(&options.topic.table), &options.topic).await?;
    let wanted = wanted(options).await?;
    let resetting = Resetting { lake, topic: &options.topic, wanted };
    resetting.refuse_another_topic(options).await?;
    let left_over = resetting.finish().await?;
    let (moves, rows_taken_out) = repeated(&options.topic.table, async || resetting.set_rows().await).await?;
    let dead_letters_taken_out = left_over + resetting.finish().await?;
    Ok(ResetReport {
        topic: options.topic.name.clone(),
        table: options.topic.table.clone(),
        moves,
        rows_taken_out,
        dead_letters_taken_out,
    })
}

/// Tries until no other commit is first.
async fn repeated<T>(table: &TableName, attempt: impl AsyncFn() -> Result<Option<T>>) -> Result<T> {
    for _ in 0..ATTEMPTS_MAX {
        if let Some(done) = attempt().await? {
            return Ok(done);
        }
    }
    let message =
        format!("others committed to {table} all the time: try again when it is quiet, what is done stays done");
    Err(Error::new(ErrorKind::Conflict, message))
}

async fn refuse_beside_writers(lake: &Lake, topic: &TopicSpec) -> Result<()> {
    let Some(lease) = lake.leases(&writers_of(&topic.table)).await?.into_iter().next() else { return Ok(()) };
    let message = format!(
        "{} is being written by {} since {}, last seen at {}: stop it first (one that was killed counts for 45 s more)",
        topic.table,
        lease.holder,
        lease.since.format("%F %T UTC"),
        lease.renewed_at.format("%F %T UTC")
    );
    Err(Error::new(ErrorKind::BadConfig, message))
}

/// What the broker holds of each partition that is meant, and where it is to go on.
async fn wanted(options: &ResetOptions) -> Result<BTreeMap<i32, (Watermarks, i64)>> {
    let ResetOptions { brokers, properties, topic, partitions, to } = options.clone();
    kafka::blocking(move || {
        let probe = Probe::new(&brokers, &properties)?;
        let all = probe.partitions(&topic.name)?;
        if let Some(missing) = partitions.iter().find(|partition| !all.contains(partition)) {
            let message = format!(
                "topic {} has no partition {missing}: it has 0 to {}; name one of these with --partition",
                topic.name,
                all.len() - 1
            );
            return Err(Error::new(ErrorKind::BadConfig, message));
        }
        let meant = if partitions.is_empty() { all } else { partitions };
        let watermarks = probe.watermarks(&topic.name, &meant)?;
        let at_time = match to {
            Position::Time(time) => probe.offsets_at(&topic.name, &meant, time)?,
            _ => BTreeMap::new(),
        };
        let place = |(partition, here): (i32, Watermarks)| {
            let offset = match to {
                Position::Earliest => here.low,
                Position::Latest => here.high,
                Position::Offset(offset) => offset,
                Position::Time(_) => at_time.get(&partition).copied().unwrap_or(here.high),
            };
            if (here.low..=here.high).contains(&offset) {
                return Ok((partition, (here, offset)));
            }
            let message = format!(
                "offset {offset} of topic {} partition {partition} is not there: the broker has {}..{}; set it to one \
                 of these, or to earliest or latest",
                topic.name, here.low, here.high
            );
            Err(Error::new(ErrorKind::BadConfig, message))
        };
        watermarks.into_iter().map(place).collect()
    })
    .await
}

struct Resetting<'a> {
    lake: &'a Lake,
    topic: &'a TopicSpec,
    wanted: BTreeMap<i32, (Watermarks, i64)>,
}

/// Where one partition goes.
struct Shift {
    at: Move,
    incarnation: i32,
}

impl Resetting<'_> {
    /// Where the broker's messages are others than those that were read, there is nothing to go back to or on from.
    async fn refuse_another_topic(&self, options: &ResetOptions) -> Result<()> {
        let bronze = self.lake.table(&self.topic.table);
        columns::prepare(&bronze, self.topic).await?;
        let ledger = self.ledger(&bronze).await?;
        let known = |partition: i32| start::known(&ledger, &self.topic.name, partition);
        let comparable = |(&partition, &(here, _)): (&i32, &(Watermarks, i64))| {
            Some((partition, known(partition)?.comparable(here)?))
        };
        let places: BTreeMap<i32, i64> = self.wanted.iter().filter_map(comparable).collect();
        let found = kafka::fingerprints(&options.brokers, &options.properties, &self.topic.name, &places).await?;
        let gap = |(&partition, found): (&i32, &String)| {
            let known = known(partition).filter(|known| known.last != Some(digest(found)))?;
            identity::judge(partition, known, self.wanted[&partition].0, Evidence::Strange)
        };
        let gaps: Vec<_> = found.iter().filter_map(gap).collect();
        if gaps.is_empty() { Ok(()) } else { Err(identity::stop(&self.topic.name, &self.topic.table, &gaps)) }
    }

    async fn ledger(&self, table: &Table) -> Result<Ledger> {
        let topic = &self.topic.name;
        let mut app_ids = start::app_ids(topic, self.wanted.keys());
        app_ids.push(replay_app_id(topic));
        table.ledger(&app_ids).await
    }

    /// The partitions that move.
    fn shifts(&self, ledger: &Ledger) -> Result<Vec<Shift>> {
        let mut shifts = Vec::new();
        for (&partition, &(here, to)) in &self.wanted {
            let stood = ledger.entries.get(&ingest_app_id(&self.topic.name, partition)).copied();
            let from = stood.unwrap_or(here.low);
            if from > here.high {
                let message = format!(
                    "topic {} partition {partition} ends at offset {}, but {} was filled up to {from}: it is not the one that was \
                     read; an ordinary start of ingest says what is gone and how to accept that",
                    self.topic.name, here.high, self.topic.table
                );
                return Err(Error::new(ErrorKind::BadData, message));
            }
            if from != to {
                let incarnation = start::incarnation(ledger, &self.topic.name, partition);
                shifts.push(Shift { at: Move { partition, from, to }, incarnation });
            }
        }
        Ok(shifts)
    }

    /// Moves bronze's ledger and takes out its rows; nothing if another commit was first.
    async fn set_rows(&self) -> Result<Option<(Vec<Move>, u64)>> {
        let (bronze, letters) = (self.lake.table(&self.topic.table), self.lake.table(&self.topic.dead_letters));
        let columns = columns::prepare(&bronze, self.topic).await?;
        let letters = letters.ensure(&self.topic.letters_spec()).await?;
        let ledger = self.ledger(&bronze).await?;
        if ledger.version != columns.version {
            return Ok(None);
        }
        let shifts = self.shifts(&ledger)?;
        let moves: Vec<Move> = shifts.iter().map(|shift| shift.at).collect();
        if shifts.is_empty() {
            return Ok(Some((moves, 0)));
        }
        // A writer that began meanwhile is told by its lease before anything moves.
        refuse_beside_writers(self.lake, self.topic).await?;
        let (mut commit, topic) = (Commit::new(Operation::Write), &self.topic.name);
        // A replay that is under way goes by what is there now: moved or not, its ledger makes it look again.
        let replay = replay_app_id(topic);
        let replays = ledger.entries.get(&replay).copied().unwrap_or(0);
        commit.transactions.insert(replay, replays);
        let mut info = lakehouse::IngestInfo::new(topic, "", self.topic.dead_letters.clone());
        let mut tails = Vec::new();
        for Shift { at: Move { partition, from, to }, incarnation } in &shifts {
            let (partition, from, to, incarnation) = (*partition, *from, *to, *incarnation);
            commit.transactions.insert(ingest_app_id(topic, partition), to);
            commit.transactions.insert(fingerprint_app_id(topic, partition), NO_FINGERPRINT);
            commit.transactions.insert(reset_app_id(topic, partition), AMID_RESET);
            if to > from {
                info.skips.push(Skip { partition, from, to, next: to, incarnation, reason: SkipReason::Reset });
                continue;
            }
            let tail = Tail { partition, incarnation, from: to };
            let kept = self.kept(&bronze, &columns, &letters, &tail).await?;
            let context = self.lake.session_factory().context();
            let rows = columns.count_tail(&context, PlaceColumns::ROWS, &tail).await?;
            info.rewinds.push(Rewind { partition, from, to, rows, kept });
            tails.push(tail);
        }
        let sessions = self.lake.session_factory();
        let gone = bronze.stage_without(&sessions, &columns, PlaceColumns::ROWS, &tails).await?;
        (commit.removes, commit.adds) = (gone.removes, gone.adds);
        commit.record_ingest(&info)?;
        Ok(bronze.replace(columns.version, commit).await?.committed().map(|_| (moves, gone.rows)))
    }

    /// What is left of the recorded range that the new place lies in the middle of.
    async fn kept(
        &self,
        bronze: &Table,
        columns: &TableVersion,
        letters: &TableVersion,
        tail: &Tail,
    ) -> Result<Option<ConsumedRange>> {
        let Some(range) = bronze.recorded_range(columns.version, &self.topic.name, tail).await? else {
            return Ok(None);
        };
        let context = self.lake.session_factory().context();
        let head = Tail { from: range.from, ..tail.clone() };
        let rows = columns.count_places(&context, PlaceColumns::ROWS, &head, tail.from).await?;
        let dead = letters.count_places(&context, PlaceColumns::letters(&self.topic.name), &head, tail.from).await?;
        let messages = rows.keys().chain(dead.keys()).collect::<BTreeSet<_>>().len() as u64;
        Ok(Some(ConsumedRange {
            to: tail.from,
            messages: Some(messages),
            rows: rows.values().sum(),
            dead_letters: dead.values().sum(),
            holes: (tail.from - range.from) as u64 - messages,
            fingerprint: String::new(),
            ..range
        }))
    }

    /// Does what is left to do once bronze is set, by this reset or by one that was broken off; says how many letters went.
    async fn finish(&self) -> Result<u64> {
        let letters = repeated(&self.topic.dead_letters, async || self.set_letters().await).await?;
        repeated(&self.topic.table, async || self.take_marks_away().await).await?;
        Ok(letters)
    }

    /// The partitions that are marked.
    fn marked(&self, of_rows: &Ledger) -> Vec<i32> {
        let is_marked =
            |partition: &i32| of_rows.entries.get(&reset_app_id(&self.topic.name, *partition)) == Some(&AMID_RESET);
        self.wanted.keys().copied().filter(is_marked).collect()
    }

    async fn take_marks_away(&self) -> Result<Option<()>> {
        let bronze = self.lake.table(&self.topic.table);
        let ledger = self.ledger(&bronze).await?;
        let marked = self.marked(&ledger);
        if marked.is_empty() {
            return Ok(Some(()));
        }
        let mut commit = Commit::new(Operation::Write);
        commit.transactions =
            marked.into_iter().map(|partition| (reset_app_id(&self.topic.name, partition), 0)).collect();
        Ok(bronze.append(ledger.version, commit).await?.committed().map(drop))
    }

    /// Takes the letters of marked partitions out, from bronze's ledger on.
    async fn set_letters(&self) -> Result<Option<u64>> {
        let (topic, letters) = (&self.topic.name, self.lake.table(&self.topic.dead_letters));
        let columns = letters.ensure(&self.topic.letters_spec()).await?;
        let (ledger, of_rows) = (self.ledger(&letters).await?, self.ledger(&self.lake.table(&self.topic.table)).await?);
        if ledger.version != columns.version {
            return Ok(None);
        }
        let is_beyond = |partition: i32| {
            let upto = ledger.entries.get(&ingest_app_id(topic, partition)).copied()?;
            let to = of_rows.entries.get(&ingest_app_id(topic, partition)).copied()?;
            let incarnation = start::incarnation(&ledger, topic, partition);
            // Letters of a partition that was made anew since are of messages that stand nowhere else.
            let is_of_now = incarnation == start::incarnation(&of_rows, topic, partition);
            (is_of_now && upto > to).then_some(Tail { partition, incarnation, from: to })
        };
        let tails: Vec<Tail> = self.marked(&of_rows).into_iter().filter_map(is_beyond).collect();
        if tails.is_empty() {
            return Ok(Some(0));
        }
        let sessions = self.lake.session_factory();
        let gone = letters.stage_without(&sessions, &columns, PlaceColumns::letters(topic), &tails).await?;
        let mut commit = Commit::new(Operation::Write);
        (commit.removes, commit.adds) = (gone.removes, gone.adds);
        commit.transactions = tails.iter().map(|tail| (ingest_app_id(topic, tail.partition), tail.from)).collect();
        // Other topics may write to the same table meanwhile: their letters are none of these.
        Ok(letters.append(columns.version, commit).await?.committed().map(|_| gone.rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_written_in_four_ways() {
        assert_eq!("earliest".parse(), Ok(Position::Earliest));
        assert_eq!("latest".parse(), Ok(Position::Latest));
        assert_eq!("42".parse(), Ok(Position::Offset(42)));
        let time = "1970-01-01T01:00:01+01:00".parse();
        assert_eq!(time, Ok(Position::Time(DateTime::UNIX_EPOCH + chrono::TimeDelta::seconds(1))));
        for wrong in ["", "-1", "first", "2026-01-31", "1.5"] {
            assert!(wrong.parse::<Position>().is_err(), "{wrong} was taken");
        }
    }
}
