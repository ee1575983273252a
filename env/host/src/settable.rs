//! What the tuner needs of whatever has knobs: a running guest, a block device.

use std::path::PathBuf;

use crate::error::{HostError, HostResult};
use crate::journal::Record;
use crate::knob::Knob;

/// Something whose knobs can be read and turned. Nothing is journalled here.
pub(crate) trait Settable {
    /// What it is, in words: `guest web`.
    fn owner(&self) -> String;

    /// Refuses a knob that may not be turned, before anything is read.
    ///
    /// # Errors
    /// `NotOptedIn`, `DeviceNotEnabled`.
    fn check_allowed(&self, knob: &Knob) -> HostResult<()>;

    /// The value in force, in canonical form.
    ///
    /// # Errors
    /// `Unsupported` where there is no such knob; whatever the host says.
    fn read(&self, knob: &Knob) -> HostResult<String> {
        self.read_of(knob, None)
    }

    /// As [`Settable::read`], of what `undo` is about, which the journal holds of the knob, if anything: what has
    /// taken its place is not compared with the record.
    ///
    /// # Errors
    /// `ImageReplaced`; as [`Settable::read`].
    fn read_of(&self, knob: &Knob, undo: Option<&str>) -> HostResult<String>;

    /// Whether a record is still about what is in use. What a snapshot has put aside, under an image that
    /// libvirt has opened as the guest's XML says, is put back before this says that it is not.
    ///
    /// # Errors
    /// `ReadBack`; `JobRuns`; as [`Settable::read`].
    fn is_in_use(&self, record: &Record) -> HostResult<bool>;

    /// Refuses a change, before anything is journalled.
    ///
    /// # Errors
    /// `Unsupported`, with the way out.
    fn check_change(&self, knob: &Knob, current: &str, value: &str) -> HostResult<()>;

    /// The image whose dirty pages a change would wait for, while its disk stands still.
    fn image_flushed_by(&self, knob: &Knob, current: &str, value: &str) -> Option<PathBuf>;

    /// Sets a knob of what `undo` is about, as [`Settable::read_of`], without reading it back.
    ///
    /// # Errors
    /// `ImageReplaced`; whatever the host says.
    fn write(&self, knob: &Knob, value: &str, undo: Option<&str>) -> HostResult<()>;

    /// What the journal has to hold beside the original for a way back from a change that is about to
    /// be made; `known` is the record of changes before it.
    ///
    /// # Errors
    /// `ImageReplaced` where that is about another image; as [`Settable::read`].
    fn undo(
        &self,
        knob: &Knob,
        original: &str,
        known: Option<&Record>,
    ) -> HostResult<Option<String>>;

    /// What turning the knob may change beside it, as it stands now, in the form of
    /// [`Settable::undo`]; `None` if nothing.
    fn side_effects(&self, knob: &Knob) -> Option<String>;

    /// [`Settable::undo`] of a change that has side effects, once it has been made.
    fn undo_once_made(&self, undo: &str) -> String;

    /// Sets a knob to what it was, with whatever turning it had changed, and reads back.
    ///
    /// # Errors
    /// `ReadBack`; as [`Settable::write`].
    fn go_back(&self, knob: &Knob, value: &str, undo: Option<&str>) -> HostResult<()>;

    /// Brings a way back to its end that was interrupted after the knob itself was back.
    ///
    /// # Errors
    /// As [`Settable::go_back`].
    fn complete(&self, record: &Record) -> HostResult<()>;
}

/// Sets a knob and reads it back, where it can be read: what QEMU does not report it has accepted.
///
/// # Errors
/// `ReadBack` when it did not take; as [`Settable::write`] and [`Settable::read`].
pub(crate) fn write_and_check(
    io: &dyn Settable,
    knob: &Knob,
    value: &str,
    undo: Option<&str>,
) -> HostResult<()> {
    io.write(knob, value, undo)?;
    if !knob.is_reported() {
        return Ok(());
    }
    let found = io.read_of(knob, undo)?;
    if found == value {
        return Ok(());
    }
    Err(HostError::ReadBack {
        owner: io.owner(),
        knob: knob.to_string(),
        wanted: value.to_owned(),
        found,
    })
}
