//! Initial weights: orthogonal, from our own generator.

use std::collections::BTreeMap;

use blkpilot_env::{EnvSpec, Rng};
use blkpilot_models::{Architecture, Tensor};
use rand::RngExt as _;

/// Orthogonal weights with gain √2, 0.01 for the layers that give scores and 1 for the value; biases
/// are 0. In the order of the tensors' names, so the same generator gives the same network.
///
/// Source: the implementation details of Huang et al. 2022, no. 2.
pub(crate) fn initial_tensors(
    architecture: &Architecture,
    spec: &EnvSpec,
    rng: &mut Rng,
) -> BTreeMap<String, Tensor> {
    let draw = |(name, shape): (String, Vec<usize>)| {
        let data = match shape[..] {
            [rows, columns] => orthogonal(rows, columns, gain(&name), rng),
            _ => vec![0.0; shape.iter().product()],
        };
        (name, Tensor { shape, data })
    };
    architecture
        .tensor_shapes(spec)
        .into_iter()
        .map(draw)
        .collect()
}

fn gain(name: &str) -> f64 {
    let layer = name.trim_end_matches(".weight");
    let gives_scores = layer.contains(".head.") && !layer.ends_with(".query");
    match layer {
        "critic.value" => 1.0,
        _ if gives_scores => 0.01,
        _ => std::f64::consts::SQRT_2,
    }
}

/// A [rows, columns] matrix, row-major, whose rows (or columns, if there are fewer) are orthogonal
/// and of length `gain`.
fn orthogonal(rows: usize, columns: usize, gain: f64, rng: &mut Rng) -> Vec<f32> {
    let (count, length) = (rows.min(columns), rows.max(columns));
    let vectors = orthonormal(count, length, rng);
    let at = |row: usize, column: usize| {
        let entry = if rows <= columns {
            vectors[row][column]
        } else {
            vectors[column][row]
        };
        (gain * entry) as f32
    };
    (0..rows * columns)
        .map(|i| at(i / columns, i % columns))
        .collect()
}

/// Normal vectors made orthonormal by modified Gram–Schmidt, each swept twice against rounding.
fn orthonormal(count: usize, length: usize, rng: &mut Rng) -> Vec<Vec<f64>> {
    let mut vectors: Vec<Vec<f64>> = Vec::with_capacity(count);
    while vectors.len() < count {
        let mut vector: Vec<f64> = (0..length).map(|_| standard_normal(rng)).collect();
        for earlier in vectors.iter().chain(&vectors) {
            let along = dot(&vector, earlier);
            vector
                .iter_mut()
                .zip(earlier)
                .for_each(|(v, e)| *v -= along * e);
        }
        let norm = dot(&vector, &vector).sqrt();
        // Practically never true; a draw so close to the span of the others would be all rounding.
        if norm > 1e-9 {
            vector.iter_mut().for_each(|v| *v /= norm);
            vectors.push(vector);
        }
    }
    vectors
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Box–Muller.
fn standard_normal(rng: &mut Rng) -> f64 {
    let (radius, angle): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn the_shorter_side_is_orthogonal_with_the_gain_as_length() {
        for (rows, columns) in [(5, 8), (8, 5), (1, 7), (6, 6)] {
            let matrix = orthogonal(rows, columns, 0.5, &mut Rng::seed_from_u64(3));
            let vector = |i: usize| -> Vec<f64> {
                let row = |j: usize| matrix[i * columns + j];
                let column = |j: usize| matrix[j * columns + i];
                (0..rows.max(columns))
                    .map(|j| f64::from(if rows <= columns { row(j) } else { column(j) }))
                    .collect()
            };
            for i in 0..rows.min(columns) {
                for j in 0..rows.min(columns) {
                    let want = if i == j { 0.25 } else { 0.0 };
                    assert!((dot(&vector(i), &vector(j)) - want).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn gains_follow_the_layers_task() {
        assert_eq!(
            gain("actor.head.channel.query.weight"),
            std::f64::consts::SQRT_2
        );
        assert_eq!(gain("actor.head.channel.score.weight"), 0.01);
        assert_eq!(gain("actor.head.cache.weight"), 0.01);
        assert_eq!(gain("device.head.scheduler.weight"), 0.01);
        assert_eq!(gain("critic.value.weight"), 1.0);
        assert_eq!(gain("critic.trunk.weight"), std::f64::consts::SQRT_2);
    }
}
