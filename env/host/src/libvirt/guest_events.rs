//! A subscription to what may make guests others than they were: they come, go, get or lose a device, a
//! job ends, their metadata changes, or libvirtd has gone and whatever happens meanwhile is not told.

use virt::connect::Connect;

use super::ffi::events;
use crate::hypervisor::Ring;

/// A subscription of one connection.
#[derive(Debug)]
pub(super) struct GuestEvents {
    ids: Vec<i32>,
    has_close: bool,
}

impl GuestEvents {
    pub(super) fn watch(connect: &Connect, ring: &Ring) -> Self {
        Self {
            ids: events::watch(connect, ring),
            has_close: events::watch_close(connect, ring),
        }
    }

    pub(super) fn unwatch(&self, connect: &Connect) {
        events::unwatch(connect, &self.ids);
        if self.has_close {
            events::unwatch_close(connect);
        }
    }
}
