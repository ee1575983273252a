//! `blkpilot log` on the log of a service, running and ended.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use support::{Service, Settings};

const BLKPILOT: &str = env!("CARGO_BIN_EXE_blkpilot");

fn log(args: &[&str], dir: &Path) -> Output {
    let (command, rest) = args.split_first().unwrap();
    let mut process = Command::new(BLKPILOT);
    process
        .args(["log", command])
        .arg(dir)
        .args(rest)
        .output()
        .unwrap()
}

fn text(args: &[&str], dir: &Path) -> String {
    let output = log(args, dir);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(args: &[&str], dir: &Path) -> Value {
    serde_json::from_str(&text(args, dir)).unwrap()
}

fn rows(args: &[&str], dir: &Path) -> Vec<Value> {
    let lines = text(&[&["show", "--json"], args].concat(), dir);
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn forms(dir: &Path) -> BTreeSet<String> {
    let found = json(&["ls", "--json"], dir);
    let files = found["files"].as_array().unwrap().iter();
    files
        .map(|file| file["form"].as_str().unwrap().to_owned())
        .collect()
}

/// A service in mode auto whose segments become Parquet every second, after some have.
async fn running() -> Service {
    let settings = Settings {
        host: "kind = \"simulated\"\nscenario = \"mixed\"\ntime_scale = 20\nmode = \"auto\""
            .to_owned(),
        policy: "baseline = \"random\"".to_owned(),
        service: "[log]\nseal_after = \"1s\"".to_owned(),
        ..Settings::default()
    };
    let service = Service::start(&settings).await;
    let data = service.dir.path().join("data");
    while !has_parquet(&data) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    service
}

/// Whether some files are Parquet, so that one may be missed.
fn has_parquet(data: &Path) -> bool {
    let Ok(days) = fs::read_dir(data.join("decisions/host=local")) else {
        return false;
    };
    let files = days.flat_map(|day| fs::read_dir(day.unwrap().path()).unwrap());
    let paths = files.map(|file| file.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|end| end == "parquet"))
        .count()
        > 2
}

#[tokio::test]
async fn the_log_of_a_service_is_read_while_it_runs_and_after_it_has_ended() {
    let service = running().await;
    let data = service.dir.path().join("data");
    let wanted = ["open", "parquet"].map(str::to_owned);
    assert!(forms(&data).is_superset(&wanted.into()));
    // A writer may be within a decision: what is whole is right.
    assert_eq!(json(&["verify", "--json"], &data)["wrong"], 0);
    let listed = service.decisions().await;
    assert!(!listed.is_empty());
    let dir = service.stop().await;
    let data = dir.path().join("data");

    let all = rows(&["--all"], &data);
    let ids: BTreeSet<&str> = all
        .iter()
        .map(|row| row["decision"]["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), all.len(), "each row once");
    let report = json(&["verify", "--json"], &data);
    assert_eq!(report["rows"], all.len());
    assert_eq!(
        (&report["wrong"], &report["orphans"]),
        (&0.into(), &0.into()),
        "{report}"
    );
    let settled = all.iter().filter(|row| !row["outcome"].is_null()).count();
    assert_eq!(report["outcomes"], settled);
    assert!(
        settled * 2 >= all.len() && settled < all.len(),
        "{settled} of {}",
        all.len()
    );
    let steps: BTreeSet<&str> = all
        .iter()
        .map(|row| row["decision"]["host_step_id"].as_str().unwrap())
        .collect();
    for decision in &listed {
        let id = decision.name.strip_prefix("decisions/").unwrap();
        assert!(steps.contains(id), "{id} was listed");
    }

    let guest = all[0]["decision"]["subject"]["disk"]["guest"]
        .as_str()
        .unwrap();
    let of_guest = rows(&["--all", "--guest", guest], &data);
    assert!(!of_guest.is_empty() && of_guest.len() < all.len());
    assert!(
        of_guest
            .iter()
            .all(|row| row["decision"]["subject"]["disk"]["guest"] == guest)
    );
    assert_eq!(rows(&["--limit", "3"], &data), all[all.len() - 3..]);
    assert_eq!(
        rows(&["--until", "2020-01-01T00:00:00Z"], &data),
        Vec::<Value>::new()
    );
    let shown = text(&["show", "--limit", "4"], &data);
    assert!(
        shown.contains("forced") && shown.contains("random") && shown.lines().count() == 6,
        "{shown}"
    );
    let listed = text(&["ls"], &data);
    assert!(
        listed.contains("host=local/day=") && listed.contains("parquet"),
        "{listed}"
    );

    let out = dir.path().join("out");
    let exported = json(&["export", "--json", out.to_str().unwrap()], &data);
    assert!(exported["episodes"].as_u64().unwrap() >= 1, "{exported}");
    let metadata = fs::read_to_string(out.join("data/metadata.json")).unwrap();
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    assert_eq!(metadata["total_steps"], exported["steps"]);
    assert_eq!(
        log(&["export", out.to_str().unwrap()], &data).status.code(),
        Some(1)
    );
}

#[tokio::test]
async fn decisions_of_before_are_listed_though_they_have_become_parquet() {
    let service = running().await;
    let before = service.decisions().await;
    let dir = service.stop().await;
    let settings = Settings::default();
    let service = Service::start_in(dir, &settings).await.unwrap();
    let after = service.decisions().await;
    let names = |decisions: &[blkpilot_proto::v1::Decision]| -> BTreeSet<String> {
        decisions
            .iter()
            .map(|decision| decision.name.clone())
            .collect()
    };
    assert!(names(&before).is_subset(&names(&after)));
    service.stop().await;
}

fn parquet_of(data: &Path) -> PathBuf {
    let found = json(&["ls", "--json"], data);
    let files = found["files"].as_array().unwrap().iter();
    let mut files = files.filter(|file| file["form"] == "parquet");
    data.join("decisions")
        .join(files.next().unwrap()["file"].as_str().unwrap())
}

#[tokio::test]
async fn what_is_damaged_is_named_and_the_rest_shown() {
    let dir = running().await.stop().await;
    let data = dir.path().join("data");
    let file = parquet_of(&data);
    let whole = fs::read(&file).unwrap();
    let mut bytes = whole.clone();
    let at = bytes.len() / 4;
    bytes[at] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let output = log(&["verify"], &data);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    let name = file
        .strip_prefix(data.join("decisions"))
        .unwrap()
        .to_str()
        .unwrap();
    assert!(
        said.contains(&format!("{name}: its checksum is ")),
        "{said}"
    );

    fs::write(&file, &whole[..whole.len() - 20]).unwrap();
    let listed = text(&["ls"], &data);
    assert!(
        listed.contains(&format!("{name}: ")) && listed.contains("cannot be read as Parquet"),
        "{listed}"
    );
    let output = log(&["show"], &data);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains(name));

    fs::remove_file(&file).unwrap();
    let said = log(&["verify"], &data);
    assert_eq!(said.status.code(), Some(1));
    assert!(
        String::from_utf8(said.stdout)
            .unwrap()
            .contains("stand before it and are lost")
    );
}

#[test]
fn a_directory_without_a_log_is_refused_with_what_would_be_one() {
    let dir = tempfile::tempdir().unwrap();
    for command in ["ls", "show", "verify"] {
        let output = log(&[command], dir.path());
        assert_eq!(output.status.code(), Some(2));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.contains("no decision log is there: name the directory"),
            "{said}"
        );
    }
    let help = Command::new(BLKPILOT)
        .args(["log", "show", "--help"])
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(
        help.contains("blkpilot log show /var/lib/blkpilot --guest db"),
        "{help}"
    );
}
