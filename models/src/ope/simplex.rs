//! The point of a simplex where a quadratic form is least.

use nalgebra::{DMatrix, DVector};

/// A direction that lowers the form by less than this share of it is none.
const TOLERANCE: f64 = 1e-13;
/// Each round of the method adds a corner or drops one; rounding could make it cycle.
const ROUNDS_PER_CORNER: usize = 50;

/// Weights x, not negative and of sum 1, that minimise `x' matrix x`; the matrix `[n × n]`, row by row, is
/// symmetric positive semidefinite, and n at least 1.
///
/// Source: Wolfe 1976, "Finding the nearest point in a polytope", on inner products: exact after finitely
/// many rounds.
#[must_use]
pub fn minimise(matrix: &DMatrix<f64>) -> Vec<f64> {
    let n = matrix.nrows();
    let best = (0..n)
        .min_by(|a, b| matrix[(*a, *a)].total_cmp(&matrix[(*b, *b)]))
        .expect("there is a corner");
    let mut x = DVector::zeros(n);
    x[best] = 1.0;
    let mut corners = vec![best];
    for _ in 0..ROUNDS_PER_CORNER * n {
        let gradient = matrix * &x;
        let value = gradient.dot(&x);
        let entering = (0..n)
            .filter(|corner| !corners.contains(corner))
            .min_by(|a, b| gradient[*a].total_cmp(&gradient[*b]));
        let Some(entering) = entering else { break };
        let scale = value.abs().max(matrix[(entering, entering)]);
        if gradient[entering] >= value - TOLERANCE * scale {
            break;
        }
        corners.push(entering);
        if !descend(matrix, &mut corners, &mut x) {
            break;
        }
    }
    x.as_slice().to_vec()
}

/// Moves to the minimum over these corners, dropping those that it leaves. `false` where they depend on
/// each other, so that nothing is left to be gained.
fn descend(matrix: &DMatrix<f64>, corners: &mut Vec<usize>, x: &mut DVector<f64>) -> bool {
    loop {
        let Some(target) = affine_minimum(matrix, corners) else {
            return false;
        };
        let leaving = corners
            .iter()
            .zip(target.iter())
            .filter(|(_, y)| **y <= 0.0);
        // How far towards the target until the first corner's weight is 0.
        let step = leaving
            .map(|(corner, y)| x[*corner] / (x[*corner] - y))
            .fold(1.0, f64::min);
        for (corner, y) in corners.iter().zip(target.iter()) {
            x[*corner] += step * (y - x[*corner]);
        }
        if step >= 1.0 {
            return true;
        }
        let before = corners.len();
        corners.retain(|corner| {
            let stays = x[*corner] > TOLERANCE;
            if !stays {
                x[*corner] = 0.0;
            }
            stays
        });
        if corners.len() == before {
            return false;
        }
    }
}

/// The minimum over weights of sum 1 of any sign: `M y = λ 1`, scaled so that equations have like sizes.
fn affine_minimum(matrix: &DMatrix<f64>, corners: &[usize]) -> Option<DVector<f64>> {
    let n = corners.len();
    let scale = |i: usize| {
        matrix[(corners[i], corners[i])]
            .sqrt()
            .max(f64::MIN_POSITIVE)
    };
    let system = DMatrix::from_fn(n + 1, n + 1, |i, j| match (i < n, j < n) {
        (true, true) => matrix[(corners[i], corners[j])] / (scale(i) * scale(j)),
        (true, false) => 1.0 / scale(i) * scale(0),
        (false, true) => 1.0 / scale(j) * scale(0),
        (false, false) => 0.0,
    });
    let mut right = DVector::zeros(n + 1);
    right[n] = scale(0);
    let solution = system.full_piv_lu().solve(&right)?;
    let y = DVector::from_fn(n, |i, _| solution[i] / scale(i));
    (y.iter().all(|value| value.is_finite()) && (y.sum() - 1.0).abs() < 1e-6).then_some(y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use blkpilot_env::Rng;
    use rand::{RngExt as _, SeedableRng as _};

    fn form(matrix: &DMatrix<f64>, x: &[f64]) -> f64 {
        let x = DVector::from_row_slice(x);
        (x.transpose() * matrix * x)[(0, 0)]
    }

    /// Independent errors: weights are inverse to the variances.
    #[test]
    fn diagonal_forms_weigh_by_inverse_variance() {
        let x = minimise(&DMatrix::from_diagonal(&DVector::from_row_slice(&[
            1.0, 2.0, 4.0,
        ])));
        let known = [4.0 / 7.0, 2.0 / 7.0, 1.0 / 7.0];
        assert!(
            x.iter().zip(known).all(|(x, k)| (x - k).abs() < 1e-14),
            "{x:?}"
        );
    }

    /// Correlation above the smaller deviation over the larger one: the second would get a negative weight.
    #[test]
    fn a_corner_that_would_be_negative_gets_nothing() {
        let x = minimise(&DMatrix::from_row_slice(2, 2, &[1.0, 1.5, 1.5, 4.0]));
        assert_eq!(x, [1.0, 0.0]);
    }

    /// Karush, Kuhn and Tucker's conditions decide, for random forms of low and of full rank.
    #[test]
    fn no_corner_is_better_than_the_minimum() {
        let mut rng = Rng::seed_from_u64(3);
        for round in 0..300 {
            let (n, rank) = (2 + round % 9, 1 + round % 7);
            let scale: Vec<f64> = (0..n)
                .map(|_| 10f64.powf(rng.random_range(-3.0..1.0)))
                .collect();
            let factor = DMatrix::from_fn(n, rank, |i, _| scale[i] * rng.random_range(-0.3..1.0));
            let matrix = &factor * factor.transpose();
            let x = minimise(&matrix);
            assert!(x.iter().all(|w| *w >= 0.0) && (x.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            let gradient = &matrix * DVector::from_row_slice(&x);
            let value = form(&matrix, &x);
            let gap = value - gradient.min();
            assert!(
                gap <= 1e-9 * matrix.diagonal().max(),
                "round {round}: gap {gap}, value {value}"
            );
        }
    }
}
