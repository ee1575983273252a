//! numad, which moves processes to NUMA nodes.

use super::processes::Process;
use super::{Claim, DaemonKind, TuningDaemon};

pub(super) fn read(process: &Process) -> TuningDaemon {
    // Source: numad(8). Without -S 0 it looks at every process; with it, at those that -p names.
    let only_named = process.options("-S").last() == Some(&"0");
    let named = process.options("-p");
    let pids: Vec<i32> = named.iter().filter_map(|pid| pid.parse().ok()).collect();
    let (setting, source) = if only_named {
        let names = if named.is_empty() {
            "none".to_owned()
        } else {
            named.join(", ")
        };
        (format!("looks at processes {names}"), "numad -S 0 -p")
    } else {
        ("looks at all processes".to_owned(), "numad")
    };
    let claims = (!only_named || !pids.is_empty()).then(|| Claim::Binding {
        source: source.to_owned(),
        pids: if only_named { pids } else { vec![] },
    });
    TuningDaemon {
        kind: DaemonKind::Numad,
        pid: process.pid,
        settings: vec![setting],
        claims: claims.into_iter().collect(),
    }
}
