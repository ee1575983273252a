//! Whether the best setting depends on the state.

use std::collections::BTreeMap;

use blkpilot_env::Level;
use serde::Serialize;

use super::OracleError;
use super::knobs::Place;
use super::phases::{PhaseVector, States};
use super::planner::Planner;

/// How often the best level of a head differs between phase vectors.
///
/// A level of a knob is *good* in a phase vector if some joint setting with it comes within the tolerance
/// (a share of the range: best minus random value) of the best one. Two phase vectors *differ* in a knob
/// that matters in both if no level of it is good in both.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HeadDependence {
    /// Share of the pairs of phase vectors that differ, each pair with the product of its shares of the
    /// intervals, mean over the head's knobs.
    pub differs: f64,
    /// Knobs of the head.
    pub knobs: usize,
    /// Knobs for which some pair differs.
    pub knobs_that_differ: usize,
}

/// Levels of one knob that are good in a phase vector; none if it affects no active disk there.
type Good = Option<Vec<Level>>;

/// By name of the head. Phase vectors whose range is below `epsilon` are left out.
///
/// # Errors
/// If the host refuses a setting.
pub fn dependence(
    planner: &mut Planner,
    states: &States,
    tolerance: f64,
    epsilon: f64,
) -> Result<BTreeMap<String, HeadDependence>, OracleError> {
    let mut rows: Vec<(f64, Vec<Good>)> = Vec::new();
    for (phases, weight) in &states.weighted {
        let known = planner.know(phases)?;
        let range = known.best() - known.random;
        if range >= epsilon {
            rows.push((*weight, good_levels(planner, phases, tolerance * range)?));
        }
    }
    let mut heads: BTreeMap<String, HeadDependence> = BTreeMap::new();
    for (k, knob) in planner.values().knobs().list().iter().enumerate() {
        let spec = planner.values().spec();
        let head = match knob.place {
            Place::Disks { head } => &spec.disk_heads[head],
            Place::Device { head, .. } => &spec.device_heads[head],
        };
        let differs = share_that_differs(&rows, k);
        let entry = heads.entry(head.name.clone()).or_insert(HeadDependence {
            differs: 0.0,
            knobs: 0,
            knobs_that_differ: 0,
        });
        entry.differs += (differs - entry.differs) / (entry.knobs + 1) as f64;
        entry.knobs += 1;
        entry.knobs_that_differ += usize::from(differs > 0.0);
    }
    Ok(heads)
}

fn good_levels(
    planner: &mut Planner,
    phases: &PhaseVector,
    tolerance: f64,
) -> Result<Vec<Good>, OracleError> {
    let is_active = planner.values().active_knobs(phases);
    let known = planner.know(phases)?;
    let least = known.best() - tolerance;
    let mut good: Vec<Vec<Level>> = vec![Vec::new(); is_active.len()];
    for (_, setting) in known.ranked.iter().take_while(|(value, _)| *value >= least) {
        for (levels, level) in good.iter_mut().zip(setting) {
            if !levels.contains(level) {
                levels.push(*level);
            }
        }
    }
    let knobs = planner.values().knobs();
    let with_equals = |k: usize, levels: &Vec<Level>| -> Vec<Level> {
        if knobs.list()[k].is_channel {
            levels
                .iter()
                .flat_map(|level| knobs.equals_of(*level))
                .collect()
        } else {
            levels.clone()
        }
    };
    let rows = good.iter().enumerate();
    Ok(rows
        .map(|(k, levels)| is_active[k].then(|| with_equals(k, levels)))
        .collect())
}

fn share_that_differs(rows: &[(f64, Vec<Good>)], knob: usize) -> f64 {
    let (mut differ, mut all) = (0.0, 0.0);
    for (i, (weight, one)) in rows.iter().enumerate() {
        for (other_weight, other) in &rows[i + 1..] {
            let (Some(one), Some(other)) = (&one[knob], &other[knob]) else {
                continue;
            };
            all += weight * other_weight;
            if !one.iter().any(|level| other.contains(level)) {
                differ += weight * other_weight;
            }
        }
    }
    if all > 0.0 { differ / all } else { 0.0 }
}
