//! Running data tests on a table as a build sees it, staged files included.

use std::time::Instant;

use arrow::array::AsArray as _;
use arrow::datatypes::Int64Type;
use lakehouse::Lake;

use crate::compile::Model;
use crate::data_tests::{DataTest, Severity};
use crate::error::Result;
use crate::query::{self, Relations, quoted};
use crate::refresh::{Pending, TestsChanged};
use crate::report::{TestRun, TestScope, TestStatus, millis};
use crate::view::View;

/// Runs the tests of a model on what would be its table.
pub(crate) async fn audit(lake: &Lake, model: &Model, view: &View, pending: Option<&Pending>) -> Vec<TestRun> {
    let only_adds = view.removes.is_empty() && !view.adds.is_empty();
    let passed_before = pending.is_some_and(|pending| pending.tests_changed == TestsChanged::No);
    let mut runs = Vec::new();
    for test in &model.tests {
        let incremental = only_adds && passed_before && test.holds_row_by_row(&model.config.unique_key);
        let scope = if incremental { TestScope::NewRows } else { TestScope::Table };
        runs.push(run(lake, model, view, test, scope).await);
    }
    runs
}

async fn run(lake: &Lake, model: &Model, view: &View, test: &DataTest, scope: TestScope) -> TestRun {
    let (started_at, started) = (lake.clock().now(), Instant::now());
    let (status, failures, message) = match failures(lake, model, view, test, scope).await {
        Ok(0) => (TestStatus::Pass, 0, None),
        Ok(failures) if test.severity == Severity::Warn => (TestStatus::Warn, failures, None),
        Ok(failures) => (TestStatus::Fail, failures, None),
        Err(error) => (TestStatus::Error, 0, Some(error.to_string())),
    };
    let run = TestRun {
        test: test.name.clone(),
        model: model.name.clone(),
        kind: test.check.kind(),
        columns: test.check.columns(),
        status,
        failures,
        severity: test.severity,
        scope,
        message,
        started_at,
        millis: millis(started.elapsed()),
    };
    if run.status != TestStatus::Pass {
        tracing::warn!(test = %run.test, model = %run.model, failures, message = run.message, "data test did not pass");
    }
    run
}

async fn failures(lake: &Lake, model: &Model, view: &View, test: &DataTest, scope: TestScope) -> Result<u64> {
    let rows = match scope {
        TestScope::Table => view.provider(),
        TestScope::NewRows => view.base.provider_of(view.adds.iter().map(|file| file.data_file().clone()).collect()),
    };
    let context = query::session(lake, &Relations::from([(model.table.clone(), rows)]))?;
    let relation = format!("{}.{}", quoted(&model.table.schema), quoted(&model.table.name));
    let batches = query::collect(&context, &test.sql(&relation), model).await?;
    let counts = batches.iter().filter(|batch| batch.num_rows() > 0);
    Ok(counts.map(|batch| batch.column(0).as_primitive::<Int64Type>().value(0)).sum::<i64>().try_into().unwrap_or(0))
}
