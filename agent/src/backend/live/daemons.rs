//! Says once in the log which other daemons tune the host.

use std::collections::BTreeSet;

use blkpilot_host::DaemonKind;

use crate::backend::DaemonStatus;

/// What has been said and still holds.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeSet<(DaemonKind, Vec<String>)>);

impl Told {
    /// Warns of those that set what we may set, and mentions the others, where that is new. A daemon that
    /// has gone and comes back is told again.
    pub(super) fn tell(&mut self, found: &[DaemonStatus]) {
        for DaemonStatus { daemon, conflicts } in self.news(found) {
            let (name, pid, meaning) = (daemon.kind.name(), daemon.pid, daemon.meaning());
            let settings = daemon.settings.join(", ");
            if conflicts.is_empty() {
                tracing::info!(name, pid, settings, "another daemon tunes this host too");
            } else {
                let conflicts = conflicts.join(", ");
                tracing::warn!(
                    name,
                    pid,
                    settings,
                    conflicts,
                    meaning,
                    "another daemon sets what this service may set"
                );
            }
        }
    }

    fn news<'a>(&mut self, found: &'a [DaemonStatus]) -> Vec<&'a DaemonStatus> {
        let key = |status: &DaemonStatus| (status.daemon.kind, status.conflicts.clone());
        let before = std::mem::replace(&mut self.0, found.iter().map(key).collect());
        let is_new = |status: &&DaemonStatus| !before.contains(&key(status));
        found.iter().filter(is_new).collect()
    }
}

#[cfg(test)]
mod tests {
    use blkpilot_host::TuningDaemon;

    use super::*;

    fn status(kind: DaemonKind, conflicts: &[&str]) -> DaemonStatus {
        DaemonStatus {
            daemon: TuningDaemon {
                kind,
                pid: 7,
                settings: vec![],
                claims: vec![],
            },
            conflicts: conflicts.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    #[test]
    fn a_daemon_is_told_once_and_again_when_it_comes_back_or_takes_more() {
        let mut told = Told::default();
        let (numad, tuned) = (
            status(DaemonKind::Numad, &[]),
            status(DaemonKind::Tuned, &[]),
        );
        let both = [numad.clone(), tuned];
        assert_eq!(told.news(&both).len(), 2);
        assert_eq!(told.news(&both).len(), 0);
        let taking = [status(DaemonKind::Numad, &["web: channel (numad)"])];
        assert_eq!(told.news(&taking), [&taking[0]]);
        assert_eq!(told.news(&taking).len(), 0);
        assert_eq!(told.news(&[]).len(), 0);
        assert_eq!(told.news(&both).len(), 2);
    }
}
