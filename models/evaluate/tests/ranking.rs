//! Whether estimates from one log put policies in order, and how often a verdict is wrong.
//!
//! Ten policies, from worse than chance to near the oracle, are evaluated from logs of one stochastic policy on a
//! simulated host, whose true values are known from fresh episodes. One log must put them in order. Over many
//! logs, one that is worse than the behaviour by a twentieth of the range must never be called better, and the
//! one near the oracle must be called better most of the time.
//!
//! `cargo test` takes small logs and few; `BLKPILOT_FULL=1` takes 200 and prints the tables.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod study;

use blkpilot_env::sim::presets;
use blkpilot_evaluate::{Estimator, Exposure, VerdictRule, Word, evaluate, verdict};
use blkpilot_models::ope::Selection;
use study::{Blend, Lean, Mean, Placement, Study, is_full, of};

/// One disk per channel, direct, without polling.
const GOOD: Lean = Lean {
    placement: Placement::Spread,
    cache: 0,
    polling: Some(0),
};
const BAD: Lean = Lean {
    placement: Placement::Crowd,
    cache: 1,
    polling: Some(1),
};
/// How far the behaviour leans to what is good.
const BEHAVIOUR: f64 = 0.6;
/// How far the policy does that is near the oracle.
const NEAR: f64 = 0.99;
/// Steps that the policy is sought in which is worse than the behaviour by a twentieth of the range.
const GRID: f64 = 0.01;
/// Seeds of the logs of verdicts, apart from that of the ranking.
const VERDICT_SEEDS: u64 = 1 << 32;

struct Case {
    study: Study,
    behaviour: Blend,
}

impl Case {
    fn new() -> Self {
        let mut scenario = presets::identical_disks(2, 2);
        scenario.name = "two_on_one_device".to_owned();
        scenario.steps = 8;
        let study = Study {
            scenario,
            horizon: 2,
        };
        let behaviour = Blend::new(&study.spec(), GOOD, BEHAVIOUR);
        Self { study, behaviour }
    }

    fn leaning(&self, lean: Lean, share: f64) -> Blend {
        Blend::new(&self.study.spec(), lean, share)
    }

    /// Ten policies from bad to near the oracle; none is the behaviour.
    fn candidates(&self) -> Vec<Blend> {
        let bad = [0.2, 0.1].map(|share| self.leaning(BAD, share));
        let good = [0.0, 0.15, 0.3, 0.45, 0.55, 0.75, 0.85, NEAR];
        let good = good.map(|share| self.leaning(GOOD, share));
        bad.into_iter().chain(good).collect()
    }

    fn truth(&self, policy: &Blend, windows: u64) -> Mean {
        self.study.truth(&self.behaviour, policy, windows)
    }

    fn truths(&self, policies: &[Blend], windows: u64) -> Vec<Mean> {
        let policies = policies.iter();
        policies.map(|policy| self.truth(policy, windows)).collect()
    }

    fn text(&self, episodes: u64) -> String {
        let study = &self.study;
        format!(
            "{} disks on {} channels and one device; a log has {episodes} episodes of {} steps, in windows of {}",
            study.scenario.disks.len(),
            study.scenario.channels.len(),
            study.scenario.steps,
            study.horizon
        )
    }
}

/// From the worst to the best of the candidates.
fn range(values: &[Mean]) -> f64 {
    let values = || values.iter().map(|value| value.mean);
    values().fold(f64::NEG_INFINITY, f64::max) - values().fold(f64::INFINITY, f64::min)
}

#[test]
fn estimates_from_one_log_put_ten_policies_in_order() {
    let (episodes, fresh) = match is_full() {
        true => (3000, 10_000),
        false => (600, 1500),
    };
    let case = Case::new();
    let candidates = case.candidates();
    let values = case.truths(&candidates, fresh);
    let behaviour = case.truth(&case.behaviour, fresh);
    let oracle = case.study.oracle(&case.behaviour, fresh);
    let log = case.study.log(&case.behaviour, 0, episodes);
    let options = case.study.options(Exposure::Host);
    let evaluations: Vec<_> = candidates
        .iter()
        .map(|policy| evaluate(log.path(), policy, None, &options).unwrap())
        .collect();
    let estimates = |estimator: Estimator| -> Vec<f64> {
        let values = evaluations.iter().map(|found| of(found, estimator).value);
        values.map(|value| value.unwrap().estimate).collect()
    };
    let estimates = Estimator::ALL.map(estimates);
    if is_full() {
        println!("{}", case.text(episodes));
        println!(
            "{:12} {:>17} {:>8} {:>8} {:>8} {:>8}",
            "policy", "true value", "SNPDIS", "WDR", "FQE", "ESS"
        );
        for (number, policy) in candidates.iter().enumerate() {
            let ess = evaluations[number].diagnostics.ess;
            println!(
                "{:12} {} {:8.4} {:8.4} {:8.4} {ess:8.1}",
                policy.label(),
                text_of(values[number]),
                estimates[0][number],
                estimates[1][number],
                estimates[2][number]
            );
        }
        println!("{:12} {}", "behaviour", text_of(behaviour));
        println!("{:12} {}", "oracle", text_of(oracle));
    }
    let range = range(&values);
    let (worst, best) = (&values[0], &values[values.len() - 1]);
    let closed = (best.mean - behaviour.mean) / (oracle.mean - behaviour.mean);
    if is_full() {
        println!(
            "range {range:.4}; the best closes {:.0} % of the gap between behaviour and oracle",
            100.0 * closed
        );
    }
    // The candidates are what they are said to be.
    assert!((0.75..=1.0).contains(&closed), "closed {closed:.3}");
    assert!((best.mean - worst.mean) / range > 0.999, "{values:?}");
    let means: Vec<f64> = values.iter().map(|value| value.mean).collect();
    for (estimator, estimates) in Estimator::ALL.iter().zip(&estimates) {
        let selection = Selection::new(estimates, &means, behaviour.mean, 1).unwrap();
        let (spearman, regret) = (selection.spearman.unwrap(), selection.top[0].regret / range);
        let name = estimator.name();
        if is_full() {
            println!(
                "{name:6} Spearman {spearman:.3}, regret@1 {:.1} % of the range, mean error {:.4}",
                100.0 * regret,
                selection.mean_abs_error
            );
        }
        assert!(spearman >= 0.9, "{name}: Spearman {spearman:.3}");
        assert!(regret <= 0.05, "{name}: regret {regret:.3} of the range");
    }
}

fn text_of(value: Mean) -> String {
    format!("{:8.4} ± {:.4}", value.mean, value.std_err)
}

/// What was said of one policy.
struct Words {
    policy: Blend,
    /// True difference to the behaviour, as a share of the range.
    difference: f64,
    better: u32,
    worse: u32,
    cannot_tell: u32,
    least_ess: f64,
}

impl Words {
    fn take(&mut self, word: Word, ess: f64) {
        match word {
            Word::Better => self.better += 1,
            Word::Worse => self.worse += 1,
            Word::CannotTell => self.cannot_tell += 1,
        }
        self.least_ess = self.least_ess.min(ess);
    }
}

#[test]
fn a_worse_policy_is_never_called_better_and_one_near_the_oracle_mostly_is() {
    let (logs, episodes, fresh) = match is_full() {
        true => (200, 400, 10_000),
        false => (2, 320, 1500),
    };
    let case = Case::new();
    let candidates = case.candidates();
    let values = case.truths(&candidates, fresh);
    let (range, behaviour) = (range(&values), case.truth(&case.behaviour, fresh));
    let share_of_range = |value: Mean| (value.mean - behaviour.mean) / range;
    // The nearest of a grid that is worse by a twentieth.
    let shares = (1..).map(|step| BEHAVIOUR - GRID * f64::from(step));
    let mut grid = shares.map(|share| case.leaning(GOOD, share));
    let barely_worse = grid.find(|policy| share_of_range(case.truth(policy, fresh)) <= -0.05);
    let policies = barely_worse
        .into_iter()
        .chain(candidates.into_iter().last());
    let mut all: Vec<Words> = policies
        .map(|policy| Words {
            difference: share_of_range(case.truth(&policy, fresh)),
            policy,
            better: 0,
            worse: 0,
            cannot_tell: 0,
            least_ess: f64::INFINITY,
        })
        .collect();
    let (options, rule) = (case.study.options(Exposure::Host), VerdictRule::default());
    for number in 0..u64::from(logs) {
        let first_seed = VERDICT_SEEDS + number * episodes;
        let log = case.study.log(&case.behaviour, first_seed, episodes);
        for words in &mut all {
            let found = evaluate(log.path(), &words.policy, None, &options).unwrap();
            words.take(verdict(&found, &rule).word, found.diagnostics.ess);
        }
    }
    if is_full() {
        print_words(&case.text(episodes), &all, logs);
    }
    let barely_worse = &all[0];
    assert!(
        (-0.08..=-0.05).contains(&barely_worse.difference),
        "by {:+.3} of the range",
        barely_worse.difference
    );
    for words in all.iter().filter(|words| words.difference <= -0.05) {
        let (name, better) = (words.policy.label(), words.better);
        assert_eq!(better, 0, "{name}: better in {better} of {logs} logs");
    }
    let near = all.last().unwrap();
    assert!(
        5 * near.better >= 4 * logs,
        "near the oracle: better in {} of {logs} logs",
        near.better
    );
}

fn print_words(case: &str, all: &[Words], logs: u32) {
    println!("{case}; {logs} logs");
    println!(
        "{:12} {:>17} {:>7} {:>6} {:>12} {:>10}",
        "policy", "against behaviour", "better", "worse", "cannot tell", "least ESS"
    );
    for words in all {
        println!(
            "{:12} {:+15.1} % {:7} {:6} {:12} {:10.1}",
            words.policy.label(),
            100.0 * words.difference,
            words.better,
            words.worse,
            words.cannot_tell,
            words.least_ess
        );
    }
    let worse = all.iter().filter(|words| words.difference <= -0.05);
    let most = worse.map(|words| words.better).max().unwrap_or(0);
    println!(
        "called better though worse by 5 % of the range: at most {most} of {logs}; none of {logs} bounds the rate by {:.1} % (95 %)",
        // Clopper and Pearson 1934.
        100.0 * (1.0 - 0.05_f64.powf(1.0 / f64::from(logs)))
    );
}
