//! A walk of five steps along four places, of which the last one pays: going on costs something and succeeds in four of
//! five times. Beside it a tool is chosen, the one of the place, some of which are not at hand; its use at the last place
//! is worth more. What is seen is all that there is to know: the place and the time.

use blkpilot_env::{
    EnvError, EnvSpec, Environment, JointAction, Level, Observation, ResetOptions, Rewards, Rng,
    Step,
};
use blkpilot_models::NetworkPolicy;
use ndarray::{arr1, arr2};
use rand::{RngExt as _, SeedableRng as _};

use super::{levels, observe, spec};

const PLACES: usize = 4;
const STEPS: usize = 5;
const SUCCEEDS: f64 = 0.8;

#[derive(Debug, Clone, Copy)]
struct State {
    place: usize,
    time: usize,
}

impl State {
    fn seen(self) -> [f32; PLACES + 1] {
        let mut seen = [0.0; PLACES + 1];
        seen[self.place] = 1.0;
        seen[PLACES] = self.time as f32 / STEPS as f32;
        seen
    }

    /// Stay and go; then three tools, of which one is not at hand at the second place, and one alone is at the third.
    fn allowed(self) -> [bool; 5] {
        match self.place {
            1 => [true, true, true, false, true],
            2 => [true, true, false, true, false],
            _ => [true; 5],
        }
    }

    fn choices(self) -> Vec<[Level; 2]> {
        let allowed = self.allowed();
        let all = (0..2).flat_map(|go| (0..3).map(move |tool| [go, tool]));
        all.filter(|[go, tool]| allowed[usize::from(*go)] && allowed[2 + usize::from(*tool)])
            .collect()
    }

    fn reward(self, [go, tool]: [Level; 2]) -> f64 {
        let is_last = self.place == PLACES - 1;
        let of_place = if go == 1 {
            -0.1
        } else {
            f64::from(u8::from(is_last))
        };
        let fits = usize::from(tool) == self.place % 3;
        of_place
            + if fits {
                0.2 + 0.3 * f64::from(u8::from(is_last))
            } else {
                0.0
            }
    }

    /// Where a choice leads, with what probability; nowhere at the end.
    fn next(self, [go, _]: [Level; 2]) -> Vec<(f64, Self)> {
        let time = self.time + 1;
        let on = (self.place + 1).min(PLACES - 1);
        match (time, go) {
            (STEPS, _) => vec![],
            (_, 1) => vec![
                (SUCCEEDS, Self { place: on, time }),
                (1.0 - SUCCEEDS, Self { time, ..self }),
            ],
            _ => vec![(1.0, Self { time, ..self })],
        }
    }

    /// What it is worth, with the choices of `choose`, or the best ones, or any.
    fn worth(self, choose: &mut dyn FnMut(Self) -> Choice) -> f64 {
        let chosen = choose(self);
        let mut of = |choice: [Level; 2]| {
            let next = self.next(choice).into_iter();
            let later: f64 = next.map(|(p, state)| p * state.worth(choose)).sum();
            self.reward(choice) + later
        };
        let all = self.choices();
        match chosen {
            Choice::This(choice) => {
                assert!(all.contains(&choice), "what is not allowed was chosen");
                of(choice)
            }
            Choice::Best => all.into_iter().map(of).fold(f64::NEG_INFINITY, f64::max),
            Choice::Any => {
                let count = all.len() as f64;
                all.into_iter().map(of).sum::<f64>() / count
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Choice {
    This([Level; 2]),
    Best,
    Any,
}

pub(crate) struct Chain {
    spec: EnvSpec,
    rng: Rng,
    state: Option<State>,
}

fn chain_spec() -> EnvSpec {
    let seen = ["first", "second", "third", "last", "time"];
    let heads: [(&str, &[&str]); 2] = [("go", &["stay", "on"]), ("tool", &["a", "b", "c"])];
    spec("chain", &seen, &heads)
}

impl Chain {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            spec: chain_spec(),
            rng: Rng::seed_from_u64(seed),
            state: None,
        }
    }
}

impl Environment for Chain {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    /// Begins at any place.
    fn reset(&mut self, seed: Option<u64>, _: &ResetOptions) -> Result<Observation, EnvError> {
        if let Some(seed) = seed {
            self.rng = Rng::seed_from_u64(seed);
        }
        let place = self.rng.random_range(0..PLACES);
        let state = State { place, time: 0 };
        self.state = Some(state);
        Ok(observe(&self.spec, &state.seen(), &state.allowed()))
    }

    fn step(&mut self, action: &JointAction) -> Result<Step, EnvError> {
        let state = self.state.take().ok_or(EnvError::EpisodeOver)?;
        let choice = [action.disks[[0, 0]], action.disks[[0, 1]]];
        assert!(
            state.choices().contains(&choice),
            "what is not allowed was chosen"
        );
        let reward = state.reward(choice) as f32;
        let next = state.next(choice);
        let succeeds = self.rng.random_bool(SUCCEEDS);
        self.state = match (&next[..], succeeds) {
            ([_, (_, state)], false) | ([(_, state), ..], _) => Some(*state),
            ([], _) => None,
        };
        let shown = self.state.unwrap_or(state);
        Ok(Step {
            observation: observe(&self.spec, &shown.seen(), &shown.allowed()),
            rewards: Rewards {
                total: arr1(&[reward]),
                own: arr1(&[reward]),
                terms: arr2(&[[reward]]),
                counted: vec![true],
            },
            executed: action.clone(),
            terminated: next.is_empty(),
            truncated: false,
            final_observation: None,
        })
    }
}

/// Over the places at which it begins.
pub(crate) fn regret(policy: &mut NetworkPolicy) -> f64 {
    let spec = chain_spec();
    let worth = |choose: &mut dyn FnMut(State) -> Choice| -> f64 {
        let begins = (0..PLACES).map(|place| State { place, time: 0 });
        begins.map(|state| state.worth(choose)).sum()
    };
    let best = worth(&mut |_| Choice::Best);
    let random = worth(&mut |_| Choice::Any);
    let own = worth(&mut |state| {
        let seen = observe(&spec, &state.seen(), &state.allowed());
        let levels = levels(policy, &spec, &seen);
        Choice::This([levels[0], levels[1]])
    });
    super::regret(best, own, random)
}
