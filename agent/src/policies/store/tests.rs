use std::fs;

use blkpilot_env::Rng;
use blkpilot_env::features::kvm_host_spec;
use blkpilot_evaluate::Admission;
use blkpilot_models::{Architecture, Checkpoint};
use rand::SeedableRng as _;
use serde_json::json;
use tempfile::TempDir;

use super::*;

fn made(seed: u64, label: Option<&str>, dir: &Path) -> CheckpointBytes {
    let mut rng = Rng::seed_from_u64(seed);
    let mut checkpoint =
        Checkpoint::untrained(&kvm_host_spec(&[]), Architecture::default(), &mut rng);
    if let Some(name) = label {
        let label = json!({ "name": name, "selection": "sample" });
        checkpoint
            .manifest
            .extra
            .insert("promotion".to_owned(), label);
    }
    checkpoint.save(dir).unwrap();
    CheckpointBytes::read(dir).unwrap()
}

fn bytes(seed: u64) -> CheckpointBytes {
    let dir = TempDir::new().unwrap();
    made(seed, None, &dir.path().join("policy"))
}

fn asked() -> Asked {
    Asked {
        actor: "uid 1".to_owned(),
        at_us: 7,
        reason: "try".to_owned(),
    }
}

fn upload(store: &PolicyStore, policy: &str, seed: u64) -> Version {
    let kept = store.keep(&bytes(seed)).unwrap();
    let upload =
        |change: &Change<'_>| change.upload(policy, &kept, Selection::Greedy, "made", &asked());
    store.change(upload).unwrap()
}

fn promote(store: &PolicyStore, version: &Version, stage: Stage) -> Result<Version, StoreError> {
    store.change(|change| change.promote(&version.name, stage, &asked(), None))
}

fn rollback(store: &PolicyStore) -> Result<Withdrawal, StoreError> {
    store.change(|change| change.rollback("", &asked()))
}

#[test]
fn versions_are_numbered_and_the_same_content_is_the_same_version() {
    let dir = TempDir::new().unwrap();
    let store = PolicyStore::open(dir.path()).unwrap();
    let versions = [1, 2, 1].map(|seed| upload(&store, "net", seed));
    assert_eq!(versions[0], versions[2]);
    let names = versions.each_ref().map(|version| version.name.to_string());
    assert_eq!(
        names[..2],
        ["policies/net/versions/1", "policies/net/versions/2"]
    );
    assert_eq!(upload(&store, "other", 1).name.number, 1);
    let families = store.families().unwrap();
    let families: Vec<_> = families.iter().map(|f| (&f.id[..], f.versions)).collect();
    assert_eq!(families, [("net", 2), ("other", 1)]);
    let again = PolicyStore::open(dir.path()).unwrap();
    assert_eq!(again.version(&versions[1].name).unwrap(), versions[1]);
    let loaded = again.checkpoint(&versions[1]).unwrap();
    assert_eq!(loaded.manifest.tensors_sha256, versions[1].tensors_sha256);
}

#[test]
fn one_version_stands_at_a_stage_and_a_rollback_goes_back_step_by_step() {
    let dir = TempDir::new().unwrap();
    let store = PolicyStore::open(dir.path()).unwrap();
    let [a, b, c] = [1, 2, 3].map(|seed| upload(&store, "net", seed));
    assert!(matches!(rollback(&store), Err(StoreError::NothingPromoted)));
    promote(&store, &a, Stage::Canary).unwrap();
    promote(&store, &b, Stage::Canary).unwrap();
    assert_eq!(store.version(&a.name).unwrap().stage, Stage::Stored);
    for version in [&a, &b, &c] {
        promote(&store, version, Stage::Production).unwrap();
    }
    let refused = promote(&store, &c, Stage::Candidate);
    assert!(matches!(refused, Err(StoreError::InProduction { .. })));
    // What was archived is passed over.
    store
        .change(|change| change.archive(&b.name, &asked()))
        .unwrap();
    let back = rollback(&store).unwrap();
    assert_eq!(back.withdrawn.name, c.name);
    assert_eq!(back.production.unwrap().name, a.name);
    assert_eq!(store.standing().unwrap().canary, None);
    let back = rollback(&store).unwrap();
    assert_eq!((back.withdrawn.name, back.production), (a.name, None));
    assert!(matches!(rollback(&store), Err(StoreError::NothingPromoted)));
    let actions: Vec<_> = store.events().unwrap().iter().map(|e| e.action).collect();
    assert_eq!(actions[..3], [Action::Upload; 3]);
    assert_eq!(
        actions[8..],
        [Action::Archive, Action::Rollback, Action::Rollback]
    );
}

#[test]
fn what_is_rehearsed_or_refused_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let store = PolicyStore::open(dir.path()).unwrap();
    let version = upload(&store, "net", 1);
    let would_be = store
        .rehearse(|change| change.promote(&version.name, Stage::Canary, &asked(), None))
        .unwrap();
    assert_eq!(would_be.stage, Stage::Canary);
    assert_eq!(store.version(&version.name).unwrap(), version);
    let stale = version.check_etag("v1-9").unwrap_err();
    assert!(stale.to_string().contains("v1-1, not v1-9"), "{stale}");
    let nobody = VersionName {
        number: 9,
        ..version.name.clone()
    };
    assert!(matches!(
        store.version(&nobody),
        Err(StoreError::Missing { .. })
    ));
    let objections = vec!["worse".to_owned()];
    let refused = Admission::Refused { objections };
    store
        .change(|change| {
            change.refuse(
                &version.name,
                Stage::Production,
                &asked(),
                refused.clone(),
                None,
            )
        })
        .unwrap();
    let event = store.events().unwrap().pop().unwrap();
    assert_eq!(
        (event.outcome, event.admission),
        (Outcome::Refused, Some(refused))
    );
    assert_eq!(store.standing().unwrap(), Standing::default());
}

#[test]
fn what_no_version_names_is_swept_and_what_is_damaged_is_refused_and_mended_by_an_upload() {
    let dir = TempDir::new().unwrap();
    let store = PolicyStore::open(dir.path()).unwrap();
    let version = upload(&store, "net", 1);
    let orphan = store.keep(&bytes(2)).unwrap();
    assert_eq!(store.sweep().unwrap(), 0, "somebody stores one");
    let orphan_dir = dir.path().join("checkpoints").join(&orphan.sha256);
    drop(orphan);
    assert_eq!(store.sweep().unwrap(), 1);
    assert!(!orphan_dir.exists());
    let tensors = store.checkpoint_dir(&version).join("policy.safetensors");
    fs::write(&tensors, b"torn").unwrap();
    assert!(store.checkpoint(&version).is_err());
    assert_eq!(upload(&store, "net", 1), version);
    store.checkpoint(&version).unwrap();
}

#[test]
fn names_of_directories_become_ids_of_policies() {
    let known = [
        ("Quick_Start v2", "quick-start-v2"),
        ("2025-net", "policy-2025-net"),
        ("..", "policy"),
        ("net-", "net"),
    ];
    for (name, id) in known {
        assert_eq!(policy_id(name), id);
        assert!(crate::config::is_resource_id(&policy_id(name)));
    }
    assert_eq!(policy_id(&"x".repeat(80)).len(), 63);
}

/// Files as a build without a store had them.
fn older(dir: &Path) -> PathBuf {
    let promoted = dir.join("promoted");
    made(1, Some("first"), &promoted.join("policy.previous"));
    made(2, Some("Second One"), &promoted.join("policy"));
    let line = |id: &str, stage: &str, admission: serde_json::Value| {
        json!({ "id": id, "at_us": 5, "action": "promote", "stage": stage, "policy": "first",
                "version": "ab", "admission": admission, "verdict": null })
        .to_string()
    };
    let forced = json!({ "admission": "forced", "reason": "why", "objections": [] });
    let lines = [
        line("a", "begun", forced.clone()),
        line("a", "done", forced),
        line("b", "begun", serde_json::Value::Null),
    ];
    let torn = line("c", "done", serde_json::Value::Null);
    let text = format!("{}\n{}", lines.join("\n"), &torn[..20]);
    fs::write(promoted.join("record.jsonl"), text).unwrap();
    promoted
}

#[test]
fn what_a_build_without_a_store_had_promoted_is_taken_over_once() {
    let dir = TempDir::new().unwrap();
    let promoted = older(dir.path());
    let before = promoted_before(dir.path()).unwrap().unwrap();
    assert_eq!(before.policy, "second-one");
    let store = PolicyStore::open(dir.path()).unwrap();
    assert!(!promoted.exists() && promoted_before(dir.path()).unwrap().is_none());
    let production = store.standing().unwrap().production.unwrap();
    assert_eq!(
        (&production.name.policy[..], production.selection),
        ("second-one", Selection::Sample)
    );
    let back = rollback(&store).unwrap().production.unwrap();
    assert_eq!(back.name.policy, "first");
    assert_eq!(rollback(&store).unwrap().production, None);
    let events = store.events().unwrap();
    let old: Vec<_> = events
        .iter()
        .filter(|event| event.at_us == 5)
        .map(|event| (&event.id[..], event.outcome, &event.reason[..]))
        .collect();
    let wanted = [("a", Outcome::Done, "why"), ("b", Outcome::Interrupted, "")];
    assert_eq!(old, wanted);
    // A crash before the files were set aside.
    older(dir.path());
    fs::remove_dir_all(dir.path().join("promoted.taken-over")).unwrap();
    let store = PolicyStore::open(dir.path()).unwrap();
    assert_eq!(store.standing().unwrap().production, None);
}

#[test]
fn older_files_that_are_damaged_are_an_error_with_the_way_out() {
    let dir = TempDir::new().unwrap();
    let promoted = older(dir.path());
    fs::write(promoted.join("policy/policy.safetensors"), b"torn").unwrap();
    let error = PolicyStore::open(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("policy.safetensors") && error.contains("away"),
        "{error}"
    );
    assert!(promoted_before(dir.path()).is_err());
}
