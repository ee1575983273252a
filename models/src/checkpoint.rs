//! A policy on disk: a directory with `manifest.json`, `policy.safetensors` and `SHA256SUMS`.
//!
//! The manifest says what the tensors are: architecture, the spec they were made for, normalisers,
//! the ranges seen in training, algorithm, config and seed. The tensors are those of
//! [`crate::architecture`], plus any under [`OPTIMISER`] that only learners read. `SHA256SUMS`
//! (which `sha256sum -c` can check) covers both files, so that a single changed byte is refused.
//!
//! A checkpoint appears whole or not at all: its files are written and synced in a hidden sibling
//! directory, which is then renamed. Loading believes nothing; whatever is wrong is one
//! [`CheckpointError`] that names the file, the thing, the value and the way out.

mod bytes;
mod files;
mod verify;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use blkpilot_env::{EnvSpec, Rng};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::architecture::Architecture;
use crate::normaliser::{Normaliser, PerTable, Range};
use files::sha256;
use verify::Fault;

pub use bytes::CheckpointBytes;

/// Version of the manifest's format that this build reads and writes.
pub const FORMAT: u32 = 1;
/// Tensors whose names start with this belong to the learner and are not served.
pub const OPTIMISER: &str = "optimiser.";

const MANIFEST: &str = "manifest.json";
const TENSORS: &str = "policy.safetensors";
const SUMS: &str = "SHA256SUMS";

/// What a checkpoint says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Kind and sizes of the network.
    pub architecture: Architecture,
    /// What the policy was made for.
    pub spec: EnvSpec,
    /// `EnvSpec::hash` of `spec`.
    pub spec_hash: String,
    /// Mean and deviation per column.
    pub normalisers: PerTable<Normaliser>,
    /// Range per column seen in training.
    pub seen: PerTable<Range>,
    /// Name of the learner, such as `ppo`.
    pub algorithm: String,
    /// The learner's configuration.
    pub config: serde_json::Value,
    /// Seed of the run.
    pub seed: u64,
    /// Environment steps taken.
    pub env_steps: u64,
    /// SHA-256 of `policy.safetensors`, in hex: the identity of these weights. Set by saving.
    pub tensors_sha256: String,
    /// Whatever else the learner keeps, such as the state of its generators.
    pub extra: BTreeMap<String, serde_json::Value>,
}

impl Manifest {
    /// The manifest of a network for `spec` that has not been trained: identity normalisers, and
    /// nothing counts as novel.
    #[must_use]
    pub fn untrained(spec: &EnvSpec, architecture: Architecture) -> Self {
        Self {
            format: FORMAT,
            architecture,
            spec: spec.clone(),
            spec_hash: spec.hash(),
            normalisers: PerTable::build(spec, |_, features| Normaliser::identity(features.len())),
            seen: PerTable::build(spec, |_, features| Range::unbounded(features.len())),
            algorithm: "none".to_owned(),
            config: serde_json::Value::Null,
            seed: 0,
            env_steps: 0,
            tensors_sha256: String::new(),
            extra: BTreeMap::new(),
        }
    }
}

/// A tensor of f32, row-major.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tensor {
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its values; as many as the dimensions multiply to.
    pub data: Vec<f32>,
}

/// A manifest and its tensors, by name.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// What the tensors are.
    pub manifest: Manifest,
    /// The tensors.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Checkpoint {
    /// A network for `spec` that has not been trained, with weights from `rng`.
    #[must_use]
    pub fn untrained(spec: &EnvSpec, architecture: Architecture, rng: &mut Rng) -> Self {
        let tensors = architecture.initial_tensors(spec, rng);
        Self {
            manifest: Manifest::untrained(spec, architecture),
            tensors,
        }
    }

    /// The same policy without what only its learner reads: nothing can be trained on from it.
    #[must_use]
    pub fn to_serve(mut self) -> Self {
        self.tensors.retain(|name, _| !name.starts_with(OPTIMISER));
        self.manifest.extra.clear();
        self
    }

    /// Reads and verifies the checkpoint in `dir`.
    ///
    /// # Errors
    /// Whatever is wrong with it; never a panic, whatever the files hold.
    pub fn load(dir: &Path) -> Result<Self, CheckpointError> {
        CheckpointBytes::read(dir)?.verify(dir)
    }

    /// Verifies a manifest and a tensor file that came by another way than a directory. `origin` is
    /// only named in errors.
    ///
    /// # Errors
    /// Whatever is wrong with them.
    pub fn from_bytes(
        origin: &Path,
        manifest: &[u8],
        tensors: &[u8],
    ) -> Result<Self, CheckpointError> {
        let manifest = parse_manifest(&origin.join(MANIFEST), manifest)?;
        let file = origin.join(TENSORS);
        let found = sha256(tensors);
        if found != manifest.tensors_sha256 {
            return Err(CheckpointError::Hash {
                file,
                want: manifest.tensors_sha256,
                found,
            });
        }
        let checkpoint = Self {
            manifest,
            tensors: parse_tensors(&file, tensors)?,
        };
        checkpoint.verify_in(origin)?;
        Ok(checkpoint)
    }

    /// Writes the checkpoint to `dir`, which must not exist yet: whole or not at all. Sets
    /// `manifest.tensors_sha256`.
    ///
    /// # Errors
    /// `Exists`, `Io`, or what [`Checkpoint::verify`] finds; `dir` does not exist then.
    pub fn save(&mut self, dir: &Path) -> Result<(), CheckpointError> {
        if dir.exists() {
            return Err(CheckpointError::Exists {
                dir: dir.to_owned(),
            });
        }
        let temporary = self.write_beside(dir)?;
        files::publish(&temporary, dir)
    }

    /// As [`Checkpoint::save`], over the checkpoint that may stand in `dir`. The old one is moved to
    /// `<dir>.previous` first and stays there, so at every moment one of the two is whole.
    ///
    /// # Errors
    /// As [`Checkpoint::save`], without `Exists`.
    pub fn replace(&mut self, dir: &Path) -> Result<(), CheckpointError> {
        let temporary = self.write_beside(dir)?;
        files::set_aside(dir)?;
        files::publish(&temporary, dir)
    }

    /// Checks all that [`Checkpoint::load`] checks apart from files and hashes: sizes, names and
    /// shapes of tensors, finite weights, normalisers that fit the spec.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify(&self) -> Result<(), CheckpointError> {
        self.verify_in(Path::new(""))
    }

    /// Whether this policy can act on an environment.
    ///
    /// # Errors
    /// `DoesNotFit`, which names the first difference between the specs.
    pub fn check_fits(&self, spec: &EnvSpec) -> Result<(), CheckpointError> {
        match self.manifest.spec.difference(spec) {
            None => Ok(()),
            Some(difference) => Err(CheckpointError::DoesNotFit {
                made_for: self.manifest.spec.name.clone(),
                spec: spec.name.clone(),
                difference,
            }),
        }
    }

    fn verify_in(&self, origin: &Path) -> Result<(), CheckpointError> {
        let in_file = |name| move |fault: Fault| fault.in_file(origin.join(name));
        verify::manifest(&self.manifest).map_err(in_file(MANIFEST))?;
        verify::tensors(&self.manifest, &self.tensors).map_err(in_file(TENSORS))
    }

    fn write_beside(&mut self, dir: &Path) -> Result<PathBuf, CheckpointError> {
        self.verify()?;
        let tensors = tensor_bytes(&self.tensors)?;
        self.manifest.tensors_sha256 = sha256(&tensors);
        let mut manifest =
            serde_json::to_vec_pretty(&self.manifest).map_err(|source| CheckpointError::Json {
                file: MANIFEST.into(),
                source,
            })?;
        manifest.push(b'\n');
        let sums = sums(&manifest, &tensors);
        let files = [
            (TENSORS, &tensors[..]),
            (MANIFEST, &manifest),
            (SUMS, sums.as_bytes()),
        ];
        files::write_beside(dir, &files)
    }
}

fn sums(manifest: &[u8], tensors: &[u8]) -> String {
    format!(
        "{}  {MANIFEST}\n{}  {TENSORS}\n",
        sha256(manifest),
        sha256(tensors)
    )
}

fn check_sums(
    dir: &Path,
    found: &[u8],
    manifest: &[u8],
    tensors: &[u8],
) -> Result<(), CheckpointError> {
    if found == sums(manifest, tensors).as_bytes() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(found);
    let named = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_suffix(name)?.strip_suffix("  "))
    };
    for (name, bytes) in [(MANIFEST, manifest), (TENSORS, tensors)] {
        if let Some(want) = named(name).filter(|want| *want != sha256(bytes)) {
            let (file, want) = (dir.join(name), want.to_owned());
            return Err(CheckpointError::Hash {
                file,
                want,
                found: sha256(bytes),
            });
        }
    }
    Err(CheckpointError::Sums {
        file: dir.join(SUMS),
    })
}

fn parse_manifest(file: &Path, bytes: &[u8]) -> Result<Manifest, CheckpointError> {
    /// Read first, so that another format is refused by its number, not by what it lacks.
    #[derive(Deserialize)]
    struct Header {
        format: u32,
    }
    let json = |source| CheckpointError::Json {
        file: file.to_owned(),
        source,
    };
    let header: Header = serde_json::from_slice(bytes).map_err(json)?;
    verify::format(header.format).map_err(|fault| fault.in_file(file.to_owned()))?;
    serde_json::from_slice(bytes).map_err(json)
}

fn parse_tensors(file: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    let parsed = SafeTensors::deserialize(bytes).map_err(|source| CheckpointError::Tensors {
        file: file.to_owned(),
        source,
    })?;
    let mut tensors = BTreeMap::new();
    for (name, view) in parsed.iter() {
        if view.dtype() != Dtype::F32 {
            return Err(CheckpointError::Invalid {
                file: file.to_owned(),
                thing: format!("type of tensor {name}"),
                value: format!("{:?}", view.dtype()),
                wanted: "it must be F32".to_owned(),
            });
        }
        let values = view.data().chunks_exact(4);
        let data = values
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        tensors.insert(
            name.to_owned(),
            Tensor {
                shape: view.shape().to_vec(),
                data,
            },
        );
    }
    Ok(tensors)
}

/// The tensors of a verified checkpoint as safetensors.
fn tensor_bytes(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>, CheckpointError> {
    let bytes = |tensor: &Tensor| tensor.data.iter().flat_map(|v| v.to_le_bytes()).collect();
    let data: Vec<Vec<u8>> = tensors.values().map(bytes).collect();
    let views = tensors.iter().zip(&data).map(|((name, tensor), data)| {
        let view = TensorView::new(Dtype::F32, tensor.shape.clone(), data)
            .expect("verify compared the number of values with the shape");
        (name, view)
    });
    safetensors::serialize(views, None).map_err(|source| CheckpointError::Tensors {
        file: TENSORS.into(),
        source,
    })
}

/// Why a checkpoint was refused.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// A file or directory could not be read or written.
    #[error("{}: cannot {action}{}", file.display(), hint(file, source))]
    Io {
        /// The file or directory.
        file: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// There is something at the place to save to.
    #[error("{}: exists already: choose another directory, or replace it explicitly", dir.display())]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// A file that is larger than any checkpoint's.
    #[error("{}: larger than {most} bytes: this is no checkpoint of ours", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// The greatest size.
        most: u64,
    },
    /// The manifest is not JSON, or not a manifest.
    #[error("{}: not a manifest (truncated, or of another program): copy or train it again", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// What the parser says, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// The tensor file is not safetensors.
    #[error("{}: not a safetensors file (truncated, or of another program): copy or train it again", file.display())]
    Tensors {
        /// The file.
        file: PathBuf,
        /// What the parser says.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// A file is not the one that was saved.
    #[error("{}: SHA-256 is {found}, but {want} was saved: the file is damaged or mixed up with another, copy it again", file.display())]
    Hash {
        /// The file.
        file: PathBuf,
        /// The hash that was written down.
        want: String,
        /// The hash of what is there.
        found: String,
    },
    /// The list of hashes itself is damaged.
    #[error("{}: does not list the two files with their hashes: it is damaged, copy the checkpoint again", file.display())]
    Sums {
        /// The file.
        file: PathBuf,
    },
    /// Something in a file is not as it must be.
    #[error("{}: {thing} is {value}: {wanted}", file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// The thing.
        thing: String,
        /// Its value.
        value: String,
        /// What it must be, and the way out.
        wanted: String,
    },
    /// The policy was made for another environment.
    #[error(
        "the policy was made for `{made_for}` and does not fit `{spec}`: {difference}; train one for this spec, or enable what is missing"
    )]
    DoesNotFit {
        /// Name of the spec in the checkpoint.
        made_for: String,
        /// Name of the environment's spec.
        spec: String,
        /// The first difference.
        difference: String,
    },
}

fn hint(file: &Path, source: &io::Error) -> String {
    let previous = files::previous_of(file.parent().unwrap_or(Path::new("")));
    match source.kind() {
        io::ErrorKind::NotFound if previous.is_dir() => {
            format!(
                ": it is missing, but {} holds the checkpoint before it",
                previous.display()
            )
        }
        io::ErrorKind::NotFound => ": it is missing, so this is no checkpoint".to_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests;
