//! Who changed what when.

use blkpilot_evaluate::Admission;
use rusqlite::{Connection, Row, params};

use super::versions::stage;
use super::{MOST_EVENTS, Stage, VersionName};

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A new version.
    Upload,
    /// Another stage.
    Promote,
    /// What was in production before.
    Rollback,
    /// No stage any more.
    Archive,
}

impl Action {
    const ALL: [Self; 4] = [Self::Upload, Self::Promote, Self::Rollback, Self::Archive];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Promote => "promote",
            Self::Rollback => "rollback",
            Self::Archive => "archive",
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// The gate refused it.
    Refused,
    /// A build without a store had begun it, and not ended.
    Interrupted,
}

impl Outcome {
    const ALL: [Self; 3] = [Self::Done, Self::Refused, Self::Interrupted];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Something that was done to a version, or refused.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// A UUID.
    pub id: String,
    /// When, microseconds since 1970 UTC.
    pub at_us: i64,
    /// Who asked.
    pub actor: String,
    /// What for.
    pub action: Action,
    /// What came of it.
    pub outcome: Outcome,
    /// The version's policy; of a rollback that of what came back, empty for the configuration's.
    pub policy: String,
    /// The version; `None` for the configuration's, and of what was never stored.
    pub number: Option<u32>,
    /// Its content, as decisions call it; empty for the configuration's.
    pub tensors_sha256: String,
    /// Where it went.
    pub stage: Stage,
    /// Why, as whoever asked has said.
    pub reason: String,
    /// What the gate said, where it was asked.
    pub admission: Option<Admission>,
    /// The verdict in words.
    pub verdict: Option<String>,
}

impl Event {
    /// The version, if there is one.
    #[must_use]
    pub fn version(&self) -> Option<VersionName> {
        self.number.map(|number| VersionName {
            policy: self.policy.clone(),
            number,
        })
    }
}

pub(super) fn insert(connection: &Connection, event: &Event) -> rusqlite::Result<()> {
    let admission = event.admission.as_ref();
    let admission = admission
        .map(|admission| serde_json::to_string(admission).expect("an admission has string keys"));
    connection.execute(
        "INSERT INTO event (id, at_us, actor, action, result, policy, number, tensors_sha256, stage, reason, admission, verdict)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        params![
            event.id,
            event.at_us,
            event.actor,
            event.action.name(),
            event.outcome.name(),
            event.policy,
            event.number,
            event.tensors_sha256,
            event.stage.name(),
            event.reason,
            admission,
            event.verdict
        ],
    )?;
    connection.execute(
        "DELETE FROM event WHERE sequence <= (SELECT max(sequence) FROM event) - ?1",
        [MOST_EVENTS as i64],
    )?;
    Ok(())
}

pub(super) fn list(connection: &Connection) -> rusqlite::Result<Vec<Event>> {
    let mut statement = connection.prepare("SELECT * FROM event ORDER BY sequence")?;
    statement.query_map([], event)?.collect()
}

fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    let (action, outcome): (String, String) = (row.get("action")?, row.get("result")?);
    let admission: Option<String> = row.get("admission")?;
    Ok(Event {
        id: row.get("id")?,
        at_us: row.get("at_us")?,
        actor: row.get("actor")?,
        action: known(Action::ALL, Action::name, &action)?,
        outcome: known(Outcome::ALL, Outcome::name, &outcome)?,
        policy: row.get("policy")?,
        number: row.get("number")?,
        tensors_sha256: row.get("tensors_sha256")?,
        stage: stage(row)?,
        reason: row.get("reason")?,
        admission: admission.and_then(|text| serde_json::from_str(&text).ok()),
        verdict: row.get("verdict")?,
    })
}

fn known<T: Copy, const N: usize>(
    all: [T; N],
    name: fn(T) -> &'static str,
    found: &str,
) -> rusqlite::Result<T> {
    let known = all.into_iter().find(|one| name(*one) == found);
    known.ok_or_else(|| rusqlite::Error::InvalidParameterName(found.to_owned()))
}
