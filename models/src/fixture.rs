//! Specs and observations of any size for the tests of this crate.

use blkpilot_env::{
    Autoreset, EnvSpec, Feature, Head, HeadScope, JointAction, Level, Levels, MaskReason, Masks,
    Observation, Rng, Scale, Table, Unit,
};
use ndarray::{Array2, Array3};
use rand::RngExt as _;

/// How large a made-up environment is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) disks: usize,
    pub(crate) channels: usize,
    pub(crate) devices: usize,
    /// Columns of the disk, channel, pair, device and host tables.
    pub(crate) columns: [usize; 5],
    pub(crate) has_channel_head: bool,
    pub(crate) has_device_head: bool,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            disks: 3,
            channels: 4,
            devices: 2,
            columns: [5, 3, 2, 3, 2],
            has_channel_head: true,
            has_device_head: true,
        }
    }
}

impl Sizes {
    pub(crate) fn spec(&self) -> EnvSpec {
        let [disk, channel, pair, device, host] = self.columns;
        let head = |name: &str, levels, scope| Head {
            name: name.to_owned(),
            levels,
            scope,
        };
        let named = |names: &[&str]| Levels::Named(names.iter().map(|n| (*n).to_owned()).collect());
        let mut disk_heads = vec![
            head("cache", named(&["direct", "buffered"]), HeadScope::Disk),
            head(
                "polling",
                named(&["off", "low", "high"]),
                HeadScope::IoThread,
            ),
        ];
        if self.has_channel_head {
            let channels = Levels::Channels {
                zero: "float".to_owned(),
            };
            disk_heads.insert(1, head("channel", channels, HeadScope::IoThread));
        }
        let mut device_heads = Vec::new();
        if self.has_device_head {
            device_heads.push(head(
                "scheduler",
                named(&["none", "bfq", "kyber"]),
                HeadScope::Device,
            ));
        }
        EnvSpec {
            name: "made_up".to_owned(),
            disk_features: features("disk", disk),
            channel_features: features("channel", channel),
            pair_features: features("pair", pair),
            device_features: features("device", device),
            host_features: features("host", host),
            disk_heads,
            device_heads,
            projections: vec![],
            reward_terms: vec!["term".to_owned()],
            reward_range: (-1.0, 0.0),
            autoreset: Autoreset::Disabled,
        }
    }

    /// Values from 0 to 8 and the given share of levels masked, with no more sense than that.
    pub(crate) fn observation(&self, masked: f64, rng: &mut Rng) -> Observation {
        let spec = self.spec();
        let [disk, channel, pair, device, host] = self.columns;
        let levels = |rows: usize, heads: &[Head]| {
            let zeros: Array2<Level> = Array2::zeros((rows, heads.len()));
            zeros
        };
        let action = JointAction {
            disks: levels(self.disks, &spec.disk_heads),
            devices: levels(self.devices, &spec.device_heads),
        };
        let pairs = (self.disks, self.channels, pair);
        Observation {
            disk_ids: (0..self.disks).map(|i| format!("guest/disk-{i}")).collect(),
            device_ids: (0..self.devices).map(|i| format!("device-{i}")).collect(),
            channel_ids: (0..self.channels).map(|i| format!("channel-{i}")).collect(),
            disks: table(self.disks, disk, rng),
            channels: table(self.channels, channel, rng),
            pairs: Array3::from_shape_simple_fn(pairs, || rng.random_range(0.0..8.0)),
            devices: table(self.devices, device, rng),
            host: table(1, host, rng),
            disk_device: (0..self.disks)
                .filter(|_| self.devices > 0)
                .map(|i| i % self.devices.max(1))
                .collect(),
            disk_group: vec![None; self.disks],
            current: action.clone(),
            default: action,
            masks: self.masks(&spec, masked, rng),
        }
    }

    fn masks(&self, spec: &EnvSpec, masked: f64, rng: &mut Rng) -> Masks {
        let mut masks = Masks::all_allowed(spec, self.disks, self.channels, self.devices);
        for cell in masks.disks.iter_mut().chain(&mut masks.devices) {
            if rng.random_bool(masked) {
                *cell = MaskReason::Frozen;
            }
        }
        masks
    }
}

fn features(table: &str, count: usize) -> Vec<Feature> {
    let feature = |i: usize| Feature {
        name: format!("{table}_{i}"),
        unit: Unit::Count,
        low: 0.0,
        high: 8.0,
        scale: if i.is_multiple_of(2) {
            Scale::Linear
        } else {
            Scale::Log
        },
        doc: String::new(),
    };
    (0..count).map(feature).collect()
}

fn table(rows: usize, columns: usize, rng: &mut Rng) -> Table {
    let values = Array2::from_shape_simple_fn((rows, columns), || rng.random_range(0.0..8.0));
    Table {
        values,
        ..Table::zeros(rows, columns)
    }
}
