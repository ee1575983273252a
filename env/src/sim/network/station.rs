//! Waiting at a station with P servers that several classes share.
//!
//! A request that arrives sees the others as they are on average with itself absent (Reiser and
//! Lavenberg's arrival theorem in Schweitzer's approximation: of its own class the share 1 − a, with
//! a = 1/q). It waits until the requests queued before it have passed through P servers and, if all
//! are busy, until one of them is free:
//!
//! W = (Σ_j Lq_j·S_j + P_b·r)/P
//!
//! - P_b, the probability that all servers are busy, is ρ^(√(2(P+1)) − 1) (Sakasegawa 1977), with
//!   1 − ρ divided by the standard deviation that a finite population has against a Poisson one;
//! - r, the residual service, is (c_a² + c²)/2 of E[S²]/E[S] (Pollaczek–Khinchine for Poisson
//!   arrivals, c_a = 1; Allen–Cunneen otherwise) and nears E[S²]/E[S] where all requests stand at this station, since a departure then is what
//!   brings the next arrival. This also keeps ρ below 1 whatever the populations;
//! - a population that is no larger than P never waits.
//!
//! Schedulers change who waits, not how much work waits: the waits of reads or of light users are
//! computed, and the rest is set so that Σ ρ·W is that of first come, first served (Kleinrock's
//! conservation law, 1976, section 3.4).

use super::Discipline;

/// Part of what is missing by which the extra wait grows in a pass.
const RESTRAINT: f64 = 0.75;

/// Sums over the classes that visit a station, and the waits that follow from them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Station {
    servers: f64,
    exponent: f64,
    variation: f64,
    population: f64,
    /// Share of the load that the servers can serve: below 1 only on the way to the fixed point.
    possible: f64,
    /// Wait that keeps the load within what the servers can serve where the rules below do not.
    extra_s: f64,
    busy: [f64; 2],
    queued_work: [f64; 2],
    second_moment: f64,
    present: f64,
    spread: f64,
    responsive: f64,
    away: f64,
    open: f64,
    open_busy: f64,
    queued: f64,
    backlogged: f64,
    fair_work: f64,
    /// Probability that all servers are busy.
    pub(super) all_busy: f64,
    residual: f64,
    fifo_s: f64,
    /// Wait that a residual service spares against a whole one.
    spared_s: f64,
    wait_s: [f64; 2],
    deficit: f64,
}

/// What one class does at a station.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Visit {
    /// Visits per second by reads and writes.
    pub(super) rate: [f64; 2],
    /// Service time, seconds.
    pub(super) service_s: [f64; 2],
    /// Mean requests present.
    pub(super) present: [f64; 2],
    /// Share of its own requests that an arriving request does not see.
    pub(super) unseen: f64,
    /// By how much its queue falls without it, relative to that share.
    pub(super) fall: f64,
    /// Its requests in all; infinite for an open class.
    pub(super) population: f64,
    /// Share of its requests that are elsewhere.
    pub(super) elsewhere: f64,
    /// Wait under a fair scheduler before conservation, weighted by load: from the last pass.
    pub(super) fair_work: f64,
}

impl Visit {
    fn busy(&self, direction: usize) -> f64 {
        self.rate[direction] * self.service_s[direction]
    }
}

impl Station {
    /// An empty station of `servers` with services of squared coefficient of variation `variation`,
    /// visited by at most `population` requests.
    pub(super) fn new(servers: f64, variation: f64, population: f64) -> Self {
        Self {
            servers,
            exponent: libm::sqrt(2.0 * (servers + 1.0)) - 1.0,
            variation,
            population,
            possible: 1.0,
            ..Self::default()
        }
    }

    /// Lets a class of at most `limit` requests in.
    pub(super) fn admit(&mut self, limit: f64) {
        self.population += limit;
    }

    pub(super) fn clear(&mut self) {
        *self = Self {
            servers: self.servers,
            exponent: self.exponent,
            variation: self.variation,
            population: self.population,
            possible: 1.0 / self.utilisation().max(1.0),
            extra_s: self.extra_s,
            ..Self::default()
        };
    }

    /// Requests of a visit that wait.
    fn waiting(&self, visit: &Visit, direction: usize) -> f64 {
        (visit.present[direction] - visit.busy(direction) * self.possible).max(0.0)
    }

    pub(super) fn add(&mut self, visit: &Visit) {
        for direction in 0..2 {
            let busy = visit.busy(direction);
            let queued = self.waiting(visit, direction);
            self.busy[direction] += busy;
            self.queued_work[direction] += queued * visit.service_s[direction];
            self.second_moment += busy * visit.service_s[direction];
            self.responsive += busy * visit.elsewhere;
        }
        let present = visit.present[0] + visit.present[1];
        let queued = self.waiting(visit, 0) + self.waiting(visit, 1);
        if visit.population.is_finite() {
            self.away += visit.population * visit.elsewhere;
        } else {
            self.open += present;
            self.open_busy += visit.busy(0) + visit.busy(1);
        }
        self.present += present;
        self.spread += present * visit.elsewhere;
        self.queued += queued;
        self.backlogged += queued / (queued + 1.0);
        self.fair_work += visit.fair_work;
    }

    /// Requests that are elsewhere now and could be here.
    pub(super) fn roam(&self) -> f64 {
        self.away + self.open / (1.0 - self.open_busy / self.servers).max(0.02)
    }

    /// Mean time between departures when all servers are busy.
    pub(super) fn step_s(&self) -> f64 {
        let busy = self.busy[0] + self.busy[1];
        self.second_moment / busy.max(1e-300) / self.servers
    }

    pub(super) fn variation(&self) -> f64 {
        self.variation
    }

    /// Share of the servers that is busy.
    pub(super) fn utilisation(&self) -> f64 {
        (self.busy[0] + self.busy[1]) / self.servers
    }

    /// Squared coefficient of variation of the gaps between departures (Whitt 1983, eq. 38).
    pub(super) fn departure_variation(&self) -> f64 {
        let rho = self.utilisation().min(1.0);
        1.0 + rho * rho * (self.variation - 1.0) / libm::sqrt(self.servers)
    }

    /// Waits from the sums; `arrival_variation` is 1 for Poisson arrivals.
    pub(super) fn close(&mut self, discipline: Discipline, arrival_variation: f64) {
        let offered = self.busy[0] + self.busy[1];
        self.restrain(offered);
        let busy = offered.min(self.servers);
        if busy <= 0.0 || self.population <= self.servers {
            (self.all_busy, self.residual, self.fifo_s) = (0.0, 0.0, 0.0);
            (self.wait_s, self.deficit, self.spared_s) = ([0.0; 2], 0.0, 0.0);
            return;
        }
        let free = (self.spread / self.present.max(1e-300)).clamp(0.0, 1.0);
        let rho = (busy / self.servers).min(1.0);
        let narrowing = 1.0 + (libm::sqrt(free) - 1.0) * (1.0 - 1.0 / self.servers);
        let rho_seen = (1.0 - (1.0 - rho) / narrowing.max(1e-6)).max(0.0);
        self.all_busy = power(rho_seen, self.exponent);
        let spared = (1.0 - 0.5 * (arrival_variation + self.variation)) * free;
        let one = self.second_moment / offered;
        self.residual = one * (1.0 - spared);
        self.spared_s = self.all_busy * one * spared / self.servers;
        let started = self.all_busy * self.residual;
        let [reads, writes] = self.queued_work;
        self.fifo_s = (started + reads + writes) / self.servers;
        let first = match discipline {
            Discipline::Fifo | Discipline::Fair => self.fifo_s,
            Discipline::ReadsFirst { reads_per_write } => {
                let passed = writes.min((reads + one) / reads_per_write);
                (started + reads + passed) / self.servers
            }
        };
        self.wait_s = [first, self.rest(first)];
        // The light users' advantage is the heavy users' burden.
        let work = busy / self.servers * self.fifo_s - self.fair_work;
        self.deficit = work.max(0.0) / self.queued.max(1e-12);
    }

    /// Lets the extra wait grow while more is offered than can be served, and shrink otherwise.
    fn restrain(&mut self, offered: f64) {
        let one = self.second_moment / offered.max(1e-300);
        let excess = (offered / self.servers - 1.0).min(1.0);
        // Little: who is present must wait so much longer for the rate to fall by that share.
        let present = self.present.min(self.population).max(1.0);
        let step = RESTRAINT * excess * one * present / self.servers;
        self.extra_s = (self.extra_s + step).max(0.0);
    }

    /// The wait of writes that conserves work when reads wait `first`.
    fn rest(&self, first: f64) -> f64 {
        if self.busy[1] <= 0.0 || first >= self.fifo_s {
            return self.fifo_s;
        }
        self.fifo_s + (self.fifo_s - first) * self.busy[0] / self.busy[1]
    }

    /// Waits of one class by reads and writes, and its weighted fair wait for the next pass.
    pub(super) fn waits(&self, visit: &Visit, discipline: Discipline) -> ([f64; 2], f64) {
        if self.fifo_s <= 0.0 {
            return ([0.0; 2], 0.0);
        }
        match discipline {
            Discipline::Fair => self.fair(visit),
            _ => {
                let own = [
                    self.unseen_work(visit, 0) + self.unseen_work(visit, 1),
                    self.unseen_work(visit, 0),
                ];
                let reads = match discipline {
                    Discipline::Fifo => own[0],
                    _ => own[1],
                };
                let kept = self.kept(visit);
                let waits = [
                    self.wait_s[0] - reads + kept,
                    self.wait_s[1] - own[0] + kept,
                ];
                (waits.map(|w| w.max(0.0) + self.extra_s), 0.0)
            }
        }
    }

    /// Wait that a request does not meet because it is itself one of its class.
    fn unseen_work(&self, visit: &Visit, direction: usize) -> f64 {
        let busy = visit.busy(direction);
        let all = self.all_busy;
        let share = busy / (self.busy[0] + self.busy[1]);
        let queue = visit.service_s[direction]
            * (self.waiting(visit, direction) + all * busy * self.possible);
        let started = all * (1.0 - all) * (self.exponent * share).min(1.0) * self.residual;
        visit.unseen * visit.fall * (queue + started) / self.servers
    }

    /// Load by which a queue here feeds on itself: the class's own, and all that responds to it.
    pub(super) fn response(&self, visit: &Visit) -> (f64, f64) {
        let feedback = if self.servers > 1.0 {
            self.all_busy
        } else {
            1.0
        };
        let busy = visit.busy(0) + visit.busy(1);
        let others = self.responsive - busy * visit.elsewhere;
        let scale = feedback / self.servers;
        (busy * scale, (busy + others) * scale)
    }

    /// What a residual service does not spare a class that fills the station by itself: its requests
    /// meet a queue that falls by one when they are taken out, and no less.
    fn kept(&self, visit: &Visit) -> f64 {
        let present = visit.present[0] + visit.present[1];
        let falls = (visit.unseen * visit.fall * present).min(1.0);
        self.spared_s * falls * falls
    }

    fn fair(&self, visit: &Visit) -> ([f64; 2], f64) {
        let queued = self.waiting(visit, 0) + self.waiting(visit, 1);
        let busy = visit.busy(0) + visit.busy(1);
        if busy <= 0.0 {
            return ([self.fifo_s; 2], 0.0);
        }
        let mean_service = (self.queued_work[0] + self.queued_work[1]) / self.queued.max(1e-12);
        let rivals = (self.backlogged - queued / (queued + 1.0)).max(0.0);
        let own = self.waiting(visit, 0) * visit.service_s[0]
            + self.waiting(visit, 1) * visit.service_s[1];
        let behind = |passed: f64| {
            (self.all_busy * self.residual + own + passed * mean_service) / self.servers
        };
        let raw = behind((rivals * queued).min((self.queued - queued).max(0.0)));
        let load = busy / self.servers;
        // In turn with its rivals it waits for no more than one of each per request of its own.
        let full = (raw + self.deficit * queued / load).min(behind(rivals.max(1.0) * queued));
        let own = self.unseen_work(visit, 0) + self.unseen_work(visit, 1);
        let wait = (full - own + self.kept(visit)).max(0.0) + self.extra_s;
        ([wait; 2], load * raw)
    }
}

/// `base`^`exponent` for base in [0, 1], interpolated between whole exponents.
pub(super) fn power(base: f64, exponent: f64) -> f64 {
    let whole = exponent as u32;
    let low = whole_power(base, whole);
    low * (1.0 + (exponent - f64::from(whole)) * (base - 1.0))
}

pub(super) fn whole_power(mut base: f64, mut exponent: u32) -> f64 {
    let mut result = 1.0;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= base;
        }
        base *= base;
        exponent >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One open class of reads alone at `servers`, iterated until its queue agrees with its wait.
    fn open_wait(servers: f64, rho: f64, variation: f64) -> f64 {
        let mut station = Station::new(servers, variation, f64::INFINITY);
        let rate = rho * servers;
        let mut wait = 0.0;
        for _ in 0..4000 {
            station.clear();
            let visit = Visit {
                rate: [rate, 0.0],
                service_s: [1.0, 0.0],
                present: [rate * (1.0 + wait), 0.0],
                elsewhere: 1.0,
                ..Visit::default()
            };
            station.add(&visit);
            station.close(Discipline::Fifo, 1.0);
            wait = station.waits(&visit, Discipline::Fifo).0[0];
        }
        wait
    }

    #[test]
    fn one_server_waits_as_pollaczek_and_khinchine_say() {
        for (rho, c2) in [(0.5, 1.0), (0.8, 0.0), (0.9, 0.25)] {
            let exact = rho / (1.0 - rho) * (1.0 + c2) / 2.0;
            assert!((open_wait(1.0, rho, c2) / exact - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn several_servers_wait_as_erlang_c_says() {
        // Erlang C by its recursion.
        for (servers, rho) in [(2_u32, 0.7), (8, 0.8), (10, 0.9), (64, 0.95)] {
            let offered = rho * f64::from(servers);
            let blocked =
                (1..=servers).fold(1.0, |b, n| offered * b / (f64::from(n) + offered * b));
            let delayed = blocked / (1.0 - rho * (1.0 - blocked));
            let exact = delayed / (f64::from(servers) * (1.0 - rho));
            let wait = open_wait(servers.into(), rho, 1.0);
            assert!(
                (wait / exact - 1.0).abs() < 0.1,
                "{servers} {rho} {wait} {exact}"
            );
        }
    }

    #[test]
    fn schedulers_conserve_work() {
        let reads = Visit {
            rate: [30.0, 0.0],
            service_s: [0.01, 0.01],
            present: [1.5, 0.0],
            elsewhere: 1.0,
            ..Visit::default()
        };
        let writes = Visit {
            rate: [0.0, 60.0],
            present: [0.0, 9.0],
            ..reads
        };
        for reads_per_write in [2.0, 16.0] {
            let discipline = Discipline::ReadsFirst { reads_per_write };
            let mut station = Station::new(1.0, 0.25, f64::INFINITY);
            station.add(&reads);
            station.add(&writes);
            station.close(discipline, 1.0);
            let wait = [&reads, &writes].map(|v| station.waits(v, discipline).0);
            let work = 0.3 * wait[0][0] + 0.6 * wait[1][1];
            assert!((work - 0.9 * station.fifo_s).abs() < 1e-12);
            assert!(wait[0][0] < 0.5 * wait[1][1]);
        }
    }
}
