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
            .map(|daemon| {
                (
                    daemon.clone(),
                    conflicts(daemon, &self.devices, &self.inventory),
                )
            })
            .collect()
    }
}

fn conflicts(daemon: &TuningDaemon, devices: &Devices, inventory: &Inventory) -> Vec<String> {
    let changeable = devices.changeable().unwrap_or_default();
    let settings = changeable.iter().flat_map(|device| {
        let enabled = devices.enabled(device).into_iter();
        enabled.filter_map(|knob| {
            let claim = daemon.sets(&device.name, knob)?;
            Some(format!("{}: {knob} ({})", device.name, claim.source))
        })
    });
    let guests = inventory.guests.values();
    let bindings = guests.filter_map(|running| {
        let process = running.process.as_ref()?;
        let is_tuned = running.guest.allows(KnobKind::Channel);
        let source = daemon.moves(process.pid).filter(|_| is_tuned)?;
        Some(format!("{}: channel ({source})", running.guest.name))
    });
    settings.chain(bindings).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::fake::FakeDevices;
    use crate::fake::{FakeHypervisor, UUID};
    use crate::process::QemuProcess;
    use crate::sysfs::tests::tree;
    use crate::tuning_daemon::tests::process;

    const MINUTE: Duration = Duration::from_secs(60);

    /// numad, and tuned with this profile, below a root of their own.
    fn root(profile: &str) -> tempfile::TempDir {
        let root = tree(&[
            ("etc/tuned/active_profile", "mine"),
            ("etc/tuned/mine/tuned.conf", profile),
        ]);
        process(root.path(), 3, "numad", "usr/bin/numad", "numad");
        let words = "python3 /usr/sbin/tuned";
        process(root.path(), 4, "tuned", "usr/bin/python3", words);
        root
    }

    fn found(root: &Path) -> Vec<TuningDaemon> {
        let mut beside = Beside::default();
        beside.look(&root.join("proc"), root, Duration::ZERO);
        beside.found
    }

    fn inventory(host: &FakeHypervisor) -> Inventory {
        let mut inventory = host.inventory(1);
        inventory.guests.get_mut(UUID).unwrap().process = Some(QemuProcess::fake(77));
        inventory
    }

    #[test]
    fn only_what_may_be_changed_here_is_a_conflict() {
        let root = root("[disk]\nelevator=bfq\nreadahead=8\n");
        let [numad, tuned] = &found(root.path())[..] else {
            panic!("there are two");
        };
        let devices = FakeDevices::new();
        let rules = |knobs: &[DeviceKnob]| devices.inventory_with("boot", knobs).devices;
        let (none, one) = (
            rules(&[]),
            rules(&[DeviceKnob::ReadAhead, DeviceKnob::RqAffinity]),
        );
        let guests = inventory(&FakeHypervisor::default());
        let name = &guests.guests[UUID].guest.name;
        assert_eq!(
            conflicts(tuned, &one, &guests),
            ["loop3: read_ahead_kb ([disk] readahead=8)"]
        );
        assert_eq!(conflicts(tuned, &none, &guests), Vec::<String>::new());
        assert_eq!(
            conflicts(numad, &one, &guests),
            [format!("{name}: channel (numad)")]
        );
        let without = inventory(&FakeHypervisor::without_opt_in());
        assert_eq!(conflicts(numad, &one, &without), Vec::<String>::new());
    }

    #[test]
    fn processes_are_looked_through_once_a_minute() {
        let root = root("");
        let proc = root.path().join("proc");
        let mut beside = Beside::default();
        beside.look(&proc, root.path(), MINUTE);
        assert_eq!(beside.found.len(), 2);
        std::fs::remove_dir_all(proc.join("3")).unwrap();
        beside.look(&proc, root.path(), MINUTE * 2);
        assert_eq!(beside.found.len(), 2);
        beside.look(&proc, root.path(), MINUTE * 2 + Duration::from_millis(1));
        assert_eq!(beside.found.len(), 1);
    }
}
