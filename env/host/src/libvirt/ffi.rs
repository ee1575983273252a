//! The libvirt calls that the safe wrapper lacks or leaks: the only unsafe code over libvirt.
#![allow(unsafe_code)]

pub(super) mod events;

use std::ffi::{CStr, CString, c_void};
use std::ptr;

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt_sys as sys;

use crate::cpuset::CpuSet;
use crate::stats::{StatValue, StatsRecord};
use crate::throttle::Params;

/// Keeps libvirt from printing errors on standard error itself; they are returned instead.
pub(super) fn silence() {
    extern "C" fn ignore(_user: *mut c_void, _error: sys::virErrorPtr) {}
    // SAFETY: the handler ignores both arguments and lives as long as the program.
    unsafe { sys::virSetErrorFunc(ptr::null_mut(), Some(ignore)) };
}

/// Statistics of all running domains. A domain that is busy is left out of the groups that would
/// have to wait for it (`NOWAIT`).
pub(super) fn all_domain_stats(connect: &Connect) -> Result<Vec<StatsRecord>, Error> {
    let groups = sys::VIR_DOMAIN_STATS_STATE
        | sys::VIR_DOMAIN_STATS_CPU_TOTAL
        | sys::VIR_DOMAIN_STATS_VCPU
        | sys::VIR_DOMAIN_STATS_BLOCK
        | sys::VIR_DOMAIN_STATS_IOTHREAD;
    let flags = sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
        | sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT;
    let mut records = ptr::null_mut();
    // SAFETY: the connection is open while `connect` is borrowed; libvirt fills `records` in.
    unsafe {
        let count =
            sys::virConnectGetAllDomainStats(connect.as_ptr(), groups, &raw mut records, flags);
        take_records(records, count)
    }
}

/// Statistics of the IOThreads of one running domain. Waits while it is busy.
pub(super) fn iothread_stats(domain: &Domain) -> Result<Vec<StatsRecord>, Error> {
    let mut domains = [domain.as_ptr(), ptr::null_mut()];
    let mut records = ptr::null_mut();
    // SAFETY: `domains` is a list that ends with null, of a domain that is valid while borrowed;
    // libvirt fills `records` in.
    unsafe {
        let count = sys::virDomainListGetStats(
            domains.as_mut_ptr(),
            sys::VIR_DOMAIN_STATS_IOTHREAD,
            &raw mut records,
            0,
        );
        take_records(records, count)
    }
}

/// # Safety
/// `records` and `count` must be what a statistics call of libvirt gave.
unsafe fn take_records(
    records: *mut sys::virDomainStatsRecordPtr,
    count: i32,
) -> Result<Vec<StatsRecord>, Error> {
    let Ok(count) = usize::try_from(count) else {
        return Err(Error::last_error());
    };
    // SAFETY: there are `count` valid records, freed once below and not used after.
    unsafe {
        let parsed = (0..count)
            .map(|index| read_record(&**records.add(index)))
            .collect();
        sys::virDomainStatsRecordListFree(records);
        Ok(parsed)
    }
}

/// # Safety
/// `record` must be one that libvirt filled in.
unsafe fn read_record(record: &sys::virDomainStatsRecord) -> StatsRecord {
    let mut uuid = [0; sys::VIR_UUID_STRING_BUFLEN as usize];
    // SAFETY: the domain is valid as long as the record, the buffer has the size that libvirt asks
    // for, and `params` has `nparams` entries whose `field` is a C string and whose `type_` says
    // which member of the union is set.
    unsafe {
        let known = sys::virDomainGetUUIDString(record.dom, uuid.as_mut_ptr()) == 0;
        let uuid = if known {
            text(uuid.as_ptr())
        } else {
            String::new()
        };
        let name = sys::virDomainGetName(record.dom);
        let name = if name.is_null() {
            String::new()
        } else {
            text(name)
        };
        let params = (0..record.nparams as usize).map(|index| &*record.params.add(index));
        let values = params
            .filter_map(|param| Some((text(param.field.as_ptr()), read_value(param)?)))
            .collect();
        StatsRecord { uuid, name, values }
    }
}

/// # Safety
/// `param` must be one that libvirt filled in.
unsafe fn read_value(param: &sys::virTypedParameter) -> Option<StatValue> {
    // SAFETY: `type_` says which member of the union is set.
    unsafe {
        match param.type_ as u32 {
            sys::VIR_TYPED_PARAM_INT => u64::try_from(param.value.i).ok().map(StatValue::Number),
            sys::VIR_TYPED_PARAM_UINT => Some(StatValue::Number(param.value.ui.into())),
            sys::VIR_TYPED_PARAM_LLONG => u64::try_from(param.value.l).ok().map(StatValue::Number),
            sys::VIR_TYPED_PARAM_ULLONG => Some(StatValue::Number(param.value.ul)),
            sys::VIR_TYPED_PARAM_BOOLEAN => Some(StatValue::Number(u64::from(param.value.b != 0))),
            sys::VIR_TYPED_PARAM_STRING if !param.value.s.is_null() => {
                Some(StatValue::Text(text(param.value.s)))
            }
            _ => None,
        }
    }
}

/// # Safety
/// `pointer` must be a C string.
unsafe fn text(pointer: *const std::ffi::c_char) -> String {
    // SAFETY: as above.
    unsafe { CStr::from_ptr(pointer) }
        .to_string_lossy()
        .into_owned()
}

/// Binds an IOThread of a running domain to host CPUs.
pub(super) fn pin_iothread(domain: &Domain, iothread: u32, cpus: &CpuSet) -> Result<(), Error> {
    let mut bitmap = cpus.to_bitmap();
    // SAFETY: the domain is valid while borrowed; libvirt only reads `bitmap`, within its length.
    let result = unsafe {
        sys::virDomainPinIOThread(
            domain.as_ptr(),
            iothread,
            bitmap.as_mut_ptr(),
            bitmap.len() as i32,
            sys::VIR_DOMAIN_AFFECT_LIVE,
        )
    };
    if result < 0 {
        Err(Error::last_error())
    } else {
        Ok(())
    }
}

/// The IOThreads of a running domain with the host CPUs on which each may run.
pub(super) fn iothread_affinity(domain: &Domain) -> Result<Vec<(u32, CpuSet)>, Error> {
    let mut list: *mut sys::virDomainIOThreadInfoPtr = ptr::null_mut();
    // SAFETY: the domain is valid while borrowed; on success `list` holds `count` valid entries,
    // each freed once below, then the list itself, which libvirt allocated with malloc.
    unsafe {
        let count =
            sys::virDomainGetIOThreadInfo(domain.as_ptr(), &mut list, sys::VIR_DOMAIN_AFFECT_LIVE);
        if count < 0 {
            return Err(Error::last_error());
        }
        let mut threads = Vec::with_capacity(count as usize);
        for index in 0..count as usize {
            let info = *list.add(index);
            let bitmap = std::slice::from_raw_parts((*info).cpumap, (*info).cpumaplen as usize);
            threads.push(((*info).iothread_id, CpuSet::from_bitmap(bitmap)));
            sys::virDomainIOThreadInfoFree(info);
        }
        nix::libc::free(list.cast());
        Ok(threads)
    }
}

/// Sets `poll_max_ns` of an IOThread of a running domain.
pub(super) fn set_poll_max_ns(
    domain: &Domain,
    iothread: u32,
    poll_max_ns: u64,
) -> Result<(), Error> {
    let mut params: sys::virTypedParameterPtr = ptr::null_mut();
    let (mut count, mut capacity) = (0, 0);
    let name = sys::VIR_DOMAIN_IOTHREAD_POLL_MAX_NS.as_ptr();
    // SAFETY: libvirt allocates `params` in the first call and it is freed once in the last; the
    // name is a C string; the domain is valid while borrowed.
    unsafe {
        let mut result =
            sys::virTypedParamsAddULLong(&mut params, &mut count, &mut capacity, name, poll_max_ns);
        if result == 0 {
            result = sys::virDomainSetIOThreadParams(
                domain.as_ptr(),
                iothread,
                params,
                count,
                sys::VIR_DOMAIN_AFFECT_LIVE,
            );
        }
        let error = (result < 0).then(Error::last_error);
        sys::virTypedParamsFree(params, count);
        error.map_or(Ok(()), Err)
    }
}

/// What the libvirt job that runs on a domain does, by `virDomainJobOperation`; `None` when none runs.
/// The safe wrapper makes a `Vec` of the list, which is null then and never Rust's to free.
pub(super) fn job_operation(domain: &Domain) -> Result<Option<i32>, Error> {
    let mut kind = 0;
    let mut params: sys::virTypedParameterPtr = ptr::null_mut();
    let (mut count, mut operation) = (0, 0);
    let name = sys::VIR_DOMAIN_JOB_OPERATION.as_ptr();
    // SAFETY: the domain is valid while borrowed; libvirt fills in the other arguments, looks for the
    // name, a C string, in its own list, which may be null when it is empty, and frees it once.
    unsafe {
        if sys::virDomainGetJobStats(domain.as_ptr(), &mut kind, &mut params, &mut count, 0) < 0 {
            return Err(Error::last_error());
        }
        let found = sys::virTypedParamsGetInt(params, count, name, &mut operation);
        sys::virTypedParamsFree(params, count);
        Ok((found == 1).then_some(operation))
    }
}

/// Runs a command of QEMU's monitor and returns its reply. Taints the domain (`custom-monitor`).
pub(super) fn monitor_command(domain: &Domain, command: &CString) -> Result<String, Error> {
    let mut reply = ptr::null_mut();
    // SAFETY: the domain is valid while borrowed, the command is a C string, and on success the
    // reply is one too, allocated with malloc and freed once.
    unsafe {
        if sys::virDomainQemuMonitorCommand(domain.as_ptr(), command.as_ptr(), &mut reply, 0) < 0 {
            return Err(Error::last_error());
        }
        let text = text(reply);
        nix::libc::free(reply.cast());
        Ok(text)
    }
}

/// The limits of a disk of a running domain, by libvirt's names.
pub(super) fn throttle(domain: &Domain, target: &CString) -> Result<Params, Error> {
    let get = |params: sys::virTypedParameterPtr, count: &mut i32| {
        let flags = sys::VIR_DOMAIN_AFFECT_LIVE | sys::VIR_TYPED_PARAM_STRING_OKAY;
        // SAFETY: the domain is valid while borrowed, the target is a C string, and there is room for
        // `count` parameters; for none libvirt only says how many there are.
        let result = unsafe {
            sys::virDomainGetBlockIoTune(domain.as_ptr(), target.as_ptr(), params, count, flags)
        };
        if result < 0 {
            Err(Error::last_error())
        } else {
            Ok(())
        }
    };
    let mut count = 0;
    get(ptr::null_mut(), &mut count)?;
    let room = usize::try_from(count).unwrap_or(0);
    // SAFETY: a parameter is plain data for which all zeros is a valid value: an empty name.
    let mut list: Vec<sys::virTypedParameter> = vec![unsafe { std::mem::zeroed() }; room];
    get(list.as_mut_ptr(), &mut count)?;
    let filled = usize::try_from(count).unwrap_or(0).min(room);
    // SAFETY: libvirt has filled in the first `count`, whose strings are freed once, below.
    unsafe {
        let params = read_throttle(&list[..filled]);
        sys::virTypedParamsClear(list.as_mut_ptr(), count);
        Ok(params)
    }
}

/// # Safety
/// The parameters must be ones that libvirt filled in.
unsafe fn read_throttle(list: &[sys::virTypedParameter]) -> Params {
    let mut params = Params::default();
    for param in list {
        // SAFETY: as above.
        match unsafe { (text(param.field.as_ptr()), read_value(param)) } {
            (name, Some(StatValue::Number(value))) => params.numbers.push((name, value)),
            (_, Some(StatValue::Text(group))) => params.group = Some(group),
            (_, None) => {}
        }
    }
    params
}

/// Sets limits of a disk of a running domain.
pub(super) fn set_throttle(
    domain: &Domain,
    target: &CString,
    numbers: &[(CString, u64)],
    group: Option<&CString>,
) -> Result<(), Error> {
    let mut params: sys::virTypedParameterPtr = ptr::null_mut();
    let (mut count, mut capacity) = (0, 0);
    // SAFETY: libvirt allocates `params` in the first call and it is freed once in the last; names and
    // the group are C strings, which libvirt copies; the domain is valid while borrowed.
    unsafe {
        let mut result = 0;
        for (name, value) in numbers {
            if result != 0 {
                break;
            }
            result = sys::virTypedParamsAddULLong(
                &mut params,
                &mut count,
                &mut capacity,
                name.as_ptr(),
                *value,
            );
        }
        if let (0, Some(group)) = (result, group) {
            result = sys::virTypedParamsAddString(
                &mut params,
                &mut count,
                &mut capacity,
                sys::VIR_DOMAIN_BLOCK_IOTUNE_GROUP_NAME.as_ptr(),
                group.as_ptr(),
            );
        }
        if result == 0 {
            result = sys::virDomainSetBlockIoTune(
                domain.as_ptr(),
                target.as_ptr(),
                params,
                count,
                sys::VIR_DOMAIN_AFFECT_LIVE,
            );
        }
        let error = (result < 0).then(Error::last_error);
        sys::virTypedParamsFree(params, count);
        error.map_or(Ok(()), Err)
    }
}

/// Whether a block job runs on a disk of a running domain.
pub(super) fn block_job_runs(domain: &Domain, target: &CString) -> Result<bool, Error> {
    // SAFETY: the domain is valid while borrowed, the target is a C string, and `info` is plain data
    // for which all zeros is a valid value.
    unsafe {
        let mut info: sys::virDomainBlockJobInfo = std::mem::zeroed();
        match sys::virDomainGetBlockJobInfo(domain.as_ptr(), target.as_ptr(), &mut info, 0) {
            0 => Ok(false),
            1.. => Ok(true),
            _ => Err(Error::last_error()),
        }
    }
}

/// What is called for tunables of a running domain that somebody has set: UUID, names and values.
pub(super) type OnTuned = Box<dyn Fn(&str, &[(String, StatValue)]) + Send + Sync>;

/// Calls `on_tuned` on the event loop's thread until [`unwatch_tunables`]. Returns the id of that.
pub(super) fn watch_tunables(connect: &Connect, on_tuned: OnTuned) -> Result<i32, Error> {
    let opaque = Box::into_raw(Box::new(on_tuned));
    // SAFETY: libvirt calls back with the arguments of a tunable event, for which the function has the
    // right type, as its documentation of VIR_DOMAIN_EVENT_ID_TUNABLE has it; the type of the parameter
    // is that of any event. `opaque` lives until libvirt, which then no longer calls back, frees it.
    unsafe {
        let tuned: unsafe extern "C" fn(_, _, _, _, _) = on_tunable;
        let generic = std::mem::transmute::<
            unsafe extern "C" fn(
                sys::virConnectPtr,
                sys::virDomainPtr,
                sys::virTypedParameterPtr,
                i32,
                *mut c_void,
            ),
            unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void),
        >(tuned);
        let id = sys::virConnectDomainEventRegisterAny(
            connect.as_ptr(),
            ptr::null_mut(),
            sys::VIR_DOMAIN_EVENT_ID_TUNABLE as i32,
            Some(generic),
            opaque.cast(),
            Some(free_on_tuned),
        );
        if id < 0 {
            // Not registered, so not freed by libvirt.
            drop(Box::from_raw(opaque));
            return Err(Error::last_error());
        }
        Ok(id)
    }
}

/// Ends what [`watch_tunables`] began.
pub(super) fn unwatch_tunables(connect: &Connect, id: i32) {
    // SAFETY: the connection is open while borrowed, and the id is one that it gave.
    unsafe { sys::virConnectDomainEventDeregisterAny(connect.as_ptr(), id) };
}

unsafe extern "C" fn on_tunable(
    _connect: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    params: sys::virTypedParameterPtr,
    count: i32,
    opaque: *mut c_void,
) {
    let mut uuid = [0; sys::VIR_UUID_STRING_BUFLEN as usize];
    // SAFETY: the domain and the `count` parameters are valid during the call, and `opaque` is what
    // `watch_tunables` gave.
    unsafe {
        if sys::virDomainGetUUIDString(domain, uuid.as_mut_ptr()) != 0 {
            return;
        }
        let uuid = text(uuid.as_ptr());
        let on_tuned = &*opaque.cast::<OnTuned>();
        let params = (0..usize::try_from(count).unwrap_or(0)).map(|index| &*params.add(index));
        let tuned =
            params.filter_map(|param| Some((text(param.field.as_ptr()), read_value(param)?)));
        on_tuned(&uuid, &tuned.collect::<Vec<_>>());
    }
}

unsafe extern "C" fn free_on_tuned(opaque: *mut c_void) {
    // SAFETY: it is what `watch_tunables` gave, and libvirt frees it once.
    drop(unsafe { Box::from_raw(opaque.cast::<OnTuned>()) });
}
