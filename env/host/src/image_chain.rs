//! All files that a virtual disk is made of, each with the stack below it: the image, its backing
//! chain, and files that hold an image's data.

use std::fmt;
use std::path::{Path, PathBuf};

use blkpilot_env::observation::Validity;
use serde_json::Value;

use crate::block_stack::Resolver;
use crate::guest::GuestDisk;
use crate::layer::Layer;
use crate::qcow2::Qcow2Header;
use crate::sysfs::target;

/// Images that a chain may have: QEMU opens them all, and libvirt stops at this many too.
const MAX_IMAGES: usize = 200;

/// What an image of a chain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageRole {
    /// The disk's own: what the guest writes goes there.
    Active,
    /// One below it: read where those above hold nothing.
    Backing,
    /// The data of the image before it, which holds only where what is.
    Data,
}

/// An image as the domain XML names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName {
    /// File or block device; `None` for one on the network.
    pub path: Option<PathBuf>,
    /// Format, `raw` where not given.
    pub format: String,
}

/// The backing chain below a disk's image as the domain XML has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BackingChain {
    /// The images, from the top.
    pub images: Vec<ImageName>,
    /// Whether the XML says that no more follow; where it does not, the headers are asked.
    pub is_complete: bool,
}

/// An image of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// File or block device.
    pub path: PathBuf,
    /// Format, such as `qcow2`.
    pub format: String,
    /// What it is.
    pub role: ImageRole,
    /// Where it is known from: `domain XML`, or the image in whose header it is named.
    pub source: String,
    /// `Estimated` where the format was recorded nowhere and is taken for raw.
    pub validity: Validity,
    /// The stack below it.
    pub stack: Layer,
}

/// Everything below a virtual disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageChain {
    /// The images, from the top.
    pub images: Vec<Image>,
    /// Why the chain is not known any further; `None` where it is.
    pub problem: Option<String>,
}

impl Resolver {
    /// Everything below a virtual disk. Headers of qcow2 images are read, which waits for the storage
    /// that they are on.
    #[must_use]
    pub fn disk(&self, disk: &GuestDisk) -> ImageChain {
        let mut chain = ImageChain {
            images: vec![],
            problem: None,
        };
        let active = ImageName {
            path: disk.source.clone(),
            format: disk.format.clone(),
        };
        let given = std::iter::once(&active).chain(&disk.backing.images);
        for (index, name) in given.enumerate() {
            let role = if index == 0 {
                ImageRole::Active
            } else {
                ImageRole::Backing
            };
            let Some(path) = &name.path else {
                return chain.ending("the XML names no file or block device of this host".into());
            };
            chain
                .images
                .push(self.an_image(path, &name.format, role, "domain XML"));
            self.add_data_file(&mut chain);
        }
        if disk.backing.is_complete {
            return chain;
        }
        self.follow_headers(&mut chain);
        chain
    }

    fn an_image(&self, path: &Path, format: &str, role: ImageRole, source: &str) -> Image {
        Image {
            path: path.to_owned(),
            format: format.to_owned(),
            role,
            source: source.to_owned(),
            validity: Validity::Valid,
            stack: self.image(path),
        }
    }

    /// Only what is known to be qcow2 is looked into: a guest may write such a header into a raw image.
    fn follow_headers(&self, chain: &mut ImageChain) {
        while let Some(above) = chain.last_qcow2() {
            let header = match Qcow2Header::read(&above) {
                Ok(header) => header,
                Err(error) => return chain.problem = Some(error.to_string()),
            };
            let Some(name) = header.backing_file else {
                return;
            };
            let path = match local_path(&name, &above) {
                Ok(path) => path,
                Err(problem) => return chain.problem = Some(problem),
            };
            let real = |path: &Path| target(path).unwrap_or_else(|| path.to_owned());
            if chain
                .images
                .iter()
                .any(|image| real(&image.path) == real(&path))
            {
                return chain.problem = Some(format!("{} stands on itself", path.display()));
            }
            if chain.images.len() >= MAX_IMAGES {
                return chain.problem = Some(format!("more than {MAX_IMAGES} images"));
            }
            let format = header.backing_format.as_deref();
            let source = above.display().to_string();
            let mut image =
                self.an_image(&path, format.unwrap_or("raw"), ImageRole::Backing, &source);
            if format.is_none() {
                image.validity = Validity::Estimated;
            }
            chain.images.push(image);
            self.add_data_file(chain);
        }
    }

    /// The data file of the last image, where it has one that can be found out.
    fn add_data_file(&self, chain: &mut ImageChain) {
        let Some(owner) = chain.last_qcow2() else {
            return;
        };
        let named = Qcow2Header::read(&owner)
            .ok()
            .and_then(|header| header.data_file);
        let path = named.and_then(|name| local_path(&name, &owner).ok());
        if let Some(path) = path {
            let source = owner.display().to_string();
            chain
                .images
                .push(self.an_image(&path, "raw", ImageRole::Data, &source));
        }
    }
}

/// Where a name in a header leads to: relative ones start at the directory of the image.
fn local_path(name: &str, image: &Path) -> Result<PathBuf, String> {
    let remote = || format!("{name} is for QEMU alone: it names no file or device of this host");
    let name = match name.strip_prefix("json:") {
        Some(options) => &file_name(options).ok_or_else(remote)?,
        None => name,
    };
    let path = name.strip_prefix("file:").unwrap_or(name);
    // A protocol comes before any slash: `nbd://host/x`, `rbd:pool/x`.
    let before_slash = path.split('/').next().unwrap_or_default();
    if before_slash.contains(':') || path.is_empty() {
        return Err(remote());
    }
    Ok(image.parent().unwrap_or(Path::new("")).join(path))
}

/// The file in QEMU's options of a node, nested or with dots.
fn file_name(options: &str) -> Option<String> {
    let options: Value = serde_json::from_str(options).ok()?;
    let file = options.get("file").unwrap_or(&options);
    let name = file
        .get("filename")
        .or_else(|| options.get("file.filename"));
    name?.as_str().map(str::to_owned)
}

impl ImageChain {
    /// Whether all of it is known down to the hardware.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.problem.is_none() && self.images.iter().all(|image| image.stack.is_complete())
    }

    /// The last image without its data file, if it is qcow2.
    fn last_qcow2(&self) -> Option<PathBuf> {
        let mut images = self.images.iter().rev();
        let last = images.find(|image| image.role != ImageRole::Data)?;
        (last.format == "qcow2").then(|| last.path.clone())
    }

    fn ending(self, problem: String) -> Self {
        Self {
            problem: Some(problem),
            ..self
        }
    }
}

impl ImageRole {
    /// In a word, for scripts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Backing => "backing",
            Self::Data => "data",
        }
    }
}

/// `qcow2 /a.img on ext4 on vda <- raw /b.img on xfs on dm-3 (LVM vg-data) on nvme0n1`.
impl fmt::Display for ImageChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, image) in self.images.iter().enumerate() {
            let between = match (index, image.role) {
                (0, _) => "",
                (_, ImageRole::Data) => ", its data ",
                _ => " <- ",
            };
            write!(f, "{between}{} {}", image.format, image.stack)?;
        }
        match &self.problem {
            Some(problem) if self.images.is_empty() => write!(f, "? ({problem})"),
            Some(problem) => write!(f, " <- ? ({problem})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
