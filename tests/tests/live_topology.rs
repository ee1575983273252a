//! Stacks of block devices made for the test, and of guests' disks, resolved on the real machine.
//! What is checked against is said by findmnt, losetup and qemu-img; device mapper is for the
//! guest of `live_nvme.rs`, since not every kernel of a host has it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use blkpilot_host::{
    BackingDevice, BootClock, Hypervisor, Libvirt, LiveHost, LiveHostConfig, Resolver, Scope,
};
use blkpilot_tests::fixture::{DiskSpec, Fixture, GuestSpec, ImageFormat};
use blkpilot_tests::live;
use serde_json::Value;

const BLKPILOT: &str = env!("CARGO_BIN_EXE_blkpilot-under-test");

/// What a tool prints, or the first line of what is wrong.
fn tool(name: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(name)
        .args(args)
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(message.lines().next().unwrap_or(name).to_owned())
}

/// A device that goes when this is dropped.
struct Made {
    path: PathBuf,
}

impl Drop for Made {
    fn drop(&mut self) {
        let path = self.path.to_str().unwrap_or_default();
        let _ = tool("losetup", &["--detach", path]);
    }
}

impl Made {
    fn name(&self) -> String {
        let real = std::fs::canonicalize(&self.path).unwrap();
        real.file_name().unwrap().to_string_lossy().into_owned()
    }
}

/// A loop device over a file, with these options besides.
fn loop_device(file: &Path, options: &[&str]) -> Result<Made, String> {
    let file = file.to_str().unwrap();
    let path = tool("losetup", &[options, &["--find", "--show", file]].concat())?;
    Ok(Made { path: path.into() })
}

/// Type of the file system of a path and the device that it stands on.
fn mounted_on(path: &Path) -> Result<(String, String), String> {
    let found = tool(
        "findmnt",
        &["-no", "FSTYPE,SOURCE", "--target", path.to_str().unwrap()],
    )?;
    let (kind, source) = found.split_once(' ').ok_or("findmnt names no source")?;
    match source.trim().strip_prefix("/dev/") {
        Some(device) if !device.contains(['/', '[']) => Ok((kind.to_owned(), device.to_owned())),
        _ => Err(format!(
            "{} lies on {found}, not on a plain device",
            path.display()
        )),
    }
}

fn resolver() -> Resolver {
    Resolver::new(Path::new("/sys"), Path::new("/proc"))
}

#[test]
fn a_loop_device_is_resolved_to_the_device_of_its_file() {
    let test = "live_topology_loop";
    if !live::is_possible(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk.img");
    File::create(&file).unwrap().set_len(8 << 20).unwrap();
    // Where it does not lie on a plain device, what is below the loop is checked against itself alone.
    let below = match mounted_on(&file) {
        Ok((kind, device)) => format!("{} on {kind} on {device}", file.display()),
        Err(_) => resolver().image(&file).to_string(),
    };
    let buffered = match loop_device(&file, &[]) {
        Ok(made) => made,
        Err(reason) => {
            return live::skip(test, &format!("no loop device can be made here: {reason}"));
        }
    };
    let stack = resolver().image(&buffered.path);
    let wanted = format!("{} (through the page cache) on {below}", buffered.name());
    assert!(
        stack.to_string().starts_with(&wanted),
        "{stack} instead of {wanted}"
    );
    let works = BackingDevice::of_image(&resolver(), &buffered.path).unwrap();
    assert_eq!(works.name, buffered.name());

    // A file system that cannot do direct I/O leaves nothing more to check.
    let Ok(direct) = loop_device(&file, &["--direct-io=on"]) else {
        return;
    };
    let stack = resolver().image(&direct.path);
    assert!(stack.to_string().contains("(direct I/O)"), "{stack}");
    let works = BackingDevice::of_image(&resolver(), &direct.path).unwrap();
    assert_eq!(works, BackingDevice::of_image(&resolver(), &file).unwrap());
}

fn topology(uri: &str) -> (Value, Output) {
    let run = |args: &[&str]| Command::new(BLKPILOT).args(args).output().unwrap();
    let json = run(&["topology", "--libvirt", uri, "--json"]);
    assert!(
        json.status.success(),
        "{}",
        String::from_utf8_lossy(&json.stderr)
    );
    let people = run(&["topology", "--libvirt", uri]);
    (serde_json::from_slice(&json.stdout).unwrap(), people)
}

fn paths(disk: &Value) -> Vec<String> {
    let images = disk["images"].as_array().unwrap().iter();
    images
        .map(|image| {
            format!(
                "{} {}",
                image["format"].as_str().unwrap(),
                image["path"].as_str().unwrap()
            )
        })
        .collect()
}

/// The device of the guest that opted in, as the policy sees it: what diskstats say of this one.
fn telemetry_counts_at(fixture: &Fixture, device: &str) {
    let uri = fixture.uri();
    let connector = move || Ok(Arc::new(Libvirt::connect(&uri)?) as Arc<dyn Hypervisor>);
    let dir = tempfile::tempdir().unwrap();
    let config = LiveHostConfig::new(dir.path().join("journal.db"));
    let (mut host, _) = LiveHost::open(config, Box::new(connector), Box::new(BootClock)).unwrap();
    let reads = || {
        let text = std::fs::read_to_string("/proc/diskstats").unwrap();
        let fields = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut of_device = fields.filter(|fields| fields[2] == device);
        of_device.next().unwrap()[3].parse::<u64>().unwrap()
    };
    let before = reads();
    let sample = host.sample().unwrap();
    let range = before..=reads();
    let ids: Vec<&str> = sample.devices.iter().map(|row| row.id.as_str()).collect();
    assert_eq!(ids, [device]);
    assert!(
        range.contains(&sample.devices[0].reads.requests),
        "{sample:?} {range:?}"
    );
    let queues = std::fs::read_dir(format!("/sys/block/{device}/mq")).map_or(0, Iterator::count);
    assert_eq!(usize::from(sample.devices[0].hw_queues), queues);
    host.rollback(&Scope::Host).unwrap();
}

#[test]
fn disks_of_guests_are_shown_with_their_stacks_and_backing_chains() {
    let qcow2 = DiskSpec {
        format: ImageFormat::Qcow2,
        ..DiskSpec::direct("idle")
    };
    // It has not opted in: its XML is read all the same, its monitor is not.
    let spec = GuestSpec {
        opt_in: None,
        ..GuestSpec::new("stacked")
            .with_disk(qcow2)
            .with_disk(DiskSpec::direct("idle").capped(1000))
    };
    let tuned = GuestSpec::new("tuned").with_disk(DiskSpec::direct("idle"));
    let Some(fixture) = live::fixture("live_topology_guests", vec![spec, tuned]) else {
        return;
    };
    let guest = fixture.guest("stacked");
    let (image, capped) = (guest.images[0].clone(), guest.images[1].clone());
    let overlay = image.with_extension("overlay");
    let disk = format!("vda,snapshot=external,file={}", overlay.display());
    let arguments = [
        "snapshot-create-as",
        "stacked",
        "--disk-only",
        "--no-metadata",
        "--diskspec",
        &disk,
        "--diskspec",
        "vdb,snapshot=no",
    ];
    fixture.virsh(&arguments).unwrap();

    let (report, people) = topology(&fixture.uri());
    let disks = report["disks"].as_array().unwrap();
    let ids: Vec<&str> = disks
        .iter()
        .map(|disk| disk["disk"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["stacked/vda", "stacked/vdb", "tuned/vda"]);
    let wanted = [
        format!("qcow2 {}", overlay.display()),
        format!("qcow2 {}", image.display()),
    ];
    assert_eq!(paths(&disks[0]), wanted);
    let info = tool(
        "qemu-img",
        &["info", "-U", "--output=json", overlay.to_str().unwrap()],
    )
    .unwrap();
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["backing-filename"], disks[0]["images"][1]["path"]);
    assert_eq!(
        disks[1]["device"]["name"],
        capped.file_name().unwrap().to_str().unwrap()
    );
    assert_eq!(report["unreadable"], serde_json::json!({}));
    if let Ok((kind, device)) = mounted_on(&image) {
        let text = format!("qcow2 {} on {kind} on {device}", overlay.display());
        assert!(
            disks[0]["text"].as_str().unwrap().starts_with(&text),
            "{}",
            disks[0]
        );
        assert_eq!(disks[0]["complete"], true);
        telemetry_counts_at(&fixture, &device);
    }
    let people = String::from_utf8(people.stdout).unwrap();
    assert!(
        people.contains(" <- qcow2 ") && people.contains("WORKS ON"),
        "{people}"
    );

    let log = fixture.run_dir().join("log/qemu/stacked.log");
    let log = std::fs::read_to_string(log).unwrap();
    assert!(!log.contains("tainted: custom-monitor"), "{log}");
}
