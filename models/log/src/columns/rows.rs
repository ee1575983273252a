//! Columns into rows.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use arrow_array::{Array, ArrayRef, ArrowPrimitiveType, RecordBatch};

use super::{Column, LoggedRow, Missing};
use crate::names::Named;
use crate::schema::{DecisionRow, Flaw, HeadRow, OutcomeRow, Seen, Source, Subject};

/// The rows of a batch. Columns that the batch has not, because they were not asked for, are as if
/// empty, zero or null; `decision_id`, `host_step_id`, `episode_id` and `source` must be there.
///
/// # Errors
/// What is wrong, and in which row and column.
pub fn rows_of(batch: &RecordBatch) -> Result<Vec<LoggedRow>, String> {
    let table = Table { batch };
    (0..batch.num_rows())
        .map(|row| {
            table
                .row(row)
                .map_err(|problem| format!("row {row} of the batch: {problem}"))
        })
        .collect()
}

struct Table<'a> {
    batch: &'a RecordBatch,
}

impl<'a> Table<'a> {
    fn column(&self, name: &'static str) -> Option<&'a ArrayRef> {
        debug_assert!(Column::find(name).is_some(), "{name}");
        self.batch.column_by_name(name)
    }

    fn text(&self, name: &'static str, row: usize) -> Result<Option<&'a str>, String> {
        let Some(column) = self.column(name) else {
            return Ok(None);
        };
        let texts = column.as_string_opt::<i32>().ok_or_else(|| is_no(name))?;
        Ok(texts.is_valid(row).then(|| texts.value(row)))
    }

    fn owned(&self, name: &'static str, row: usize) -> Result<String, String> {
        Ok(self.text(name, row)?.unwrap_or_default().to_owned())
    }

    fn id<T: FromStr>(&self, name: &'static str, row: usize) -> Result<T, String> {
        let text = self
            .text(name, row)?
            .ok_or_else(|| format!("{name} is null"))?;
        text.parse()
            .map_err(|_| format!("{name} = {text} is no UUID"))
    }

    fn word<T: Named>(&self, name: &'static str, row: usize) -> Result<Option<T>, String> {
        self.text(name, row)?
            .map(|text| word(name, text))
            .transpose()
    }

    fn number<T: ArrowPrimitiveType>(
        &self,
        name: &'static str,
        row: usize,
    ) -> Result<Option<T::Native>, String> {
        let Some(column) = self.column(name) else {
            return Ok(None);
        };
        let numbers = column.as_primitive_opt::<T>().ok_or_else(|| is_no(name))?;
        Ok(numbers.is_valid(row).then(|| numbers.value(row)))
    }

    fn flag(&self, name: &'static str, row: usize) -> Result<bool, String> {
        let Some(column) = self.column(name) else {
            return Ok(false);
        };
        let flags = column.as_boolean_opt().ok_or_else(|| is_no(name))?;
        Ok(flags.is_valid(row) && flags.value(row))
    }

    fn list(&self, name: &'static str, row: usize) -> Result<Option<ArrayRef>, String> {
        let Some(column) = self.column(name) else {
            return Ok(None);
        };
        let lists = column.as_list_opt::<i32>().ok_or_else(|| is_no(name))?;
        Ok(lists.is_valid(row).then(|| lists.value(row)))
    }

    fn numbers<T: ArrowPrimitiveType, N>(
        &self,
        name: &'static str,
        row: usize,
        read: impl Fn(Option<T::Native>) -> N,
    ) -> Result<Vec<N>, String> {
        let Some(list) = self.list(name, row)? else {
            return Ok(vec![]);
        };
        let numbers = list.as_primitive_opt::<T>().ok_or_else(|| is_no(name))?;
        Ok(numbers.iter().map(read).collect())
    }

    fn f32s(&self, name: &'static str, row: usize) -> Result<Vec<f32>, String> {
        self.numbers::<Float32Type, _>(name, row, |value| value.unwrap_or(f32::NAN))
    }

    fn i32s(&self, name: &'static str, row: usize) -> Result<Vec<i32>, String> {
        self.numbers::<Int32Type, _>(name, row, Option::unwrap_or_default)
    }

    fn flags(&self, name: &'static str, row: usize) -> Result<Vec<bool>, String> {
        let Some(list) = self.list(name, row)? else {
            return Ok(vec![]);
        };
        let flags = list.as_boolean_opt().ok_or_else(|| is_no(name))?;
        Ok(flags.iter().map(|flag| flag.unwrap_or(false)).collect())
    }

    fn texts(&self, name: &'static str, row: usize) -> Result<Vec<Option<String>>, String> {
        let list = self.list(name, row)?;
        list.map_or(Ok(vec![]), |list| texts(name, &list))
    }

    fn names(&self, name: &'static str, row: usize) -> Result<Vec<String>, String> {
        let texts = self.texts(name, row)?.into_iter();
        Ok(texts.map(Option::unwrap_or_default).collect())
    }

    fn row(&self, row: usize) -> Result<LoggedRow, String> {
        let source: Source = self.word("source", row)?.ok_or("source is null")?;
        let position = |name| -> Result<u64, String> {
            let number = self.number::<Int64Type>(name, row)?.unwrap_or_default();
            u64::try_from(number).map_err(|_| format!("{name} = {number} is negative"))
        };
        Ok(LoggedRow {
            segment: position("segment")?,
            line: position("line")?,
            decision: self.decision(row, source)?,
            outcome: self.outcome(row)?,
        })
    }

    fn decision(&self, row: usize, source: Source) -> Result<DecisionRow, String> {
        Ok(DecisionRow {
            id: self.id("decision_id", row)?,
            host_step_id: self.id("host_step_id", row)?,
            episode_id: self.id("episode_id", row)?,
            at_us: self
                .number::<TimestampMicrosecondType>("at", row)?
                .unwrap_or_default(),
            host: self.owned("host_name", row)?.into(),
            subject: self.subject(row)?,
            order: self
                .number::<Int32Type>("step_order", row)?
                .unwrap_or_default() as u32,
            source,
            stage: self.word("stage", row)?.unwrap_or_default(),
            epsilon: self
                .number::<Float64Type>("epsilon", row)?
                .unwrap_or_default(),
            reason: self.text("reason", row)?.map(str::to_owned),
            policy: self.owned("policy", row)?.into(),
            policy_version: self.owned("policy_version", row)?.into(),
            spec_hash: self.owned("spec_hash", row)?.into(),
            seen: self.seen(row)?,
            heads: self.heads(row)?,
            novel: self.names("novel", row)?,
            reward_weights: Arc::new(self.weights(row)?),
        })
    }

    fn subject(&self, row: usize) -> Result<Subject, String> {
        let name = self.owned("target", row)?;
        Ok(match self.text("subject", row)? {
            Some("device") => Subject::Device { name },
            Some("disk") | None => Subject::Disk {
                guest: self.owned("guest", row)?,
                target: name,
            },
            Some(other) => return Err(format!("subject = {other}: must be disk or device")),
        })
    }

    fn seen(&self, row: usize) -> Result<Seen, String> {
        let count = self.number::<Int32Type>("channel_count", row)?;
        let (tables, validities) = (
            self.names("flaw_table", row)?,
            self.names("flaw_validity", row)?,
        );
        let (rows, columns) = (self.i32s("flaw_row", row)?, self.i32s("flaw_column", row)?);
        check_lengths(
            "flaw",
            tables.len(),
            [validities.len(), rows.len(), columns.len()],
        )?;
        let flaw = |i: usize| -> Result<Flaw, String> {
            Ok(Flaw {
                table: word("flaw_table", &tables[i])?,
                row: rows[i] as u32,
                column: columns[i] as u32,
                validity: word("flaw_validity", &validities[i])?,
            })
        };
        Ok(Seen {
            disk: self.f32s("disk_features", row)?,
            device: self.f32s("device_features", row)?,
            host: self.f32s("host_features", row)?,
            channel_count: count.unwrap_or_default() as usize,
            channels: self.f32s("channel_features", row)?,
            pairs: self.f32s("pair_features", row)?,
            flaws: (0..tables.len()).map(flaw).collect::<Result<_, _>>()?,
        })
    }

    fn heads(&self, row: usize) -> Result<Vec<HeadRow>, String> {
        let names = self.names("head_name", row)?;
        let previous = self.i32s("head_previous", row)?;
        let requested = self.i32s("head_requested", row)?;
        let executed = self.i32s("head_executed", row)?;
        let propensities = self
            .numbers::<Float64Type, _>("head_propensity", row, |value| value.unwrap_or(f64::NAN))?;
        let (explored, forced) = (
            self.flags("head_explored", row)?,
            self.flags("head_forced", row)?,
        );
        let altered = self.texts("head_altered", row)?;
        let masks = self.list("head_mask", row)?;
        let lengths = [
            previous.len(),
            requested.len(),
            executed.len(),
            propensities.len(),
            explored.len(),
            forced.len(),
            altered.len(),
            masks.as_ref().map_or(0, Array::len),
        ];
        check_lengths("head", names.len(), lengths)?;
        let head = |i: usize| -> Result<HeadRow, String> {
            Ok(HeadRow {
                head: names[i].clone(),
                previous: level("head_previous", previous[i])?,
                requested: level("head_requested", requested[i])?,
                executed: level("head_executed", executed[i])?,
                propensity: propensities[i],
                explored: explored[i],
                forced: forced[i],
                altered: altered[i].clone(),
                mask: masks.as_ref().map_or(Ok(vec![]), |masks| mask(masks, i))?,
            })
        };
        (0..names.len()).map(head).collect()
    }

    fn weights(&self, row: usize) -> Result<BTreeMap<String, f64>, String> {
        let names = self.names("reward_weight_name", row)?;
        let values = self
            .numbers::<Float64Type, _>("reward_weight", row, |value| value.unwrap_or(f64::NAN))?;
        check_lengths("reward_weight", names.len(), [values.len()])?;
        Ok(names.into_iter().zip(values).collect())
    }

    fn outcome(&self, row: usize) -> Result<Result<OutcomeRow, Missing>, String> {
        let missing = self.text("outcome_missing", row)?;
        let at_us = self.number::<TimestampMicrosecondType>("outcome_at", row)?;
        let at_us = match (missing, at_us) {
            (None, Some(at_us)) => at_us,
            (None, None) if self.column("outcome_missing").is_none() => {
                return Ok(Err(Missing::NotRecorded));
            }
            (None, None) => return Err("neither an outcome nor why there is none".to_owned()),
            (Some(_), Some(_)) => return Err("an outcome, and why there is none".to_owned()),
            (Some(text), None) => {
                let mut known = Missing::ALL.into_iter();
                let known = known.find(|missing| missing.text() == text);
                return Ok(Err(
                    known.ok_or_else(|| format!("outcome_missing = {text}"))?
                ));
            }
        };
        let number = |name| self.number::<Float32Type>(name, row);
        let names = self.names("reward_term_name", row)?;
        let terms = self.f32s("reward_term", row)?;
        check_lengths("reward_term", names.len(), [terms.len()])?;
        Ok(Ok(OutcomeRow {
            decision_id: self.id("decision_id", row)?,
            at_us,
            interval_s: self
                .number::<Float64Type>("interval_s", row)?
                .unwrap_or(f64::NAN),
            reward_total: number("reward_total")?.unwrap_or(f32::NAN),
            reward_own: number("reward_own")?.unwrap_or(f32::NAN),
            reward_terms: names.into_iter().zip(terms).collect(),
            counted: self.flag("counted", row)?,
            validity: self.word("reward_validity", row)?.unwrap_or_default(),
            terminated: self.flag("terminated", row)?,
            truncated: self.flag("truncated", row)?,
        }))
    }
}

fn is_no(name: &str) -> String {
    format!("{name} is not of its type in this schema")
}

fn word<T: Named>(column: &str, text: &str) -> Result<T, String> {
    T::parse(text).ok_or_else(|| format!("{column} = {text} is not known"))
}

fn level(column: &str, number: i32) -> Result<u16, String> {
    u16::try_from(number).map_err(|_| format!("{column} = {number} is no level"))
}

fn texts(name: &'static str, list: &ArrayRef) -> Result<Vec<Option<String>>, String> {
    let texts = list.as_string_opt::<i32>().ok_or_else(|| is_no(name))?;
    Ok(texts.iter().map(|text| text.map(str::to_owned)).collect())
}

fn mask(masks: &ArrayRef, head: usize) -> Result<Vec<blkpilot_env::MaskReason>, String> {
    let lists = masks
        .as_list_opt::<i32>()
        .ok_or_else(|| is_no("head_mask"))?;
    let words = texts("head_mask", &lists.value(head))?.into_iter();
    words
        .map(|text| word("head_mask", text.as_deref().unwrap_or_default()))
        .collect()
}

/// Lists whose names begin alike have one element each for the same things. One that was not asked
/// for counts as fitting only if none was.
fn check_lengths<const N: usize>(
    what: &str,
    wanted: usize,
    lengths: [usize; N],
) -> Result<(), String> {
    if lengths.iter().all(|length| *length == wanted) {
        Ok(())
    } else {
        Err(format!(
            "the lists {what}_… have {wanted} and {lengths:?} elements"
        ))
    }
}
