//! Playing simulated hosts while a planner prices what might have been chosen.

use std::sync::Arc;

use blkpilot_env::{EnvSpec, JointDecision, Level, Observation, Rng, Turn, TurnView};
use blkpilot_models::categorical::{sample, softmax_into};
use blkpilot_models::network::{ActorCritic, Scratch};
use blkpilot_models::normaliser::Statistics;
use blkpilot_models::oracle::{LevelCost, Limits, Moment, Planner};
use rand::RngExt as _;

use super::memory::Lesson;
use super::{DistilConfig, Planned};
use crate::LearnError;
use crate::collector::{NOT_STARTED, unfit};
use crate::rollout::EpisodeEnd;
use crate::seen::SeenTurn;

/// Cost above which levels are alike: too bad to tell apart, in reward per interval.
const MOST_COST: f64 = 1.0;
/// Blocks of intervals in which a host has to settle: see [`Limits::blocks`].
const BLOCKS: u32 = 4;
/// Costs below which a turn teaches nothing, in reward per interval: its disk is idle, or nothing it does matters.
const LEAST_COST: f64 = 1e-4;

/// What all pupils share.
#[derive(Clone, Copy)]
pub(super) struct Class<'a> {
    pub(super) spec: &'a EnvSpec,
    pub(super) network: &'a ActorCritic,
    pub(super) config: &'a DistilConfig,
}

/// What was played, and what the planner said of it.
pub(super) struct Played {
    /// Of the turns that were priced.
    pub(super) lessons: Vec<Lesson>,
    /// What the levels drawn in them cost.
    pub(super) taken: Vec<f64>,
    /// What the levels with the greatest scores would have cost.
    pub(super) greedy: Vec<f64>,
    pub(super) seen: Statistics,
    pub(super) episodes: Vec<EpisodeEnd>,
}

impl Played {
    pub(super) fn empty(spec: &EnvSpec) -> Self {
        Self {
            lessons: vec![],
            taken: vec![],
            greedy: vec![],
            seen: Statistics::new(spec),
            episodes: vec![],
        }
    }

    pub(super) fn append(&mut self, mut other: Self) {
        self.lessons.append(&mut other.lessons);
        self.taken.append(&mut other.taken);
        self.greedy.append(&mut other.greedy);
        self.seen.merge(&other.seen);
        self.episodes.append(&mut other.episodes);
    }
}

/// One environment.
pub(super) struct Pupil<'a, E> {
    pub(super) index: usize,
    pub(super) env: &'a mut E,
    pub(super) seen: &'a mut Observation,
    pub(super) running: &'a mut EpisodeEnd,
    pub(super) planner: &'a mut Option<Planner>,
    pub(super) rng: Rng,
    pub(super) scratch: Scratch,
    pub(super) probabilities: Vec<f64>,
    pub(super) played: Played,
}

/// What a turn came to.
struct Drawn {
    levels: Vec<Level>,
    greedy: Vec<Level>,
}

impl<E: Planned> Pupil<'_, E> {
    pub(super) fn play(&mut self, class: Class<'_>) -> Result<(), LearnError> {
        (0..class.config.steps).try_for_each(|_| self.step(class))
    }

    fn step(&mut self, class: Class<'_>) -> Result<(), LearnError> {
        let Some(host) = self.env.host() else {
            let problem = "there is no simulated host in it, and only those can be planned for: train with PPO";
            return Err(unfit(self.index, problem));
        };
        let (scenario, phases) = host
            .scenario()
            .zip(host.phases())
            .expect("a collector has reset it");
        let planner = match &mut *self.planner {
            Some(planner) if self.running.steps > 0 => planner,
            planner => {
                let limits = Limits {
                    blocks: BLOCKS,
                    ..Limits::default()
                };
                planner.insert(Planner::new(scenario, *host.reward(), limits)?)
            }
        };
        let left = scenario.steps.saturating_sub(self.running.steps);
        let mut joint = JointDecision::in_random_order(class.spec, self.seen, &mut self.rng);
        let current = planner.values().knobs().read(&self.seen.current);
        let moment = Moment {
            phases,
            current,
            left,
        };
        let priced = class.config.priced_per_step / self.seen.disk_count().max(1) as f64;
        while let Some(view) = joint.view() {
            self.played.seen.observe(&view);
            let drawn = draw(
                class,
                &view,
                &mut self.scratch,
                &mut self.probabilities,
                &mut self.rng,
            )?;
            if let Turn::Disk(disk) = view.turn
                && planner.has_choice(disk)
                && self.rng.random::<f64>() < priced
            {
                let chosen = planner.values().knobs().read(joint.so_far());
                let costs = planner.costs_alone(&moment, &chosen, disk)?;
                self.played
                    .price(&view, &costs, &drawn, class.config.temperature);
            }
            joint.commit(&drawn.levels)?;
        }
        let index = self.index;
        let step = self
            .env
            .step(&joint.finish().0)
            .map_err(|source| LearnError::Environment { index, source })?;
        self.running.episodic_return += f64::from(step.rewards.host_mean().unwrap_or(0.0));
        self.running.steps += 1;
        if step.is_last() {
            let ended = std::mem::replace(self.running, NOT_STARTED);
            self.played.episodes.push(ended);
            *self.planner = None;
        }
        *self.seen = step.observation;
        Ok(())
    }
}

fn draw(
    class: Class<'_>,
    view: &TurnView<'_>,
    scratch: &mut Scratch,
    probabilities: &mut Vec<f64>,
    rng: &mut Rng,
) -> Result<Drawn, LearnError> {
    let mut scores = class.network.scores(view, scratch)?;
    let heads = view.heads.len();
    let (mut levels, mut best) = (Vec::with_capacity(heads), Vec::with_capacity(heads));
    for head in 0..heads {
        let mask = view.head_mask(head);
        let (own, later) = scores.split_at(mask.len());
        scores = later;
        if let Some(level) = view.forced(head) {
            levels.push(level);
            best.push(level);
            continue;
        }
        probabilities.resize(mask.len(), 0.0);
        softmax_into(own, mask, probabilities);
        levels.push(sample(probabilities, rng) as Level);
        let greatest = blkpilot_models::categorical::greedy(own, mask);
        best.push(greatest.expect("a head that is not forced has a choice") as Level);
    }
    Ok(Drawn {
        levels,
        greedy: best,
    })
}

impl Played {
    fn price(&mut self, view: &TurnView<'_>, costs: &[LevelCost], drawn: &Drawn, temperature: f64) {
        let free = |cost: &&LevelCost| view.forced(cost.head).is_none();
        let greatest = costs.iter().filter(free).map(|cost| cost.cost);
        if greatest.fold(0.0, f64::max) < LEAST_COST {
            return;
        }
        let of = |levels: &[Level]| {
            let own = costs.iter().filter(free);
            let own = own.filter(|cost| levels[cost.head] == cost.level);
            own.map(|cost| cost.cost).fold(0.0, f64::max)
        };
        self.taken.push(of(&drawn.levels));
        self.greedy.push(of(&drawn.greedy));
        let mut scores: Vec<f32> = Vec::with_capacity(view.mask.len());
        for head in 0..view.heads.len() {
            let own: Vec<Option<f64>> = (0..view.head_mask(head).len())
                .map(|level| {
                    let is_it =
                        |cost: &&LevelCost| cost.head == head && usize::from(cost.level) == level;
                    let cost = costs.iter().find(is_it)?;
                    let is_allowed = view.head_mask(head)[level].is_allowed();
                    is_allowed.then(|| -cost.cost.min(MOST_COST) / temperature)
                })
                .collect();
            let known: Vec<f64> = own.iter().flatten().copied().collect();
            let mean = super::mean(&known);
            let relative = own
                .iter()
                .map(|score| score.map_or(0.0, |score| score - mean) as f32);
            scores.extend(relative);
        }
        self.lessons.push(Lesson {
            turn: Arc::new(SeenTurn::of(view)),
            scores: scores.into(),
        });
    }
}
