//! Which of many environments a reset begins anew, and from which seeds.

use blkpilot_env::{ResetOptions, Restart};
use blkpilot_proto::v1;

use crate::wire::status::Failure;

/// What is asked of a reset.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resetting {
    /// What random numbers restart from.
    pub seeds: Seeds,
    /// Which environments begin an episode; if empty, all do.
    pub mask: Vec<bool>,
    /// Options by name.
    pub options: ResetOptions,
}

/// What random numbers restart from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Seeds {
    /// They go on.
    #[default]
    GoOn,
    /// Environment i restarts from this plus i.
    From(u64),
    /// A seed for each.
    Each(Vec<u64>),
}

impl Resetting {
    /// A reset off the wire.
    ///
    /// # Errors
    /// A violation of `seeds` beside a `seed`.
    pub(crate) fn from_wire(reset: v1::RolloutReset) -> Result<Self, Failure> {
        let seeds = match (reset.seed, reset.seeds) {
            (None, seeds) if seeds.is_empty() => Seeds::GoOn,
            (Some(seed), seeds) if seeds.is_empty() => Seeds::From(seed),
            (None, seeds) => Seeds::Each(seeds),
            (Some(_), _) => {
                let problem = "stand beside seed: give one seed or one for each environment";
                return Err(Failure::field("seeds", problem));
            }
        };
        Ok(Self {
            seeds,
            mask: reset.mask,
            options: reset.options,
        })
    }

    /// What it does to each environment. `first_seeds` are those of environments that no reset has begun yet.
    ///
    /// # Errors
    /// A violation of `seeds` or `mask` that has not one entry per environment.
    pub(crate) fn restarts(&self, first_seeds: &[Option<u64>]) -> Result<Vec<Restart>, Failure> {
        let count = first_seeds.len();
        if !self.mask.is_empty() {
            check_count("mask", self.mask.len(), count)?;
        }
        if let Seeds::Each(seeds) = &self.seeds {
            check_count("seeds", seeds.len(), count)?;
        }
        let restart = |(environment, first): (usize, &Option<u64>)| {
            if self.mask.get(environment) == Some(&false) {
                return Restart::Leave;
            }
            match &self.seeds {
                Seeds::GoOn => first.map_or(Restart::GoOn, Restart::Seeded),
                Seeds::From(seed) => Restart::Seeded(seed.wrapping_add(environment as u64)),
                Seeds::Each(seeds) => Restart::Seeded(seeds[environment]),
            }
        };
        Ok(first_seeds.iter().enumerate().map(restart).collect())
    }
}

fn check_count(field: &str, got: usize, want: usize) -> Result<(), Failure> {
    if got == want {
        return Ok(());
    }
    let problem = format!("has {got} entries, needs one for each of {want} environments");
    Err(Failure::field(field, problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restarts(reset: v1::RolloutReset, first: &[Option<u64>]) -> Result<Vec<Restart>, Failure> {
        Resetting::from_wire(reset)?.restarts(first)
    }

    #[test]
    fn a_seed_counts_up_over_the_environments_and_seeds_are_one_each() {
        let (none, seen) = (v1::RolloutReset::default(), [None, Some(4)]);
        assert_eq!(
            restarts(none, &seen),
            Ok(vec![Restart::GoOn, Restart::Seeded(4)])
        );
        let one = v1::RolloutReset {
            seed: Some(u64::MAX),
            ..v1::RolloutReset::default()
        };
        assert_eq!(
            restarts(one, &seen),
            Ok(vec![Restart::Seeded(u64::MAX), Restart::Seeded(0)])
        );
        let each = v1::RolloutReset {
            seeds: vec![7, 8],
            mask: vec![false, true],
            ..v1::RolloutReset::default()
        };
        assert_eq!(
            restarts(each, &seen),
            Ok(vec![Restart::Leave, Restart::Seeded(8)])
        );
    }

    #[test]
    fn seeds_and_masks_that_do_not_fit_are_refused_by_name() {
        let wrong = [
            (None, vec![1], vec![]),
            (None, vec![], vec![true; 3]),
            (Some(1), vec![1, 2], vec![]),
        ];
        let fields = wrong.map(|(seed, seeds, mask)| {
            let reset = v1::RolloutReset {
                seed,
                seeds,
                mask,
                ..v1::RolloutReset::default()
            };
            let refused = restarts(reset, &[None, None]).unwrap_err();
            refused.message().split(':').next().unwrap().to_owned()
        });
        assert_eq!(fields, ["seeds", "mask", "seeds"]);
    }
}
