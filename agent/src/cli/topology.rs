//! `blkpilot topology`: CPUs, channels, devices, and what each virtual disk stands on. Read-only: the
//! XML of guests is read, opted in or not, their monitors are not used, and nothing is written.

mod json;
mod text;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use blkpilot_host::block_device::{BlockDevice, block_devices};
use blkpilot_host::channel::ChannelConfig;
use blkpilot_host::hardware_queue::{HardwareQueue, QueueKind};
use blkpilot_host::image_chain::ImageChain;
use blkpilot_host::layer::Layer;
use blkpilot_host::{
    BackingDevice, Channels, CpuSet, Guest, HostError, Hypervisor, Libvirt, Resolver, Topology,
    TuningDaemon, tuning_daemons,
};
use clap::Args;

use super::CliError;
use super::output::print;
use crate::config::{Config, HostKind};

#[derive(Debug, Args)]
pub(super) struct TopologyArgs {
    /// Show the disks of the running guests of this libvirt connection too, such as qemu:///system
    #[arg(long, value_name = "URI")]
    libvirt: Option<String>,
    /// The configuration of a service: its channels and reserved CPUs
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Show each hardware queue with its CPUs and interrupt
    #[arg(long)]
    queues: bool,
    /// Print JSON, always with the queues
    #[arg(long)]
    json: bool,
}

/// What there is to show.
struct Report {
    topology: Topology,
    reserved: CpuSet,
    channels: Channels,
    devices: Vec<Device>,
    disks: Vec<Disk>,
    daemons: Vec<TuningDaemon>,
    /// Guests whose disks cannot be told, with the reason.
    unreadable: BTreeMap<String, String>,
}

/// A device of the host with what it stands on.
struct Device {
    facts: BlockDevice,
    stack: Option<Layer>,
}

/// A virtual disk.
struct Disk {
    /// `guest/target`.
    id: String,
    chain: ImageChain,
    /// What does its work, and shows its counters; `None` where no device of this host does.
    worker: Option<BackingDevice>,
}

/// What a configuration says of it.
#[derive(Default)]
struct Given {
    channels: ChannelConfig,
    reserved: CpuSet,
}

pub(super) fn run(args: &TopologyArgs) -> Result<(), CliError> {
    let given = args.config.as_deref().map(given).transpose()?;
    let given = given.unwrap_or_default();
    let report = Report::read(&given, args.libvirt.as_deref())?;
    if args.json {
        print(format_args!("{:#}", json::report(&report)))
    } else {
        print(text::report(&report, args.queues))
    }
}

fn given(file: &Path) -> Result<Given, CliError> {
    match Config::load(file)?.host.kind {
        HostKind::Libvirt(libvirt) => Ok(Given {
            channels: libvirt.channels,
            reserved: libvirt.reserved_cpus,
        }),
        HostKind::Simulated { .. } => Err(CliError::Usage(format!(
            "{}: host.kind = \"simulated\": such a host has no devices",
            file.display()
        ))),
    }
}

impl Report {
    fn read(given: &Given, uri: Option<&str>) -> Result<Self, CliError> {
        let (sys, proc_root) = (Path::new("/sys"), Path::new("/proc"));
        let topology = Topology::read(sys, proc_root)?;
        let resolver = Resolver::new(sys, proc_root);
        let with_stack = |facts: BlockDevice| Device {
            stack: resolver.named(&facts.name),
            facts,
        };
        let mut report = Self {
            channels: Channels::new(&given.channels, &topology, &given.reserved)?,
            reserved: given.reserved.clone(),
            devices: block_devices(sys, proc_root)
                .into_iter()
                .map(with_stack)
                .collect(),
            disks: vec![],
            daemons: tuning_daemons(proc_root, Path::new("/")),
            unreadable: BTreeMap::new(),
            topology,
        };
        if let Some(uri) = uri {
            report.read_guests(&Libvirt::connect(uri)?, &resolver)?;
        }
        Ok(report)
    }

    fn read_guests(&mut self, libvirt: &Libvirt, resolver: &Resolver) -> Result<(), CliError> {
        for stats in libvirt.guest_stats()? {
            let guest = libvirt
                .guest_xml(&stats.uuid)
                .and_then(|xml| Guest::from_xml(&xml));
            match guest {
                Ok(guest) => self.add_disks(&guest, resolver),
                Err(HostError::GuestGone { .. }) => {}
                Err(error @ HostError::Disconnected { .. }) => return Err(error.into()),
                Err(error) => {
                    self.unreadable.insert(stats.uuid, error.to_string());
                }
            }
        }
        self.disks.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(())
    }

    fn add_disks(&mut self, guest: &Guest, resolver: &Resolver) {
        let disks = guest.disks.iter().map(|disk| {
            let chain = resolver.disk(disk);
            let active = chain.images.first();
            Disk {
                id: format!("{}/{}", guest.name, disk.target),
                worker: active.and_then(|image| BackingDevice::of_stack(resolver, &image.stack)),
                chain,
            }
        });
        self.disks.extend(disks);
    }

    /// For each device that stands on no other, the queues that ordinary requests from these CPUs get
    /// to; those for polling are left out.
    fn queues_of<'a>(&'a self, cpus: &'a CpuSet) -> impl Iterator<Item = (&'a str, Vec<u32>)> {
        let stands_on_none = |device: &&Device| {
            device
                .stack
                .as_ref()
                .is_none_or(|stack| stack.below.is_empty())
        };
        self.devices
            .iter()
            .filter(stands_on_none)
            .filter_map(move |device| {
                let meets = |queue: &&HardwareQueue| {
                    queue.kind != QueueKind::Poll && !queue.cpus.intersection(cpus).is_empty()
                };
                let queues = device.facts.queues.list.iter().filter(meets);
                let numbers: Vec<u32> = queues.map(|queue| queue.index).collect();
                (!numbers.is_empty()).then_some((device.facts.name.as_str(), numbers))
            })
    }
}
