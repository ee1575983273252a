//! A guest with an emulated NVMe controller, in which `blkpilot topology` looks at what a real NVMe
//! driver shows. What is checked is read by busybox, or said by the kernel in debugfs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::path::{Path, PathBuf};

use blkpilot_tests::fixture::{FixtureError, NvmeGuest};
use blkpilot_tests::live;
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_blkpilot-under-test");

const COMMANDS: [&str; 6] = [
    "blkpilot topology --json",
    "mount -t debugfs debug /sys/kernel/debug && blkpilot topology --json",
    "cd /sys/block/nvme0n1/mq && for queue in *; do echo $queue: $(cat $queue/cpu_list); done",
    "cat /proc/interrupts",
    "cat /sys/kernel/debug/block/nvme0n1/hctx*/type",
    "blkpilot topology --queues",
];

fn device<'a>(report: &'a Value, name: &str) -> &'a Value {
    let devices = report["devices"].as_array().unwrap();
    devices
        .iter()
        .find(|device| device["name"] == name)
        .unwrap()
}

fn each(list: &Value, key: &str) -> Vec<String> {
    let text = |item: &Value| item[key].as_str().unwrap().to_owned();
    list.as_array().unwrap().iter().map(text).collect()
}

/// What the commands print in the guest; `None` after saying loudly that the test is skipped.
fn run(test: &str, guest: &NvmeGuest, commands: &[&str]) -> Option<Vec<String>> {
    match guest.run(&[("blkpilot", Path::new(BINARY))], commands) {
        Ok(outputs) => Some(outputs),
        Err(FixtureError::Unavailable(unavailable)) => {
            live::skip(test, &unavailable.reason);
            None
        }
        Err(broken) => panic!("live test {test}: the fixture is broken: {broken}"),
    }
}

#[test]
fn queues_interrupts_and_namespaces_of_a_real_nvme_driver_are_found() {
    let guest = NvmeGuest {
        vcpus: 4,
        controllers: 1,
        max_ioqpairs: 3,
        namespaces: 2,
        poll_queues: 1,
    };
    let Some(outputs) = run("live_nvme", &guest, &COMMANDS) else {
        return;
    };
    let derived: Value = serde_json::from_str(&outputs[0]).unwrap();
    let told: Value = serde_json::from_str(&outputs[1]).unwrap();
    let first = device(&derived, "nvme0n1");

    // As many queues as the controller offers, one of them for polling.
    let queues = first["queues"].as_array().unwrap();
    assert_eq!(queues.len(), 3, "{first}");
    assert_eq!(
        each(&first["queues"], "kind"),
        ["default", "default", "poll"]
    );
    assert_eq!(first["io_poll"], true);
    assert_eq!(first["queue_kinds"]["validity"], "estimated");
    for line in outputs[2].lines() {
        let (index, cpus) = line.split_once(": ").unwrap();
        let queue = &queues[index.parse::<usize>().unwrap()];
        let spelt: Vec<String> = cpus.split(", ").map(str::to_owned).collect();
        let ours: blkpilot_host::CpuSet = queue["cpus"].as_str().unwrap().parse().unwrap();
        assert_eq!(
            ours.iter().map(|cpu| cpu.to_string()).collect::<Vec<_>>(),
            spelt,
            "{line}"
        );
        assert!(queue["tags"].as_u64().unwrap() > 0);
    }
    assert_eq!(outputs[2].lines().count(), 3);
    assert_eq!(queues[2]["cpus"], "0-3", "every CPU can poll");

    // What is derived from the driver's parameters is what the kernel itself says.
    let kernel = device(&told, "nvme0n1");
    let types: Vec<&str> = outputs[4].lines().collect();
    assert_eq!(each(&kernel["queues"], "kind"), types);
    assert_eq!(each(&first["queues"], "kind"), types);
    assert_eq!(kernel["queue_kinds"]["validity"], "valid");

    // The admin queue and each queue that is not polled have an interrupt.
    let interrupts = first["interrupts"].as_array().unwrap();
    let handlers: Vec<&str> = interrupts
        .iter()
        .map(|interrupt| interrupt["handlers"][0].as_str().unwrap())
        .collect();
    assert_eq!(handlers, ["nvme0q0", "nvme0q1", "nvme0q2"]);
    for interrupt in interrupts {
        let start = format!("{}:", interrupt["number"]);
        let of = |line: &&str| line.trim_start().starts_with(&start);
        let line = outputs[3].lines().find(of).unwrap();
        assert!(
            line.ends_with(interrupt["handlers"][0].as_str().unwrap()),
            "{line}"
        );
    }
    // Each goes to one of the CPUs that submit to its queue.
    for (queue, interrupt) in queues.iter().zip(&interrupts[1..]) {
        let list = |value: &Value| {
            value["cpus"]
                .as_str()
                .unwrap()
                .parse::<blkpilot_host::CpuSet>()
                .unwrap()
        };
        let (from, to) = (list(queue), list(interrupt));
        assert!(
            !to.is_empty() && to.intersection(&from) == to,
            "{queue} {interrupt}"
        );
    }

    // Two namespaces of one controller.
    for name in ["nvme0n1", "nvme0n2"] {
        let namespace = device(&derived, name);
        assert_eq!(namespace["kind"], "nvme");
        assert_eq!(namespace["class"], "nvme");
        assert_eq!(namespace["size_bytes"], 16 << 20);
        assert_eq!(namespace["model"], "QEMU NVMe Ctrl");
        assert!(namespace["firmware"].is_string(), "{namespace}");
        let controllers = namespace["controllers"].as_array().unwrap();
        assert_eq!(controllers.len(), 1);
        assert_eq!(controllers[0]["name"], "nvme0");
        assert_eq!(controllers[0]["transport"], "pcie");
        let namespaces = controllers[0]["namespaces"].as_array().unwrap();
        assert_eq!(namespaces, &["nvme0n1", "nvme0n2"]);
    }

    // Channels are the cores of the guest, with the queues that they submit to.
    let channels = derived["channels"].as_array().unwrap();
    assert_eq!(channels.len(), 4);
    let queue_of = |channel: &Value| channel["queues"]["nvme0n1"].clone();
    let of_channels: Vec<Value> = channels.iter().map(queue_of).collect();
    let wanted = [[0], [0], [1], [1]].map(|queue| serde_json::json!(queue));
    assert_eq!(
        of_channels, wanted,
        "ordinary requests get to no poll queue"
    );
    assert!(outputs[5].contains("2 default, 1 poll"), "{}", outputs[5]);
    assert!(outputs[5].contains("nvme0q2"), "{}", outputs[5]);
}

#[test]
fn a_namespace_behind_two_controllers_leads_to_both_paths() {
    let guest = NvmeGuest {
        vcpus: 2,
        controllers: 2,
        max_ioqpairs: 2,
        namespaces: 1,
        poll_queues: 0,
    };
    let commands = [
        "blkpilot topology --json",
        "ls /sys/block",
        "cat /proc/diskstats",
    ];
    let Some(outputs) = run("live_nvme_multipath", &guest, &commands) else {
        return;
    };
    let report: Value = serde_json::from_str(&outputs[0]).unwrap();
    let devices = report["devices"].as_array().unwrap();
    let is_head = |device: &&Value| device["kind"] == "nvme-multipath";
    let head = devices.iter().find(is_head).unwrap();
    let mut paths = each(&head["stack"]["below"], "name");
    assert_eq!(paths.len(), 2, "{head}");
    assert_eq!(head["queues"].as_array().unwrap().len(), 0);
    assert_eq!(each(&head["controllers"], "name"), ["nvme0", "nvme1"]);
    for path in &paths {
        let path = device(&report, path);
        assert_eq!(path["kind"], "nvme");
        assert_eq!(each(&path["queues"], "kind"), ["default"; 2]);
        assert_eq!(path["controllers"].as_array().unwrap().len(), 1);
    }
    // There is nothing else, and the kernel counts the paths too.
    paths.push(head["name"].as_str().unwrap().to_owned());
    paths.sort();
    let mut listed: Vec<&str> = outputs[1]
        .split_whitespace()
        .filter(|name| name.starts_with("nvme"))
        .collect();
    listed.sort_unstable();
    assert_eq!(listed, paths);
    assert!(
        paths
            .iter()
            .all(|name| outputs[2].contains(&format!(" {name} "))),
        "{}",
        outputs[2]
    );
}

/// A kernel may have them built in.
const LOAD: &str = "for module in loop dm-mod; do \
    test ! -e /lib/modules/$module.ko || insmod /lib/modules/$module.ko; done; \
    grep -q device-mapper /proc/misc && grep -q loop /proc/devices";

/// A linear mapping, a stripe beside it, and on the first a file system with a file as a loop device.
const STACK: [&str; 3] = [
    "export DM_DISABLE_UDEV=1; dmsetup create vg-data --uuid LVM-data --table '0 8192 linear /dev/nvme0n1 0'",
    "export DM_DISABLE_UDEV=1; dmsetup create vg-wide --uuid LVM-wide --table '0 16384 striped 2 128 /dev/nvme0n1 8192 /dev/nvme0n2 8192'",
    "mkdir -p /mnt && mke2fs -F /dev/mapper/vg-data && mount -t ext4 /dev/mapper/vg-data /mnt \
     && dd if=/dev/zero of=/mnt/disk.img bs=64k count=16 && losetup /dev/loop0 /mnt/disk.img",
];

const LOOK: [&str; 2] = ["blkpilot topology", "dmsetup deps -o devname vg-wide"];

#[test]
fn device_mapper_file_systems_and_loop_devices_are_resolved_to_the_namespaces() {
    let test = "live_nvme_device_mapper";
    let guest = NvmeGuest {
        vcpus: 2,
        controllers: 1,
        max_ioqpairs: 2,
        namespaces: 2,
        poll_queues: 0,
    };
    let Some(dmsetup) = in_path("dmsetup") else {
        return live::skip(
            test,
            "`dmsetup` is missing (package dmsetup): run scripts/setup.sh",
        );
    };
    let programs = [("blkpilot", Path::new(BINARY)), ("dmsetup", &dmsetup)];
    let commands = [&[LOAD][..], &STACK, &LOOK].concat();
    let outputs = match guest.run(&programs, &commands) {
        Ok(outputs) => outputs,
        Err(FixtureError::Unavailable(unavailable)) => {
            return live::skip(test, &unavailable.reason);
        }
        Err(FixtureError::Command { command, .. }) if command == LOAD => {
            let reason =
                "the guest has no device mapper or loop devices: run scripts/build-guest.sh";
            return live::skip(test, reason);
        }
        Err(broken) => panic!("live test {test}: the fixture is broken: {broken}"),
    };
    let [.., shown, below] = &outputs[..] else {
        panic!("{outputs:?}")
    };
    let row = |name: &str| {
        let row = shown
            .lines()
            .find(|line| line.split_whitespace().next() == Some(name));
        row.unwrap_or_else(|| panic!("no {name} in {shown}")).trim()
    };
    assert!(
        row("dm-0").contains("LVM vg-data") && row("dm-0").ends_with("nvme0n1"),
        "{shown}"
    );
    assert!(row("dm-1").ends_with("nvme0n1, nvme0n2"), "{shown}");
    assert!(
        below.contains("(nvme0n1)") && below.contains("(nvme0n2)"),
        "{below}"
    );
    let stack = "/mnt/disk.img on ext4 on dm-0 (LVM vg-data) on nvme0n1";
    assert!(row("loop0").ends_with(stack), "{shown}");
    assert!(row("loop0").contains("through the page cache"), "{shown}");
}

fn in_path(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|dir| dir.join(tool));
    found.find(|file| file.is_file())
}
