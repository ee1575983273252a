//! How long a policy that means to do harm can keep a disk above its objective, by the guard's rules.
//!
//! Three facts bound it, whatever the policy chooses. A disk that can meet its objective is above it for so
//! many windows in a row at most, until what hurts it is undone ([`windows_in_a_row`]): by a trial, or in the
//! end because everything goes back. What was undone stays closed, and so does what is left meanwhile, so
//! that in a given time one level of one disk is undone or left only so many times ([`undone_per_level`]).
//! And no row ends before a level that hurts the disk is undone or left. So a disk is above its objective for
//! at most as many windows as the product says ([`harmed_windows`]), which grows with the logarithm of the
//! time up to `longest_retry` and by one per level in each `longest_retry` from then on.
//!
//! The rate, the dwell and the breaker make it less; only the length of a row needs the breaker, since at
//! its end other levels may follow until it opens.

use std::time::Duration;

use super::config::GuardConfig;

/// What a harmful level does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harmful {
    /// It harms the disk that has it, from its change on.
    Itself,
    /// It harms any disk, at once or later, with others or alone.
    Any,
}

/// Windows, at most, for which levels in force keep a disk above an objective that it can meet: after the
/// last of them they go back.
#[must_use]
pub fn windows_per_change(config: &GuardConfig, harmful: Harmful) -> u32 {
    match harmful {
        Harmful::Itself => config.trial.objective_windows.max(1),
        Harmful::Any => config.trial.longest_doubt(),
    }
}

/// Windows in a row, at most, for which a disk is above an objective that it can meet. Where it is not
/// known what hurts it, what is changed next goes back after one window each, until the breaker opens.
#[must_use]
pub fn windows_in_a_row(config: &GuardConfig, harmful: Harmful) -> u32 {
    let windows = windows_per_change(config, harmful);
    match harmful {
        Harmful::Itself => windows,
        Harmful::Any => windows.saturating_add(config.breaker.failures),
    }
}

/// How often, at most, one level of one disk is undone within `horizon`, its ends included: as often as
/// it is open again in it when each time begins with no time lost.
#[must_use]
pub fn undone_per_level(config: &GuardConfig, horizon: Duration) -> u64 {
    let (mut times, mut used) = (1, Duration::ZERO);
    loop {
        let pause = config.backoff.pause(times);
        if pause >= config.backoff.longest_retry {
            // From here on all pauses are the same.
            let rest = horizon.saturating_sub(used).as_nanos();
            return u64::from(times) + (rest / pause.as_nanos().max(1)) as u64;
        }
        used += pause;
        if used > horizon {
            return times.into();
        }
        times += 1;
    }
}

/// Windows, at most, for which a disk is above an objective that it would meet without us, within
/// `horizon`. `levels`: those of all heads of all disks that can push it above.
#[must_use]
pub fn harmed_windows(
    config: &GuardConfig,
    levels: u64,
    horizon: Duration,
    harmful: Harmful,
) -> u64 {
    let per_change = u64::from(windows_per_change(config, harmful));
    per_change * levels * undone_per_level(config, horizon)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(60 * minutes)
    }

    #[test]
    fn a_level_is_undone_as_often_as_its_pauses_let_it() {
        let times = |horizon| undone_per_level(&GuardConfig::default(), horizon);
        // Pauses of 10, 20, 40 … 1280 and then 1440 minutes.
        assert_eq!(times(minutes(0)), 1);
        assert_eq!(times(minutes(9)), 1);
        assert_eq!(times(minutes(10)), 2);
        assert_eq!(times(minutes(29)), 2);
        assert_eq!(times(minutes(30)), 3);
        assert_eq!(times(minutes(24 * 60)), 8);
        let sum = 10 * (2_u64.pow(8) - 1);
        assert_eq!(times(minutes(sum - 1)), 8);
        assert_eq!(times(minutes(sum)), 9);
        assert_eq!(times(minutes(sum + 1440)), 10);
        assert_eq!(times(minutes(sum + 365 * 1440)), 9 + 365);
    }

    #[test]
    fn the_share_of_harmed_time_goes_to_next_to_nothing() {
        let config = GuardConfig::default();
        // Five channels and float, two cache strategies, two kinds of polling; windows of 2 s.
        let share = |days: u64| {
            let horizon = minutes(days * 1440);
            let harmed = harmed_windows(&config, 9, horizon, Harmful::Itself);
            2.0 * harmed as f64 / horizon.as_secs_f64()
        };
        println!(
            "{:.4} % of a day, {:.4} % of a year",
            100.0 * share(1),
            100.0 * share(365)
        );
        assert!(share(1) < 0.0034 && share(365) < 0.0005);
    }
}
