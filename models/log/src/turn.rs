//! Rows from a joint decision and its rewards, for whoever drives an environment.

use std::collections::BTreeMap;
use std::sync::Arc;

use blkpilot_env::{EnvSpec, JointAction, Observation, Rewards, Table, Turn, TurnView, Validity};
use blkpilot_models::{TableName, TurnChoice};

use crate::schema::{
    DecisionId, DecisionRow, EpisodeId, Flaw, HeadRow, HostStepId, OutcomeRow, Seen, Source, Stage,
    Subject,
};

/// What the rows of one joint decision have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct StepContext {
    /// The joint decision.
    pub host_step_id: HostStepId,
    /// The episode.
    pub episode_id: EpisodeId,
    /// When, in microseconds since 1970 UTC.
    pub at_us: i64,
    /// Name of the host.
    pub host: Arc<str>,
    /// Where it comes from.
    pub source: Source,
    /// Name of the policy.
    pub policy: Arc<str>,
    /// Its version.
    pub policy_version: Arc<str>,
    /// `EnvSpec::hash`.
    pub spec_hash: Arc<str>,
    /// Weights of the reward in force.
    pub reward_weights: Arc<BTreeMap<String, f64>>,
}

impl DecisionRow {
    /// The row of one turn, to be made while `decide_with` shows it. `executed` is what was
    /// requested until [`DecisionRow::set_executed`] says otherwise.
    #[must_use]
    pub fn of_turn(
        id: DecisionId,
        order: u32,
        context: &StepContext,
        obs: &Observation,
        view: &TurnView<'_>,
        made: &TurnChoice,
    ) -> Self {
        Self {
            id,
            host_step_id: context.host_step_id,
            episode_id: context.episode_id,
            at_us: context.at_us,
            host: context.host.clone(),
            subject: Subject::of_turn(view.turn, obs),
            order,
            source: context.source,
            stage: Stage::Policy,
            epsilon: 0.0,
            reason: None,
            policy: context.policy.clone(),
            policy_version: context.policy_version.clone(),
            spec_hash: context.spec_hash.clone(),
            seen: Seen::of_turn(obs, view),
            heads: (0..view.heads.len())
                .map(|head| HeadRow::of_turn(head, view, made))
                .collect(),
            novel: made
                .novel
                .iter()
                .map(|o| format!("{}.{}", o.table, o.feature))
                .collect(),
            reward_weights: context.reward_weights.clone(),
        }
    }

    /// Takes over what the environment did. `turn` is the row's turn; `reason` says why, for the
    /// heads in which it differs from what was requested.
    pub fn set_executed(&mut self, turn: Turn, executed: &JointAction, reason: &str) {
        let levels = match turn {
            Turn::Disk(disk) => executed.disks.row(disk),
            Turn::Device(device) => executed.devices.row(device),
        };
        for (head, &level) in self.heads.iter_mut().zip(levels) {
            head.executed = level;
            head.altered = (level != head.requested).then(|| reason.to_owned());
        }
    }
}

impl HeadRow {
    fn of_turn(head: usize, view: &TurnView<'_>, made: &TurnChoice) -> Self {
        let requested = made.choice.levels[head];
        Self {
            head: view.heads[head].name.clone(),
            previous: view.current[head],
            requested,
            executed: requested,
            propensity: made.choice.propensities[head],
            explored: false,
            forced: made.forced[head],
            altered: None,
            mask: view.head_mask(head).to_vec(),
        }
    }
}

impl Subject {
    fn of_turn(turn: Turn, obs: &Observation) -> Self {
        match turn {
            Turn::Disk(disk) => {
                let (guest, target) = obs.disk_ids[disk]
                    .rsplit_once('/')
                    .unwrap_or(("", &obs.disk_ids[disk]));
                Self::Disk {
                    guest: guest.to_owned(),
                    target: target.to_owned(),
                }
            }
            Turn::Device(device) => Self::Device {
                name: obs.device_ids[device].clone(),
            },
        }
    }
}

impl Seen {
    fn of_turn(obs: &Observation, view: &TurnView<'_>) -> Self {
        let (disk, device) = match view.turn {
            Turn::Disk(disk) => (Some(disk), obs.disk_device.get(disk).copied()),
            Turn::Device(device) => (None, Some(device)),
        };
        let mut flaws = Vec::new();
        note_flaws(TableName::Disk, &obs.disks, disk, 0, &mut flaws);
        note_flaws(TableName::Device, &obs.devices, device, 0, &mut flaws);
        note_flaws(TableName::Host, &obs.host, Some(0), 0, &mut flaws);
        for channel in 0..obs.channel_count() {
            note_flaws(
                TableName::Channel,
                &obs.channels,
                Some(channel),
                channel as u32,
                &mut flaws,
            );
        }
        Self {
            disk: view.disk.iter().flatten().copied().collect(),
            device: view.device.iter().flatten().copied().collect(),
            host: view.host.to_vec(),
            channel_count: view.channels.nrows(),
            channels: view.channels.iter().copied().collect(),
            pairs: view.pairs.iter().flatten().copied().collect(),
            flaws,
        }
    }
}

fn note_flaws(
    table: TableName,
    values: &Table,
    from: Option<usize>,
    row: u32,
    flaws: &mut Vec<Flaw>,
) {
    let Some(from) = from else { return };
    for (column, &validity) in values.validity.row(from).iter().enumerate() {
        if validity != Validity::Valid {
            flaws.push(Flaw {
                table,
                row,
                column: column as u32,
                validity,
            });
        }
    }
}

/// When and how an interval ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ending {
    /// When, in microseconds since 1970 UTC.
    pub at_us: i64,
    /// Length of the interval in seconds.
    pub interval_s: f64,
    /// The episode ended here in a terminal state.
    pub terminated: bool,
    /// The episode was cut here.
    pub truncated: bool,
}

impl OutcomeRow {
    /// The outcome of the decision of disk number `disk`; its `validity` is `Valid` if the disk
    /// counts, `Idle` if not.
    #[must_use]
    pub fn of_disk(
        decision_id: DecisionId,
        disk: usize,
        spec: &EnvSpec,
        rewards: &Rewards,
        ending: &Ending,
    ) -> Self {
        let counted = rewards.counted[disk];
        let terms = rewards.terms.row(disk);
        let terms = spec.reward_terms.iter().cloned().zip(terms.iter().copied());
        Self {
            decision_id,
            at_us: ending.at_us,
            interval_s: ending.interval_s,
            reward_total: rewards.total[disk],
            reward_own: rewards.own[disk],
            reward_terms: terms.collect(),
            counted,
            validity: if counted {
                Validity::Valid
            } else {
                Validity::Idle
            },
            terminated: ending.terminated,
            truncated: ending.truncated,
        }
    }

    /// The outcome of a backing device's decision: the mean own part over the host's disks that
    /// count.
    #[must_use]
    pub fn of_device(decision_id: DecisionId, rewards: &Rewards, ending: &Ending) -> Self {
        let mean = rewards.host_mean();
        Self {
            decision_id,
            at_us: ending.at_us,
            interval_s: ending.interval_s,
            reward_total: mean.unwrap_or(0.0),
            reward_own: mean.unwrap_or(0.0),
            reward_terms: BTreeMap::new(),
            counted: mean.is_some(),
            validity: if mean.is_some() {
                Validity::Valid
            } else {
                Validity::Idle
            },
            terminated: ending.terminated,
            truncated: ending.truncated,
        }
    }
}

#[cfg(test)]
mod tests {
    use blkpilot_env::sim::{SimHost, presets};
    use blkpilot_env::{Environment as _, ResetOptions, Rng};
    use blkpilot_models::baseline::RandomPolicy;
    use blkpilot_models::decide_with;
    use rand::SeedableRng as _;

    use super::*;

    fn context(spec: &EnvSpec) -> StepContext {
        StepContext {
            host_step_id: HostStepId(1),
            episode_id: EpisodeId(2),
            at_us: 3,
            host: "host-a".into(),
            source: Source::Simulator,
            policy: "random".into(),
            policy_version: "1".into(),
            spec_hash: spec.hash().into(),
            reward_weights: Arc::new(BTreeMap::from([("beta".to_owned(), 0.5)])),
        }
    }

    #[test]
    fn rows_of_a_joint_decision_hold_what_each_turn_saw_and_what_came_of_it() {
        let mut host = SimHost::fixed(presets::mixed()).unwrap();
        let mut obs = host.reset(Some(1), &ResetOptions::new()).unwrap();
        obs.disks.validity[[0, 2]] = Validity::NotOptedIn;
        let (spec, mut rng) = (host.spec().clone(), Rng::seed_from_u64(5));
        let context = context(&spec);
        let mut rows = Vec::new();
        let mut turns = Vec::new();
        let decision = decide_with(&mut RandomPolicy, &spec, &obs, &mut rng, |view, made| {
            let order = rows.len() as u32;
            let id = DecisionId(u128::from(order) + 10);
            rows.push(DecisionRow::of_turn(id, order, &context, &obs, view, made));
            turns.push(view.turn);
        })
        .unwrap();
        let step = host.step(&decision.action).unwrap();
        assert_eq!(rows.len(), obs.disk_count());
        for (row, turn) in rows.iter_mut().zip(turns) {
            let Turn::Disk(disk) = turn else {
                panic!("devices have no heads here")
            };
            row.set_executed(turn, &step.executed, "the host refused");
            assert!(
                row.heads
                    .iter()
                    .all(|h| h.executed == h.requested && h.altered.is_none())
            );
            assert_eq!(row.seen.disk, obs.disks.row(disk).to_vec());
            assert_eq!(
                row.seen.channels.len(),
                row.seen.channel_count * spec.channel_features.len()
            );
            assert_eq!(
                row.seen.pairs.len(),
                row.seen.channel_count * spec.pair_features.len()
            );
            let levels: usize = row.heads.iter().map(|h| h.mask.len()).sum();
            assert_eq!(levels, spec.disk_levels(row.seen.channel_count));
            let Subject::Disk { guest, target } = &row.subject else {
                panic!("{:?}", row.subject)
            };
            assert_eq!(format!("{guest}/{target}"), obs.disk_ids[disk]);
            let flaw = Flaw {
                table: TableName::Disk,
                row: 0,
                column: 2,
                validity: Validity::NotOptedIn,
            };
            assert_eq!(row.seen.flaws.contains(&flaw), disk == 0);

            let ending = Ending {
                at_us: 9,
                interval_s: 10.0,
                terminated: false,
                truncated: true,
            };
            let outcome = OutcomeRow::of_disk(row.id, disk, &spec, &step.rewards, &ending);
            assert_eq!(outcome.reward_own, step.rewards.own[disk]);
            assert_eq!(outcome.reward_terms.len(), spec.reward_terms.len());
            let device = OutcomeRow::of_device(row.id, &step.rewards, &ending);
            assert_eq!(Some(device.reward_own), step.rewards.host_mean());
        }
    }

    #[test]
    fn a_level_that_was_overruled_says_why() {
        let mut host = SimHost::fixed(presets::identical_disks(1, 2)).unwrap();
        let obs = host.reset(Some(1), &ResetOptions::new()).unwrap();
        let (spec, mut rng) = (host.spec().clone(), Rng::seed_from_u64(5));
        let mut row = None;
        let decision = decide_with(&mut RandomPolicy, &spec, &obs, &mut rng, |view, made| {
            row = Some(DecisionRow::of_turn(
                DecisionId(1),
                0,
                &context(&spec),
                &obs,
                view,
                made,
            ));
        })
        .unwrap();
        let (mut row, mut executed) = (row.unwrap(), decision.action);
        executed.disks[[0, 1]] = 1 - executed.disks[[0, 1]];
        row.set_executed(Turn::Disk(0), &executed, "dwell");
        let altered: Vec<_> = row.heads.iter().map(|h| h.altered.as_deref()).collect();
        assert_eq!(altered, [None, Some("dwell"), None]);
        assert_eq!(row.heads[1].executed, executed.disks[[0, 1]]);
    }
}
