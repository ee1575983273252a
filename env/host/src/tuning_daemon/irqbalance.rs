//! irqbalance, which spreads interrupts over CPUs.

use std::path::Path;

use super::processes::Process;
use super::{DaemonKind, TuningDaemon};

/// Where distributions keep its environment: Debian, Red Hat.
const ENVIRONMENTS: [&str; 2] = ["/etc/default/irqbalance", "/etc/sysconfig/irqbalance"];
/// A list such as `2-3`, and the older mask.
const BANNED: [&str; 2] = ["IRQBALANCE_BANNED_CPULIST", "IRQBALANCE_BANNED_CPUS"];

pub(super) fn read(process: &Process, root: &Path) -> TuningDaemon {
    let banned = BANNED.iter().find_map(|name| {
        let value = process
            .variable(name)
            .or_else(|| configured(process, root, name))?;
        (!value.is_empty()).then(|| format!("{name}={value}"))
    });
    // Source: irqbalance(1), "ENVIRONMENT VARIABLES".
    let banned =
        banned.unwrap_or_else(|| "no CPUs banned but those isolated at boot or nohz_full".into());
    let listed = ["--banirq=", "-i"].iter().flat_map(|o| process.options(o));
    let kept: Vec<&str> = listed.collect();
    let kept = (!kept.is_empty()).then(|| format!("interrupts left alone: {}", kept.join(", ")));
    TuningDaemon {
        kind: DaemonKind::Irqbalance,
        pid: process.pid,
        settings: std::iter::once(banned).chain(kept).collect(),
        claims: vec![],
    }
}

/// The value that its file of environment variables gives, without quotes.
fn configured(process: &Process, root: &Path, name: &str) -> Option<String> {
    ENVIRONMENTS.iter().find_map(|file| {
        let text = process.read(root, file)?;
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='))?;
        Some(value.trim().trim_matches(['"', '\'']).to_owned())
    })
}
