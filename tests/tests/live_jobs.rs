//! Jobs of libvirt on guests whose cache strategy the daemon changes all the time: each job succeeds, the
//! knob is closed meanwhile and open again afterwards on whatever image the disk has then, and no byte
//! is lost.
//!
//! `BLKPILOT_JOBS` says how many jobs of each kind on each guest; without, one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::path::PathBuf;
use std::thread::{scope, sleep};
use std::time::Duration;

use blkpilot_tests::auto::{Auto, Moment};
use blkpilot_tests::fixture::{DiskSpec, Fixture, GuestSpec, ImageFormat, OptIn};
use blkpilot_tests::{checked, live};

const GUESTS: [&str; 2] = ["raw", "qcow2"];
/// So slow that the daemon sees the job: MiB/s, of images of 64 MiB.
const BANDWIDTH: &str = "32";
/// So few that such a job gets to its end: each write anywhere makes it copy 64 KiB again.
const WRITES_PER_SECOND: u32 = 100;
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy)]
enum Job {
    SnapshotAndCommit,
    Copy,
    Save,
    ManagedSave,
}

const JOBS: [Job; 4] = [
    Job::SnapshotAndCommit,
    Job::Copy,
    Job::Save,
    Job::ManagedSave,
];

fn guest(name: &str, format: ImageFormat) -> GuestSpec {
    let disk = DiskSpec {
        format,
        ..checked::disk_at(WRITES_PER_SECOND)
    };
    let opt_in = OptIn {
        knobs: "cache".into(),
        ..OptIn::auto()
    };
    GuestSpec {
        opt_in: Some(opt_in),
        ..GuestSpec::new(name).with_disk(disk)
    }
}

struct Campaign {
    fixture: Fixture,
    auto: Auto,
    jobs: usize,
    /// Jobs during which the knob was seen closed.
    seen: usize,
}

impl Campaign {
    fn virsh(&self, args: &[&str]) -> String {
        self.fixture.virsh(args).unwrap()
    }

    fn new_image(&self, guest: &str) -> PathBuf {
        let name = format!("{guest}-{}.new", self.jobs);
        self.fixture.run_dir().join(name)
    }

    /// A block job of `virsh`, which waits for its end; whether the knob was seen closed by it.
    fn block_job(&mut self, guest: &str, args: &[&str]) {
        let (fixture, auto) = (&self.fixture, &self.auto);
        let is_seen = scope(|threads| {
            let job = threads.spawn(|| fixture.virsh(args).map(drop));
            let mut is_seen = false;
            while !job.is_finished() {
                is_seen |= auto.shown(guest).is_some_and(|guest| {
                    let text = guest["disks"][0]["heads"].to_string();
                    text.contains("MASK_REASON_JOB_RUNNING")
                });
                sleep(LOOK);
            }
            job.join().unwrap().unwrap();
            is_seen
        });
        self.seen += usize::from(is_seen);
    }

    fn run(&mut self, job: Job, guest: &str) {
        self.jobs += 1;
        let file = self.new_image(guest);
        let file = file.to_str().unwrap();
        match job {
            Job::SnapshotAndCommit => {
                let spec = format!("vda,file={file}");
                let name = format!("s{}", self.jobs);
                let args = ["snapshot-create-as", guest, &name, "--disk-only"];
                self.virsh(&[&args[..], &["--no-metadata", "--diskspec", &spec]].concat());
                // The node of the overlay is found, and changed.
                self.wait_for_cache(guest);
                self.auto.check_journalled(&self.fixture);
                let args = ["blockcommit", guest, "vda", "--active", "--pivot", "--wait"];
                self.block_job(guest, &[&args[..], &["--bandwidth", BANDWIDTH]].concat());
            }
            Job::Copy => {
                let format = guest;
                let args = ["blockcopy", guest, "vda", file, "--format", format];
                let how = ["--transient-job", "--wait", "--pivot", "--bandwidth"];
                self.block_job(guest, &[&args[..], &how, &[BANDWIDTH]].concat());
            }
            Job::Save => {
                self.virsh(&["save", guest, file]);
                self.virsh(&["restore", file]);
                self.fixture.read_pid_again(guest).unwrap();
            }
            Job::ManagedSave => {
                self.virsh(&["managedsave", guest]);
                self.virsh(&["start", guest]);
                self.fixture.read_pid_again(guest).unwrap();
            }
        }
        self.wait_for_cache(guest);
        self.auto.check_journalled(&self.fixture);
        checked::check(&self.fixture, guest);
    }

    fn wait_for_cache(&mut self, guest: &str) {
        let disk = format!("{guest}/vda");
        self.auto
            .wait_for_change(&disk, Some("cache"), Moment::now());
    }
}

#[test]
fn jobs_of_libvirt_succeed_while_the_cache_is_changed() {
    let guests = vec![
        guest(GUESTS[0], ImageFormat::Raw),
        guest(GUESTS[1], ImageFormat::Qcow2),
    ];
    let Some(fixture) = live::fixture("live_jobs", guests) else {
        return;
    };
    let auto = Auto::start(env!("CARGO_BIN_EXE_blkpilot-under-test"), &fixture);
    let mut campaign = Campaign {
        fixture,
        auto,
        jobs: 0,
        seen: 0,
    };
    for guest in GUESTS {
        campaign.wait_for_cache(guest);
    }
    let each = std::env::var("BLKPILOT_JOBS").map_or(1, |n| n.parse().unwrap());
    for _ in 0..each {
        for (job, guest) in JOBS.into_iter().flat_map(|job| GUESTS.map(|g| (job, g))) {
            campaign.run(job, guest);
        }
    }
    campaign.auto.roll_back(&campaign.fixture);
    println!(
        "{} jobs ({JOBS:?}) succeeded, the knob was seen closed during {} of {} block jobs; {} settings \
         changed; no block was other than written, all went back; not changed as decided, because: {:#?}",
        campaign.jobs,
        campaign.seen,
        campaign.jobs / 2,
        campaign.auto.changes(),
        campaign.auto.refusals()
    );
    assert!(campaign.seen > 0);
    for guest in GUESTS {
        let shown = campaign.auto.shown(guest).unwrap();
        assert_eq!(shown["frozen"].as_array().unwrap().len(), 0, "{shown}");
    }
}
