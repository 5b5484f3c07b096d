//! `/metrics` in the Prometheus text format (version 0.0.4).

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use axum::extract::State as Extract;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::State;
use super::status::Status;
use crate::query::{Outcome, QueryEngine};

/// What each metric of this server begins with.
const PREFIX: &str = "lakebeat_";

pub(super) async fn show(Extract(state): Extract<State>) -> Response {
    let shared = &state.shared;
    let status = shared.status().await;
    let mut text = Text::default();
    text.family("build_info", "gauge", "The version that runs.");
    text.sample("build_info", &[("version", &env!("CARGO_PKG_VERSION"))], 1);
    text.family("lake_up", "gauge", "Whether the lake can be read (1) or not (0).");
    text.sample("lake_up", &[], u8::from(status.is_ok()));
    // Without the lake the rest is still worth knowing: the scrape must not fail with it.
    if let Ok(status) = &status {
        ingest(&mut text, status);
        publication(&mut text, status);
        tables(&mut text, status);
    }
    queries(&mut text, &shared.engine);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text.0).into_response()
}

fn ingest(text: &mut Text, status: &Status) {
    let ingest = &status.ingest;
    text.family("ingest_events_total", "counter", "Messages ingested: rows in bronze and dead letters.");
    text.sample("ingest_events_total", &[], ingest.rows + ingest.dead_letters);
    text.family("ingest_dead_letters_total", "counter", "Messages that became dead letters.");
    text.sample("ingest_dead_letters_total", &[], ingest.dead_letters);
    type Figure = fn(&lakehouse::IngestProgress) -> i64;
    let figures: [(&str, &str, Figure); 3] = [
        ("ingest_lag", "Messages of the partition that are not committed.", |partition| partition.lag),
        ("ingest_next_offset", "The next offset to read.", |partition| partition.next_offset),
        ("ingest_end_offset", "The end of the partition.", |partition| partition.end_offset),
    ];
    for (name, help, figure) in figures {
        text.family(name, "gauge", help);
        for partition in &ingest.partitions {
            text.sample(name, &[("topic", &partition.topic), ("partition", &partition.partition)], figure(partition));
        }
    }
    text.family("ingest_last_commit_timestamp_seconds", "gauge", "When the partition was last committed.");
    for partition in &ingest.partitions {
        if let Some(committed_at) = partition.committed_at {
            let labels: [(&str, &dyn Display); 2] = [("topic", &partition.topic), ("partition", &partition.partition)];
            text.sample("ingest_last_commit_timestamp_seconds", &labels, seconds(committed_at));
        }
    }
}

fn publication(text: &mut Text, status: &Status) {
    let Some(publication) = &status.publication else { return };
    text.family("publication_id", "gauge", "The newest publication.");
    text.sample("publication_id", &[], publication.id);
    text.family("publication_timestamp_seconds", "gauge", "When the newest publication was made.");
    text.sample("publication_timestamp_seconds", &[], seconds(publication.published_at));
    text.family("publication_age_seconds", "gauge", "How old the newest publication is.");
    text.sample("publication_age_seconds", &[], publication.age_seconds);
}

fn tables(text: &mut Text, status: &Status) {
    text.family(
        "table_rows",
        "gauge",
        "Rows of the published version, or of the head of a table that is not published.",
    );
    for table in &status.tables {
        if let Some(rows) = table.rows {
            text.sample("table_rows", &[("table", &table.name)], rows);
        }
    }
    text.family("table_files", "gauge", "Live data files of the same version.");
    for table in &status.tables {
        text.sample("table_files", &[("table", &table.name)], table.files);
    }
    text.family("table_bytes", "gauge", "Bytes of the live data files.");
    for table in &status.tables {
        text.sample("table_bytes", &[("table", &table.name)], table.bytes);
    }
}

fn queries(text: &mut Text, engine: &QueryEngine) {
    let totals = engine.totals();
    let mut rows: BTreeMap<String, u64> = BTreeMap::new();
    let mut errors: BTreeMap<String, u64> = BTreeMap::new();
    let mut running: BTreeMap<String, u64> = BTreeMap::new();
    text.family("queries_total", "counter", "Statements that ended, by door and how they ended.");
    for total in &totals {
        let door = total.door.to_string();
        text.sample("queries_total", &[("door", &door), ("outcome", &total.outcome)], total.statements);
        *rows.entry(door.clone()).or_default() += total.rows;
        let failed = if total.outcome == Outcome::Failed { total.statements } else { 0 };
        *errors.entry(door).or_default() += failed;
    }
    for query in engine.running() {
        *running.entry(query.door.to_string()).or_default() += 1;
    }
    for door in rows.keys() {
        running.entry(door.clone()).or_default();
    }
    by_door(text, ("query_rows_total", "counter", "Rows that statements gave."), &rows);
    by_door(text, ("query_errors_total", "counter", "Statements that failed while they ran."), &errors);
    by_door(text, ("queries_in_flight", "gauge", "Statements that run now."), &running);
}

fn by_door(text: &mut Text, (name, kind, help): (&str, &str, &str), values: &BTreeMap<String, u64>) {
    text.family(name, kind, help);
    for (door, value) in values {
        text.sample(name, &[("door", door)], value);
    }
}

fn seconds(moment: chrono::DateTime<chrono::Utc>) -> f64 {
    moment.timestamp_millis() as f64 / 1000.0
}

/// The text that grows.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        if labels.is_empty() {
            return self.line(format_args!("{PREFIX}{name} {value}"));
        }
        let labels: Vec<String> =
            labels.iter().map(|(label, text)| format!("{label}=\"{}\"", escaped(&text.to_string()))).collect();
        self.line(format_args!("{PREFIX}{name}{{{}}} {value}", labels.join(",")));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("a string grows as long as there is memory");
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_the_text_format() {
        let mut text = Text::default();
        text.family("lag", "gauge", "How far behind.");
        text.sample("lag", &[("topic", &"a\"b\\c\nd"), ("partition", &3)], 7);
        text.sample("plain", &[], 1.5);
        let expected = "# HELP lakebeat_lag How far behind.\n# TYPE lakebeat_lag gauge\n\
                        lakebeat_lag{topic=\"a\\\"b\\\\c\\nd\",partition=\"3\"} 7\nlakebeat_plain 1.5\n";
        assert_eq!(text.0, expected);
    }
}
