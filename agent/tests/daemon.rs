//! The binary: the daemon through signals and kills, and the commands as a script sees them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod support;

use std::collections::VecDeque;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use blkpilot_agent::client::connect;
use blkpilot_env::sim::presets;
use nix::sys::signal::Signal;
use serde_json::Value;
use support::daemon::{BLKPILOT, Daemon, first_line};
use support::{Settings, socket};
use tempfile::TempDir;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// systemd's end of a NOTIFY_SOCKET.
struct Systemd {
    socket: UnixDatagram,
    path: PathBuf,
    /// Assignments that have come and were not asked for yet.
    told: VecDeque<String>,
}

impl Systemd {
    fn listen(dir: &Path) -> Self {
        let path = dir.join("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        // What does not come in a minute never will.
        socket
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        Self {
            socket,
            path,
            told: VecDeque::new(),
        }
    }

    /// A daemon that is told of it, and when it is to be taken for hung.
    fn start(&self, dir: &Path, watchdog: Option<Duration>) -> Daemon {
        Daemon::start_with(dir, |command| {
            command.env("NOTIFY_SOCKET", &self.path);
            if let Some(watchdog) = watchdog {
                command.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
            }
        })
    }

    /// The next assignment, such as `READY=1`.
    fn next(&mut self) -> String {
        while self.told.is_empty() {
            let mut datagram = [0; 4096];
            let length = self.socket.recv(&mut datagram).unwrap();
            let text = std::str::from_utf8(&datagram[..length]).unwrap();
            self.told.extend(text.lines().map(str::to_owned));
        }
        self.told.pop_front().unwrap()
    }

    /// The next one that begins so.
    fn wait_for(&mut self, prefix: &str) -> String {
        loop {
            let assignment = self.next();
            if assignment.starts_with(prefix) {
                return assignment;
            }
        }
    }
}

/// The first line that a process prints; nobody reads what follows.
fn blkpilot(dir: &Path, args: &[&str]) -> Output {
    Command::new(BLKPILOT)
        .args(args)
        .env("BLKPILOT_SERVER", format!("unix:{}", socket(dir).display()))
        .output()
        .unwrap()
}

fn json(output: &Output) -> Value {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn error(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn acknowledged_decisions_survive_kill_9() {
    let dir = TempDir::new().unwrap();
    let mut daemon = Daemon::start(dir.path());
    let mut acknowledged = vec![];
    for level in ["buffered", "direct", "buffered"] {
        let set = format!("backup/vda:cache={level}");
        let applied = json(&blkpilot(dir.path(), &["apply", "--set", &set, "--json"]));
        acknowledged.push(applied["name"].as_str().unwrap().to_owned());
    }
    daemon.signal(Signal::SIGKILL);
    daemon.0.wait().unwrap();
    assert!(
        socket(dir.path()).exists(),
        "a killed daemon leaves its socket"
    );

    let _again = Daemon::start(dir.path());
    let listed = json(&blkpilot(dir.path(), &["decisions", "--json"]));
    let listed = listed["decisions"].as_array().unwrap().iter();
    let mut names: Vec<&str> = listed
        .map(|decision| decision["name"].as_str().unwrap())
        .collect();
    names.reverse();
    assert_eq!(names, acknowledged);
}

#[test]
fn a_daemon_ends_in_order_at_sigterm_and_sigint() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let dir = TempDir::new().unwrap();
        let mut daemon = Daemon::start(dir.path());
        daemon.signal(signal);
        assert!(daemon.0.wait().unwrap().success());
        assert!(!socket(dir.path()).exists());
    }
}

#[test]
fn systemd_is_told_that_it_is_ready_how_it_stands_that_it_lives_and_that_it_stops() {
    let dir = TempDir::new().unwrap();
    let mut systemd = Systemd::listen(dir.path());
    let mut daemon = systemd.start(dir.path(), Some(Duration::from_millis(200)));
    let (mut statuses, mut is_ready, mut pings) = (vec![], false, 0);
    while !(is_ready && pings >= 3 && statuses.iter().any(|s: &String| s.contains("guests"))) {
        match systemd.next().split_once('=').unwrap() {
            ("READY", _) => is_ready = true,
            ("WATCHDOG", "1") => pings += 1,
            ("STATUS", text) => statuses.push(text.to_owned()),
            other => panic!("{other:?}"),
        }
    }
    assert!(
        statuses.contains(&"hosts/local: 4 guests, 4 of them opted in".to_owned()),
        "{statuses:?}"
    );
    daemon.signal(Signal::SIGTERM);
    systemd.wait_for("STOPPING=1");
    assert!(daemon.0.wait().unwrap().success());
}

/// The mode of the first guest, and what the daemon has said.
fn mode_and_log(dir: &Path) -> (String, String) {
    let guests = json(&blkpilot(dir, &["guests", "--json"]));
    let mode = guests["guests"][0]["mode"].as_str().unwrap().to_owned();
    (mode, std::fs::read_to_string(dir.join("log")).unwrap())
}

#[test]
fn a_hang_up_takes_what_can_be_taken_names_the_rest_and_leaves_all_where_the_file_is_wrong() {
    let dir = TempDir::new().unwrap();
    let mut systemd = Systemd::listen(dir.path());
    let daemon = Daemon::start_with(dir.path(), |command| {
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        command.env("NOTIFY_SOCKET", &systemd.path).stderr(log);
    });
    systemd.wait_for("READY=1");
    let mut reload = |host: &str, service: &str| {
        let settings = Settings::default();
        let settings = Settings {
            host: format!("{}\n{host}", settings.host),
            service: service.to_owned(),
            ..settings
        };
        std::fs::write(dir.path().join("blkpilot.toml"), settings.toml(dir.path())).unwrap();
        daemon.signal(Signal::SIGHUP);
        systemd.wait_for("RELOADING=1");
        systemd.wait_for("MONOTONIC_USEC=");
        systemd.wait_for("READY=1");
    };
    reload(
        "mode = \"observe\"",
        "max_environments = 3\n[guard]\ndwell = \"7s\"",
    );
    let (mode, log) = mode_and_log(dir.path());
    assert_eq!(mode, "MODE_OBSERVE");
    assert!(
        log.contains("taken: guard, guard.dwell, host.mode"),
        "{log}"
    );
    let left = "left as they are until the service is restarted: service.max_environments";
    assert!(log.contains(left), "{log}");

    reload("mode = \"sometimes\"\nname = \"Über\"", "");
    let (mode, log) = mode_and_log(dir.path());
    assert_eq!(mode, "MODE_OBSERVE");
    for problem in ["host.mode = ", "host.name = ", "the one before holds"] {
        assert!(log.contains(problem), "{problem}: {log}");
    }
}

#[test]
fn the_doctor_says_what_is_wrong_and_how_to_repair_it_in_words_and_as_json() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("blkpilot.toml");
    let toml = Settings::default().toml(dir.path());
    std::fs::write(&file, &toml).unwrap();
    let file = file.to_str().unwrap();
    let doctor =
        |args: &[&str]| blkpilot(dir.path(), &[&["doctor", "--config", file], args].concat());
    let well = doctor(&["--json"]);
    let said: Value = serde_json::from_slice(&well.stdout).unwrap();
    // How this machine stands is not known here.
    let status = match said["level"].as_str().unwrap() {
        "ok" => 0,
        "warning" => 1,
        _ => 2,
    };
    assert_eq!(well.status.code(), Some(status));
    let of = |check: &str| {
        let findings = said["findings"].as_array().unwrap().iter();
        let mut of = findings.filter(|finding| finding["check"] == check);
        of.next().unwrap()["level"].clone()
    };
    for check in [
        "configuration",
        "policy",
        "data directory",
        "socket",
        "libvirt",
    ] {
        assert_eq!(of(check), "ok", "{check}");
    }
    std::fs::write(file, toml.replace("least_loaded", "most_loaded")).unwrap();
    let ill = doctor(&[]);
    assert_eq!(ill.status.code(), Some(2));
    let text = String::from_utf8(ill.stdout.clone()).unwrap();
    assert!(
        text.contains("failed   configuration   policy.baseline"),
        "{text}"
    );
    assert!(text.contains("→ correct it"), "{text}");
    assert!(error(&ill).is_empty());
}

#[test]
fn every_shell_gets_a_completion_and_every_command_a_page() {
    let dir = TempDir::new().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = blkpilot(dir.path(), &["completions", shell]);
        let script = String::from_utf8(script.stdout).unwrap();
        assert!(script.contains("doctor"), "{shell}");
    }
    let man = dir.path().join("man");
    let written = blkpilot(dir.path(), &["man", man.to_str().unwrap()]);
    assert!(written.status.success(), "{}", error(&written));
    assert!(man.join("blkpilot-serve.1").is_file());
}

#[test]
fn a_second_signal_cuts_off_calls_that_do_not_end() {
    let dir = TempDir::new().unwrap();
    let systemd = Systemd::listen(dir.path());
    let mut daemon = systemd.start(dir.path(), None);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // Whoever watches health does not end by himself.
    let channel = runtime
        .block_on(connect(&format!("unix:{}", socket(dir.path()).display())))
        .unwrap();
    let mut client = HealthClient::new(channel);
    let watched = runtime.block_on(client.watch(HealthCheckRequest::default()));
    let mut health = watched.unwrap().into_inner();
    let mut next = || {
        runtime
            .block_on(health.message())
            .unwrap()
            .unwrap()
            .status()
    };
    assert_eq!(next(), ServingStatus::Serving);
    let started = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(next(), ServingStatus::NotServing);
    assert!(
        daemon.0.try_wait().unwrap().is_none(),
        "it waits for the call"
    );
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.0.wait().unwrap().success());
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "it waited all the same"
    );
    assert!(!socket(dir.path()).exists());
}

#[test]
fn commands_speak_json_and_tables() {
    let dir = TempDir::new().unwrap();
    let _daemon = Daemon::start(dir.path());
    let guests = json(&blkpilot(dir.path(), &["guests", "--json"]));
    assert_eq!(guests["guests"][0]["name"], "hosts/local/guests/backup");
    assert_eq!(guests["guests"][0]["mode"], "MODE_ADVISE");
    let table = blkpilot(dir.path(), &["guests"]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(
        table.contains("P99 µs") && table.contains("trading/vda"),
        "{table}"
    );

    let proposal = json(&blkpilot(dir.path(), &["propose", "--json"]));
    assert_eq!(proposal["state"], "PROPOSED");
    let name = proposal["name"].as_str().unwrap();
    let tried = json(&blkpilot(
        dir.path(),
        &["apply", name, "--dry-run", "--json"],
    ));
    assert_eq!(tried["durable"], false);
    let applied = json(&blkpilot(dir.path(), &["apply", name, "--json"]));
    assert_eq!(
        (&applied["state"], &applied["durable"]),
        (&"APPLIED".into(), &true.into())
    );
    let back = json(&blkpilot(dir.path(), &["rollback", "--all", "--json"]));
    assert_eq!(back["source"], "ROLLBACK");
    let decisions = blkpilot(dir.path(), &["decisions"]);
    let decisions = String::from_utf8(decisions.stdout).unwrap();
    assert!(
        decisions.contains("rollback") && decisions.contains("least_loaded"),
        "{decisions}"
    );
}

#[test]
fn watch_prints_a_decision_as_it_is_made() {
    let dir = TempDir::new().unwrap();
    let _daemon = Daemon::start(dir.path());
    let watch = Command::new(BLKPILOT)
        .args(["watch", "--count", "1", "--json", "--server"])
        .arg(socket(dir.path()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The watcher cannot say when it stands, so changes go on until it has seen one.
    let changes = std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch.wait_with_output().unwrap());
        let levels = ["buffered", "direct"].into_iter().cycle();
        for level in levels.take(1000) {
            let set = format!("backup/vda:cache={level}");
            assert!(
                blkpilot(dir.path(), &["apply", "--set", &set])
                    .status
                    .success()
            );
            if watching.is_finished() {
                break;
            }
        }
        watching.join().unwrap()
    });
    assert_eq!(json(&changes)["source"], "EXPLICIT");
}

#[test]
fn a_simulated_host_is_observed_without_a_service() {
    let dir = TempDir::new().unwrap();
    let args = [
        "observe",
        "--simulated",
        "identical_disks",
        "--interval",
        "0.01",
        "--count",
        "2",
    ];
    let table = blkpilot(dir.path(), &args);
    let table = String::from_utf8(table.stdout).unwrap();
    assert_eq!(table.matches("QUEUE").count(), 2, "{table}");
    let lines = blkpilot(dir.path(), &[&args[..], &["--json"]].concat());
    let lines = String::from_utf8(lines.stdout).unwrap();
    assert_eq!(lines.lines().count(), 2);
    for line in lines.lines() {
        let window: Value = serde_json::from_str(line).unwrap();
        assert_eq!(window["disks"].as_array().unwrap().len(), 4);
        let state = &window["disks"][0]["state"];
        assert_eq!(state["iops"]["validity"], "VALIDITY_VALID");
        assert!(state["latency_us_p99"]["value"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn a_scenario_file_is_observed_and_a_broken_one_named_with_all_its_problems() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("own.toml");
    let text = presets::text("poor_binding").unwrap();
    std::fs::write(&file, text).unwrap();
    let observe = |name: &str| {
        let args = ["observe", "--simulated", name, "--interval", "0.01"];
        blkpilot(
            dir.path(),
            &[&args[..], &["--count", "1", "--json"]].concat(),
        )
    };
    let path = file.to_str().unwrap();
    let seen = observe(path);
    assert!(seen.status.success(), "{}", error(&seen));
    let window: Value = serde_json::from_slice(&seen.stdout).unwrap();
    assert_eq!(window["disks"].as_array().unwrap().len(), 2);

    std::fs::write(&file, text.replace("cpus = 1", "cpus = 0")).unwrap();
    let broken = observe(path);
    assert_eq!(broken.status.code(), Some(2));
    let problem = format!("{path}: channels[");
    let problems = error(&broken).matches(&problem).count();
    assert_eq!(problems, 4, "{}", error(&broken));

    let unknown = observe("atlantis");
    assert_eq!(unknown.status.code(), Some(2));
    assert!(
        error(&unknown).contains("noisy_neighbour"),
        "{}",
        error(&unknown)
    );
}

#[test]
fn exit_statuses_tell_refused_from_wrong_from_unavailable() {
    let dir = TempDir::new().unwrap();
    let away = blkpilot(dir.path(), &["guests"]);
    assert_eq!(away.status.code(), Some(3));
    assert!(error(&away).contains("blkpilot serve"), "{}", error(&away));

    let _daemon = Daemon::start(dir.path());
    let refused = blkpilot(dir.path(), &["apply", "--set", "nobody/vda:channel=float"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(error(&refused).contains("nobody"));
    assert_eq!(error(&refused).lines().count(), 1);
    for wrong in [
        &["apply"][..],
        &["apply", "--set", "x"],
        &["frobnicate"],
        &["observe"],
    ] {
        assert_eq!(
            blkpilot(dir.path(), wrong).status.code(),
            Some(2),
            "{wrong:?}"
        );
    }

    let file = dir.path().join("wrong.toml");
    std::fs::write(&file, "version = 1\ncolour = \"red\"\n").unwrap();
    let wrong = blkpilot(dir.path(), &["serve", "--config", file.to_str().unwrap()]);
    assert_eq!(wrong.status.code(), Some(2));
    let text = error(&wrong);
    for key in ["colour", "host", "policy", "service"] {
        assert!(text.contains(key), "{text}");
    }
    let missing = blkpilot(dir.path(), &["serve", "--config", "nowhere.toml"]);
    assert_eq!(missing.status.code(), Some(2));
    for command in ["observe", "advise"] {
        let nowhere = "qemu+unix:///system?socket=/nonexistent";
        let unreachable = blkpilot(dir.path(), &[command, "--libvirt", nowhere]);
        let status = unreachable.status.code();
        assert_eq!(status, Some(3), "{command}: {}", error(&unreachable));
    }
    let afar = blkpilot(
        dir.path(),
        &["advise", "--libvirt", "qemu+ssh://node7/system"],
    );
    assert_eq!(afar.status.code(), Some(1));
    assert!(error(&afar).contains("run it on node7"), "{}", error(&afar));
}

#[test]
fn help_lists_the_commands_and_the_exit_statuses() {
    let help = Command::new(BLKPILOT).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for word in [
        "serve",
        "observe",
        "guests",
        "propose",
        "advise",
        "apply",
        "decisions",
        "watch",
        "rollback",
        "journal",
        "unfreeze",
        "Exit status",
    ] {
        assert!(help.contains(word), "{help}");
    }
}

#[test]
fn a_command_whose_reader_has_ended_ends_like_one_that_sigpipe_has_ended() {
    let mut child = Command::new(BLKPILOT)
        .args(["observe", "--simulated", "mixed", "--interval", "0.02"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(!first_line(&mut child).is_empty());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert_eq!(error(&output), "");
}
