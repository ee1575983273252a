//! Models that a caller adds: what they are given, and what is made of what they say.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod common;

use blkpilot_evaluate::{
    Block, Estimator, Evaluation, Extras, Fit, Options, Sample, SampleStep, Then, ValueModel,
    VerdictRule, evaluate, evaluate_with, verdict,
};
use blkpilot_models::ope::sequential::linear::LinearFqe;
use common::{BAD, GOOD, Size, Table, Target, World, log};
use tempfile::TempDir;

const HORIZON: usize = 3;
const GAMMA: f64 = 0.8;
const ONE: World = World {
    disks: 1,
    contention: 0.0,
};
const SIZE: Size = Size {
    hosts: 4,
    episodes: 6,
    steps: 60,
};

fn options() -> Options {
    Options {
        gamma: GAMMA,
        horizon: HORIZON,
        block: Block::Seconds(300.0),
        replicates: 100,
        ..Options::default()
    }
}

fn evaluated(
    policy: Table,
    against: Option<Table>,
    model: &mut dyn ValueModel,
    most_held_rows: usize,
) -> Evaluation {
    let dir = TempDir::new().unwrap();
    log(dir.path(), ONE, SIZE, 7);
    let policy = Target::new(policy);
    let against = against.map(Target::new);
    let against = against.as_ref().map(|target| target as _);
    let extras = Extras {
        models: vec![model],
        most_held_rows,
        ..Extras::default()
    };
    evaluate_with(dir.path(), &policy, against, &options(), extras).unwrap()
}

/// Fitted Q evaluation over the table of one disk's state and levels.
#[derive(Default)]
struct Tabular {
    fits: Vec<Fit>,
}

/// One over state × cache, then one over state × polling: what is worth what is a sum over heads.
fn features(step: &SampleStep<'_>, p: [f64; 2]) -> Vec<f64> {
    let state = step.turns()[0].disk[0] as usize;
    let mut features = vec![0.0; 8];
    for (head, p) in p.into_iter().enumerate() {
        features[4 * head + 2 * state] = 1.0 - p;
        features[4 * head + 2 * state + 1] = p;
    }
    features
}

fn taken(step: &SampleStep<'_>) -> Vec<f64> {
    let levels: Vec<f64> = step.requested().map(f64::from).collect();
    features(step, [levels[0], levels[1]])
}

fn expected(step: &SampleStep<'_>, policy: usize) -> Vec<f64> {
    let p = step.probabilities(policy);
    features(step, [p[1], p[3]])
}

impl ValueModel for Tabular {
    fn name(&self) -> &'static str {
        "tabular"
    }

    fn values(&mut self, sample: &Sample, fit: Fit) -> Result<Vec<f64>, String> {
        self.fits.push(fit);
        let mut fqe = LinearFqe::new(8, 1e-6).unwrap();
        let steps: Vec<SampleStep<'_>> = sample.steps().collect();
        for (i, step) in steps.iter().enumerate() {
            if step.then == Then::Next && step.fold != fit.held_out {
                let next = expected(&steps[i + 1], fit.policy);
                fqe.push(&taken(step), &next, step.reward).unwrap();
            }
        }
        let theta = fqe
            .finite_horizon(sample.gamma(), sample.horizon())
            .unwrap();
        let begins = steps.iter().filter(|step| step.begins);
        let value = |step: &SampleStep<'_>| {
            let expected = expected(step, fit.policy);
            expected.iter().zip(&theta).map(|(x, y)| x * y).sum()
        };
        Ok(begins.map(value).collect())
    }
}

/// What each window is said to be worth.
struct Constant(f64);

impl ValueModel for Constant {
    fn name(&self) -> &'static str {
        "constant"
    }

    fn values(&mut self, sample: &Sample, _: Fit) -> Result<Vec<f64>, String> {
        Ok(vec![self.0; sample.windows()])
    }
}

#[test]
fn a_model_of_the_sample_finds_the_value_that_is_known() {
    let mut model = Tabular::default();
    let found = evaluated(GOOD, Some(BAD), &mut model, usize::MAX);
    assert_eq!(model.fits.len(), 2 * Sample::FOLDS);
    let of = |table: &Table| ONE.value(table, SIZE.steps, HORIZON, GAMMA);
    let estimate = &found.models[0];
    let pairs = [
        (estimate.value, of(&GOOD)),
        (estimate.baseline, of(&BAD)),
        (estimate.difference, of(&GOOD) - of(&BAD)),
    ];
    for (value, wanted) in pairs {
        let value = value.unwrap();
        assert!(value.std_err > 1e-4 && value.std_err < 0.05, "{value:?}");
        let [low, high] = value.interval;
        assert!(low < wanted && wanted < high, "{value:?} {wanted}");
    }
    // Of this world the linear model is exact too, and both were fitted to the same transitions.
    let mut estimates = found.estimates.iter();
    let fqe = estimates.find(|estimate| estimate.estimator == Estimator::Fqe);
    let fqe = fqe.unwrap().difference.unwrap().estimate;
    let apart = (estimate.difference.unwrap().estimate - fqe).abs();
    assert!(apart < 0.01, "{apart}");
    assert_eq!(estimate.windows, found.windows.begun);
    assert!(found.notes.iter().any(|note| note.contains("jackknife")));
}

/// Says 1 of what it has not seen.
struct Unseen;

impl ValueModel for Unseen {
    fn name(&self) -> &'static str {
        "unseen"
    }

    fn values(&mut self, sample: &Sample, fit: Fit) -> Result<Vec<f64>, String> {
        let begins = sample.steps().filter(|step| step.begins);
        let is_unseen = |step: SampleStep<'_>| f64::from(u8::from(step.fold == fit.held_out));
        Ok(begins.map(is_unseen).collect())
    }
}

#[test]
fn each_window_takes_the_value_of_the_fit_that_has_not_seen_it() {
    let found = evaluated(GOOD, None, &mut Unseen, usize::MAX);
    let value = found.models[0].value.unwrap();
    assert!((value.estimate - 1.0 / 2.44).abs() < 1e-12, "{value:?}");
    // And the jackknife's, those that have.
    assert_eq!(value.std_err, 0.0);
}

#[test]
fn what_is_added_changes_nothing_else_and_no_verdict_looks_at_it() {
    let mut model = Constant(1e6);
    let found = evaluated(BAD, None, &mut model, usize::MAX);
    let dir = TempDir::new().unwrap();
    log(dir.path(), ONE, SIZE, 7);
    let alone = evaluate(dir.path(), &Target::new(BAD), None, &options()).unwrap();
    let rule = VerdictRule::default();
    assert_eq!(verdict(&found, &rule), verdict(&alone, &rule));
    assert_eq!(found.estimates, alone.estimates);
    assert!(alone.models.is_empty());
    let estimate = &found.models[0];
    let value = estimate.value.unwrap();
    // 1 + 0.8 + 0.64 discounts.
    assert!((value.estimate - 1e6 / 2.44).abs() < 1e-6 && value.std_err < 1e-9);
    let baseline = estimate.baseline.unwrap();
    let behaviour = found.behaviour.unwrap();
    assert_eq!(baseline.estimate, behaviour.estimate);
    assert!(
        baseline.std_err > 0.2 * behaviour.std_err && baseline.std_err < 5.0 * behaviour.std_err
    );
}

#[test]
fn a_log_that_is_too_long_is_held_as_a_random_sample_of_windows_and_says_so() {
    let mut model = Tabular::default();
    let found = evaluated(GOOD, None, &mut model, 400);
    let estimate = &found.models[0];
    // 1440 rows in 480 windows: a window and what follows it are 4 rows, 3 at the end of an episode. Halving leaves
    // about half of what may be held at least.
    assert_eq!(found.windows.begun, 480);
    assert!(
        (30..=133).contains(&estimate.windows),
        "{}",
        estimate.windows
    );
    let words = format!("random sample of {} of 480 windows", estimate.windows);
    assert!(
        found.notes.iter().any(|note| note.contains(&words)),
        "{:?}",
        found.notes
    );
    let value = estimate.value.unwrap();
    let wanted = ONE.value(&GOOD, SIZE.steps, HORIZON, GAMMA);
    assert!((value.estimate - wanted).abs() < 0.1, "{value:?} {wanted}");
    assert_eq!(found, evaluated(GOOD, None, &mut model, 400));
}

#[test]
fn a_model_that_fails_has_the_reason_in_the_place_of_its_estimate() {
    struct Fails(Result<Vec<f64>, String>);
    impl ValueModel for Fails {
        fn name(&self) -> &'static str {
            "fails"
        }
        fn values(&mut self, _: &Sample, _: Fit) -> Result<Vec<f64>, String> {
            self.0.clone()
        }
    }
    let says = |result| {
        let found = evaluated(GOOD, None, &mut Fails(result), usize::MAX);
        assert!(found.models[0].value.is_none() && found.estimates[0].value.is_some());
        found.models[0].undefined.clone().unwrap()
    };
    assert_eq!(says(Err("no luck".to_owned())), "no luck");
    assert_eq!(says(Ok(vec![])), "it gives 0 values for 480 windows");
    let not = says(Ok(vec![f64::NAN; 480]));
    assert!(not.contains("no number"), "{not}");
}
