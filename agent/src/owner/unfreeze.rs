//! Letting knobs be tuned again that somebody else has changed.

use tonic::Code;

use super::Owner;
use super::handle::UnfreezeCall;
use crate::backend::{BackendError, FrozenKnob, GuestStatus};
use crate::wire::names::{Row, guest_name};
use crate::wire::status::Failure;

impl Owner {
    /// What is in force stays, and is the original from now on. The masks open with the next window.
    pub(super) fn unfreeze(&mut self, call: &UnfreezeCall) -> Result<Vec<FrozenKnob>, Failure> {
        self.refuse_if_attached()?;
        self.seen()?;
        let Some(backend) = &mut self.backend else {
            return Err(self.unavailable());
        };
        let mut knobs = select(&self.config.name, &backend.guests(), call)?;
        if call.validate_only {
            return Ok(knobs);
        }
        for knob in &mut knobs {
            let kept = backend.unfreeze(&call.guest, &knob.knob);
            knob.found = kept.map_err(|error| not_unfrozen(&call.guest, knob, &error))?;
            let FrozenKnob { knob, found, .. } = knob;
            tracing::info!(guest = call.guest, %knob, kept = found, "unfrozen");
        }
        let guests = backend.guests();
        if let Some(seen) = &mut self.window {
            seen.guests = guests;
        }
        self.show();
        Ok(knobs)
    }
}

/// The frozen knobs that are meant.
fn select(
    host: &str,
    guests: &[GuestStatus],
    call: &UnfreezeCall,
) -> Result<Vec<FrozenKnob>, Failure> {
    let guest = guests.iter().find(|guest| guest.name == call.guest);
    let guest = guest.ok_or_else(|| {
        let name = guest_name(host, &call.guest);
        Failure::not_found(&name, "it is not running; ListGuests names those that are")
    })?;
    if let Some(target) = call.target.as_ref().filter(|t| !guest.targets.contains(t)) {
        let (guest, target) = (call.guest.clone(), target.clone());
        let name = Row::Disk { guest, target }.name(host);
        return Err(Failure::not_found(
            &name,
            "ListGuests names the disks that there are",
        ));
    }
    let is_meant = |knob: &&FrozenKnob| {
        let target = call.target.as_ref();
        target.is_none_or(|target| knob.targets.contains(target))
            && call.knob.is_none_or(|wanted| knob.head == Some(wanted))
    };
    Ok(guest.frozen.iter().filter(is_meant).cloned().collect())
}

fn not_unfrozen(guest: &str, knob: &FrozenKnob, error: &BackendError) -> Failure {
    let message = format!("guest {guest}: {} stays frozen: {error}", knob.knob);
    Failure::new(Code::Internal, "UNFREEZE_FAILED", message)
}
