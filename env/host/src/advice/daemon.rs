//! Another daemon that moves the threads of a guest whose IOThreads are tuned: one of the two has to let go.

use super::{Advice, Evidence, Gain, HostFacts, Kind, Remedy, Subject};
use crate::guest::KnobKind;
use crate::tuning_daemon::{DaemonKind, TuningDaemon};

/// Advice for a guest that runs and has opted in to the binding of its IOThreads.
pub(super) fn advise(guest: &Subject, host: &HostFacts) -> Vec<Advice> {
    let daemons = host.daemons.iter();
    daemons
        .filter_map(|daemon| advise_one(guest, daemon))
        .collect()
}

fn advise_one(guest: &Subject, daemon: &TuningDaemon) -> Option<Advice> {
    let pid = guest.qemu_pid?;
    let source = daemon.moves(pid)?;
    if !guest.guest.allows(KnobKind::Channel) {
        return None;
    }
    let name = daemon.kind.name();
    let mut evidence = vec![
        Evidence::text("daemon", format!("{name}, process {}", daemon.pid)),
        Evidence::text("set to", daemon.settings.join(", ")),
        Evidence::text("moves by", source),
        Evidence::number("QEMU of the guest", f64::from(pid), "(process id)"),
    ];
    if guest.has_automatic_placement {
        evidence.push(Evidence::text("placement of its vCPUs", "auto"));
    }
    Some(Advice {
        summary: format!("let {name} leave this guest alone, or blkpilot its IOThreads"),
        reason: format!(
            "{name} sets the CPUs of QEMU's threads while blkpilot binds the guest's IOThreads: what the one \
             sets the other finds changed, and blkpilot then freezes the knob"
        ),
        evidence,
        gain: Gain::NotMeasured {
            text: "bindings that stay as they were chosen, and memory that is not moved after them",
        },
        remedy: Remedy::Steps(steps(daemon.kind, pid)),
        ..Advice::of_guest(Kind::Daemon, guest, name)
    })
}

fn steps(kind: DaemonKind, pid: i32) -> Vec<String> {
    let instead = "or take `channel` out of the knobs that the guest has opted in to".to_owned();
    let exclude = match kind {
        DaemonKind::Numad => format!(
            "`numad -x {pid}` excludes this QEMU until it ends; repeat it when the guest is started again, \
             from a hook of libvirt's say"
        ),
        DaemonKind::Tuned | DaemonKind::Irqbalance => {
            "add QEMU to `ps_blacklist` in the [scheduler] section of a profile of your own"
                .to_owned()
        }
    };
    vec![exclude, instead]
}

#[cfg(test)]
mod tests {
    use super::super::tests::{advice_of, host, opted_in};
    use super::*;
    use crate::advice::subject::tests::{subject_of, xml};
    use crate::tuning_daemon::Claim;

    fn moving(kind: DaemonKind, pids: &[i32]) -> HostFacts {
        let daemon = TuningDaemon {
            kind,
            pid: 5,
            settings: vec!["looks at all processes".into()],
            claims: vec![Claim::Binding {
                source: "numad".into(),
                pids: pids.to_vec(),
            }],
        };
        HostFacts {
            daemons: vec![daemon],
            ..host()
        }
    }

    fn guest(knobs: &str) -> Subject {
        let definition = xml(" iothread='1'", "<iothreads>1</iothreads>");
        let definition = definition.replace("placement='static'", "placement='auto'");
        Subject {
            qemu_pid: Some(77),
            ..subject_of(&opted_in(&definition, knobs))
        }
    }

    #[test]
    fn a_daemon_that_moves_a_guest_whose_binding_is_tuned_is_advised_against() {
        let tuned = guest("channel polling");
        let advice = advice_of(Kind::Daemon, &tuned, &moving(DaemonKind::Numad, &[])).unwrap();
        let uuid = &tuned.guest.uuid;
        assert_eq!(advice.id, format!("next-boot/daemon/{uuid}/numad"));
        let Remedy::Steps(steps) = &advice.remedy else {
            panic!("there is nothing in a definition that keeps numad away");
        };
        assert!(steps[0].contains("numad -x 77"), "{steps:?}");
        let auto = Evidence::text("placement of its vCPUs", "auto");
        assert!(advice.evidence.contains(&auto));
        let of = |guest: &Subject, host: &HostFacts| advice_of(Kind::Daemon, guest, host);
        assert!(of(&tuned, &moving(DaemonKind::Numad, &[77])).is_some());
        assert_eq!(of(&tuned, &moving(DaemonKind::Numad, &[78])), None);
        assert_eq!(of(&tuned, &host()), None);
        assert_eq!(of(&guest("polling"), &moving(DaemonKind::Numad, &[])), None);
        let off = Subject {
            qemu_pid: None,
            ..tuned
        };
        assert_eq!(of(&off, &moving(DaemonKind::Numad, &[])), None);
    }
}
