//! Verdicts and admissions, rule by rule.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod common;

use blkpilot_evaluate::{
    Admission, Block, Estimator, Evaluation, Force, GateRule, Needs, Options, Value, VerdictRule,
    Word, evaluate, gate, verdict,
};
use common::{GOOD, Size, Target, World, log};
use tempfile::TempDir;

/// An evaluation that nothing is wrong with, whose differences are these.
fn evaluation(differences: [f64; 3]) -> Evaluation {
    let dir = TempDir::new().unwrap();
    let world = World {
        disks: 1,
        contention: 0.0,
    };
    let size = Size {
        hosts: 2,
        episodes: 2,
        steps: 150,
    };
    log(dir.path(), world, size, 5);
    let options = Options {
        horizon: 2,
        block: Block::Seconds(200.0),
        replicates: 100,
        ..Options::default()
    };
    let mut found = evaluate(dir.path(), &Target::new(GOOD), None, &options).unwrap();
    for (estimate, difference) in found.estimates.iter_mut().zip(differences) {
        estimate.difference = Some(Value {
            estimate: difference,
            std_err: 0.01,
            interval: [difference - 0.02, difference + 0.02],
        });
    }
    let clean = verdict(&found, &VerdictRule::default());
    assert!(
        clean
            .reasons
            .iter()
            .all(|reason| ["interval", "agreement"].contains(&reason.diagnostic.as_str())),
        "{clean:?}"
    );
    found
}

fn now(of: &Evaluation) -> i64 {
    of.log.until_us.unwrap() + 3_600_000_000
}

#[test]
fn the_interval_decides_the_word() {
    let rule = VerdictRule::default();
    for (difference, word, is_not_worse) in [
        (0.1, Word::Better, true),
        (-0.1, Word::Worse, false),
        (0.01, Word::CannotTell, false),
    ] {
        let found = verdict(&evaluation([difference; 3]), &rule);
        assert_eq!(
            (found.word, found.is_not_worse),
            (word, is_not_worse),
            "{}",
            found.text
        );
    }
    let margin = VerdictRule {
        margin: 0.02,
        ..rule
    };
    let found = verdict(&evaluation([0.01; 3]), &margin);
    assert!(found.is_not_worse && found.word == Word::CannotTell);
}

#[test]
fn an_estimator_that_contradicts_leaves_nothing_to_tell() {
    let found = verdict(&evaluation([0.1, 0.1, -0.1]), &VerdictRule::default());
    assert_eq!((found.word, found.is_not_worse), (Word::CannotTell, false));
    assert!(
        found.text.contains("WDR says better, but FQE says worse"),
        "{}",
        found.text
    );
    // One that cannot tell does not.
    let found = verdict(&evaluation([0.0, 0.1, 0.0]), &VerdictRule::default());
    assert_eq!(found.word, Word::Better);
}

#[test]
fn each_diagnostic_beyond_its_threshold_is_named_with_both_numbers() {
    type Change = fn(&mut Evaluation);
    let changes: [(&str, Change); 8] = [
        ("ess", |e| e.diagnostics.ess = 49.9),
        ("ess_blocks", |e| e.diagnostics.ess_blocks = 4.0),
        ("max_share", |e| e.diagnostics.max_share = 0.11),
        ("mean_z", |e| e.diagnostics.mean_z = Some(-3.1)),
        ("pareto_k", |e| e.diagnostics.pareto_k = Some(0.71)),
        ("unsupported", |e| e.diagnostics.unsupported = 0.02),
        ("blocks", |e| e.windows.blocks = 9),
        ("calibration", |e| {
            e.calibration[0].coverage = 1.2;
            e.calibration[0].coverage_std_err = 0.01;
        }),
    ];
    for (name, change) in changes {
        let mut of = evaluation([0.1; 3]);
        change(&mut of);
        let found = verdict(&of, &VerdictRule::default());
        assert_eq!(
            (found.word, found.is_not_worse),
            (Word::CannotTell, false),
            "{name}"
        );
        let [reason] = found.reasons.as_slice() else {
            panic!("{name}: {:?}", found.reasons)
        };
        assert_eq!(reason.diagnostic, name);
        assert!(found.text.contains(&reason.text) && reason.value.is_some());
        let held = gate(Ok((&of, &found)), &GateRule::default(), now(&of), None);
        assert!(!held.may_pass(), "{name}");
    }
}

#[test]
fn an_estimate_that_was_not_made_leaves_nothing_to_tell() {
    let mut of = evaluation([0.1; 3]);
    of.estimates[1].difference = None;
    of.estimates[1].undefined = Some("linear FQE has no unique solution".to_owned());
    let found = verdict(&of, &VerdictRule::default());
    assert!(
        found.text.contains("WDR gives no estimate: linear FQE"),
        "{}",
        found.text
    );
    let by_weights = VerdictRule {
        estimator: Estimator::Snpdis,
        ..VerdictRule::default()
    };
    assert_eq!(verdict(&of, &by_weights).word, Word::Better);
}

#[test]
fn the_gate_admits_what_is_better_and_refuses_the_rest() {
    let rule = GateRule::default();
    let admission = |difference: f64, rule: &GateRule, force: Option<&Force>| {
        let of = evaluation([difference; 3]);
        let found = verdict(
            &of,
            &VerdictRule {
                margin: 0.02,
                ..VerdictRule::default()
            },
        );
        gate(Ok((&of, &found)), rule, now(&of), force)
    };
    assert_eq!(admission(0.1, &rule, None), Admission::Admitted);
    for difference in [-0.1, 0.01] {
        let Admission::Refused { objections } = admission(difference, &rule, None) else {
            panic!("{difference}")
        };
        assert!(
            objections[0].starts_with("the verdict must be better: "),
            "{objections:?}"
        );
    }
    let not_worse = GateRule {
        needs: Needs::NotWorse,
        ..rule.clone()
    };
    assert_eq!(admission(0.01, &not_worse, None), Admission::Admitted);
    assert!(!admission(-0.1, &not_worse, None).may_pass());
    // Force needs a reason, and changes nothing where nothing is in the way.
    let force = |reason: &str| Force {
        reason: reason.to_owned(),
    };
    assert!(!admission(-0.1, &rule, Some(&force(" "))).may_pass());
    let Admission::Forced { reason, objections } =
        admission(-0.1, &rule, Some(&force("an outage")))
    else {
        panic!("it was forced")
    };
    assert_eq!((reason.as_str(), objections.len()), ("an outage", 1));
    assert_eq!(
        admission(0.1, &rule, Some(&force("an outage"))),
        Admission::Admitted
    );
}

#[test]
fn the_gate_wants_recent_decisions_and_its_confidence() {
    let of = evaluation([0.1; 3]);
    let found = verdict(&of, &VerdictRule::default());
    let rule = GateRule::default();
    let late = of.log.until_us.unwrap() + 8 * 86_400_000_000;
    let Admission::Refused { objections } = gate(Ok((&of, &found)), &rule, late, None) else {
        panic!("the log is old")
    };
    assert!(objections[0].contains("691200 s old"), "{objections:?}");
    let strict = GateRule {
        confidence: 0.99,
        ..rule.clone()
    };
    assert!(!gate(Ok((&of, &found)), &strict, now(&of), None).may_pass());
    let Admission::Refused { objections } = gate(Err("the log is empty"), &rule, late, None) else {
        panic!("nothing was evaluated")
    };
    assert_eq!(objections, ["there is no evaluation: the log is empty"]);
}
