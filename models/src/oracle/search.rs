//! Finding good settings of one phase vector where there are too many to try.
//!
//! From each start, one disk after another takes the best of its own joint levels while the others
//! stand, then pairs of disks exchange their channels, until neither gains anything. Starts are
//! keep-default, all further settings that the caller gives, and random ones from a fixed seed until
//! the budget of evaluations is spent.

use blkpilot_env::{Level, Rng};
use rand::{RngExt as _, SeedableRng as _};

use super::OracleError;
use super::knobs::{Knobs, Place, Setting};
use super::values::Values;

/// Least gain that counts as one.
const LEAST_GAIN: f64 = 1e-7;
/// Joint levels of one disk above which its knobs are tried one by one.
const MOST_OWN_LEVELS: usize = 256;

/// Evaluates good settings of a phase vector; they stand in [`Values::ranked`] then. `goes_on` is asked
/// before each value.
///
/// # Errors
/// If the host refuses a setting; `Interrupted` if it does not go on.
pub fn search(
    values: &mut Values,
    phases: &[usize],
    starts: &[Setting],
    evaluations: u64,
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<(), OracleError> {
    let mut budget = Budget {
        until: values.evaluations().0 + evaluations,
        goes_on,
    };
    let mut rng = Rng::seed_from_u64(0);
    let first = [values.knobs().default_setting().clone()];
    for start in first.iter().chain(starts) {
        climb(values, phases, start.clone(), &mut budget)?;
    }
    // Where everything is known already, random starts evaluate nothing: their number is bounded too.
    for _ in 0..evaluations {
        if budget.is_spent(values)? {
            break;
        }
        let start = random_setting(values.knobs(), &mut rng);
        climb(values, phases, start, &mut budget)?;
    }
    Ok(())
}

/// Each level of each knob with the same probability, as the random policy draws them.
#[must_use]
pub fn random_setting(knobs: &Knobs, rng: &mut Rng) -> Setting {
    let list = knobs.list().iter();
    list.map(|knob| knob.levels[rng.random_range(0..knob.levels.len())])
        .collect()
}

/// The settings that differ from `setting` only in knobs of `disk`: all joint levels, or, if those are
/// too many, each knob alone. `setting` itself is not among them.
#[must_use]
pub fn own_moves(knobs: &Knobs, setting: &[Level], disk: usize) -> Vec<Setting> {
    let own: Vec<usize> = (0..setting.len())
        .filter(|k| is_own(knobs, *k, disk))
        .collect();
    let joint: usize = own.iter().map(|k| knobs.list()[*k].levels.len()).product();
    let groups = if joint <= MOST_OWN_LEVELS {
        vec![own]
    } else {
        own.into_iter().map(|k| vec![k]).collect()
    };
    let mut moves: Vec<Setting> = groups
        .iter()
        .flat_map(|group| all_levels(knobs, setting, group))
        .collect();
    moves.retain(|other| **other != *setting);
    moves
}

/// Whether a knob is a head of a disk; schedulers belong to devices.
fn is_own(knobs: &Knobs, knob: usize, disk: usize) -> bool {
    let knob = &knobs.list()[knob];
    matches!(knob.place, Place::Disks { .. }) && knob.disks.contains(&disk)
}

fn all_levels(knobs: &Knobs, setting: &[Level], group: &[usize]) -> Vec<Setting> {
    group
        .iter()
        .fold(vec![setting.into()], |built: Vec<Setting>, k| {
            let with = |base: &Setting| -> Vec<Setting> {
                let at = |level: &Level| {
                    let mut next = base.clone();
                    next[*k] = *level;
                    next
                };
                knobs.list()[*k].levels.iter().map(at).collect()
            };
            built.iter().flat_map(with).collect()
        })
}

/// How long a search may go on.
struct Budget<'a> {
    /// Count of evaluations at which it ends.
    until: u64,
    goes_on: &'a mut dyn FnMut() -> bool,
}

impl Budget<'_> {
    fn is_spent(&mut self, values: &Values) -> Result<bool, OracleError> {
        if !(self.goes_on)() {
            return Err(OracleError::Interrupted);
        }
        Ok(values.evaluations().0 >= self.until)
    }
}

fn climb(
    values: &mut Values,
    phases: &[usize],
    start: Setting,
    budget: &mut Budget<'_>,
) -> Result<(), OracleError> {
    let mut at = start;
    let mut best = values.value(phases, &at)?;
    loop {
        let mut has_gained = false;
        for moves in neighbourhoods(values, phases) {
            for next in moves.from(values.knobs(), &at) {
                if budget.is_spent(values)? {
                    return Ok(());
                }
                let value = values.value(phases, &next)?;
                if value > best + LEAST_GAIN {
                    (at, best, has_gained) = (next, value, true);
                }
            }
        }
        if !has_gained {
            return Ok(());
        }
    }
}

/// A set of moves, made anew from wherever the search stands.
enum Moves {
    Disk(usize),
    Device(usize),
    Exchange(usize, usize),
}

impl Moves {
    fn from(&self, knobs: &Knobs, at: &[Level]) -> Vec<Setting> {
        match *self {
            Self::Disk(disk) => own_moves(knobs, at, disk),
            Self::Device(knob) => all_levels(knobs, at, &[knob]),
            Self::Exchange(one, other) => {
                let mut next: Setting = at.into();
                next.swap(one, other);
                vec![next]
            }
        }
    }
}

fn neighbourhoods(values: &Values, phases: &[usize]) -> Vec<Moves> {
    let knobs = values.knobs().list();
    let is_active = values.active_knobs(phases);
    let channels: Vec<usize> = (0..knobs.len())
        .filter(|k| knobs[*k].is_channel && is_active[*k])
        .collect();
    let devices = (0..knobs.len())
        .filter(|k| is_active[*k] && matches!(knobs[*k].place, Place::Device { .. }));
    let pairs = channels.iter().flat_map(|one| {
        let later = channels.iter().filter(move |other| one < *other);
        later.map(|other| Moves::Exchange(*one, *other))
    });
    let disks = values.active_disks(phases).into_iter().map(Moves::Disk);
    disks
        .chain(devices.map(Moves::Device))
        .chain(pairs)
        .collect()
}
