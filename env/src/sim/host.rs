//! A simulated host: runs intervals of a scenario and keeps the counters a real host would show.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};

use super::network::{Channel, Class, Device, Discipline, Flow, Lane, Network, Solution};
use super::page_cache::{CacheUser, Popularity, characteristic_time};
use super::scenario::{DiskModel, Phase, Scenario, ScenarioErrors};
use super::{Generator, presets};
use crate::decision::{JointAction, check_action};
use crate::environment::{EnvError, Environment, ResetOptions, Step};
use crate::features::{kvm_host_spec, observe};
use crate::observation::{MaskReason, Observation};
use crate::reward::{RewardConfig, score};
use crate::sample::{
    Cache, ChannelSample, DeviceSample, DiskMasks, DiskSample, DiskSettings, HostGauges,
    HostSample, LATENCY_BOUNDS_US, LATENCY_BUCKETS, OpCounters, Polling,
};
use crate::spec::{EnvSpec, Level};

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
/// Size of one write-back request, bytes: the kernel coalesces dirty pages.
const WRITEBACK_BYTES: f64 = 128.0 * 1024.0;
/// Most of the device that write-back takes from foreground requests.
const MAX_WRITEBACK_LOAD: f64 = 0.8;
/// Time in which the kernel aims to write dirty pages back, seconds (`dirty_writeback_centisecs`).
const WRITEBACK_HORIZON_S: f64 = 5.0;
/// Copying from or to the page cache, bytes per second.
const COPY_BYTES_PER_SEC: f64 = 10e9;
/// Page-cache lookup and hand-over to a worker, seconds.
const BUFFERED_DELAY_S: f64 = 1.5e-6;
/// The same in IOThread CPU.
const BUFFERED_CPU_S: f64 = 1e-6;
/// How long a disk stands still while it is reopened with another cache mode, seconds.
const REOPEN_STALL_S: f64 = 0.004;
/// Share of a direct disk's stale pages that are reclaimed per interval.
const STALE_RECLAIM: f64 = 0.2;
/// Passes in which hit rates and vCPU load follow the throughputs.
const COUPLING_PASSES: u32 = 12;

/// The I/O schedulers a simulated device offers, as levels of the device head.
pub const SCHEDULERS: [&str; 3] = ["none", "mq-deadline", "bfq"];

/// Where the scenario of an episode comes from.
#[derive(Debug, Clone, PartialEq)]
enum Source {
    Fixed(Scenario),
    Generated(Generator),
}

/// A simulated host.
#[derive(Debug)]
pub struct SimHost {
    source: Source,
    reward: RewardConfig,
    spec: EnvSpec,
    rng: crate::Rng,
    episode: Option<Episode>,
}

impl SimHost {
    /// A host with one scenario.
    ///
    /// # Errors
    /// Everything that is wrong with the scenario.
    pub fn fixed(scenario: Scenario) -> Result<Self, ScenarioErrors> {
        scenario.validate()?;
        let schedulers = scenario.schedulers;
        Ok(Self::new(Source::Fixed(scenario), schedulers))
    }

    /// A host drawn anew for each episode.
    ///
    /// # Errors
    /// Everything that is wrong with the generator.
    pub fn generated(generator: Generator) -> Result<Self, ScenarioErrors> {
        generator.validate()?;
        let schedulers = generator.schedulers;
        Ok(Self::new(Source::Generated(generator), schedulers))
    }

    fn new(source: Source, schedulers: bool) -> Self {
        let levels: Vec<String> = if schedulers {
            SCHEDULERS.map(str::to_owned).to_vec()
        } else {
            vec![]
        };
        Self {
            source,
            reward: RewardConfig::default(),
            spec: kvm_host_spec(&levels),
            rng: crate::Rng::seed_from_u64(0),
            episode: None,
        }
    }

    /// With other reward weights.
    #[must_use]
    pub fn with_reward(mut self, reward: RewardConfig) -> Self {
        self.reward = reward;
        self
    }

    /// The counters as they stand; `None` before the first reset.
    #[must_use]
    pub fn sample(&self) -> Option<&HostSample> {
        self.episode.as_ref().map(|e| &e.sample)
    }

    /// The scenario of the current episode; `None` before the first reset.
    #[must_use]
    pub fn scenario(&self) -> Option<&Scenario> {
        self.episode.as_ref().map(|e| &e.scenario)
    }

    fn draw_scenario(&mut self, options: &ResetOptions) -> Result<Scenario, EnvError> {
        let mut scenario = match &self.source {
            Source::Fixed(scenario) => scenario.clone(),
            Source::Generated(generator) => generator.draw(&mut self.rng),
        };
        for (name, value) in options {
            let refuse = |problem: String| EnvError::Option {
                name: name.clone(),
                value: value.clone(),
                problem,
            };
            match name.as_str() {
                "scenario" => {
                    scenario = presets::by_name(value).ok_or_else(|| {
                        refuse(format!("is not one of {}", presets::NAMES.join(", ")))
                    })?;
                    scenario.schedulers = !self.spec.device_heads.is_empty();
                }
                _ => {
                    return Err(refuse(
                        "the simulated host knows only the option `scenario`".to_owned(),
                    ));
                }
            }
        }
        Ok(scenario)
    }
}

impl Environment for SimHost {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<Observation, EnvError> {
        if let Some(seed) = seed {
            self.rng = crate::Rng::seed_from_u64(seed);
        }
        let scenario = self.draw_scenario(options)?;
        let mut episode = Episode::start(scenario, &mut self.rng);
        // The first window after a reset holds the transient of the baseline: it is discarded.
        episode.run_interval(&mut self.rng);
        let before = episode.sample.clone();
        episode.run_interval(&mut self.rng);
        let obs = observe(&self.spec, &before, &episode.sample, episode.interval());
        episode.last = obs.clone();
        self.episode = Some(episode);
        Ok(obs)
    }

    fn step(&mut self, action: &JointAction) -> Result<Step, EnvError> {
        let episode = self.episode.as_mut().ok_or(EnvError::StepBeforeReset)?;
        if episode.step >= episode.scenario.steps {
            return Err(EnvError::EpisodeOver);
        }
        check_action(&self.spec, &episode.last, action)?;
        let before = episode.sample.clone();
        episode.apply(action);
        episode.run_interval(&mut self.rng);
        episode.step += 1;
        let observation = observe(&self.spec, &before, &episode.sample, episode.interval());
        episode.last = observation.clone();
        Ok(Step {
            observation,
            rewards: score(&before, &episode.sample, &self.reward),
            executed: action.clone(),
            terminated: false,
            truncated: episode.step >= episode.scenario.steps,
            final_observation: None,
        })
    }
}

#[derive(Debug)]
struct Episode {
    scenario: Scenario,
    step: u32,
    disks: Vec<DiskState>,
    /// Lane of each disk, and the number of disks on each lane.
    lane_of: Vec<usize>,
    lane_sizes: Vec<usize>,
    /// Share of writes in what each device did in the last interval.
    device_write_share: Vec<f64>,
    characteristic_time: f64,
    sample: HostSample,
    last: Observation,
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
        }
    }
}

fn page_bytes(phase: &Phase) -> f64 {
    (phase.request_kib * 1024.0).max(4096.0)
}

impl Episode {
    fn start(scenario: Scenario, rng: &mut crate::Rng) -> Self {
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
            last: Observation::default(),
        }
    }

    fn interval(&self) -> Duration {
        Duration::from_secs_f64(self.scenario.interval_s)
    }

    fn apply(&mut self, action: &JointAction) {
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
            if wanted == sample.settings {
                continue;
            }
            if wanted.cache != sample.settings.cache {
                // Going back to direct writes the dirty pages out first.
                let reference = &self.scenario.devices[self.scenario.disks[row].device].reference;
                state.stall_s = REOPEN_STALL_S + state.dirty_bytes / reference.bytes_per_sec;
                state.dirty_bytes = 0.0;
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

    /// Lets one interval pass: phases move on, the network is solved, the counters advance.
    fn run_interval(&mut self, rng: &mut crate::Rng) {
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
            let copy_s = bytes / COPY_BYTES_PER_SEC + BUFFERED_DELAY_S;
            let sync = self.synchronous_write_share(phase);
            (
                [read * (1.0 - hit.now), write * sync],
                copy_s,
                BUFFERED_CPU_S,
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
    fn synchronous_write_share(&self, phase: &Phase) -> f64 {
        let dirty: f64 = self.disks.iter().map(|d| d.dirty_bytes).sum();
        let full = dirty / (self.scenario.dirty_limit_gib * GIB);
        (2.0 * full - 1.0).clamp(0.0, 1.0).max(phase.flush_share)
    }

    /// Write-back of one device, bytes per second.
    fn writeback_rate(&self, device: usize) -> f64 {
        let wanted: f64 = self
            .of_device(device)
            .map(|i| self.disks[i].dirty_bytes / WRITEBACK_HORIZON_S)
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
                self.disks[i].stall_s,
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
            self.disks[i].throughput = flow.throughput;
            self.disks[i].stall_s = 0.0;
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
            self.disks[i].dirty_bytes *= keep;
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
            let sync = self.synchronous_write_share(self.phase(i));
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

/// What one disk completed in an interval.
struct Served {
    requests: f64,
    request_bytes: f64,
    read_share: f64,
    hit: f64,
    /// Mean latency of a read that hits, a read that misses, a write.
    hit_s: f64,
    latency_s: [f64; 2],
    /// Least latency of a hit and of a visit to the device, by direction.
    floor_s: [f64; 3],
    device_s: [f64; 2],
    stall_time_s: f64,
}

impl Served {
    fn new(flow: &Flow, class: &Class, phase: &Phase, hit: f64, dt: f64, stall_s: f64) -> Self {
        let work: f64 = class
            .visits
            .iter()
            .zip(class.server_s)
            .map(|(v, s)| v * (s + class.transfer_s))
            .sum();
        let device_s = class.server_s.map(|s| {
            if work > 0.0 {
                flow.device_s * (s + class.transfer_s) / work
            } else {
                0.0
            }
        });
        let base = flow.lane_s + class.delay_s;
        let stalled = stall_s.min(0.95 * dt);
        let write_visits = class.visits[1] / (1.0 - phase.read_share).max(1e-12);
        Self {
            requests: flow.throughput * (dt - stalled),
            request_bytes: phase.request_kib * 1024.0,
            read_share: phase.read_share,
            hit,
            hit_s: base,
            latency_s: [
                base + device_s[0],
                base + device_s[1] * write_visits.min(1.0),
            ],
            floor_s: [
                flow.cpu_s + class.delay_s,
                flow.cpu_s + class.delay_s + class.server_s[0] + class.transfer_s,
                flow.cpu_s
                    + class.delay_s
                    + (class.server_s[1] + class.transfer_s) * write_visits.min(1.0),
            ],
            device_s,
            stall_time_s: stalled * class.outstanding,
        }
    }

    fn count(&self, sample: &mut DiskSample) {
        let reads = (self.requests * self.read_share).round();
        let writes = (self.requests * (1.0 - self.read_share)).round();
        let missed = reads * (1.0 - self.hit);
        let read_s = self.hit_s * self.hit + self.latency_s[0] * (1.0 - self.hit);
        let stall_share = self.stall_time_s / (reads + writes).max(1.0);
        bump(
            &mut sample.reads,
            reads,
            self.request_bytes,
            read_s + stall_share,
        );
        bump(
            &mut sample.writes,
            writes,
            self.request_bytes,
            self.latency_s[1] + stall_share,
        );
        let to_device = if sample.settings.cache == Cache::Direct {
            reads
        } else {
            missed
        };
        add(
            &mut sample.device_read_bytes,
            to_device * self.request_bytes,
        );
        if let Ok(counts) = &mut sample.latency_counts {
            spread(counts, reads - missed, self.floor_s[0], self.hit_s);
            spread(counts, missed, self.floor_s[1], self.latency_s[0]);
            spread(counts, writes, self.floor_s[2], self.latency_s[1]);
        }
    }
}

/// Spreads `requests` over the histogram: a fixed floor plus an exponential wait.
fn spread(counts: &mut [u64; LATENCY_BUCKETS], requests: f64, floor_s: f64, mean_s: f64) {
    if requests < 1.0 {
        return;
    }
    let floor_us = floor_s.min(mean_s) * 1e6;
    let wait_us = (mean_s * 1e6 - floor_us).max(1e-3);
    let mut below = 0;
    for (count, &bound) in counts.iter_mut().zip(&LATENCY_BOUNDS_US) {
        let over = (f64::from(bound) - floor_us).max(0.0);
        let reached = (requests * -libm::expm1(-over / wait_us)).round() as u64;
        *count += reached - below;
        below = reached;
    }
    counts[LATENCY_BUCKETS - 1] += requests.round() as u64 - below;
}

fn bump(counters: &mut OpCounters, requests: f64, request_bytes: f64, latency_s: f64) {
    counters.requests += requests as u64;
    counters.bytes += (requests * request_bytes) as u64;
    counters.time_ns += (requests * latency_s * 1e9) as u64;
}

fn add(counter: &mut crate::sample::Reading<u64>, gain: f64) {
    if let Ok(value) = counter {
        *value += gain.max(0.0) as u64;
    }
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

/// The lane of each disk and the number of lanes: one per IOThread, one per disk without.
fn lanes_of(scenario: &Scenario) -> (Vec<usize>, usize) {
    let mut lanes: Vec<Option<usize>> = Vec::new();
    let lane_of = scenario
        .disks
        .iter()
        .map(|disk| {
            match lanes
                .iter()
                .position(|l| l.is_some() && *l == disk.iothread)
            {
                Some(lane) => lane,
                None => {
                    lanes.push(disk.iothread);
                    lanes.len() - 1
                }
            }
        })
        .collect();
    (lane_of, lanes.len())
}

fn first_sample(scenario: &Scenario) -> HostSample {
    let channels = scenario.channels.len();
    let mut first_cpu = 0;
    HostSample {
        at: Duration::ZERO,
        disks: scenario
            .disks
            .iter()
            .map(|d| first_disk(d, channels))
            .collect(),
        channels: scenario
            .channels
            .iter()
            .enumerate()
            .map(|(k, c)| {
                let cpus = (first_cpu..first_cpu + c.cpus).collect();
                first_cpu += c.cpus;
                ChannelSample {
                    id: format!("core-{k}"),
                    cpus,
                    numa: c.numa,
                    hw_queues: 1,
                    busy_ns: 0,
                    vcpu_ns: Ok(0),
                }
            })
            .collect(),
        devices: scenario
            .devices
            .iter()
            .map(|d| first_device(d, scenario.schedulers))
            .collect(),
        host: HostGauges {
            cpus: scenario.channels.iter().map(|c| c.cpus).sum(),
            cpu_busy_ns: 0,
            mem_total_bytes: (scenario.memory_gib * GIB) as u64,
            mem_available_bytes: (scenario.cache_gib * GIB) as u64,
            dirty_bytes: 0,
            dirty_limit_bytes: (scenario.dirty_limit_gib * GIB) as u64,
            psi_cpu: Ok(0.0),
            psi_io: Ok(0.0),
            psi_memory: Ok(0.0),
        },
    }
}

fn first_disk(model: &DiskModel, channels: usize) -> DiskSample {
    let settings = DiskSettings {
        channel: model.default_channel,
        cache: model.default_cache,
        polling: model.default_polling,
    };
    let lane_mask = if model.iothread.is_some() {
        MaskReason::Allowed
    } else {
        MaskReason::NoIoThread
    };
    let vcpu_share = |k: usize| match model.vcpu_channel {
        Some(pinned) => f32::from(u8::from(pinned == k)),
        None => 1.0 / channels as f32,
    };
    DiskSample {
        id: format!("{}/{}", model.guest, model.target),
        device: model.device,
        group: model.iothread,
        settings,
        default: settings,
        masks: DiskMasks {
            channel: vec![lane_mask; channels + 1],
            cache: [MaskReason::Allowed; 2],
            polling: [lane_mask; 2],
        },
        reads: OpCounters::default(),
        writes: OpCounters::default(),
        flushes: 0,
        in_flight: Ok(0),
        device_read_bytes: Ok(0),
        latency_counts: Ok([0; LATENCY_BUCKETS]),
        iothread_cpu_ns: Ok(0),
        iothread_wait_ns: Ok(0),
        vcpu_share: (0..channels).map(vcpu_share).collect(),
        capacity_bytes: (model.capacity_gib * GIB) as u64,
        cached_bytes: Ok(0),
        dirty_bytes: Ok(0),
        since_change: Duration::from_secs(3600),
    }
}

fn first_device(model: &super::scenario::DeviceModel, schedulers: bool) -> DeviceSample {
    DeviceSample {
        id: model.name.clone(),
        class: model.class,
        numa: model.numa,
        hw_queues: model.hw_queues,
        reference: model.reference,
        reads: OpCounters::default(),
        writes: OpCounters::default(),
        busy_ns: 0,
        scheduler: 0,
        default_scheduler: 0,
        scheduler_mask: if schedulers {
            vec![MaskReason::Allowed; SCHEDULERS.len()]
        } else {
            vec![]
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::{CACHE_HEAD, CHANNEL_HEAD, POLLING_HEAD};
    use crate::sample::DiskWindow;

    struct Outcome {
        iops: f64,
        latency_us: f64,
        p99_us: f64,
        cpu_cores: f64,
        hit_rate: f64,
        reward: f32,
    }

    /// Means over the last 20 intervals of disk 0 under one fixed action.
    fn outcome(scenario: Scenario, act: impl Fn(&mut JointAction)) -> Outcome {
        let mut host = SimHost::fixed(Scenario {
            noise: 0.0,
            steps: 60,
            ..scenario
        })
        .unwrap();
        let obs = host.reset(Some(9), &ResetOptions::new()).unwrap();
        let mut action = obs.default.clone();
        act(&mut action);
        let mut samples = vec![host.sample().unwrap().clone()];
        let mut reward = 0.0;
        for step in 0..60 {
            let host_mean = host.step(&action).unwrap().rewards.host_mean().unwrap();
            samples.push(host.sample().unwrap().clone());
            if step >= 40 {
                reward += host_mean / 20.0;
            }
        }
        let (before, after) = (&samples[40], &samples[60]);
        let window = DiskWindow::between(&before.disks[0], &after.disks[0], 20.0);
        Outcome {
            iops: window.iops.unwrap(),
            latency_us: window.latency_us_mean.unwrap(),
            p99_us: window.latency_us_p99.unwrap(),
            cpu_cores: window.iothread_cores.unwrap(),
            hit_rate: window.hit_rate.unwrap(),
            reward,
        }
    }

    #[test]
    fn moving_the_iothread_off_its_vcpus_core_pays() {
        let poor = outcome(presets::poor_binding(), |_| ());
        let moved = outcome(presets::poor_binding(), |a| {
            a.disks[[0, CHANNEL_HEAD]] = 3;
            a.disks[[1, CHANNEL_HEAD]] = 4;
        });
        assert!(moved.iops / poor.iops > 1.3, "{} {}", moved.iops, poor.iops);
        assert!(
            moved.reward > poor.reward + 0.05,
            "{} {}",
            moved.reward,
            poor.reward
        );
    }

    #[test]
    fn buffering_a_set_that_fits_rescues_a_capped_device() {
        let direct = outcome(presets::capped_device(), |_| ());
        let buffered = outcome(presets::capped_device(), |a| {
            a.disks.column_mut(CACHE_HEAD).fill(1);
        });
        assert!(
            buffered.iops / direct.iops > 5.0,
            "{} {}",
            buffered.iops,
            direct.iops
        );
        assert!(
            buffered.hit_rate > 0.95 && direct.hit_rate == 0.0,
            "{}",
            buffered.hit_rate
        );
        assert!(
            buffered.reward > direct.reward + 0.5,
            "{} {}",
            buffered.reward,
            direct.reward
        );
    }

    #[test]
    fn polling_off_saves_cpu_at_about_the_same_iops() {
        let on = outcome(presets::identical_disks(1, 4), |_| ());
        let off = outcome(presets::identical_disks(1, 4), |a| {
            a.disks.column_mut(POLLING_HEAD).fill(0);
        });
        assert!(
            (off.iops / on.iops - 1.0).abs() < 0.05,
            "{} {}",
            off.iops,
            on.iops
        );
        assert!(
            off.cpu_cores < on.cpu_cores,
            "{} {}",
            off.cpu_cores,
            on.cpu_cores
        );
    }

    #[test]
    fn a_fair_scheduler_rescues_the_victim_of_a_noisy_neighbour() {
        let none = outcome(presets::noisy_neighbour(), |_| ());
        let bfq = outcome(presets::noisy_neighbour(), |a| a.devices.fill(2));
        assert!(bfq.iops / none.iops > 5.0, "{} {}", bfq.iops, none.iops);
        assert!(bfq.p99_us < none.p99_us, "{} {}", bfq.p99_us, none.p99_us);
    }

    #[test]
    fn one_disk_per_channel_is_the_best_placement_of_equal_disks() {
        let place = |channels: [Level; 4]| {
            outcome(presets::identical_disks(4, 4), |a| {
                for (disk, channel) in channels.iter().enumerate() {
                    a.disks[[disk, CHANNEL_HEAD]] = *channel;
                }
            })
        };
        let spread = place([1, 2, 3, 4]);
        for other in [
            [0, 0, 0, 0],
            [1, 1, 1, 1],
            [1, 1, 2, 2],
            [1, 1, 2, 3],
            [1, 2, 3, 0],
        ] {
            let other_outcome = place(other);
            assert!(
                spread.reward > other_outcome.reward,
                "{other:?}: {} {}",
                spread.reward,
                other_outcome.reward
            );
        }
    }

    #[test]
    fn latency_grows_with_load_and_little_holds_in_the_counters() {
        let loaded = |q: f64| {
            let mut scenario = presets::identical_disks(2, 4);
            scenario.disks[1].phases[0].outstanding = q;
            outcome(scenario, |_| ())
        };
        let latencies: Vec<f64> = [1.0, 8.0, 64.0, 256.0]
            .iter()
            .map(|q| loaded(*q).latency_us)
            .collect();
        assert!(latencies.windows(2).all(|w| w[1] >= w[0]), "{latencies:?}");
        let one = loaded(1.0);
        // 16 outstanding, no think time: X·R = 16, up to the rounding of the counters.
        assert!(
            (one.iops * one.latency_us * 1e-6 - 16.0).abs() < 0.01,
            "{}",
            one.iops * one.latency_us * 1e-6
        );
    }

    #[test]
    fn leaving_buffered_mode_pays_for_the_dirty_pages_at_once() {
        let mut scenario = presets::capped_device();
        scenario.disks[0].phases[0].read_share = 0.0;
        scenario.disks[0].capacity_gib = 60.0;
        scenario.disks[0].phases[0].working_set_gib = 60.0;
        scenario.devices = vec![presets::hdd("sda")];
        let mut host = SimHost::fixed(scenario).unwrap();
        let obs = host.reset(Some(2), &ResetOptions::new()).unwrap();
        let mut action = obs.default.clone();
        action.disks[[0, CACHE_HEAD]] = 1;
        for _ in 0..5 {
            host.step(&action).unwrap();
        }
        assert!(host.sample().unwrap().disks[0].dirty_bytes.unwrap() > 100 << 20);
        let before = host.sample().unwrap().clone();
        host.step(&obs.default).unwrap();
        let after = host.sample().unwrap();
        let window = DiskWindow::between(&before.disks[0], &after.disks[0], 1.0);
        assert!(
            window.latency_us_mean.unwrap() > 10_000.0,
            "{:?}",
            window.latency_us_mean
        );
        assert_eq!(after.disks[0].dirty_bytes, Ok(0));
    }

    #[test]
    fn an_unknown_scenario_is_refused_by_name() {
        let mut host = SimHost::fixed(presets::mixed()).unwrap();
        let options = ResetOptions::from([("scenario".to_owned(), "nowhere".to_owned())]);
        let error = host.reset(None, &options).unwrap_err().to_string();
        assert!(
            error.contains("nowhere") && error.contains("identical_disks"),
            "{error}"
        );
    }
}
