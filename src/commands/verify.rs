//! `verify`: the audit of the lake, and with `--deep` of what its models say.

use lakehouse::{ErrorKind, Fault, Lake, TableName, VerifyReport};
use serde::Serialize;
use transforms::{DeepReport, ModelAudit};

use crate::cli::Verify;
use crate::output;
use crate::pipeline;
use crate::settings::Settings;

/// Both audits as one.
#[derive(Serialize)]
struct Whole {
    #[serde(flatten)]
    lake: VerifyReport,
    models: Vec<ModelAudit>,
}

pub(super) async fn run(verify: &Verify, settings: &Settings) -> anyhow::Result<()> {
    let lake = pipeline::open_lake(settings).await?;
    // What the lake names and does not hold is just what is looked for.
    let mut report = lake.verify().await.map_err(|error| match error.kind() {
        ErrorKind::NotFound => output::Fault::found(error.to_string()).into(),
        _ => anyhow::Error::from(error),
    })?;
    let mut not_checked = 0;
    if verify.deep {
        let deep = deep(&lake, verify, settings).await?;
        not_checked = deep.not_checked();
        report.faults.extend(deep.faults);
        if settings.json {
            output::print_json(&Whole { lake: report.clone(), models: deep.models })?;
        } else {
            deep.models.iter().try_for_each(|model| output::print(&model.to_string()))?;
            output::print(&report.to_string())?;
        }
    } else {
        output::result(&report, settings.json)?;
    }
    let message = match (report.faults.len(), not_checked) {
        (0, 0) => return Ok(()),
        (0, tables) => format!("{tables} tables could not be compared with their queries, so nothing is known of them"),
        (faults, 0) => format!("the lake is not whole: {faults} faults"),
        (faults, tables) => {
            format!("the lake is not whole: {faults} faults, and {tables} tables could not be compared")
        }
    };
    Err(output::Fault::found(message).into())
}

async fn deep(lake: &Lake, verify: &Verify, settings: &Settings) -> anyhow::Result<DeepReport> {
    let project = super::project(verify.project.as_deref())?;
    let mut options = pipeline::transform_options(settings);
    options.select = verify.select.clone();
    match transforms::verify(lake, &project, &options, verify.sample).await {
        // Publications that cannot be read: the lake's own audit says more, and is not kept back for that.
        Err(error) if matches!(error.kind(), ErrorKind::BadData | ErrorKind::NotFound) => {
            let what = format!("models were not compared: {error}");
            let fault = Fault { table: TableName::new("system", "publications"), partition: None, what };
            Ok(DeepReport { faults: vec![fault], ..DeepReport::default() })
        }
        deep => Ok(deep?),
    }
}
