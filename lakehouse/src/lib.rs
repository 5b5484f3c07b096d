//! The lake: Delta tables on storage that the user owns, how they are committed to, and how they are read.
//!
//! ```text
//!  writer ─► stage ─► commit ─► log ─► Head ─► TableVersion ─► provider ─► session ─► query
//!            Parquet  create-   one    the     fixed list      plain       one
//!            files    if-absent entry  newest  of files        Parquet     publication
//! ```
//!
//! This crate knows object storage, Delta and DataFusion. It never knows Kafka, a wire protocol, Snowflake or Jinja.

mod archive;
mod changes;
mod checkpoint;
mod cleaning;
mod clock;
mod commit;
mod compaction;
mod encode;
mod error;
mod evolve;
mod expired;
mod file;
mod format;
mod ids;
mod journal;
mod kept;
mod lake;
mod layout;
mod lease;
mod log;
mod log_cleaning;
mod moving;
mod name;
mod opaque;
mod progress;
mod provider;
mod pruning;
mod publication;
mod readers;
mod requests;
mod restore;
mod row_width;
mod scan;
mod schema;
mod seen;
mod session;
mod stage;
mod stats;
mod storage;
mod system;
mod table;
mod taking_out;
mod time_travel;
mod vacuum;
mod verify;
mod version;

pub use changes::Changes;
pub use cleaning::{CleanReport, Cleaner};
pub use clock::{Clock, ManualClock, SystemClock};
pub use commit::Outcome;
pub use compaction::{CompactReport, Compaction};
pub use encode::{EncodedFile, Encoder};
pub use error::{Error, ErrorKind, Result};
pub use expired::{EXPIRED_KEY, ExpiredLetters};
pub use file::{DataFile, StagedFile};
pub use ids::{Ids, RandomIds};
pub use journal::Journal;
pub use lake::Lake;
pub use lease::{Lease, LeaseInfo};
pub use log::{Commit, CommitEntry, LoggedFile, LoggedRemove, NewColumns, Operation};
pub use moving::{CopyPlan, CopyProgress, Destination, TableCopy};
pub use name::TableName;
pub use opaque::Opaque;
pub use progress::{
    ConsumedRange, INCARNATION_COLUMN, INGEST_KEY, IngestInfo, IngestProgress, REPLAY_COLUMN, Replay, Rewind, Skip,
    SkipReason, cluster_app_id, fingerprint_app_id, incarnation_app_id, ingest_app_id, replay_app_id, reset_app_id,
};
pub use publication::{DEFAULT_GROUP, PinnedTable, Publication};
pub use readers::{READERS_TOLD_AFTER, Readers, Reading};
pub use requests::{BUILD_REQUEST, Request, RequestState, Requests};
pub use restore::RestorePlan;
pub use scan::{Filter, Scan};
pub use schema::TableSpec;
pub use session::{CATALOG, DEFAULT_SCHEMA, SEARCH_PATH, SessionFactory, SessionOptions};
pub use stage::StageOptions;
pub use storage::StorageOptions;
pub use system::{SystemSource, timestamp_type};
pub use table::{Ledger, Table};
pub use taking_out::{PlaceColumns, Tail, TakenOut};
pub use vacuum::VacuumPlan;
pub use verify::{Fault, PartitionReport, TableReport, VerifyReport};
pub use version::TableVersion;
