//! Randomness that a seed decides. Each question has a generator of its own, named by what it is about, so that an answer does
//! not hang on how many others were asked before it.

use std::ops::RangeInclusive;

use lakehouse::Ids;
use std::sync::Mutex;
use uuid::{Builder, Uuid};

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    /// The generator for what `about` and `numbers` name, in the history of `seed`.
    pub(crate) fn about(seed: u64, about: &str, numbers: &[u64]) -> Self {
        let mut random = Self { state: seed };
        for number in about.bytes().map(u64::from).chain(numbers.iter().copied()) {
            random.state ^= number.wrapping_mul(0xff51_afd7_ed55_8ccd);
            random.state = random.next();
        }
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of the numbers, both ends included.
    pub(crate) fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        range.start() + self.next() % (range.end() - range.start() + 1)
    }

    /// Whether what happens so many times in a thousand happens now.
    pub(crate) fn happens(&mut self, per_mille: u64) -> bool {
        self.next() % 1000 < per_mille
    }

    /// One of them.
    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[(self.next() % choices.len() as u64) as usize]
    }
}

/// A text as a number, to ask about it.
pub(crate) fn number_of(text: &str) -> u64 {
    Random::about(0, text, &[]).state
}

/// Ids that are the same each time, and others in each life of a process.
#[derive(Debug)]
pub(crate) struct SeededIds(Mutex<Random>);

impl SeededIds {
    pub(crate) fn new(random: Random) -> Self {
        Self(Mutex::new(random))
    }
}

impl Ids for SeededIds {
    fn fresh(&self) -> Uuid {
        let mut random = self.0.lock().expect("no holder of this lock panics");
        let (high, low) = (random.next(), random.next());
        Builder::from_random_bytes((u128::from(high) << 64 | u128::from(low)).to_be_bytes()).into_uuid()
    }
}
