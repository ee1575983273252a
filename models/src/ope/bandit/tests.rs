use blkpilot_env::Rng;
use proptest::prelude::{ProptestConfig, proptest};
use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::ope::{Scores, WeightDiagnostics, cressie_read};

const ALL: [Estimator; 10] = [
    Estimator::DirectMethod,
    Estimator::InverseWeight(Shrinkage::None),
    Estimator::InverseWeight(Shrinkage::Clip(1.5)),
    Estimator::InverseWeight(Shrinkage::SubGaussian(0.1)),
    Estimator::SelfNormalised,
    Estimator::DoublyRobust(Shrinkage::None),
    Estimator::DoublyRobust(Shrinkage::Clip(1.5)),
    Estimator::DoublyRobust(Shrinkage::Switch(1.5)),
    Estimator::DoublyRobust(Shrinkage::Optimistic(2.0)),
    Estimator::SelfNormalisedDoublyRobust,
];

/// Columns of a log with one head, to borrow from.
#[derive(Debug, Clone)]
struct Log {
    levels: usize,
    action: Vec<u32>,
    reward: Vec<f64>,
    pscore: Vec<f64>,
    evaluation: Vec<f64>,
    behaviour: Vec<f64>,
    q_hat: Vec<f64>,
}

impl Log {
    fn random(seed: u64, rows: usize, levels: usize) -> Self {
        let mut rng = Rng::seed_from_u64(seed);
        let distribution = |rng: &mut Rng| {
            let raw: Vec<f64> = (0..levels).map(|_| rng.random_range(0.05..1.0)).collect();
            let sum: f64 = raw.iter().sum();
            raw.into_iter().map(move |x| x / sum).collect::<Vec<_>>()
        };
        let mut log = Self {
            levels,
            action: vec![],
            reward: vec![],
            pscore: vec![],
            evaluation: vec![],
            behaviour: vec![],
            q_hat: vec![],
        };
        for _ in 0..rows {
            let behaviour = distribution(&mut rng);
            let mut point: f64 = rng.random();
            let action = behaviour.iter().position(|p| {
                point -= p;
                point < 0.0
            });
            let action = action.unwrap_or(levels - 1);
            log.action.push(action as u32);
            log.pscore.push(behaviour[action]);
            log.reward.push(rng.random_range(-1.0..2.0));
            log.behaviour.extend(behaviour);
            log.evaluation.extend(distribution(&mut rng));
            log.q_hat
                .extend((0..levels).map(|_| rng.random_range(-1.0..2.0)));
        }
        log
    }

    fn head(&self) -> Head<'_> {
        let matrix = |values| Matrix::new(values, self.levels).unwrap();
        Head {
            name: "",
            action: &self.action,
            pscore: &self.pscore,
            evaluation: matrix(&self.evaluation),
            behaviour: Some(matrix(&self.behaviour)),
            mask: None,
            q_hat: Some(matrix(&self.q_hat)),
        }
    }

    fn columns(&self) -> Columns {
        let reward = &self.reward;
        let heads = vec![self.head()];
        BanditLog { reward, heads }.columns().unwrap()
    }
}

/// Weights 1.6 and 0.2, rewards 3 and 1, V 1.2 and 1.1, residuals 2 and −1.
fn two_rows() -> Columns {
    let log = Log {
        levels: 2,
        action: vec![0, 1],
        reward: vec![3.0, 1.0],
        pscore: vec![0.5, 0.5],
        evaluation: vec![0.8, 0.2, 0.9, 0.1],
        behaviour: vec![0.5; 4],
        q_hat: vec![1.0, 2.0, 1.0, 2.0],
    };
    log.columns()
}

fn estimate(estimator: Estimator, columns: &Columns) -> f64 {
    estimator.scores(columns).unwrap().estimate()
}

fn near(found: f64, known: f64) {
    assert!(
        (found - known).abs() <= 1e-12 * (1.0 + known.abs()),
        "{found} {known}"
    );
}

#[test]
fn two_rows_by_hand() {
    use Estimator::{
        DirectMethod, DoublyRobust, InverseWeight, SelfNormalised, SelfNormalisedDoublyRobust,
    };
    let columns = two_rows();
    let is = |estimator, known| near(estimate(estimator, &columns), known);
    is(DirectMethod, 1.15);
    is(InverseWeight(Shrinkage::None), (4.8 + 0.2) / 2.0);
    is(InverseWeight(Shrinkage::Clip(1.0)), (3.0 + 0.2) / 2.0);
    is(SelfNormalised, 5.0 / 1.8);
    is(DoublyRobust(Shrinkage::None), (1.2 + 3.2 + 1.1 - 0.2) / 2.0);
    is(
        DoublyRobust(Shrinkage::Clip(1.0)),
        (1.2 + 2.0 + 1.1 - 0.2) / 2.0,
    );
    is(
        DoublyRobust(Shrinkage::Switch(1.0)),
        (1.2 + 1.1 - 0.2) / 2.0,
    );
    let (first, second) = (1.6 / 3.56, 0.2 / 1.04);
    is(
        DoublyRobust(Shrinkage::Optimistic(1.0)),
        (1.2 + 2.0 * first + 1.1 - second) / 2.0,
    );
    let (first, second) = (1.6 / 1.3, 0.2 / 0.6);
    is(
        InverseWeight(Shrinkage::SubGaussian(0.5)),
        (3.0 * first + second) / 2.0,
    );
    is(
        DoublyRobust(Shrinkage::SubGaussian(0.5)),
        (1.2 + 2.0 * first + 1.1 - second) / 2.0,
    );
    is(SelfNormalisedDoublyRobust, 1.15 + 3.0 / 1.8);
}

/// φ = (w/0.9)(r − 5/1.8): 1.7778·0.2222 and 0.2222·(−1.7778), so se = √(0.15608/2).
#[test]
fn standard_error_of_a_ratio_by_hand() {
    let summary = Estimator::SelfNormalised
        .scores(&two_rows())
        .unwrap()
        .summary()
        .unwrap();
    let phi: f64 = (1.6 / 0.9) * (3.0 - 5.0 / 1.8);
    near(summary.std_err, (phi * phi / 2.0).sqrt());
}

/// λ = 1 clips the first weight: scores 3 and 0.2, variance 1.96, bias |0.6·3|/2 = 0.9.
#[test]
fn error_of_a_lambda_by_hand() {
    let grid = [1.0, 2.0];
    let choice = choose_lambda(
        &two_rows(),
        Tuned::ClippedInverseWeight,
        &grid,
        Bias::PlugIn,
    )
    .unwrap();
    near(choice.grid[0].1, 1.96 / 2.0 + 0.81);
    near(choice.grid[1].1, (2.3f64 * 2.3) / 2.0);
    assert_eq!(choice.best, 1.0);
    let upper = Bias::UpperBound(0.05);
    let choice = choose_lambda(&two_rows(), Tuned::OptimisticDoublyRobust, &[1.0], upper).unwrap();
    let (first, second): (f64, f64) = (1.6 / 3.56, 0.2 / 1.04);
    let scores = [1.2 + 2.0 * first, 1.1 - second];
    let half = (scores[0] - scores[1]) / 2.0;
    let log = 40f64.ln();
    let bias = ((1.6 - first) * 2.0 - (0.2 - second)).abs() / 2.0
        + (2.0 * 1.3 * log / 2.0).sqrt()
        + 2.0 * 1.6 * log / 6.0;
    near(choice.grid[0].1, half * half / 2.0 + bias * bias);
}

/// Two heads of ratios 1.5 and 0.5, then 1 and 2: joint 0.75 and 2, pseudo-inverse 1 and 2.
#[test]
fn heads_by_hand() {
    let matrix = |values| Matrix::new(values, 2).unwrap();
    let head = |name, pscore, evaluation, q_hat| Head {
        name,
        action: &[0, 1],
        pscore,
        evaluation: matrix(evaluation),
        behaviour: None,
        mask: None,
        q_hat: Some(matrix(q_hat)),
    };
    let first = head(
        "channel",
        &[0.4, 0.5],
        &[0.6, 0.4, 0.5, 0.5],
        &[1.0, 0.0, 1.0, 0.0],
    );
    let second = head(
        "cache",
        &[0.8, 0.4],
        &[0.4, 0.6, 0.2, 0.8],
        &[2.0, 3.0, 2.0, 3.0],
    );
    let log = BanditLog {
        reward: &[4.0, 5.0],
        heads: vec![first, second],
    };
    let columns = log.columns().unwrap();
    near(columns.weight[0], 0.75);
    near(columns.weight[1], 2.0);
    near(columns.value[0], 0.6 + 0.8 + 1.8);
    near(columns.residual[1], 5.0 - 0.0 - 3.0);
    let additive = columns.pseudo_inverse();
    near(additive.weight[0], 1.0);
    near(additive.weight[1], 2.0);
}

#[test]
fn messages_name_row_head_and_field() {
    let matrix = |values| Matrix::new(values, 2).unwrap();
    let head = Head {
        name: "cache",
        action: &[0, 1],
        pscore: &[0.5, 0.0],
        evaluation: matrix(&[0.5; 4]),
        behaviour: None,
        mask: None,
        q_hat: None,
    };
    let message = |head: Head<'_>| {
        let (reward, heads) = (&[0.0; 2][..], vec![head]);
        BanditLog { reward, heads }
            .columns()
            .unwrap_err()
            .to_string()
    };
    assert!(message(head).starts_with("row 1: pscore_cache = 0 must be in (0, 1]"));
    let pscore = &[0.5, 0.5][..];
    let masked = Head {
        pscore,
        mask: Some(Matrix::new(&[true, false, true, true], 2).unwrap()),
        ..head
    };
    assert!(message(masked).starts_with("row 0: eval_dist_cache[1] = 0.5 must be 0"));
    let negative = Head {
        pscore,
        evaluation: matrix(&[0.5, 0.5, 1.5, -0.5]),
        ..head
    };
    assert!(message(negative).starts_with("row 1: eval_dist_cache[0] = 1.5"));
    let short = Head {
        pscore: &[0.5],
        ..head
    };
    assert!(message(short).starts_with("row 1: pscore_cache has 1 values"));
    let sick = Head {
        pscore,
        q_hat: Some(matrix(&[0.0, 0.0, f64::NAN, 0.0])),
        ..head
    };
    assert!(message(sick).starts_with("row 1: q_hat_cache = NaN"));
    let empty = BanditLog {
        reward: &[],
        heads: vec![],
    };
    assert!(matches!(empty.columns(), Err(OpeError::Empty { .. })));
}

#[test]
fn no_overlap_is_an_error_of_what_divides_by_weights() {
    let mut columns = two_rows();
    columns.weight = vec![0.0; 2];
    assert_eq!(
        estimate(Estimator::InverseWeight(Shrinkage::None), &columns),
        0.0
    );
    for estimator in [
        Estimator::SelfNormalised,
        Estimator::SelfNormalisedDoublyRobust,
    ] {
        assert!(matches!(
            estimator.scores(&columns),
            Err(OpeError::NoOverlap { .. })
        ));
    }
    let mut stream = Stream::new(&ALL).unwrap();
    stream.push(&columns);
    let summary = stream.summary();
    assert!(matches!(
        summary.estimates[4].1,
        Err(OpeError::NoOverlap { .. })
    ));
    assert_eq!(summary.ess, 0.0);
}

#[test]
fn a_parameter_out_of_range_is_refused() {
    let refused = [
        Estimator::InverseWeight(Shrinkage::Clip(0.0)),
        Estimator::DoublyRobust(Shrinkage::Optimistic(f64::NAN)),
        Estimator::DoublyRobust(Shrinkage::SubGaussian(1.5)),
    ];
    for estimator in refused {
        assert!(matches!(
            estimator.scores(&two_rows()),
            Err(OpeError::Setting { .. })
        ));
        assert!(Stream::new(&[estimator]).is_err());
    }
}

#[test]
fn a_stream_whose_squares_overflow_says_so() {
    let mut columns = two_rows();
    columns.weight[0] = 1e200;
    let mut stream = Stream::new(&ALL).unwrap();
    stream.push(&columns);
    for (estimator, found) in stream.summary().estimates {
        assert!(
            found.is_err() || found.unwrap().std_err.is_finite(),
            "{estimator:?}"
        );
    }
    assert!(
        Estimator::InverseWeight(Shrinkage::None)
            .scores(&columns)
            .unwrap()
            .summary()
            .is_ok()
    );
}

/// Divergences of one row: evaluation (1/2, 1/2, 0), behaviour (1/4, 1/2, 1/4).
#[test]
fn support_by_hand() {
    let matrix = |values| Matrix::new(values, 3).unwrap();
    let head = Head {
        name: "",
        action: &[1],
        pscore: &[0.5],
        evaluation: matrix(&[0.5, 0.5, 0.0]),
        behaviour: Some(matrix(&[0.25, 0.5, 0.25])),
        mask: None,
        q_hat: None,
    };
    let of = |head| {
        let (reward, heads) = (&[0.0][..], vec![head]);
        SupportDiagnostics::new(&BanditLog { reward, heads })
    };
    let support = of(head).unwrap();
    near(support.kl.unwrap(), 0.5 * 2f64.ln());
    near(support.renyi2.unwrap(), 1.5);
    assert_eq!(
        (support.mass_without_support, support.greedy_match),
        (0.0, 0.0)
    );
    let behaviour = Some(matrix(&[0.0, 0.5, 0.5]));
    let support = of(Head { behaviour, ..head }).unwrap();
    assert_eq!(
        (support.mass_without_support, support.kl, support.renyi2),
        (0.5, None, None)
    );
    assert_eq!(
        of(Head {
            behaviour: None,
            ..head
        }),
        None
    );
}

/// One bucket, actions of weights 0.8·0.5/0.25 and 0.1·0.5/0.25, one row each.
#[test]
fn weighted_table_is_the_mean_per_cell() {
    let log = Log {
        action: vec![0, 0, 1],
        reward: vec![3.0, 1.0, 7.0],
        pscore: vec![0.5, 0.5, 1.0],
        evaluation: vec![0.8, 0.2, 0.2, 0.8, 0.0, 1.0],
        ..Log::random(0, 3, 2)
    };
    let table = weighted_table(&log.head(), &log.reward, &[0, 0, 0], 1).unwrap();
    near(table[0], (0.8 * 3.0 + 0.2) / 1.0);
    // With a propensity of 1 the row has no weight.
    assert_eq!(table[1], 0.0);
    assert!(weighted_table(&log.head(), &log.reward, &[0, 1, 0], 1).is_err());
}

/// What `exact_table` minimises, from its definition.
fn spread(log: &Log, table: &[f64]) -> f64 {
    let head = log.head();
    let rows = 0..log.reward.len();
    rows.map(|i| {
        let (pie, pib) = (head.evaluation.row(i), head.behaviour.unwrap().row(i));
        let action = log.action[i] as usize;
        let own = |a: usize| if a == action { log.reward[i] } else { 0.0 };
        let q: Vec<f64> = (0..log.levels)
            .map(|a| pie[a] * table[a] - own(a))
            .collect();
        let sum: f64 = q.iter().sum();
        let squares: f64 = q.iter().zip(pib).map(|(q, p)| q * q / p).sum();
        pie[action] / log.pscore[i] * (squares - sum * sum)
    })
    .sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn weights_of_one_give_the_mean_reward(seed: u64, rows in 2usize..60) {
        let mut log = Log::random(seed, rows, 3);
        log.evaluation = log.behaviour.clone();
        let columns = log.columns();
        let mean = log.reward.iter().sum::<f64>() / rows as f64;
        for estimator in [Estimator::InverseWeight(Shrinkage::None), Estimator::SelfNormalised] {
            near(estimate(estimator, &columns), mean);
        }
        near(WeightDiagnostics::new(&columns.weight).ess, rows as f64);
    }

    #[test]
    fn without_residuals_doubly_robust_is_the_direct_method(seed: u64, rows in 2usize..60) {
        let mut log = Log::random(seed, rows, 3);
        for (i, action) in log.action.iter().enumerate() {
            log.reward[i] = log.q_hat[3 * i + *action as usize];
        }
        let columns = log.columns();
        let direct = estimate(Estimator::DirectMethod, &columns);
        for estimator in &ALL[5..] {
            near(estimate(*estimator, &columns), direct);
        }
    }

    /// Rewards and model in other units, such as milliseconds instead of seconds.
    #[test]
    fn estimates_have_the_unit_of_the_reward(seed: u64, scale in 0.01f64..100.0) {
        let log = Log::random(seed, 40, 3);
        let mut scaled = log.clone();
        scaled.reward.iter_mut().chain(&mut scaled.q_hat).for_each(|x| *x *= scale);
        for estimator in ALL {
            let (one, other) = (log.columns(), scaled.columns());
            near(estimate(estimator, &other) / scale, estimate(estimator, &one));
            let std_err = |columns| estimator.scores(columns).unwrap().summary().unwrap().std_err;
            near(std_err(&other) / scale, std_err(&one));
        }
    }

    /// What normalises, or has a model that moves along, moves with the zero of the reward.
    #[test]
    fn a_shift_of_the_reward_shifts_the_estimate(seed: u64, shift in -5.0f64..5.0) {
        let log = Log::random(seed, 40, 3);
        let mut shifted = log.clone();
        shifted.reward.iter_mut().chain(&mut shifted.q_hat).for_each(|x| *x += shift);
        for estimator in [&ALL[..1], &ALL[4..]].concat() {
            let moved = estimate(estimator, &shifted.columns()) - estimate(estimator, &log.columns());
            near(moved, shift);
        }
    }

    #[test]
    fn the_order_of_rows_does_not_matter(seed: u64) {
        let log = Log::random(seed, 50, 3);
        let mut reversed = log.clone();
        reversed.action.reverse();
        reversed.reward.reverse();
        reversed.pscore.reverse();
        for block in [&mut reversed.evaluation, &mut reversed.behaviour, &mut reversed.q_hat] {
            *block = block.chunks(3).rev().flatten().copied().collect();
        }
        for estimator in ALL {
            near(estimate(estimator, &reversed.columns()), estimate(estimator, &log.columns()));
        }
    }

    /// By chunks of any size the stream says what the scores do, and so do the terms.
    #[test]
    fn stream_terms_and_scores_agree(seed: u64, cut in 1usize..2000) {
        let columns = Log::random(seed, 2000, 2).columns();
        let part = |begin: usize, end: usize| Columns {
            weight: columns.weight[begin..end].to_vec(),
            reward: columns.reward[begin..end].to_vec(),
            value: columns.value[begin..end].to_vec(),
            residual: columns.residual[begin..end].to_vec(),
            head_weight: vec![],
        };
        let mut stream = Stream::new(&ALL).unwrap();
        stream.push(&part(0, cut));
        stream.push(&part(cut, 2000));
        let summary = stream.summary();
        for (estimator, found) in summary.estimates {
            let (found, scores) = (found.unwrap(), estimator.scores(&columns).unwrap());
            let known = scores.summary().unwrap();
            assert_eq!((found.n, found.kind), (known.n, known.kind));
            near(found.estimate, known.estimate);
            near(found.std_err, known.std_err);
            near(estimator.terms(&columns).unwrap().estimate().unwrap(), known.estimate);
        }
        near(summary.ess, WeightDiagnostics::new(&columns.weight).ess);
        near(summary.mean_weight, WeightDiagnostics::new(&columns.weight).mean);
    }

    /// The influence of a row is how fast the estimate moves with the row's multiplicity.
    #[test]
    fn influence_is_the_derivative_by_a_rows_share(seed: u64, row in 0usize..30) {
        let columns = Log::random(seed, 30, 3).columns();
        for estimator in [Estimator::SelfNormalised, Estimator::SelfNormalisedDoublyRobust] {
            let scores: Scores = estimator.scores(&columns).unwrap();
            let terms = estimator.terms(&columns).unwrap();
            // A row that is there once more, in logs so often repeated that once is little.
            let copies = 20_000;
            let units = (0..30 * copies).map(|i| i % 30).chain([row]);
            let moved = terms.estimate_of(units, &mut vec![]).unwrap() - scores.estimate();
            let influence = scores.influence().nth(row).unwrap();
            assert!((moved * 30.0 * copies as f64 - influence).abs() < 1e-3 * (1.0 + influence.abs()));
        }
    }

    /// No other table has a smaller spread, and the minimum is the shortest of its kind.
    #[test]
    fn exact_table_is_a_minimum(seed: u64) {
        let log = Log::random(seed, 40, 3);
        let table = exact_table(&log.head(), &log.reward, &[0; 40], 1).unwrap();
        let least = spread(&log, &table);
        for action in 0..3 {
            for step in [1e-3, -1e-3] {
                let mut other = table.clone();
                other[action] += step;
                assert!(spread(&log, &other) >= least - 1e-12 * least.abs());
            }
        }
    }

    /// A log of two heads is one of their pairs.
    #[test]
    fn heads_multiply_to_the_joint_action(seed: u64) {
        let (first, second) = (Log::random(seed, 30, 2), Log::random(!seed, 30, 3));
        let heads = vec![Head { name: "a", ..first.head() }, Head { name: "b", ..second.head() }];
        let both = BanditLog { reward: &first.reward, heads }.columns().unwrap();
        let mut joint = Log { levels: 6, reward: first.reward.clone(), ..Log::random(seed, 0, 6) };
        for i in 0..30 {
            joint.action.push(first.action[i] * 3 + second.action[i]);
            joint.pscore.push(first.pscore[i] * second.pscore[i]);
            for a in 0..2 {
                for b in 0..3 {
                    let (a, b) = (2 * i + a, 3 * i + b);
                    joint.evaluation.push(first.evaluation[a] * second.evaluation[b]);
                    joint.behaviour.push(first.behaviour[a] * second.behaviour[b]);
                    joint.q_hat.push(first.q_hat[a] + second.q_hat[b]);
                }
            }
        }
        let joint = joint.columns();
        for estimator in ALL {
            near(estimate(estimator, &both), estimate(estimator, &joint));
        }
    }

    /// With one head there is nothing to add up.
    #[test]
    fn one_head_has_its_own_weight_as_pseudo_inverse(seed: u64) {
        let columns = Log::random(seed, 30, 3).columns();
        let additive = columns.pseudo_inverse();
        columns.weight.iter().zip(&additive.weight).for_each(|(w, g)| near(*g, *w));
    }

    #[test]
    fn empirical_likelihood_stays_within_the_rewards(seed: u64) {
        let columns = Log::random(seed, 60, 3).columns();
        let bounds = cressie_read::Bounds { weight: [0.0, 40.0], reward: [-1.0, 2.0] };
        let mut sums = cressie_read::CressieRead::new(bounds).unwrap();
        sums.push(&columns.weight, &columns.reward).unwrap();
        let [low, high] = sums.interval(0.05).unwrap();
        assert!((-1.0..=2.0).contains(&low) && low <= high && high <= 2.0);
    }
}
