//! What trains for a service: which configs it takes from those who call it, and the processes that train them.
//!
//! Whoever may call a service must not reach the files of its machine by it: a config that comes over the wire names
//! presets, files that came with it and versions of the policy store, and no paths.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use blkpilot_agent::config::Problem;
use blkpilot_agent::training::{Admitted, Submission, Task, Trainer};
use blkpilot_env::sim::presets;
use toml::{Table, Value};

use crate::config::{Config, ConfigError, LearnerConfig};
use crate::state::STATE_FILE;

/// Directory of the files that came with a config, beside it.
const SCENARIOS_DIR: &str = "scenarios";

/// Trains by this program, which is `blkpilot-lab`.
#[must_use]
pub fn trainer(program: PathBuf) -> Trainer {
    Trainer {
        program,
        admit,
        command,
    }
}

/// A process of this very program, whatever has become of its file: a run goes on exactly only with the same code.
#[must_use]
pub fn own_trainer() -> Trainer {
    trainer(PathBuf::from("/proc/self/exe"))
}

fn command(program: &Path, task: &Task<'_>) -> Command {
    let mut command = train_or_resume(program, task.config, task.out, task.seed, task.is_forced);
    command.arg("--runs").arg(task.list).arg("--for-service");
    command
}

/// The command that begins a run, or goes on with it where it has a checkpoint.
pub(crate) fn train_or_resume(
    program: &Path,
    config: &Path,
    out: &Path,
    seed: u64,
    is_forced: bool,
) -> Command {
    let mut command = Command::new(program);
    if out.join(STATE_FILE).exists() {
        command.arg("resume").arg(out);
        if is_forced {
            command.arg("--force");
        }
    } else {
        // What is there has no checkpoint.
        command.arg("train").arg(config);
        command.arg("--seed").arg(seed.to_string());
        command.arg("--out").arg(out).arg("--overwrite");
    }
    command
}

fn admit(submission: &Submission<'_>) -> Result<Admitted, Vec<Problem>> {
    let table: Table = submission
        .config
        .parse()
        .map_err(|error: toml::de::Error| vec![problem("", error.to_string().trim_end())])?;
    let mut confined = Confined {
        submission,
        table,
        problems: vec![],
    };
    confined.confine();
    let Confined {
        table, problems, ..
    } = confined;
    let read = write(submission, &table).and_then(|()| read(submission.file));
    match read {
        Ok(config) if problems.is_empty() => Ok(Admitted {
            algorithm: config.algorithm().to_owned(),
            env_steps: config.training.env_steps,
            seed: config.seed,
        }),
        Ok(_) => Err(problems),
        // One key has one complaint: that of what may be sent comes first.
        Err(found) => {
            let is_new = |new: &Problem| problems.iter().all(|problem| problem.path != new.path);
            let found: Vec<Problem> = found.into_iter().filter(is_new).collect();
            Err(problems.into_iter().chain(found).collect())
        }
    }
}

fn write(submission: &Submission<'_>, table: &Table) -> Result<(), Vec<Problem>> {
    let dir = submission.file.parent().unwrap_or(Path::new("."));
    let written = || -> std::io::Result<()> {
        let scenarios = dir.join(SCENARIOS_DIR);
        fs::create_dir_all(&scenarios)?;
        for (name, text) in submission.scenario_files {
            fs::write(scenarios.join(name), text)?;
        }
        let text = toml::to_string(table).map_err(std::io::Error::other)?;
        fs::write(submission.file, text)
    };
    written().map_err(|error| {
        vec![problem(
            "",
            format!("cannot be kept by the service: {error}"),
        )]
    })
}

fn read(file: &Path) -> Result<Config, Vec<Problem>> {
    let dir = file.parent().unwrap_or(Path::new("."));
    // Where the service keeps it is nothing that the caller could put right.
    let own = format!("{}/", dir.display());
    let told = |text: &str| text.replace(&own, "").replace("./", "");
    Config::load(file).map_err(|error| match error {
        ConfigError::Invalid { problems, .. } => {
            let told = |found: crate::config::Problem| problem(found.path, told(&found.text));
            problems.into_iter().map(told).collect()
        }
        ConfigError::Syntax { message, .. } => vec![problem("", message)],
        error @ ConfigError::Read { .. } => vec![problem("", told(&error.to_string()))],
    })
}

fn problem(path: impl Into<String>, text: impl Into<String>) -> Problem {
    Problem {
        path: path.into(),
        text: text.into(),
    }
}

/// A config that is made to name nothing but what it may.
struct Confined<'a> {
    submission: &'a Submission<'a>,
    table: Table,
    problems: Vec<Problem>,
}

impl Confined<'_> {
    fn confine(&mut self) {
        self.environment();
        self.scenario();
        self.start_from();
        self.log();
    }

    fn text(&self, section: &str, key: &str) -> Option<String> {
        let value = self.table.get(section)?.get(key)?;
        value.as_str().map(str::to_owned)
    }

    fn set(&mut self, section: &str, key: &str, value: String) {
        let section = self
            .table
            .entry(section)
            .or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(section) = section {
            section.insert(key.to_owned(), Value::String(value));
        }
    }

    fn refuse(&mut self, path: &str, text: String) {
        self.problems.push(problem(path, text));
    }

    /// Through its own socket a service would let itself do whatever it likes.
    fn environment(&mut self) {
        if self.text("environment", "kind").as_deref() == Some("remote") {
            let text = "= \"remote\" is nothing that a service trains at: run `blkpilot-lab train` where you may call the \
                        other one";
            self.refuse("environment.kind", text.to_owned());
        }
    }

    fn scenario(&mut self) {
        let Some(name) = self.text("environment", "scenario") else {
            return;
        };
        let file = name.trim_start_matches("./");
        if self.submission.scenario_files.contains_key(file) {
            let path = format!("./{SCENARIOS_DIR}/{file}");
            self.set("environment", "scenario", path);
        } else if presets::by_name(&name).is_none() {
            let known = presets::NAMES.join(", ");
            let text = format!(
                "= \"{name}\" must be one of {known}, or the name of a file that is sent along, which is no path"
            );
            self.refuse("environment.scenario", text);
            // So that nothing is read, whatever it names.
            self.set("environment", "scenario", presets::NAMES[0].to_owned());
        }
    }

    fn start_from(&mut self) {
        let Some(name) = self.text("training", "start_from") else {
            return;
        };
        match (self.submission.policy)(&name) {
            Ok(dir) => self.set("training", "start_from", dir.to_string_lossy().into_owned()),
            Err(why) => {
                let text = format!(
                    "= \"{name}\" must be a version of the policy store, policies/POLICY/versions/NUMBER: {why}"
                );
                self.refuse("training.start_from", text);
            }
        }
    }

    fn log(&mut self) {
        if self.text("data", "log").is_some() {
            let text = "must be left out: the service's own decision log is learnt from";
            self.refuse("data.log", text.to_owned());
        }
        let algorithm = self.text("training", "algorithm").unwrap_or_default();
        if LearnerConfig::FROM_LOGS.contains(&&algorithm[..]) {
            let log = self.submission.log.to_string_lossy().into_owned();
            self.set("data", "log", log);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const CONFIG: &str = r#"
        version = 1
        [environment]
        kind = "sim_host"
        scenario = "mixed"
        [training]
        env_steps = 100
        envs = 1
        steps = 10
        epochs = 1
        minibatch = 10
        gamma = 0.9
        gae_lambda = 0.9
        learning_rate = 1e-3
        clip = 0.2
    "#;

    const OFFLINE: &str = r#"
        version = 1
        [environment]
        kind = "sim_host"
        scenario = "mixed"
        [training]
        algorithm = "bc"
        grad_steps = 10
        minibatch = 4
        gamma = 0.9
        learning_rate = 1e-3
    "#;

    /// What comes of a config with these files beside it, and how it was written.
    fn admitted(config: &str, files: &[(&str, String)]) -> (Result<Admitted, Vec<String>>, String) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("own.toml");
        let files = files
            .iter()
            .map(|(name, text)| ((*name).to_owned(), text.clone()));
        let submission = Submission {
            file: &file,
            config,
            scenario_files: &files.collect::<BTreeMap<_, _>>(),
            log: Path::new("/data/decisions"),
            policy: &|name| match name {
                "policies/net/versions/1" => Ok(PathBuf::from("/data/checkpoints/1")),
                _ => Err("there is none".to_owned()),
            },
        };
        let found = admit(&submission).map_err(|problems| {
            let text = |problem: &Problem| problem.to_string();
            problems.iter().map(text).collect()
        });
        (found, fs::read_to_string(&file).unwrap_or_default())
    }

    #[test]
    fn what_names_no_file_is_taken_as_it_is() {
        let (found, written) = admitted(CONFIG, &[]);
        let wanted = Admitted {
            algorithm: "ppo".to_owned(),
            env_steps: 100,
            seed: 1,
        };
        assert_eq!(found, Ok(wanted));
        assert_eq!(
            written.parse::<Table>().unwrap(),
            CONFIG.parse::<Table>().unwrap()
        );
    }

    #[test]
    fn a_scenario_that_is_sent_along_is_found_and_what_is_wrong_with_it_names_no_directory() {
        let mixed = toml::to_string(&presets::by_name("mixed").unwrap()).unwrap();
        let config = CONFIG.replace("\"mixed\"", "\"./own_host.toml\"");
        let (found, _) = admitted(&config, &[("own_host.toml", mixed)]);
        assert!(found.is_ok(), "{found:?}");
        let (found, _) = admitted(&config, &[("own_host.toml", "name = 3".to_owned())]);
        let problems = found.unwrap_err().join("\n");
        assert!(problems.starts_with("environment.scenario"), "{problems}");
        assert!(
            problems.contains("own_host.toml") && !problems.contains("/tmp"),
            "{problems}"
        );
    }

    #[test]
    fn paths_and_other_services_are_refused_all_at_once() {
        let config = CONFIG
            .replace("\"mixed\"", "\"/etc/passwd\"")
            .replace("env_steps = 100", "env_steps = 0\nstart_from = \"../../x\"")
            + "[data]\nlog = \"/var/log\"\n";
        let problems = admitted(&config, &[]).0.unwrap_err();
        let paths: Vec<&str> = problems
            .iter()
            .map(|problem| problem.split(' ').next().unwrap())
            .collect();
        assert_eq!(
            paths[..3],
            ["environment.scenario", "training.start_from", "data.log"]
        );
        assert!(paths.contains(&"training.env_steps"), "{problems:?}");
        assert!(problems[0].contains("no path"), "{problems:?}");
        let remote = CONFIG
            .replace("sim_host", "remote")
            .replace("scenario = \"mixed\"", "cart_pole = true");
        let problems = admitted(&remote, &[]).0.unwrap_err();
        assert!(
            problems[0].starts_with("environment.kind = \"remote\""),
            "{problems:?}"
        );
        let climbing = CONFIG.replace("\"mixed\"", "\"../own_host.toml\"");
        assert!(
            admitted(&climbing, &[("own_host.toml", String::new())])
                .0
                .is_err()
        );
    }

    #[test]
    fn a_learner_from_a_log_has_that_of_the_service_and_one_that_goes_on_a_version_of_the_store() {
        let (found, written) = admitted(OFFLINE, &[]);
        assert!(found.is_ok(), "{found:?}");
        assert!(written.contains("log = \"/data/decisions\""), "{written}");
        let config = CONFIG.replace(
            "envs = 1",
            "envs = 1\nstart_from = \"policies/net/versions/1\"",
        );
        let (found, written) = admitted(&config, &[]);
        assert!(found.is_ok(), "{found:?}");
        assert!(written.contains("/data/checkpoints/1"), "{written}");
    }
}
