//! How careful the guard is.

use std::time::Duration;

use super::backoff::BackoffConfig;
use super::breaker::BreakerConfig;
use super::harm::HarmLimits;
use super::trial::TrialConfig;

/// How careful the guard of one host is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GuardConfig {
    /// Shortest time between two changes of one head of one disk.
    pub dwell: Duration,
    /// Most changed disks per minute over the whole host, ≥ 1.
    pub changes_per_minute: u32,
    /// When a change counts as harmful.
    pub trial: TrialConfig,
    /// Windows in a row without a completion, requests in flight, that count as a stall, ≥ 1.
    pub stall_windows: u32,
    /// When changes stop altogether.
    pub breaker: BreakerConfig,
    /// For how long a level that did harm stays closed.
    pub backoff: BackoffConfig,
    /// How much of one policy's changes may have to be put back.
    pub harm: HarmLimits,
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self {
            dwell: Duration::from_secs(30),
            changes_per_minute: 12,
            trial: TrialConfig::default(),
            stall_windows: 2,
            breaker: BreakerConfig::default(),
            backoff: BackoffConfig::default(),
            harm: HarmLimits::default(),
        }
    }
}
