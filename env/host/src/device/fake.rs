//! Block devices for tests: files laid out as sysfs, written as the kernel would take it.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::find::{DeviceRules, Devices};
use super::{DeviceKnob, Writer};
use crate::fake::Fault;
use crate::inventory::Inventory;

/// The greatest number of requests without and with a scheduler.
const MOST: [u64; 2] = [128, 2048];

/// A host with the device `loop3`, on which everything may be changed.
pub(crate) struct FakeDevices {
    root: tempfile::TempDir,
    /// What goes wrong with the next write.
    pub(crate) fault: Arc<Mutex<Fault>>,
}

impl FakeDevices {
    pub(crate) fn new() -> Self {
        let host = Self {
            root: tempfile::tempdir().unwrap(),
            fault: Arc::new(Mutex::new(Fault::None)),
        };
        host.add("loop3", "/images/3.img");
        host
    }

    /// Adds a loop device over a file.
    pub(crate) fn add(&self, name: &str, file: &str) {
        for (path, text) in [
            ("loop/backing_file", file),
            ("queue/scheduler", "[none] mq-deadline kyber bfq"),
            ("queue/nr_requests", "100"),
            ("queue/read_ahead_kb", "128"),
            ("queue/wbt_lat_usec", "2000"),
            ("queue/rq_affinity", "1"),
        ] {
            let path = self.root.path().join("block").join(name).join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
    }

    pub(crate) fn rename(&self, from: &str, to: &str) {
        let block = self.root.path().join("block");
        fs::rename(block.join(from), block.join(to)).unwrap();
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    /// The host in a boot, with rules for `loop3`.
    pub(crate) fn inventory_with(&self, boot_id: &str, knobs: &[DeviceKnob]) -> Inventory {
        let fault = Arc::clone(&self.fault);
        let writer = Writer::new(move |path, value| {
            let fault = std::mem::replace(&mut *fault.lock().unwrap(), Fault::None);
            match fault {
                Fault::None => write(path, value),
                Fault::Refused => Err(ErrorKind::InvalidInput.into()),
                Fault::Ignored => Ok(()),
                // Who would take it is the test itself.
                Fault::AppliedThenLost | Fault::AppliedThenTaken => {
                    write(path, value)?;
                    Err(ErrorKind::ResourceBusy.into())
                }
            }
        });
        let rules = DeviceRules::from([("loop3".to_owned(), knobs.iter().copied().collect())]);
        Inventory {
            boot_id: boot_id.to_owned(),
            devices: Devices::new(self.root(), rules).written_by(writer),
            ..Inventory::default()
        }
    }

    pub(crate) fn inventory(&self) -> Inventory {
        self.inventory_with("boot", &DeviceKnob::ALL)
    }

    /// What is in force on `loop3`.
    pub(crate) fn value(&self, knob: DeviceKnob) -> String {
        read(&self.queue().join(knob.name()))
    }

    /// What somebody else does.
    pub(crate) fn set(&self, knob: DeviceKnob, value: &str) {
        write(&self.queue().join(knob.name()), value).unwrap();
    }

    fn queue(&self) -> std::path::PathBuf {
        self.root.path().join("block/loop3/queue")
    }
}

fn read(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let marked = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    marked.map_or(text.trim(), |(name, _)| name).to_owned()
}

/// As Linux 6.18 does on a loop device: a scheduler brings its own number of requests, and bfq throttles
/// no writeback until it is gone.
fn write(path: &Path, value: &str) -> io::Result<()> {
    let refused = || io::Error::from(ErrorKind::InvalidInput);
    if !path.exists() {
        return Err(ErrorKind::NotFound.into());
    }
    let queue = path.parent().unwrap();
    let scheduler = queue.join("scheduler");
    match path.file_name().unwrap().to_str().unwrap() {
        "scheduler" => {
            let old = read(&scheduler);
            let text = fs::read_to_string(path)?.replace(['[', ']'], "");
            let names: Vec<&str> = text.split_whitespace().collect();
            if !names.contains(&value) {
                return Err(refused());
            }
            if old == value {
                return Ok(());
            }
            let marked = names.iter().map(|name| {
                if *name == value {
                    format!("[{name}]")
                } else {
                    (*name).to_owned()
                }
            });
            fs::write(path, marked.collect::<Vec<_>>().join(" "))?;
            let requests = if value == "none" { "128" } else { "256" };
            fs::write(queue.join("nr_requests"), requests)?;
            let wbt = queue.join("wbt_lat_usec");
            match (old.as_str(), value, read(&wbt).as_str()) {
                (_, "bfq", "2000") => fs::write(wbt, "0"),
                ("bfq", _, "0") => fs::write(wbt, "2000"),
                _ => Ok(()),
            }
        }
        "nr_requests" => {
            let most = MOST[usize::from(read(&scheduler) != "none")];
            let number = value.parse::<u64>().map_err(|_| refused())?;
            if number > most {
                return Err(refused());
            }
            fs::write(path, number.max(4).to_string())
        }
        _ => fs::write(path, value),
    }
}
