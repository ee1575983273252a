//! The kernel: what of /proc and /sys is read, and what this user may.

use super::{Finding, Machine};

/// All that is looked at.
pub(super) fn check(machine: &Machine) -> Vec<Finding> {
    vec![
        release(machine),
        counters(machine),
        processes(machine),
        pressure(machine),
        cgroup(machine),
        capabilities(machine),
    ]
}

/// Since this release there is cachestat(2).
const CACHESTAT: (u32, u32) = (6, 5);

fn release(machine: &Machine) -> Finding {
    const CHECK: &str = "kernel";
    let text = machine
        .read("proc/sys/kernel/osrelease")
        .unwrap_or_default();
    let text = text.trim();
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|n| n.parse::<u32>().ok());
    match (next(), next()) {
        (Some(major), Some(minor)) if (major, minor) >= CACHESTAT => {
            Finding::ok(CHECK, format!("Linux {text}, with cachestat"))
        }
        _ => Finding::warning(
            CHECK,
            format!("Linux {text}, without cachestat(2)"),
            "with Linux 6.5 or later the service knows what of an image is in the page cache; without, a disk goes direct as QEMU does it",
        ),
    }
}

fn counters(machine: &Machine) -> Finding {
    const CHECK: &str = "counters";
    const READ: [&str; 4] = [
        "proc/stat",
        "proc/diskstats",
        "proc/meminfo",
        "sys/devices/system/cpu/online",
    ];
    let problem = READ
        .iter()
        .find_map(|file| machine.read(file).err().map(|error| (file, error)));
    match problem {
        None if machine.root.join("sys/block").is_dir() => {
            Finding::ok(CHECK, "/proc and /sys can be read")
        }
        None => Finding::failed(
            CHECK,
            "/sys/block is not there",
            "mount sysfs where the service runs; a container has to be given the host's",
        ),
        Some((file, error)) => Finding::failed(
            CHECK,
            format!("/{file}: {error}"),
            "mount /proc and /sys where the service runs, and let it read them",
        ),
    }
}

fn processes(machine: &Machine) -> Finding {
    const CHECK: &str = "processes";
    match machine.read("proc/1/stat") {
        Ok(_) => Finding::ok(CHECK, "processes of other users are seen"),
        Err(error) => Finding::failed(
            CHECK,
            format!("/proc/1/stat: {error}"),
            "mount /proc without hidepid: QEMU runs as another user, and a guest whose process is not seen is not changed",
        ),
    }
}

fn pressure(machine: &Machine) -> Finding {
    const CHECK: &str = "pressure";
    match machine.read("proc/pressure/memory") {
        Ok(_) => Finding::ok(CHECK, "the kernel tells what waits for memory (PSI)"),
        Err(error) => Finding::warning(
            CHECK,
            format!("/proc/pressure/memory: {error}"),
            "boot with psi=1: without it host.buffered.memory_pressure_percent closes nothing",
        ),
    }
}

fn cgroup(machine: &Machine) -> Finding {
    const CHECK: &str = "cgroup";
    match machine.read("sys/fs/cgroup/cgroup.controllers") {
        Ok(text) if text.split_whitespace().any(|name| name == "cpuset") => {
            Finding::ok(CHECK, "version 2, with cpuset")
        }
        Ok(text) => Finding::warning(
            CHECK,
            format!("version 2 without cpuset (it has {})", text.trim()),
            "boot with the controller cpuset enabled: without it libvirt binds threads by affinity alone",
        ),
        Err(_) => Finding::warning(
            CHECK,
            "no cgroup of version 2 at /sys/fs/cgroup",
            "boot with systemd.unified_cgroup_hierarchy=1: without it the limits of a guest's group are not seen",
        ),
    }
}

/// Capabilities that are of use, by their bit, and what is not seen without each.
const CAPABILITIES: [(u32, &str, &str); 3] = [
    (
        2,
        "CAP_DAC_READ_SEARCH",
        "hit rates, and write-back before a disk goes direct",
    ),
    (19, "CAP_SYS_PTRACE", "hit rates"),
    (
        3,
        "CAP_FOWNER",
        "what of an image is in the page cache, on newer kernels",
    ),
];

fn capabilities(machine: &Machine) -> Finding {
    const CHECK: &str = "capabilities";
    let status = machine.read("proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    let missing: Vec<String> = CAPABILITIES
        .iter()
        .filter(|(bit, ..)| effective.unwrap_or(0) & (1 << bit) == 0)
        .map(|(_, name, what)| format!("{name} ({what})"))
        .collect();
    if missing.is_empty() {
        return Finding::ok(CHECK, "this user has all three that are of use");
    }
    Finding::warning(
        CHECK,
        format!("this user lacks {}", missing.join(", ")),
        "the packaged unit gives them to the service (docs/operations.md, Privileges); where it is run by hand it sees less without",
    )
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tempfile::TempDir;

    use super::super::Level;
    use super::*;

    /// A machine of these files.
    fn machine(files: &[(&str, &str)]) -> (TempDir, Machine) {
        let dir = TempDir::new().unwrap();
        for (file, text) in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let machine = Machine {
            root: dir.path().to_owned(),
            now: SystemTime::now(),
        };
        (dir, machine)
    }

    const WELL: [(&str, &str); 10] = [
        ("proc/sys/kernel/osrelease", "6.12.9-amd64\n"),
        ("proc/stat", ""),
        ("proc/diskstats", ""),
        ("proc/meminfo", ""),
        ("sys/devices/system/cpu/online", "0-1"),
        ("sys/block/sda", ""),
        ("proc/1/stat", ""),
        ("proc/pressure/memory", ""),
        ("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory\n"),
        ("proc/self/status", "Name:\tx\nCapEff:\t000000000008000c\n"),
    ];

    #[test]
    fn a_machine_that_has_all_is_well() {
        let (_dir, machine) = machine(&WELL);
        let findings = check(&machine);
        assert!(
            findings.iter().all(|f| f.level == Level::Ok),
            "{findings:?}"
        );
    }

    /// What is found where one file is another, or is not there.
    fn with(file: &str, text: Option<&str>) -> Finding {
        let files: Vec<(&str, &str)> = WELL
            .iter()
            .filter(|(name, _)| *name != file)
            .copied()
            .chain(text.map(|text| (file, text)))
            .collect();
        let (_dir, machine) = machine(&files);
        let mut bad = check(&machine)
            .into_iter()
            .filter(|finding| finding.level > Level::Ok);
        let first = bad.next().unwrap();
        assert_eq!(bad.next(), None);
        assert!(first.repair.is_some());
        first
    }

    #[test]
    fn each_thing_that_is_missing_is_found_by_one_check_with_a_way_to_repair_it() {
        let found = |file, text| {
            let finding = with(file, text);
            (finding.check, finding.level)
        };
        let (warning, failed) = (Level::Warning, Level::Failed);
        let old = Some("6.1.0-18-amd64");
        assert_eq!(found("proc/sys/kernel/osrelease", old), ("kernel", warning));
        assert_eq!(found("proc/diskstats", None), ("counters", failed));
        assert_eq!(found("sys/block/sda", None), ("counters", failed));
        assert_eq!(found("proc/1/stat", None), ("processes", failed));
        assert_eq!(found("proc/pressure/memory", None), ("pressure", warning));
        let controllers = "sys/fs/cgroup/cgroup.controllers";
        assert_eq!(found(controllers, Some("cpu io")), ("cgroup", warning));
        assert_eq!(found(controllers, None), ("cgroup", warning));
        let lacking = with("proc/self/status", Some("CapEff:\t0000000000080004\n"));
        assert_eq!(lacking.check, "capabilities");
        assert!(lacking.found.contains("CAP_FOWNER"), "{}", lacking.found);
        assert!(
            !lacking.found.contains("CAP_SYS_PTRACE"),
            "{}",
            lacking.found
        );
    }
}
