//! Histories in which everything fails that can, decided by a seed: the real loop, start, decoder, committer and Delta log, on a
//! simulated broker, store and clock. The same seed gives the same history.
//!
//! ```text
//!  world ─── starts, kills ──► process a, b, c: consume::run_on
//!    │                           │ reads              │ reads, writes
//!    ├── fills, shares out ─► broker + group        store (one a life, over one bucket)
//!    └── at the end ─────────► oracle: each message once, the ledger at the end, Lake::verify
//! ```
//!
//! `SIMULATION_SEEDS` is how many seeds are tried, `SIMULATION_SEED` replays one and prints what happened in it.

mod broker;
mod bugs;
mod group;
mod oracle;
mod random;
mod store;
mod time;
mod world;

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bugs::Bug;
use oracle::{Failure, FailureKind};
use store::{BESIDE, Death, Dying};
use world::{Plan, Report, Totals, run};

/// Seeds that are tried where nobody asks for more.
const SEEDS: u64 = 200;

#[expect(clippy::disallowed_methods, reason = "a test learns from its caller what to try")]
fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// How to see a history again.
fn replay(seed: u64) -> String {
    format!("SIMULATION_SEED={seed} scripts/cargo.sh test --release --locked --test it every_history -- --nocapture")
}

/// Runs a history; one that panics has failed.
fn tried(plan: &Plan) -> Report {
    std::panic::catch_unwind(AssertUnwindSafe(|| run(plan))).unwrap_or_else(|_| Report {
        failures: vec![Failure::new(FailureKind::Stopped, "panicked")],
        trace: Vec::new(),
        first_steps: 0,
        totals: Totals::default(),
    })
}

/// Runs these plans on all cores.
fn run_all(plans: &[Plan], done: impl Fn(&Plan, Report) + Sync) {
    let next = AtomicU64::new(0);
    let work = || {
        while let Some(plan) = plans.get(next.fetch_add(1, Ordering::AcqRel) as usize) {
            done(plan, tried(plan));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
}

#[test]
fn every_history_comes_to_its_right_end() {
    let seed = number_from("SIMULATION_SEED");
    if let Some(seed) = seed {
        let report = run(&Plan::of(seed));
        println!("{:#?}", Plan::of(seed));
        report.trace.iter().for_each(|line| println!("{line}"));
        assert!(report.failures.is_empty(), "seed {seed}: {:#?}", report.failures);
        return;
    }
    let seeds = number_from("SIMULATION_SEEDS").unwrap_or(SEEDS);
    let plans: Vec<Plan> = (0..seeds).map(Plan::of).collect();
    let (totals, failed) = (Mutex::new(Totals::default()), Mutex::new(Vec::new()));
    let started = Instant::now();
    run_all(&plans, |plan, report| {
        totals.lock().expect("no holder panics").add(&report.totals);
        if let Some(first) = report.failures.first() {
            println!("seed {} failed: {first}\n  {}", plan.seed, replay(plan.seed));
            failed.lock().expect("no holder panics").push(plan.seed);
        }
    });
    let totals = totals.into_inner().expect("no holder panics");
    println!("{seeds} seeds in {:.1} s: {totals:?}", started.elapsed().as_secs_f64());
    assert!(totals.compactions > 0, "files are put together in some of them");
    assert_eq!(failed.into_inner().expect("no holder panics"), Vec::<u64>::new(), "these seeds failed");
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let history = |seed: u64| {
        let mut trace = run(&Plan::of(seed)).trace;
        trace.retain(|line| !line.contains(BESIDE));
        trace
    };
    for seed in 0..12 {
        let (one, two) = (history(seed), history(seed));
        let differs = one.iter().zip(&two).position(|(one, two)| one != two);
        let shown = differs.map(|at| (&one[at.saturating_sub(3)..=at], &two[at.saturating_sub(3)..=at]));
        assert_eq!(shown, None, "seed {seed}");
        assert_eq!(one.len(), two.len(), "seed {seed}");
    }
}

#[test]
fn a_death_at_any_request_loses_and_doubles_nothing() {
    let undisturbed = run(&Plan::with_one_death(None));
    assert!(undisturbed.failures.is_empty(), "{:?}", undisturbed.failures);
    let deaths = (0..undisturbed.first_steps).flat_map(|step| Dying::ALL.map(|how| Death { step, how }));
    let plans: Vec<Plan> = deaths.map(|death| Plan::with_one_death(Some(death))).collect();
    let died = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    run_all(&plans, |plan, report| {
        died.fetch_add(report.totals.deaths, Ordering::AcqRel);
        if let Some(first) = report.failures.first() {
            failed.lock().expect("no holder panics").push(format!("{:?}: {first}", plan.first_death));
        }
    });
    println!("{} deaths at {} requests", died.load(Ordering::Acquire), undisturbed.first_steps);
    assert_eq!(failed.into_inner().expect("no holder panics"), Vec::<String>::new());
    assert_eq!(died.into_inner(), plans.len() as u64, "each of them has to happen");
}

/// The first seed that shows, with this bug, a message which is doubled, lost or altered. That the audit complains would be
/// less. Seeds that come to their right end without it are tried.
fn found_by(bug: Bug) -> Option<(u64, Failure)> {
    let shows =
        |failure: &Failure| matches!(failure.kind, FailureKind::Doubled | FailureKind::Lost | FailureKind::Altered);
    (0..SEEDS).find_map(|seed| {
        let report = tried(&Plan { bug: Some(bug), ..Plan::of(seed) });
        Some((seed, report.failures.into_iter().find(shows)?))
    })
}

#[test]
fn each_planted_bug_is_found() {
    for bug in Bug::ALL {
        let (seed, failure) = found_by(bug).unwrap_or_else(|| panic!("{bug:?} is not found in {SEEDS} seeds"));
        println!("{bug:?} is found by seed {seed}: {failure}");
    }
}
