//! Writers, a builder, maintenance and readers of one lake, each a process of its own over a store that fails, decided by a seed.
//!
//! ```text
//!  writer a, b ──► bronze.things ──► builder ──► gold.copy ──► publications ──► readers
//!                        ▲                           ▲               │
//!                        └── maintenance: compact, clean files, clean logs, keep what is named or being read
//! ```
//!
//! In the end each row that a ledger tells of is there once, in bronze and in gold, no reader has missed a file, and the audit
//! finds nothing. `LAKE_SEEDS` is how many seeds are tried, `LAKE_SEED` tries one.

mod processes;
mod store;

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use processes::{Ended, Totals, run};

/// Seeds that are tried where nobody asks for more.
const SEEDS: u64 = 200;

/// What is done wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Maintenance does not look at what is published.
    PublicationsUnseen,
    /// Maintenance does not look at who is reading.
    ReadersUnseen,
    /// The store lets the second commit of a version take the place of the first.
    CommitsOverwritten,
}

impl Bug {
    const ALL: [Self; 3] = [Self::PublicationsUnseen, Self::ReadersUnseen, Self::CommitsOverwritten];
}

#[expect(clippy::disallowed_methods, reason = "a test learns from its caller what to try")]
fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// One that panics has failed.
fn tried(seed: u64, bug: Option<Bug>) -> Ended {
    std::panic::catch_unwind(AssertUnwindSafe(|| run(seed, bug)))
        .unwrap_or_else(|_| Ended { failures: vec!["panicked".to_owned()], totals: Totals::default() })
}

/// Tries these seeds on all cores, as long as `done` says to go on.
fn try_all(seeds: std::ops::Range<u64>, bug: Option<Bug>, done: impl Fn(u64, Ended) -> bool + Sync) {
    let next = AtomicU64::new(seeds.start);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::AcqRel);
            if seed >= seeds.end || !done(seed, tried(seed, bug)) {
                next.store(seeds.end, Ordering::Release);
                return;
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
}

#[test]
fn the_lake_stays_whole_whoever_writes_reads_and_cleans_it() {
    if let Some(seed) = number_from("LAKE_SEED") {
        let Ended { failures, totals } = run(seed, None);
        println!("{totals:?}");
        assert!(failures.is_empty(), "seed {seed}: {failures:#?}");
        return;
    }
    let seeds = number_from("LAKE_SEEDS").unwrap_or(SEEDS);
    let (totals, failed) = (Mutex::new(Totals::default()), Mutex::new(Vec::new()));
    let started = Instant::now();
    try_all(0..seeds, None, |seed, ended| {
        totals.lock().expect("no holder panics").add(&ended.totals);
        if let Some(first) = ended.failures.first() {
            println!(
                "seed {seed} failed: {first}\n  LAKE_SEED={seed} scripts/cargo.sh test --release --locked --test it whoever_writes"
            );
            failed.lock().expect("no holder panics").push(seed);
        }
        true
    });
    let totals = totals.into_inner().expect("no holder panics");
    println!("{seeds} lakes in {:.1} s: {totals:?}", started.elapsed().as_secs_f64());
    assert!(totals.files_cleaned > 0 && totals.log_entries_cleaned > 0 && totals.compactions > 0, "{totals:?}");
    assert_eq!(failed.into_inner().expect("no holder panics"), Vec::<u64>::new(), "these seeds failed");
}

#[test]
fn what_is_planted_in_the_lake_is_found() {
    for bug in Bug::ALL {
        let found = Mutex::new(None);
        try_all(0..SEEDS, Some(bug), |seed, ended| {
            let failure = ended.failures.into_iter().next();
            let mut found = found.lock().expect("no holder panics");
            if let Some(failure) = failure {
                found.get_or_insert((seed, failure));
            }
            found.is_none()
        });
        let found = found.into_inner().expect("no holder panics");
        let (seed, failure) = found.unwrap_or_else(|| panic!("{bug:?} is not found in {SEEDS} seeds"));
        println!("{bug:?} is found by seed {seed}: {failure}");
    }
}
