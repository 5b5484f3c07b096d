//! Tests of the lake as its users see it, in memory, on disk and in a bucket.

mod cleaning;
mod evolve;
mod faulty;
mod publication;
mod replayed;
mod scan;
mod storage;
mod support;
mod verify;
