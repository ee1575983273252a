//! `blkpilot unfreeze`.

use blkpilot_proto::v1;
use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::json;

use super::commands::Session;
use super::json::Json;
use super::output::print;
use super::{CliError, ClientArgs};
use crate::config::mode::Knob;
use crate::wire::names::{Row, guest_name};

#[derive(Debug, Args)]
pub(super) struct UnfreezeArgs {
    /// The guest, or one of its disks: GUEST or GUEST/DISK, such as db/vda
    #[arg(value_name = "GUEST[/DISK]")]
    what: String,
    /// Only this knob; without it all that are frozen
    #[arg(long, value_name = "KNOB", value_parser = PossibleValuesParser::new(Knob::ALL.map(Knob::name)))]
    knob: Option<String>,
    /// Say what would be unfrozen, change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(args: &UnfreezeArgs) -> Result<(), CliError> {
    let mut session = Session::open(&args.client).await?;
    let name = if args.what.contains('/') {
        Row::of_disk_id(&args.what).name(&session.host)
    } else {
        guest_name(&session.host, &args.what)
    };
    let request = v1::UnfreezeRequest {
        name,
        head: args.knob.clone().unwrap_or_default(),
        validate_only: args.dry_run,
    };
    let answer = session.client.unfreeze(request).await?.into_inner();
    if args.client.json {
        let json = Json::new();
        let knobs: Vec<_> = answer
            .knobs
            .iter()
            .map(|knob| json.value("FrozenKnob", knob))
            .collect();
        print(format_args!(
            "{:#}",
            json!({ "knobs": knobs, "dry_run": args.dry_run })
        ))?;
        return Ok(());
    }
    if answer.knobs.is_empty() {
        print(format_args!("nothing of {} is frozen", args.what))?;
    }
    for knob in &answer.knobs {
        print(line(&args.what, knob, args.dry_run))?;
    }
    Ok(())
}

fn line(what: &str, knob: &v1::FrozenKnob, is_dry_run: bool) -> String {
    let v1::FrozenKnob {
        original,
        set,
        found,
        ..
    } = knob;
    let guest = Row::of_disk_id(what);
    let guest = match &guest {
        Row::Disk { guest, .. } if what.contains('/') => guest,
        _ => what,
    };
    let (may, stays, is) = if is_dry_run {
        ("could be tuned again", "would stay", "would be")
    } else {
        ("may be tuned again", "stays", "is")
    };
    format!(
        "guest {guest}: {}: {may}; {found}, which somebody else set, {stays} and {is} its original now (blkpilot had set {set}; before that it was {original})",
        knob.knob
    )
}
