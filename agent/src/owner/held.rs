//! What somebody asks for, held back as the policy's changes are; and why it was not, where it was forced.

use std::time::Duration;

use blkpilot_env::guard::Held;
use blkpilot_env::{JointAction, Observation};
use blkpilot_host::DeviceKnob;
use tonic::Code;

use super::Owner;
use super::handle::{ChangeCall, DeviceCall};
use crate::decision::Made;
use crate::wire::status::Failure;

impl Owner {
    /// Refuses an action beyond the rate or against the breaker, unless it is forced: then the reason
    /// stands with the decision and in the journal. One that changes nothing is never held back.
    pub(super) fn hold_back(
        &mut self,
        call: &ChangeCall,
        observation: &Observation,
        made: &mut Made,
    ) -> Result<(), Failure> {
        let devices = changed_devices(observation, &made.action);
        let count = changed_disks(observation, &made.action) + devices.len();
        if count == 0 {
            return Ok(());
        }
        let scheduler = number_of(DeviceKnob::Scheduler);
        let admitted = devices
            .iter()
            .try_fold((), |(), device| self.watch.admit_device(device, scheduler));
        let admitted = admitted.and_then(|()| self.watch.admit(count));
        let note = self.pass_by(admitted, call.force_reason.as_deref())?;
        if let Some(note) = note {
            made.explain(&note);
            if !call.validate_only {
                self.note(&format!("decisions/{}: {note}", made.decision.id))?;
            }
        }
        Ok(())
    }

    /// The same of a setting of a device.
    pub(super) fn hold_back_device(
        &mut self,
        call: &DeviceCall,
        knob: DeviceKnob,
    ) -> Result<(), Failure> {
        let admitted = self.watch.admit_device(&call.device, number_of(knob));
        let note = self.pass_by(admitted, call.force_reason.as_deref())?;
        match note.filter(|_| !call.validate_only) {
            Some(note) => self.note(&format!("{} {knob}: {note}", call.device)),
            None => Ok(()),
        }
    }

    /// What is to be noted of a change that was forced.
    fn pass_by(
        &self,
        admitted: Result<(), Held>,
        force_reason: Option<&str>,
    ) -> Result<Option<String>, Failure> {
        match (admitted, force_reason) {
            (Ok(()), None) => Ok(None),
            (Ok(()), Some(reason)) => Ok(Some(format!("forced: {reason}"))),
            (Err(held), Some(reason)) => {
                let (_, why, _) = describe(held);
                Ok(Some(format!("forced although {why}: {reason}")))
            }
            (Err(held), None) => Err(refusal(&self.config.name, held)),
        }
    }

    /// What cannot be noted is not done.
    pub(super) fn note(&mut self, text: &str) -> Result<(), Failure> {
        tracing::warn!(host = self.config.name, text, "past the guard");
        let Some(backend) = &mut self.backend else {
            return Err(self.unavailable());
        };
        backend.note(text).map_err(|error| {
            let message = format!("{error}; nothing was changed");
            Failure::new(Code::Unavailable, "JOURNAL_UNAVAILABLE", message)
        })
    }
}

/// The setting as the guard numbers it.
pub(super) fn number_of(knob: DeviceKnob) -> usize {
    let position = DeviceKnob::ALL.iter().position(|known| *known == knob);
    position.expect("ALL has every setting")
}

fn changed_disks(observation: &Observation, action: &JointAction) -> usize {
    let rows = 0..observation.disk_count();
    let is_changed = |row: &usize| observation.current.disks.row(*row) != action.disks.row(*row);
    rows.filter(is_changed).count()
}

/// The devices of which an action changes a level.
pub(super) fn changed_devices(observation: &Observation, action: &JointAction) -> Vec<String> {
    let rows = observation.device_ids.iter().enumerate();
    let changed =
        rows.filter(|(row, _)| observation.current.devices.row(*row) != action.devices.row(*row));
    changed.map(|(_, id)| id.clone()).collect()
}

/// The reason, in capitals and in words, and how long to wait.
fn describe(held: Held) -> (&'static str, &'static str, Duration) {
    match held {
        Held::Breaker { wait } => ("BREAKER_OPEN", "too many changes went wrong", wait),
        Held::Rate { wait } => (
            "RATE_LIMITED",
            "as many changes were made in the last minute as may be",
            wait,
        ),
        Held::Dwell { wait } => ("DWELL", "the setting was changed too recently", wait),
        Held::OnTrial { wait } => (
            "ON_TRIAL",
            "the last change of the device, or of a disk on it, is still being judged",
            wait,
        ),
    }
}

fn refusal(host: &str, held: Held) -> Failure {
    let (reason, why, wait) = describe(held);
    let code = match held {
        Held::Rate { .. } => Code::ResourceExhausted,
        _ => Code::FailedPrecondition,
    };
    let seconds = wait.as_secs_f64().ceil();
    let message = format!(
        "host {host}: {why}, so nothing was changed: try again in {seconds} s, or give a reason to force it"
    );
    Failure::new(code, reason, message).retry_after(wait)
}
