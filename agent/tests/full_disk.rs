//! The service on a disk that fills up under its decision log: it goes on and says so, changes nothing that it
//! cannot record, bars no way back, loses nothing that it acknowledged, and works again when there is room.
//!
//! The disk is a small tmpfs in a mount namespace of the service's own, which takes root; the test reaches it
//! through the service's `/proc/PID/root`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use blkpilot_log::{Event, Reader};
use serde_json::Value;
use support::{Settings, socket};
use tempfile::TempDir;
use uuid::Uuid;

const BLKPILOT: &str = env!("CARGO_BIN_EXE_blkpilot");
const DISK_KIB: u32 = 1024;
const PATIENCE: Duration = Duration::from_secs(60);

struct Daemon {
    child: Child,
    dir: TempDir,
}

impl Daemon {
    /// Starts one whose data are on a small disk; `None` where none can be mounted.
    fn start() -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let settings = Settings {
            host: "kind = \"simulated\"\nscenario = \"mixed\"\ntime_scale = 20".to_owned(),
            ..Settings::default()
        };
        fs::write(dir.path().join("blkpilot.toml"), settings.toml(dir.path())).unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        let mount = format!(
            "mount -t tmpfs -o size={DISK_KIB}k none \"$2/data\" || exit 77; exec \"$1\" serve --config \"$2/blkpilot.toml\""
        );
        let mut child = Command::new("unshare")
            .args(["--mount", "sh", "-c", &mount, "sh", BLKPILOT])
            .arg(dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        if line.contains("listening on unix:") {
            return Some(Self { child, dir });
        }
        let status = child.wait().unwrap();
        // 1: unshare may not; 77: mount may not.
        assert!(matches!(status.code(), Some(1 | 77)), "{status}");
        None
    }

    /// The disk, as the service sees it.
    fn disk(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.child.id()));
        let data = self.dir.path().join("data");
        root.join(data.strip_prefix("/").unwrap())
    }

    fn fill(&self) {
        let mut ballast = fs::File::create(self.disk().join("ballast")).unwrap();
        while ballast.write_all(&[1; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.disk().join("ballast")).unwrap();
    }

    fn run(&self, args: &[&str]) -> Output {
        let server = format!("unix:{}", socket(self.dir.path()).display());
        let mut command = Command::new(BLKPILOT);
        let run = command.args(args).env("BLKPILOT_SERVER", server);
        run.output().unwrap()
    }

    /// Changes the cache strategy: the name of the decision, or what the refusal says.
    fn change(&self, level: &str) -> Result<String, String> {
        let set = format!("backup/vda:cache={level}");
        let output = self.run(&["apply", "--set", &set, "--json"]);
        if !output.status.success() {
            return Err(String::from_utf8(output.stderr).unwrap());
        }
        let decision: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(decision["durable"], true, "{decision}");
        Ok(decision["name"].as_str().unwrap().to_owned())
    }

    fn guests(&self) -> Value {
        let output = self.run(&["guests", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The cache strategy in force.
    fn in_force(&self) -> String {
        let guests = self.guests();
        let mut all = guests["guests"].as_array().unwrap().iter();
        let backup = all.find(|guest| guest["name"].as_str().unwrap().ends_with("/backup"));
        let heads = backup.unwrap()["disks"][0]["heads"].as_array().unwrap();
        let cache = heads.iter().find(|head| head["head"] == "cache").unwrap();
        cache["current"].as_str().unwrap().to_owned()
    }

    /// Waits until a cache strategy is in force: what took effect and could not be recorded is shown with the
    /// next window.
    fn wait_for(&self, level: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.in_force() != level {
            assert!(
                Instant::now() < deadline,
                "{level} does not come into force"
            );
        }
    }

    fn listed(&self) -> Vec<String> {
        let output = self.run(&["decisions", "--limit", "1000", "--json"]);
        let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
        let decisions = listed["decisions"].as_array().unwrap().iter();
        decisions
            .map(|decision| decision["name"].as_str().unwrap().to_owned())
            .collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The decisions in the files of the log.
fn logged(disk: &Path) -> Vec<String> {
    let entries = Reader::open(&disk.join("decisions")).unwrap();
    let name = |event: Event| match event {
        Event::Decision(row) => Some(format!("decisions/{}", Uuid::from_u128(row.host_step_id.0))),
        Event::Outcome(_) => None,
    };
    entries
        .filter_map(|entry| name(entry.unwrap().event))
        .collect()
}

#[test]
fn a_full_disk_under_the_decision_log_stops_changes_and_nothing_else() {
    let Some(daemon) = Daemon::start() else {
        return eprintln!("skipped: it takes root to mount a small disk");
    };
    let mut acknowledged = vec![daemon.change("buffered").unwrap()];
    daemon.fill();
    // What is left of the last page may take some.
    let mut level = ["direct", "buffered"].into_iter().cycle();
    let mut in_force = "buffered";
    let refusal = loop {
        let wanted = level.next().unwrap();
        match daemon.change(wanted) {
            Ok(name) => acknowledged.push(name),
            Err(refusal) if refusal.contains("took effect but was not recorded") => {
                in_force = wanted;
                break refusal;
            }
            Err(refusal) => break refusal,
        }
        in_force = wanted;
    };
    // Either a change was the first that found no room, or what came of one before it.
    assert!(
        refusal.contains("took effect but was not recorded")
            || refusal.contains("nothing was changed: make room"),
        "{refusal}"
    );
    daemon.wait_for(in_force);
    for _ in 0..3 {
        let refusal = daemon.change(level.next().unwrap()).unwrap_err();
        assert!(
            refusal.contains("nothing was changed: make room"),
            "{refusal}"
        );
        assert_eq!(daemon.in_force(), in_force);
    }
    // It goes on looking, and the way back is open.
    let seen = daemon.guests()["host"]["observe_time"].clone();
    assert!(seen.is_string(), "{seen}");
    while daemon.guests()["host"]["observe_time"] == seen {}
    let back = daemon.run(&["rollback", "--all"]);
    let said = String::from_utf8_lossy(&back.stderr);
    assert!(said.contains("put back as far as it can be"), "{said}");
    assert!(said.contains("make room for the decision log"), "{said}");
    assert!(!said.contains("roll back"), "{said}");
    daemon.wait_for("direct");

    daemon.make_room();
    acknowledged.push(daemon.change("buffered").unwrap());
    daemon.wait_for("buffered");
    let (listed, logged) = (daemon.listed(), logged(&daemon.disk()));
    for name in &acknowledged {
        assert!(listed.contains(name), "{name}: {listed:?}");
        assert!(logged.contains(name), "{name}: {logged:?}");
    }
}
