use std::fs::{self, File};

use blkpilot_env::Rng;
use blkpilot_env::cartpole::CartPole;
use proptest::prelude::*;
use rand::SeedableRng as _;

use super::*;
use crate::fixture::Sizes;
use crate::network::ActorCritic;

const SMALL: Architecture = Architecture {
    hidden: 3,
    channel_hidden: 2,
    kind: crate::architecture::Kind::PointerV1,
};

fn checkpoint() -> Checkpoint {
    let spec = Sizes::default().spec();
    let mut checkpoint = Checkpoint::untrained(&spec, SMALL, &mut Rng::seed_from_u64(1));
    let manifest = &mut checkpoint.manifest;
    manifest.algorithm = "ppo".to_owned();
    manifest.config = serde_json::json!({ "clip": 0.2, "lambda": 0.1 + 0.2 });
    manifest.normalisers.disk.mean[0] = 0.1;
    manifest.seen.disk.max[0] = f32::MIN_POSITIVE;
    manifest
        .extra
        .insert("note".to_owned(), serde_json::json!(["any", 1]));
    let step = Tensor {
        shape: vec![],
        data: vec![7.0],
    };
    checkpoint.tensors.insert("optimiser.step".to_owned(), step);
    checkpoint
}

struct Saved {
    root: tempfile::TempDir,
    dir: PathBuf,
    checkpoint: Checkpoint,
}

fn saved() -> Saved {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("step-1");
    let mut checkpoint = checkpoint();
    checkpoint.save(&dir).unwrap();
    Saved {
        root,
        dir,
        checkpoint,
    }
}

/// The text of the error and of its causes.
fn text(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(text);
    cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// What loading says about a checkpoint in memory, written without any check.
fn refusal(change: impl FnOnce(&mut Checkpoint)) -> String {
    let mut checkpoint = checkpoint();
    change(&mut checkpoint);
    let tensors = tensor_bytes(&checkpoint.tensors).unwrap();
    checkpoint.manifest.tensors_sha256 = sha256(&tensors);
    let manifest = serde_json::to_vec(&checkpoint.manifest).unwrap();
    let error = Checkpoint::from_bytes(Path::new("up"), &manifest, &tensors).unwrap_err();
    text(&error)
}

#[test]
fn what_is_saved_is_what_is_loaded_bit_for_bit() {
    let Saved {
        dir,
        checkpoint,
        root,
    } = saved();
    let loaded = Checkpoint::load(&dir).unwrap();
    assert_eq!(loaded, checkpoint);
    assert_eq!(
        fs::read_dir(root.path()).unwrap().count(),
        1,
        "no temporary directory stays"
    );
    let names: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
    ActorCritic::new(&loaded).unwrap();
}

#[test]
fn a_spec_with_the_widest_range_of_f32_survives() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("cart");
    let architecture = Architecture::default();
    let mut rng = Rng::seed_from_u64(1);
    let mut checkpoint = Checkpoint::untrained(&CartPole::default_spec(), architecture, &mut rng);
    checkpoint.save(&dir).unwrap();
    assert_eq!(Checkpoint::load(&dir).unwrap(), checkpoint);
}

#[test]
fn saving_does_not_overwrite_and_replacing_keeps_the_one_before() {
    let Saved {
        dir,
        mut checkpoint,
        root: _root,
    } = saved();
    let refused = checkpoint.save(&dir).unwrap_err();
    assert!(
        matches!(refused, CheckpointError::Exists { .. }),
        "{refused}"
    );
    let before = checkpoint.clone();
    checkpoint.manifest.env_steps = 2;
    checkpoint.replace(&dir).unwrap();
    checkpoint.manifest.env_steps = 3;
    checkpoint.replace(&dir).unwrap();
    assert_eq!(Checkpoint::load(&dir).unwrap().manifest.env_steps, 3);
    let previous = dir.with_file_name("step-1.previous");
    assert_eq!(Checkpoint::load(&previous).unwrap().manifest.env_steps, 2);
    fs::remove_dir_all(&dir).unwrap();
    let lost = text(&Checkpoint::load(&dir).unwrap_err());
    assert!(
        lost.contains("step-1.previous holds the checkpoint before it"),
        "{lost}"
    );
    assert_eq!(before.manifest.env_steps, 0);
}

#[test]
fn a_checkpoint_that_is_not_good_is_not_saved() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("bad");
    let mut checkpoint = checkpoint();
    checkpoint
        .tensors
        .get_mut("critic.value.bias")
        .unwrap()
        .data[0] = f32::NAN;
    let error = checkpoint.save(&dir).unwrap_err().to_string();
    assert!(
        error.contains("value 0 of tensor critic.value.bias is NaN"),
        "{error}"
    );
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn a_file_cut_anywhere_is_refused_by_name() {
    let Saved {
        dir, root: _root, ..
    } = saved();
    for name in [MANIFEST, TENSORS, SUMS] {
        let path = dir.join(name);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let error = text(&Checkpoint::load(&dir).unwrap_err());
            assert!(error.contains(name), "{name} cut to {length}: {error}");
        }
        fs::write(&path, &whole).unwrap();
    }
    Checkpoint::load(&dir).unwrap();
}

#[test]
fn a_byte_changed_anywhere_is_refused() {
    let Saved {
        dir, root: _root, ..
    } = saved();
    for name in [MANIFEST, TENSORS, SUMS] {
        let path = dir.join(name);
        let mut bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            bytes[at] ^= 1 << (at % 8);
            fs::write(&path, &bytes).unwrap();
            assert!(Checkpoint::load(&dir).is_err(), "{name} changed at {at}");
            bytes[at] ^= 1 << (at % 8);
        }
        fs::write(&path, &bytes).unwrap();
    }
}

#[test]
fn tensors_of_another_checkpoint_are_refused() {
    let (one, other) = (saved(), {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("other");
        let mut checkpoint = checkpoint();
        checkpoint
            .tensors
            .get_mut("critic.value.bias")
            .unwrap()
            .data[0] = 9.0;
        checkpoint.save(&dir).unwrap();
        Saved {
            root,
            dir,
            checkpoint,
        }
    });
    fs::copy(other.dir.join(TENSORS), one.dir.join(TENSORS)).unwrap();
    let error = Checkpoint::load(&one.dir).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::Hash { file, .. } if file.ends_with(TENSORS)),
        "{error}"
    );
    // Also when the list of hashes comes along.
    fs::copy(other.dir.join(SUMS), one.dir.join(SUMS)).unwrap();
    assert!(Checkpoint::load(&one.dir).is_err());
}

#[test]
fn what_is_no_checkpoint_is_called_so() {
    let root = tempfile::tempdir().unwrap();
    let error = text(&Checkpoint::load(root.path()).unwrap_err());
    assert!(error.contains("so this is no checkpoint"), "{error}");
    let error = Checkpoint::from_bytes(Path::new("up"), b"{\"a\": 1}", b"").unwrap_err();
    assert!(
        text(&error).contains("up/manifest.json: not a manifest"),
        "{}",
        text(&error)
    );
    let large = root.path().join("large");
    File::create(&large)
        .unwrap()
        .set_len(files::LARGEST_SUMS_BYTES + 1)
        .unwrap();
    let error = files::read(&large, files::LARGEST_SUMS_BYTES).unwrap_err();
    assert!(matches!(error, CheckpointError::TooLarge { .. }), "{error}");
}

#[test]
fn another_format_is_refused_by_its_number() {
    let manifest = br#"{"format": 2, "anything": "else"}"#;
    let error = Checkpoint::from_bytes(Path::new("up"), manifest, b"")
        .unwrap_err()
        .to_string();
    assert!(error.contains("format is 2: this build reads 1"), "{error}");
}

#[test]
fn each_fault_names_file_thing_value_and_way_out() {
    type Change = fn(&mut Checkpoint);
    let faults: [(Change, &str); 16] = [
        (
            |c| c.manifest.architecture.hidden = 0,
            "manifest.json: architecture.hidden is 0: it must be 1 to 4096",
        ),
        (
            |c| c.manifest.architecture.channel_hidden = 5000,
            "architecture.channel_hidden is 5000",
        ),
        (
            |c| c.manifest.spec_hash = "ab".into(),
            "spec_hash is ab: the spec beside it hashes to ",
        ),
        (
            |c| c.manifest.spec.disk_features[0].unit = blkpilot_env::Unit::Share,
            "spec_hash is ",
        ),
        (
            |c| c.manifest.normalisers.disk.std[2] = 0.0,
            "normalisers.std of disk feature disk_2 is 0: it must be > 0",
        ),
        (
            |c| c.manifest.normalisers.host.mean.clear(),
            "length of normalisers.mean of host is 0: the spec has 2 host features",
        ),
        (
            |c| c.manifest.seen.pair.max.push(1.0),
            "length of seen.max of pair is 3: the spec has 2",
        ),
        (
            |c| drop(c.tensors.remove("actor.trunk.bias")),
            "policy.safetensors: tensor actor.trunk.bias is missing: the architecture needs it, of shape [3]",
        ),
        (
            |c| {
                c.tensors.insert(
                    "actor.extra".into(),
                    Tensor {
                        shape: vec![1],
                        data: vec![1.0],
                    },
                );
            },
            "a tensor's name is actor.extra: the architecture has none such",
        ),
        (
            |c| c.tensors.get_mut("actor.trunk.weight").unwrap().shape = vec![5, 3],
            "shape of tensor actor.trunk.weight is [5, 3]: the architecture and the spec need [3, 5]",
        ),
        (
            |c| c.tensors.get_mut("actor.trunk.weight").unwrap().data[4] = f32::INFINITY,
            "value 4 of tensor actor.trunk.weight is inf: weights must be finite",
        ),
        (
            |c| c.tensors.get_mut("optimiser.step").unwrap().data[0] = f32::NAN,
            "value 0 of tensor optimiser.step is NaN",
        ),
        (
            |c| {
                c.manifest.spec.device_heads[0].levels = blkpilot_env::Levels::Channels {
                    zero: "none".into(),
                }
            },
            "a device head that points at channels is scheduler",
        ),
        (
            |c| c.manifest.spec.disk_heads[0].levels = blkpilot_env::Levels::Named(vec![]),
            "number of levels of head cache is 0",
        ),
        (
            |c| c.manifest.spec.disk_heads[0].name = "polling".into(),
            "spec head is polling: names of heads must be unique",
        ),
        (
            |c| c.manifest.spec.disk_heads[0].name = "a.b".into(),
            "spec head is a.b: names of heads must be unique, and without dots",
        ),
    ];
    for (change, want) in faults {
        let found = refusal(change);
        assert!(found.starts_with("up/") && found.contains(want), "{found}");
    }
}

#[test]
fn a_tensor_of_another_type_is_refused() {
    let data = [0_u8; 8];
    let view = TensorView::new(Dtype::F64, vec![1], &data).unwrap();
    let bytes = safetensors::serialize([("a", view)], None).unwrap();
    let error = parse_tensors(Path::new("t"), &bytes)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "t: type of tensor a is F64: it must be F32");
}

#[test]
fn a_policy_for_another_spec_is_refused_with_the_difference() {
    let checkpoint = checkpoint();
    checkpoint.check_fits(&Sizes::default().spec()).unwrap();
    let other = Sizes {
        columns: [6, 3, 2, 3, 2],
        ..Sizes::default()
    }
    .spec();
    let error = checkpoint.check_fits(&other).unwrap_err().to_string();
    assert!(
        error.contains("does not fit `made_up`: `disk feature disk_5"),
        "{error}"
    );
}

proptest! {
    /// Hashes keep out accidents, not authors: whatever bytes somebody sends with a hash that
    /// fits must be refused or be a network.
    #[test]
    fn no_tensor_file_makes_the_parser_panic(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut checkpoint = checkpoint();
        let mut bytes = tensor_bytes(&checkpoint.tensors).unwrap();
        let header = bytes.len().min(2200);
        bytes[at.index(header)] = byte;
        if cut.index(2) == 0 {
            bytes.truncate(cut.index(bytes.len()));
        }
        checkpoint.manifest.tensors_sha256 = sha256(&bytes);
        let manifest = serde_json::to_vec(&checkpoint.manifest).unwrap();
        if let Ok(checkpoint) = Checkpoint::from_bytes(Path::new("up"), &manifest, &bytes) {
            ActorCritic::new(&checkpoint).unwrap();
        }
    }

    #[test]
    fn no_manifest_makes_the_parser_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut checkpoint = checkpoint();
        let tensors = tensor_bytes(&checkpoint.tensors).unwrap();
        checkpoint.manifest.tensors_sha256 = sha256(&tensors);
        let mut manifest = serde_json::to_vec(&checkpoint.manifest).unwrap();
        let at = at.index(manifest.len());
        manifest[at] = byte;
        if let Ok(checkpoint) = Checkpoint::from_bytes(Path::new("up"), &manifest, &tensors) {
            ActorCritic::new(&checkpoint).unwrap();
        }
    }
}
