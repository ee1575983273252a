//! Hit rates of an LRU page cache shared by several Zipf working sets, by Che's approximation.
//!
//! A page of popularity rate λ is in the cache with probability 1 − exp(−λ·T), where the
//! characteristic time T makes the expected occupancy equal to the cache's size
//! (Che, Tung, Wang 2002, eq. 2–4; exact in the limit of large caches: Fricker, Robert, Roberts 2012).

/// Ranks are lumped into geometrically growing buckets: within one, popularity varies by at most 2^s.
const BUCKETS: usize = 22;

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
        let edge = |b: usize| libm::pow(pages, b as f64 / BUCKETS as f64);
        let mut popularity = Self {
            pages: [0.0; BUCKETS],
            probability: [0.0; BUCKETS],
        };
        let mut total = 0.0;
        for b in 0..BUCKETS {
            // The first edge lies below rank 1, so that the buckets hold all pages between them.
            let low = if b == 0 { 0.0 } else { edge(b) };
            let high = edge(b + 1);
            let middle = libm::sqrt(low.max(1.0) * high);
            popularity.pages[b] = high - low;
            popularity.probability[b] = libm::pow(middle, -skew);
            total += popularity.pages[b] * popularity.probability[b];
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
}

/// One user of the cache: its popularity, its references per second and the size of what it caches.
#[derive(Debug, Clone, Copy)]
pub struct CacheUser<'a> {
    /// How its references spread over its pages.
    pub popularity: &'a Popularity,
    /// References per second.
    pub rate: f64,
    /// Bytes per page (its request size, where that is larger than a page of memory).
    pub page_bytes: f64,
}

/// The characteristic time, in seconds, of a cache of `capacity` bytes: infinite where all working
/// sets fit. `guess` is a starting point, such as the last solution.
#[must_use]
pub fn characteristic_time(users: &[CacheUser<'_>], capacity: f64, guess: f64) -> f64 {
    let wanted: f64 = users
        .iter()
        .filter(|u| u.rate > 0.0)
        .map(|u| u.popularity.len() * u.page_bytes)
        .sum();
    if wanted <= capacity {
        return f64::INFINITY;
    }
    let occupied = |t: f64| -> f64 {
        users
            .iter()
            .map(|u| u.page_bytes * u.popularity.occupancy(u.rate * t).0)
            .sum::<f64>()
            - capacity
    };
    // Bracket the root geometrically around the guess, then bisect in log time: occupancy grows with t.
    let mut low = if guess.is_finite() && guess > 0.0 {
        guess
    } else {
        1.0
    };
    let mut high = low;
    const MAX_DOUBLINGS: u32 = 200;
    for _ in 0..MAX_DOUBLINGS {
        if occupied(low) <= 0.0 {
            break;
        }
        low *= 0.5;
    }
    for _ in 0..MAX_DOUBLINGS {
        if occupied(high) >= 0.0 {
            break;
        }
        high *= 2.0;
    }
    const BISECTIONS: u32 = 14;
    for _ in 0..BISECTIONS {
        let middle = libm::sqrt(low * high);
        if occupied(middle) > 0.0 {
            high = middle;
        } else {
            low = middle;
        }
        if high / low < 1.0 + 1e-3 {
            break;
        }
    }
    libm::sqrt(low * high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_popularity_hits_in_proportion_to_the_cache() {
        let uniform = Popularity::zipf(10_000.0, 0.0);
        let user = CacheUser {
            popularity: &uniform,
            rate: 1000.0,
            page_bytes: 1.0,
        };
        let t = characteristic_time(&[user], 2_500.0, 1.0);
        let (resident, hit) = uniform.occupancy(1000.0 * t);
        assert!((resident / 2_500.0 - 1.0).abs() < 0.01, "{resident}");
        assert!((hit - 0.25).abs() < 0.01, "{hit}");
    }

    #[test]
    fn skew_helps_and_more_cache_never_hurts() {
        let flat = Popularity::zipf(1e6, 0.2);
        let steep = Popularity::zipf(1e6, 1.1);
        let hit = |p: &Popularity, capacity: f64| {
            let t = characteristic_time(
                &[CacheUser {
                    popularity: p,
                    rate: 5e4,
                    page_bytes: 1.0,
                }],
                capacity,
                3.0,
            );
            p.occupancy(5e4 * t).1
        };
        assert!(hit(&steep, 1e5) > hit(&flat, 1e5) + 0.3);
        let hits: Vec<f64> = [1e3, 1e4, 1e5, 5e5, 9e5]
            .iter()
            .map(|c| hit(&flat, *c))
            .collect();
        assert!(hits.windows(2).all(|w| w[0] <= w[1]), "{hits:?}");
    }

    #[test]
    fn a_working_set_that_fits_always_hits() {
        let small = Popularity::zipf(100.0, 0.9);
        let t = characteristic_time(
            &[CacheUser {
                popularity: &small,
                rate: 10.0,
                page_bytes: 1.0,
            }],
            1e4,
            1.0,
        );
        assert!(t.is_infinite());
        assert!((small.occupancy(t).1 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn probabilities_sum_to_one_and_pages_to_the_working_set() {
        for (pages, skew) in [(1.0, 0.5), (17.0, 0.0), (1e7, 1.3)] {
            let p = Popularity::zipf(pages, skew);
            let mass: f64 = p.pages.iter().zip(&p.probability).map(|(n, q)| n * q).sum();
            assert!((mass - 1.0).abs() < 1e-9, "{mass}");
            assert!((p.len() / pages - 1.0).abs() < 1e-9);
        }
    }
}
