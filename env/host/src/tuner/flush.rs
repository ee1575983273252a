//! A disk that goes over to direct has its dirty pages written back first, see
//! [`crate::write_back`].

use std::path::Path;

use blkpilot_env::observation::MaskReason;

use super::*;
use crate::knob::{BUFFERED, DIRECT};
use crate::qmp::reopened_file;

impl Tuner {
    /// Whether a buffered disk with this image may go over to direct now, as far as this is about its dirty
    /// pages.
    pub(crate) fn direct_mask(&self, image: &Path) -> MaskReason {
        self.write_backs.mask(image)
    }

    /// Whether dirty pages of this image could not be written back since the tuner was made.
    pub(crate) fn has_failed_write_back(&self, image: &Path) -> bool {
        self.write_backs.has_failed(image)
    }

    /// Begins to write back what the changes of a guest have left dirty, for whoever must not wait for it
    /// later: a guest that migrates.
    pub(crate) fn write_back_guest(&self, running: &RunningGuest) -> HostResult<()> {
        let uuid = running.guest.uuid.clone();
        self.begin_ways_back(&Scope::Guest(uuid)).map(drop)
    }

    /// What somebody should hear of dirty pages, since this was last called.
    pub fn take_notes(&self) -> Vec<String> {
        self.write_backs.take_notes()
    }

    /// Refuses a change that its disk would stand still for.
    pub(super) fn check_written_back(&self, io: &dyn Settable, change: &Applied) -> HostResult<()> {
        let image = io.image_flushed_by(&change.knob, &change.previous, &change.value);
        let refusal = image.and_then(|image| {
            let knob = change.knob.to_string();
            self.write_backs.refusal(&image, &io.owner(), &knob)
        });
        refusal.map_or(Ok(()), Err)
    }

    pub(super) fn end_write_back(&self, io: &dyn Settable, change: &Applied) {
        if let Some(image) = io.image_flushed_by(&change.knob, &change.previous, &change.value) {
            self.write_backs.end(&image);
        }
    }

    /// Begins to write back all images at once whose disks go back to direct, and says how long that may
    /// take.
    pub(super) fn begin_ways_back(&self, scope: &Scope) -> HostResult<Instant> {
        let deadline = Instant::now() + self.write_backs.way_back();
        for record in self.journal.records()? {
            let goes_direct = record.original == DIRECT && record.value == BUFFERED;
            let is_ours = record.state != RecordState::Frozen && scope.holds(&record);
            if goes_direct
                && is_ours
                && let Some(image) = record.undo.as_deref().and_then(reopened_file)
            {
                self.write_backs.begin(&image);
            }
        }
        Ok(deadline)
    }

    /// Waits until a way back to direct has next to nothing to flush, or for `deadline`; whether time has
    /// passed, in which somebody else may have changed the knob.
    pub(super) fn wait_for_write_back(
        &self,
        io: &dyn Settable,
        record: &Record,
        current: &str,
        deadline: Instant,
    ) -> bool {
        let image = io.image_flushed_by(&record.knob, current, &record.original);
        let Some(image) = image.filter(|_| is_ours(record, current)) else {
            return false;
        };
        self.write_backs.wait(&image, deadline);
        self.write_backs.end(&image);
        true
    }
}

#[cfg(test)]
mod tests;
