//! The modes of a host and its guests, and whom a candidate decides for.

use std::collections::BTreeMap;

use blkpilot_env::guard::exploration::Exploration;

use super::GuestStatus;
use crate::config::GuestConfig;
use crate::config::mode::Mode;

/// The modes of a host and its guests.
#[derive(Debug, Clone, PartialEq)]
pub struct Modes {
    /// Mode of guests that have none of their own.
    pub default: Mode,
    /// What the configuration says of single guests.
    pub guests: BTreeMap<String, GuestConfig>,
    /// For whom there is a candidate: where there is none, modes shadow and canary stand for advice.
    pub candidate: Reach,
}

/// For whom a candidate decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// There is none.
    Nobody,
    /// For guests in mode shadow only.
    Shadow,
    /// For guests in modes shadow and canary.
    Canary,
}

impl Reach {
    fn covers(self, mode: Mode) -> bool {
        match mode {
            Mode::Shadow => self >= Self::Shadow,
            Mode::Canary => self >= Self::Canary,
            _ => true,
        }
    }
}

impl Modes {
    /// The mode of a guest: what the backend made of its own and the configuration's, else the
    /// configuration's, else the host's.
    #[must_use]
    pub fn of(&self, guest: &GuestStatus) -> Mode {
        let wanted = self.wanted(guest);
        if self.candidate.covers(wanted) {
            wanted
        } else {
            Mode::Advise
        }
    }

    fn wanted(&self, guest: &GuestStatus) -> Mode {
        let configured = self.guests.get(&guest.name).and_then(|g| g.mode);
        guest.mode.or(configured).unwrap_or(self.default)
    }

    /// What of a guest's settings does not hold, and the way out.
    #[must_use]
    pub fn notice(&self, guest: &GuestStatus) -> Option<String> {
        let wanted = self.wanted(guest);
        (wanted != self.of(guest)).then(|| {
            let stage = match wanted {
                Mode::Shadow => "candidate",
                _ => "canary",
            };
            format!(
                "mode {wanted} needs a candidate, and the service has none, so it is in mode advise: add [candidate] to the configuration, or promote a version to stage {stage}"
            )
        })
    }

    /// How much a guest is explored: as the backend says, else the configuration; `None` where
    /// nobody says anything.
    #[must_use]
    pub fn exploration_of(&self, guest: &GuestStatus) -> Option<Exploration> {
        let configured = self.guests.get(&guest.name).and_then(|g| g.exploration);
        guest.exploration.or(configured)
    }
}
