//! One interval of a host as a closed queueing network, solved by approximate mean-value analysis.
//!
//! Classes are the disks: class i keeps q_i requests outstanding and thinks Z_i between them. Three
//! kinds of station stand in a request's way:
//! - the *lane*: its IOThread, one server shared by the disks on it; its service time is stretched
//!   by whatever else wants the CPUs of its channel (processor sharing);
//! - the *servers* of the device: P of them (Seidmann's transformation: a queueing part S/P and a
//!   delay part S·(P − 1)/P);
//! - the *transfer* through the device's bandwidth or request ceiling: one server.
//!
//! Residence times follow Bard and Schweitzer: R = D·(1 + Σ_j Q_j − Q_i/q_i), and throughput is
//! X_i = q_i/(Z_i + ΣR), so that X·(R + Z) = q holds exactly at the solution returned
//! (Lazowska et al. 1984, chapter 7; Seidmann, Schweitzer, Shalev-Oren 1987).

use super::costs::Costs;

/// Most passes of the fixed point.
const MAX_PASSES: u32 = 400;
/// Relative change of the throughputs at which it has converged.
const TOLERANCE: f64 = 1e-7;
/// How far each pass moves towards its result.
const DAMPING: f64 = 0.5;

/// What a disk asks of the network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Class {
    /// Requests outstanding; 0 for an idle disk.
    pub outstanding: f64,
    /// Think time, seconds.
    pub think_s: f64,
    /// Index of its lane.
    pub lane: usize,
    /// CPU of the lane per request, seconds, uncontended and bound.
    pub lane_s: f64,
    /// Extra latency outside any station, such as the copy from the page cache, seconds.
    pub delay_s: f64,
    /// Index of its device.
    pub device: usize,
    /// Device visits per request by reads and writes.
    pub visits: [f64; 2],
    /// Service time of one visit at a server, by reads and writes, seconds.
    pub server_s: [f64; 2],
    /// Time of one visit in the transfer, seconds.
    pub transfer_s: f64,
}

/// An IOThread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lane {
    /// Channel it is bound to.
    pub channel: Option<usize>,
    /// Whether the channel is on another node than the device.
    pub is_remote: bool,
    /// Whether it polls.
    pub is_polling: bool,
}

/// A channel: its CPUs and the vCPU and background load on them, in cores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Channel {
    /// CPUs.
    pub cpus: f64,
    /// vCPU and background load, cores.
    pub vcpu_cores: f64,
}

/// A device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Device {
    /// Servers.
    pub parallelism: f64,
    /// How its scheduler shares it.
    pub discipline: Discipline,
}

/// How a request's wait depends on the queues of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discipline {
    /// First come, first served (`none`).
    Fifo,
    /// Reads pass half of the queued writes (`mq-deadline`).
    ReadsFirst,
    /// Nobody waits for more of another's requests than it has itself (`bfq`).
    Fair,
}

/// The network of one interval.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Network {
    /// Disks.
    pub classes: Vec<Class>,
    /// IOThreads.
    pub lanes: Vec<Lane>,
    /// Channels.
    pub channels: Vec<Channel>,
    /// Devices.
    pub devices: Vec<Device>,
    /// What the path costs beside the device.
    pub costs: Costs,
}

/// What a class gets.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Flow {
    /// Requests per second.
    pub throughput: f64,
    /// Time in the lane per request, queueing included, seconds.
    pub lane_s: f64,
    /// The part of `lane_s` during which the IOThread could run but did not, seconds.
    pub run_delay_s: f64,
    /// CPU per request, seconds.
    pub cpu_s: f64,
    /// Time in the device per request, queueing included, seconds.
    pub device_s: f64,
    /// Least possible latency: service without any queueing, seconds.
    pub floor_s: f64,
    /// Mean latency, seconds.
    pub latency_s: f64,
}

/// The solution.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Solution {
    /// Per class.
    pub flows: Vec<Flow>,
    /// CPU of each lane, polling included, cores.
    pub lane_cores: Vec<f64>,
    /// Whether the fixed point converged within `MAX_PASSES`.
    pub converged: bool,
}

impl Network {
    /// Solves the network; `guess` holds throughputs to start from, such as the last solution's.
    #[must_use]
    pub fn solve(&self, guess: &[f64]) -> Solution {
        let mut state = Pass::start(self, guess);
        let mut converged = false;
        for _ in 0..MAX_PASSES {
            if state.advance(self) < TOLERANCE {
                converged = true;
                break;
            }
        }
        state.finish(self, converged)
    }
}

struct Pass {
    throughput: Vec<f64>,
    flows: Vec<Flow>,
    /// Mean requests of each class at its lane, its device's servers and transfer.
    queued: Vec<[f64; 3]>,
    lane_busy: Vec<f64>,
    lane_poll: Vec<f64>,
}

impl Pass {
    fn start(network: &Network, guess: &[f64]) -> Self {
        let throughput = network
            .classes
            .iter()
            .enumerate()
            .map(|(i, class)| match guess.get(i) {
                Some(x) if *x > 0.0 && x.is_finite() => *x,
                _ => class.outstanding / (class.think_s + zero_load(class)),
            })
            .collect();
        Self {
            throughput,
            flows: vec![Flow::default(); network.classes.len()],
            queued: network
                .classes
                .iter()
                .map(|c| [c.outstanding / 3.0; 3])
                .collect(),
            lane_busy: vec![0.0; network.lanes.len()],
            lane_poll: vec![0.0; network.lanes.len()],
        }
    }

    /// One pass; returns the greatest relative change of a throughput.
    fn advance(&mut self, network: &Network) -> f64 {
        self.load_lanes(network);
        let mut change: f64 = 0.0;
        let mut queued = self.queued.clone();
        for (i, class) in network.classes.iter().enumerate() {
            if class.outstanding <= 0.0 {
                self.throughput[i] = 0.0;
                queued[i] = [0.0; 3];
                continue;
            }
            let (flow, residence) = self.residence(network, i);
            let next = class.outstanding / (class.think_s + flow.latency_s);
            let moved = self.throughput[i] + DAMPING * (next - self.throughput[i]);
            change = change.max(((next - self.throughput[i]) / next).abs());
            for (station, r) in residence.iter().enumerate() {
                let target = next * r;
                change = change.max((target - queued[i][station]).abs() / class.outstanding);
                queued[i][station] += DAMPING * (target - queued[i][station]);
            }
            self.flows[i] = flow;
            self.throughput[i] = moved;
        }
        self.queued = queued;
        change
    }

    fn load_lanes(&mut self, network: &Network) {
        let mut wanted = vec![0.0; network.lanes.len()];
        let mut arrivals = vec![0.0; network.lanes.len()];
        for (i, class) in network.classes.iter().enumerate() {
            let lane = &network.lanes[class.lane];
            wanted[class.lane] += self.throughput[i]
                * lane_cpu_s(
                    &network.costs,
                    class,
                    lane,
                    1.0 - self.lane_busy[class.lane],
                );
            arrivals[class.lane] += self.throughput[i];
        }
        for (lane, busy) in self.lane_busy.iter_mut().enumerate() {
            *busy += DAMPING * (wanted[lane].min(1.0) - *busy);
            let gap_us = 1e6 / arrivals[lane].max(1e-6);
            self.lane_poll[lane] = if network.lanes[lane].is_polling {
                let longest_us = network.costs.poll_max_us;
                (1.0 - *busy) * longest_us / (longest_us + gap_us)
            } else {
                0.0
            };
        }
    }

    /// CPU that others want on the CPUs where a lane runs, per CPU.
    fn competition(&self, network: &Network, lane: usize) -> f64 {
        let wants = |l: usize| self.lane_busy[l] + self.lane_poll[l];
        match network.lanes[lane].channel {
            Some(k) => {
                let neighbours: f64 = (0..network.lanes.len())
                    .filter(|l| *l != lane && network.lanes[*l].channel == Some(k))
                    .map(wants)
                    .sum();
                (neighbours + network.channels[k].vcpu_cores) / network.channels[k].cpus
                    + self.floating(network, lane)
            }
            None => {
                // The kernel places a waking thread on an idle CPU if there is one: it meets load
                // only as often as the whole host is busy.
                let cpus: f64 = network.channels.iter().map(|c| c.cpus).sum();
                let vcpu: f64 = network
                    .channels
                    .iter()
                    .map(|c| c.vcpu_cores.min(c.cpus))
                    .sum();
                let lanes: f64 = (0..network.lanes.len())
                    .filter(|l| *l != lane)
                    .map(wants)
                    .sum();
                let load = (vcpu + lanes) / cpus;
                load * load.min(1.0)
            }
        }
    }

    /// Load of the unbound lanes per CPU of the host.
    fn floating(&self, network: &Network, but: usize) -> f64 {
        let cpus: f64 = network.channels.iter().map(|c| c.cpus).sum();
        let load: f64 = (0..network.lanes.len())
            .filter(|l| *l != but && network.lanes[*l].channel.is_none())
            .map(|l| self.lane_busy[l] + self.lane_poll[l])
            .sum();
        load / cpus
    }

    fn residence(&self, network: &Network, i: usize) -> (Flow, [f64; 3]) {
        let class = &network.classes[i];
        let lane = &network.lanes[class.lane];
        let idle = 1.0 - self.lane_busy[class.lane];
        let cpu_s = lane_cpu_s(&network.costs, class, lane, idle);
        let competition = self.competition(network, class.lane);
        let run_delay_s =
            cpu_s * competition + network.costs.preempt_us * 1e-6 * competition.min(1.0);
        let wake_s = if lane.is_polling { 0.1 } else { 1.0 } * network.costs.wake_us * 1e-6 * idle;
        let lane_service = cpu_s + run_delay_s;
        let lane_s = lane_service * (1.0 + self.seen(network, i, 0)) + wake_s;

        let servers = network.devices[class.device].parallelism;
        let demand: f64 = class
            .visits
            .iter()
            .zip(class.server_s)
            .map(|(v, s)| v * s)
            .sum();
        let visits: f64 = class.visits.iter().sum();
        let transfer = visits * class.transfer_s;
        let queueing_s = demand / servers * (1.0 + self.seen(network, i, 1));
        let served_s = demand * (servers - 1.0) / servers;
        let transfer_s = transfer * (1.0 + self.seen(network, i, 2));
        let device_s = queueing_s + served_s + transfer_s;
        let flow = Flow {
            throughput: 0.0,
            lane_s,
            run_delay_s,
            cpu_s,
            device_s,
            floor_s: cpu_s + class.delay_s + demand + transfer,
            latency_s: lane_s + class.delay_s + device_s,
        };
        (flow, [lane_s - wake_s, queueing_s, transfer_s])
    }

    /// Requests that an arriving request of class `i` finds before it at a station.
    fn seen(&self, network: &Network, i: usize, station: usize) -> f64 {
        let me = &network.classes[i];
        let own = self.queued[i][station];
        let mut seen = own * (1.0 - 1.0 / me.outstanding.max(1.0));
        for (j, other) in network.classes.iter().enumerate() {
            let shares_it = if station == 0 {
                other.lane == me.lane
            } else {
                other.device == me.device
            };
            if j == i || !shares_it {
                continue;
            }
            let theirs = self.queued[j][station];
            seen += match network.devices[me.device].discipline {
                _ if station == 0 => theirs,
                Discipline::Fifo => theirs,
                Discipline::ReadsFirst => {
                    theirs * (1.0 - 0.5 * share(me.visits, 0) * share(other.visits, 1))
                }
                Discipline::Fair => theirs.min(own.max(1.0)),
            };
        }
        seen
    }

    fn finish(mut self, network: &Network, converged: bool) -> Solution {
        for (i, class) in network.classes.iter().enumerate() {
            // From the residence times, not from the damped iterate: X·(R + Z) = q to the last bit.
            self.flows[i].throughput = if class.outstanding > 0.0 {
                class.outstanding / (class.think_s + self.flows[i].latency_s)
            } else {
                0.0
            };
        }
        let lane_cores = self
            .lane_busy
            .iter()
            .zip(&self.lane_poll)
            .map(|(b, p)| b + p)
            .collect();
        Solution {
            flows: self.flows,
            lane_cores,
            converged,
        }
    }
}

fn share(visits: [f64; 2], direction: usize) -> f64 {
    visits[direction] / (visits[0] + visits[1]).max(1e-12)
}

/// CPU per request; a lane is woken only when it was idle.
fn lane_cpu_s(costs: &Costs, class: &Class, lane: &Lane, idle: f64) -> f64 {
    let placement = match lane.channel {
        None => costs.float_cpu_factor,
        Some(_) if lane.is_remote => costs.remote_cpu_factor,
        Some(_) => 1.0,
    };
    let wake = if lane.is_polling {
        0.0
    } else {
        costs.wake_cpu_us * 1e-6 * idle
    };
    class.lane_s * placement + wake
}

fn zero_load(class: &Class) -> f64 {
    let device: f64 = class
        .visits
        .iter()
        .zip(class.server_s)
        .map(|(v, s)| v * (s + class.transfer_s))
        .sum();
    class.lane_s + class.delay_s + device
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(outstanding: f64) -> Class {
        Class {
            outstanding,
            think_s: 20e-6,
            lane: 0,
            lane_s: 8e-6,
            delay_s: 0.0,
            device: 0,
            visits: [1.0, 0.0],
            server_s: [80e-6, 20e-6],
            transfer_s: 2e-6,
        }
    }

    fn network(classes: Vec<Class>, lanes: usize) -> Network {
        let lane = |k| Lane {
            channel: Some(k),
            is_remote: false,
            is_polling: false,
        };
        Network {
            classes,
            lanes: (0..lanes).map(lane).collect(),
            channels: vec![
                Channel {
                    cpus: 1.0,
                    vcpu_cores: 0.0
                };
                lanes
            ],
            devices: vec![Device {
                parallelism: 16.0,
                discipline: Discipline::Fifo,
            }],
            costs: Costs::default(),
        }
    }

    #[test]
    fn littles_law_holds_exactly() {
        for q in [1.0, 4.0, 64.0, 512.0] {
            let net = network(
                vec![
                    class(q),
                    Class {
                        lane: 1,
                        ..class(3.0)
                    },
                ],
                2,
            );
            let solution = net.solve(&[]);
            assert!(solution.converged);
            for (flow, class) in solution.flows.iter().zip(&net.classes) {
                let requests = flow.throughput * (flow.latency_s + class.think_s);
                assert!(
                    (requests - class.outstanding).abs() < 1e-9 * class.outstanding,
                    "{requests}"
                );
            }
        }
    }

    #[test]
    fn one_request_alone_meets_no_queue() {
        let flow = network(vec![class(1.0)], 1).solve(&[]).flows[0];
        let idle_wake = Costs::default().wake_us * 1e-6;
        assert!(flow.latency_s < flow.floor_s + idle_wake + 1e-9, "{flow:?}");
    }

    #[test]
    fn throughput_saturates_at_the_slowest_station() {
        let flow = network(vec![class(512.0)], 1).solve(&[]).flows[0];
        let lane_limit = 1.0 / 8e-6;
        assert!(
            flow.throughput < lane_limit * 1.001 && flow.throughput > lane_limit * 0.9,
            "{flow:?}"
        );
    }

    #[test]
    fn latency_never_falls_with_load() {
        let latency = |q: f64| {
            network(
                vec![
                    class(q),
                    Class {
                        lane: 1,
                        ..class(8.0)
                    },
                ],
                2,
            )
            .solve(&[])
            .flows[1]
                .latency_s
        };
        let latencies: Vec<f64> = [1.0, 2.0, 8.0, 32.0, 128.0]
            .iter()
            .map(|q| latency(*q))
            .collect();
        assert!(
            latencies.windows(2).all(|w| w[1] >= w[0] - 1e-9),
            "{latencies:?}"
        );
    }

    #[test]
    fn sharing_a_core_with_busy_vcpus_costs_throughput() {
        let mut net = network(vec![class(4.0)], 1);
        net.classes[0].server_s[0] = 5e-6;
        let alone = net.solve(&[]).flows[0].throughput;
        net.channels[0].vcpu_cores = 1.0;
        let together = net.solve(&[]).flows[0].throughput;
        assert!(alone / together > 1.5, "{}", alone / together);
    }

    #[test]
    fn a_fair_scheduler_rescues_the_victim_of_a_noisy_neighbour() {
        let heavy = Class {
            outstanding: 256.0,
            lane: 1,
            lane_s: 1e-6,
            visits: [0.0, 1.0],
            server_s: [80e-6, 400e-6],
            ..class(1.0)
        };
        let mut net = network(vec![class(1.0), heavy], 2);
        let fifo = net.solve(&[]).flows[0].latency_s;
        net.devices[0].discipline = Discipline::Fair;
        let fair = net.solve(&[]).flows[0].latency_s;
        assert!(fifo / fair > 5.0, "{fifo} {fair}");
    }

    #[test]
    fn polling_off_saves_cpu_at_the_same_throughput() {
        let mut net = network(
            vec![Class {
                think_s: 0.0,
                ..class(4.0)
            }],
            1,
        );
        let off = net.solve(&[]);
        net.lanes[0].is_polling = true;
        let on = net.solve(&[]);
        assert!((on.flows[0].throughput / off.flows[0].throughput - 1.0).abs() < 0.1);
        assert!(off.lane_cores[0] < 0.8 * on.lane_cores[0], "{off:?} {on:?}");
    }
}
