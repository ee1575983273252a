//! The clock, by which decisions are dated and the log is kept.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{Finding, Machine};

/// What says that something keeps the clock right, and who that is.
const KEEPERS: [(&str, &str); 4] = [
    ("run/systemd/timesync/synchronized", "systemd-timesyncd"),
    ("run/chrony/chronyd.pid", "chronyd"),
    ("run/chronyd.pid", "chronyd"),
    ("run/ntpd.pid", "ntpd"),
];

/// Files of a moment ago may be dated a little later than now.
const SLACK: Duration = Duration::from_secs(5);

/// Whether something keeps the wall clock right.
pub(super) fn synchronised(machine: &Machine) -> Finding {
    let is_there = |(file, _): &&(&str, &str)| machine.root.join(file).exists();
    match KEEPERS.iter().find(is_there) {
        Some((_, keeper)) => Finding::ok("clock", format!("kept right by {keeper}")),
        None => Finding::warning(
            "clock",
            "nothing is seen that keeps the wall clock right",
            "install chrony or enable systemd-timesyncd: decisions of several hosts are compared by their times, and log.max_age goes by them (intervals go by the boot clock, and are not concerned)",
        ),
    }
}

/// Whether the wall clock stands behind what the service has written, so that it was set back.
pub(super) fn order(data_dir: &Path, now: SystemTime) -> Finding {
    let newest = ["decisions", "journal.db", "."]
        .iter()
        .filter_map(|name| data_dir.join(name).metadata().ok()?.modified().ok())
        .max();
    let ahead = newest.and_then(|newest| newest.duration_since(now).ok());
    match ahead.filter(|ahead| *ahead > SLACK) {
        None => Finding::ok(
            "clock order",
            "nothing in service.data_dir is later than now",
        ),
        Some(ahead) => Finding::warning(
            "clock order",
            format!(
                "{} was written {} s after what the clock says now",
                data_dir.display(),
                ahead.as_secs()
            ),
            "set the clock: decisions that are made now would be dated before older ones",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_clock_that_nobody_keeps_right_is_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine {
            root: dir.path().to_owned(),
            now: SystemTime::now(),
        };
        assert_eq!(synchronised(&machine).level, Level::Warning);
        std::fs::create_dir_all(dir.path().join("run/chrony")).unwrap();
        std::fs::write(dir.path().join("run/chrony/chronyd.pid"), "1").unwrap();
        assert_eq!(synchronised(&machine).found, "kept right by chronyd");
    }

    #[test]
    fn a_clock_behind_the_files_was_set_back() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        assert_eq!(order(dir.path(), now).level, Level::Ok);
        let an_hour_ago = now - Duration::from_secs(3600);
        assert_eq!(order(dir.path(), an_hour_ago).level, Level::Warning);
    }
}
