//! An episode of a simulated host: what is in force, and what one interval does to it.

use std::time::Duration;

use rand::RngExt as _;

use super::boot::{first_sample, lanes_of};
use super::network::{Channel, Class, Device, Discipline, Lane, Network, Solution};
use super::page_cache::{CacheUser, Popularity, characteristic_time};
use super::scenario::{DiskModel, Phase, Scenario};
use super::served::{Served, add};
use crate::decision::JointAction;
use crate::sample::{Cache, DiskSettings, HostSample, Polling};
use crate::spec::Level;

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
/// Size of one write-back request, bytes: the kernel coalesces dirty pages.
const WRITEBACK_BYTES: f64 = 128.0 * 1024.0;
/// Most of the device that write-back takes from foreground requests.
const MAX_WRITEBACK_LOAD: f64 = 0.8;
/// Time in which the kernel aims to write dirty pages back, seconds (`dirty_writeback_centisecs`).
const WRITEBACK_HORIZON_S: f64 = 5.0;
/// How long a disk stands still while it is reopened with another cache mode, seconds.
const REOPEN_STALL_S: f64 = 0.004;
/// Share of a direct disk's stale pages that are reclaimed per interval.
const STALE_RECLAIM: f64 = 0.2;
/// Passes in which hit rates and vCPU load follow the throughputs.
const COUPLING_PASSES: u32 = 12;

#[derive(Debug)]
pub(super) struct Episode {
    pub(super) scenario: Scenario,
    pub(super) step: u32,
    disks: Vec<DiskState>,
    /// Lane of each disk, and the number of disks on each lane.
    lane_of: Vec<usize>,
    lane_sizes: Vec<usize>,
    /// Share of writes in what each device did in the last interval.
    device_write_share: Vec<f64>,
    characteristic_time: f64,
    pub(super) sample: HostSample,
}

#[derive(Debug)]
struct DiskState {
    phase: usize,
    popularity: Vec<Popularity>,
    throughput: f64,
    cached_bytes: f64,
    dirty_bytes: f64,
    /// Buffered writes accepted in the last interval, bytes per second.
    inflow: f64,
    /// Time for which the disk stands still at the start of the next interval.
    stall_s: f64,
    /// Whether its dirty pages are written out so that it can go back to direct. New writes wait for
    /// the device meanwhile.
    is_flushing: bool,
}

impl DiskState {
    fn new(model: &DiskModel) -> Self {
        let popularity = model
            .phases
            .iter()
            .map(|p| Popularity::zipf(p.working_set_gib * GIB / page_bytes(p), p.skew));
        Self {
            phase: 0,
            popularity: popularity.collect(),
            throughput: 0.0,
            cached_bytes: 0.0,
            dirty_bytes: 0.0,
            inflow: 0.0,
            stall_s: 0.0,
            is_flushing: false,
        }
    }
}

fn page_bytes(phase: &Phase) -> f64 {
    (phase.request_kib * 1024.0).max(4096.0)
}

impl Episode {
    pub(super) fn start(scenario: Scenario, rng: &mut crate::Rng) -> Self {
        let (lane_of, lanes) = lanes_of(&scenario);
        let mut lane_sizes = vec![0; lanes];
        for lane in &lane_of {
            lane_sizes[*lane] += 1;
        }
        let mut disks: Vec<DiskState> = scenario.disks.iter().map(DiskState::new).collect();
        for (state, model) in disks.iter_mut().zip(&scenario.disks) {
            state.phase = rng.random_range(0..model.phases.len());
        }
        Self {
            sample: first_sample(&scenario),
            device_write_share: vec![0.0; scenario.devices.len()],
            characteristic_time: 1.0,
            step: 0,
            disks,
            lane_of,
            lane_sizes,
            scenario,
        }
    }

    /// Fills the page cache with as much of each buffered disk as it can hold at the rates to come.
    pub(super) fn warm_page_cache(&mut self) {
        for (state, sample) in self.disks.iter_mut().zip(&self.sample.disks) {
            if sample.settings.cache == Cache::Buffered {
                // The first interval cuts it down to what is resident in the steady state.
                state.cached_bytes = f64::MAX;
            }
        }
    }

    /// The phase that each disk is in.
    pub(super) fn phases(&self) -> Vec<usize> {
        self.disks.iter().map(|d| d.phase).collect()
    }

    pub(super) fn interval(&self) -> Duration {
        Duration::from_secs_f64(self.scenario.interval_s)
    }

    pub(super) fn apply(&mut self, action: &JointAction) {
        for (row, (sample, state)) in self
            .sample
            .disks
            .iter_mut()
            .zip(&mut self.disks)
            .enumerate()
        {
            let levels: [Level; 3] = std::array::from_fn(|head| action.disks[[row, head]]);
            let wanted =
                DiskSettings::from_levels(levels).expect("check_action has seen these levels");
            // Going back to direct takes effect once the dirty pages are on the device: they are
            // written back from outside first, while the disk goes on being served.
            state.is_flushing = sample.settings.cache == Cache::Buffered
                && wanted.cache == Cache::Direct
                && state.dirty_bytes > 0.0;
            let wanted = DiskSettings {
                cache: if state.is_flushing {
                    Cache::Buffered
                } else {
                    wanted.cache
                },
                ..wanted
            };
            if wanted == sample.settings {
                continue;
            }
            if wanted.cache != sample.settings.cache {
                state.stall_s = REOPEN_STALL_S;
            }
            sample.settings = wanted;
            sample.since_change = Duration::ZERO;
        }
        if action.devices.ncols() > 0 {
            for (row, device) in self.sample.devices.iter_mut().enumerate() {
                device.scheduler = action.devices[[row, 0]];
            }
        }
    }

    /// Writes the levels in force after an action was applied: what is still being prepared is not.
    pub(super) fn write_executed(&self, executed: &mut JointAction) {
        for (row, disk) in self.sample.disks.iter().enumerate() {
            for (head, level) in disk.settings.levels().into_iter().enumerate() {
                executed.disks[[row, head]] = level;
            }
        }
        for (row, head) in ndarray::indices(executed.devices.dim()) {
            executed.devices[[row, head]] = self.sample.devices[row].scheduler;
        }
    }

    /// Lets one interval pass: phases move on, the network is solved, the counters advance.
    pub(super) fn run_interval(&mut self, rng: &mut crate::Rng) {
        self.move_phases(rng);
        let noise: Vec<f64> = (0..self.disks.len())
            .map(|_| libm::exp(self.scenario.noise * standard_normal(rng)))
            .collect();
        let mut throughput: Vec<f64> = self.disks.iter().map(|d| d.throughput).collect();
        let mut hits = self.hit_rates(&throughput);
        let mut solution = Solution::default();
        for _ in 0..COUPLING_PASSES {
            let network = self.network(&noise, &hits, &throughput);
            solution = network.solve(&throughput);
            let solved: Vec<f64> = solution.flows.iter().map(|f| f.throughput).collect();
            let moved = throughput
                .iter()
                .zip(&solved)
                .any(|(a, b)| (a - b).abs() > 1e-3 * b.max(1e-9));
            throughput = solved;
            if !moved {
                break;
            }
            hits = self.hit_rates(&throughput);
        }
        let network = self.network(&noise, &hits, &throughput);
        self.advance_counters(&network, &solution, &hits);
        self.advance_cache(&hits);
    }

    fn move_phases(&mut self, rng: &mut crate::Rng) {
        for (state, model) in self.disks.iter_mut().zip(&self.scenario.disks) {
            let others = model.phases.len() - 1;
            // Drawn also where there is nowhere to go, so that one disk's phases do not shift another's.
            let (leave, next) = (rng.random::<f64>(), rng.random_range(0..others.max(1)));
            if others > 0 && leave < 1.0 / model.phases[state.phase].mean_intervals {
                state.phase = (state.phase + 1 + next) % model.phases.len();
            }
        }
    }

    fn phase(&self, disk: usize) -> &Phase {
        &self.scenario.disks[disk].phases[self.disks[disk].phase]
    }

    fn is_buffered(&self, disk: usize) -> bool {
        self.sample.disks[disk].settings.cache == Cache::Buffered
    }

    /// Hit rate and resident bytes that each disk would have in a warm cache, and its hit rate now.
    fn hit_rates(&mut self, throughput: &[f64]) -> Vec<Hit> {
        let users: Vec<CacheUser<'_>> = (0..self.disks.len())
            .map(|i| CacheUser {
                popularity: &self.disks[i].popularity[self.disks[i].phase],
                rate: if self.is_buffered(i) {
                    throughput[i].max(1.0)
                } else {
                    0.0
                },
                page_bytes: page_bytes(self.phase(i)),
            })
            .collect();
        let t = characteristic_time(
            &users,
            self.scenario.cache_gib * GIB,
            self.characteristic_time,
        );
        let hits = (0..users.len())
            .map(|i| {
                if users[i].rate == 0.0 {
                    return Hit::default();
                }
                let (resident, warm) = users[i].popularity.occupancy(users[i].rate * t);
                let resident_bytes = resident * users[i].page_bytes;
                let filled = (self.disks[i].cached_bytes / resident_bytes.max(1.0)).min(1.0);
                Hit {
                    now: warm * filled,
                    resident_bytes,
                }
            })
            .collect();
        if t.is_finite() {
            self.characteristic_time = t;
        }
        hits
    }

    fn network(&self, noise: &[f64], hits: &[Hit], throughput: &[f64]) -> Network {
        let devices = self.scenario.devices.iter().zip(&self.sample.devices);
        Network {
            classes: (0..self.disks.len())
                .map(|i| self.class(i, noise[i], &hits[i]))
                .collect(),
            lanes: self.lanes(),
            channels: self.channels(throughput),
            devices: devices
                .map(|(model, sample)| Device {
                    parallelism: model.parallelism,
                    discipline: [Discipline::Fifo, Discipline::ReadsFirst, Discipline::Fair]
                        [usize::from(sample.scheduler).min(2)],
                })
                .collect(),
            costs: self.scenario.costs,
        }
    }

    fn lanes(&self) -> Vec<Lane> {
        let mut lanes = vec![
            Lane {
                channel: None,
                is_remote: false,
                is_polling: false
            };
            self.lane_sizes.len()
        ];
        for (i, &lane) in self.lane_of.iter().enumerate() {
            let settings = self.sample.disks[i].settings;
            let channel = usize::from(settings.channel).checked_sub(1);
            let node = self.scenario.devices[self.scenario.disks[i].device].numa;
            lanes[lane] = Lane {
                channel,
                is_remote: channel.is_some_and(|k| self.scenario.channels[k].numa != node),
                is_polling: settings.polling == Polling::Adaptive,
            };
        }
        lanes
    }

    /// Channels with the load of the guests' vCPUs at given throughputs.
    fn channels(&self, throughput: &[f64]) -> Vec<Channel> {
        let cpus: f64 = self
            .scenario
            .channels
            .iter()
            .map(|c| f64::from(c.cpus))
            .sum();
        let mut channels: Vec<Channel> = self
            .scenario
            .channels
            .iter()
            .map(|c| Channel {
                cpus: f64::from(c.cpus),
                vcpu_cores: c.background_cores,
            })
            .collect();
        for (model, x) in self.scenario.disks.iter().zip(throughput) {
            let cores = model.vcpu_cores + x * model.guest_us * 1e-6;
            match model.vcpu_channel {
                Some(k) => channels[k].vcpu_cores += cores,
                None => channels
                    .iter_mut()
                    .for_each(|c| c.vcpu_cores += cores * c.cpus / cpus),
            }
        }
        for channel in &mut channels {
            channel.vcpu_cores = channel.vcpu_cores.min(channel.cpus);
        }
        channels
    }

    fn class(&self, i: usize, noise: f64, hit: &Hit) -> Class {
        let (model, phase) = (&self.scenario.disks[i], self.phase(i));
        let device = &self.scenario.devices[model.device];
        let bytes = phase.request_kib * 1024.0;
        let (read, write) = (phase.read_share, 1.0 - phase.read_share);
        let buffered = self.is_buffered(i);
        let (visits, delay_s, cpu_s) = if buffered {
            let costs = &self.scenario.costs;
            let copy_s = bytes / costs.copy_bytes_per_sec + costs.buffered_delay_us * 1e-6;
            let sync = self.synchronous_write_share(i);
            (
                [read * (1.0 - hit.now), write * sync],
                copy_s,
                costs.buffered_cpu_us * 1e-6,
            )
        } else {
            ([read, write], 0.0, 0.0)
        };
        let left = 1.0 - self.writeback_load(model.device);
        let gc = 1.0 + device.gc_inflation * self.device_write_share[model.device];
        let slow = noise * gc / left;
        let ceiling_s = device.max_iops.map_or(0.0, |iops| 1.0 / iops);
        Class {
            outstanding: phase.outstanding,
            think_s: phase.think_us * 1e-6 * noise,
            lane: self.lane_of[i],
            lane_s: (model.iothread_us * 1e-6 + cpu_s) * noise,
            delay_s,
            device: model.device,
            visits,
            server_s: [
                device.reference.read_us * 1e-6 * slow,
                device.reference.write_us * 1e-6 * slow,
            ],
            transfer_s: (bytes / device.reference.bytes_per_sec).max(ceiling_s) * noise / left,
        }
    }

    /// Share of buffered writes that wait for the device: those that a flush follows, and more and
    /// more of them as dirty pages approach the limit.
    fn synchronous_write_share(&self, disk: usize) -> f64 {
        if self.disks[disk].is_flushing {
            return 1.0;
        }
        let dirty: f64 = self.disks.iter().map(|d| d.dirty_bytes).sum();
        let full = dirty / (self.scenario.dirty_limit_gib * GIB);
        (2.0 * full - 1.0)
            .clamp(0.0, 1.0)
            .max(self.phase(disk).flush_share)
    }

    /// Write-back of one device, bytes per second.
    fn writeback_rate(&self, device: usize) -> f64 {
        // Pages that keep a disk from going back to direct are written at once.
        let is_urgent = self.of_device(device).any(|i| self.disks[i].is_flushing);
        let horizon_s = if is_urgent {
            self.scenario.interval_s.min(WRITEBACK_HORIZON_S)
        } else {
            WRITEBACK_HORIZON_S
        };
        let wanted: f64 = self
            .of_device(device)
            .map(|i| self.disks[i].dirty_bytes / horizon_s)
            .sum();
        let inflow: f64 = self.of_device(device).map(|i| self.disks[i].inflow).sum();
        let dirty: f64 = self
            .of_device(device)
            .map(|i| self.disks[i].dirty_bytes)
            .sum();
        let most = MAX_WRITEBACK_LOAD / self.writeback_load_per_byte(device);
        (wanted + inflow)
            .min(most)
            .min(dirty / self.scenario.interval_s)
    }

    fn writeback_load(&self, device: usize) -> f64 {
        self.writeback_rate(device) * self.writeback_load_per_byte(device)
    }

    fn writeback_load_per_byte(&self, device: usize) -> f64 {
        let model = &self.scenario.devices[device];
        let server = model.reference.write_us * 1e-6 / model.parallelism / WRITEBACK_BYTES;
        let ceiling = model.max_iops.map_or(0.0, |iops| 1.0 / iops) / WRITEBACK_BYTES;
        server.max(ceiling).max(1.0 / model.reference.bytes_per_sec)
    }

    fn of_device(&self, device: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.disks.len()).filter(move |i| self.scenario.disks[*i].device == device)
    }

    fn advance_counters(&mut self, network: &Network, solution: &Solution, hits: &[Hit]) {
        let dt = self.scenario.interval_s;
        self.sample.at += Duration::from_secs_f64(dt);
        let mut device_requests = vec![[0.0; 2]; self.scenario.devices.len()];
        let mut device_queue = vec![0.0; self.scenario.devices.len()];
        for (i, (flow, class)) in solution.flows.iter().zip(&network.classes).enumerate() {
            let served = Served::new(
                flow,
                class,
                self.phase(i),
                hits[i].now,
                dt,
                self.disks[i].stall_s.min(dt),
            );
            let size = self.lane_sizes[self.lane_of[i]] as f64;
            let sample = &mut self.sample.disks[i];
            served.count(sample);
            add(
                &mut sample.iothread_cpu_ns,
                solution.lane_cores[self.lane_of[i]] / size * dt * 1e9,
            );
            add(
                &mut sample.iothread_wait_ns,
                served.requests * flow.run_delay_s * 1e9,
            );
            sample.in_flight = Ok(class.outstanding.round() as u32);
            sample.since_change = sample
                .since_change
                .saturating_add(Duration::from_secs_f64(dt));
            let device = &mut self.sample.devices[class.device];
            let counters = [&mut device.reads, &mut device.writes];
            for (direction, counters) in counters.into_iter().enumerate() {
                let requests = served.requests * class.visits[direction];
                counters.requests += requests.round() as u64;
                counters.bytes += (requests * served.request_bytes) as u64;
                counters.time_ns += (requests * served.device_s[direction] * 1e9) as u64;
                device_requests[class.device][direction] += requests;
                device_queue[class.device] += requests * served.device_s[direction] / dt;
            }
            let state = &mut self.disks[i];
            state.throughput = flow.throughput;
            state.stall_s = 0.0;
        }
        for device in 0..self.scenario.devices.len() {
            let written = self.write_back(device, dt);
            let [reads, writes] = device_requests[device];
            self.device_write_share[device] = (writes + written)
                / (reads + writes + written).max(1.0)
                * (1.0 - libm::exp(-device_queue[device]));
            let load = (device_queue[device] + self.writeback_load(device)).max(0.0);
            self.sample.devices[device].busy_ns += ((1.0 - libm::exp(-load)) * dt * 1e9) as u64;
        }
        self.advance_cpu(network, solution, dt);
    }

    /// Writes dirty pages back and returns the requests that took.
    fn write_back(&mut self, device: usize, dt: f64) -> f64 {
        let rate = self.writeback_rate(device);
        let dirty: f64 = self
            .of_device(device)
            .map(|i| self.disks[i].dirty_bytes)
            .sum();
        if dirty <= 0.0 {
            return 0.0;
        }
        let written = (rate * dt).min(dirty);
        let keep = 1.0 - written / dirty;
        let members: Vec<usize> = self.of_device(device).collect();
        for i in members {
            let state = &mut self.disks[i];
            state.dirty_bytes *= keep;
            if state.dirty_bytes < 1.0 {
                state.dirty_bytes = 0.0;
            }
            if state.dirty_bytes == 0.0 && state.is_flushing {
                let sample = &mut self.sample.disks[i];
                sample.settings.cache = Cache::Direct;
                sample.since_change = Duration::ZERO;
                state.is_flushing = false;
                state.stall_s = REOPEN_STALL_S;
            }
        }
        let requests = written / WRITEBACK_BYTES;
        let counters = &mut self.sample.devices[device].writes;
        counters.requests += requests.round() as u64;
        counters.bytes += written as u64;
        counters.time_ns +=
            (requests * self.scenario.devices[device].reference.write_us * 1e3) as u64;
        requests
    }

    fn advance_cpu(&mut self, network: &Network, solution: &Solution, dt: f64) {
        let cpus: f64 = network.channels.iter().map(|c| c.cpus).sum();
        let floating: f64 = (0..network.lanes.len())
            .filter(|l| network.lanes[*l].channel.is_none())
            .map(|l| solution.lane_cores[l])
            .sum();
        let mut stretched = 0.0_f64;
        for (k, channel) in network.channels.iter().enumerate() {
            let bound: f64 = (0..network.lanes.len())
                .filter(|l| network.lanes[*l].channel == Some(k))
                .map(|l| solution.lane_cores[l])
                .sum();
            let wanted = channel.vcpu_cores + bound + floating * channel.cpus / cpus;
            let busy = wanted.min(channel.cpus);
            stretched = stretched.max((wanted - busy) / channel.cpus);
            let sample = &mut self.sample.channels[k];
            sample.busy_ns += (busy * dt * 1e9) as u64;
            add(
                &mut sample.vcpu_ns,
                channel.vcpu_cores * busy / wanted.max(1e-9) * dt * 1e9,
            );
            self.sample.host.cpu_busy_ns += (busy * dt * 1e9) as u64;
        }
        self.sample.host.psi_cpu = Ok(stretched.min(1.0) as f32);
        let waiting: f64 = network
            .classes
            .iter()
            .zip(&solution.flows)
            .enumerate()
            .filter(|(i, _)| self.is_buffered(*i))
            .map(|(_, (_, flow))| flow.throughput * flow.device_s)
            .sum();
        self.sample.host.psi_io = Ok((1.0 - libm::exp(-waiting)) as f32);
    }

    fn advance_cache(&mut self, hits: &[Hit]) {
        let dt = self.scenario.interval_s;
        for (i, hit) in hits.iter().enumerate() {
            let (read_share, bytes) =
                (self.phase(i).read_share, self.phase(i).request_kib * 1024.0);
            let sync = self.synchronous_write_share(i);
            let buffered = self.is_buffered(i);
            let state = &mut self.disks[i];
            if buffered {
                let written = state.throughput * (1.0 - read_share) * bytes;
                let fetched = state.throughput * read_share * (1.0 - hit.now) * bytes;
                state.cached_bytes =
                    (state.cached_bytes + (written + fetched) * dt).min(hit.resident_bytes);
                state.inflow = written * (1.0 - sync);
                state.dirty_bytes += state.inflow * dt;
            } else {
                state.cached_bytes *= 1.0 - STALE_RECLAIM;
                state.inflow = 0.0;
            }
            self.sample.disks[i].cached_bytes = Ok(state.cached_bytes as u64);
            self.sample.disks[i].dirty_bytes = Ok(state.dirty_bytes as u64);
        }
        self.sample.host.dirty_bytes = self.disks.iter().map(|d| d.dirty_bytes).sum::<f64>() as u64;
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Hit {
    now: f64,
    resident_bytes: f64,
}

/// A standard normal variate by the polar method, from `libm`, so that it is the same everywhere.
fn standard_normal(rng: &mut crate::Rng) -> f64 {
    loop {
        let (u, v) = (
            2.0 * rng.random::<f64>() - 1.0,
            2.0 * rng.random::<f64>() - 1.0,
        );
        let s = u * u + v * v;
        if s > 0.0 && s < 1.0 {
            return u * libm::sqrt(-2.0 * libm::log(s) / s);
        }
    }
}
