//! Many simulated hosts stepped together: packed actions in, observations and rewards in buffers that
//! are kept.
//!
//! Each host draws from its own stream of the seed's generator, so an episode depends neither on the
//! hosts beside it nor on the number of threads.

use std::num::NonZeroUsize;
use std::ops::Range;

use rand::SeedableRng as _;

use super::simulation::{Beginning, Rules, Simulation, Source};
use super::{Generator, Scenario, ScenarioErrors};
use crate::decision::JointAction;
use crate::environment::{BatchError, EnvError, ResetOptions, Restart, Rewards};
use crate::observation::Observation;
use crate::reward::Weighting;
use crate::spec::{Autoreset, EnvSpec, Level};

/// One host of a batch: what its last step or reset showed, in buffers that the next one overwrites.
#[derive(Debug, Clone)]
pub struct BatchHost {
    simulation: Simulation,
    /// What the reset under way does to it.
    restart: Restart,
    action: JointAction,
    executed: JointAction,
    is_truncated: bool,
    final_observation: Observation,
    has_final_observation: bool,
}

impl BatchHost {
    fn new(source: Source) -> Self {
        Self {
            simulation: Simulation::new(source, crate::Rng::seed_from_u64(0)),
            restart: Restart::GoOn,
            action: JointAction::default(),
            executed: JointAction::default(),
            is_truncated: false,
            final_observation: Observation::default(),
            has_final_observation: false,
        }
    }

    /// Whether an episode was begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.simulation.episode().is_some()
    }

    /// What is seen now: after the step, or after the reset where the step has made one.
    #[must_use]
    pub fn observation(&self) -> &Observation {
        &self.simulation.observation
    }

    /// What the last step earned, a row per disk of the observation that the action was chosen on.
    #[must_use]
    pub fn rewards(&self) -> &Rewards {
        &self.simulation.rewards
    }

    /// The action that took effect in the last step.
    #[must_use]
    pub fn executed(&self) -> &JointAction {
        &self.executed
    }

    /// Whether the episode reached a terminal state: never, a host runs on.
    #[must_use]
    pub fn is_terminated(&self) -> bool {
        false
    }

    /// Whether the last step was the last of its episode: the value of what follows is not 0.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.is_truncated
    }

    /// Last observation of the episode, where `observation` is already the next one's first.
    #[must_use]
    pub fn final_observation(&self) -> Option<&Observation> {
        self.has_final_observation
            .then_some(&self.final_observation)
    }

    fn action_len(&self) -> usize {
        let current = &self.observation().current;
        current.disks.len() + current.devices.len()
    }

    /// Takes the levels of its disks, row by row, then those of its devices.
    fn unpack(&mut self, levels: &[Level]) {
        let current = &self.simulation.observation.current;
        let shape = |action: &JointAction| (action.disks.dim(), action.devices.dim());
        if shape(&self.action) != shape(current) {
            self.action.copy_from(current);
        }
        let disks = self.action.disks.iter_mut();
        for (level, packed) in disks.chain(&mut self.action.devices).zip(levels) {
            *level = *packed;
        }
    }

    fn check(&self, rules: &Rules, mode: Autoreset) -> Result<(), EnvError> {
        if mode == Autoreset::NextStep && self.simulation.is_over() {
            return Ok(());
        }
        self.simulation.check(rules, &self.action)
    }

    fn restart(&mut self, rules: &Rules, beginning: &Beginning) {
        match self.restart {
            Restart::Leave => return,
            Restart::GoOn => {}
            Restart::Seeded(seed) => self.simulation.reseed(crate::Rng::seed_from_u64(seed)),
        }
        self.reset(rules, beginning);
        self.simulation.rewards.clear();
    }

    fn reset(&mut self, rules: &Rules, beginning: &Beginning) {
        self.simulation.reset(rules, beginning);
        self.is_truncated = false;
        self.has_final_observation = false;
    }

    /// Takes the action that was unpacked and checked.
    fn step(&mut self, rules: &Rules, mode: Autoreset) {
        if mode == Autoreset::NextStep && self.simulation.is_over() {
            self.executed
                .copy_from(&self.simulation.observation.current);
            self.simulation.rewards.clear();
            return self.reset(rules, &Beginning::default());
        }
        self.simulation.step(&self.action, &mut self.executed);
        let is_over = self.simulation.is_over();
        self.has_final_observation = false;
        if is_over && mode == Autoreset::SameStep {
            let observation = &mut self.simulation.observation;
            std::mem::swap(observation, &mut self.final_observation);
            self.reset(rules, &Beginning::default());
            self.has_final_observation = true;
        }
        self.is_truncated = is_over;
    }
}

/// Many simulated hosts with one spec. A clone goes on as the original would, random numbers included.
#[derive(Debug, Clone)]
pub struct SimBatch {
    rules: Rules,
    threads: NonZeroUsize,
    hosts: Vec<BatchHost>,
    /// Where each host's levels start in the packed actions, and where the last one's end.
    starts: Vec<usize>,
}

impl SimBatch {
    /// `hosts` hosts with one scenario.
    ///
    /// # Errors
    /// Everything that is wrong with the scenario.
    pub fn fixed(scenario: Scenario, hosts: usize) -> Result<Self, ScenarioErrors> {
        Self::new(&Source::Fixed(scenario), hosts)
    }

    /// `hosts` hosts, each drawn anew for each episode.
    ///
    /// # Errors
    /// Everything that is wrong with the generator.
    pub fn generated(generator: Generator, hosts: usize) -> Result<Self, ScenarioErrors> {
        Self::new(&Source::Generated(generator), hosts)
    }

    fn new(source: &Source, hosts: usize) -> Result<Self, ScenarioErrors> {
        source.validate()?;
        Ok(Self {
            rules: Rules {
                spec: source.spec(),
                reward: Weighting::default(),
            },
            threads: NonZeroUsize::MIN,
            hosts: (0..hosts).map(|_| BatchHost::new(source.clone())).collect(),
            starts: vec![0; hosts + 1],
        })
    }

    /// With other reward weights, or with others in each episode.
    #[must_use]
    pub fn with_reward(mut self, reward: impl Into<Weighting>) -> Self {
        self.rules.reward = reward.into();
        self
    }

    /// With another autoreset mode; without, it is `Disabled`.
    #[must_use]
    pub fn with_autoreset(mut self, mode: Autoreset) -> Self {
        self.rules.spec.autoreset = mode;
        self
    }

    /// On several threads, each of which has a part of the hosts. They are started in each step, which
    /// takes some 10 µs per thread and is the only thing in a step that allocates: worth it for some
    /// thousand disks.
    #[must_use]
    pub fn with_threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = threads;
        self
    }

    /// What can be seen and done on each of the hosts.
    #[must_use]
    pub fn spec(&self) -> &EnvSpec {
        &self.rules.spec
    }

    /// The hosts, as the last reset or step has left them.
    #[must_use]
    pub fn hosts(&self) -> &[BatchHost] {
        &self.hosts
    }

    /// Where one host's levels lie in the packed actions: those of its disks, row by row of
    /// `JointAction::disks`, then those of its devices.
    #[must_use]
    pub fn action_range(&self, host: usize) -> Range<usize> {
        self.starts[host]..self.starts[host + 1]
    }

    /// Number of levels in the packed actions of all hosts.
    #[must_use]
    pub fn action_len(&self) -> usize {
        self.starts[self.hosts.len()]
    }

    /// Starts an episode on each host. With a seed, everything random restarts from it.
    pub fn reset(&mut self, seed: Option<u64>) {
        if let Some(seed) = seed {
            for (stream, host) in (0..).zip(&mut self.hosts) {
                let mut rng = crate::Rng::seed_from_u64(seed);
                rng.set_stream(stream);
                host.simulation.reseed(rng);
            }
        }
        let Self {
            rules,
            hosts,
            threads,
            ..
        } = self;
        let beginning = Beginning::default();
        for_each(hosts, *threads, |host| host.reset(rules, &beginning));
        self.note_starts();
    }

    /// Starts episodes as `restarts` says, an entry per host: with a seed, a host does what it does alone with
    /// it. Options are those of [`super::SimHost`].
    ///
    /// # Errors
    /// `Count`; `Option` for an option that is unknown or wrong. Nothing is changed then.
    pub fn reset_each(
        &mut self,
        restarts: &[Restart],
        options: &ResetOptions,
    ) -> Result<(), BatchError> {
        if restarts.len() != self.hosts.len() {
            return Err(BatchError::Count {
                got: restarts.len(),
                want: self.hosts.len(),
            });
        }
        let beginning =
            Beginning::from_options(&self.rules, options).map_err(BatchError::Option)?;
        for (host, restart) in self.hosts.iter_mut().zip(restarts) {
            host.restart = *restart;
        }
        let rules = &self.rules;
        for_each(&mut self.hosts, self.threads, |host| {
            host.restart(rules, &beginning);
        });
        self.note_starts();
        Ok(())
    }

    /// Steps each host by its part of the packed actions. What it showed stands in
    /// [`SimBatch::hosts`].
    ///
    /// # Errors
    /// `Length` for another number of levels than [`SimBatch::action_len`]; `Environment` with
    /// `StepBeforeReset`, `EpisodeOver` or `Action` of the first host that refuses. No host is stepped
    /// then.
    pub fn step(&mut self, actions: &[Level]) -> Result<(), BatchError> {
        if actions.len() != self.action_len() {
            return Err(BatchError::Length {
                got: actions.len(),
                want: self.action_len(),
            });
        }
        let Self {
            rules,
            hosts,
            threads,
            starts,
        } = self;
        let mode = rules.spec.autoreset;
        for (index, host) in hosts.iter_mut().enumerate() {
            host.unpack(&actions[starts[index]..starts[index + 1]]);
            host.check(rules, mode)
                .map_err(|source| BatchError::Environment {
                    environment: index,
                    source,
                })?;
        }
        for_each(hosts, *threads, |host| host.step(rules, mode));
        self.note_starts();
        Ok(())
    }

    fn note_starts(&mut self) {
        for (index, host) in self.hosts.iter().enumerate() {
            self.starts[index + 1] = self.starts[index] + host.action_len();
        }
    }
}

/// Does the same to each host, in equal parts on so many threads.
fn for_each(hosts: &mut [BatchHost], threads: NonZeroUsize, act: impl Fn(&mut BatchHost) + Sync) {
    let part = hosts.len().div_ceil(threads.get()).max(1);
    let mut parts = hosts.chunks_mut(part);
    let first = parts.next().unwrap_or_default();
    if parts.len() == 0 {
        return first.iter_mut().for_each(act);
    }
    std::thread::scope(|scope| {
        for part in parts {
            let act = &act;
            scope.spawn(move || part.iter_mut().for_each(act));
        }
        first.iter_mut().for_each(&act);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::random_action;
    use crate::environment::{Environment as _, Step};
    use crate::sim::{SimHost, presets};
    use crate::vector::AutoresetEnv;

    fn generator() -> Generator {
        Generator {
            steps: 5,
            schedulers: true,
            ..Generator::default()
        }
    }

    fn mixed() -> Scenario {
        Scenario {
            steps: 5,
            ..presets::mixed()
        }
    }

    /// Random allowed actions of all hosts, packed.
    fn draw(batch: &SimBatch, rng: &mut crate::Rng) -> Vec<Level> {
        let mut packed = Vec::new();
        for host in batch.hosts() {
            let action = random_action(batch.spec(), host.observation(), rng);
            packed.extend(action.disks.iter().chain(&action.devices));
        }
        packed
    }

    fn unpacked(batch: &SimBatch, packed: &[Level], host: usize) -> JointAction {
        let mut action = batch.hosts()[host].observation().current.clone();
        let cells = action.disks.iter_mut().chain(&mut action.devices);
        for (cell, level) in cells.zip(&packed[batch.action_range(host)]) {
            *cell = *level;
        }
        action
    }

    fn step_of(host: &BatchHost) -> Step {
        Step {
            observation: host.observation().clone(),
            rewards: host.rewards().clone(),
            executed: host.executed().clone(),
            terminated: host.is_terminated(),
            truncated: host.is_truncated(),
            final_observation: host.final_observation().cloned().map(Box::new),
        }
    }

    /// What all hosts show in 17 steps under random actions.
    fn play(mut batch: SimBatch, seed: u64) -> Vec<Vec<Step>> {
        let mut rngs: Vec<_> = (0..batch.hosts().len() as u64)
            .map(crate::Rng::seed_from_u64)
            .collect();
        batch.reset(Some(seed));
        let mut shown = Vec::new();
        for _ in 0..17 {
            let mut packed = Vec::new();
            for (host, rng) in batch.hosts().iter().zip(&mut rngs) {
                let action = random_action(batch.spec(), host.observation(), rng);
                packed.extend(action.disks.iter().chain(&action.devices));
            }
            batch.step(&packed).unwrap();
            shown.push(batch.hosts().iter().map(step_of).collect());
        }
        shown
    }

    #[test]
    fn a_host_does_what_it_does_alone_in_each_autoreset_mode() {
        for mode in [Autoreset::SameStep, Autoreset::NextStep] {
            let pairs = [
                (
                    SimBatch::generated(generator(), 3),
                    SimHost::generated(generator()),
                ),
                (SimBatch::fixed(mixed(), 3), SimHost::fixed(mixed())),
            ];
            for (batch, host) in pairs {
                let mut batch = batch.unwrap().with_autoreset(mode);
                let mut alone = AutoresetEnv::new(host.unwrap(), mode);
                batch.reset(Some(5));
                let first = alone.reset(Some(5), &ResetOptions::new()).unwrap();
                assert_eq!(&first, batch.hosts()[0].observation());
                let mut rng = crate::Rng::seed_from_u64(6);
                let mut episodes = 0;
                for _ in 0..17 {
                    let packed = draw(&batch, &mut rng);
                    let want = alone.step(&unpacked(&batch, &packed, 0)).unwrap();
                    batch.step(&packed).unwrap();
                    assert_eq!(step_of(&batch.hosts()[0]), want);
                    episodes += u32::from(want.truncated);
                }
                assert!(episodes >= 2);
            }
        }
    }

    #[test]
    fn neither_threads_nor_neighbours_change_what_a_host_does() {
        let batch = |hosts| {
            SimBatch::generated(generator(), hosts)
                .unwrap()
                .with_autoreset(Autoreset::SameStep)
        };
        let one = play(batch(7), 3);
        for threads in [2, 4, 9] {
            let threads = NonZeroUsize::new(threads).unwrap();
            assert_eq!(play(batch(7).with_threads(threads), 3), one);
        }
        for (few, many) in play(batch(2), 3).iter().zip(&one) {
            assert_eq!(few[..], many[..2]);
        }
        assert_ne!(one[0][0], one[0][1], "each host has a stream of its own");
    }

    #[test]
    fn a_refused_action_leaves_every_host_as_it_was() {
        let mut batch = SimBatch::fixed(mixed(), 2).unwrap();
        let refused = batch.step(&[]).unwrap_err();
        assert!(
            matches!(
                refused,
                BatchError::Environment {
                    environment: 0,
                    source: EnvError::StepBeforeReset
                }
            ),
            "{refused}"
        );
        batch.reset(Some(1));
        let before: Vec<_> = batch.hosts().iter().map(step_of).collect();
        let mut packed = draw(&batch, &mut crate::Rng::seed_from_u64(2));
        let refused = batch.step(&packed[1..]).unwrap_err();
        assert!(matches!(refused, BatchError::Length { .. }), "{refused}");
        let start = batch.action_range(1).start;
        packed[start] = Level::MAX;
        let refused = batch.step(&packed).unwrap_err();
        assert!(
            refused.to_string().starts_with("environment 1: "),
            "{refused}"
        );
        let after: Vec<_> = batch.hosts().iter().map(step_of).collect();
        assert_eq!(before, after);
    }

    #[test]
    fn an_episode_that_is_over_is_refused_without_autoreset() {
        let mut batch = SimBatch::fixed(mixed(), 1).unwrap();
        batch.reset(Some(1));
        let mut rng = crate::Rng::seed_from_u64(2);
        for _ in 0..5 {
            let packed = draw(&batch, &mut rng);
            batch.step(&packed).unwrap();
        }
        assert!(batch.hosts()[0].is_truncated());
        let packed = draw(&batch, &mut rng);
        let refused = batch.step(&packed).unwrap_err();
        assert!(matches!(
            refused,
            BatchError::Environment {
                source: EnvError::EpisodeOver,
                ..
            }
        ));
    }

    #[test]
    fn each_host_begins_as_it_would_alone_or_is_left_as_it_is() {
        let mut batch = SimBatch::generated(generator(), 3).unwrap();
        let warm = ResetOptions::from([("page_cache".to_owned(), "warm".to_owned())]);
        let seeds = [7, 3, 9];
        batch
            .reset_each(&seeds.map(Restart::Seeded), &warm)
            .unwrap();
        let mut alone: Vec<_> = seeds
            .iter()
            .map(|seed| {
                let mut host = SimHost::generated(generator()).unwrap();
                let seen = host.reset(Some(*seed), &warm).unwrap();
                (host, seen)
            })
            .collect();
        for (host, (_, seen)) in batch.hosts().iter().zip(&alone) {
            assert_eq!(host.observation(), seen);
        }
        let restarts = [Restart::Leave, Restart::GoOn, Restart::Seeded(1)];
        let none = ResetOptions::new();
        batch.reset_each(&restarts, &none).unwrap();
        assert_eq!(batch.hosts()[0].observation(), &alone[0].1);
        for (host, seed) in [(1, None), (2, Some(1))] {
            let seen = alone[host].0.reset(seed, &none).unwrap();
            assert_eq!(batch.hosts()[host].observation(), &seen);
        }
    }

    #[test]
    fn a_reset_that_is_refused_changes_nothing() {
        let mut batch = SimBatch::generated(generator(), 2).unwrap();
        batch.reset(Some(1));
        let untouched = batch.clone();
        let lukewarm = ResetOptions::from([("page_cache".to_owned(), "lukewarm".to_owned())]);
        let refused = batch.reset_each(&[Restart::Seeded(4); 2], &lukewarm);
        assert!(matches!(
            refused,
            Err(BatchError::Option(EnvError::Option { .. }))
        ));
        let refused = batch.reset_each(&[Restart::GoOn; 3], &ResetOptions::new());
        assert!(matches!(
            refused,
            Err(BatchError::Count { got: 3, want: 2 })
        ));
        assert_eq!(play_on(batch), play_on(untouched));
    }

    /// What all hosts show in 12 steps and two resets from here.
    fn play_on(mut batch: SimBatch) -> Vec<Vec<Step>> {
        let mut rng = crate::Rng::seed_from_u64(8);
        let mut shown = vec![];
        for _ in 0..3 {
            for _ in 0..4 {
                let packed = draw(&batch, &mut rng);
                batch.step(&packed).unwrap();
                shown.push(batch.hosts().iter().map(step_of).collect());
            }
            batch.reset(None);
        }
        shown
    }

    #[test]
    fn a_clone_goes_on_as_the_original_does() {
        let mut batch = SimBatch::generated(generator(), 3).unwrap();
        batch.reset(Some(2));
        let packed = draw(&batch, &mut crate::Rng::seed_from_u64(3));
        batch.step(&packed).unwrap();
        let fork = batch.clone();
        assert_eq!(play_on(batch), play_on(fork));
    }

    #[test]
    fn a_bad_source_is_refused() {
        let empty = Scenario {
            disks: vec![],
            ..mixed()
        };
        assert!(SimBatch::fixed(empty, 1).is_err());
    }
}
