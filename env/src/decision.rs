//! A joint decision, made one disk at a time.
//!
//! Disks decide in a random order that is logged, then devices do. Before each turn the channel and
//! device features are brought up to date with the choices already made, so a policy that looks
//! only at one disk and the channels still spreads equal disks over equal channels; deciding at
//! once, all of them would jump to the same empty one. Disks that share an IOThread have one tied
//! choice: the first of them decides, the others' masks then leave only that level, so the choice
//! has one propensity.

use std::collections::BTreeMap;

use ndarray::{Array2, ArrayView1, ArrayView2};
use rand::RngExt as _;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::observation::{MaskReason, Observation, head_columns, head_slice};
use crate::spec::{EnvSpec, Head, HeadScope, Level, Projection};

/// One level per disk and head, and per device and head.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct JointAction {
    /// `[N, disk heads]`.
    pub disks: Array2<Level>,
    /// `[D, device heads]`.
    pub devices: Array2<Level>,
}

impl JointAction {
    /// As `clone_from`, which for a struct makes new arrays; these are kept.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        self.disks.clone_from(&other.disks);
        self.devices.clone_from(&other.devices);
    }
}

/// Why an action was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ActionError {
    /// The action has the wrong number of rows or heads.
    #[error("the action has {got:?} {table} rows × heads, the observation needs {want:?}")]
    Shape {
        /// `disk` or `device`.
        table: &'static str,
        /// Shape given.
        got: (usize, usize),
        /// Shape needed.
        want: (usize, usize),
    },
    /// A level that the head does not have.
    #[error("{row}: {head} = {level} is not a level; it has 0 to {last}")]
    NoSuchLevel {
        /// Disk or device.
        row: String,
        /// Head.
        head: String,
        /// Level asked for.
        level: Level,
        /// Greatest level.
        last: usize,
    },
    /// A level that may not be chosen now.
    #[error("{row}: {head} = {level_name} is not allowed now: {}", reason.text())]
    Masked {
        /// Disk or device.
        row: String,
        /// Head.
        head: String,
        /// Name of the level asked for.
        level_name: String,
        /// Why not.
        reason: MaskReason,
    },
    /// Two disks on one IOThread that ask for different levels of a head they share.
    #[error("{first} and {second} share an IOThread but ask for different levels of {head}")]
    GroupDisagrees {
        /// First disk.
        first: String,
        /// Second disk.
        second: String,
        /// Head.
        head: String,
    },
    /// The order does not name each disk and device once.
    #[error(
        "the order of a joint decision must name each of the {disks} disks and {devices} devices once"
    )]
    Order {
        /// Number of disks.
        disks: usize,
        /// Number of devices that decide.
        devices: usize,
    },
}

/// Checks an action against the masks of the observation it was chosen on. The level in force is
/// always allowed: asking for it changes nothing.
///
/// # Errors
/// The first thing that does not fit, by name.
pub fn check_action(
    spec: &EnvSpec,
    obs: &Observation,
    action: &JointAction,
) -> Result<(), ActionError> {
    check_action_of_groups(spec, obs, &group_leaders(&obs.disk_group), action)
}

/// As [`check_action`], with the leaders of the IOThreads' groups at hand: allocates nothing unless
/// it refuses.
pub(crate) fn check_action_of_groups(
    spec: &EnvSpec,
    obs: &Observation,
    leaders: &[usize],
    action: &JointAction,
) -> Result<(), ActionError> {
    let disks = Rows {
        table: "disk",
        ids: &obs.disk_ids,
        heads: &spec.disk_heads,
    };
    let devices = Rows {
        table: "device",
        ids: &obs.device_ids,
        heads: &spec.device_heads,
    };
    disks.check(
        &action.disks,
        &obs.current.disks,
        &obs.masks.disks,
        obs.channel_count(),
    )?;
    devices.check(
        &action.devices,
        &obs.current.devices,
        &obs.masks.devices,
        obs.channel_count(),
    )?;
    check_groups(spec, obs, leaders, action)
}

/// For each disk, the first disk on its IOThread: itself where it is the first, or has none.
pub(crate) fn group_leaders(groups: &[Option<usize>]) -> Vec<usize> {
    let mut first_of = BTreeMap::new();
    let leader = |(disk, group): (usize, &Option<usize>)| match group {
        Some(group) => *first_of.entry(*group).or_insert(disk),
        None => disk,
    };
    groups.iter().enumerate().map(leader).collect()
}

struct Rows<'a> {
    table: &'static str,
    ids: &'a [String],
    heads: &'a [Head],
}

impl Rows<'_> {
    fn check(
        &self,
        action: &Array2<Level>,
        current: &Array2<Level>,
        masks: &Array2<MaskReason>,
        channels: usize,
    ) -> Result<(), ActionError> {
        let want = (self.ids.len(), self.heads.len());
        if action.dim() != want {
            return Err(ActionError::Shape {
                table: self.table,
                got: action.dim(),
                want,
            });
        }
        for ((row, head), &level) in action.indexed_iter() {
            if level == current[[row, head]] {
                continue;
            }
            let mask_row = masks.row(row);
            let mask_row = mask_row
                .as_slice()
                .expect("mask rows are contiguous: standard layout");
            self.check_level(
                row,
                head,
                level,
                head_slice(self.heads, channels, mask_row, head),
            )?;
        }
        Ok(())
    }

    fn check_level(
        &self,
        row: usize,
        head: usize,
        level: Level,
        mask: &[MaskReason],
    ) -> Result<(), ActionError> {
        let reason = mask.get(usize::from(level)).copied();
        if reason.is_some_and(MaskReason::is_allowed) {
            return Ok(());
        }
        let (row, head) = (self.ids[row].clone(), &self.heads[head]);
        Err(match reason {
            None => ActionError::NoSuchLevel {
                row,
                head: head.name.clone(),
                level,
                last: mask.len() - 1,
            },
            Some(reason) => ActionError::Masked {
                row,
                head: head.name.clone(),
                level_name: head.level_name(level),
                reason,
            },
        })
    }
}

fn check_groups(
    spec: &EnvSpec,
    obs: &Observation,
    leaders: &[usize],
    action: &JointAction,
) -> Result<(), ActionError> {
    for (head, spec_head) in spec.disk_heads.iter().enumerate() {
        if spec_head.scope != HeadScope::IoThread {
            continue;
        }
        for (disk, &first) in leaders.iter().enumerate() {
            if action.disks[[first, head]] != action.disks[[disk, head]] {
                return Err(ActionError::GroupDisagrees {
                    first: obs.disk_ids[first].clone(),
                    second: obs.disk_ids[disk].clone(),
                    head: spec_head.name.clone(),
                });
            }
        }
    }
    Ok(())
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Turn {
    /// Disk number i decides its heads.
    Disk(usize),
    /// Device number i decides its heads.
    Device(usize),
}

/// What the one whose turn it is sees: its own rows, the channels as they stand after the earlier
/// choices, and what it may choose.
#[derive(Debug)]
pub struct TurnView<'a> {
    /// Whose turn it is.
    pub turn: Turn,
    /// Heads to decide.
    pub heads: &'a [Head],
    /// The disk's features `[F]`; `None` in a device's turn.
    pub disk: Option<ArrayView1<'a, f32>>,
    /// The (backing) device's features `[E]`; `None` where there are no devices.
    pub device: Option<ArrayView1<'a, f32>>,
    /// The host's features `[H]`.
    pub host: ArrayView1<'a, f32>,
    /// The channels' features `[K, C]`.
    pub channels: ArrayView2<'a, f32>,
    /// The disk's relation to each channel `[K, P]`; `None` in a device's turn.
    pub pairs: Option<ArrayView2<'a, f32>>,
    /// The levels in force, one per head.
    pub current: ArrayView1<'a, Level>,
    /// The levels of keep-default, one per head.
    pub default: ArrayView1<'a, Level>,
    /// What may be chosen: the heads' levels one after another.
    pub mask: &'a [MaskReason],
}

impl TurnView<'_> {
    /// The mask of one head.
    #[must_use]
    pub fn head_mask(&self, head: usize) -> &[MaskReason] {
        head_slice(self.heads, self.channels.nrows(), self.mask, head)
    }

    /// The level to take if the head has no choice: its only allowed level, or the one in force if
    /// none is allowed. `None` if there is a choice.
    #[must_use]
    pub fn forced(&self, head: usize) -> Option<Level> {
        let mut allowed = self
            .head_mask(head)
            .iter()
            .enumerate()
            .filter(|(_, m)| m.is_allowed());
        match (allowed.next(), allowed.next()) {
            (None, _) => Some(self.current[head]),
            (Some((only, _)), None) => Some(only as Level),
            (Some(_), Some(_)) => None,
        }
    }
}

/// A joint decision under way.
#[derive(Debug)]
pub struct JointDecision<'a> {
    spec: &'a EnvSpec,
    obs: &'a Observation,
    order: Vec<Turn>,
    done: usize,
    channels: Array2<f32>,
    devices: Array2<f32>,
    masks: Array2<MaskReason>,
    action: JointAction,
}

impl<'a> JointDecision<'a> {
    /// Starts a joint decision in a given order.
    ///
    /// # Errors
    /// `ActionError::Order` unless the order names each disk once, and each device once if devices
    /// have heads.
    pub fn new(
        spec: &'a EnvSpec,
        obs: &'a Observation,
        order: Vec<Turn>,
    ) -> Result<Self, ActionError> {
        check_order(spec, obs, &order)?;
        let mut decision = Self {
            spec,
            obs,
            order,
            done: 0,
            channels: obs.channels.values.clone(),
            devices: obs.devices.values.clone(),
            masks: group_masks(spec, obs),
            action: obs.current.clone(),
        };
        decision.withdraw_next();
        Ok(decision)
    }

    /// Starts a joint decision with the disks in a random order, then the devices in a random order.
    pub fn in_random_order(spec: &'a EnvSpec, obs: &'a Observation, rng: &mut crate::Rng) -> Self {
        let order = random_order(spec, obs, rng);
        Self::new(spec, obs, order).expect("random_order names each disk and device once")
    }

    /// The order of the turns.
    #[must_use]
    pub fn order(&self) -> &[Turn] {
        &self.order
    }

    /// What the next one sees; `None` when all have decided.
    #[must_use]
    pub fn view(&self) -> Option<TurnView<'_>> {
        let turn = *self.order.get(self.done)?;
        Some(match turn {
            Turn::Disk(disk) => TurnView {
                turn,
                heads: &self.spec.disk_heads,
                disk: Some(self.obs.disks.row(disk)),
                device: self.obs.disk_device.get(disk).map(|d| self.devices.row(*d)),
                host: self.obs.host.row(0),
                channels: self.channels.view(),
                pairs: Some(self.obs.pairs.index_axis(ndarray::Axis(0), disk)),
                current: self.obs.current.disks.row(disk),
                default: self.obs.default.disks.row(disk),
                mask: self
                    .masks
                    .row(disk)
                    .to_slice()
                    .expect("mask rows are contiguous"),
            },
            Turn::Device(device) => TurnView {
                turn,
                heads: &self.spec.device_heads,
                disk: None,
                device: Some(self.devices.row(device)),
                host: self.obs.host.row(0),
                channels: self.channels.view(),
                pairs: None,
                current: self.obs.current.devices.row(device),
                default: self.obs.default.devices.row(device),
                mask: self
                    .obs
                    .masks
                    .devices
                    .row(device)
                    .to_slice()
                    .expect("mask rows are contiguous"),
            },
        })
    }

    /// Records the choice of the one whose turn it is and passes the turn on.
    ///
    /// # Errors
    /// `Shape`, `NoSuchLevel` or `Masked`; the decision stands as before then.
    ///
    /// # Panics
    /// If all have decided: `view` returned `None`.
    pub fn commit(&mut self, levels: &[Level]) -> Result<(), ActionError> {
        self.check_turn(levels)?;
        match self.order[self.done] {
            Turn::Disk(disk) => self.commit_disk(disk, levels),
            Turn::Device(device) => {
                self.action
                    .devices
                    .row_mut(device)
                    .assign(&ndarray::aview1(levels));
            }
        }
        self.done += 1;
        self.withdraw_next();
        Ok(())
    }

    /// The joint action so far; those who have not decided keep the levels in force.
    #[must_use]
    pub fn so_far(&self) -> &JointAction {
        &self.action
    }

    /// The joint action; those who have not decided keep the levels in force.
    #[must_use]
    pub fn finish(self) -> (JointAction, Vec<Turn>) {
        (self.action, self.order)
    }

    fn check_turn(&self, levels: &[Level]) -> Result<(), ActionError> {
        let view = self.view().expect("commit is called once per turn");
        let (table, ids, row) = match view.turn {
            Turn::Disk(disk) => ("disk", &self.obs.disk_ids, disk),
            Turn::Device(device) => ("device", &self.obs.device_ids, device),
        };
        if levels.len() != view.heads.len() {
            return Err(ActionError::Shape {
                table,
                got: (1, levels.len()),
                want: (1, view.heads.len()),
            });
        }
        let rows = Rows {
            table,
            ids,
            heads: view.heads,
        };
        for (head, &level) in levels.iter().enumerate() {
            // As in `check_action`, the level in force may always stay, unless the IOThread has
            // already been given another one.
            let mask = view.head_mask(head);
            let is_tied = mask.contains(&MaskReason::TiedToIoThread);
            if is_tied || view.current[head] != level {
                rows.check_level(row, head, level, mask)?;
            }
        }
        Ok(())
    }

    fn commit_disk(&mut self, disk: usize, levels: &[Level]) {
        let group = self.group_of(disk);
        for &member in &group {
            for (head, &level) in levels.iter().enumerate() {
                let tied = self.spec.disk_heads[head].scope == HeadScope::IoThread;
                if member == disk || tied {
                    self.action.disks[[member, head]] = level;
                }
                if tied && member != disk {
                    self.tie(member, head, level);
                }
            }
        }
        for &member in &group {
            self.project(member, 1.0);
        }
    }

    /// Leaves `level` as the only allowed level of a head.
    fn tie(&mut self, disk: usize, head: usize, level: Level) {
        let channels = self.obs.channel_count();
        let columns = head_columns(&self.spec.disk_heads, channels, head);
        for (l, column) in columns.enumerate() {
            let cell = &mut self.masks[[disk, column]];
            if l == usize::from(level) {
                *cell = MaskReason::Allowed;
            } else if cell.is_allowed() {
                *cell = MaskReason::TiedToIoThread;
            }
        }
    }

    /// Takes the next disk, and those on its IOThread, out of the projected features: it should see
    /// the channels as they would be without it.
    fn withdraw_next(&mut self) {
        if let Some(&Turn::Disk(disk)) = self.order.get(self.done) {
            for member in self.group_of(disk) {
                self.project(member, -1.0);
            }
        }
    }

    fn group_of(&self, disk: usize) -> Vec<usize> {
        match self.obs.disk_group.get(disk).copied().flatten() {
            None => vec![disk],
            Some(group) => (0..self.obs.disk_count())
                .filter(|d| self.obs.disk_group[*d] == Some(group))
                .collect(),
        }
    }

    fn project(&mut self, disk: usize, sign: f32) {
        let channel = channel_of(self.spec, &self.action, disk);
        for projection in &self.spec.projections {
            match *projection {
                Projection::ChannelCount { feature } => {
                    if let Some(channel) = channel {
                        self.channels[[channel, feature]] += sign;
                    }
                }
                Projection::ChannelSum {
                    feature,
                    disk_feature,
                } => {
                    if let Some(channel) = channel {
                        self.channels[[channel, feature]] +=
                            sign * self.obs.disks.values[[disk, disk_feature]];
                    }
                }
                Projection::DeviceCount {
                    feature,
                    head,
                    level,
                } => {
                    if self.action.disks[[disk, head]] == level {
                        self.devices[[self.obs.disk_device[disk], feature]] += sign;
                    }
                }
            }
        }
    }
}

/// The channel a disk is bound to by an action; `None` for `float` or without a pointer head.
#[must_use]
pub fn channel_of(spec: &EnvSpec, action: &JointAction, disk: usize) -> Option<usize> {
    let head = spec.disk_heads.iter().position(Head::is_pointer)?;
    usize::from(action.disks[[disk, head]]).checked_sub(1)
}

/// The disks' masks, where a level of a head that an IOThread shares is allowed only if all of its
/// disks allow it.
fn group_masks(spec: &EnvSpec, obs: &Observation) -> Array2<MaskReason> {
    let mut masks = obs.masks.disks.clone();
    let leaders = group_leaders(&obs.disk_group);
    let mut start = 0;
    for head in &spec.disk_heads {
        let levels = start..start + head.len(obs.channel_count());
        start = levels.end;
        if head.scope != HeadScope::IoThread {
            continue;
        }
        for level in levels {
            // The first of an IOThread's disks gathers what any of them may not do; the others take it over.
            for (disk, &leader) in leaders.iter().enumerate() {
                if masks[[leader, level]].is_allowed() {
                    masks[[leader, level]] = masks[[disk, level]];
                }
            }
            for (disk, &leader) in leaders.iter().enumerate() {
                if masks[[disk, level]].is_allowed() {
                    masks[[disk, level]] = masks[[leader, level]];
                }
            }
        }
    }
    masks
}

fn check_order(spec: &EnvSpec, obs: &Observation, order: &[Turn]) -> Result<(), ActionError> {
    let devices = if spec.device_heads.is_empty() {
        0
    } else {
        obs.device_count()
    };
    let wanted = (0..obs.disk_count())
        .map(Turn::Disk)
        .chain((0..devices).map(Turn::Device));
    let mut given = order.to_vec();
    given.sort_unstable();
    if given.into_iter().eq(wanted) {
        Ok(())
    } else {
        Err(ActionError::Order {
            disks: obs.disk_count(),
            devices,
        })
    }
}

fn random_order(spec: &EnvSpec, obs: &Observation, rng: &mut crate::Rng) -> Vec<Turn> {
    let devices = if spec.device_heads.is_empty() {
        0
    } else {
        obs.device_count()
    };
    let mut disks: Vec<Turn> = (0..obs.disk_count()).map(Turn::Disk).collect();
    let mut rest: Vec<Turn> = (0..devices).map(Turn::Device).collect();
    shuffle(&mut disks, rng);
    shuffle(&mut rest, rng);
    disks.append(&mut rest);
    disks
}

/// Fisher–Yates with our own generator, so that an order can be reproduced from its seed.
pub fn shuffle<T>(items: &mut [T], rng: &mut crate::Rng) {
    for last in (1..items.len()).rev() {
        items.swap(last, rng.random_range(0..=last));
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;
    use crate::Environment as _;
    use crate::sim::{SimHost, presets};

    fn identical() -> (EnvSpec, Observation) {
        let mut host = SimHost::fixed(presets::identical_disks(4, 4)).unwrap();
        let obs = host.reset(Some(1), &Default::default()).unwrap();
        (host.spec().clone(), obs)
    }

    /// Binds each disk to the channel with the fewest disks.
    fn spread(decision: &mut JointDecision<'_>, bound_disks: usize) {
        while let Some(view) = decision.view() {
            let emptiest = (0..view.channels.nrows())
                .min_by(|a, b| {
                    view.channels[[*a, bound_disks]].total_cmp(&view.channels[[*b, bound_disks]])
                })
                .unwrap();
            let mut levels: Vec<Level> = view.current.to_vec();
            levels[0] = emptiest as Level + 1;
            decision.commit(&levels).unwrap();
        }
    }

    fn bound_disks_column(spec: &EnvSpec) -> usize {
        spec.channel_features
            .iter()
            .position(|f| f.name == "bound_disks")
            .unwrap()
    }

    #[test]
    fn equal_disks_deciding_in_turn_take_one_channel_each() {
        let (spec, obs) = identical();
        let mut decision =
            JointDecision::in_random_order(&spec, &obs, &mut crate::Rng::seed_from_u64(7));
        spread(&mut decision, bound_disks_column(&spec));
        let (action, _) = decision.finish();
        let mut channels: Vec<_> = action.disks.column(0).to_vec();
        channels.sort_unstable();
        assert_eq!(channels, [1, 2, 3, 4]);
    }

    #[test]
    fn disks_already_spread_stay_where_they_are() {
        let (spec, mut obs) = identical();
        let column = bound_disks_column(&spec);
        for disk in 0..4 {
            obs.current.disks[[disk, 0]] = disk as Level + 1;
            obs.channels.values[[disk, column]] = 1.0;
        }
        let mut decision =
            JointDecision::in_random_order(&spec, &obs, &mut crate::Rng::seed_from_u64(7));
        spread(&mut decision, column);
        assert_eq!(decision.finish().0.disks, obs.current.disks);
    }

    #[test]
    fn a_shared_iothread_moves_as_one_with_one_free_choice() {
        let (spec, mut obs) = identical();
        obs.disk_group = vec![Some(0), Some(0), Some(1), Some(2)];
        let order = vec![Turn::Disk(1), Turn::Disk(0), Turn::Disk(2), Turn::Disk(3)];
        let mut decision = JointDecision::new(&spec, &obs, order).unwrap();
        decision.commit(&[3, 0, 0]).unwrap();
        let view = decision.view().unwrap();
        assert_eq!(
            view.forced(0),
            Some(3),
            "the second disk has no choice of channel left"
        );
        let refused = decision.commit(&[1, 0, 0]).unwrap_err();
        assert!(matches!(
            refused,
            ActionError::Masked {
                reason: MaskReason::TiedToIoThread,
                ..
            }
        ));
        decision.commit(&[3, 0, 0]).unwrap();
        let (action, _) = decision.finish();
        assert_eq!(action.disks[[0, 0]], 3);
        assert_eq!(action.disks[[1, 0]], 3);
    }

    #[test]
    fn a_group_that_disagrees_is_refused_by_name() {
        let (spec, mut obs) = identical();
        obs.disk_group = vec![Some(0), Some(0), None, None];
        let mut action = obs.current.clone();
        action.disks[[0, 0]] = 1;
        let error = check_action(&spec, &obs, &action).unwrap_err();
        assert!(
            matches!(error, ActionError::GroupDisagrees { .. }),
            "{error}"
        );
    }

    #[test]
    fn a_masked_level_is_refused_with_its_reason_unless_it_is_in_force() {
        let (spec, mut obs) = identical();
        obs.masks.disks.row_mut(0).fill(MaskReason::Frozen);
        check_action(&spec, &obs, &obs.current).unwrap();
        let mut action = obs.current.clone();
        action.disks[[0, 0]] = 2;
        let error = check_action(&spec, &obs, &action).unwrap_err();
        assert!(error.to_string().contains("frozen"), "{error}");
        action.disks[[0, 0]] = 9;
        let error = check_action(&spec, &obs, &action).unwrap_err();
        assert!(
            matches!(error, ActionError::NoSuchLevel { last: 4, .. }),
            "{error}"
        );
    }

    #[test]
    fn the_level_in_force_may_stay_although_it_is_masked() {
        let (spec, mut obs) = identical();
        obs.masks.disks[[0, 0]] = MaskReason::Dwell;
        let order = (0..4).map(Turn::Disk).collect();
        let mut decision = JointDecision::new(&spec, &obs, order).unwrap();
        let stay = obs.current.disks.row(0).to_vec();
        decision.commit(&stay).unwrap();
        check_action(&spec, &obs, &decision.finish().0).unwrap();
    }

    #[test]
    fn a_level_that_one_disk_of_an_iothread_forbids_is_open_to_none() {
        let (spec, mut obs) = identical();
        obs.disk_group = vec![Some(0), Some(0), Some(1), Some(2)];
        obs.masks.disks[[1, 2]] = MaskReason::Frozen;
        let order = (0..4).map(Turn::Disk).collect();
        let mut decision = JointDecision::new(&spec, &obs, order).unwrap();
        let refused = decision.commit(&[2, 0, 0]).unwrap_err();
        assert!(
            matches!(
                refused,
                ActionError::Masked {
                    reason: MaskReason::Frozen,
                    ..
                }
            ),
            "{refused}"
        );
    }

    #[test]
    fn an_order_that_skips_a_disk_is_refused() {
        let (spec, obs) = identical();
        let order = vec![Turn::Disk(0), Turn::Disk(1), Turn::Disk(2), Turn::Disk(2)];
        assert!(matches!(
            JointDecision::new(&spec, &obs, order),
            Err(ActionError::Order { .. })
        ));
    }
}
