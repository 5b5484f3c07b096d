//! Projects of a few lines, and what the compiler makes of them.

use std::collections::BTreeMap;

use expect_test::{Expect, expect};

use super::{Compiled, Variables};
use crate::project::Project;
use crate::select;

/// A project from its files, compiled; models as text, or the error.
fn compile(files: &[(&str, &str)]) -> Result<Compiled, crate::Error> {
    let mut all: BTreeMap<String, String> =
        files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    all.entry("dbt_project.yml".to_owned()).or_insert_with(|| "name: shop\n".to_owned());
    let variables = Variables {
        vars: BTreeMap::from([("color".to_owned(), "red".into())]),
        environment: BTreeMap::from([("REGION".to_owned(), "eu".to_owned())]),
    };
    Compiled::new(&Project::from_files(all)?, &variables)
}

fn check(files: &[(&str, &str)], expected: Expect) {
    let text = match compile(files) {
        Ok(project) => {
            let lines = project.models.iter().map(|model| {
                let inputs: Vec<String> = model.inputs.iter().map(ToString::to_string).collect();
                format!("{} ← {}\n{}\n", model.table, inputs.join(", "), model.sql)
            });
            lines.collect::<String>()
        }
        Err(error) => format!("{error}\n"),
    };
    expected.assert_eq(&text);
}

const SOURCES: (&str, &str) = (
    "models/sources.yml",
    "version: 2\nsources:\n  - name: raw\n    schema: bronze\n    tables:\n      - name: orders\n      - name: items\n        identifier: order_items\n",
);

#[test]
fn names_become_tables() {
    check(
        &[
            SOURCES,
            (
                "models/silver/orders.sql",
                "select * from {{ source('raw', 'orders') }} join {{ source('raw', 'items') }}",
            ),
            ("models/gold/totals.sql", "select * from {{ ref('orders') }}"),
            ("models/other/last.sql", "{{ config(schema='marts') }}select '{{ this }}' from {{ ref('totals') }}"),
        ],
        expect![[r#"
            silver.orders ← bronze.order_items, bronze.orders
            select * from "bronze"."orders" join "bronze"."order_items"
            gold.totals ← silver.orders
            select * from "silver"."orders"
            marts.last ← gold.totals
            select '"marts"."last"' from "gold"."totals"
        "#]],
    );
}

#[test]
fn jinja_has_loops_branches_variables_and_comments() {
    check(
        &[
            ("dbt_project.yml", "name: shop\nvars: {color: blue, size: 3}\n"),
            (
                "models/a.sql",
                "{# a word #}select {% for n in [1, 2] %}{{ n }} as c{{ n }}, {% endfor %}'{{ var('color') }}', {{ var('size') }}, \
                 {{ var('none', 7) }}, '{{ env_var('REGION') }}', '{{ env_var('ZONE', 'x') }}'{% if is_incremental() %} where 1{% endif %}",
            ),
        ],
        expect![[r#"
            gold.a ← 
            select 1 as c1, 2 as c2, 'red', 3, 7, 'eu', 'x'
        "#]],
    );
}

#[test]
fn faults_name_file_line_and_the_nearest_name() {
    let model = |text: &'static str| [SOURCES, ("models/totals.sql", text)];
    check(
        &model("select 1\nfrom {{ ref('totls') }}"),
        expect![[r#"
        models/totals.sql:2: there is no model "totls": did you mean "totals"?
    "#]],
    );
    check(
        &model("select 1 from {{ source('raw', 'order') }}"),
        expect![[r#"
        models/totals.sql:1: there is no source table "raw.order": did you mean "raw.orders"?
    "#]],
    );
    check(
        &model("select {{ var('colour') }}"),
        expect![[r#"
        models/totals.sql:1: the variable "colour" has no value: did you mean "color"?
    "#]],
    );
    check(
        &model("select {{ env_var('NOWHERE') }}"),
        expect![[r#"
        models/totals.sql:1: the environment variable "NOWHERE" is not set: set it, or give a default
    "#]],
    );
    check(
        &model("\n\n{{ config(materialised='table') }} select 1"),
        expect![[r#"
        models/totals.sql:3: the setting "materialised" is not known or not supported: did you mean "materialized"?
    "#]],
    );
    check(
        &model("{{ config(materialized='view') }} select 1"),
        expect![[r#"
        models/totals.sql:1: materialized="view" is not supported yet: use table or incremental
    "#]],
    );
    check(
        &model("{{ config(unique_key='id') }} select 1"),
        expect![[r#"
        models/totals.sql:1: unique_key needs order_by: name the columns that decide which of two rows with one key stays
    "#]],
    );
    check(
        &model("select {% if %}"),
        expect![[r#"
        models/totals.sql:1: syntax error: unexpected end of block
    "#]],
    );
    check(
        &model("select {{ dbt_utils.star('x') }}"),
        expect![[r#"
        models/totals.sql:1: unknown method: undefined has no method named star (a model can use config, source, ref, var, env_var, this and is_incremental)
    "#]],
    );
}

#[test]
fn what_is_not_supported_is_named() {
    check(
        &[("macros/star.sql", "")],
        expect![[r#"
        macros/star.sql: macros are not supported yet: take the file out of the project
    "#]],
    );
    check(
        &[("packages.yml", "")],
        expect![[r#"
        packages.yml: packages are not supported: copy what the models need into the project
    "#]],
    );
    check(
        &[("models/x.yml", "version: 2\nexposures: []\n")],
        expect![[r#"
        models/x.yml:2: unknown field `exposures`, expected one of `sources`, `models`, `version` at line 2 column 1
    "#]],
    );
    check(
        &[("models/x.yml", "version: 2\nmodels:\n  - name: nobody\n")],
        expect![[r#"
        models/x.yml:3: there is no model "nobody" to describe: there are none
    "#]],
    );
    check(
        &[
            ("models/a.sql", "select 1"),
            ("models/x.yml", "models:\n  - name: a\n    columns:\n      - name: b\n        tests: [not_nul]\n"),
        ],
        expect![[r#"
            models/x.yml: a data test of a.b: the test "not_nul" is not supported: did you mean "not_null"?
        "#]],
    );
}

#[test]
fn a_circle_is_named() {
    check(
        &[
            ("models/a.sql", "select 1 from {{ ref('b') }}"),
            ("models/b.sql", "select 1 from {{ ref('c') }}"),
            ("models/c.sql", "select 1 from {{ ref('a') }}"),
        ],
        expect![[r#"
            models/a.sql: models read one another in a circle (a → b → c → a): take one ref out
        "#]],
    );
}

#[test]
fn settings_come_from_the_nearest_place() {
    let project = "name: shop\nmodels:\n  shop:\n    +tags: [all]\n    marts:\n      +schema: gold\n      +materialized: incremental\n";
    let compiled = compile(&[
        ("dbt_project.yml", project),
        ("models/marts/a.sql", "select 1"),
        ("models/marts/b.sql", "{{ config(materialized='table', tags='own') }}select 1"),
        ("models/marts/x.yml", "models:\n  - name: a\n    config: {schema: silver, tags: [yaml]}\n"),
    ])
    .expect("a valid project");
    let lines: Vec<String> = compiled
        .models
        .iter()
        .map(|model| format!("{} {:?} {:?}", model.table, model.config.materialized, model.config.tags))
        .collect();
    expect![[r#"
        silver.a Incremental ["all", "yaml"]
        gold.b Table ["all", "own"]"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn selectors_follow_the_graph() {
    let compiled = compile(&[
        SOURCES,
        ("models/silver/a.sql", "{{ config(tags='base') }}select 1 from {{ source('raw', 'orders') }}"),
        ("models/silver/b.sql", "select 1 from {{ ref('a') }}"),
        ("models/gold/c.sql", "select 1 from {{ ref('b') }}"),
        ("models/gold/d.sql", "select 1 from {{ ref('a') }}"),
    ])
    .expect("a valid project");
    let check = |selectors: &str, expected: Expect| {
        let selectors: Vec<String> = if selectors.is_empty() { Vec::new() } else { vec![selectors.to_owned()] };
        expected.assert_eq(&match select::select(&compiled, &selectors) {
            Ok(names) => names.into_iter().collect::<Vec<_>>().join(" "),
            Err(error) => error.to_string(),
        });
    };
    check("", expect!["a b c d"]);
    check("b", expect!["b"]);
    check("+c", expect!["a b c"]);
    check("b+", expect!["b c"]);
    check("+b+", expect!["a b c"]);
    check("tag:base+ d", expect!["a b c d"]);
    check("path:models/gold", expect!["c d"]);
    check("path:models/silver/b.sql", expect!["b"]);
    check("e", expect![[r#"the selector "e" fits no model: did you mean "a"?"#]]);
    check(
        "2+a",
        expect![[
            r#"the selector "2+a" is not supported: write a model's name, tag:NAME or path:FOLDER, with + before or after it"#
        ]],
    );
    check("source:raw", expect![[r#"the selector "source:raw" is not supported: there are path, tag"#]]);
}

#[test]
fn lines_of_the_query_lead_back_to_the_file() {
    let source = "{{ config(\n  tags='x'\n) }}\n-- a {# b\n c #} d\nselect 1";
    assert_eq!(super::jinja::line_map(source), [3, 5, 6]);
    assert_eq!(super::jinja::line_map("a\nb {{ c }}\nd"), [1, 2, 3]);
}

#[test]
fn the_bundled_project_compiles_without_any_variable() {
    let project = Compiled::new(&Project::bundled(), &Variables::default()).expect("the bundled project is valid");
    let tables: Vec<String> = project.models.iter().map(|model| model.table.to_string()).collect();
    assert_eq!(tables, ["silver.spotify_silver", "gold.listening_by_minute", "gold.top_songs", "gold.user_engagement"]);
}

#[test]
fn the_bundled_project_is_the_one_in_its_folder() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let on_disk = Project::load(&folder).expect("the folder is a valid project");
    assert_eq!(format!("{on_disk:?}"), format!("{:?}", Project::bundled()));
}
