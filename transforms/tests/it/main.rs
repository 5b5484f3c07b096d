//! The models on a lake in memory: bronze rows made by hand, and what has to come of them computed apart from any SQL.

mod faults;
mod lake;
mod oracle;
mod random;
mod refresh;
mod run_log;
mod slt;
mod verify;
mod watch;
