//! A checkpoint as the bytes of its two files: what is sent and stored as it is.

use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::files::{self, LARGEST_MANIFEST_BYTES, LARGEST_SUMS_BYTES, LARGEST_TENSORS_BYTES};
use super::{Checkpoint, CheckpointError, MANIFEST, SUMS, TENSORS, check_sums, sums};

/// The files of a checkpoint, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckpointBytes {
    /// `manifest.json`.
    pub manifest: Vec<u8>,
    /// `policy.safetensors`.
    pub tensors: Vec<u8>,
}

impl CheckpointBytes {
    /// Reads the checkpoint in `dir` and compares it with its `SHA256SUMS`.
    ///
    /// # Errors
    /// `Io`, `TooLarge`, `Hash`, `Sums`.
    pub fn read(dir: &Path) -> Result<Self, CheckpointError> {
        let sums = files::read(&dir.join(SUMS), LARGEST_SUMS_BYTES)?;
        let manifest = files::read(&dir.join(MANIFEST), LARGEST_MANIFEST_BYTES)?;
        let tensors = files::read(&dir.join(TENSORS), LARGEST_TENSORS_BYTES)?;
        check_sums(dir, &sums, &manifest, &tensors)?;
        Ok(Self { manifest, tensors })
    }

    /// SHA-256 in hex of the manifest followed by the tensors: what
    /// `cat manifest.json policy.safetensors | sha256sum` says.
    #[must_use]
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(&self.manifest);
        hash.update(&self.tensors);
        files::hex(&hash.finalize())
    }

    /// The checkpoint, verified. `origin` is only named in errors.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn verify(&self, origin: &Path) -> Result<Checkpoint, CheckpointError> {
        Checkpoint::from_bytes(origin, &self.manifest, &self.tensors)
    }

    /// Writes the files to `dir`, which must not exist yet: whole or not at all, and on stable storage when
    /// this returns.
    ///
    /// # Errors
    /// `Exists`, `Io`; `dir` does not exist then, but for `Exists`.
    pub fn save(&self, dir: &Path) -> Result<(), CheckpointError> {
        if dir.exists() {
            let dir = dir.to_owned();
            return Err(CheckpointError::Exists { dir });
        }
        let sums = sums(&self.manifest, &self.tensors);
        let files = [
            (TENSORS, &self.tensors[..]),
            (MANIFEST, &self.manifest),
            (SUMS, sums.as_bytes()),
        ];
        let temporary = files::write_beside(dir, &files)?;
        files::publish(&temporary, dir)
    }
}

#[cfg(test)]
mod tests {
    use blkpilot_env::Environment as _;
    use blkpilot_env::Rng;
    use blkpilot_env::cartpole::CartPole;
    use rand::SeedableRng as _;
    use tempfile::TempDir;

    use super::*;
    use crate::architecture::Architecture;

    #[test]
    fn bytes_that_are_saved_are_the_same_checkpoint_byte_for_byte() {
        let dir = TempDir::new().unwrap();
        let [made, copied] = ["made", "copied"].map(|name| dir.path().join(name));
        let mut rng = Rng::seed_from_u64(1);
        let spec = CartPole::new(0).spec().clone();
        Checkpoint::untrained(&spec, Architecture::default(), &mut rng)
            .save(&made)
            .unwrap();
        let bytes = CheckpointBytes::read(&made).unwrap();
        bytes.save(&copied).unwrap();
        assert_eq!(CheckpointBytes::read(&copied).unwrap(), bytes);
        assert_eq!(
            bytes.verify(&made).unwrap(),
            Checkpoint::load(&copied).unwrap()
        );
        let again = bytes.save(&copied);
        assert!(matches!(again, Err(CheckpointError::Exists { .. })));
    }

    #[test]
    fn the_hash_is_that_of_one_file_after_the_other() {
        let bytes = CheckpointBytes {
            manifest: b"ab".to_vec(),
            tensors: b"c".to_vec(),
        };
        // FIPS 180-2, "abc".
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(bytes.sha256(), known);
    }
}
