//! Estimates against values that are known by enumeration.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod common;

use blkpilot_evaluate::{
    Block, Estimator, Evaluation, Exposure, Options, VerdictRule, Word, evaluate, verdict,
};
use common::{BAD, BEHAVIOUR, GOOD, Size, Table, Target, World, log};
use tempfile::TempDir;

const HORIZON: usize = 3;
const GAMMA: f64 = 0.8;
const ONE: World = World {
    disks: 1,
    contention: 0.0,
};
const TWO: World = World {
    disks: 2,
    contention: 0.5,
};
/// Where everything depends on what the others do.
const CROWDED: World = World {
    disks: 2,
    contention: 2.0,
};
/// Whoever follows it gets crowded.
const HERD: Table = Table {
    name: "herd",
    cache: [[0.8, 0.8], [0.8, 0.8]],
    polling: [0.5, 0.4],
};
const SIZE: Size = Size {
    hosts: 4,
    episodes: 12,
    steps: 60,
};

fn options(exposure: Exposure) -> Options {
    Options {
        gamma: GAMMA,
        horizon: HORIZON,
        exposure,
        block: Block::Seconds(300.0),
        replicates: 500,
        ..Options::default()
    }
}

fn evaluated(world: World, policy: Table, against: Option<Table>, options: &Options) -> Evaluation {
    let dir = TempDir::new().unwrap();
    log(dir.path(), world, SIZE, 7);
    let policy = Target::new(policy);
    let against = against.map(Target::new);
    let against = against.as_ref().map(|target| target as _);
    evaluate(dir.path(), &policy, against, options).unwrap()
}

fn truth(world: World, policy: &Table) -> f64 {
    world.value(policy, SIZE.steps, HORIZON, GAMMA)
}

fn assert_close(evaluation: &Evaluation, world: World, policy: &Table, estimators: &[Estimator]) {
    let wanted = truth(world, policy);
    for estimate in &evaluation.estimates {
        if !estimators.contains(&estimate.estimator) {
            continue;
        }
        let value = estimate.value.unwrap();
        let z = (value.estimate - wanted) / value.std_err;
        assert!(
            z.abs() < 4.0,
            "{:?}: {value:?}, not {wanted}",
            estimate.estimator
        );
        assert!(value.std_err < 0.03, "{:?}: {value:?}", estimate.estimator);
    }
}

#[test]
fn all_three_find_the_value_of_another_policy_of_one_disk() {
    for policy in [GOOD, BAD] {
        let found = evaluated(ONE, policy, None, &options(Exposure::Host));
        assert_close(&found, ONE, &policy, &Estimator::ALL);
        let behaviour = found.behaviour.unwrap();
        let wanted = truth(ONE, &BEHAVIOUR);
        assert!((behaviour.estimate - wanted).abs() < 4.0 * behaviour.std_err);
    }
}

#[test]
fn the_model_lowers_the_error_of_the_weights() {
    let found = evaluated(ONE, GOOD, None, &options(Exposure::Host));
    let error = |estimator| {
        let mut estimates = found.estimates.iter();
        let found = estimates.find(|estimate| estimate.estimator == estimator);
        found.unwrap().value.unwrap().std_err
    };
    assert!(error(Estimator::Wdr) < 0.8 * error(Estimator::Snpdis));
    assert!(error(Estimator::Fqe) <= error(Estimator::Wdr) * 1.1);
}

#[test]
fn disks_that_see_each_others_choices_need_the_weight_of_the_host() {
    let by_weights = [Estimator::Snpdis, Estimator::Wdr];
    let found = evaluated(TWO, GOOD, None, &options(Exposure::Host));
    assert_close(&found, TWO, &GOOD, &by_weights);
    // By its own choices alone a disk's reward looks as if the others had gone on as before.
    let found = evaluated(CROWDED, HERD, None, &options(Exposure::Disk));
    let value = found.estimates[0].value.unwrap();
    let off = (value.estimate - truth(CROWDED, &HERD)).abs() / value.std_err;
    assert!(off > 6.0, "{value:?} {}", truth(CROWDED, &HERD));
    assert!(found.exposure.contains("assumption"));
}

#[test]
fn disks_that_do_not_affect_each_other_may_be_taken_one_by_one() {
    let apart = World {
        disks: 2,
        contention: 0.0,
    };
    // Nobody looks at what was chosen before.
    let blind = |table: Table| Table {
        cache: table.cache.map(|[first, _]| [first, first]),
        ..table
    };
    let policy = blind(GOOD);
    let found = evaluated(apart, policy, None, &options(Exposure::Disk));
    assert_close(&found, apart, &policy, &[Estimator::Snpdis, Estimator::Wdr]);
}

#[test]
fn the_behaviour_evaluated_as_another_policy_is_itself() {
    let found = evaluated(TWO, BEHAVIOUR, None, &options(Exposure::Host));
    let behaviour = found.behaviour.unwrap();
    for estimate in &found.estimates {
        let difference = estimate.difference.unwrap();
        // The model's values are other numbers; weights are all 1.
        let most = if estimate.estimator == Estimator::Snpdis {
            1e-9
        } else {
            0.01
        };
        assert!(difference.estimate.abs() < most, "{estimate:?}");
    }
    assert!((found.diagnostics.ess - found.windows.whole as f64).abs() < 1e-6);
    assert!(behaviour.interval[0] < truth(TWO, &BEHAVIOUR));
    let verdict = verdict(&found, &VerdictRule::default());
    assert_eq!(verdict.word, Word::CannotTell, "{}", verdict.text);
}

#[test]
fn verdicts_are_those_of_the_true_values_against_behaviour_and_another() {
    let rule = VerdictRule::default();
    let word = |policy, against| {
        let found = evaluated(ONE, policy, against, &options(Exposure::Host));
        let verdict = verdict(&found, &rule);
        (verdict.word, verdict.text)
    };
    assert!(truth(ONE, &GOOD) > truth(ONE, &BEHAVIOUR) + 0.05);
    assert!(truth(ONE, &BAD) < truth(ONE, &BEHAVIOUR) - 0.05);
    for (policy, against, wanted) in [
        (GOOD, None, Word::Better),
        (BAD, None, Word::Worse),
        (GOOD, Some(BAD), Word::Better),
        (BAD, Some(GOOD), Word::Worse),
        (GOOD, Some(GOOD), Word::CannotTell),
    ] {
        let (word, text) = word(policy, against);
        assert_eq!(
            word,
            wanted,
            "{} against {:?}: {text}",
            policy.name,
            against.map(|a| a.name)
        );
        assert!(text.contains("Exposure host"), "{text}");
    }
}

#[test]
fn the_same_log_and_seed_give_the_same_evaluation() {
    let run = || evaluated(TWO, GOOD, Some(BAD), &options(Exposure::Host));
    let (first, second) = (run(), run());
    assert_eq!(first, second);
    let text = serde_json::to_string(&first).unwrap();
    assert!(!text.contains("NaN"));
    let read: Evaluation = serde_json::from_str(&text).unwrap();
    assert_eq!(read.estimates.len(), first.estimates.len());
}
