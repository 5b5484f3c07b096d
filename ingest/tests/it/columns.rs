//! What a change of a topic's fields does to its table.

use arrow::datatypes::{DataType, Field};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use ingest::ErrorKind;
use ingest::consume::Stop;
use ingest::topic::{FieldKind, FieldSpec, TopicSpec};
use lakehouse::TableSpec;

use crate::scene::Scene;

fn field(name: &str, kind: FieldKind) -> FieldSpec {
    FieldSpec { kind, ..FieldSpec::string(name) }
}

fn orders(fields: &[FieldSpec]) -> TopicSpec {
    let table = "bronze.orders".parse().expect("a table's name");
    TopicSpec { table, fields: fields.to_vec(), partitions: 1, ..TopicSpec::spotify() }
}

/// The rows of the topic's table by offset, as text; NULL is ∅.
async fn rows(scene: &Scene, columns: &[&str]) -> Vec<String> {
    let lake = scene.lake().await;
    let head = lake.table(&scene.topic.table).head().await.expect("a table");
    let frame = lake.session_factory().context().read_table(head.provider()).expect("a table");
    let mut wanted = vec!["_offset"];
    wanted.extend(columns);
    let options = FormatOptions::default().with_null("∅");
    let mut rows = Vec::new();
    for batch in frame.select_columns(&wanted).expect("columns").collect().await.expect("rows") {
        let columns = batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options));
        let columns = columns.collect::<Result<Vec<_>, _>>().expect("printable");
        for row in 0..batch.num_rows() {
            rows.push(columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(" "));
        }
    }
    rows.sort();
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_comes_adds_a_column_and_one_that_goes_keeps_it() {
    let mut scene = Scene::new(1).await;
    scene.topic = orders(&[field("id", FieldKind::Number), field("note", FieldKind::String)]);
    scene.produce(&[r#"{"id":1,"note":"a","price":2.50}"#]).await;
    scene.ingest_to_end().await.expect("a first time");
    assert_eq!(rows(&scene, &["id", "note", "_rescued"]).await, [r#"0 1 a {"price":2.50}"#]);

    scene.topic = orders(&[field("price", FieldKind::Number), field("id", FieldKind::Number)]);
    scene.produce(&[r#"{"id":2,"note":"b","price":1}"#]).await;
    let summary = scene.ingest_to_end().await.expect("with another column");
    assert_eq!((summary.rows, summary.lost), (1, 0));
    let expected = [r#"0 1 a ∅ {"price":2.50}"#, r#"1 2 ∅ 1 {"note":"b"}"#];
    assert_eq!(rows(&scene, &["id", "note", "price", "_rescued"]).await, expected);
    assert!(scene.lake().await.verify().await.expect("an audit").faults.is_empty());

    // Started again nothing is written: the columns are there.
    let version = scene.lake().await.table(&scene.topic.table).head().await.expect("a table").version;
    scene.ingest_to_end().await.expect("nothing to do");
    assert_eq!(scene.lake().await.table(&scene.topic.table).head().await.expect("a table").version, version);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_that_runs_goes_on_when_somebody_adds_columns() {
    let mut scene = Scene::new(2).await;
    let mut delivered = scene.simulate(300, 0.1).await;
    let mut ingest = scene.start_ingest(scene.options(Stop::Never)).await;
    ingest.until(|progress| progress.events == 300).await;
    for round in 0..3 {
        let more = Field::new(format!("more_{round}"), DataType::Utf8, true);
        scene.lake().await.table(&scene.topic.table).add_columns(&[more]).await.expect("added");
        delivered.extend(scene.simulate(100, 0.1).await);
        ingest.until(|progress| progress.events == 400 + 100 * round).await;
    }
    let summary = ingest.stop().await.expect("a quiet end");
    assert!(summary.lost >= 3, "each of the changes was met: {summary:?}");
    scene.assert_accounted(&delivered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_may_widen_and_never_narrow() {
    let mut scene = Scene::new(1).await;
    use FieldKind::{Any, Boolean, Number, String};
    scene.topic = orders(&[field("id", Number), field("note", String), field("paid", Boolean), field("all", Any)]);
    scene.ingest_to_end().await.expect("made");
    for (name, kind) in [("id", String), ("note", Number), ("paid", Number), ("all", Number), ("all", String)] {
        scene.topic = orders(&[field(name, kind)]);
        let error = scene.ingest_to_end().await.expect_err("it holds less");
        assert_eq!(error.kind(), ErrorKind::BadConfig);
        let was = match name {
            "id" => "number",
            "note" => "string",
            "paid" => "boolean",
            _ => "any",
        };
        for word in [&scene.topic.name, name, was, kind.code(), "bronze.orders", "or \"any\""] {
            assert!(error.to_string().contains(word), "{word} in: {error}");
        }
    }
    let version =
        async |scene: &Scene| scene.lake().await.table(&scene.topic.table).head().await.expect("there").version;
    let before = version(&scene).await;
    scene.topic = orders(&[field("id", Any), field("note", String)]);
    scene.ingest_to_end().await.expect("wider");
    assert_eq!(version(&scene).await, before + 1, "noted in one commit");
    scene.topic = orders(&[field("id", Number)]);
    let error = scene.ingest_to_end().await.expect_err("it was widened");
    assert!(error.to_string().contains("was filled from any"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_of_another_type_is_named_with_both() {
    let mut scene = Scene::new(1).await;
    scene.topic = orders(&[field("id", FieldKind::Number)]);
    let mut fields: Vec<Field> =
        scene.topic.rows_spec().schema.fields().iter().map(|field| field.as_ref().clone()).collect();
    fields[0] = Field::new("id", DataType::Int64, true);
    let spec = TableSpec::new(std::sync::Arc::new(arrow::datatypes::Schema::new(fields)));
    scene.lake().await.table(&scene.topic.table).ensure(&spec).await.expect("somebody else's");
    let error = scene.ingest_to_end().await.expect_err("it is no text");
    assert_eq!(error.kind(), ErrorKind::BadConfig);
    for word in ["spotify_events", "field \"id\"", "column id", "bronze.orders", "Int64", "Utf8", "another column"] {
        assert!(error.to_string().contains(word), "{word} in: {error}");
    }
}
