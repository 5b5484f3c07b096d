//! Where unique ids come from: those of commits, files and tables. Code asks for one, so that a run can be repeated to the
//! letter.

use std::fmt::Debug;

use uuid::Uuid;

/// Makes ids. No two are ever the same, whoever made them: a commit finds itself in the log by its id.
pub trait Ids: Debug + Send + Sync {
    /// An id that nobody has had before.
    fn fresh(&self) -> Uuid;
}

/// Ids from the randomness of the machine.
#[derive(Debug, Default, Clone, Copy)]
pub struct RandomIds;

impl Ids for RandomIds {
    fn fresh(&self) -> Uuid {
        Uuid::new_v4()
    }
}
