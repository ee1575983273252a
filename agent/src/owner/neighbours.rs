//! Heavy neighbours, limited by the guard while others miss their objectives: the pure rule at work.

use std::collections::BTreeSet;

use blkpilot_env::guard::neighbour::{Action, Facts, Limit, NeighbourWatch, Step};
use blkpilot_env::window::HostWindow;
use blkpilot_host::disk_setting::DiskChange;

use super::Owner;
use crate::backend::{DiskAction, DiskName};
use crate::wire::names::guest_of;

impl Owner {
    /// Judges the window that has just ended. What fails is tried again after the next one.
    pub(super) fn mind_neighbours(&mut self, window: &HostWindow) {
        let facts = self.facts(window);
        let now = self.watch.now();
        let steps = self
            .neighbours
            .as_mut()
            .map(|watch| watch.observe(now, window, &facts));
        self.take_steps(steps.unwrap_or_default());
    }

    /// Lifts what the guard has limited: nobody watches any more whether it is needed.
    pub(super) fn leave_neighbours(&mut self) {
        let limits = self.backend.as_ref().map(|backend| backend.limits());
        let limited: BTreeSet<String> = limits.unwrap_or_default().limited.into_keys().collect();
        let leave = |watch: &mut NeighbourWatch| watch.leave(&limited);
        let steps = self.neighbours.as_mut().map(leave);
        self.take_steps(steps.unwrap_or_default());
    }

    fn facts(&self, window: &HostWindow) -> Facts {
        let Some(backend) = self.backend.as_ref().filter(|_| self.neighbours.is_some()) else {
            return Facts::default();
        };
        let limits = backend.limits();
        let objectives = window.disks.iter().filter_map(|row| {
            let guest = self.config.modes.guests.get(guest_of(&row.id))?;
            Some((row.id.clone(), guest.p99_objective_us?))
        });
        let is_automatic = |disk: &String| {
            let seen = self.window.as_ref();
            seen.is_some_and(|seen| self.is_automatic(seen, disk))
        };
        Facts {
            objectives_us: objectives.collect(),
            may_limit: limits.may_limit.into_iter().filter(is_automatic).collect(),
            limited: limits.limited.into_keys().collect(),
        }
    }

    fn take_steps(&mut self, steps: Vec<Step>) {
        for Step { disk, action } in steps {
            let Some(backend) = &mut self.backend else {
                return;
            };
            let (what, reason) = match &action {
                Action::Limit(limit, reason) => (format!("limited to {limit}"), reason.to_string()),
                Action::Lift(why) => ("limit lifted".to_owned(), why.to_string()),
            };
            let name = DiskName::of(&disk);
            let done = match &action {
                Action::Limit(limit, _) => {
                    let Limit { iops, bytes_per_s } = *limit;
                    let change = DiskChange::limit(iops, bytes_per_s);
                    let reason = format!("{what}: {reason}");
                    backend.change_disk(&name, &DiskAction::Limit { change, reason })
                }
                Action::Lift(_) => backend.change_disk(&name, &DiskAction::Lift),
            };
            let host = &self.config.name;
            match done {
                Ok(_) => {
                    tracing::warn!(host, disk, reason, "neighbour: {what}");
                    // Its latency is the limit's now, and tells nothing of a change that is on trial.
                    self.watch.settle(&disk);
                }
                Err(error) => tracing::error!(host, disk, reason, %error, "neighbour: not {what}"),
            }
        }
    }
}
