//! The interrupts of devices, from `/proc/interrupts` and `/proc/irq`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::cpuset::CpuSet;
use crate::sysfs::{attribute, last_name, names, number};

/// An interrupt line or vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interrupt {
    /// Its number.
    pub number: u32,
    /// Who handles it, such as `nvme0q1`: several where it is shared.
    pub handlers: Vec<String>,
    /// CPUs that it goes to now; empty where the kernel does not say.
    pub cpus: CpuSet,
    /// Times that it came since boot, over all CPUs.
    pub count: u64,
}

/// All interrupts with a number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Interrupts(Vec<Interrupt>);

impl Interrupts {
    /// `proc_root` is `/proc`. Empty where it cannot be read.
    pub(crate) fn read(proc_root: &Path) -> Self {
        let text = fs::read_to_string(proc_root.join("interrupts")).unwrap_or_default();
        let cpus = text
            .lines()
            .next()
            .map_or(0, |header| header.split_whitespace().count());
        let interrupts = text.lines().skip(1).filter_map(|line| parse(line, cpus));
        let placed = interrupts.map(|interrupt| Interrupt {
            cpus: affinity(&proc_root.join("irq").join(interrupt.number.to_string())),
            ..interrupt
        });
        Self(placed.collect())
    }

    /// Those of the device with this directory (without links), or of its controller: of the nearest
    /// device above that has any.
    pub(crate) fn of_device(&self, dir: &Path) -> Vec<Interrupt> {
        let found = dir.ancestors().find_map(|above| {
            let numbers = numbers(above);
            let bus_name = last_name(above);
            let is_its = |interrupt: &&Interrupt| {
                numbers.contains(&interrupt.number) || interrupt.is_of(&bus_name)
            };
            let its: Vec<Interrupt> = self.0.iter().filter(is_its).cloned().collect();
            (!its.is_empty()).then_some(its)
        });
        found.unwrap_or_default()
    }
}

impl Interrupt {
    /// Whether a handler is named after a device without numbers in sysfs: virtio over MMIO calls its
    /// `virtio0`.
    fn is_of(&self, bus_name: &str) -> bool {
        bus_name.starts_with("virtio") && self.handlers.iter().any(|name| name == bus_name)
    }
}

/// Numbers of a PCI device: message-signalled, else its line.
fn numbers(dir: &Path) -> BTreeSet<u32> {
    let messages = names(&dir.join("msi_irqs"));
    let messages: BTreeSet<u32> = messages
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect();
    if messages.is_empty() {
        number(dir, "irq")
            .into_iter()
            .filter(|line| *line > 0)
            .collect()
    } else {
        messages
    }
}

/// `35:  0  12  PCI-MSIX-0000:00:04.0  1-edge  nvme0q1`, with as many counts as CPUs in the header.
fn parse(line: &str, cpus: usize) -> Option<Interrupt> {
    let (number, rest) = line.split_once(':')?;
    let number = number.trim().parse().ok()?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let counts = words
        .get(..cpus)?
        .iter()
        .map(|word| word.parse::<u64>().ok());
    let count = counts.sum::<Option<u64>>()?;
    let after = words[cpus..].join(" ");
    let handlers = after
        .split(',')
        .filter_map(|part| part.split_whitespace().last());
    Some(Interrupt {
        number,
        handlers: handlers.map(str::to_owned).collect(),
        cpus: CpuSet::default(),
        count,
    })
}

/// Where it goes to now, else where it may go.
fn affinity(dir: &Path) -> CpuSet {
    let list = |file| attribute(dir, file)?.parse().ok();
    list("effective_affinity_list")
        .or_else(|| list("smp_affinity_list"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysfs::tests::tree;

    const TEXT: &str = "            CPU0       CPU1
   0:         40          0   IO-APIC   2-edge      timer
  11:          0          3   IO-APIC  11-fasteoi   ahci[0000:00:1f.2], i801_smbus
  24:          0         22   PCI-MSIX-0000:00:04.0   0-edge      nvme0q0
  25:        100          0   PCI-MSIX-0000:00:04.0   1-edge      nvme0q1
  30:          5          6   edge      virtio0
  99:          5
 NMI:          0          0   Non-maskable interrupts
";

    fn handlers(sys: &Path, dir: &str) -> Vec<String> {
        let interrupts = Interrupts::read(&sys.join("proc"));
        let found = interrupts.of_device(&sys.join(dir));
        found
            .into_iter()
            .flat_map(|interrupt| interrupt.handlers)
            .collect()
    }

    #[test]
    fn a_device_has_the_interrupts_of_the_nearest_device_above_with_any() {
        let root = tree(&[
            ("proc/interrupts", TEXT),
            ("devices/0000:00:04.0/msi_irqs/24", "msix\n"),
            ("devices/0000:00:04.0/msi_irqs/25", "msix\n"),
            ("devices/0000:00:04.0/irq", "11\n"),
            ("devices/0000:00:04.0/nvme/nvme0/nvme0n1/size", "1\n"),
            ("devices/0000:00:1f.2/irq", "11\n"),
            ("devices/0000:00:1f.2/ata1/block/sda/size", "1\n"),
            ("devices/virtio-mmio/virtio0/block/vda/size", "1\n"),
            ("devices/virtual/block/dm-0/size", "1\n"),
        ]);
        let of = |dir| handlers(root.path(), dir);
        assert_eq!(
            of("devices/0000:00:04.0/nvme/nvme0/nvme0n1"),
            ["nvme0q0", "nvme0q1"]
        );
        assert_eq!(
            of("devices/0000:00:1f.2/ata1/block/sda"),
            ["ahci[0000:00:1f.2]", "i801_smbus"]
        );
        assert_eq!(of("devices/virtio-mmio/virtio0/block/vda"), ["virtio0"]);
        assert!(of("devices/virtual/block/dm-0").is_empty());
    }

    #[test]
    fn counts_are_summed_and_the_effective_affinity_is_preferred() {
        let root = tree(&[
            ("interrupts", TEXT),
            ("irq/25/effective_affinity_list", "1\n"),
            ("irq/25/smp_affinity_list", "0-1\n"),
            ("irq/24/smp_affinity_list", "0-1\n"),
        ]);
        let Interrupts(all) = Interrupts::read(root.path());
        let numbers: Vec<u32> = all.iter().map(|interrupt| interrupt.number).collect();
        assert_eq!(
            numbers,
            [0, 11, 24, 25, 30],
            "a line that is cut off is left out"
        );
        let of = |wanted| {
            all.iter()
                .find(|interrupt| interrupt.number == wanted)
                .unwrap()
        };
        assert_eq!((of(25).count, of(25).cpus.to_string()), (100, "1".into()));
        assert_eq!(of(24).cpus.to_string(), "0-1");
        assert!(of(0).cpus.is_empty());
    }

    #[test]
    fn a_missing_or_broken_file_has_no_interrupts() {
        let root = tree(&[("interrupts", "\u{1}\n:::\n5: x y z\n")]);
        assert_eq!(Interrupts::read(root.path()), Interrupts::default());
        assert_eq!(
            Interrupts::read(&root.path().join("none")),
            Interrupts::default()
        );
    }
}
