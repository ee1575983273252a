use blkpilot_env::sim::{Scenario, presets};
use blkpilot_learn::Schedule;
use blkpilot_learn::dqn::{Bootstrap, Follow};

use super::*;
use crate::seeds;

const GOOD: &str = r#"
    version = 1
    [environment]
    kind = "sim_host"
    [environment.generator]
    disks = [1, 3]
    [training]
    env_steps = 1000
    envs = 4
    steps = 8
    epochs = 2
    minibatch = 64
    gamma = 0.9
    gae_lambda = 0.9
    learning_rate = 1e-3
    clip = 0.2
"#;

fn problems(text: &str) -> Vec<String> {
    match Config::parse(Path::new("x.toml"), text) {
        Err(ConfigError::Invalid { problems, .. }) => {
            problems.iter().map(ToString::to_string).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_left_out_has_a_default() {
    let config = Config::parse(Path::new("configs/x.toml"), GOOD).unwrap();
    assert_eq!(config.name, "x");
    assert_eq!(config.architecture, Architecture::default());
    assert_eq!(config.training.checkpoint_every, 100);
    assert_eq!(config.evaluation.first_seed, 0);
    let LearnerConfig::Ppo(ppo) = &config.training.learner else {
        panic!("PPO is the default");
    };
    assert_eq!(ppo.clip, Schedule::Constant(0.2));
    let EnvironmentConfig::SimHost {
        source: HostSource::Generated(generator),
        ..
    } = config.environment
    else {
        panic!("a generator was given");
    };
    assert_eq!(generator.disks, (1, 3));
}

#[test]
fn every_problem_is_reported_at_once_with_its_path() {
    let text = GOOD
        .replace("version = 1", "version = 7")
        .replace("clip = 0.2", "clip = -0.2\nclipp = 1")
        .replace("gamma = 0.9\n", "")
        .replace("epochs = 2", "epochs = \"two\"")
        .replace("disks = [1, 3]", "disks = [3, 1]\ncolour = \"red\"")
        + "[evaluation]\nepisodes = 1\n[extra]\n";
    let found = problems(&text);
    let wanted = [
        "extra is unknown: expected one of `version`",
        "version = 7 must be 1",
        "environment.generator.colour is unknown",
        "environment.generator.disks = [3, 1] must be a range",
        "training.clipp is unknown",
        "training.epochs = \"two\": invalid type",
        "training.gamma is missing",
        "training.clip = -0.2 must be > 0",
        "evaluation.episodes = 1 must be",
    ];
    for start in wanted {
        assert!(
            found.iter().any(|line| line.starts_with(start)),
            "no `{start}` in {found:#?}"
        );
    }
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
}

/// GOOD with another `[training]`.
fn training(keys: &str) -> String {
    let start = GOOD.split("[training]").next().unwrap();
    format!("{start}[training]\n{keys}")
}

const DQN: &str = r#"
    algorithm = "dqn"
    env_steps = 10_000
    envs = 4
    train_frequency = 16
    gradient_steps = 8
    learning_starts = 100
    minibatch = 64
    replay_capacity = 5000
    gamma = 0.9
    target_update_interval = 500
    exploration_fraction = 0.2
    exploration_final = 0.05
    learning_rate = 1e-3
"#;

#[test]
fn distillation_has_defaults_and_bounds() {
    let keys = r#"
        algorithm = "distil"
        env_steps = 1000
        envs = 4
        steps = 8
        epochs = 2
        minibatch = 64
        learning_rate = 1e-3
    "#;
    let config = Config::parse(Path::new("x.toml"), &training(keys)).unwrap();
    assert_eq!(config.training.learner.name(), "distil");
    let LearnerConfig::Distil(distil) = config.training.learner else {
        panic!("distillation was asked for");
    };
    assert_eq!(
        (distil.temperature, distil.priced_per_step, distil.threads),
        (0.02, 1.0, 1)
    );
    assert_eq!(distil.replay_capacity, 100_000);
    let start = format!("{keys}\nstart_from = \"p/policy\"");
    let start = Config::parse(Path::new("configs/x.toml"), &training(&start)).unwrap();
    let dir = start.training.start_from.unwrap();
    assert_eq!(dir, Path::new("configs/p/policy"));
    for (environment, wanted) in [
        (
            "kind = \"cartpole\"",
            "environment.kind must be \"sim_host\"",
        ),
        (
            "kind = \"sim_host\"\n[environment.generator]\nschedulers = true",
            "environment.generator has schedulers",
        ),
    ] {
        let text = format!("version = 1\n[environment]\n{environment}\n[training]\n{keys}");
        let found = problems(&text);
        assert!(
            found.len() == 1 && found[0].starts_with(wanted),
            "{found:#?}"
        );
    }
    let bad = keys.replace(
        "env_steps = 1000",
        "env_steps = 31\npriced_per_step = 0\nthreads = 0\ngamma = 0.9",
    );
    let found = problems(&training(&bad));
    let wanted = [
        "training.gamma is unknown",
        "training.env_steps = 31 must be at least 32",
        "training.priced_per_step = 0 must be > 0",
        "training.threads = 0 must be in [1, 1024]",
    ];
    for start in wanted {
        let is_it = |line: &String| line.starts_with(start);
        assert!(found.iter().any(is_it), "no `{start}` in {found:#?}");
    }
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
}

#[test]
fn each_learner_has_keys_of_its_own() {
    let parse = |keys: &str| Config::parse(Path::new("x.toml"), &training(keys));
    let config = parse(DQN).unwrap();
    assert_eq!(config.training.learner.name(), "dqn");
    let LearnerConfig::Dqn(dqn) = config.training.learner else {
        panic!("DQN was asked for");
    };
    assert_eq!((dqn.n_steps, dqn.bootstrap), (1, Bootstrap::Double));
    assert_eq!(dqn.follow, Follow::Copy { every: 500 });
    assert_eq!((dqn.prioritised, dqn.exploration.from), (None, 1.0));
    let own = DQN.replace(
        "target_update_interval = 500",
        "tau = 0.01\ndouble = false\nn_steps = 3",
    ) + "priority_alpha = 0.6\nlearning_rate_schedule = \"linear_to_zero\"";
    let LearnerConfig::Dqn(dqn) = parse(&own).unwrap().training.learner else {
        panic!("DQN was asked for");
    };
    assert_eq!((dqn.n_steps, dqn.bootstrap), (3, Bootstrap::Max));
    assert_eq!(dqn.follow, Follow::Polyak { tau: 0.01 });
    assert_eq!(dqn.prioritised.unwrap().beta, 0.4);
    assert_eq!(dqn.learning_rate, Schedule::LinearToZero(1e-3));
    assert!(
        Config::parse(
            Path::new("x.toml"),
            &GOOD.replace("envs = 4", "algorithm = \"ppo\"\nenvs = 4")
        )
        .is_ok()
    );
}

#[test]
fn every_problem_of_dqn_is_reported_at_once() {
    let keys = DQN
        .replace("replay_capacity = 5000", "replay_capacity = 0")
        .replace("gamma = 0.9", "gamma = 1.1\nclip = 0.2\ntau = 0.1")
        .replace("env_steps = 10_000", "env_steps = 110")
        .replace("exploration_final = 0.05\n", "")
        + "n_steps = 0\npriority_beta = 0.5\n";
    let found = problems(&training(&keys));
    let wanted = [
        "training.clip is unknown: expected one of `algorithm`, `env_steps`",
        "training.env_steps = 110 must be at least 116: learning_starts, and",
        "training.replay_capacity = 0 must be in [1, 4194304]",
        "training.gamma = 1.1 must be in [0, 1]",
        "training.n_steps = 0 must be in [1, 1000]",
        "training.priority_beta is only for a replay with priorities",
        "training.tau stands beside training.target_update_interval",
        "training.exploration_final is missing",
    ];
    for start in wanted {
        assert!(
            found.iter().any(|line| line.starts_with(start)),
            "no `{start}` in {found:#?}"
        );
    }
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
    let unknown = problems(&training(&DQN.replace("\"dqn\"", "\"sarsa\"")));
    assert_eq!(
        unknown,
        ["training.algorithm = \"sarsa\" must be one of ppo, dqn, distil, bc, cql, iql"]
    );
}

#[test]
fn a_rollout_is_bounded_and_no_product_overflows() {
    let rollout = |envs: &str, steps: &str| {
        let text = GOOD
            .replace("env_steps = 1000", "env_steps = 1_000_000")
            .replace("envs = 4", &format!("envs = {envs}"))
            .replace("    steps = 8", &format!("    steps = {steps}"));
        Config::parse(Path::new("x.toml"), &text).map_err(|error| error.to_string())
    };
    assert!(rollout("4096", "64").is_ok());
    let wanted = "x.toml: training.envs × training.steps = 268435456 host-steps, all held in \
                  memory: must be at most 262144";
    assert_eq!(rollout("4096", "65_536").unwrap_err(), wanted);
    let most = i64::MAX.to_string();
    let error = rollout(&most, &most).unwrap_err();
    assert_eq!(error.lines().count(), 3, "{error}");
}

#[test]
fn evaluation_seeds_follow_the_first_and_stay_in_their_range() {
    let parse = |first: &str| {
        let text = format!("{GOOD}[evaluation]\nepisodes = 100_000\nfirst_seed = {first}\n");
        Config::parse(Path::new("x.toml"), &text).map_err(|error| error.to_string())
    };
    let evaluation = parse("10_000").unwrap().evaluation;
    assert_eq!(evaluation.seed(7), seeds::evaluation(10_007));
    let evaluation = parse("1_000_000_000_000").unwrap().evaluation;
    assert!(evaluation.seed(99_999) > evaluation.seed(0));
    let error = parse("1_000_000_000_001").unwrap_err();
    assert!(
        error.contains("evaluation.first_seed = 1000000000001 must be in"),
        "{error}"
    );
    assert!(parse("-1").is_err());
}

#[test]
fn an_error_names_the_file_in_each_line() {
    let text = GOOD
        .replace("clip = 0.2", "clip = -0.2")
        .replace("envs = 4", "envs = 0");
    let error = Config::parse(Path::new("experiments/configs/x.toml"), &text).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("experiments/configs/x.toml: training.clip = -0.2 must be > 0"),
        "{text}"
    );
    assert!(
        text.lines()
            .all(|line| line.starts_with("experiments/configs/x.toml: ")),
        "{text}"
    );
}

#[test]
fn an_unknown_scenario_lists_those_that_exist() {
    let text = GOOD.replace(
        "[environment.generator]\n    disks = [1, 3]",
        "scenario = \"no_such\"",
    );
    assert!(problems(&text)[0].contains("identical_disks"));
}

/// GOOD on the scenario of a file beside the config, `text`.
fn on_a_file(text: &str) -> (tempfile::TempDir, Result<Config, ConfigError>) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("own.toml"), text).unwrap();
    let config = GOOD.replace(
        "[environment.generator]\n    disks = [1, 3]",
        "scenario = \"own.toml\"",
    );
    let config = Config::parse(&dir.path().join("x.toml"), &config);
    (dir, config)
}

#[test]
fn a_scenario_file_beside_the_config_is_trained_on() {
    let text = presets::text("capped_device").unwrap();
    let (_dir, config) = on_a_file(&text.replace("capped_device", "own"));
    let EnvironmentConfig::SimHost {
        source: HostSource::Scenario(scenario),
        ..
    } = config.unwrap().environment
    else {
        panic!("a scenario was given");
    };
    assert_eq!(scenario.name, "own");
    let expected = Scenario {
        name: "own".to_owned(),
        ..presets::capped_device()
    };
    assert_eq!(*scenario, expected);
}

#[test]
fn every_problem_of_a_scenario_file_is_named_with_the_file() {
    let text = presets::text("capped_device").unwrap();
    let broken = text
        .replace("memory_gib = ", "memory_gib = -")
        .replace("cpus = 1", "cpus = 0");
    let (dir, config) = on_a_file(&broken);
    let text = config.unwrap_err().to_string();
    let file = dir.path().join("own.toml");
    assert!(text.lines().count() >= 2, "{text}");
    for line in text.lines() {
        let part = format!("environment.scenario = \"own.toml\": {}: ", file.display());
        assert!(line.contains(&part), "{line}");
    }
    for key in ["memory_gib", "channels[0].cpus"] {
        assert!(text.contains(key), "no {key} in {text}");
    }
}

#[test]
fn a_policy_to_begin_from_takes_the_place_of_the_network_and_of_the_warm_up() {
    let start = GOOD.replace("clip = 0.2", "clip = 0.2\nstart_from = \"p/policy\"");
    let config = Config::parse(Path::new("configs/x.toml"), &start).unwrap();
    let dir = config.training.start_from.unwrap();
    assert_eq!(dir, Path::new("configs/p/policy"));
    let few = |text: &str| problems(&text.replace("env_steps = 1000", "env_steps = 31"));
    assert!(few(&start)[0].contains("must be at least 32: one rollout"));
    assert!(few(GOOD)[0].contains("must be at least 64"));
    let found = problems(&format!("{start}\n[network]\nhidden = 8\n"));
    assert!(found[0].starts_with("network stands beside training.start_from"));
}

#[test]
fn what_the_command_line_says_stands_in_the_document() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.toml");
    std::fs::write(&file, GOOD).unwrap();
    let start_from = PathBuf::from("/p/policy");
    let overrides = Overrides {
        start_from: Some(start_from.clone()),
        ..Overrides::default()
    };
    let config = Config::load_with(&file, &overrides).unwrap();
    assert_eq!(config.training.start_from, Some(start_from));
    let again = Config::from_document(&file, &config.document).unwrap();
    assert_eq!(again, config);
    let overrides = Overrides {
        log: Some(PathBuf::from("/l")),
        ..Overrides::default()
    };
    let refused = Config::load_with(&file, &overrides).unwrap_err();
    assert!(refused.to_string().contains("data is only for learners"));
    let overrides = Overrides {
        address: Some("unix:x".to_owned()),
        ..Overrides::default()
    };
    let refused = Config::load_with(&file, &overrides).unwrap_err();
    assert!(refused.to_string().contains("environment.address is only"));
}

#[test]
fn hosts_keys_are_refused_for_cartpole() {
    let found = problems(&GOOD.replace("sim_host", "cartpole"));
    assert_eq!(
        found,
        ["environment.generator is only for kind = \"sim_host\": remove it"]
    );
}
