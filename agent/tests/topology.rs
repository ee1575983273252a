//! `blkpilot topology` on the machine that the tests run on, checked against sysfs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use blkpilot_agent::config::{Config, ConfigError, HostKind};
use blkpilot_host::channel::ChannelConfig;
use serde_json::Value;

fn topology(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_blkpilot"))
        .arg("topology")
        .args(args)
        .output()
        .unwrap()
}

fn text(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).unwrap()
}

#[test]
fn it_shows_this_machine_as_sysfs_does() {
    let shown = topology(&["--json"]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    let report: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    assert_eq!(report["cpus"]["online"], online.trim());
    assert_eq!(
        report["disks"].as_array().unwrap().len(),
        0,
        "no libvirt was named"
    );
    for device in report["devices"].as_array().unwrap() {
        let dir = Path::new("/sys/block").join(device["name"].as_str().unwrap());
        let queues = fs::read_dir(dir.join("mq")).map_or(0, Iterator::count);
        assert_eq!(
            device["queues"].as_array().unwrap().len(),
            queues,
            "{device}"
        );
        if let Ok(scheduler) = fs::read_to_string(dir.join("queue/scheduler")) {
            let current = device["scheduler"]["current"].as_str().unwrap();
            let is_in_force =
                scheduler.contains(&format!("[{current}]")) || scheduler.trim() == current;
            assert!(is_in_force, "{current} of {scheduler}");
        }
        assert_eq!(device["stack"]["name"], device["name"]);
    }
    let people = text(&topology(&["--queues"]).stdout);
    for heading in ["CPUS", "CHANNEL", "DEVICE", "online"] {
        assert!(people.contains(heading), "{people}");
    }
}

fn config(host: &str) -> Result<ChannelConfig, String> {
    let text = format!(
        "version = 1\n[host]\nkind = \"libvirt\"\non_exit = \"keep\"\n{host}\n[policy]\nbaseline = \"keep_default\"\n[service]\ndata_dir = \"d\"\n"
    );
    match Config::parse(Path::new("x.toml"), &text) {
        Ok(config) => match config.host.kind {
            HostKind::Libvirt(libvirt) => Ok(libvirt.channels),
            HostKind::Simulated { .. } => unreachable!(),
        },
        Err(error @ ConfigError::Invalid { .. }) => Err(error.to_string()),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_configuration_says_what_a_channel_is() {
    assert_eq!(config(""), Ok(ChannelConfig::Cores));
    for (word, wanted) in [
        ("core", ChannelConfig::Cores),
        ("thread", ChannelConfig::Threads),
        ("node", ChannelConfig::Nodes),
    ] {
        assert_eq!(config(&format!("channel_per = \"{word}\"")), Ok(wanted));
    }
    let refused = config("channel_per = \"socket\"").unwrap_err();
    assert!(refused.contains("one of core, thread, node"), "{refused}");
    let both = "channel_per = \"core\"\n[[host.channel]]\nname = \"a\"\ncpus = \"0\"";
    let refused = config(both).unwrap_err();
    assert!(refused.contains("stands beside host.channel"), "{refused}");
}

#[test]
fn the_channels_of_a_configuration_are_shown_and_a_simulated_host_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("blkpilot.toml");
    let write = |kind: &str| {
        let text = format!(
            "version = 1\n[host]\n{kind}\n[policy]\nbaseline = \"keep_default\"\n[service]\ndata_dir = \"d\"\n"
        );
        fs::write(&file, text).unwrap();
    };
    let file_name = file.to_str().unwrap();
    write("kind = \"simulated\"\nscenario = \"mixed\"");
    let refused = topology(&["--config", file_name]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        text(&refused.stderr).contains("has no devices"),
        "{refused:?}"
    );

    write(
        "kind = \"libvirt\"\non_exit = \"keep\"\n[[host.channel]]\nname = \"mine\"\ncpus = \"0\"",
    );
    let shown = topology(&["--config", file_name, "--json"]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    let report: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(report["channels"][0]["id"], "mine");
    assert_eq!(report["channels"].as_array().unwrap().len(), 1);
}
