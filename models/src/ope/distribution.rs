//! Whether rows of numbers are probability distributions, as fast as memory gives them.

use super::SUM_TOLERANCE;

/// Whether all rows of so many `levels`, one after another, sum to 1 and have nothing outside [0, 1].
///
/// Stricter than what a log must hold, by half of the tolerance of the sum, since the order of the additions
/// is another one: where this says no, each row has to be looked at.
#[must_use]
pub(super) fn are_all(values: &[f64], levels: usize) -> bool {
    // A width that the compiler knows has no loop: a row is some vector instructions.
    match levels {
        2 => are_all_of::<2>(values),
        3 => are_all_of::<3>(values),
        4 => are_all_of::<4>(values),
        5 => are_all_of::<5>(values),
        6 => are_all_of::<6>(values),
        8 => are_all_of::<8>(values),
        16 => are_all_of::<16>(values),
        levels => values.chunks_exact(levels).all(|row| {
            let is_inside = row.iter().fold(true, |all, p| all & is_probability(*p));
            is_inside & is_one(row.iter().sum())
        }),
    }
}

fn are_all_of<const LEVELS: usize>(values: &[f64]) -> bool {
    let (rows, _) = values.as_chunks::<LEVELS>();
    let (mut low, mut high) = ([0.0; LEVELS], [0.0; LEVELS]);
    let mut is_whole = true;
    for row in rows {
        low = std::array::from_fn(|level| least(row[level], low[level]));
        high = std::array::from_fn(|level| least(-row[level], high[level]));
        is_whole &= is_one(sum(row));
    }
    // What is no number makes the sum of its row none.
    is_whole & low.iter().all(|low| *low >= 0.0) & high.iter().all(|high| *high >= -1.0)
}

/// The lower of two numbers, in one instruction, which [`f64::min`] is not.
#[inline]
fn least(a: f64, b: f64) -> f64 {
    if a < b { a } else { b }
}

/// In two independent sums.
#[inline]
fn sum<const LEVELS: usize>(row: &[f64; LEVELS]) -> f64 {
    let (pairs, rest) = row.as_chunks::<2>();
    let [even, odd] = pairs
        .iter()
        .fold([0.0; 2], |[even, odd], [a, b]| [even + a, odd + b]);
    even + odd + rest.iter().sum::<f64>()
}

#[inline]
fn is_one(sum: f64) -> bool {
    (sum - 1.0).abs() < 0.5 * SUM_TOLERANCE
}

#[inline]
fn is_probability(p: f64) -> bool {
    (0.0..=1.0).contains(&p)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three rows of equal probabilities.
    fn rows(levels: usize) -> Vec<f64> {
        vec![1.0 / levels as f64; 3 * levels]
    }

    #[test]
    fn rows_of_any_width_pass_and_one_wrong_number_anywhere_is_noticed() {
        for levels in 1..20 {
            let good = rows(levels);
            assert!(are_all(&good, levels), "{levels} levels");
            for place in 0..good.len() {
                for wrong in [-0.1, 1.1, f64::NAN, f64::INFINITY, good[place] + 1e-6] {
                    let mut bad = good.clone();
                    bad[place] = wrong;
                    assert!(
                        !are_all(&bad, levels),
                        "{levels} levels, {wrong} at {place}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_outside_is_noticed_though_the_sum_is_one() {
        for levels in 2..20 {
            let mut bad = rows(levels);
            bad[..levels].fill(0.0);
            (bad[0], bad[1]) = (1.2, -0.2);
            assert!(!are_all(&bad, levels), "{levels} levels");
        }
    }
}
