//! The report for scripts. Its keys are stable; they stand in `docs/topology.md`.

use std::collections::BTreeMap;

use blkpilot_env::observation::Validity;
use blkpilot_env::sample::DeviceClass;
use blkpilot_host::TuningDaemon;
use blkpilot_host::block_device::NvmeController;
use blkpilot_host::hardware_queue::HardwareQueue;
use blkpilot_host::image_chain::Image;
use blkpilot_host::interrupts::Interrupt;
use blkpilot_host::layer::{Layer, LayerKind};
use serde_json::{Value, json};

use super::{Device, Disk, Report};

pub(super) fn report(report: &Report) -> Value {
    let channels = report.channels.list().iter().map(|channel| {
        let queues: BTreeMap<&str, Vec<u32>> = report.queues_of(&channel.cpus).collect();
        json!({
            "id": channel.id,
            "cpus": channel.cpus.to_string(),
            "numa": channel.numa,
            "queues": queues,
        })
    });
    json!({
        "cpus": cpus(report),
        "channels": Value::from_iter(channels),
        "devices": Value::from_iter(report.devices.iter().map(device)),
        "disks": Value::from_iter(report.disks.iter().map(disk)),
        "daemons": Value::from_iter(report.daemons.iter().map(daemon)),
        "unreadable": report.unreadable,
    })
}

fn cpus(report: &Report) -> Value {
    let topology = &report.topology;
    let node = |(number, cpus): &(u16, blkpilot_host::CpuSet)| json!({ "node": number, "cpus": cpus.to_string() });
    let cores = topology.cores.iter().map(|core| core.to_string());
    json!({
        "online": topology.online.to_string(),
        "cores": Value::from_iter(cores),
        "nodes": Value::from_iter(topology.nodes.iter().map(node)),
        "isolated": topology.isolated.to_string(),
        "nohz_full": topology.nohz_full.to_string(),
        "reserved": report.reserved.to_string(),
        "cpuset": topology.group.as_ref().map(|group| json!({
            "cpus": group.cpus.to_string(),
            "source": group.source,
        })),
    })
}

fn device(device: &Device) -> Value {
    let facts = &device.facts;
    let class = match facts.class() {
        DeviceClass::Nvme => "nvme",
        DeviceClass::SataSsd => "ssd",
        DeviceClass::Hdd => "hdd",
    };
    json!({
        "name": facts.name,
        "kind": facts.kind.name(),
        "class": class,
        "rotational": facts.is_rotational,
        "size_bytes": facts.size_bytes,
        "numa": facts.numa,
        "model": facts.model,
        "firmware": facts.firmware,
        "scheduler": facts.scheduler.as_ref().map(|scheduler| json!({
            "current": scheduler.current,
            "available": scheduler.available,
        })),
        "nr_requests": facts.nr_requests,
        "io_poll": facts.io_poll,
        "queues": Value::from_iter(facts.queues.list.iter().map(queue)),
        "queue_kinds": {
            "validity": validity(facts.queues.kinds),
            "source": facts.queues.kinds_source,
        },
        "controllers": Value::from_iter(facts.controllers.iter().map(controller)),
        "interrupts": Value::from_iter(facts.interrupts.iter().map(interrupt)),
        "stack": device.stack.as_ref().map(layer),
    })
}

fn queue(queue: &HardwareQueue) -> Value {
    json!({
        "index": queue.index,
        "kind": queue.kind.name(),
        "cpus": queue.cpus.to_string(),
        "tags": queue.tags,
    })
}

fn controller(controller: &NvmeController) -> Value {
    json!({
        "name": controller.name,
        "transport": controller.transport,
        "namespaces": controller.namespaces,
    })
}

fn interrupt(interrupt: &Interrupt) -> Value {
    json!({
        "number": interrupt.number,
        "handlers": interrupt.handlers,
        "cpus": interrupt.cpus.to_string(),
        "count": interrupt.count,
    })
}

fn daemon(daemon: &TuningDaemon) -> Value {
    let claims = daemon.claims.iter().map(ToString::to_string);
    json!({
        "name": daemon.kind.name(),
        "pid": daemon.pid,
        "settings": daemon.settings,
        "claims": Value::from_iter(claims),
        "meaning": daemon.meaning(),
    })
}

fn disk(disk: &Disk) -> Value {
    json!({
        "disk": disk.id,
        "text": disk.chain.to_string(),
        "complete": disk.chain.is_complete(),
        "problem": disk.chain.problem,
        "device": disk.worker.as_ref().map(|device| json!({
            "name": device.name,
            "counted": device.counted,
            "leaves": device.leaves,
            "numa": device.numa,
        })),
        "images": Value::from_iter(disk.chain.images.iter().map(image)),
    })
}

fn image(image: &Image) -> Value {
    json!({
        "path": image.path,
        "format": image.format,
        "role": image.role.name(),
        "source": image.source,
        "validity": validity(image.validity),
        "stack": layer(&image.stack),
    })
}

fn layer(layer: &Layer) -> Value {
    let kind = match layer.kind {
        LayerKind::File => "file",
        LayerKind::FileSystem => "file-system",
        LayerKind::Device(kind) => kind.name(),
    };
    let known = layer
        .problem
        .as_ref()
        .map_or(Validity::Valid, |_| Validity::Unsupported);
    json!({
        "kind": kind,
        "name": layer.name,
        "detail": layer.detail,
        "source": layer.source,
        "validity": validity(known),
        "problem": layer.problem,
        "below": Value::from_iter(layer.below.iter().map(self::layer)),
    })
}

fn validity(validity: Validity) -> &'static str {
    match validity {
        Validity::Valid => "valid",
        Validity::Estimated => "estimated",
        _ => "unsupported",
    }
}
