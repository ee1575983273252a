//! The best setting to hold whatever the phases do.

use super::OracleError;
use super::knobs::Setting;
use super::phases::States;
use super::planner::Planner;
use super::search::own_moves;

/// Rounds of the search.
const MOST_ROUNDS: u32 = 20;

/// A setting held from the first interval on.
#[derive(Debug, Clone, PartialEq)]
pub struct BestStatic {
    /// The setting.
    pub setting: Setting,
    /// Its mean value over the phase vectors.
    pub value: f64,
    /// No setting has a greater mean value.
    pub bound: f64,
    /// Whether all settings were tried.
    pub is_exhaustive: bool,
}

impl BestStatic {
    /// The best fixed setting of a scenario over the stationary distribution of its phases. Exhaustive
    /// where the settings fit `Limits::exhaustive`; else a search from keep-default and from the best
    /// setting of each phase vector, disk by disk, bounded by the mean of the phase vectors' bounds.
    ///
    /// # Errors
    /// If the host refuses a setting.
    pub fn find(planner: &mut Planner, states: &States) -> Result<Self, OracleError> {
        let all_active = vec![true; planner.values().knobs().list().len()];
        let most = planner.limits().exhaustive;
        match planner.values().knobs().enumerate(&all_active, most) {
            Some(all) => Self::of_all(planner, states, &all),
            None => Self::by_search(planner, states),
        }
    }

    fn of_all(
        planner: &mut Planner,
        states: &States,
        all: &[Setting],
    ) -> Result<Self, OracleError> {
        let mut best = (f64::NEG_INFINITY, 0);
        for (index, setting) in all.iter().enumerate() {
            let value = mean_value(planner, states, setting)?;
            if value > best.0 {
                best = (value, index);
            }
        }
        Ok(Self {
            setting: all[best.1].clone(),
            value: best.0,
            bound: best.0,
            is_exhaustive: true,
        })
    }

    fn by_search(planner: &mut Planner, states: &States) -> Result<Self, OracleError> {
        let mut bound = 0.0;
        let mut starts = vec![planner.values().knobs().default_setting().clone()];
        for (phases, weight) in &states.weighted {
            let known = planner.know(phases)?;
            bound += weight * known.bound;
            starts.extend(known.ranked.first().map(|(_, setting)| setting.clone()));
        }
        let mut best = (f64::NEG_INFINITY, starts[0].clone());
        for start in starts {
            let value = mean_value(planner, states, &start)?;
            if value > best.0 {
                best = (value, start);
            }
        }
        for _ in 0..MOST_ROUNDS {
            let before = best.0;
            for disk in 0..planner.values().scenario().disks.len() {
                for next in own_moves(planner.values().knobs(), &best.1.clone(), disk) {
                    let value = mean_value(planner, states, &next)?;
                    if value > best.0 {
                        best = (value, next);
                    }
                }
            }
            if best.0 <= before + 1e-7 {
                break;
            }
        }
        Ok(Self {
            setting: best.1,
            value: best.0,
            bound: bound.max(best.0),
            is_exhaustive: false,
        })
    }
}

/// Mean value of holding a setting, over the phase vectors.
///
/// # Errors
/// If the host refuses the setting.
pub fn mean_value(
    planner: &mut Planner,
    states: &States,
    setting: &Setting,
) -> Result<f64, OracleError> {
    let mut sum = 0.0;
    for (phases, weight) in &states.weighted {
        sum += weight * planner.values_mut().value(phases, setting)?;
    }
    Ok(sum)
}
