//! Joint decisions as a policy would have made them, from those that were logged.
//!
//! What a row sees in its turn holds the choices before it: those of the channels' features that follow earlier
//! choices ([`Projection`]). The value of a state is what is expected over the policy's own joint choice, so each row
//! draws its levels by the policy given what was drawn before it, and later rows see what follows from that. Of what
//! cannot be made anew from a log, a row keeps what was logged: levels that it had no choice of (a disk tied to the
//! choice of another on its IOThread), and features of devices, of which the log does not say whose disks they are.

use blkpilot_env::spec::Projection;
use blkpilot_env::{EnvSpec, Level, Rng};
use blkpilot_models::categorical::sample;
use rand::SeedableRng as _;

use crate::error::EvaluateError;
use crate::features::{Chosen, Features};
use crate::fit::features_of;
use crate::options::{Exposure, Options};
use crate::step::{HostStep, Row};
use crate::target::TargetPolicy;
use crate::trajectory::Unit;
use crate::weigh::probabilities_of;

/// Joint decisions that are drawn of each that was logged: so that what is drawn adds little to the error that the
/// log itself has.
const DRAWS: u64 = 4;

/// What a policy is expected to do in the joint decisions of a log, one after another.
#[derive(Debug)]
pub(crate) struct Replay {
    exposure: Exposure,
    seed: u64,
    /// Which joint decision was last looked at.
    of: Option<u128>,
    /// What each row sees, and what it drew.
    step: HostStep,
    /// Probability of each level, in the order of [`HostStep::masks`].
    probabilities: Vec<f64>,
    /// By how much the channels differ from what was logged, `[K, C]`.
    moved: Vec<f32>,
    /// Of one draw, and the mean over all.
    drawn: Vec<f64>,
    mean: Vec<f64>,
}

impl Replay {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            exposure: options.exposure,
            seed: options.seed,
            of: None,
            step: HostStep::default(),
            probabilities: vec![],
            moved: vec![],
            drawn: vec![],
            mean: vec![],
        }
    }

    /// Features that are expected of a policy at a step of a trajectory, `[width]`: of each row's own
    /// choice by its probabilities, of the choices before it by draws. The same joint decision and seed draw by the same
    /// numbers, whatever the policy, so that two policies differ by what they do. Under exposure `disk` no choice has
    /// to do with another: all was seen as it was logged.
    ///
    /// # Errors
    /// `Policy`, `Improper`.
    pub(crate) fn features(
        &mut self,
        policy: &dyn TargetPolicy,
        spec: &EnvSpec,
        (logged, unit): (&HostStep, &Unit),
        features: &Features,
    ) -> Result<&[f64], EvaluateError> {
        let is_known = self.of == Some(logged.id);
        self.of = None;
        match self.exposure {
            Exposure::Host if is_known => {}
            Exposure::Host => {
                self.mean.clear();
                self.mean.resize(features.width(), 0.0);
                for draw in 0..DRAWS {
                    self.play(policy, logged, spec, draw)?;
                    let expected = Chosen::Expected(&self.probabilities);
                    features_of(features, &self.step, unit, expected, &mut self.drawn);
                    let sums = self.mean.iter_mut().zip(&self.drawn);
                    sums.for_each(|(sum, x)| *sum += x / DRAWS as f64);
                }
            }
            Exposure::Disk => {
                if !is_known {
                    let rows = 0..logged.rows.len();
                    self.probabilities.clear();
                    self.probabilities.resize(logged.masks.len(), 0.0);
                    probabilities_of(policy, logged, rows, spec, &mut self.probabilities)?;
                }
                let expected = Chosen::Expected(&self.probabilities);
                features_of(features, logged, unit, expected, &mut self.mean);
            }
        }
        self.of = Some(logged.id);
        Ok(&self.mean)
    }

    fn play(
        &mut self,
        policy: &dyn TargetPolicy,
        logged: &HostStep,
        spec: &EnvSpec,
        draw: u64,
    ) -> Result<(), EvaluateError> {
        let id = logged.id;
        let mut rng = Rng::seed_from_u64(self.seed ^ (id >> 64) as u64 ^ id as u64);
        rng.set_stream(draw);
        self.step.copy_from(logged);
        self.probabilities.clear();
        self.probabilities.resize(logged.masks.len(), 0.0);
        self.moved.clear();
        for i in 0..logged.rows.len() {
            let row = &logged.rows[i];
            let channels = &mut self.step.values[row.channels.range()];
            self.moved.resize(channels.len(), 0.0);
            let moved = channels.iter_mut().zip(&self.moved);
            moved.for_each(|(value, moved)| *value += moved);
            probabilities_of(policy, &self.step, i..i + 1, spec, &mut self.probabilities)?;
            self.draw(row, spec, &mut rng);
        }
        Ok(())
    }

    fn draw(&mut self, row: &Row, spec: &EnvSpec, rng: &mut Rng) {
        for (head, at) in row.heads.range().enumerate() {
            let cell = self.step.heads[at];
            if !cell.is_free {
                continue;
            }
            let level = sample(&self.probabilities[cell.mask.range()], rng) as Level;
            self.step.heads[at].requested = level;
            if row.is_disk && spec.disk_heads[head].is_pointer() {
                self.shift(row, spec, cell.requested, -1.0);
                self.shift(row, spec, level, 1.0);
            }
        }
    }

    /// Puts a disk on a channel, or takes it off; level 0 is none.
    fn shift(&mut self, row: &Row, spec: &EnvSpec, level: Level, sign: f32) {
        let Some(channel) = usize::from(level).checked_sub(1) else {
            return;
        };
        let width = spec.channel_features.len();
        let own = &mut self.moved[channel * width..(channel + 1) * width];
        for projection in &spec.projections {
            match *projection {
                Projection::ChannelCount { feature } => own[feature] += sign,
                Projection::ChannelSum {
                    feature,
                    disk_feature,
                } => {
                    let value = self.step.values[row.disk.range()][disk_feature];
                    if value.is_finite() {
                        own[feature] += sign * value;
                    }
                }
                Projection::DeviceCount { .. } => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use blkpilot_env::sim::{SimHost, presets};
    use blkpilot_env::{Environment as _, JointDecision, Observation, Turn, TurnView};
    use blkpilot_models::PolicyError;

    use super::*;
    use crate::step::{HeadCell, Part};
    use crate::target::LoggedTurn;

    /// Prefers channels the more, the more disks are on them.
    struct Herd {
        spec: EnvSpec,
        bound_disks: usize,
    }

    impl TargetPolicy for Herd {
        fn name(&self) -> &'static str {
            "herd"
        }
        fn spec(&self) -> &EnvSpec {
            &self.spec
        }
        fn probabilities(
            &self,
            turns: &[LoggedTurn<'_>],
            out: &mut [f64],
        ) -> Result<(), (usize, PolicyError)> {
            let mut rest = out;
            for turn in turns {
                let view = turn.view();
                for (head, mask) in turn.head_masks().enumerate() {
                    let (own, left) = std::mem::take(&mut rest).split_at_mut(mask.len());
                    rest = left;
                    for (level, (p, reason)) in own.iter_mut().zip(mask).enumerate() {
                        let disks = match (head, level.checked_sub(1)) {
                            (0, Some(channel)) => view.channels[[channel, self.bound_disks]],
                            _ => 0.0,
                        };
                        *p = f64::from(u8::from(reason.is_allowed())) * 3.0_f64.powf(disks.into());
                    }
                    let sum: f64 = own.iter().sum();
                    own.iter_mut().for_each(|p| *p /= sum);
                }
            }
            Ok(())
        }
    }

    fn host() -> (EnvSpec, Observation) {
        let mut host = SimHost::fixed(presets::identical_disks(6, 3)).unwrap();
        let obs = host.reset(Some(5), &Default::default()).unwrap();
        (host.spec().clone(), obs)
    }

    /// Adds a row that saw `view` and chose `levels`.
    fn push(step: &mut HostStep, view: &TurnView<'_>, levels: &[Level]) {
        let values = &mut step.values;
        let mut part = |own: &mut dyn Iterator<Item = &f32>| {
            let start = values.len();
            values.extend(own);
            Part::new(start, values.len())
        };
        let (first_head, first_mask) = (step.heads.len(), step.masks.len());
        let row = Row {
            place: (0, step.rows.len() as u64),
            id: step.rows.len() as u128,
            subject: 0,
            is_disk: true,
            order: step.rows.len() as i64,
            epsilon: 0.0,
            heads: Part::new(first_head, first_head + levels.len()),
            mask: Part::new(first_mask, first_mask + view.mask.len()),
            disk: part(&mut view.disk.unwrap().iter()),
            device: part(&mut view.device.iter().flatten()),
            host: part(&mut view.host.iter()),
            channel_count: view.channels.nrows(),
            channels: part(&mut view.channels.iter()),
            pairs: part(&mut view.pairs.unwrap().iter()),
            outcome: None,
        };
        for (head, &requested) in levels.iter().enumerate() {
            let start = step.masks.len();
            step.masks.extend(view.head_mask(head));
            step.heads.push(HeadCell {
                requested,
                propensity: 0.5,
                explored: false,
                is_free: view.forced(head).is_none(),
                mask: Part::new(start, step.masks.len()),
            });
        }
        step.previous.extend(view.current);
        step.rows.push(row);
    }

    fn of_turns(
        spec: &EnvSpec,
        obs: &Observation,
        order: Vec<Turn>,
        mut levels: impl FnMut(usize) -> Vec<Level>,
    ) -> HostStep {
        let mut decision = JointDecision::new(spec, obs, order).unwrap();
        let mut step = HostStep::default();
        for turn in 0.. {
            let Some(view) = decision.view() else { break };
            let chosen = levels(turn);
            push(&mut step, &view, &chosen);
            decision.commit(&chosen).unwrap();
        }
        step
    }

    #[test]
    fn each_row_sees_the_host_as_the_policy_s_own_choices_would_have_left_it() {
        let (spec, obs) = host();
        let bound_disks = spec.channel_features.iter();
        let bound_disks = bound_disks.clone().position(|f| f.name == "bound_disks");
        let herd = Herd {
            spec: spec.clone(),
            bound_disks: bound_disks.unwrap(),
        };
        let mut replay = Replay::new(&Options::default());
        let (mut moved, mut on_fullest) = (0, 0);
        for id in 0..50_u128 {
            let mut rng = Rng::seed_from_u64(id as u64);
            let decision = JointDecision::in_random_order(&spec, &obs, &mut rng);
            let order = decision.order().to_vec();
            // One disk after another to the next channel, so that all are equally full.
            let mut logged = of_turns(&spec, &obs, order.clone(), |turn| {
                vec![1 + turn as Level % 3, 0, 0]
            });
            logged.id = id;
            replay.play(&herd, &logged, &spec, 0).unwrap();
            let played = &replay.step;
            let drawn = |turn: usize| {
                let heads = played.heads_of(&played.rows[turn]);
                heads.iter().map(|cell| cell.requested).collect()
            };
            let wanted = of_turns(&spec, &obs, order, drawn);
            for (row, wanted_row) in played.rows.iter().zip(&wanted.rows) {
                let channels = played.values_of(row.channels).iter();
                for (value, wanted) in channels.zip(wanted.values_of(wanted_row.channels)) {
                    assert!((value - wanted).abs() < 1e-4, "{id}: {value}, not {wanted}");
                }
            }
            moved += usize::from(played.values != logged.values);
            let channel = |turn: usize| played.heads_of(&played.rows[turn])[0].requested;
            on_fullest += usize::from((1..6).all(|turn| channel(turn) == channel(0)));
        }
        assert!(moved > 40, "{moved} of 50");
        // Blind draws would put all six on one channel in 50/243 of fifty.
        assert!(on_fullest > 10, "{on_fullest} of 50");
    }
}
