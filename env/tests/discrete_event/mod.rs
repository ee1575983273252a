//! A discrete-event simulation of the network that `sim::network` solves: the reference.
//!
//! Same structure, no approximation: every request is followed through its vCPU, its lane, the page
//! cache and its device. CPU times and device services are Erlang-4 (squared coefficient of variation
//! ¼: what a device does for requests of one size scatters by about half of its mean), transfers are
//! constant, think times and load from outside are exponential, arrivals are Poisson.

pub(crate) mod compare;
mod cpus;
mod device;
mod lru;

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

use blkpilot_env::Rng;
use blkpilot_env::sim::network::{Load, Network};
use cpus::Cpus;
use device::Station;
use lru::Lru;
use rand::{RngExt as _, SeedableRng as _};

/// Work of one burst of load that has nothing to do with the disks, seconds.
const BURST_S: f64 = 100e-6;
const BATCHES: usize = 20;
/// Student's t at 97.5 % for 19 degrees of freedom.
const STUDENT: f64 = 2.093;

/// A working set: pages and Zipf exponent of each `HitCurve`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WorkingSet {
    pub(crate) pages: usize,
    pub(crate) skew: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Event {
    /// A thought ends, or an open arrival.
    Wish(usize),
    CpuDone {
        channel: usize,
        version: u64,
    },
    Woken {
        lane: usize,
    },
    Switched {
        lane: usize,
    },
    PollOver {
        lane: usize,
        spin: u64,
    },
    Burst(usize),
    Delayed(usize),
    Served {
        request: usize,
        station: usize,
    },
    Background(usize),
}

#[derive(Debug, Clone, Copy)]
struct Timed(f64, u64, Event);

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Timed {}
impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timed {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.total_cmp(&self.0).then(other.1.cmp(&self.1))
    }
}

#[derive(Debug, Clone, Copy)]
struct Request {
    class: usize,
    direction: usize,
    goes_to_device: bool,
    submitted: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum LaneMode {
    Sleeping,
    Waking,
    Busy(usize),
    Polling(u64),
}

#[derive(Debug)]
struct LaneSim {
    queue: VecDeque<usize>,
    mode: LaneMode,
    was_woken: bool,
}

#[derive(Debug)]
struct Thread {
    home: Option<usize>,
    on: usize,
    owner: Owner,
}

#[derive(Debug, Clone, Copy)]
enum Owner {
    Lane(usize),
    Vcpu(usize),
    Burner { pause_s: f64 },
}

/// Means of one disk and of each station, after the warm-up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measured {
    pub(crate) throughput: Vec<f64>,
    pub(crate) latency_s: Vec<f64>,
    pub p99_s: Vec<f64>,
    pub(crate) hit: Vec<f64>,
    pub(crate) lane_cores: Vec<f64>,
    pub(crate) channel_cores: Vec<f64>,
    pub(crate) servers: Vec<f64>,
    pub(crate) transfer: Vec<f64>,
    /// Half of the widest 95 % interval of a disk's throughput or mean latency, relative.
    pub(crate) interval: f64,
}

#[derive(Debug, Clone, Default)]
struct Tally {
    completed: [f64; BATCHES],
    latency: [f64; BATCHES],
    reads: f64,
    hits: f64,
    all: Vec<f32>,
}

pub(crate) struct Simulation<'a> {
    network: &'a Network,
    rng: Rng,
    now: f64,
    events: BinaryHeap<Timed>,
    numbered: u64,
    requests: Vec<Request>,
    free: Vec<usize>,
    cpus: Vec<Cpus>,
    threads: Vec<Thread>,
    lanes: Vec<LaneSim>,
    vcpus: Vec<(VecDeque<usize>, bool)>,
    devices: Vec<[Station; 2]>,
    cache: Lru,
    first_page: Vec<usize>,
    popularity: Vec<Vec<f64>>,
    in_flight: Vec<usize>,
    outside: Vec<VecDeque<usize>>,
    tallies: Vec<Tally>,
    measured_from: f64,
    batch_s: f64,
}

impl<'a> Simulation<'a> {
    pub(crate) fn new(network: &'a Network, sets: &[WorkingSet], seed: u64) -> Self {
        let classes = network.classes.len();
        let mut first_page = vec![0; classes];
        let mut page_bytes = Vec::new();
        for (first, class) in first_page.iter_mut().zip(&network.classes) {
            *first = page_bytes.len();
            if let Some(cache) = class.cache {
                page_bytes.extend(std::iter::repeat_n(
                    cache.page_bytes,
                    sets[cache.curve].pages,
                ));
            }
        }
        let station = |servers: f64, d: &blkpilot_env::sim::network::Device| {
            Station::new(servers as usize, d.discipline, classes + 1)
        };
        let mut simulation = Self {
            network,
            rng: Rng::seed_from_u64(seed),
            now: 0.0,
            events: BinaryHeap::new(),
            numbered: 0,
            requests: Vec::new(),
            free: Vec::new(),
            cpus: network.channels.iter().map(|c| Cpus::new(c.cpus)).collect(),
            threads: Vec::new(),
            lanes: network.lanes.iter().map(|_| LaneSim::asleep()).collect(),
            vcpus: vec![(VecDeque::new(), false); classes],
            devices: network
                .devices
                .iter()
                .map(|d| [station(d.parallelism, d), station(1.0, d)])
                .collect(),
            cache: Lru::new(network.cache_bytes, page_bytes.into_iter()),
            first_page,
            popularity: sets.iter().map(cumulated).collect(),
            in_flight: vec![0; classes],
            outside: vec![VecDeque::new(); classes],
            tallies: vec![Tally::default(); classes],
            measured_from: f64::INFINITY,
            batch_s: 1.0,
        };
        simulation.warm_cache(sets);
        simulation.people();
        simulation
    }

    /// References every page once, the popular ones last.
    fn warm_cache(&mut self, sets: &[WorkingSet]) {
        for (class, first) in self.network.classes.iter().zip(&self.first_page) {
            let pages = class.cache.map_or(0, |cache| sets[cache.curve].pages);
            for page in (0..pages).rev() {
                self.cache.reference(first + page);
            }
        }
    }

    /// Threads, and the first events.
    fn people(&mut self) {
        for (l, lane) in self.network.lanes.iter().enumerate() {
            self.thread(lane.channel, Owner::Lane(l));
        }
        for (i, class) in self.network.classes.iter().enumerate() {
            self.thread(class.vcpu.channel, Owner::Vcpu(i));
        }
        let channels = self.network.channels.iter().enumerate();
        let mut burning: Vec<(Option<usize>, f64)> = channels
            .map(|(k, c)| (Some(k), c.background_cores))
            .collect();
        let guests = self.network.classes.iter().map(|c| &c.vcpu);
        burning.extend(guests.map(|v| (v.channel, v.background_cores)));
        for (home, cores) in burning {
            let threads = cores.ceil();
            for _ in 0..threads as usize {
                let busy = cores / threads;
                let pause_s = BURST_S * (1.0 - busy) / busy;
                self.thread(home, Owner::Burner { pause_s });
                self.at(self.now, Event::Burst(self.threads.len() - 1));
            }
        }
        for (i, class) in self.network.classes.iter().enumerate() {
            match class.load {
                Load::Closed { outstanding, .. } => {
                    (0..outstanding as usize).for_each(|_| self.think(i));
                }
                Load::Open { rate_per_s, .. } => {
                    let gap = self.exponential(1.0 / rate_per_s);
                    self.at(gap, Event::Wish(i));
                }
            }
        }
        for d in 0..self.network.devices.len() {
            self.plan_background(d);
        }
    }

    fn thread(&mut self, home: Option<usize>, owner: Owner) {
        self.threads.push(Thread {
            home,
            on: home.unwrap_or(0),
            owner,
        });
    }

    fn at(&mut self, time: f64, event: Event) {
        self.numbered += 1;
        self.events.push(Timed(time, self.numbered, event));
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.rng.random::<f64>()).ln()
    }

    fn erlang4(&mut self, mean: f64) -> f64 {
        (0..4).map(|_| self.exponential(mean / 4.0)).sum()
    }

    fn think(&mut self, class: usize) {
        let Load::Closed { think_s, .. } = self.network.classes[class].load else {
            return;
        };
        let thought = self.exponential(think_s);
        self.at(self.now + thought, Event::Wish(class));
    }

    /// Runs until `end`, in simulated seconds.
    fn run(&mut self, end: f64) {
        while let Some(Timed(time, _, event)) = self.events.pop() {
            if time > end {
                self.events.push(Timed(time, 0, event));
                break;
            }
            self.now = time;
            self.handle(event);
        }
        self.now = end;
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Wish(class) => self.wish(class),
            Event::CpuDone { channel, version } => self.cpu_done(channel, version),
            Event::Woken { lane } => self.woken(lane),
            Event::Switched { lane } => self.serve(lane),
            Event::PollOver { lane, spin } => self.poll_over(lane, spin),
            Event::Burst(thread) => {
                let work = self.exponential(BURST_S);
                self.start(thread, work);
            }
            Event::Delayed(request) => self.after_lane(request),
            Event::Served { request, station } => self.served(request, station),
            Event::Background(device) => self.background(device),
        }
    }

    fn wish(&mut self, class: usize) {
        match self.network.classes[class].load {
            Load::Closed { .. } => {
                let request = self.request(class);
                if self.network.classes[class].vcpu.request_s == 0.0 {
                    return self.submit(request);
                }
                self.vcpus[class].0.push_back(request);
                self.run_vcpu(class);
            }
            Load::Open { rate_per_s, .. } => {
                let gap = self.exponential(1.0 / rate_per_s);
                self.at(self.now + gap, Event::Wish(class));
                // Its guest's CPU is spent beside the request, not before it.
                let request = self.request(class);
                self.outside[class].push_back(request);
                self.admit(class);
                self.vcpus[class].0.push_back(usize::MAX);
                self.run_vcpu(class);
            }
        }
    }

    fn admit(&mut self, class: usize) {
        let limit = self.network.classes[class].load.limit() as usize;
        while self.in_flight[class] < limit {
            let Some(request) = self.outside[class].pop_front() else {
                return;
            };
            self.submit(request);
        }
    }

    fn run_vcpu(&mut self, class: usize) {
        if self.vcpus[class].1 || self.vcpus[class].0.is_empty() {
            return;
        }
        self.vcpus[class].1 = true;
        let work = self.erlang4(self.network.classes[class].vcpu.request_s);
        self.start(self.network.lanes.len() + class, work);
    }

    fn request(&mut self, class: usize) -> usize {
        let model = &self.network.classes[class];
        let direction = usize::from(self.rng.random::<f64>() >= model.visits[0]);
        let mut goes_to_device = true;
        if direction == 1 {
            let share = model.visits[1] / (1.0 - model.visits[0]);
            goes_to_device = self.rng.random::<f64>() < share;
        }
        let request = Request {
            class,
            direction,
            goes_to_device,
            submitted: f64::NAN,
        };
        match self.free.pop() {
            Some(slot) => {
                self.requests[slot] = request;
                slot
            }
            None => {
                self.requests.push(request);
                self.requests.len() - 1
            }
        }
    }

    fn submit(&mut self, request: usize) {
        let Request {
            class, direction, ..
        } = self.requests[request];
        self.requests[request].submitted = self.now;
        self.in_flight[class] += 1;
        if let Some(cache) = self.network.classes[class].cache {
            let hit = self.reference(class, cache.curve);
            if direction == 0 {
                self.requests[request].goes_to_device = !hit;
                if self.now >= self.measured_from {
                    self.tallies[class].hits += f64::from(u8::from(hit));
                }
            }
        }
        if direction == 0 && self.now >= self.measured_from {
            self.tallies[class].reads += 1.0;
        }
        self.enter_lane(request);
    }

    fn reference(&mut self, class: usize, curve: usize) -> bool {
        let drawn = self.rng.random::<f64>();
        let law = &self.popularity[curve];
        let page = law
            .partition_point(|below| *below < drawn)
            .min(law.len() - 1);
        self.cache.reference(self.first_page[class] + page)
    }

    fn enter_lane(&mut self, request: usize) {
        let l = self.network.classes[self.requests[request].class].lane;
        self.lanes[l].queue.push_back(request);
        match self.lanes[l].mode {
            LaneMode::Sleeping => {
                self.lanes[l].mode = LaneMode::Waking;
                self.lanes[l].was_woken = true;
                let woken = self.now + self.network.costs.wake_us * 1e-6;
                self.at(woken, Event::Woken { lane: l });
            }
            LaneMode::Polling(_) => {
                self.stop(l);
                self.serve(l);
            }
            LaneMode::Waking | LaneMode::Busy(_) => {}
        }
    }

    /// A thread that wakes on CPUs that all run something else has to be switched to.
    fn woken(&mut self, lane: usize) {
        let home = self.network.lanes[lane].channel;
        let is_full = |c: &Cpus| c.runnable() as f64 >= c.cpus;
        let is_crowded = match home {
            Some(k) => is_full(&self.cpus[k]),
            None => self.cpus.iter().all(is_full),
        };
        if is_crowded {
            let switched = self.now + self.network.costs.preempt_us * 1e-6;
            self.at(switched, Event::Switched { lane });
        } else {
            self.serve(lane);
        }
    }

    fn serve(&mut self, l: usize) {
        let Some(request) = self.lanes[l].queue.pop_front() else {
            return self.rest(l);
        };
        let (class, lane) = (
            &self.network.classes[self.requests[request].class],
            &self.network.lanes[l],
        );
        let placement = match lane.channel {
            None => self.network.costs.float_cpu_factor,
            Some(_) if lane.is_remote => self.network.costs.remote_cpu_factor,
            Some(_) => 1.0,
        };
        let mut work = self.erlang4(class.lane_s * placement);
        if std::mem::take(&mut self.lanes[l].was_woken) {
            work += self.network.costs.wake_cpu_us * 1e-6;
        }
        self.lanes[l].mode = LaneMode::Busy(request);
        self.start(l, work);
    }

    fn rest(&mut self, l: usize) {
        if self.network.lanes[l].is_polling {
            self.numbered += 1;
            let spin = self.numbered;
            self.lanes[l].mode = LaneMode::Polling(spin);
            self.start(l, f64::INFINITY);
            self.at(
                self.now + self.network.costs.poll_max_us * 1e-6,
                Event::PollOver { lane: l, spin },
            );
        } else {
            self.lanes[l].mode = LaneMode::Sleeping;
        }
    }

    fn poll_over(&mut self, lane: usize, spin: u64) {
        if self.lanes[lane].mode == LaneMode::Polling(spin) {
            self.stop(lane);
            self.lanes[lane].mode = LaneMode::Sleeping;
        }
    }

    /// Starts a job of a thread, on an idle CPU if it may choose and there is one.
    fn start(&mut self, thread: usize, work_s: f64) {
        if self.threads[thread].home.is_none() {
            self.threads[thread].on = self.roomiest();
        }
        let channel = self.threads[thread].on;
        self.cpus[channel].start(thread, work_s, self.now);
        self.plan_cpu(channel);
    }

    /// The channel of an idle CPU drawn at random; without one, the channel with most room.
    fn roomiest(&mut self) -> usize {
        let idle = |c: &Cpus| (c.cpus - c.runnable() as f64).max(0.0);
        let all_idle: f64 = self.cpus.iter().map(idle).sum();
        let mut drawn = self.rng.random::<f64>() * all_idle;
        for (k, cpus) in self.cpus.iter().enumerate() {
            drawn -= idle(cpus);
            if all_idle > 0.0 && drawn < 0.0 {
                return k;
            }
        }
        let first = self.rng.random_range(0..self.cpus.len());
        let crowd = |k: &usize| self.cpus[*k].runnable() as f64 / self.cpus[*k].cpus;
        let order = (0..self.cpus.len()).map(|k| (first + k) % self.cpus.len());
        order
            .min_by(|a, b| crowd(a).total_cmp(&crowd(b)))
            .unwrap_or(0)
    }

    fn stop(&mut self, thread: usize) {
        let channel = self.threads[thread].on;
        self.cpus[channel].stop(thread, self.now);
        self.plan_cpu(channel);
    }

    fn plan_cpu(&mut self, channel: usize) {
        if let Some((_, time)) = self.cpus[channel].next_end() {
            let version = self.cpus[channel].version;
            self.at(time, Event::CpuDone { channel, version });
        }
    }

    fn cpu_done(&mut self, channel: usize, version: u64) {
        if self.cpus[channel].version != version {
            return;
        }
        let Some((thread, _)) = self.cpus[channel].next_end() else {
            return;
        };
        self.stop(thread);
        match self.threads[thread].owner {
            Owner::Lane(l) => self.lane_done(l),
            Owner::Vcpu(class) => self.vcpu_done(class),
            Owner::Burner { pause_s } => {
                let pause = self.exponential(pause_s);
                self.at(self.now + pause, Event::Burst(thread));
            }
        }
    }

    fn lane_done(&mut self, l: usize) {
        let LaneMode::Busy(request) = self.lanes[l].mode else {
            unreachable!("a lane computes only when busy");
        };
        let delay_s = self.network.classes[self.requests[request].class].delay_s;
        self.at(self.now + delay_s, Event::Delayed(request));
        self.serve(l);
    }

    fn vcpu_done(&mut self, class: usize) {
        self.vcpus[class].1 = false;
        if let Some(request) = self.vcpus[class].0.pop_front()
            && request != usize::MAX
        {
            self.submit(request);
        }
        self.run_vcpu(class);
    }

    fn after_lane(&mut self, request: usize) {
        if self.requests[request].goes_to_device {
            self.enter_station(request, 0);
        } else {
            self.complete(request);
        }
    }

    /// Device of a request; those of class `classes + d` are background writes of device `d`.
    fn device_of(&self, request: usize) -> usize {
        let class = self.requests[request].class;
        match self.network.classes.get(class) {
            Some(model) => model.device,
            None => class - self.network.classes.len(),
        }
    }

    fn enter_station(&mut self, request: usize, station: usize) {
        let Request {
            class, direction, ..
        } = self.requests[request];
        let device = self.device_of(request);
        let class = class.min(self.network.classes.len());
        self.devices[device][station].arrive(request, class, direction);
        self.fill_servers(device, station);
    }

    fn fill_servers(&mut self, device: usize, station: usize) {
        while let Some(request) = self.devices[device][station].next(self.now) {
            let service = self.service(request, station);
            self.at(self.now + service, Event::Served { request, station });
        }
    }

    fn service(&mut self, request: usize, station: usize) -> f64 {
        let Request {
            class, direction, ..
        } = self.requests[request];
        let background = self.network.devices[self.device_of(request)].background;
        let mean = match (self.network.classes.get(class), station) {
            (Some(model), 0) => model.server_s[direction],
            (Some(model), _) => model.transfer_s[direction],
            (None, 0) => background.server_s,
            (None, _) => background.transfer_s,
        };
        if station == 0 {
            self.erlang4(mean)
        } else {
            mean
        }
    }

    fn served(&mut self, request: usize, station: usize) {
        let device = self.device_of(request);
        let class = self.requests[request].class.min(self.network.classes.len());
        self.devices[device][station].depart(class, self.now);
        self.fill_servers(device, station);
        match (station, class < self.network.classes.len()) {
            (0, _) => self.enter_station(request, 1),
            (_, true) => self.complete(request),
            (_, false) => self.free.push(request),
        }
    }

    fn complete(&mut self, request: usize) {
        let Request {
            class, submitted, ..
        } = self.requests[request];
        self.free.push(request);
        self.in_flight[class] -= 1;
        if self.now >= self.measured_from {
            let batch = ((self.now - self.measured_from) / self.batch_s) as usize;
            let batch = batch.min(BATCHES - 1);
            let tally = &mut self.tallies[class];
            tally.completed[batch] += 1.0;
            tally.latency[batch] += self.now - submitted;
            tally.all.push((self.now - submitted) as f32);
        }
        match self.network.classes[class].load {
            Load::Closed { .. } => self.think(class),
            Load::Open { .. } => self.admit(class),
        }
    }

    fn plan_background(&mut self, device: usize) {
        let rate = self.network.devices[device].background.rate_per_s;
        if rate > 0.0 {
            let gap = self.exponential(1.0 / rate);
            self.at(self.now + gap, Event::Background(device));
        }
    }

    fn background(&mut self, device: usize) {
        self.plan_background(device);
        let slot = self.free.pop().unwrap_or(self.requests.len());
        let request = Request {
            class: self.network.classes.len() + device,
            direction: 1,
            goes_to_device: true,
            submitted: self.now,
        };
        if slot == self.requests.len() {
            self.requests.push(request);
        } else {
            self.requests[slot] = request;
        }
        self.enter_station(slot, 0);
    }

    /// Means over `span_s` simulated seconds after a warm-up of a fifth of it.
    pub(crate) fn measure(mut self, span_s: f64) -> Measured {
        self.run(0.2 * span_s);
        let start = self.now;
        self.settle(start);
        let before = self.busy();
        (self.measured_from, self.batch_s) = (start, span_s / BATCHES as f64);
        self.run(start + span_s);
        self.settle(start + span_s);
        let after = self.busy();
        let gained = |i: usize| -> Vec<f64> {
            let pairs = before[i].iter().zip(&after[i]);
            pairs.map(|(b, a)| (a - b) / span_s).collect()
        };
        let mut measured = Measured {
            channel_cores: gained(0),
            servers: gained(1),
            transfer: gained(2),
            lane_cores: gained(3),
            ..Measured::default()
        };
        for (busy, device) in measured.servers.iter_mut().zip(&self.network.devices) {
            *busy /= device.parallelism;
        }
        for tally in &mut self.tallies {
            tally.report(span_s, &mut measured);
        }
        measured
    }

    fn settle(&mut self, now: f64) {
        self.cpus.iter_mut().for_each(|c| c.advance(now));
        self.devices
            .iter_mut()
            .flatten()
            .for_each(|s| s.advance(now));
    }

    fn busy(&self) -> [Vec<f64>; 4] {
        [
            self.cpus.iter().map(|c| c.busy_s).collect(),
            self.devices.iter().map(|d| d[0].busy_s).collect(),
            self.devices.iter().map(|d| d[1].busy_s).collect(),
            (0..self.lanes.len())
                .map(|l| self.cpus.iter().map(|c| c.received_by(l)).sum())
                .collect(),
        ]
    }
}

impl LaneSim {
    fn asleep() -> Self {
        Self {
            queue: VecDeque::new(),
            mode: LaneMode::Sleeping,
            was_woken: false,
        }
    }
}

impl Tally {
    fn report(&mut self, span_s: f64, measured: &mut Measured) {
        let completed: f64 = self.completed.iter().sum();
        let latency: f64 = self.latency.iter().sum();
        measured.throughput.push(completed / span_s);
        measured.latency_s.push(latency / completed.max(1.0));
        measured.hit.push(self.hits / self.reads.max(1.0));
        self.all.sort_by(f32::total_cmp);
        let rank = (self.all.len() * 99 / 100).min(self.all.len().saturating_sub(1));
        measured
            .p99_s
            .push(self.all.get(rank).copied().unwrap_or(0.0).into());
        let means: Vec<f64> = self
            .completed
            .iter()
            .zip(&self.latency)
            .map(|(n, sum)| sum / n.max(1.0))
            .collect();
        measured.interval = measured
            .interval
            .max(relative_interval(&self.completed))
            .max(relative_interval(&means));
    }
}

/// Half of the 95 % interval of the mean of batch means, relative to it.
fn relative_interval(batches: &[f64]) -> f64 {
    let n = batches.len() as f64;
    let mean = batches.iter().sum::<f64>() / n;
    let variance = batches.iter().map(|b| (b - mean) * (b - mean)).sum::<f64>() / (n - 1.0);
    STUDENT * (variance / n).sqrt() / mean.max(1e-12)
}

fn cumulated(set: &WorkingSet) -> Vec<f64> {
    let weight = |rank: usize| (rank as f64).powf(-set.skew);
    let total: f64 = (1..=set.pages).map(weight).sum();
    let mut below = 0.0;
    (1..=set.pages)
        .map(|rank| {
            below += weight(rank) / total;
            below
        })
        .collect()
}
