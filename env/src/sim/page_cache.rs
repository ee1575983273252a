//! Hit rates of an LRU page cache shared by several Zipf working sets, by Che's approximation.
//!
//! A page of popularity rate λ is in the cache with probability 1 − exp(−λ·T), where the
//! characteristic time T makes the expected occupancy equal to the cache's size
//! (Che, Tung, Wang 2002, eq. 2–4; exact in the limit of large caches: Fricker, Robert, Roberts 2012).
//! The network's fixed point moves T along with the throughputs, so a working set is looked up in
//! every pass: occupancy and hit probability are tabulated over the logarithm of the references.

/// Ranks that are counted one by one; the rest are lumped into geometrically growing buckets.
const SINGLE_RANKS: usize = 8;
/// Buckets in all.
const BUCKETS: usize = 36;
/// Points of a tabulated curve.
const POINTS: usize = 64;
/// References (in units of the hottest page's) at which the table begins; below, all is linear.
const FIRST_REFERENCES: f64 = 0.02;
/// References of the coldest page at which a working set counts as resident.
const LAST_REFERENCES: f64 = 14.0;

/// Popularity of the pages of a working set: Zipf with exponent `skew` over `pages` pages.
#[derive(Debug, Clone, PartialEq)]
pub struct Popularity {
    /// Pages per bucket.
    pages: [f64; BUCKETS],
    /// Probability that a request goes to one given page of the bucket.
    probability: [f64; BUCKETS],
}

impl Popularity {
    /// Zipf popularity over `pages` ≥ 1 pages with exponent `skew` ≥ 0.
    #[must_use]
    pub fn zipf(pages: f64, skew: f64) -> Self {
        let pages = pages.max(1.0);
        let mut popularity = Self {
            pages: [0.0; BUCKETS],
            probability: [0.0; BUCKETS],
        };
        let mut total = 0.0;
        for b in 0..BUCKETS {
            let (low, high) = (edge(b, pages), edge(b + 1, pages));
            let count = high - low;
            if count <= 0.0 {
                continue;
            }
            // Rank r stands for the interval from r − ½ to r + ½ of the continuous law.
            let weight = if b < SINGLE_RANKS {
                count * libm::pow(b as f64 + 1.0, -skew)
            } else {
                power_integral(low + 0.5, high + 0.5, skew)
            };
            popularity.pages[b] = count;
            popularity.probability[b] = weight / count;
            total += weight;
        }
        for p in &mut popularity.probability {
            *p /= total;
        }
        popularity
    }

    /// Pages in all.
    #[must_use]
    pub fn len(&self) -> f64 {
        self.pages.iter().sum()
    }

    /// Expected pages in the cache and hit probability, `references` = page references by this
    /// working set within the characteristic time.
    #[must_use]
    pub fn occupancy(&self, references: f64) -> (f64, f64) {
        let (mut resident, mut hit) = (0.0, 0.0);
        for (n, p) in self.pages.iter().zip(&self.probability) {
            let present = -libm::expm1(-references * p);
            resident += n * present;
            hit += n * p * present;
        }
        (resident, hit)
    }

    /// Probability of the hottest and of the coldest page.
    fn extremes(&self) -> (f64, f64) {
        let used = || {
            let buckets = self.pages.iter().zip(&self.probability);
            buckets.filter(|(n, _)| **n > 0.0).map(|(_, p)| *p)
        };
        (used().fold(0.0, f64::max), used().fold(1.0, f64::min))
    }
}

/// Pages of rank at most that of the bucket's lower edge.
fn edge(bucket: usize, pages: f64) -> f64 {
    let single = SINGLE_RANKS as f64;
    if bucket <= SINGLE_RANKS || pages <= single {
        return (bucket as f64).min(pages);
    }
    let share = (bucket - SINGLE_RANKS) as f64 / (BUCKETS - SINGLE_RANKS) as f64;
    single * libm::pow(pages / single, share)
}

/// ∫ r^−s dr from `low` to `high`.
fn power_integral(low: f64, high: f64, s: f64) -> f64 {
    let power = 1.0 - s;
    if power.abs() < 1e-9 {
        return libm::log(high / low);
    }
    (libm::pow(high, power) - libm::pow(low, power)) / power
}

/// What a working set keeps in the cache and how often it hits, over the logarithm of its
/// references within the characteristic time: a table with linear interpolation (error < 0.5 %).
#[derive(Debug, Clone, PartialEq)]
pub struct HitCurve {
    /// Logarithm of the references at the first point, and points per unit of it.
    first: f64,
    per_unit: f64,
    /// Share of the working set that is resident, and hit probability, at each point.
    resident: [f64; POINTS],
    hit: [f64; POINTS],
    pages: f64,
}

/// A point of a [`HitCurve`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Residency {
    /// Expected pages in the cache.
    pub pages: f64,
    /// Derivative of `pages` by the logarithm of the references.
    pub pages_slope: f64,
    /// Hit probability.
    pub hit: f64,
}

impl Default for HitCurve {
    /// A curve of no pages, to be computed later.
    fn default() -> Self {
        Self {
            first: 0.0,
            per_unit: 0.0,
            resident: [0.0; POINTS],
            hit: [0.0; POINTS],
            pages: 0.0,
        }
    }
}

impl HitCurve {
    /// The curve of a working set of `pages` ≥ 1 pages with Zipf exponent `skew` ≥ 0.
    #[must_use]
    pub fn zipf(pages: f64, skew: f64) -> Self {
        let popularity = Popularity::zipf(pages, skew);
        let (hottest, coldest) = popularity.extremes();
        let first = libm::log(FIRST_REFERENCES / hottest);
        let last = libm::log(LAST_REFERENCES / coldest);
        let per_unit = (POINTS - 1) as f64 / (last - first);
        let pages = popularity.len();
        let (mut resident, mut hit) = ([0.0; POINTS], [0.0; POINTS]);
        for point in 0..POINTS {
            let references = libm::exp(first + point as f64 / per_unit);
            let (r, h) = popularity.occupancy(references);
            (resident[point], hit[point]) = (r / pages, h);
        }
        Self {
            first,
            per_unit,
            resident,
            hit,
            pages,
        }
    }

    /// Pages of the working set.
    #[must_use]
    pub fn len(&self) -> f64 {
        self.pages
    }

    /// The curve at a logarithm of references.
    #[must_use]
    pub fn at(&self, log_references: f64) -> Residency {
        let place = (log_references - self.first) * self.per_unit;
        if place < 0.0 {
            let share = libm::exp(log_references - self.first);
            let pages = self.pages * self.resident[0] * share;
            return Residency {
                pages,
                pages_slope: pages,
                hit: self.hit[0] * share,
            };
        }
        let last = (POINTS - 1) as f64;
        if place >= last {
            return Residency {
                pages: self.pages,
                pages_slope: 0.0,
                hit: 1.0,
            };
        }
        let low = place as usize;
        let part = place - low as f64;
        let rise = self.resident[low + 1] - self.resident[low];
        Residency {
            pages: self.pages * (self.resident[low] + part * rise),
            pages_slope: self.pages * rise * self.per_unit,
            hit: self.hit[low] + part * (self.hit[low + 1] - self.hit[low]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Residency of one working set alone in a cache of `capacity` pages.
    fn alone(curve: &HitCurve, capacity: f64) -> Residency {
        let (mut low, mut high) = (-20.0, 80.0);
        for _ in 0..100 {
            let middle = 0.5 * (low + high);
            if curve.at(middle).pages > capacity {
                high = middle;
            } else {
                low = middle;
            }
        }
        curve.at(low)
    }

    #[test]
    fn uniform_popularity_hits_in_proportion_to_the_cache() {
        let at = alone(&HitCurve::zipf(10_000.0, 0.0), 2_500.0);
        assert!((at.pages / 2_500.0 - 1.0).abs() < 0.01, "{at:?}");
        assert!((at.hit - 0.25).abs() < 0.01, "{at:?}");
    }

    #[test]
    fn skew_helps_and_more_cache_never_hurts() {
        let flat = HitCurve::zipf(1e6, 0.2);
        let steep = HitCurve::zipf(1e6, 1.1);
        assert!(alone(&steep, 1e5).hit > alone(&flat, 1e5).hit + 0.3);
        let hits = [1e2, 1e3, 1e4, 1e5, 5e5, 9e5].map(|c| alone(&flat, c).hit);
        assert!(hits.windows(2).all(|w| w[0] <= w[1]), "{hits:?}");
    }

    #[test]
    fn the_table_follows_the_exact_sum() {
        for (pages, skew) in [(1.0, 0.5), (40.0, 1.0), (5e3, 0.8), (1e7, 1.3), (1e6, 0.0)] {
            let (curve, exact) = (HitCurve::zipf(pages, skew), Popularity::zipf(pages, skew));
            for step in -40..400 {
                let log = f64::from(step) * 0.1;
                let (resident, hit) = exact.occupancy(libm::exp(log));
                let at = curve.at(log);
                assert!(
                    (at.hit - hit).abs() < 0.006,
                    "{pages} {skew} {log} {at:?} {hit}"
                );
                assert!(
                    (at.pages - resident).abs() < 0.006 * pages,
                    "{at:?} {resident}"
                );
            }
        }
    }

    #[test]
    fn few_pages_have_exact_zipf_probabilities() {
        let popularity = Popularity::zipf(3.0, 1.0);
        let sum = 1.0 + 0.5 + 1.0 / 3.0;
        for (rank, p) in popularity.probability[..3].iter().enumerate() {
            assert!((p - 1.0 / (rank as f64 + 1.0) / sum).abs() < 1e-12, "{p}");
        }
    }

    #[test]
    fn probabilities_sum_to_one_and_pages_to_the_working_set() {
        for (pages, skew) in [(1.0, 0.5), (17.0, 0.0), (1e7, 1.3), (2.5, 1.0)] {
            let p = Popularity::zipf(pages, skew);
            let mass: f64 = p.pages.iter().zip(&p.probability).map(|(n, q)| n * q).sum();
            assert!((mass - 1.0).abs() < 1e-9, "{mass}");
            assert!((p.len() / pages - 1.0).abs() < 1e-9);
        }
    }
}
