//! Kinds of work that guests are known to do.
//!
//! What a request looks like tells what becomes of the page cache: small reads come back to a hot set, scans and
//! backups read once, rebuilds and ingestion write what nobody reads soon. A policy can only learn to read the one
//! off the other where hosts are drawn so. That size, share of reads and reuse are properties of the work, and go
//! together, is what production traces show (Narayanan et al. 2008, "Write off-loading"; Lee et al. 2017,
//! "Understanding storage traffic characteristics on enterprise virtual desktop infrastructure"); the ranges are our
//! own, and wide.

use rand::RngExt as _;
use rand::seq::IndexedRandom as _;

use super::{chance, log_uniform};
use crate::sim::scenario::Phase;

/// A kind of work. Ranges are inclusive, drawn log-uniformly where they span more than a factor of ten.
struct Work {
    /// How often it is drawn, relative to the others.
    weight: u32,
    outstanding: (f64, f64),
    /// How often its requests follow one another at once; else `think_us`.
    eager: f64,
    think_us: (f64, f64),
    read_share: (f64, f64),
    request_kib: &'static [f64],
    reuse: Reuse,
    sequential_share: (f64, f64),
    flush_share: (f64, f64),
}

/// What of the image is worked on.
enum Reuse {
    /// A hot set of so many GiB, with this skew.
    Hot((f64, f64), (f64, f64)),
    /// A share of the image, with this skew.
    Image((f64, f64), (f64, f64)),
}

const KINDS: [Work; 8] = [
    // Transactions: small, mostly reads, committed by flushes.
    Work {
        weight: 4,
        outstanding: (1.0, 32.0),
        eager: 0.2,
        think_us: (20.0, 500.0),
        read_share: (0.5, 0.95),
        request_kib: &[4.0, 4.0, 8.0, 16.0],
        reuse: Reuse::Hot((0.5, 24.0), (0.4, 1.1)),
        sequential_share: (0.0, 0.0),
        flush_share: (0.0, 0.4),
    },
    // A hot set that is served: pages, an index, sources of a build.
    Work {
        weight: 4,
        outstanding: (1.0, 16.0),
        eager: 0.2,
        think_us: (30.0, 600.0),
        read_share: (0.95, 1.0),
        request_kib: &[4.0, 8.0, 16.0, 32.0, 64.0],
        reuse: Reuse::Hot((0.3, 6.0), (0.4, 1.1)),
        sequential_share: (0.0, 0.3),
        flush_share: (0.0, 0.0),
    },
    // Lookups over everything that there is.
    Work {
        weight: 2,
        outstanding: (1.0, 32.0),
        eager: 0.5,
        think_us: (30.0, 600.0),
        read_share: (0.95, 1.0),
        request_kib: &[4.0, 4.0, 8.0],
        reuse: Reuse::Image((0.5, 1.0), (0.0, 0.2)),
        sequential_share: (0.0, 0.0),
        flush_share: (0.0, 0.0),
    },
    // Scans and backups: once through the image.
    Work {
        weight: 3,
        outstanding: (2.0, 32.0),
        eager: 0.8,
        think_us: (50.0, 1000.0),
        read_share: (0.98, 1.0),
        request_kib: &[128.0, 256.0, 512.0, 1024.0],
        reuse: Reuse::Image((0.5, 1.0), (0.0, 0.1)),
        sequential_share: (0.0, 1.0),
        flush_share: (0.0, 0.0),
    },
    // An index is rebuilt, an image is written.
    Work {
        weight: 3,
        outstanding: (2.0, 16.0),
        eager: 0.3,
        think_us: (100.0, 1000.0),
        read_share: (0.0, 0.1),
        request_kib: &[32.0, 64.0, 128.0, 256.0],
        reuse: Reuse::Image((0.3, 1.0), (0.0, 0.2)),
        sequential_share: (0.0, 1.0),
        flush_share: (0.0, 0.05),
    },
    // Ingestion: small writes, many at once.
    Work {
        weight: 2,
        outstanding: (4.0, 64.0),
        eager: 0.5,
        think_us: (20.0, 500.0),
        read_share: (0.0, 0.15),
        request_kib: &[4.0, 8.0, 16.0],
        reuse: Reuse::Image((0.1, 1.0), (0.0, 0.6)),
        sequential_share: (0.0, 0.5),
        flush_share: (0.0, 0.3),
    },
    // A trickle between bursts.
    Work {
        weight: 3,
        outstanding: (1.0, 1.0),
        eager: 0.0,
        think_us: (200.0, 5000.0),
        read_share: (0.0, 1.0),
        request_kib: &[4.0, 4.0, 8.0, 16.0],
        reuse: Reuse::Image((0.05, 1.0), (0.0, 1.0)),
        sequential_share: (0.0, 0.0),
        flush_share: (0.0, 0.2),
    },
    // At rest.
    Work {
        weight: 1,
        outstanding: (0.0, 0.0),
        eager: 1.0,
        think_us: (0.0, 0.0),
        read_share: (1.0, 1.0),
        request_kib: &[4.0],
        reuse: Reuse::Image((0.1, 1.0), (0.0, 0.0)),
        sequential_share: (0.0, 0.0),
        flush_share: (0.0, 0.0),
    },
];

/// A phase of one of the kinds.
pub(super) fn draw(capacity_gib: f64, rng: &mut crate::Rng) -> Phase {
    let kind = KINDS.choose_weighted(rng, |kind| kind.weight);
    let kind = kind.expect("the weights are above 0");
    let (working_set_gib, skew) = match kind.reuse {
        Reuse::Hot(gib, skew) => (between(gib, rng).min(capacity_gib), between(skew, rng)),
        Reuse::Image(share, skew) => (capacity_gib * between(share, rng), between(skew, rng)),
    };
    let is_eager = chance(rng, kind.eager);
    Phase {
        outstanding: between(kind.outstanding, rng).round(),
        arrivals_per_s: None,
        think_us: if is_eager {
            0.0
        } else {
            between(kind.think_us, rng)
        },
        read_share: between(kind.read_share, rng),
        request_kib: kind.request_kib[rng.random_range(0..kind.request_kib.len())],
        working_set_gib,
        skew,
        sequential_share: half_the_time(kind.sequential_share, rng),
        flush_share: half_the_time(kind.flush_share, rng),
        snapshot: chance(rng, 0.04),
        next: vec![],
        mean_intervals: log_uniform(rng, 8.0, 60.0),
    }
}

fn half_the_time(range: (f64, f64), rng: &mut crate::Rng) -> f64 {
    if range.1 > 0.0 && chance(rng, 0.5) {
        between(range, rng)
    } else {
        range.0
    }
}

fn between((low, high): (f64, f64), rng: &mut crate::Rng) -> f64 {
    if low == high {
        low
    } else if low > 0.0 && high > 10.0 * low {
        log_uniform(rng, low, high)
    } else {
        rng.random_range(low..high)
    }
}
