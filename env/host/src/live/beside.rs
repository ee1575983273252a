//! Other daemons that tune the same host.

use std::path::Path;

use super::*;
use crate::guest::KnobKind;
use crate::tuning_daemon::{TuningDaemon, tuning_daemons};

/// They are looked for again after this time: all processes are looked at.
const MAX_AGE: Duration = Duration::from_secs(60);

/// What was found when somebody last looked.
#[derive(Debug, Default)]
pub(super) struct Beside {
    found: Vec<TuningDaemon>,
    read_at: Option<Duration>,
}

impl Beside {
    pub(super) fn look(&mut self, proc: &Path, root: &Path, now: Duration) {
        let is_old = |read_at| now.saturating_sub(read_at) > MAX_AGE;
        if self.read_at.is_none_or(is_old) {
            self.found = tuning_daemons(proc, root);
            self.read_at = Some(now);
        }
    }
}

impl LiveHost {
    /// Other daemons that tune this host, as found within the last minute, each with what it changes of
    /// what may be changed here by us too: whose, what, and what says so.
    #[must_use]
    pub fn tuning_daemons(&self) -> Vec<(TuningDaemon, Vec<String>)> {
        let found = self.beside.found.iter();
        found
            .map(|daemon| (daemon.clone(), self.conflicts(daemon)))
            .collect()
    }

    fn conflicts(&self, daemon: &TuningDaemon) -> Vec<String> {
        let devices = self.devices.changeable().unwrap_or_default();
        let settings = devices.iter().flat_map(|device| {
            let enabled = self.devices.enabled(device).into_iter();
            enabled.filter_map(|knob| {
                let claim = daemon.sets(&device.name, knob)?;
                Some(format!("{}: {knob} ({})", device.name, claim.source))
            })
        });
        let guests = self.inventory.guests.values();
        let bindings = guests.filter_map(|running| {
            let process = running.process.as_ref()?;
            let is_tuned = running.guest.allows(KnobKind::Channel);
            let source = daemon.moves(process.pid).filter(|_| is_tuned)?;
            Some(format!("{}: channel ({source})", running.guest.name))
        });
        settings.chain(bindings).collect()
    }
}
