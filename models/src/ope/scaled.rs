//! Numbers whose exponent f64 does not hold.
//!
//! The weight of a trajectory is a product of one ratio per step: after some hundred steps it overflows
//! or underflows. Logarithms would cost a digit per factor of ten thousand and two transcendental
//! functions per step; a mantissa with a level of its own multiplies exactly as f64 does.

use std::cmp::Ordering;

/// A level stands for this power of 2.
const BITS: i32 = 400;
/// Mantissas are kept between the inverse of this and this, so that squares and long sums of them stay
/// within f64.
const LIMIT: f64 = power_of_two(BITS / 2);
const UP: f64 = power_of_two(BITS);
const DOWN: f64 = power_of_two(-BITS);

const fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

/// `mantissa · 2^(400 · level)`; the mantissa is 0 or has a size in [2^-200, 2^200].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scaled {
    mantissa: f64,
    level: i32,
}

impl Scaled {
    /// Zero.
    pub const ZERO: Self = Self {
        mantissa: 0.0,
        level: 0,
    };
    /// One.
    pub const ONE: Self = Self {
        mantissa: 1.0,
        level: 0,
    };

    /// Any finite number.
    #[must_use]
    pub fn new(value: f64) -> Self {
        Self {
            mantissa: value,
            level: 0,
        }
        .normal()
    }

    #[inline]
    fn normal(self) -> Self {
        let size = self.mantissa.abs();
        if (1.0 / LIMIT..=LIMIT).contains(&size) {
            return self;
        }
        self.moved()
    }

    /// Off the hot path: most weights stay on level 0.
    #[cold]
    fn moved(mut self) -> Self {
        if self.mantissa == 0.0 {
            return Self::ZERO;
        }
        while self.mantissa.abs() > LIMIT {
            self.mantissa *= DOWN;
            self.level += 1;
        }
        while self.mantissa.abs() < 1.0 / LIMIT {
            self.mantissa *= UP;
            self.level -= 1;
        }
        self
    }

    /// The product with a finite number.
    #[inline]
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        let product = self.mantissa * factor;
        let size = product.abs();
        if (1.0 / LIMIT..=LIMIT).contains(&size) {
            return Self {
                mantissa: product,
                level: self.level,
            };
        }
        self.product(Self::new(factor))
    }

    /// The product of two.
    #[must_use]
    pub fn product(self, other: Self) -> Self {
        Self {
            mantissa: self.mantissa * other.mantissa,
            level: self.level + other.level,
        }
        .normal()
    }

    /// The quotient of two; the divisor is not 0.
    #[must_use]
    pub fn quotient(self, divisor: Self) -> Self {
        Self {
            mantissa: self.mantissa / divisor.mantissa,
            level: self.level - divisor.level,
        }
        .normal()
    }

    /// As f64: infinite where it is too large, 0 where it is too small.
    #[inline]
    #[must_use]
    pub fn value(self) -> f64 {
        match self.level {
            0 => self.mantissa,
            level if level > 0 => (0..level.min(4)).fold(self.mantissa, |value, _| value * UP),
            level => (0..(-level).min(4)).fold(self.mantissa, |value, _| value * DOWN),
        }
    }

    /// As f64 after multiplication by 2^(-400 · level).
    #[must_use]
    fn relative_to(self, level: i32) -> f64 {
        Self {
            mantissa: self.mantissa,
            level: self.level - level,
        }
        .value()
    }

    /// Whether it is 0, rather than too small for f64.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.mantissa == 0.0
    }

    /// Decimal logarithm of the size; −∞ for 0.
    #[must_use]
    pub fn log10(self) -> f64 {
        libm::log10(self.mantissa.abs()) + f64::from(self.level * BITS) * std::f64::consts::LOG10_2
    }
}

/// A sum of scaled numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScaledSum {
    sum: f64,
    level: i32,
}

impl Default for ScaledSum {
    fn default() -> Self {
        Self {
            sum: 0.0,
            level: i32::MIN,
        }
    }
}

impl ScaledSum {
    /// Adds one.
    #[inline]
    pub fn add(&mut self, term: Scaled) {
        if term.level == self.level {
            self.sum += term.mantissa;
        } else if !term.is_zero() {
            self.add_across(term);
        }
    }

    #[cold]
    fn add_across(&mut self, term: Scaled) {
        if self.sum == 0.0 {
            (self.sum, self.level) = (term.mantissa, term.level);
            return;
        }
        match term.level.cmp(&self.level) {
            Ordering::Equal => self.sum += term.mantissa,
            Ordering::Less => self.sum += term.relative_to(self.level),
            Ordering::Greater => {
                let sum = self.total().relative_to(term.level);
                (self.sum, self.level) = (sum + term.mantissa, term.level);
            }
        }
    }

    /// Adds another sum.
    pub fn merge(&mut self, other: Self) {
        self.add(other.total());
    }

    /// The sum.
    #[must_use]
    pub fn total(self) -> Scaled {
        if self.sum == 0.0 {
            return Scaled::ZERO;
        }
        Scaled {
            mantissa: self.sum,
            level: self.level,
        }
        .normal()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn power(base: f64, exponent: usize) -> Scaled {
        (0..exponent).fold(Scaled::ONE, |product, _| product.times(base))
    }

    #[test]
    fn within_f64_it_is_f64() {
        let factors = [0.3, 7.25, 1e-9, 123.0, 2.0 / 3.0];
        let scaled = factors.iter().fold(Scaled::ONE, |p, f| p.times(*f));
        assert_eq!(scaled.value(), factors.iter().product::<f64>());
    }

    #[test]
    fn a_product_beyond_f64_comes_back() {
        let up = power(3.0, 10_000);
        assert_eq!(up.value(), f64::INFINITY);
        assert!((up.log10() - 10_000.0 * 3f64.log10()).abs() < 1e-6);
        let back = (0..10_000).fold(up, |product, _| product.times(1.0 / 3.0));
        assert!((back.value() - 1.0).abs() < 1e-11, "{}", back.value());
        assert_eq!(power(1.0 / 3.0, 10_000).value(), 0.0);
        assert!(!power(1.0 / 3.0, 10_000).is_zero());
    }

    /// Sizes that a single step can have: 1/pscore up to 1e300.
    #[test]
    fn one_factor_may_be_as_large_as_f64_is() {
        let product = Scaled::ONE
            .times(1e300)
            .times(1e300)
            .times(1e-300)
            .times(1e-300);
        assert!((product.value() - 1.0).abs() < 1e-12);
        let tiny = Scaled::ONE.times(1e-310).times(1e300);
        assert!((tiny.value() / 1e-10 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn sums_keep_what_dominates() {
        let mut sum = ScaledSum::default();
        sum.add(Scaled::new(5.0));
        sum.add(power(3.0, 2000));
        sum.add(power(3.0, 2000));
        sum.add(Scaled::ZERO);
        let ratio = sum.total().quotient(power(3.0, 2000));
        assert_eq!(ratio.value(), 2.0);
        let mut small = ScaledSum::default();
        small.add(power(0.1, 600));
        small.add(power(0.1, 600));
        assert_eq!(small.total().quotient(power(0.1, 600)).value(), 2.0);
    }

    #[test]
    fn opposite_terms_cancel_to_zero() {
        let mut sum = ScaledSum::default();
        sum.add(power(3.0, 2000));
        sum.add(power(3.0, 2000).times(-1.0));
        assert!(sum.total().is_zero());
        sum.add(Scaled::new(2.0));
        assert_eq!(sum.total().value(), 2.0);
    }
}
