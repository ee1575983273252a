//! libvirt and QEMU: whether they are reached, with which rights, what they can do, and whether libvirt tells
//! what happens to guests.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use blkpilot_host::hypervisor::{Hypervisor as _, Ring};
use blkpilot_host::{Delivery, Libvirt, Refusal};

use super::Finding;

/// How long libvirt may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// Of that, how long its event loop may take to come round.
const EVENT_PATIENCE: Duration = Duration::from_secs(2);
/// The oldest that are known to work, as libvirt counts: 1,000,000 × major + 1,000 × minor + release.
const LEAST_LIBVIRT: u32 = 9_000_000;
const LEAST_QEMU: u32 = 7_002_000;

/// What libvirt says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) uri: String,
    pub(super) libvirt: u32,
    /// `None` where it does not say, as without a QEMU.
    pub(super) qemu: Option<u32>,
    pub(super) guests: usize,
    pub(super) events: Delivery,
}

/// Why it was not reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missed {
    pub(super) uri: String,
    pub(super) reason: String,
    /// It can be reached by those who only read.
    pub(super) may_read: bool,
}

/// Asks, on a thread of its own, which is left alone where libvirt hangs.
pub(super) fn reach(uri: &str) -> Result<Reached, Missed> {
    let (answer, answered) = sync_channel(1);
    let asked = uri.to_owned();
    let missed = |reason: String| Missed {
        uri: uri.to_owned(),
        reason,
        may_read: false,
    };
    std::thread::Builder::new()
        .name("doctor-libvirt".to_owned())
        .spawn(move || {
            // Nobody waits any more if it cannot be sent.
            let _ = answer.send(ask(&asked));
        })
        .map_err(|error| missed(error.to_string()))?;
    answered.recv_timeout(PATIENCE).unwrap_or_else(|error| {
        Err(missed(match error {
            RecvTimeoutError::Timeout => format!("no answer in {PATIENCE:?}"),
            RecvTimeoutError::Disconnected => "it could not be asked".to_owned(),
        }))
    })
}

fn ask(uri: &str) -> Result<Reached, Missed> {
    let missed = |error: blkpilot_host::HostError| Missed {
        uri: uri.to_owned(),
        reason: error.to_string(),
        may_read: Libvirt::connect_read_only(uri).is_ok(),
    };
    let libvirt = Libvirt::connect(uri).map_err(missed)?;
    let unheard: Ring = Arc::new(|| {});
    Ok(Reached {
        uri: uri.to_owned(),
        libvirt: libvirt.libvirt_version().map_err(missed)?,
        qemu: libvirt.qemu_version().ok().filter(|version| *version > 0),
        guests: libvirt.guest_stats().map_err(missed)?.len(),
        events: libvirt.event_delivery(&unheard, EVENT_PATIENCE),
    })
}

/// What that means for the service.
pub(super) fn judge(reached: &Result<Reached, Missed>) -> Vec<Finding> {
    match reached {
        Ok(reached) => vec![library(reached), qemu(reached), events(&reached.events)],
        Err(missed) => vec![unreached(missed)],
    }
}

fn unreached(missed: &Missed) -> Finding {
    let Missed {
        uri,
        reason,
        may_read,
    } = missed;
    let repair = if *may_read {
        "this user may only read: put it, or the service's user, into the group libvirt (`adduser blkpilot libvirt`)"
    } else {
        "install and start libvirt (libvirt-daemon-system; `systemctl start libvirtd` or virtqemud.socket), or correct host.uri; without it only a simulated host can be served"
    };
    Finding::failed("libvirt", format!("{uri}: {reason}"), repair)
}

fn library(reached: &Reached) -> Finding {
    const CHECK: &str = "libvirt";
    let Reached {
        uri,
        libvirt,
        guests,
        ..
    } = reached;
    let found = format!(
        "{uri}: version {}, may be written, {guests} guests run",
        version(*libvirt)
    );
    if *libvirt < LEAST_LIBVIRT {
        return Finding::warning(
            CHECK,
            found,
            "use libvirt 9.0 or later: older ones were not tried",
        );
    }
    Finding::ok(CHECK, found)
}

fn qemu(reached: &Reached) -> Finding {
    const CHECK: &str = "qemu";
    match reached.qemu {
        Some(found) if found >= LEAST_QEMU => {
            let text = "channel, cache, polling, throttle and qcow2-cache can be turned where a guest has opted in";
            Finding::ok(CHECK, format!("version {}: {text}", version(found)))
        }
        Some(found) => Finding::warning(
            CHECK,
            format!("version {}", version(found)),
            "use QEMU 7.2 or later: with older ones channel and throttle can be turned, cache and polling were not tried",
        ),
        None => Finding::warning(
            CHECK,
            "libvirt names no QEMU",
            "install qemu-system-x86 (or that of this machine), and libvirt-daemon-driver-qemu",
        ),
    }
}

fn events(delivery: &Delivery) -> Finding {
    const CHECK: &str = "events";
    const MEANWHILE: &str = "what happens to guests is seen at the service's next look only";
    match delivery {
        Delivery::Works => Finding::ok(CHECK, "guests that come, go or change are known at once"),
        Delivery::Refused(Refusal { events, reason }) => Finding::warning(
            CHECK,
            format!(
                "libvirt does not tell of {}: {reason}: {MEANWHILE}",
                events.join(", ")
            ),
            "let the service's user search domains where libvirt has access rules (polkit's org.libvirt.api.connect.search-domains), or use libvirt 9.0 or later",
        ),
        Delivery::Stuck => Finding::warning(
            CHECK,
            format!("libvirt's event loop did not come round in {EVENT_PATIENCE:?}: {MEANWHILE}"),
            "look again when this machine is less busy; if it stays so, bring libvirt's client library (libvirt0) to the version of its daemon",
        ),
    }
}

fn version(number: u32) -> String {
    let (major, minor, release) = (number / 1_000_000, number / 1000 % 1000, number % 1000);
    format!("{major}.{minor}.{release}")
}

#[cfg(test)]
mod tests {
    use super::super::{Level, worst};
    use super::*;

    fn reached(libvirt: u32, qemu: Option<u32>) -> Vec<Finding> {
        judge(&Ok(Reached {
            uri: "qemu:///system".to_owned(),
            libvirt,
            qemu,
            guests: 2,
            events: Delivery::Works,
        }))
    }

    #[test]
    fn versions_that_were_tried_are_well_and_older_ones_are_warned_of() {
        let well = reached(9_000_000, Some(7_002_000));
        assert_eq!(worst(&well), Level::Ok);
        assert!(well[0].found.contains("version 9.0.0"), "{well:?}");
        assert!(well[1].found.contains("version 7.2.0"), "{well:?}");
        assert_eq!(reached(8_000_000, Some(7_002_000))[0].level, Level::Warning);
        assert_eq!(reached(9_000_000, Some(6_002_000))[1].level, Level::Warning);
        assert_eq!(reached(9_000_000, None)[1].level, Level::Warning);
    }

    #[test]
    fn events_that_do_not_come_are_warned_of_with_a_repair_of_their_own() {
        let well = events(&Delivery::Works);
        assert_eq!((well.level, well.repair), (Level::Ok, None));
        let refused = events(&Delivery::Refused(Refusal {
            events: vec!["lifecycle", "close"],
            reason: "access denied".to_owned(),
        }));
        let stuck = events(&Delivery::Stuck);
        for (ill, found, repair) in [
            (
                &refused,
                "lifecycle, close: access denied",
                "search-domains",
            ),
            (&stuck, "did not come round in 2s", "less busy"),
        ] {
            assert_eq!(ill.level, Level::Warning);
            assert!(ill.found.contains(found), "{ill:?}");
            assert!(ill.found.contains("next look"), "{ill:?}");
            assert!(ill.repair.as_ref().unwrap().contains(repair), "{ill:?}");
        }
    }

    #[test]
    fn a_libvirt_that_may_only_be_read_is_repaired_otherwise_than_none() {
        let missed = |may_read| {
            let missed = Missed {
                uri: "qemu:///system".to_owned(),
                reason: "refused".to_owned(),
                may_read,
            };
            let findings = judge(&Err(missed));
            assert_eq!(worst(&findings), Level::Failed);
            findings[0].repair.clone().unwrap()
        };
        assert!(missed(true).contains("group libvirt"));
        assert!(missed(false).contains("start libvirt"));
    }

    #[test]
    fn a_host_without_libvirt_is_told_and_not_waited_for() {
        let missed = reach("qemu+unix:///system?socket=/nonexistent").unwrap_err();
        assert!(!missed.may_read && !missed.reason.is_empty(), "{missed:?}");
    }
}
