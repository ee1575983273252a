use super::*;
use crate::sysfs::tests::{add, tree};

/// A process of root's below `proc`, with its program and command line.
pub(crate) fn process(root: &Path, pid: i32, name: &str, program: &str, words: &str) {
    let dir = format!("proc/{pid}");
    let status = format!("Name:\t{name}\nState:\tS (sleeping)\nUid:\t0\t0\t0\t0\n");
    add(
        root,
        &[
            (&format!("{dir}/status"), &status),
            (&format!("{dir}/cmdline"), &words.replace(' ', "\0")),
            (&format!("{dir}/exe"), &format!("->{program}")),
        ],
    );
}

fn tuned(root: &Path) {
    let words = "/usr/bin/python3 -Es /usr/sbin/tuned -l -P";
    process(root, 7, "tuned", "usr/bin/python3.11", words);
}

fn daemons(root: &Path) -> Vec<TuningDaemon> {
    tuning_daemons(&root.join("proc"), root)
}

fn kinds(root: &Path) -> Vec<(i32, DaemonKind)> {
    let found = daemons(root).into_iter();
    found.map(|daemon| (daemon.pid, daemon.kind)).collect()
}

#[test]
fn roots_processes_with_the_daemons_programs_are_found() {
    let root = tree(&[]);
    let root = root.path();
    assert_eq!(kinds(root), []);
    process(
        root,
        30,
        "irqbalance",
        "usr/sbin/irqbalance",
        "irqbalance --foreground",
    );
    process(root, 4, "numad", "usr/bin/numad", "numad -i 15");
    tuned(root);
    let python = "python3 /usr/sbin/tuned";
    process(root, 5, "python3", "usr/bin/python3.11 (deleted)", python);
    assert_eq!(
        kinds(root),
        [
            (4, DaemonKind::Numad),
            (5, DaemonKind::Tuned),
            (7, DaemonKind::Tuned),
            (30, DaemonKind::Irqbalance)
        ]
    );
}

#[test]
fn others_of_their_names_are_not_taken_for_them() {
    let root = tree(&[]);
    let root = root.path();
    process(root, 1, "irqbalance", "usr/bin/dash", "sh ./irqbalance");
    process(
        root,
        2,
        "tuned",
        "usr/bin/python3",
        "python3 /root/watch.py tuned",
    );
    process(root, 3, "tuned", "opt/music/tuned", "/opt/music/tuned");
    process(
        root,
        4,
        "python3",
        "usr/bin/python3",
        "python3 /usr/bin/dnf",
    );
    process(root, 5, "numad", "usr/bin/numad", "numad -w 2:4096");
    for (pid, status) in [
        (6, "Name:\tnumad\nState:\tS\nUid:\t1000\t1000\t1000\t1000\n"),
        (7, "Name:\tnumad\nState:\tZ (zombie)\nUid:\t0\t0\t0\t0\n"),
        (8, "Name:\tnumad"),
    ] {
        process(root, pid, "numad", "usr/bin/numad", "numad");
        std::fs::write(root.join(format!("proc/{pid}/status")), status).unwrap();
    }
    assert_eq!(kinds(root), []);
}

#[test]
fn one_whose_program_may_not_be_seen_goes_by_name_and_owner() {
    let root = tree(&[]);
    tuned(root.path());
    std::fs::remove_file(root.path().join("proc/7/exe")).unwrap();
    assert_eq!(kinds(root.path()), [(7, DaemonKind::Tuned)]);
}

#[test]
fn what_irqbalance_leaves_alone_is_told_from_its_environment_or_file() {
    let root = tree(&[]);
    let root = root.path();
    process(
        root,
        3,
        "irqbalance",
        "usr/sbin/irqbalance",
        "irqbalance --banirq=41 -i 42",
    );
    let told = || daemons(root).remove(0);
    assert_eq!(
        told().settings,
        [
            "no CPUs banned but those isolated at boot or nohz_full",
            "interrupts left alone: 41, 42"
        ]
    );
    let file = "#IRQBALANCE_BANNED_CPULIST=9\nIRQBALANCE_BANNED_CPULIST=\"2-3\"\n";
    add(root, &[("etc/default/irqbalance", file)]);
    assert_eq!(told().settings[0], "IRQBALANCE_BANNED_CPULIST=2-3");
    add(
        root,
        &[("proc/3/environ", "A=b\0IRQBALANCE_BANNED_CPUS=0c\0")],
    );
    // The list goes before the mask, whoever has it.
    assert_eq!(told().settings[0], "IRQBALANCE_BANNED_CPULIST=2-3");
    std::fs::remove_file(root.join("etc/default/irqbalance")).unwrap();
    assert_eq!(told().settings[0], "IRQBALANCE_BANNED_CPUS=0c");
    assert_eq!(told().claims, []);
}

#[test]
fn numad_moves_all_guests_or_those_that_it_is_told() {
    let moves = |words: &str, pid: i32| {
        let root = tree(&[]);
        process(root.path(), 3, "numad", "usr/bin/numad", words);
        daemons(root.path())[0].moves(pid).is_some()
    };
    assert!(moves("numad", 77) && moves("numad -i 5:15 -S 1 -p 9", 77));
    assert!(moves("numad -S 0 -p 77", 77) && moves("numad -S0 -p77", 77));
    assert!(!moves("numad -S 0", 77) && !moves("numad -S 0 -p 9", 77));
}

/// tuned with the profile `mine`, which includes the distribution's `host`.
fn profile(mine: &str, host: &str) -> TuningDaemon {
    let root = tree(&[
        ("etc/tuned/active_profile", "mine\n"),
        ("etc/tuned/mine/tuned.conf", mine),
        ("usr/lib/tuned/host/tuned.conf", host),
    ]);
    tuned(root.path());
    daemons(root.path()).remove(0)
}

fn sources(daemon: &TuningDaemon, device: &str) -> Vec<(DeviceKnob, String)> {
    let claim = |knob| Some((knob, daemon.sets(device, knob)?.source.clone()));
    DeviceKnob::ALL.into_iter().filter_map(claim).collect()
}

#[test]
fn a_profile_claims_what_its_disk_and_sysfs_sections_set_where_they_set_it() {
    let daemon = profile(
        "[main]\nsummary=mine\n[disk]\nreadahead=>4096 # KiB\n\
         [fast]\ntype=disk\ndevices=nvme*, !nvme1n1\nelevator=none\n\
         [sysfs]\n/sys/block/sd[ab]/queue/rq_affinity=2\n/sys/kernel/mm/ksm/run=0\n\
         [sysctl]\nvm.swappiness=10\n",
        "",
    );
    assert_eq!(daemon.settings, ["profile mine"]);
    let read_ahead = (DeviceKnob::ReadAhead, "[disk] readahead=>4096".to_owned());
    assert_eq!(
        sources(&daemon, "nvme1n1"),
        std::slice::from_ref(&read_ahead)
    );
    let affinity = "[sysfs] /sys/block/sd[ab]/queue/rq_affinity=2".to_owned();
    assert_eq!(
        sources(&daemon, "sdb"),
        [read_ahead.clone(), (DeviceKnob::RqAffinity, affinity)]
    );
    let elevator = |knob| (knob, "[fast] elevator=none".to_owned());
    assert_eq!(
        sources(&daemon, "nvme0n1"),
        [
            elevator(DeviceKnob::Scheduler),
            elevator(DeviceKnob::NrRequests),
            read_ahead,
            elevator(DeviceKnob::Wbt)
        ]
    );
    assert_eq!(daemon.moves(77), None);
    let text = daemon.claims[1].to_string();
    assert_eq!(
        text,
        "scheduler, nr_requests, wbt_lat_usec of devices nvme* !nvme1n1 ([fast] elevator=none)"
    );
}

#[test]
fn profiles_are_merged_as_tuned_merges_them() {
    let host = "[disk]\nreadahead=>4096\nelevator=bfq\ndevices=sd*\n";
    let merged = |section: &str| {
        let mine = format!("[main]\ninclude = host, -absent\n{section}");
        let daemon = profile(&mine, host);
        assert_eq!(daemon.settings, ["profile mine"]);
        let found = sources(&daemon, "sda").into_iter();
        found.map(|(knob, _)| knob.name()).collect::<Vec<_>>()
    };
    let all = ["scheduler", "nr_requests", "read_ahead_kb", "wbt_lat_usec"];
    assert_eq!(merged(""), all);
    // An overlay says anew which devices.
    assert_eq!(merged("[disk]\ndevices=nvme*\n"), Vec::<&str>::new());
    assert_eq!(merged("[disk]\ndrop=elevator\n"), ["read_ahead_kb"]);
    assert_eq!(
        merged("[disk]\nreplace=1\nreadahead=8\n"),
        ["read_ahead_kb"]
    );
    assert_eq!(merged("[disk]\nenabled=false\n"), Vec::<&str>::new());
    let isolating = profile("[scheduler]\nisolated_cores=2-3\n", "");
    assert_eq!(isolating.moves(7), Some("[scheduler] isolated_cores=2-3"));
}

#[test]
fn a_profile_that_includes_itself_its_namesake_or_nothing_ends() {
    let root = tree(&[
        ("etc/tuned/active_profile", "host\n"),
        (
            "etc/tuned/host/tuned.conf",
            "[main]\ninclude=host;gone\n[sysfs]\n/sys/block/*/queue/nr*=9\n",
        ),
        (
            "usr/lib/tuned/host/tuned.conf",
            "[main]\ninclude=host\n[disk]\nreadahead=1\n",
        ),
    ]);
    tuned(root.path());
    let daemon = daemons(root.path()).remove(0);
    assert_eq!(
        daemon.settings,
        ["profile host", "profile gone cannot be read"]
    );
    let found = sources(&daemon, "sda").into_iter();
    let found: Vec<&str> = found.map(|(knob, _)| knob.name()).collect();
    assert_eq!(found, ["nr_requests", "read_ahead_kb"]);
}

#[test]
fn configuration_is_read_as_the_daemon_sees_it_and_its_absence_is_told() {
    let root = tree(&[]);
    tuned(root.path());
    assert_eq!(daemons(root.path())[0].settings, ["no profile"]);
    add(
        root.path(),
        &[
            ("etc/tuned/active_profile", "outside\n"),
            ("proc/7/root/etc/tuned/active_profile", "inside\n"),
            (
                "proc/7/root/usr/lib/tuned/profiles/inside/tuned.conf",
                "[disk]\nreadahead=9\n",
            ),
        ],
    );
    let daemon = daemons(root.path()).remove(0);
    assert_eq!(daemon.settings, ["profile inside"]);
    assert_eq!(daemon.claims.len(), 1);
}
