//! Configurations of a sweep: all of a grid, or draws.

use std::collections::BTreeSet;

use blkpilot_env::Rng;
use rand::{RngExt as _, SeedableRng as _};
use toml::Value;

/// Draws that may come to nothing new, per configuration wanted.
const TRIES: usize = 100;
/// Longest name of a configuration that is made of its values.
const LONGEST_LABEL: usize = 120;

/// What differs between the configurations of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Key of the config, dotted.
    pub key: String,
    /// What it may be.
    pub range: Range,
}

/// What a parameter may be.
#[derive(Debug, Clone, PartialEq)]
pub enum Range {
    /// One of these.
    Values(Vec<Value>),
    /// A number in `[low, high]`.
    Floats {
        /// Least value.
        low: f64,
        /// Greatest value.
        high: f64,
        /// How draws are spread.
        scale: Scale,
    },
    /// A whole number in `[low, high]`.
    Integers {
        /// Least value.
        low: i64,
        /// Greatest value.
        high: i64,
        /// How draws are spread.
        scale: Scale,
    },
}

/// How draws of a range are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Evenly.
    Linear,
    /// Evenly in the logarithm: as many between 0.001 and 0.01 as between 0.01 and 0.1.
    Log,
}

/// One configuration: a value for each parameter, in their order.
pub type Choice = Vec<(String, Value)>;

impl Parameter {
    /// Whether it is drawn from a range; else its values are listed.
    #[must_use]
    pub fn is_range(&self) -> bool {
        !matches!(self.range, Range::Values(_))
    }
}

impl Range {
    /// What is wrong with it.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let (low, high, scale) = match *self {
            Self::Values(_) => return None,
            Self::Floats { low, high, scale } => (low, high, scale),
            Self::Integers { low, high, scale } => (low as f64, high as f64, scale),
        };
        if !(low.is_finite() && high.is_finite() && low < high) {
            return Some(format!("= [{low}, {high}] must be finite, with low < high"));
        }
        (scale == Scale::Log && low <= 0.0)
            .then(|| format!("= [{low}, {high}] must be > 0 for scale = \"log\""))
    }

    fn draw(&self, rng: &mut Rng) -> Value {
        match *self {
            Self::Values(ref values) => values[rng.random_range(0..values.len())].clone(),
            Self::Floats { low, high, scale } => {
                let drawn = spread(low, high, scale, rng.random());
                // What the name of a configuration says is what it is, so few digits.
                Value::Float(four_digits(drawn).clamp(low, high))
            }
            Self::Integers { low, high, scale } => {
                // Each whole number has the stretch of half a unit on both sides.
                let drawn = match scale {
                    Scale::Linear => rng.random_range(low..=high),
                    Scale::Log => {
                        let (least, greatest) = (low as f64 - 0.5, high as f64 + 0.5);
                        spread(least, greatest, scale, rng.random()).round() as i64
                    }
                };
                Value::Integer(drawn.clamp(low, high))
            }
        }
    }
}

fn spread(low: f64, high: f64, scale: Scale, share: f64) -> f64 {
    match scale {
        Scale::Linear => low + share * (high - low),
        Scale::Log => low * libm::pow(high / low, share),
    }
}

fn four_digits(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// All configurations of a grid, the last parameter changing fastest. Without parameters there is one.
#[must_use]
pub fn grid(parameters: &[Parameter]) -> Vec<Choice> {
    let mut choices: Vec<Choice> = vec![vec![]];
    for parameter in parameters {
        let Range::Values(values) = &parameter.range else {
            continue;
        };
        let with = |choice: &Choice, value: &Value| {
            let mut choice = choice.clone();
            choice.push((parameter.key.clone(), value.clone()));
            choice
        };
        choices = choices
            .iter()
            .flat_map(|choice| values.iter().map(|value| with(choice, value)))
            .collect();
    }
    choices
}

/// Number of configurations of a grid.
#[must_use]
pub fn grid_size(parameters: &[Parameter]) -> usize {
    let sizes = parameters.iter().map(|own| match &own.range {
        Range::Values(values) => values.len(),
        _ => 1,
    });
    sizes.fold(1, usize::saturating_mul)
}

/// Different configurations, drawn: the first of a longer list are those of a shorter one. Fewer than `samples` where
/// there are no more.
#[must_use]
pub fn draws(parameters: &[Parameter], samples: usize, seed: u64) -> Vec<Choice> {
    let mut rng = Rng::seed_from_u64(seed);
    let mut seen = BTreeSet::new();
    let mut choices = vec![];
    for _ in 0..samples.saturating_mul(TRIES) {
        if choices.len() == samples {
            break;
        }
        let draw = |own: &Parameter| (own.key.clone(), own.range.draw(&mut rng));
        let choice: Choice = parameters.iter().map(draw).collect();
        if seen.insert(label(&choice)) {
            choices.push(choice);
        }
    }
    choices
}

/// The name of a configuration, fit for a directory: `learning_rate=0.001,clip=0.2`.
#[must_use]
pub fn label(choice: &Choice) -> String {
    if choice.is_empty() {
        return "base".to_owned();
    }
    let last = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
    let is_clear = |key: &str| {
        choice
            .iter()
            .filter(|(other, _)| last(other) == last(key))
            .count()
            == 1
    };
    let parts = choice.iter().map(|(key, value)| {
        let name = if is_clear(key) {
            last(key)
        } else {
            key.clone()
        };
        format!("{name}={}", value_text(value))
    });
    let text = parts.collect::<Vec<_>>().join(",");
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-+=,".contains(c);
    let plain: String = text
        .chars()
        .map(|c| if is_plain(c) { c } else { '_' })
        .collect();
    if plain == text && plain.len() <= LONGEST_LABEL {
        return plain;
    }
    // Two that differ only in what a name cannot say must not share a directory.
    let hash = crc32c::crc32c(text.as_bytes());
    let short: String = plain.chars().take(LONGEST_LABEL).collect();
    format!("{short}-{hash:08x}")
}

/// A value as people write it.
#[must_use]
pub fn value_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Float(number) if *number != 0.0 && !(1e-3..1e6).contains(&number.abs()) => {
            format!("{number:e}")
        }
        Value::Array(values) => {
            let texts: Vec<String> = values.iter().map(value_text).collect();
            texts.join("-")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(key: &str, values: &[f64]) -> Parameter {
        Parameter {
            key: key.to_owned(),
            range: Range::Values(values.iter().map(|v| Value::Float(*v)).collect()),
        }
    }

    #[test]
    fn a_grid_has_every_combination_once() {
        let parameters = [
            values("t.clip", &[0.1, 0.2]),
            values("t.gamma", &[0.8, 0.9, 0.99]),
        ];
        let labels: Vec<String> = grid(&parameters).iter().map(label).collect();
        assert_eq!(labels.len(), grid_size(&parameters));
        assert_eq!(labels[0], "clip=0.1,gamma=0.8");
        assert_eq!(labels[5], "clip=0.2,gamma=0.99");
        let distinct: BTreeSet<&String> = labels.iter().collect();
        assert_eq!(distinct.len(), 6);
        assert_eq!(grid(&[]).iter().map(label).collect::<Vec<_>>(), ["base"]);
    }

    #[test]
    fn draws_stay_in_their_range_are_spread_by_their_scale_and_go_on_where_they_ended() {
        let parameters = [
            Parameter {
                key: "rate".to_owned(),
                range: Range::Floats {
                    low: 1e-4,
                    high: 1e-2,
                    scale: Scale::Log,
                },
            },
            Parameter {
                key: "epochs".to_owned(),
                range: Range::Integers {
                    low: 1,
                    high: 4,
                    scale: Scale::Log,
                },
            },
        ];
        let drawn = draws(&parameters, 400, 7);
        assert_eq!(drawn.len(), 400);
        let rates: Vec<f64> = drawn
            .iter()
            .map(|own| own[0].1.as_float().unwrap())
            .collect();
        assert!(rates.iter().all(|rate| (1e-4..=1e-2).contains(rate)));
        // Half of them below the geometric mean: 400 draws have a standard error of 2.5 %.
        let below = rates.iter().filter(|rate| **rate < 1e-3).count();
        assert!((160..240).contains(&below), "{below}");
        let epochs: BTreeSet<i64> = drawn
            .iter()
            .map(|own| own[1].1.as_integer().unwrap())
            .collect();
        assert_eq!(epochs, BTreeSet::from([1, 2, 3, 4]));
        assert_eq!(draws(&parameters, 10, 7), drawn[..10]);
        assert_ne!(draws(&parameters, 10, 8), drawn[..10]);
    }

    #[test]
    fn no_configuration_is_drawn_twice() {
        let parameters = [values("a", &[1.0, 2.0, 3.0])];
        assert_eq!(draws(&parameters, 10, 1).len(), 3);
    }

    #[test]
    fn names_tell_configurations_apart() {
        let choice = |key: &str, value: Value| vec![(key.to_owned(), value)];
        let scenario = |name: &str| {
            label(&choice(
                "environment.scenario",
                Value::String(name.to_owned()),
            ))
        };
        assert_eq!(scenario("mixed"), "scenario=mixed");
        assert_ne!(scenario("a/b.toml"), scenario("a_b.toml"));
        assert!(!scenario("../x/y.toml").contains('/'));
        let both = vec![
            ("a.low".to_owned(), Value::Integer(1)),
            ("b.low".to_owned(), Value::Integer(2)),
        ];
        assert_eq!(label(&both), "a.low=1,b.low=2");
        assert_eq!(label(&choice("t.rate", Value::Float(3e-5))), "rate=3e-5");
    }
}
