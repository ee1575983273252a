//! `blkpilot token`, and the other commands with what they show a service.

use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use super::pki::{Ca, write};
use super::setup::Service;

fn blkpilot(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blkpilot"));
    command.args(args);
    for name in ["SERVER", "TOKEN", "TOKEN_FILE", "CA", "CERT", "KEY"] {
        command.env_remove(format!("BLKPILOT_{name}"));
    }
    command
}

fn run(args: &[&str]) -> Output {
    blkpilot(args).output().unwrap()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", said(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_token_is_made_listed_and_revoked() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().to_str().unwrap();
    let made = run(&[
        "token",
        "create",
        "ci",
        "--role",
        "operator",
        "--data-dir",
        data,
    ]);
    let token = String::from_utf8(made.stdout.clone()).unwrap();
    assert!(
        token.starts_with("blkpilot_") && token.trim().len() == 90,
        "{token}"
    );
    assert!(said(&made).contains("(ci, operator)"), "{}", said(&made));
    let never = [
        "token",
        "create",
        "all",
        "--role",
        "admin",
        "--expires",
        "never",
    ];
    let second = json(&run(&[&never[..], &["--data-dir", data, "--json"]].concat()));
    assert_eq!(second["expires"], Value::Null);
    let id = second["id"].as_str().unwrap();
    assert!(second["token"].as_str().unwrap().contains(id));
    let revoked = json(&run(&["token", "revoke", id, "--data-dir", data, "--json"]));
    assert_eq!(revoked["state"], "revoked");
    let listed = json(&run(&["token", "ls", "--data-dir", data, "--json"]));
    let states: Vec<_> = listed["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| &t["state"])
        .collect();
    assert_eq!(states, ["taken", "revoked"]);
    let text = String::from_utf8(run(&["token", "ls", "--data-dir", data]).stdout).unwrap();
    assert!(
        text.contains("ci") && text.contains("operator") && text.contains(id),
        "{text}"
    );
    assert!(!text.contains(token.trim()) && !listed.to_string().contains(token.trim()));
}

#[test]
fn what_cannot_be_made_or_revoked_is_said_with_the_right_status() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().to_str().unwrap();
    let nowhere = dir.path().join("none");
    let nowhere = nowhere.to_str().unwrap();
    let create = ["token", "create", "x", "--role"];
    for (args, status, part) in [
        (
            &["king", "--data-dir", data][..],
            2,
            "observer, operator, admin",
        ),
        (&["admin"], 2, "--data-dir"),
        (
            &["admin", "--data-dir", nowhere],
            2,
            "no directory is there",
        ),
        (
            &["admin", "--data-dir", data, "--expires", "soon"],
            2,
            "30d",
        ),
    ] {
        let output = run(&[&create[..], args].concat());
        assert_eq!(output.status.code(), Some(status), "{}", said(&output));
        assert!(said(&output).contains(part), "{}", said(&output));
    }
    let unnamed = run(&["token", "create", "", "--role", "admin", "--data-dir", data]);
    assert_eq!(unnamed.status.code(), Some(2), "{}", said(&unnamed));
    let missing = run(&["token", "revoke", "0123", "--data-dir", data]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(said(&missing).contains("token ls"), "{}", said(&missing));
}

/// Runs a command while the service runs in this process.
async fn run_beside(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

async fn create(service: &Service, role: &str, file: &str) -> String {
    let data = service.dir.path().join("data");
    let data = data.to_str().unwrap().to_owned();
    let command = blkpilot(&["token", "create", "x", "--role", role, "--data-dir", &data]);
    let token = String::from_utf8(run_beside(command).await.stdout).unwrap();
    write(service.dir.path(), file, &token);
    token.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_shows_the_token_of_a_file_or_of_the_environment() {
    let service = Service::start("127.0.0.1:0", "").await;
    let operator = create(&service, "operator", "operator.token").await;
    create(&service, "observer", "observer.token").await;
    let file = |name: &str| service.dir.path().join(name).display().to_string();
    let rollback = ["rollback", "--all", "--server", &service.address];
    let none = run_beside(blkpilot(&rollback)).await;
    assert_eq!(none.status.code(), Some(1));
    assert!(
        said(&none).contains("blkpilot token create"),
        "{}",
        said(&none)
    );
    let mut by_variable = blkpilot(&rollback);
    by_variable.env("BLKPILOT_TOKEN", &operator);
    let by_variable = run_beside(by_variable).await;
    assert!(by_variable.status.success(), "{}", said(&by_variable));
    // The file counts before the variable.
    let observer = file("observer.token");
    let mut by_file = blkpilot(&[&rollback[..], &["--token-file", &observer]].concat());
    by_file.env("BLKPILOT_TOKEN", &operator);
    let by_file = run_beside(by_file).await;
    assert!(
        said(&by_file).contains("needs the role operator"),
        "{}",
        said(&by_file)
    );
    let missing = file("none.token");
    let missing = run_beside(blkpilot(
        &[&rollback[..], &["--token-file", &missing]].concat(),
    ))
    .await;
    assert_eq!(missing.status.code(), Some(2), "{}", said(&missing));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_reaches_a_service_under_mutual_tls() {
    let (dir, ca) = (TempDir::new().unwrap(), Ca::new("ours"));
    ca.server().write(dir.path(), "server");
    let trusted = write(dir.path(), "ca.pem", &ca.pem);
    let (cert, key) = ca.client("ci", "ci.example").write(dir.path(), "client");
    let tables = "[service.tls]
certificate = \"server.pem\"
key = \"server.key\"
client_ca = \"ca.pem\"";
    let service = Service::start_in(dir, "127.0.0.1:0", tables).await;
    let [trusted, cert, key] = [&trusted, &cert, &key].map(|path| path.to_str().unwrap());
    let hosts = ["guests", "--json", "--server", &service.address];
    let with_ca = [&hosts[..], &["--ca", trusted]].concat();
    let shown = [&with_ca[..], &["--cert", cert, "--key", key]].concat();
    let guests = json(&run_beside(blkpilot(&shown)).await);
    assert!(!guests["guests"].as_array().unwrap().is_empty());
    for args in [&hosts[..], &with_ca] {
        let refused = run_beside(blkpilot(args)).await;
        assert!(!refused.status.success(), "{}", said(&refused));
    }
    let alone = run_beside(blkpilot(&[&with_ca[..], &["--cert", cert]].concat())).await;
    assert_eq!(alone.status.code(), Some(2), "{}", said(&alone));
}
