//! `[environment]` of an environment at a service.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use blkpilot_agent::client::Credentials;
use blkpilot_agent::config::DEFAULT_SOCKET;
use blkpilot_env::sim::presets;

use super::check::Check;
use super::environment::RawEnvironment;

/// An environment at a running service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteConfig {
    /// Where the service is: `unix:PATH`, `http://ADDRESS` or `https://HOST:PORT`.
    pub address: String,
    /// What it is shown, and trusted by.
    pub credentials: Credentials,
    /// What to create there.
    pub kind: RemoteKind,
    /// Steps after which an episode is truncated; `None` leaves its end to it.
    pub episode_steps: Option<NonZeroU32>,
}

/// What to create at a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteKind {
    /// A host that the service manages.
    Host {
        /// Its resource name, `hosts/{host}`.
        name: String,
        /// Why the guard is passed by; `None` if it is not.
        force_reason: Option<String>,
    },
    /// A simulated host with a built-in scenario.
    Preset(String),
    /// CartPole-v1.
    CartPole,
}

impl RemoteConfig {
    /// Whether what is done there is done to guests.
    #[must_use]
    pub fn is_host(&self) -> bool {
        matches!(self.kind, RemoteKind::Host { .. })
    }
}

/// Longest reason that a service takes, bytes.
const LONGEST_REASON: usize = 1000;
const MOST_EPISODE_STEPS: u32 = 1_000_000;

pub(super) fn remote(
    mut raw: RawEnvironment,
    base: &Path,
    check: &mut Check,
) -> Option<RemoteConfig> {
    for (key, is_given) in [
        ("generator", raw.generator.is_some()),
        ("reward", raw.reward.is_some()),
        ("reward_ranges", raw.reward_ranges.is_some()),
    ] {
        if is_given {
            let path = format!("environment.{key}");
            check.problem(
                path,
                "is only for kind = \"sim_host\": a service has its own; remove it",
            );
        }
    }
    let address = raw.address.take();
    let address = address.unwrap_or(format!("unix:{DEFAULT_SOCKET}"));
    if address.is_empty() {
        let text = "= \"\" must be unix:PATH, http://ADDRESS or https://HOST:PORT, where `blkpilot serve` listens";
        check.problem("environment.address", text);
    }
    let credentials = credentials(&mut raw, &address, base, check);
    let force_reason = force_reason(raw.force_reason, raw.host.is_some(), check);
    check.that(
        "environment.episode_steps",
        raw.episode_steps,
        |steps| (1..=MOST_EPISODE_STEPS).contains(&steps),
        &format!("must be in [1, {MOST_EPISODE_STEPS}]"),
    );
    let kind = match (raw.host, raw.scenario, raw.cart_pole) {
        (Some(name), None, None) => {
            if raw.episode_steps.is_none() {
                let text = "is missing: a live host has no episodes of its own; say after how many steps its guests \
                            are put back and a new one begins";
                check.problem("environment.episode_steps", text);
            }
            host(name, force_reason, check)
        }
        (None, Some(name), None) => preset(name, check),
        (None, None, Some(true)) => Some(RemoteKind::CartPole),
        _ => {
            let text = "must say what to create at the service: one of host = \"hosts/NAME\" (`blkpilot guests`), \
                        scenario = a preset, cart_pole = true";
            check.problem("environment", text);
            None
        }
    };
    Some(RemoteConfig {
        address,
        credentials,
        kind: kind?,
        episode_steps: raw.episode_steps.and_then(NonZeroU32::new),
    })
}

/// Files, whose paths start at `base`; TLS's go with an address at which it is spoken.
fn credentials(
    raw: &mut RawEnvironment,
    address: &str,
    base: &Path,
    check: &mut Check,
) -> Credentials {
    let (certificate, key) = (raw.cert_file.take(), raw.key_file.take());
    for (given, missing, is_alone) in [
        (
            "cert_file",
            "key_file",
            certificate.is_some() && key.is_none(),
        ),
        (
            "key_file",
            "cert_file",
            key.is_some() && certificate.is_none(),
        ),
    ] {
        if is_alone {
            let text = format!("stands without environment.{missing}: give both, or neither");
            check.problem(format!("environment.{given}"), text);
        }
    }
    for (file, is_given) in [
        ("ca_file", raw.ca_file.is_some()),
        ("cert_file", certificate.is_some()),
        ("key_file", key.is_some()),
    ] {
        if is_given && !address.starts_with("https://") {
            let text = format!("is for https://, and environment.address is \"{address}\"");
            check.problem(format!("environment.{file}"), text);
        }
    }
    let anchored = |path: Option<PathBuf>| path.map(|path| base.join(path));
    Credentials {
        ca: anchored(raw.ca_file.take()),
        identity: anchored(certificate).zip(anchored(key)),
        token_file: anchored(raw.token_file.take()),
    }
}

fn force_reason(reason: Option<String>, is_host: bool, check: &mut Check) -> Option<String> {
    let reason = reason?;
    if !is_host {
        let text = "is only for a host: remove it";
        check.problem("environment.force_reason", text);
    } else if reason.trim().is_empty() || reason.len() > LONGEST_REASON {
        let text =
            format!("must say why the guard is passed by, in at most {LONGEST_REASON} bytes");
        check.problem("environment.force_reason", text);
    }
    Some(reason)
}

fn host(name: String, force_reason: Option<String>, check: &mut Check) -> Option<RemoteKind> {
    let id = name.strip_prefix("hosts/").unwrap_or_default();
    if id.is_empty() || id.contains('/') {
        let text = format!("= \"{name}\" must be hosts/NAME, as in `blkpilot guests --json`");
        check.problem("environment.host", text);
        return None;
    }
    Some(RemoteKind::Host { name, force_reason })
}

fn preset(name: String, check: &mut Check) -> Option<RemoteKind> {
    if presets::by_name(&name).is_none() {
        let known = presets::NAMES.join(", ");
        let text = format!("= \"{name}\" must be one of {known}; a service takes no file of ours");
        check.problem("environment.scenario", text);
        return None;
    }
    Some(RemoteKind::Preset(name))
}

#[cfg(test)]
mod tests {
    use super::super::{Config, ConfigError, EnvironmentConfig};
    use super::*;

    const HOST: &str = r#"
        version = 1
        [environment]
        kind = "remote"
        address = "unix:/run/x.sock"
        host = "hosts/local"
        episode_steps = 32
        [training]
        env_steps = 1000
        envs = 1
        steps = 8
        epochs = 2
        minibatch = 64
        gamma = 0.9
        gae_lambda = 0.9
        learning_rate = 1e-3
        clip = 0.2
    "#;

    fn parse(text: &str) -> Result<RemoteConfig, Vec<String>> {
        match Config::parse(Path::new("x.toml"), text) {
            Ok(config) => match config.environment {
                EnvironmentConfig::Remote(remote) => Ok(remote),
                other => panic!("{other:?}"),
            },
            Err(ConfigError::Invalid { problems, .. }) => {
                Err(problems.iter().map(ToString::to_string).collect())
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn with(line: &str) -> String {
        HOST.replace("host = \"hosts/local\"", line)
    }

    #[test]
    fn a_host_a_preset_or_cart_pole_is_created_at_the_address() {
        let host = parse(HOST).unwrap();
        assert_eq!(host.address, "unix:/run/x.sock");
        assert_eq!(host.episode_steps.map(NonZeroU32::get), Some(32));
        let name = "hosts/local".to_owned();
        let force_reason = None;
        assert_eq!(host.kind, RemoteKind::Host { name, force_reason });
        let preset = parse(&with("scenario = \"mixed\"")).unwrap();
        assert_eq!(preset.kind, RemoteKind::Preset("mixed".to_owned()));
        let cart = parse(&with("cart_pole = true").replace("episode_steps = 32", "")).unwrap();
        assert_eq!(
            (cart.kind, cart.episode_steps),
            (RemoteKind::CartPole, None)
        );
        let text = HOST.replace("address = \"unix:/run/x.sock\"", "");
        assert!(
            parse(&text)
                .unwrap()
                .address
                .starts_with("unix:/run/blkpilot")
        );
    }

    #[test]
    fn files_that_a_service_is_shown_start_where_the_config_is() {
        let address = "address = \"https://h.example:7077\"";
        let files = "ca_file = \"ca.pem\"\ncert_file = \"c.pem\"\nkey_file = \"/k/c.key\"\ntoken_file = \"t\"";
        let text = HOST.replace(
            "address = \"unix:/run/x.sock\"",
            &format!("{address}\n{files}"),
        );
        let EnvironmentConfig::Remote(remote) = Config::parse(Path::new("/d/x.toml"), &text)
            .unwrap()
            .environment
        else {
            panic!("it is at a service")
        };
        let given = Credentials {
            ca: Some("/d/ca.pem".into()),
            identity: Some(("/d/c.pem".into(), "/k/c.key".into())),
            token_file: Some("/d/t".into()),
        };
        assert_eq!(remote.credentials, given);
        assert_eq!(parse(HOST).unwrap().credentials, Credentials::default());
    }

    #[test]
    fn half_a_pair_and_files_for_tls_where_none_is_spoken_are_named() {
        let found = parse(&with("host = \"hosts/local\"\ncert_file = \"c.pem\"")).unwrap_err();
        assert_eq!(
            found,
            [
                "environment.cert_file stands without environment.key_file: give both, or neither",
                "environment.cert_file is for https://, and environment.address is \"unix:/run/x.sock\"",
            ]
        );
        let found = parse(&with("host = \"hosts/local\"\nca_file = \"ca.pem\"")).unwrap_err();
        assert!(
            found[0].starts_with("environment.ca_file is for https://"),
            "{found:?}"
        );
    }

    #[test]
    fn everything_wrong_with_it_is_named() {
        let wrong = with("host = \"local\"\nforce_reason = \" \"\nreward = {}")
            .replace("envs = 1", "envs = 2")
            .replace("episode_steps = 32", "");
        let found = parse(&wrong).unwrap_err();
        let wanted = [
            "environment.reward is only for kind = \"sim_host\"",
            "environment.force_reason must say why",
            "environment.episode_steps is missing",
            "environment.host = \"local\" must be hosts/NAME",
        ];
        for start in wanted {
            assert!(
                found.iter().any(|line| line.starts_with(start)),
                "no `{start}` in {found:#?}"
            );
        }
        assert_eq!(found.len(), wanted.len(), "{found:#?}");
        for line in ["", "host = \"hosts/a\"\ncart_pole = true"] {
            let found = parse(&with(line)).unwrap_err();
            assert!(found[0].starts_with("environment must say"), "{found:?}");
        }
        let found = parse(&with("scenario = \"mine.toml\"")).unwrap_err();
        assert!(found[0].contains("identical_disks"), "{found:?}");
    }

    #[test]
    fn a_host_is_played_by_one_environment() {
        let found = parse(&HOST.replace("envs = 1", "envs = 2")).unwrap_err();
        assert_eq!(
            found,
            ["training.envs = 2 must be 1: a live host can be one environment at a time"]
        );
        let simulated = with("scenario = \"mixed\"").replace("envs = 1", "envs = 2");
        assert!(parse(&simulated).is_ok());
    }

    #[test]
    fn learners_from_a_log_play_nowhere() {
        let start = HOST.split("[training]").next().unwrap();
        let keys =
            "algorithm = \"bc\"\ngrad_steps = 10\nminibatch = 4\ngamma = 0.9\nlearning_rate = 1e-3";
        let text = format!("{start}[training]\n{keys}\n[data]\nlog = \"l\"\n");
        let found = parse(&text).unwrap_err();
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(
            found[0].starts_with("environment.kind = \"remote\" is only for learners that play")
        );
    }

    #[test]
    fn its_keys_are_refused_elsewhere() {
        let found = parse(&HOST.replace("\"remote\"", "\"cartpole\"")).unwrap_err();
        let only =
            |key: &str| format!("environment.{key} is only for kind = \"remote\": remove it");
        assert_eq!(found, ["address", "host", "episode_steps"].map(only));
    }
}
