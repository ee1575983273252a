//! The commands that talk to a service.

use blkpilot_proto::v1;
use blkpilot_proto::v1::tuner_service_client::TunerServiceClient;
use serde_json::json;
use uuid::Uuid;

use super::json::Json;
use super::output::print;
use super::pages;
use super::serve::interrupted;
use super::{ApplyArgs, CliError, ClientArgs, DecisionsArgs, WatchArgs, tables};
use crate::client::Connection;
use crate::wire::names::{Row, host_name};

pub(super) struct Session {
    pub(super) client: TunerServiceClient<Connection>,
    /// Name of the host, without `hosts/`.
    pub(super) host: String,
}

impl Session {
    pub(super) async fn open(args: &ClientArgs) -> Result<Self, CliError> {
        let mut client = TunerServiceClient::new(args.connection.target()?.connect().await?);
        let host = match &args.host {
            Some(host) => host.clone(),
            None => only_host(&mut client).await?,
        };
        Ok(Self { client, host })
    }
}

impl Session {
    /// The host, if the service still has it.
    pub(super) async fn host(&mut self) -> Result<Option<v1::Host>, CliError> {
        let request = v1::ListHostsRequest {
            page_size: 1000,
            ..v1::ListHostsRequest::default()
        };
        let hosts = self.client.list_hosts(request).await?.into_inner().hosts;
        let name = host_name(&self.host);
        Ok(hosts.into_iter().find(|host| host.name == name))
    }
}

async fn only_host(client: &mut TunerServiceClient<Connection>) -> Result<String, CliError> {
    let answer = client
        .list_hosts(v1::ListHostsRequest::default())
        .await?
        .into_inner();
    let names = answer
        .hosts
        .iter()
        .map(|host| host.name.trim_start_matches("hosts/"));
    match names.collect::<Vec<_>>()[..] {
        [only] => Ok(only.to_owned()),
        [] => Err(CliError::Failed("the service has no host".to_owned())),
        ref many => Err(CliError::Usage(format!(
            "name one of {} with --host",
            many.join(", ")
        ))),
    }
}

pub(super) async fn guests(args: &ClientArgs) -> Result<(), CliError> {
    let mut session = Session::open(args).await?;
    let guests = pages::all(async |page_token| {
        let request = v1::ListGuestsRequest {
            parent: host_name(&session.host),
            page_size: 0,
            page_token,
        };
        let page = session.client.list_guests(request).await?.into_inner();
        Ok((page.guests, page.next_page_token))
    });
    let guests = guests.await?;
    let host = session.host().await?;
    if args.json {
        let json = Json::new();
        let guests: Vec<_> = guests
            .iter()
            .map(|guest| json.value("Guest", guest))
            .collect();
        let host = host.map(|host| json.value("Host", &host));
        let value = json!({ "guests": guests, "host": host });
        print(format_args!("{value:#}"))?;
    } else {
        print(tables::guests(host.as_ref(), &guests))?;
    }
    Ok(())
}

pub(super) async fn propose(args: &ClientArgs) -> Result<(), CliError> {
    let mut session = Session::open(args).await?;
    let host = host_name(&session.host);
    let decision = session.client.propose(v1::ProposeRequest { host }).await?;
    show(args, &decision.into_inner())?;
    Ok(())
}

pub(super) async fn apply(args: &ApplyArgs) -> Result<(), CliError> {
    use v1::apply_request::Action;
    let mut session = Session::open(&args.client).await?;
    let action = match &args.what.decision {
        Some(decision) => Action::Decision(decision.clone()),
        None => {
            let choices = args
                .what
                .levels
                .iter()
                .map(|text| choice(&session.host, text));
            let choices = choices.collect::<Result<_, _>>()?;
            Action::Levels(v1::ExplicitLevels { choices })
        }
    };
    let request = v1::ApplyRequest {
        host: host_name(&session.host),
        action: Some(action),
        validate_only: args.dry_run,
        request_id: Uuid::new_v4().to_string(),
        force_reason: super::force_reason(args.force.as_deref())?,
    };
    show(
        &args.client,
        &session.client.apply(request).await?.into_inner(),
    )
}

/// `GUEST/DISK:HEAD=LEVEL`, or `DEVICE:HEAD=LEVEL`.
fn choice(host: &str, text: &str) -> Result<v1::LevelChoice, CliError> {
    let wrong = || {
        CliError::Usage(format!(
            "--set \"{text}\" must have the form GUEST/DISK:HEAD=LEVEL, such as db/vda:channel=channel-2"
        ))
    };
    // A guest's name may hold a colon; heads and levels do not.
    let (row, setting) = text.rsplit_once(':').ok_or_else(wrong)?;
    let (head, level) = setting.split_once('=').ok_or_else(wrong)?;
    let row = if row.contains('/') {
        Row::of_disk_id(row)
    } else {
        Row::Device(row.to_owned())
    };
    Ok(v1::LevelChoice {
        name: row.name(host),
        head: head.to_owned(),
        level: level.to_owned(),
    })
}

pub(super) fn show(args: &ClientArgs, decision: &v1::Decision) -> Result<(), CliError> {
    if args.json {
        print(format_args!(
            "{:#}",
            Json::new().value("Decision", decision)
        ))
    } else {
        print(tables::decision(decision))
    }
}

pub(super) async fn decisions(args: &DecisionsArgs) -> Result<(), CliError> {
    let mut session = Session::open(&args.client).await?;
    let (mut decisions, mut page_token) = (vec![], String::new());
    while decisions.len() < args.limit {
        let request = v1::ListDecisionsRequest {
            parent: host_name(&session.host),
            page_size: i32::try_from(args.limit - decisions.len()).unwrap_or(i32::MAX),
            page_token,
        };
        let page = session.client.list_decisions(request).await?.into_inner();
        decisions.extend(page.decisions);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if args.client.json {
        let json = Json::new();
        let decisions: Vec<_> = decisions
            .iter()
            .map(|d| json.value("Decision", d))
            .collect();
        print(format_args!("{:#}", json!({ "decisions": decisions })))?;
    } else {
        print(tables::decisions(&decisions))?;
    }
    Ok(())
}

pub(super) async fn watch(args: &WatchArgs) -> Result<(), CliError> {
    let mut session = Session::open(&args.client).await?;
    let parent = host_name(&session.host);
    let request = v1::WatchDecisionsRequest { parent };
    let mut events = session.client.watch_decisions(request).await?.into_inner();
    let (json, mut left) = (Json::new(), args.count);
    let interrupted = interrupted()?;
    tokio::pin!(interrupted);
    while left != Some(0) {
        let event = tokio::select! {
            event = events.message() => event?,
            () = &mut interrupted => return Ok(()),
        };
        let Some(event) = event else {
            return Err(CliError::Unavailable("the service has ended".to_owned()));
        };
        if show_event(&args.client, &json, event)? {
            left = left.map(|left| left - 1);
        }
    }
    Ok(())
}

/// Prints an event; whether it was a decision.
fn show_event(
    args: &ClientArgs,
    json: &Json,
    event: v1::WatchDecisionsResponse,
) -> Result<bool, CliError> {
    use v1::watch_decisions_response::Event;
    match event.event {
        Some(Event::Decision(decision)) if args.json => {
            print(json.value("Decision", &decision))?;
            Ok(true)
        }
        Some(Event::Decision(decision)) => {
            print(tables::decision_line(&decision).join("  "))?;
            Ok(true)
        }
        Some(Event::Missed(missed)) => {
            eprintln!("blkpilot: {missed} decisions were missed: `blkpilot decisions` has them");
            Ok(false)
        }
        Some(Event::Started(_)) | None => Ok(false),
    }
}
