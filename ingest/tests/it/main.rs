//! The one test binary of this crate.

mod broker;
mod exactly_once;
mod lines;
mod scene;
mod stops;
