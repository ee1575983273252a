//! Domain types to wire types and back: the only place that knows both.
//!
//! What comes off the wire is checked here for shape, so that nothing behind this module meets a
//! table whose values do not fill it.

pub mod names;
pub mod status;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use blkpilot_env::observation::MaskReason;
use blkpilot_env::spec::{Projection, Scale, Unit};
use blkpilot_env::{
    Autoreset, EnvSpec, Feature, Head, HeadScope, JointAction, Level, Levels, Masks, Observation,
    Rewards, Step, Table, Validity,
};
use blkpilot_proto::v1;
use ndarray::{Array1, Array2, Array3};
use thiserror::Error;

use self::status::Failure;

/// Microseconds since 1970 UTC as a moment.
pub(crate) fn timestamp(at_us: i64) -> prost_types::Timestamp {
    let since = Duration::from_micros(u64::try_from(at_us).unwrap_or(0));
    SystemTime::checked_add(&UNIX_EPOCH, since)
        .unwrap_or(UNIX_EPOCH)
        .into()
}

/// A field of a message that does not say what it should.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field}: {problem}")]
pub struct WireError {
    /// Path of the field, such as `action.disks.levels`.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

impl WireError {
    pub(crate) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
        }
    }

    fn under(mut self, parent: &str) -> Self {
        self.field = format!("{parent}.{}", self.field);
        self
    }
}

/// Pairs of a domain enum's value and its wire value, with both directions.
macro_rules! wire_enum {
    ($to:ident, $from:ident, $domain:ty, $wire:ty, [$($d:ident = $w:ident),+ $(,)?]) => {
        pub(crate) fn $to(value: $domain) -> $wire {
            match value { $(<$domain>::$d => <$wire>::$w,)+ }
        }

        pub(crate) fn $from(field: &str, value: i32) -> Result<$domain, WireError> {
            match <$wire>::try_from(value) {
                $(Ok(<$wire>::$w) => Ok(<$domain>::$d),)+
                _ => Err(WireError::new(field, format!("{value} is not a value of this enum"))),
            }
        }
    };
}

wire_enum!(
    unit_to_wire,
    unit_from_wire,
    Unit,
    v1::Unit,
    [
        Share = Share,
        Flag = Flag,
        Count = Count,
        PerSecond = PerSecond,
        MebibytesPerSecond = MebibytesPerSecond,
        Microseconds = Microseconds,
        Kibibytes = Kibibytes,
        Gibibytes = Gibibytes,
        Cores = Cores,
        Intervals = Intervals,
        Ratio = Ratio,
        Metres = Metres,
        MetresPerSecond = MetresPerSecond,
        Radians = Radians,
        RadiansPerSecond = RadiansPerSecond,
    ]
);
wire_enum!(
    scale_to_wire,
    scale_from_wire,
    Scale,
    v1::Scale,
    [Linear = Linear, Log = Log]
);
wire_enum!(
    scope_to_wire,
    scope_from_wire,
    HeadScope,
    v1::HeadScope,
    [Disk = Disk, IoThread = IoThread, Device = Device,]
);
wire_enum!(
    autoreset_to_wire,
    autoreset_from_wire,
    Autoreset,
    v1::Autoreset,
    [
        Disabled = Disabled,
        NextStep = NextStep,
        SameStep = SameStep,
    ]
);
wire_enum!(
    validity_to_wire,
    validity_from_wire,
    Validity,
    v1::Validity,
    [
        Valid = Valid,
        Estimated = Estimated,
        Stale = Stale,
        Idle = Idle,
        NotOptedIn = NotOptedIn,
        Unsupported = Unsupported,
        CounterReset = CounterReset,
    ]
);
wire_enum!(
    mask_to_wire,
    mask_from_wire,
    MaskReason,
    v1::MaskReason,
    [
        Allowed = Allowed,
        NoIoThread = NoIoThread,
        TiedToIoThread = TiedToIoThread,
        SharedIoThread = SharedIoThread,
        AioNative = AioNative,
        NotEnabled = NotEnabled,
        NotOptedIn = NotOptedIn,
        Unsupported = Unsupported,
        Frozen = Frozen,
        JobRunning = JobRunning,
        Dwell = Dwell,
        Unresponsive = Unresponsive,
        RateLimit = RateLimit,
        BreakerOpen = BreakerOpen,
        WritingBack = WritingBack,
        WritesTooFast = WritesTooFast,
        MemoryPressure = MemoryPressure,
        MemoryLimit = MemoryLimit,
        WriteErrors = WriteErrors,
        SharedStorage = SharedStorage,
        DedicatedCpu = DedicatedCpu,
        RecentlyUndone = RecentlyUndone,
    ]
);

pub(crate) fn spec_to_wire(spec: &EnvSpec) -> v1::EnvSpec {
    let features = |columns: &[Feature]| columns.iter().map(feature_to_wire).collect();
    let heads = |heads: &[Head]| heads.iter().map(head_to_wire).collect();
    v1::EnvSpec {
        kind: spec.name.clone(),
        disk_features: features(&spec.disk_features),
        channel_features: features(&spec.channel_features),
        pair_features: features(&spec.pair_features),
        device_features: features(&spec.device_features),
        host_features: features(&spec.host_features),
        disk_heads: heads(&spec.disk_heads),
        device_heads: heads(&spec.device_heads),
        projections: spec.projections.iter().map(projection_to_wire).collect(),
        reward_terms: spec.reward_terms.clone(),
        reward_low: spec.reward_range.0,
        reward_high: spec.reward_range.1,
        autoreset: autoreset_to_wire(spec.autoreset).into(),
        hash: spec.hash(),
    }
}

pub(crate) fn spec_from_wire(spec: v1::EnvSpec) -> Result<EnvSpec, WireError> {
    let features = |columns: Vec<v1::Feature>| -> Result<Vec<Feature>, WireError> {
        columns.into_iter().map(feature_from_wire).collect()
    };
    let heads = |heads: Vec<v1::Head>| -> Result<Vec<Head>, WireError> {
        heads.into_iter().map(head_from_wire).collect()
    };
    let projections = spec.projections.into_iter().map(projection_from_wire);
    Ok(EnvSpec {
        name: spec.kind,
        disk_features: features(spec.disk_features)?,
        channel_features: features(spec.channel_features)?,
        pair_features: features(spec.pair_features)?,
        device_features: features(spec.device_features)?,
        host_features: features(spec.host_features)?,
        disk_heads: heads(spec.disk_heads)?,
        device_heads: heads(spec.device_heads)?,
        projections: projections.collect::<Result<_, _>>()?,
        reward_terms: spec.reward_terms,
        reward_range: (spec.reward_low, spec.reward_high),
        autoreset: autoreset_from_wire("autoreset", spec.autoreset)?,
    })
}

fn feature_to_wire(feature: &Feature) -> v1::Feature {
    v1::Feature {
        name: feature.name.clone(),
        unit: unit_to_wire(feature.unit).into(),
        low: feature.low,
        high: feature.high,
        scale: scale_to_wire(feature.scale).into(),
        description: feature.doc.clone(),
    }
}

fn feature_from_wire(feature: v1::Feature) -> Result<Feature, WireError> {
    Ok(Feature {
        unit: unit_from_wire("unit", feature.unit)?,
        scale: scale_from_wire("scale", feature.scale)?,
        name: feature.name,
        low: feature.low,
        high: feature.high,
        doc: feature.description,
    })
}

fn head_to_wire(head: &Head) -> v1::Head {
    use v1::head::Levels as Wire;
    let levels = match &head.levels {
        Levels::Named(names) => Wire::Named(v1::NamedLevels {
            names: names.clone(),
        }),
        Levels::Channels { zero } => Wire::Channels(v1::ChannelLevels { zero: zero.clone() }),
    };
    v1::Head {
        name: head.name.clone(),
        levels: Some(levels),
        scope: scope_to_wire(head.scope).into(),
    }
}

fn head_from_wire(head: v1::Head) -> Result<Head, WireError> {
    use v1::head::Levels as Wire;
    let levels = match head.levels {
        Some(Wire::Named(v1::NamedLevels { names })) => Levels::Named(names),
        Some(Wire::Channels(v1::ChannelLevels { zero })) => Levels::Channels { zero },
        None => return Err(WireError::new("levels", "is missing")),
    };
    Ok(Head {
        levels,
        scope: scope_from_wire("scope", head.scope)?,
        name: head.name,
    })
}

fn projection_to_wire(projection: &Projection) -> v1::Projection {
    use v1::projection::{self, Kind};
    let kind = match *projection {
        Projection::ChannelCount { feature } => Kind::ChannelCount(projection::ChannelCount {
            feature: feature as u32,
        }),
        Projection::ChannelSum {
            feature,
            disk_feature,
        } => Kind::ChannelSum(projection::ChannelSum {
            feature: feature as u32,
            disk_feature: disk_feature as u32,
        }),
        Projection::DeviceCount {
            feature,
            head,
            level,
        } => Kind::DeviceCount(projection::DeviceCount {
            feature: feature as u32,
            head: head as u32,
            level: level.into(),
        }),
    };
    v1::Projection { kind: Some(kind) }
}

fn projection_from_wire(projection: v1::Projection) -> Result<Projection, WireError> {
    use v1::projection::Kind;
    Ok(match projection.kind {
        Some(Kind::ChannelCount(p)) => Projection::ChannelCount {
            feature: p.feature as usize,
        },
        Some(Kind::ChannelSum(p)) => Projection::ChannelSum {
            feature: p.feature as usize,
            disk_feature: p.disk_feature as usize,
        },
        Some(Kind::DeviceCount(p)) => Projection::DeviceCount {
            feature: p.feature as usize,
            head: p.head as usize,
            level: level_from_wire("level", p.level)?,
        },
        None => return Err(WireError::new("kind", "is missing")),
    })
}

pub(crate) fn observation_to_wire(obs: &Observation) -> v1::Observation {
    let (n, k, p) = obs.pairs.dim();
    let groups = obs.disk_group.iter();
    v1::Observation {
        disk_ids: obs.disk_ids.clone(),
        device_ids: obs.device_ids.clone(),
        channel_ids: obs.channel_ids.clone(),
        disks: Some(table_to_wire(&obs.disks)),
        channels: Some(table_to_wire(&obs.channels)),
        pairs: Some(v1::Tensor {
            shape: vec![n as u32, k as u32, p as u32],
            values: obs.pairs.iter().copied().collect(),
        }),
        devices: Some(table_to_wire(&obs.devices)),
        host: Some(table_to_wire(&obs.host)),
        disk_device: obs.disk_device.iter().map(|d| *d as u32).collect(),
        disk_group: groups.map(|g| g.map_or(-1, |g| g as i32)).collect(),
        current: Some(action_to_wire(&obs.current)),
        default: Some(action_to_wire(&obs.default)),
        masks: Some(masks_to_wire(&obs.masks)),
    }
}

/// An observation off the wire.
///
/// # Errors
/// The field that does not say what it should, or whose values do not fill its shape.
pub fn observation_from_wire(obs: v1::Observation) -> Result<Observation, WireError> {
    let groups = obs.disk_group.into_iter();
    let (disks, devices) = (obs.disk_ids.len(), obs.device_ids.len());
    Ok(Observation {
        disks: table_from_wire("disks", obs.disks)?,
        channels: table_from_wire("channels", obs.channels)?,
        pairs: pairs_from_wire(obs.pairs)?,
        devices: table_from_wire("devices", obs.devices)?,
        host: table_from_wire("host", obs.host)?,
        disk_device: obs.disk_device.into_iter().map(|d| d as usize).collect(),
        disk_group: groups.map(|g| usize::try_from(g).ok()).collect(),
        current: action_from_wire("current", obs.current)?,
        default: action_from_wire("default", obs.default)?,
        masks: masks_from_wire(obs.masks, disks, devices)?,
        disk_ids: obs.disk_ids,
        device_ids: obs.device_ids,
        channel_ids: obs.channel_ids,
    })
}

fn table_to_wire(table: &Table) -> v1::Table {
    let all_valid = table.validity.iter().all(|v| *v == Validity::Valid);
    let all_fresh = table.age_s.iter().all(|age| *age == 0.0);
    let validity = || {
        table
            .validity
            .iter()
            .map(|v| validity_to_wire(*v).into())
            .collect()
    };
    v1::Table {
        rows: table.values.nrows() as u32,
        columns: table.values.ncols() as u32,
        values: table.values.iter().copied().collect(),
        validity: if all_valid { vec![] } else { validity() },
        age_seconds: if all_fresh {
            vec![]
        } else {
            table.age_s.iter().copied().collect()
        },
    }
}

fn table_from_wire(field: &str, table: Option<v1::Table>) -> Result<Table, WireError> {
    let table = table.ok_or_else(|| WireError::new(field, "is missing"))?;
    let shape = (table.rows as usize, table.columns as usize);
    // First, so that the shape is known to be honest before anything of its size is allocated.
    let values = filled(&format!("{field}.values"), shape, table.values)?;
    let validity = if table.validity.is_empty() {
        Array2::default(shape)
    } else {
        let path = format!("{field}.validity");
        let values = table
            .validity
            .into_iter()
            .map(|v| validity_from_wire(&path, v));
        filled(&path, shape, values.collect::<Result<_, _>>()?)?
    };
    let age_s = if table.age_seconds.is_empty() {
        Array2::zeros(shape)
    } else {
        filled(&format!("{field}.age_seconds"), shape, table.age_seconds)?
    };
    Ok(Table {
        values,
        validity,
        age_s,
    })
}

fn pairs_from_wire(pairs: Option<v1::Tensor>) -> Result<Array3<f32>, WireError> {
    let pairs = pairs.ok_or_else(|| WireError::new("pairs", "is missing"))?;
    let [n, k, p] = pairs.shape[..] else {
        return Err(WireError::new("pairs.shape", "must have three extents"));
    };
    let shape = (n as usize, k as usize, p as usize);
    Array3::from_shape_vec(shape, pairs.values)
        .map_err(|_| WireError::new("pairs.values", format!("do not fill {shape:?}")))
}

/// Row-major values as a matrix. Extents off the wire are not trusted: nothing is allocated before
/// the number of values is known to match.
fn filled<T>(field: &str, shape: (usize, usize), values: Vec<T>) -> Result<Array2<T>, WireError> {
    let got = values.len();
    Array2::from_shape_vec(shape, values).map_err(|_| {
        WireError::new(
            field,
            format!(
                "has {got} values, which do not fill {} × {}",
                shape.0, shape.1
            ),
        )
    })
}

pub(crate) fn action_to_wire(action: &JointAction) -> v1::JointAction {
    v1::JointAction {
        disks: Some(levels_to_wire(&action.disks)),
        devices: Some(levels_to_wire(&action.devices)),
    }
}

fn levels_to_wire(levels: &Array2<Level>) -> v1::LevelTable {
    v1::LevelTable {
        rows: levels.nrows() as u32,
        heads: levels.ncols() as u32,
        levels: levels.iter().map(|level| u32::from(*level)).collect(),
    }
}

pub(crate) fn action_from_wire(
    field: &str,
    action: Option<v1::JointAction>,
) -> Result<JointAction, WireError> {
    let action = action.ok_or_else(|| WireError::new(field, "is missing"))?;
    Ok(JointAction {
        disks: levels_from_wire("disks", action.disks).map_err(|e| e.under(field))?,
        devices: levels_from_wire("devices", action.devices).map_err(|e| e.under(field))?,
    })
}

fn levels_from_wire(
    field: &str,
    table: Option<v1::LevelTable>,
) -> Result<Array2<Level>, WireError> {
    let table = table.unwrap_or_default();
    let path = format!("{field}.levels");
    let levels = table
        .levels
        .into_iter()
        .map(|level| level_from_wire(&path, level));
    let shape = (table.rows as usize, table.heads as usize);
    filled(&path, shape, levels.collect::<Result<_, _>>()?)
}

fn level_from_wire(field: &str, level: u32) -> Result<Level, WireError> {
    Level::try_from(level).map_err(|_| {
        WireError::new(
            field,
            format!("{level} is too large for a level: at most {}", Level::MAX),
        )
    })
}

fn masks_to_wire(masks: &Masks) -> v1::Masks {
    let reasons =
        |table: &Array2<MaskReason>| table.iter().map(|m| mask_to_wire(*m).into()).collect();
    v1::Masks {
        disk_width: masks.disks.ncols() as u32,
        disks: reasons(&masks.disks),
        device_width: masks.devices.ncols() as u32,
        devices: reasons(&masks.devices),
    }
}

fn masks_from_wire(
    masks: Option<v1::Masks>,
    disks: usize,
    devices: usize,
) -> Result<Masks, WireError> {
    let masks = masks.ok_or_else(|| WireError::new("masks", "is missing"))?;
    let table = |field: &str, shape, reasons: Vec<i32>| {
        let reasons = reasons
            .into_iter()
            .map(|reason| mask_from_wire(field, reason));
        filled(field, shape, reasons.collect::<Result<_, _>>()?)
    };
    Ok(Masks {
        disks: table(
            "masks.disks",
            (disks, masks.disk_width as usize),
            masks.disks,
        )?,
        devices: table(
            "masks.devices",
            (devices, masks.device_width as usize),
            masks.devices,
        )?,
    })
}

pub(crate) fn step_to_wire(step: &Step) -> v1::StepResponse {
    v1::StepResponse {
        observation: Some(observation_to_wire(&step.observation)),
        rewards: Some(rewards_to_wire(&step.rewards)),
        executed: Some(action_to_wire(&step.executed)),
        terminated: step.terminated,
        truncated: step.truncated,
        final_observation: step.final_observation.as_deref().map(observation_to_wire),
        steps: vec![],
    }
}

/// What came of a step, off the wire; of the only environment of a resource.
///
/// # Errors
/// As [`observation_from_wire`].
pub fn step_from_wire(step: v1::StepResponse) -> Result<Step, WireError> {
    let observation = step
        .observation
        .ok_or_else(|| WireError::new("observation", "is missing"))?;
    let last = step.final_observation.map(observation_from_wire);
    Ok(Step {
        observation: observation_from_wire(observation).map_err(|e| e.under("observation"))?,
        rewards: rewards_from_wire(step.rewards).map_err(|e| e.under("rewards"))?,
        executed: action_from_wire("executed", step.executed)?,
        terminated: step.terminated,
        truncated: step.truncated,
        final_observation: last
            .transpose()
            .map_err(|e| e.under("final_observation"))?
            .map(Box::new),
    })
}

fn rewards_to_wire(rewards: &Rewards) -> v1::Rewards {
    let (n, terms) = rewards.terms.dim();
    v1::Rewards {
        total: rewards.total.to_vec(),
        own: rewards.own.to_vec(),
        terms: Some(v1::Tensor {
            shape: vec![n as u32, terms as u32],
            values: rewards.terms.iter().copied().collect(),
        }),
        counted: rewards.counted.clone(),
    }
}

fn rewards_from_wire(rewards: Option<v1::Rewards>) -> Result<Rewards, WireError> {
    let rewards = rewards.ok_or_else(|| WireError::new("total", "is missing"))?;
    let terms = rewards.terms.unwrap_or_default();
    let shape = match terms.shape[..] {
        [n, terms] => (n as usize, terms as usize),
        _ => return Err(WireError::new("terms.shape", "must have two extents")),
    };
    Ok(Rewards {
        total: Array1::from(rewards.total),
        own: Array1::from(rewards.own),
        terms: filled("terms.values", shape, terms.values)?,
        counted: rewards.counted,
    })
}

/// Most bytes of a reason.
const LONGEST_REASON: usize = 1000;

/// Why the guard is to be passed by; `None` if it is not.
///
/// # Errors
/// `INVALID_ARGUMENT` of `field`: blank or too long.
pub(crate) fn force_reason_from_wire(field: &str, reason: &str) -> Result<Option<String>, Failure> {
    let trimmed = reason.trim();
    if reason.is_empty() {
        return Ok(None);
    }
    if trimmed.is_empty() || trimmed.len() > LONGEST_REASON {
        let problem = format!("must say why, in at most {LONGEST_REASON} bytes");
        return Err(Failure::field(field, problem));
    }
    Ok(Some(trimmed.to_owned()))
}
