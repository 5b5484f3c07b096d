//! Kafka → Delta, exactly once.
//!
//! ```text
//! simulate ──► Kafka topic ──► consume/poll ──► Records ──► decode ──┬─► rows ────────► bronze table
//!              (embedded                (raw messages,               └─► dead letters ─► dead-letter table
//!               broker, or               one thread)                          files by consume/encode as messages come,
//!               any other)                                                    committed by consume/write with the offsets
//!                                     dead-letter table ─► letters (looked at) ─► replay ─► rows in the bronze table
//! ```
//!
//! The Delta log is the only truth about progress: the rows of a batch and the offset to read next land in one commit.
//! Kafka's own group offsets are committed afterwards, for lag tools only.
//!
//! What a run touches comes from outside: broker and committer ([`consume::Parts`]), store, clock and ids (the lake). So
//! `tests/it/simulation.rs` runs it, the same each time for the same seed, on ones that fail.
//!
//! **Invariant:** this crate knows nothing of SQL, and nothing but [`topic::TopicSpec::spotify`] and [`simulate`] knows
//! what the events are about.

pub mod broker;
mod columns;
pub mod consume;
pub mod decode;
pub mod kafka;
pub mod letters;
pub mod records;
pub mod replay;
pub mod simulate;
mod small_files;
pub mod topic;

// One error type for the way from the topic to the table: its kinds say what the supervisor does, whichever crate met it.
pub use lakehouse::{Error, ErrorKind, Result};
