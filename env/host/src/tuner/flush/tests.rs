//! Write-back before a disk goes over to direct. The image is a real file; how much of it is dirty is said
//! by the test.

use std::time::Duration;

use super::super::tests::buffered;
use super::*;
use crate::fake::{FakeHypervisor, UUID};
use blkpilot_env::sample::Cache;

struct Bench {
    host: FakeHypervisor,
    tuner: Tuner,
    image: tempfile::NamedTempFile,
    _dir: tempfile::TempDir,
}

/// No image is ever clean enough.
const NEVER_CLEAN: WriteBackLimits = WriteBackLimits {
    images: 2,
    stall: Duration::ZERO,
    dirty_bytes: 0,
    patience: Duration::from_secs(3600),
    pause: Duration::from_secs(3600),
    kept: Duration::from_secs(10),
    way_back: Duration::from_millis(50),
};

fn patient() -> WriteBackLimits {
    WriteBackLimits {
        stall: Duration::from_secs(60),
        dirty_bytes: u64::MAX,
        ..WriteBackLimits::default()
    }
}

impl Bench {
    /// A guest whose disk is buffered by us.
    fn buffered(limits: WriteBackLimits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("journal.db")).unwrap();
        let mut image = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut image, &[1; 1 << 16]).unwrap();
        let mut host = FakeHypervisor::default();
        let path = image.path().display().to_string();
        host.xml = host.xml.replace("/i.img", &path);
        let mut tuner = Tuner::with_limits(journal, limits);
        tuner.write_backs.dirty_bytes = |_| Some(1 << 30);
        let bench = Self {
            host,
            tuner,
            image,
            _dir: dir,
        };
        bench.apply(&buffered()).unwrap();
        assert!(!bench.host.direct.get());
        bench
    }

    fn apply(&self, change: &Change) -> HostResult<Applied> {
        self.tuner.apply(&self.host, &self.host.running(1), change)
    }

    fn rollback(&self) -> Settlement {
        let inventory = self.host.inventory(1);
        let outcomes = self.tuner.rollback(&self.host, &inventory, &Scope::Host);
        outcomes.unwrap().remove(0).result
    }
}

fn direct() -> Change {
    Change::Cache {
        target: "vda".into(),
        cache: Cache::Direct,
    }
}

fn reopens(host: &FakeHypervisor) -> usize {
    let commands = host.monitor_commands.borrow();
    commands.iter().filter(|c| *c == "blockdev-reopen").count()
}

#[test]
fn a_clean_disk_goes_direct_at_once_and_is_not_written_back_any_more() {
    let bench = Bench::buffered(patient());
    bench.apply(&direct()).unwrap();
    assert!(bench.host.direct.get());
    assert_eq!(
        bench.tuner.direct_mask(bench.image.path()),
        MaskReason::Allowed
    );
}

#[test]
fn a_disk_that_is_not_clean_yet_stays_buffered_and_journalled_and_says_so() {
    let bench = Bench::buffered(NEVER_CLEAN);
    let before = bench.tuner.records().unwrap();
    let error = bench.apply(&direct()).unwrap_err();
    assert!(matches!(error, HostError::WritingBack { .. }), "{error}");
    assert!(error.is_ordinary());
    assert_eq!((bench.host.direct.get(), reopens(&bench.host)), (false, 1));
    assert_eq!(bench.tuner.records().unwrap(), before);
    let mask = bench.tuner.direct_mask(bench.image.path());
    assert_eq!(mask, MaskReason::WritingBack);
}

#[test]
fn a_guest_that_writes_as_fast_as_its_device_is_given_up_in_words() {
    let limits = WriteBackLimits {
        patience: Duration::ZERO,
        ..NEVER_CLEAN
    };
    let bench = Bench::buffered(limits);
    let error = loop {
        match bench.apply(&direct()).unwrap_err() {
            HostError::WritingBack { .. } => std::thread::yield_now(),
            other => break other,
        }
    };
    assert!(matches!(error, HostError::WritesTooFast { .. }), "{error}");
    assert!(error.to_string().contains("stays buffered"), "{error}");
    let mask = bench.tuner.direct_mask(bench.image.path());
    assert_eq!(mask, MaskReason::WritesTooFast);
    assert!(!bench.host.direct.get());
}

#[test]
fn a_way_back_waits_only_so_long_and_then_reopens_all_the_same() {
    let bench = Bench::buffered(NEVER_CLEAN);
    let start = Instant::now();
    let settled = bench.rollback();
    assert_eq!(
        settled,
        Settlement::Restored {
            original: "direct".into()
        }
    );
    assert!(bench.host.direct.get());
    assert!(start.elapsed() >= NEVER_CLEAN.way_back);
    let notes = bench.tuner.take_notes();
    let path = bench.image.path().display().to_string();
    let said = |note: &String| note.contains(&path) && note.contains("stands still");
    assert!(notes.iter().any(said), "{notes:?}");
}

#[test]
fn a_way_back_that_waited_leaves_alone_what_somebody_else_did_meanwhile() {
    let bench = Bench::buffered(NEVER_CLEAN);
    // The node is looked for, and its mode read, before the way back waits.
    bench.host.goes_direct_after_reads.set(Some(2));
    let settled = bench.rollback();
    assert_eq!(
        settled,
        Settlement::Restored {
            original: "direct".into()
        }
    );
    assert_eq!(reopens(&bench.host), 1, "it was direct already");
}

#[test]
fn an_image_that_cannot_be_opened_is_left_to_qemu_and_that_is_said_once() {
    let bench = Bench::buffered(NEVER_CLEAN);
    let mut gone = bench.host.running(1);
    gone.guest.disks[0].source = Some("/nowhere/i.img".into());
    bench.tuner.apply(&bench.host, &gone, &direct()).unwrap();
    bench.tuner.apply(&bench.host, &gone, &buffered()).unwrap();
    bench.tuner.apply(&bench.host, &gone, &direct()).unwrap();
    let notes = bench.tuner.take_notes();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("/nowhere/i.img") && notes[0].contains("CAP_DAC_READ_SEARCH"));
}

#[test]
fn a_guest_without_opt_in_is_not_even_written_back() {
    let mut bench = Bench::buffered(NEVER_CLEAN);
    bench.host.opt_out();
    let error = bench.apply(&direct()).unwrap_err();
    assert!(matches!(error, HostError::NotOptedIn { .. }), "{error}");
    let mask = bench.tuner.direct_mask(bench.image.path());
    assert_eq!(mask, MaskReason::Allowed);
    let uuid = UUID.to_owned();
    let other = Scope::Knob(uuid, Knob::Polling { iothread: 1 });
    bench.tuner.begin_ways_back(&other).unwrap();
    let mask = bench.tuner.direct_mask(bench.image.path());
    assert_eq!(mask, MaskReason::Allowed);
}

#[test]
fn what_a_guest_that_migrates_has_dirty_is_written_back_though_it_stays_buffered() {
    let bench = Bench::buffered(NEVER_CLEAN);
    bench.host.migration.set(true);
    bench
        .tuner
        .write_back_guest(&bench.host.running(1))
        .unwrap();
    let mask = bench.tuner.direct_mask(bench.image.path());
    assert_eq!(mask, MaskReason::WritingBack);
    let error = bench.apply(&direct()).unwrap_err();
    assert!(error.is_ordinary(), "{error}");
    assert_eq!(reopens(&bench.host), 1);
}
