//! Settings of the host's block devices, which are changed when somebody asks for it.

use blkpilot_host::device::{DeviceChange, DeviceKnob, DeviceState, SettingState};
use blkpilot_host::journal::RecordState;
use tonic::Code;

use super::Owner;
use super::handle::{DeviceCall, DeviceRequest};
use crate::backend::{BackendError, DeviceAction};
use crate::wire::status::Failure;

impl Owner {
    pub(super) fn devices(&self) -> Result<Vec<DeviceState>, Failure> {
        let backend = self.backend.as_ref().ok_or_else(|| self.unavailable())?;
        backend.devices().map_err(|error| refused(&error))
    }

    /// How the device stands afterwards. Its scheduler is seen in the next window.
    pub(super) fn change_device(&mut self, call: &DeviceCall) -> Result<DeviceState, Failure> {
        self.admit(call)?;
        let found = self.device(&call.device)?;
        let known = found.device;
        let action = self.action(call)?;
        if let DeviceRequest::Set { knob, .. } = call.action {
            self.hold_back_device(call, knob)?;
        }
        let is_written = !call.validate_only;
        if is_written || matches!(action, DeviceAction::Check(_)) {
            let Some(backend) = &mut self.backend else {
                return Err(self.unavailable());
            };
            let done = backend.change_device(&call.device, &action);
            done.map_err(|error| refused(&error))?;
        }
        if is_written {
            self.note_done(call, &action, &found.settings);
            tracing::info!(
                host = self.config.name,
                device = call.device,
                ?action,
                "done"
            );
        }
        // One without a rule has nothing to show once it is put back.
        let settings = self
            .device(&call.device)
            .map_or(vec![], |state| state.settings);
        Ok(DeviceState {
            device: known,
            settings,
        })
    }

    /// Tells the guard. What was set to what it was is no change.
    fn note_done(&mut self, call: &DeviceCall, action: &DeviceAction, before: &[SettingState]) {
        match action {
            DeviceAction::Set(change) => {
                let was = before.iter().find(|setting| setting.knob == change.knob);
                let was = was.map(|setting| setting.current.clone());
                if let Some(was) = was.filter(|was| *was != change.value) {
                    self.begin_device_trial(&call.device, change.knob, was);
                }
            }
            DeviceAction::PutBack => self.end_device_trials(Some(&call.device)),
            DeviceAction::Check(_) | DeviceAction::Unfreeze(_) => {}
        }
    }

    /// The way back is open in every mode; a change is not, and nor is one under somebody's environment.
    fn admit(&self, call: &DeviceCall) -> Result<(), Failure> {
        if call.action != DeviceRequest::PutBack {
            self.refuse_if_attached()?;
        }
        let mode = self.config.modes.default;
        if !matches!(call.action, DeviceRequest::Set { .. }) || mode.allows_changes() {
            return Ok(());
        }
        let message = format!(
            "device {}: the host is in mode {mode}, which forbids changes: set host.mode = \"advise\" or \"auto\"",
            call.device
        );
        Err(Failure::new(
            Code::FailedPrecondition,
            "MODE_FORBIDS",
            message,
        ))
    }

    fn action(&self, call: &DeviceCall) -> Result<DeviceAction, Failure> {
        match &call.action {
            DeviceRequest::PutBack => Ok(DeviceAction::PutBack),
            DeviceRequest::Set { knob, value } => {
                let change = change(&call.device, *knob, value)?;
                Ok(if call.validate_only {
                    DeviceAction::Check(change)
                } else {
                    DeviceAction::Set(change)
                })
            }
            DeviceRequest::Unfreeze(only) => {
                let settings = self.device(&call.device)?.settings;
                let is_meant = |knob: &DeviceKnob| only.is_none_or(|wanted| wanted == *knob);
                let frozen = settings.into_iter().filter(|setting| {
                    let record = setting.record.as_ref();
                    record.is_some_and(|record| record.state == RecordState::Frozen)
                });
                let frozen = frozen.map(|setting| setting.knob).filter(is_meant);
                Ok(DeviceAction::Unfreeze(frozen.collect()))
            }
        }
    }

    /// One that has nothing to show has no rule and no record.
    fn device(&self, name: &str) -> Result<DeviceState, Failure> {
        let devices = self.devices()?;
        let found = devices.into_iter().find(|state| state.device.name == name);
        found.ok_or_else(|| {
            refused(&BackendError::Unavailable(format!(
                "device {name}: nothing of it may be changed: add a [[host.device]] that matches it to the service's configuration"
            )))
        })
    }
}

fn change(device: &str, knob: DeviceKnob, value: &str) -> Result<DeviceChange, Failure> {
    if knob == DeviceKnob::Scheduler {
        let problem = format!(
            "= \"scheduler\" is a head: use Apply (`blkpilot apply --set {device}:scheduler={value}`)"
        );
        return Err(Failure::field("set.setting", problem));
    }
    let value = knob.canonical(value);
    let value = value.map_err(|problem| {
        Failure::field("set.value", format!("device {device}: {knob} {problem}"))
    })?;
    Ok(DeviceChange { knob, value })
}

fn refused(error: &BackendError) -> Failure {
    Failure::new(
        Code::FailedPrecondition,
        "DEVICE_REFUSED",
        error.to_string(),
    )
}
