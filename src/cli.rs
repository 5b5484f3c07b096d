//! The command line, as it is written: raw flags, nothing decided. [`crate::settings`] makes settings of them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

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
    /// Build models
    #[command(subcommand)]
    Transform(Transform),
    /// The three doors on a lake: Flight SQL, PostgreSQL, console
    Serve(Doors),
    /// Gold to Snowflake, one publication as one transaction
    Mirror(Mirror),
    /// One query on the lake
    Sql(Sql),
    /// Audit bronze: offsets, ledger and rows
    Verify,
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
pub(crate) struct Ingest {
    #[command(flatten)]
    pub(crate) kafka: Kafka,
    /// Consumer group; with it several processes share the topic [default: one process, group lakebeat]
    #[arg(long, value_name = "ID")]
    pub(crate) group: Option<String>,
    /// Stop at the end offsets seen at the start
    #[arg(long)]
    pub(crate) until_end: bool,
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

/// A share of a whole. Told here, so that a wrong one is wrong before any broker is asked.
fn fraction(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("write a number between 0 and 1, such as 0.02".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
