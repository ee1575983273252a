//! The scheduler of a device as a level of the device head.

use blkpilot_env::features::SCHEDULERS;
use blkpilot_env::observation::MaskReason;
use blkpilot_env::spec::Level;

use super::{Device, DeviceKnob};
use crate::inventory::Inventory;
use crate::journal::RecordState;
use crate::knob::{Knob, Purpose};
use crate::tuner::Tuner;

/// What is in force, what was there before us, and what may be chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct SchedulerState {
    pub(crate) current: Level,
    pub(crate) default: Level,
    /// Empty where no device's scheduler may be changed: there is no such head then.
    pub(crate) mask: Vec<MaskReason>,
}

/// Reads the scheduler of a device, by kernel name.
pub(crate) fn read(inventory: &Inventory, tuner: &Tuner, name: &str) -> SchedulerState {
    if !inventory.devices.enables(DeviceKnob::Scheduler) {
        return SchedulerState::default();
    }
    let all = |reason| SchedulerState {
        mask: vec![reason; SCHEDULERS.len()],
        ..SchedulerState::default()
    };
    let Ok(device) = inventory.devices.device(name) else {
        return all(MaskReason::Unsupported);
    };
    let queue = inventory.devices.queue(&device, Purpose::Tune);
    let (Ok(current), Ok(offered)) = (queue.value(DeviceKnob::Scheduler), queue.schedulers())
    else {
        return all(MaskReason::Unsupported);
    };
    // One that has no level is none that we could go back to.
    let Some(level) = level_of(&current) else {
        return all(MaskReason::Unsupported);
    };
    let reason = reason(inventory, tuner, &device);
    let record = tuner.record(
        &inventory.life_of(&device),
        &Knob::Device(DeviceKnob::Scheduler),
    );
    let original = record.ok().flatten().map(|record| record.original);
    let mask = |name: &&str| match reason {
        MaskReason::Allowed if !offered.iter().any(|offer| offer == name) => {
            MaskReason::Unsupported
        }
        reason => reason,
    };
    SchedulerState {
        current: level,
        default: original.and_then(|name| level_of(&name)).unwrap_or(level),
        mask: SCHEDULERS.iter().map(mask).collect(),
    }
}

fn reason(inventory: &Inventory, tuner: &Tuner, device: &Device) -> MaskReason {
    if !inventory
        .devices
        .enabled(device)
        .contains(&DeviceKnob::Scheduler)
    {
        return MaskReason::NotEnabled;
    }
    let knob = Knob::Device(DeviceKnob::Scheduler);
    match tuner.record(&inventory.life_of(device), &knob) {
        Ok(Some(record)) if record.state == RecordState::Frozen => MaskReason::Frozen,
        Ok(_) => MaskReason::Allowed,
        // A journal that cannot be read allows nothing.
        Err(_) => MaskReason::Frozen,
    }
}

fn level_of(name: &str) -> Option<Level> {
    let level = SCHEDULERS.iter().position(|known| *known == name)?;
    Level::try_from(level).ok()
}
