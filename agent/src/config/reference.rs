//! The reference of the configuration, docs/config.md, from the table of keys.

use std::fmt::Write as _;

use toml::Value;

use super::keys::{Fallback, Key, Kind, Reload, TABLES, Table, Times};

const HEAD: &str = "\
# The configuration

Every key of the file that `blkpilot serve --config FILE` reads, in TOML. Made by `blkpilot config reference` from the
table by which the file is checked; not edited by hand. Examples: `agent/configs`. `blkpilot serve --check` names every
problem of a file at once, and `blkpilot doctor` looks at more.

**Reload**: *yes* takes effect with SIGHUP (`systemctl reload blkpilot`), *restart* with the next start of the service.
Times are strings such as `\"250ms\"`, `\"30s\"`, `\"10m\"`, `\"90d\"`. What is not known is refused.
";

/// The reference as Markdown.
#[must_use]
pub fn markdown() -> String {
    let tables = TABLES.iter().map(|table| section(table));
    HEAD.to_owned() + &tables.collect::<String>()
}

fn section(table: &Table) -> String {
    let heading = match (table.path, table.times) {
        ("", _) => "The top of the file".to_owned(),
        (path, Times::Once) => format!("`[{path}]`"),
        (path, Times::Each) => format!("`[[{path}]]`"),
    };
    let mut text = format!("\n## {heading}\n\n");
    if !table.meaning.is_empty() {
        let _ = writeln!(text, "{}\n", table.meaning);
    }
    text += "| key | what | unit | range | default | reload |\n|---|---|---|---|---|---|\n";
    table
        .keys
        .iter()
        .fold(text, |text, key| text + &row(key) + "\n")
}

fn row(key: &Key) -> String {
    let Key {
        name,
        kind,
        default,
        reload,
        meaning,
    } = key;
    let reload = match (kind, reload) {
        (Kind::Nested, _) => "–",
        (_, Reload::AtOnce) => "yes",
        (_, Reload::Restart) => "restart",
    };
    let (unit, range) = (unit(kind), range(kind));
    let default = fallback(default);
    format!("| `{name}` | {meaning} | {unit} | {range} | {default} | {reload} |")
}

fn unit(kind: &Kind) -> &'static str {
    match kind {
        Kind::Integer { unit, .. } | Kind::Number { unit, .. } | Kind::Positive { unit } => unit,
        Kind::Span { .. } => "time",
        Kind::Text(_) | Kind::Flag | Kind::Choice(_) | Kind::Choices(_) | Kind::Nested => "–",
    }
}

fn range(kind: &Kind) -> String {
    let quoted = |names: Vec<&str>| names.join("`, `");
    match kind {
        Kind::Text(wanted) => (*wanted).to_owned(),
        Kind::Flag => "`true`, `false`".to_owned(),
        Kind::Choice(names) => format!("`{}`", quoted(names())),
        Kind::Choices(names) => format!("a list of `{}`", quoted(names())),
        Kind::Nested => "a table".to_owned(),
        Kind::Integer { .. } => format!("whole, {}", kind.range().unwrap_or_default()),
        Kind::Number { .. } | Kind::Positive { .. } | Kind::Span { .. } => {
            kind.range().unwrap_or_default()
        }
    }
}

fn fallback(default: &Fallback) -> String {
    match default {
        Fallback::Required => "**required**".to_owned(),
        Fallback::Is(value) => match value() {
            Value::Float(number) => format!("`{number:?}`"),
            value => format!("`{value}`"),
        },
        Fallback::Absent(meaning) => (*meaning).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_in_docs_is_that_of_the_keys() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/config.md");
        let committed = std::fs::read_to_string(file).unwrap();
        assert!(
            committed == markdown(),
            "docs/config.md is stale: write it by `cargo run -p blkpilot-agent -- config reference > docs/config.md`"
        );
    }
}
