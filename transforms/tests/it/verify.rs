//! The deep audit: finds nothing where nothing is wrong, and each row that somebody planted.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, Int64Array, RecordBatch, StringArray, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Int64Type};
use expect_test::expect;
use futures::TryStreamExt as _;
use lakehouse::{Commit, DEFAULT_GROUP, Lake, Operation, StageOptions, TableName};
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use transforms::{DeepReport, Options, Project};

use crate::faults::project;
use crate::lake::{Event, append, bronze, head, open, store};

async fn built(lake: &Lake, project: &Project) {
    let report = transforms::build(lake, project, &Options::default()).await.expect("the build runs");
    assert!(!report.failed(), "{report}");
}

async fn audited(lake: &Lake, project: &Project) -> DeepReport {
    transforms::verify(lake, project, &Options::default(), None).await.expect("the audit runs")
}

/// What the audit says, a line each.
fn told(report: &DeepReport) -> String {
    let models = report.models.iter().map(|audit| format!("{audit}\n"));
    models.chain(report.faults.iter().map(|fault| format!("{fault}\n"))).collect()
}

async fn rows_of(lake: &Lake, name: &str) -> RecordBatch {
    let head = head(lake, name).await;
    let frame = lake.session_factory().context().read_table(head.provider()).expect("planned");
    let batches = frame.collect().await.expect("read");
    concat_batches(&head.schema, &batches).expect("the same columns")
}

/// Puts these rows in the place of all that is there, as another engine would: it knows nothing of a ledger.
async fn put(lake: &Lake, name: &str, rows: RecordBatch) {
    let head = head(lake, name).await;
    let table = lake.table(&head.name);
    let mut commit = Commit::new(Operation::Overwrite);
    commit.adds = table.stage_batches(&head, vec![rows], &StageOptions::default()).await.expect("staged");
    commit.removes = head.files.to_vec();
    table.replace(head.version, commit).await.expect("committed").committed().expect("nobody else is here");
}

/// These rows of a batch, in this order.
fn picked(rows: &RecordBatch, places: &[usize]) -> RecordBatch {
    let places = UInt32Array::from_iter_values(places.iter().map(|place| *place as u32));
    take_record_batch(rows, &places).expect("there are so many rows")
}

/// The rows with one value changed.
fn changed(rows: &RecordBatch, column: &str, row: usize) -> RecordBatch {
    let place = rows.schema_ref().index_of(column).expect("the table has the column");
    let old = rows.column(place);
    let new: ArrayRef = match old.data_type() {
        DataType::Int64 => {
            let values = old.as_primitive::<Int64Type>();
            Arc::new((0..values.len()).map(|at| Some(values.value(at) + i64::from(at == row))).collect::<Int64Array>())
        }
        _ => {
            let values = old.as_string::<i32>();
            let value =
                |at: usize| if at == row { Some("nobody") } else { values.is_valid(at).then(|| values.value(at)) };
            Arc::new((0..values.len()).map(value).collect::<StringArray>())
        }
    };
    let mut columns = rows.columns().to_vec();
    columns[place] = new;
    RecordBatch::try_new(rows.schema(), columns).expect("the same types")
}

/// A lake with some days of events, built in several steps.
async fn some() -> Lake {
    let lake = open(&store()).await;
    let project = Project::bundled();
    for step in 0..3 {
        let events: Vec<_> = (0..20).map(|id| Event::new(step * 15 + id, 10, 0, i64::from(step * 20 + id))).collect();
        append(&lake, &events).await;
        built(&lake, &project).await;
    }
    lake
}

#[tokio::test]
async fn nothing_is_found_where_nothing_is_wrong() {
    let empty = open(&store()).await;
    assert_eq!(told(&audited(&empty, &Project::bundled()).await), "", "what was never built is no fault");
    let lake = some().await;
    expect![[r#"
        silver.spotify_silver version 3 (publication 3) is what its query makes of bronze.spotify_events version 3: 50 rows compared
        gold.listening_by_minute version 3 (publication 3) is what its query makes of silver.spotify_silver version 3: 50 rows compared
        gold.top_songs version 3 (publication 3) is what its query makes of silver.spotify_silver version 3: 6 rows compared
        gold.user_engagement version 3 (publication 3) is what its query makes of silver.spotify_silver version 3: 50 rows compared
    "#]]
    .assert_eq(&told(&audited(&lake, &Project::bundled()).await));
}

#[tokio::test]
async fn rows_that_somebody_changed_took_out_or_doubled_are_named() {
    let lake = some().await;
    let project = Project::bundled();
    let songs = rows_of(&lake, "gold.top_songs").await;
    let ids = songs.column(0).as_string::<i32>();
    let place = |song: &str| (0..6).find(|at| ids.value(*at) == song).expect("the song is there");
    let (changed_row, gone, doubled) = (place("song-1"), place("song-3"), place("song-4"));
    let songs = changed(&songs, "total_plays", changed_row);
    let kept: Vec<usize> = (0..6).filter(|at| *at != gone).chain([doubled]).collect();
    put(&lake, "gold.top_songs", picked(&songs, &kept)).await;
    let report = audited(&lake, &project).await;
    // The publication is what it was; whoever reads the newest version is misled.
    let of_songs =
        report.models.iter().filter(|audit| audit.table.name == "top_songs").map(|audit| format!("{audit}\n"));
    let faults = report.faults.iter().map(|fault| format!("{fault}\n"));
    expect![[r#"
        gold.top_songs version 3 (publication 3) is what its query makes of silver.spotify_silver version 3: 6 rows compared
        gold.top_songs version 4 is not what its query makes of silver.spotify_silver version 3: 6 rows compared, 3 differ
        gold.top_songs: version 4: the row (song_id = song-1, song_name = name of song-1, artist_name = artist of song-1) differs: total_plays is 1, and should be 0
        gold.top_songs: version 4: the row (song_id = song-3, song_name = name of song-3, artist_name = artist of song-3, total_plays = 0, total_skips = 0) is missing
        gold.top_songs: version 4: the row (song_id = song-4, song_name = name of song-4, artist_name = artist of song-4, total_plays = 4, total_skips = 4) is there 2 times, and should be there 1
    "#]]
    .assert_eq(&of_songs.chain(faults).collect::<String>());
    assert_eq!(report.not_checked(), 0);
}

/// What is planted in silver comes into the next publication, and so does what gold makes of it: only silver is at fault.
#[tokio::test]
async fn a_fault_that_was_published_since_is_found_where_it_began() {
    let lake = some().await;
    let silver = rows_of(&lake, "silver.spotify_silver").await;
    put(&lake, "silver.spotify_silver", changed(&silver, "user_id", 7)).await;
    append(&lake, &[Event::new(100, 10, 0, 100)]).await;
    built(&lake, &Project::bundled()).await;
    let report = audited(&lake, &Project::bundled()).await;
    let at_fault: Vec<_> = report.models.iter().filter(|audit| audit.differing_rows > 0).collect();
    assert_eq!(at_fault.len(), 1, "{}", told(&report));
    assert!(at_fault[0].publication.is_some() && at_fault[0].table.name == "spotify_silver", "{}", told(&report));
    assert_eq!(report.faults.len(), 1);
    assert!(report.faults[0].what.contains("user_id is nobody, and should be user-"), "{}", report.faults[0]);
}

const TABLES: [(&str, &[&str]); 4] = [
    ("silver.spotify_silver", &["user_id", "country"]),
    ("gold.top_songs", &["total_plays", "song_name"]),
    ("gold.user_engagement", &["plays", "country"]),
    ("gold.listening_by_minute", &["events"]),
];

#[tokio::test]
async fn whatever_is_planted_is_found() {
    let seed = 11;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    for round in 0..24 {
        let lake = some().await;
        let (name, columns) = TABLES[random.random_range(0..TABLES.len())];
        let rows = rows_of(&lake, name).await;
        // Each row suffers one thing at most, so that they can be counted.
        let count = rows.num_rows();
        let (mut kept, mut planted, mut bad) = (Vec::new(), 0, rows.clone());
        for row in 0..count {
            match random.random_range(0..10) {
                0 => planted += 1,
                1 => {
                    kept.extend([row, row]);
                    planted += 1;
                }
                2 => {
                    bad = changed(&bad, columns[random.random_range(0..columns.len())], row);
                    kept.push(row);
                    planted += 1;
                }
                _ => kept.push(row),
            }
        }
        put(&lake, name, picked(&bad, &kept)).await;
        let report = audited(&lake, &Project::bundled()).await;
        let what = format!("seed {seed}, round {round}, {planted} planted in {name}: {}", told(&report));
        let found: u64 = report.models.iter().map(|audit| audit.differing_rows).sum();
        // A row with another key is one that is missing and one that should not be there.
        let of_keys = if columns.len() > 1 && name.starts_with("gold") { planted } else { 0 };
        assert!((planted..=planted + of_keys).contains(&found), "{found} found, {what}");
        let at_fault: BTreeSet<&TableName> = report.faults.iter().map(|fault| &fault.table).collect();
        assert!(at_fault.iter().all(|table| table.to_string() == name), "{what}");
        assert!(report.faults.len() <= 21, "{what}");
    }
}

#[tokio::test]
async fn a_sample_is_always_the_same_and_all_of_it_is_everything() {
    let lake = some().await;
    let silver = rows_of(&lake, "silver.spotify_silver").await;
    let all: Vec<usize> = (0..silver.num_rows()).collect();
    let doubled: Vec<usize> = all.iter().chain(&all).copied().collect();
    put(&lake, "silver.spotify_silver", picked(&silver, &doubled)).await;
    let select = Options { select: vec!["spotify_silver".to_owned()], ..Options::default() };
    let sampled = async |share: f64| {
        let report =
            transforms::verify(&lake, &Project::bundled(), &select, Some(share)).await.expect("the audit runs");
        let faults: Vec<String> = report.faults.iter().map(ToString::to_string).collect();
        let audit = report.models.into_iter().next_back().expect("the newest version");
        assert_eq!(audit.compared_rows, 2 * audit.differing_rows, "each row of the sample is there twice");
        (audit.differing_rows, faults, audit.to_string())
    };
    let (some, faults, line) = sampled(0.3).await;
    assert!((5..=25).contains(&some), "{some} of 50");
    assert!(line.contains(&format!("{} of 100 rows compared", 2 * some)), "{line}");
    assert_eq!(sampled(0.3).await, (some, faults, line));
    assert!(sampled(0.6).await.0 > some, "a larger sample has the smaller in it");
    assert_eq!(sampled(1.0).await.0, 50);
}

/// A model of averages, whose table was written by another order of addition, and then by another sum.
#[tokio::test]
async fn floats_that_are_near_are_the_same() {
    let lake = open(&store()).await;
    append(&lake, &(0..30).map(|id| Event::new(id, 10, 0, i64::from(id))).collect::<Vec<_>>()).await;
    let float = "select song_id, sum(0.1 + _offset / 3.0) as weight, cast(1 as double) / count(*) as share,\n\
                 case when count(*) > 4 then cast('inf' as double) end as nothing from {{ ref('spotify_silver') }} group by song_id";
    let project = project(&[("models/gold/weights.sql", float)]);
    built(&lake, &project).await;
    assert_eq!(audited(&lake, &project).await.faults, []);
    let rows = rows_of(&lake, "gold.weights").await;
    let times = |factor: f64| {
        let mut columns = rows.columns().to_vec();
        let weights = columns[1].as_primitive::<arrow::datatypes::Float64Type>();
        columns[1] = Arc::new(weights.unary::<_, arrow::datatypes::Float64Type>(|weight| weight * factor));
        RecordBatch::try_new(rows.schema(), columns).expect("the same types")
    };
    put(&lake, "gold.weights", times(1.0 + 1e-12)).await;
    assert_eq!(audited(&lake, &project).await.faults, []);
    put(&lake, "gold.weights", times(1.0 + 1e-6)).await;
    let report = audited(&lake, &project).await;
    assert_eq!(report.faults.len(), 6, "{}", told(&report));
    assert!(report.faults.iter().all(|fault| fault.what.contains("differs: weight is ")), "{}", told(&report));
}

#[tokio::test]
async fn what_cannot_be_compared_is_told() {
    let store = store();
    let lake = open(&store).await;
    append(&lake, &[Event::new(1, 10, 0, 0), Event::new(2, 10, 0, 1)]).await;
    let moving = "select song_id, now() as at from {{ ref('spotify_silver') }}";
    let with_clock = project(&[("models/gold/seen.sql", moving)]);
    built(&lake, &with_clock).await;
    let not_checked = async |lake: &Lake, project: &Project| {
        let report = audited(lake, project).await;
        assert_eq!(report.faults, []);
        let lines = report.models.iter().filter(|audit| audit.not_checked.is_some()).map(|audit| format!("{audit}\n"));
        lines.collect::<String>()
    };
    expect![[r#"
        gold.seen version 1 (publication 1): not checked: the function now does not give the same result each time
    "#]]
    .assert_eq(&not_checked(&lake, &with_clock).await);
    let other = project(&[("models/gold/top_songs.sql", "select distinct song_id from {{ ref('spotify_silver') }}")]);
    expect![[r#"
        gold.top_songs version 1 (publication 1): not checked: its query, its settings or a source's identity changed since it was built: build it again
        gold.seen version 1 (publication 1): not checked: no model of this project builds it: name its project with --project
    "#]]
    .assert_eq(&not_checked(&lake, &other).await);

    // Bronze was put together, and the files that silver was built from are gone: the rows are still there.
    append(&lake, &[Event::new(3, 10, 0, 2)]).await;
    built(&lake, &with_clock).await;
    let table = bronze(&lake);
    let compacted = lake.compact(&table, None, lakehouse::Compaction::Thorough).await.expect("put together");
    assert_eq!((compacted.removed, compacted.added), (2, 1));
    let live = table.head().await.expect("there").files[0].path.clone();
    let data: Vec<_> = store.list(Some(&Path::from("lake/bronze"))).try_collect().await.expect("listed");
    let name = live.rsplit('/').next().expect("a file's name").to_owned();
    let is_gone = |path: &Path| path.as_ref().ends_with(".parquet") && !path.as_ref().ends_with(&name);
    for object in data.into_iter().filter(|object| is_gone(&object.location)) {
        store.delete(&object.location).await.expect("deleted");
    }
    assert_eq!(lake.newest_publication(DEFAULT_GROUP).await.expect("read").expect("there").id, 2);
    let lines = not_checked(&open(&store).await, &with_clock).await;
    assert!(lines.contains("silver.spotify_silver version 2 (publication 2): not checked: "), "{lines}");
    assert!(lines.contains("lake/bronze/spotify_events") || lines.contains("not found"), "{lines}");
    // The next build names a version that is kept.
    append(&lake, &[Event::new(4, 10, 0, 3)]).await;
    built(&lake, &with_clock).await;
    let lines = not_checked(&open(&store).await, &with_clock).await;
    assert!(!lines.contains("silver"), "{lines}");
}
