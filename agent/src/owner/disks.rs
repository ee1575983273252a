//! Settings of guests' disks that are no heads, which are changed when somebody asks for it.

use blkpilot_host::disk_setting::DiskChange;
use tonic::Code;

use super::Owner;
use super::handle::{DiskCall, DiskRequest, ShownDisk};
use crate::backend::{BackendError, DiskAction, DiskName, Planned};
use crate::wire::names::{Row, guest_name};
use crate::wire::status::Failure;

impl Owner {
    pub(super) fn disks(&self) -> Result<Vec<ShownDisk>, Failure> {
        let backend = self.backend.as_ref().ok_or_else(|| self.unavailable())?;
        let limited = backend.limits().limited;
        let shown = |state: blkpilot_host::DiskState| ShownDisk {
            guard_reason: limited
                .get(&format!("{}/{}", state.guest, state.target))
                .cloned(),
            state,
            planned: vec![],
        };
        let disks = backend.disks().map_err(|error| refused(&error))?;
        Ok(disks.into_iter().map(shown).collect())
    }

    /// How the disk stands afterwards.
    pub(super) fn change_disk(&mut self, call: &DiskCall) -> Result<ShownDisk, Failure> {
        self.admit_disk(call)?;
        let action = action(call)?;
        let is_written = !call.validate_only;
        let mut planned: Vec<Planned> = vec![];
        if is_written || matches!(action, DiskAction::Check(_)) {
            let Some(backend) = &mut self.backend else {
                return Err(self.unavailable());
            };
            let done = backend.change_disk(&call.disk, &action);
            planned = done.map_err(|error| refused(&error))?;
        }
        if is_written {
            tracing::info!(host = self.config.name, disk = %call.disk, ?action, "done");
        }
        let DiskName { guest, target } = &call.disk;
        let mut disks = self.disks()?.into_iter();
        let found = disks.find(|disk| disk.state.guest == *guest && disk.state.target == *target);
        // One without an opt-in has nothing to show once it is put back.
        let nothing = blkpilot_host::DiskState {
            guest: guest.clone(),
            target: target.clone(),
            settings: vec![],
        };
        let found = found.unwrap_or(ShownDisk {
            state: nothing,
            guard_reason: None,
            planned: vec![],
        });
        Ok(ShownDisk { planned, ..found })
    }

    /// The way back is open in every mode; a change is not, and nor is one under somebody's environment.
    fn admit_disk(&self, call: &DiskCall) -> Result<(), Failure> {
        let DiskName { guest, target } = &call.disk;
        let name = guest_name(&self.config.name, guest);
        let status = self
            .seen()?
            .guests
            .iter()
            .find(|known| known.name == *guest);
        let Some(status) = status else {
            let way_out = "it is not running; ListGuests names those that are";
            return Err(Failure::not_found(&name, way_out));
        };
        if !status.targets.contains(target) {
            let (guest, target) = (guest.clone(), target.clone());
            let name = Row::Disk { guest, target }.name(&self.config.name);
            let way_out = "ListGuests names the disks that there are";
            return Err(Failure::not_found(&name, way_out));
        }
        if call.action == DiskRequest::PutBack {
            return Ok(());
        }
        self.refuse_if_attached()?;
        let mode = self.config.modes.of(status);
        if mode.allows_changes() {
            return Ok(());
        }
        let message = format!("guest {guest} is in mode {mode}, which forbids changes");
        Err(Failure::new(
            Code::FailedPrecondition,
            "MODE_FORBIDS",
            message,
        ))
    }
}

fn action(call: &DiskCall) -> Result<DiskAction, Failure> {
    let DiskRequest::Set(named) = &call.action else {
        return Ok(DiskAction::PutBack);
    };
    let changes = DiskChange::of(named);
    let changes = changes.map_err(|problem| Failure::field("set.values", problem))?;
    Ok(if call.validate_only {
        DiskAction::Check(changes)
    } else {
        DiskAction::Set(changes)
    })
}

pub(super) fn refused(error: &BackendError) -> Failure {
    let message = error.to_string();
    Failure::new(Code::FailedPrecondition, "DISK_REFUSED", message)
}
