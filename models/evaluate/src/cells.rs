//! The columns of a batch, found once.

use std::ops::Range;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use arrow_array::{
    Array, ArrowPrimitiveType, BooleanArray, Float64Array, Int32Array, Int64Array, ListArray,
    PrimitiveArray, StringArray,
};
use blkpilot_log::{Batch, LogError};

/// The columns that an evaluation reads.
pub(crate) const COLUMNS: &[&str] = &[
    "segment",
    "line",
    "decision_id",
    "host_step_id",
    "episode_id",
    "at",
    "host_name",
    "subject",
    "guest",
    "target",
    "step_order",
    "source",
    "stage",
    "epsilon",
    "policy",
    "policy_version",
    "spec_hash",
    "head_name",
    "head_previous",
    "head_requested",
    "head_executed",
    "head_propensity",
    "head_explored",
    "head_forced",
    "head_mask",
    "disk_features",
    "device_features",
    "host_features",
    "channel_count",
    "channel_features",
    "pair_features",
    "reward_weight_name",
    "reward_weight",
    "outcome_missing",
    "outcome_at",
    "interval_s",
    "reward_total",
    "reward_own",
    "counted",
    "reward_validity",
    "terminated",
];

/// A column of lists.
pub(crate) struct List<'a, A> {
    lists: &'a ListArray,
    pub(crate) values: &'a A,
}

impl<A> List<'_, A> {
    /// Where a row's list is in `values`; empty where there is none.
    pub(crate) fn range(&self, row: usize) -> Range<usize> {
        if self.lists.is_null(row) {
            return 0..0;
        }
        let offsets = self.lists.value_offsets();
        offsets[row] as usize..offsets[row + 1] as usize
    }
}

pub(crate) struct Cells<'a> {
    pub(crate) rows: usize,
    pub(crate) segment: &'a Int64Array,
    pub(crate) line: &'a Int64Array,
    pub(crate) decision_id: &'a StringArray,
    pub(crate) host_step_id: &'a StringArray,
    pub(crate) episode_id: &'a StringArray,
    pub(crate) at: &'a PrimitiveArray<TimestampMicrosecondType>,
    pub(crate) host_name: &'a StringArray,
    pub(crate) subject: &'a StringArray,
    pub(crate) guest: &'a StringArray,
    pub(crate) target: &'a StringArray,
    pub(crate) step_order: &'a Int32Array,
    pub(crate) source: &'a StringArray,
    pub(crate) stage: &'a StringArray,
    pub(crate) epsilon: &'a Float64Array,
    pub(crate) policy: &'a StringArray,
    pub(crate) policy_version: &'a StringArray,
    pub(crate) spec_hash: &'a StringArray,
    pub(crate) head_name: List<'a, StringArray>,
    pub(crate) head_previous: List<'a, Int32Array>,
    pub(crate) head_requested: List<'a, Int32Array>,
    pub(crate) head_executed: List<'a, Int32Array>,
    pub(crate) head_propensity: List<'a, Float64Array>,
    pub(crate) head_explored: List<'a, BooleanArray>,
    pub(crate) head_forced: List<'a, BooleanArray>,
    pub(crate) head_mask: List<'a, ListArray>,
    pub(crate) mask_words: &'a StringArray,
    pub(crate) disk_features: List<'a, PrimitiveArray<Float32Type>>,
    pub(crate) device_features: List<'a, PrimitiveArray<Float32Type>>,
    pub(crate) host_features: List<'a, PrimitiveArray<Float32Type>>,
    pub(crate) channel_count: &'a Int32Array,
    pub(crate) channel_features: List<'a, PrimitiveArray<Float32Type>>,
    pub(crate) pair_features: List<'a, PrimitiveArray<Float32Type>>,
    pub(crate) reward_weight_name: List<'a, StringArray>,
    pub(crate) reward_weight: List<'a, Float64Array>,
    pub(crate) outcome_missing: &'a StringArray,
    pub(crate) outcome_at: &'a PrimitiveArray<TimestampMicrosecondType>,
    pub(crate) interval_s: &'a Float64Array,
    pub(crate) reward_total: &'a PrimitiveArray<Float32Type>,
    pub(crate) reward_own: &'a PrimitiveArray<Float32Type>,
    pub(crate) counted: &'a BooleanArray,
    pub(crate) reward_validity: &'a StringArray,
    pub(crate) terminated: &'a BooleanArray,
}

fn other_type(name: &str) -> LogError {
    let name = format!("{name}, of this type");
    LogError::UnknownColumn { name }
}

fn numbers<'a, T: ArrowPrimitiveType>(
    batch: &'a Batch,
    name: &str,
) -> Result<List<'a, PrimitiveArray<T>>, LogError> {
    let lists = batch.lists(name)?;
    let values = lists.values().as_primitive_opt::<T>();
    let values = values.ok_or_else(|| other_type(name))?;
    Ok(List { lists, values })
}

fn texts<'a>(batch: &'a Batch, name: &str) -> Result<List<'a, StringArray>, LogError> {
    let lists = batch.lists(name)?;
    let values = lists.values().as_string_opt::<i32>();
    let values = values.ok_or_else(|| other_type(name))?;
    Ok(List { lists, values })
}

fn flags<'a>(batch: &'a Batch, name: &str) -> Result<List<'a, BooleanArray>, LogError> {
    let lists = batch.lists(name)?;
    let values = lists.values().as_boolean_opt();
    let values = values.ok_or_else(|| other_type(name))?;
    Ok(List { lists, values })
}

impl<'a> Cells<'a> {
    pub(crate) fn of(batch: &'a Batch) -> Result<Self, LogError> {
        let masks = batch.lists("head_mask")?;
        let mask_lists = masks.values().as_list_opt::<i32>();
        let mask_lists = mask_lists.ok_or_else(|| other_type("head_mask"))?;
        let mask_words = mask_lists.values().as_string_opt::<i32>();
        Ok(Self {
            rows: batch.len(),
            segment: batch.numbers::<Int64Type>("segment")?,
            line: batch.numbers::<Int64Type>("line")?,
            decision_id: batch.texts("decision_id")?,
            host_step_id: batch.texts("host_step_id")?,
            episode_id: batch.texts("episode_id")?,
            at: batch.numbers("at")?,
            host_name: batch.texts("host_name")?,
            subject: batch.texts("subject")?,
            guest: batch.texts("guest")?,
            target: batch.texts("target")?,
            step_order: batch.numbers::<Int32Type>("step_order")?,
            source: batch.texts("source")?,
            stage: batch.texts("stage")?,
            epsilon: batch.numbers::<Float64Type>("epsilon")?,
            policy: batch.texts("policy")?,
            policy_version: batch.texts("policy_version")?,
            spec_hash: batch.texts("spec_hash")?,
            head_name: texts(batch, "head_name")?,
            head_previous: numbers(batch, "head_previous")?,
            head_requested: numbers(batch, "head_requested")?,
            head_executed: numbers(batch, "head_executed")?,
            head_propensity: numbers(batch, "head_propensity")?,
            head_explored: flags(batch, "head_explored")?,
            head_forced: flags(batch, "head_forced")?,
            head_mask: List {
                lists: masks,
                values: mask_lists,
            },
            mask_words: mask_words.ok_or_else(|| other_type("head_mask"))?,
            disk_features: numbers(batch, "disk_features")?,
            device_features: numbers(batch, "device_features")?,
            host_features: numbers(batch, "host_features")?,
            channel_count: batch.numbers::<Int32Type>("channel_count")?,
            channel_features: numbers(batch, "channel_features")?,
            pair_features: numbers(batch, "pair_features")?,
            reward_weight_name: texts(batch, "reward_weight_name")?,
            reward_weight: numbers(batch, "reward_weight")?,
            outcome_missing: batch.texts("outcome_missing")?,
            outcome_at: batch.numbers("outcome_at")?,
            interval_s: batch.numbers::<Float64Type>("interval_s")?,
            reward_total: batch.numbers::<Float32Type>("reward_total")?,
            reward_own: batch.numbers::<Float32Type>("reward_own")?,
            counted: batch.flags("counted")?,
            reward_validity: batch.texts("reward_validity")?,
            terminated: batch.flags("terminated")?,
        })
    }

    pub(crate) fn place(&self, row: usize) -> (u64, u64) {
        (self.segment.value(row) as u64, self.line.value(row) as u64)
    }
}

/// A UUID as a number.
pub(crate) fn uuid(text: &str) -> Option<u128> {
    let (mut id, mut digits) = (0_u128, 0);
    for byte in text.bytes().filter(|byte| *byte != b'-') {
        id = id << 4 | u128::from(char::from(byte).to_digit(16)?);
        digits += 1;
    }
    (digits == 32).then_some(id)
}
