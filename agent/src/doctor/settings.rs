//! The configuration and the policies that it names.

use std::path::Path;

use super::Finding;
use crate::config::mode::Mode;
use crate::config::{Config, ConfigError};
use crate::server::{self, Named};

/// The configuration, if it can be served, with what is to be said of it.
pub(super) fn load(file: &Path) -> (Option<Config>, Vec<Finding>) {
    const CHECK: &str = "configuration";
    const REPAIR: &str =
        "correct it; docs/config.md has every key, and `blkpilot serve --check` looks again";
    match Config::load(file) {
        Ok(config) => {
            let finding = Finding::ok(CHECK, format!("{} can be served", file.display()));
            (Some(config), vec![finding])
        }
        Err(ConfigError::Invalid { problems, .. }) => {
            let finding = |problem| Finding::failed(CHECK, format!("{problem}"), REPAIR);
            (None, problems.iter().map(finding).collect())
        }
        Err(error) => (
            None,
            vec![Finding::failed(CHECK, error.to_string(), REPAIR)],
        ),
    }
}

/// Whether they load and fit what can be seen and done on the host, and which they are.
pub(super) fn policies(config: &Config) -> Vec<Finding> {
    let repair = "correct [policy] or [candidate]: a checkpoint's directory that fits this host's spec, or a baseline";
    match server::policies(config) {
        Ok(named) => named.iter().map(policy).collect(),
        Err(error) => vec![Finding::failed("policy", error.to_string(), repair)],
    }
}

fn policy(named: &Named) -> Finding {
    let Named { table, policy } = named;
    let version = match policy.version.as_str() {
        "" => "a policy without a checkpoint".to_owned(),
        sha256 => format!("sha256 {sha256}"),
    };
    Finding::ok(
        "policy",
        format!("[{table}] {}: loads and fits, {version}", policy.name),
    )
}

/// A log of a policy that never tries anything else supports no evaluation of another one.
pub(super) fn exploration(config: &Config) -> Option<Finding> {
    let guests = &config.host.guests;
    let is_automatic = |mode: Mode| mode.is_automatic();
    let tunes =
        is_automatic(config.host.mode) || guests.values().filter_map(|g| g.mode).any(is_automatic);
    let explores = guests
        .values()
        .filter_map(|g| g.exploration)
        .any(|e| e.epsilon > 0.0);
    (tunes && !explores).then(|| {
        Finding::warning(
            "exploration",
            "guests are tuned, and none that the configuration names is explored",
            "give some `exploration = { epsilon = 0.05, changes_per_hour = 6 }`, here or in their metadata: without it the log cannot say what another policy would have brought",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Level, worst};
    use super::*;

    const BASE: &str = "version = 1
[host]
kind = \"simulated\"
scenario = \"mixed\"
[service]
data_dir = \"d\"
";

    fn config(tables: &str) -> Config {
        let text = format!("{BASE}{tables}");
        Config::parse(Path::new("/d/x.toml"), &text).unwrap()
    }

    #[test]
    fn every_problem_of_a_configuration_is_a_finding() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.toml");
        std::fs::write(&file, "version = 2\n[host]\nkind = \"moon\"\n").unwrap();
        let (config, findings) = load(&file);
        assert!(config.is_none());
        assert_eq!(findings.len(), 4, "{findings:?}");
        assert!(
            findings
                .iter()
                .all(|f| f.level == Level::Failed && f.repair.is_some())
        );
        let (none, missing) = load(&dir.path().join("none.toml"));
        assert!(none.is_none() && worst(&missing) == Level::Failed);
    }

    #[test]
    fn a_policy_that_loads_is_named_and_one_that_does_not_is_told_of() {
        let baseline = policies(&config("[policy]\nbaseline = \"least_loaded\"\n"));
        assert_eq!(worst(&baseline), Level::Ok);
        assert!(baseline[0].found.contains("least_loaded"), "{baseline:?}");
        let missing = policies(&config("[policy]\ncheckpoint = \"nowhere\"\n"));
        assert_eq!(worst(&missing), Level::Failed);
    }

    #[test]
    fn tuning_without_exploration_is_warned_of() {
        let policy = "[policy]\nbaseline = \"random\"\n";
        let guest = "[[guest]]\nname = \"a\"\nmode = \"auto\"\n";
        let explored = format!("{guest}exploration = {{ epsilon = 0.1, changes_per_hour = 6 }}\n");
        assert_eq!(exploration(&config(policy)), None);
        assert!(exploration(&config(&format!("{policy}{guest}"))).is_some());
        assert_eq!(exploration(&config(&format!("{policy}{explored}"))), None);
    }
}
