//! The fixed point against a discrete-event simulation of the same network.
//!
//! A few scenarios are compared in `cargo test`; `BLKPILOT_FULL=1` compares sixty, with longer runs.
//! Prints the share of comparisons within the bound (each disk or station is one), the share of
//! scenarios of which all are, and the worst.

#![allow(clippy::unwrap_used, reason = "test code outside #[test] functions")]

#[path = "discrete_event/mod.rs"]
mod reference;

use std::ops::Range;

use reference::compare::{Errors, Regime, draw, errors};

/// Relative errors of one quantity in a scenario.
type Quantity = fn(&Errors) -> &Vec<f64>;

/// First seed of the full run: nothing in the model was fitted to what is drawn from here on. The short
/// run takes seeds from 0, to which some of it was.
const HELD_OUT: u64 = 10_000;

fn compare(seeds: Range<u64>, regime: Regime, most_requests: f64) -> Vec<Errors> {
    seeds
        .map(|seed| {
            let drawn = draw(seed, regime);
            let measured = reference::compare::reference(&drawn, seed, 60_000.0, most_requests);
            errors(&drawn, &drawn.solve(), &measured)
        })
        .collect()
}

fn worst(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |w: f64, v| if v.abs() > w.abs() { v } else { w })
}

/// Shares of the comparisons and of the scenarios within a bound, and the worst error.
fn within(all: &[Errors], of: Quantity, bound: f64) -> (f64, f64, f64) {
    let values = || all.iter().flat_map(|e| of(e).iter().copied());
    let good = values().filter(|v| v.abs() <= bound).count() as f64;
    let worsts = all.iter().map(|e| worst(of(e).iter().copied()));
    let whole = worsts.filter(|w| w.abs() <= bound).count() as f64;
    let share = good / values().count().max(1) as f64;
    (share, whole / all.len() as f64, worst(values()))
}

#[test]
fn the_fixed_point_agrees_with_discrete_events() {
    let is_full = std::env::var_os("BLKPILOT_FULL").is_some();
    let regime = Regime::UpToNineTenths;
    let all = if is_full {
        compare(HELD_OUT..HELD_OUT + 60, regime, 4e6)
    } else {
        compare(0..8, regime, 4e5)
    };
    // Eight scenarios are a coarse alarm only: one of them is an eighth of the comparisons.
    let least = if is_full { 0.9 } else { 0.75 };
    let intervals = worst(all.iter().map(|e| e.interval));
    let narrow = all.iter().filter(|e| e.interval < 0.02).count();
    println!(
        "reference: 95 % interval below 2 % in {narrow} of {}, worst {intervals:.3}",
        all.len()
    );
    let quantities: [(&str, Quantity, f64); 5] = [
        ("throughput", |e| &e.throughput, 0.1),
        ("mean latency", |e| &e.latency, 0.1),
        ("hit rate", |e| &e.hit, 0.1),
        ("utilisation", |e| &e.utilisation, 0.1),
        ("p99", |e| &e.p99, 0.25),
    ];
    for (name, of, bound) in quantities {
        let (share, whole, worst) = within(&all, of, bound);
        println!(
            "{name:12} within {bound}: {share:.3}; all of a scenario {whole:.3}; worst {worst:+.3}"
        );
        assert!(
            share >= least,
            "{name}: {share} within {bound}, worst {worst}"
        );
    }
}

#[test]
fn nearly_every_network_converges() {
    let drawn = if std::env::var_os("BLKPILOT_FULL").is_some() {
        1000
    } else {
        200
    };
    for (regime, least) in [(Regime::UpToNineTenths, 0.99), (Regime::Any, 0.97)] {
        let solutions = (HELD_OUT..HELD_OUT + drawn).map(|seed| draw(seed, regime).solve());
        let (mut converged, mut passes) = (0, 0);
        for solution in solutions {
            converged += u32::from(solution.converged);
            passes += u64::from(solution.passes);
        }
        let share = f64::from(converged) / drawn as f64;
        let passes = passes as f64 / drawn as f64;
        println!("{regime:?}: {share:.3} of {drawn} converge, in {passes:.1} passes on average");
        assert!(share >= least, "{regime:?}: {share}");
    }
}

/// Beyond nine tenths the model promises less: the throughput is what is left to get wrong.
#[test]
fn saturated_networks_have_about_the_throughput_of_discrete_events() {
    let (networks, most_requests) = if std::env::var_os("BLKPILOT_FULL").is_some() {
        (40, 1e6)
    } else {
        (6, 2e5)
    };
    let all = compare(HELD_OUT..HELD_OUT + networks, Regime::Any, most_requests);
    let (share, whole, worst) = within(&all, |e| &e.throughput, 0.1);
    println!(
        "saturated: throughput within 0.1: {share:.3}; all of a scenario {whole:.3}; worst {worst:+.3}"
    );
    assert!(share >= 0.8, "{share}");
}
