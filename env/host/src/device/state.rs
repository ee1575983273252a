//! How the devices stand on which something may be changed, or is.

use super::{Device, DeviceKnob};
use crate::error::HostResult;
use crate::inventory::Inventory;
use crate::journal::Record;
use crate::knob::{Knob, Purpose};
use crate::tuner::Tuner;

/// A device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceState {
    /// Which.
    pub device: Device,
    /// Its settings, in the order of [`DeviceKnob::ALL`]; what it does not have is left out.
    pub settings: Vec<SettingState>,
}

/// One setting of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingState {
    /// Which.
    pub knob: DeviceKnob,
    /// What is in force.
    pub current: String,
    /// Whether it may be changed.
    pub is_enabled: bool,
    /// What it may be set to, in words; the kernel may take less.
    pub values: String,
    /// What is journalled of it; `None` where we have not changed it.
    pub record: Option<Record>,
}

/// Reads them.
///
/// # Errors
/// `Io`, `Journal`.
pub(crate) fn read(inventory: &Inventory, tuner: &Tuner) -> HostResult<Vec<DeviceState>> {
    let mut devices = inventory.devices.changeable()?;
    for record in tuner.records()? {
        let life = record.life.device();
        let find = |life| {
            inventory
                .devices
                .find(life, &record.name, &inventory.boot_id)
        };
        if let Some(Ok(Some(device))) = life.map(find)
            && !devices.contains(&device)
        {
            devices.push(device);
        }
    }
    let state = |device: Device| {
        let settings = DeviceKnob::ALL.into_iter();
        let settings = settings.filter_map(|knob| setting(inventory, tuner, &device, knob));
        let settings = settings.collect::<HostResult<_>>()?;
        Ok(DeviceState { device, settings })
    };
    devices.into_iter().map(state).collect()
}

fn setting(
    inventory: &Inventory,
    tuner: &Tuner,
    device: &Device,
    knob: DeviceKnob,
) -> Option<HostResult<SettingState>> {
    let queue = inventory.devices.queue(device, Purpose::Tune);
    let current = queue.value(knob).ok()?;
    let values = match knob.range() {
        Some(range) => format!("{} to {}", range.start(), range.end()),
        None => queue.schedulers().ok()?.join(", "),
    };
    let record = tuner.record(&inventory.life_of(device), &Knob::Device(knob));
    Some(record.map(|record| SettingState {
        knob,
        current,
        is_enabled: inventory.devices.enabled(device).contains(&knob),
        values,
        record,
    }))
}
