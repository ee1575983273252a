//! Random networks, and the fixed point's errors on them.

use blkpilot_env::Rng;
use blkpilot_env::sim::network::{
    Background, CacheUse, Channel, Class, Device, Discipline, Lane, Load, Network, Solution,
    Solver, Vcpu,
};
use blkpilot_env::sim::page_cache::HitCurve;
use rand::{RngExt as _, SeedableRng as _};

use super::{Measured, Simulation, WorkingSet};

/// Which networks are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Regime {
    /// No station is busier than 0.9.
    UpToNineTenths,
    /// Anything, also disks without think time that saturate a station.
    Any,
}

/// Relative error of each quantity of a scenario: fixed point against reference.
#[derive(Debug, Clone)]
pub(crate) struct Errors {
    pub(crate) throughput: Vec<f64>,
    pub(crate) latency: Vec<f64>,
    pub p99: Vec<f64>,
    /// Over those who use the cache, absolute in hit rate over a rate of at least 0.1.
    pub(crate) hit: Vec<f64>,
    /// Over stations busier than 0.1.
    pub(crate) utilisation: Vec<f64>,
    pub(crate) interval: f64,
}

pub(crate) struct Drawn {
    pub(crate) network: Network,
    pub(crate) sets: Vec<WorkingSet>,
}

impl Drawn {
    pub(crate) fn curves(&self) -> Vec<HitCurve> {
        let curve = |s: &WorkingSet| HitCurve::zipf(s.pages as f64, s.skew);
        self.sets.iter().map(curve).collect()
    }

    pub(crate) fn solve(&self) -> Solution {
        let mut solution = Solution::default();
        Solver::default().solve(&self.network, &self.curves(), &mut solution);
        solution
    }
}

/// A random network of the regime.
pub(crate) fn draw(seed: u64, regime: Regime) -> Drawn {
    let mut rng = Rng::seed_from_u64(seed);
    loop {
        let drawn = draw_any(&mut rng, regime);
        let solution = drawn.solve();
        let busiest = busiest(&drawn.network, &solution);
        if regime == Regime::Any || (0.3..=0.9).contains(&busiest) {
            return drawn;
        }
    }
}

fn busiest(network: &Network, solution: &Solution) -> f64 {
    let cpus = solution.channel_cores.iter().zip(&network.channels);
    let devices = solution.devices.iter();
    let vcpus = solution.flows.iter().zip(&network.classes);
    cpus.map(|(busy, c)| busy / c.cpus)
        .chain(solution.lane_busy.iter().copied())
        .chain(devices.flat_map(|d| [d.server_utilisation, d.transfer_utilisation]))
        .chain(vcpus.map(|(f, c)| f.throughput * c.vcpu.request_s))
        .fold(0.0, f64::max)
}

fn draw_any(rng: &mut Rng, regime: Regime) -> Drawn {
    let disks = rng.random_range(1..=6);
    let channels = rng.random_range(1..=4);
    let devices = rng.random_range(1..=2);
    let lanes = rng.random_range(1..=disks);
    let mut sets = Vec::new();
    let devices: Vec<Device> = (0..devices).map(|_| draw_device(rng)).collect();
    let lanes: Vec<Lane> = (0..lanes).map(|_| draw_lane(channels, rng)).collect();
    let classes: Vec<Class> = (0..disks)
        .map(|i| {
            let lane = if i < lanes.len() {
                i
            } else {
                rng.random_range(0..lanes.len())
            };
            draw_class(lane, channels, &devices, &mut sets, regime, rng)
        })
        .collect();
    let pages: f64 = sets.iter().map(|s| s.pages as f64 * 4096.0).sum();
    Drawn {
        network: Network {
            classes,
            lanes,
            channels: (0..channels)
                .map(|_| Channel {
                    cpus: f64::from(rng.random_range(1..=2)),
                    background_cores: if rng.random::<f64>() < 0.5 {
                        0.0
                    } else {
                        rng.random_range(0.05..0.6)
                    },
                })
                .collect(),
            devices,
            cache_bytes: pages.max(1.0) * rng.random_range(0.1..1.1),
            costs: Default::default(),
        },
        sets,
    }
}

fn draw_lane(channels: usize, rng: &mut Rng) -> Lane {
    let is_bound = rng.random::<f64>() < 0.75;
    Lane {
        channel: is_bound.then(|| rng.random_range(0..channels)),
        is_remote: rng.random::<f64>() < 0.2,
        is_polling: rng.random::<f64>() < 0.5,
    }
}

fn draw_device(rng: &mut Rng) -> Device {
    let disciplines = [
        Discipline::Fifo,
        Discipline::Fifo,
        Discipline::ReadsFirst {
            reads_per_write: 2.0,
        },
        Discipline::ReadsFirst {
            reads_per_write: 16.0,
        },
        Discipline::Fair,
    ];
    let has_background = rng.random::<f64>() < 0.25;
    Device {
        parallelism: [1.0, 4.0, 10.0, 32.0, 64.0][rng.random_range(0..5)],
        discipline: disciplines[rng.random_range(0..5)],
        background: if has_background {
            Background {
                rate_per_s: log_uniform(rng, 200.0, 3000.0),
                server_s: log_uniform(rng, 20e-6, 200e-6),
                transfer_s: log_uniform(rng, 5e-6, 100e-6),
            }
        } else {
            Background::default()
        },
    }
}

fn draw_class(
    lane: usize,
    channels: usize,
    devices: &[Device],
    sets: &mut Vec<WorkingSet>,
    regime: Regime,
    rng: &mut Rng,
) -> Class {
    let device = rng.random_range(0..devices.len());
    let reads = [1.0, 0.0, 0.7, 0.3][rng.random_range(0..4)];
    let is_pinned = rng.random::<f64>() < 0.5;
    // The same work per device whatever its parallelism, so that all kinds of it get loaded.
    let read_s = log_uniform(rng, 10e-6, 100e-6) * devices[device].parallelism.sqrt();
    let cache = (rng.random::<f64>() < 0.4).then(|| {
        sets.push(WorkingSet {
            pages: log_uniform(rng, 500.0, 20_000.0) as usize,
            skew: rng.random_range(0.0..1.2),
        });
        CacheUse {
            curve: sets.len() - 1,
            page_bytes: 4096.0,
            cached_bytes: f64::INFINITY,
        }
    });
    let synchronous = if cache.is_some() {
        rng.random_range(0.0..1.0)
    } else {
        1.0
    };
    Class {
        load: draw_load(regime, rng),
        vcpu: Vcpu {
            channel: is_pinned.then(|| rng.random_range(0..channels)),
            request_s: log_uniform(rng, 1e-6, 10e-6),
            background_cores: rng.random_range(0.0..0.4),
        },
        lane,
        lane_s: log_uniform(rng, 4e-6, 20e-6),
        delay_s: if cache.is_some() { 2e-6 } else { 0.0 },
        device,
        visits: [reads, (1.0 - reads) * synchronous],
        server_s: [read_s, read_s * log_uniform(rng, 0.2, 2.0)],
        transfer_s: [
            log_uniform(rng, 0.5e-6, 30e-6),
            log_uniform(rng, 0.5e-6, 30e-6),
        ],
        cache,
    }
}

fn draw_load(regime: Regime, rng: &mut Rng) -> Load {
    if rng.random::<f64>() < 0.3 {
        return Load::Open {
            rate_per_s: log_uniform(rng, 500.0, 20_000.0),
            limit: 256.0,
        };
    }
    let outstanding = [1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0][rng.random_range(0..7)];
    let thinks = regime == Regime::UpToNineTenths || rng.random::<f64>() < 0.5;
    Load::Closed {
        outstanding,
        think_s: if thinks {
            log_uniform(rng, 20e-6, 3e-3)
        } else {
            1e-9
        },
    }
}

fn log_uniform(rng: &mut Rng, low: f64, high: f64) -> f64 {
    rng.random_range(low.ln()..high.ln()).exp()
}

/// The reference, run longer until its own interval is narrow enough or `most_requests` are done.
pub(crate) fn reference(
    drawn: &Drawn,
    seed: u64,
    first_requests: f64,
    most_requests: f64,
) -> Measured {
    let rate: f64 = drawn.solve().flows.iter().map(|f| f.throughput).sum();
    let mut requests = first_requests;
    loop {
        let simulation = Simulation::new(&drawn.network, &drawn.sets, seed);
        let measured = simulation.measure(requests / rate);
        if measured.interval < 0.02 || requests >= most_requests {
            return measured;
        }
        requests = (requests * 3.0).min(most_requests);
    }
}

pub(crate) fn errors(drawn: &Drawn, solution: &Solution, measured: &Measured) -> Errors {
    let relative = |ours: f64, theirs: f64| ours / theirs - 1.0;
    let flows = || solution.flows.iter().enumerate();
    let of = |ours: fn(&blkpilot_env::sim::network::Flow) -> f64, theirs: &[f64]| {
        flows().map(|(i, f)| relative(ours(f), theirs[i])).collect()
    };
    let hit = flows()
        .filter(|(i, _)| {
            let class = &drawn.network.classes[*i];
            class.cache.is_some() && class.visits[0] > 0.0
        })
        .map(|(i, f)| (f.hit - measured.hit[i]) / measured.hit[i].max(0.1))
        .collect();
    let mut utilisation = Vec::new();
    let mut add = |ours: f64, theirs: f64| {
        if theirs > 0.1 {
            utilisation.push(relative(ours, theirs));
        }
    };
    for (d, device) in solution.devices.iter().enumerate() {
        add(device.server_utilisation, measured.servers[d]);
        add(device.transfer_utilisation, measured.transfer[d]);
    }
    for (l, cores) in solution.lane_cores.iter().enumerate() {
        add(*cores, measured.lane_cores[l]);
    }
    for (k, cores) in solution.channel_cores.iter().enumerate() {
        let cpus = drawn.network.channels[k].cpus;
        add(cores / cpus, measured.channel_cores[k] / cpus);
    }
    Errors {
        throughput: of(|f| f.throughput, &measured.throughput),
        latency: of(|f| f.latency_s, &measured.latency_s),
        p99: of(|f| f.p99_s, &measured.p99_s),
        hit,
        utilisation,
        interval: measured.interval,
    }
}
