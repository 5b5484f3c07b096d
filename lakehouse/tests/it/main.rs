//! Tests of the lake as its users see it, on memory and on disk.

mod cleaning;
mod faulty;
mod publication;
mod storage;
mod support;
mod verify;
