//! What the running service would change now.

use blkpilot_host::advice::Subject;
use blkpilot_proto::v1;

use crate::cli::commands::Session;
use crate::cli::{CliError, ClientArgs};
use crate::wire::names::{Row, host_name, parse_row};

/// What the service said, if there is one.
pub(super) struct Live {
    /// Where it was asked.
    pub(super) server: String,
    /// What it would do, or why that is not known.
    pub(super) proposal: Result<Proposal, String>,
}

/// What a policy would change.
pub(super) struct Proposal {
    /// Name of the host, as the service calls it.
    pub(super) host: String,
    /// Name of the decision, for `blkpilot apply`.
    pub(super) decision: String,
    /// What would not stay as it is.
    pub(super) changes: Vec<LiveChange>,
    /// Other daemons that set what this service may set.
    pub(super) fighting: Vec<v1::TuningDaemon>,
}

/// A knob that would be turned.
pub(super) struct LiveChange {
    /// The same on each run: `live/KNOB/UUID/DISK`, with the guest's name where libvirt does not know it.
    pub(super) id: String,
    /// The guest, with its UUID where libvirt knows it; `None` for a device of the host.
    pub(super) guest: Option<(String, Option<String>)>,
    /// The disk's target, or the device.
    pub(super) subject: String,
    pub(super) knob: String,
    pub(super) from: String,
    pub(super) to: String,
    pub(super) propensity: Option<f64>,
}

impl Live {
    /// Asks the service about these guests, or all of them. That it cannot be reached is no error.
    pub(super) async fn ask(
        args: &ClientArgs,
        known: &[Subject],
        only: &[String],
    ) -> Result<Self, CliError> {
        let proposal = match propose(args).await {
            Ok((host, decision, fighting)) => Ok(Proposal {
                fighting,
                changes: changes(&decision, known, only),
                host,
                decision: decision.name,
            }),
            Err(error @ CliError::Usage(_)) => return Err(error),
            Err(error) => Err(error.to_string()),
        };
        Ok(Self {
            server: args.connection.server.clone(),
            proposal,
        })
    }
}

async fn propose(
    args: &ClientArgs,
) -> Result<(String, v1::Decision, Vec<v1::TuningDaemon>), CliError> {
    let mut session = Session::open(args).await?;
    let host = host_name(&session.host);
    let decision = session.client.propose(v1::ProposeRequest { host }).await?;
    let mut beside = session.host().await?.unwrap_or_default().tuning_daemons;
    beside.retain(|daemon| !daemon.conflicts.is_empty());
    Ok((session.host, decision.into_inner(), beside))
}

fn changes(decision: &v1::Decision, known: &[Subject], only: &[String]) -> Vec<LiveChange> {
    let mut changes = Vec::new();
    for row in &decision.rows {
        let Ok((_, place)) = parse_row("name", &row.name) else {
            continue;
        };
        let moved = row
            .heads
            .iter()
            .filter(|head| head.previous != head.requested);
        match &place {
            Row::Disk { guest, .. } if !only.is_empty() && !only.contains(guest) => {}
            _ => changes.extend(moved.map(|head| change(&place, head, known))),
        }
    }
    changes
}

fn change(place: &Row, head: &v1::HeadDecision, known: &[Subject]) -> LiveChange {
    let (guest, subject, whose) = match place {
        Row::Device(device) => (None, device.clone(), device.clone()),
        Row::Disk { guest, target } => {
            let subject = known.iter().find(|subject| subject.guest.name == *guest);
            let uuid = subject.map(|subject| subject.guest.uuid.clone());
            let whose = format!("{}/{target}", uuid.as_ref().unwrap_or(guest));
            (Some((guest.clone(), uuid)), target.clone(), whose)
        }
    };
    LiveChange {
        id: format!("live/{}/{whose}", head.head),
        guest,
        subject,
        knob: head.head.clone(),
        from: head.previous.clone(),
        to: head.requested.clone(),
        propensity: head.propensity,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(name: &str, previous: &str, requested: &str) -> v1::HeadDecision {
        v1::HeadDecision {
            head: name.into(),
            previous: previous.into(),
            requested: requested.into(),
            ..v1::HeadDecision::default()
        }
    }

    #[test]
    fn only_what_would_change_on_the_guests_named_is_advice() {
        let row = |guest: &str| v1::RowDecision {
            name: format!("hosts/local/guests/{guest}/disks/vda"),
            heads: vec![
                head("cache", "direct", "buffered"),
                head("polling", "off", "off"),
            ],
            ..v1::RowDecision::default()
        };
        let decision = v1::Decision {
            rows: vec![row("web"), row("db")],
            ..v1::Decision::default()
        };
        let ids = |only: &[String]| -> Vec<String> {
            let changes = changes(&decision, &[], only);
            changes.into_iter().map(|change| change.id).collect()
        };
        assert_eq!(ids(&[]), ["live/cache/web/vda", "live/cache/db/vda"]);
        assert_eq!(ids(&["db".to_owned()]), ["live/cache/db/vda"]);
    }
}
