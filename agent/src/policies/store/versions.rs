//! Versions and policies as rows.

use std::collections::BTreeSet;

use blkpilot_models::Selection;
use rusqlite::types::{FromSqlError, Type};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{Stage, StoreError, VersionName, selection_name};

/// A version of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Its name.
    pub name: VersionName,
    /// Where it decides.
    pub stage: Stage,
    /// Hash of both files, hex: the name of its directory.
    pub sha256: String,
    /// Hash of the tensors, hex: what decisions call the version of their policy.
    pub tensors_sha256: String,
    /// How its scores become a choice.
    pub selection: Selection,
    /// Size of both files.
    pub size_bytes: u64,
    /// Learner that trained it.
    pub algorithm: String,
    /// Environment steps that it was trained for.
    pub env_steps: u64,
    /// Name of the spec that it was made for.
    pub spec_name: String,
    /// Hash of that spec.
    pub spec_hash: String,
    /// What was said of it.
    pub description: String,
    /// When it was stored, microseconds since 1970 UTC.
    pub created_us: i64,
    /// When its stage last changed, microseconds since 1970 UTC.
    pub updated_us: i64,
    /// Counts its changes.
    pub revision: u64,
}

impl Version {
    /// Changes with every change to it.
    #[must_use]
    pub fn etag(&self) -> String {
        format!("v{}-{}", self.name.number, self.revision)
    }

    /// Refuses an etag that is not this one's; an empty one is not checked.
    ///
    /// # Errors
    /// `Etag`.
    pub fn check_etag(&self, given: &str) -> Result<(), StoreError> {
        let found = self.etag();
        if given.is_empty() || given == found {
            return Ok(());
        }
        Err(StoreError::Etag {
            name: self.name.to_string(),
            given: given.to_owned(),
            found,
        })
    }
}

/// A policy: a name with versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// Its id.
    pub id: String,
    /// When its first version was stored, microseconds since 1970 UTC.
    pub created_us: i64,
    /// Number of its versions.
    pub versions: u32,
    /// The number of the newest.
    pub latest: u32,
    /// Counts changes to it and its versions.
    pub revision: u64,
}

/// What is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed<'a> {
    /// Versions of all policies.
    All,
    /// Those of one.
    Of(&'a str),
}

const COLUMNS: &str = "policy, number, stage, sha256, tensors_sha256, selection, size_bytes, algorithm, env_steps, spec_name, spec_hash, description, created_us, updated_us, revision";

fn version(row: &Row<'_>) -> rusqlite::Result<Version> {
    Ok(Version {
        name: VersionName {
            policy: row.get("policy")?,
            number: row.get("number")?,
        },
        stage: stage(row)?,
        sha256: row.get("sha256")?,
        tensors_sha256: row.get("tensors_sha256")?,
        selection: match row.get_ref("selection")?.as_str()? {
            "sample" => Selection::Sample,
            _ => Selection::Greedy,
        },
        size_bytes: unsigned(row, "size_bytes")?,
        algorithm: row.get("algorithm")?,
        env_steps: unsigned(row, "env_steps")?,
        spec_name: row.get("spec_name")?,
        spec_hash: row.get("spec_hash")?,
        description: row.get("description")?,
        created_us: row.get("created_us")?,
        updated_us: row.get("updated_us")?,
        revision: unsigned(row, "revision")?,
    })
}

pub(super) fn stage(row: &Row<'_>) -> rusqlite::Result<Stage> {
    let name: String = row.get("stage")?;
    let known = Stage::ALL.into_iter().find(|stage| stage.name() == name);
    known.ok_or_else(|| {
        let problem = FromSqlError::Other(format!("stage {name}").into());
        rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(problem))
    })
}

fn unsigned(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    Ok(value.unsigned_abs())
}

pub(super) fn find(
    connection: &Connection,
    name: &VersionName,
) -> rusqlite::Result<Option<Version>> {
    let sql = format!("SELECT {COLUMNS} FROM version WHERE policy = ?1 AND number = ?2");
    connection
        .query_row(&sql, params![name.policy, name.number], version)
        .optional()
}

pub(super) fn find_content(
    connection: &Connection,
    policy: &str,
    sha256: &str,
    selection: Selection,
) -> rusqlite::Result<Option<Version>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM version WHERE policy = ?1 AND sha256 = ?2 AND selection = ?3"
    );
    let of = params![policy, sha256, selection_name(selection)];
    connection.query_row(&sql, of, version).optional()
}

pub(super) fn at_stage(connection: &Connection, stage: Stage) -> rusqlite::Result<Option<Version>> {
    let sql = format!("SELECT {COLUMNS} FROM version WHERE stage = ?1");
    connection
        .query_row(&sql, [stage.name()], version)
        .optional()
}

pub(super) fn list(connection: &Connection, of: Listed<'_>) -> rusqlite::Result<Vec<Version>> {
    let policy = match of {
        Listed::All => None,
        Listed::Of(policy) => Some(policy),
    };
    let sql = format!(
        "SELECT {COLUMNS} FROM version WHERE ?1 IS NULL OR policy = ?1 ORDER BY policy, number DESC"
    );
    let mut statement = connection.prepare(&sql)?;
    statement.query_map([policy], version)?.collect()
}

pub(super) fn families(connection: &Connection) -> rusqlite::Result<Vec<Family>> {
    let sql =
        "SELECT id, policy.created_us, policy.revision, count(*) AS versions, max(number) AS latest
               FROM policy JOIN version ON policy = id GROUP BY id ORDER BY id";
    let family = |row: &Row<'_>| {
        Ok(Family {
            id: row.get("id")?,
            created_us: row.get("created_us")?,
            versions: row.get("versions")?,
            latest: row.get("latest")?,
            revision: unsigned(row, "revision")?,
        })
    };
    let mut statement = connection.prepare(sql)?;
    statement.query_map([], family)?.collect()
}

/// Names of the checkpoints that versions have.
pub(super) fn hashes(connection: &Connection) -> rusqlite::Result<BTreeSet<String>> {
    let mut statement = connection.prepare("SELECT DISTINCT sha256 FROM version")?;
    statement.query_map([], |row| row.get(0))?.collect()
}
