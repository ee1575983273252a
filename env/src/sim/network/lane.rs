//! An IOThread in the fixed point: one server whose work is stretched by its channel, that polls or
//! sleeps while it has nothing to do and must be woken then.

use super::class_state::{ClassState, LEAST_SLACK};
use super::{CPU_VARIATION, Class, Lane};
use crate::sim::costs::Costs;

/// A request's time in its lane.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LaneVisit {
    pub(super) cpu_s: f64,
    pub(super) run_delay_s: f64,
    /// Service with stretch and waking.
    pub(super) service_s: f64,
    pub(super) wait_s: f64,
}
impl LaneVisit {
    pub(super) fn move_to(&mut self, target: &Self, part: f64) {
        self.cpu_s += part * (target.cpu_s - self.cpu_s);
        self.run_delay_s += part * (target.run_delay_s - self.run_delay_s);
        self.service_s += part * (target.service_s - self.service_s);
        self.wait_s = target.wait_s;
    }
}

/// A lane in the fixed point.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LaneState {
    pub(super) arrivals: f64,
    pub(super) cpu: f64,
    pub(super) busy: f64,
    pub(super) finding_idle: f64,
    pub(super) work: f64,
    pub(super) spared: f64,
    pub(super) responsive: f64,
    /// Requests of closed classes that are elsewhere, and those of open ones in the lane.
    pub(super) away: f64,
    pub(super) open: f64,
    pub(super) open_busy: f64,
    pub(super) stretch: f64,
    pub(super) poll: f64,
    pub(super) sleep: f64,
}

impl LaneState {
    /// Polling and sleeping while there is nothing to do.
    pub(super) fn rest(&mut self, model: &Lane, poll_max_s: f64) {
        let idle = (1.0 - self.busy).max(0.0);
        let gap = idle / self.finding_idle.max(1e-9);
        let (gap2, poll2) = (gap * gap, poll_max_s * poll_max_s);
        if model.is_polling {
            self.sleep = gap2 / (gap2 + poll2).max(1e-300);
            let polled = gap * poll_max_s / libm::sqrt((gap2 + poll2).max(1e-300));
            self.poll = (self.finding_idle * polled).min(idle);
        } else {
            (self.sleep, self.poll) = (1.0, 0.0);
        }
    }

    /// Requests that are elsewhere now and could be here.
    pub(super) fn roam(&self) -> f64 {
        self.away + self.open / (1.0 - self.open_busy).max(LEAST_SLACK)
    }

    pub(super) fn mean_service_s(&self) -> f64 {
        self.busy / self.arrivals.max(1e-12)
    }

    pub(super) fn runnable(&self) -> f64 {
        (self.busy + self.poll).min(1.0)
    }

    pub(super) fn visit(
        &self,
        model: &Lane,
        costs: &Costs,
        class: &Class,
        state: &ClassState,
        stretch: f64,
    ) -> LaneVisit {
        let own = state.rate * state.lane.service_s * state.unseen;
        let waking = (1.0 - (self.busy - own).clamp(0.0, 1.0)) * self.sleep;
        let placement = match model.channel {
            None => costs.float_cpu_factor,
            Some(_) if model.is_remote => costs.remote_cpu_factor,
            Some(_) => 1.0,
        };
        let cpu_s = class.lane_s * placement + waking * costs.wake_cpu_us * 1e-6;
        let preempted = waking * (stretch - 1.0).min(1.0) * costs.preempt_us * 1e-6;
        let run_delay_s = cpu_s * (stretch - 1.0) + preempted;
        let service_s = cpu_s + run_delay_s + waking * costs.wake_us * 1e-6;
        let half = 0.5 * (1.0 - CPU_VARIATION);
        let own_spared = own * state.lane.service_s * state.elsewhere(class, state.in_lane);
        let hidden = state.unseen * state.fall[1];
        let seen = self.work - hidden * state.in_lane * state.lane.service_s;
        let falls = (hidden * state.in_lane).min(1.0);
        LaneVisit {
            cpu_s,
            run_delay_s,
            service_s,
            wait_s: (seen - half * (self.spared - own_spared) * (1.0 - falls * falls)).max(0.0),
        }
    }
}
