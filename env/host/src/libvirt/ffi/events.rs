//! Events after which guests may be others than before. What they say of it is not read: whoever hears of
//! one looks.

use std::ffi::{c_char, c_void};
use std::ptr;

use virt::connect::Connect;
use virt::error::Error;
use virt_sys as sys;

use crate::hypervisor::Ring;

type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);

/// Rings at each event of these kinds until [`unwatch`], on the event loop's thread. Returns the kinds, by
/// virsh's names, each with its id, or why libvirt did not take it: an older one does not know them all.
pub(in crate::libvirt) fn watch(
    connect: &Connect,
    ring: &Ring,
) -> Vec<(&'static str, Result<i32, Error>)> {
    let lifecycle: unsafe extern "C" fn(_, _, _, _, _) -> _ = on_lifecycle;
    let device: unsafe extern "C" fn(_, _, _, _) = on_device;
    let block_job: unsafe extern "C" fn(_, _, _, _, _, _) = on_block_job;
    let job: unsafe extern "C" fn(_, _, _, _, _) = on_job;
    let metadata: unsafe extern "C" fn(_, _, _, _, _) = on_metadata;
    // SAFETY: each function has the type that libvirt's documentation gives the callback of its event; the
    // type of the parameter is that of any event's.
    let callbacks: [(&str, u32, Generic); 6] = unsafe {
        let device = std::mem::transmute::<OnDevice, Generic>(device);
        [
            (
                "lifecycle",
                sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                std::mem::transmute::<OnLifecycle, Generic>(lifecycle),
            ),
            (
                "device-added",
                sys::VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
                device,
            ),
            (
                "device-removed",
                sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
                device,
            ),
            (
                "block-job-2",
                sys::VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2,
                std::mem::transmute::<OnBlockJob, Generic>(block_job),
            ),
            (
                "job-completed",
                sys::VIR_DOMAIN_EVENT_ID_JOB_COMPLETED,
                std::mem::transmute::<OnJob, Generic>(job),
            ),
            (
                "metadata-change",
                sys::VIR_DOMAIN_EVENT_ID_METADATA_CHANGE,
                std::mem::transmute::<OnMetadata, Generic>(metadata),
            ),
        ]
    };
    let register = |(kind, event, callback): (&'static str, u32, Generic)| {
        let opaque = opaque(ring);
        // SAFETY: the connection is open while borrowed; `opaque` lives until libvirt, which then no
        // longer calls back, frees it.
        unsafe {
            let id = sys::virConnectDomainEventRegisterAny(
                connect.as_ptr(),
                ptr::null_mut(),
                event as i32,
                Some(callback),
                opaque,
                Some(free_ring),
            );
            if id < 0 {
                // Not registered, so not freed by libvirt.
                free_ring(opaque);
                return (kind, Err(Error::last_error()));
            }
            (kind, Ok(id))
        }
    };
    callbacks.into_iter().map(register).collect()
}

/// Ends what [`watch`] began.
pub(in crate::libvirt) fn unwatch(connect: &Connect, ids: &[i32]) {
    for id in ids {
        // SAFETY: the connection is open while borrowed, and the id is one that it gave.
        unsafe { sys::virConnectDomainEventDeregisterAny(connect.as_ptr(), *id) };
    }
}

/// Rings when the connection is lost, until [`unwatch_close`].
pub(in crate::libvirt) fn watch_close(connect: &Connect, ring: &Ring) -> Result<(), Error> {
    let opaque = opaque(ring);
    // SAFETY: as in `watch`.
    unsafe {
        let result = sys::virConnectRegisterCloseCallback(
            connect.as_ptr(),
            Some(on_close),
            opaque,
            Some(free_ring),
        );
        if result < 0 {
            free_ring(opaque);
            return Err(Error::last_error());
        }
        Ok(())
    }
}

/// Ends what [`watch_close`] began.
pub(in crate::libvirt) fn unwatch_close(connect: &Connect) {
    // SAFETY: the connection is open while borrowed, and the function is the one that was registered.
    unsafe { sys::virConnectUnregisterCloseCallback(connect.as_ptr(), Some(on_close)) };
}

/// Rings once, when the event loop next comes round.
pub(in crate::libvirt) fn ring_at_next_round(ring: &Ring) -> Result<(), Error> {
    let opaque = opaque(ring);
    // SAFETY: `opaque` lives until libvirt, which then no longer calls back, frees it.
    unsafe {
        if sys::virEventAddTimeout(0, Some(on_round), opaque, Some(free_ring)) < 0 {
            free_ring(opaque);
            return Err(Error::last_error());
        }
        Ok(())
    }
}

fn opaque(ring: &Ring) -> *mut c_void {
    Box::into_raw(Box::new(Ring::clone(ring))).cast()
}

unsafe extern "C" fn free_ring(opaque: *mut c_void) {
    // SAFETY: it is what `opaque` made, freed once.
    drop(unsafe { Box::from_raw(opaque.cast::<Ring>()) });
}

/// # Safety
/// `opaque` must be what the function of this name made.
unsafe fn ring(opaque: *mut c_void) {
    // SAFETY: as above, and libvirt frees it only when it no longer calls back.
    let ring = unsafe { &*opaque.cast::<Ring>() };
    ring();
}

type OnLifecycle =
    unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, i32, i32, *mut c_void) -> i32;
type OnDevice =
    unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *const c_char, *mut c_void);
type OnBlockJob = unsafe extern "C" fn(
    sys::virConnectPtr,
    sys::virDomainPtr,
    *const c_char,
    i32,
    i32,
    *mut c_void,
);
type OnJob = unsafe extern "C" fn(
    sys::virConnectPtr,
    sys::virDomainPtr,
    sys::virTypedParameterPtr,
    i32,
    *mut c_void,
);
type OnMetadata =
    unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, i32, *const c_char, *mut c_void);

unsafe extern "C" fn on_lifecycle(
    _connect: sys::virConnectPtr,
    _domain: sys::virDomainPtr,
    _event: i32,
    _detail: i32,
    opaque: *mut c_void,
) -> i32 {
    // SAFETY: it is what `watch` gave.
    unsafe { ring(opaque) };
    0
}

unsafe extern "C" fn on_device(
    _connect: sys::virConnectPtr,
    _domain: sys::virDomainPtr,
    _alias: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: it is what `watch` gave.
    unsafe { ring(opaque) };
}

unsafe extern "C" fn on_block_job(
    _connect: sys::virConnectPtr,
    _domain: sys::virDomainPtr,
    _disk: *const c_char,
    _kind: i32,
    _status: i32,
    opaque: *mut c_void,
) {
    // SAFETY: it is what `watch` gave.
    unsafe { ring(opaque) };
}

unsafe extern "C" fn on_job(
    _connect: sys::virConnectPtr,
    _domain: sys::virDomainPtr,
    _params: sys::virTypedParameterPtr,
    _count: i32,
    opaque: *mut c_void,
) {
    // SAFETY: it is what `watch` gave.
    unsafe { ring(opaque) };
}

unsafe extern "C" fn on_metadata(
    _connect: sys::virConnectPtr,
    _domain: sys::virDomainPtr,
    _kind: i32,
    _namespace: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: it is what `watch` gave.
    unsafe { ring(opaque) };
}

unsafe extern "C" fn on_close(_connect: sys::virConnectPtr, _reason: i32, opaque: *mut c_void) {
    // SAFETY: it is what `watch_close` gave.
    unsafe { ring(opaque) };
}

unsafe extern "C" fn on_round(timer: i32, opaque: *mut c_void) {
    // SAFETY: it is what `ring_at_next_round` gave. A timer may remove itself: it is freed later.
    unsafe {
        ring(opaque);
        sys::virEventRemoveTimeout(timer);
    }
}
