//! The 99th percentile of the latency.
//!
//! Requests are a mixture of those that skip the device, device reads and device writes. Each kind's
//! latency is a sum of nearly independent parts, so that a gamma law with its mean and variance
//! fits; its quantiles come from Wilson and Hilferty's cube (1931). The quantile of the mixture
//! starts from the kind that reaches furthest and is moved along that kind's exponential tail until
//! all kinds together exceed it with 1 %.

const TAIL: f64 = 0.01;
/// Corrections of the mixture's quantile.
const CORRECTIONS: u32 = 3;
/// Kinds rarer than this are left out.
const NEGLIGIBLE: f64 = 1e-4;

/// One kind of request.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Kind {
    /// Share of the requests.
    pub(super) share: f64,
    /// Mean latency, seconds.
    pub(super) mean_s: f64,
    /// Variance of the latency, seconds².
    pub(super) variance: f64,
}

impl Kind {
    fn shape(&self) -> f64 {
        self.mean_s * self.mean_s / self.variance.max(1e-6 * self.mean_s * self.mean_s)
    }

    /// Latency that the share `tail` of this kind exceeds.
    fn quantile(&self, tail: f64) -> f64 {
        let ninth = 1.0 / (9.0 * self.shape());
        let cube = 1.0 - ninth + normal_quantile(tail) * libm::sqrt(ninth);
        self.mean_s * (cube * cube * cube).max(0.0)
    }

    /// Share of this kind that exceeds a latency.
    fn tail(&self, latency_s: f64) -> f64 {
        let ninth = 1.0 / (9.0 * self.shape());
        let z = (libm::cbrt(latency_s / self.mean_s) - 1.0 + ninth) / libm::sqrt(ninth);
        0.5 * libm::erfc(z * core::f64::consts::FRAC_1_SQRT_2)
    }
}

/// The latency that 1 % of the requests exceed, seconds.
pub(super) fn p99_s(kinds: &[Kind; 3]) -> f64 {
    let counts = |kind: &&Kind| kind.share > NEGLIGIBLE && kind.mean_s > 0.0;
    let total: f64 = kinds.iter().filter(counts).map(|k| k.share).sum();
    if total <= 0.0 {
        return 0.0;
    }
    let tail = TAIL * total;
    let mut furthest: Option<(f64, &Kind)> = None;
    for kind in kinds.iter().filter(counts) {
        if kind.share > tail {
            let reach = kind.quantile((tail / kind.share).min(0.99));
            if furthest.is_none_or(|(best, _)| reach > best) {
                furthest = Some((reach, kind));
            }
        }
    }
    let Some((mut latency_s, kind)) = furthest else {
        return 0.0;
    };
    if kinds.iter().filter(counts).count() == 1 {
        return latency_s;
    }
    let rate = kind.mean_s / kind.variance.max(1e-6 * kind.mean_s * kind.mean_s);
    for _ in 0..CORRECTIONS {
        let above: f64 = kinds
            .iter()
            .filter(counts)
            .map(|k| k.share * k.tail(latency_s))
            .sum();
        latency_s += libm::log((above / tail).clamp(1e-3, 1e3)) / rate;
        latency_s = latency_s.max(0.1 * kind.mean_s);
    }
    latency_s
}

/// z with P(Z > z) = `tail`, for tails in (0, 1); error below 4.5e-4 (Abramowitz and Stegun 26.2.23).
fn normal_quantile(tail: f64) -> f64 {
    if tail > 0.5 {
        return -normal_quantile(1.0 - tail);
    }
    let t = libm::sqrt(-2.0 * libm::log(tail.max(1e-12)));
    let above = 2.515_517 + t * (0.802_853 + t * 0.010_328);
    let below = 1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308));
    t - above / below
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exponential(share: f64, mean_s: f64) -> Kind {
        Kind {
            share,
            mean_s,
            variance: mean_s * mean_s,
        }
    }

    #[test]
    fn an_exponential_ends_at_its_mean_times_ln_100() {
        let p99 = p99_s(&[exponential(1.0, 2.0), Kind::default(), Kind::default()]);
        assert!((p99 / (2.0 * 100_f64.ln()) - 1.0).abs() < 0.01, "{p99}");
    }

    #[test]
    fn a_mixture_exceeds_its_percentile_with_one_percent() {
        for (share, slow) in [(0.5, 1.0), (0.05, 10.0), (0.002, 50.0), (0.3, 1.5)] {
            let kinds = [
                exponential(1.0 - share, 1.0),
                exponential(share, slow),
                Kind::default(),
            ];
            let p99 = p99_s(&kinds);
            let above: f64 = (1.0 - share) * (-p99).exp() + share * (-p99 / slow).exp();
            assert!(
                (0.0085..0.0115).contains(&above),
                "{share} {slow} {p99} {above}"
            );
        }
    }
}
