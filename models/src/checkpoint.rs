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

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use blkpilot_env::{EnvSpec, Rng};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::architecture::Architecture;
use crate::normaliser::{Normaliser, PerTable, Range, TableName};

/// Version of the manifest's format that this build reads and writes.
pub const FORMAT: u32 = 1;
/// Tensors whose names start with this belong to the learner and are not served.
pub const OPTIMISER: &str = "optimiser.";

const MANIFEST: &str = "manifest.json";
const TENSORS: &str = "policy.safetensors";
const SUMS: &str = "SHA256SUMS";
/// Greater files are refused unread: a policy may come from somebody else.
const LARGEST_MANIFEST_BYTES: u64 = 16 << 20;
const LARGEST_TENSORS_BYTES: u64 = 1 << 30;
const LARGEST_SUMS_BYTES: u64 = 4096;

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

    /// Reads and verifies the checkpoint in `dir`.
    ///
    /// # Errors
    /// Whatever is wrong with it; never a panic, whatever the files hold.
    pub fn load(dir: &Path) -> Result<Self, CheckpointError> {
        let sums = read(dir, SUMS, LARGEST_SUMS_BYTES)?;
        let manifest = read(dir, MANIFEST, LARGEST_MANIFEST_BYTES)?;
        let tensors = read(dir, TENSORS, LARGEST_TENSORS_BYTES)?;
        let sums = String::from_utf8_lossy(&sums).into_owned();
        check_sum(dir, &sums, MANIFEST, &manifest)?;
        check_sum(dir, &sums, TENSORS, &tensors)?;
        Self::from_bytes(dir, &manifest, &tensors)
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
        rename(&temporary, dir)
    }

    /// As [`Checkpoint::save`], over the checkpoint that may stand in `dir`. The old one is moved to
    /// `<dir>.previous` first and stays there, so at every moment one of the two is whole.
    ///
    /// # Errors
    /// As [`Checkpoint::save`], without `Exists`.
    pub fn replace(&mut self, dir: &Path) -> Result<(), CheckpointError> {
        let temporary = self.write_beside(dir)?;
        if dir.exists() {
            let previous = previous_of(dir);
            remove(&previous)?;
            rename(dir, &previous)?;
        }
        rename(&temporary, dir)
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
        let manifest = Problem {
            file: origin.join(MANIFEST),
        };
        manifest.check_header(&self.manifest)?;
        manifest.check_tables(&self.manifest)?;
        let tensors = Problem {
            file: origin.join(TENSORS),
        };
        let shapes = self
            .manifest
            .architecture
            .tensor_shapes(&self.manifest.spec);
        tensors.check_names(&shapes, &self.tensors)?;
        tensors.check_values(&self.tensors)
    }

    fn write_beside(&mut self, dir: &Path) -> Result<PathBuf, CheckpointError> {
        let tensors = self.tensor_bytes()?;
        self.manifest.tensors_sha256 = sha256(&tensors);
        self.verify()?;
        let mut manifest =
            serde_json::to_vec_pretty(&self.manifest).map_err(|source| CheckpointError::Json {
                file: MANIFEST.into(),
                source,
            })?;
        manifest.push(b'\n');
        let sums = format!(
            "{}  {MANIFEST}\n{}  {TENSORS}\n",
            sha256(&manifest),
            sha256(&tensors)
        );
        let temporary = temporary_of(dir);
        remove(&temporary)?;
        fs::create_dir_all(&temporary).map_err(io_error("create", &temporary))?;
        write(&temporary, TENSORS, &tensors)?;
        write(&temporary, MANIFEST, &manifest)?;
        write(&temporary, SUMS, sums.as_bytes())?;
        sync_dir(&temporary)?;
        Ok(temporary)
    }

    fn tensor_bytes(&self) -> Result<Vec<u8>, CheckpointError> {
        let problem = Problem {
            file: TENSORS.into(),
        };
        let mut bytes = BTreeMap::new();
        for (name, tensor) in &self.tensors {
            problem.check_size(name, tensor)?;
            let data: Vec<u8> = tensor.data.iter().flat_map(|v| v.to_le_bytes()).collect();
            bytes.insert(name, data);
        }
        let views = self
            .tensors
            .iter()
            .zip(bytes.values())
            .map(|((name, tensor), data)| {
                let view = TensorView::new(Dtype::F32, tensor.shape.clone(), data)
                    .expect("check_size compared the values with the shape");
                (name, view)
            });
        safetensors::serialize(views, None).map_err(|source| CheckpointError::Tensors {
            file: TENSORS.into(),
            source,
        })
    }
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
    #[error("{}: {bytes} bytes, but at most {most} are read: this is no checkpoint of ours", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// Its size.
        bytes: u64,
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
    let dir = file.parent().unwrap_or(Path::new(""));
    let previous = previous_of(dir);
    match source.kind() {
        io::ErrorKind::NotFound if previous.is_dir() => {
            format!(
                ": it is missing, but {} holds the checkpoint before it",
                previous.display()
            )
        }
        io::ErrorKind::NotFound => ": it is missing, so this is no checkpoint directory".to_owned(),
        _ => String::new(),
    }
}

/// Finds what is wrong in one file.
struct Problem {
    file: PathBuf,
}

impl Problem {
    fn invalid(
        &self,
        thing: impl Into<String>,
        value: impl ToString,
        wanted: impl Into<String>,
    ) -> CheckpointError {
        CheckpointError::Invalid {
            file: self.file.clone(),
            thing: thing.into(),
            value: value.to_string(),
            wanted: wanted.into(),
        }
    }

    fn check_header(&self, manifest: &Manifest) -> Result<(), CheckpointError> {
        if manifest.format != FORMAT {
            return Err(self.invalid(
                "format",
                manifest.format,
                format!("this build reads {FORMAT}"),
            ));
        }
        let sizes = [
            ("hidden", manifest.architecture.hidden),
            ("channel_hidden", manifest.architecture.channel_hidden),
        ];
        for (name, size) in sizes {
            if size == 0 || size > Architecture::WIDEST {
                let wanted = format!("it must be 1 to {}", Architecture::WIDEST);
                return Err(self.invalid(format!("architecture.{name}"), size, wanted));
            }
        }
        self.check_spec(&manifest.spec)?;
        let hash = manifest.spec.hash();
        if manifest.spec_hash != hash {
            let wanted = format!(
                "the spec beside it hashes to {hash}: manifest of another version, train again"
            );
            return Err(self.invalid("spec_hash", &manifest.spec_hash, wanted));
        }
        Ok(())
    }

    fn check_spec(&self, spec: &EnvSpec) -> Result<(), CheckpointError> {
        if let Some(head) = spec.device_heads.iter().find(|head| head.is_pointer()) {
            let wanted = "only disks can choose channels in pointer_v1";
            return Err(self.invalid("a device head that points at channels", &head.name, wanted));
        }
        let heads = spec.disk_heads.iter().chain(&spec.device_heads);
        if let Some(head) = heads
            .into_iter()
            .find(|head| !head.is_pointer() && head.len(0) == 0)
        {
            return Err(self.invalid(
                format!("spec head {}", head.name),
                "without levels",
                "it needs at least one",
            ));
        }
        for table in TableName::ALL {
            for feature in table.features(spec) {
                if !(feature.low.is_finite() && feature.high.is_finite()) {
                    let range = format!("{} to {}", feature.low, feature.high);
                    return Err(self.invalid(
                        format!("range of {table} feature {}", feature.name),
                        range,
                        "it must be finite",
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_tables(&self, manifest: &Manifest) -> Result<(), CheckpointError> {
        for table in TableName::ALL {
            let columns = table.features(&manifest.spec);
            let (normaliser, range) = (manifest.normalisers.get(table), manifest.seen.get(table));
            let lists = [
                ("normalisers", "mean", &normaliser.mean),
                ("normalisers", "std", &normaliser.std),
                ("seen", "min", &range.min),
                ("seen", "max", &range.max),
            ];
            for (group, name, list) in lists {
                let thing = format!("{group}.{table}.{name}");
                if list.len() != columns.len() {
                    let wanted = format!("the spec has {} {table} features", columns.len());
                    return Err(self.invalid(thing, format!("{} values", list.len()), wanted));
                }
                for (value, feature) in list.iter().zip(columns) {
                    let too_small = name == "std" && *value <= 0.0;
                    if !value.is_finite() || too_small {
                        let wanted = if name == "std" {
                            "it must be finite and > 0"
                        } else {
                            "it must be finite"
                        };
                        return Err(self.invalid(
                            format!("{thing} of {}", feature.name),
                            value,
                            wanted,
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    fn check_names(
        &self,
        shapes: &BTreeMap<String, Vec<usize>>,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Result<(), CheckpointError> {
        for (name, shape) in shapes {
            let Some(tensor) = tensors.get(name) else {
                let wanted = format!("the architecture needs it, with shape {shape:?}");
                return Err(self.invalid(format!("tensor {name}"), "missing", wanted));
            };
            if tensor.shape != *shape {
                let found = format!("of shape {:?}", tensor.shape);
                return Err(self.invalid(
                    format!("tensor {name}"),
                    found,
                    format!("the architecture needs {shape:?}"),
                ));
            }
        }
        let is_foreign =
            |name: &&String| !shapes.contains_key(*name) && !name.starts_with(OPTIMISER);
        match tensors.keys().find(is_foreign) {
            None => Ok(()),
            Some(name) => {
                let wanted = format!(
                    "the architecture has no such tensor (a learner's own are called {OPTIMISER}…)"
                );
                Err(self.invalid(format!("tensor {name}"), "there", wanted))
            }
        }
    }

    fn check_values(&self, tensors: &BTreeMap<String, Tensor>) -> Result<(), CheckpointError> {
        for (name, tensor) in tensors {
            self.check_size(name, tensor)?;
            if let Some(at) = tensor.data.iter().position(|v| !v.is_finite()) {
                let wanted = "weights must be finite: training diverged, use an earlier checkpoint";
                return Err(self.invalid(format!("tensor {name}[{at}]"), tensor.data[at], wanted));
            }
        }
        Ok(())
    }

    fn check_size(&self, name: &str, tensor: &Tensor) -> Result<(), CheckpointError> {
        let size = tensor
            .shape
            .iter()
            .try_fold(1_usize, |size, dim| size.checked_mul(*dim));
        if size == Some(tensor.data.len()) {
            return Ok(());
        }
        let wanted = format!("{} values are there", tensor.data.len());
        Err(self.invalid(
            format!("tensor {name}"),
            format!("of shape {:?}", tensor.shape),
            wanted,
        ))
    }
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
    if header.format != FORMAT {
        let problem = Problem {
            file: file.to_owned(),
        };
        return Err(problem.invalid(
            "format",
            header.format,
            format!("this build reads {FORMAT}"),
        ));
    }
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
            let problem = Problem {
                file: file.to_owned(),
            };
            return Err(problem.invalid(
                format!("tensor {name}"),
                format!("{:?}", view.dtype()),
                "it must be F32",
            ));
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

fn check_sum(dir: &Path, sums: &str, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
    let line = sums
        .lines()
        .find_map(|line| line.strip_suffix(name)?.strip_suffix("  "));
    let found = sha256(bytes);
    if line == Some(&found) {
        return Ok(());
    }
    let want = line.map_or_else(|| format!("nothing in {SUMS}"), str::to_owned);
    Err(CheckpointError::Hash {
        file: dir.join(name),
        want,
        found,
    })
}

fn sha256(bytes: &[u8]) -> String {
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        write!(hex, "{byte:02x}").expect("writing to a String never fails");
    }
    hex
}

fn io_error(action: &'static str, file: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    let file = file.to_owned();
    move |source| CheckpointError::Io {
        file,
        action,
        source,
    }
}

fn read(dir: &Path, name: &str, most: u64) -> Result<Vec<u8>, CheckpointError> {
    let path = dir.join(name);
    let file = File::open(&path).map_err(io_error("open", &path))?;
    let bytes = file.metadata().map_err(io_error("read", &path))?.len();
    if bytes > most {
        return Err(CheckpointError::TooLarge {
            file: path,
            bytes,
            most,
        });
    }
    let mut content = Vec::new();
    // `take`: a file that grows, or a pipe, has no length to go by.
    file.take(most)
        .read_to_end(&mut content)
        .map_err(io_error("read", &path))?;
    Ok(content)
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
    let path = dir.join(name);
    let mut file = File::create_new(&path).map_err(io_error("create", &path))?;
    file.write_all(bytes).map_err(io_error("write", &path))?;
    file.sync_all().map_err(io_error("sync", &path))
}

fn sync_dir(dir: &Path) -> Result<(), CheckpointError> {
    let opened = File::open(dir).map_err(io_error("open", dir))?;
    opened.sync_all().map_err(io_error("sync", dir))
}

fn rename(from: &Path, to: &Path) -> Result<(), CheckpointError> {
    fs::rename(from, to).map_err(io_error("rename a finished checkpoint to", to))?;
    sync_dir(parent_of(to))
}

fn remove(dir: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", dir)(error))
        }
        _ => Ok(()),
    }
}

fn parent_of(dir: &Path) -> &Path {
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn previous_of(dir: &Path) -> PathBuf {
    dir.with_file_name(format!("{}.previous", name_of(dir)))
}

fn temporary_of(dir: &Path) -> PathBuf {
    dir.with_file_name(format!(".{}.{}.new", name_of(dir), std::process::id()))
}

fn name_of(dir: &Path) -> String {
    dir.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
