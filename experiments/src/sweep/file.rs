//! A sweep as it is written down.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::parameters::{Parameter, Range, Scale};
use crate::config::{ConfigError, Problem};

/// Version of the format that this build reads.
pub const VERSION: i64 = 1;
/// Most runs of one sweep.
pub const MOST_RUNS: usize = 10_000;

/// A sweep file that holds together; its configurations are not yet looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct SweepFile {
    /// The file's name without its ending.
    pub name: String,
    /// The config that each run starts from.
    pub config: PathBuf,
    /// Seeds of each configuration.
    pub seeds: Vec<u64>,
    /// What differs between configurations.
    pub parameters: Vec<Parameter>,
    /// Configurations to draw; without it, all there are.
    pub samples: Option<usize>,
    /// Seed of the draw.
    pub seed: u64,
}

impl SweepFile {
    /// Reads a sweep file. The path of its config starts at the file's directory.
    ///
    /// # Errors
    /// `Read`, `Syntax`, or `Invalid` with everything that is wrong.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Read {
            file: file.to_owned(),
            source,
        })?;
        Self::parse(file, &text)
    }

    /// As [`SweepFile::load`], of a text that was read from `file`.
    ///
    /// # Errors
    /// `Syntax`, `Invalid`.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let table: Table = text
            .parse()
            .map_err(|error: toml::de::Error| ConfigError::Syntax {
                file: file.to_owned(),
                message: error.to_string().trim_end().to_owned(),
            })?;
        let mut reader = Reader::default();
        let sweep = reader.sweep(file, table);
        match sweep {
            Some(sweep) if reader.problems.is_empty() => Ok(sweep),
            _ => Err(ConfigError::Invalid {
                file: file.to_owned(),
                problems: reader.problems,
            }),
        }
    }
}

/// Reads, and collects what is wrong.
#[derive(Default)]
struct Reader {
    problems: Vec<Problem>,
}

impl Reader {
    fn problem(&mut self, path: &str, text: impl Into<String>) {
        self.problems.push(Problem {
            path: path.to_owned(),
            text: text.into(),
        });
    }

    /// Says what is wrong with a value that is there.
    fn wrong<T>(&mut self, path: &str, value: &Value, wanted: &str) -> Option<T> {
        self.problem(path, format!("= {value} must be {wanted}"));
        None
    }

    fn sweep(&mut self, file: &Path, mut table: Table) -> Option<SweepFile> {
        match table.remove("version") {
            Some(Value::Integer(VERSION)) => {}
            Some(other) => self.problem("version", format!("= {other} must be {VERSION}")),
            None => self.problem("version", format!("is missing: version = {VERSION}")),
        }
        let config = match table.remove("config") {
            Some(Value::String(name)) => Some(file.parent().unwrap_or(Path::new("")).join(name)),
            Some(other) => self.wrong("config", &other, "the path of a config"),
            None => {
                self.problem("config", "is missing: the config that each run starts from");
                None
            }
        };
        let seeds = self.seeds(table.remove("seeds"));
        let samples = table.remove("samples");
        let samples = samples.and_then(|value| match value {
            Value::Integer(count @ 1..) => usize::try_from(count).ok(),
            other => self.wrong("samples", &other, "a number of configurations, at least 1"),
        });
        let seed = match table.remove("seed") {
            None => Some(0),
            Some(Value::Integer(seed @ 0..)) => Some(seed.cast_unsigned()),
            Some(other) => self.wrong("seed", &other, "a whole number, at least 0"),
        };
        let parameters = match table.remove("parameters") {
            None => vec![],
            Some(Value::Table(found)) => self.parameters("", found),
            Some(other) => self
                .wrong("parameters", &other, "a table of parameters")
                .unwrap_or_default(),
        };
        for key in table.keys() {
            self.problem(
                key,
                "is unknown: expected one of version, config, seeds, samples, seed, parameters",
            );
        }
        if samples.is_some() && parameters.is_empty() {
            self.problem(
                "samples",
                "draws parameters, and there are none: add [parameters]",
            );
        }
        if samples.is_none() {
            for parameter in parameters.iter().filter(|own| own.is_range()) {
                self.problem(
                    &format!("parameters.{}", parameter.key),
                    "is a range: say how many configurations to draw with `samples`, or give `values`",
                );
            }
        }
        Some(SweepFile {
            name: file.file_stem()?.to_string_lossy().into_owned(),
            config: config?,
            seeds: seeds?,
            parameters,
            samples,
            seed: seed?,
        })
    }

    fn seeds(&mut self, value: Option<Value>) -> Option<Vec<u64>> {
        let wanted = "a list of different seeds, or how many to take from 1 on";
        match value {
            None => Some(vec![1]),
            Some(Value::Integer(count)) if (1..=MOST_RUNS as i64).contains(&count) => {
                Some((1..=count.cast_unsigned()).collect())
            }
            Some(Value::Array(list)) => {
                let seeds = list.iter().map(|seed| match seed {
                    Value::Integer(seed @ 0..) => Some(seed.cast_unsigned()),
                    _ => None,
                });
                let seeds: Option<Vec<u64>> = seeds.collect();
                let is_good = |seeds: &Vec<u64>| {
                    let distinct: std::collections::BTreeSet<&u64> = seeds.iter().collect();
                    !seeds.is_empty() && distinct.len() == seeds.len()
                };
                match seeds.filter(is_good) {
                    Some(seeds) => Some(seeds),
                    None => self.wrong("seeds", &Value::Array(list), wanted),
                }
            }
            Some(other) => self.wrong("seeds", &other, wanted),
        }
    }

    /// Tables are gone into, until one says what to take: `"training.clip" = {…}` and `training.clip = {…}` are one.
    fn parameters(&mut self, above: &str, table: Table) -> Vec<Parameter> {
        let mut found = vec![];
        for (key, value) in table {
            let key = match above {
                "" => key,
                above => format!("{above}.{key}"),
            };
            match value {
                Value::Table(inner) if says_what(&inner) => {
                    found.extend(
                        self.range(&key, &inner)
                            .map(|range| Parameter { key, range }),
                    );
                }
                Value::Table(inner) => found.extend(self.parameters(&key, inner)),
                other => self
                    .wrong(
                        &format!("parameters.{key}"),
                        &other,
                        "{ values = […] }, or { low = …, high = …, scale = \"log\" }",
                    )
                    .unwrap_or(()),
            }
        }
        found
    }

    fn range(&mut self, key: &str, table: &Table) -> Option<Range> {
        let path = format!("parameters.{key}");
        if let Some(values) = table.get("values") {
            for other in table.keys().filter(|key| *key != "values") {
                self.problem(
                    &path,
                    format!("has `{other}` beside `values`: keep one of them"),
                );
            }
            return match values {
                Value::Array(values) if !values.is_empty() => Some(Range::Values(values.clone())),
                other => self.wrong(
                    &format!("{path}.values"),
                    other,
                    "a list with a value in it",
                ),
            };
        }
        for other in table
            .keys()
            .filter(|key| !["low", "high", "scale"].contains(&key.as_str()))
        {
            self.problem(
                &path,
                format!("has an unknown key `{other}`: values, or low, high and scale"),
            );
        }
        let scale = match table.get("scale") {
            None => Scale::Linear,
            Some(Value::String(name)) if name == "linear" => Scale::Linear,
            Some(Value::String(name)) if name == "log" => Scale::Log,
            Some(other) => {
                return self.wrong(&format!("{path}.scale"), other, "\"linear\" or \"log\"");
            }
        };
        let range = match (table.get("low"), table.get("high")) {
            (Some(Value::Integer(low)), Some(Value::Integer(high))) => Range::Integers {
                low: *low,
                high: *high,
                scale,
            },
            (Some(low), Some(high)) => match (number(low), number(high)) {
                (Some(low), Some(high)) => Range::Floats { low, high, scale },
                _ => return self.wrong(&path, &Value::Table(table.clone()), "a range of numbers"),
            },
            _ => {
                self.problem(&path, "needs both `low` and `high`");
                return None;
            }
        };
        if let Some(problem) = range.problem() {
            self.problem(&path, problem);
            return None;
        }
        Some(range)
    }
}

fn says_what(table: &Table) -> bool {
    ["values", "low", "high", "scale"]
        .iter()
        .any(|key| table.get(*key).is_some_and(|value| !value.is_table()))
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Integer(value) => Some(*value as f64),
        Value::Float(value) => Some(*value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SweepFile, String> {
        SweepFile::parse(Path::new("sweeps/s.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_left_out_has_a_default_and_dotted_keys_are_tables() {
        let sweep = parse("version = 1\nconfig = \"../c.toml\"\nseeds = 3\n").unwrap();
        assert_eq!(sweep.seeds, [1, 2, 3]);
        assert_eq!(sweep.config, Path::new("sweeps/../c.toml"));
        assert_eq!((sweep.name.as_str(), sweep.parameters.len()), ("s", 0));
        let text = "version = 1\nconfig = \"c.toml\"\nseeds = [4, 9]\nsamples = 2\n[parameters]\n\
                    training.clip = { values = [0.1, 0.2] }\n\
                    \"training.epochs\" = { low = 1, high = 8 }\n\
                    [parameters.training.learning_rate]\nlow = 1e-4\nhigh = 1\nscale = \"log\"\n";
        let sweep = parse(text).unwrap();
        let range = |key: &str| {
            &sweep
                .parameters
                .iter()
                .find(|own| own.key == key)
                .unwrap()
                .range
        };
        assert!(matches!(range("training.clip"), Range::Values(values) if values.len() == 2));
        assert!(matches!(
            range("training.epochs"),
            Range::Integers {
                low: 1,
                high: 8,
                ..
            }
        ));
        let rate = Range::Floats {
            low: 1e-4,
            high: 1.0,
            scale: Scale::Log,
        };
        assert_eq!(range("training.learning_rate"), &rate);
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let text = "version = 2\nconfig = 7\nseeds = [1, 1]\ncolour = 3\n[parameters]\n\
                    a.clip = 0.1\na.x = { values = [] }\na.y = { low = 2, high = 1 }\n\
                    a.z = { low = 0.0, high = 1.0, scale = \"log\" }\na.w = { low = 1 }\n\
                    a.v = { values = [1], low = 3 }\n";
        let error = parse(text).unwrap_err();
        for wanted in [
            "version = 2 must be 1",
            "config = 7 must be",
            "seeds = [1, 1] must be",
            "colour is unknown",
            "parameters.a.clip = 0.1 must be",
            "parameters.a.x.values = [] must be",
            "parameters.a.y ",
            "parameters.a.z ",
            "parameters.a.w needs both",
            "parameters.a.v has `low` beside `values`",
        ] {
            let lines = error.lines().filter(|line| line.contains(wanted));
            assert_eq!(lines.count(), 1, "`{wanted}` in {error}");
        }
        assert!(
            error
                .lines()
                .all(|line| line.starts_with("sweeps/s.toml: "))
        );
    }

    #[test]
    fn a_range_needs_a_number_of_samples() {
        let text = "version = 1\nconfig = \"c.toml\"\n[parameters]\na.b = { low = 1, high = 2 }\n";
        assert!(
            parse(text)
                .unwrap_err()
                .contains("parameters.a.b is a range")
        );
        let none = parse("version = 1\nconfig = \"c.toml\"\nsamples = 3\n").unwrap_err();
        assert!(none.contains("samples draws parameters"), "{none}");
    }
}
