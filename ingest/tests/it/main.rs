//! The one test binary of this crate.

mod broker;
mod columns;
mod exactly_once;
mod gaps;
mod scene;
mod stops;
