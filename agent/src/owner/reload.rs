//! What a host's owner takes of a configuration that was read again.

use std::time::Instant;

use blkpilot_env::guard::neighbour::{NeighbourConfig, NeighbourWatch};

use super::Owner;
use super::handle::{Reloadable, Reloaded};
use crate::backend::modes::Modes;

impl Owner {
    /// All at once, between two looks. Masks follow with the next decision; a guest that is opted out is
    /// put back as one that opts out by itself.
    pub(super) fn reload(&mut self, settings: Reloadable) -> Reloaded {
        let mut done = Reloaded::default();
        self.config.modes = Modes {
            default: settings.default_mode,
            guests: settings.guests,
            candidate: self.config.modes.candidate,
        };
        if let Some(backend) = &mut self.backend {
            backend.set_modes(&self.config.modes);
            self.refresh.ask(Instant::now());
        }
        // What was proposed under other modes is not applied under these.
        self.proposals.clear();
        self.config.guard = settings.guard;
        self.watch.set_config(&settings.guard);
        self.reload_neighbours(settings.neighbours);
        self.config.recorder.set_config(&settings.log);
        if let Some(reward) = settings.reward {
            if self.attached.is_some() {
                done.left.push("reward: the host is in use as an environment, which would be paid by two scales: reload again when it is not".to_owned());
            } else {
                self.set_reward_to(reward);
            }
        }
        self.show();
        done
    }

    /// A watch with other settings begins anew, and what the last one has limited is lifted.
    fn reload_neighbours(&mut self, neighbours: Option<NeighbourConfig>) {
        if self.config.neighbours == neighbours {
            return;
        }
        self.leave_neighbours();
        self.config.neighbours = neighbours;
        self.neighbours = neighbours.map(NeighbourWatch::new);
    }
}
