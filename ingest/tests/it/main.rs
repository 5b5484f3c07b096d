//! The one test binary of this crate.

mod broker;
#[path = "../../fuzz/checks.rs"]
mod checks;
mod exactly_once;
mod payloads;
mod scene;
mod stops;
