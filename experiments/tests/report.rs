//! The page of runs and sweeps: what it says is what the summaries say, and it stands for itself.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// Two hosts' worth of decisions: small, with all heads.
const HOSTS: &str = r#"
    version = 1
    [environment]
    kind = "sim_host"
    [environment.generator]
    disks = [2, 3]
    channels = [2, 3]
    steps = 6
    schedulers = true
    [network]
    hidden = 8
    channel_hidden = 4
    [training]
    env_steps = 96
    envs = 4
    steps = 6
    epochs = 1
    minibatch = 32
    gamma = 0.8
    gae_lambda = 0.9
    learning_rate = 1e-3
    clip = 0.2
    [evaluation]
    episodes = 3
"#;

const SWEEP: &str = r#"
    version = 1
    config = "hosts.toml"
    seeds = 3
    [parameters]
    training.clip = { values = [0.1, 0.3] }
"#;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::write(place.path("hosts.toml"), HOSTS).unwrap();
        fs::write(place.path("clips.toml"), SWEEP).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn lab(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blkpilot-lab"));
        command.args(args).current_dir(self.0.path());
        command.env_remove("BLKPILOT_RUNS").output().unwrap()
    }

    fn page(&self, args: &[&str]) -> String {
        let output = self.lab(&[&["report", "--out", "pages/r.html"], args].concat());
        assert!(output.status.success(), "{output:?}");
        let page = fs::read_to_string(self.path("pages/r.html")).unwrap();
        stands_for_itself(&page);
        page
    }

    fn summary(&self, run: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(run).join("summary.json")).unwrap()).unwrap()
    }
}

/// Nothing is fetched, no script is needed, and each element ends where it must.
fn stands_for_itself(page: &str) {
    for outside in ["<script", "http-equiv", "src=", "@import", "url(", "<link"] {
        assert!(!page.contains(outside), "{outside}");
    }
    let addresses = page.matches("http").count();
    assert_eq!(
        addresses,
        page.matches("http://www.w3.org/2000/svg").count()
    );
    let mut open: Vec<&str> = vec![];
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        let tag = &rest[start + 1..];
        let end = tag.find('>').unwrap();
        let (body, name) = (&tag[..end], tag.split([' ', '>', '/']).next().unwrap());
        if let Some(closed) = body.strip_prefix('/') {
            assert_eq!(
                open.pop(),
                Some(closed),
                "{closed} ends where it has not begun"
            );
        } else if !(body.ends_with('/') || body.starts_with('!') || ["meta", "br"].contains(&name))
        {
            open.push(name);
        }
        rest = &tag[end + 1..];
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn the_page_of_a_sweep_has_the_figures_of_its_summaries() {
    let place = Place::new();
    let sweep = place.lab(&["sweep", "clips.toml", "--json"]);
    assert!(sweep.status.success(), "{sweep:?}");
    let ranking: Value = serde_json::from_slice(&sweep.stdout).unwrap();
    let page = place.page(&["clips.toml"]);
    let of_directory = place.page(&["out/clips"]);
    assert_eq!(page, of_directory, "the file of a sweep stands for it");
    assert!(
        !page.contains("class=\"warning\""),
        "it plays the episodes as they were"
    );
    for ranked in ranking["configurations"].as_array().unwrap() {
        let label = ranked["label"].as_str().unwrap();
        assert!(page.contains(label));
        let median = ranked["median"].as_f64().unwrap();
        assert!(
            page.contains(&format!("<td>{median:.4}</td>")),
            "{label}: {median}"
        );
        for seed in 1..=3 {
            let run = format!("out/clips/{label}/seed-{seed}");
            let summary = place.summary(&run);
            let trained = &summary["policies"]["trained"];
            let reward = trained["reward_mean"].as_f64().unwrap();
            assert!(
                page.contains(&format!("<td>{reward:.6}</td>")),
                "{run}: {reward}"
            );
            let [low, high] = [0, 1].map(|end| trained["reward_ci95"][end].as_f64().unwrap());
            assert!(
                page.contains(&format!("<td>{low:.4} to {high:.4}</td>")),
                "{run}"
            );
            assert!(page.contains(&format!("blkpilot-lab reproduce {run}")));
            // What is not trained plays the same in each run.
            let random = summary["policies"]["random"]["reward_mean"]
                .as_f64()
                .unwrap();
            assert!(
                page.contains(&format!("<td>random</td><td>{random:.4} ")),
                "{random}"
            );
            let version = summary["code_versions"][0].as_str().unwrap();
            assert!(page.contains(version));
        }
    }
    for part in [
        "Learning curves",
        "var(--s1)",
        "channel",
        "queue_depth",
        "clip = 0.3",
        "prefers-color-scheme",
    ] {
        assert!(page.contains(part), "no `{part}`");
    }
    // Ranked as the sweep ranks them.
    let place_of = |number: usize| {
        let label = ranking["configurations"][number]["label"].as_str().unwrap();
        page.find(&format!("<td>{label}</td>")).unwrap()
    };
    assert!(place_of(0) < place_of(1));
    assert!(
        page.contains("draws its hosts"),
        "there is no oracle of random hosts"
    );
    // A summary that says something else is told of.
    let file = place.path("out/clips/clip=0.1/seed-2/summary.json");
    let mut summary: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    summary["policies"]["trained"]["reward_mean"] = (-17.25).into();
    fs::write(&file, summary.to_string()).unwrap();
    let page = place.page(&["out/clips/clip=0.1"]);
    assert!(page.contains("class=\"warning\"") && page.contains("mean reward of -17.250000"));
}

#[test]
fn a_run_on_one_scenario_is_judged_by_the_lagged_oracle() {
    let place = Place::new();
    let (before, after) = HOSTS.split_once("[environment.generator]").unwrap();
    let (_, after) = after.split_once("[network]").unwrap();
    let text = format!("{before}scenario = \"capped_device\"\n[network]{after}");
    fs::write(place.path("<capped>.toml"), text).unwrap();
    assert!(
        place
            .lab(&["train", "<capped>.toml", "--out", "a run"])
            .status
            .success()
    );
    let page = place.page(&["a run", "--oracle-episodes", "3"]);
    for part in [
        "On <code>capped_device</code>, 3 episodes",
        "<td>lagged_oracle</td>",
        "<td>trained, seed 1</td>",
        "&lt;capped&gt;",
        "reproduce 'a run'",
    ] {
        assert!(page.contains(part), "no `{part}` in {page}");
    }
    let reward = place.summary("a run")["policies"]["trained"]["reward_mean"].as_f64();
    assert!(page.contains(&format!("<td>{:.6}</td>", reward.unwrap())));
    let without = place.page(&["a run", "--oracle-episodes", "0"]);
    assert!(!without.contains("<td>lagged_oracle</td>"));
}

#[test]
fn a_place_without_runs_is_refused() {
    let place = Place::new();
    let refused = place.lab(&["report", "."]);
    assert_eq!(refused.status.code(), Some(2));
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("there is no run in or below"), "{text}");
    assert!(!Path::new(&place.path("report.html")).exists());
}
