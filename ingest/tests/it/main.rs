//! The one test binary of this crate.

mod broker;
mod exactly_once;
mod letters;
mod scene;
mod stops;
