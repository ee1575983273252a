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
//! Sealed segments (all but the newest) never change again. A [`Compactor`] turns them into Parquet
//! files, one row per decision with its outcome, partitioned by host and day:
//!
//! ```text
//! host=host-a/day=2025-03-09/part-000000000001.parquet
//! ```
//!
//! [`Scan`] reads both together, in order, as columns or rows. The columns are [`columns::COLUMNS`].
//!
//! Delivery to the segments is at least once: an event whose commit failed may have reached the disk
//! and be sent again, so readers keep the first event of each id.
//!
//! Reading order: [`schema`], [`turn`] (rows from a joint decision), [`writer`], [`queue`],
//! [`columns`], [`compact`], [`scan`].
//!
//! Beside it stands [`recording`]: samples of a host, for calibration.

pub mod columns;
pub mod compact;
pub mod error;
pub mod files;
#[cfg(test)]
mod fixture;
pub mod inventory;
mod join;
mod line;
mod lock;
pub mod minari;
mod names;
mod part;
mod place;
pub mod play;
pub mod queue;
pub mod reader;
pub mod recording;
mod retain;
pub mod scan;
pub mod schema;
mod segment;
pub mod turn;
pub mod verify;
pub mod writer;

pub use columns::{LoggedRow, Missing, SCHEMA_VERSION};
pub use compact::{Compacted, Compactor};
pub use error::LogError;
pub use join::Horizon;
pub use lock::lock;
pub use part::Footer;
pub use play::Player;
pub use queue::{CommitQueue, SubmitError};
pub use reader::{Entry, Reader};
pub use retain::{Dropped, Keep};
pub use scan::{Batch, Query, Scan};
pub use schema::{
    DecisionId, DecisionRow, EpisodeId, Event, Flaw, HeadRow, HostStepId, OutcomeRow, Seen, Source,
    Stage, Subject,
};
pub use turn::{Ending, StepContext};
pub use writer::{Config, Recovery, Writer};

use std::path::{Path, PathBuf};

/// The directory of the log where `dir` is the log itself, or the data directory of a service that holds it.
/// Whether a log is there is not looked at.
#[must_use]
pub fn locate(dir: &Path) -> PathBuf {
    let inner = dir.join("decisions");
    if inner.is_dir() {
        inner
    } else {
        dir.to_owned()
    }
}
