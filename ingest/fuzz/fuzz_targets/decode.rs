//! Any bytes as a batch of payloads. What must hold of it is in `checks.rs`; scripts/fuzz.sh builds and runs this.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoder_checks::check_bytes(bytes));
