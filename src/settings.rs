//! Settings: raw flags and layers in, plain values out. Nothing else in the program reads the environment or a file for them.

mod aws_files;
mod dotenv;
mod kafka;
mod lake;
mod layers;
mod snowflake;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use ingest::consume::AcceptedGap;
use ingest::kafka::Properties;
use ingest::topic::TopicSpec;
use lakehouse::StorageOptions;
use url::Url;

use crate::cli::{Cli, Command, Doors, Ingest, IngestAction, Kafka, Table, Transform};
use crate::output::Fault;
use layers::{Layers, Setting};
use snowflake::SnowflakeSettings;

const DATA_DIR: Setting = Setting { key: "data_dir", variables: &["LAKEBEAT_DATA_DIR"] };
const LOG_LEVEL: Setting = Setting { key: "log_level", variables: &["LAKEBEAT_LOG_LEVEL"] };
const BROKERS: Setting = Setting {
    key: "kafka.brokers",
    variables: &["LAKEBEAT_BROKERS", "KAFKA_BOOTSTRAP_SERVERS", "KAFKA_BOOTSTRAP_SERVER"],
};
const TOPIC: Setting = Setting { key: "kafka.topic", variables: &["LAKEBEAT_TOPIC", "KAFKA_TOPIC"] };
const GROUP: Setting = Setting { key: "kafka.group", variables: &["LAKEBEAT_GROUP", "KAFKA_GROUP_ID"] };
const LISTEN: Setting = Setting { key: "ports.listen", variables: &["LAKEBEAT_LISTEN"] };
const KAFKA_PORT: Setting = Setting { key: "ports.kafka", variables: &["LAKEBEAT_KAFKA_PORT"] };
const FLIGHT_PORT: Setting = Setting { key: "ports.flight", variables: &["LAKEBEAT_FLIGHT_PORT"] };
const POSTGRES_PORT: Setting = Setting { key: "ports.postgres", variables: &["LAKEBEAT_POSTGRES_PORT"] };
const CONSOLE_PORT: Setting = Setting { key: "ports.console", variables: &["LAKEBEAT_CONSOLE_PORT"] };
const RATE: Setting = Setting { key: "simulate.rate", variables: &["LAKEBEAT_RATE"] };
const INTERVAL: Setting = Setting { key: "simulate.interval_seconds", variables: &["EVENT_INTERVAL_SECONDS"] };
const USERS: Setting = Setting { key: "simulate.users", variables: &["LAKEBEAT_USERS", "USER_COUNT"] };
const FLUSH_MILLIS: Setting = Setting { key: "ingest.flush_millis", variables: &["LAKEBEAT_FLUSH_MILLIS"] };
const FLUSH_ROWS: Setting = Setting { key: "ingest.flush_rows", variables: &["LAKEBEAT_FLUSH_ROWS", "BATCH_SIZE"] };
const FLUSH_BYTES: Setting = Setting { key: "ingest.flush_bytes", variables: &["LAKEBEAT_FLUSH_BYTES"] };
const MEMORY_BYTES: Setting = Setting { key: "query.memory_bytes", variables: &["LAKEBEAT_QUERY_MEMORY_BYTES"] };
const TIMEOUT_SECONDS: Setting =
    Setting { key: "query.timeout_seconds", variables: &["LAKEBEAT_QUERY_TIMEOUT_SECONDS"] };
/// Every setting there is besides those of Kafka's security, of the lake and of Snowflake, so that an unknown name can be told.
const ALL: &[&Setting] = &[
    &DATA_DIR,
    &LOG_LEVEL,
    &BROKERS,
    &TOPIC,
    &GROUP,
    &LISTEN,
    &KAFKA_PORT,
    &FLIGHT_PORT,
    &POSTGRES_PORT,
    &CONSOLE_PORT,
    &RATE,
    &INTERVAL,
    &USERS,
    &FLUSH_MILLIS,
    &FLUSH_ROWS,
    &FLUSH_BYTES,
    &MEMORY_BYTES,
    &TIMEOUT_SECONDS,
];

/// `BATCH_SIZE` of the replaced pipeline was rows a file; a Delta commit for so few is honoured, but costs more than the rows.
const FLUSH_ROWS_SENSIBLE: usize = 1_000;

/// Where the embedded broker and the doors listen.
#[derive(Debug, Clone)]
pub(crate) struct Ports {
    pub(crate) listen: IpAddr,
    pub(crate) kafka: u16,
    pub(crate) flight: u16,
    pub(crate) postgres: u16,
    pub(crate) console: u16,
    pub(crate) exposure: flight_server::Exposure,
}

/// All settings, resolved.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) data_dir: PathBuf,
    pub(crate) lake: Url,
    pub(crate) storage: StorageOptions,
    /// The lake that is copied from or to.
    pub(crate) other_lake: Option<(Url, StorageOptions)>,
    pub(crate) log_level: String,
    /// Brokers that somebody named; the embedded one otherwise.
    pub(crate) brokers: Option<String>,
    pub(crate) kafka_properties: Properties,
    /// One at least. Each has a name and a table of its own.
    pub(crate) topics: Vec<TopicSpec>,
    /// A consumer group that somebody named.
    pub(crate) group: Option<String>,
    pub(crate) ports: Ports,
    /// Simulated events a second.
    pub(crate) rate: f64,
    pub(crate) users: u32,
    pub(crate) flush_interval: Duration,
    pub(crate) flush_rows: usize,
    pub(crate) flush_bytes: usize,
    /// Offsets that are gone and that the user goes on without.
    pub(crate) accepted_gaps: Vec<AcceptedGap>,
    pub(crate) query_memory_bytes: usize,
    pub(crate) query_timeout: Duration,
    pub(crate) snowflake: SnowflakeSettings,
    /// For `env_var` in models.
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) json: bool,
}

impl Settings {
    /// Reads everything that can set something, and refuses what is unknown or does not fit.
    pub(crate) fn read(cli: &Cli) -> anyhow::Result<Self> {
        let known: Vec<&Setting> =
            ALL.iter().chain(kafka::ALL).chain(lake::ALL).chain(snowflake::ALL).copied().collect();
        let layers = Layers::read(cli.common.config.as_deref(), &known)?;
        let flags = CommandFlags::of(&cli.command);
        let data_dir: PathBuf = layers
            .pick(("--data-dir", cli.common.data_dir.as_ref()), &DATA_DIR)?
            .unwrap_or_else(|| PathBuf::from("lakebeat-data"));
        let (lake, storage) = lake::read(cli.common.lake.as_ref(), &layers, &data_dir)?;
        let log_level = layers.pick(("--log-level", cli.common.log_level.as_ref()), &LOG_LEVEL)?;
        let none = ("", None);
        let flush_rows: usize = layers.pick(none, &FLUSH_ROWS)?.unwrap_or(100_000);
        Ok(Self {
            data_dir,
            lake,
            storage,
            other_lake: flags.other_lake.map(|text| lake::other(text, &layers)).transpose()?,
            log_level: log_level.unwrap_or_else(|| default_log_level(&cli.command).to_owned()),
            brokers: layers.pick(("--brokers", flags.kafka.and_then(|kafka| kafka.brokers.as_ref())), &BROKERS)?,
            kafka_properties: kafka::properties(&layers)?,
            topics: kafka::topics(&layers, flags.topic.or(flags.kafka.and_then(|kafka| kafka.topic.as_ref())))?,
            group: layers.pick(("--group", flags.group), &GROUP)?,
            ports: ports(&layers, &flags)?,
            rate: rate(&layers, flags.rate)?,
            users: layers.pick(("--users", flags.users), &USERS)?.unwrap_or(100),
            flush_interval: Duration::from_millis(layers.pick(none, &FLUSH_MILLIS)?.unwrap_or(1_000)),
            flush_rows,
            flush_bytes: layers.pick(none, &FLUSH_BYTES)?.unwrap_or(48 << 20),
            accepted_gaps: flags.accepted_gaps.to_vec(),
            query_memory_bytes: layers.pick(none, &MEMORY_BYTES)?.unwrap_or(1 << 30),
            query_timeout: Duration::from_secs(layers.pick(none, &TIMEOUT_SECONDS)?.unwrap_or(300)),
            snowflake: SnowflakeSettings::read(&layers)?,
            environment: layers.environment(),
            json: cli.common.json,
        })
    }

    /// Says what is honoured although it is not wise. After the log has begun.
    pub(crate) fn warn(&self) {
        if self.flush_rows < FLUSH_ROWS_SENSIBLE {
            tracing::warn!(
                rows = self.flush_rows,
                "BATCH_SIZE or ingest.flush_rows is small: each commit of so few rows makes a file of its own"
            );
        }
    }
}

/// The flags that several commands have, wherever they stand.
#[derive(Default)]
struct CommandFlags<'a> {
    kafka: Option<&'a Kafka>,
    /// The topic, where nothing else of Kafka can be named.
    topic: Option<&'a String>,
    doors: Option<&'a Doors>,
    kafka_port: Option<&'a String>,
    group: Option<&'a String>,
    rate: Option<&'a String>,
    users: Option<&'a String>,
    accepted_gaps: &'a [AcceptedGap],
    other_lake: Option<&'a String>,
    insecure: bool,
}

impl<'a> CommandFlags<'a> {
    fn of(command: &'a Command) -> Self {
        match command {
            Command::Up(up) => Self {
                kafka: Some(&up.kafka),
                doors: Some(&up.doors),
                kafka_port: up.kafka_port.as_ref(),
                insecure: up.doors.insecure,
                rate: up.rate.as_ref(),
                accepted_gaps: &up.gaps.accept_gap,
                ..Self::default()
            },
            Command::Broker(broker) => {
                Self { kafka_port: broker.kafka_port.as_ref(), insecure: broker.insecure, ..Self::default() }
            }
            Command::Simulate(simulate) => Self {
                kafka: Some(&simulate.kafka),
                rate: simulate.rate.as_ref(),
                users: simulate.users.as_ref(),
                ..Self::default()
            },
            Command::Ingest(Ingest { action: Some(IngestAction::Replay(replay)), .. }) => {
                Self { topic: replay.topic.as_ref(), ..Self::default() }
            }
            Command::Ingest(Ingest { action: Some(IngestAction::Reset(reset)), .. }) => {
                Self { kafka: Some(&reset.kafka), ..Self::default() }
            }
            Command::Ingest(ingest) => Self {
                kafka: Some(&ingest.kafka),
                group: ingest.group.as_ref(),
                accepted_gaps: &ingest.gaps.accept_gap,
                ..Self::default()
            },
            Command::Table(Table::Export { to: other, .. } | Table::Import { from: other, .. }) => {
                Self { other_lake: Some(other), ..Self::default() }
            }
            Command::Serve(doors) => Self { doors: Some(doors), insecure: doors.insecure, ..Self::default() },
            Command::Doctor(doctor) => Self {
                kafka: Some(&doctor.kafka),
                doors: Some(&doctor.doors),
                kafka_port: doctor.kafka_port.as_ref(),
                insecure: doctor.doors.insecure,
                ..Self::default()
            },
            _ => Self::default(),
        }
    }
}

/// Services tell what they do; a command that prints a result stays silent besides it.
fn default_log_level(command: &Command) -> &'static str {
    match command {
        Command::Up(_) | Command::Broker(_) | Command::Serve(_) | Command::Ingest(Ingest { action: None, .. }) => {
            "info"
        }
        Command::Transform(Transform::Build { watch: true, .. }) => "info",
        Command::Mirror(mirror) if mirror.every.is_some() => "info",
        _ => "warn",
    }
}

fn ports(layers: &Layers, flags: &CommandFlags<'_>) -> anyhow::Result<Ports> {
    let doors = flags.doors;
    let pick = |name, flag: Option<&String>, setting, default| {
        layers.pick::<u16>((name, flag), setting).map(|port| port.unwrap_or(default))
    };
    let listen = layers.pick(("--listen", doors.and_then(|doors| doors.listen.as_ref())), &LISTEN)?;
    Ok(Ports {
        listen: listen.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        kafka: pick("--kafka-port", flags.kafka_port, &KAFKA_PORT, 9092)?,
        flight: pick("--flight-port", doors.and_then(|doors| doors.flight_port.as_ref()), &FLIGHT_PORT, 31337)?,
        postgres: pick("--postgres-port", doors.and_then(|doors| doors.postgres_port.as_ref()), &POSTGRES_PORT, 5433)?,
        console: pick("--console-port", doors.and_then(|doors| doors.console_port.as_ref()), &CONSOLE_PORT, 8080)?,
        exposure: if flags.insecure {
            flight_server::Exposure::Insecure
        } else {
            flight_server::Exposure::LoopbackOnly
        },
    })
}

/// Events a second; the replaced pipeline set the pause between two instead.
fn rate(layers: &Layers, flag: Option<&String>) -> anyhow::Result<f64> {
    let interval: Option<f64> = layers.pick(("", None), &INTERVAL)?;
    let rate: Option<f64> = layers.pick(("--rate", flag), &RATE)?;
    if interval.is_some_and(|seconds| seconds.is_nan() || seconds < 0.0) {
        return Err(Fault::usage("EVENT_INTERVAL_SECONDS is less than 0: it is the seconds between two events").into());
    }
    // No pause is as fast as it goes, which is what a rate of 0 says.
    let of_interval = interval.map(|seconds| if seconds == 0.0 { 0.0 } else { 1.0 / seconds });
    // The nearer layer wins, whichever of the two it names.
    let is_nearer = flag.is_some() || layers.distance(&RATE) <= layers.distance(&INTERVAL);
    let rate = if is_nearer { rate.or(of_interval) } else { of_interval.or(rate) }.unwrap_or(20.0);
    if rate.is_finite() && rate >= 0.0 {
        return Ok(rate);
    }
    Err(Fault::usage(format!("the rate is {rate}: it is events a second, 0 for as fast as it goes")).into())
}
