//! Changes of a store, each within one transaction.

use blkpilot_evaluate::Admission;
use blkpilot_models::Selection;
use blkpilot_proto::longrunning::Operation;
use prost::Message;
use rusqlite::{OptionalExtension as _, Transaction, params};
use uuid::Uuid;

use super::events::{self, Action, Event, Outcome};
use super::versions::{self, Version};
use super::{
    Kept, MOST_POLICIES, MOST_VERSIONS, Stage, StoreError, VersionName, missing, selection_name,
};
use crate::config::is_resource_id;
use crate::database::Database;
use crate::operations::{Operations, Pending};
use crate::requests::{Repeatable, once};

/// Promotions that rollbacks can go back through.
const MOST_TENURES: i64 = 1000;

/// Who asks for a change, when and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Who, such as `uid 1000`.
    pub actor: String,
    /// When, microseconds since 1970 UTC.
    pub at_us: i64,
    /// Why; may be empty.
    pub reason: String,
}

/// What a rollback has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdrawal {
    /// What is in production now; `None` for the configuration's.
    pub production: Option<Version>,
    /// What was.
    pub withdrawn: Version,
}

/// A transaction on a store.
pub struct Change<'t> {
    transaction: &'t Transaction<'t>,
    database: &'t Database,
}

impl<'t> Change<'t> {
    pub(super) fn new(transaction: &'t Transaction<'_>, database: &'t Database) -> Self {
        Self {
            transaction,
            database,
        }
    }

    /// Puts an operation on record, along with what else is changed.
    ///
    /// # Errors
    /// `Database`.
    pub fn enter(&self, pending: &Pending) -> Result<Operation, StoreError> {
        pending.enter(self.transaction).map_err(self.failed())
    }

    /// As [`Change::enter`], for one that is done.
    ///
    /// # Errors
    /// `Database`.
    pub fn enter_done(&self, operation: &Operation) -> Result<(), StoreError> {
        Operations::enter(self.transaction, operation).map_err(self.failed())
    }

    /// Does something once: where the same call has been answered, the answer is that one, and nothing is done.
    ///
    /// # Errors
    /// `RequestReused`, `Database`; those of `act`.
    pub fn once<T: Message + Default>(
        &self,
        repeatable: Option<&Repeatable>,
        act: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        once(repeatable, self.transaction, self.failed(), act)
    }

    fn failed(&self) -> impl Fn(rusqlite::Error) -> StoreError {
        let failed = self.database.failed();
        move |source| failed(source).into()
    }

    /// One version.
    ///
    /// # Errors
    /// `Missing`, `Database`.
    pub fn version(&self, name: &VersionName) -> Result<Version, StoreError> {
        let found = versions::find(self.transaction, name).map_err(self.failed())?;
        found.ok_or_else(|| missing(name))
    }

    fn at(&self, stage: Stage) -> Result<Option<Version>, StoreError> {
        versions::at_stage(self.transaction, stage).map_err(self.failed())
    }

    /// A checkpoint as a version of a policy, which is made if it is not there. What the policy has already
    /// is returned as it is.
    ///
    /// # Errors
    /// `PolicyId`, `Full`, `Database`.
    pub fn upload(
        &self,
        policy: &str,
        kept: &Kept,
        selection: Selection,
        description: &str,
        asked: &Asked,
    ) -> Result<Version, StoreError> {
        if !is_resource_id(policy) {
            let id = policy.to_owned();
            return Err(StoreError::PolicyId { id });
        }
        let known = versions::find_content(self.transaction, policy, &kept.sha256, selection);
        if let Some(known) = known.map_err(self.failed())? {
            return Ok(known);
        }
        self.refuse_if_full(policy)?;
        let number = self
            .next_number(policy, asked.at_us)
            .map_err(self.failed())?;
        let name = VersionName {
            policy: policy.to_owned(),
            number,
        };
        self.insert(&name, kept, selection, description, asked)
            .map_err(self.failed())?;
        let version = self.version(&name)?;
        self.note(asked, Action::Upload, Some(&version), None, None)?;
        Ok(version)
    }

    fn refuse_if_full(&self, policy: &str) -> Result<(), StoreError> {
        let count = |sql: &str| -> Result<usize, StoreError> {
            let count = self
                .transaction
                .query_row(sql, [], |row| row.get::<_, u32>(0));
            count.map(|count| count as usize).map_err(self.failed())
        };
        if count("SELECT count(*) FROM version")? >= MOST_VERSIONS {
            return Err(StoreError::Full {
                what: "versions",
                most: MOST_VERSIONS,
                way_out: "begin another data directory",
            });
        }
        let is_known = self.transaction.query_row(
            "SELECT count(*) FROM policy WHERE id = ?1",
            [policy],
            |row| row.get::<_, bool>(0),
        );
        if !is_known.map_err(self.failed())?
            && count("SELECT count(*) FROM policy")? >= MOST_POLICIES
        {
            return Err(StoreError::Full {
                what: "policies",
                most: MOST_POLICIES,
                way_out: "upload it as a version of one that there is",
            });
        }
        Ok(())
    }

    fn next_number(&self, policy: &str, at_us: i64) -> rusqlite::Result<u32> {
        self.transaction.query_row(
            "INSERT INTO policy (id, created_us, next_version, revision) VALUES (?1, ?2, 2, 1)
             ON CONFLICT (id) DO UPDATE SET next_version = next_version + 1, revision = revision + 1
             RETURNING next_version - 1",
            params![policy, at_us],
            |row| row.get(0),
        )
    }

    fn insert(
        &self,
        name: &VersionName,
        kept: &Kept,
        selection: Selection,
        description: &str,
        asked: &Asked,
    ) -> rusqlite::Result<()> {
        let manifest = &kept.checkpoint.manifest;
        self.transaction.execute(
            "INSERT INTO version (policy, number, sha256, tensors_sha256, selection, stage, size_bytes, algorithm, env_steps, spec_name, spec_hash, description, created_us, updated_us, revision)
             VALUES (?1, ?2, ?3, ?4, ?5, 'stored', ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?12, 1)",
            params![
                name.policy,
                name.number,
                kept.sha256,
                manifest.tensors_sha256,
                selection_name(selection),
                i64::try_from(kept.size_bytes).unwrap_or(i64::MAX),
                manifest.algorithm,
                i64::try_from(manifest.env_steps).unwrap_or(i64::MAX),
                manifest.spec.name,
                manifest.spec_hash,
                description,
                asked.at_us
            ],
        )?;
        Ok(())
    }

    /// Moves a version to a stage; whichever stood there goes to `Stored`. One that stands there already
    /// stays as it is. What the gate said of it, and the verdict in words, are recorded.
    ///
    /// # Errors
    /// `Missing`, `InProduction`, `Database`.
    pub fn promote(
        &self,
        name: &VersionName,
        stage: Stage,
        asked: &Asked,
        gate: Option<(Admission, Option<String>)>,
    ) -> Result<Version, StoreError> {
        let version = self.version(name)?;
        if version.stage == stage {
            return Ok(version);
        }
        refuse_in_production(&version, stage)?;
        if let Some(before) = self.at(stage)? {
            self.set_stage(&before.name, Stage::Stored, asked.at_us)?;
        }
        self.set_stage(name, stage, asked.at_us)?;
        if stage == Stage::Production {
            self.begin_tenure(name).map_err(self.failed())?;
        }
        let version = self.version(name)?;
        let (admission, verdict) = gate.unzip();
        self.note(
            asked,
            Action::Promote,
            Some(&version),
            admission,
            verdict.flatten(),
        )?;
        Ok(version)
    }

    /// Records a promotion that the gate refused.
    ///
    /// # Errors
    /// `Missing`, `Database`.
    pub fn refuse(
        &self,
        name: &VersionName,
        stage: Stage,
        asked: &Asked,
        admission: Admission,
        verdict: Option<String>,
    ) -> Result<(), StoreError> {
        let version = self.version(name)?;
        let event = Event {
            outcome: Outcome::Refused,
            stage,
            ..event(
                asked,
                Action::Promote,
                Some(&version),
                Some(admission),
                verdict,
            )
        };
        self.record(&event)
    }

    /// Puts back what was in production before, archived versions passed over. `etag`: of what is in
    /// production, not checked if empty.
    ///
    /// # Errors
    /// `NothingPromoted`, `Etag`, `Database`.
    pub fn rollback(&self, etag: &str, asked: &Asked) -> Result<Withdrawal, StoreError> {
        let current = self.at(Stage::Production)?;
        let current = current.ok_or(StoreError::NothingPromoted)?;
        current.check_etag(etag)?;
        self.set_stage(&current.name, Stage::Stored, asked.at_us)?;
        let before = self.end_tenure(&current.name).map_err(self.failed())?;
        if let Some(before) = &before {
            self.set_stage(before, Stage::Production, asked.at_us)?;
        }
        let production = before.map(|before| self.version(&before)).transpose()?;
        let event = Event {
            stage: Stage::Production,
            ..event(asked, Action::Rollback, production.as_ref(), None, None)
        };
        self.record(&event)?;
        Ok(Withdrawal {
            production,
            withdrawn: self.version(&current.name)?,
        })
    }

    /// Moves a version out of use.
    ///
    /// # Errors
    /// `Missing`, `InProduction`, `Database`.
    pub fn archive(&self, name: &VersionName, asked: &Asked) -> Result<Version, StoreError> {
        let version = self.version(name)?;
        if version.stage == Stage::Archived {
            return Ok(version);
        }
        refuse_in_production(&version, Stage::Archived)?;
        self.set_stage(name, Stage::Archived, asked.at_us)?;
        let version = self.version(name)?;
        self.note(asked, Action::Archive, Some(&version), None, None)?;
        Ok(version)
    }

    fn set_stage(&self, name: &VersionName, stage: Stage, at_us: i64) -> Result<(), StoreError> {
        let change = || {
            self.transaction.execute(
                "UPDATE version SET stage = ?3, updated_us = ?4, revision = revision + 1 WHERE policy = ?1 AND number = ?2",
                params![name.policy, name.number, stage.name(), at_us],
            )?;
            self.transaction.execute(
                "UPDATE policy SET revision = revision + 1 WHERE id = ?1",
                [&name.policy],
            )
        };
        change().map(|_| ()).map_err(self.failed())
    }

    fn begin_tenure(&self, name: &VersionName) -> rusqlite::Result<()> {
        self.transaction.execute(
            "INSERT INTO tenure (policy, number) VALUES (?1, ?2)",
            params![name.policy, name.number],
        )?;
        self.transaction.execute(
            "DELETE FROM tenure WHERE sequence <= (SELECT max(sequence) FROM tenure) - ?1",
            [MOST_TENURES],
        )?;
        Ok(())
    }

    /// Ends the tenure of what is in production, and all above the one that comes back.
    fn end_tenure(&self, current: &VersionName) -> rusqlite::Result<Option<VersionName>> {
        let before = self
            .transaction
            .query_row(
                "SELECT sequence, tenure.policy, tenure.number FROM tenure
                 JOIN version ON version.policy = tenure.policy AND version.number = tenure.number
                 WHERE sequence < (SELECT max(sequence) FROM tenure) AND stage <> 'archived'
                   AND NOT (tenure.policy = ?1 AND tenure.number = ?2)
                 ORDER BY sequence DESC LIMIT 1",
                params![current.policy, current.number],
                |row| {
                    let (policy, number) = (row.get(1)?, row.get(2)?);
                    Ok((row.get::<_, i64>(0)?, VersionName { policy, number }))
                },
            )
            .optional()?;
        let last = before.as_ref().map_or(0, |(sequence, _)| *sequence);
        self.transaction
            .execute("DELETE FROM tenure WHERE sequence > ?1", [last])?;
        Ok(before.map(|(_, name)| name))
    }

    fn note(
        &self,
        asked: &Asked,
        action: Action,
        version: Option<&Version>,
        admission: Option<Admission>,
        verdict: Option<String>,
    ) -> Result<(), StoreError> {
        self.record(&event(asked, action, version, admission, verdict))
    }

    /// Puts what an older build had promoted into production; its record says who did.
    pub(super) fn install(&self, name: &VersionName, at_us: i64) -> Result<(), StoreError> {
        if let Some(before) = self.at(Stage::Production)? {
            self.set_stage(&before.name, Stage::Stored, at_us)?;
        }
        self.set_stage(name, Stage::Production, at_us)?;
        self.begin_tenure(name).map_err(self.failed())
    }

    /// Whether something was done once and for all; from now on it is.
    pub(super) fn is_first(&self, what: &str) -> Result<bool, StoreError> {
        let added = self
            .transaction
            .execute("INSERT OR IGNORE INTO done VALUES (?1)", [what]);
        Ok(added.map_err(self.failed())? == 1)
    }

    /// Records an event as it is.
    ///
    /// # Errors
    /// `Database`.
    pub(super) fn record(&self, event: &Event) -> Result<(), StoreError> {
        events::insert(self.transaction, event).map_err(self.failed())
    }
}

fn event(
    asked: &Asked,
    action: Action,
    version: Option<&Version>,
    admission: Option<Admission>,
    verdict: Option<String>,
) -> Event {
    Event {
        id: Uuid::new_v4().to_string(),
        at_us: asked.at_us,
        actor: asked.actor.clone(),
        action,
        outcome: Outcome::Done,
        policy: version.map_or_else(String::new, |version| version.name.policy.clone()),
        number: version.map(|version| version.name.number),
        tensors_sha256: version.map_or_else(String::new, |version| version.tensors_sha256.clone()),
        stage: version.map_or(Stage::Production, |version| version.stage),
        reason: asked.reason.clone(),
        admission,
        verdict,
    }
}

fn refuse_in_production(version: &Version, to: Stage) -> Result<(), StoreError> {
    if version.stage != Stage::Production {
        return Ok(());
    }
    Err(StoreError::InProduction {
        name: version.name.clone(),
        to,
    })
}
