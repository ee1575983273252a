//! `blkpilot advise`: what the service would change now, and what only a next boot can bring.

mod json;
mod live;
mod text;

use std::time::Duration;

use blkpilot_host::Libvirt;
use blkpilot_host::advice::{self, Advice, Edit, Subject, Survey};
use clap::Args;

use self::live::Live;
use super::output::print;
use super::{CliError, ClientArgs, parse_seconds};

/// The example stands in the help text, so that it is found where it is needed.
pub(super) const EXAMPLES: &str = "\
Examples:
  blkpilot advise                                   about all guests of qemu:///system
  blkpilot advise --xml web | virsh define /dev/stdin
                                                    follow all that a definition can
  blkpilot advise --xml web --take ID | virsh define /dev/stdin
                                                    follow this one; the next start brings it";

#[derive(Debug, Args)]
pub(super) struct AdviseArgs {
    /// Only these guests
    #[arg(value_name = "GUEST")]
    guests: Vec<String>,
    /// The libvirt connection; it is opened read-only, but for --xml
    #[arg(
        long,
        value_name = "URI",
        env = "LIBVIRT_DEFAULT_URI",
        default_value = "qemu:///system"
    )]
    libvirt: String,
    /// How long running guests are measured, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_seconds)]
    interval: Duration,
    /// Print this guest's definition with the advice followed, for `virsh define`, and nothing else.
    /// Passwords in it are printed too
    #[arg(long, value_name = "GUEST", conflicts_with_all = ["guests", "json"])]
    xml: Option<String>,
    /// With --xml: follow only the advice with this id; repeatable
    #[arg(long, value_name = "ID", requires = "xml")]
    take: Vec<String>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(args: AdviseArgs) -> Result<(), CliError> {
    let (uri, interval) = (args.libvirt.clone(), args.interval);
    let surveying = tokio::task::spawn_blocking(move || advice::survey(&uri, interval));
    let survey = surveying.await.map_err(|error| panicked(&error))??;
    let advice = advice::advise(&survey.guests, &survey.host);
    if let Some(guest) = args.xml.clone() {
        let guest = find(&survey, &guest, &args.libvirt)?;
        let edits = edits(guest, &advice, &args.take)?;
        let (uri, uuid) = (args.libvirt.clone(), guest.guest.uuid.clone());
        // With what the read-only connection keeps back, or a definition would lose it.
        let whole = move || Libvirt::connect(&uri)?.whole_definition(&uuid);
        let reading = tokio::task::spawn_blocking(whole);
        let whole = reading.await.map_err(|error| panicked(&error))??;
        let xml = advice::patched(&whole, edits)?;
        return print(xml.trim_end());
    }
    let advice = about(&survey, advice, &args)?;
    let live = Live::ask(&args.client, &survey.guests, &args.guests).await?;
    let report = Report {
        uri: &args.libvirt,
        live: &live,
        advice: &advice,
        survey: &survey,
    };
    if args.client.json {
        print(format_args!("{:#}", json::report(&report)?))
    } else {
        print(text::report(&report)?)
    }
}

/// All that is printed.
struct Report<'a> {
    uri: &'a str,
    live: &'a Live,
    advice: &'a [Advice],
    survey: &'a Survey,
}

impl Report<'_> {
    /// The change of a guest's definition that an advice alone makes, if it makes one.
    fn diff(&self, advice: &Advice) -> Result<Option<String>, CliError> {
        let owner = advice.guest.as_ref();
        let guest = owner.and_then(|owner| by_uuid(&self.survey.guests, &owner.uuid));
        let (Some(guest), Some(edit)) = (guest, advice.edit()) else {
            return Ok(None);
        };
        let after = edit.apply(&guest.xml)?;
        Ok(Some(advice::diff(&guest.guest.name, &guest.xml, &after)))
    }
}

fn panicked(error: &tokio::task::JoinError) -> CliError {
    CliError::Failed(format!("the survey panicked: {error}"))
}

fn by_uuid<'a>(guests: &'a [Subject], uuid: &str) -> Option<&'a Subject> {
    guests.iter().find(|guest| guest.guest.uuid == uuid)
}

fn find<'a>(survey: &'a Survey, name: &str, uri: &str) -> Result<&'a Subject, CliError> {
    if let Some(guest) = survey.guests.iter().find(|guest| guest.guest.name == name) {
        return Ok(guest);
    }
    let unreadable = survey.unreadable.iter().find(|(known, _)| known == name);
    Err(CliError::Failed(match unreadable {
        Some((_, problem)) => format!("guest {name}: {problem}"),
        None => {
            format!("libvirt at {uri} has no guest {name}: `virsh list --all` names those it has")
        }
    }))
}

/// The changes of a guest's definition that were asked for: all that are possible, or the named ones.
fn edits<'a>(
    guest: &Subject,
    advice: &'a [Advice],
    take: &[String],
) -> Result<Vec<&'a Edit>, CliError> {
    let is_about = |advice: &&Advice| {
        let owner = advice.guest.as_ref();
        owner.is_some_and(|owner| owner.uuid == guest.guest.uuid)
    };
    let possible: Vec<&Advice> = advice
        .iter()
        .filter(is_about)
        .filter(|advice| advice.edit().is_some())
        .collect();
    let unknown: Vec<&str> = take
        .iter()
        .map(String::as_str)
        .filter(|id| !possible.iter().any(|advice| advice.id == *id))
        .collect();
    if !unknown.is_empty() {
        let ids: Vec<&str> = possible.iter().map(|advice| advice.id.as_str()).collect();
        let ids = if ids.is_empty() {
            "none".to_owned()
        } else {
            ids.join(", ")
        };
        return Err(CliError::Failed(format!(
            "guest {}: no advice {} that its definition could follow now; there is {ids}",
            guest.guest.name,
            unknown.join(" or ")
        )));
    }
    let is_taken = |advice: &&&Advice| take.is_empty() || take.contains(&advice.id);
    Ok(possible
        .iter()
        .filter(is_taken)
        .filter_map(|advice| advice.edit())
        .collect())
}

/// The advice about the guests that were named, and about the devices below their disks; all if none was.
fn about(survey: &Survey, advice: Vec<Advice>, args: &AdviseArgs) -> Result<Vec<Advice>, CliError> {
    if args.guests.is_empty() {
        return Ok(advice);
    }
    let guests = args
        .guests
        .iter()
        .map(|name| find(survey, name, &args.libvirt));
    let guests = guests.collect::<Result<Vec<_>, _>>()?;
    let lies_on = |guest: &Subject, device: &str| {
        let mut backing = guest.disks.iter().filter_map(|disk| disk.device.as_ref());
        backing.any(|backing| backing.leaves.contains(device))
    };
    let is_about = |advice: &Advice, guest: &Subject| match &advice.guest {
        Some(owner) => owner.uuid == guest.guest.uuid,
        None => lies_on(guest, &advice.subject),
    };
    let chosen = advice.into_iter();
    Ok(chosen
        .filter(|advice| guests.iter().any(|guest| is_about(advice, guest)))
        .collect())
}
