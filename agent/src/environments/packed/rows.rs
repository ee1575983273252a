//! Rows of an environment's tables, and their names.

use blkpilot_env::{JointAction, Observation};
use blkpilot_proto::v1;

use crate::wire::{self, WireError};

/// What of an observation seldom changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Rows {
    pub(super) disk_ids: Vec<String>,
    pub(super) channel_ids: Vec<String>,
    pub(super) device_ids: Vec<String>,
    pub(super) disk_device: Vec<usize>,
    pub(super) disk_group: Vec<Option<usize>>,
    pub(super) default: JointAction,
}

impl Rows {
    /// Those of an observation.
    pub(crate) fn of(observation: &Observation) -> Self {
        Self {
            disk_ids: observation.disk_ids.clone(),
            channel_ids: observation.channel_ids.clone(),
            device_ids: observation.device_ids.clone(),
            disk_device: observation.disk_device.clone(),
            disk_group: observation.disk_group.clone(),
            default: observation.default.clone(),
        }
    }

    /// Whether an observation has these.
    pub(crate) fn fit(&self, observation: &Observation) -> bool {
        self.disk_ids == observation.disk_ids
            && self.channel_ids == observation.channel_ids
            && self.device_ids == observation.device_ids
            && self.disk_device == observation.disk_device
            && self.disk_group == observation.disk_group
            && self.default == observation.default
    }

    /// Whether nothing was shown yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.disk_ids.is_empty()
    }

    /// Number of disks and of devices.
    pub(crate) fn disks_and_devices(&self) -> (usize, usize) {
        (self.disk_ids.len(), self.device_ids.len())
    }

    fn to_wire(&self) -> v1::EnvironmentLayout {
        let groups = self.disk_group.iter();
        v1::EnvironmentLayout {
            disk_ids: self.disk_ids.clone(),
            channel_ids: self.channel_ids.clone(),
            device_ids: self.device_ids.clone(),
            disk_device: self.disk_device.iter().map(|d| *d as u32).collect(),
            disk_group: groups.map(|g| g.map_or(-1, |g| g as i32)).collect(),
            default: Some(wire::action_to_wire(&self.default)),
        }
    }

    /// Those of the only environment of a layout.
    ///
    /// # Errors
    /// A field that does not say what it should.
    pub(crate) fn from_wire(layout: v1::RolloutLayout) -> Result<Self, WireError> {
        let mut environments = layout.environments.into_iter();
        let (Some(rows), None) = (environments.next(), environments.next()) else {
            return Err(WireError::new("layout.environments", "must be one"));
        };
        let groups = rows.disk_group.into_iter();
        Ok(Self {
            default: wire::action_from_wire("layout.default", rows.default)?,
            disk_ids: rows.disk_ids,
            channel_ids: rows.channel_ids,
            device_ids: rows.device_ids,
            disk_device: rows.disk_device.into_iter().map(|d| d as usize).collect(),
            disk_group: groups.map(|g| usize::try_from(g).ok()).collect(),
        })
    }
}

/// Those of all environments; once, if they are equal.
pub(super) fn layout_to_wire(rows: &[Rows]) -> v1::RolloutLayout {
    let are_equal = rows.windows(2).all(|pair| pair[0] == pair[1]);
    let shown = if are_equal {
        &rows[..rows.len().min(1)]
    } else {
        rows
    };
    v1::RolloutLayout {
        environments: shown.iter().map(Rows::to_wire).collect(),
        count: rows.len() as u32,
    }
}
