//! Queries, and how they can be refreshed.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::datasource::empty::EmptyTable;
use datafusion::prelude::SessionContext;
use expect_test::{Expect, expect};

use super::Class;
use crate::compile::{Compiled, Model, Variables};
use crate::project::Project;

/// Compiles one model with these settings and this query over a table `raw(id, day, at, n)`.
fn model(settings: &str, sql: &str) -> Model {
    let text = format!("{{{{ config({settings}) }}}}{sql}");
    let files = [("dbt_project.yml", "name: shop".to_owned()), ("models/a.sql", text)];
    let files = files.into_iter().map(|(path, text)| (path.to_owned(), text)).collect();
    let project = Project::from_files(files).expect("a valid project");
    let compiled = Compiled::new(&project, &Variables::default()).expect("a valid model");
    compiled.models.into_iter().next().expect("there is one")
}

async fn class_of(model: &Model) -> Class {
    let context = SessionContext::new();
    let columns = ["id", "day", "at", "n"].map(|name| Field::new(name, DataType::Int64, true));
    let table = Arc::new(EmptyTable::new(Arc::new(Schema::new(columns.to_vec()))));
    context.register_table("raw", table.clone()).expect("a new name");
    context.register_table("other", table).expect("a new name");
    crate::functions::register(&context);
    let plan = context.state().create_logical_plan(&model.sql).await.expect("a valid query");
    Class::of(model, &plan)
}

async fn check(settings: &str, sql: &str, expected: Expect) {
    let class = class_of(&model(settings, sql)).await;
    expected.assert_eq(&match class {
        Class::Full { reason } => format!("full: {reason}"),
        other => other.to_string(),
    });
}

#[tokio::test]
async fn queries_that_work_row_by_row_are_appended() {
    let settings = "materialized='incremental'";
    check(settings, "select id, at + 1 as later from raw where n > 0", expect!["append"]).await;
    check(
        settings,
        "with t as (select id from raw) select * from (select id from t where id > 1) x",
        expect!["append"],
    )
    .await;
    check(settings, "select id, count(*) from raw group by id", expect!["full: its query has the operator Aggregate"])
        .await;
    check(
        settings,
        "select raw.id from raw join other on raw.id = other.id",
        expect!["full: its query has the operator Inner"],
    )
    .await;
    check(settings, "select id from raw order by id", expect!["full: its query has the operator Sort"]).await;
    check(settings, "select id from raw limit 1", expect!["full: its query has the operator Limit"]).await;
    check(settings, "select distinct id from raw", expect!["full: its query has the operator Distinct"]).await;
    check(
        settings,
        "select id from raw union all select id from other",
        expect!["full: its query has the operator Union"],
    )
    .await;
    check(
        settings,
        "select id, random() as r from raw",
        expect!["full: the function random does not give the same result each time"],
    )
    .await;
    check(
        settings,
        "select id, now() as r from raw",
        expect!["full: the function now does not give the same result each time"],
    )
    .await;
    check(
        settings,
        "select id from raw where id in (select id from other)",
        expect!["full: its query has a subquery in an expression"],
    )
    .await;
    check(
        settings,
        "select id, row_number() over (order by at) as r from raw",
        expect!["full: it has a window function, but no unique_key and order_by in its settings"],
    )
    .await;
    check("materialized='table'", "select id from raw", expect!["full: it is materialized as table"]).await;
}

const KEYED: &str = "materialized='incremental', unique_key=['id', 'day'], order_by=['at', 'n']";
const FIRST_OF_KEY: &str = "row_number() over (partition by id, day order by at, n)";

#[tokio::test]
async fn the_first_row_of_each_key_is_merged() {
    let (settings, number) = (KEYED, FIRST_OF_KEY);
    check(settings, &format!("select * from raw qualify {number} = 1"), expect!["keyed merge"]).await;
    check(
        settings,
        &format!("select id, day, at, n from (select *, {number} as place from raw where n > 3) where place = 1"),
        expect!["keyed merge"],
    )
    .await;
    check(
        settings,
        "select a as id, day, at, n from (select id as a, day, at, n, row_number() over (partition by day, id order by at, n) as p from raw) where p = 1",
        expect!["keyed merge"],
    )
    .await;
}

#[tokio::test]
async fn a_query_that_may_keep_another_row_of_a_key_is_full() {
    let (settings, number) = (KEYED, FIRST_OF_KEY);
    check(
        settings,
        &format!("select id, day, at + 1 as at, n from raw qualify {number} = 1"),
        expect!["full: its query does not pass the column at of unique_key or order_by through as it is"],
    )
    .await;
    check(
        settings,
        &format!("select id, day, at, n from (select *, {number} as p from raw) where p = 1 and n > 3"),
        expect![[r#"full: it filters rows after the window function by more than "= 1""#]],
    )
    .await;
    check(
        settings,
        &format!("select id, day, at, n from (select *, {number} as p from raw) where p = 2"),
        expect![[r#"full: it filters rows after the window function by more than "= 1""#]],
    )
    .await;
    check(
        settings,
        &format!("select id, day, at, n from (select *, {number} as p from raw) where n = 1"),
        expect!["full: its query does not keep the rows whose row_number() is 1"],
    )
    .await;
    check(
        settings,
        &format!("select * from (select * from raw qualify {number} = 1) where n > 3"),
        expect![[r#"full: it filters rows after the window function by more than "= 1""#]],
    )
    .await;
    check(
        settings,
        &format!("select id, day, at, n, {number} as p from raw"),
        expect!["full: its query does not keep the rows whose row_number() is 1"],
    )
    .await;
    check(
        settings,
        "select * from raw qualify row_number() over (partition by id order by at, n) = 1",
        expect!["full: its row_number() is not partitioned by the columns of unique_key"],
    )
    .await;
    check(
        settings,
        "select * from raw qualify row_number() over (partition by id, day order by at desc, n) = 1",
        expect!["full: its row_number() is not ordered by the columns of order_by"],
    )
    .await;
    check(
        settings,
        "select * from raw qualify row_number() over (partition by id, day order by at nulls first, n) = 1",
        expect!["full: its row_number() is not ordered by the columns of order_by"],
    )
    .await;
    check(
        settings,
        "select * from raw qualify rank() over (partition by id, day order by at, n) = 1",
        expect!["full: its query does not keep the rows whose row_number() is 1"],
    )
    .await;
    check(
        settings,
        "select * from raw",
        expect!["full: its query does not end in a window function that keeps the first row of each key"],
    )
    .await;
}
