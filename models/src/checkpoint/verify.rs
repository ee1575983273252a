//! What must hold of a manifest and of its tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::PathBuf;

use blkpilot_env::{EnvSpec, Head, Level};

use super::{CheckpointError, FORMAT, Manifest, OPTIMISER, Tensor};
use crate::architecture::Architecture;
use crate::normaliser::{PerTable, TableName};

/// What is wrong, in a file yet to be named.
#[derive(Debug)]
pub(super) struct Fault {
    thing: String,
    value: String,
    wanted: String,
}

impl Fault {
    pub(super) fn in_file(self, file: PathBuf) -> CheckpointError {
        let Self {
            thing,
            value,
            wanted,
        } = self;
        CheckpointError::Invalid {
            file,
            thing,
            value,
            wanted,
        }
    }
}

fn fault(thing: impl Into<String>, value: &dyn Display, wanted: impl Into<String>) -> Fault {
    Fault {
        thing: thing.into(),
        value: value.to_string(),
        wanted: wanted.into(),
    }
}

/// Checks the manifest on its own.
pub(super) fn manifest(manifest: &Manifest) -> Result<(), Fault> {
    format(manifest.format)?;
    width("hidden", manifest.architecture.hidden)?;
    width("channel_hidden", manifest.architecture.channel_hidden)?;
    spec(&manifest.spec)?;
    spec_hash(manifest)?;
    let (spec, normalisers) = (&manifest.spec, &manifest.normalisers);
    columns(
        "normalisers.mean",
        spec,
        normalisers,
        |n| &n.mean,
        f32::is_finite,
        "it must be finite",
    )?;
    columns(
        "normalisers.std",
        spec,
        normalisers,
        |n| &n.std,
        is_positive,
        "it must be > 0",
    )?;
    columns(
        "seen.min",
        spec,
        &manifest.seen,
        |r| &r.min,
        f32::is_finite,
        "it must be finite",
    )?;
    columns(
        "seen.max",
        spec,
        &manifest.seen,
        |r| &r.max,
        f32::is_finite,
        "it must be finite",
    )
}

/// Checks the version of the format.
pub(super) fn format(found: u32) -> Result<(), Fault> {
    if found == FORMAT {
        return Ok(());
    }
    Err(fault(
        "format",
        &found,
        format!("this build reads {FORMAT}: use the build that wrote it"),
    ))
}

fn width(name: &str, width: usize) -> Result<(), Fault> {
    if (1..=Architecture::WIDEST).contains(&width) {
        return Ok(());
    }
    let wanted = format!("it must be 1 to {}", Architecture::WIDEST);
    Err(fault(format!("architecture.{name}"), &width, wanted))
}

fn spec(spec: &EnvSpec) -> Result<(), Fault> {
    for table in TableName::ALL {
        for feature in table.features(spec) {
            let thing = format!("range of {table} feature {}", feature.name);
            for bound in [feature.low, feature.high] {
                if !bound.is_finite() {
                    return Err(fault(thing, &bound, "it must be finite"));
                }
            }
        }
    }
    if let Some(head) = spec.device_heads.iter().find(|head| head.is_pointer()) {
        let wanted = "in pointer_v1 only disks can choose channels";
        return Err(fault(
            "a device head that points at channels",
            &head.name,
            wanted,
        ));
    }
    heads(&spec.disk_heads)?;
    heads(&spec.device_heads)
}

/// Heads become names of tensors, and their levels become sizes.
fn heads(heads: &[Head]) -> Result<(), Fault> {
    let mut names = BTreeSet::new();
    for head in heads {
        if head.name.contains('.') || !names.insert(&head.name) {
            let wanted = "names of heads must be unique, and without dots";
            return Err(fault("spec head", &head.name, wanted));
        }
        let levels = head.len(0);
        if levels == 0 || levels > usize::from(Level::MAX) {
            let wanted = format!("it must be 1 to {}", Level::MAX);
            return Err(fault(
                format!("number of levels of head {}", head.name),
                &levels,
                wanted,
            ));
        }
    }
    Ok(())
}

fn spec_hash(manifest: &Manifest) -> Result<(), Fault> {
    let hash = manifest.spec.hash();
    if manifest.spec_hash == hash {
        return Ok(());
    }
    let wanted = format!("the spec beside it hashes to {hash}: it was changed, train again");
    Err(fault("spec_hash", &manifest.spec_hash, wanted))
}

fn is_positive(value: f32) -> bool {
    value.is_finite() && value > 0.0
}

/// Checks one list of numbers per table: as many as the table has columns, each of them good.
fn columns<T>(
    list: &str,
    spec: &EnvSpec,
    tables: &PerTable<T>,
    values: impl Fn(&T) -> &Vec<f32>,
    is_good: impl Fn(f32) -> bool,
    wanted: &str,
) -> Result<(), Fault> {
    for table in TableName::ALL {
        let (features, values) = (table.features(spec), values(tables.get(table)));
        if values.len() != features.len() {
            let wanted = format!("the spec has {} {table} features", features.len());
            return Err(fault(
                format!("length of {list} of {table}"),
                &values.len(),
                wanted,
            ));
        }
        if let Some(at) = values.iter().position(|value| !is_good(*value)) {
            let thing = format!("{list} of {table} feature {}", features[at].name);
            return Err(fault(thing, &values[at], wanted));
        }
    }
    Ok(())
}

/// Checks the tensors against the architecture.
pub(super) fn tensors(
    manifest: &Manifest,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<(), Fault> {
    let shapes = manifest.architecture.tensor_shapes(&manifest.spec);
    for (name, shape) in &shapes {
        let Some(tensor) = tensors.get(name) else {
            let wanted = format!("the architecture needs it, of shape {shape:?}");
            return Err(fault(format!("tensor {name}"), &"missing", wanted));
        };
        if tensor.shape != *shape {
            let found = format!("{:?}", tensor.shape);
            let wanted = format!("the architecture and the spec need {shape:?}");
            return Err(fault(format!("shape of tensor {name}"), &found, wanted));
        }
    }
    let is_foreign = |name: &&String| !shapes.contains_key(*name) && !name.starts_with(OPTIMISER);
    if let Some(name) = tensors.keys().find(is_foreign) {
        let wanted = format!("the architecture has none such, and a learner's are {OPTIMISER}…");
        return Err(fault("a tensor's name", name, wanted));
    }
    tensors
        .iter()
        .try_for_each(|(name, tensor)| values(name, tensor))
}

fn values(name: &str, tensor: &Tensor) -> Result<(), Fault> {
    size(name, tensor)?;
    let Some(at) = tensor.data.iter().position(|value| !value.is_finite()) else {
        return Ok(());
    };
    let wanted = "weights must be finite: training diverged, take an earlier checkpoint";
    Err(fault(
        format!("value {at} of tensor {name}"),
        &tensor.data[at],
        wanted,
    ))
}

/// Checks that a tensor has as many values as its shape says.
pub(super) fn size(name: &str, tensor: &Tensor) -> Result<(), Fault> {
    let size = tensor
        .shape
        .iter()
        .try_fold(1_usize, |size, dim| size.checked_mul(*dim));
    if size == Some(tensor.data.len()) {
        return Ok(());
    }
    let found = format!("{:?}", tensor.shape);
    let wanted = format!("it holds {} values", tensor.data.len());
    Err(fault(format!("shape of tensor {name}"), &found, wanted))
}
