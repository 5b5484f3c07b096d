//! Tests of the lake as its users see it, in memory, on disk and in a bucket.

mod care;
mod cleaning;
mod conformance;
mod counting;
mod damage;
mod evolve;
mod faulty;
mod flat;
mod format;
mod log_cleaning;
mod moving;
mod publication;
mod replayed;
mod scan;
mod simulation;
mod storage;
mod support;
mod system;
mod time_travel;
mod verify;
