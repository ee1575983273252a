//! Anderson's acceleration of the fixed point with one remembered pass (Anderson 1965; type II of
//! Walker and Ni 2011, "Anderson acceleration for fixed-point iterations", eq. 2.3 with m = 1).
//!
//! Of this pass and the last one it takes the combination whose residual (what a pass would still
//! change) is least in the sense of least squares, and goes on from there. More passes remembered were
//! measured to save 4 % of the passes at most. Where the residual grows, the last pass is forgotten and
//! the next step is a plain one.

/// Ridge of the least squares, relative.
const RIDGE: f64 = 1e-10;

/// One unknown of the fixed point.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unknown {
    /// Its value.
    pub(super) value: f64,
    /// What the pass makes of it.
    pub(super) target: f64,
    /// What its residual is measured in: a change by `scale` counts as one.
    pub(super) scale: f64,
}

/// An unknown of one pass, in its scale.
#[derive(Debug, Clone, Copy)]
struct Point {
    value: f64,
    residual: f64,
}

/// The unknowns of this pass and the last one, in buffers that are kept.
#[derive(Debug, Clone, Default)]
pub(super) struct Mixing {
    points: Vec<Point>,
    last: Vec<Point>,
    last_square: f64,
    steps: Vec<f64>,
}

impl Mixing {
    /// Forgets the last pass; the next ones have `most` unknowns at most.
    pub(super) fn forget(&mut self, most: usize) {
        self.points.clear();
        self.last.clear();
        self.steps.clear();
        self.points.reserve(most);
        self.last.reserve(most);
        self.steps.reserve(most);
        self.last_square = f64::INFINITY;
    }

    /// Starts a pass.
    pub(super) fn begin(&mut self) {
        self.points.clear();
    }

    /// Adds an unknown of this pass; in each pass in the same order.
    pub(super) fn add(&mut self, unknown: Unknown) {
        let change = unknown.target - unknown.value;
        self.points.push(Point {
            value: unknown.value / unknown.scale,
            residual: change / unknown.scale,
        });
    }

    /// The greatest residual of this pass.
    pub(super) fn change(&self) -> f64 {
        let residuals = self.points.iter().map(|p| p.residual.abs());
        residuals.fold(0.0, f64::max)
    }

    /// Ends a pass: by how much each unknown is to change, in its scale, in the order of
    /// [`Mixing::add`].
    pub(super) fn steps(&mut self, damping: f64) -> &[f64] {
        let square: f64 = self.points.iter().map(|p| p.residual * p.residual).sum();
        self.steps.clear();
        if square < self.last_square && self.last.len() == self.points.len() {
            let weight = self.weight();
            let pairs = self.points.iter().zip(&self.last);
            self.steps.extend(pairs.map(|(now, last)| {
                let residual = now.residual - weight * (now.residual - last.residual);
                damping * residual - weight * (now.value - last.value)
            }));
        } else {
            let plain = self.points.iter().map(|p| damping * p.residual);
            self.steps.extend(plain);
        }
        self.last_square = square;
        std::mem::swap(&mut self.points, &mut self.last);
        &self.steps
    }

    /// Weight of the last pass that leaves the least residual.
    fn weight(&self) -> f64 {
        let (mut along, mut length) = (0.0, f64::MIN_POSITIVE);
        for (now, last) in self.points.iter().zip(&self.last) {
            let growth = now.residual - last.residual;
            along += growth * now.residual;
            length += growth * growth;
        }
        along / (length * (1.0 + RIDGE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Passes until a linear map with these contractions has converged on 1.
    fn passes(contractions: &[f64]) -> usize {
        let mut mixing = Mixing::default();
        mixing.forget(contractions.len());
        let mut x = vec![0.0; contractions.len()];
        for pass in 1..=5000 {
            mixing.begin();
            for (value, contraction) in x.iter().zip(contractions) {
                mixing.add(Unknown {
                    value: *value,
                    target: 1.0 + contraction * (value - 1.0),
                    scale: 2.0,
                });
            }
            if mixing.change() < 1e-9 {
                assert!(x.iter().all(|v| (v - 1.0).abs() < 1e-6), "{x:?}");
                return pass;
            }
            let steps = mixing.steps(1.0);
            x.iter_mut()
                .zip(steps)
                .for_each(|(x, step)| *x += 2.0 * step);
        }
        panic!("does not converge")
    }

    #[test]
    fn one_contraction_is_left_out_at_once() {
        // Two passes to see it, one to check.
        assert_eq!(passes(&[0.99]), 3);
    }

    #[test]
    fn slow_contractions_take_far_fewer_passes_than_plain_ones() {
        // 0.99 alone takes over 2,000 plain passes to 1e-9.
        let count = passes(&[0.99, 0.95, 0.8, 0.5, -0.3, 0.1]);
        assert!(count < 500, "{count}");
    }
}
