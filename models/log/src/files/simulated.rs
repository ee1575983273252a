//! A disk in memory whose power can fail after any operation.
//!
//! What was not synced is lost or kept at random, each write and each name by itself and whatever
//! the order, as POSIX allows; a write may be torn, and bytes before one that was kept may be zero.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use blkpilot_env::Rng;
use bytes::Bytes;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

use super::{Files, Handle, Kind, Name, Source};

/// The disk, shared by all who hold it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Simulated(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    /// What processes see.
    names: BTreeMap<PathBuf, Entry>,
    /// What is on the disk for certain.
    durable: BTreeMap<PathBuf, Entry>,
    /// Changes of names that have not been synced, oldest first.
    pending: Vec<Change>,
    /// Operations that still succeed; `None` if the power does not fail.
    left: Option<u64>,
    done: u64,
}

#[derive(Debug, Default, Clone)]
struct Inode {
    data: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<Unsynced>,
}

#[derive(Debug, Clone)]
enum Unsynced {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    File(usize),
    Dir,
}

#[derive(Debug, Clone)]
struct Change {
    dir: PathBuf,
    removed: Option<PathBuf>,
    made: Option<(PathBuf, Entry)>,
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Entry>) {
        if let Some(path) = &self.removed {
            names.remove(path);
        }
        if let Some((path, entry)) = &self.made {
            names.insert(path.clone(), *entry);
        }
    }
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

fn no_power() -> io::Error {
    io::Error::other("the power has failed")
}

impl Simulated {
    /// A disk with this directory on it.
    pub(crate) fn with_dir(dir: &Path) -> Self {
        let disk = Self::default();
        for above in dir.ancestors() {
            let mut state = disk.state();
            state.names.insert(above.to_owned(), Entry::Dir);
            state.durable.insert(above.to_owned(), Entry::Dir);
        }
        disk
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The power fails at the operation after this many more that change something.
    pub(crate) fn fail_after(&self, operations: u64) {
        self.state().left = Some(operations);
    }

    /// Operations that have changed something.
    pub(crate) fn operations(&self) -> u64 {
        self.state().done
    }

    /// The power comes back: what was not synced is there or not.
    pub(crate) fn restart(&self, rng: &mut Rng) {
        let mut state = self.state();
        state.left = None;
        let mut durable = std::mem::take(&mut state.durable);
        for change in std::mem::take(&mut state.pending) {
            if rng.random_bool(0.5) {
                change.apply(&mut durable);
            }
        }
        // What stands in a directory that is not there cannot be found.
        let dirs = durable.clone();
        let is_dir = |path: &Path| dirs.get(path) == Some(&Entry::Dir);
        durable.retain(|path, _| path.ancestors().skip(1).all(is_dir));
        for inode in &mut state.inodes {
            inode.settle(rng);
        }
        state.names = durable.clone();
        state.durable = durable;
    }
}

impl Inode {
    fn settle(&mut self, rng: &mut Rng) {
        let mut data = std::mem::take(&mut self.synced);
        for change in self.unsynced.drain(..) {
            match change {
                Unsynced::Length(length) if rng.random_bool(0.5) => data.resize(length, 0),
                Unsynced::Write(at, bytes) if rng.random_bool(0.6) => {
                    let is_torn = rng.random_bool(0.3);
                    let kept = if is_torn {
                        (rng.next_u64() % (bytes.len() as u64 + 1)) as usize
                    } else {
                        bytes.len()
                    };
                    let end = at + kept;
                    data.resize(data.len().max(end), 0);
                    data[at..end].copy_from_slice(&bytes[..kept]);
                }
                _ => {}
            }
        }
        self.data.clone_from(&data);
        self.synced = data;
    }
}

impl State {
    /// Notes that something is to be changed; fails when the power does.
    fn spend(&mut self) -> io::Result<()> {
        match &mut self.left {
            Some(0) => return Err(no_power()),
            Some(left) => *left -= 1,
            None => {}
        }
        self.done += 1;
        Ok(())
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.pending.push(change);
    }

    fn file(&self, path: &Path) -> io::Result<usize> {
        match self.names.get(path) {
            Some(Entry::File(inode)) => Ok(*inode),
            _ => Err(missing()),
        }
    }

    fn check_dir(&self, dir: &Path) -> io::Result<()> {
        match self.names.get(dir) {
            Some(Entry::Dir) => Ok(()),
            _ => Err(missing()),
        }
    }
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap().to_owned()
}

impl Files for Simulated {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut above: Vec<_> = dir.ancestors().collect();
        above.reverse();
        for dir in above {
            let mut state = self.state();
            if state.names.contains_key(dir) {
                continue;
            }
            state.spend()?;
            state.change(Change {
                dir: parent(dir),
                removed: None,
                made: Some((dir.to_owned(), Entry::Dir)),
            });
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Name>> {
        let state = self.state();
        state.check_dir(dir)?;
        let own = state
            .names
            .iter()
            .filter(|(path, _)| path.parent() == Some(dir));
        Ok(own
            .map(|(path, entry)| Name {
                name: path.file_name().unwrap().to_str().unwrap().to_owned(),
                kind: if *entry == Entry::Dir {
                    Kind::Directory
                } else {
                    Kind::File
                },
            })
            .collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        let mut state = self.state();
        state.check_dir(&parent(path))?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.spend()?;
        state.inodes.push(Inode::default());
        let inode = state.inodes.len() - 1;
        state.change(Change {
            dir: parent(path),
            removed: None,
            made: Some((path.to_owned(), Entry::File(inode))),
        });
        Ok(Box::new(Open {
            disk: self.clone(),
            inode,
        }))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        let inode = self.state().file(path)?;
        Ok(Box::new(Open {
            disk: self.clone(),
            inode,
        }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        let state = self.state();
        let data = state.inodes[state.file(path)?].data.clone();
        Ok(Box::new(io::Cursor::new(data)))
    }

    fn source(&self, path: &Path) -> io::Result<Source> {
        let state = self.state();
        let data = state.inodes[state.file(path)?].data.clone();
        Ok(Source::Memory(Bytes::from(data)))
    }

    fn length(&self, path: &Path) -> io::Result<u64> {
        let state = self.state();
        Ok(state.inodes[state.file(path)?].data.len() as u64)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let inode = state.file(from)?;
        state.spend()?;
        state.change(Change {
            dir: parent(to),
            removed: Some(from.to_owned()),
            made: Some((to.to_owned(), Entry::File(inode))),
        });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.file(path)?;
        state.spend()?;
        state.change(Change {
            dir: parent(path),
            removed: Some(path.to_owned()),
            made: None,
        });
        Ok(())
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        if !self.list(dir)?.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let mut state = self.state();
        state.spend()?;
        state.change(Change {
            dir: parent(dir),
            removed: Some(dir.to_owned()),
            made: None,
        });
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.check_dir(dir)?;
        state.spend()?;
        let State {
            pending, durable, ..
        } = &mut *state;
        pending.retain(|change| {
            if change.dir == dir {
                change.apply(durable);
            }
            change.dir != dir
        });
        Ok(())
    }
}

#[derive(Debug)]
struct Open {
    disk: Simulated,
    inode: usize,
}

impl Write for Open {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.disk.state();
        let spent = state.spend();
        let inode = &mut state.inodes[self.inode];
        let at = inode.data.len();
        // When the power fails it may be on its way already.
        inode.data.extend_from_slice(bytes);
        inode.unsynced.push(Unsynced::Write(at, bytes.to_vec()));
        spent.map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Handle for Open {
    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.spend()?;
        let inode = &mut state.inodes[self.inode];
        inode.unsynced.clear();
        inode.synced.clone_from(&inode.data);
        Ok(())
    }

    fn set_length(&mut self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.spend()?;
        let inode = &mut state.inodes[self.inode];
        inode.data.resize(bytes as usize, 0);
        inode.unsynced.push(Unsynced::Length(bytes as usize));
        Ok(())
    }
}

#[test]
fn what_was_synced_survives_and_what_was_not_may_be_gone() {
    let dir = Path::new("/log");
    let (mut lost_bytes, mut lost_name, mut kept) = (false, false, false);
    for seed in 0..40 {
        let mut rng = Rng::seed_from_u64(seed);
        let disk = Simulated::with_dir(dir);
        let mut file = disk.create(&dir.join("a")).unwrap();
        file.write_all(b"safe").unwrap();
        file.sync().unwrap();
        disk.sync_dir(dir).unwrap();
        file.write_all(b" perhaps").unwrap();
        disk.create(&dir.join("b")).unwrap();
        disk.restart(&mut rng);
        let mut text = String::new();
        disk.open(&dir.join("a"))
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert!(text.starts_with("safe"), "{text}");
        lost_bytes |= text == "safe";
        kept |= text == "safe perhaps";
        lost_name |= disk.length(&dir.join("b")).is_err();
    }
    assert!(lost_bytes && lost_name && kept);
}
