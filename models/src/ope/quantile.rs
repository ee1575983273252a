//! Quantiles of the normal and of Student's distribution, to 12 digits and more.
//!
//! (Of the statistics libraries none holds 1e-12 for thousands of degrees of freedom: they subtract
//! logarithms of gamma functions.)

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

/// From here on the expansion in 1/degrees is exact to f64; below, the finite sum is.
const MANY_DEGREES: f64 = 1000.0;
/// Halvings of an interval until its ends are neighbours.
const HALVINGS: usize = 1100;

/// Quantile of the standard normal distribution; `probability` in (0, 1).
#[must_use]
pub fn normal(probability: f64) -> f64 {
    if probability > 0.5 {
        return -normal(1.0 - probability);
    }
    // The lower tail, where the distribution function keeps its digits.
    -bisect(|x| 0.5 * libm::erfc(x * FRAC_1_SQRT_2), probability)
}

/// Quantile of Student's distribution; `probability` in (0, 1), `degrees` of freedom a whole number, at least
/// 1.
#[must_use]
pub fn student(probability: f64, degrees: f64) -> f64 {
    if probability < 0.5 {
        return -student(1.0 - probability, degrees);
    }
    if degrees >= MANY_DEGREES {
        return expansion(normal(probability), degrees);
    }
    bisect(
        |t| 0.5 - 0.5 * central(t, degrees as u32),
        1.0 - probability,
    )
}

/// Where a function that falls from 1/2 at 0 towards 0 has this value.
fn bisect(falling: impl Fn(f64) -> f64, value: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    while falling(high) > value && high < f64::MAX / 2.0 {
        (low, high) = (high, high * 2.0);
    }
    for _ in 0..HALVINGS {
        let middle = low + (high - low) / 2.0;
        if middle == low || middle == high {
            break;
        }
        if falling(middle) > value {
            low = middle;
        } else {
            high = middle;
        }
    }
    low + (high - low) / 2.0
}

/// P(|T| < t).
///
/// Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
fn central(t: f64, degrees: u32) -> f64 {
    let angle = libm::atan(t / f64::from(degrees).sqrt());
    let (sin, cos) = (libm::sin(angle), libm::cos(angle));
    // Each term is the one before times cos² k/(k + 1), for k odd or even.
    let odd = degrees % 2 == 1;
    let first = if odd { cos } else { 1.0 };
    let (mut term, mut sum) = (first, 0.0);
    for k in (if odd { 2 } else { 1 }..degrees).step_by(2) {
        sum += term;
        term *= cos * cos * f64::from(k) / f64::from(k + 1);
    }
    if odd {
        FRAC_2_PI * (angle + sin * sum)
    } else {
        sin * sum
    }
}

/// Student's quantile from the normal one.
///
/// Source: Abramowitz and Stegun 1964, 26.7.5.
fn expansion(x: f64, degrees: f64) -> f64 {
    let y = x * x;
    let terms = [
        x * (y + 1.0) / 4.0,
        x * ((5.0 * y + 16.0) * y + 3.0) / 96.0,
        x * (((3.0 * y + 19.0) * y + 17.0) * y - 15.0) / 384.0,
        x * ((((79.0 * y + 776.0) * y + 1482.0) * y - 1920.0) * y - 945.0) / 92160.0,
    ];
    x + terms
        .iter()
        .rev()
        .fold(0.0, |sum, term| (sum + term) / degrees)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, known: f64) {
        assert!((found / known - 1.0).abs() < 2e-14, "{found} {known}");
    }

    /// Known to more digits than f64 has.
    #[test]
    fn normal_quantiles_are_those_of_the_tables() {
        near(normal(0.975), 1.959_963_984_540_054_2);
        near(normal(0.95), 1.644_853_626_951_472_7);
        near(normal(0.005), -2.575_829_303_548_901);
        assert!(normal(0.5).abs() < 1e-15);
    }

    /// One degree of freedom is Cauchy's distribution, two have a closed form, others stand in tables.
    #[test]
    fn student_quantiles_are_those_of_closed_forms() {
        near(student(0.975, 1.0), (std::f64::consts::PI * 0.475).tan());
        let p: f64 = 0.975;
        near(
            student(p, 2.0),
            (2.0 * p - 1.0) / (2.0 * p * (1.0 - p)).sqrt(),
        );
        near(student(p, 3.0), 3.182_446_305_283_709_6);
        near(student(0.025, 30.0), -2.042_272_456_301_238);
    }

    /// By betainc of mpmath with 40 digits.
    #[test]
    fn the_sum_and_the_expansion_meet() {
        near(student(0.975, 999.0), 1.962_341_461_133_45);
        near(student(0.975, 1999.0), 1.961_151_420_170_562);
        for p in [0.6, 0.95, 0.975, 0.9995] {
            let (sum, expansion) = (student(p, 999.0), expansion(normal(p), 999.0));
            assert!((sum / expansion - 1.0).abs() < 1e-12, "{sum} {expansion}");
        }
    }
}
