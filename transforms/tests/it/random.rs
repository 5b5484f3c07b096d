//! Random appends, builds, crashes and races: the tables must always be what the events alone say.

use std::collections::BTreeMap;
use std::time::Duration;

use lakehouse::Lake;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use transforms::{BuildReport, Options, Project, RefreshMode};

use crate::lake::{Event, append, newest, open, store};
use crate::oracle::Tables;

/// Rounds of each random test. `LAKEBEAT_TEST_ROUNDS` at compile time asks for more.
const ROUNDS: u32 = match option_env!("LAKEBEAT_TEST_ROUNDS") {
    Some(_) => 1_000,
    None => 40,
};

/// Events with few ids, so that copies are many, and with every fault that a row can have.
fn events(random: &mut ChaCha8Rng, offsets: &mut [i64; 3]) -> Vec<Event> {
    let count = random.random_range(0..25);
    let mut made = Vec::new();
    for _ in 0..count {
        let partition = random.random_range(0..3);
        let offset = offsets[partition];
        offsets[partition] += 1;
        // Not in step with the offsets: a copy that comes late can be the first in the order of the stream.
        let kafka_timestamp = random.random_range(0..50);
        let mut event = Event::new(random.random_range(0..60), kafka_timestamp, partition as i32, offset);
        match random.random_range(0..20) {
            0 => event.event_id = None,
            1 => event.user_id = None,
            2 => event.song_id = None,
            3 => event.timestamp = None,
            4 => event.timestamp = Some("yesterday".to_owned()),
            5 => event.timestamp = Some("2026-02-30T00:00:00Z".to_owned()),
            6 => event.timestamp = Some("2026-01-02T00:30:00+01:00".to_owned()),
            7 => event.timestamp = Some("2026-01-01T23:59:59.999999Z".to_owned()),
            _ => {}
        }
        made.push(event);
    }
    made
}

fn options(select: &[&str], refresh: RefreshMode) -> Options {
    Options { select: select.iter().map(|name| (*name).to_owned()).collect(), refresh, ..Options::default() }
}

/// Counts by which kind of refresh each model came about.
fn count(kinds: &mut BTreeMap<String, u32>, report: &BuildReport) {
    for run in &report.models {
        *kinds.entry(format!("{} {:?}", run.model, run.refresh)).or_insert(0) += 1;
    }
}

async fn build_is_right(lake: &Lake, project: &Project, all: &[Event], what: &str) {
    let report = transforms::build(lake, project, &Options::default()).await.expect("the build runs");
    assert!(!report.failed(), "{what}: {report}");
    let expected = Tables::expected(all);
    assert_eq!(Tables::at_heads(lake).await, expected, "{what}");
    let publication = newest(lake).await.expect("a build publishes");
    assert_eq!(Tables::published(lake, &publication).await, expected, "{what}");
    let deep = transforms::verify(lake, project, &Options::default(), None).await.expect("the audit runs");
    assert_eq!((deep.faults.as_slice(), deep.not_checked()), (&[][..], 0), "{what}");
}

#[tokio::test]
async fn any_sequence_of_appends_crashes_and_refreshes_equals_a_full_rebuild() {
    let seed = 20_261_123;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let store = store();
    let mut lake = open(&store).await;
    let project = Project::bundled();
    let (mut all, mut offsets) = (Vec::new(), [0; 3]);
    let mut kinds = BTreeMap::new();
    for round in 0..ROUNDS {
        for _ in 0..random.random_range(1..4) {
            let new = events(&mut random, &mut offsets);
            append(&lake, &new).await;
            all.extend(new);
        }
        let action = random.random_range(0..8);
        let what = format!("seed {seed}, round {round}, action {action}");
        match action {
            // Appends pile up.
            0 => continue,
            // A crash after silver's commit.
            1 => {
                let silver = options(&["spotify_silver"], RefreshMode::Automatic);
                transforms::run(&lake, &project, &silver).await.expect("silver is committed");
                lake = open(&store).await;
            }
            // A crash at any moment.
            2 | 3 => {
                let moment = Duration::from_micros(random.random_range(0..60_000));
                let _ = tokio::time::timeout(moment, transforms::build(&lake, &project, &Options::default())).await;
                lake = open(&store).await;
            }
            4 => {
                let full = options(&[], RefreshMode::Full);
                count(&mut kinds, &transforms::build(&lake, &project, &full).await.expect("the build runs"));
            }
            _ => {}
        }
        count(&mut kinds, &transforms::build(&lake, &project, &Options::default()).await.expect("the build runs"));
        build_is_right(&lake, &project, &all, &what).await;
    }
    // A test that never met the rare cases would prove nothing.
    for needed in ["spotify_silver Some(Append)", "spotify_silver Some(Merge)", "spotify_silver Some(Full)"] {
        assert!(kinds.contains_key(needed), "{needed} did not come up: {kinds:?}");
    }
}

#[tokio::test]
async fn two_builders_at_once_lose_and_double_nothing() {
    let seed = 7;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let store = store();
    // Two lakes on one store know as little of each other as two processes.
    let (one, two) = (open(&store).await, open(&store).await);
    let project = Project::bundled();
    let (mut all, mut offsets) = (Vec::new(), [0; 3]);
    for round in 0..ROUNDS / 4 {
        let new = events(&mut random, &mut offsets);
        append(&one, &new).await;
        all.extend(new);
        let late = events(&mut random, &mut offsets);
        let options = Options::default();
        let (first, second, ()) = tokio::join!(
            transforms::build(&one, &project, &options),
            transforms::build(&two, &project, &options),
            append(&one, &late)
        );
        all.extend(late);
        for report in [first, second] {
            let report = report.expect("a builder that loses starts over");
            assert!(!report.failed(), "seed {seed}, round {round}: {report}");
        }
        // Each publication shows one moment: gold is what its silver says.
        for publication in one.publications().await.expect("publications can be read").iter().take(3) {
            let shown = Tables::published(&one, publication).await;
            let events = shown.silver.len();
            let counted: usize =
                shown.by_minute.iter().filter_map(|row| row.rsplit(" | ").next()?.parse::<usize>().ok()).sum();
            assert_eq!(counted, events, "seed {seed}, round {round}, publication {}", publication.id);
        }
        build_is_right(&two, &project, &all, &format!("seed {seed}, round {round}")).await;
    }
}
