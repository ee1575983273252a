//! Policies that are not trained: always reported beside those that are.

use blkpilot_env::{EnvSpec, Head, Level, MaskReason, Observation, Rng, Turn, TurnView};
use ndarray::ArrayView1;
use rand::RngExt as _;

use crate::normaliser::TableName;
use crate::policy::{Choice, Policy, PolicyError, certain};

/// Leaves every disk what the guest would have without us.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeepDefault;

impl Policy for KeepDefault {
    fn name(&self) -> &str {
        "keep_default"
    }

    fn choose(
        &mut self,
        _: &EnvSpec,
        view: &TurnView<'_>,
        _: &mut Rng,
    ) -> Result<Choice, PolicyError> {
        Ok(Choice::certain(defaults(view)))
    }
}

/// Each allowed level of a head with the same probability.
#[derive(Debug, Clone, Copy, Default)]
pub struct RandomPolicy;

impl Policy for RandomPolicy {
    fn name(&self) -> &str {
        "random"
    }

    fn choose(
        &mut self,
        _: &EnvSpec,
        view: &TurnView<'_>,
        rng: &mut Rng,
    ) -> Result<Choice, PolicyError> {
        let heads = 0..view.heads.len();
        let (levels, propensities) = heads.map(|head| uniform(view, head, rng)).unzip();
        Ok(Choice {
            levels,
            propensities,
        })
    }

    fn distribution(
        &mut self,
        _: &EnvSpec,
        view: &TurnView<'_>,
    ) -> Result<Vec<Vec<f64>>, PolicyError> {
        let of_head = |head| match view.forced(head) {
            Some(level) => certain(view.head_mask(head).len(), level),
            None => uniform_over(view.head_mask(head)),
        };
        Ok((0..view.heads.len()).map(of_head).collect())
    }
}

/// The same probability for each level that is allowed; at least one is.
pub(crate) fn uniform_over(mask: &[MaskReason]) -> Vec<f64> {
    let count = mask.iter().filter(|reason| reason.is_allowed()).count();
    let mass = |reason: &MaskReason| f64::from(u8::from(reason.is_allowed())) / count as f64;
    mask.iter().map(mass).collect()
}

fn uniform(view: &TurnView<'_>, head: usize, rng: &mut Rng) -> (Level, f64) {
    if let Some(level) = view.forced(head) {
        return (level, 1.0);
    }
    let mask = view.head_mask(head);
    let count = mask.iter().filter(|reason| reason.is_allowed()).count();
    let drawn = rng.random_range(0..count);
    let mut allowed = (0..mask.len()).filter(|level| mask[*level].is_allowed());
    let level = allowed
        .nth(drawn)
        .expect("drawn is less than the number of allowed levels");
    (level as Level, 1.0 / count as f64)
}

/// KubeVirt's IOThread policy `auto`: disk i takes channel i modulo K, whatever the load. Disks that
/// share an IOThread follow the first of them. Other heads keep their default.
#[derive(Debug, Clone)]
pub struct RoundRobin {
    head: usize,
    /// Per disk: the disk whose number counts.
    leaders: Vec<usize>,
}

impl RoundRobin {
    /// For environments with this spec.
    ///
    /// # Errors
    /// `NoChannelHead`.
    pub fn new(spec: &EnvSpec) -> Result<Self, PolicyError> {
        Ok(Self {
            head: channel_head("round_robin", spec)?,
            leaders: Vec::new(),
        })
    }
}

impl Policy for RoundRobin {
    fn name(&self) -> &str {
        "round_robin"
    }

    fn begin(&mut self, _: &EnvSpec, obs: &Observation) -> Result<(), PolicyError> {
        let leader = |disk: usize| match obs.disk_group[disk] {
            None => disk,
            group => obs
                .disk_group
                .iter()
                .position(|g| *g == group)
                .unwrap_or(disk),
        };
        self.leaders = (0..obs.disk_count()).map(leader).collect();
        Ok(())
    }

    fn choose(
        &mut self,
        _: &EnvSpec,
        view: &TurnView<'_>,
        _: &mut Rng,
    ) -> Result<Choice, PolicyError> {
        let mut levels = defaults(view);
        if let (Turn::Disk(disk), channels @ 1..) = (view.turn, view.channels.nrows()) {
            let leader = self.leaders.get(disk).copied().unwrap_or(disk);
            levels[self.head] = nearest(view, self.head, (leader % channels + 1) as Level);
        }
        Ok(Choice::certain(levels))
    }
}

/// The channel whose CPUs have the least to do: all that ran on them, less the IOThreads that were
/// bound there, plus those that are bound there by the choices made so far. A disk stays where it is
/// unless another channel is better by [`LeastLoaded::MARGIN`]. Other heads keep their default.
#[derive(Debug, Clone)]
pub struct LeastLoaded {
    head: usize,
    columns: LoadColumns,
    /// Cores in use per channel by anything but bound IOThreads.
    background: Vec<f32>,
}

#[derive(Debug, Clone, Copy)]
struct LoadColumns {
    cpu_load: usize,
    bound_cores: usize,
    cpus: usize,
}

impl LeastLoaded {
    /// How much less of its CPU time another channel must have in use before a disk moves.
    pub const MARGIN: f32 = 0.05;

    /// For environments with this spec.
    ///
    /// # Errors
    /// `NoChannelHead`, `MissingFeature`.
    pub fn new(spec: &EnvSpec) -> Result<Self, PolicyError> {
        let head = channel_head("least_loaded", spec)?;
        let column = |name| channel_column("least_loaded", spec, name);
        let columns = LoadColumns {
            cpu_load: column("cpu_load")?,
            bound_cores: column("bound_cores")?,
            cpus: column("cpus")?,
        };
        Ok(Self {
            head,
            columns,
            background: Vec::new(),
        })
    }

    /// Share of a channel's CPU time in use.
    fn load(&self, view: &TurnView<'_>, level: usize) -> f32 {
        let channel = level - 1;
        let row = view.channels.row(channel);
        let background = self.background.get(channel).copied().unwrap_or(0.0);
        (background + row[self.columns.bound_cores]) / row[self.columns.cpus].max(1.0)
    }

    fn pick(&self, view: &TurnView<'_>) -> Option<usize> {
        let mask = view.head_mask(self.head);
        let mut allowed = (1..mask.len()).filter(|level| mask[*level].is_allowed());
        let first = allowed.next()?;
        let best = allowed.fold(first, |best, level| {
            if self.load(view, level) < self.load(view, best) {
                level
            } else {
                best
            }
        });
        let here = usize::from(view.current[self.head]);
        let may_stay = here > 0 && mask.get(here).is_some_and(|reason| reason.is_allowed());
        let stays = may_stay && self.load(view, here) <= self.load(view, best) + Self::MARGIN;
        Some(if stays { here } else { best })
    }
}

impl Policy for LeastLoaded {
    fn name(&self) -> &str {
        "least_loaded"
    }

    fn begin(&mut self, _: &EnvSpec, obs: &Observation) -> Result<(), PolicyError> {
        let LoadColumns {
            cpu_load,
            bound_cores,
            cpus,
        } = self.columns;
        let rows = obs.channels.values.rows();
        let background =
            |row: ArrayView1<'_, f32>| (row[cpu_load] * row[cpus] - row[bound_cores]).max(0.0);
        self.background = rows.into_iter().map(background).collect();
        Ok(())
    }

    fn choose(
        &mut self,
        _: &EnvSpec,
        view: &TurnView<'_>,
        _: &mut Rng,
    ) -> Result<Choice, PolicyError> {
        let mut levels = defaults(view);
        if let (Turn::Disk(_), None) = (view.turn, view.forced(self.head))
            && let Some(level) = self.pick(view)
        {
            levels[self.head] = level as Level;
        }
        Ok(Choice::certain(levels))
    }
}

fn channel_head(policy: &str, spec: &EnvSpec) -> Result<usize, PolicyError> {
    spec.disk_heads
        .iter()
        .position(Head::is_pointer)
        .ok_or_else(|| PolicyError::NoChannelHead {
            policy: policy.to_owned(),
            spec: spec.name.clone(),
        })
}

fn channel_column(policy: &str, spec: &EnvSpec, name: &str) -> Result<usize, PolicyError> {
    let found = spec
        .channel_features
        .iter()
        .position(|feature| feature.name == name);
    found.ok_or_else(|| PolicyError::MissingFeature {
        policy: policy.to_owned(),
        table: TableName::Channel,
        feature: name.to_owned(),
        spec: spec.name.clone(),
    })
}

fn defaults(view: &TurnView<'_>) -> Vec<Level> {
    (0..view.heads.len())
        .map(|head| nearest(view, head, view.default[head]))
        .collect()
}

/// `wanted` if it is allowed, else the level in force, else the first that is allowed.
fn nearest(view: &TurnView<'_>, head: usize, wanted: Level) -> Level {
    let mask = view.head_mask(head);
    let is_allowed = |level: Level| mask.get(usize::from(level)).is_some_and(|m| m.is_allowed());
    let first = || {
        mask.iter()
            .position(|m| m.is_allowed())
            .map(|level| level as Level)
    };
    view.forced(head)
        .or_else(|| {
            [wanted, view.current[head]]
                .into_iter()
                .find(|level| is_allowed(*level))
        })
        .or_else(first)
        .unwrap_or(view.current[head])
}

#[cfg(test)]
mod tests {
    use blkpilot_env::cartpole::CartPole;
    use blkpilot_env::sim::{SimHost, presets};
    use blkpilot_env::{Environment as _, ResetOptions};
    use rand::SeedableRng as _;

    use super::*;
    use crate::fixture::Sizes;
    use crate::policy::{Decision, decide};

    fn identical(disks: usize, channels: usize) -> (EnvSpec, Observation) {
        let mut host = SimHost::fixed(presets::identical_disks(disks, channels)).unwrap();
        let obs = host.reset(Some(1), &ResetOptions::new()).unwrap();
        (host.spec().clone(), obs)
    }

    fn channels_of(spec: &EnvSpec, decision: &Decision) -> Vec<Level> {
        let head = spec.disk_heads.iter().position(Head::is_pointer).unwrap();
        decision.action.disks.column(head).to_vec()
    }

    fn run(policy: &mut dyn Policy, spec: &EnvSpec, obs: &Observation) -> Decision {
        decide(policy, spec, obs, &mut Rng::seed_from_u64(2)).unwrap()
    }

    #[test]
    fn keep_default_is_the_observations_default() {
        let (spec, mut obs) = identical(3, 4);
        obs.current.disks.fill(1);
        assert_eq!(run(&mut KeepDefault, &spec, &obs).action, obs.default);
    }

    #[test]
    fn a_default_that_is_not_allowed_yields_to_the_level_in_force() {
        let (spec, mut obs) = identical(1, 4);
        obs.current.disks[[0, 0]] = 2;
        obs.masks.disks[[0, 0]] = MaskReason::Dwell;
        assert_eq!(channels_of(&spec, &run(&mut KeepDefault, &spec, &obs)), [2]);
    }

    #[test]
    fn round_robin_counts_disks_modulo_channels() {
        let (spec, obs) = identical(6, 4);
        let mut policy = RoundRobin::new(&spec).unwrap();
        assert_eq!(
            channels_of(&spec, &run(&mut policy, &spec, &obs)),
            [1, 2, 3, 4, 1, 2]
        );
    }

    #[test]
    fn round_robin_places_a_shared_iothread_by_its_first_disk_in_any_order() {
        let (spec, mut obs) = identical(4, 4);
        obs.disk_group = vec![Some(0), Some(1), Some(0), Some(1)];
        let mut policy = RoundRobin::new(&spec).unwrap();
        for seed in 0..20 {
            let decision = decide(&mut policy, &spec, &obs, &mut Rng::seed_from_u64(seed)).unwrap();
            assert_eq!(channels_of(&spec, &decision), [1, 2, 1, 2]);
        }
    }

    #[test]
    fn least_loaded_gives_equal_disks_one_channel_each_and_then_leaves_them() {
        let (spec, mut obs) = identical(4, 4);
        let mut policy = LeastLoaded::new(&spec).unwrap();
        let decision = run(&mut policy, &spec, &obs);
        let mut channels = channels_of(&spec, &decision);
        channels.sort_unstable();
        assert_eq!(channels, [1, 2, 3, 4]);
        let bound_cores = spec
            .channel_features
            .iter()
            .position(|f| f.name == "bound_cores")
            .unwrap();
        let cores = spec
            .disk_features
            .iter()
            .position(|f| f.name == "iothread_cores")
            .unwrap();
        for disk in 0..4 {
            let channel = usize::from(decision.action.disks[[disk, 0]]) - 1;
            obs.channels.values[[channel, bound_cores]] += obs.disks.values[[disk, cores]];
        }
        obs.current = decision.action;
        assert_eq!(run(&mut policy, &spec, &obs).action, obs.current);
    }

    #[test]
    fn least_loaded_avoids_a_channel_whose_cpus_are_busy_with_something_else() {
        let (spec, mut obs) = identical(3, 4);
        let cpu_load = spec
            .channel_features
            .iter()
            .position(|f| f.name == "cpu_load")
            .unwrap();
        obs.channels.values[[1, cpu_load]] = 0.95;
        let decision = run(&mut LeastLoaded::new(&spec).unwrap(), &spec, &obs);
        let mut channels = channels_of(&spec, &decision);
        channels.sort_unstable();
        assert_eq!(channels, [1, 3, 4]);
    }

    #[test]
    fn masked_channels_are_respected_by_all() {
        let (spec, mut obs) = identical(4, 4);
        obs.masks
            .disks
            .slice_mut(ndarray::s![.., 1..4])
            .fill(MaskReason::Unsupported);
        let policies: [Box<dyn Policy>; 4] = [
            Box::new(KeepDefault),
            Box::new(RandomPolicy),
            Box::new(RoundRobin::new(&spec).unwrap()),
            Box::new(LeastLoaded::new(&spec).unwrap()),
        ];
        for mut policy in policies {
            let decision = run(&mut *policy, &spec, &obs);
            assert!(
                channels_of(&spec, &decision)
                    .iter()
                    .all(|c| [0, 4].contains(c)),
                "{}",
                policy.name()
            );
        }
    }

    #[test]
    fn random_draws_each_allowed_level_equally_often() {
        let sizes = Sizes {
            disks: 1,
            channels: 3,
            devices: 0,
            ..Sizes::default()
        };
        let (spec, mut rng) = (sizes.spec(), Rng::seed_from_u64(8));
        let mut obs = sizes.observation(0.0, &mut rng);
        // Of the channel head's levels (columns 2 to 5), level 1 is masked.
        obs.masks.disks[[0, 3]] = MaskReason::Frozen;
        let mut counts = [0_u32; 4];
        for _ in 0..6000 {
            let decision = decide(&mut RandomPolicy, &spec, &obs, &mut rng).unwrap();
            let choice = &decision.choices[0].choice;
            counts[usize::from(choice.levels[1])] += 1;
            assert_eq!(choice.propensities, [0.5, 1.0 / 3.0, 1.0 / 3.0]);
        }
        assert_eq!(counts[1], 0);
        assert!(
            counts
                .iter()
                .filter(|c| **c > 0)
                .all(|c| c.abs_diff(2000) < 150),
            "{counts:?}"
        );
    }

    #[test]
    fn without_channels_the_first_two_play_and_the_others_say_what_is_missing() {
        let mut cart = CartPole::new(1);
        let obs = cart.reset(Some(1), &ResetOptions::new()).unwrap();
        let spec = cart.spec().clone();
        run(&mut KeepDefault, &spec, &obs);
        run(&mut RandomPolicy, &spec, &obs);
        let error = RoundRobin::new(&spec).unwrap_err();
        assert!(
            matches!(error, PolicyError::NoChannelHead { .. }),
            "{error}"
        );
        let error = LeastLoaded::new(&Sizes::default().spec())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`cpu_load`") && error.contains("`made_up`"),
            "{error}"
        );
    }
}
