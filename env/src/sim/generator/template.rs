//! Hosts like those of named scenarios.

use rand::seq::IndexedRandom as _;

use super::{Generator, log_uniform};
use crate::sim::presets;
use crate::sim::scenario::{MAX_MEAN_INTERVALS, Phase, Scenario};

/// Draws a host like one of the templates, of which there is at least one. What it is made of and what its guests do,
/// one after the other, stay; how large, how much and how fast each of it is differs.
pub(super) fn draw(generator: &Generator, rng: &mut crate::Rng) -> Scenario {
    let name = generator
        .templates
        .choose(rng)
        .expect("the caller has seen a template");
    let mut host = presets::by_name(name).expect("the generator was validated");
    "generated".clone_into(&mut host.name);
    host.interval_s = generator.interval_s;
    host.steps = generator.steps;
    host.noise = generator.noise;
    host.schedulers = generator.schedulers;
    let mut scale = |value: &mut f64| *value *= factor(generator.template_spread, rng);
    let mut cache = 1.0;
    scale(&mut cache);
    for gib in [
        &mut host.memory_gib,
        &mut host.cache_gib,
        &mut host.dirty_limit_gib,
    ] {
        *gib *= cache;
    }
    for channel in &mut host.channels {
        scale(&mut channel.background_cores);
        channel.background_cores = channel.background_cores.min(f64::from(channel.cpus));
    }
    for device in &mut host.devices {
        let mut slowness = 1.0;
        scale(&mut slowness);
        device.reference.read_us *= slowness;
        device.reference.write_us *= slowness;
        device.reference.bytes_per_sec /= slowness;
        device.max_iops.iter_mut().for_each(&mut scale);
    }
    for disk in &mut host.disks {
        scale(&mut disk.vcpu_cores);
        scale(&mut disk.guest_us);
        scale(&mut disk.iothread_us);
        scale(&mut disk.capacity_gib);
        for phase in &mut disk.phases {
            vary(phase, disk.capacity_gib, &mut scale);
        }
    }
    host
}

fn vary(phase: &mut Phase, capacity_gib: f64, scale: &mut impl FnMut(&mut f64)) {
    if phase.outstanding > 0.0 {
        scale(&mut phase.outstanding);
        phase.outstanding = phase.outstanding.round().max(1.0);
    }
    phase.arrivals_per_s.iter_mut().for_each(&mut *scale);
    scale(&mut phase.think_us);
    scale(&mut phase.working_set_gib);
    phase.working_set_gib = phase.working_set_gib.min(capacity_gib);
    scale(&mut phase.mean_intervals);
    phase.mean_intervals = phase.mean_intervals.clamp(1.0, MAX_MEAN_INTERVALS);
}

/// From `1 / spread` to `spread`.
fn factor(spread: f64, rng: &mut crate::Rng) -> f64 {
    if spread > 1.0 {
        log_uniform(rng, 1.0 / spread, spread)
    } else {
        1.0
    }
}
