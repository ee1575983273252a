//! What chooses, and how a joint decision is driven.

use blkpilot_env::{
    ActionError, EnvSpec, JointAction, JointDecision, Level, Observation, Rng, Turn, TurnView,
};
use rand::SeedableRng as _;
use thiserror::Error;

use crate::categorical::sample;
use crate::normaliser::{Outlier, TableName};

/// Something that chooses levels, one disk or device at a time.
pub trait Policy: Send {
    /// Its name, as it stands in logs and reports.
    fn name(&self) -> &str;

    /// Called once before each joint decision, for policies that look at the host as a whole.
    ///
    /// # Errors
    /// If the policy cannot decide on this observation.
    fn begin(&mut self, _spec: &EnvSpec, _obs: &Observation) -> Result<(), PolicyError> {
        Ok(())
    }

    /// One level per head of `view`, each allowed by its mask (or forced, see `TurnView::forced`).
    ///
    /// # Errors
    /// If the policy cannot decide on what it sees; nothing is remembered then.
    fn choose(
        &mut self,
        spec: &EnvSpec,
        view: &TurnView<'_>,
        rng: &mut Rng,
    ) -> Result<Choice, PolicyError>;

    /// Probability of each level, per head, with which [`Policy::choose`] takes it given what it sees
    /// and the mask: each head's sum to 1, and one that is forced is certain. For whoever mixes another
    /// distribution in. As it stands it holds for policies that take one level for certain.
    ///
    /// # Errors
    /// As `choose`; `NoDistribution` from a policy that draws its levels and does not say how.
    fn distribution(
        &mut self,
        spec: &EnvSpec,
        view: &TurnView<'_>,
    ) -> Result<Vec<Vec<f64>>, PolicyError> {
        let choice = self.choose(spec, view, &mut Rng::seed_from_u64(0))?;
        if choice.propensities.iter().any(|p| *p < 1.0) {
            let policy = self.name().to_owned();
            return Err(PolicyError::NoDistribution { policy });
        }
        let heads = choice.levels.iter().enumerate();
        Ok(heads
            .map(|(head, level)| certain(view.head_mask(head).len(), *level))
            .collect())
    }

    /// Features of `view` far outside what the policy has been trained on. Empty for a policy that
    /// was not trained.
    fn novelty(&self, _view: &TurnView<'_>) -> Vec<Outlier> {
        Vec::new()
    }

    /// Called at the start of an episode: forgets what a stateful policy carries along.
    fn reset(&mut self) {}
}

/// A distribution over `levels` levels with all its mass on one.
pub(crate) fn certain(levels: usize, level: Level) -> Vec<f64> {
    let mass = |known: usize| f64::from(u8::from(known == usize::from(level)));
    (0..levels).map(mass).collect()
}

/// What one disk or device chose.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// One level per head.
    pub levels: Vec<Level>,
    /// Probability, per head, with which the policy takes that level given what it saw and the
    /// mask: in (0, 1], and 1 where the head was forced or the policy is deterministic.
    pub propensities: Vec<f64>,
}

impl Choice {
    /// A choice that could not have been another.
    #[must_use]
    pub fn certain(levels: Vec<Level>) -> Self {
        let propensities = vec![1.0; levels.len()];
        Self {
            levels,
            propensities,
        }
    }

    /// A choice drawn by the probabilities of each head's levels; a forced head is left as it must be.
    pub fn drawn(view: &TurnView<'_>, distribution: &[Vec<f64>], rng: &mut Rng) -> Self {
        let mut choice = Self::certain(Vec::with_capacity(distribution.len()));
        for (head, probabilities) in distribution.iter().enumerate() {
            let (level, propensity) = match view.forced(head) {
                Some(level) => (level, 1.0),
                None => {
                    let level = sample(probabilities, rng);
                    (level as Level, probabilities[level])
                }
            };
            choice.levels.push(level);
            choice.propensities.push(propensity);
        }
        choice
    }
}

/// One turn of a joint decision.
#[derive(Debug, Clone, PartialEq)]
pub struct TurnChoice {
    /// Whose turn it was.
    pub turn: Turn,
    /// What it chose.
    pub choice: Choice,
    /// Per head: whether there was no choice, because of the mask or of a tied IOThread.
    pub forced: Vec<bool>,
    /// What the policy had not seen in training.
    pub novel: Vec<Outlier>,
}

/// A joint decision, with all that is needed to log it.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Name of the policy.
    pub policy: String,
    /// The order of the turns.
    pub order: Vec<Turn>,
    /// The turns, in that order.
    pub choices: Vec<TurnChoice>,
    /// The joint action.
    pub action: JointAction,
}

/// Lets `policy` decide for all disks, then all devices, in a random order drawn from `rng`.
///
/// # Errors
/// The policy's own, or `Action` if it chose a level that is not allowed.
pub fn decide(
    policy: &mut dyn Policy,
    spec: &EnvSpec,
    obs: &Observation,
    rng: &mut Rng,
) -> Result<Decision, PolicyError> {
    decide_with(policy, spec, obs, rng, |_, _| {})
}

/// As [`decide`]; `record` is shown each turn as the policy saw it, before the choice takes effect
/// on the views that follow. Logs and rollouts take features and masks from there.
///
/// # Errors
/// As [`decide`].
pub fn decide_with(
    policy: &mut dyn Policy,
    spec: &EnvSpec,
    obs: &Observation,
    rng: &mut Rng,
    mut record: impl FnMut(&TurnView<'_>, &TurnChoice),
) -> Result<Decision, PolicyError> {
    policy.begin(spec, obs)?;
    let mut joint = JointDecision::in_random_order(spec, obs, rng);
    let mut choices = Vec::with_capacity(joint.order().len());
    while let Some(view) = joint.view() {
        let made = take_turn(policy, spec, &view, rng)?;
        record(&view, &made);
        joint.commit(&made.choice.levels)?;
        choices.push(made);
    }
    let (action, order) = joint.finish();
    Ok(Decision {
        policy: policy.name().to_owned(),
        order,
        choices,
        action,
    })
}

fn take_turn(
    policy: &mut dyn Policy,
    spec: &EnvSpec,
    view: &TurnView<'_>,
    rng: &mut Rng,
) -> Result<TurnChoice, PolicyError> {
    let choice = policy.choose(spec, view, rng)?;
    let forced = (0..view.heads.len())
        .map(|head| view.forced(head).is_some())
        .collect();
    Ok(TurnChoice {
        turn: view.turn,
        choice,
        forced,
        novel: policy.novelty(view),
    })
}

/// Why a policy did not decide.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum PolicyError {
    /// The environment does not show a feature that the policy looks at.
    #[error(
        "{policy} looks at the {table} feature `{feature}`, which `{spec}` does not have: choose another policy"
    )]
    MissingFeature {
        /// Name of the policy.
        policy: String,
        /// The table it should be in.
        table: TableName,
        /// Name of the feature.
        feature: String,
        /// Name of the environment's spec.
        spec: String,
    },
    /// The environment has no channels to choose from.
    #[error(
        "{policy} chooses channels, but no head of `{spec}` points at any: choose another policy"
    )]
    NoChannelHead {
        /// Name of the policy.
        policy: String,
        /// Name of the environment's spec.
        spec: String,
    },
    /// The view is not of the environment that the policy was made for.
    #[error(
        "the {table} table has {got} columns, the policy was made for {want}: load a policy whose spec fits"
    )]
    Shape {
        /// The table.
        table: TableName,
        /// Columns shown.
        got: usize,
        /// Columns expected.
        want: usize,
    },
    /// The disk × channel table does not have one row per channel.
    #[error(
        "the pair table has {got} rows, but there are {want} channels: the observation is malformed"
    )]
    PairRows {
        /// Rows shown.
        got: usize,
        /// Number of channels.
        want: usize,
    },
    /// The view's levels are not those that the policy was made for.
    #[error("{} chooses from {got} levels, the policy was made for {want}: load a policy whose spec fits", turn_text(.turn))]
    Levels {
        /// Whose turn it was.
        turn: Turn,
        /// Levels of all heads together.
        got: usize,
        /// Levels expected.
        want: usize,
    },
    /// A feature that is not a number, or infinite.
    #[error("{} sees {table} feature `{feature}` = {value}: an observation must be finite", turn_text(.turn))]
    NonFinite {
        /// Whose turn it was.
        turn: Turn,
        /// The table.
        table: TableName,
        /// Name of the feature.
        feature: String,
        /// The value.
        value: f32,
    },
    /// The network's result is not a number, or infinite.
    #[error("{}: the network's score of head `{head}` is {value}: its weights are too large, do not serve it", turn_text(.turn))]
    NonFiniteScore {
        /// Whose turn it was.
        turn: Turn,
        /// Name of the head.
        head: String,
        /// The score.
        value: f32,
    },
    /// A policy that plans ahead could not.
    #[error("{policy} could not plan: {reason}")]
    Planning {
        /// Name of the policy.
        policy: String,
        /// What stood in the way.
        reason: String,
    },
    /// A policy that draws its levels does not say with which probabilities.
    #[error(
        "{policy} draws its levels but does not give their probabilities: nothing can be mixed in, set epsilon = 0"
    )]
    NoDistribution {
        /// Name of the policy.
        policy: String,
    },
    /// Probabilities, or a choice, that cannot be.
    #[error("{}: {policy} gave {problem}: do not serve it", turn_text(.turn))]
    Improper {
        /// Whose turn it was.
        turn: Turn,
        /// Name of the policy.
        policy: String,
        /// What is wrong.
        problem: String,
    },
    /// The policy took too long.
    #[error(
        "{policy} took {took_ms:.0} ms for a joint decision, more than the {limit_ms:.0} ms it may: serve a smaller network, or lengthen the interval"
    )]
    Late {
        /// Name of the policy.
        policy: String,
        /// What it took, milliseconds.
        took_ms: f64,
        /// What it may take, milliseconds.
        limit_ms: f64,
    },
    /// The policy chose a level that is not allowed.
    #[error(transparent)]
    Action(#[from] ActionError),
}

fn turn_text(turn: &Turn) -> String {
    match turn {
        Turn::Disk(disk) => format!("disk {disk}"),
        Turn::Device(device) => format!("device {device}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::baseline::RandomPolicy;
    use crate::fixture::Sizes;

    #[test]
    fn a_decision_lists_each_turn_in_the_logged_order_with_what_took_effect() {
        let sizes = Sizes {
            disks: 5,
            ..Sizes::default()
        };
        let (spec, mut rng) = (sizes.spec(), Rng::seed_from_u64(3));
        let obs = sizes.observation(0.4, &mut rng);
        let mut shown = Vec::new();
        let decision = decide_with(&mut RandomPolicy, &spec, &obs, &mut rng, |view, made| {
            assert_eq!(view.turn, made.turn);
            shown.push(made.clone());
        })
        .unwrap();
        assert_eq!(decision.policy, "random");
        assert_eq!(decision.choices, shown);
        assert_eq!(
            decision.order,
            decision.choices.iter().map(|c| c.turn).collect::<Vec<_>>()
        );
        assert_eq!(decision.order.len(), 5 + 2);
        for made in &decision.choices {
            let row = match made.turn {
                Turn::Disk(disk) => decision.action.disks.row(disk),
                Turn::Device(device) => decision.action.devices.row(device),
            };
            assert_eq!(row.to_vec(), made.choice.levels);
            for (forced, propensity) in made.forced.iter().zip(&made.choice.propensities) {
                assert_eq!(*forced, *propensity == 1.0);
            }
        }
        blkpilot_env::decision::check_action(&spec, &obs, &decision.action).unwrap();
    }

    #[test]
    fn the_same_seed_gives_the_same_decision() {
        let sizes = Sizes::default();
        let obs = sizes.observation(0.2, &mut Rng::seed_from_u64(9));
        let decide = |seed| {
            decide(
                &mut RandomPolicy,
                &sizes.spec(),
                &obs,
                &mut Rng::seed_from_u64(seed),
            )
            .unwrap()
        };
        assert_eq!(decide(5), decide(5));
        assert_ne!(decide(5), decide(6));
    }

    #[test]
    fn a_choice_that_is_not_allowed_is_an_error() {
        struct Stubborn;
        impl Policy for Stubborn {
            fn name(&self) -> &str {
                "stubborn"
            }
            fn choose(
                &mut self,
                _: &EnvSpec,
                view: &TurnView<'_>,
                _: &mut Rng,
            ) -> Result<Choice, PolicyError> {
                Ok(Choice::certain(vec![1; view.heads.len()]))
            }
        }
        let sizes = Sizes {
            disks: 1,
            ..Sizes::default()
        };
        let mut rng = Rng::seed_from_u64(3);
        let mut obs = sizes.observation(0.0, &mut rng);
        obs.masks.disks[[0, 1]] = blkpilot_env::MaskReason::JobRunning;
        obs.current.disks.fill(0);
        obs.masks.disks[[0, 0]] = blkpilot_env::MaskReason::Allowed;
        let refused = decide(&mut Stubborn, &sizes.spec(), &obs, &mut rng);
        // Level 0 alone is allowed, so the head is forced to it.
        assert!(
            matches!(
                refused,
                Err(PolicyError::Action(ActionError::Masked { .. }))
            ),
            "{refused:?}"
        );
    }
}
