//! What `up` shows: a banner with every address, and how things go: a live line on a terminal, log lines otherwise.

use std::io::{IsTerminal as _, Write};
use std::net::SocketAddr;
use std::time::Duration;

use ingest::consume::Progress;
use lakehouse::{DEFAULT_GROUP, Lake};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::fmt::MakeWriter;

use crate::topics::{self, Watched};

/// The live line is drawn anew after this.
const LINE_INTERVAL: Duration = Duration::from_secs(1);
/// A log line comes after this.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Back to the first column, and nothing on the line.
const WIPE_LINE: &str = "\r\x1b[2K";

/// Where everything can be reached.
#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    pub(crate) kafka: String,
    pub(crate) flight: SocketAddr,
    pub(crate) postgres: SocketAddr,
    pub(crate) console: SocketAddr,
    pub(crate) lake: String,
}

/// Prints the addresses, with a line to paste for each.
pub(crate) fn banner(addresses: &Addresses) {
    let Addresses { kafka, flight, postgres, console, lake } = addresses;
    let text = format!(
        "\n\
         lakebeat {version}\n\
         \n  console     http://{console}\
         \n  PostgreSQL  psql -h {pg_host} -p {pg_port} -d lake -c 'select * from gold.top_songs order by total_plays desc'\
         \n  Flight SQL  python3 -c \"import adbc_driver_flightsql.dbapi as d; c = d.connect('grpc://{flight}').cursor(); \
         c.execute('select * from gold.top_songs'); print(c.fetch_arrow_table())\"\
         \n  Kafka       {kafka}\
         \n  lake        {lake}\
         \n  here        bin/lakebeat sql --lake '{lake}' 'select * from gold.top_songs'\n",
        version = env!("CARGO_PKG_VERSION"),
        pg_host = postgres.ip(),
        pg_port = postgres.port(),
    );
    // Nothing is lost if nobody reads it.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Shows how things go until the token is cancelled.
pub(crate) async fn show(lake: Lake, topics: Vec<Watched>, token: CancellationToken) -> anyhow::Result<()> {
    let live = std::io::stderr().is_terminal();
    let mut ticks = tokio::time::interval(if live { LINE_INTERVAL } else { LOG_INTERVAL });
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        tokio::select! {
            () = token.cancelled() => {
                if live {
                    let _ = write!(std::io::stderr(), "{WIPE_LINE}");
                }
                return Ok(());
            }
            _ = ticks.tick() => {}
        }
        let (now, each) = (topics::together(&topics), topics::apart(&topics));
        let gold = gold_age(&lake).await;
        if live {
            draw(&now, each.as_deref(), &gold);
        } else {
            tracing::info!(
                events = now.events,
                events_per_second = now.events_per_second.round(),
                lag = now.lag,
                dead_letters = now.dead_letters,
                newest_gold = gold,
                topics = each,
                "running"
            );
        }
    }
}

/// Where log lines go: stderr, after wiping the live line off a terminal. The next tick draws it again, below them.
pub(crate) fn log_writer() -> impl for<'a> MakeWriter<'a> + 'static {
    let wipe = if std::io::stderr().is_terminal() { WIPE_LINE } else { "" };
    move || WipedFirst { wipe, stderr: std::io::stderr() }
}

struct WipedFirst {
    wipe: &'static str,
    stderr: std::io::Stderr,
}

impl Write for WipedFirst {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let mut stderr = self.stderr.lock();
        stderr.write_all(self.wipe.as_bytes())?;
        stderr.write_all(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stderr.flush()
    }
}

fn draw(now: &Progress, each: Option<&str>, gold: &str) {
    let each = each.map_or_else(String::new, |each| format!(" · {each}"));
    let waiting = now.waiting_for.as_ref().map_or_else(String::new, |what| format!(" · waiting for {what}"));
    let line = format!(
        "{:.0} events/s · {} events · lag {} · {} dead letters · newest gold {gold}{each}{waiting}",
        now.events_per_second, now.events, now.lag, now.dead_letters
    );
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "{WIPE_LINE}{line}").and_then(|()| stderr.flush());
}

/// How long ago the newest publication was made, and its number.
async fn gold_age(lake: &Lake) -> String {
    match lake.newest_publication(DEFAULT_GROUP).await {
        Ok(Some(newest)) => {
            let age = lake.clock().now() - newest.published_at;
            format!("#{}, {} s ago", newest.id, age.num_seconds())
        }
        Ok(None) => "none yet".to_owned(),
        Err(error) => format!("unknown ({error})"),
    }
}
