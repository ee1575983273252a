//! `blkpilot weights`.

use blkpilot_proto::v1;
use clap::Args;
use serde_json::json;

use super::commands::Session;
use super::json::Json;
use super::output::print;
use super::{CliError, ClientArgs};

pub(super) const HELP: &str = "\
The weights are those of what a decision costs beside the performance loss of the disks, whose weight is 1. A
policy sees them; one that was trained under many (environment.reward_ranges) follows at once. They hold until
the service ends; [reward] of its configuration says what holds then.

  cpu         CPU of the IOThread per request             0 to 1
  page_cache  host memory that caches the disk            0 to 1
  writeback   writes accepted but not yet on the device   0 to 1
  change      one changed setting                         0 to 1
  slo         p99 latency above the objective             0 to 1
  slo_p99_us  the objective, microseconds, or `none`

Examples:
  blkpilot weights
  blkpilot weights cpu=0.5 page_cache=0.1
  blkpilot weights slo=1 slo_p99_us=2000";

#[derive(Debug, Args)]
pub(super) struct WeightsArgs {
    /// Weights to set; without any, those in force are shown
    #[arg(value_name = "NAME=VALUE", value_parser = weight)]
    weights: Vec<(Name, f64)>,
    /// Check and say what would hold, change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Clone, Copy)]
enum Name {
    Cpu,
    PageCache,
    Writeback,
    Change,
    Slo,
    Objective,
}

const NAMES: [(&str, Name); 6] = [
    ("cpu", Name::Cpu),
    ("page_cache", Name::PageCache),
    ("writeback", Name::Writeback),
    ("change", Name::Change),
    ("slo", Name::Slo),
    ("slo_p99_us", Name::Objective),
];

fn weight(text: &str) -> Result<(Name, f64), String> {
    let known = || NAMES.map(|(name, _)| name).join(", ");
    let (key, value) = text
        .split_once('=')
        .ok_or("write NAME=VALUE, such as cpu=0.5")?;
    let (_, name) = NAMES
        .into_iter()
        .find(|(name, _)| *name == key)
        .ok_or_else(|| format!("{key} is not one of {}", known()))?;
    let value = match (name, value) {
        (Name::Objective, "none") => 0.0,
        _ => value
            .parse()
            .map_err(|_| format!("{key} = {value} must be a number"))?,
    };
    Ok((name, value))
}

pub(super) async fn run(args: &WeightsArgs) -> Result<(), CliError> {
    let mut session = Session::open(&args.client).await?;
    let mut weights = v1::RewardWeights::default();
    for (name, value) in &args.weights {
        let slot = match name {
            Name::Cpu => &mut weights.cpu,
            Name::PageCache => &mut weights.page_cache,
            Name::Writeback => &mut weights.writeback,
            Name::Change => &mut weights.change,
            Name::Slo => &mut weights.slo,
            Name::Objective => &mut weights.slo_p99_us,
        };
        *slot = Some(*value);
    }
    let request = v1::SetRewardWeightsRequest {
        name: format!("hosts/{}", session.host),
        weights: Some(weights),
        validate_only: args.dry_run || args.weights.is_empty(),
    };
    let answer = session
        .client
        .set_reward_weights(request)
        .await?
        .into_inner();
    let weights = answer.weights.unwrap_or_default();
    if args.client.json {
        let json = Json::new().value("RewardWeights", &weights);
        return print(format_args!(
            "{:#}",
            json!({ "weights": json, "dry_run": args.dry_run })
        ));
    }
    print(text(&weights))
}

fn text(weights: &v1::RewardWeights) -> String {
    let number = |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |v| v.to_string());
    let values = [
        weights.cpu,
        weights.page_cache,
        weights.writeback,
        weights.change,
        weights.slo,
        weights.slo_p99_us,
    ];
    let named = NAMES.iter().zip(values);
    let lines = named.map(|((name, _), value)| format!("{name:<11} {}", number(value)));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_that_is_not_known_or_no_number_is_named_with_those_there_are() {
        assert!(matches!(weight("cpu=0.5"), Ok((Name::Cpu, value)) if value == 0.5));
        assert!(matches!(weight("slo_p99_us=none"), Ok((Name::Objective, value)) if value == 0.0));
        let wrong = |text: &str| weight(text).unwrap_err();
        assert!(wrong("latency=1").contains("not one of cpu, page_cache"));
        assert_eq!(wrong("cpu=much"), "cpu = much must be a number");
        assert_eq!(wrong("cpu=none"), "cpu = none must be a number");
        assert!(wrong("cpu").contains("NAME=VALUE"));
    }
}
