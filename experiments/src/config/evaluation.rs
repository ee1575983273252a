//! How to compare what was learnt: `[evaluation]`.

use blkpilot_models::Selection;
use serde::Deserialize;
use toml::Table;

use super::check::Check;
use crate::seeds;

/// How to compare what was learnt.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Episodes per policy, each on a seed of its own; 0 for no comparison.
    pub episodes: usize,
    /// Number of the first of these seeds; the others follow.
    pub first_seed: u64,
    /// How the trained policy's scores become a choice.
    pub selection: Selection,
}

impl Evaluation {
    /// Greatest `first_seed`: far enough below [`seeds::evaluation`]'s range that no count of
    /// episodes leaves it.
    pub const GREATEST_FIRST_SEED: u64 = 1_000_000_000_000;

    /// Seed of one of its episodes, from 0.
    #[must_use]
    pub fn seed(&self, episode: usize) -> u64 {
        seeds::evaluation(self.first_seed + episode as u64)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawEvaluation {
    episodes: Option<usize>,
    first_seed: Option<u64>,
    selection: Option<RawSelection>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawSelection {
    Greedy,
    Sample,
}

pub(super) fn evaluation(table: Table, check: &mut Check) -> Evaluation {
    let raw: RawEvaluation = check.read("evaluation", table);
    let is_sane = |n: usize| n == 0 || (2..=100_000).contains(&n);
    check.that(
        "evaluation.episodes",
        raw.episodes,
        is_sane,
        "must be in [2, 100000], or 0 for no comparison",
    );
    let greatest = Evaluation::GREATEST_FIRST_SEED;
    check.that(
        "evaluation.first_seed",
        raw.first_seed,
        |seed| seed <= greatest,
        &format!("must be in [0, {greatest}]"),
    );
    Evaluation {
        episodes: raw.episodes.unwrap_or(20),
        first_seed: raw.first_seed.unwrap_or(0),
        selection: match raw.selection {
            None | Some(RawSelection::Greedy) => Selection::Greedy,
            Some(RawSelection::Sample) => Selection::Sample,
        },
    }
}
