//! What a guest is, from its domain XML: disks, IOThreads, pins, and whether it has opted in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::str::FromStr;

use blkpilot_env::guard::exploration::Exploration;

use crate::cpuset::CpuSet;
use crate::element::Element;
use crate::error::{HostError, HostResult};
use crate::image_chain::{BackingChain, ImageName};
use crate::throttle::Throttle;

/// XML namespace of the opt-in element:
/// `<blkpilot:tuning xmlns:blkpilot="https://blkpilot.dev/xmlns/1" mode="auto" knobs="channel cache polling"/>`,
/// where `exploration="epsilon=0.05 changes_per_hour=6"` may stand too.
pub const TUNING_NAMESPACE: &str = "https://blkpilot.dev/xmlns/1";

/// A guest as its running domain XML describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Guest {
    /// UUID of the domain.
    pub uuid: String,
    /// Name of the domain.
    pub name: String,
    /// Whether KVM runs it; otherwise QEMU's interpreter, whose vCPUs the kernel cannot tell apart.
    pub is_kvm: bool,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Host CPUs of each pinned vCPU.
    pub vcpu_pins: BTreeMap<u32, CpuSet>,
    /// Ids of the IOThreads.
    pub iothreads: BTreeSet<u32>,
    /// `cpuset` of `<vcpu>`: where everything without a pin of its own may run.
    pub cpuset: Option<CpuSet>,
    /// The disks (CD-ROMs and floppies are left out).
    pub disks: Vec<GuestDisk>,
    /// The opt-in element, if there is one.
    pub opt_in: Option<OptIn>,
}

/// A disk as the domain XML describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestDisk {
    /// Target name, such as `vda`.
    pub target: String,
    /// Device alias, such as `virtio-disk0`: QEMU's id of it.
    pub alias: String,
    /// Image file or block device; `None` for a network disk.
    pub source: Option<PathBuf>,
    /// Image format, `raw` where not given.
    pub format: String,
    /// What the image stands on.
    pub backing: BackingChain,
    /// `cache=`, as booted.
    pub boot_cache: BootCache,
    /// `io=`, as booted.
    pub boot_io: BootIo,
    /// The IOThread that serves it; `None` for QEMU's main loop.
    pub iothread: Option<u32>,
    /// Why the cache strategy must not be changed, where the XML alone says so.
    pub cache_obstacle: Option<&'static str>,
    /// Its limits.
    pub throttle: Throttle,
}

/// Cache mode in the domain XML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootCache {
    /// `none`: direct.
    None,
    /// `directsync`: direct, each write flushed.
    DirectSync,
    /// `writeback`, also the default of QEMU.
    Writeback,
    /// `writethrough`.
    Writethrough,
    /// `unsafe`: flushes are ignored.
    Unsafe,
}

impl BootCache {
    /// Whether it bypasses the host's page cache.
    #[must_use]
    pub fn is_direct(self) -> bool {
        matches!(self, Self::None | Self::DirectSync)
    }

    /// The value of `cache=`.
    #[must_use]
    pub fn attribute(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::DirectSync => "directsync",
            Self::Writeback => "writeback",
            Self::Writethrough => "writethrough",
            Self::Unsafe => "unsafe",
        }
    }
}

impl BootIo {
    /// The value of `io=`; where none is given, that of the default.
    #[must_use]
    pub fn attribute(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Threads | Self::Default => "threads",
            Self::IoUring => "io_uring",
        }
    }
}

/// How QEMU submits I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootIo {
    /// Linux AIO.
    Native,
    /// Threads.
    Threads,
    /// Not given: QEMU's default, which is threads.
    Default,
    /// io_uring.
    IoUring,
}

/// What may be done to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TuningMode {
    /// Nothing, not even reading its monitor.
    Off,
    /// Read.
    Observe,
    /// Read and advise.
    Advise,
    /// Log what a candidate would do.
    Shadow,
    /// Apply a candidate.
    Canary,
    /// Apply the production policy.
    Auto,
}

/// A knob that a guest may allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KnobKind {
    /// Channel of an IOThread.
    Channel,
    /// Cache strategy of a disk.
    Cache,
    /// Polling of an IOThread.
    Polling,
    /// Limits of a disk; no head of a policy.
    Throttle,
    /// Sizes of a disk's qcow2 caches; no head of a policy.
    Qcow2Cache,
}

/// The opt-in of a guest.
#[derive(Debug, Clone, PartialEq)]
pub struct OptIn {
    /// What may be done; the host's mode where it says nothing.
    pub mode: Option<TuningMode>,
    /// To which knobs.
    pub knobs: BTreeSet<KnobKind>,
    /// How much it may be explored; not at all if it says nothing.
    pub exploration: Option<Exploration>,
}

/// What the service's configuration says of one guest.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GuestOverride {
    /// Consent given or withheld in place of the guest's metadata.
    pub opt_in: Option<bool>,
    /// The mode, in place of the metadata's, but not of its `off`.
    pub mode: Option<TuningMode>,
    /// The knobs: with `opt_in` those allowed, else the most of the metadata's that are.
    pub knobs: Option<BTreeSet<KnobKind>>,
    /// How much it is explored, in place of the metadata's.
    pub exploration: Option<Exploration>,
}

impl GuestOverride {
    /// The opt-in that holds for a guest whose metadata has `own`. Only `opt_in` is consent: the
    /// other keys narrow what the guest consented to. `default` is the host's mode.
    #[must_use]
    pub fn settle(&self, own: Option<&OptIn>, default: TuningMode) -> Option<OptIn> {
        let own_mode = own.and_then(|own| own.mode);
        let own_knobs = own.map(|own| own.knobs.clone());
        let (mode, knobs) = match self.opt_in {
            Some(false) => (Some(TuningMode::Off), BTreeSet::new()),
            Some(true) => {
                let own_mode = own_mode.filter(|mode| *mode != TuningMode::Off);
                let knobs = self.knobs.clone().or(own_knobs);
                (
                    self.mode.or(own_mode),
                    knobs.unwrap_or(KnobKind::HEADS.into()),
                )
            }
            None => {
                let mut knobs = own_knobs?;
                if let Some(allowed) = &self.knobs {
                    knobs.retain(|knob| allowed.contains(knob));
                }
                let is_off = own_mode == Some(TuningMode::Off);
                let mode = self.mode.filter(|_| !is_off).or(own_mode);
                (mode, knobs)
            }
        };
        let mode = Some(mode.unwrap_or(default));
        let own_exploration = own.and_then(|own| own.exploration);
        Some(OptIn {
            mode,
            knobs,
            exploration: self.exploration.or(own_exploration),
        })
    }
}

impl KnobKind {
    /// Those of a consent that names none: what goes beyond a policy's heads is asked for by name.
    const HEADS: [Self; 3] = [Self::Channel, Self::Cache, Self::Polling];
}

impl Guest {
    /// Reads a running domain's XML.
    ///
    /// # Errors
    /// `Parse`, also for an opt-in element with an unknown mode or knob: a typing error must not
    /// be taken for consent.
    pub fn from_xml(xml: &str) -> HostResult<Self> {
        let root = Element::parse(xml)?;
        let text = |name: &str| root.child(name).map(|child| child.text.clone());
        let missing = |what: &str| HostError::parse(&format!("domain XML ({what})"), xml);
        let vcpu = root.child("vcpu");
        Ok(Self {
            uuid: text("uuid").ok_or_else(|| missing("uuid"))?,
            name: text("name").ok_or_else(|| missing("name"))?,
            is_kvm: root.attribute("type") == Some("kvm"),
            vcpus: vcpu
                .and_then(|vcpu| vcpu.text.parse().ok())
                .ok_or_else(|| missing("vcpu"))?,
            vcpu_pins: vcpu_pins(&root)?,
            iothreads: iothreads(&root),
            cpuset: vcpu
                .and_then(|vcpu| vcpu.attribute("cpuset"))
                .map(str::parse)
                .transpose()?,
            disks: disks(&root),
            opt_in: opt_in(&root)?,
        })
    }

    /// The disk with this target name.
    #[must_use]
    pub fn disk(&self, target: &str) -> Option<&GuestDisk> {
        self.disks.iter().find(|disk| disk.target == target)
    }

    /// Number of disks that an IOThread serves.
    #[must_use]
    pub fn disks_on(&self, iothread: u32) -> usize {
        self.disks
            .iter()
            .filter(|disk| disk.iothread == Some(iothread))
            .count()
    }

    /// Whether QEMU's monitor may be used for this guest.
    #[must_use]
    pub fn allows_monitor(&self) -> bool {
        self.opt_in
            .as_ref()
            .is_some_and(|opt_in| opt_in.mode != Some(TuningMode::Off))
    }

    /// Whether the guest has opted in to this knob (in whatever mode but `off`).
    #[must_use]
    pub fn allows(&self, knob: KnobKind) -> bool {
        self.allows_monitor()
            && self
                .opt_in
                .as_ref()
                .is_some_and(|opt_in| opt_in.knobs.contains(&knob))
    }
}

impl GuestDisk {
    /// QEMU's `aio` for its images, where libvirt gives it one.
    #[must_use]
    pub fn aio(&self) -> Option<&'static str> {
        (self.boot_io != BootIo::Default).then(|| self.boot_io.attribute())
    }

    /// Path of the device's backend in QEMU's object tree.
    #[must_use]
    pub fn qom_path(&self) -> String {
        format!("/machine/peripheral/{}/virtio-backend", self.alias)
    }
}

impl FromStr for TuningMode {
    type Err = HostError;

    fn from_str(text: &str) -> HostResult<Self> {
        Ok(match text {
            "off" => Self::Off,
            "observe" => Self::Observe,
            "advise" => Self::Advise,
            "shadow" => Self::Shadow,
            "canary" => Self::Canary,
            "auto" => Self::Auto,
            _ => {
                return Err(HostError::parse(
                    "tuning mode (off, observe, advise, shadow, canary or auto)",
                    text,
                ));
            }
        })
    }
}

impl FromStr for KnobKind {
    type Err = HostError;

    fn from_str(text: &str) -> HostResult<Self> {
        Ok(match text {
            "channel" => Self::Channel,
            "cache" => Self::Cache,
            "polling" => Self::Polling,
            "throttle" => Self::Throttle,
            "qcow2-cache" => Self::Qcow2Cache,
            _ => {
                return Err(HostError::parse(
                    "knob (channel, cache, polling, throttle or qcow2-cache)",
                    text,
                ));
            }
        })
    }
}

fn vcpu_pins(root: &Element) -> HostResult<BTreeMap<u32, CpuSet>> {
    let Some(cputune) = root.child("cputune") else {
        return Ok(BTreeMap::new());
    };
    let pins = cputune.children("vcpupin").filter_map(|pin| {
        let vcpu = pin.attribute("vcpu")?.parse().ok()?;
        Some(pin.attribute("cpuset")?.parse().map(|cpus| (vcpu, cpus)))
    });
    pins.collect()
}

fn iothreads(root: &Element) -> BTreeSet<u32> {
    let ids = root.child("iothreadids").map(|ids| {
        ids.children("iothread")
            .filter_map(|id| id.attribute("id")?.parse().ok())
    });
    let listed: BTreeSet<u32> = ids.into_iter().flatten().collect();
    if !listed.is_empty() {
        return listed;
    }
    let count = root
        .child("iothreads")
        .and_then(|count| count.text.parse().ok())
        .unwrap_or(0);
    (1..=count).collect()
}

fn disks(root: &Element) -> Vec<GuestDisk> {
    let devices = root
        .child("devices")
        .map(|devices| devices.children("disk"))
        .into_iter()
        .flatten();
    devices
        .filter(|disk| disk.attribute("device").unwrap_or("disk") == "disk")
        .filter_map(disk)
        .collect()
}

fn disk(element: &Element) -> Option<GuestDisk> {
    let driver = element.child("driver");
    let driver_attribute = |name: &str| driver.and_then(|driver| driver.attribute(name));
    Some(GuestDisk {
        target: element.at(&["target"])?.attribute("dev")?.to_owned(),
        alias: element
            .at(&["alias"])
            .and_then(|alias| alias.attribute("name"))
            .unwrap_or_default()
            .to_owned(),
        source: source_path(element),
        format: driver_attribute("type").unwrap_or("raw").to_owned(),
        backing: backing_chain(element),
        boot_cache: match driver_attribute("cache") {
            Some("none") => BootCache::None,
            Some("directsync") => BootCache::DirectSync,
            Some("writethrough") => BootCache::Writethrough,
            Some("unsafe") => BootCache::Unsafe,
            _ => BootCache::Writeback,
        },
        boot_io: match driver_attribute("io") {
            Some("native") => BootIo::Native,
            Some("io_uring") => BootIo::IoUring,
            Some(_) => BootIo::Threads,
            None => BootIo::Default,
        },
        iothread: driver_attribute("iothread").and_then(|id| id.parse().ok()),
        cache_obstacle: cache_obstacle(element, driver_attribute("cache")),
        throttle: Throttle::from_disk(element),
    })
}

fn source_path(element: &Element) -> Option<PathBuf> {
    let source = element.child("source")?;
    let path = source.attribute("file").or_else(|| source.attribute("dev"));
    path.map(PathBuf::from)
}

/// libvirt nests what an image stands on, and ends the chain with an empty element.
fn backing_chain(disk: &Element) -> BackingChain {
    let mut chain = BackingChain::default();
    let mut above = disk;
    while let Some(store) = above.child("backingStore") {
        if store.children.is_empty() {
            chain.is_complete = true;
            break;
        }
        let format = store
            .child("format")
            .and_then(|format| format.attribute("type"));
        chain.images.push(ImageName {
            path: source_path(store),
            format: format.unwrap_or("raw").to_owned(),
        });
        above = store;
    }
    chain
}

/// A disk that others may open too must stay as libvirt's own safety checks see it in its XML.
fn cache_obstacle(disk: &Element, cache: Option<&str>) -> Option<&'static str> {
    let bus = disk
        .child("target")
        .and_then(|target| target.attribute("bus"));
    if disk.child("shareable").is_some() {
        Some("the disk is shared between guests")
    } else if !matches!(disk.attribute("type"), Some("file" | "block")) {
        Some("the disk is neither a file nor a block device of this host")
    } else if matches!(cache, Some("unsafe" | "directsync" | "writethrough")) {
        Some("its cache mode does more than choose direct or buffered")
    } else if bus != Some("virtio") {
        Some("the disk is not on the virtio bus")
    } else if disk.child("transient").is_some() {
        Some("the disk is transient")
    } else {
        None
    }
}

fn opt_in(root: &Element) -> HostResult<Option<OptIn>> {
    let Some(metadata) = root.child("metadata") else {
        return Ok(None);
    };
    let Some(tuning) = metadata.children.iter().find(|child| is_tuning(child)) else {
        return Ok(None);
    };
    let mode = tuning.attribute("mode").map(str::parse).transpose()?;
    let knobs = tuning.attribute("knobs").unwrap_or("channel cache polling");
    let knobs = knobs
        .split_whitespace()
        .map(str::parse)
        .collect::<HostResult<_>>()?;
    let exploration = tuning.attribute("exploration").map(exploration);
    let exploration = exploration.transpose()?;
    Ok(Some(OptIn {
        mode,
        knobs,
        exploration,
    }))
}

fn exploration(text: &str) -> HostResult<Exploration> {
    let what = "exploration (epsilon=0.05 changes_per_hour=6, within their ranges)";
    text.parse().map_err(|_| HostError::parse(what, text))
}

/// The prefix is the document's choice; the namespace it stands for is ours. libvirt keeps the
/// declaration on the element itself.
fn is_tuning(element: &Element) -> bool {
    let (declaration, local) = match element.name.split_once(':') {
        Some((prefix, local)) => (format!("xmlns:{prefix}"), local),
        None => ("xmlns".to_owned(), element.name.as_str()),
    };
    local == "tuning" && element.attribute(&declaration) == Some(TUNING_NAMESPACE)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// As libvirt 9.0 writes it for a running guest, shortened.
    pub(crate) const XML: &str = r#"<domain type='qemu' id='1'>
  <name>web</name>
  <uuid>ee81b14e-982c-47f4-ac22-70486068cb15</uuid>
  <metadata>
    <x:other xmlns:x="http://example.org/"/>
    <blkpilot:tuning xmlns:blkpilot="https://blkpilot.dev/xmlns/1" mode="auto" knobs="channel cache"/>
  </metadata>
  <vcpu placement='static' cpuset='0-3'>2</vcpu>
  <iothreads>2</iothreads>
  <cputune><vcpupin vcpu='0' cpuset='0'/><vcpupin vcpu='1' cpuset='1'/></cputune>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' io='io_uring' iothread='2'/>
      <source file='/images/web.img' index='1'/>
      <backingStore type='block' index='3'>
        <format type='qcow2'/><source dev='/dev/vg/base'/>
        <backingStore type='network' index='4'><format type='raw'/><source protocol='nbd'/><backingStore/></backingStore>
      </backingStore>
      <target dev='vda' bus='virtio'/>
      <alias name='virtio-disk0'/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/>
      <source dev='/dev/loop1' index='2'/>
      <target dev='vdb' bus='virtio'/>
      <shareable/>
      <alias name='virtio-disk1'/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>
  </devices>
</domain>"#;

    #[test]
    fn a_running_guest_is_read() {
        let guest = Guest::from_xml(XML).unwrap();
        assert_eq!(
            (guest.name.as_str(), guest.vcpus, guest.is_kvm),
            ("web", 2, false)
        );
        assert_eq!(guest.iothreads, BTreeSet::from([1, 2]));
        assert_eq!(guest.vcpu_pins[&1].to_string(), "1");
        let disk = guest.disk("vda").unwrap();
        assert_eq!(
            (disk.boot_cache, disk.boot_io, disk.iothread),
            (BootCache::None, BootIo::IoUring, Some(2))
        );
        assert_eq!(
            disk.qom_path(),
            "/machine/peripheral/virtio-disk0/virtio-backend"
        );
        assert_eq!(disk.cache_obstacle, None);
        assert_eq!(guest.disks.len(), 2);
        assert_eq!(
            guest.disks[1].cache_obstacle,
            Some("the disk is shared between guests")
        );
    }

    #[test]
    fn the_backing_chain_is_read_and_is_complete_only_where_the_xml_says_so() {
        let guest = Guest::from_xml(XML).unwrap();
        let chain = &guest.disks[0].backing;
        let images: Vec<_> = chain
            .images
            .iter()
            .map(|image| (image.path.clone(), image.format.as_str()))
            .collect();
        assert_eq!(
            images,
            [(Some("/dev/vg/base".into()), "qcow2"), (None, "raw")]
        );
        assert!(chain.is_complete);
        assert_eq!(guest.disks[1].backing, BackingChain::default());
    }

    #[test]
    fn opting_in_allows_the_named_knobs_only() {
        let guest = Guest::from_xml(XML).unwrap();
        assert!(guest.allows(KnobKind::Cache) && !guest.allows(KnobKind::Polling));
        let off = Guest::from_xml(&XML.replace("mode=\"auto\"", "mode=\"off\"")).unwrap();
        assert!(!off.allows(KnobKind::Cache) && !off.allows_monitor());
    }

    fn settled(configured: &GuestOverride, xml: &str, default: TuningMode) -> Guest {
        let mut guest = Guest::from_xml(xml).unwrap();
        guest.opt_in = configured.settle(guest.opt_in.as_ref(), default);
        guest
    }

    #[test]
    fn configured_knobs_narrow_those_of_the_metadata() {
        let configured = GuestOverride {
            knobs: Some([KnobKind::Cache, KnobKind::Polling].into()),
            ..GuestOverride::default()
        };
        let guest = settled(&configured, XML, TuningMode::Advise);
        let allowed = KnobKind::HEADS.map(|knob| guest.allows(knob));
        assert_eq!(allowed, [false, true, false]);
    }

    #[test]
    fn a_configured_mode_off_stops_everything_and_no_mode_undoes_the_guests_own() {
        let mode = |mode| GuestOverride {
            mode: Some(mode),
            ..GuestOverride::default()
        };
        let guest = settled(&mode(TuningMode::Off), XML, TuningMode::Auto);
        assert!(!guest.allows_monitor() && !guest.allows(KnobKind::Cache));
        let own = XML.replace("mode=\"auto\"", "mode=\"off\"");
        let guest = settled(&mode(TuningMode::Auto), &own, TuningMode::Auto);
        assert!(!guest.allows_monitor());
    }

    #[test]
    fn the_hosts_mode_holds_for_an_opt_in_without_one_only() {
        let mode_of = |xml: &str| {
            let guest = settled(&GuestOverride::default(), xml, TuningMode::Off);
            guest.opt_in.unwrap().mode
        };
        assert_eq!(mode_of(XML), Some(TuningMode::Auto));
        let without = XML.replace("mode=\"auto\"", "");
        assert_eq!(mode_of(&without), Some(TuningMode::Off));
    }

    #[test]
    fn exploration_is_the_metadatas_unless_the_configuration_has_its_own() {
        let text = "epsilon=0.1 changes_per_hour=2";
        let xml = XML.replace(
            "mode=\"auto\"",
            &format!("mode=\"auto\" exploration=\"{text}\""),
        );
        let of = |configured: &GuestOverride, xml: &str| {
            let guest = settled(configured, xml, TuningMode::Advise);
            guest.opt_in.and_then(|opt_in| opt_in.exploration)
        };
        let own: Exploration = text.parse().unwrap();
        assert_eq!(of(&GuestOverride::default(), &xml), Some(own));
        assert_eq!(of(&GuestOverride::default(), XML), None);
        let none = Exploration {
            epsilon: 0.0,
            ..own
        };
        let configured = GuestOverride {
            exploration: Some(none),
            ..GuestOverride::default()
        };
        assert_eq!(of(&configured, &xml), Some(none));
        let wrong = xml.replace("epsilon=0.1", "epsilon=2");
        let refused = Guest::from_xml(&wrong).unwrap_err().to_string();
        assert!(refused.contains("exploration"), "{refused}");
    }

    #[test]
    fn only_a_configured_opt_in_is_consent() {
        let other = XML.replace("https://blkpilot.dev/xmlns/1", "https://example.org/");
        let with = |opt_in| GuestOverride {
            opt_in,
            mode: Some(TuningMode::Auto),
            knobs: None,
            exploration: None,
        };
        for (opt_in, xml, is_allowed) in [
            (None, &*other, false),
            (Some(true), &*other, true),
            (Some(false), XML, false),
        ] {
            let guest = settled(&with(opt_in), xml, TuningMode::Advise);
            assert_eq!(guest.allows(KnobKind::Cache), is_allowed);
        }
    }

    #[test]
    fn another_namespace_or_a_typing_error_is_no_consent() {
        let other = XML.replace("https://blkpilot.dev/xmlns/1", "https://example.org/");
        assert_eq!(Guest::from_xml(&other).unwrap().opt_in, None);
        assert!(Guest::from_xml(&XML.replace("mode=\"auto\"", "mode=\"atuo\"")).is_err());
    }
}
