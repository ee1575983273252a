//! What a solved network shows, from the states of the fixed point.

use super::class_state::{ClassState, throughput};
use super::lane::LaneState;
use super::solver::Solver;
use super::station::whole_power;
use super::tail::{Kind, p99_s};
use super::{CPU_VARIATION, Class, DeviceFlow, Flow, Network, SERVICE_VARIATION, Solution};

impl Solver {
    pub(super) fn finish(&self, network: &Network, solution: &mut Solution) {
        solution.flows.clear();
        for (state, class) in self.classes.iter().zip(&network.classes) {
            solution.flows.push(self.flow(state, class));
        }
        solution.lane_cores.clear();
        solution.lane_busy.clear();
        for lane in &self.lanes {
            let polled = lane.poll / lane.stretch.max(1.0);
            solution.lane_cores.push(lane.cpu + polled);
            solution.lane_busy.push(lane.busy.min(1.0));
        }
        self.finish_channels(network, solution);
        self.finish_devices(network, solution);
    }

    fn flow(&self, state: &ClassState, class: &Class) -> Flow {
        if class.load.limit() <= 0.0 {
            return Flow {
                resident_bytes: state.resident_bytes,
                ..Flow::default()
            };
        }
        let lane = &self.lanes[class.lane];
        Flow {
            // From the residence times, not from the damped iterate: X·(R + Z) = q to the last bit.
            throughput: throughput(class, state.away_s, state.latency_s),
            latency_s: state.latency_s,
            p99_s: self.p99_s(state, class, lane),
            away_s: state.away_s,
            lane_s: state.lane.wait_s + state.lane.service_s,
            run_delay_s: state.lane.run_delay_s,
            cpu_s: state.lane.cpu_s,
            device_s: [state.device_s(class, 0), state.device_s(class, 1)],
            visits: state.visits,
            hit: state.hit,
            resident_bytes: state.resident_bytes,
        }
    }

    fn p99_s(&self, state: &ClassState, class: &Class, lane: &LaneState) -> f64 {
        let visit = &state.lane;
        let rivals = (lane.stretch - 1.0).min(1.0);
        let service = CPU_VARIATION * visit.service_s * visit.service_s
            + visit.cpu_s * visit.cpu_s * rivals * (1.0 - rivals);
        let lane_variance = service
            + wait_variance(
                visit.wait_s,
                lane.busy,
                lane.roam(),
                lane.mean_service_s(),
                CPU_VARIATION,
            );
        let lane_s = visit.wait_s + visit.service_s + class.delay_s;
        let mut kinds = [Kind {
            share: (1.0 - state.visits[0] - state.visits[1]).max(0.0),
            mean_s: lane_s,
            variance: lane_variance,
        }; 3];
        for direction in 0..2 {
            kinds[direction + 1] = Kind {
                share: state.visits[direction],
                mean_s: lane_s + state.device_s(class, direction),
                variance: lane_variance + self.device_variance(state, class, direction),
            };
        }
        p99_s(&kinds)
    }

    fn device_variance(&self, state: &ClassState, class: &Class, direction: usize) -> f64 {
        let stations = &self.devices[class.device].stations;
        let service_s = class.server_s[direction];
        let mut variance = SERVICE_VARIATION * service_s * service_s;
        for (s, station) in stations.iter().enumerate() {
            let (roam, step_s) = (station.roam(), station.step_s());
            let wait_s = state.wait_s[s][direction];
            variance += wait_variance(wait_s, station.all_busy, roam, step_s, station.variation());
        }
        variance
    }

    fn finish_channels(&self, network: &Network, solution: &mut Solution) {
        solution.channel_cores.clear();
        solution.vcpu_cores.clear();
        solution.channel_runnable.clear();
        for (k, channel) in network.channels.iter().enumerate() {
            let (burners, stretch) = &self.burners[k];
            let served = burners.served(*stretch);
            let background = channel.background_cores;
            let guests = (served - background).max(0.0).min(served);
            solution.channel_cores.push(served);
            solution.vcpu_cores.push(guests);
            solution
                .channel_runnable
                .push(self.pools[k].threads.runnable);
        }
        let mut floating = [
            0.0,
            self.floating_burners
                .served(self.floating.stretch(0.0, 1.0)),
        ];
        for (flow, class) in solution.flows.iter().zip(&network.classes) {
            let cores = flow.throughput * class.vcpu.request_s;
            match class.vcpu.channel {
                Some(k) => {
                    solution.channel_cores[k] += cores;
                    solution.vcpu_cores[k] += cores;
                }
                None => floating[1] += cores,
            }
        }
        for (lane, cores) in network.lanes.iter().zip(&solution.lane_cores) {
            match lane.channel {
                Some(k) => solution.channel_cores[k] += cores,
                None => floating[0] += cores,
            }
        }
        self.share_floating(network, solution, floating);
    }

    fn share_floating(&self, network: &Network, solution: &mut Solution, floating: [f64; 2]) {
        for (k, channel) in network.channels.iter().enumerate() {
            let share = self.pools[k].floating;
            let busy = solution.channel_cores[k] + share * (floating[0] + floating[1]);
            solution.channel_cores[k] = busy.min(channel.cpus);
            solution.vcpu_cores[k] += share * floating[1];
        }
    }

    fn finish_devices(&self, network: &Network, solution: &mut Solution) {
        solution.devices.clear();
        for state in &self.devices {
            solution.devices.push(DeviceFlow {
                server_utilisation: state.stations[0].utilisation(),
                transfer_utilisation: state.stations[1].utilisation(),
                busy: 1.0,
                background_s: state.background_s,
                background_per_s: state.background_per_s,
            });
        }
        // Free of requests of one class: each of its requests is elsewhere, independently.
        for (flow, class) in solution.flows.iter().zip(&network.classes) {
            let visits = flow.visits[0] * flow.device_s[0] + flow.visits[1] * flow.device_s[1];
            let present = flow.throughput * visits;
            let limit = libm::ceil(class.load.limit()).max(1.0);
            let away = (1.0 - present / limit).clamp(0.0, 1.0);
            solution.devices[class.device].busy *= whole_power(away, limit as u32);
        }
        for (flow, state) in solution.devices.iter_mut().zip(&self.devices) {
            let present = state.present[0] + state.present[1];
            flow.busy = 1.0 - flow.busy * libm::exp(-present);
        }
    }
}

/// Variance of a wait: that of an exponential when there is one, but no more than what the requests
/// that are elsewhere can make it vary (`roam` of them, each worth `step_s`), and that of the services
/// it consists of.
fn wait_variance(wait_s: f64, busy: f64, roam: f64, step_s: f64, variation: f64) -> f64 {
    let burst = wait_s * wait_s * (2.0 / busy.clamp(0.01, 1.0) - 1.0);
    burst.min(roam * step_s * step_s) + wait_s * step_s * variation
}
