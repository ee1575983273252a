//! Ids, bounds, and what the kernel says.

use std::fs;
use std::path::Path;

use super::fake::FakeDevices;
use super::*;
use crate::knob::{Knob, Purpose};
use crate::settable::Settable as _;

/// A device of sysfs with these files.
fn id(files: &[(&str, &str)]) -> Option<String> {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    stable_id(root.path())
}

#[test]
fn a_device_is_told_by_what_stays_its_own() {
    type Case<'a> = (&'a [(&'a str, &'a str)], Option<&'a str>);
    let cases: [Case<'_>; 8] = [
        (
            &[("wwid", "eui.0025385\n"), ("device/serial", "S1\n")],
            Some("wwid:eui.0025385"),
        ),
        (
            &[("device/wwid", "t10.ATA  DISK 1  \n")],
            Some("wwid:t10.ATA  DISK 1"),
        ),
        (&[("dm/uuid", "LVM-x\n")], Some("dm:LVM-x")),
        (&[("dm/uuid", "\n"), ("serial", "v1")], Some("serial:v1")),
        (
            &[("loop/backing_file", "/a b.img (deleted)\n")],
            Some("loop:/a b.img"),
        ),
        (
            &[("device/serial", "S1   \n"), ("nsid", "2\n")],
            Some("serial:S1/2"),
        ),
        (&[("device/serial", "S1\n")], Some("serial:S1")),
        (&[("queue/scheduler", "none\n")], None),
    ];
    for (files, expected) in cases {
        assert_eq!(id(files).as_deref(), expected, "{files:?}");
    }
}

#[test]
fn values_out_of_bounds_are_refused_with_the_bounds() {
    let page = page_kib();
    let unaligned = (page + 1).to_string();
    let cases = [
        (DeviceKnob::NrRequests, "3", "[4, 10240]"),
        (DeviceKnob::NrRequests, "10241", "[4, 10240]"),
        (DeviceKnob::NrRequests, "many", "[4, 10240]"),
        (DeviceKnob::ReadAhead, "4294967295", "[0, 65536]"),
        (DeviceKnob::ReadAhead, &unaligned, "multiple of a page"),
        (DeviceKnob::Wbt, "-1", "[0, 10000000]"),
        (DeviceKnob::RqAffinity, "3", "[0, 2]"),
        (DeviceKnob::Scheduler, "bfq; reboot", "name of a scheduler"),
        (DeviceKnob::Scheduler, "", "name of a scheduler"),
    ];
    for (knob, value, expected) in cases {
        let refused = knob.canonical(value).unwrap_err();
        assert!(refused.contains(expected), "{knob} = {value}: {refused}");
    }
    assert_eq!(DeviceKnob::NrRequests.canonical("064").unwrap(), "64");
    assert_eq!(
        DeviceKnob::Scheduler.canonical("mq-deadline").unwrap(),
        "mq-deadline"
    );
}

#[test]
fn only_what_a_rule_names_is_enabled_by_name_or_by_id() {
    let host = FakeDevices::new();
    host.add("loop4", "/images/4.img");
    let knobs = |knob| [knob].into();
    let rules = DeviceRules::from([
        (
            "loop:/images/3.img".to_owned(),
            knobs(DeviceKnob::Scheduler),
        ),
        ("loop3".to_owned(), knobs(DeviceKnob::Wbt)),
    ]);
    let devices = Devices::new(host.root(), rules);
    let enabled = |name: &str| devices.enabled(&devices.device(name).unwrap());
    assert_eq!(
        enabled("loop3"),
        [DeviceKnob::Scheduler, DeviceKnob::Wbt].into()
    );
    assert_eq!(enabled("loop4"), [].into());
    let changeable = devices.changeable().unwrap();
    assert_eq!(changeable, [devices.device("loop3").unwrap()]);
    assert!(devices.enables(DeviceKnob::Wbt) && !devices.enables(DeviceKnob::NrRequests));
    let device = devices.device("loop4").unwrap();
    let queue = devices.queue(&device, Purpose::Tune);
    let refused = queue.check_allowed(&Knob::Device(DeviceKnob::Scheduler));
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("loop4: scheduler") && refused.contains("[[host.device]]"),
        "{refused}"
    );
}

#[test]
fn two_paths_to_one_disk_and_a_device_without_an_id_are_refused() {
    let host = FakeDevices::new();
    host.add("loop4", "/images/3.img");
    host.add("zram0", "");
    let devices = Devices::new(host.root(), DeviceRules::new());
    let error = |name: &str| devices.device(name).unwrap_err().to_string();
    assert!(
        error("loop3").contains("loop3, loop4 all have this id"),
        "{}",
        error("loop3")
    );
    assert!(error("zram0").contains("no WWID"), "{}", error("zram0"));
    for name in ["sda", "../block/loop3", ""] {
        assert!(error(name).contains("there is none"), "{}", error(name));
    }
}

#[test]
fn what_the_kernel_refuses_names_device_setting_value_and_way_out() {
    let host = FakeDevices::new();
    let error = |writer: Writer, knob, value: &str| {
        let devices = host.inventory().devices.written_by(writer);
        let device = devices.device("loop3").unwrap();
        let queue = devices.queue(&device, Purpose::Tune);
        queue
            .write(&Knob::Device(knob), value, None)
            .unwrap_err()
            .to_string()
    };
    for (kind, way_out) in [
        (std::io::ErrorKind::InvalidInput, "choose another"),
        (std::io::ErrorKind::ResourceBusy, "try again"),
        (std::io::ErrorKind::PermissionDenied, "as root"),
        (std::io::ErrorKind::NotFound, "the device has gone"),
    ] {
        let writer = Writer::new(move |_: &Path, _: &str| Err(kind.into()));
        let refused = error(writer, DeviceKnob::NrRequests, "5000");
        let is_whole = ["loop3", "nr_requests = 5000", way_out];
        assert!(
            is_whole.iter().all(|part| refused.contains(part)),
            "{refused}"
        );
    }
    // sysfs makes no files, and neither do we.
    fs::remove_file(host.root().join("block/loop3/queue/wbt_lat_usec")).unwrap();
    assert!(error(Writer::default(), DeviceKnob::Wbt, "0").contains("the device has gone"));
    let inventory = host.inventory();
    let device = inventory.devices.device("loop3").unwrap();
    let missing = inventory
        .devices
        .queue(&device, Purpose::Tune)
        .value(DeviceKnob::Wbt);
    assert!(
        missing
            .unwrap_err()
            .to_string()
            .contains("loop3: wbt_lat_usec")
    );
}
