//! The settings of one device's request queue, in sysfs.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{DeviceKnob, SideEffect, SideEffects};
use crate::block_device::Scheduler;
use crate::error::{HostError, HostResult};
use crate::journal::{Record, RecordState};
use crate::knob::Knob;
use crate::settable::{Settable, write_and_check};

/// The settings of a device.
#[derive(Debug)]
pub(crate) struct Queue<'a> {
    /// `/sys/block/DEVICE/queue`.
    pub(super) directory: PathBuf,
    /// Kernel name.
    pub(super) device: String,
    /// What may be changed; `None` where our own changes are put back.
    pub(super) enabled: Option<BTreeSet<DeviceKnob>>,
    pub(super) writer: &'a Writer,
}

/// Writes a value to a file of sysfs.
#[derive(Clone)]
pub(crate) struct Writer(Arc<Write>);

type Write = dyn Fn(&Path, &str) -> io::Result<()> + Send + Sync;

impl Writer {
    #[cfg(test)]
    pub(crate) fn new(
        write: impl Fn(&Path, &str) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(write))
    }
}

impl Default for Writer {
    fn default() -> Self {
        Self(Arc::new(|path, value| {
            let mut file = fs::OpenOptions::new().write(true).open(path)?;
            file.write_all(value.as_bytes())
        }))
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writer")
    }
}

impl Queue<'_> {
    /// The value in force.
    ///
    /// # Errors
    /// `Unsupported` where the kernel or the device has no such setting, or the device has gone.
    pub(crate) fn value(&self, knob: DeviceKnob) -> HostResult<String> {
        let text = self.text(knob)?;
        Ok(match knob {
            DeviceKnob::Scheduler => Scheduler::parse(&text).current,
            _ => text,
        })
    }

    /// The schedulers that the kernel offers for the device.
    ///
    /// # Errors
    /// As [`Queue::value`].
    pub(crate) fn schedulers(&self) -> HostResult<Vec<String>> {
        let text = self.text(DeviceKnob::Scheduler)?;
        Ok(Scheduler::parse(&text).available)
    }

    fn text(&self, knob: DeviceKnob) -> HostResult<String> {
        let path = self.directory.join(knob.name());
        let text = fs::read_to_string(&path);
        text.map(|text| text.trim().to_owned())
            .map_err(|source| match source.kind() {
                // EINVAL: a kernel with writeback throttling, on a device without.
                ErrorKind::NotFound | ErrorKind::InvalidInput => HostError::Unsupported {
                    what: format!("{}: {knob}", self.owner()),
                    reason: "the device has gone, or has no such setting under this kernel".into(),
                },
                _ => HostError::Io { path, source },
            })
    }

    fn set(&self, knob: DeviceKnob, value: &str) -> HostResult<()> {
        let path = self.directory.join(knob.name());
        (self.writer.0)(&path, value).map_err(|source| HostError::DeviceRefused {
            device: self.device.clone(),
            knob: knob.to_string(),
            value: value.to_owned(),
            way_out: way_out(&source),
            source,
        })
    }

    fn check(&self, knob: DeviceKnob, value: &str) -> HostResult<()> {
        let refused = |reason| HostError::Unsupported {
            what: format!("{}: {knob} = {value}", self.owner()),
            reason,
        };
        let canonical = knob.canonical(value).map_err(refused)?;
        if canonical != value {
            return Err(refused(format!("write it as {canonical}")));
        }
        if knob == DeviceKnob::Scheduler {
            let offered = self.schedulers()?;
            if !offered.iter().any(|name| name == value) {
                return Err(refused(format!("the kernel offers {}", offered.join(", "))));
            }
        }
        Ok(())
    }

    /// What the kernel may change along with the scheduler, as it stands now.
    fn dependents(&self) -> SideEffects {
        let effect = |knob: DeviceKnob| {
            Some(SideEffect {
                knob,
                before: self.value(knob).ok()?,
                after: None,
            })
        };
        SideEffects(
            DeviceKnob::OF_SCHEDULER
                .into_iter()
                .filter_map(effect)
                .collect(),
        )
    }

    /// Sets what the kernel has changed along with the scheduler back, where it has.
    fn keep(&self, knob: DeviceKnob, value: &str) -> HostResult<()> {
        if self.value(knob)? == value {
            return Ok(());
        }
        write_and_check(self, &Knob::Device(knob), value, None)
    }
}

impl Settable for Queue<'_> {
    fn owner(&self) -> String {
        format!("device {}", self.device)
    }

    fn check_allowed(&self, knob: &Knob) -> HostResult<()> {
        let knob = self.mine(knob)?;
        match &self.enabled {
            Some(enabled) if !enabled.contains(&knob) => Err(HostError::DeviceNotEnabled {
                device: self.device.clone(),
                knob: knob.to_string(),
            }),
            _ => Ok(()),
        }
    }

    fn read_of(&self, knob: &Knob, _undo: Option<&str>) -> HostResult<String> {
        self.value(self.mine(knob)?)
    }

    fn is_in_use(&self, _record: &Record) -> HostResult<bool> {
        Ok(true)
    }

    fn check_change(&self, knob: &Knob, _current: &str, value: &str) -> HostResult<()> {
        self.check(self.mine(knob)?, value)
    }

    fn image_flushed_by(&self, _knob: &Knob, _current: &str, _value: &str) -> Option<PathBuf> {
        None
    }

    /// Whether it is allowed was checked of the knob that is turned: what the kernel changes along with
    /// a scheduler may go back without being enabled itself.
    fn write(&self, knob: &Knob, value: &str, _undo: Option<&str>) -> HostResult<()> {
        self.set(self.mine(knob)?, value)
    }

    /// What somebody else has set since stays: it is what was there before this change.
    fn undo(
        &self,
        knob: &Knob,
        _original: &str,
        known: Option<&Record>,
    ) -> HostResult<Option<String>> {
        if *knob != Knob::Device(DeviceKnob::Scheduler) {
            return Ok(None);
        }
        let known = SideEffects::of(known.and_then(|record| record.undo.as_deref()));
        let mut now = self.dependents();
        for effect in &mut now.0 {
            effect.before = known.before(effect.knob, &effect.before);
        }
        Ok(Some(now.to_string()))
    }

    fn side_effects(&self, knob: &Knob) -> Option<String> {
        let is_scheduler = *knob == Knob::Device(DeviceKnob::Scheduler);
        is_scheduler.then(|| self.dependents().to_string())
    }

    fn undo_once_made(&self, undo: &str) -> String {
        let mut effects = SideEffects::of(Some(undo));
        for effect in &mut effects.0 {
            effect.after = self.value(effect.knob).ok();
        }
        effects.to_string()
    }

    fn go_back(&self, knob: &Knob, value: &str, undo: Option<&str>) -> HostResult<()> {
        let (known, now) = (SideEffects::of(undo), self.dependents());
        write_and_check(self, knob, value, undo)?;
        if *knob != Knob::Device(DeviceKnob::Scheduler) {
            return Ok(());
        }
        for effect in now.0 {
            let target = known.before(effect.knob, &effect.before);
            let done = self.keep(effect.knob, &target);
            // What somebody else has set may not fit the scheduler that comes back: then the kernel's
            // own value stands.
            if target != effect.before {
                done?;
            }
        }
        Ok(())
    }

    fn complete(&self, record: &Record) -> HostResult<()> {
        let is_open = record.state == RecordState::Intended;
        if !is_open || record.knob != Knob::Device(DeviceKnob::Scheduler) {
            return Ok(());
        }
        let effects = SideEffects::of(record.undo.as_deref()).0;
        effects
            .iter()
            .try_for_each(|effect| self.keep(effect.knob, &effect.before))
    }
}

impl Queue<'_> {
    fn mine(&self, knob: &Knob) -> HostResult<DeviceKnob> {
        match knob {
            Knob::Device(knob) => Ok(*knob),
            _ => Err(HostError::Unsupported {
                what: format!("{}: {knob}", self.owner()),
                reason: "it is a knob of a guest".into(),
            }),
        }
    }
}

fn way_out(source: &io::Error) -> &'static str {
    match source.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "run the service as root, with /sys writable"
        }
        ErrorKind::NotFound => "the device has gone, or has no such setting under this kernel",
        ErrorKind::ResourceBusy => "the device is being changed or removed; try again",
        ErrorKind::InvalidInput => {
            "the kernel does not take this value for this device now, such as more requests than its queues hold under this scheduler; choose another"
        }
        _ => "see the kernel's log",
    }
}
