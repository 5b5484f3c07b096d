//! Dead letters sent through the decoder again, once: those that it can read by now, or with a corrected payload, become rows.
//!
//! ```text
//! letters ──► chunk ──► consumed? ──► there already? ──► decode ──► rows + replay id, one commit
//!             (bounded)  (bronze's ledger and rows, both at one version V)    (void if another replay came after V)
//! ```
//!
//! A chunk is bound to the version of bronze at which it was looked up what is there already, and moves one ledger entry that
//! all replays of the topic share. Of two replays at once one finds that entry moved, looks again, and sends what is still
//! missing. Ingest of the same topic goes on beside it: its entries are others. Killed and repeated, what was committed is
//! found to be there.

mod again;
mod payloads;
mod report;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use futures::TryStreamExt as _;
use lakehouse::{
    Commit, IngestInfo, Lake, Operation, Outcome, REPLAY_COLUMN, Replay, Scan, SessionFactory, StageOptions, Table,
    TableVersion, incarnation_app_id, ingest_app_id, replay_app_id,
};
use serde::Serialize;
use uuid::Uuid;

pub use report::{Example, Report, Undecodable};

use crate::decode::{self, Decoder};
use crate::letters::{Among, Letter, Letters, Place, Selection, groups, present};
use crate::topic::TopicSpec;
use crate::{Error, ErrorKind, Result};
use payloads::Payloads;

/// So many letters at most go into one commit.
const CHUNK_LETTERS: usize = 20_000;
/// A commit is closed at about so many bytes of letters too.
const CHUNK_BYTES: usize = 32 << 20;
/// So often a chunk is looked up anew because somebody else committed first.
const ATTEMPTS_MAX: u32 = 64;

/// What to send through again.
#[derive(Debug, Clone)]
pub struct Options {
    /// The topic and its tables, as the settings describe them by now.
    pub topic: TopicSpec,
    /// Which of its letters.
    pub selection: Selection,
    /// A file of corrected payloads. With one only the letters that it names are sent.
    pub payloads: Option<PathBuf>,
    /// Whether anything is written.
    pub mode: Mode,
}

/// Whether anything is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Rows are committed.
    Commit,
    /// All is tried, and nothing committed.
    DryRun,
}

/// Sends the selected letters of a topic through again.
///
/// # Errors
/// `BadConfig`, before anything is written, if the file of payloads is damaged or names a letter that is not there. `NotFound`
/// if there is no table of rows. After `Unavailable` some of the letters may have become rows: repeating it sends the rest.
pub async fn run(lake: &Lake, options: Options) -> Result<Report> {
    options.topic.check()?;
    let Options { topic, selection, payloads, mode } = options;
    let selection = Selection { topic: Some(topic.name.clone()), ..selection };
    let letters = match lake.table(&topic.dead_letters).head().await {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        letters => Some(letters?),
    };
    let mut payloads = payloads.map(Payloads::open).transpose()?;
    let scan = letters.map(|letters| {
        let columns = Letters::columns(&letters, &Letters::WHOLE);
        (Scan::new(letters.clone(), lake.session_factory(), selection.filter()), letters, columns)
    });
    if let Some(payloads) = &mut payloads {
        if let Some((scan, letters, _)) = &scan {
            name_letters(scan, letters, payloads).await?;
        }
        payloads.check_all_named(&topic)?;
    }
    let mut report = Report::new(&topic.name, mode);
    let Some((scan, _, columns)) = scan else { return Ok(report) };
    let sender = Sender::new(lake, topic, mode);
    let mut chunk = Chunk::default();
    for group in groups(scan.files()?) {
        let mut batches = scan.read(group, &columns).await?;
        while let Some(batch) = batches.try_next().await? {
            for mut letter in Letters::of(&batch)?.letters()? {
                if let Some(payloads) = &mut payloads
                    && !payloads.correct(&mut letter)?
                {
                    continue;
                }
                chunk.push(letter);
                if chunk.is_full() {
                    sender.send(std::mem::take(&mut chunk), &mut report).await?;
                }
            }
        }
    }
    sender.send(chunk, &mut report).await?;
    Ok(report)
}

/// Notes which letters there are of those that the file names.
async fn name_letters(scan: &Scan, letters: &TableVersion, payloads: &mut Payloads) -> Result<()> {
    let columns = Letters::columns(letters, &[]);
    for group in groups(scan.files()?) {
        let mut batches = scan.read(group, &columns).await?;
        while let Some(batch) = batches.try_next().await? {
            let letters = Letters::of(&batch)?;
            (0..batch.num_rows()).for_each(|row| payloads.found(letters.places.get(row)));
        }
    }
    Ok(())
}

/// Letters that are sent together.
#[derive(Debug, Default)]
struct Chunk {
    letters: Vec<Letter>,
    bytes: usize,
}

impl Chunk {
    fn push(&mut self, letter: Letter) {
        self.bytes += letter.bytes();
        self.letters.push(letter);
    }

    fn is_full(&self) -> bool {
        self.letters.len() >= CHUNK_LETTERS || self.bytes >= CHUNK_BYTES
    }
}

/// Sends chunk after chunk.
struct Sender {
    topic: TopicSpec,
    mode: Mode,
    bronze: Table,
    sessions: SessionFactory,
    decoder: Box<dyn Decoder>,
    clock: Arc<dyn lakehouse::Clock>,
    /// What the rows carry.
    id: String,
}

/// Bronze at one version, and what its ledger says there.
struct Bound {
    version: Arc<TableVersion>,
    ledger: BTreeMap<String, i64>,
}

impl Sender {
    fn new(lake: &Lake, topic: TopicSpec, mode: Mode) -> Self {
        Self {
            bronze: lake.table(&topic.table),
            sessions: lake.session_factory(),
            decoder: decode::decoder_for(&topic),
            clock: lake.clock().clone(),
            id: Uuid::new_v4().to_string(),
            topic,
            mode,
        }
    }

    async fn send(&self, chunk: Chunk, report: &mut Report) -> Result<()> {
        let mut letters = chunk.letters;
        report.selected += letters.len() as u64;
        letters.sort_by_key(|letter| letter.place);
        let selected = letters.len();
        // None is there twice, but if one were it would be one row.
        letters.dedup_by_key(|letter| letter.place);
        let doubled = (selected - letters.len()) as u64;
        for _ in 0..ATTEMPTS_MAX {
            let (due, mut outcome) = self.due(&letters).await?;
            outcome.already_there += doubled;
            let Some((bound, due)) = due else {
                report.add(outcome);
                return Ok(());
            };
            let again = again::decode(self.decoder.as_ref(), &self.topic, &due, &self.id, self.clock.now())?;
            outcome.fail(&due, again.failed);
            outcome.replayed = again.rows.iter().map(|rows| rows.num_rows() as u64).sum();
            if outcome.replayed == 0 || self.mode == Mode::DryRun {
                report.add(outcome);
                return Ok(());
            }
            if !bound.version.has_column(REPLAY_COLUMN) {
                self.add_column().await?;
                continue;
            }
            if let Outcome::Committed(version) = self.commit(&bound, again.rows, outcome.replayed).await? {
                tracing::info!(table = %self.bronze.name(), version, rows = outcome.replayed, id = self.id, "replayed");
                report.add(outcome);
                report.committed(&self.id);
                return Ok(());
            }
        }
        let message = format!(
            "another replay of topic {} committed first {ATTEMPTS_MAX} times in a row: repeat this one when it has ended",
            self.topic.name
        );
        Err(Error::new(ErrorKind::Conflict, message))
    }

    /// Those of the letters that are consumed and no rows yet, with the version of bronze at which that is so.
    async fn due<'a>(&self, letters: &'a [Letter]) -> Result<(Option<(Bound, Vec<&'a Letter>)>, report::Outcome)> {
        let mut outcome = report::Outcome::default();
        if letters.is_empty() {
            return Ok((None, outcome));
        }
        let bound = self.bind(letters).await?;
        let consumed: HashSet<Place> =
            letters.iter().map(|letter| letter.place).filter(|&place| self.is_consumed(&bound, place)).collect();
        outcome.not_yet_consumed = (letters.len() - consumed.len()) as u64;
        let there = present(&bound.version, &self.sessions, &consumed, Among::Rows).await?;
        outcome.already_there = there.len() as u64;
        let is_due = |letter: &&Letter| consumed.contains(&letter.place) && !there.contains(&letter.place);
        Ok((Some((bound, letters.iter().filter(is_due).collect())), outcome))
    }

    /// Reads bronze's ledger, and bronze as it was then.
    async fn bind(&self, letters: &[Letter]) -> Result<Bound> {
        let topic = &self.topic.name;
        let partitions: BTreeSet<i32> = letters.iter().map(|letter| letter.place.partition).collect();
        let of_partition = |&partition: &i32| [ingest_app_id(topic, partition), incarnation_app_id(topic, partition)];
        let mut app_ids: Vec<String> = partitions.iter().flat_map(of_partition).collect();
        app_ids.push(replay_app_id(topic));
        let ledger = self.bronze.ledger(&app_ids).await?;
        Ok(Bound { version: self.bronze.at(ledger.version).await?, ledger: ledger.entries })
    }

    /// Letters are committed before the rows beside them. Those whose rows are still to come may be read again by ingest.
    fn is_consumed(&self, bound: &Bound, place: Place) -> bool {
        let entry = |app_id: String| bound.ledger.get(&app_id).copied();
        let incarnation = entry(incarnation_app_id(&self.topic.name, place.partition)).unwrap_or(0);
        let next = entry(ingest_app_id(&self.topic.name, place.partition));
        let ours = i64::from(place.incarnation);
        ours < incarnation || (ours == incarnation && next.is_some_and(|next| place.offset < next))
    }

    async fn add_column(&self) -> Result<()> {
        self.bronze.add_columns(&[Field::new(REPLAY_COLUMN, DataType::Utf8, true)]).await?;
        Ok(())
    }

    async fn commit(&self, bound: &Bound, rows: Vec<arrow::array::RecordBatch>, count: u64) -> Result<Outcome> {
        let mut commit = Commit::new(Operation::Write);
        commit.adds = self.bronze.stage_batches(&bound.version, rows, &StageOptions::default()).await?;
        let app_id = replay_app_id(&self.topic.name);
        let replays = bound.ledger.get(&app_id).copied().unwrap_or(0);
        commit.transactions.insert(app_id, replays + 1);
        let mut info = IngestInfo::new(&self.topic.name, "", self.topic.dead_letters.clone());
        info.replay = Some(Replay { id: self.id.clone(), rows: count });
        commit.record_ingest(&info)?;
        self.bronze.append(bound.version.version, commit).await
    }
}
