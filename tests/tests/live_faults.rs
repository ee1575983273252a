//! What happens to guests and libvirt while the daemon retunes them by itself: it goes on, says what it
//! saw, changes them again afterwards, and everything can still be put back.
//!
//! `BLKPILOT_FAULTS` says how many faults of each kind; without, one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use blkpilot_tests::auto::{Auto, Moment, PATIENCE};
use blkpilot_tests::fixture::{DiskSpec, Fixture, GuestSpec, IoMode};
use blkpilot_tests::{checked, live};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What is hurt, and what is only beside it.
const HURT: &str = "hurt";
const BESIDE: &str = "beside";
const A_WHILE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    LibvirtKilled,
    QemuKilled,
    Paused,
    Saved,
    SavedByName,
    Reset,
    Unplugged,
}

const FAULTS: [Fault; 7] = [
    Fault::LibvirtKilled,
    Fault::QemuKilled,
    Fault::Paused,
    Fault::Saved,
    Fault::SavedByName,
    Fault::Reset,
    Fault::Unplugged,
];

fn guests() -> Vec<GuestSpec> {
    let idle = DiskSpec {
        io: IoMode::IoUring,
        ..DiskSpec::direct("rw=randread,bs=4k,iodepth=2,rate_iops=200,size=16m")
    };
    // A disk that comes and goes has no work, which would fail without it.
    let unplugged = DiskSpec {
        workload: "idle".into(),
        ..idle.clone()
    };
    vec![
        GuestSpec::new(HURT)
            .with_disk(checked::disk())
            .with_disk(unplugged),
        GuestSpec::new(BESIDE).with_disk(idle),
    ]
}

struct Campaign {
    fixture: Fixture,
    auto: Auto,
}

impl Campaign {
    fn virsh(&self, args: &[&str]) -> String {
        self.fixture.virsh(args).unwrap()
    }

    /// Inflicts a fault, checks that the daemon sees it and goes on with the others, and mends it.
    fn inflict(&mut self, fault: Fault) {
        match fault {
            Fault::LibvirtKilled => {
                self.fixture.kill_libvirtd();
                self.wait_until(|auto| {
                    let said = auto.blkpilot.run(&["guests"]).stderr;
                    String::from_utf8_lossy(&said).contains("cannot be reached")
                });
                self.fixture.restart_libvirtd().unwrap();
            }
            Fault::QemuKilled => {
                let pid = self.fixture.guest(HURT).pid.cast_signed();
                kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
                self.check_gone();
                self.fixture.start_guest(HURT).unwrap();
            }
            Fault::Paused => {
                self.virsh(&["suspend", HURT]);
                let paused = Moment::now();
                self.auto.wait_for_change("beside/vda", None, paused);
                self.virsh(&["resume", HURT]);
            }
            Fault::Saved => {
                let file = self.fixture.run_dir().join("hurt.save");
                let file = file.to_str().unwrap();
                self.virsh(&["save", HURT, file]);
                self.check_gone();
                self.virsh(&["restore", file]);
                self.fixture.read_pid_again(HURT).unwrap();
            }
            Fault::SavedByName => {
                self.virsh(&["managedsave", HURT]);
                self.virsh(&["start", HURT]);
                self.fixture.read_pid_again(HURT).unwrap();
            }
            Fault::Reset => {
                // The fixture's guests end where another would boot again.
                self.virsh(&["set-lifecycle-action", HURT, "reboot", "restart", "--live"]);
                self.virsh(&["reset", HURT]);
                sleep(A_WHILE);
            }
            Fault::Unplugged => self.unplug_and_plug(),
        }
    }

    fn unplug_and_plug(&mut self) {
        let xml = self.virsh(&["dumpxml", HURT]);
        let second = xml.split("<disk ").nth(2).unwrap();
        let second = second.split("</disk>").next().unwrap();
        // Where it was plugged in and what it was called is for libvirt to say.
        let is_kept = |line: &&str| !line.contains("<address") && !line.contains("<alias");
        let lines: Vec<&str> = second.lines().filter(is_kept).collect();
        let file = self.fixture.run_dir().join("vdb.xml");
        fs::write(&file, format!("<disk {}</disk>", lines.join("\n"))).unwrap();
        let file = file.to_str().unwrap().to_owned();
        self.virsh(&["detach-device", HURT, &file, "--live"]);
        let disks = |auto: &Auto| {
            let shown = auto.shown(HURT);
            shown.map(|guest| guest["disks"].as_array().unwrap().len())
        };
        self.wait_until(|auto| disks(auto) == Some(1));
        self.auto.check_journalled(&self.fixture);
        self.virsh(&["attach-device", HURT, &file, "--live"]);
        self.wait_until(|auto| disks(auto) == Some(2));
    }

    /// The guest is not shown any more, and the other is changed on.
    fn check_gone(&mut self) {
        self.wait_until(|auto| auto.shown(HURT).is_none());
        let gone = Moment::now();
        self.auto.wait_for_change("beside/vda", None, gone);
    }

    fn wait_until(&mut self, so: impl Fn(&Auto) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !so(&self.auto) {
            self.auto.check_alive();
            assert!(Instant::now() < deadline, "not so in {PATIENCE:?}");
            sleep(Duration::from_millis(200));
        }
    }

    /// All disks are changed by the same daemon as before, within the journal.
    fn check_recovered(&mut self) -> Duration {
        let mended = Moment::now();
        // A disk without work cannot be judged, so the guard leaves its first change on trial.
        let disks = ["beside/vda", "hurt/vda"];
        let took = disks.map(|disk| self.auto.wait_for_change(disk, None, mended));
        self.auto.wait_for_change("hurt/vda", Some("cache"), mended);
        self.auto.check_journalled(&self.fixture);
        took.into_iter().max().expect("there are two disks")
    }
}

#[test]
fn a_daemon_in_mode_auto_goes_on_whatever_happens_to_guests_and_libvirt() {
    let Some(fixture) = live::fixture("live_faults", guests()) else {
        return;
    };
    let auto = Auto::start(env!("CARGO_BIN_EXE_blkpilot-under-test"), &fixture);
    let mut campaign = Campaign { fixture, auto };
    campaign.check_recovered();
    let each = std::env::var("BLKPILOT_FAULTS").map_or(1, |n| n.parse().unwrap());
    for fault in FAULTS {
        let mut recoveries = vec![];
        for _ in 0..each {
            campaign.inflict(fault);
            recoveries.push(campaign.check_recovered().as_secs_f64());
            if fault != Fault::QemuKilled {
                checked::check(&campaign.fixture, HURT);
            }
        }
        campaign.auto.roll_back(&campaign.fixture);
        recoveries.sort_by(f64::total_cmp);
        println!(
            "{fault:?}: {each} times; every busy disk changed again after {:.1} s in the median, {:.1} s at \
             most; all was journalled and went back",
            recoveries[recoveries.len() / 2],
            recoveries[recoveries.len() - 1]
        );
    }
    println!(
        "{} settings changed; not changed as decided, because: {:#?}",
        campaign.auto.changes(),
        campaign.auto.refusals()
    );
    for guest in campaign.fixture.guests() {
        let shown = campaign.auto.shown(&guest.spec.name).unwrap();
        assert_eq!(shown["frozen"].as_array().unwrap().len(), 0, "{shown}");
    }
}
