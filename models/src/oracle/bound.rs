//! An upper bound of what any joint setting earns in a phase vector.
//!
//! Each disk is given the host for itself, with its own best levels, and everything that its company
//! could only ever take from it is dropped:
//! - the other disks are idle, so no lane, channel, device queue or page cache is shared. In a closed
//!   network with the disk alone, every station's wait is the least there is: adding customers of other
//!   classes inflates the service that it sees at each station, and the response time of a single-class
//!   network is non-decreasing in its demands (Lazowska et al. 1984, section 5.4; Suri 1985). Its hit rate
//!   is the greatest there is, because Che's characteristic time falls when others ask for room;
//! - garbage collection is switched off: a writer with readers beside it could see less of it than alone;
//! - waking an IOThread costs nothing: company on the same one keeps it awake;
//! - page cache, write-back, CPU, changes and missed objectives cost nothing: they only ever cost, and company
//!   can reduce them.
//!
//! The mean over the active disks of the best that each could have is then at least the greatest
//! r(φ, a). The monotonicity is tested on random hosts, disk by disk and setting by setting.
//!
//! It is a claim about a converged steady state, and it does not hold everywhere in the simulator, whose
//! fixed point is an approximation: the test counts how often a random disk earned more in company and
//! lets one in a hundred. So the bound is tested, not proven.
//! Throttled writers swing, for which it has a margin, [`MARGIN`].

use std::collections::HashMap;

use blkpilot_env::Level;
use blkpilot_env::reward::RewardTerm;
use blkpilot_env::sim::Scenario;

use super::OracleError;
use super::knobs::Setting;
use super::search::own_moves;
use super::steady::{MOST_BLOCKS, frozen, settle};
use super::values::Values;

/// What the bound of one disk allows for the swing of throttled writers, in reward.
pub const MARGIN: f64 = 3e-3;

/// Bounds computed so far: what a disk could have in one of its phases.
#[derive(Debug, Default)]
pub struct Bounds {
    /// By disk and phase.
    known: HashMap<(usize, usize), f64>,
}

impl Bounds {
    /// At least the greatest r(φ, a); 0 where every disk is idle.
    ///
    /// # Errors
    /// If the host refuses a setting.
    pub fn of(&mut self, values: &Values, phases: &[usize]) -> Result<f64, OracleError> {
        let active = values.active_disks(phases);
        let mut sum = 0.0;
        for disk in &active {
            sum += self.best_alone(values, *disk, phases[*disk])?;
        }
        Ok(sum / active.len().max(1) as f64)
    }

    fn best_alone(
        &mut self,
        values: &Values,
        disk: usize,
        phase: usize,
    ) -> Result<f64, OracleError> {
        if let Some(known) = self.known.get(&(disk, phase)) {
            return Ok(*known);
        }
        let mut best = f64::from(RewardTerm::RANGE.0);
        for setting in settings_of(values, disk, phase) {
            best = best.max(alone(values, disk, phase, &setting)?);
        }
        self.known.insert((disk, phase), best);
        Ok(best)
    }
}

/// The joint levels of one disk and its device's scheduler, one of each class of symmetry.
fn settings_of(values: &Values, disk: usize, phase: usize) -> Vec<Setting> {
    let knobs = values.knobs();
    let relaxed = relaxed(values.scenario(), disk);
    let is_active: Vec<bool> = knobs
        .list()
        .iter()
        .map(|k| k.disks.contains(&disk))
        .collect();
    debug_assert!(phase < relaxed.disks[disk].phases.len());
    let all = knobs.enumerate(&is_active, usize::MAX);
    all.unwrap_or_else(|| own_moves(knobs, knobs.default_setting(), disk))
}

/// What a disk earns at most under `setting`, whatever the others do: alone, without garbage
/// collection and without the costs that company could reduce.
///
/// # Errors
/// If the host refuses the setting.
pub fn alone(
    values: &Values,
    disk: usize,
    phase: usize,
    setting: &[Level],
) -> Result<f64, OracleError> {
    let relaxed = relaxed(values.scenario(), disk);
    let phases: Vec<usize> = (0..relaxed.disks.len())
        .map(|i| if i == disk { phase } else { 0 })
        .collect();
    let action = values.knobs().write(setting);
    let steady = settle(
        frozen(&relaxed, &phases, &action),
        &action,
        *values.reward(),
        MOST_BLOCKS,
    )?;
    let (low, high) = RewardTerm::RANGE;
    let reward = steady.sum(disk, &RewardTerm::LOSS) + MARGIN;
    Ok(reward.clamp(f64::from(low), f64::from(high)))
}

/// The scenario with only one disk at work and no garbage collection.
fn relaxed(scenario: &Scenario, disk: usize) -> Scenario {
    let mut relaxed = scenario.clone();
    for (_, other) in relaxed
        .disks
        .iter_mut()
        .enumerate()
        .filter(|(i, _)| *i != disk)
    {
        other.phases.truncate(1);
        other.phases[0].outstanding = 0.0;
    }
    for device in &mut relaxed.devices {
        device.gc_inflation = 0.0;
    }
    // Company on the same IOThread keeps it awake.
    relaxed.costs.wake_us = 0.0;
    relaxed.costs.wake_cpu_us = 0.0;
    relaxed.costs.preempt_us = 0.0;
    relaxed
}
