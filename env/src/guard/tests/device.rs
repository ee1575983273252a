//! Settings of devices on trial.

use super::*;
use crate::guard::device::DeviceIntervention;

/// Four disks, the first two on one device and the others on another.
fn host() -> (Host, Guard) {
    let mut host = Host::new(4, 9);
    let mut other = host.window.devices[0].clone();
    other.id = "sdb".to_owned();
    host.window.devices[0].id = "sda".to_owned();
    host.window.devices.push(other);
    for row in &mut host.window.disks[2..] {
        row.device = 1;
    }
    let mut guard = Guard::new(&calm());
    for _ in 0..10 {
        pass(&mut host, &mut guard, [1.0; 4]);
    }
    (host, guard)
}

fn pass(host: &mut Host, guard: &mut Guard, factors: [f64; 4]) -> Vec<DeviceIntervention> {
    host.pass(0.03, &factors);
    guard.observe(&host.window);
    guard.observe_devices(&host.window)
}

#[test]
fn a_setting_that_makes_one_disk_of_the_device_worse_goes_back() {
    let (mut host, mut guard) = host();
    guard.device_changed(host.now, "sda", 1);
    let named = pass(&mut host, &mut guard, [0.5, 2.5, 1.0, 1.0]);
    assert_eq!(named.len(), 1);
    let ids = &host.obs.disk_ids;
    assert_eq!((&named[0].device[..], &named[0].disk), ("sda", &ids[1]));
    // Named until it has gone back, and then no more.
    let again = pass(&mut host, &mut guard, [0.5, 2.5, 1.0, 1.0]);
    assert_eq!(again.len(), 1);
    guard.device_went_back(host.now, "sda", 1);
    assert_eq!(pass(&mut host, &mut guard, [1.0; 4]), []);
    assert_eq!(
        guard.admit_device(host.now, "sda", 1),
        Err(Held::Dwell {
            wait: calm().dwell - WINDOW
        })
    );
    assert_eq!(guard.admit_device(host.now, "sda", 2), Ok(()));
}

#[test]
fn what_happens_to_other_devices_too_is_not_blamed_on_the_setting() {
    let (mut host, mut guard) = host();
    guard.device_changed(host.now, "sda", 1);
    for _ in 0..4 {
        assert_eq!(pass(&mut host, &mut guard, [2.5; 4]), []);
    }
}

#[test]
fn while_a_device_is_judged_neither_it_nor_its_disks_are_changed() {
    let (mut host, mut guard) = host();
    let is_open = |host: &Host, guard: &Guard, row: usize| {
        host.restricted(guard).masks.disks[[row, 1]].is_allowed()
    };
    guard.device_changed(host.now, "sda", 1);
    assert!(!is_open(&host, &guard, 0) && !is_open(&host, &guard, 1));
    assert!(is_open(&host, &guard, 2) && is_open(&host, &guard, 3));
    let held = guard.admit_device(host.now, "sda", 2);
    assert_eq!(held, Err(Held::OnTrial { wait: calm().dwell }));
    assert_eq!(guard.admit_device(host.now, "sdb", 2), Ok(()));
    for _ in 0..3 {
        pass(&mut host, &mut guard, [1.0; 4]);
    }
    assert!(is_open(&host, &guard, 0));
    assert_eq!(guard.admit_device(host.now, "sda", 2), Ok(()));

    // Nor is a device while a disk on it is on trial.
    host.change(&mut guard, 0, 3);
    let held = guard.admit_device(host.now, "sda", 2);
    assert_eq!(held, Err(Held::OnTrial { wait: calm().dwell }));
}

#[test]
fn settings_of_devices_count_in_the_rate_and_in_the_breaker() {
    let (mut host, mut guard) = host();
    for setting in 0..12 {
        assert_eq!(guard.admit_device(host.now, "sdc", setting), Ok(()));
        guard.device_changed(host.now, "sdc", setting);
    }
    let wait = Duration::from_secs(60);
    assert_eq!(guard.admit(host.now, 1), Err(Held::Rate { wait }));
    host.now += wait;
    for _ in 0..3 {
        guard.device_went_back(host.now, "sda", 1);
    }
    let wait = calm().breaker.pause;
    assert_eq!(guard.admit(host.now, 1), Err(Held::Breaker { wait }));
}
