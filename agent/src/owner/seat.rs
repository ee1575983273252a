//! Another policy in the place of one that decides. The owner takes one thing after another, so that it happens
//! between two intervals: no decision waits for it, and none is half of one policy and half of another.

use std::mem;

use tonic::Code;

use super::Owner;
use super::handle::{Origin, Production, Succession};
use crate::backend::modes::Reach;
use crate::decision::chain::Chain;
use crate::wire::status::Failure;

/// Which production policy decides, and the configuration's while another does.
pub(super) enum Seated {
    /// The configuration's decides.
    Configured,
    /// Another does; the configuration's is kept, if it was ever there.
    Promoted(Option<Box<Production>>),
}

impl Seated {
    /// `kept`: the configuration's, where another decides from the start.
    pub(super) fn new(kept: Option<Chain>, origin: Origin) -> Self {
        match origin {
            Origin::Configuration => Self::Configured,
            Origin::Store => {
                let production = |chain| Production { chain, proof: None };
                Self::Promoted(kept.map(production).map(Box::new))
            }
        }
    }
}

/// The configuration's candidate, if it has one, while another is in its place.
pub(super) type Displaced = Option<(Option<Chain>, Reach)>;

impl Owner {
    pub(super) fn seat(&mut self, succession: Succession) -> Result<(), Failure> {
        tracing::info!(
            host = self.config.name,
            ?succession,
            "another policy decides"
        );
        match succession {
            Succession::Configured => self.seat_configured()?,
            Succession::Production(production, origin) => self.seat_production(*production, origin),
            Succession::Candidate(chain, reach) => {
                let before = self.config.candidate.replace(*chain);
                let reach_before = mem::replace(&mut self.config.modes.candidate, reach);
                // Only the first that is replaced is the configuration's.
                self.displaced.get_or_insert((before, reach_before));
                self.candidate_error = None;
                self.harm.candidate_changed();
            }
            Succession::ConfiguredCandidate => {
                if let Some((chain, reach)) = self.displaced.take() {
                    self.config.candidate = chain;
                    self.config.modes.candidate = reach;
                    self.candidate_error = None;
                    self.harm.candidate_changed();
                }
            }
        }
        self.show();
        Ok(())
    }

    fn seat_configured(&mut self) -> Result<(), Failure> {
        match &mut self.seated {
            Seated::Configured => Ok(()),
            Seated::Promoted(kept) => {
                let kept = kept.take().ok_or_else(not_loaded)?;
                self.seat_production(*kept, Origin::Configuration);
                Ok(())
            }
        }
    }

    fn seat_production(&mut self, next: Production, origin: Origin) {
        let before = Production {
            chain: mem::replace(&mut self.config.production, next.chain),
            proof: mem::replace(&mut self.config.proof, next.proof),
        };
        self.policy_error = None;
        self.harm.production_changed();
        self.seated = match (origin, mem::replace(&mut self.seated, Seated::Configured)) {
            (Origin::Configuration, _) => Seated::Configured,
            (Origin::Store, Seated::Configured) => Seated::Promoted(Some(Box::new(before))),
            (Origin::Store, promoted) => promoted,
        };
    }
}

fn not_loaded() -> Failure {
    let message = "the configuration's policy was not loaded yet";
    Failure::new(Code::FailedPrecondition, "NOT_LOADED", message)
}
