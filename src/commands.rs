//! One function a command: options in, a crate's entry point, its result out.

mod care;
mod doctor;
mod letters;
mod mirror;
mod moving;
mod tables;
mod verify;

use std::sync::Arc;

use arrow::util::pretty::pretty_format_batches;
use futures::TryStreamExt as _;
use ingest::topic::TopicSpec;
use ingest::{broker, consume, simulate};
use lakehouse::{Lake, SystemClock};
use serde::Serialize;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use transforms::{BuildReport, Project, RefreshMode};

use crate::cli::{self, Cli, Command, Ingest, IngestAction};
use crate::output::{self, Fault};
use crate::pipeline::{self, Parts, Simulator};
use crate::settings::Settings;
use crate::{stop, topics};

/// Runs the command.
pub(crate) async fn run(cli: Cli, settings: Settings) -> anyhow::Result<()> {
    if matches!(cli.command, Command::Up(_) | Command::Ingest(Ingest { action: None, .. })) {
        settings.warn();
    }
    match cli.command {
        Command::Up(up) => self::up(up, &settings).await,
        Command::Broker(_) => broker(&settings).await,
        Command::Simulate(simulate) => self::simulate(simulate, &settings).await,
        Command::Ingest(Ingest { action: Some(IngestAction::Replay(replay)), .. }) => {
            letters::replay(replay, &settings).await
        }
        Command::Ingest(Ingest { action: Some(IngestAction::Reset(reset)), .. }) => self::reset(reset, &settings).await,
        Command::Ingest(ingest) => self::ingest(ingest, &settings).await,
        Command::DeadLetters(cli::DeadLetters::Ls { topic, letters, limit }) => {
            letters::ls(topic, letters, limit, &settings).await
        }
        Command::Transform(transform) => self::transform(transform, &settings).await,
        Command::Serve(_) => serve(&settings).await,
        Command::Mirror(mirror) => mirror::run(&mirror, &settings).await,
        Command::Sql(sql) => self::sql(sql, &settings).await,
        Command::Verify(verify) => verify::run(&verify, &settings).await,
        Command::Table(cli::Table::Ls) => tables::ls(&pipeline::open_lake(&settings).await?, settings.json).await,
        Command::Table(cli::Table::History { name, limit }) => {
            tables::history(&pipeline::open_lake(&settings).await?, &name, limit, settings.json).await
        }
        Command::Table(cli::Table::Compact { name }) => care::compact(&name, &settings).await,
        Command::Table(cli::Table::Vacuum { name, dry_run, yes }) => {
            care::vacuum(&name, care::Consent::of(dry_run, yes), &settings).await
        }
        Command::Table(cli::Table::Restore { name, version, publication, dry_run, yes }) => {
            let wanted =
                version.map_or_else(|| care::Wanted::Publication(publication.unwrap_or(0)), care::Wanted::Version);
            care::restore(&name, wanted, care::Consent::of(dry_run, yes), &settings).await
        }
        Command::Table(cli::Table::Export { copy, .. }) => moving::export(&copy, &settings).await,
        Command::Table(cli::Table::Import { copy, .. }) => moving::import(&copy, &settings).await,
        Command::Publication(cli::Publication::Ls { limit }) => {
            tables::publications(&pipeline::open_lake(&settings).await?, limit, settings.json).await
        }
        Command::Doctor(_) => doctor::run(&settings).await,
    }
}

async fn up(up: cli::Up, settings: &Settings) -> anyhow::Result<()> {
    let simulator = if up.no_simulate { Simulator::Off } else { Simulator::On };
    if up.rate.is_some() {
        // Somebody wants events, so that there are none is not passed over.
        simulated_topic(settings)?;
    }
    let parts = Parts { simulator, project: project(up.project.as_deref())? };
    pipeline::up(settings, parts, stop::on_signal()?).await
}

async fn broker(settings: &Settings) -> anyhow::Result<()> {
    pipeline::check_exposure(&settings.ports, settings.ports.kafka)?;
    let (ready, started) = oneshot::channel();
    let token = stop::on_signal()?;
    let running = broker::run(pipeline::broker_options(settings), Arc::new(SystemClock), ready, token);
    let announce = async {
        if let Ok(address) = started.await {
            tracing::info!(%address, "the broker is ready");
        }
    };
    let (ended, ()) = tokio::join!(running, announce);
    Ok(ended?)
}

/// The brokers, for commands that have none of their own.
fn brokers(settings: &Settings) -> String {
    settings.brokers.clone().unwrap_or_else(|| format!("127.0.0.1:{}", settings.ports.kafka))
}

async fn simulate(simulate: cli::Simulate, settings: &Settings) -> anyhow::Result<()> {
    let token = stop::on_signal()?;
    let brokers = brokers(settings);
    let topic = simulated_topic(settings)?;
    let topic_made = ingest::kafka::ensure_topic(&brokers, topic, &settings.kafka_properties);
    let Some(()) = token.run_until_cancelled(topic_made).await.transpose()? else { return Ok(()) };
    let options = simulate::Options {
        properties: settings.kafka_properties.clone(),
        count: simulate.count,
        rate: settings.rate,
        users: settings.users,
        seed: simulate.seed,
        dirty: simulate.dirty,
        log: simulate.log,
        ..simulate::Options::new(brokers, &topic.name)
    };
    let report = simulate::run(options, Arc::new(SystemClock), token).await?;
    output::result(&report, settings.json)?;
    match report.failed {
        0 => Ok(()),
        failed => Err(Fault::unreachable(format!("{failed} messages were not confirmed by the broker")).into()),
    }
}

/// The topic to produce to. Events that it has no fields for would be nothing but noise in it.
fn simulated_topic(settings: &Settings) -> anyhow::Result<&TopicSpec> {
    topics::simulated(&settings.topics).ok_or_else(|| {
        let names = settings.topics.iter().map(|topic| topic.name.as_str()).collect::<Vec<_>>().join(", ");
        let message = format!(
            "simulated events fit none of the topics {names}: they are listening events, for a topic with the fields of the \
             bundled one; name such a topic with --topic"
        );
        Fault::usage(message).into()
    })
}

/// Opens the lake for what runs until it is stopped. `None` if that came while a store was waited for.
async fn open_lake_until(token: &CancellationToken, settings: &Settings) -> anyhow::Result<Option<Lake>> {
    token.run_until_cancelled(pipeline::open_lake(settings)).await.transpose()
}

async fn ingest(ingest: Ingest, settings: &Settings) -> anyhow::Result<()> {
    let token = stop::on_signal()?;
    let Some(lake) = open_lake_until(&token, settings).await? else { return Ok(()) };
    let mut options = topics::ingest_options(settings, &brokers(settings));
    if ingest.until_end {
        options.iter_mut().for_each(|options| options.stop = consume::Stop::AtEnd);
    }
    if let [_] = options.as_slice() {
        let (progress, _) = watch::channel(consume::Progress::default());
        let summary = consume::run(&lake, options.remove(0), progress, token).await?;
        return if settings.json { output::print_json(&summary) } else { output::print(&told(&summary)) };
    }
    let summaries = topics::run_all(&lake, options, token).await?;
    if settings.json {
        return output::print_json(&serde_json::json!({ "topics": summaries }));
    }
    summaries.iter().try_for_each(|(topic, summary)| output::print(&format!("{topic}: {}", told(summary))))
}

fn told(summary: &consume::Summary) -> String {
    format!(
        "{} rows, {} dead letters, {} holes in {} commits; next offsets {:?}",
        summary.rows, summary.dead_letters, summary.holes, summary.commits, summary.next_offsets
    )
}

async fn reset(reset: cli::Reset, settings: &Settings) -> anyhow::Result<()> {
    let lake = pipeline::open_lake(settings).await?;
    let options = consume::ResetOptions {
        brokers: brokers(settings),
        properties: settings.kafka_properties.clone(),
        topic: topics::only(settings)?.clone(),
        partitions: reset.partition.into_iter().collect(),
        to: reset.to,
    };
    output::result(&consume::reset(&lake, &options).await?, settings.json)
}

fn project(folder: Option<&std::path::Path>) -> anyhow::Result<Project> {
    Ok(match folder {
        Some(folder) => Project::load(folder)?,
        None => Project::bundled(),
    })
}

async fn transform(transform: cli::Transform, settings: &Settings) -> anyhow::Result<()> {
    let options_of = |models: &cli::Models| {
        let mut options = pipeline::transform_options(settings);
        options.select = models.select.clone();
        if models.full_refresh {
            options.refresh = RefreshMode::Full;
        }
        anyhow::Ok((project(models.project.as_deref())?, options))
    };
    match transform {
        cli::Transform::Ls { models } => {
            let (project, options) = options_of(&models)?;
            list(&transforms::ls(&project, &options)?, settings.json)
        }
        cli::Transform::Explain { models } => {
            let (project, options) = options_of(&models)?;
            let lake = pipeline::open_lake(settings).await?;
            list(&transforms::explain(&lake, &project, &options).await?, settings.json)
        }
        cli::Transform::Build { models, watch: true } => {
            let (project, options) = options_of(&models)?;
            watch(&project, &options, settings).await
        }
        cli::Transform::Build { models, watch: false } => {
            let (project, options) = options_of(&models)?;
            let lake = pipeline::open_lake(settings).await?;
            report(&transforms::build(&lake, &project, &options).await?, settings.json)
        }
        cli::Transform::Run { models } => {
            let (project, options) = options_of(&models)?;
            let lake = pipeline::open_lake(settings).await?;
            report(&transforms::run(&lake, &project, &options).await?, settings.json)
        }
        cli::Transform::Test { models } => {
            let (project, options) = options_of(&models)?;
            let lake = pipeline::open_lake(settings).await?;
            report(&transforms::test(&lake, &project, &options).await?, settings.json)
        }
    }
}

/// Builds whenever there is something new, and cleans up after that.
async fn watch(project: &Project, options: &transforms::Options, settings: &Settings) -> anyhow::Result<()> {
    let token = stop::on_signal()?;
    let Some(lake) = open_lake_until(&token, settings).await? else { return Ok(()) };
    let (progress, _) = watch::channel(transforms::WatchProgress::default());
    let cadence = transforms::Cadence::default();
    let cleaning = token.child_token();
    let watching = async {
        // However the watch ends, nothing is left to clean up after.
        let _ended = cleaning.clone().drop_guard();
        transforms::watch(&lake, project, options, &cadence, progress, token).await
    };
    let (ended, ()) = tokio::join!(watching, pipeline::clean(&lake, cleaning.clone()));
    Ok(ended?)
}

fn list<T: Serialize + std::fmt::Display>(entries: &[T], json: bool) -> anyhow::Result<()> {
    if json {
        return output::print_json(entries);
    }
    entries.iter().try_for_each(|entry| output::print(&entry.to_string()))
}

fn report(report: &BuildReport, json: bool) -> anyhow::Result<()> {
    output::result(report, json)?;
    if report.failed() {
        return Err(Fault::found("a model or a test failed; the last publication stands").into());
    }
    Ok(())
}

async fn serve(settings: &Settings) -> anyhow::Result<()> {
    let token = stop::on_signal()?;
    let listeners = pipeline::bind_doors(&settings.ports).await?;
    let Some(lake) = open_lake_until(&token, settings).await? else { return Ok(()) };
    for (door, listener) in
        [("Flight SQL", &listeners.flight), ("PostgreSQL", &listeners.postgres), ("console", &listeners.console)]
    {
        tracing::info!(door, address = %listener.local_addr()?, "open");
    }
    Ok(flight_server::serve(lake, listeners, pipeline::door_options(settings), token).await?)
}

async fn sql(sql: cli::Sql, settings: &Settings) -> anyhow::Result<()> {
    let lake = pipeline::open_lake(settings).await?;
    let stream = flight_server::query::run_once(lake, &sql.statement).await?;
    let schema = stream.schema().clone();
    let batches: Vec<_> = stream.try_collect().await?;
    if settings.json {
        let mut json = arrow::json::WriterBuilder::new()
            .with_explicit_nulls(true)
            .build::<_, arrow::json::writer::JsonArray>(Vec::new());
        json.write_batches(&batches.iter().collect::<Vec<_>>())?;
        json.finish()?;
        let text = String::from_utf8(json.into_inner())?;
        return output::print(if text.is_empty() { "[]" } else { &text });
    }
    if sql.csv {
        let mut csv = arrow::csv::Writer::new(Vec::new());
        // Without a row the header would be missing.
        csv.write(&arrow::record_batch::RecordBatch::new_empty(schema))?;
        batches.iter().try_for_each(|batch| csv.write(batch))?;
        return output::print(String::from_utf8(csv.into_inner())?.trim_end());
    }
    let batches = if batches.is_empty() { vec![arrow::record_batch::RecordBatch::new_empty(schema)] } else { batches };
    output::print(&pretty_format_batches(&batches)?.to_string())
}
