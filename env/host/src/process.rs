//! A guest's QEMU as the kernel sees it: threads, CPU time, run delay, bytes from the device.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use procfs::ProcError;
use procfs::process::{Process, Task};

use crate::cpuset::CpuSet;
use crate::error::{HostError, HostResult};
use crate::qmp::{NodeOptions, node_options};

/// One running QEMU. Its process id may be reused after its end: `started_ticks` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuProcess {
    /// Process id.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub started_ticks: u64,
    root: PathBuf,
}

/// The threads of a QEMU, by their role.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QemuThreads {
    /// Thread of each IOThread, by libvirt's id.
    pub iothreads: BTreeMap<u32, i32>,
    /// Thread of each vCPU.
    pub vcpus: BTreeMap<u32, i32>,
    /// Kernel workers that carry out an IOThread's io_uring requests, by the IOThread's thread.
    pub uring_workers: Vec<(i32, i32)>,
}

/// What the scheduler counted for a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ThreadTimes {
    /// CPU time, nanoseconds.
    pub cpu_ns: u64,
    /// Time runnable but not running, nanoseconds.
    pub wait_ns: u64,
}

/// Finds the QEMUs of each guest by `-uuid` on their command lines; libvirt has no call for it.
/// More than one for a UUID means that somebody else names it too. `root` is `/proc`.
///
/// # Errors
/// `Io` when the processes cannot be listed.
pub fn find_qemus(root: &Path) -> HostResult<BTreeMap<String, Vec<QemuProcess>>> {
    let entries = fs::read_dir(root).map_err(HostError::io(root))?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    let mut found: BTreeMap<String, Vec<QemuProcess>> = BTreeMap::new();
    for (uuid, process) in pids.filter_map(|pid| qemu_at(root, pid)) {
        found.entry(uuid).or_default().push(process);
    }
    Ok(found)
}

fn qemu_at(root: &Path, pid: i32) -> Option<(String, QemuProcess)> {
    let command_line = fs::read(root.join(pid.to_string()).join("cmdline")).ok()?;
    let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    // Anybody can name a guest's UUID: only what is called QEMU counts.
    if !words
        .first()?
        .rsplit(|byte| *byte == b'/')
        .next()?
        .starts_with(b"qemu")
    {
        return None;
    }
    let uuid = words.windows(2).find(|pair| pair[0] == b"-uuid")?[1];
    let process = Process::new_with_root(root.join(pid.to_string())).ok()?;
    let started_ticks = process.stat().ok()?.starttime;
    Some((
        String::from_utf8(uuid.to_vec()).ok()?,
        QemuProcess {
            pid,
            started_ticks,
            root: root.to_owned(),
        },
    ))
}

#[cfg(test)]
impl QemuProcess {
    /// One that has ended.
    pub(crate) fn fake(pid: i32) -> Self {
        Self {
            pid,
            started_ticks: 0,
            root: "/nowhere".into(),
        }
    }
}

impl QemuProcess {
    /// Whether it still runs, and its id was not given to another process.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.process()
            .and_then(|process| process.stat())
            .is_ok_and(|stat| stat.starttime == self.started_ticks)
    }

    /// The options of the block nodes that it was started with.
    ///
    /// # Errors
    /// `Io` when it has ended or may not be read.
    pub fn node_options(&self) -> HostResult<NodeOptions> {
        let path = self.dir().join("cmdline");
        fs::read(&path)
            .map(|text| node_options(&text))
            .map_err(HostError::io(&path))
    }

    /// Whether it went on with a saved or migrated guest, and with the settings that libvirt had saved
    /// with it, instead of booting one.
    ///
    /// # Errors
    /// `Io` when it has ended or may not be read.
    pub fn is_resumed(&self) -> HostResult<bool> {
        let path = self.dir().join("cmdline");
        let text = fs::read(&path).map_err(HostError::io(&path))?;
        Ok(text
            .split(|byte| *byte == 0)
            .any(|word| word == b"-incoming"))
    }

    /// Its threads by role, as QEMU names them under libvirt (`debug-threads=on`).
    ///
    /// # Errors
    /// `Io` when it has ended or may not be read.
    pub fn threads(&self) -> HostResult<QemuThreads> {
        let path = self.dir().join("task");
        let mut threads = QemuThreads::default();
        for entry in fs::read_dir(&path).map_err(HostError::io(&path))?.flatten() {
            let Ok(tid) = entry.file_name().to_string_lossy().parse() else {
                continue;
            };
            // A worker may end between the two reads.
            let Ok(name) = fs::read_to_string(entry.path().join("comm")) else {
                continue;
            };
            threads.add(name.trim_end(), tid);
        }
        Ok(threads)
    }

    /// CPU time and run delay of a thread.
    ///
    /// # Errors
    /// `Io` when it has ended.
    pub fn thread_times(&self, tid: i32) -> HostResult<ThreadTimes> {
        let path = self.dir().join(format!("task/{tid}/schedstat"));
        let text = fs::read_to_string(&path).map_err(HostError::io(&path))?;
        let mut numbers = text.split_whitespace().map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(cpu_ns)), Some(Ok(wait_ns))) => Ok(ThreadTimes { cpu_ns, wait_ns }),
            _ => Err(HostError::parse(&path.display().to_string(), &text)),
        }
    }

    /// Bytes that a thread had read from block devices: what the page cache served is not in it.
    ///
    /// # Errors
    /// `Io` when it has ended or may not be read (it needs the same user or root).
    pub fn thread_read_bytes(&self, tid: i32) -> HostResult<u64> {
        let io = self.task(tid).and_then(|task| task.io());
        io.map(|io| io.read_bytes)
            .map_err(|error| self.error(&format!("task/{tid}/io"), error))
    }

    /// Bytes that all its threads, also those that have ended, had read from block devices.
    ///
    /// # Errors
    /// `Io` when it has ended or may not be read (it needs the same user or root).
    pub fn read_bytes(&self) -> HostResult<u64> {
        let io = self.process().and_then(|process| process.io());
        io.map(|io| io.read_bytes)
            .map_err(|error| self.error("io", error))
    }

    /// Host CPUs on which a thread may run.
    ///
    /// # Errors
    /// `Io` when it has ended.
    pub fn affinity(&self, tid: i32) -> HostResult<CpuSet> {
        let path = self.dir().join(format!("task/{tid}/status"));
        let text = fs::read_to_string(&path).map_err(HostError::io(&path))?;
        let list = text
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        list.ok_or_else(|| HostError::parse(&path.display().to_string(), &text))?
            .trim()
            .parse()
    }

    /// Whether it has an image open with O_DIRECT; `None` when it does not have it open, or its
    /// descriptors may not be read. It needs no monitor command.
    #[must_use]
    pub fn is_direct(&self, image: &Path) -> Option<bool> {
        // By identity: the path that QEMU was given may have another name here.
        let wanted = file_identity(image)?;
        let entries = fs::read_dir(self.dir().join("fd")).ok()?.flatten();
        let mut open = entries.filter(|entry| file_identity(&entry.path()) == Some(wanted));
        let fd = open.next()?.file_name().to_string_lossy().into_owned();
        let info = fs::read_to_string(self.dir().join(format!("fdinfo/{fd}"))).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        let flags = i32::from_str_radix(flags.trim(), 8).ok()?;
        Some(flags & nix::libc::O_DIRECT != 0)
    }

    fn dir(&self) -> PathBuf {
        self.root.join(self.pid.to_string())
    }

    fn process(&self) -> Result<Process, ProcError> {
        Process::new_with_root(self.dir())
    }

    fn task(&self, tid: i32) -> Result<Task, ProcError> {
        self.process()?.task_from_tid(tid)
    }

    fn error(&self, file: &str, error: ProcError) -> HostError {
        HostError::Io {
            path: self.dir().join(file),
            source: std::io::Error::other(error),
        }
    }
}

/// Which file or device a path leads to.
fn file_identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    if metadata.file_type().is_block_device() {
        Some((metadata.rdev(), 0))
    } else if metadata.is_file() {
        Some((metadata.dev(), metadata.ino()))
    } else {
        None
    }
}

impl QemuThreads {
    fn add(&mut self, name: &str, tid: i32) {
        if let Some(id) = name
            .strip_prefix("IO iothread")
            .and_then(|id| id.parse().ok())
        {
            self.iothreads.insert(id, tid);
        } else if let Some(cpu) = name
            .strip_prefix("CPU ")
            .and_then(|rest| rest.split('/').next()?.parse().ok())
        {
            self.vcpus.insert(cpu, tid);
        } else if let Some(owner) = name
            .strip_prefix("iou-wrk-")
            .and_then(|owner| owner.parse().ok())
        {
            self.uring_workers.push((owner, tid));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_told_apart_by_name() {
        let mut threads = QemuThreads::default();
        for (name, tid) in [
            ("qemu-system-x86", 1),
            ("IO iothread1", 2),
            ("IO mon_iothread", 3),
            ("CPU 0/TCG", 4),
            ("CPU 1/KVM", 5),
            ("iou-wrk-2", 6),
            ("worker", 7),
        ] {
            threads.add(name, tid);
        }
        assert_eq!(threads.iothreads, BTreeMap::from([(1, 2)]));
        assert_eq!(threads.vcpus, BTreeMap::from([(0, 4), (1, 5)]));
        assert_eq!(threads.uring_workers, [(2, 6)]);
    }

    #[test]
    fn only_a_process_called_qemu_is_a_guest() {
        let dir = tempfile::tempdir().unwrap();
        for (pid, command_line) in [
            ("10", "/bin/grep\0-uuid\0u1\0"),
            ("11", "/usr/bin/qemu-system-x86_64\0-name\0g\0"),
        ] {
            fs::create_dir(dir.path().join(pid)).unwrap();
            fs::write(dir.path().join(pid).join("cmdline"), command_line).unwrap();
        }
        assert!(find_qemus(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn o_direct_is_read_from_the_open_file() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let this = QemuProcess {
            pid,
            started_ticks: 0,
            root: "/proc".into(),
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(this.is_direct(file.path()), Some(false));
        assert_eq!(this.is_direct(Path::new("/proc/version")), None);
    }

    /// A QEMU below a root of the test's own, with a thread.
    fn fake_qemu(root: &Path) -> QemuProcess {
        for (file, text) in [
            ("task/8/comm", "IO iothread1\n"),
            ("task/8/schedstat", "5000 300 2\n"),
            ("task/8/status", "Cpus_allowed_list:\t0-1\n"),
        ] {
            let file = root.join("7").join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        QemuProcess {
            pid: 7,
            started_ticks: 0,
            root: root.to_owned(),
        }
    }

    #[test]
    fn a_file_that_is_missing_broken_or_unreadable_is_named_and_keeps_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let qemu = fake_qemu(dir.path());
        let file = dir.path().join("7/task/8/schedstat");
        let times = ThreadTimes {
            cpu_ns: 5000,
            wait_ns: 300,
        };
        assert_eq!(qemu.thread_times(8).unwrap(), times);
        let spoil: [fn(&Path); 4] = [
            |file| fs::write(file, "").unwrap(),
            |file| fs::write(file, "5000 many 2").unwrap(),
            |file| fs::remove_file(file).unwrap(),
            |file| fs::create_dir(file).unwrap(),
        ];
        for spoil in spoil {
            spoil(&file);
            let error = qemu.thread_times(8).unwrap_err().to_string();
            assert!(error.contains("task/8/schedstat"), "{error}");
            assert_eq!(qemu.threads().unwrap().iothreads, BTreeMap::from([(1, 8)]));
            assert_eq!(qemu.affinity(8).unwrap().to_string(), "0-1");
        }
        fs::remove_dir(&file).unwrap();
        fs::write(&file, "5000 300 2").unwrap();
        assert_eq!(qemu.thread_times(8).unwrap(), times);
        // Its thread has ended between two readings.
        fs::remove_dir_all(dir.path().join("7/task/8")).unwrap();
        assert!(qemu.affinity(8).is_err() && qemu.thread_times(8).is_err());
        assert!(qemu.threads().unwrap().iothreads.is_empty());
    }

    /// Dead or gone (ENOENT, ESRCH, EACCES, as the kernel likes): an error of each file and no more.
    #[test]
    fn a_process_that_has_ended_is_an_error_of_its_files() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let qemu = QemuProcess {
            pid,
            started_ticks: 0,
            root: "/proc".into(),
        };
        assert!(qemu.thread_times(pid).is_ok() && qemu.read_bytes().is_ok());
        child.kill().unwrap();
        // Dead, and not waited for: its files are there and some cannot be read.
        let stat = format!("/proc/{pid}/stat");
        while !fs::read_to_string(&stat).unwrap().contains(") Z ") {}
        let _ = (
            qemu.read_bytes(),
            qemu.affinity(pid),
            qemu.is_direct(Path::new("/")),
        );
        child.wait().unwrap();
        let error = qemu.read_bytes().unwrap_err().to_string();
        assert!(error.contains(&pid.to_string()), "{error}");
        assert!(qemu.thread_times(pid).is_err() && qemu.affinity(pid).is_err());
        assert!(qemu.threads().is_err() && !qemu.is_alive());
    }

    #[test]
    fn times_of_this_thread_can_be_read() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let this = QemuProcess {
            pid,
            started_ticks: 0,
            root: "/proc".into(),
        };
        assert!(this.thread_times(pid).unwrap().cpu_ns > 0);
        assert!(!this.affinity(pid).unwrap().is_empty());
        assert!(
            !this.is_alive(),
            "a process with another start time is not the same"
        );
    }
}
