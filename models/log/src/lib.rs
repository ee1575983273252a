//! The decision log: what was seen, decided, executed and earned.
//!
//! Two events, joined by the decision's id: a [`DecisionRow`] when a disk or device has decided, an
//! [`OutcomeRow`] an interval later. Daemon and simulator write the same rows, with all that an
//! offline evaluation needs: the features and the mask as the policy saw them in its turn, the
//! propensity of each choice, who was overruled, and what came of it.
//!
//! They are stored as an append-only log of segments, one checksummed line per event, in JSON, so
//! that `grep` and `jq` read it (`cut -c10- *.log | jq .`):
//!
//! ```text
//! 000000000001.log   3f1a90c2 {"segment":{"format":1,"number":1}}
//!                    9be1d06a {"decision":{"id":"…",…}}
//!                    71c0ffee {"outcome":{"decision_id":"…",…}}
//! 000000000002.log   …
//! ```
//!
//! **What [`Writer::commit`] has acknowledged survives a kill at any instant**, and a loss of power
//! on a disk that honours flushes. What was appended but not committed may or may not be there
//! afterwards. Several writers' events share one flush through [`CommitQueue`].
//!
//! This log is the durable front of the store that offline evaluation reads: sealed segments (all
//! but the newest) never change again and are turned into Parquet files, whose footer is written
//! last and which therefore cannot be the front themselves. Delivery is at least once: an event
//! whose commit failed may have reached the disk and be sent again, so readers keep the first event
//! of each id.
//!
//! Reading order: [`schema`], [`turn`] (rows from a joint decision), [`writer`], [`queue`],
//! [`reader`].
//!
//! Beside it stands [`recording`]: samples of a host, for calibration.

pub mod error;
#[cfg(test)]
mod fixture;
mod line;
pub mod queue;
pub mod reader;
pub mod recording;
pub mod schema;
mod segment;
pub mod turn;
pub mod writer;

pub use error::LogError;
pub use queue::{CommitQueue, SubmitError};
pub use reader::{Entry, Reader};
pub use schema::{
    DecisionId, DecisionRow, EpisodeId, Event, Flaw, HeadRow, HostStepId, OutcomeRow, Seen, Source,
    Stage, Subject,
};
pub use turn::{Ending, StepContext};
pub use writer::{Config, Recovery, Writer, lock};
