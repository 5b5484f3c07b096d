//! Tests of the lake as its users see it, on memory and on disk.

mod faulty;
mod publication;
mod storage;
mod support;
mod verify;
