//! The header of a qcow2 image: what it stands on. Source: QEMU's `docs/interop/qcow2.txt`.
//!
//! An image is opened read-only and none of QEMU's locks is taken, so that a guest that runs on it is
//! not disturbed.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::libc;

use crate::error::{HostError, HostResult};

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Lengths of the fixed part: version 2, and the least of version 3.
const V2_LENGTH: usize = 72;
const V3_LENGTH: usize = 104;
/// Everything that is read lies in the first cluster, of 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
const MAX_NAME: usize = 1023;
const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const DATA_FILE_NAME: u32 = 0x4441_5441;
/// Bit of the incompatible features.
const HAS_DATA_FILE: u64 = 1 << 2;

/// What an image stands on, as its header says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Qcow2Header {
    /// Name of the backing file, as written: a path, relative to the image's directory where it does
    /// not start with `/`, or something for QEMU alone (`nbd://…`, `json:{…}`).
    pub backing_file: Option<String>,
    /// Format of the backing file; `None` where it was not recorded, and QEMU would guess.
    pub backing_format: Option<String>,
    /// Name of the file with the guest's data, where that is not the image itself.
    pub data_file: Option<String>,
}

impl Qcow2Header {
    /// Reads the header of an image.
    ///
    /// # Errors
    /// `Io`; `Unsupported` for what is neither a file nor a block device; `Parse` for what is no
    /// qcow2 image, or a broken one.
    pub fn read(image: &Path) -> HostResult<Self> {
        let kind = fs::metadata(image)
            .map_err(HostError::io(image))?
            .file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(HostError::Unsupported {
                what: format!("{}: reading its header", image.display()),
                reason: "it is neither a file nor a block device".into(),
            });
        }
        let mut options = OpenOptions::new();
        // Whatever has taken its place meanwhile must not block.
        options
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
        let file = options.open(image).map_err(HostError::io(image))?;
        let read = |length: usize| {
            let mut bytes = vec![0; length];
            let mut filled = 0;
            while filled < length {
                match file.read_at(&mut bytes[filled..], filled as u64) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) => return Err(HostError::io(image)(error)),
                }
            }
            bytes.truncate(filled);
            Ok(bytes)
        };
        let start = read(V2_LENGTH)?;
        let problem = |text: &str| HostError::parse(&image.display().to_string(), text);
        let cluster = cluster_size(&start).map_err(problem)?;
        Self::parse(&read(cluster)?).map_err(problem)
    }

    /// Parses the first cluster of an image, or as much as there is of it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(cluster: &[u8]) -> Result<Self, &'static str> {
        let size = cluster_size(cluster)?;
        let cluster = &cluster[..cluster.len().min(size)];
        let version = u32_at(cluster, 4).ok_or("a qcow2 header that is cut off")?;
        let (length, features) = match version {
            2 => (V2_LENGTH, 0),
            3 => {
                let features = u64_at(cluster, 72).ok_or("a qcow2 header that is cut off")?;
                let length = u32_at(cluster, 100).ok_or("a qcow2 header that is cut off")?;
                (length as usize, features)
            }
            _ => return Err("a qcow2 version other than 2 and 3"),
        };
        if version == 3 && (length < V3_LENGTH || length > cluster.len()) {
            return Err("a qcow2 header length outside of its cluster");
        }
        let mut header = Self {
            backing_file: backing_file(cluster)?,
            ..Self::default()
        };
        header.read_extensions(cluster, length)?;
        if features & HAS_DATA_FILE == 0 {
            header.data_file = None;
        } else if header.data_file.is_none() {
            return Err("a qcow2 image whose data is in a file that its header does not name");
        }
        Ok(header)
    }

    fn read_extensions(&mut self, cluster: &[u8], mut at: usize) -> Result<(), &'static str> {
        // Each takes eight bytes at least, so that this ends.
        while let Some(kind) = u32_at(cluster, at).filter(|kind| *kind != END) {
            let broken = "a qcow2 header extension outside of its cluster";
            let length = u32_at(cluster, at + 4).ok_or(broken)? as usize;
            let end = (at + 8).checked_add(length).ok_or(broken)?;
            let data = cluster.get(at + 8..end).ok_or(broken)?;
            match kind {
                BACKING_FORMAT => self.backing_format = Some(text(data)?),
                DATA_FILE_NAME => self.data_file = Some(text(data)?),
                _ => {}
            }
            at = end.checked_next_multiple_of(8).ok_or(broken)?;
        }
        Ok(())
    }
}

fn cluster_size(header: &[u8]) -> Result<usize, &'static str> {
    if header.get(..4) != Some(&MAGIC) {
        return Err("no qcow2 header");
    }
    u32_at(header, 20)
        .filter(|bits| CLUSTER_BITS.contains(bits))
        .map(|bits| 1 << bits)
        .ok_or("a qcow2 cluster size outside of 512 bytes to 2 MiB")
}

fn backing_file(cluster: &[u8]) -> Result<Option<String>, &'static str> {
    let broken = "a qcow2 backing file name outside of its cluster";
    let offset = u64_at(cluster, 8).ok_or("a qcow2 header that is cut off")?;
    let length = u32_at(cluster, 16).ok_or("a qcow2 header that is cut off")? as usize;
    if offset == 0 {
        return Ok(None);
    }
    if length > MAX_NAME {
        return Err("a qcow2 backing file name of more than 1023 bytes");
    }
    let offset = usize::try_from(offset).map_err(|_| broken)?;
    let end = offset.checked_add(length).ok_or(broken)?;
    let name = cluster.get(offset..end).ok_or(broken)?;
    Ok(Some(text(name)?).filter(|name| !name.is_empty()))
}

fn text(bytes: &[u8]) -> Result<String, &'static str> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "a qcow2 header with a name that is not UTF-8")
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    /// An image of version 3 with one cluster of 64 KiB: as `qemu-img` lays it out.
    pub(crate) fn image(
        backing: Option<&str>,
        format: Option<&str>,
        data: Option<&str>,
    ) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 16];
        let put = |bytes: &mut Vec<u8>, at: usize, what: &[u8]| {
            bytes[at..at + what.len()].copy_from_slice(what);
        };
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 4, &3_u32.to_be_bytes());
        put(&mut bytes, 20, &16_u32.to_be_bytes());
        put(&mut bytes, 100, &104_u32.to_be_bytes());
        let mut at = 104;
        for (kind, text) in [(BACKING_FORMAT, format), (DATA_FILE_NAME, data)] {
            let Some(text) = text else { continue };
            put(&mut bytes, at, &kind.to_be_bytes());
            put(&mut bytes, at + 4, &(text.len() as u32).to_be_bytes());
            put(&mut bytes, at + 8, text.as_bytes());
            at = (at + 8 + text.len()).next_multiple_of(8);
        }
        if data.is_some() {
            put(&mut bytes, 72, &HAS_DATA_FILE.to_be_bytes());
        }
        if let Some(backing) = backing {
            put(&mut bytes, 8, &((at + 8) as u64).to_be_bytes());
            put(&mut bytes, 16, &(backing.len() as u32).to_be_bytes());
            put(&mut bytes, at + 8, backing.as_bytes());
        }
        bytes
    }

    #[test]
    fn names_and_formats_are_read() {
        let header = Qcow2Header::parse(&image(Some("base.img"), Some("raw"), Some("/d.raw")));
        let wanted = Qcow2Header {
            backing_file: Some("base.img".into()),
            backing_format: Some("raw".into()),
            data_file: Some("/d.raw".into()),
        };
        assert_eq!(header, Ok(wanted));
        assert_eq!(
            Qcow2Header::parse(&image(None, None, None)),
            Ok(Qcow2Header::default())
        );
    }

    #[test]
    fn a_broken_header_is_refused_with_what_is_wrong() {
        let broken = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = image(Some("base.img"), Some("raw"), None);
            change(&mut bytes);
            Qcow2Header::parse(&bytes).unwrap_err()
        };
        for (wanted, change) in [
            (
                "no qcow2",
                (&|b: &mut Vec<u8>| b[0] = 0) as &dyn Fn(&mut Vec<u8>),
            ),
            ("version", &|b| b[7] = 9),
            ("cluster size", &|b| b[23] = 40),
            ("header length", &|b| b[101] = 0xff),
            ("outside", &|b| b[8] = 0xff),
            ("1023", &|b| b[18] = 0xff),
            ("extension", &|b| b[108] = 0xff),
            ("UTF-8", &|b| b[112] = 0xff),
            ("cut off", &|b| b.truncate(75)),
            ("does not name", &|b| b[79] = 4),
        ] {
            let found = broken(change);
            assert!(found.contains(wanted), "{found} instead of {wanted}");
        }
    }

    #[test]
    fn a_reader_of_a_directory_a_short_file_and_a_fifo_does_not_block_or_panic() {
        let dir = tempfile::tempdir().unwrap();
        let short = dir.path().join("short");
        fs::write(&short, b"QFI").unwrap();
        assert!(Qcow2Header::read(&short).is_err());
        assert!(Qcow2Header::read(dir.path()).is_err());
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(Qcow2Header::read(&fifo).is_err());
    }

    /// `qemu-img` writes an image with each backing format and cluster size, and the names that it was
    /// given are read back.
    #[test]
    fn what_qemu_img_writes_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let qemu_img = |args: &[&str]| {
            Command::new("qemu-img")
                .args(args)
                .current_dir(dir.path())
                .output()
        };
        match qemu_img(&["create", "-q", "-f", "raw", "base.raw", "1M"]) {
            Ok(made) => assert!(made.status.success(), "{made:?}"),
            Err(_) => return eprintln!("qemu-img is not there: its images are not tried"),
        }
        let mut below = ("base.raw".to_owned(), "raw");
        for (compat, cluster) in [("0.10", "512"), ("1.1", "65536"), ("1.1", "2M")] {
            let name = format!("{compat}-{cluster}.qcow2");
            let options = format!("compat={compat},cluster_size={cluster}");
            let args = [
                "create", "-q", "-f", "qcow2", "-o", &options, "-F", below.1, "-b", &below.0, &name,
            ];
            let made = qemu_img(&args).unwrap();
            assert!(made.status.success(), "{made:?}");
            let header = Qcow2Header::read(&dir.path().join(&name)).unwrap();
            assert_eq!(header.backing_file.as_ref(), Some(&below.0));
            assert_eq!(header.backing_format.as_deref(), Some(below.1));
            below = (name, "qcow2");
        }
        let data = "data_file=data.raw";
        let made = qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            data,
            "outside.qcow2",
            "1M",
        ])
        .unwrap();
        assert!(made.status.success(), "{made:?}");
        let header = Qcow2Header::read(&dir.path().join("outside.qcow2")).unwrap();
        assert_eq!(header.data_file.as_deref(), Some("data.raw"));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let _ = Qcow2Header::parse(&bytes);
        }

        /// Behind a good magic and cluster size the rest of the parser is reached too.
        #[test]
        fn a_damaged_image_never_panics(
            damage in proptest::collection::vec((0_usize..300, any::<u8>()), 0..40),
            length in 0_usize..600,
        ) {
            let mut bytes = image(Some("base.img"), Some("qcow2"), Some("data"));
            for (at, byte) in damage {
                bytes[at] = byte;
            }
            bytes.truncate(length);
            if let Ok(header) = Qcow2Header::parse(&bytes) {
                prop_assert!(header.backing_file.is_none_or(|name| name.len() <= MAX_NAME));
            }
        }
    }
}
