//! The command line, as it is written: raw flags, nothing decided. [`crate::settings`] makes settings of them.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand};
use ingest::consume::{AcceptedGap, Position};

/// A live event stream becomes tested, query-ready tables on storage that you own.
#[derive(Debug, Parser)]
#[command(name = "lakebeat", version, about, max_term_width = 120)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Settings file [default: lakebeat.toml if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Folder for the lake and the embedded broker [default: ./lakebeat-data]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) data_dir: Option<String>,
    /// The lake: a folder, file:// or s3:// [default: DATA_DIR/lake]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) lake: Option<String>,
    /// error, warn, info, debug or trace [default: info for services, warn for the rest]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// Print results as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Everything in one process: broker, simulator, ingest, transforms, doors
    Up(Up),
    /// The embedded Kafka broker alone
    Broker(Broker),
    /// Produce listening events
    Simulate(Simulate),
    /// Kafka to bronze, exactly once
    Ingest(Ingest),
    /// Look at what could not be decoded
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Build models
    #[command(subcommand)]
    Transform(Transform),
    /// The three doors on a lake: Flight SQL, PostgreSQL, console
    Serve(Doors),
    /// Gold to Snowflake, one publication as one transaction
    Mirror(Mirror),
    /// One query on the lake
    Sql(Sql),
    /// Audit the lake: logs, files, publications, offsets, ledger and rows; with --deep, models against their queries
    Verify(Verify),
    /// Look at tables
    #[command(subcommand)]
    Table(Table),
    /// Look at publications
    #[command(subcommand)]
    Publication(Publication),
    /// Check configuration, broker, lake and ports, and say what to do
    Doctor(Doctor),
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) kafka: Kafka,
    /// Port of the embedded broker [default: 9092]
    #[arg(long, value_name = "PORT")]
    pub(crate) kafka_port: Option<String>,
    #[command(flatten)]
    pub(crate) doors: Doors,
    /// Simulated events a second [default: 20]
    #[arg(long, value_name = "N", conflicts_with = "no_simulate")]
    pub(crate) rate: Option<String>,
    /// Produce nothing; another producer does
    #[arg(long)]
    pub(crate) no_simulate: bool,
    /// dbt project to build [default: the bundled one]
    #[arg(long, value_name = "DIR")]
    pub(crate) project: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) gaps: Gaps,
}

#[derive(Debug, Args)]
pub(crate) struct Broker {
    /// Port to listen on [default: 9092]
    #[arg(long, value_name = "PORT")]
    pub(crate) kafka_port: Option<String>,
    /// Let other machines in without login and encryption
    #[arg(long)]
    pub(crate) insecure: bool,
}

/// Where the events are.
#[derive(Debug, Args, Default)]
pub(crate) struct Kafka {
    /// Kafka brokers, host:port, several with commas
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) brokers: Option<String>,
    /// Topic [default: all of [[topics]], or spotify_events]
    #[arg(long, value_name = "NAME")]
    pub(crate) topic: Option<String>,
}

/// Where the doors listen.
#[derive(Debug, Args, Default)]
pub(crate) struct Doors {
    /// Address that all doors listen on [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<String>,
    /// Flight SQL [default: 31337]
    #[arg(long, value_name = "PORT")]
    pub(crate) flight_port: Option<String>,
    /// PostgreSQL wire protocol [default: 5433]
    #[arg(long, value_name = "PORT")]
    pub(crate) postgres_port: Option<String>,
    /// Web console [default: 8080]
    #[arg(long, value_name = "PORT")]
    pub(crate) console_port: Option<String>,
    /// Let other machines in without login and encryption
    #[arg(long)]
    pub(crate) insecure: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Simulate {
    #[command(flatten)]
    pub(crate) kafka: Kafka,
    /// Messages to send [default: for ever]
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// Messages a second, 0 for as fast as it goes [default: 20]
    #[arg(long, value_name = "N")]
    pub(crate) rate: Option<String>,
    /// Listeners [default: 100]
    #[arg(long, value_name = "N")]
    pub(crate) users: Option<String>,
    /// The same seed gives the same messages
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Share of faulty messages, 0 to 1
    #[arg(long, value_name = "FRACTION", default_value_t = 0.0, value_parser = fraction)]
    pub(crate) dirty: f64,
    /// Write a JSON line for each delivered message
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Ingest {
    #[command(subcommand)]
    pub(crate) action: Option<IngestAction>,
    #[command(flatten)]
    pub(crate) kafka: Kafka,
    /// Consumer group; with it several processes share the topic [default: one process, group lakebeat]
    #[arg(long, value_name = "ID")]
    pub(crate) group: Option<String>,
    /// Stop at the end offsets seen at the start
    #[arg(long)]
    pub(crate) until_end: bool,
    #[command(flatten)]
    pub(crate) gaps: Gaps,
}

/// What else can be done with a topic's ledger and tables than to go on.
#[derive(Debug, Subcommand)]
pub(crate) enum IngestAction {
    /// Send dead letters through the decoder again, once
    Replay(Replay),
    /// Set where a topic is read next: forward is a recorded gap, back takes the rows out and reads them again
    Reset(Reset),
}

#[derive(Debug, Args)]
pub(crate) struct Reset {
    #[command(flatten)]
    pub(crate) kafka: Kafka,
    /// This partition; several are each of them [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) partition: Vec<i32>,
    /// earliest, latest, an offset, or a time such as 2026-01-31T08:00:00Z
    #[arg(long, value_name = "PLACE")]
    pub(crate) to: Position,
}

/// Gaps that are gone on without.
#[derive(Debug, Args, Default)]
pub(crate) struct Gaps {
    /// Go on without offsets that are gone, as the error about them writes it; several are each of them
    #[arg(long = "accept-gap", value_name = "TOPIC:PARTITION:FROM-TO")]
    pub(crate) accept_gap: Vec<AcceptedGap>,
}

#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// Topic [default: spotify_events]
    #[arg(long, value_name = "NAME")]
    pub(crate) topic: Option<String>,
    #[command(flatten)]
    pub(crate) letters: Letters,
    /// JSON lines with corrected payloads; only the letters that they name are sent
    #[arg(long, value_name = "FILE")]
    pub(crate) payloads: Option<PathBuf>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLetters {
    /// How many there are for which reason, and the newest of them
    Ls {
        /// Letters of this topic only
        #[arg(long, value_name = "NAME")]
        topic: Option<String>,
        #[command(flatten)]
        letters: Letters,
        /// Letters to show; all are counted
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(..=10_000))]
        limit: u32,
    },
}

/// Which dead letters; without any of these all of them.
#[derive(Debug, Args)]
pub(crate) struct Letters {
    /// Of this reason, such as not_json; several are any of them
    #[arg(long, value_name = "REASON", value_parser = reasons(), hide_possible_values = true)]
    pub(crate) reason: Vec<String>,
    /// Of this partition; several are any of them
    #[arg(long, value_name = "N")]
    pub(crate) partition: Vec<i32>,
    /// At these offsets, both ends included, or at one; several are any of them
    #[arg(long, value_name = "FROM-TO", value_parser = offsets)]
    pub(crate) offsets: Vec<RangeInclusive<i64>>,
    /// Written at this time or later, such as 2026-01-31T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) since: Option<DateTime<Utc>>,
    /// Written before this time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) until: Option<DateTime<Utc>>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Transform {
    /// Refresh, test, commit, publish
    Build {
        #[command(flatten)]
        models: Models,
        /// Go on building whenever something is new
        #[arg(long)]
        watch: bool,
    },
    /// Refresh and commit, without tests and without a publication
    Run {
        #[command(flatten)]
        models: Models,
    },
    /// Run the data tests on what is there
    Test {
        #[command(flatten)]
        models: Models,
    },
    /// How each model would be refreshed, and why
    Explain {
        #[command(flatten)]
        models: Models,
    },
    /// The models, in the order in which they are built
    Ls {
        #[command(flatten)]
        models: Models,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Models {
    /// dbt project [default: the bundled one]
    #[arg(long, value_name = "DIR")]
    pub(crate) project: Option<PathBuf>,
    /// Models: a name, tag:…, path:…, with + before or after
    #[arg(long, value_name = "SELECTOR", num_args = 1..)]
    pub(crate) select: Vec<String>,
    /// Build from all rows, whatever is there
    #[arg(long)]
    pub(crate) full_refresh: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Mirror {
    /// Bring the mirror to the newest publication and end [default]
    #[arg(long, conflicts_with = "every")]
    pub(crate) once: bool,
    /// Go on, looking for a new publication so often: 30s, 5m, 1h, or seconds
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) every: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct Sql {
    /// The statement
    pub(crate) statement: String,
    /// Print as CSV
    #[arg(long, conflicts_with = "json")]
    pub(crate) csv: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Also run the query of each model anew, and compare its table row by row
    #[arg(long)]
    pub(crate) deep: bool,
    /// Compare only such a share of the rows, always the same ones by a hash of their keys
    #[arg(long, value_name = "FRACTION", requires = "deep", value_parser = share)]
    pub(crate) sample: Option<f64>,
    /// dbt project [default: the bundled one]
    #[arg(long, value_name = "DIR", requires = "deep")]
    pub(crate) project: Option<PathBuf>,
    /// Models to compare: a name, tag:…, path:…, with + before or after
    #[arg(long, value_name = "SELECTOR", num_args = 1.., requires = "deep")]
    pub(crate) select: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Table {
    /// Every table with its version, files, rows and bytes
    Ls,
    /// The commits of a table, newest first
    History {
        /// The table, such as gold.top_songs
        name: String,
        /// Commits to show
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Puts all small files of a table together
    Compact {
        /// The table, such as bronze.spotify_events
        name: String,
    },
    /// Deletes files that neither the newest version nor a kept publication needs, after it has said which and asked
    Vacuum {
        /// The table, such as gold.top_songs
        name: String,
        /// Only says what it would delete
        #[arg(long)]
        dry_run: bool,
        /// Does not ask
        #[arg(long)]
        yes: bool,
    },
    /// Puts back what a table was at an older version, its ledger included, after it has said what that does and asked
    Restore {
        /// The table, such as gold.top_songs
        name: String,
        /// The version to put back
        #[arg(long, required_unless_present = "publication")]
        version: Option<u64>,
        /// The version that this publication names
        #[arg(long, conflicts_with = "version")]
        publication: Option<u64>,
        /// Only says what it would do
        #[arg(long)]
        dry_run: bool,
        /// Does not ask
        #[arg(long)]
        yes: bool,
    },
    /// Copies the lake to another place, after it has said what that takes and asked; again, only what is new
    Export {
        /// Where to: a folder, file:// or s3://
        to: String,
        #[command(flatten)]
        copy: Copying,
    },
    /// Copies another lake to the place of this one, after it has said what that takes and asked
    Import {
        /// The other lake: a folder, file:// or s3://
        from: String,
        #[command(flatten)]
        copy: Copying,
    },
}

/// What of a lake is copied, and whether it is asked before.
#[derive(Debug, Args)]
pub(crate) struct Copying {
    /// Only this table, such as gold.top_songs; several are each of them [default: all]
    #[arg(long, value_name = "NAME")]
    pub(crate) table: Vec<String>,
    /// Only says what it would copy
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Does not ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Publication {
    /// The publications that are kept, newest first
    Ls {
        /// Publications to show
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    pub(crate) kafka: Kafka,
    /// Port of the embedded broker [default: 9092]
    #[arg(long, value_name = "PORT")]
    pub(crate) kafka_port: Option<String>,
    #[command(flatten)]
    pub(crate) doors: Doors,
}

/// A time that passes: a number and a unit, or seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds: Option<u64> = match &text[digits.len()..] {
        "" | "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3_600),
        "d" => Some(86_400),
        _ => None,
    };
    let seconds = seconds.and_then(|unit| digits.parse::<u64>().ok()?.checked_mul(unit));
    match seconds {
        // More than a year is a slip, and far more than any timer takes.
        Some(seconds @ 1..=31_622_400) => Ok(Duration::from_secs(seconds)),
        _ => Err("write a time between 1s and 366d, such as 30s, 5m or 1h".to_owned()),
    }
}

/// The reasons that a letter can have.
fn reasons() -> PossibleValuesParser {
    PossibleValuesParser::new(ingest::decode::Reason::ALL.map(ingest::decode::Reason::code))
}

/// A run of offsets with both its ends, or one.
fn offsets(text: &str) -> Result<RangeInclusive<i64>, String> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    match (from.parse(), to.parse()) {
        (Ok(from), Ok(to)) if 0 <= from && from <= to => Ok(from..=to),
        _ => Err("write one offset or two with a dash, the smaller first, such as 17 or 100-199".to_owned()),
    }
}

/// A point in time.
fn moment(text: &str) -> Result<DateTime<Utc>, String> {
    let parsed = DateTime::parse_from_rfc3339(text).map(|time| time.to_utc());
    parsed.map_err(|error| format!("{error}; write a time with its zone, such as 2026-01-31T08:00:00Z"))
}

/// A share of a whole. Told here, so that a wrong one is wrong before any broker is asked.
fn fraction(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("write a number between 0 and 1, such as 0.02".to_owned()),
    }
}

/// A share that is more than nothing.
fn share(text: &str) -> Result<f64, String> {
    match fraction(text) {
        Ok(share) if share > 0.0 => Ok(share),
        _ => Err("write a number above 0 and up to 1, such as 0.1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_offsets() {
        for (text, range) in [("17", 17..=17), ("0-0", 0..=0), ("100-199", 100..=199)] {
            assert_eq!(offsets(text), Ok(range), "{text}");
        }
        for wrong in ["", "-", "5-", "-5", "7-5", "a-b", "1-2-3", "1..2", "99999999999999999999"] {
            assert!(offsets(wrong).is_err(), "{wrong} was taken");
        }
    }

    #[test]
    fn ingest_has_flags_of_its_own_or_an_action() {
        let parse = |words: &str| Cli::try_parse_from(words.split(' '));
        assert!(parse("lakebeat ingest --topic t --until-end").is_ok());
        let replay = parse("lakebeat ingest replay --topic t --reason empty --reason not_json --offsets 1-2 --json");
        let Ok(Cli { command: Command::Ingest(Ingest { action: Some(IngestAction::Replay(replay)), .. }), common }) =
            replay
        else {
            panic!("{replay:?}");
        };
        assert_eq!((replay.topic.as_deref(), replay.letters.reason.len(), common.json), (Some("t"), 2, true));
        assert!(parse("lakebeat ingest --until-end replay").is_err(), "neither would do what it says");
        assert!(parse("lakebeat ingest replay --since yesterday").is_err());
    }

    #[test]
    fn times_that_pass() {
        for (text, seconds) in [("1", 1), ("60", 60), ("30s", 30), ("5m", 300), ("2h", 7_200), ("366d", 31_622_400)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for wrong in ["", "0", "0s", "s", "-1", "1.5s", "5 m", "5x", "5mm", "367d", "99999999999999999999", "5é"] {
            assert!(duration(wrong).is_err(), "{wrong} was taken");
        }
    }
}
