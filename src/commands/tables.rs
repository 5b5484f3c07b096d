//! `table ls|history` and `publication ls`.

use chrono::{DateTime, SecondsFormat, Utc};
use lakehouse::{CommitEntry, Lake, TableName};
use serde_json::json;

use crate::output;

pub(super) async fn ls(lake: &Lake, json: bool) -> anyhow::Result<()> {
    let mut heads = Vec::new();
    for name in lake.tables().await? {
        heads.push(lake.table(&name).head().await?);
    }
    if json {
        let entries = heads.iter().map(|head| {
            json!({
                "table": head.name.to_string(),
                "version": head.version,
                "files": head.files.len(),
                "rows": head.rows(),
                "bytes": head.bytes(),
                "partitioned_by": head.partition_columns,
            })
        });
        return output::print_json(&entries.collect::<Vec<_>>());
    }
    let rows: Vec<_> = heads
        .iter()
        .map(|head| {
            vec![
                head.name.to_string(),
                head.version.to_string(),
                head.files.len().to_string(),
                head.rows().map_or_else(|| "?".to_owned(), |rows| rows.to_string()),
                head.bytes().to_string(),
            ]
        })
        .collect();
    output::table(&["table", "version", "files", "rows", "bytes"], &rows)
}

pub(super) async fn history(lake: &Lake, name: &str, limit: usize, json: bool) -> anyhow::Result<()> {
    let name: TableName = name.parse()?;
    let commits = lake.table(&name).history(limit).await?;
    if json {
        return output::print_json(&commits.iter().map(commit_json).collect::<Vec<_>>());
    }
    let rows: Vec<_> = commits
        .iter()
        .map(|commit| {
            // Digests tell people nothing; as JSON they are there.
            let is_digest = |app_id: &str| app_id.starts_with("fingerprint/") || app_id.starts_with("cluster/");
            let entries = commit.transactions.iter().filter(|(app_id, _)| !is_digest(app_id));
            let ledger: Vec<_> = entries.map(|(app_id, at)| format!("{app_id}={at}")).collect();
            vec![
                commit.version.to_string(),
                time(commit.timestamp),
                commit.operation.clone(),
                format!("+{} -{}", commit.adds.len(), commit.removes.len()),
                commit.rows_added().to_string(),
                ledger.join(" "),
            ]
        })
        .collect();
    output::table(&["version", "time", "operation", "files", "rows added", "ledger"], &rows)
}

fn commit_json(commit: &CommitEntry) -> serde_json::Value {
    json!({
        "version": commit.version,
        "timestamp": commit.timestamp,
        "operation": commit.operation,
        "files_added": commit.adds.len(),
        "files_removed": commit.removes.len(),
        "rows_added": commit.rows_added(),
        "ledger": commit.transactions,
        "info": commit.info,
    })
}

pub(super) async fn publications(lake: &Lake, limit: usize, json: bool) -> anyhow::Result<()> {
    let mut publications = lake.publications().await?;
    publications.truncate(limit);
    if json {
        return output::print_json(&publications);
    }
    let rows: Vec<_> = publications
        .iter()
        .map(|one| {
            let tables: Vec<_> = one.tables.iter().map(|(name, pinned)| format!("{name}@{}", pinned.version)).collect();
            vec![one.id.to_string(), one.group.clone(), time(Some(one.published_at)), tables.join(" ")]
        })
        .collect();
    output::table(&["publication", "group", "time", "tables"], &rows)
}

fn time(time: Option<DateTime<Utc>>) -> String {
    time.map_or_else(|| "?".to_owned(), |time| time.to_rfc3339_opts(SecondsFormat::Millis, true))
}
