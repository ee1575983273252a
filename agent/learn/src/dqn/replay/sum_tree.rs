//! Drawing in proportion to weights that change, in logarithmic time.

/// Weights by place, under a binary tree of their sums.
///
/// Source: Schaul et al. 2016, "Prioritized Experience Replay", appendix B.2.1.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SumTree {
    /// Node 1 is the root, node i has the children 2i and 2i + 1; the leaves are the last half.
    nodes: Vec<f64>,
}

impl SumTree {
    /// All weights 0, at `capacity` places, at least 1.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            nodes: vec![0.0; 2 * capacity.max(1).next_power_of_two()],
        }
    }

    fn leaves(&self) -> usize {
        self.nodes.len() / 2
    }

    /// The sum of all weights.
    pub(crate) fn total(&self) -> f64 {
        self.nodes[1]
    }

    pub(crate) fn get(&self, place: usize) -> f64 {
        self.nodes[self.leaves() + place]
    }

    /// `weight`: finite, at least 0.
    pub(crate) fn set(&mut self, place: usize, weight: f64) {
        let mut node = self.leaves() + place;
        self.nodes[node] = weight;
        // Each sum is made anew of its two, so that nothing builds up, and the same weights give the same bits.
        while node > 1 {
            node /= 2;
            self.nodes[node] = self.nodes[2 * node] + self.nodes[2 * node + 1];
        }
    }

    /// The place at which the running sum of the weights passes `mass`, in [0, total). Its weight is not 0, if any is.
    pub(crate) fn find(&self, mut mass: f64) -> usize {
        let mut node = 1;
        while node < self.leaves() {
            let (left, right) = (self.nodes[2 * node], self.nodes[2 * node + 1]);
            // What rounding leaves of the mass must not lead to where there is none.
            if mass < left || right == 0.0 {
                node *= 2;
            } else {
                mass -= left;
                node = 2 * node + 1;
            }
        }
        node - self.leaves()
    }
}

#[cfg(test)]
mod tests {
    use blkpilot_env::Rng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    /// Weights in eighths, so that sums are exact.
    #[test]
    fn what_is_found_is_what_adding_up_finds() {
        for capacity in [1, 2, 5, 8, 33] {
            let mut rng = Rng::seed_from_u64(capacity as u64);
            let (mut tree, mut naive) = (SumTree::new(capacity), vec![0.0; capacity]);
            for _ in 0..200 {
                let place = rng.random_range(0..capacity);
                let weight = f64::from(rng.random_range(0..9_u8)) / 8.0;
                tree.set(place, weight);
                naive[place] = weight;
                let total: f64 = naive.iter().sum();
                assert_eq!((tree.total(), tree.get(place)), (total, weight));
                if total == 0.0 {
                    continue;
                }
                let mass = rng.random_range(0.0..total);
                let mut sum = 0.0;
                let wanted = naive.iter().position(|own| {
                    sum += own;
                    mass < sum
                });
                assert_eq!(Some(tree.find(mass)), wanted, "{mass} in {naive:?}");
            }
        }
    }

    #[test]
    fn places_come_up_in_proportion_to_their_weights() {
        let weights = [0.0, 1.0, 3.0, 0.0, 0.5, 5.5, 0.0];
        let mut tree = SumTree::new(weights.len());
        for (place, weight) in weights.into_iter().enumerate() {
            tree.set(place, weight);
        }
        let (mut rng, mut found) = (Rng::seed_from_u64(2), [0_u32; 7]);
        const DRAWS: u32 = 100_000;
        for _ in 0..DRAWS {
            found[tree.find(rng.random::<f64>() * tree.total())] += 1;
        }
        for (found, weight) in found.into_iter().zip(weights) {
            let share = f64::from(found) / f64::from(DRAWS);
            assert!((share - weight / 10.0).abs() < 0.005, "{share} of {weight}");
        }
    }

    #[test]
    fn rounding_leads_to_no_place_without_weight() {
        let mut tree = SumTree::new(4);
        tree.set(0, 0.1);
        tree.set(1, 0.2);
        // Beyond the total, as a product may round to it.
        assert_eq!(tree.find(0.5), 1);
        assert_eq!(tree.find(tree.total()), 1);
    }
}
