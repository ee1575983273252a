//! Settings of a disk that are no heads: limits, which libvirt reports, and qcow2 caches, which nobody does.

use serde_json::json;

use super::tests::{Bench, buffered};
use super::*;
use crate::disk_setting::{DiskBounds, DiskChange, DiskSetting};
use crate::fake::{FakeHypervisor, Fault, UUID};
use crate::hypervisor::TunedByOthers;
use crate::throttle::Throttle;

/// What the guest's XML says of its limits.
const GOLD: &str = "<iotune><read_iops_sec>500</read_iops_sec><read_iops_sec_max>900</read_iops_sec_max><read_iops_sec_max_length>3</read_iops_sec_max_length><size_iops_sec>8192</size_iops_sec><group_name>gold</group_name></iotune>";
const GOLD_TEXT: &str = "read_iops_sec=500 read_iops_sec_max=900 size_iops_sec=8192 read_iops_sec_max_length=3 group_name=gold";

fn host(knobs: &str) -> FakeHypervisor {
    let mut host = FakeHypervisor::default();
    let opted_in = format!("mode=\"auto\" knobs=\"{knobs}\"");
    host.xml = host.xml.replace("mode=\"auto\"", &opted_in);
    host
}

fn bench() -> Bench {
    Bench::new(host("cache throttle qcow2-cache"))
}

/// As [`bench`], with limits in the guest's XML.
fn limited() -> Bench {
    let mut host = host("throttle");
    host.xml = host.xml.replace("<target", &format!("{GOLD}<target"));
    host.throttle.set_to(GOLD_TEXT);
    Bench::new(host)
}

fn change(words: &[&str]) -> DiskChange {
    let pair = |word: &&str| {
        let (name, value) = word.split_once('=').unwrap();
        (name.to_owned(), value.to_owned())
    };
    let named: Vec<_> = words.iter().map(pair).collect();
    DiskChange::of(&named).unwrap().remove(0)
}

fn knob(setting: DiskSetting) -> Knob {
    let target = "vda".to_owned();
    Knob::Disk { target, setting }
}

impl Bench {
    fn set(&self, words: &[&str]) -> HostResult<Applied> {
        self.on_disk(|tuner, disk| tuner.apply_to_disk(disk, &change(words)))
    }

    fn on_disk<T>(&self, act: impl FnOnce(&Tuner, &DiskAccess<'_>) -> T) -> T {
        let running = self.host.running(1);
        let disk = DiskAccess {
            hypervisor: &self.host,
            running: &running,
            target: "vda",
            bounds: &DiskBounds::default(),
        };
        act(&self.tuner, &disk)
    }

    fn throttle(&self) -> String {
        self.host.throttle.borrow().to_string()
    }

    fn caches(&self) -> serde_json::Value {
        self.host.qcow2_cache.borrow().clone()
    }

    fn tell(&self, told: &str) {
        self.host.tuned_by_others.borrow_mut().push(TunedByOthers {
            uuid: UUID.to_owned(),
            knob: knob(DiskSetting::Throttle),
            value: told.to_owned(),
        });
    }
}

impl crate::fake::Slot<Throttle> {
    fn set_to(&self, text: &str) {
        *self.borrow_mut() = text.parse().unwrap();
    }
}

#[test]
fn a_guest_that_has_not_opted_in_by_name_is_neither_limited_nor_asked() {
    for host in [FakeHypervisor::default(), host("channel cache polling")] {
        let bench = Bench::new(host);
        for words in [["total_iops_sec=200"], ["l2-cache-size=1MiB"]] {
            let refused = bench.set(&words);
            assert!(
                matches!(refused, Err(HostError::NotOptedIn { .. })),
                "{refused:?}"
            );
        }
        assert_eq!(bench.throttle(), "none");
        assert!(bench.host.monitor_commands.borrow().is_empty());
        assert_eq!(bench.tuner.records().unwrap(), []);
    }
}

#[test]
fn limits_go_back_to_those_of_the_xml_exactly() {
    let bench = limited();
    let applied = bench
        .set(&["total_iops_sec=200", "write_bytes_sec=2MiB"])
        .unwrap();
    assert_eq!(applied.previous, GOLD_TEXT);
    assert_eq!(
        bench.throttle(),
        "write_bytes_sec=2097152 total_iops_sec=200 size_iops_sec=8192 group_name=gold"
    );
    bench.set(&["throttle=none"]).unwrap();
    assert_eq!(bench.throttle(), "none");
    bench.rollback(1);
    assert_eq!(bench.throttle(), GOLD_TEXT);
    assert_eq!(bench.tuner.records().unwrap(), []);
}

#[test]
fn no_guest_is_limited_below_the_floor_or_as_a_group() {
    let bench = bench();
    for words in [["total_iops_sec=99"], ["read_bytes_sec=4096"]] {
        let refused = bench.set(&words).unwrap_err().to_string();
        assert!(refused.contains("host.throttle"), "{refused}");
    }
    assert_eq!(bench.tuner.records().unwrap(), []);
    // Another disk of the group would be limited too.
    let mut host = limited().host;
    let disk = &host.xml[host.xml.find("<disk").unwrap()..=host.xml.find("</disk>").unwrap() + 6];
    let other = disk.replace("'vda'", "'vdb'").replace("disk0", "disk1");
    host.xml = host
        .xml
        .replace("</devices>", &format!("{other}</devices>"));
    let shared = Bench::new(host);
    let refused = shared.set(&["total_iops_sec=200"]).unwrap_err().to_string();
    assert!(refused.contains("group gold, which vdb is in"), "{refused}");
    assert_eq!(shared.throttle(), GOLD_TEXT);
}

#[test]
fn a_check_says_what_would_be_set_and_writes_nothing() {
    let bench = limited();
    let checked =
        bench.on_disk(|tuner, disk| tuner.check_disk(disk, &change(&["read_iops_sec=300"])));
    let after = "read_iops_sec=300 size_iops_sec=8192 group_name=gold";
    assert_eq!(checked.unwrap(), (GOLD_TEXT.to_owned(), after.to_owned()));
    assert_eq!(bench.throttle(), GOLD_TEXT);
    assert_eq!(bench.tuner.records().unwrap(), []);
}

#[test]
fn limits_that_somebody_else_sets_are_frozen_by_the_event_and_by_the_xml() {
    let bench = bench();
    bench.set(&["total_iops_sec=200"]).unwrap();
    assert_eq!(bench.watch(), []);
    // Ours, told late.
    bench.tell("total_iops_sec=200 read_iops_sec=0");
    assert_eq!(bench.watch(), []);
    bench.host.throttle.set_to("total_iops_sec=700");
    bench.tell("total_iops_sec=700");
    let (found, way) = ("total_iops_sec=700".to_owned(), Way::Libvirt);
    assert_eq!(bench.watch()[0].result, Settlement::Frozen { found, way });
    let refused = bench.set(&["total_iops_sec=300"]);
    assert!(
        matches!(refused, Err(HostError::Frozen { .. })),
        "{refused:?}"
    );
    bench.rollback(1);
    assert_eq!(
        bench.throttle(),
        "total_iops_sec=700",
        "what they set stays"
    );
    let running = bench.host.running(1);
    let kept = bench
        .tuner
        .unfreeze(&bench.host, &running, &knob(DiskSetting::Throttle));
    assert_eq!(kept.unwrap(), "total_iops_sec=700");
    bench.set(&["total_iops_sec=300"]).unwrap();
    bench.rollback(1);
    assert_eq!(
        bench.throttle(),
        "total_iops_sec=700",
        "it is the original now"
    );
}

#[test]
fn limits_that_ours_have_overwritten_in_the_same_moment_are_put_back() {
    let bench = bench();
    bench
        .set(&["total_iops_sec=200", "write_bytes_sec=2MiB"])
        .unwrap();
    bench.tell("read_iops_sec=700");
    let theirs = "write_bytes_sec=2097152 read_iops_sec=700";
    let (found, way) = (theirs.to_owned(), Way::Libvirt);
    assert_eq!(bench.watch()[0].result, Settlement::Frozen { found, way });
    assert_eq!(bench.throttle(), theirs);
}

#[test]
fn limits_follow_a_guest_that_was_saved_and_restored_and_end_with_one_that_was_not() {
    for (is_resumed, records) in [(true, 1), (false, 0)] {
        let bench = bench();
        bench.set(&["total_iops_sec=200"]).unwrap();
        bench.host.is_resumed.set(is_resumed);
        let inventory = bench.host.inventory(2);
        bench
            .tuner
            .follow(&bench.host, &inventory, &Scope::Host)
            .unwrap();
        assert_eq!(bench.tuner.records().unwrap().len(), records);
        bench.rollback(2);
        let after = if is_resumed {
            "none"
        } else {
            "total_iops_sec=200"
        };
        assert_eq!(bench.throttle(), after);
    }
}

#[test]
fn qcow2_caches_are_set_by_a_reopen_that_repeats_everything_and_go_back() {
    let bench = bench();
    bench
        .set(&["l2-cache-size=512KiB", "cache-clean-interval=60"])
        .unwrap();
    let boot_cache = json!({ "l2-cache-size": 524_288, "cache-clean-interval": 60 });
    assert_eq!(bench.caches(), boot_cache);
    assert!(bench.host.direct.get(), "the protocol node is as it was");
    let applied = bench.set(&["refcount-cache-size=1MiB"]).unwrap();
    assert_eq!(
        applied.previous,
        "l2-cache-size=524288 cache-clean-interval=60"
    );
    assert_eq!(bench.caches()["refcount-cache-size"], 1 << 20);
    assert_eq!(bench.caches()["l2-cache-size"], 524_288);
    // The cache strategy is another node's.
    bench.apply(&buffered()).unwrap();
    assert_eq!(bench.caches()["l2-cache-size"], 524_288);
    bench.rollback(1);
    assert_eq!(bench.caches(), json!({}));
    assert_eq!(bench.tuner.records().unwrap(), []);
}

#[test]
fn qcow2_caches_are_bounded_by_the_image_and_the_configuration() {
    let bench = bench();
    for (words, problem) in [
        (["l2-cache-size=2MiB"], "[131072, 1048576]"),
        (["l2-cache-size=64KiB"], "[131072, 1048576]"),
        (["refcount-cache-size=65MiB"], "host.qcow2_cache.most_mib"),
        (["cache-clean-interval=90000"], "[0, 86400]"),
    ] {
        let refused = bench.set(&words).unwrap_err().to_string();
        assert!(refused.contains(problem), "{words:?}: {refused}");
    }
    bench.host.job.set(true);
    let refused = bench.set(&["l2-cache-size=1MiB"]);
    assert!(
        matches!(refused, Err(HostError::JobRuns { .. })),
        "{refused:?}"
    );
    assert_eq!(bench.caches(), json!({}));
    assert_eq!(bench.tuner.records().unwrap(), []);
}

#[test]
fn caches_of_an_interrupted_change_are_put_back_since_they_cannot_be_read() {
    let bench = bench();
    bench.host.fault.set(Fault::AppliedThenLost);
    assert!(bench.set(&["l2-cache-size=1MiB"]).is_err());
    bench.host.lost.set(false);
    assert_eq!(bench.caches()["l2-cache-size"], 1 << 20);
    let inventory = bench.host.inventory(1);
    let settled = bench.tuner.reconcile(&bench.host, &inventory).unwrap();
    let original = "as-booted".to_owned();
    assert_eq!(settled[0].result, Settlement::Restored { original });
    assert_eq!(bench.caches(), json!({}));
    assert_eq!(bench.tuner.records().unwrap(), []);
}

#[test]
fn a_way_back_of_caches_that_was_refused_is_taken_again() {
    let bench = bench();
    bench.set(&["l2-cache-size=1MiB"]).unwrap();
    bench.host.fault.set(Fault::Refused);
    assert!(matches!(
        &bench.rollback(1)[..],
        [Settlement::Failed { .. }]
    ));
    assert_eq!(bench.caches()["l2-cache-size"], 1 << 20);
    assert!(matches!(
        &bench.rollback(1)[..],
        [Settlement::Restored { .. }]
    ));
    assert_eq!(bench.caches(), json!({}));
}

#[test]
fn the_record_of_caches_ends_where_a_snapshot_has_put_the_image_below_another() {
    let bench = bench();
    bench.set(&["l2-cache-size=1MiB"]).unwrap();
    bench.host.overlay.set(true);
    bench.rollback(1);
    assert_eq!(bench.tuner.records().unwrap(), []);
    // The new one was not started with QEMU, so that its options are not known.
    let refused = bench.set(&["l2-cache-size=1MiB"]).unwrap_err().to_string();
    assert!(refused.contains("restart the guest"), "{refused}");
}
