//! The policies of a service: numbered versions of checkpoints that never change, the stage each stands at,
//! and who changed what when.
//!
//! ```text
//! DATA_DIR/service.db             versions, stages, what was in production before, events
//! DATA_DIR/checkpoints/SHA256/    manifest.json, policy.safetensors, SHA256SUMS
//! ```
//!
//! A checkpoint is on stable storage before a row names it, and a row is on stable storage before anybody is
//! told. A checkpoint that no row names is what a crash has left, and is removed at the next start. Several
//! processes may use a store at once: the service, and commands on its data directory.

mod change;
mod checkpoints;
mod events;
mod legacy;
mod versions;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use blkpilot_models::{CheckpointBytes, CheckpointError, Selection};

use crate::database::{Database, DatabaseError};
use crate::requests::Reused;

pub use change::{Asked, Change, Withdrawal};
pub use checkpoints::Kept;
pub use events::{Action, Event, Outcome};
pub use legacy::{Older, promoted_before};
pub use versions::{Family, Listed, Version};

use checkpoints::Checkpoints;

/// Policies that are kept.
pub const MOST_POLICIES: usize = 100;
/// Versions that are kept, of all policies.
pub const MOST_VERSIONS: usize = 1000;
/// Events that are kept.
pub const MOST_EVENTS: usize = 10_000;

/// Where a version decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Nowhere.
    Stored,
    /// For guests in mode shadow.
    Candidate,
    /// For guests in mode canary, and those in mode shadow.
    Canary,
    /// For guests in mode auto.
    Production,
    /// Nowhere, and no rollback goes back to it.
    Archived,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Stored,
        Self::Candidate,
        Self::Canary,
        Self::Production,
        Self::Archived,
    ];

    /// Its name in the database and in words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Candidate => "candidate",
            Self::Canary => "canary",
            Self::Production => "production",
            Self::Archived => "archived",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A version's name: `policies/{policy}/versions/{number}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionName {
    /// The policy: 1 to 63 of a-z, 0-9 and -, starting with a letter.
    pub policy: String,
    /// The version, from 1.
    pub number: u32,
}

impl fmt::Display for VersionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "policies/{}/versions/{}", self.policy, self.number)
    }
}

impl FromStr for VersionName {
    type Err = String;

    /// Takes `policies/POLICY/versions/NUMBER`, or `POLICY/NUMBER` for short.
    fn from_str(text: &str) -> Result<Self, String> {
        let segments: Vec<&str> = text.split('/').collect();
        let parts = match segments[..] {
            ["policies", policy, "versions", number] | [policy, number] => Some((policy, number)),
            _ => None,
        };
        let name = parts.and_then(|(policy, number)| {
            let number = number.parse().ok().filter(|number| *number > 0)?;
            let policy = policy.to_owned();
            Some(Self { policy, number })
        });
        name.ok_or_else(|| format!("\"{text}\" must have the form policies/*/versions/NUMBER"))
    }
}

/// The id that stands for a name which may be none, such as that of a checkpoint's directory.
#[must_use]
pub fn policy_id(name: &str) -> String {
    let of = |c: char| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9') => c,
        _ => '-',
    };
    let id: String = name.chars().map(of).collect();
    let id = id.trim_matches('-');
    let is_begun = id.starts_with(|c: char| c.is_ascii_lowercase());
    let id = if is_begun {
        id.to_owned()
    } else {
        format!("policy-{id}")
    };
    let id: String = id.chars().take(63).collect();
    id.trim_end_matches('-').to_owned()
}

/// Why a store cannot be used, or refuses a change. Nothing is changed then.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// A checkpoint that cannot be stored, or cannot be served any more.
    #[error("{source}{}", cause(source))]
    Checkpoint {
        /// What is wrong with it.
        #[source]
        source: CheckpointError,
    },
    /// A stored checkpoint is not the one that was stored.
    #[error("{}: holds {found}: it is damaged; upload it again, or roll back", dir.display())]
    Mixed {
        /// Its directory, named by its hash.
        dir: PathBuf,
        /// The hash of what is there.
        found: String,
    },
    /// A file could not be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// There is no such policy or version.
    #[error("{name} does not exist: `blkpilot policy ls` (ListPolicyVersions) names those that do")]
    Missing {
        /// Its name.
        name: String,
    },
    /// It is not the one any more that the caller knows.
    #[error(
        "{name} has changed since: its etag is {found}, not {given}; read it again, and decide anew"
    )]
    Etag {
        /// What.
        name: String,
        /// What the caller gave.
        given: String,
        /// What it is.
        found: String,
    },
    /// A version in production was to go elsewhere.
    #[error("{name} is in production: roll back, or promote another, before it goes to {to}")]
    InProduction {
        /// It.
        name: VersionName,
        /// Where it was to go.
        to: Stage,
    },
    /// There is nothing to roll back from.
    #[error("no policy is promoted: there is nothing to take back")]
    NothingPromoted,
    /// There is no room.
    #[error("{most} {what} are kept, which is the limit: {way_out}")]
    Full {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        most: usize,
        /// The way out.
        way_out: &'static str,
    },
    /// A policy's name that is none.
    #[error("\"{id}\" must be 1 to 63 of a-z, 0-9 and -, starting with a letter")]
    PolicyId {
        /// The name.
        id: String,
    },
    /// A request's id was used for another request.
    #[error("request_id {id} was used for another request: make a new one")]
    RequestReused {
        /// The id.
        id: uuid::Uuid,
    },
    /// What a build without a store had promoted cannot be taken over.
    #[error("{source}; move {} away to go on without what was promoted", dir.display())]
    Older {
        /// Its directory.
        dir: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<StoreError>,
    },
    /// A line of the record that an older build kept is none.
    #[error("{}: line {line}: {problem}: repair it, or move the file away", path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
}

fn cause(error: &CheckpointError) -> String {
    std::error::Error::source(error).map_or_else(String::new, |cause| format!(" ({cause})"))
}

impl From<Reused> for StoreError {
    fn from(Reused(id): Reused) -> Self {
        Self::RequestReused { id }
    }
}

impl From<CheckpointError> for StoreError {
    fn from(source: CheckpointError) -> Self {
        Self::Checkpoint { source }
    }
}

/// What decides, as the stages say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// For guests in mode auto; `None` for the configuration's.
    pub production: Option<Version>,
    /// For guests in mode canary and shadow; `None` for the configuration's, if it has one.
    pub canary: Option<Version>,
    /// For guests in mode shadow, where there is no canary.
    pub candidate: Option<Version>,
}

/// The policies of one data directory.
#[derive(Debug, Clone)]
pub struct PolicyStore {
    database: Database,
    checkpoints: Checkpoints,
}

impl PolicyStore {
    /// Opens the store of a data directory, making it if need be, and takes over what a build without one
    /// had promoted there.
    ///
    /// # Errors
    /// `Database`, `Io`, `Checkpoint`, `Record`.
    pub fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let store = Self {
            database: Database::open(data_dir)?,
            checkpoints: Checkpoints::open(data_dir)?,
        };
        legacy::take_over(&store, data_dir)?;
        Ok(store)
    }

    /// What decides in a data directory, without changing anything in it. What a build without a store had
    /// promoted there is not seen yet.
    ///
    /// # Errors
    /// `Database`.
    pub fn open_to_read(data_dir: &Path) -> Result<Option<Self>, StoreError> {
        let database = Database::open_to_read(data_dir)?;
        Ok(database.map(|database| Self {
            database,
            checkpoints: Checkpoints::of(data_dir),
        }))
    }

    /// Its database.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Removes checkpoints that no version names: what was interrupted. Left alone while somebody stores one.
    ///
    /// # Errors
    /// `Database`, `Io`.
    pub fn sweep(&self) -> Result<usize, StoreError> {
        self.checkpoints.sweep(|| {
            self.database
                .read(|connection| versions::hashes(connection).map_err(self.failed()))
        })
    }

    /// Writes a checkpoint, so that a [`Change`] can name it. It is verified first.
    ///
    /// # Errors
    /// `Checkpoint`, `Io`.
    pub fn keep(&self, bytes: &CheckpointBytes) -> Result<Kept, StoreError> {
        self.checkpoints.keep(bytes)
    }

    /// Verifies a checkpoint and writes nothing: for a change that is rehearsed.
    ///
    /// # Errors
    /// `Checkpoint`.
    pub fn examine(&self, bytes: &CheckpointBytes) -> Result<Kept, StoreError> {
        self.checkpoints.examine(bytes)
    }

    /// The checkpoint of a version, as it was stored.
    ///
    /// # Errors
    /// `Checkpoint`, `Mixed`.
    pub fn checkpoint(&self, version: &Version) -> Result<blkpilot_models::Checkpoint, StoreError> {
        self.checkpoints.load(&version.sha256)
    }

    /// Where it is, to be read by others.
    #[must_use]
    pub fn checkpoint_dir(&self, version: &Version) -> PathBuf {
        self.checkpoints.dir_of(&version.sha256)
    }

    /// Changes something: all that `act` does, or with an error nothing.
    ///
    /// # Errors
    /// Those of `act`; `Database`.
    pub fn change<T>(
        &self,
        act: impl FnOnce(&Change<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.database
            .write(|transaction| act(&Change::new(transaction, &self.database)))
    }

    /// As [`PolicyStore::change`], and then undoes it: what would come of it.
    ///
    /// # Errors
    /// As [`PolicyStore::change`].
    pub fn rehearse<T>(
        &self,
        act: impl FnOnce(&Change<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.database
            .rehearse(|transaction| act(&Change::new(transaction, &self.database)))
    }

    /// What decides now.
    ///
    /// # Errors
    /// `Database`.
    pub fn standing(&self) -> Result<Standing, StoreError> {
        self.database.read(|connection| {
            let at = |stage| versions::at_stage(connection, stage).map_err(self.failed());
            Ok(Standing {
                production: at(Stage::Production)?,
                canary: at(Stage::Canary)?,
                candidate: at(Stage::Candidate)?,
            })
        })
    }

    /// One version.
    ///
    /// # Errors
    /// `Missing`, `Database`.
    pub fn version(&self, name: &VersionName) -> Result<Version, StoreError> {
        self.database.read(|connection| {
            let found = versions::find(connection, name).map_err(self.failed())?;
            found.ok_or_else(|| missing(name))
        })
    }

    /// One policy.
    ///
    /// # Errors
    /// `Missing`, `Database`.
    pub fn family(&self, id: &str) -> Result<Family, StoreError> {
        let families = self.families()?;
        let found = families.into_iter().find(|family| family.id == id);
        found.ok_or_else(|| StoreError::Missing {
            name: format!("policies/{id}"),
        })
    }

    /// All policies, by name.
    ///
    /// # Errors
    /// `Database`.
    pub fn families(&self) -> Result<Vec<Family>, StoreError> {
        self.database
            .read(|connection| versions::families(connection).map_err(self.failed()))
    }

    /// Versions of one policy, or of all, newest first within a policy.
    ///
    /// # Errors
    /// `Missing` for the policy, `Database`.
    pub fn versions(&self, of: Listed<'_>) -> Result<Vec<Version>, StoreError> {
        if let Listed::Of(id) = of {
            self.family(id)?;
        }
        self.database
            .read(|connection| versions::list(connection, of).map_err(self.failed()))
    }

    /// All events that are kept, oldest first.
    ///
    /// # Errors
    /// `Database`.
    pub fn events(&self) -> Result<Vec<Event>, StoreError> {
        self.database
            .read(|connection| events::list(connection).map_err(self.failed()))
    }

    fn failed(&self) -> impl Fn(rusqlite::Error) -> StoreError {
        let failed = self.database.failed();
        move |source| failed(source).into()
    }
}

fn missing(name: &VersionName) -> StoreError {
    StoreError::Missing {
        name: name.to_string(),
    }
}

fn selection_name(selection: Selection) -> &'static str {
    match selection {
        Selection::Greedy => "greedy",
        Selection::Sample => "sample",
    }
}

#[cfg(test)]
mod tests;
