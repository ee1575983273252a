//! What is refused at the start, all of it at once, before a port is bound.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use blkpilot_agent::config::{Config, ConfigError};
use rcgen::date_time_ymd;
use tempfile::TempDir;

use super::pki::{Ca, server_params, write};
use super::setup::toml;

/// What is wrong with a configuration in a directory: path and text of each problem.
fn problems(dir: &Path, listen: &str, tables: &str) -> Vec<(String, String)> {
    match Config::parse(&dir.join("blkpilot.toml"), &toml(listen, tables)) {
        Ok(_) => vec![],
        Err(ConfigError::Invalid { problems, .. }) => {
            problems.into_iter().map(|p| (p.path, p.text)).collect()
        }
        Err(other) => panic!("{other}"),
    }
}

/// That these, and no others, are named, each with its text.
fn assert_problems(found: &[(String, String)], wanted: &[(&str, &str)]) {
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
    for ((path, text), (wanted_path, part)) in found.iter().zip(wanted) {
        assert_eq!(path, wanted_path, "{found:#?}");
        assert!(text.contains(part), "no `{part}` in `{text}`");
    }
}

const TLS: &str = "[service.tls]\ncertificate = \"server.pem\"\nkey = \"server.key\"";

#[test]
fn an_address_that_is_not_loopback_is_served_through_tls_only() {
    let dir = TempDir::new().unwrap();
    let wanted = [("service.listen", "without [service.tls] only")];
    for listen in ["0.0.0.0:1", "http://192.0.2.1:1", "[::]:1"] {
        assert_problems(&problems(dir.path(), listen, ""), &wanted);
    }
    let needs = [("service.listen", "needs [service.tls]")];
    assert_problems(&problems(dir.path(), "https://127.0.0.1:1", ""), &needs);
    Ca::new("ours").server().write(dir.path(), "server");
    for listen in ["0.0.0.0:1", "https://192.0.2.1:1", "[::]:1", "127.0.0.1:1"] {
        assert_problems(&problems(dir.path(), listen, TLS), &[]);
    }
    let clear = [("service.listen", "is in the clear")];
    assert_problems(&problems(dir.path(), "http://127.0.0.1:1", TLS), &clear);
    let socket = [("service.listen", "needs no TLS")];
    assert_problems(&problems(dir.path(), "unix:s", TLS), &socket);
}

#[test]
fn a_key_that_others_may_read_is_refused_with_the_way_out() {
    let dir = TempDir::new().unwrap();
    let (_, key) = Ca::new("ours").server().write(dir.path(), "server");
    for mode in [0o640, 0o604, 0o620, 0o601] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let found = problems(dir.path(), "127.0.0.1:1", TLS);
        assert_problems(&found, &[("service.tls.key", "chmod 600")]);
        assert!(found[0].1.contains(&format!("{mode:04o}")), "{found:?}");
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).unwrap();
    assert_problems(&problems(dir.path(), "127.0.0.1:1", TLS), &[]);
}

#[test]
fn a_certificate_out_of_its_time_is_refused_with_that_time() {
    let (dir, ca) = (TempDir::new().unwrap(), Ca::new("ours"));
    let mut params = server_params();
    params.not_after = date_time_ymd(2020, 5, 17);
    ca.sign(&params).write(dir.path(), "server");
    let found = problems(dir.path(), "127.0.0.1:1", TLS);
    let wanted = "has expired at 2020-05-17T00:00:00Z";
    assert_problems(&found, &[("service.tls.certificate", wanted)]);
    params.not_after = date_time_ymd(3000, 1, 1);
    params.not_before = date_time_ymd(2999, 1, 1);
    ca.sign(&params).write(dir.path(), "server");
    let found = problems(dir.path(), "127.0.0.1:1", TLS);
    let wanted = "is not valid before 2999-01-01T00:00:00Z";
    assert_problems(&found, &[("service.tls.certificate", wanted)]);
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let (dir, ca) = (TempDir::new().unwrap(), Ca::new("ours"));
    ca.server().write(dir.path(), "server");
    write(dir.path(), "server.pem", &ca.server().certificate);
    let found = problems(dir.path(), "127.0.0.1:1", TLS);
    assert_problems(
        &found,
        &[("service.tls.key", "is not the key of the certificate")],
    );
}

#[test]
fn every_problem_of_the_tables_is_named_at_once() {
    let dir = TempDir::new().unwrap();
    let ca = Ca::new("ours");
    let mut params = server_params();
    params.not_after = date_time_ymd(2020, 1, 1);
    ca.sign(&params).write(dir.path(), "server");
    let (_, key) = ca.server().write(dir.path(), "other");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let tables = "loopback_may_change = true
[service.tls]
certificate = \"server.pem\"
key = \"other.key\"
client_ca = \"none.pem\"
colour = 1
[[service.tls.client]]
role = \"king\"
[service.socket]
role = \"everybody\"
[[service.socket.caller]]
uid = 1
gid = 2
role = \"admin\"
[service.limits]
message_mib = 0
connections = 100000
streams_per_connection = 0
calls_per_second = 0
unknown_calls_per_second = 2000000
[service.audit]
file_mib = 0
files = 1
";
    let found = problems(dir.path(), "http://0.0.0.0:1", tables);
    assert_problems(
        &found,
        &[
            ("service.listen", "is in the clear"),
            ("service.loopback_may_change", "has gone"),
            ("service.socket.role", "must be one of none, observer"),
            ("service.socket.caller[0].uid", "one of them"),
            ("service.tls.client[0].alternative_name", "one of them"),
            ("service.tls.client[0].role", "must be one of observer"),
            ("service.tls.certificate", "has expired"),
            ("service.tls.key", "chmod 600"),
            ("service.tls.client_ca", "cannot be read"),
            ("service.tls.key", "is not the key"),
            ("service.tls.colour", "is unknown"),
            ("service.limits.message_mib", "[1, 256]"),
            ("service.limits.streams_per_connection", "[1, 65536]"),
            ("service.limits.connections", "[1, 65536]"),
            ("service.limits.calls_per_second", "[1, 1000000]"),
            ("service.limits.unknown_calls_per_second", "[1, 1000000]"),
            ("service.audit.file_mib", "[1, 1024]"),
            ("service.audit.files", "[2, 100]"),
        ],
    );
}

#[test]
fn roles_of_certificates_need_a_ca() {
    let dir = TempDir::new().unwrap();
    Ca::new("ours").server().write(dir.path(), "server");
    let tables = format!("{TLS}\n[[service.tls.client]]\ncommon_name = \"ci\"\nrole = \"admin\"");
    let found = problems(dir.path(), "127.0.0.1:1", &tables);
    let wanted = "is given to nobody without service.tls.client_ca";
    assert_problems(&found, &[("service.tls.client[0].role", wanted)]);
}

#[test]
fn the_service_ends_before_a_port_is_bound() {
    let dir = TempDir::new().unwrap();
    let (_, key) = Ca::new("ours").server().write(dir.path(), "server");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    // Whoever tried to bind it would find it taken, and say so.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    write(dir.path(), "blkpilot.toml", &toml(&listen, TLS));
    let output = Command::new(env!("CARGO_BIN_EXE_blkpilot"))
        .args(["serve", "--config", "blkpilot.toml"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("service.tls.key"), "{said}");
    assert!(!dir.path().join("data").exists());
}
