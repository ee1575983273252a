//! Linear layers and tanh in f32, laid out for vector units.
//!
//! Sums are made in a fixed order and nothing is fused, so a network gives the same bits on every
//! machine, whichever vector units it has (they are looked for when it runs): a logged propensity can
//! be recomputed exactly. Both kernels keep several partial sums, for speed and because their rounding
//! error grows with the length of one partial sum only.

use std::array;
use std::sync::LazyLock;

use pulp::{Arch, NullaryFnOnce};

/// Outputs computed together; a multiple of any vector width.
const LANES: usize = 32;
/// Inputs summed before they are added to the total.
const RUN: usize = 16;
/// Partial sums of a dot product.
const DOT_LANES: usize = 16;

/// The widest vector units of this CPU.
static UNITS: LazyLock<Arch> = LazyLock::new(Arch::new);

/// y = W·x + b.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Linear {
    inputs: usize,
    outputs: usize,
    /// Per block of `LANES` outputs, per input: the weights of these outputs.
    blocks: Vec<[f32; LANES]>,
    /// Rows of the outputs that fill no block.
    rest: Vec<f32>,
    bias: Vec<f32>,
}

impl Linear {
    /// `weight`: [bias.len(), inputs], row-major.
    pub(crate) fn new(inputs: usize, weight: &[f32], bias: Vec<f32>) -> Self {
        let outputs = bias.len();
        assert_eq!(
            weight.len(),
            inputs * outputs,
            "weight is [outputs, inputs]"
        );
        let mut blocks = Vec::with_capacity(outputs / LANES * inputs);
        for first in (0..outputs / LANES).map(|block| block * LANES) {
            let column = |input| array::from_fn(|lane| weight[(first + lane) * inputs + input]);
            blocks.extend((0..inputs).map(column));
        }
        let rest = weight[outputs / LANES * LANES * inputs..].to_vec();
        Self {
            inputs,
            outputs,
            blocks,
            rest,
            bias,
        }
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// y = W·x + b; `x`: [inputs], `y`: [outputs].
    pub(crate) fn apply(&self, x: &[f32], y: &mut [f32]) {
        self.apply_from(&self.bias, x, y);
    }

    /// y = W·x + base.
    pub(crate) fn apply_from(&self, base: &[f32], x: &[f32], y: &mut [f32]) {
        assert_eq!(
            (x.len(), y.len()),
            (self.inputs, self.outputs),
            "sizes of a layer"
        );
        UNITS.dispatch(Sums {
            layer: self,
            base,
            x,
            y,
        });
    }

    /// The single output of a layer that has one.
    pub(crate) fn apply_one(&self, x: &[f32]) -> f32 {
        self.bias[0] + UNITS.dispatch(Dot(&self.rest, x))
    }
}

// What is compiled once for each kind of vector units: all of it is inlined into the one that was asked for.

/// y = W·x + base.
struct Sums<'a> {
    layer: &'a Linear,
    base: &'a [f32],
    x: &'a [f32],
    y: &'a mut [f32],
}

impl NullaryFnOnce for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { layer, base, x, y } = self;
        if layer.inputs == 0 {
            y.copy_from_slice(base);
            return;
        }
        let (blocked, others) = y.split_at_mut(layer.outputs / LANES * LANES);
        let (base_blocked, base_others) = base.split_at(blocked.len());
        let blocks = blocked
            .chunks_exact_mut(LANES)
            .zip(base_blocked.chunks_exact(LANES));
        for ((y, base), weights) in blocks.zip(layer.blocks.chunks_exact(layer.inputs)) {
            let sums = block_sums(weights, x);
            for ((y, base), sum) in y.iter_mut().zip(base).zip(sums) {
                *y = base + sum;
            }
        }
        let rows = layer.rest.chunks_exact(layer.inputs);
        for ((y, base), row) in others.iter_mut().zip(base_others).zip(rows) {
            *y = base + dot(row, x);
        }
    }
}

/// The dot product of both.
struct Dot<'a>(&'a [f32], &'a [f32]);

impl NullaryFnOnce for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn call(self) -> f32 {
        dot(self.0, self.1)
    }
}

/// tanh of each.
struct Tanh<'a>(&'a mut [f32]);

impl NullaryFnOnce for Tanh<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for value in self.0 {
            *value = tanh(*value);
        }
    }
}

#[inline(always)]
fn block_sums(weights: &[[f32; LANES]], x: &[f32]) -> [f32; LANES] {
    let mut total = [0.0; LANES];
    for (weights, x) in weights.chunks(RUN).zip(x.chunks(RUN)) {
        let mut run = [0.0; LANES];
        for (weights, &x) in weights.iter().zip(x) {
            for (sum, weight) in run.iter_mut().zip(weights) {
                *sum += weight * x;
            }
        }
        for (total, run) in total.iter_mut().zip(run) {
            *total += run;
        }
    }
    total
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; DOT_LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(DOT_LANES), b.chunks_exact(DOT_LANES));
    let tail = a_chunks.remainder().iter().zip(b_chunks.remainder());
    for (sum, (a, b)) in sums.iter_mut().zip(tail) {
        *sum = a * b;
    }
    for (a, b) in a_chunks.zip(b_chunks) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let mut width = DOT_LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    sums[0]
}

/// tanh of each value, within 1.5e-7; a value that is not a number stays so.
pub(crate) fn tanh_in_place(values: &mut [f32]) {
    UNITS.dispatch(Tanh(values));
}

/// Without branches, so that loops over it become vector code. Below 0.625 the polynomial of Cephes'
/// `tanhf`, above it 1 − 2 / (e^2|x| + 1).
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    p = p * z + 2.063_909e-2;
    p = p * z - 5.373_971_6e-2;
    p = p * z + 1.333_144_2e-1;
    p = p * z - 3.333_328e-1;
    let small = p * z * x + x;
    let magnitude = x.abs();
    // Beyond this tanh rounds to 1. Written so that NaN passes.
    let bounded = if magnitude > 9.1 { 9.1 } else { magnitude };
    let large = (1.0 - 2.0 / (exp(2.0 * bounded) + 1.0)).copysign(x);
    if magnitude < 0.625 { small } else { large }
}

/// e^x for x in [0, 20], within 2 units in the last place: Cephes' `expf`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Adding 1.5·2²³ rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_58e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5e-1;
    let mantissa = p * (r * r) + r + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    mantissa * power
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tanh_is_within_two_units_in_the_last_place_everywhere() {
        for bits in (0..0x7f80_0000_u32).step_by(97) {
            let x = f32::from_bits(bits);
            let (got, want) = (f64::from(tanh(x)), f64::from(x).tanh());
            assert!(
                (got - want).abs() <= 1.5e-7 * want.abs().max(f64::MIN_POSITIVE),
                "{x}: {got} {want}"
            );
            assert_eq!(tanh(-x), -tanh(x));
        }
        assert_eq!(tanh(f32::INFINITY), 1.0);
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn a_layer_worked_by_hand() {
        let layer = Linear::new(2, &[1.0, 2.0, 3.0, 4.0], vec![10.0, 20.0]);
        let mut y = [0.0; 2];
        layer.apply(&[0.5, -1.0], &mut y);
        assert_eq!(y, [8.5, 17.5]);
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    proptest! {
        #[test]
        fn all_vector_units_give_the_same_bits(
            inputs in 0_usize..100,
            weight in prop::collection::vec(-2.0_f32..2.0, 100 * 100),
            base in prop::collection::vec(-2.0_f32..2.0, 1..100),
            x in prop::collection::vec(-20.0_f32..20.0, 100),
        ) {
            let (outputs, x) = (base.len(), &x[..inputs]);
            let layer = Linear::new(inputs, &weight[..inputs * outputs], base.clone());
            let mut wide = vec![0.0; outputs];
            layer.apply(x, &mut wide);
            // Called without any dispatch: compiled for what every CPU of this kind has.
            let mut narrow = vec![0.0; outputs];
            let (layer, y) = (&layer, &mut narrow[..]);
            Sums { layer, base: &base, x, y }.call();
            prop_assert_eq!(bits(&wide), bits(&narrow));
            tanh_in_place(&mut wide);
            Tanh(&mut narrow).call();
            prop_assert_eq!(bits(&wide), bits(&narrow));
            prop_assert_eq!(UNITS.dispatch(Dot(x, x)).to_bits(), dot(x, x).to_bits());
        }

        #[test]
        fn any_shape_equals_the_sum_in_f64(
            inputs in 0_usize..100,
            outputs in 1_usize..100,
            seed in any::<u32>(),
        ) {
            let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / 8_388_608.0 - 1.0;
            let weight: Vec<f32> = (0..inputs * outputs).map(value).collect();
            let bias: Vec<f32> = (0..outputs).map(|i| value(i + 7)).collect();
            let x: Vec<f32> = (0..inputs).map(|i| value(i + 99)).collect();
            let layer = Linear::new(inputs, &weight, bias.clone());
            let mut y = vec![0.0; outputs];
            layer.apply(&x, &mut y);
            for (output, got) in y.iter().enumerate() {
                let row = &weight[output * inputs..][..inputs];
                let terms = || row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                let want = f64::from(bias[output]) + terms().sum::<f64>();
                let size = 1.0 + terms().map(f64::abs).sum::<f64>();
                prop_assert!((f64::from(*got) - want).abs() < 4e-7 * size, "{} {}", got, want);
            }
        }
    }
}
