//! Configurations of the service, token files, and tokens.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use blkpilot_agent::access::role::Role;
use blkpilot_agent::access::tokens::{TokenFile, Wanted, verify};
use blkpilot_agent::config::{Config, ConfigError};
use blkpilot_env::Rng;
use rand::RngExt as _;
use tempfile::TempDir;

use super::{length, mutate, rng};

const CONFIGS: [&str; 2] = [
    include_str!("../../configs/libvirt.toml"),
    include_str!("../../configs/simulated.toml"),
];
const REFERENCE: &str = include_str!("../../../docs/config.md");
/// No file of this size may take longer.
const LONGEST: Duration = Duration::from_secs(5);

#[test]
fn whatever_stands_in_a_configuration_is_taken_or_refused_with_its_problems() {
    let dir = TempDir::new().unwrap();
    let (mut rng, tables) = (rng(), tables());
    assert!(tables.len() > 10, "{tables:?}");
    let (begun, mut read, mut taken) = (Instant::now(), 0, 0);
    while begun.elapsed() < length() {
        let text = match rng.random_range(0..3) {
            0 => written(&mut rng, &tables),
            _ => mutate::lines(&mut rng, CONFIGS[read % CONFIGS.len()]),
        };
        taken += usize::from(is_taken(dir.path(), &text));
        read += 1;
    }
    println!("{read} configurations, {taken} of them taken");
    assert!(taken > 0 && taken < read);
}

fn is_taken(dir: &Path, text: &str) -> bool {
    let begun = Instant::now();
    let parsed = Config::parse(&dir.join("x.toml"), text);
    assert!(begun.elapsed() < LONGEST, "it takes too long: {text}");
    match parsed {
        Ok(_) => true,
        Err(ConfigError::Invalid { problems, .. }) => {
            let nameless = problems.iter().find(|p| p.path.is_empty());
            assert!(!problems.is_empty() && nameless.is_none(), "{text}");
            false
        }
        Err(other) => {
            assert!(!other.to_string().is_empty(), "{text}");
            false
        }
    }
}

/// The tables of the reference, with the keys of each.
fn tables() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut tables = vec![("", vec![])];
    for line in REFERENCE.lines() {
        if let Some(heading) = line.strip_prefix("## `") {
            tables.push((heading.trim_end_matches('`'), vec![]));
        } else if let Some(rest) = line.strip_prefix("| `") {
            let key = rest.split('`').next().unwrap_or_default();
            let (_, keys) = tables.last_mut().expect("there is the top of the file");
            keys.push(key);
        }
    }
    tables
}

/// A file with some of all keys, and values that they may not expect.
fn written(rng: &mut Rng, tables: &[(&str, Vec<&str>)]) -> String {
    let mut text = String::new();
    for (table, keys) in tables {
        if rng.random_bool(0.5) {
            text.push_str(table);
            text.push('\n');
            for key in keys
                .iter()
                .filter(|_| rng.random_bool(0.4))
                .copied()
                .collect::<Vec<_>>()
            {
                text.push_str(&format!("{key} = {}\n", mutate::value(rng)));
            }
        }
    }
    text
}

#[test]
fn whatever_stands_in_a_token_file_admits_who_is_in_it_or_is_refused() {
    let dir = TempDir::new().unwrap();
    let (file, now) = (TokenFile::in_dir(dir.path()), SystemTime::now());
    let wanted = |role: Role| Wanted {
        name: format!("a test's {role}"),
        role,
        lifetime: Some(Duration::from_secs(600)),
    };
    let secrets = Role::ALL.map(|role| file.create(wanted(role), now).unwrap().1);
    let good = fs::read(file.path()).unwrap();
    let mut rng = rng();
    let (begun, mut read, mut taken) = (Instant::now(), 0, 0);
    while begun.elapsed() < length() / 2 {
        let mut bytes = good.clone();
        mutate::bytes(&mut rng, &mut bytes, b"\"revoked\": \"\", null 1e999 {}[]");
        fs::write(file.path(), bytes).unwrap();
        let tokens = file.load().unwrap_or_else(|refused| {
            assert!(!refused.to_string().is_empty());
            vec![]
        });
        taken += usize::from(!tokens.is_empty());
        let presented = secrets[read % secrets.len()].expose();
        let changed = mutate::text(&mut rng, presented);
        let admitted = verify(&tokens, &changed, now);
        // Only its own text is a token, whatever became of the file.
        assert!(admitted.is_err() || changed == presented, "{changed}");
        read += 1;
    }
    println!("{read} token files, {taken} of them read");
    assert!(taken > 0 && taken < read);
}
