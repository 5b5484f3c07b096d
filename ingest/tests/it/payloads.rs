//! Thousands of generated payloads through the decoder, JSON and what is left of JSON after some damage: the checks are those of
//! the fuzz target, and the seed of each batch is in the message of what fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use fake::rand::rngs::ChaCha8Rng;
use fake::rand::{RngExt as _, SeedableRng as _};

use super::checks;

const BATCHES: u64 = 400;
const BATCH_MESSAGES: usize = 20;
/// Fields of the topic of the checks, and names that it does not know; some look alike only after unescaping.
const NAMES: [&str; 10] = ["a", "n", "b", "x", "event_id", "u", "v", "\\u0061", "", "a\\\"b"];
const SCALARS: [&str; 16] = [
    "null",
    "true",
    "false",
    "0",
    "-0.0",
    "12.50",
    "1e5",
    "1e999",
    "\"\"",
    "\"text\"",
    "\"\\u00e9\\n\"",
    "\"\\ud83d\\ude00\"",
    "\"\\ud800\"",
    "\"\u{1f600}\"",
    "18446744073709551616",
    "\"{\"",
];
/// Around the depth at which JSON readers stop.
const DEPTHS: [usize; 6] = [1, 126, 127, 128, 129, 1000];

struct Generator(ChaCha8Rng);

impl Generator {
    fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn value(&mut self, levels: usize) -> String {
        match self.below(8) {
            0 if levels > 0 => self.object(levels - 1),
            1 if levels > 0 => {
                let items: Vec<_> = (0..self.below(4)).map(|_| self.value(levels - 1)).collect();
                format!("[{}]", items.join(","))
            }
            2 if self.one_in(10) => {
                let depth = DEPTHS[self.below(DEPTHS.len())];
                format!("{}{}", "[".repeat(depth), "]".repeat(depth))
            }
            _ => SCALARS[self.below(SCALARS.len())].to_owned(),
        }
    }

    /// An object whose names may come twice.
    fn object(&mut self, levels: usize) -> String {
        let space = if self.one_in(4) { " \n" } else { "" };
        let fields: Vec<_> = (0..self.below(7))
            .map(|_| format!("\"{}\"{space}:{space}{}", NAMES[self.below(NAMES.len())], self.value(levels)))
            .collect();
        format!("{space}{{{space}{}{space}}}", fields.join(","))
    }

    fn payload(&mut self) -> Option<Vec<u8>> {
        if self.one_in(50) {
            return None;
        }
        let mut bytes = if self.one_in(8) { self.value(3) } else { self.object(3) }.into_bytes();
        if self.one_in(3) {
            for _ in 0..=self.below(3) {
                self.damage(&mut bytes);
            }
        }
        Some(bytes)
    }

    /// Takes bytes away, puts some in, changes one, or says something twice.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        const BYTES: &[u8] = b"{}[]\",:\\u0n \xff\xc3\x00\x1f";
        let from = self.below(bytes.len() + 1);
        let to = (from + self.below(8)).min(bytes.len());
        let byte = BYTES[self.below(BYTES.len())];
        match self.below(5) {
            0 => bytes.truncate(from),
            1 => drop(bytes.drain(from..to)),
            2 => bytes.insert(from, byte),
            3 if from < bytes.len() => bytes[from] = byte,
            _ => bytes.extend_from_within(from..to),
        }
    }
}

#[test]
fn each_generated_payload_is_the_row_or_letter_that_serde_json_makes_of_it() {
    for seed in 0..BATCHES {
        let mut generator = Generator(ChaCha8Rng::seed_from_u64(seed));
        let payloads: Vec<_> = (0..BATCH_MESSAGES).map(|_| generator.payload()).collect();
        let payloads: Vec<_> = payloads.iter().map(Option::as_deref).collect();
        let checked = catch_unwind(AssertUnwindSafe(|| checks::check(&payloads)));
        assert!(checked.is_ok(), "the payloads of seed {seed}: see above");
    }
}

#[test]
fn the_seeds_of_the_fuzz_target_hold() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let mut seeds: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    seeds.sort();
    assert!(seeds.len() >= 10, "{} seeds", seeds.len());
    for seed in seeds {
        let bytes = std::fs::read(&seed).unwrap();
        let checked = catch_unwind(AssertUnwindSafe(|| checks::check_bytes(&bytes)));
        assert!(checked.is_ok(), "{}: see above", seed.display());
    }
}
