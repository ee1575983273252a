//! The last policy known to be good: a copy of the checkpoint that has decided well for a while, kept in
//! the data directory, so that there is something to fall back on when its successor fails.
//!
//! Good here means that it worked: it decided in time and without an error. Whether its decisions were
//! good ones is for the guard, and for whoever evaluates them, to say.

use std::path::{Path, PathBuf};

use blkpilot_env::EnvSpec;
use blkpilot_log::{DecisionRow, Source, Stage};
use blkpilot_models::{Checkpoint, NetworkPolicy, Selection};

use crate::decision::PolicyRef;
use crate::decision::chain::Loaded;

/// Joint decisions in a row, each of the policy itself, after which it is known to be good.
pub const PROVEN_AFTER: u32 = 100;

/// Where the last good checkpoint of a service with this data directory is.
#[must_use]
pub fn dir_in(data_dir: &Path) -> PathBuf {
    data_dir.join("last_good")
}

/// The last good policy; `None` if there is none, if it is the policy in force, or if it cannot be
/// served any more, which is only logged: it would have been for the worst case.
#[must_use]
pub fn load(
    dir: &Path,
    in_force: &PolicyRef,
    selection: Selection,
    spec: &EnvSpec,
) -> Option<Loaded> {
    if !dir.exists() {
        return None;
    }
    let loaded = Checkpoint::load(dir).and_then(|checkpoint| {
        checkpoint.check_fits(spec)?;
        let version = checkpoint.manifest.tensors_sha256.clone();
        let policy = NetworkPolicy::new("last_good", &checkpoint, selection)?;
        Ok((policy, version))
    });
    match loaded {
        Ok((_, version)) if version == in_force.version => None,
        Ok((policy, version)) => Some(Loaded {
            policy: Box::new(policy),
            reference: PolicyRef {
                name: "last_good".to_owned(),
                version,
            },
        }),
        Err(error) => {
            tracing::warn!(dir = %dir.display(), %error, "the last good policy cannot be served");
            None
        }
    }
}

/// Keeps a checkpoint as the last good one, once it has proved itself.
#[derive(Debug)]
pub struct Proof {
    dir: PathBuf,
    /// `None` when it has been kept.
    checkpoint: Option<Checkpoint>,
    decisions: u32,
}

impl Proof {
    /// For the checkpoint in force, to be kept in `dir`.
    #[must_use]
    pub fn of(checkpoint: Checkpoint, dir: PathBuf) -> Self {
        Self {
            dir,
            checkpoint: Some(checkpoint),
            decisions: 0,
        }
    }

    /// Takes the rows of a joint decision, of which those of source auto are the policy's. One in which
    /// anything stood in for it starts the count again.
    pub fn note(&mut self, rows: &[DecisionRow]) {
        let mut own = rows.iter().filter(|row| row.source == Source::Auto);
        let Some(first) = own.next() else {
            return;
        };
        let by_itself = |row: &DecisionRow| row.stage == Stage::Policy;
        let is_its_own = by_itself(first) && own.all(by_itself);
        self.decisions = if is_its_own { self.decisions + 1 } else { 0 };
        if self.decisions < PROVEN_AFTER {
            return;
        }
        self.decisions = 0;
        let Some(mut checkpoint) = self.checkpoint.take() else {
            return;
        };
        let version = checkpoint.manifest.tensors_sha256.clone();
        match checkpoint.replace(&self.dir) {
            Ok(()) => tracing::info!(version, "kept as the last good policy"),
            Err(error) => {
                tracing::warn!(version, %error, "not kept as the last good policy: trying again");
                self.checkpoint = Some(checkpoint);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use blkpilot_env::Rng;
    use blkpilot_env::features::kvm_host_spec;
    use blkpilot_models::Architecture;
    use rand::SeedableRng as _;
    use tempfile::TempDir;

    use super::*;

    fn checkpoint(spec: &EnvSpec, dir: &Path) -> Checkpoint {
        let mut rng = Rng::seed_from_u64(2);
        Checkpoint::untrained(spec, Architecture::default(), &mut rng)
            .save(dir)
            .unwrap();
        Checkpoint::load(dir).unwrap()
    }

    fn row(stage: Stage) -> DecisionRow {
        let json = serde_json::json!({
            "id": "6ba7b810-9dad-41d1-80b4-00c04fd430c8",
            "host_step_id": "6ba7b810-9dad-41d1-80b4-00c04fd430c8",
            "episode_id": "6ba7b810-9dad-41d1-80b4-00c04fd430c8",
            "at_us": 0, "host": "local", "subject": {"device": {"name": "sda"}}, "order": 0,
            "source": "auto", "policy": "net", "policy_version": "", "spec_hash": "",
            "seen": {"disk": [], "device": [], "host": [], "channel_count": 0, "channels": [],
                     "pairs": [], "flaws": []},
            "heads": [], "novel": [], "reward_weights": {}
        });
        let row: DecisionRow = serde_json::from_value(json).unwrap();
        DecisionRow { stage, ..row }
    }

    #[test]
    fn a_policy_is_kept_when_it_has_decided_long_enough_without_a_failure() {
        let (dir, spec) = (TempDir::new().unwrap(), kvm_host_spec(&[]));
        let checkpoint = checkpoint(&spec, &dir.path().join("policy"));
        let version = checkpoint.manifest.tensors_sha256.clone();
        let kept = dir_in(dir.path());
        let mut proof = Proof::of(checkpoint, kept.clone());
        for _ in 1..PROVEN_AFTER {
            proof.note(&[row(Stage::Policy)]);
        }
        proof.note(&[row(Stage::Policy), row(Stage::Heuristic)]);
        for _ in 1..PROVEN_AFTER {
            proof.note(&[row(Stage::Policy)]);
        }
        assert!(!kept.exists());
        proof.note(&[row(Stage::Policy)]);

        let other = PolicyRef {
            name: "next".to_owned(),
            version: "another".to_owned(),
        };
        let loaded = load(&kept, &other, Selection::Greedy, &spec).unwrap();
        assert_eq!(loaded.reference.version, version);
        let same = PolicyRef { version, ..other };
        assert!(load(&kept, &same, Selection::Greedy, &spec).is_none());
        let other_spec = kvm_host_spec(&["none".to_owned(), "bfq".to_owned()]);
        let fits = load(&kept, &PolicyRef::default(), Selection::Greedy, &other_spec);
        assert!(fits.is_none());
    }
}
