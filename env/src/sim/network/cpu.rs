//! Who runs on the CPUs of a channel, and by how much that stretches each of them.
//!
//! Threads that want to run share the C CPUs of their channel equally, none taking more than one: of
//! n of them each runs at min(1, C/n). A thread meets the others as they are without it: with m of
//! them runnable on average its work is stretched by 1 + E[(n + 1 − C)⁺]/C. For C = 1 that is 1 + m
//! whatever their distribution; otherwise n counts as binomial. A rival that is not saturated runs
//! less while this thread is away, which takes u·(1 − u)/stretch off its share u.
//!
//! A thread that is not bound is put on an idle CPU when it wakes, if there is one: it meets others
//! only when they wake beside it, or when all CPUs of the host are busy.

use super::station::power;

/// CPUs up to which the distribution of the runnable threads is summed; beyond, its mean is used.
const SUMMED_CPUS: f64 = 16.0;

/// Of the threads that run on a CPU on average, the share that wakes beside one that found it idle
/// (fitted to the discrete-event reference).
const WOKEN_BESIDE: f64 = 0.1;
/// Idle CPUs that floating threads find on a channel that is never idle.
const LEAST_IDLE: f64 = 1e-3;

/// Threads that may run on the same CPUs.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Threads {
    count: f64,
    /// Σ u: those that could run, on average.
    pub(super) runnable: f64,
    /// Σ u·(1 − u).
    spread: f64,
}

impl Threads {
    /// Adds `count` threads that are runnable the share `busy` of the time. One that never runs is
    /// nobody's rival.
    pub(super) fn add(&mut self, count: f64, busy: f64) {
        if busy <= 0.0 {
            return;
        }
        self.count += count;
        self.runnable += count * busy;
        self.spread += count * busy * (1.0 - busy);
    }

    fn add_share(&mut self, others: &Self, share: f64) {
        self.count += share * others.count;
        self.runnable += share * others.runnable;
        self.spread += share * others.spread;
    }
}

/// Load that is there whatever the disks do: threads that burn and pause.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Burners {
    threads: f64,
    cores: f64,
}

impl Burners {
    pub(super) fn add(&mut self, cores: f64) {
        if cores > 0.0 {
            self.threads += libm::ceil(cores);
            self.cores += cores;
        }
    }

    /// Share of the time in which one of them is runnable when its work is stretched.
    fn busy(&self, stretch: f64) -> f64 {
        let alone = self.cores / self.threads;
        alone * stretch / (alone * stretch + 1.0 - alone)
    }

    pub(super) fn join(&self, threads: &mut Threads, stretch: f64) {
        if self.threads > 0.0 {
            threads.add(self.threads, self.busy(stretch));
        }
    }

    /// What they get, cores.
    pub(super) fn served(&self, stretch: f64) -> f64 {
        if self.threads > 0.0 {
            self.threads * self.busy(stretch) / stretch
        } else {
            0.0
        }
    }

    pub(super) fn stretch(&self, pool: &Pool, last: f64) -> f64 {
        if self.threads > 0.0 {
            pool.stretch(self.busy(last), last)
        } else {
            1.0
        }
    }
}

/// The CPUs of a channel, or of the whole host for the threads that float.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pool {
    pub(super) cpus: f64,
    /// Share of the floating threads that run here.
    pub(super) floating: f64,
    pub(super) threads: Threads,
}

impl Pool {
    /// By how much a thread's work is stretched that is itself runnable the share `busy` of the time
    /// and was stretched by `last`.
    pub(super) fn stretch(&self, busy: f64, last: f64) -> f64 {
        let own = busy * (1.0 - busy);
        let without = busy * (self.threads.spread - own).max(0.0) / last;
        let rivals = (self.threads.runnable - busy - without).max(0.0);
        if self.cpus <= 1.0 {
            return 1.0 + rivals;
        }
        1.0 + self.excess(rivals) / self.cpus
    }

    /// E[(n − (C − 1))⁺] for n rivals of mean `mean`.
    fn excess(&self, mean: f64) -> f64 {
        let (spare, threads) = (self.cpus - 1.0, self.threads.count - 1.0);
        if threads <= spare || mean <= 0.0 {
            return 0.0;
        }
        let over = mean - spare;
        if self.cpus > SUMMED_CPUS {
            return over.max(0.0);
        }
        (over + shortfall(mean, threads, spare)).max(0.0)
    }

    /// CPUs that the threads bound to them leave idle.
    fn idle(&self) -> f64 {
        let mean = self.cpus - self.threads.runnable;
        if self.threads.count < 1.0 || self.cpus > SUMMED_CPUS {
            return mean.max(LEAST_IDLE);
        }
        let lacking = shortfall(self.threads.runnable, self.threads.count, self.cpus);
        lacking.max(mean).max(LEAST_IDLE)
    }

    /// What one runnable rival more adds to a stretch, on average.
    pub(super) fn per_rival(&self, stretch: f64) -> f64 {
        ((stretch - 1.0) / self.threads.runnable.max(1e-3)).min(1.0 / self.cpus)
    }

    fn occupancy(&self) -> f64 {
        (self.threads.runnable / self.cpus).min(1.0)
    }
}

/// E[(most − n)⁺] for n of `threads` threads runnable, binomial with mean `mean`.
fn shortfall(mean: f64, threads: f64, most: f64) -> f64 {
    let share = mean / threads;
    if share > 0.999 {
        return (most - mean).max(0.0);
    }
    let odds = share / (1.0 - share);
    let mut probability = power(1.0 - share, threads);
    let (mut short, mut n) = (0.0, 0.0);
    while n < most {
        short += (most - n) * probability;
        probability *= (threads - n).max(0.0) / (n + 1.0) * odds;
        n += 1.0;
    }
    short
}

/// How threads that are not bound spread over the channels.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Floating {
    pub(super) threads: Threads,
    /// All threads and CPUs of the host.
    host: Pool,
    /// Runnable threads per CPU where an idle CPU was found.
    met: f64,
}

impl Floating {
    /// Adds the floating threads to the channels: to idle CPUs as long as there are any, and evenly
    /// beyond.
    pub(super) fn spread(&mut self, channels: &mut [Pool]) {
        let idle: f64 = channels.iter().map(Pool::idle).sum();
        let cpus: f64 = channels.iter().map(|pool| pool.cpus).sum();
        let beyond = (self.threads.runnable - idle).max(0.0);
        (self.host, self.met) = (Pool::default(), 0.0);
        for pool in channels.iter_mut() {
            let own = pool.idle() + beyond * pool.cpus / cpus;
            pool.floating = own / (idle + beyond);
            self.met += pool.floating * pool.occupancy();
            pool.threads.add_share(&self.threads, pool.floating);
            self.host.threads.add_share(&pool.threads, 1.0);
        }
        self.host.cpus = cpus;
    }

    /// By how much the work of a floating thread is stretched that is itself runnable the share
    /// `busy` of the time and was stretched by `last`.
    pub(super) fn stretch(&self, busy: f64, last: f64) -> f64 {
        if self.host.cpus <= 0.0 {
            return 1.0;
        }
        self.host.stretch(busy, last) + WOKEN_BESIDE * self.met
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(cpus: f64, rivals: &[f64]) -> Pool {
        let mut threads = Threads::default();
        rivals.iter().for_each(|u| threads.add(1.0, *u));
        Pool {
            cpus,
            threads,
            ..Pool::default()
        }
    }

    #[test]
    fn a_saturated_rival_on_the_same_cpu_halves_the_speed() {
        assert!((pool(1.0, &[0.3, 1.0]).stretch(0.3, 2.0) - 2.0).abs() < 1e-9);
        assert!((pool(2.0, &[0.3, 1.0]).stretch(0.3, 1.0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn two_cpus_are_short_only_when_two_rivals_run() {
        // Three threads, the rivals runnable half the time each: n = 2 with probability ¼.
        let stretch = pool(2.0, &[1.0, 0.5, 0.5]).stretch(1.0, f64::INFINITY);
        assert!((stretch - (1.0 + 0.25 / 2.0)).abs() < 1e-9, "{stretch}");
    }
}
