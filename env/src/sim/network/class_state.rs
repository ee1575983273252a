//! A disk in the fixed point: where its requests are, and what they meet.

use super::lane::{LaneState, LaneVisit};
use super::mixing::Unknown;
use super::station::{Station, Visit};
use super::{CPU_VARIATION, Class, Load};

/// Least idle share that amplifies the response of a queue.
pub(super) const LEAST_SLACK: f64 = 0.02;
/// Unknowns of the fixed point per class: its rate, and its queues at the vCPU, in the lane and, by
/// direction, at the servers and the transfer.
pub(super) const UNKNOWNS: usize = 7;
/// Farthest that a rate goes beyond both where it is and where the waits of a pass put it.
const RATE_STEP: f64 = 1.5;

/// Where a class's requests are.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ClassState {
    pub(super) rate: f64,
    /// Requests present at the vCPU, in the lane, and by direction at the servers and transfer.
    pub(super) at_vcpu: f64,
    pub(super) in_lane: f64,
    pub(super) present: [[f64; 2]; 2],
    pub(super) fair_work: [f64; 2],
    /// Per request that is taken out of the class, by how much its queue at the vCPU, the lane, the
    /// servers and the transfer falls, relative to the share 1/q.
    pub(super) fall: [f64; 4],
    pub(super) away_s: f64,
    pub(super) vcpu_stretch: f64,
    pub(super) lane: LaneVisit,
    pub(super) wait_s: [[f64; 2]; 2],
    pub(super) latency_s: f64,
    pub(super) visits: [f64; 2],
    /// What it does at the servers and the transfer in this pass.
    pub(super) at_station: [Visit; 2],
    /// Share of its own requests that an arriving one does not find anywhere, in this pass.
    pub(super) unseen: f64,
    pub(super) hit: f64,
    pub(super) resident_bytes: f64,
}

impl ClassState {
    pub(super) fn start(class: &Class) -> Self {
        let demand: f64 = (0..2)
            .map(|d| class.visits[d] * (class.server_s[d] + class.transfer_s[d]))
            .sum();
        let latency_s = class.lane_s + class.delay_s + demand;
        Self {
            rate: throughput(class, class.vcpu.request_s + think_s(class), latency_s),
            vcpu_stretch: 1.0,
            fall: [1.0; 4],
            lane: LaneVisit {
                cpu_s: class.lane_s,
                service_s: class.lane_s,
                ..LaneVisit::default()
            },
            ..Self::default()
        }
    }

    /// An idle disk that starts again starts as new.
    pub(super) fn revive(&mut self, class: &Class) {
        if class.load.limit() <= 0.0 {
            *self = Self {
                vcpu_stretch: 1.0,
                fall: [1.0; 4],
                ..Self::default()
            };
        } else if self.rate <= 0.0 || !self.rate.is_finite() {
            *self = Self::start(class);
        }
        let scale = |present: f64, most: f64| present.min(most);
        self.in_lane = scale(self.in_lane, class.load.limit());
        self.at_vcpu = scale(self.at_vcpu, class.load.limit());
    }

    /// Notes what follows for the whole pass from where its requests are.
    pub(super) fn look(&mut self, class: &Class) {
        self.unseen = self.unseen_share(class);
        for station in 0..2 {
            self.at_station[station] = self.visit(class, station);
        }
    }

    fn unseen_share(&self, class: &Class) -> f64 {
        match class.load {
            Load::Closed { outstanding, .. } => 1.0 / outstanding.max(1.0),
            // The nearer the limit, the more like a closed class.
            Load::Open { limit, .. } => {
                (self.rate * self.latency_s / limit).min(1.0) / limit.max(1.0)
            }
        }
    }

    /// Share of the requests that are not among the `present`.
    pub(super) fn elsewhere(&self, class: &Class, present: f64) -> f64 {
        match class.load {
            Load::Closed { outstanding, .. } => (1.0 - present / outstanding.max(1.0)).max(0.0),
            Load::Open { limit, .. } => {
                let full = (self.rate * self.latency_s / limit).min(1.0);
                (1.0 - full * present / limit.max(1.0)).max(0.0)
            }
        }
    }

    /// How the queues fall when a request is taken out of the class.
    ///
    /// With Q = X·R and R linear in the queue that a request sees, dQ/dq = ε·(Q/q)/(1 − U), where U is
    /// the load that responds and ε = 1/(1 + Σ U_own·(Q/q)/(1 − U)) the elasticity of the throughput;
    /// Schweitzer's Q/q is the case of light load.
    pub(super) fn falls(
        &self,
        class: &Class,
        lane: &LaneState,
        stations: &[Station; 2],
    ) -> [f64; 4] {
        let limit = class.load.limit().max(1.0);
        let vcpu = self.vcpu_busy(class);
        let in_lane = self.rate * self.lane.service_s;
        let mut own = [vcpu, in_lane, 0.0, 0.0];
        let mut responding = [
            vcpu,
            lane.responsive + in_lane * (1.0 - self.elsewhere(class, self.in_lane)),
            0.0,
            0.0,
        ];
        let mut present = [self.at_vcpu, self.in_lane, 0.0, 0.0];
        for (s, station) in stations.iter().enumerate() {
            let visit = &self.at_station[s];
            (own[s + 2], responding[s + 2]) = station.response(visit);
            present[s + 2] = visit.present[0] + visit.present[1];
        }
        let amplified = responding.map(|u| 1.0 / (1.0 - u).max(LEAST_SLACK));
        let mut slowed = 1.0;
        for s in 0..4 {
            slowed += own[s].min(1.0) * present[s] / limit * amplified[s];
        }
        amplified.map(|a| a / slowed)
    }

    fn visit(&self, class: &Class, station: usize) -> Visit {
        let present = self.present[station];
        Visit {
            rate: [self.rate * self.visits[0], self.rate * self.visits[1]],
            service_s: [class.server_s, class.transfer_s][station],
            present,
            unseen: self.unseen,
            fall: self.fall[station + 2],
            population: match class.load {
                Load::Closed { outstanding, .. } => outstanding,
                Load::Open { .. } => f64::INFINITY,
            },
            elsewhere: self.elsewhere(class, present[0] + present[1]),
            fair_work: self.fair_work[station],
        }
    }

    pub(super) fn device_s(&self, class: &Class, direction: usize) -> f64 {
        self.wait_s[0][direction]
            + class.server_s[direction]
            + self.wait_s[1][direction]
            + class.transfer_s[direction]
    }

    pub(super) fn vcpu_busy(&self, class: &Class) -> f64 {
        (self.rate * class.vcpu.request_s * self.vcpu_stretch).min(1.0)
    }

    /// Time on the vCPU per request, queueing behind its own guest's other requests included.
    pub(super) fn vcpu_time(&self, class: &Class) -> f64 {
        if matches!(class.load, Load::Open { .. }) {
            return 0.0;
        }
        let service = class.vcpu.request_s * self.vcpu_stretch;
        let busy = (self.rate * service).min(1.0);
        let spared = 0.5 * (1.0 - CPU_VARIATION) * busy * self.elsewhere(class, self.at_vcpu);
        let hidden = (self.unseen * self.fall[0] * self.at_vcpu).min(1.0);
        let seen = self.at_vcpu - hidden - spared * (1.0 - self.unseen) * (1.0 - hidden * hidden);
        service * (1.0 + seen.max(0.0))
    }

    /// Rate and queues as they are, and as the waits of this pass say.
    pub(super) fn unknowns(&self, class: &Class) -> [Unknown; UNKNOWNS] {
        let limit = class.load.limit();
        let rate = throughput(class, self.away_s, self.latency_s);
        let queue = |value: f64, time_s: f64| Unknown {
            value,
            target: rate * time_s,
            scale: limit,
        };
        let at = |station: usize, direction: usize| {
            let service_s = [class.server_s, class.transfer_s][station][direction];
            let time_s = self.wait_s[station][direction] + service_s;
            queue(
                self.present[station][direction],
                self.visits[direction] * time_s,
            )
        };
        [
            Unknown {
                value: self.rate,
                target: rate,
                scale: rate.max(f64::MIN_POSITIVE),
            },
            queue(self.at_vcpu, self.away_s - think_s(class)),
            queue(self.in_lane, self.lane.wait_s + self.lane.service_s),
            at(0, 0),
            at(0, 1),
            at(1, 0),
            at(1, 1),
        ]
    }

    /// Changes rate and queues by so much of the unknowns' scales, within what is possible.
    pub(super) fn advance(&mut self, class: &Class, steps: &[f64; UNKNOWNS]) {
        let limit = class.load.limit();
        let rate = throughput(class, self.away_s, self.latency_s);
        let (least, most) = (self.rate.min(rate), self.rate.max(rate));
        let next = self.rate + steps[0] * rate;
        self.rate = next.clamp(least / RATE_STEP, most * RATE_STEP);
        let [[a, b], [c, d]] = &mut self.present;
        let queues = [&mut self.at_vcpu, &mut self.in_lane, a, b, c, d];
        for (queue, step) in queues.into_iter().zip(&steps[1..]) {
            *queue = (*queue + step * limit).clamp(0.0, limit);
        }
    }
}

pub(super) fn think_s(class: &Class) -> f64 {
    match class.load {
        Load::Closed { think_s, .. } => think_s,
        Load::Open { .. } => 0.0,
    }
}

pub(super) fn throughput(class: &Class, away_s: f64, latency_s: f64) -> f64 {
    match class.load {
        Load::Closed { outstanding, .. } => outstanding / (away_s + latency_s),
        Load::Open { rate_per_s, limit } => rate_per_s.min(limit / latency_s),
    }
}
