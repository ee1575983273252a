//! The policies that decide: tables `policy` and `candidate`.

use std::path::{Path, PathBuf};

use blkpilot_models::bandit::{Algorithm, BanditConfig};

use super::toml_reader::Section;

/// Names of the policies that need no checkpoint.
pub const BASELINES: [&str; 4] = ["keep_default", "random", "round_robin", "least_loaded"];

pub(super) const SELECTIONS: [(&str, Selection); 2] =
    [("greedy", Selection::Greedy), ("sample", Selection::Sample)];

pub(super) const PROMOTIONS: [(&str, Promotion); 2] =
    [("serve", Promotion::Serve), ("ignore", Promotion::Ignore)];

pub(super) const WITHDRAWALS: [(&str, Withdrawal); 2] = [
    ("roll_back", Withdrawal::RollBack),
    ("keep", Withdrawal::Keep),
];

/// Bandits, and the key that says how careful each is.
pub(super) const BANDITS: [(&str, &str); 2] = [("linucb", "alpha"), ("thompson", "scale")];

/// What decides.
#[derive(Debug, Clone, PartialEq)]
pub enum PolicyConfig {
    /// A policy that was not trained, by name.
    Baseline(String),
    /// A trained network.
    Checkpoint {
        /// Its directory.
        dir: PathBuf,
        /// How its scores become a choice.
        selection: Selection,
    },
    /// A policy that learns while it serves.
    Bandit(BanditConfig),
}

impl PolicyConfig {
    /// The name of its bandit, if it is one.
    pub(super) fn bandit(&self) -> Option<&'static str> {
        match self {
            Self::Bandit(config) => Some(config.algorithm.name()),
            Self::Baseline(_) | Self::Checkpoint { .. } => None,
        }
    }
}

/// What becomes of a policy that was promoted to production.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Promotion {
    /// It is served in place of the configuration's.
    #[default]
    Serve,
    /// The configuration's is served all the same.
    Ignore,
}

/// What becomes of a promoted version of which the guard had to put back too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Withdrawal {
    /// What was in production before takes its place; one at stage canary is archived.
    #[default]
    RollBack,
    /// It goes on deciding, and the guard goes on putting back.
    Keep,
}

/// How a network's scores become a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// The best allowed level.
    Greedy,
    /// Drawn by the policy's probabilities: explores.
    Sample,
}

/// Reads a table `policy` or `candidate`.
///
/// `taken`: the bandit of another table. Two of the same kind would learn into one file.
pub(super) fn policy(
    mut section: Section,
    base: &Path,
    taken: Option<&str>,
) -> Option<PolicyConfig> {
    if section.has("bandit") {
        return bandit(section, taken);
    }
    let is_given = section.has("baseline") || section.has("checkpoint");
    let baseline = section.text("baseline");
    let checkpoint = section.text("checkpoint");
    let selection = section.choice_or_default("selection", &SELECTIONS);
    let known = BASELINES.join(", ");
    let policy = match (baseline, checkpoint) {
        (Some(name), None) if BASELINES.contains(&name.as_str()) => {
            Some(PolicyConfig::Baseline(name))
        }
        (Some(name), None) => {
            section.problem("baseline", format!("= \"{name}\" must be one of {known}"));
            None
        }
        (None, Some(dir)) => Some(PolicyConfig::Checkpoint {
            dir: found([base, Path::new(SHARED)], &dir),
            selection,
        }),
        (None, None) if is_given => None,
        (None, None) => {
            section.problem(
                "checkpoint",
                format!(
                    "is missing: a checkpoint's directory, or baseline = one of {known}, or bandit = linucb or thompson"
                ),
            );
            None
        }
        (Some(_), Some(_)) => {
            let other = section.path("checkpoint");
            let problem = format!("stands beside {other}: keep one of them");
            section.problem("baseline", problem);
            None
        }
    };
    section.finish();
    policy
}

/// Where packages keep what is the same on every host.
const SHARED: &str = "/usr/share/blkpilot";

/// A directory beside the configuration, or else one that a package has brought; where there is neither, the first.
fn found(bases: [&Path; 2], dir: &str) -> PathBuf {
    let [own, shared] = bases.map(|base| base.join(dir));
    if !own.exists() && shared.exists() {
        return shared;
    }
    own
}

/// One that learns while it serves.
fn bandit(mut section: Section, taken: Option<&str>) -> Option<PolicyConfig> {
    let others = ["baseline", "checkpoint", "selection"];
    if let Some(other) = others.into_iter().find(|other| section.has(other)) {
        let other = section.path(other);
        section.problem("bandit", format!("stands beside {other}: keep one of them"));
        return None;
    }
    let caution = section.choice("bandit", &BANDITS)?;
    let number = section.number_or_default(caution);
    let default = BanditConfig::new(match caution {
        "alpha" => Algorithm::LinUcb(number),
        _ => Algorithm::Thompson(number),
    });
    let config = BanditConfig {
        ridge: section.number_or_default("ridge"),
        memory: section.number_or_default("memory"),
        ..default
    };
    let name = config.algorithm.name();
    if taken == Some(name) {
        let problem = format!(
            "= \"{name}\" is that of [policy], and would learn into the same file: choose the other"
        );
        section.problem("bandit", problem);
    }
    section.finish();
    Some(PolicyConfig::Bandit(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_looked_for_beside_the_configuration_and_then_among_what_packages_brought() {
        let [own, shared] = [0, 1].map(|_| tempfile::tempdir().unwrap());
        let look = |dir: &str| found([own.path(), shared.path()], dir);
        assert_eq!(look("p"), own.path().join("p"));
        std::fs::create_dir(shared.path().join("p")).unwrap();
        assert_eq!(look("p"), shared.path().join("p"));
        std::fs::create_dir(own.path().join("p")).unwrap();
        assert_eq!(look("p"), own.path().join("p"));
        assert_eq!(look("/elsewhere"), Path::new("/elsewhere"));
    }
}
