//! Hosts, guests and decisions as `TunerService` shows them.

use blkpilot_env::observation::head_slice;
use blkpilot_env::reward::RewardConfig;
use blkpilot_env::{EnvSpec, Head, Level, MaskReason, Observation, Table, Validity};
use blkpilot_host::device::{DeviceState, SettingState};
use blkpilot_host::disk_setting::{DiskSetting, DiskSettingState};
use blkpilot_host::journal::RecordState;
use blkpilot_log::{DecisionRow, HeadRow, Source as LogSource, Stage, Subject};
use blkpilot_proto::v1;

use crate::backend::{BackendKind, DaemonStatus, FrozenKnob};
use crate::config::mode::Mode;
use crate::decision::chain::Counts;
use crate::decision::{Decision, PolicyRef, Source, State};
use crate::owner::handle::{
    HostHandle, HostInfo, HostState, RewardChange, ShownDisk, ShownExploration, ShownGuest,
    ShownWindow,
};
use crate::wire::names::{Row, decision_name, guest_name, host_name};
use crate::wire::{mask_to_wire, timestamp, validity_to_wire};

pub(crate) fn host_to_wire(handle: &HostHandle) -> v1::Host {
    let (info, view) = (&handle.info, handle.view.borrow().clone());
    let (state, reason) = match view.state {
        HostState::Starting => (v1::HostState::Starting, String::new()),
        HostState::Ready => (v1::HostState::Ready, String::new()),
        HostState::Unavailable(reason) => (v1::HostState::Unavailable, reason),
    };
    let window = view.window.as_deref();
    v1::Host {
        name: host_name(&info.name),
        backend: backend_to_wire(info.kind).into(),
        state: state.into(),
        unavailable_reason: reason,
        interval: prost_types::Duration::try_from(info.interval).ok(),
        policy: Some(policy_to_wire(&view.policy)),
        default_mode: mode_to_wire(view.default_mode).into(),
        observe_time: window.map(|window| timestamp(window.at_us)),
        channels: window.map_or(vec![], |window| window.observation.channel_ids.clone()),
        policy_error: view.policy_error.unwrap_or_default(),
        candidate: view.candidate.as_ref().map(policy_to_wire),
        fallbacks: Some(counts_to_wire(view.fallbacks)),
        candidate_error: view.candidate_error.unwrap_or_default(),
        candidate_fallbacks: Some(counts_to_wire(view.candidate_fallbacks)),
        tuning_daemons: view.tuning_daemons.iter().map(daemon_to_wire).collect(),
        reward_weights: Some(reward_to_wire(&view.reward)),
    }
}

pub(crate) fn reward_to_wire(reward: &RewardConfig) -> v1::RewardWeights {
    v1::RewardWeights {
        cpu: Some(reward.cpu),
        page_cache: Some(reward.page_cache),
        writeback: Some(reward.writeback),
        change: Some(reward.change),
        slo: Some(reward.slo),
        slo_p99_us: reward.slo_p99_us,
    }
}

pub(crate) fn reward_change_from_wire(weights: &v1::RewardWeights) -> RewardChange {
    RewardChange {
        cpu: weights.cpu,
        page_cache: weights.page_cache,
        writeback: weights.writeback,
        change: weights.change,
        slo: weights.slo,
        slo_p99_us: weights.slo_p99_us,
    }
}

fn backend_to_wire(kind: BackendKind) -> v1::host::Backend {
    match kind {
        BackendKind::Simulated => v1::host::Backend::Simulated,
        BackendKind::Libvirt => v1::host::Backend::Libvirt,
    }
}

fn daemon_to_wire(status: &DaemonStatus) -> v1::TuningDaemon {
    let daemon = &status.daemon;
    v1::TuningDaemon {
        name: daemon.kind.to_string(),
        pid: daemon.pid,
        settings: daemon.settings.clone(),
        claims: daemon.claims.iter().map(ToString::to_string).collect(),
        conflicts: status.conflicts.clone(),
        meaning: daemon.meaning().to_owned(),
    }
}

fn counts_to_wire(counts: Counts) -> v1::FallbackCounts {
    v1::FallbackCounts {
        last_good: counts.last_good,
        heuristic: counts.heuristic,
        keep: counts.keep,
    }
}

fn policy_to_wire(policy: &PolicyRef) -> v1::Policy {
    v1::Policy {
        name: policy.name.clone(),
        version: policy.version.clone(),
    }
}

fn mode_to_wire(mode: Mode) -> v1::Mode {
    match mode {
        Mode::Off => v1::Mode::Off,
        Mode::Observe => v1::Mode::Observe,
        Mode::Advise => v1::Mode::Advise,
        Mode::Shadow => v1::Mode::Shadow,
        Mode::Canary => v1::Mode::Canary,
        Mode::Auto => v1::Mode::Auto,
    }
}

/// A guest with its disks. A guest in mode off is listed, nothing else.
pub(crate) fn guest_to_wire(
    info: &HostInfo,
    window: &ShownWindow,
    shown: &ShownGuest,
) -> v1::Guest {
    let (guest, mode) = (&shown.status, &shown.mode);
    let is_shown = *mode != Mode::Off;
    let disk = |target: &String| {
        let id = format!("{}/{target}", guest.name);
        let row = window
            .observation
            .disk_ids
            .iter()
            .position(|known| *known == id);
        disk_to_wire(info, &window.observation, &id, row.filter(|_| is_shown))
    };
    v1::Guest {
        name: guest_name(&info.name, &guest.name),
        opted_in: guest.opted_in,
        mode: mode_to_wire(*mode).into(),
        disks: guest.targets.iter().map(disk).collect(),
        problem: guest.problem.clone().unwrap_or_default(),
        frozen: guest
            .frozen
            .iter()
            .map(|knob| frozen_to_wire(&info.name, &guest.name, knob))
            .collect(),
        exploration: shown.exploration.as_ref().map(exploration_to_wire),
        notice: shown.notice.clone().unwrap_or_default(),
    }
}

fn exploration_to_wire(exploration: &ShownExploration) -> v1::Exploration {
    v1::Exploration {
        epsilon: exploration.limits.epsilon,
        changes_per_hour: exploration.limits.changes_per_hour,
        changes_left: exploration.changes_left,
        pause_reason: exploration.pause.clone().unwrap_or_default(),
    }
}

pub(crate) fn device_to_wire(host: &str, state: &DeviceState) -> v1::Device {
    let setting = |setting: &SettingState| {
        let record = setting.record.as_ref();
        v1::DeviceSetting {
            setting: setting.knob.to_string(),
            current: setting.current.clone(),
            original: record.map_or_else(String::new, |record| record.original.clone()),
            enabled: setting.is_enabled,
            values: setting.values.clone(),
            frozen: record.is_some_and(|record| record.state == RecordState::Frozen),
        }
    };
    v1::Device {
        name: Row::Device(state.device.name.clone()).name(host),
        stable_id: state.device.id.clone(),
        settings: state.settings.iter().map(setting).collect(),
    }
}

pub(crate) fn disk_settings_to_wire(host: &str, shown: &ShownDisk) -> v1::DiskSettings {
    let ShownDisk {
        state,
        guard_reason,
        planned,
    } = shown;
    let setting = |setting: &DiskSettingState| {
        let record = setting.record.as_ref();
        let planned = planned
            .iter()
            .find(|planned| planned.setting == setting.setting);
        let by_guard = guard_reason
            .as_ref()
            .filter(|_| setting.setting == DiskSetting::Throttle);
        v1::DiskSetting {
            setting: setting.setting.to_string(),
            current: setting.current.clone().unwrap_or_default(),
            problem: setting.current.clone().err().unwrap_or_default(),
            original: record.map_or_else(String::new, |record| record.original.clone()),
            enabled: setting.is_enabled,
            values: setting.values.clone(),
            frozen: record.is_some_and(|record| record.state == RecordState::Frozen),
            planned: planned.map_or_else(String::new, |planned| planned.value.clone()),
            guard_reason: by_guard.cloned().unwrap_or_default(),
        }
    };
    let (guest, target) = (state.guest.clone(), state.target.clone());
    v1::DiskSettings {
        name: Row::Disk { guest, target }.name(host),
        settings: state.settings.iter().map(setting).collect(),
    }
}

pub(crate) fn frozen_to_wire(host: &str, guest: &str, knob: &FrozenKnob) -> v1::FrozenKnob {
    let disk = |target: &String| {
        let (guest, target) = (guest.to_owned(), target.clone());
        Row::Disk { guest, target }.name(host)
    };
    v1::FrozenKnob {
        knob: knob.knob.clone(),
        head: knob.head.map_or("", |knob| knob.name()).to_owned(),
        disks: knob.targets.iter().map(disk).collect(),
        original: knob.original.clone(),
        set: knob.set.clone(),
        found: knob.found.clone(),
        freeze_time: knob.at_us.map(timestamp),
    }
}

/// `row`: where it stands in the observation; `None` for a disk that is not observed.
fn disk_to_wire(info: &HostInfo, obs: &Observation, id: &str, row: Option<usize>) -> v1::Disk {
    let name = Row::of_disk_id(id).name(&info.name);
    let Some(row) = row else {
        return v1::Disk {
            name,
            io_thread: -1,
            ..v1::Disk::default()
        };
    };
    let mask = obs.masks.disks.row(row);
    let mask = mask
        .as_slice()
        .expect("mask rows are contiguous: standard layout");
    let heads = info
        .spec
        .disk_heads
        .iter()
        .enumerate()
        .map(|(i, head)| v1::HeadState {
            head: head.name.clone(),
            current: head.level_name(obs.current.disks[[row, i]]),
            default: head.level_name(obs.default.disks[[row, i]]),
            levels: levels_to_wire(
                head,
                head_slice(&info.spec.disk_heads, obs.channel_count(), mask, i),
            ),
        });
    let device = obs
        .disk_device
        .get(row)
        .and_then(|device| obs.device_ids.get(*device));
    v1::Disk {
        name,
        device: device.cloned().unwrap_or_default(),
        io_thread: obs.disk_group[row].map_or(-1, |group| group as i32),
        heads: heads.collect(),
        state: Some(disk_state(&info.spec, &obs.disks, row)),
    }
}

fn levels_to_wire(head: &Head, mask: &[MaskReason]) -> Vec<v1::LevelState> {
    let level = |(level, reason): (usize, &MaskReason)| v1::LevelState {
        level: head.level_name(level as Level),
        mask: mask_to_wire(*reason).into(),
        reason: if reason.is_allowed() {
            String::new()
        } else {
            reason.text().to_owned()
        },
    };
    mask.iter().enumerate().map(level).collect()
}

/// The measurements that people ask for first.
pub(crate) fn disk_state(spec: &EnvSpec, disks: &Table, row: usize) -> v1::DiskState {
    let get = |name: &str| {
        let column = spec
            .disk_features
            .iter()
            .position(|feature| feature.name == name)?;
        let validity: Validity = disks.validity[[row, column]];
        Some(v1::Measurement {
            value: if validity.is_usable() {
                disks.values[[row, column]]
            } else {
                0.0
            },
            validity: validity_to_wire(validity).into(),
            age_seconds: disks.age_s[[row, column]],
        })
    };
    v1::DiskState {
        queue_depth: get("queue_depth"),
        cpu_load: get("cpu_load"),
        hit_rate: get("hit_rate"),
        iops: get("iops"),
        latency_us_mean: get("latency_us_mean"),
        latency_us_p99: get("latency_us_p99"),
    }
}

pub(crate) fn decision_to_wire(spec: &EnvSpec, decision: &Decision) -> v1::Decision {
    let is_proposed = decision.state == State::Proposed;
    let row = |row: &DecisionRow| row_to_wire(spec, decision, row);
    v1::Decision {
        name: decision_name(decision.id),
        host: host_name(&decision.host),
        source: source_to_wire(decision.source).into(),
        state: state_to_wire(decision.state).into(),
        create_time: Some(timestamp(decision.at_us)),
        apply_time: (!is_proposed).then(|| timestamp(decision.at_us)),
        expire_time: decision.expires_us.map(timestamp),
        policy: decision.policy.as_ref().map(policy_to_wire),
        rows: decision.rows.iter().map(row).collect(),
        durable: decision.durable,
        error: decision.error.clone().unwrap_or_default(),
        reason: decision.reason.clone().unwrap_or_default(),
    }
}

fn source_to_wire(source: Source) -> v1::decision::Source {
    match source {
        Source::Proposal => v1::decision::Source::Proposal,
        Source::Auto => v1::decision::Source::Auto,
        Source::Explicit => v1::decision::Source::Explicit,
        Source::Rollback => v1::decision::Source::Rollback,
        Source::Guard => v1::decision::Source::Guard,
        Source::Shadow => v1::decision::Source::Shadow,
        Source::Canary => v1::decision::Source::Canary,
    }
}

fn state_to_wire(state: State) -> v1::decision::State {
    match state {
        State::Proposed => v1::decision::State::Proposed,
        State::Applied => v1::decision::State::Applied,
        State::Failed => v1::decision::State::Failed,
    }
}

fn row_to_wire(spec: &EnvSpec, decision: &Decision, row: &DecisionRow) -> v1::RowDecision {
    let (name, heads) = match &row.subject {
        Subject::Disk { guest, target } => {
            let (guest, target) = (guest.clone(), target.clone());
            (Row::Disk { guest, target }, &spec.disk_heads)
        }
        Subject::Device { name } => (Row::Device(name.clone()), &spec.device_heads),
    };
    let head = |made: &HeadRow| {
        let known = heads.iter().find(|head| head.name == made.head);
        head_to_wire(known, decision, made)
    };
    let policy = decision.policy.as_ref().map(|_| v1::Policy {
        name: row.policy.to_string(),
        version: row.policy_version.to_string(),
    });
    v1::RowDecision {
        name: name.name(&decision.host),
        heads: row.heads.iter().map(head).collect(),
        source: source_to_wire(row_source(decision, row)).into(),
        policy,
        stage: stage_to_wire(row.stage).into(),
        epsilon: row.epsilon,
    }
}

fn row_source(decision: &Decision, row: &DecisionRow) -> Source {
    match (decision.source, row.source) {
        (Source::Auto | Source::Canary, LogSource::Canary) => Source::Canary,
        (source, _) => source,
    }
}

fn stage_to_wire(stage: Stage) -> v1::Stage {
    match stage {
        Stage::Policy => v1::Stage::Policy,
        Stage::LastGood => v1::Stage::LastGood,
        Stage::Heuristic => v1::Stage::Heuristic,
        Stage::Keep => v1::Stage::Keep,
    }
}

/// `head` is `None` for one that a former spec had: its levels have numbers instead of names then.
fn head_to_wire(head: Option<&Head>, decision: &Decision, made: &HeadRow) -> v1::HeadDecision {
    let name =
        |level: Level| head.map_or_else(|| format!("level-{level}"), |head| head.level_name(level));
    let is_open = decision.state == State::Proposed && decision.source != Source::Shadow;
    let levels = head
        .filter(|_| is_open)
        .map(|head| levels_to_wire(head, &made.mask));
    v1::HeadDecision {
        head: made.head.clone(),
        previous: name(made.previous),
        requested: name(made.requested),
        executed: if is_open {
            String::new()
        } else {
            name(made.executed)
        },
        propensity: decision.policy.is_some().then_some(made.propensity),
        forced: made.forced,
        levels: levels.unwrap_or_default(),
        explored: made.explored,
        altered: made.altered.clone().unwrap_or_default(),
    }
}
