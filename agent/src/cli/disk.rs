//! `blkpilot disk`.

use blkpilot_proto::v1;
use blkpilot_proto::v1::change_disk_settings_request::{
    Action, DiskSettingValue, PutBackDiskSettings, SetDiskSettings,
};
use clap::{Args, Subcommand};
use serde_json::json;

use super::commands::Session;
use super::json::Json;
use super::output::print;
use super::{CliError, ClientArgs, tables};
use crate::wire::names::{Row, host_name};

const EXAMPLES: &str = "\
Examples:
  blkpilot disk set web/vda total_iops_sec=1000             # at most 1000 requests per second
  blkpilot disk set web/vda read_bytes_sec=50MiB read_bytes_sec_max=100MiB read_bytes_sec_max_length=10
  blkpilot disk set web/vda total_iops_sec=0                # this limit lifted, others stay
  blkpilot disk set web/vda throttle=none                   # no limit at all
  blkpilot disk set db/vda l2-cache-size=16MiB --dry-run    # QEMU's cache of the qcow2 image's L2 table
  blkpilot disk set db/vda qcow2-cache=as-booted

Limits are those of `virsh blkdeviotune`. One that is named replaces its burst (`…_max`, for `…_max_length`
seconds) too; `total_…` and `read_…`/`write_…` replace each other; the rest stays. None may go below what
host.throttle of the service's configuration says.

Of a qcow2 image l2-cache-size, refcount-cache-size (bytes) and cache-clean-interval (seconds) can be set. QEMU
tells none of them: what is shown is what it has accepted last.";

#[derive(Debug, Subcommand)]
pub(super) enum DiskCommand {
    /// List the disks of which some setting may be changed, or is, with their settings
    List(ClientArgs),
    /// Set limits or qcow2 caches of a disk
    ///
    /// They are journalled and put back by `blkpilot disk rollback` and `blkpilot rollback`. Those that
    /// somebody else has changed since are frozen, until `blkpilot unfreeze` lets them be set again.
    #[command(after_help = EXAMPLES)]
    Set(SetArgs),
    /// Put all settings of a disk back to what they were without blkpilot
    Rollback(RollbackArgs),
}

#[derive(Debug, Args)]
pub(super) struct SetArgs {
    /// The disk: GUEST/DISK, such as web/vda
    #[arg(value_name = "GUEST/DISK")]
    disk: String,
    /// What to set, such as total_iops_sec=1000; bytes may have a unit (16MiB)
    #[arg(value_name = "NAME=VALUE", required = true)]
    settings: Vec<String>,
    /// Check everything, change nothing, and say what would be set
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    /// The disk: GUEST/DISK, such as web/vda
    #[arg(value_name = "GUEST/DISK")]
    disk: String,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(command: &DiskCommand) -> Result<(), CliError> {
    match command {
        DiskCommand::List(client) => list(client).await,
        DiskCommand::Set(args) => {
            let values = args.settings.iter().map(|text| value(text));
            let values = values.collect::<Result<_, _>>()?;
            let action = Action::Set(SetDiskSettings { values });
            change(&args.client, &args.disk, action, args.dry_run).await
        }
        DiskCommand::Rollback(args) => {
            let action = Action::PutBack(PutBackDiskSettings {});
            change(&args.client, &args.disk, action, false).await
        }
    }
}

fn value(text: &str) -> Result<DiskSettingValue, CliError> {
    let Some((name, value)) = text.split_once('=') else {
        return Err(CliError::Usage(format!(
            "\"{text}\" must have the form NAME=VALUE, such as total_iops_sec=1000"
        )));
    };
    let (name, value) = (name.to_owned(), value.to_owned());
    Ok(DiskSettingValue { name, value })
}

async fn list(args: &ClientArgs) -> Result<(), CliError> {
    let mut session = Session::open(args).await?;
    let parent = host_name(&session.host);
    let request = v1::ListDiskSettingsRequest { parent };
    let listed = session.client.list_disk_settings(request).await?;
    show(args, &listed.into_inner().disks)
}

async fn change(
    args: &ClientArgs,
    disk: &str,
    action: Action,
    validate_only: bool,
) -> Result<(), CliError> {
    if !disk.contains('/') {
        return Err(CliError::Usage(format!(
            "\"{disk}\" must have the form GUEST/DISK, such as web/vda"
        )));
    }
    let mut session = Session::open(args).await?;
    let request = v1::ChangeDiskSettingsRequest {
        name: Row::of_disk_id(disk).name(&session.host),
        validate_only,
        action: Some(action),
    };
    let changed = session.client.change_disk_settings(request).await?;
    show(args, &[changed.into_inner()])
}

fn show(args: &ClientArgs, disks: &[v1::DiskSettings]) -> Result<(), CliError> {
    if args.json {
        let json = Json::new();
        let disks = disks.iter().map(|disk| json.value("DiskSettings", disk));
        let disks: Vec<_> = disks.collect();
        print(format_args!("{:#}", json!({ "disks": disks })))
    } else if disks.iter().all(|disk| disk.settings.is_empty()) {
        print("no guest has opted in to throttle or qcow2-cache, and nothing of them is changed")
    } else {
        print(tables::disk_settings(disks))
    }
}
