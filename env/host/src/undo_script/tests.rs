//! The script runs on the shells that are there, against a `virsh` that keeps its state in files.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use super::*;
use crate::journal::{GuestLife, Life};

const UUID: &str = "ee81b14e-982c-47f4-ac22-70486068cb15";
const REOPEN: &str = r#"{"execute":"blockdev-reopen","arguments":{"options":[{"node-name":"libvirt-1-storage","filename":"/it's \"here\" $(touch pwned)","cache":{"direct":true,"no-flush":false}}]}}"#;
const STOP: &str = r#"{"execute":"block-latency-histogram-set","arguments":{"id":"/machine/x"}}"#;

const VIRSH: &str = r##"#!/bin/sh
[ "$1" = --quiet ] && shift
[ "$1" = --connect ] && { printf '%s' "$2" >connected; shift 2; }
command=$1; shift
printf '%s\n' "$command" >>log
[ -e "fail-$command" ] && { echo "refused" >&2; exit 1; }
case $command in
uri) ;;
list) cat running ;;
iothreadinfo) printf ' 1   %s\n 11   7\n\n' "$(cat cpus)" ;;
iothreadpin) printf '%s' "$3" >cpus ;;
domstats) printf "Domain: 'web'\n  iothread.count=1\n  iothread.1.poll-max-ns=%s\n  iothread.1.poll-grow=0\n" "$(cat poll)" ;;
iothreadset) printf '%s' "$4" >poll ;;
domjobinfo) cat job ;;
blkdeviotune)
    shift 2
    if [ "$*" = --live ]; then
        cat tune
    else
        printf '%s\n' "$@" >tuned
        printf 'read_iops_sec  : 500\nread_iops_sec_max: 900\nsize_iops_sec  : 8192\ngroup_name     : gold two\nread_iops_sec_max_length: 3\n\n' >tune
    fi ;;
qemu-monitor-command)
    case $2 in
    --hmp) printf 'libvirt-1-storage: /x (file)\n    Cache mode:       writeback%s\n\n' "$(cat direct)" ;;
    *query-block-jobs*) cat blockjobs ;;
    *l2-cache*) printf '%s' "$2" >reopened; printf '{"return":{},"id":"libvirt-9"}' ;;
    *blockdev-reopen*) printf '%s' "$2" >command; printf ', direct' >direct; printf '{"return":{},"id":"libvirt-9"}' ;;
    *query-blockstats*) cat blockstats ;;
    *block-latency*) printf '%s' "$2" >histogram; printf '{"return":{},"id":"libvirt-9"}' ;;
    esac ;;
esac
"##;

/// What QEMU says of a disk with these histograms, and of one beside it that has another, whose keys stand
/// in another order.
fn blockstats(buckets: &[&str]) -> String {
    let histograms = ["rd", "wr"].iter().zip(buckets).map(|(way, bounds)| {
        format!(r#""{way}_latency_histogram":{{"bins":[0,1],"boundaries":[{bounds}]}},"#)
    });
    let histograms: String = histograms.collect();
    let other = r#"{"stats":{"wr_latency_histogram":{"boundaries":[7,8],"bins":[1,2,3]}},"qdev":"/machine/xy","node-name":"n"}"#;
    let parent = r#"{"node-name":"libvirt-1-storage","stats":{"rd_bytes":3}}"#;
    format!(
        r#"{{"return":[{other},{{"device":"","parent":{parent},"stats":{{{histograms}"rd_bytes":5}},"qdev":"/machine/x"}},{other}],"id":"libvirt-5"}}"#
    )
}

struct Host(tempfile::TempDir);

impl Host {
    /// A guest on CPU 1, without polling, buffered: as changed by us.
    fn new() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        host.write_command("virsh", VIRSH);
        host.write("running", &format!("another\n{UUID}\n"));
        for (file, text) in [
            ("cpus", "1"),
            ("poll", "0"),
            ("direct", ""),
            ("job", "Job type:         None"),
            ("blockjobs", r#"{"return":[],"id":"libvirt-3"}"#),
            ("log", ""),
            ("blockstats", &blockstats(&[&our_buckets(), &our_buckets()])),
        ] {
            host.write(file, text);
        }
        host
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.path().join(file), text).unwrap();
    }

    /// Another process writes it: while this one has it open, a child that another test is starting has it too, and the
    /// kernel runs no file that somebody may write.
    fn write_command(&self, name: &str, text: &str) {
        let text_file = format!("{name}.text");
        self.write(&text_file, text);
        let installed = Command::new("install")
            .args(["-m", "755", &text_file, name])
            .current_dir(self.path())
            .status();
        assert!(installed.unwrap().success());
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path().join(file)).unwrap_or_default()
    }

    fn run_by(&self, shell: &[&str], script: &str) -> Output {
        self.write("undo.sh", script);
        let path = std::env::var("PATH").unwrap();
        Command::new(shell[0])
            .args(&shell[1..])
            .arg("undo.sh")
            .env("PATH", format!("{}:{path}", self.path().display()))
            .current_dir(self.path())
            .output()
            .unwrap()
    }

    fn run(&self, records: &[Record]) -> Output {
        self.run_by(&["sh"], &undo_script(records, None))
    }
}

fn record(knob: &str, original: &str, value: &str, undo: Option<&str>) -> Record {
    Record {
        life: Life::Guest(GuestLife {
            boot_id: "b".into(),
            uuid: UUID.into(),
            qemu_started_ticks: 7,
        }),
        name: "web".into(),
        knob: knob.parse().unwrap(),
        original: original.into(),
        previous: original.into(),
        value: value.into(),
        state: RecordState::Settled,
        found: None,
        at_us: None,
        undo: undo.map(str::to_owned),
    }
}

fn all() -> Vec<Record> {
    vec![
        record("disk/vda/histogram", "absent", "counting", Some(STOP)),
        record("disk/vda/cache", "direct", "buffered", Some(REOPEN)),
        record("iothread/1/poll_max_ns", "32768", "0", None),
        record("iothread/1/cpus", "0-3", "1", None),
    ]
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Those of the POSIX shells that are installed.
fn shells() -> Vec<&'static [&'static str]> {
    let all: [&[&str]; 4] = [&["sh"], &["dash"], &["bash", "--posix"], &["busybox", "sh"]];
    let works = |shell: &&&[&str]| {
        let tried = Command::new(shell[0])
            .args(&shell[1..])
            .args(["-c", ":"])
            .output();
        tried.is_ok_and(|output| output.status.success())
    };
    all.iter().filter(works).copied().collect()
}

#[test]
fn everything_goes_back_in_every_shell() {
    for shell in shells() {
        let host = Host::new();
        let output = host.run_by(shell, &undo_script(&all(), Some("qemu:///system")));
        assert!(output.status.success(), "{shell:?}: {}", stderr(&output));
        let text = stdout(&output);
        assert!(
            text.ends_with("4 undone, 0 ended with their guests, 0 not undone\n"),
            "{text}"
        );
        assert_eq!(host.read("cpus"), "0-3");
        assert_eq!(host.read("poll"), "32768");
        assert_eq!(host.read("command"), REOPEN, "passed on as it is");
        assert_eq!(host.read("histogram"), STOP);
        assert_eq!(host.read("connected"), "qemu:///system");
        assert_eq!(stderr(&output), "");
        // Once more changes nothing.
        host.write("log", "");
        host.write("blockstats", &blockstats(&[]));
        fs::remove_file(host.path().join("histogram")).unwrap();
        assert!(
            host.run_by(shell, &undo_script(&all(), None))
                .status
                .success()
        );
        let log = host.read("log");
        let wrote = |line: &str| ["iothreadpin", "iothreadset"].contains(&line);
        assert!(!log.lines().any(wrote), "{log}");
        assert_eq!(host.read("histogram"), "");
    }
}

#[test]
fn dirty_pages_are_written_back_before_a_reopen_to_direct_where_they_can_be() {
    let image = r#"/it's "here" $(touch pwned)"#;
    let cache = &all()[1..2];
    for (status, is_told) in [("true", false), ("false", true)] {
        let host = Host::new();
        host.write_command(
            "sync",
            &format!("#!/bin/sh\necho \"sync $1 $2\" >>log\n{status}\n"),
        );
        let output = host.run(cache);
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(host.read("command"), REOPEN);
        let log = host.read("log");
        let line = format!("sync -d {image}\n");
        let before = log.rfind(&line).unwrap();
        assert_eq!(log.matches(&line).count(), if is_told { 1 } else { 2 });
        let reopened = log.rfind("qemu-monitor-command").unwrap();
        assert!(before < reopened, "{log}");
        assert_eq!(stdout(&output).contains("stands still"), is_told);
    }
    let host = Host::new();
    let buffered = Record {
        original: "buffered".into(),
        value: "direct".into(),
        ..cache[0].clone()
    };
    host.write("direct", ", direct");
    host.run(&[buffered]);
    assert!(!host.read("log").contains("sync"));
}

#[test]
fn a_failed_step_does_not_stop_the_others_and_is_told() {
    let host = Host::new();
    host.write("fail-iothreadset", "");
    let output = host.run(&all());
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(
        text.contains("web: iothread/1/poll_max_ns: NOT UNDONE"),
        "{text}"
    );
    assert_eq!(
        (host.read("cpus"), host.read("poll")),
        ("0-3".into(), "0".into())
    );
    assert!(stdout(&output).contains("3 undone, 0 ended with their guests, 1 not undone"));
}

#[test]
fn what_somebody_else_set_is_left_alone() {
    let host = Host::new();
    host.write("cpus", "2");
    let output = host.run(&all());
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("somebody else set it to 2"));
    assert_eq!(host.read("cpus"), "2");

    let frozen = Record {
        state: RecordState::Frozen,
        found: Some("3".into()),
        ..all()[3].clone()
    };
    let host = Host::new();
    let script = undo_script(std::slice::from_ref(&frozen), None);
    assert!(
        script.contains("# web: iothread/1/cpus: was 0-3, set to 1, frozen; cannot be undone here")
    );
    assert_eq!(host.run(&[frozen]).status.code(), Some(1));
    assert_eq!(host.read("cpus"), "1");
}

#[test]
fn a_histogram_with_other_buckets_is_somebody_elses_and_stays() {
    let ours = our_buckets();
    let longer = format!("{ours},9");
    for shell in shells() {
        for theirs in [
            &["7,8", "7,8"][..],
            &[&ours, "7,8"],
            &["7,8", &ours],
            &[&longer, &longer],
        ] {
            let host = Host::new();
            host.write("blockstats", &blockstats(theirs));
            let output = host.run_by(shell, &undo_script(&all()[..1], None));
            assert_eq!(output.status.code(), Some(1), "{shell:?} {theirs:?}");
            assert!(stderr(&output).contains("somebody else counts"));
            assert_eq!(host.read("histogram"), "");
        }
        // Whatever spaces libvirt puts between.
        let host = Host::new();
        let spaced = blockstats(&[&ours]).replace([','], ", ").replace(':', ": ");
        host.write("blockstats", &spaced);
        let output = host.run_by(shell, &undo_script(&all()[..1], None));
        assert!(output.status.success(), "{shell:?}: {}", stderr(&output));
        assert_eq!(host.read("histogram"), STOP);
    }
    for silent in ["", "error", r#"{"return":[],"id":"libvirt-5"}"#] {
        let host = Host::new();
        host.write("blockstats", silent);
        let output = host.run(&all()[..1]);
        assert!(
            stderr(&output).contains("does not say"),
            "{}",
            stderr(&output)
        );
        assert_eq!(host.read("histogram"), "");
    }
}

#[test]
fn an_intent_that_was_not_carried_out_is_ours_too() {
    let intended = |value: &str| Record {
        state: RecordState::Intended,
        previous: "1".into(),
        value: value.into(),
        ..all()[3].clone()
    };
    let host = Host::new();
    assert!(host.run(&[intended("2")]).status.success());
    assert_eq!(host.read("cpus"), "0-3");
}

#[test]
fn a_guest_that_has_gone_needs_nothing_and_is_sent_nothing() {
    let host = Host::new();
    host.write("running", "another\n");
    let output = host.run(&all());
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("0 undone, 4 ended with their guests"));
    let log = host.read("log");
    assert!(
        log.lines().all(|line| ["uri", "list"].contains(&line)),
        "{log}"
    );
}

#[test]
fn jobs_and_missing_commands_keep_the_cache_as_it_is() {
    for (file, text) in [
        (
            "blockjobs",
            r#"{"return":[{"type":"mirror"}],"id":"libvirt-3"}"#,
        ),
        ("job", "Job type:         Unbounded"),
    ] {
        let host = Host::new();
        host.write(file, text);
        let output = host.run(&all());
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("run this again after it"));
        assert_eq!(
            (host.read("direct"), host.read("cpus")),
            (String::new(), "0-3".into())
        );
    }
    let host = Host::new();
    let old = Record {
        undo: None,
        ..all()[1].clone()
    };
    let output = host.run(&[old]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("blkpilot rollback --all --offline"));
}

#[test]
fn nothing_in_the_journal_is_taken_for_a_command() {
    let evil = "it's; touch pwned\n$(touch pwned) `touch pwned` \"x\"";
    let host = Host::new();
    let mut record = all().remove(3);
    record.name = evil.into();
    record.original = "0-3; touch pwned".into();
    record.life = Life::Guest(GuestLife {
        boot_id: "'; touch pwned; '".into(),
        uuid: UUID.into(),
        qemu_started_ticks: 7,
    });
    let output = host.run(&[record]);
    assert_eq!(host.read("cpus"), "0-3; touch pwned", "{}", stderr(&output));
    assert!(stdout(&output).contains(evil));
    assert!(!host.path().join("pwned").exists());
}

#[test]
fn an_empty_journal_makes_a_script_that_succeeds_and_no_libvirt_one_that_fails() {
    let host = Host::new();
    assert!(host.run(&[]).status.success());
    host.write("fail-uri", "");
    let output = host.run(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("is libvirtd running"));
}

const REOPEN_CACHES: &str = r#"{"execute":"blockdev-reopen","arguments":{"options":[{"node-name":"libvirt-1-format","l2-cache-size":1048576}]}}"#;

/// Limits, set over those of a group of the guest's XML, and qcow2 caches.
fn of_disk() -> Vec<Record> {
    let gold = "read_iops_sec=500 read_iops_sec_max=900 size_iops_sec=8192 read_iops_sec_max_length=3 group_name=gold two";
    let ours = "total_iops_sec=200 group_name=gold two";
    vec![
        record("disk/vda/throttle", gold, ours, None),
        record(
            "disk/vda/qcow2-cache",
            "as-booted",
            "l2-cache-size=2097152",
            Some(REOPEN_CACHES),
        ),
    ]
}

/// As virsh shows it: what is not limited too.
const OURS: &str = "total_bytes_sec: 0\ntotal_iops_sec : 200\nread_iops_sec  : 0\ngroup_name     : gold two\nread_iops_sec_max_length: 0\n\n";

#[test]
fn limits_and_caches_of_a_disk_go_back_in_every_shell() {
    for shell in shells() {
        let host = Host::new();
        host.write("tune", OURS);
        let output = host.run_by(shell, &undo_script(&of_disk(), None));
        assert!(output.status.success(), "{shell:?}: {}", stderr(&output));
        assert!(stdout(&output).contains("2 undone"), "{}", stdout(&output));
        let tuned = host.read("tuned");
        for words in [
            "--read-iops-sec\n500\n",
            "--total-iops-sec\n0\n",
            "--read-iops-sec-max-length\n3\n",
            "--group-name\ngold two\n--live\n",
        ] {
            assert!(tuned.contains(words), "{shell:?}: {tuned}");
        }
        assert_eq!(host.read("reopened"), REOPEN_CACHES);
        // Once more changes nothing of the limits, which are back.
        host.write("tuned", "");
        assert!(
            host.run_by(shell, &undo_script(&of_disk()[..1], None))
                .status
                .success()
        );
        assert_eq!(host.read("tuned"), "");
    }
}

#[test]
fn limits_of_somebody_else_stay_and_a_group_of_the_disks_own_is_none() {
    let host = Host::new();
    host.write("tune", &OURS.replace("200", "300"));
    let output = host.run(&of_disk()[..1]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(
        said.contains("somebody else set it to total_iops_sec=300 group_name=gold two"),
        "{said}"
    );
    assert_eq!(host.read("tuned"), "");

    let own = OURS.replace(
        "gold two",
        "/machine/peripheral/virtio-disk0/virtio-backend",
    );
    host.write("tune", &own);
    let mut alone = of_disk().remove(0);
    alone.value = "total_iops_sec=200".into();
    assert!(host.run(&[alone]).status.success());
    // None at all is what it is called where the disk has no limits.
    host.write("tune", "total_bytes_sec: 0\ngroup_name     : \n");
    let none = record("disk/vda/throttle", "none", "total_iops_sec=200", None);
    let output = host.run(&[none]);
    assert!(
        stdout(&output).contains("is none already"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn caches_of_a_disk_stay_while_a_job_runs() {
    let host = Host::new();
    host.write("job", "Job type:         Unbounded");
    let output = host.run(&of_disk()[1..]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("run this again after it"));
    assert_eq!(host.read("reopened"), "");
}

/// A scheduler that was changed on a host that has booted once, whose kernel has changed the number of
/// requests with it, and read-ahead.
fn of_device(host: &Host) -> Vec<Record> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let life = |id: &str| {
        let (boot_id, id) = (boot_id.trim().to_owned(), id.to_owned());
        Life::Device(DeviceLife { boot_id, id })
    };
    for (file, text) in [
        ("wwid", "naa.5 \n"),
        ("queue/scheduler", "[bfq]\n"),
        ("queue/nr_requests", "256\n"),
        ("queue/wbt_lat_usec", "0\n"),
        ("queue/read_ahead_kb", "64\n"),
    ] {
        let path = host.path().join("sys/block/sdb").join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let undo = "nr_requests:100:256 wbt_lat_usec:2000:0";
    let records = [
        record("queue/scheduler", "none", "bfq", Some(undo)),
        record("queue/read_ahead_kb", "128", "64", None),
    ];
    let named = records.map(|record| Record {
        life: life("wwid:naa.5"),
        name: "sda".to_owned(),
        ..record
    });
    named.into()
}

impl Host {
    fn run_on_devices(&self, records: &[Record]) -> Output {
        let script = undo_script(records, None);
        let here = format!("SYS_ROOT={}/sys\n{script}", self.path().display());
        self.run_by(&["sh"], &here)
    }

    fn setting(&self, name: &str) -> String {
        let text = self.read(&format!("sys/block/sdb/queue/{name}"));
        text.trim().to_owned()
    }
}

#[test]
fn a_devices_settings_go_back_under_another_name_and_without_libvirt() {
    let host = Host::new();
    let records = of_device(&host);
    host.write("fail-uri", "");
    let output = host.run_on_devices(&records);
    assert!(output.status.success(), "{}", stderr(&output));
    let settings = ["scheduler", "nr_requests", "wbt_lat_usec", "read_ahead_kb"];
    assert_eq!(
        settings.map(|name| host.setting(name)),
        ["none", "100", "2000", "128"]
    );
    assert!(stdout(&output).contains("sda: queue/scheduler: put back to none"));
    // With guests too, it is libvirt that fails, and the device is back all the same.
    let records = [of_device(&host), all()].concat();
    let output = host.run_on_devices(&records);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(host.setting("scheduler"), "none");
}

#[test]
fn what_somebody_else_has_set_on_a_device_stays() {
    let host = Host::new();
    let records = of_device(&host);
    host.write("sys/block/sdb/queue/read_ahead_kb", "512");
    host.write("sys/block/sdb/queue/nr_requests", "90");
    let output = host.run_on_devices(&records);
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    assert!(stderr(&output).contains("somebody else set it to 512"));
    assert_eq!(host.setting("read_ahead_kb"), "512");
    // Ours is back, theirs beside it is not undone.
    assert_eq!(
        (host.setting("scheduler"), host.setting("nr_requests")),
        ("none".into(), "90".into())
    );
}

#[test]
fn settings_of_a_device_that_has_gone_or_of_another_boot_are_moot() {
    let host = Host::new();
    let mut records = of_device(&host);
    host.write("sys/block/sdb/wwid", "naa.6");
    let output = host.run_on_devices(&records);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("the device has gone"));
    host.write("sys/block/sdb/wwid", "naa.5");
    let id = "wwid:naa.5".to_owned();
    records[0].life = Life::Device(DeviceLife {
        boot_id: "another".into(),
        id,
    });
    let output = host.run_on_devices(&records[..1]);
    assert!(
        stdout(&output).contains("has booted since"),
        "{}",
        stdout(&output)
    );
    assert_eq!(host.setting("scheduler"), "[bfq]");
}
