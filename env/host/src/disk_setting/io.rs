//! How the settings of a running guest's disk are read and written.

use super::{DiskBounds, DiskChange, DiskSetting};
use crate::error::{HostError, HostResult};
use crate::knob::{Knob, KnobIo};
use crate::qcow2_cache::{AS_BOOTED, Qcow2Cache};
use crate::qmp::format_node::FormatNode;
use crate::throttle::Throttle;

impl KnobIo<'_> {
    /// The value in force. QEMU does not tell the sizes of its qcow2 caches: for those it is how they were
    /// at its start, and what has been set since is known by its replies alone
    /// ([`Knob::is_reported`]).
    pub(crate) fn disk_setting(&self, target: &str, setting: DiskSetting) -> HostResult<String> {
        match setting {
            DiskSetting::Throttle => {
                self.disk(target)?;
                let throttle = self.hypervisor.throttle(&self.guest.uuid, target)?;
                Ok(throttle.to_string())
            }
            DiskSetting::Qcow2Cache => {
                self.format_node(target)?;
                Ok(AS_BOOTED.to_owned())
            }
        }
    }

    pub(crate) fn set_disk_setting(
        &self,
        target: &str,
        setting: DiskSetting,
        value: &str,
    ) -> HostResult<()> {
        match setting {
            DiskSetting::Throttle => {
                let throttle: Throttle = value.parse()?;
                self.hypervisor
                    .set_throttle(&self.guest.uuid, target, &throttle)
            }
            DiskSetting::Qcow2Cache => {
                self.check_no_job(target)?;
                let command = self.format_node(target)?.reopen_command(&value.parse()?);
                self.qmp()?.repeat(&command.to_string())
            }
        }
    }

    /// The monitor command that sets it to its original; `None` where libvirt has a call for that.
    pub(crate) fn undo_of_disk_setting(
        &self,
        target: &str,
        setting: DiskSetting,
        original: &str,
    ) -> HostResult<Option<String>> {
        Ok(match setting {
            DiskSetting::Throttle => None,
            DiskSetting::Qcow2Cache => {
                let command = self.format_node(target)?.reopen_command(&original.parse()?);
                Some(command.to_string())
            }
        })
    }

    /// What QEMU, libvirt and the image allow.
    ///
    /// # Errors
    /// `Unsupported`, with the way out.
    pub(crate) fn check_disk_setting(
        &self,
        target: &str,
        setting: DiskSetting,
        value: &str,
    ) -> HostResult<()> {
        let refused = |reason| self.setting_refused(target, setting, reason);
        match setting {
            DiskSetting::Throttle => {
                let throttle: Throttle = value.parse()?;
                throttle.check().map_err(refused)?;
                self.check_group(target)
            }
            DiskSetting::Qcow2Cache => {
                // Before it is journalled: what was not set then needs no way back.
                self.check_no_job(target)?;
                let node = self.format_node(target)?;
                let cache: Qcow2Cache = value.parse()?;
                cache.check(&node.tables).map_err(refused)
            }
        }
    }

    /// The value that a change means, and that it is within what is configured.
    ///
    /// # Errors
    /// `Unsupported`, with the way out; as [`KnobIo::disk_setting`].
    pub(crate) fn resolve(
        &self,
        target: &str,
        change: &DiskChange,
        current: &str,
        bounds: &DiskBounds,
    ) -> HostResult<String> {
        let setting = change.setting;
        let refused = |reason| self.setting_refused(target, setting, reason);
        let (is_anew, parts) = change.parts().map_err(refused)?;
        let base = if is_anew { setting.unset() } else { current };
        Ok(match setting {
            DiskSetting::Throttle => {
                let throttle = base.parse::<Throttle>()?.with(&parts).map_err(refused)?;
                throttle.check_bounds(&bounds.throttle).map_err(refused)?;
                throttle.to_string()
            }
            DiskSetting::Qcow2Cache => {
                let cache = base.parse::<Qcow2Cache>()?.with(&parts).map_err(refused)?;
                cache.check_bounds(&bounds.qcow2_cache).map_err(refused)?;
                cache.to_string()
            }
        })
    }

    /// The limits of a group are those of all its members: changing one would change the others.
    fn check_group(&self, target: &str) -> HostResult<()> {
        let Some(group) = self.disk(target)?.throttle.group() else {
            return Ok(());
        };
        let mut others = self.guest.disks.iter();
        let shares =
            others.find(|disk| disk.target != target && disk.throttle.group() == Some(group));
        match shares {
            None => Ok(()),
            Some(other) => {
                let reason = format!(
                    "its limits are those of group {group}, which {} is in too: set them in the guest's XML",
                    other.target
                );
                Err(self.setting_refused(target, DiskSetting::Throttle, reason))
            }
        }
    }

    pub(crate) fn format_node(&self, target: &str) -> HostResult<FormatNode> {
        self.qmp()?.format_node(self.disk(target)?, self.nodes)
    }

    /// Whether a record of qcow2 caches is still about the node that the disk uses.
    pub(crate) fn is_same_format_node(&self, target: &str, node: &str) -> HostResult<bool> {
        match self.format_node(target) {
            Ok(used) => Ok(used.node_name == node),
            // The one in use is none whose caches can be set.
            Err(HostError::Unsupported { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn setting_refused(&self, target: &str, setting: DiskSetting, reason: String) -> HostError {
        HostError::Unsupported {
            what: format!("guest {}, disk {target}: {setting}", self.guest.name),
            reason,
        }
    }
}

impl Knob {
    /// Whether QEMU tells what is in force. What it does not is known by what it has accepted, which the
    /// journal has.
    #[must_use]
    pub fn is_reported(&self) -> bool {
        !matches!(
            self,
            Self::Disk {
                setting: DiskSetting::Qcow2Cache,
                ..
            }
        )
    }
}
