//! A device in the fixed point, and the writes on it that no disk waits for.

use super::Device;
use super::station::{Station, Visit};

/// Background writes that a device holds at most (`nr_requests`).
const MOST_BACKGROUND: f64 = 256.0;

/// A device in the fixed point.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DeviceState {
    /// Its servers and its transfer.
    pub(super) stations: [Station; 2],
    pub(super) background_per_s: f64,
    /// Time of a background write in the device, seconds.
    pub(super) background_s: f64,
    /// Background writes present at either station.
    pub(super) present: [f64; 2],
    fair_work: [f64; 2],
}

impl DeviceState {
    pub(super) fn background(&self, device: &Device, station: usize) -> Visit {
        let service = [device.background.server_s, device.background.transfer_s][station];
        Visit {
            rate: [0.0, self.background_per_s],
            service_s: [service; 2],
            present: [0.0, self.present[station]],
            unseen: 0.0,
            fall: 1.0,
            population: f64::INFINITY,
            elsewhere: 1.0,
            fair_work: self.fair_work[station],
        }
    }

    /// Moves the queues of background writes; returns the change of their rate. The device holds a
    /// limited number of them, and the flusher waits beyond.
    pub(super) fn advance_background(&mut self, device: &Device, damping: f64) -> f64 {
        let load = device.background;
        if load.rate_per_s <= 0.0 {
            (self.present, self.fair_work) = ([0.0; 2], [0.0; 2]);
            (self.background_per_s, self.background_s) = (0.0, 0.0);
            return 0.0;
        }
        let mut times = [0.0; 2];
        for (s, time) in times.iter_mut().enumerate() {
            let visit = self.background(device, s);
            let (waits, fair_work) = self.stations[s].waits(&visit, device.discipline);
            self.fair_work[s] = fair_work;
            *time = waits[1] + visit.service_s[1];
        }
        self.background_s = times[0] + times[1];
        let rate = load.rate_per_s.min(MOST_BACKGROUND / self.background_s);
        let change = (rate - self.background_per_s).abs() / load.rate_per_s;
        for (present, time) in self.present.iter_mut().zip(times) {
            *present += damping * (rate * time - *present);
        }
        self.background_per_s += damping * (rate - self.background_per_s);
        change
    }
}
