//! The table that the log is read as: one row per decision of a disk or device, with the outcome
//! that came an interval later.
//!
//! [`COLUMNS`] is the whole schema, in the order of the files; docs/decision_log.md has the same
//! list for people, and a test compares the two. Heads, features and reward terms are lists; those
//! whose names begin alike have one element per head (or feature, or term), in the same order.

mod build;
mod rows;

use std::sync::{Arc, LazyLock};

use arrow_array::builder::{
    BooleanBuilder, Float32Builder, Float64Builder, Int32Builder, ListBuilder, StringBuilder,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};

pub use self::build::Rows;
pub use self::rows::rows_of;
use crate::names::Named as _;
use crate::schema::{DecisionRow, OutcomeRow, Source, Subject};

/// Version of [`COLUMNS`]. A file of another version is refused; a column that is added, removed or
/// changes its meaning makes a new one.
pub const SCHEMA_VERSION: u32 = 1;

/// A decision, what came of it, and where it stands in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct LoggedRow {
    /// Number of the segment that it was written to.
    pub segment: u64,
    /// Its position among the decisions of the segment, from 0. Rows are ordered by both.
    pub line: u64,
    /// The decision.
    pub decision: DecisionRow,
    /// What came of it, or why nothing is known.
    pub outcome: Result<OutcomeRow, Missing>,
}

/// Why a decision has no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Missing {
    /// Nobody applied it: it was a shadow's or a proposal.
    NotApplied,
    /// The service ended, or was started anew, before the interval was over.
    EpisodeEnded,
    /// None was recorded: another decision of the same disk followed within the interval, the host
    /// or disk went away, or the decision is a device's.
    NotRecorded,
    /// It may still come.
    Awaited,
}

impl Missing {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::NotApplied,
        Self::EpisodeEnded,
        Self::NotRecorded,
        Self::Awaited,
    ];

    /// The word for it in the table.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::NotApplied => "not_applied",
            Self::EpisodeEnded => "episode_ended",
            Self::NotRecorded => "not_recorded",
            Self::Awaited => "awaited",
        }
    }
}

/// Whether an outcome is ever recorded for decisions from this source.
pub(crate) fn is_applied(source: Source) -> bool {
    !matches!(source, Source::Shadow | Source::Proposal)
}

/// A column of the table.
#[derive(Debug)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// What its numbers count, or `–`.
    pub unit: &'static str,
    /// What it says.
    pub about: &'static str,
    pick: Pick,
}

type Row = LoggedRow;

/// How a cell is taken from a row. Lists return whether there is one at all.
#[derive(Debug)]
enum Pick {
    Text(fn(&Row, &mut StringBuilder)),
    Time(fn(&Row) -> Option<i64>),
    F64(fn(&Row) -> Option<f64>),
    F32(fn(&Row) -> Option<f32>),
    I64(fn(&Row) -> i64),
    I32(fn(&Row) -> i32),
    Bool(fn(&Row) -> Option<bool>),
    Texts(fn(&Row, &mut StringBuilder) -> bool),
    F64s(fn(&Row, &mut Float64Builder) -> bool),
    F32s(fn(&Row, &mut Float32Builder) -> bool),
    I32s(fn(&Row, &mut Int32Builder) -> bool),
    Bools(fn(&Row, &mut BooleanBuilder) -> bool),
    TextLists(fn(&Row, &mut ListBuilder<StringBuilder>) -> bool),
}

impl Column {
    /// The column of this name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        COLUMNS.iter().find(|column| column.name == name)
    }

    /// Its type in Arrow.
    #[must_use]
    pub fn data_type(&self) -> DataType {
        match self.pick {
            Pick::Text(_) => DataType::Utf8,
            Pick::Time(_) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Pick::F64(_) => DataType::Float64,
            Pick::F32(_) => DataType::Float32,
            Pick::I64(_) => DataType::Int64,
            Pick::I32(_) => DataType::Int32,
            Pick::Bool(_) => DataType::Boolean,
            Pick::Texts(_) => list(DataType::Utf8),
            Pick::F64s(_) => list(DataType::Float64),
            Pick::F32s(_) => list(DataType::Float32),
            Pick::I32s(_) => list(DataType::Int32),
            Pick::Bools(_) => list(DataType::Boolean),
            Pick::TextLists(_) => list(list(DataType::Utf8)),
        }
    }

    /// Its type in words, as in docs/decision_log.md.
    #[must_use]
    pub fn type_text(&self) -> &'static str {
        match self.pick {
            Pick::Text(_) => "text",
            Pick::Time(_) => "timestamp",
            Pick::F64(_) => "float64",
            Pick::F32(_) => "float32",
            Pick::I64(_) => "int64",
            Pick::I32(_) => "int32",
            Pick::Bool(_) => "bool",
            Pick::Texts(_) => "list of text",
            Pick::F64s(_) => "list of float64",
            Pick::F32s(_) => "list of float32",
            Pick::I32s(_) => "list of int32",
            Pick::Bools(_) => "list of bool",
            Pick::TextLists(_) => "list of lists of text",
        }
    }
}

fn list(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("item", item, true)))
}

/// The schema of the whole table.
#[must_use]
pub fn schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| schema_of(&all()));
    Arc::clone(&SCHEMA)
}

/// The schema of some columns.
pub(crate) fn schema_of(columns: &[&'static Column]) -> SchemaRef {
    let field = |column: &&Column| Field::new(column.name, column.data_type(), true);
    Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()))
}

/// All columns, in order.
pub(crate) fn all() -> Vec<&'static Column> {
    COLUMNS.iter().collect()
}

fn finite(value: f32) -> Option<f32> {
    value.is_finite().then_some(value)
}

fn finite64(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

fn floats(values: &[f32], out: &mut Float32Builder) -> bool {
    values
        .iter()
        .for_each(|value| out.append_option(finite(*value)));
    true
}

/// Appends a value in its textual form, without a text of its own.
fn shown(value: impl std::fmt::Display, out: &mut StringBuilder) {
    use std::fmt::Write as _;
    // Writing to memory does not fail.
    let _ = write!(out, "{value}");
    out.append_value("");
}

fn outcome(row: &Row) -> Option<&OutcomeRow> {
    row.outcome.as_ref().ok()
}

fn heads(row: &Row) -> std::slice::Iter<'_, crate::schema::HeadRow> {
    row.decision.heads.iter()
}

fn decision(row: &Row) -> &DecisionRow {
    &row.decision
}

const fn column(name: &'static str, unit: &'static str, about: &'static str, pick: Pick) -> Column {
    Column {
        name,
        unit,
        about,
        pick,
    }
}

/// The columns of the table, in order.
#[rustfmt::skip]
pub static COLUMNS: &[Column] = &[
    column("segment", "–", "number of the segment that the row was written to",
        Pick::I64(|row| row.segment as i64)),
    column("line", "–", "position among the decisions of the segment, from 0; rows are ordered by segment and line",
        Pick::I64(|row| row.line as i64)),
    column("decision_id", "–", "identity of the row, a UUID",
        Pick::Text(|row, out| shown(decision(row).id, out))),
    column("host_step_id", "–", "the joint decision that it is part of, a UUID",
        Pick::Text(|row, out| shown(decision(row).host_step_id, out))),
    column("episode_id", "–", "the episode, between two resets or starts of the service, a UUID",
        Pick::Text(|row, out| shown(decision(row).episode_id, out))),
    column("at", "µs since 1970 UTC", "when it was decided",
        Pick::Time(|row| Some(decision(row).at_us))),
    column("host_name", "–", "name of the host; `host` in the path is this, with all but letters, digits, `-`, `_` and `.` percent-encoded",
        Pick::Text(|row, out| out.append_value(&decision(row).host))),
    column("subject", "–", "`disk` or `device`: what the row is about",
        Pick::Text(|row, out| out.append_value(match decision(row).subject {
            Subject::Disk { .. } => "disk",
            Subject::Device { .. } => "device",
        }))),
    column("guest", "–", "the guest; empty in environments without guests, null for a device",
        Pick::Text(|row, out| match &decision(row).subject {
            Subject::Disk { guest, .. } => out.append_value(guest),
            Subject::Device { .. } => out.append_null(),
        })),
    column("target", "–", "the disk within the guest, or the device",
        Pick::Text(|row, out| out.append_value(match &decision(row).subject {
            Subject::Disk { target, .. } => target,
            Subject::Device { name } => name,
        }))),
    column("step_order", "–", "position in the order of the joint decision, from 0; features and propensities are given the choices of the rows before it",
        Pick::I32(|row| decision(row).order as i32)),
    column("source", "–", "where it comes from: `simulator`, `proposal`, `shadow`, `canary`, `auto`, `explicit`, `rollback` or `guard`",
        Pick::Text(|row, out| out.append_value(decision(row).source.word()))),
    column("stage", "–", "which stage of the fallback chain chose: `policy`, `last_good`, `heuristic` or `keep`",
        Pick::Text(|row, out| out.append_value(decision(row).stage.word()))),
    column("reason", "–", "why the guard made it; null where it did not",
        Pick::Text(|row, out| out.append_option(decision(row).reason.as_deref()))),
    column("epsilon", "probability", "with which a head that has a choice is drawn from all that is allowed instead of by the policy",
        Pick::F64(|row| finite64(decision(row).epsilon))),
    column("policy", "–", "name of the policy that chose; empty where levels were given",
        Pick::Text(|row, out| out.append_value(&decision(row).policy))),
    column("policy_version", "–", "its version: the content hash of a checkpoint",
        Pick::Text(|row, out| out.append_value(&decision(row).policy_version))),
    column("spec_hash", "–", "hash of the spec by which features, heads and levels are numbered",
        Pick::Text(|row, out| out.append_value(&decision(row).spec_hash))),
    column("head_name", "–", "name of each head, in the order of the spec",
        Pick::Texts(|row, out| { heads(row).for_each(|head| out.append_value(&head.head)); true })),
    column("head_previous", "level", "in force before",
        Pick::I32s(|row, out| { heads(row).for_each(|head| out.append_value(head.previous.into())); true })),
    column("head_requested", "level", "that the policy chose",
        Pick::I32s(|row, out| { heads(row).for_each(|head| out.append_value(head.requested.into())); true })),
    column("head_executed", "level", "in force afterwards",
        Pick::I32s(|row, out| { heads(row).for_each(|head| out.append_value(head.executed.into())); true })),
    column("head_propensity", "probability", "in (0, 1], with which `head_requested` was taken given what was seen and the mask; of the mixture with exploration; 1 where forced",
        Pick::F64s(|row, out| { heads(row).for_each(|head| out.append_option(finite64(head.propensity))); true })),
    column("head_explored", "–", "it was drawn from all that is allowed, see `epsilon`",
        Pick::Bools(|row, out| { heads(row).for_each(|head| out.append_value(head.explored)); true })),
    column("head_forced", "–", "there was no choice: the mask, or a disk on the same IOThread, left one level",
        Pick::Bools(|row, out| { heads(row).for_each(|head| out.append_value(head.forced)); true })),
    column("head_altered", "–", "why executed is not requested: what the guard or the host objected; null where it is",
        Pick::Texts(|row, out| { heads(row).for_each(|head| out.append_option(head.altered.as_deref())); true })),
    column("head_mask", "–", "per head and level: `allowed`, or why it could not be chosen",
        Pick::TextLists(|row, out| {
            for head in heads(row) {
                head.mask.iter().for_each(|reason| out.values().append_value(reason.word()));
                out.append(true);
            }
            true
        })),
    column("disk_features", "of the spec", "the disk's features, [F]; empty for a device; null elements were not finite",
        Pick::F32s(|row, out| floats(&decision(row).seen.disk, out))),
    column("device_features", "of the spec", "the (backing) device's features, [E]; empty where there is none",
        Pick::F32s(|row, out| floats(&decision(row).seen.device, out))),
    column("host_features", "of the spec", "the host's features, [H]",
        Pick::F32s(|row, out| floats(&decision(row).seen.host, out))),
    column("channel_count", "channels", "K",
        Pick::I32(|row| decision(row).seen.channel_count as i32)),
    column("channel_features", "of the spec", "the channels' features after the choices made before, [K, C] row by row",
        Pick::F32s(|row, out| floats(&decision(row).seen.channels, out))),
    column("pair_features", "of the spec", "the disk's relation to each channel, [K, P] row by row; empty for a device",
        Pick::F32s(|row, out| floats(&decision(row).seen.pairs, out))),
    column("flaw_table", "–", "of each value that is not `valid`: `disk`, `channel`, `pair`, `device` or `host`",
        Pick::Texts(|row, out| { decision(row).seen.flaws.iter().for_each(|flaw| out.append_value(flaw.table.word())); true })),
    column("flaw_row", "–", "its channel, in the channel table; else 0",
        Pick::I32s(|row, out| { decision(row).seen.flaws.iter().for_each(|flaw| out.append_value(flaw.row as i32)); true })),
    column("flaw_column", "–", "its column",
        Pick::I32s(|row, out| { decision(row).seen.flaws.iter().for_each(|flaw| out.append_value(flaw.column as i32)); true })),
    column("flaw_validity", "–", "what it is: `estimated`, `stale`, `idle`, `not_opted_in`, `unsupported` or `counter_reset`",
        Pick::Texts(|row, out| { decision(row).seen.flaws.iter().for_each(|flaw| out.append_value(flaw.validity.word())); true })),
    column("novel", "–", "features far outside what the policy was trained on, as `table.feature`",
        Pick::Texts(|row, out| { decision(row).novel.iter().for_each(|name| out.append_value(name)); true })),
    column("reward_weight_name", "–", "names of the weights of the reward in force; β is one",
        Pick::Texts(|row, out| { decision(row).reward_weights.keys().for_each(|name| out.append_value(name)); true })),
    column("reward_weight", "of the reward", "the weights",
        Pick::F64s(|row, out| { decision(row).reward_weights.values().for_each(|value| out.append_option(finite64(*value))); true })),
    column("outcome_missing", "–", "null where there is an outcome; else why not: `not_applied`, `episode_ended`, `not_recorded`, or `awaited` in rows that are not Parquet yet",
        Pick::Text(|row, out| out.append_option(row.outcome.as_ref().err().map(|missing| missing.text())))),
    column("outcome_at", "µs since 1970 UTC", "when the interval ended; null without an outcome, as all that follow",
        Pick::Time(|row| outcome(row).map(|found| found.at_us))),
    column("interval_s", "s", "length of the interval",
        Pick::F64(|row| outcome(row).and_then(|found| finite64(found.interval_s)))),
    column("reward_total", "reward", "training reward: (1 − β)·own + β·mean of own over the host",
        Pick::F32(|row| outcome(row).and_then(|found| finite(found.reward_total)))),
    column("reward_own", "reward", "own part: the sum of the terms",
        Pick::F32(|row| outcome(row).and_then(|found| finite(found.reward_own)))),
    column("reward_term_name", "–", "names of the terms",
        Pick::Texts(|row, out| outcome(row).map(|found| found.reward_terms.keys().for_each(|name| out.append_value(name))).is_some())),
    column("reward_term", "reward", "the terms",
        Pick::F32s(|row, out| outcome(row).map(|found| found.reward_terms.values().for_each(|value| out.append_option(finite(*value)))).is_some())),
    column("counted", "–", "whether the row counts: an idle disk does not, and has reward 0",
        Pick::Bool(|row| outcome(row).map(|found| found.counted))),
    column("reward_validity", "–", "whether the reward can be relied on: `valid`, or what it is instead",
        Pick::Text(|row, out| out.append_option(outcome(row).map(|found| found.validity.word())))),
    column("terminated", "–", "the episode ended here in a terminal state",
        Pick::Bool(|row| outcome(row).map(|found| found.terminated))),
    column("truncated", "–", "the episode was cut here",
        Pick::Bool(|row| outcome(row).map(|found| found.truncated))),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_document_lists_each_column_with_type_unit_and_meaning() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/decision_log.md");
        let document = std::fs::read_to_string(path).unwrap();
        let version = format!("Schema version: **{SCHEMA_VERSION}**");
        assert!(
            document.contains(&version),
            "{path} does not say: {version}"
        );
        let listed: Vec<&str> = document.lines().filter(|l| l.starts_with("| `")).collect();
        let wanted: Vec<String> = COLUMNS.iter().map(line).collect();
        for (wanted, listed) in wanted.iter().zip(&listed) {
            assert_eq!(wanted, listed, "in {path}");
        }
        assert_eq!(wanted.len(), listed.len(), "{}", wanted.join("\n"));
    }

    fn line(column: &Column) -> String {
        let Column {
            name, unit, about, ..
        } = column;
        format!("| `{name}` | {} | {unit} | {about} |", column.type_text())
    }

    #[test]
    fn names_are_different_and_can_be_found() {
        let names: BTreeSet<_> = COLUMNS.iter().map(|column| column.name).collect();
        assert_eq!(names.len(), COLUMNS.len());
        assert!(Column::find("at").is_some() && Column::find("host").is_none());
    }
}
