//! What environments show as packed tensors, one buffer for all numbers of an answer; the layout is that of
//! `RolloutResponse` in the .proto.

pub(crate) mod reading;
pub(crate) mod rows;

use blkpilot_env::{
    ActionError, EnvSpec, JointAction, Level, MaskReason, Observation, Table, Validity,
};
use blkpilot_proto::v1;
use ndarray::Array2;
use prost::bytes::{BufMut as _, Bytes, BytesMut};

use self::rows::Rows;
use super::vector::{Seen, Vector, executed_level, has_counted};
use crate::wire::{mask_to_wire, validity_to_wire};

/// What the answers hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    /// What an agent learns from.
    Basic,
    /// All.
    Full,
}

/// What an answer follows on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// The opening of the stream, or a reset.
    Reset,
    /// A step.
    Step,
}

/// Packs the answers of one stream. Its buffer is kept: once the slices of an answer have gone, their memory is
/// used again.
#[derive(Debug)]
pub(crate) struct Packing {
    view: View,
    buffer: BytesMut,
    /// As the last answer had them; `None` before the first.
    rows: Option<Vec<Rows>>,
}

impl Packing {
    pub(crate) fn new(view: View) -> Self {
        Self {
            view,
            buffer: BytesMut::new(),
            rows: None,
        }
    }

    /// What the environments show, and how many bytes its tensors have.
    pub(crate) fn answer(&mut self, vector: &Vector, after: After) -> (v1::RolloutResponse, usize) {
        let layout = self.layout(vector);
        let (observations, last) = match vector {
            Vector::Carts { carts, .. } => {
                let begun = (0..carts.len()).filter(|cart| carts.has_begun(*cart));
                let ended = (0..carts.len()).filter(|cart| carts.has_final_observation(*cart));
                (
                    self.carts(begun.map(|cart| carts.observations()[cart])),
                    self.carts(ended.map(|cart| carts.final_observations()[cart])),
                )
            }
            _ => (
                self.observations(&seen(vector).map(|seen| seen.observation)),
                self.observations(&seen(vector).filter_map(|seen| seen.final_observation)),
            ),
        };
        let has_last = !last.disks.is_empty();
        let response = v1::RolloutResponse {
            layout,
            observations: Some(observations),
            outcomes: (after == After::Step).then(|| self.outcomes(vector)),
            final_observations: (after == After::Step && has_last).then_some(last),
        };
        let bytes = bytes_of(&response);
        (response, bytes)
    }

    /// The rows, if they are others than in the answer before.
    fn layout(&mut self, vector: &Vector) -> Option<v1::RolloutLayout> {
        if self.rows.as_ref().is_some_and(|rows| fit(rows, vector)) {
            return None;
        }
        let all = (0..vector.count()).map(|i| Rows::of(&vector.observation(i)));
        let rows = self.rows.insert(all.collect());
        Some(rows::layout_to_wire(rows))
    }

    fn carts(&mut self, seen: impl Iterator<Item = [f32; 4]>) -> v1::PackedObservations {
        let mut carts = 0;
        for values in seen {
            put_floats(&mut self.buffer, &values);
            carts += 1;
        }
        let disks = self.cut();
        // A cart has one head, of which nothing is in force.
        self.buffer.put_bytes(0, carts * size_of::<Level>());
        v1::PackedObservations {
            disks,
            disk_levels: self.cut(),
            ..v1::PackedObservations::default()
        }
    }

    fn observations<'a>(
        &mut self,
        seen: &(impl Iterator<Item = &'a Observation> + Clone),
    ) -> v1::PackedObservations {
        let each = || seen.clone();
        v1::PackedObservations {
            disks: self.floats(each().map(|o| o.disks.values.as_slice())),
            channels: self.floats(each().map(|o| o.channels.values.as_slice())),
            pairs: self.floats(each().map(|o| o.pairs.as_slice())),
            devices: self.floats(each().map(|o| o.devices.values.as_slice())),
            host: self.floats(each().map(|o| o.host.values.as_slice())),
            disk_masks: self.masks(each().map(|o| &o.masks.disks)),
            device_masks: self.masks(each().map(|o| &o.masks.devices)),
            disk_levels: self.levels(each().map(|o| &o.current.disks)),
            device_levels: self.levels(each().map(|o| &o.current.devices)),
            validity: self.validity(each()),
            ages: self.ages(each()),
        }
    }

    fn outcomes(&mut self, vector: &Vector) -> v1::PackedOutcomes {
        match vector {
            Vector::Carts { .. } => self.cart_outcomes(vector),
            _ => self.host_outcomes(vector),
        }
    }

    fn cart_outcomes(&mut self, vector: &Vector) -> v1::PackedOutcomes {
        let Vector::Carts { carts, levels } = vector else {
            return v1::PackedOutcomes::default();
        };
        let rewards = self.floats(std::iter::once(Some(carts.rewards())));
        let all_count = (0..carts.len()).all(|cart| has_counted(carts, cart));
        let counted = (0..carts.len()).map(|cart| has_counted(carts, cart));
        let basic = v1::PackedOutcomes {
            terminated: self.flags(carts.terminated().iter().copied()),
            truncated: self.flags(carts.truncated().iter().copied()),
            counted: self.flags(counted.filter(|_| !all_count)),
            rewards,
            ..v1::PackedOutcomes::default()
        };
        if self.view == View::Basic {
            return basic;
        }
        for cart in 0..carts.len() {
            self.buffer.put_u16_le(executed_level(carts, cart, levels));
        }
        v1::PackedOutcomes {
            disk_executed: self.cut(),
            own: basic.rewards.clone(),
            terms: basic.rewards.clone(),
            ..basic
        }
    }

    fn host_outcomes(&mut self, vector: &Vector) -> v1::PackedOutcomes {
        let each = || seen(vector);
        let all_count = each().all(|seen| seen.rewards.counted.iter().all(|counts| *counts));
        let counted = each().flat_map(|seen| seen.rewards.counted.iter().copied());
        let basic = v1::PackedOutcomes {
            rewards: self.floats(each().map(|seen| seen.rewards.total.as_slice())),
            terminated: self.flags(each().map(|seen| seen.terminated)),
            truncated: self.flags(each().map(|seen| seen.truncated)),
            counted: self.flags(counted.filter(|_| !all_count)),
            ..v1::PackedOutcomes::default()
        };
        if self.view == View::Basic {
            return basic;
        }
        v1::PackedOutcomes {
            own: self.floats(each().map(|seen| seen.rewards.own.as_slice())),
            terms: self.floats(each().map(|seen| seen.rewards.terms.as_slice())),
            disk_executed: self.levels(each().map(|seen| &seen.executed.disks)),
            device_executed: self.levels(each().map(|seen| &seen.executed.devices)),
            ..basic
        }
    }

    fn floats<'a>(&mut self, tables: impl Iterator<Item = Option<&'a [f32]>>) -> Bytes {
        for table in tables {
            let table = table.expect("tables are made in row-major order without gaps");
            put_floats(&mut self.buffer, table);
        }
        self.cut()
    }

    fn levels<'a>(&mut self, tables: impl Iterator<Item = &'a Array2<Level>>) -> Bytes {
        for table in tables {
            table
                .iter()
                .for_each(|level| self.buffer.put_u16_le(*level));
        }
        self.cut()
    }

    /// Nothing where all is allowed.
    fn masks<'a>(&mut self, tables: impl Iterator<Item = &'a Array2<MaskReason>> + Clone) -> Bytes {
        let mut reasons = tables.clone().flatten();
        if reasons.all(|reason| reason.is_allowed()) {
            return Bytes::new();
        }
        for table in tables {
            let reasons = table.iter().map(|reason| mask_to_wire(*reason) as u8);
            reasons.for_each(|reason| self.buffer.put_u8(reason));
        }
        self.cut()
    }

    fn flags(&mut self, flags: impl Iterator<Item = bool>) -> Bytes {
        flags.for_each(|flag| self.buffer.put_u8(flag.into()));
        self.cut()
    }

    /// Nothing where all is valid, and in the basic view.
    fn validity<'a>(&mut self, seen: impl Iterator<Item = &'a Observation> + Clone) -> Bytes {
        let values = tables(seen).flat_map(|table| table.validity.iter());
        let is_valid = |value: &Validity| *value == Validity::Valid;
        if self.view == View::Basic || values.clone().all(is_valid) {
            return Bytes::new();
        }
        values.for_each(|value| self.buffer.put_u8(validity_to_wire(*value) as u8));
        self.cut()
    }

    /// Nothing where all is of this window, and in the basic view.
    fn ages<'a>(&mut self, seen: impl Iterator<Item = &'a Observation> + Clone) -> Bytes {
        let ages = tables(seen).flat_map(|table| table.age_s.iter());
        if self.view == View::Basic || ages.clone().all(|age| *age == 0.0) {
            return Bytes::new();
        }
        ages.for_each(|age| self.buffer.put_f32_le(*age));
        self.cut()
    }

    /// What was written since the last cut.
    fn cut(&mut self) -> Bytes {
        if self.buffer.is_empty() {
            return Bytes::new();
        }
        self.buffer.split().freeze()
    }
}

/// The tables whose validity and ages are shown, in their order on the wire.
fn tables<'a>(
    seen: impl Iterator<Item = &'a Observation> + Clone,
) -> impl Iterator<Item = &'a Table> + Clone {
    let disks = seen.clone().map(|o| &o.disks);
    let channels = seen.clone().map(|o| &o.channels);
    let devices = seen.clone().map(|o| &o.devices);
    disks
        .chain(channels)
        .chain(devices)
        .chain(seen.map(|o| &o.host))
}

/// What those show that have begun.
fn seen(vector: &Vector) -> impl Iterator<Item = Seen<'_>> + Clone {
    (0..vector.count()).filter_map(|environment| vector.seen(environment))
}

/// Whether the environments have these rows.
fn fit(rows: &[Rows], vector: &Vector) -> bool {
    rows.iter()
        .enumerate()
        .all(|(environment, rows)| match vector {
            Vector::Carts { carts, .. } => rows.is_empty() != carts.has_begun(environment),
            _ => match vector.seen(environment) {
                Some(seen) => rows.fit(seen.observation),
                None => rows.is_empty(),
            },
        })
}

fn put_floats(buffer: &mut BytesMut, values: &[f32]) {
    let start = buffer.len();
    buffer.resize(start + size_of_val(values), 0);
    let cells = buffer[start..].chunks_exact_mut(size_of::<f32>());
    for (cell, value) in cells.zip(values) {
        cell.copy_from_slice(&value.to_le_bytes());
    }
}

fn bytes_of(response: &v1::RolloutResponse) -> usize {
    let seen = [&response.observations, &response.final_observations];
    let seen = seen.into_iter().flatten().flat_map(|seen| {
        [
            &seen.disks,
            &seen.channels,
            &seen.pairs,
            &seen.devices,
            &seen.host,
            &seen.ages,
        ]
    });
    seen.map(Bytes::len).sum()
}

/// The levels of packed actions.
///
/// # Errors
/// The number of bytes, if it is odd.
pub(crate) fn read_levels(packed: &[u8], levels: &mut Vec<Level>) -> Result<(), usize> {
    let (pairs, []) = packed.as_chunks::<2>() else {
        return Err(packed.len());
    };
    levels.clear();
    levels.extend(pairs.iter().map(|pair| Level::from_le_bytes(*pair)));
    Ok(())
}

/// The levels of one joint action, packed.
pub(crate) fn pack_action(action: &JointAction) -> Bytes {
    let mut packed = BytesMut::with_capacity(2 * (action.disks.len() + action.devices.len()));
    let levels = action.disks.iter().chain(&action.devices);
    levels.for_each(|level| packed.put_u16_le(*level));
    packed.freeze()
}

/// Whether an action has the rows that are seen, and a level for each head.
///
/// # Errors
/// `Shape`, of the first table that does not fit.
pub(crate) fn check_shape(
    spec: &EnvSpec,
    (disks, devices): (usize, usize),
    action: &JointAction,
) -> Result<(), ActionError> {
    let wanted = [
        ("disk", &action.disks, (disks, spec.disk_heads.len())),
        (
            "device",
            &action.devices,
            (devices, spec.device_heads.len()),
        ),
    ];
    for (table, given, want) in wanted {
        let got = given.dim();
        if got != want {
            return Err(ActionError::Shape { table, got, want });
        }
    }
    Ok(())
}
