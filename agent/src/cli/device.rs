//! `blkpilot device`.

use blkpilot_host::DeviceKnob;
use blkpilot_proto::v1;
use blkpilot_proto::v1::change_device_request::{Action, PutBack, SetSetting, UnfreezeSettings};
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use serde_json::json;

use super::commands::Session;
use super::json::Json;
use super::output::print;
use super::{CliError, ClientArgs, tables};
use crate::wire::names::{Row, host_name};

#[derive(Debug, Subcommand)]
pub(super) enum DeviceCommand {
    /// List the devices on which something may be changed, or is, with their settings
    List(ClientArgs),
    /// Set one setting of a device
    ///
    /// It is journalled and put back by `blkpilot device rollback` and `blkpilot rollback --all`.
    Set(SetArgs),
    /// Put all settings of a device back to what they were without blkpilot
    Rollback(RollbackArgs),
    /// Let settings be changed again that are frozen because somebody else changed them
    Unfreeze(UnfreezeArgs),
}

#[derive(Debug, Args)]
pub(super) struct SetArgs {
    /// The device, by its kernel name
    device: String,
    /// The setting and its value, such as nr_requests=64
    #[arg(value_name = "SETTING=VALUE")]
    setting: String,
    /// Check everything, change nothing
    #[arg(long)]
    dry_run: bool,
    /// Pass the guard's rate, breaker, dwell and trial; the reason is noted in the journal
    #[arg(long, value_name = "REASON")]
    force: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    /// The device, by its kernel name
    device: String,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
pub(super) struct UnfreezeArgs {
    /// The device, by its kernel name
    device: String,
    /// Only this setting; without it all that are frozen
    #[arg(long, value_name = "SETTING", value_parser = PossibleValuesParser::new(DeviceKnob::ALL.map(DeviceKnob::name)))]
    setting: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(command: &DeviceCommand) -> Result<(), CliError> {
    match command {
        DeviceCommand::List(client) => list(client).await,
        DeviceCommand::Set(args) => {
            let Some((setting, value)) = args.setting.split_once('=') else {
                return Err(CliError::Usage(format!(
                    "\"{}\" must have the form SETTING=VALUE, such as nr_requests=64",
                    args.setting
                )));
            };
            let (setting, value) = (setting.to_owned(), value.to_owned());
            let action = Action::Set(SetSetting { setting, value });
            let force_reason = super::force_reason(args.force.as_deref())?;
            let request = v1::ChangeDeviceRequest {
                validate_only: args.dry_run,
                force_reason,
                action: Some(action),
                ..v1::ChangeDeviceRequest::default()
            };
            change(&args.client, &args.device, request).await
        }
        DeviceCommand::Rollback(args) => {
            let action = Action::PutBack(PutBack {});
            change(&args.client, &args.device, plain(action)).await
        }
        DeviceCommand::Unfreeze(args) => {
            let setting = args.setting.clone().unwrap_or_default();
            let action = Action::Unfreeze(UnfreezeSettings { setting });
            change(&args.client, &args.device, plain(action)).await
        }
    }
}

fn plain(action: Action) -> v1::ChangeDeviceRequest {
    v1::ChangeDeviceRequest {
        action: Some(action),
        ..v1::ChangeDeviceRequest::default()
    }
}

async fn list(args: &ClientArgs) -> Result<(), CliError> {
    let mut session = Session::open(args).await?;
    let parent = host_name(&session.host);
    let request = v1::ListDevicesRequest { parent };
    let devices = session.client.list_devices(request).await?.into_inner();
    show(args, &devices.devices)
}

async fn change(
    args: &ClientArgs,
    device: &str,
    request: v1::ChangeDeviceRequest,
) -> Result<(), CliError> {
    let mut session = Session::open(args).await?;
    let request = v1::ChangeDeviceRequest {
        name: Row::Device(device.to_owned()).name(&session.host),
        ..request
    };
    let device = session.client.change_device(request).await?.into_inner();
    show(args, &[device])
}

fn show(args: &ClientArgs, devices: &[v1::Device]) -> Result<(), CliError> {
    if args.json {
        let json = Json::new();
        let devices = devices.iter().map(|device| json.value("Device", device));
        let devices: Vec<_> = devices.collect();
        print(format_args!("{:#}", json!({ "devices": devices })))
    } else if devices.is_empty() {
        print("no [[host.device]] of the service's configuration matches a device of this host")
    } else {
        print(tables::devices(devices))
    }
}
