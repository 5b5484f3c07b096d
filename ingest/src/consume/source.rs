//! What the loop needs of a broker: questions about a topic, and a stream of what there is to read. Kafka is one (`kafka`
//! asks, `poll` reads); a simulation is another, with which a run is the same each time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use async_trait::async_trait;

use super::Options;
use super::room::Room;
use crate::kafka::Watermarks;
use crate::records::Records;
use crate::{Error, Result};

/// Answers questions about a topic, and opens the way to its messages.
#[async_trait]
pub trait Broker: fmt::Debug + Send + Sync {
    /// The partitions of a topic.
    ///
    /// # Errors
    /// `NotFound` if there is no such topic, `Unavailable` if nobody answers.
    async fn partitions(&self, topic: &str) -> Result<BTreeSet<i32>>;

    /// The cluster's id, if the broker tells. Asked after one of the other questions.
    async fn cluster_id(&self) -> Option<String>;

    /// The first and last offsets of some partitions, every one of them.
    ///
    /// # Errors
    /// `Unavailable` if nobody answers.
    async fn watermarks(&self, topic: &str, partitions: &BTreeSet<i32>) -> Result<BTreeMap<i32, Watermarks>>;

    /// The offsets after the last, asked for now and then: it fails sooner than the others.
    ///
    /// # Errors
    /// `Unavailable` if nobody answers.
    async fn ends(&self, topic: &str, partitions: &BTreeSet<i32>) -> Result<BTreeMap<i32, i64>>;

    /// The fingerprint of one message of each of some partitions, see [`Record::fingerprint`](crate::records::Record::fingerprint).
    /// An offset that holds no message (any more) is left out.
    ///
    /// # Errors
    /// `Unavailable` if nobody answers.
    async fn fingerprints(&self, topic: &str, offsets: &BTreeMap<i32, i64>) -> Result<BTreeMap<i32, String>>;

    /// Begins to read. With [`Sharing::Group`](super::Sharing::Group) it joins the group at once, else it waits for a first
    /// [`Command::Assign`].
    ///
    /// # Errors
    /// `BadConfig` for options that can't work, `Unavailable` if the reader can't be started.
    fn read(&self, options: &Options) -> Result<Box<dyn Source>>;
}

/// Hands on what is read. It stops reading when it is dropped.
#[async_trait]
pub trait Source: Send + Sync {
    /// The next thing that there is to say; none if the reader has ended. What was not awaited to its end is not lost.
    async fn next(&mut self) -> Option<Polled>;

    /// Asks for something. A reader that has ended is noticed by [`Self::next`].
    fn ask(&self, command: Command);

    /// Leaves the group, and waits for that.
    async fn end(self: Box<Self>);
}

/// What a reader has to say.
#[derive(Debug)]
pub enum Polled {
    /// Messages, in the order of their offsets within each partition.
    Records {
        /// The assignment that they were read under.
        epoch: u64,
        /// The messages.
        records: Records,
        /// What they hold of the room for messages, until they are encoded.
        room: Room,
    },
    /// All was read that a partition has for now.
    Exhausted {
        /// The assignment that it was read under.
        epoch: u64,
        /// The partition.
        partition: i32,
    },
    /// The group's coordinator gives us these partitions, and only these.
    Assigned(BTreeSet<i32>),
    /// The coordinator takes all partitions back; it waits until they are let go of, unless somebody has them already.
    Revoked(Revocation),
    /// An offset that was asked for is not there (any more), or its partition, or the topic.
    OutOfRange {
        /// The assignment that it was asked for under.
        epoch: u64,
    },
    /// A fault that the reader works on by itself.
    Trouble(String),
    /// A fault that it can't get over.
    Failed(Error),
}

/// How partitions are taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revocation {
    /// They are ours until we let go.
    Asked,
    /// They may be somebody else's by now.
    Lost,
}

/// What a reader is asked to do.
#[derive(Debug)]
pub enum Command {
    /// Reads these partitions, each from this offset, and nothing else.
    Assign {
        /// What is read from now on carries this number.
        epoch: u64,
        /// The first offset of each partition.
        offsets: BTreeMap<i32, i64>,
    },
    /// Reads nothing; lets the coordinator go on.
    Unassign,
    /// Tells the broker how far we are, for lag tools.
    Commit(BTreeMap<i32, i64>),
}
