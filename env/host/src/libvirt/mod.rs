//! A connection to libvirt: what blkpilot reads from it and the few things it writes.

mod definitions;
mod ffi;
mod guest_events;
mod tunables;

use std::ffi::CString;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::{Error, ErrorNumber};
use virt::event;

use crate::cpuset::CpuSet;
use crate::error::{HostError, HostResult};
use crate::hypervisor::{Hypervisor, Ring, TunedByOthers};
use crate::knob::Knob;
use crate::stats::GuestStats;
use crate::throttle::Throttle;
use guest_events::GuestEvents;
pub use guest_events::{Delivery, Refusal};
use tunables::Tunables;

/// A dead libvirtd is noticed after this many seconds times [`KEEPALIVE_COUNT`].
const KEEPALIVE_INTERVAL_S: i32 = 5;
const KEEPALIVE_COUNT: u32 = 3;

/// A connection to one libvirtd. Calls block; whoever owns it gives it a thread of its own.
pub struct Libvirt {
    uri: String,
    connect: Connect,
    /// From the first time that somebody asks what others tune; `None` in it where libvirt refused.
    tunables: OnceLock<Option<Tunables>>,
    /// From the first time that somebody wants to hear of guests.
    guest_events: OnceLock<GuestEvents>,
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        if let Some(Some(tunables)) = self.tunables.get() {
            tunables.unwatch(&self.connect);
        }
        if let Some(events) = self.guest_events.get() {
            events.unwatch(&self.connect);
        }
    }
}

impl std::fmt::Debug for Libvirt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Libvirt")
            .field("uri", &self.uri)
            .finish_non_exhaustive()
    }
}

impl Libvirt {
    /// Connects to `uri`, such as `qemu:///system`.
    ///
    /// # Errors
    /// `Disconnected`.
    pub fn connect(uri: &str) -> HostResult<Self> {
        Self::open(uri, Connect::open)
    }

    /// Connects to `uri` in such a way that libvirt refuses whatever would change something.
    ///
    /// # Errors
    /// `Disconnected`.
    pub fn connect_read_only(uri: &str) -> HostResult<Self> {
        Self::open(uri, Connect::open_read_only)
    }

    fn open(uri: &str, open: fn(Option<&str>) -> Result<Connect, Error>) -> HostResult<Self> {
        start_event_loop();
        let disconnected = |error: Error| HostError::Disconnected {
            uri: uri.to_owned(),
            message: error.message().to_owned(),
        };
        let connect = open(Some(uri)).map_err(disconnected)?;
        connect
            .set_keep_alive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
            .map_err(disconnected)?;
        Ok(Self {
            uri: uri.to_owned(),
            connect,
            tunables: OnceLock::new(),
            guest_events: OnceLock::new(),
        })
    }

    /// The URI it was opened with.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Whether the connection still stands; if not, [`Libvirt::connect`] again.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.connect.is_alive().unwrap_or(false)
    }

    /// Version of QEMU, as major · 1,000,000 + minor · 1,000 + release.
    ///
    /// # Errors
    /// `Disconnected`.
    pub fn qemu_version(&self) -> HostResult<u32> {
        self.connect
            .get_hyp_version()
            .map_err(|error| self.error("reading QEMU's version", &error))
    }

    /// Version of libvirtd, as major · 1,000,000 + minor · 1,000 + release.
    ///
    /// # Errors
    /// `Disconnected`.
    pub fn libvirt_version(&self) -> HostResult<u32> {
        self.connect
            .get_lib_version()
            .map_err(|error| self.error("reading libvirt's version", &error))
    }

    /// Watches guests as [`Hypervisor::watch_guests`] does, and says whether `ring` is called then. Waits
    /// `patience` at most, beside libvirt's own answers.
    #[must_use]
    pub fn event_delivery(&self, ring: &Ring, patience: Duration) -> Delivery {
        self.guest_events(ring).delivery(patience)
    }

    fn guest_events(&self, ring: &Ring) -> &GuestEvents {
        self.guest_events
            .get_or_init(|| GuestEvents::watch(&self.connect, ring))
    }

    fn domain(&self, uuid: &str) -> HostResult<Domain> {
        Domain::lookup_by_uuid_string(&self.connect, uuid)
            .map_err(|error| self.guest_error(uuid, "looking it up", &error))
    }

    fn error(&self, action: &str, error: &Error) -> HostError {
        let message = error.message().to_owned();
        let connection = matches!(
            error.code(),
            ErrorNumber::Rpc | ErrorNumber::InvalidConn | ErrorNumber::NoConnect
        );
        if connection || !self.is_alive() {
            HostError::Disconnected {
                uri: self.uri.clone(),
                message,
            }
        } else {
            HostError::Libvirt {
                action: action.to_owned(),
                message,
            }
        }
    }

    fn guest_error(&self, uuid: &str, action: &str, error: &Error) -> HostError {
        let not_running = error.code() == ErrorNumber::OperationInvalid
            && error.message().contains("not running");
        if error.code() == ErrorNumber::NoDomain || not_running {
            return HostError::GuestGone {
                guest: uuid.to_owned(),
            };
        }
        self.error(&format!("guest {uuid}: {action}"), error)
    }
}

impl Hypervisor for Libvirt {
    fn guest_stats(&self) -> HostResult<Vec<GuestStats>> {
        let records = ffi::all_domain_stats(&self.connect)
            .map_err(|error| self.error("reading bulk statistics", &error))?;
        Ok(records.iter().map(GuestStats::from).collect())
    }

    fn guest_xml(&self, uuid: &str) -> HostResult<String> {
        self.domain(uuid)?
            .get_xml_desc(0)
            .map_err(|error| self.guest_error(uuid, "reading its XML", &error))
    }

    fn iothread_cpus(&self, uuid: &str) -> HostResult<Vec<(u32, CpuSet)>> {
        ffi::iothread_affinity(&self.domain(uuid)?)
            .map_err(|error| self.guest_error(uuid, "reading its IOThreads", &error))
    }

    fn pin_iothread(&self, uuid: &str, iothread: u32, cpus: &CpuSet) -> HostResult<()> {
        let action = format!("binding IOThread {iothread} to CPUs {cpus}");
        let domain = self.domain(uuid)?;
        let bind = || ffi::pin_iothread(&domain, iothread, cpus);
        let ours = || TunedByOthers {
            uuid: uuid.to_owned(),
            knob: Knob::Channel { iothread },
            value: cpus.to_string(),
        };
        let bound = match self.tunables.get() {
            Some(Some(tunables)) => tunables.tune(&ours(), bind),
            _ => bind(),
        };
        bound.map_err(|error| self.guest_error(uuid, &action, &error))
    }

    fn poll_max_ns(&self, uuid: &str, iothread: u32) -> HostResult<Option<u64>> {
        let records = ffi::iothread_stats(&self.domain(uuid)?)
            .map_err(|error| self.guest_error(uuid, "reading its IOThreads", &error))?;
        let stats = records.first().map(GuestStats::from);
        Ok(stats.and_then(|stats| stats.poll_max_ns.get(&iothread).copied()))
    }

    fn set_poll_max_ns(&self, uuid: &str, iothread: u32, poll_max_ns: u64) -> HostResult<()> {
        let action = format!("setting poll_max_ns of IOThread {iothread} to {poll_max_ns}");
        ffi::set_poll_max_ns(&self.domain(uuid)?, iothread, poll_max_ns)
            .map_err(|error| self.guest_error(uuid, &action, &error))
    }

    fn throttle(&self, uuid: &str, target: &str) -> HostResult<Throttle> {
        let name = c_target(target)?;
        let params = ffi::throttle(&self.domain(uuid)?, &name).map_err(|error| {
            self.guest_error(uuid, &format!("reading the limits of {target}"), &error)
        })?;
        Ok(Throttle::default().replaced(&params))
    }

    fn set_throttle(&self, uuid: &str, target: &str, throttle: &Throttle) -> HostResult<()> {
        let (domain, name) = (self.domain(uuid)?, c_target(target)?);
        let params = throttle.params();
        let c_text =
            |text: &str| CString::new(text).map_err(|_| HostError::parse("limits of a disk", text));
        let group = params.group.as_deref().map(c_text).transpose()?;
        let number = |(name, value): &(String, u64)| Ok((c_text(name)?, *value));
        let numbers = params.numbers.iter().map(number);
        let numbers: Vec<(CString, u64)> = numbers.collect::<HostResult<_>>()?;
        let set = || ffi::set_throttle(&domain, &name, &numbers, group.as_ref());
        let done = match self.tunables.get() {
            Some(Some(tunables)) => tunables.tune(&tunables::throttled(uuid, target, &params), set),
            _ => set(),
        };
        let action = format!("limiting {target} to {throttle}");
        done.map_err(|error| self.guest_error(uuid, &action, &error))
    }

    fn monitor(&self, uuid: &str, command: &str) -> HostResult<String> {
        let text =
            CString::new(command).map_err(|_| HostError::parse("monitor command", command))?;
        ffi::monitor_command(&self.domain(uuid)?, &text)
            .map_err(|error| self.guest_error(uuid, "using its monitor", &error))
    }

    fn job_runs(&self, uuid: &str, target: &str) -> HostResult<bool> {
        let domain = self.domain(uuid)?;
        let job = domain
            .get_job_info()
            .map_err(|error| self.guest_error(uuid, "reading its job", &error))?;
        if job.r#type != 0 {
            return Ok(true);
        }
        let name = c_target(target)?;
        ffi::block_job_runs(&domain, &name)
            .map_err(|error| self.guest_error(uuid, "reading its block job", &error))
    }

    fn migrates(&self, uuid: &str) -> HostResult<bool> {
        const MIGRATION_OUT: i32 = virt_sys::VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT as i32;
        let operation = ffi::job_operation(&self.domain(uuid)?)
            .map_err(|error| self.guest_error(uuid, "reading its job", &error))?;
        Ok(operation == Some(MIGRATION_OUT))
    }

    fn tuned_by_others(&self) -> Vec<TunedByOthers> {
        let watch = || Tunables::watch(&self.connect).ok();
        let tunables = self.tunables.get_or_init(watch);
        tunables.as_ref().map(Tunables::take).unwrap_or_default()
    }

    fn watch_guests(&self, ring: &Ring) {
        self.guest_events(ring);
    }
}

fn c_target(target: &str) -> HostResult<CString> {
    CString::new(target).map_err(|_| HostError::parse("disk target", target))
}

/// Starts libvirt's event loop once per program: keepalive needs it, and it has to be there before
/// the first connection.
fn start_event_loop() {
    static STARTED: OnceLock<()> = OnceLock::new();
    STARTED.get_or_init(|| {
        ffi::silence();
        if event::event_register_default_impl().is_err() {
            return; // Without it set_keep_alive fails with a reason.
        }
        let run = || while event::event_run_default_impl().is_ok() {};
        // Not joined: it serves every connection until the program ends.
        let _ = thread::Builder::new()
            .name("libvirt-events".into())
            .spawn(run);
    });
}
