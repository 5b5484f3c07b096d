//! The one test binary of this crate.

mod broker;
mod columns;
mod exactly_once;
mod scene;
mod stops;
