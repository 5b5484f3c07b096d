//! The one test binary of this crate.

mod broker;
#[path = "../../fuzz/checks.rs"]
mod checks;
mod columns;
mod exactly_once;
mod gaps;
mod letters;
mod lines;
mod payloads;
mod scene;
mod simulation;
mod stops;
