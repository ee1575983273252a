//! Learners from logs: their losses against values worked by hand and by enumeration, their gradients against finite
//! differences, and what they learn of a process whose best policy is known.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

#[path = "offline/support.rs"]
mod support;

use blkpilot_learn::LearnError;
use blkpilot_learn::Network;
use blkpilot_learn::offline::{
    Algorithm, CqlConfig, Dataset, IqlConfig, Lessons, Offline, OfflineConfig, TdLoss, bc, cql, iql,
};
use blkpilot_learn::ppo::Schedule;
use blkpilot_learn::q::Q;
use support::{Row, SMALL, constant, dataset, drawn, numbers, spec};
use tch::{Kind, Tensor, no_grad};

const CQL: CqlConfig = CqlConfig {
    alpha: 0.5,
    td_loss: TdLoss::Huber,
    target_every: 10,
};
const IQL: IqlConfig = IqlConfig {
    expectile: 0.7,
    beta: 2.0,
    most_weight: 3.0,
    polyak: 0.05,
};

/// Two disks of one host over three joint decisions, the last of which has ended; in the second turn of the second
/// disk the second head is forced.
fn rows() -> Vec<Row> {
    let row = |state: f32, levels: [u16; 2], reward: f32| Row {
        state: [state, 1.0 - state],
        levels,
        reward: Some(reward),
        closed: &[],
    };
    vec![
        row(0.0, [0, 2], -1.0),
        row(1.0, [1, 0], 0.5),
        row(1.0, [1, 1], 2.0),
        Row {
            closed: &[2, 3],
            ..row(0.0, [0, 2], -0.25)
        },
        row(0.3, [0, 1], 4.0),
        row(0.6, [1, 2], 1.5),
    ]
}

fn lessons(data: &Dataset) -> Lessons {
    data.lessons(data.transitions())
        .unwrap()
        .to_kind(Kind::Double)
        .unwrap()
}

/// ln(1 + 3) − ln 3 for the first head; the second, of scores 0, ln 2 and ln 5, has ln 8 − ln 2 with all levels and
/// ln 6 − ln 5 with its second level closed.
#[test]
fn the_loss_of_cloning_is_the_cross_entropy_under_the_masks() {
    let spec = spec();
    let rows = [
        Row {
            levels: [1, 1],
            ..rows()[0]
        },
        Row {
            levels: [1, 2],
            closed: &[3],
            ..rows()[0]
        },
        Row {
            levels: [0, 2],
            closed: &[1, 3],
            ..rows()[0]
        },
    ];
    let data = dataset(&spec, &[&rows], true);
    let network = constant(
        &spec,
        0.0,
        &[0.0, 3.0_f64.ln()],
        &[0.0, 2.0_f64.ln(), 5.0_f64.ln()],
    );
    let lessons = data
        .lessons(&[0, 1, 2])
        .unwrap()
        .to_kind(Kind::Double)
        .unwrap();
    let scores = network.scores(&lessons.batch).unwrap();
    let loss = bc::loss(&scores, &lessons.batch, &lessons.levels).unwrap();
    let first = (4.0_f64 / 3.0).ln() + (8.0_f64 / 2.0).ln();
    let second = (4.0_f64 / 3.0).ln() + (6.0_f64 / 5.0).ln();
    // Of the third the first head was forced.
    let third = (6.0_f64 / 5.0).ln();
    let want = (first + second + third) / 3.0;
    assert!(
        (loss.double_value(&[]) - want).abs() < 1e-7,
        "{loss:?} {want}"
    );
}

/// Scores [1, 3] and [0, 6, 3] have advantages [−1, 1] and [−3, 3, 0]; V is 0.5. Of the other network scores [2, 0] and
/// [1, 1, 4], advantages [1, −1] and [−1, −1, 2], V = 10. The network chooses levels 1 and 1, which the other judges
/// 10 − 1 − 1 = 8; where the second head was forced, 10 − 1 = 9.
#[test]
fn the_target_is_what_the_older_network_says_of_the_choice_of_the_newer() {
    let spec = spec();
    let data = dataset(&spec, &[&rows()[0..2], &rows()[2..4], &rows()[4..6]], true);
    let network = constant(&spec, 0.5, &[1.0, 3.0], &[0.0, 6.0, 3.0]);
    let target = constant(&spec, 10.0, &[2.0, 0.0], &[1.0, 1.0, 4.0]);
    assert_eq!(data.transitions(), [0, 1, 2, 3, 4, 5]);
    let targets = cql::targets(&network, &target, &lessons(&data), 0.9).unwrap();
    // Next are rows 2, 3 (forced), 4 and 5; nothing follows the last two.
    let want = [-1.0 + 7.2, 0.5 + 8.1, 2.0 + 7.2, -0.25 + 7.2, 4.0, 1.5];
    for (found, want) in numbers(&targets).into_iter().zip(want) {
        assert!((found - want).abs() < 1e-6, "{found} {want}");
    }
}

#[test]
fn the_conservative_part_is_the_log_sum_exp_over_all_joint_choices() {
    let spec = spec();
    let data = dataset(&spec, &[&rows()[0..2], &rows()[2..4], &rows()[4..6]], true);
    let network = drawn(&spec, 3);
    let lessons = lessons(&data);
    let (levels, batch) = (&lessons.levels, &lessons.batch);
    let q = Q::of(&network, batch).unwrap();
    let taken = numbers(&q.taken(levels).unwrap());
    let mut joint = vec![vec![]; taken.len()];
    for first in 0..2_i64 {
        for second in 0..3_i64 {
            let choice =
                Tensor::from_slice(&[first, second]).expand([taken.len() as i64, 2], false);
            let found = numbers(&q.taken(&choice).unwrap());
            for (row, (value, all)) in found.into_iter().zip(&mut joint).enumerate() {
                // The second head of row 3 was forced to its level 2.
                if row != 3 || second == 2 {
                    all.push(value);
                }
            }
        }
    }
    let targets = cql::targets(&network, &network, &lessons, 0.9).unwrap();
    let loss = cql::loss(&network, &lessons, &targets, &CQL).unwrap();
    let gaps = joint
        .iter()
        .zip(&taken)
        .map(|(all, taken)| all.iter().map(|q| q.exp()).sum::<f64>().ln() - taken);
    let want = gaps.sum::<f64>() / taken.len() as f64;
    assert!((loss.gap.double_value(&[]) - want).abs() < 1e-9, "{want}");
    // Huber of each difference, by hand.
    let huber = |d: f64| {
        if d.abs() < 1.0 {
            0.5 * d * d
        } else {
            d.abs() - 0.5
        }
    };
    let td = taken
        .iter()
        .zip(numbers(&targets))
        .map(|(q, y)| huber(q - y))
        .sum::<f64>();
    let td = td / taken.len() as f64;
    assert!((loss.td.double_value(&[]) - td).abs() < 1e-9);
    assert!((loss.total.double_value(&[]) - td - CQL.alpha * want).abs() < 1e-9);
}

#[test]
fn an_expectile_weighs_what_is_above_and_below() {
    let u = Tensor::from_slice(&[1.0_f64, -2.0]);
    let loss = |tau| iql::expectile_loss(&u, tau).unwrap().double_value(&[]);
    // (0.7·1 + 0.3·4)/2.
    assert!((loss(0.7) - 0.95).abs() < 1e-12);
    assert!((loss(0.5) - 0.5 * (1.0 + 4.0) / 2.0).abs() < 1e-12);
}

/// V = 1. Of the older critic V = 2 and advantages [−1, 1] and [−3, 3, 0]; of the newer V = 3 and none at all.
#[test]
fn the_losses_of_iql_are_those_worked_by_hand() {
    let spec = spec();
    let rows = &rows()[..2];
    let data = dataset(&spec, &[rows, &self::rows()[2..4]], true);
    let policy = constant(&spec, 1.0, &[0.0, 3.0_f64.ln()], &[0.0, 0.0, 0.0]);
    let critic = constant(&spec, 3.0, &[5.0, 5.0], &[0.0, 0.0, 0.0]);
    let target = constant(&spec, 2.0, &[1.0, 3.0], &[0.0, 6.0, 3.0]);
    let lessons = data
        .lessons(&[0, 2])
        .unwrap()
        .to_kind(Kind::Double)
        .unwrap();
    let loss = iql::loss(&policy, &critic, &target, &lessons, (0.9, &IQL)).unwrap();
    // Row 0 took [0, 2]: Q' = 2 − 1 + 0 = 1, u = 0. Row 2 took [1, 1]: Q' = 2 + 1 + 3 = 6, u = 5.
    let value = 0.7 * 25.0 / 2.0;
    assert!((loss.value.double_value(&[]) - value).abs() < 1e-6);
    // Weights e⁰ = 1 and e¹⁰, clipped to 3; ln π = ln 1/4 + ln 1/3 and ln 3/4 + ln 1/3.
    let policy_loss = -((0.25_f64 / 3.0).ln() + 3.0 * (0.75_f64 / 3.0).ln()) / 2.0;
    assert!((loss.policy.double_value(&[]) - policy_loss).abs() < 1e-6);
    assert!((loss.weight.double_value(&[]) - 2.0).abs() < 1e-6);
    // Q = 3 where −1 + 0.9·1 and, as it ended, 2 are wanted.
    let critic_loss = (3.1_f64.powi(2) + 1.0) / 2.0;
    assert!((loss.critic.double_value(&[]) - critic_loss).abs() < 1e-6);
}

/// Compares the gradient of a loss by every third parameter of a network with central differences.
fn check_gradients(name: &str, network: &Network, loss: impl Fn() -> Tensor) {
    let parameters: Vec<&Tensor> = network.parameters().values().collect();
    let gradients = Tensor::run_backward(&[loss()], &parameters, false, false);
    let (step, mut checked) = (1e-5, 0);
    for ((parameter, gradient), of) in parameters
        .iter()
        .zip(&gradients)
        .zip(network.parameters().keys())
    {
        let flat = parameter.detach().view([-1]);
        for at in (0..flat.size()[0]).step_by(3) {
            let at_shift = |shift: f64| {
                let _ = no_grad(|| flat.get(at).g_add_scalar_(shift));
                no_grad(&loss).double_value(&[])
            };
            let above = at_shift(step);
            let below = at_shift(-2.0 * step);
            at_shift(step);
            let want = (above - below) / (2.0 * step);
            let found = if gradient.defined() {
                gradient.view([-1]).double_value(&[at])
            } else {
                0.0
            };
            assert!(
                (found - want).abs() < 1e-6 * (1.0 + want.abs()),
                "{name}: {of}[{at}]: {found} and not {want}"
            );
            checked += usize::from(want != 0.0);
        }
    }
    assert!(checked > 20, "{name}: {checked} gradients are not 0");
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let spec = spec();
    let data = dataset(&spec, &[&rows()[0..2], &rows()[2..4], &rows()[4..6]], true);
    let lessons = lessons(&data);
    let [network, other, third] = [1, 2, 3].map(|seed| drawn(&spec, seed));
    check_gradients("bc", &network, || {
        let scores = network.scores(&lessons.batch).unwrap();
        bc::loss(&scores, &lessons.batch, &lessons.levels).unwrap()
    });
    let targets = cql::targets(&network, &other, &lessons, 0.9).unwrap();
    for td_loss in [TdLoss::Huber, TdLoss::Squared] {
        let config = CqlConfig { td_loss, ..CQL };
        check_gradients("cql", &network, || {
            cql::loss(&network, &lessons, &targets, &config)
                .unwrap()
                .total
        });
    }
    // Weights of the policy are taken as they are; only V and ln π are descended.
    let losses = || iql::loss(&network, &other, &third, &lessons, (0.9, &IQL)).unwrap();
    check_gradients("iql, value", &network, || losses().value);
    check_gradients("iql, policy", &network, || {
        let weights = [1.0, 2.5, 0.5, 3.0, 0.1, 1.0];
        let weights = Tensor::from_slice(&weights);
        let scores = network.scores(&lessons.batch).unwrap();
        let log_prob = blkpilot_learn::categorical::judge(&scores, &lessons.batch, &lessons.levels);
        -(log_prob.unwrap().log_prob * weights).mean(Kind::Double)
    });
    check_gradients("iql, critic", &other, || losses().critic);
    // π's part does not reach V, nor V's π.
    let parameters: Vec<&Tensor> = network.parameters().values().collect();
    let of = |loss: Tensor| Tensor::run_backward(&[loss], &parameters, false, false);
    for ((name, by_policy), by_value) in network
        .parameters()
        .keys()
        .zip(of(losses().policy))
        .zip(of(losses().value))
    {
        assert_eq!(by_policy.defined(), name.starts_with("actor"), "{name}");
        assert_eq!(by_value.defined(), name.starts_with("critic"), "{name}");
    }
}

#[test]
fn what_follows_is_the_next_turn_of_the_same_disk_and_what_was_cut_teaches_no_value() {
    let spec = spec();
    let rows = rows();
    let whole = dataset(&spec, &[&rows[0..2], &rows[2..4], &rows[4..6]], true);
    assert_eq!((whole.facts.transitions, whole.facts.cut), (6, 0));
    assert_eq!(whole.begins(), [0, 1]);
    // −1 + 0.5·2 + 0.25·4 and 0.5 − 0.5·0.25 + 0.25·1.5.
    assert_eq!(whole.returns(0.5), [1.0, 0.75]);
    let cut = dataset(&spec, &[&rows[0..2], &rows[2..4], &rows[4..6]], false);
    assert_eq!((cut.facts.transitions, cut.facts.cut), (4, 2));
    assert_eq!(cut.transitions(), [0, 1, 2, 3]);
    assert_eq!(cut.choices(), [0, 1, 2, 3, 4, 5]);
    // The second disk has no turn in the second joint decision: nothing is known to follow its first.
    let gap = dataset(&spec, &[&rows[0..2], &rows[2..3], &rows[4..6]], true);
    assert_eq!(gap.transitions(), [0, 2, 3, 4]);
    assert_eq!(gap.begins(), [0, 4]);
    let lessons = gap.lessons(gap.transitions()).unwrap();
    assert_eq!(numbers(&lessons.goes_on), [1.0, 1.0, 0.0, 0.0]);
    // A turn whose reward is not known is one that follows, and no more.
    let unknown = [
        Row {
            reward: None,
            ..rows[2]
        },
        rows[3],
    ];
    let unknown = dataset(&spec, &[&rows[0..2], &unknown, &rows[4..6]], true);
    assert_eq!(unknown.transitions(), [0, 1, 3, 4, 5]);
}

#[test]
fn data_that_teach_nothing_are_refused() {
    let mut scheduled = spec();
    scheduled.device_heads = scheduled.disk_heads.clone();
    let error = support::builder(&scheduled, &[]).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("devices of `process` decide too"),
        "{error}"
    );
    let forced = [Row {
        closed: &[1, 2, 3],
        ..rows()[0]
    }];
    let error = support::try_dataset(&spec(), &[&forced], true).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("in none of its 1 turns was there a choice"),
        "{error}"
    );
    let alone = dataset(&spec(), &[&rows()[0..2]], false);
    let error = learner(Algorithm::Cql(CQL), alone).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("(2 have a reward and no successor)"),
        "{error}"
    );
}

fn config(algorithm: Algorithm) -> OfflineConfig {
    OfflineConfig {
        algorithm,
        minibatch: 64,
        gamma: 0.8,
        learning_rate: Schedule::Constant(5e-3),
        max_grad_norm: Some(10.0),
    }
}

fn learner(algorithm: Algorithm, data: Dataset) -> Result<Offline, LearnError> {
    Offline::new(&spec(), SMALL, config(algorithm), data, 7)
}

/// In the process of `support`, by the behaviour that draws level 1 of the first head with 0.3.
fn learnt(algorithm: Algorithm, steps: u64) -> Offline {
    let data = support::log_of_process(3000, 11);
    let mut learner = learner(algorithm, data).unwrap();
    learner.learn(steps, 0.0).unwrap();
    learner
}

#[test]
fn cloning_finds_the_probabilities_of_the_behaviour() {
    let learner = learnt(Algorithm::Bc, 400);
    let best = learner.data().behaviour_entropy().unwrap();
    let probabilities = support::probabilities(&learner);
    for (state, [first, second]) in probabilities.iter().enumerate() {
        let want = support::BEHAVIOUR[state];
        assert!((first - want[0]).abs() < 0.05, "{state}: {probabilities:?}");
        assert!(
            (second - want[1]).abs() < 0.05,
            "{state}: {probabilities:?}"
        );
    }
    assert!(best > 1.0, "{best}");
}

#[test]
fn conservative_and_implicit_q_learning_find_the_best_policy_of_a_process() {
    let conservative = CqlConfig { alpha: 0.1, ..CQL };
    let implicit = IqlConfig {
        expectile: 0.9,
        beta: 10.0,
        most_weight: 100.0,
        polyak: 0.02,
    };
    for algorithm in [Algorithm::Cql(conservative), Algorithm::Iql(implicit)] {
        let learner = learnt(algorithm, 1500);
        let name = algorithm.name();
        assert_eq!(support::greedy(&learner), support::BEST, "{name}");
        let own = learner.own_estimate().unwrap().unwrap();
        let best = support::value_of_best(0.8);
        let was = learner.data().returns(0.8);
        let was = was.iter().sum::<f64>() / was.len() as f64;
        assert!(was < best - 1.0, "{was} {best}");
        // A conservative or expectile estimate lies somewhere between.
        assert!(
            own > was && own < best + 0.5,
            "{name}: {own}, behaviour {was}, best {best}"
        );
    }
}

#[test]
fn a_learner_that_goes_on_is_the_one_that_was_not_interrupted() {
    for algorithm in [Algorithm::Bc, Algorithm::Cql(CQL), Algorithm::Iql(IQL)] {
        let data = || support::log_of_process(100, 5);
        let mut whole = learner(algorithm, data()).unwrap();
        whole.learn(17, 0.0).unwrap();
        let kept = whole.checkpoint(serde_json::Value::Null).unwrap();
        kept.verify().unwrap();
        let last = whole.learn(8, 0.5).unwrap();
        let mut resumed = Offline::resume(&kept, config(algorithm), data()).unwrap();
        assert_eq!(resumed.steps(), 17);
        assert_eq!(resumed.learn(8, 0.5).unwrap(), last);
        let of = |learner: &Offline| learner.checkpoint(serde_json::Value::Null).unwrap();
        assert_eq!(of(&resumed), of(&whole), "{}", algorithm.name());
        // Another seed is another learner.
        let mut other = Offline::new(&spec(), SMALL, config(algorithm), data(), 8).unwrap();
        other.learn(25, 0.0).unwrap();
        assert_ne!(of(&other).tensors, of(&whole).tensors);
        let changed = support::log_of_process(100, 6);
        let error = Offline::resume(&kept, config(algorithm), changed).unwrap_err();
        assert!(
            error.to_string().contains("the log has changed since"),
            "{error}"
        );
    }
    let bc = learner(Algorithm::Bc, support::log_of_process(100, 5)).unwrap();
    let bc = bc.checkpoint(serde_json::Value::Null).unwrap();
    let data = support::log_of_process(100, 5);
    let error = Offline::resume(&bc, config(Algorithm::Iql(IQL)), data).unwrap_err();
    assert!(
        error.to_string().contains("it is of bc, and not of iql"),
        "{error}"
    );
}

#[test]
fn learning_that_runs_away_says_so() {
    let wild = OfflineConfig {
        learning_rate: Schedule::Constant(1e3),
        max_grad_norm: None,
        ..config(Algorithm::Cql(CQL))
    };
    let data = support::log_of_process(100, 5);
    let mut learner = Offline::new(&spec(), SMALL, wild, data, 7).unwrap();
    let error = learner.learn(200, 0.0).unwrap_err();
    assert!(matches!(error, LearnError::Diverged { .. }), "{error}");
}
