//! Packed tensors back into observations and steps, of a single environment.

use blkpilot_env::{
    EnvSpec, JointAction, Level, MaskReason, Masks, Observation, Rewards, Step, Table, Validity,
};
use blkpilot_proto::v1;
use ndarray::{Array1, Array2, Array3};

use super::rows::Rows;
use crate::wire::{WireError, mask_from_wire, validity_from_wire};

/// An observation of an environment with these rows, by the full view.
///
/// # Errors
/// A field whose length does not fit, or that does not say what it should.
pub(crate) fn observation(
    spec: &EnvSpec,
    rows: &Rows,
    packed: &v1::PackedObservations,
) -> Result<Observation, WireError> {
    let (n, k, d) = extents(rows);
    let pairs = spec.pair_features.len();
    let tables = Tables::new(spec, rows, packed)?;
    Ok(Observation {
        disk_ids: rows.disk_ids.clone(),
        channel_ids: rows.channel_ids.clone(),
        device_ids: rows.device_ids.clone(),
        disk_device: rows.disk_device.clone(),
        disk_group: rows.disk_group.clone(),
        disks: tables.table(0, "disks", &packed.disks)?,
        channels: tables.table(1, "channels", &packed.channels)?,
        devices: tables.table(2, "devices", &packed.devices)?,
        host: tables.table(3, "host", &packed.host)?,
        pairs: Array3::from_shape_vec(
            (n, k, pairs),
            floats("pairs", &packed.pairs, n * k * pairs)?,
        )
        .map_err(|_| WireError::new("pairs", "do not fill their shape"))?,
        current: JointAction {
            disks: levels("disk_levels", &packed.disk_levels, n, spec.disk_heads.len())?,
            devices: levels(
                "device_levels",
                &packed.device_levels,
                d,
                spec.device_heads.len(),
            )?,
        },
        default: rows.default.clone(),
        masks: Masks {
            disks: masks("disk_masks", &packed.disk_masks, n, spec.disk_levels(k))?,
            devices: masks(
                "device_masks",
                &packed.device_masks,
                d,
                spec.device_levels(k),
            )?,
        },
    })
}

/// A step of an environment that had the rows `before` it, by the full view.
///
/// # Errors
/// As [`observation`].
pub(crate) fn step(
    spec: &EnvSpec,
    before: &Rows,
    now: &Rows,
    answer: &v1::RolloutResponse,
) -> Result<Step, WireError> {
    let missing = |field: &str| WireError::new(field, "is missing");
    let seen = answer.observations.as_ref();
    let outcomes = answer
        .outcomes
        .as_ref()
        .ok_or_else(|| missing("outcomes"))?;
    let last = answer.final_observations.as_ref();
    let last = last
        .map(|last| observation(spec, before, last))
        .transpose()?;
    let (n, _, d) = extents(before);
    let heads = (spec.disk_heads.len(), spec.device_heads.len());
    Ok(Step {
        observation: observation(spec, now, seen.ok_or_else(|| missing("observations"))?)?,
        rewards: rewards(spec, n, outcomes)?,
        executed: JointAction {
            disks: levels("disk_executed", &outcomes.disk_executed, n, heads.0)?,
            devices: levels("device_executed", &outcomes.device_executed, d, heads.1)?,
        },
        terminated: flag("terminated", &outcomes.terminated)?,
        truncated: flag("truncated", &outcomes.truncated)?,
        final_observation: last.map(Box::new),
    })
}

fn rewards(
    spec: &EnvSpec,
    disks: usize,
    outcomes: &v1::PackedOutcomes,
) -> Result<Rewards, WireError> {
    let terms = spec.reward_terms.len();
    let counted = if outcomes.counted.is_empty() {
        vec![true; disks]
    } else {
        sized("counted", &outcomes.counted, disks)?;
        outcomes.counted.iter().map(|counts| *counts != 0).collect()
    };
    Ok(Rewards {
        total: Array1::from(floats("rewards", &outcomes.rewards, disks)?),
        own: Array1::from(floats("own", &outcomes.own, disks)?),
        terms: filled(
            "terms",
            (disks, terms),
            floats("terms", &outcomes.terms, disks * terms)?,
        )?,
        counted,
    })
}

/// Disks, channels and devices.
fn extents(rows: &Rows) -> (usize, usize, usize) {
    let ids = [&rows.disk_ids, &rows.channel_ids, &rows.device_ids];
    let [n, k, d] = ids.map(Vec::len);
    (n, k, d)
}

/// The tables with their validity and ages, which follow one another in one field each.
struct Tables {
    shapes: [(usize, usize); 4],
    validity: Vec<Validity>,
    ages: Vec<f32>,
}

impl Tables {
    fn new(
        spec: &EnvSpec,
        rows: &Rows,
        packed: &v1::PackedObservations,
    ) -> Result<Self, WireError> {
        let (n, k, d) = extents(rows);
        let shapes = [
            (n, spec.disk_features.len()),
            (k, spec.channel_features.len()),
            (d, spec.device_features.len()),
            (1, spec.host_features.len()),
        ];
        let cells = shapes.iter().map(|(rows, columns)| rows * columns).sum();
        let validity = if packed.validity.is_empty() {
            vec![Validity::Valid; cells]
        } else {
            sized("validity", &packed.validity, cells)?;
            let values = packed.validity.iter();
            let values = values.map(|value| validity_from_wire("validity", i32::from(*value)));
            values.collect::<Result<_, _>>()?
        };
        let ages = if packed.ages.is_empty() {
            vec![0.0; cells]
        } else {
            floats("ages", &packed.ages, cells)?
        };
        Ok(Self {
            shapes,
            validity,
            ages,
        })
    }

    fn table(&self, index: usize, field: &str, packed: &[u8]) -> Result<Table, WireError> {
        let len = |(rows, columns): &(usize, usize)| rows * columns;
        let start: usize = self.shapes[..index].iter().map(len).sum();
        let shape = self.shapes[index];
        let cells = start..start + len(&shape);
        Ok(Table {
            values: filled(field, shape, floats(field, packed, cells.len())?)?,
            validity: filled("validity", shape, self.validity[cells.clone()].to_vec())?,
            age_s: filled("ages", shape, self.ages[cells].to_vec())?,
        })
    }
}

fn sized(field: &str, packed: &[u8], want: usize) -> Result<(), WireError> {
    if packed.len() == want {
        return Ok(());
    }
    let problem = format!("has {} bytes, its rows need {want}", packed.len());
    Err(WireError::new(field, problem))
}

fn floats(field: &str, packed: &[u8], count: usize) -> Result<Vec<f32>, WireError> {
    sized(field, packed, count * size_of::<f32>())?;
    let (values, _) = packed.as_chunks();
    Ok(values
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect())
}

fn levels(
    field: &str,
    packed: &[u8],
    rows: usize,
    heads: usize,
) -> Result<Array2<Level>, WireError> {
    sized(field, packed, rows * heads * size_of::<Level>())?;
    let (values, _) = packed.as_chunks();
    let levels = values.iter().map(|bytes| Level::from_le_bytes(*bytes));
    filled(field, (rows, heads), levels.collect())
}

fn masks(
    field: &str,
    packed: &[u8],
    rows: usize,
    width: usize,
) -> Result<Array2<MaskReason>, WireError> {
    if packed.is_empty() {
        return Ok(Array2::default((rows, width)));
    }
    sized(field, packed, rows * width)?;
    let reasons = packed
        .iter()
        .map(|reason| mask_from_wire(field, i32::from(*reason)));
    filled(field, (rows, width), reasons.collect::<Result<_, _>>()?)
}

fn flag(field: &str, packed: &[u8]) -> Result<bool, WireError> {
    sized(field, packed, 1)?;
    Ok(packed[0] != 0)
}

fn filled<T>(field: &str, shape: (usize, usize), values: Vec<T>) -> Result<Array2<T>, WireError> {
    Array2::from_shape_vec(shape, values)
        .map_err(|_| WireError::new(field, format!("does not fill {shape:?}")))
}

#[cfg(test)]
mod tests {
    use blkpilot_env::sim::{SimBatch, presets};
    use blkpilot_env::{ResetOptions, Restart};

    use super::*;
    use crate::environments::packed::{After, Packing, View};
    use crate::environments::vector::Vector;

    /// A host after a step, its rows, and the full answer.
    fn stepped() -> (Vector, Rows, v1::RolloutResponse) {
        let batch = SimBatch::fixed(presets::mixed(), 1).unwrap();
        let mut vector = Vector::Sim(Box::new(batch));
        vector
            .reset(&[Restart::Seeded(1)], &ResetOptions::new())
            .unwrap();
        let mut packing = Packing::new(View::Full);
        let (first, _) = packing.answer(&vector, After::Reset);
        let rows = Rows::from_wire(first.layout.unwrap()).unwrap();
        let current = vector.observation(0).current;
        let mut levels = vec![];
        vector.pack(&[current], &mut levels).unwrap();
        vector.step(&levels).unwrap();
        let (answer, _) = packing.answer(&vector, After::Step);
        (vector, rows, answer)
    }

    #[test]
    fn what_was_packed_is_read_back_and_rows_are_named_once() {
        let (vector, rows, answer) = stepped();
        assert!(answer.layout.is_none());
        let read = step(vector.spec(), &rows, &rows, &answer).unwrap();
        assert_eq!(Some(read), vector.outcome(0));
    }

    #[test]
    fn a_field_of_another_length_is_refused_by_name() {
        let (vector, rows, answer) = stepped();
        type Cut = fn(&mut v1::PackedObservations, &mut v1::PackedOutcomes);
        let cuts: [(&str, Cut); 9] = [
            ("disks", |seen, _| drop(seen.disks.split_off(5))),
            ("channels", |seen, _| seen.channels.clear()),
            ("pairs", |seen, _| drop(seen.pairs.split_to(1))),
            ("host", |seen, _| seen.host = vec![0; 3].into()),
            ("disk_masks", |seen, _| seen.disk_masks = vec![1].into()),
            ("validity", |seen, _| seen.validity = vec![1; 2].into()),
            ("rewards", |_, came| drop(came.rewards.split_off(4))),
            ("terms", |_, came| came.terms.clear()),
            ("terminated", |_, came| came.terminated.clear()),
        ];
        for (field, cut) in cuts {
            let mut wrong = answer.clone();
            let seen = wrong.observations.as_mut().unwrap();
            cut(seen, wrong.outcomes.as_mut().unwrap());
            let refused = step(vector.spec(), &rows, &rows, &wrong).unwrap_err();
            assert_eq!(refused.field, field);
        }
    }

    #[test]
    fn a_reason_that_is_none_is_refused() {
        let (vector, rows, mut answer) = stepped();
        let seen = answer.observations.as_mut().unwrap();
        let cells = rows.disk_ids.len() * vector.spec().disk_levels(rows.channel_ids.len());
        seen.disk_masks = vec![99; cells].into();
        let refused = step(vector.spec(), &rows, &rows, &answer).unwrap_err();
        assert_eq!(refused.field, "disk_masks");
    }
}
