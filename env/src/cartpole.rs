//! CartPole-v1, the sanity environment: one "disk" (the cart), no channels, no devices.
//!
//! Dynamics, bounds and reward are those of Gymnasium's `CartPole-v1`: Barto, Sutton and Anderson
//! (1983), with the friction-free equations of Florian (2007), explicit Euler, τ = 0.02 s.

mod batch;

use ndarray::{Array1, Array2, Array3};
use rand::{RngExt as _, SeedableRng as _};

use crate::decision::{JointAction, check_action};
use crate::environment::{EnvError, Environment, Repeatable, ResetOptions, Rewards, Step};
use crate::observation::{Masks, Observation, Table};
use crate::spec::{Autoreset, EnvSpec, Feature, Head, HeadScope, Level, Levels, Scale, Unit};

const GRAVITY: f64 = 9.8;
const MASS_CART: f64 = 1.0;
const MASS_POLE: f64 = 0.1;
const TOTAL_MASS: f64 = MASS_CART + MASS_POLE;
/// Half the pole's length, metres.
const LENGTH: f64 = 0.5;
const POLE_MASS_LENGTH: f64 = MASS_POLE * LENGTH;
const FORCE: f64 = 10.0;
const TAU: f64 = 0.02;
const X_LIMIT: f64 = 2.4;
const THETA_LIMIT: f64 = 12.0 * 2.0 * std::f64::consts::PI / 360.0;
const MAX_STEPS: u32 = 500;

pub use batch::CartPoleBatch;

/// The state: x, ẋ, θ, θ̇ in m, m/s, rad, rad/s.
pub type State = [f64; 4];

/// One Euler step of the published equations. `level` 0 pushes left, 1 right. The pole has not
/// fallen: it stands within 24° of upright.
#[must_use]
#[inline]
pub fn dynamics([x, x_dot, theta, theta_dot]: State, level: Level) -> State {
    let force = if level == 1 { FORCE } else { -FORCE };
    let (sin, cos) = sin_cos(theta);
    let temp = (force + POLE_MASS_LENGTH * theta_dot * theta_dot * sin) / TOTAL_MASS;
    let theta_acc =
        (GRAVITY * sin - cos * temp) / (LENGTH * (4.0 / 3.0 - MASS_POLE * cos * cos / TOTAL_MASS));
    let x_acc = temp - POLE_MASS_LENGTH * theta_acc * cos / TOTAL_MASS;
    [
        x + TAU * x_dot,
        x_dot + TAU * x_acc,
        theta + TAU * theta_dot,
        theta_dot + TAU * theta_acc,
    ]
}

/// Sine and cosine of an angle within 24° of 0 by their Taylor series, without a branch, so that many
/// carts are moved at once. The first terms left out are below 10⁻¹⁵ at 24°, 10⁻¹⁸ at 12°.
#[inline]
fn sin_cos(angle: f64) -> (f64, f64) {
    let square = angle * angle;
    let series = |coefficients: [f64; 6]| {
        let step = |sum: f64, coefficient: f64| sum * square + coefficient;
        coefficients.into_iter().fold(0.0, step)
    };
    let sin = [
        -1.0 / 39_916_800.0,
        1.0 / 362_880.0,
        -1.0 / 5_040.0,
        1.0 / 120.0,
        -1.0 / 6.0,
        1.0,
    ];
    let cos = [
        -1.0 / 3_628_800.0,
        1.0 / 40_320.0,
        -1.0 / 720.0,
        1.0 / 24.0,
        -0.5,
        1.0,
    ];
    (angle * series(sin), series(cos))
}

/// Whether a state ends the episode: the cart beyond 2.4 m or the pole beyond 12°.
#[must_use]
pub fn has_fallen([x, _, theta, _]: State) -> bool {
    x.abs() > X_LIMIT || theta.abs() > THETA_LIMIT
}

/// CartPole-v1: reward 1 per step, at most 500 steps.
#[derive(Debug)]
pub struct CartPole {
    spec: EnvSpec,
    rng: crate::Rng,
    episode: Episode,
}

/// Where an episode starts: each quantity within 0.05 of 0.
fn draw_start(rng: &mut crate::Rng) -> State {
    std::array::from_fn(|_| rng.random_range(-0.05..0.05))
}

#[derive(Debug)]
enum Episode {
    NotStarted,
    Running { state: State, steps: u32 },
    Over,
}

impl CartPole {
    /// A cart whose first episode is drawn from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            spec: Self::default_spec(),
            rng: crate::Rng::seed_from_u64(seed),
            episode: Episode::NotStarted,
        }
    }

    /// The spec: four features, one head with two levels.
    #[must_use]
    pub fn default_spec() -> EnvSpec {
        let feature = |name: &str, unit, bound: f64, doc: &str| Feature {
            name: name.to_owned(),
            unit,
            low: -bound as f32,
            high: bound as f32,
            scale: Scale::Linear,
            doc: doc.to_owned(),
        };
        EnvSpec {
            name: "cartpole".to_owned(),
            disk_features: vec![
                feature(
                    "cart_position",
                    Unit::Metres,
                    2.0 * X_LIMIT,
                    "Position of the cart.",
                ),
                feature(
                    "cart_velocity",
                    Unit::MetresPerSecond,
                    f64::from(f32::MAX),
                    "Velocity of the cart.",
                ),
                feature(
                    "pole_angle",
                    Unit::Radians,
                    2.0 * THETA_LIMIT,
                    "Angle of the pole from upright.",
                ),
                feature(
                    "pole_velocity",
                    Unit::RadiansPerSecond,
                    f64::from(f32::MAX),
                    "Angular velocity of the pole.",
                ),
            ],
            channel_features: vec![],
            pair_features: vec![],
            device_features: vec![],
            host_features: vec![],
            disk_heads: vec![Head {
                name: "push".to_owned(),
                levels: Levels::Named(vec!["left".to_owned(), "right".to_owned()]),
                scope: HeadScope::Disk,
            }],
            device_heads: vec![],
            projections: vec![],
            reward_terms: vec!["upright".to_owned()],
            reward_range: (0.0, 1.0),
            autoreset: Autoreset::Disabled,
        }
    }

    fn observe(&self, state: State) -> Observation {
        observe(&self.spec, state.map(|value| value as f32))
    }
}

/// What a cart shows.
fn observe(spec: &EnvSpec, values: [f32; 4]) -> Observation {
    let mut disks = Table::zeros(1, 4);
    disks.values.row_mut(0).assign(&ndarray::aview1(&values));
    let action = JointAction {
        disks: Array2::zeros((1, 1)),
        devices: Array2::zeros((0, 0)),
    };
    Observation {
        disk_ids: vec!["cart".to_owned()],
        disks,
        channels: Table::zeros(0, 0),
        pairs: Array3::zeros((1, 0, 0)),
        devices: Table::zeros(0, 0),
        host: Table::zeros(1, 0),
        disk_group: vec![None],
        current: action.clone(),
        default: action,
        masks: Masks::all_allowed(spec, 1, 0, 0),
        ..Observation::default()
    }
}

/// A cart has no options.
fn refuse_options(options: &ResetOptions) -> Result<(), EnvError> {
    let Some((name, value)) = options.first_key_value() else {
        return Ok(());
    };
    Err(EnvError::Option {
        name: name.clone(),
        value: value.clone(),
        problem: "cartpole has no reset options".to_owned(),
    })
}

impl Environment for CartPole {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<Observation, EnvError> {
        refuse_options(options)?;
        if let Some(seed) = seed {
            self.rng = crate::Rng::seed_from_u64(seed);
        }
        let state = draw_start(&mut self.rng);
        self.episode = Episode::Running { state, steps: 0 };
        Ok(self.observe(state))
    }

    fn step(&mut self, action: &JointAction) -> Result<Step, EnvError> {
        let (state, steps) = match self.episode {
            Episode::NotStarted => return Err(EnvError::StepBeforeReset),
            Episode::Over => return Err(EnvError::EpisodeOver),
            Episode::Running { state, steps } => (state, steps + 1),
        };
        check_action(&self.spec, &self.observe(state), action)?;
        let state = dynamics(state, action.disks[[0, 0]]);
        let terminated = has_fallen(state);
        let truncated = !terminated && steps >= MAX_STEPS;
        self.episode = if terminated || truncated {
            Episode::Over
        } else {
            Episode::Running { state, steps }
        };
        let one = Array1::from_elem(1, 1.0);
        Ok(Step {
            observation: self.observe(state),
            rewards: Rewards {
                total: one.clone(),
                own: one,
                terms: Array2::from_elem((1, 1), 1.0),
                counted: vec![true],
            },
            executed: action.clone(),
            terminated,
            truncated,
            final_observation: None,
        })
    }
}

impl Repeatable for CartPole {
    fn rng(&self) -> &crate::Rng {
        &self.rng
    }

    fn set_rng(&mut self, rng: crate::Rng) {
        self.rng = rng;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Action and next state of `CartPole-v1` in gymnasium 1.4.0, from (0.01, 0.02, 0.03, 0.04).
    const GYMNASIUM: [(Level, State); 10] = [
        (
            1,
            [
                0.0104,
                0.21467919574755523,
                0.030799999999999998,
                -0.2430687179600081,
            ],
        ),
        (
            1,
            [
                0.014693583914951104,
                0.4093479760579556,
                0.025938625640799837,
                -0.5258796280501483,
            ],
        ),
        (
            0,
            [
                0.022880543436110214,
                0.21387081260481594,
                0.01542103307979687,
                -0.22513741609237464,
            ],
        ),
        (
            1,
            [
                0.027157959688206532,
                0.40876901017476175,
                0.010918284757949377,
                -0.5129163478026587,
            ],
        ),
        (
            0,
            [
                0.035333339891701766,
                0.21349499275068462,
                0.0006599578018962032,
                -0.21681286835696195,
            ],
        ),
        (
            0,
            [
                0.03960323974671546,
                0.018363613258421563,
                -0.0036762995652430356,
                0.07607816471983775,
            ],
        ),
        (
            0,
            [
                0.03997051201188389,
                -0.17670544277345882,
                -0.0021547362708462803,
                0.36759894183747555,
            ],
        ),
        (
            1,
            [
                0.036436403156414714,
                0.01844706005854624,
                0.005197242565903231,
                0.07423737516925016,
            ],
        ),
        (
            1,
            [
                0.03680534435758564,
                0.21349411900528809,
                0.0066819900692882345,
                -0.21680127946381111,
            ],
        ),
        (
            0,
            [
                0.0410752267376914,
                0.018277285295504958,
                0.0023459644800120118,
                0.07798192441069801,
            ],
        ),
    ];

    #[test]
    fn ten_steps_equal_gymnasiums() {
        let mut state = [0.01, 0.02, 0.03, 0.04];
        for (level, want) in GYMNASIUM {
            state = dynamics(state, level);
            assert!(
                state
                    .iter()
                    .zip(want)
                    .all(|(got, want)| (got - want).abs() < 1e-12),
                "{state:?} {want:?}"
            );
        }
    }

    #[test]
    fn sine_and_cosine_are_exact_to_the_last_bits_within_the_pole_s_range() {
        for step in -420..=420 {
            let angle = f64::from(step) * 1e-3;
            let (sin, cos) = sin_cos(angle);
            assert!((sin - libm::sin(angle)).abs() < 3e-15, "{angle}: {sin}");
            assert!((cos - libm::cos(angle)).abs() < 7e-14, "{angle}: {cos}");
        }
        let (sin, cos) = sin_cos(THETA_LIMIT);
        assert!((sin - libm::sin(THETA_LIMIT)).abs() < 1e-16);
        assert!((cos - libm::cos(THETA_LIMIT)).abs() < 2e-16);
    }

    #[test]
    fn a_cart_pushed_one_way_falls_and_the_episode_is_over() {
        let mut cart = CartPole::new(3);
        let obs = cart.reset(Some(3), &ResetOptions::new()).unwrap();
        let action = JointAction {
            disks: Array2::ones((1, 1)),
            ..obs.current
        };
        let steps = (1..)
            .find(|_| cart.step(&action).unwrap().terminated)
            .unwrap();
        assert!((8..=12).contains(&steps), "{steps}");
        assert!(matches!(cart.step(&action), Err(EnvError::EpisodeOver)));
    }

    #[test]
    fn step_before_reset_is_refused() {
        let action = JointAction {
            disks: Array2::zeros((1, 1)),
            devices: Array2::zeros((0, 0)),
        };
        assert!(matches!(
            CartPole::new(0).step(&action),
            Err(EnvError::StepBeforeReset)
        ));
    }
}
