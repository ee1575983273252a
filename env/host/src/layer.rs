//! The stack below an image as a tree of layers, and the device in it that does the work.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::block_device::DeviceKind;

/// What a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// A regular file.
    File,
    /// A file system.
    FileSystem,
    /// A block device.
    Device(DeviceKind),
}

/// A layer of the stack below an image, with what it stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// What it is.
    pub kind: LayerKind,
    /// Path of a file, type of a file system, kernel name of a device.
    pub name: String,
    /// What else there is to say, such as `LVM vg-data`; empty for nothing.
    pub detail: String,
    /// Where it is known from that this layer is there.
    pub source: PathBuf,
    /// What it stands on: several devices under a stripe, nothing under hardware.
    pub below: Vec<Layer>,
    /// Whether each request goes on to what is below. Not so of a loop device without direct I/O, which
    /// answers from the page cache, nor of a namespace with several paths, whose path may change.
    pub passes_on: bool,
    /// Why what is below is not known; `None` where it is, or there is nothing.
    pub problem: Option<String>,
}

impl Layer {
    pub(crate) fn new(kind: LayerKind, name: String, source: &Path) -> Self {
        Self {
            kind,
            name,
            detail: String::new(),
            source: source.to_owned(),
            below: vec![],
            passes_on: true,
            problem: None,
        }
    }

    pub(crate) fn on(self, below: Vec<Self>) -> Self {
        Self { below, ..self }
    }

    pub(crate) fn ending(self, problem: String) -> Self {
        Self {
            problem: Some(problem),
            ..self
        }
    }

    /// Whether the stack is known down to the hardware everywhere.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.problem.is_none() && self.below.iter().all(Self::is_complete)
    }

    /// The deepest device that all requests of the stack pass: what it counts is what the image
    /// causes, together with whatever else lies on it. `None` where there is none, as under a file
    /// system of several devices. What does not pass requests on is not looked through.
    #[must_use]
    pub fn worker(&self) -> Option<&Self> {
        self.passed_by_all().pop()
    }

    /// The devices that all requests of the stack pass, from the top, partitions left out.
    fn passed_by_all(&self) -> Vec<&Self> {
        let is_whole = |kind: DeviceKind| kind != DeviceKind::Partition;
        let mut passed: Vec<&Self> = vec![];
        if self.device().is_some_and(is_whole) {
            passed.push(self);
        }
        let mut branches = self.below.iter().filter(|_| self.passes_on);
        if let Some(first) = branches.next() {
            let mut common = first.passed_by_all();
            for branch in branches {
                let others = branch.passed_by_all();
                common.retain(|layer| others.iter().any(|other| other.name == layer.name));
            }
            passed.extend(common);
        }
        passed
    }

    /// The devices at the bottom, those with hardware queues, in the order of their names.
    #[must_use]
    pub fn leaves(&self) -> Vec<&Self> {
        let mut leaves: Vec<&Self> = self.below.iter().flat_map(Self::leaves).collect();
        if leaves.is_empty() && self.device().is_some() {
            leaves.push(self);
        }
        leaves.sort_by(|a, b| a.name.cmp(&b.name));
        leaves.dedup_by(|a, b| a.name == b.name);
        leaves
    }

    /// The first thing that is not known, from the top.
    #[must_use]
    pub fn first_problem(&self) -> Option<&str> {
        let below = || self.below.iter().find_map(Self::first_problem);
        self.problem.as_deref().or_else(below)
    }

    fn device(&self) -> Option<DeviceKind> {
        match self.kind {
            LayerKind::Device(kind) => Some(kind),
            LayerKind::File | LayerKind::FileSystem => None,
        }
    }
}

/// `/a.img on ext4 on dm-3 (LVM vg-data) on [nvme0n1, nvme1n1]`.
impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        match &self.below[..] {
            [] => {}
            [only] => write!(f, " on {only}")?,
            several => {
                let several: Vec<String> = several.iter().map(Self::to_string).collect();
                write!(f, " on [{}]", several.join(", "))?;
            }
        }
        match &self.problem {
            Some(problem) => write!(f, " on ? ({problem})"),
            None => Ok(()),
        }
    }
}
