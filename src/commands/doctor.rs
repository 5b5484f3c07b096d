//! `doctor`: tries what every other command needs, and says what is wrong and what to do.

use std::net::SocketAddr;

use serde::Serialize;
use tokio::net::TcpListener;

use crate::output::{self, Fault};
use crate::pipeline;
use crate::settings::Settings;

/// One thing that was tried.
#[derive(Debug, Serialize)]
struct Check {
    what: String,
    state: State,
    /// What was found; for a fault with the remedy.
    detail: String,
    /// The exit status that the fault means; 0 if all is well.
    #[serde(skip)]
    status: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    /// Not as it could be, but nothing is hindered.
    Note,
    Fault,
}

impl State {
    fn shown(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Fault => "FAULT",
        }
    }
}

pub(super) async fn run(settings: &Settings) -> anyhow::Result<()> {
    // That the settings could be read at all is known already.
    let mut checks = vec![ok("settings", "understood".to_owned())];
    checks.push(lake(settings).await);
    checks.push(broker(settings).await);
    checks.push(snowflake(settings).await);
    checks.extend(ports(settings).await);
    if settings.json {
        output::print_json(&checks)?;
    } else {
        let shown = |check: &Check| vec![check.state.shown().to_owned(), check.what.clone(), check.detail.clone()];
        output::table(&["state", "what", "detail"], &checks.iter().map(shown).collect::<Vec<_>>())?;
    }
    match checks.iter().find(|check| check.state == State::Fault) {
        None => Ok(()),
        Some(fault) if fault.status == 3 => Err(Fault::unreachable(format!("{} does not answer", fault.what)).into()),
        Some(fault) => Err(Fault::usage(format!("{} is not in order", fault.what)).into()),
    }
}

fn ok(what: &str, detail: String) -> Check {
    Check { what: what.to_owned(), state: State::Ok, detail, status: 0 }
}

fn fault(what: &str, error: &anyhow::Error) -> Check {
    let status = Fault::status_of(error);
    Check { what: what.to_owned(), state: State::Fault, detail: output::told(error), status }
}

fn note(what: String, detail: String) -> Check {
    Check { what, state: State::Note, detail, status: 0 }
}

async fn lake(settings: &Settings) -> Check {
    let what = format!("lake {}", settings.lake);
    let tables = async { anyhow::Ok(pipeline::open_lake(settings).await?.tables().await?.len()) };
    match tables.await {
        Ok(count) => ok(&what, format!("{count} tables")),
        Err(error) => fault(&what, &error),
    }
}

async fn broker(settings: &Settings) -> Check {
    let Some(brokers) = &settings.brokers else {
        return ok("broker", "none is set: `up` starts the embedded one".to_owned());
    };
    let what = format!("broker {brokers}");
    let found = match ingest::kafka::check(brokers, &settings.kafka_properties).await {
        Ok(found) => found,
        Err(error) => return fault(&what, &error.into()),
    };
    let (there, missing): (Vec<_>, Vec<_>) =
        settings.topics.iter().map(|topic| topic.name.as_str()).partition(|name| found.topics.contains_key(*name));
    let (there, missing) = (there.join(", "), missing.join(", "));
    let count = found.brokers.len();
    match (there.is_empty(), missing.is_empty()) {
        (_, true) => ok(&what, format!("{count} brokers, topic {there} is there")),
        (true, false) => note(what, format!("answers, without topic {missing}: `up` and `simulate` make it")),
        (false, false) => {
            note(what, format!("{count} brokers, topic {there} is there, without topic {missing}: `up` makes it"))
        }
    }
}

/// A login is tried, and no statement sent: looking costs no warehouse time.
async fn snowflake(settings: &Settings) -> Check {
    if !settings.snowflake.is_set() {
        return ok("Snowflake", "not set: only `mirror` needs it".to_owned());
    }
    let tried = async {
        let options = settings.snowflake.options()?;
        snowflake_adapter::check(&options).await?;
        anyhow::Ok(format!("{} takes the login of {}; the mirror is {}", options.url, options.user, options.target()))
    };
    match tried.await {
        Ok(detail) => ok("Snowflake", detail),
        Err(error) => fault("Snowflake", &error),
    }
}

/// A port that is taken may well be taken by a `lakebeat up` that is running.
async fn ports(settings: &Settings) -> Vec<Check> {
    let ports = &settings.ports;
    let mut checks = Vec::new();
    if let Err(error) = pipeline::check_exposure(ports, ports.flight) {
        checks.push(fault("listen address", &error));
    }
    for (port, flag) in [
        (ports.kafka, "--kafka-port"),
        (ports.flight, "--flight-port"),
        (ports.postgres, "--postgres-port"),
        (ports.console, "--console-port"),
    ] {
        let what = format!("port {port}");
        checks.push(match TcpListener::bind(SocketAddr::new(ports.listen, port)).await {
            Ok(_) => ok(&what, "free".to_owned()),
            Err(error) => note(what, format!("{error}: if that is not a running lakebeat, choose another with {flag}")),
        });
    }
    checks
}
