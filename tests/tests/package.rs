//! What the Debian package is made of: that it is there, fits together, and that systemd understands the
//! unit.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use blkpilot_agent::config::mode::Mode;
use blkpilot_agent::config::{Config, HostKind, Listen, OnExit, PolicyConfig};
use blkpilot_env::features::kvm_host_spec;
use blkpilot_models::Checkpoint;
use blkpilot_tests::live;

const CONFIG: &str = "configs/libvirt.toml";
const POLICY: &str = "policies/default";

/// Where the package's manifest is, from which its paths count.
fn agent() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent")
}

fn metadata() -> toml::Table {
    let manifest: toml::Table = fs::read_to_string(agent().join("Cargo.toml"))
        .unwrap()
        .parse()
        .unwrap();
    manifest["package"]["metadata"]["deb"]
        .as_table()
        .unwrap()
        .clone()
}

/// Sources and targets of the assets, as the manifest has them.
fn assets(metadata: &toml::Table) -> Vec<(String, String)> {
    let text = |value: &toml::Value| value.as_str().unwrap().to_owned();
    let assets = metadata["assets"].as_array().unwrap().iter();
    assets
        .map(|asset| (text(&asset[0]), text(&asset[1])))
        .collect()
}

fn unit() -> String {
    fs::read_to_string(agent().join("../packaging/blkpilot.service")).unwrap()
}

#[test]
fn everything_that_is_packed_is_there() {
    let metadata = metadata();
    let assets = assets(&metadata);
    for (source, _) in &assets {
        // Built only for the package.
        if !source.starts_with("target/release/") {
            assert!(agent().join(source).is_file(), "{source} is missing");
        }
    }
    for file in metadata["conf-files"].as_array().unwrap() {
        let target = file.as_str().unwrap().trim_start_matches('/');
        assert!(assets.contains(&(CONFIG.to_owned(), target.to_owned())));
    }
    let scripts = agent().join(metadata["maintainer-scripts"].as_str().unwrap());
    for script in ["postinst", "prerm", "postrm"] {
        let text = fs::read_to_string(scripts.join(script)).unwrap();
        assert!(text.contains("\n#DEBHELPER#\n"), "{script}");
        let file = scripts.join(script);
        let check = Command::new("sh").arg("-n").arg(file).status().unwrap();
        assert!(check.success(), "{script}");
    }
}

#[test]
fn the_packed_configuration_advises_and_fits_the_unit() {
    let config = Config::load(&agent().join(CONFIG)).unwrap();
    assert_eq!(config.host.mode, Mode::Advise);
    assert!(config.host.guests.is_empty());
    let HostKind::Libvirt(libvirt) = config.host.kind else {
        panic!("the packed configuration is not about libvirt");
    };
    assert_eq!(libvirt.on_exit, OnExit::Revert);
    let unit = unit();
    let has = |line: &str| assert!(unit.lines().any(|known| known == line), "{line}");
    has("ExecStart=/usr/bin/blkpilot serve --config /etc/blkpilot/blkpilot.toml");
    has("StateDirectory=blkpilot");
    has("RuntimeDirectory=blkpilot");
    assert_eq!(config.service.data_dir, Path::new("/var/lib/blkpilot"));
    let socket = PathBuf::from("/run/blkpilot/blkpilot.sock");
    assert_eq!(config.service.listen, Listen::Unix(socket));
}

/// What is configured is what is packed, and a host's spec takes it.
#[test]
fn the_packed_policy_is_configured_and_fits_a_host() {
    for file in [CONFIG, "configs/simulated.toml"] {
        let config = Config::load(&agent().join(file)).unwrap();
        let PolicyConfig::Checkpoint { dir, .. } = &config.policy else {
            panic!("{file} serves {:?}", config.policy);
        };
        assert_eq!(dir, &agent().join("configs").join(POLICY));
        let policy = Checkpoint::load(dir).unwrap();
        policy.check_fits(&kvm_host_spec(&[])).unwrap();
        assert!(
            policy.manifest.extra.is_empty(),
            "a learner's state is packed"
        );
        let packed: Vec<String> = assets(&metadata())
            .into_iter()
            .filter(|(_, target)| *target == format!("usr/share/blkpilot/{POLICY}/"))
            .map(|(source, _)| source)
            .collect();
        for entry in fs::read_dir(dir).unwrap() {
            let name = entry.unwrap().file_name();
            let source = format!("configs/{POLICY}/{}", name.to_str().unwrap());
            assert!(packed.contains(&source), "{source} is not packed");
        }
    }
}

#[test]
fn systemd_understands_the_unit() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("blkpilot.service");
    // The packed one need not be installed here.
    let binary = env!("CARGO_BIN_EXE_blkpilot-under-test");
    fs::write(&file, unit().replace("/usr/bin/blkpilot", binary)).unwrap();
    let verify = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&file)
        .output();
    let Ok(verify) = verify else {
        live::skip(
            "systemd_understands_the_unit",
            "there is no systemd-analyze",
        );
        return;
    };
    let said = String::from_utf8_lossy(&verify.stderr);
    assert!(verify.status.success(), "{said}");
    // Of other units of this machine it may complain too.
    assert!(!said.contains("blkpilot.service"), "{said}");
}
