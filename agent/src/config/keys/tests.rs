use std::path::Path;

use super::*;
use crate::config::{Config, ConfigError};

const LIBVIRT: &str = "kind = \"libvirt\"\non_exit = \"keep\"\n";
const SIMULATED: &str = "kind = \"simulated\"\nscenario = \"mixed\"\n";

/// A file in which a table has these lines, with what the table needs around it.
fn file(table: &Table, lines: &str) -> String {
    let is_simulated = table.keys.iter().any(|key| key.name == "scenario");
    let host = if is_simulated { SIMULATED } else { LIBVIRT };
    let with = |path: &str, needed: &str| {
        let own = if table.path == path { lines } else { "" };
        // What is written stands in place of what is needed.
        let is_given = |needed: &&str| {
            let name = needed.split(" =").next().unwrap_or_default();
            !own.lines()
                .any(|line| line.starts_with(&format!("{name} =")))
        };
        let needed: String = needed
            .lines()
            .filter(is_given)
            .map(|line| format!("{line}\n"))
            .collect();
        needed + own
    };
    let mut text = with("", "version = 1");
    text += &format!("\n[host]\n{}", with("host", host));
    text += &format!("\n[service]\n{}", with("service", "data_dir = \"d\""));
    let policy = if lines.starts_with("selection") {
        "checkpoint = \"p\""
    } else if ["alpha", "ridge", "memory"]
        .iter()
        .any(|key| lines.starts_with(key))
    {
        "bandit = \"linucb\""
    } else if lines.starts_with("scale") {
        "bandit = \"thompson\""
    } else {
        "baseline = \"random\""
    };
    // Two bandits of one kind would learn into one file.
    let production = match table.path {
        "candidate" => "baseline = \"random\"",
        _ => policy,
    };
    text += &format!("\n[policy]\n{}", with("policy", production));
    let nested = match table.path {
        "" | "host" | "service" | "policy" => return text,
        "candidate" => format!("[candidate]\n{}", with("candidate", policy)),
        "guest" => format!("[[guest]]\n{}", with("guest", "name = \"g\"")),
        "guest.exploration" => format!(
            "[[guest]]\nname = \"g\"\n[guest.exploration]\n{}",
            with("guest.exploration", "epsilon = 0.1\nchanges_per_hour = 1")
        ),
        "host.channel" => {
            let needed = "name = \"c\"\ncpus = \"0\"";
            format!("[[host.channel]]\n{}", with("host.channel", needed))
        }
        "host.device" => {
            let needed = "match = \"sda\"\nknobs = []";
            format!("[[host.device]]\n{}", with("host.device", needed))
        }
        "service.socket.caller" => {
            let needed = "uid = 1\nrole = \"observer\"";
            format!(
                "[[service.socket.caller]]\n{}",
                with("service.socket.caller", needed)
            )
        }
        "service.tls.client" => {
            let needed = "common_name = \"n\"\nrole = \"observer\"";
            format!(
                "[[service.tls.client]]\n{}",
                with("service.tls.client", needed)
            )
        }
        path => format!("[{path}]\n{lines}"),
    };
    format!("{text}\n{nested}")
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("/d/x.toml"), text)
}

/// Whether the file is refused for this key.
fn is_refused(table: &Table, key: &Key, value: &str) -> bool {
    let text = file(table, &format!("{} = {value}\n", key.name));
    match parse(&text) {
        Ok(_) => false,
        Err(ConfigError::Invalid { problems, .. }) => {
            let named = |path: &str| find(path).is_some_and(|found| std::ptr::eq(found, key));
            // Of a key that hangs on another, the other half is not what is asked here.
            problems.iter().any(|p| {
                named(&p.path) && !p.text.contains("longest_retry") && !p.text.contains("twice")
            })
        }
        Err(other) => panic!("{other}\n{text}"),
    }
}

fn every_key() -> impl Iterator<Item = (&'static Table, &'static Key)> {
    let keys = |table: &'static &'static Table| table.keys.iter().map(|key| (*table, key));
    TABLES.iter().flat_map(keys)
}

#[test]
fn a_key_is_found_by_its_path_whichever_of_several_tables_it_stands_in() {
    assert_eq!(
        find("guest[2].exploration.epsilon").unwrap().name,
        "epsilon"
    );
    assert_eq!(find("host.channel[0].cpus").unwrap().name, "cpus");
    assert_eq!(find("version").unwrap().name, "version");
    assert!(find("guest.colour").is_none());
}

#[test]
fn every_key_is_described_once() {
    let mut seen = std::collections::BTreeSet::new();
    for (table, key) in every_key() {
        assert!(
            seen.insert((table.path, key.name)),
            "{}.{}",
            table.path,
            key.name
        );
    }
}

#[test]
fn a_default_that_is_written_down_changes_nothing() {
    let mut written = 0;
    for (table, key) in every_key() {
        let Fallback::Is(default) = &key.default else {
            continue;
        };
        let given = parse(&file(table, &format!("{} = {}\n", key.name, default())));
        let name = format!("{}.{}", table.path, key.name);
        let given = given.unwrap_or_else(|e| panic!("{name}: {e}"));
        // The line is not there, but what it needs is.
        let absent = file(table, &format!("{} = 0\n", key.name));
        let absent = absent.replace(&format!("{} = 0\n", key.name), "");
        assert_eq!(given, parse(&absent).unwrap(), "{name}");
        written += 1;
    }
    assert!(written > 40, "{written}");
}

/// Values at the ends of a range, and beyond them.
fn ends(kind: &Kind) -> (Vec<String>, Vec<String>) {
    let quoted = |span: Duration| format!("\"{}\"", humantime::format_duration(span));
    match kind {
        Kind::Integer { least, most, .. } => {
            let mut beyond: Vec<String> = (*most < i64::MAX as u64)
                .then(|| (most + 1).to_string())
                .into_iter()
                .collect();
            beyond.extend(least.checked_sub(1).map(|below| below.to_string()));
            (vec![least.to_string(), most.to_string()], beyond)
        }
        Kind::Number { least, most, .. } => (
            vec![format!("{least:?}"), format!("{most:?}")],
            vec![
                format!("{:?}", least - 1e-3),
                format!("{:?}", most * 1.001),
                "nan".to_owned(),
            ],
        ),
        Kind::Positive { .. } => (
            vec!["0.001".to_owned(), "1e9".to_owned()],
            ["0", "-1", "inf", "nan"].map(str::to_owned).to_vec(),
        ),
        Kind::Span { least, most } => {
            let mut beyond: Vec<String> = (*most < LONGEST)
                .then(|| quoted(*most + Duration::from_secs(1)))
                .into_iter()
                .collect();
            beyond.extend(least.checked_sub(Duration::from_nanos(1)).map(quoted));
            let within = if *most < LONGEST { *most } else { *least * 2 };
            (vec![quoted(*least), quoted(within)], beyond)
        }
        _ => (vec![], vec!["\"nonsense\"".to_owned()]),
    }
}

#[test]
fn the_ends_of_every_range_are_taken_and_what_lies_beyond_is_refused() {
    let mut refused = 0;
    for (table, key) in every_key() {
        let is_free = matches!(key.kind, Kind::Text(_) | Kind::Flag | Kind::Nested);
        if is_free {
            continue;
        }
        let (within, beyond) = ends(&key.kind);
        for value in within {
            let name = format!("{}.{} = {value}", table.path, key.name);
            assert!(!is_refused(table, key, &value), "{name} is refused");
        }
        for value in beyond {
            let name = format!("{}.{} = {value}", table.path, key.name);
            assert!(is_refused(table, key, &value), "{name} is taken");
            refused += 1;
        }
    }
    assert!(refused > 60, "{refused}");
}
