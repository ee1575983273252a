//! Small linear systems.

use nalgebra::{DMatrix, DVector};

use super::error::OpeError;

/// Eigenvalues below this share of the largest are 0: what remains of an exact null space is rounding.
pub(super) const RANK_TOLERANCE: f64 = 1e-13;

/// The solution of `matrix · x = right` of least norm, for a symmetric positive semidefinite matrix
/// `[n × n]`, row by row.
pub(super) fn minimum_norm(matrix: &[f64], right: &[f64]) -> Vec<f64> {
    let n = right.len();
    let eigen = DMatrix::from_row_slice(n, n, matrix).symmetric_eigen();
    let largest = eigen.eigenvalues.amax();
    let mut coordinates = eigen.eigenvectors.tr_mul(&DVector::from_row_slice(right));
    for (coordinate, value) in coordinates.iter_mut().zip(&eigen.eigenvalues) {
        *coordinate = if *value > RANK_TOLERANCE * largest {
            *coordinate / value
        } else {
            0.0
        };
    }
    (eigen.eigenvectors * coordinates).as_slice().to_vec()
}

/// The solution of `matrix · x = right`, for a square matrix row by row.
///
/// # Errors
/// `Singular`, with this name and hint.
pub(super) fn solve(
    matrix: &[f64],
    right: &[f64],
    what: &'static str,
    hint: &'static str,
) -> Result<Vec<f64>, OpeError> {
    let n = right.len();
    let matrix = DMatrix::from_row_slice(n, n, matrix);
    let solution = matrix.lu().solve(&DVector::from_row_slice(right));
    match solution {
        Some(x) if x.iter().all(|value| value.is_finite()) => Ok(x.as_slice().to_vec()),
        _ => Err(OpeError::Singular { what, hint }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// x + y = 2 once too often: of all solutions (1, 1) is the shortest.
    #[test]
    fn of_many_solutions_the_shortest() {
        let x = minimum_norm(&[1.0, 1.0, 1.0, 1.0], &[2.0, 2.0]);
        assert!(x.iter().all(|v| (v - 1.0).abs() < 1e-14), "{x:?}");
        assert_eq!(minimum_norm(&[0.0; 4], &[0.0; 2]), [0.0, 0.0]);
    }

    #[test]
    fn a_system_without_one_solution_is_refused() {
        assert_eq!(
            solve(&[2.0, 0.0, 0.0, 4.0], &[2.0, 8.0], "", "").unwrap(),
            [1.0, 2.0]
        );
        let error = solve(&[1.0, 1.0, 1.0, 1.0], &[1.0, 2.0], "it", "change it");
        assert!(matches!(error, Err(OpeError::Singular { .. })));
    }
}
