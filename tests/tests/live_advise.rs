//! `blkpilot advise` on real guests: it names what is poor about them, libvirt accepts what it proposes,
//! a next boot brings it, and what was followed is not advised again. What is checked is read by other
//! means than the code under test.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::fs;
use std::process::Output;
use std::thread::sleep;
use std::time::{Duration, Instant};

use blkpilot_host::advice::Edit;
use blkpilot_tests::fixture::{CacheMode, DiskSpec, Fixture, GuestSpec, IoMode, IoThreads, preset};
use blkpilot_tests::live;
use blkpilot_tests::reading::{affinity, is_direct};
use blkpilot_tests::service::Blkpilot;
use serde_json::Value;

/// Longer than any wait, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(180);
/// The image of poor-cache is 64 MiB; it has to be read twice before it counts as read again and again.
const READ_TWICE_BYTES: u64 = 2 * (64 << 20);

/// Two disks on QEMU's main loop, of a guest that has not opted in.
fn plain() -> GuestSpec {
    let threads = DiskSpec {
        io: IoMode::Threads,
        ..DiskSpec::direct("rw=randread,bs=4k,rate_iops=50,size=16m")
    };
    let buffered = DiskSpec {
        cache: CacheMode::Writeback,
        ..threads.clone()
    };
    GuestSpec {
        opt_in: None,
        iothreads: IoThreads::None,
        ..GuestSpec::new("plain")
            .with_disk(threads)
            .with_disk(buffered)
    }
}

struct Advised<'a> {
    fixture: &'a Fixture,
    blkpilot: &'a Blkpilot,
}

impl Advised<'_> {
    fn run(&self, args: &[&str]) -> Output {
        let uri = self.fixture.uri();
        self.blkpilot
            .run(&[&["advise", "--libvirt", &uri], args].concat())
    }

    fn stdout(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout(&["--json"])).unwrap()
    }

    /// Kind, disk and id of each advice about a guest that its definition can follow.
    fn about(&self, guest: &str) -> Vec<(String, String, String)> {
        let json = self.json();
        let advice = json["next_boot"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        advice
            .filter(|advice| advice["guest"] == guest && advice["change"]["diff"].is_string())
            .map(|one| (text(&one["kind"]), text(&one["disk"]), text(&one["id"])))
            .collect()
    }

    fn kinds(&self, guest: &str) -> Vec<(String, String)> {
        let about = self.about(guest).into_iter();
        about.map(|(kind, disk, _)| (kind, disk)).collect()
    }

    fn definition(&self, guest: &str) -> String {
        self.fixture
            .virsh(&["dumpxml", "--inactive", guest])
            .unwrap()
    }

    /// Defines a guest anew, checked against libvirt's schema, and expects libvirt to write it just so.
    fn define(&self, guest: &str, xml: &str) {
        let file = self.fixture.run_dir().join(format!("{guest}.advised.xml"));
        fs::write(&file, xml).unwrap();
        let file = file.to_string_lossy();
        self.fixture
            .virsh(&["define", "--validate", &file])
            .unwrap();
        assert_eq!(self.definition(guest).trim(), xml.trim());
    }

    /// Follows all advice about a guest's definition; none of it comes again.
    fn follow(&self, guest: &str) {
        let advised = eventually("there is something to follow", || {
            let xml = self.stdout(&["--xml", guest]);
            (xml.trim() != self.definition(guest).trim()).then_some(xml)
        });
        self.define(guest, &advised);
        assert_eq!(self.about(guest), []);
        let left = self.stdout(&["--xml", guest]);
        assert_eq!(
            left.trim(),
            self.definition(guest).trim(),
            "nothing is left to follow"
        );
    }

    fn read_bytes(&self, guest: &str) -> u64 {
        let stats = self.fixture.virsh(&["domblkstat", guest, "vda"]).unwrap();
        let line = stats.lines().find(|line| line.contains("rd_bytes"));
        line.unwrap()
            .split_whitespace()
            .last()
            .unwrap()
            .parse()
            .unwrap()
    }
}

/// What comes once the guests have done enough for it, however busy the machine is.
fn eventually<T>(what: &str, ask: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(500));
    }
}

fn pair(kind: &str, disk: &str) -> (String, String) {
    (kind.to_owned(), disk.to_owned())
}

#[test]
fn advice_names_what_is_poor_libvirt_accepts_it_and_a_next_boot_brings_it() {
    let guests = vec![
        preset("poor-cache").unwrap(),
        preset("poor-binding").unwrap(),
        plain(),
    ];
    let Some(mut fixture) = live::fixture("live_advise", guests) else {
        return;
    };
    let binary = env!("CARGO_BIN_EXE_blkpilot-under-test");
    let mut blkpilot = Blkpilot::new(
        binary,
        &fixture,
        "",
        "[policy]\nbaseline = \"least_loaded\"",
    );
    let running = fixture.virsh(&["dumpxml", "plain"]).unwrap();
    let is_two_cpus = std::thread::available_parallelism().unwrap().get() > 1;

    let advised = Advised {
        fixture: &fixture,
        blkpilot: &blkpilot,
    };
    eventually("poor-cache has read its disk twice", || {
        (advised.read_bytes("poor-cache") >= READ_TWICE_BYTES).then_some(())
    });

    // Without a service, that is said, and the rest is there.
    let json = advised.json();
    let problem = json["live"]["problem"].as_str().unwrap();
    assert!(problem.contains("no service answers"), "{problem}");
    assert_eq!(json["unreadable"], Value::Array(vec![]));

    // What is poor about each guest.
    let cache = eventually("poor-cache is to use the page cache", || {
        let json = advised.json();
        let mut advice = json["next_boot"].as_array().unwrap().iter();
        advice.find(|one| one["kind"] == "cache").cloned()
    });
    assert_eq!(cache["guest"], "poor-cache");
    let diff = cache["change"]["diff"].as_str().unwrap();
    assert!(
        diff.contains(
            "+      <driver name='qemu' type='raw' cache='writeback' io='io_uring' iothread='1'/>"
        ),
        "{diff}"
    );
    assert_eq!(cache["gain"]["known"], "measured");
    let io_and_binding = [pair("io", "vda"), pair("binding", "iothread1")];
    let of_binding = if is_two_cpus {
        &io_and_binding[..]
    } else {
        &io_and_binding[..1]
    };
    assert_eq!(advised.kinds("poor-binding"), of_binding);
    let of_plain = [
        pair("io", "vda"),
        pair("iothread", "vda"),
        pair("iothread", "vdb"),
    ];
    assert_eq!(advised.kinds("plain"), of_plain);

    // The same each time, for people too, and nothing but what was asked for.
    assert_eq!(advised.about("plain"), advised.about("plain"));
    let text = advised.stdout(&["plain"]);
    assert!(
        text.contains("plain/vda") && !text.contains("poor-cache"),
        "{text}"
    );
    let missing = advised.run(&["nobody"]);
    assert_eq!(missing.status.code(), Some(1));

    // One alone, and one that is not there.
    let (_, _, iothread) = advised.about("plain").pop().unwrap();
    let uuid = &fixture.guest("plain").uuid;
    assert_eq!(iothread, format!("next-boot/iothread/{uuid}/vdb"));
    let one = advised.stdout(&["--xml", "plain", "--take", &iothread]);
    assert_eq!(one.matches("iothread='1'").count(), 1);
    assert!(
        one.contains("<iothreads>1</iothreads>") && one.contains("io='threads'"),
        "{one}"
    );
    let refused = advised.run(&["--xml", "plain", "--take", "next-boot/nothing"]);
    assert_eq!(refused.status.code(), Some(1));
    let reason = String::from_utf8_lossy(&refused.stderr);
    assert!(reason.contains(&iothread), "{reason}");

    // libvirt takes it, and it is gone.
    for guest in ["poor-cache", "poor-binding"] {
        advised.follow(guest);
    }
    let worse = advised
        .definition("plain")
        .replacen("cache='none'", "cache='unsafe'", 1)
        .replacen(
            "'writeback' io='threads'",
            "'writeback' io='threads' queues='1'",
            1,
        );
    advised.define("plain", &worse);
    let kinds = advised.kinds("plain");
    assert!(
        kinds.contains(&pair("cache", "vda")) && kinds.contains(&pair("queues", "vdb")),
        "{kinds:?}"
    );
    advised.follow("plain");
    let huge = Edit::HugePages {
        page_kib: Some(2048),
    };
    advised.define("plain", &huge.apply(&advised.definition("plain")).unwrap());

    // Nothing of it has touched a running guest, and nobody used the monitor of one.
    assert_eq!(fixture.virsh(&["dumpxml", "plain"]).unwrap(), running);
    assert!(is_direct(&fixture, "poor-cache").unwrap());
    let log = fs::read_to_string(fixture.run_dir().join("log/qemu/plain.log")).unwrap();
    assert!(!log.contains("tainted: custom-monitor"), "{log}");

    // The next boot has it.
    for guest in ["poor-cache", "poor-binding"] {
        fixture.power_cycle(guest).unwrap();
    }
    assert!(!is_direct(&fixture, "poor-cache").unwrap());
    if is_two_cpus {
        assert!(!affinity(fixture.guest("poor-binding").pid, "IO iothread1").contains('0'));
    }

    // With a service, what it would do now is there too.
    blkpilot.serve();
    let advised = Advised {
        fixture: &fixture,
        blkpilot: &blkpilot,
    };
    let live = eventually("the service proposes something", || {
        let live = advised.json()["live"].take();
        live["problem"].is_null().then_some(live)
    });
    assert_eq!(live["host"], "local");
    let decision = live["decision"].as_str().unwrap();
    assert!(decision.starts_with("decisions/"), "{live}");
}
