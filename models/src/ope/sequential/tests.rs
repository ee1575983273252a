use blkpilot_env::Rng;
use proptest::prelude::{ProptestConfig, proptest};
use rand::{RngExt as _, SeedableRng as _};

use super::fqe::{Transition, Transitions};
use super::linear::LinearFqe;
use super::*;
use crate::ope::bandit::{Head, exact_table};
use crate::ope::{Matrix, Scores, Terms};

fn near(found: f64, known: f64) {
    assert!(
        (found - known).abs() <= 1e-10 * (1.0 + known.abs()),
        "{found} {known}"
    );
}

/// Ratios 2 and 1/2, then a trajectory that terminates after its first step of ratio 1/2.
fn two_trajectories() -> Steps {
    let columns = StepColumns {
        ratio: vec![2.0, 0.5, 0.5],
        reward: vec![1.0, 2.0, 4.0],
        q: vec![1.0, 1.0, 3.0],
        v: vec![0.5, 1.0, 2.0],
    };
    Steps::new(&[2, 1], 2, 0.5, columns).unwrap()
}

/// Weights are 2 and 1 in the first, 1/2 and, frozen, 1/2 in the second; returns are 2 and 4.
#[test]
fn two_trajectories_by_hand() {
    let steps = two_trajectories();
    let weights = StepWeights::new(&steps);
    let is = |scores: Result<Scores, OpeError>, known| near(scores.unwrap().estimate(), known);
    is(steps.direct_method(), 1.25);
    is(steps.trajectory_wise(Cap::None), (2.0 + 2.0) / 2.0);
    is(steps.trajectory_wise(Cap::At(0.75)), (1.5 + 2.0) / 2.0);
    is(steps.self_normalised_trajectory_wise(), 4.0 / 1.5);
    is(steps.per_decision(Cap::None), (3.0 + 2.0) / 2.0);
    is(steps.per_decision(Cap::At(1.0)), (2.0 + 2.0) / 2.0);
    is(
        steps.self_normalised_per_decision(&weights),
        4.0 / 2.5 + 0.5 * 2.0 / 1.5,
    );
    is(
        steps.doubly_robust(),
        (0.5 + 0.5 * (1.0 + 2.0) + 0.5 + 2.0) / 2.0,
    );
    let weighted = 0.5 / 2.5 + 2.5 / 2.0 + 0.5 * (1.0 / 1.5 + 2.0 / 2.5);
    is(steps.weighted_doubly_robust(&weights), weighted);
    near(weights.ess()[0], 6.25 / 4.25);
    near(weights.ess()[1], 2.25 / 1.25);
    assert_eq!(
        (
            weights.effective_horizon(0.8),
            weights.effective_horizon(0.1)
        ),
        (0, 2)
    );
}

/// Partial estimates: V alone; one step and V after it, 2/2.5·1 of the first trajectory; both steps.
#[test]
fn partial_estimates_of_magic_by_hand() {
    let steps = two_trajectories();
    let magic = Magic::new(&steps, &StepWeights::new(&steps), &[-1, 0, 1]).unwrap();
    near(magic.partial[0], 1.25);
    near(magic.partial[1], 1.25 + 0.5 / 2.5 + 0.5 * (2.0 / 2.5));
    near(
        magic.partial[2],
        0.5 / 2.5 + 1.25 + 0.5 * (1.0 / 1.5 + 2.0 / 2.5),
    );
    // Of the model alone trajectories add 0.25 and 1: n/(n − 1) Σ (±0.375)².
    near(magic.variance[0], 2.0 * 2.0 * 0.375 * 0.375);
    near(magic.share.iter().sum(), 1.0);
    assert!(Magic::new(&steps, &StepWeights::new(&steps), &[-1, 0]).is_err());
}

#[test]
fn steps_of_magic_are_five_apart_or_a_hundred() {
    assert_eq!(Magic::default_steps(20), [-1, 0, 4, 9, 14, 19]);
    assert_eq!(Magic::default_steps(1), [-1, 0]);
    assert_eq!(Magic::default_steps(7), [-1, 0, 4, 6]);
    assert!(Magic::default_steps(10_000).len() <= 102);
}

#[test]
fn a_weight_beyond_f64_is_an_error_and_its_share_is_not() {
    let columns = StepColumns {
        ratio: [[3.0; 2000], [1.0 / 3.0; 2000]].concat(),
        reward: [[1.0; 2000], [5.0; 2000]].concat(),
        q: vec![0.0; 4000],
        v: vec![0.0; 4000],
    };
    let steps = Steps::new(&[2000, 2000], 2000, 1.0, columns).unwrap();
    let error = steps.trajectory_wise(Cap::None).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("trajectory 0: a weighted reward is about 1e958"),
        "{error}"
    );
    assert!(matches!(
        steps.per_decision(Cap::None),
        Err(OpeError::Overflow { .. })
    ));
    near(
        steps.self_normalised_trajectory_wise().unwrap().estimate(),
        2000.0,
    );
    let weights = StepWeights::new(&steps);
    near(*weights.ess().last().unwrap(), 1.0);
    near(
        steps.trajectory_wise(Cap::At(2.0)).unwrap().estimate(),
        2000.0,
    );
}

/// Ten thousand steps of random ratios, with and without ends.
#[test]
fn ten_thousand_steps_bring_no_nan() {
    let mut rng = Rng::seed_from_u64(5);
    let horizon = 10_000;
    let lengths = [10_000, 137, 10_000, 9_999, 1];
    let rows: usize = lengths.iter().sum();
    let mut column = |low: f64, high: f64| (0..rows).map(|_| rng.random_range(low..high)).collect();
    let columns = StepColumns {
        ratio: column(0.1, 2.5),
        reward: column(-1.0, 1.0),
        q: column(-1.0, 1.0),
        v: column(-1.0, 1.0),
    };
    for gamma in [0.0, 0.99, 1.0] {
        let steps = Steps::new(&lengths, horizon, gamma, columns.clone()).unwrap();
        let weights = StepWeights::new(&steps);
        let all = [
            steps.direct_method(),
            steps.trajectory_wise(Cap::None),
            steps.trajectory_wise(Cap::At(10.0)),
            steps.self_normalised_trajectory_wise(),
            steps.per_decision(Cap::None),
            steps.self_normalised_per_decision(&weights),
            steps.doubly_robust(),
            steps.weighted_doubly_robust(&weights),
        ];
        for scores in all {
            match scores {
                Ok(scores) => {
                    let summary = scores.summary().unwrap();
                    assert!(summary.estimate.is_finite() && summary.std_err.is_finite());
                }
                Err(OpeError::Overflow { .. } | OpeError::Setting { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert!(
            weights
                .ess()
                .iter()
                .all(|ess| (1.0 - 1e-9..=5.0 + 1e-9).contains(ess))
        );
        let magic = Magic::new(&steps, &weights, &Magic::default_steps(horizon)).unwrap();
        assert!(magic.estimate.is_finite());
        near(magic.share.iter().sum(), 1.0);
    }
}

/// Weights of 10^−600: their product is no f64, their ratio is.
#[test]
fn weights_that_underflow_still_compare() {
    let columns = StepColumns {
        ratio: [[0.1; 600], [0.1; 600]].concat(),
        reward: [[1.0; 600], [3.0; 600]].concat(),
        q: vec![0.0; 1200],
        v: vec![0.0; 1200],
    };
    let steps = Steps::new(&[600, 600], 600, 1.0, columns).unwrap();
    near(
        steps.self_normalised_trajectory_wise().unwrap().estimate(),
        1200.0,
    );
    let weights = StepWeights::new(&steps);
    near(
        steps
            .self_normalised_per_decision(&weights)
            .unwrap()
            .estimate(),
        1200.0,
    );
    assert_eq!(steps.trajectory_wise(Cap::None).unwrap().estimate(), 0.0);
}

#[test]
fn without_overlap_only_what_divides_by_weights_is_undefined() {
    let columns = StepColumns {
        ratio: vec![1.0, 0.0, 1.0, 0.0],
        reward: vec![1.0; 4],
        q: vec![0.0; 4],
        v: vec![0.0; 4],
    };
    let steps = Steps::new(&[2, 2], 2, 1.0, columns).unwrap();
    let weights = StepWeights::new(&steps);
    near(steps.per_decision(Cap::None).unwrap().estimate(), 1.0);
    let undefined = [
        steps.self_normalised_trajectory_wise(),
        steps.self_normalised_per_decision(&weights),
        steps.weighted_doubly_robust(&weights),
    ];
    for scores in undefined {
        assert!(matches!(scores, Err(OpeError::NoOverlap { .. })));
    }
    assert!(Magic::new(&steps, &weights, &[-1, 0, 1]).is_err());
    assert_eq!(weights.ess()[1], 0.0);
}

#[test]
fn columns_that_are_wrong_are_refused_by_trajectory_and_step() {
    let columns = |ratio: [f64; 3]| StepColumns {
        ratio: ratio.to_vec(),
        reward: vec![0.0; 3],
        q: vec![0.0; 3],
        v: vec![0.0; 3],
    };
    let message = |lengths: &[usize], ratio| {
        let steps = Steps::new(lengths, 2, 1.0, columns(ratio));
        steps.unwrap_err().to_string()
    };
    assert!(
        message(&[1, 2], [1.0, 1.0, f64::NAN]).starts_with("trajectory 1, step 1: ratio = NaN")
    );
    assert!(message(&[2, 1], [1.0, -1.0, 1.0]).starts_with("trajectory 0, step 1: ratio = -1"));
    assert!(message(&[3], [1.0; 3]).starts_with("trajectory 0: number of steps = 3"));
    assert!(message(&[2], [1.0; 3]).starts_with("row 2: ratio has 3 values"));
    assert!(message(&[], [1.0; 3]).starts_with("the log of trajectories: no rows"));
    assert!(Steps::new(&[1, 2], 2, 1.5, columns([1.0; 3])).is_err());
}

fn random_steps(seed: u64, n: usize, horizon: usize) -> Steps {
    let mut rng = Rng::seed_from_u64(seed);
    let lengths: Vec<usize> = (0..n).map(|_| rng.random_range(1..=horizon)).collect();
    let rows: usize = lengths.iter().sum();
    let mut column = |low: f64, high: f64| (0..rows).map(|_| rng.random_range(low..high)).collect();
    let columns = StepColumns {
        ratio: column(0.3, 1.8),
        reward: column(-1.0, 1.0),
        q: column(-1.0, 1.0),
        v: column(-1.0, 1.0),
    };
    Steps::new(&lengths, horizon, 0.9, columns).unwrap()
}

const SHAPE: Shape = Shape {
    states: 3,
    actions: 2,
    horizon: 5,
};

fn random_policy(rng: &mut Rng) -> Policy {
    let row = |p: f64| [p, 1.0 - p];
    let probabilities = (0..SHAPE.states).flat_map(|_| row(rng.random_range(0.1..0.9)));
    Policy::new("random", probabilities.collect(), &SHAPE).unwrap()
}

/// Trajectories under a policy in a random world that terminates now and then.
fn random_log(seed: u64, n: i64) -> (TabularLog, Policy) {
    let mut rng = Rng::seed_from_u64(seed);
    let behaviour = random_policy(&mut rng);
    let mut rows = Rows::default();
    for trajectory in 0..n {
        let mut state = rng.random_range(0..SHAPE.states);
        for step in 0..SHAPE.horizon as i64 {
            let action = usize::from(rng.random::<f64>() >= behaviour.at(state)[0]);
            let terminated = rng.random_bool(0.1);
            let next = rng.random_range(0..SHAPE.states);
            rows.trajectory.push(trajectory);
            rows.step.push(step);
            rows.state.push(state as i64);
            rows.action.push(action as i64);
            rows.reward.push(rng.random_range(-1.0..1.0) + state as f64);
            rows.next_state
                .push(if terminated { -1 } else { next as i64 });
            rows.terminated.push(terminated);
            rows.truncated
                .push(!terminated && step + 1 == SHAPE.horizon as i64);
            rows.pscore.push(behaviour.at(state)[action]);
            if terminated {
                break;
            }
            state = next;
        }
    }
    (TabularLog::new(&rows, SHAPE).unwrap(), behaviour)
}

fn zero_model() -> QTable {
    QTable::new("zero", vec![0.0; 6], &SHAPE).unwrap()
}

/// One state, one action, reward 1: cut off it goes on for ever, terminated it does not.
#[test]
fn truncation_bootstraps_and_termination_does_not() {
    let shape = Shape {
        states: 1,
        actions: 1,
        horizon: 3,
    };
    let policy = Policy::new("only", vec![1.0], &shape).unwrap();
    let of = |next_state| {
        let mut transitions = Transitions::new(shape);
        let (state, action, reward) = (0, 0, 1.0);
        transitions.push(Transition {
            state,
            action,
            reward,
            next_state,
        });
        transitions
    };
    near(
        of(Some(0)).infinite_horizon(&policy, 0.9).unwrap().at(0)[0],
        10.0,
    );
    near(
        of(None).infinite_horizon(&policy, 0.9).unwrap().at(0)[0],
        1.0,
    );
    near(
        of(Some(0)).finite_horizon(&policy, 0.9).unwrap().at(0)[0],
        1.0 + 0.9 + 0.81,
    );
    let endless = of(Some(0)).infinite_horizon(&policy, 1.0);
    assert!(matches!(endless, Err(OpeError::Singular { .. })));
}

#[test]
fn pairs_never_seen_are_counted() {
    let mut transitions = Transitions::new(SHAPE);
    transitions.push(Transition {
        state: 1,
        action: 0,
        reward: 2.0,
        next_state: None,
    });
    assert_eq!(transitions.unvisited(), 5);
}

/// Features that name the pair make the linear model the table.
#[test]
fn linear_fqe_with_one_feature_per_pair_is_the_table() {
    let (log, _) = random_log(3, 200);
    let policy = random_policy(&mut Rng::seed_from_u64(4));
    let mut linear = LinearFqe::new(6, 0.0).unwrap();
    let pair = |state: usize, action: usize| 2 * state + action;
    for row in 0..log.rows() {
        let mut features = [0.0; 6];
        features[pair(log.state[row], log.action[row])] = 1.0;
        let mut next = [0.0; 6];
        if let Some(state) = log.next_state[row] {
            let probabilities = policy.at(state).iter().enumerate();
            probabilities.for_each(|(action, p)| next[pair(state, action)] = *p);
        }
        linear.push(&features, &next, log.reward[row]).unwrap();
    }
    let transitions = Transitions::of(&log);
    let compare = |theta: &[f64], table: &QTable| {
        for state in 0..3 {
            for action in 0..2 {
                near(theta[pair(state, action)], table.at(state)[action]);
            }
        }
    };
    let finite = transitions.finite_horizon(&policy, 0.9).unwrap();
    compare(&linear.finite_horizon(0.9, 5).unwrap(), &finite);
    let infinite = transitions.infinite_horizon(&policy, 0.9).unwrap();
    compare(&linear.infinite_horizon(0.9).unwrap(), &infinite);
    assert!(linear.push(&[0.0; 5], &[0.0; 6], 1.0).is_err());
    assert!(linear.push(&[f64::NAN; 6], &[0.0; 6], 1.0).is_err());
}

/// Collinear features share the weight; a fixed point is not unique then.
#[test]
fn linear_fqe_of_collinear_features_is_the_shortest() {
    let mut linear = LinearFqe::new(2, 0.0).unwrap();
    linear.push(&[1.0, 1.0], &[0.0, 0.0], 4.0).unwrap();
    let theta = linear.finite_horizon(0.9, 3).unwrap();
    near(theta[0], 2.0);
    near(theta[1], 2.0);
    assert!(matches!(
        linear.infinite_horizon(0.9),
        Err(OpeError::Singular { .. })
    ));
    assert!(LinearFqe::new(2, -1.0).is_err());
}

/// In logs of one step and one state the sequential table is the one of single decisions.
#[test]
fn mrdr_of_one_step_is_that_of_single_decisions() {
    let shape = Shape {
        states: 1,
        actions: 2,
        horizon: 1,
    };
    let behaviour = Policy::new("behaviour", vec![0.3, 0.7], &shape).unwrap();
    let policy = Policy::new("policy", vec![0.6, 0.4], &shape).unwrap();
    let (action, reward) = ([0u32, 1, 1, 0, 1], [1.0, 0.5, 2.0, -1.0, 0.25]);
    let pscore: Vec<f64> = action
        .iter()
        .map(|a| behaviour.at(0)[*a as usize])
        .collect();
    let rows = Rows {
        trajectory: (0..5).collect(),
        step: vec![0; 5],
        state: vec![0; 5],
        action: action.iter().map(|a| i64::from(*a)).collect(),
        reward: reward.to_vec(),
        next_state: vec![-1; 5],
        terminated: vec![true; 5],
        truncated: vec![false; 5],
        pscore: pscore.clone(),
    };
    let log = TabularLog::new(&rows, shape).unwrap();
    let table = mrdr::table(&log, &policy, &behaviour, 0.9).unwrap();
    let (evaluation, behaviour) = ([0.6, 0.4].repeat(5), [0.3, 0.7].repeat(5));
    let head = Head {
        name: "",
        action: &action,
        pscore: &pscore,
        evaluation: Matrix::new(&evaluation, 2).unwrap(),
        behaviour: Some(Matrix::new(&behaviour, 2).unwrap()),
        mask: None,
        q_hat: None,
    };
    let bandit = exact_table(&head, &reward, &[0; 5], 1).unwrap();
    near(table.at(0)[0], bandit[0]);
    near(table.at(0)[1], bandit[1]);
}

#[test]
fn rows_that_are_wrong_are_refused_by_trajectory_and_step() {
    let rows = || Rows {
        trajectory: vec![7, 7, 9],
        step: vec![0, 1, 0],
        state: vec![0, 1, 2],
        action: vec![0, 1, 0],
        reward: vec![0.0; 3],
        next_state: vec![1, 2, -1],
        terminated: vec![false, false, true],
        truncated: vec![false, true, false],
        pscore: vec![0.5; 3],
    };
    let shape = Shape {
        horizon: 2,
        ..SHAPE
    };
    assert_eq!(TabularLog::new(&rows(), shape).unwrap().lengths(), [2, 1]);
    let refused = |change: fn(&mut Rows), what: &str| {
        let mut rows = rows();
        change(&mut rows);
        let error = TabularLog::new(&rows, shape).unwrap_err().to_string();
        assert!(error.starts_with(what), "{error}");
    };
    refused(
        |r| r.step[1] = 2,
        "trajectory 7, step 2: step = 2 comes where an earlier step is missing",
    );
    refused(
        |r| r.step[1] = 0,
        "trajectory 7, step 0: step = 0 is there twice",
    );
    refused(
        |r| r.step[2] = 1,
        "trajectory 9, step 1: step = 1 comes where",
    );
    refused(
        |r| r.step[2] = -1,
        "trajectory 9, step -1: step = -1 must not be negative",
    );
    refused(
        |r| r.pscore[0] = f64::NAN,
        "trajectory 7, step 0: pscore = NaN",
    );
    refused(
        |r| r.pscore[1] = 1.01,
        "trajectory 7, step 1: pscore = 1.01",
    );
    refused(
        |r| r.reward[2] = f64::INFINITY,
        "trajectory 9, step 0: reward = inf",
    );
    refused(|r| r.state[2] = 3, "trajectory 9, step 0: state = 3");
    refused(|r| r.action[2] = -1, "trajectory 9, step 0: action = -1");
    refused(
        |r| r.next_state[0] = 2,
        "trajectory 7, step 0: next_state = 2 must be the state of",
    );
    refused(
        |r| r.next_state[1] = -1,
        "trajectory 7, step 1: next_state = -1",
    );
    refused(
        |r| r.terminated[0] = true,
        "trajectory 7, step 0: terminated = true must be false",
    );
    refused(
        |r| r.truncated[0] = true,
        "trajectory 7, step 0: truncated = true must be false",
    );
    refused(
        |r| (r.terminated[2], r.next_state[2]) = (false, 1),
        "trajectory 9: number of steps = 1 must reach",
    );
    refused(
        |r| r.trajectory[2] = 7,
        "trajectory 7, step 0: step = 0 is there twice",
    );
    refused(|r| r.reward.truncate(2), "row 2: reward has 2 values");
    let short = TabularLog::new(
        &rows(),
        Shape {
            horizon: 1,
            ..SHAPE
        },
    )
    .unwrap_err();
    assert!(
        short
            .to_string()
            .starts_with("trajectory 7: number of steps = 2 must be at most")
    );
}

fn derivative(terms: &Terms, row: usize, estimate: f64) -> f64 {
    let (units, copies) = (terms.units(), 50_000);
    let repeated = (0..units * copies).map(|i| i % units).chain([row]);
    let moved = terms.estimate_of(repeated, &mut vec![]).unwrap() - estimate;
    moved * (units * copies) as f64
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Ratios of 1 and no model: every estimator is the mean return.
    #[test]
    fn on_policy_estimates_are_the_mean_return(seed: u64) {
        let (log, behaviour) = random_log(seed, 20);
        let steps = log.steps(&behaviour, &zero_model(), 0.9).unwrap();
        let mean = Scores::mean(steps.returns()).unwrap().estimate();
        let weights = StepWeights::new(&steps);
        let all = [
            steps.trajectory_wise(Cap::None),
            steps.self_normalised_trajectory_wise(),
            steps.per_decision(Cap::None),
            steps.self_normalised_per_decision(&weights),
            steps.doubly_robust(),
            steps.weighted_doubly_robust(&weights),
        ];
        all.into_iter().for_each(|scores| near(scores.unwrap().estimate(), mean));
        near(marginal::value(&log, &behaviour, 0.9).unwrap(), mean);
        weights.ess().iter().for_each(|ess| near(*ess, 20.0));
    }

    /// A model that says what came, and what is to come of it, leaves nothing to weigh.
    #[test]
    fn without_surprise_doubly_robust_is_the_direct_method(seed: u64) {
        let mut steps = random_steps(seed, 10, 6);
        for i in 0..10 {
            let mut following = 0.0;
            for row in steps.rows_of(i).rev() {
                steps.v[row] = steps.reward[row] + 0.9 * following;
                steps.q[row] = steps.v[row];
                following = steps.v[row];
            }
        }
        let direct = steps.direct_method().unwrap();
        let robust = steps.doubly_robust().unwrap();
        let pairs = direct.values().iter().zip(robust.values());
        pairs.for_each(|(a, b)| near(*b, *a));
        near(robust.estimate(), direct.estimate());
    }

    #[test]
    fn estimates_have_the_unit_of_the_reward(seed: u64, scale in 0.01f64..100.0) {
        let steps = random_steps(seed, 12, 6);
        let mut scaled = steps.clone();
        for column in [&mut scaled.reward, &mut scaled.q, &mut scaled.v] {
            column.iter_mut().for_each(|x| *x *= scale);
        }
        let all = |steps: &Steps| {
            let weights = StepWeights::new(steps);
            let magic = Magic::new(steps, &weights, &Magic::default_steps(6)).unwrap();
            let scores = [
                steps.trajectory_wise(Cap::None),
                steps.self_normalised_trajectory_wise(),
                steps.per_decision(Cap::At(1.5)),
                steps.self_normalised_per_decision(&weights),
                steps.doubly_robust(),
                steps.weighted_doubly_robust(&weights),
            ];
            let mut estimates: Vec<f64> = scores.into_iter().map(|s| s.unwrap().estimate()).collect();
            estimates.push(magic.estimate);
            estimates
        };
        all(&steps).into_iter().zip(all(&scaled)).for_each(|(one, other)| near(other / scale, one));
    }

    /// The sums per step, their influence and the terms are three ways to one estimate.
    #[test]
    fn influence_is_the_derivative_by_a_trajectorys_share(seed: u64, row in 0usize..8) {
        let steps = random_steps(seed, 8, 5);
        let weights = StepWeights::new(&steps);
        let pairs = [
            (
                steps.self_normalised_trajectory_wise().unwrap(),
                steps.self_normalised_trajectory_wise_terms().unwrap(),
            ),
            (
                steps.self_normalised_per_decision(&weights).unwrap(),
                steps.self_normalised_per_decision_terms(&weights),
            ),
            (
                steps.weighted_doubly_robust(&weights).unwrap(),
                steps.weighted_doubly_robust_terms(&weights),
            ),
        ];
        for (scores, terms) in pairs {
            near(terms.estimate().unwrap(), scores.estimate());
            near(scores.values().iter().sum::<f64>(), 0.0);
            let found = derivative(&terms, row, scores.estimate());
            let known = scores.values()[row];
            assert!((found - known).abs() < 1e-3 * (1.0 + known.abs()), "{found} {known}");
        }
    }

    /// A trajectory that has ended is one that goes on with ratio 1 and nothing to be had.
    #[test]
    fn termination_is_an_absorbing_state(seed: u64) {
        let steps = random_steps(seed, 9, 6);
        let mut padded = StepColumns { ratio: vec![], reward: vec![], q: vec![], v: vec![] };
        for i in 0..9 {
            let rows = steps.rows_of(i);
            let missing = 6 - rows.len();
            let fill = |x: &[f64], with: f64| [x, &vec![with; missing]].concat();
            padded.ratio.extend(fill(&steps.ratio[rows.clone()], 1.0));
            padded.reward.extend(fill(&steps.reward[rows.clone()], 0.0));
            padded.q.extend(fill(&steps.q[rows.clone()], 0.0));
            padded.v.extend(fill(&steps.v[rows], 0.0));
        }
        let padded = Steps::new(&[6; 9], 6, 0.9, padded).unwrap();
        let (ours, full) = (StepWeights::new(&steps), StepWeights::new(&padded));
        ours.ess().iter().zip(full.ess()).for_each(|(a, b)| near(*a, *b));
        let pairs = [
            (steps.self_normalised_per_decision(&ours), padded.self_normalised_per_decision(&full)),
            (steps.weighted_doubly_robust(&ours), padded.weighted_doubly_robust(&full)),
            (steps.doubly_robust(), padded.doubly_robust()),
            (steps.self_normalised_trajectory_wise(), padded.self_normalised_trajectory_wise()),
        ];
        for (a, b) in pairs {
            let (a, b) = (a.unwrap(), b.unwrap());
            near(a.estimate(), b.estimate());
            a.values().iter().zip(b.values()).for_each(|(a, b)| near(*a, *b));
        }
        let last_steps = [-1, 0, 2, 5];
        let magic = |steps: &Steps, weights| Magic::new(steps, weights, &last_steps).unwrap();
        near(magic(&steps, &ours).estimate, magic(&padded, &full).estimate);
    }
}
