//! An evaluation for people: the verdict in words first.

use std::fmt::Write as _;

use blkpilot_evaluate::{Diagnostics, Evaluation, Value, Verdict};

use crate::cli::tables::{ABSENT, align_right, rfc3339, table};

pub(super) fn report(evaluation: &Evaluation, verdict: &Verdict) -> String {
    let mut text = format!("{}\n\n", verdict.text);
    let percent = 100.0 * evaluation.options.confidence;
    let interval = format!("{percent:.0} % INTERVAL");
    let mut estimates = table(&[
        "ESTIMATOR",
        "POLICY",
        "STD ERR",
        "BASELINE",
        "DIFFERENCE",
        &interval,
    ]);
    for estimate in &evaluation.estimates {
        estimates.add_row(line(
            estimate.estimator.name(),
            [estimate.value, estimate.baseline, estimate.difference],
            estimate.undefined.as_deref(),
        ));
    }
    for model in &evaluation.models {
        estimates.add_row(line(
            &model.name,
            [model.value, model.baseline, model.difference],
            model.undefined.as_deref(),
        ));
    }
    align_right(&mut estimates, 1..5);
    let _ = writeln!(text, "{estimates}\n");
    let _ = writeln!(text, "Estimated: {}.", evaluation.estimand);
    let against = evaluation.against.as_ref().map_or_else(
        || "the behaviour in the log".to_owned(),
        |against| format!("{} ({})", against.name, against.chooses),
    );
    let _ = writeln!(
        text,
        "Policy: {} ({}), against {against}.",
        evaluation.policy.name, evaluation.policy.chooses
    );
    weights(&mut text, "Weights", &evaluation.diagnostics);
    if let Some(diagnostics) = &evaluation.against_diagnostics {
        weights(&mut text, "Weights of the other", diagnostics);
    }
    log(&mut text, evaluation);
    for note in &evaluation.notes {
        let _ = writeln!(text, "Note: {note}.");
    }
    text.trim_end().to_owned()
}

fn line(
    name: &str,
    [own, baseline, difference]: [Option<Value>; 3],
    undefined: Option<&str>,
) -> [String; 6] {
    let of = |value: Option<f64>| value.map_or(ABSENT.to_owned(), number);
    [
        name.to_owned(),
        of(own.map(|value| value.estimate)),
        of(own.map(|value| value.std_err)),
        of(baseline.map(|value| value.estimate)),
        of(difference.map(|value| value.estimate)),
        match difference {
            Some(value) => span(value.interval),
            None => undefined.unwrap_or_default().to_owned(),
        },
    ]
}

fn number(value: f64) -> String {
    format!("{value:.5}")
}

fn span([lower, upper]: [f64; 2]) -> String {
    format!("{lower:+.5} to {upper:+.5}")
}

fn weights(text: &mut String, of: &str, found: &Diagnostics) {
    let optional = |value: Option<f64>| value.map_or(ABSENT.to_owned(), |x| format!("{x:.2}"));
    let _ = writeln!(
        text,
        "{of}: effective sample size {:.1} of {} windows, in {:.1} effective blocks; largest share {:.1} %, mean {:.3} (z {}), Pareto k {}, {:.1} % are 0, {:.1} % unsupported.",
        found.ess,
        found.windows,
        found.ess_blocks,
        100.0 * found.max_share,
        found.mean,
        optional(found.mean_z),
        optional(found.pareto_k),
        100.0 * found.zero_fraction,
        100.0 * found.unsupported
    );
}

fn log(text: &mut String, evaluation: &Evaluation) {
    let (log, windows) = (&evaluation.log, &evaluation.windows);
    let time = |at: Option<i64>| at.map_or(ABSENT.to_owned(), rfc3339);
    let block = match windows.block_s {
        Some(seconds) => format!("host x {seconds} s"),
        None => "host x episode".to_owned(),
    };
    let _ = writeln!(
        text,
        "Log: {} rows, {} joint decisions of {} hosts in {} episodes, {} to {}; {} windows, {} of them whole, in {} blocks of {block}.",
        log.rows,
        log.steps,
        log.hosts,
        log.episodes,
        time(log.from_us),
        time(log.until_us),
        windows.begun,
        windows.whole,
        windows.blocks
    );
    for behaviour in &log.behaviours {
        let _ = writeln!(
            text,
            "Behaviour: {} {}, {} rows, epsilon {} to {}.",
            behaviour.policy,
            behaviour.version,
            behaviour.rows,
            behaviour.epsilon.0,
            behaviour.epsilon.1
        );
    }
    let missing: u64 = log.rows_without_outcome.values().sum();
    let stood_in: u64 = log.policy_rows() - log.behaviours.iter().map(|b| b.rows).sum::<u64>();
    let _ = writeln!(
        text,
        "Counted: {} rows of shadows and proposals left out; {} interventions, of the environment; {stood_in} rows of what stood in for the policy; {} heads forced, {} altered after the draw; {missing} rows without an outcome; {} steps without reward, {} idle, {} gaps.",
        log.not_applied(),
        log.interventions(),
        log.forced,
        log.altered.count,
        log.steps_without_reward.count,
        log.steps_idle,
        log.gaps.count
    );
}
