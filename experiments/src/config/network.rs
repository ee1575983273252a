//! Kind and sizes of the network: `[network]`.

use blkpilot_models::Architecture;
use serde::Deserialize;
use toml::Table;

use super::check::Check;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawNetwork {
    hidden: Option<usize>,
    channel_hidden: Option<usize>,
}

pub(super) fn architecture(table: Table, check: &mut Check) -> Architecture {
    let raw: RawNetwork = check.read("network", table);
    let default = Architecture::default();
    let is_width = |width: usize| (1..=Architecture::WIDEST).contains(&width);
    let wanted = format!("must be in [1, {}]", Architecture::WIDEST);
    check.that("network.hidden", raw.hidden, is_width, &wanted);
    check.that(
        "network.channel_hidden",
        raw.channel_hidden,
        is_width,
        &wanted,
    );
    Architecture {
        hidden: raw.hidden.unwrap_or(default.hidden),
        channel_hidden: raw.channel_hidden.unwrap_or(default.channel_hidden),
        ..default
    }
}
