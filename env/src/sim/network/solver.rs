//! The fixed point: all stations, the CPUs and the page cache are moved together, pass by pass, from
//! where the last solution ended. A pass costs O(classes + lanes + channels + devices) and allocates
//! nothing.

use super::class_state::{ClassState, UNKNOWNS, think_s};
use super::cpu::{Burners, Floating, Pool};
use super::device::DeviceState;
use super::lane::LaneState;
use super::mixing::Mixing;
use super::station::Station;
use super::{Load, Network, SERVICE_VARIATION, Solution};
use crate::sim::page_cache::HitCurve;

/// Most passes of the fixed point.
const MAX_PASSES: u32 = 300;
/// Change of any throughput (relative) or queue (to its population) at which it has converged.
const TOLERANCE: f64 = 1e-4;
/// How far each pass moves towards its result at first, and at least.
const DAMPING: f64 = 1.0;
const LEAST_DAMPING: f64 = 0.3;
/// Passes after which it moves less far.
const PATIENCE: u32 = 30;
/// The same for what the stations depend on in turn, relative to it.
const INNER_DAMPING: f64 = 0.75;
/// Farthest that the logarithm of the cache's characteristic time moves in a pass.
const CACHE_STEP: f64 = 1.0;
/// Its bounds: nothing is kept, everything is.
const LOG_TIME: (f64, f64) = (-60.0, 60.0);

/// Workspaces of the fixed point, kept from one solution to the next.
#[derive(Debug, Clone, Default)]
pub struct Solver {
    pub(super) classes: Vec<ClassState>,
    pub(super) lanes: Vec<LaneState>,
    pub(super) pools: Vec<Pool>,
    pub(super) burners: Vec<(Burners, f64)>,
    pub(super) floating: Floating,
    pub(super) floating_burners: Burners,
    pub(super) devices: Vec<DeviceState>,
    mixing: Mixing,
    log_time: f64,
    /// How far stretches and falls, on which the stations depend in turn, move in a pass.
    inner: f64,
}

impl Solver {
    /// Solves the network, starting from the last solution if it had as many of everything.
    /// `curves` are what the classes' `CacheUse::curve` point to.
    pub fn solve(&mut self, network: &Network, curves: &[HitCurve], solution: &mut Solution) {
        self.prepare(network);
        let mut damping = DAMPING;
        solution.converged = false;
        self.mixing.forget(UNKNOWNS * network.classes.len());
        for pass in 1..=MAX_PASSES {
            solution.passes = pass;
            let change = self.pass(network, curves, damping);
            if change < TOLERANCE {
                solution.converged = true;
                break;
            }
            if pass % PATIENCE == 0 {
                damping = (0.7 * damping).max(LEAST_DAMPING);
            }
        }
        self.finish(network, solution);
    }

    /// Forgets the last solution: the next one does not depend on it.
    pub fn forget(&mut self) {
        self.classes.clear();
    }

    fn prepare(&mut self, network: &Network) {
        let is_new = self.classes.len() != network.classes.len()
            || self.lanes.len() != network.lanes.len()
            || self.devices.len() != network.devices.len();
        self.floating_burners = Burners::default();
        self.burners
            .resize(network.channels.len(), Default::default());
        self.pools.resize(network.channels.len(), Pool::default());
        for (k, channel) in network.channels.iter().enumerate() {
            self.pools[k].cpus = channel.cpus;
            let stretch = self.burners[k].1.max(1.0);
            self.burners[k] = (Burners::default(), stretch);
            self.burners[k].0.add(channel.background_cores);
        }
        if is_new {
            self.classes.clear();
            self.classes
                .extend(network.classes.iter().map(ClassState::start));
            self.lanes.clear();
            self.lanes.resize(network.lanes.len(), LaneState::default());
            self.devices.clear();
            self.devices
                .resize(network.devices.len(), DeviceState::default());
            self.log_time = 0.0;
        }
        self.prepare_stations(network);
        for (state, class) in self.classes.iter_mut().zip(&network.classes) {
            let burners = match class.vcpu.channel {
                Some(k) => &mut self.burners[k].0,
                None => &mut self.floating_burners,
            };
            burners.add(class.vcpu.background_cores);
            state.revive(class);
        }
    }

    fn prepare_stations(&mut self, network: &Network) {
        for (state, device) in self.devices.iter_mut().zip(&network.devices) {
            let open = device.background.rate_per_s > 0.0;
            let population = if open { f64::INFINITY } else { 0.0 };
            let servers = device.parallelism;
            state.stations = [
                Station::new(servers, SERVICE_VARIATION, population),
                Station::new(1.0, 0.0, population),
            ];
        }
        for class in &network.classes {
            for station in &mut self.devices[class.device].stations {
                station.admit(class.load.limit());
            }
        }
    }

    /// One pass; returns the greatest change.
    fn pass(&mut self, network: &Network, curves: &[HitCurve], damping: f64) -> f64 {
        self.inner = INNER_DAMPING * damping;
        self.move_cache(network, curves);
        self.load_lanes(network);
        self.load_channels(network);
        self.load_devices(network);
        self.mixing.begin();
        for (i, class) in network.classes.iter().enumerate() {
            if class.load.limit() > 0.0 {
                self.meet(network, i);
                for unknown in self.classes[i].unknowns(class) {
                    self.mixing.add(unknown);
                }
            }
        }
        let mut change = self.mixing.change();
        let (steps, _) = self.mixing.steps(damping).as_chunks();
        let classes = self.classes.iter_mut().zip(&network.classes);
        let active = classes.filter(|(_, class)| class.load.limit() > 0.0);
        for ((state, class), steps) in active.zip(steps) {
            state.advance(class, steps);
        }
        for (state, device) in self.devices.iter_mut().zip(&network.devices) {
            change = change.max(state.advance_background(device, damping));
        }
        change
    }

    /// Moves the characteristic time by a Newton step in logarithms, and looks all hits up.
    fn move_cache(&mut self, network: &Network, curves: &[HitCurve]) {
        let (mut occupied, mut slope) = (0.0, 0.0);
        for (state, class) in self.classes.iter_mut().zip(&network.classes) {
            state.visits = class.visits;
            let Some(cache) = class.cache else {
                (state.hit, state.resident_bytes) = (0.0, 0.0);
                continue;
            };
            let references = libm::log(state.rate.max(1e-3)) + self.log_time;
            let at = curves[cache.curve].at(references);
            state.resident_bytes = at.pages * cache.page_bytes;
            let filled = (cache.cached_bytes / state.resident_bytes.max(1.0)).min(1.0);
            state.hit = at.hit * filled;
            state.visits[0] *= 1.0 - state.hit;
            occupied += state.resident_bytes;
            slope += at.pages_slope * cache.page_bytes;
        }
        // Where all working sets fit, the characteristic time has no upper bound.
        let fits = slope <= 1e-9 * occupied && occupied <= network.cache_bytes;
        if occupied > 0.0 && !fits {
            let step = (network.cache_bytes - occupied) / slope.max(1e-3 * occupied);
            let step = step.clamp(-CACHE_STEP, CACHE_STEP);
            self.log_time = (self.log_time + step).clamp(LOG_TIME.0, LOG_TIME.1);
        }
    }

    fn load_lanes(&mut self, network: &Network) {
        for lane in &mut self.lanes {
            *lane = LaneState {
                stretch: lane.stretch.max(1.0),
                busy: 0.0,
                ..LaneState::default()
            };
        }
        for (state, class) in self.classes.iter_mut().zip(&network.classes) {
            state.look(class);
            let lane = &mut self.lanes[class.lane];
            let (visit, busy) = (&state.lane, state.rate * state.lane.service_s);
            lane.arrivals += state.rate;
            lane.cpu += state.rate * visit.cpu_s;
            lane.busy += busy;
            lane.work += state.in_lane * visit.service_s;
            let elsewhere = state.elsewhere(class, state.in_lane);
            lane.spared += busy * visit.service_s * elsewhere;
            lane.responsive += busy * elsewhere;
            match class.load {
                Load::Closed { outstanding, .. } => lane.away += outstanding * elsewhere,
                Load::Open { .. } => {
                    lane.open += state.in_lane;
                    lane.open_busy += busy;
                }
            }
        }
        // Who finds the lane idle: of its own class each request sees one fewer.
        for (state, class) in self.classes.iter().zip(&network.classes) {
            let lane = &mut self.lanes[class.lane];
            let own = state.rate * state.lane.service_s * state.unseen;
            lane.finding_idle += state.rate * (1.0 - (lane.busy - own).clamp(0.0, 1.0));
        }
        for (lane, model) in self.lanes.iter_mut().zip(&network.lanes) {
            lane.rest(model, network.costs.poll_max_us * 1e-6);
        }
    }

    fn load_channels(&mut self, network: &Network) {
        self.floating.threads = Default::default();
        for (pool, (burners, stretch)) in self.pools.iter_mut().zip(&self.burners) {
            pool.threads = Default::default();
            burners.join(&mut pool.threads, *stretch);
        }
        let stretch = self.floating.stretch(0.0, 1.0);
        self.floating_burners
            .join(&mut self.floating.threads, stretch);
        for (lane, model) in self.lanes.iter().zip(&network.lanes) {
            let threads = match model.channel {
                Some(k) => &mut self.pools[k].threads,
                None => &mut self.floating.threads,
            };
            threads.add(1.0, lane.runnable());
        }
        for (state, class) in self.classes.iter().zip(&network.classes) {
            let threads = match class.vcpu.channel {
                Some(k) => &mut self.pools[k].threads,
                None => &mut self.floating.threads,
            };
            threads.add(1.0, state.vcpu_busy(class));
        }
        self.floating.spread(&mut self.pools);
        for (pool, (burners, stretch)) in self.pools.iter().zip(&mut self.burners) {
            *stretch += self.inner * (burners.stretch(pool, *stretch) - *stretch);
        }
        for (lane, model) in self.lanes.iter_mut().zip(&network.lanes) {
            let stretch = match model.channel {
                Some(k) => self.pools[k].stretch(lane.runnable(), lane.stretch),
                None => self.floating.stretch(lane.runnable(), lane.stretch),
            };
            lane.stretch += self.inner * (stretch - lane.stretch);
        }
    }

    fn load_devices(&mut self, network: &Network) {
        for (state, device) in self.devices.iter_mut().zip(&network.devices) {
            let visits = [0, 1].map(|s| state.background(device, s));
            for (station, visit) in state.stations.iter_mut().zip(&visits) {
                station.clear();
                station.add(visit);
            }
        }
        for (state, class) in self.classes.iter().zip(&network.classes) {
            let device = &mut self.devices[class.device];
            for (s, station) in device.stations.iter_mut().enumerate() {
                station.add(&state.at_station[s]);
            }
        }
        for (state, device) in self.devices.iter_mut().zip(&network.devices) {
            let [servers, transfer] = &mut state.stations;
            servers.close(device.discipline, 1.0);
            transfer.close(device.discipline, servers.departure_variation());
        }
    }

    /// What a request of class `i` meets on its way.
    fn meet(&mut self, network: &Network, i: usize) {
        let class = &network.classes[i];
        let (lane, model) = (&self.lanes[class.lane], &network.lanes[class.lane]);
        let (device, discipline) = (
            &self.devices[class.device],
            network.devices[class.device].discipline,
        );
        let state = &mut self.classes[i];
        let falls = state.falls(class, lane, &device.stations);
        for (fall, target) in state.fall.iter_mut().zip(falls) {
            *fall += self.inner * (target - *fall);
        }
        let vcpu_busy = state.vcpu_busy(class);
        let meeting = match class.vcpu.channel {
            Some(k) if model.channel == Some(k) => {
                state.unseen * self.pools[k].per_rival(lane.stretch)
            }
            _ => 0.0,
        };
        let stretch = match class.vcpu.channel {
            Some(k) => self.pools[k].stretch(vcpu_busy, state.vcpu_stretch),
            None => self.floating.stretch(vcpu_busy, state.vcpu_stretch),
        };
        // A request that is in the lane is not at its guest's vCPU, nor the other way round.
        let lane_stretch = (lane.stretch - meeting * vcpu_busy).max(1.0);
        let in_lane = (state.rate * state.lane.service_s).min(1.0);
        let stretch = (stretch - meeting * in_lane).max(1.0);
        state.vcpu_stretch += self.inner * (stretch - state.vcpu_stretch);
        state.away_s = state.vcpu_time(class) + think_s(class);
        state.lane.move_to(
            &lane.visit(model, &network.costs, class, state, lane_stretch),
            self.inner,
        );
        for (s, station) in device.stations.iter().enumerate() {
            let visit = &mut state.at_station[s];
            visit.fall = state.fall[s + 2];
            (state.wait_s[s], state.fair_work[s]) = station.waits(visit, discipline);
        }
        state.latency_s = state.lane.wait_s + state.lane.service_s + class.delay_s;
        for direction in 0..2 {
            state.latency_s += state.visits[direction] * state.device_s(class, direction);
        }
    }
}
