//! The doors with real clients, on a lake in memory.

mod console;
mod flight;
mod lake;
mod postgres;
mod time_travel;
