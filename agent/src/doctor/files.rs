//! The data directory and the socket.

use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use super::Finding;
use crate::config::Listen;
use crate::decision::history::LogConfig;

/// The directory itself, or the nearest above it that is there.
fn nearest(path: &Path) -> &Path {
    let mut above = path.ancestors();
    above.find(|path| path.exists()).unwrap_or(Path::new("/"))
}

fn may_write(dir: &Path) -> bool {
    access(dir, AccessFlags::W_OK | AccessFlags::X_OK).is_ok()
}

/// Whether it can be used by this user, and has room for the log.
pub(super) fn data_dir(dir: &Path, log: &LogConfig) -> Vec<Finding> {
    const CHECK: &str = "data directory";
    let (place, shown) = (nearest(dir), dir.display());
    if !place.is_dir() {
        let found = format!("{} is no directory", place.display());
        return vec![Finding::failed(
            CHECK,
            found,
            "choose another service.data_dir",
        )];
    }
    if !may_write(place) {
        let found = format!("{shown}: this user may not write {}", place.display());
        let repair = format!(
            "run this as the service's user (`sudo -u blkpilot blkpilot doctor`), or give it the directory: install -d -o blkpilot -g blkpilot -m 0750 {shown}"
        );
        return vec![Finding::failed(CHECK, found, repair)];
    }
    let found = if place == dir {
        "can be written"
    } else {
        "can be made"
    };
    let mut findings = vec![Finding::ok(CHECK, format!("{shown} {found}"))];
    findings.extend(room(place, log));
    findings
}

fn room(place: &Path, log: &LogConfig) -> Option<Finding> {
    const CHECK: &str = "room";
    let stats = statvfs(place).ok()?;
    let free_mib = stats
        .blocks_available()
        .saturating_mul(stats.fragment_size())
        >> 20;
    let most_mib = log.keep.most_bytes >> 20;
    Some(if free_mib < most_mib {
        let found = format!("{free_mib} MiB are free, and log.max_mib is {most_mib}");
        Finding::warning(
            CHECK,
            found,
            "make room, or set log.max_mib to less: a full disk bars every change, though no way back",
        )
    } else {
        Finding::ok(
            CHECK,
            format!("{free_mib} MiB are free for {most_mib} MiB of decision log"),
        )
    })
}

/// Whether a service answers where this one would listen, or it can.
pub(super) fn socket(listen: &Listen) -> Finding {
    const CHECK: &str = "socket";
    let Listen::Unix(path) = listen else {
        return Finding::ok(CHECK, format!("{listen}: a loopback address"));
    };
    if UnixStream::connect(path).is_ok() {
        return Finding::ok(CHECK, format!("{listen}: a service answers"));
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    if may_write(nearest(dir)) {
        return Finding::ok(CHECK, format!("{listen}: nobody listens; it can be made"));
    }
    let found = format!(
        "{listen}: nobody answers, and this user may not write {}",
        dir.display()
    );
    Finding::warning(
        CHECK,
        found,
        "where the service runs: join its group (`adduser YOU blkpilot`); where it does not: systemd makes the directory (`systemctl start blkpilot`), or choose another service.listen",
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use blkpilot_log::Keep;

    use super::super::{Level, worst};
    use super::*;

    #[test]
    fn a_directory_that_is_there_or_can_be_made_is_well_and_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let log = LogConfig {
            keep: Keep {
                most_bytes: 1 << 20,
                most_age: None,
            },
            ..LogConfig::default()
        };
        assert_eq!(worst(&data_dir(dir.path(), &log)), Level::Ok);
        let made = data_dir(&dir.path().join("a/b"), &log);
        assert!(made[0].found.ends_with("can be made"), "{made:?}");
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(worst(&data_dir(&file, &log)), Level::Failed);
    }

    #[test]
    fn a_log_that_may_outgrow_its_disk_is_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let log = LogConfig {
            keep: Keep {
                most_bytes: u64::MAX,
                most_age: None,
            },
            ..LogConfig::default()
        };
        let findings = data_dir(dir.path(), &log);
        assert_eq!(findings[1].level, Level::Warning, "{findings:?}");
    }

    #[test]
    fn a_socket_that_somebody_answers_on_is_told_from_one_that_nobody_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let listen = Listen::Unix(path.clone());
        assert!(socket(&listen).found.ends_with("it can be made"));
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(socket(&listen).found.ends_with("a service answers"));
    }
}
