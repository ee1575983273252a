//! A live host behind the service.

mod daemons;
mod disks;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use blkpilot_env::features::{CACHE_HEAD, CHANNEL_HEAD, POLLING_HEAD, Terms, observe};
use blkpilot_env::reward::{RewardConfig, score};
use blkpilot_env::sample::HostSample;
use blkpilot_env::window::HostWindow;
use blkpilot_env::{EnvSpec, Environment as _, JointAction, Observation};
use blkpilot_host::device::DeviceState;
use blkpilot_host::guest::Guest;
use blkpilot_host::inventory::{GuestRules, Inventory, RunningGuest};
use blkpilot_host::journal::{Journal, Life, Record, RecordState};
use blkpilot_host::knob::Knob as HostKnob;
use blkpilot_host::live::{BootClock, Connector, LiveHost, LiveHostConfig};
use blkpilot_host::tuner::{Outcome, Scope, Settlement, Way};
use blkpilot_host::{
    DeviceKnob, DiskSetting, DiskState, GuestOverride, HostError, HostResult, KnobKind, Ring,
    TuningMode,
};

use super::modes::Modes;
use super::{
    BackendError, BackendKind, DaemonStatus, DeviceAction, DiskAction, DiskName, Execution,
    FrozenKnob, GuardLimits, GuestStatus, HostBackend, Planned, Window,
};
use crate::config::mode::{Knob, Mode};
use crate::config::{GuestConfig, LibvirtConfig};
use disks::GuardFile;

/// A live host reached through libvirt.
#[derive(Debug)]
pub struct LibvirtHost {
    host: LiveHost,
    interval: Duration,
    /// Weights that the last observation showed.
    reward: RewardConfig,
    /// Those that the next one shows.
    next_reward: RewardConfig,
    before: HostSample,
    daemons_told: daemons::Told,
    guard: GuardFile,
}

impl LibvirtHost {
    /// Connects, reconciles the journal in `data_dir` with the host, and takes the first sample.
    ///
    /// # Errors
    /// `Unavailable`, with what failed and the way out.
    pub fn open(
        config: &LibvirtConfig,
        modes: &Modes,
        data_dir: &Path,
    ) -> Result<Self, BackendError> {
        let settings = LiveHostConfig {
            channels: config.channels.clone(),
            reserved_cpus: config.reserved_cpus.clone(),
            dedicated_cpus: config.dedicated_cpus,
            guests: rules(modes.default, &modes.guests),
            devices: config.devices.clone(),
            buffered: config.buffered,
            disks: config.disks,
            interval: config.interval,
            ..LiveHostConfig::new(journal_of(data_dir))
        };
        let reward = settings.reward;
        let (mut host, outcomes) =
            LiveHost::open(settings, connector(&config.uri), Box::new(BootClock))
                .map_err(|e| unavailable(&e))?;
        for outcome in outcomes {
            tracing::info!(of = outcome.owner(), knob = ?outcome.knob, result = ?outcome.result, "reconciled");
        }
        let before = host.sample().map_err(|e| unavailable(&e))?;
        let mut host = Self {
            host,
            interval: config.interval,
            reward,
            next_reward: reward,
            before,
            daemons_told: daemons::Told::default(),
            guard: GuardFile::open(data_dir),
        };
        host.lift_what_was_left();
        Ok(host)
    }

    /// Puts back everything, the latency histograms that were started included. For those who only
    /// look; the daemon leaves the histograms, which change nothing for a guest.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn leave_no_trace(&mut self) -> Result<(), BackendError> {
        let outcomes = self
            .host
            .rollback(&Scope::Host)
            .map_err(|e| unavailable(&e))?;
        for failure in self.failures(&outcomes) {
            tracing::warn!(failure, "left behind");
        }
        Ok(())
    }

    fn log_notes(&mut self) {
        log_notes(&mut self.host);
    }

    fn failures(&self, outcomes: &[Outcome]) -> Vec<String> {
        let failure = |outcome: &Outcome| {
            let problem = match &outcome.result {
                Settlement::Frozen { found, way } => {
                    let way = way_text(*way);
                    let command = match outcome.knob {
                        HostKnob::Device(_) => "blkpilot device unfreeze",
                        _ => "blkpilot unfreeze",
                    };
                    format!(
                        "somebody else set it to {found}{way}, so it is left alone: `{command}` lets it be tuned again"
                    )
                }
                Settlement::Failed { reason } => reason.clone(),
                Settlement::Unrecorded { reason, .. } => {
                    tracing::warn!(of = outcome.owner(), knob = %outcome.knob, reason, "put back, but its record stays");
                    return None;
                }
                Settlement::Restored { .. } | Settlement::Moot | Settlement::Kept { .. } => {
                    return None;
                }
            };
            Some(format!("{}: {}: {problem}", outcome.owner(), outcome.knob))
        };
        outcomes.iter().filter_map(failure).collect()
    }

    /// Notes the default as in force where an original value was restored.
    fn note_restored(
        &self,
        observation: &Observation,
        outcome: &Outcome,
        executed: &mut JointAction,
    ) {
        let is_back = matches!(
            outcome.result,
            Settlement::Restored { .. } | Settlement::Unrecorded { .. }
        );
        if !is_back {
            return;
        }
        if let HostKnob::Device(DeviceKnob::Scheduler) = outcome.knob {
            let mut names = observation.device_ids.iter();
            if let Some(row) = names.position(|name| *name == outcome.name) {
                let default = observation.default.devices.row(row);
                executed.devices.row_mut(row).assign(&default);
            }
            return;
        }
        let Some(running) = self.host.inventory().by_name(&outcome.name) else {
            return;
        };
        let Some((head, targets)) = head_and_targets(&running.guest, &outcome.knob) else {
            return;
        };
        for target in targets {
            let id = format!("{}/{target}", outcome.name);
            if let Some(row) = observation.disk_ids.iter().position(|known| *known == id) {
                executed.disks[[row, head]] = observation.default.disks[[row, head]];
            }
        }
    }
}

/// What is said of dirty pages is worth a warning: a disk stands still, or data may be lost.
fn log_notes(host: &mut LiveHost) {
    for note in host.take_notes() {
        tracing::warn!(note, "writing back");
    }
}

fn connector(uri: &str) -> Connector {
    let uri = uri.to_owned();
    Box::new(move || {
        let libvirt = blkpilot_host::Libvirt::connect(&uri)?;
        Ok(std::sync::Arc::new(libvirt))
    })
}

fn unavailable(error: &HostError) -> BackendError {
    BackendError::Unavailable(error.to_string())
}

fn rules(default_mode: Mode, guests: &BTreeMap<String, GuestConfig>) -> GuestRules {
    let said = |guest: &GuestConfig| GuestOverride {
        opt_in: guest.opt_in,
        mode: guest.mode.map(tuning_mode),
        knobs: guest
            .knobs
            .as_ref()
            .map(|knobs| knobs.iter().map(|knob| knob_kind(*knob)).collect()),
        exploration: guest.exploration,
    };
    GuestRules {
        default_mode: tuning_mode(default_mode),
        guests: guests
            .iter()
            .map(|(name, guest)| (name.clone(), said(guest)))
            .collect(),
    }
}

fn knob_kind(knob: Knob) -> KnobKind {
    match knob {
        Knob::Channel => KnobKind::Channel,
        Knob::Cache => KnobKind::Cache,
        Knob::Polling => KnobKind::Polling,
        Knob::Throttle => KnobKind::Throttle,
        Knob::Qcow2Cache => KnobKind::Qcow2Cache,
    }
}

fn tuning_mode(mode: Mode) -> TuningMode {
    match mode {
        Mode::Off => TuningMode::Off,
        Mode::Observe => TuningMode::Observe,
        Mode::Advise => TuningMode::Advise,
        Mode::Shadow => TuningMode::Shadow,
        Mode::Canary => TuningMode::Canary,
        Mode::Auto => TuningMode::Auto,
    }
}

/// Which way somebody else changed a knob, to follow the value in a sentence.
fn way_text(way: Way) -> &'static str {
    match way {
        Way::Libvirt => " through libvirt",
        Way::Unknown => "",
    }
}

fn mode(mode: TuningMode) -> Mode {
    match mode {
        TuningMode::Off => Mode::Off,
        TuningMode::Observe => Mode::Observe,
        TuningMode::Advise => Mode::Advise,
        TuningMode::Shadow => Mode::Shadow,
        TuningMode::Canary => Mode::Canary,
        TuningMode::Auto => Mode::Auto,
    }
}

/// The head that a knob belongs to, and the disks it concerns. `None` for what is no tuning knob.
fn head_and_targets<'a>(guest: &'a Guest, knob: &HostKnob) -> Option<(usize, Vec<&'a str>)> {
    let (head, iothread) = match knob {
        HostKnob::Channel { iothread } => (CHANNEL_HEAD, Some(*iothread)),
        HostKnob::Polling { iothread } => (POLLING_HEAD, Some(*iothread)),
        HostKnob::Cache { .. } => (CACHE_HEAD, None),
        HostKnob::Histogram { .. } | HostKnob::Disk { .. } | HostKnob::Device(_) => return None,
    };
    let concerns = |target: &str, of: Option<u32>| match knob {
        HostKnob::Cache { target: wanted } => target == wanted,
        _ => of == iothread,
    };
    let disks = guest
        .disks
        .iter()
        .filter(|disk| concerns(&disk.target, disk.iothread));
    Some((head, disks.map(|disk| disk.target.as_str()).collect()))
}

impl HostBackend for LibvirtHost {
    fn kind(&self) -> BackendKind {
        BackendKind::Libvirt
    }

    fn spec(&self) -> &EnvSpec {
        self.host.spec()
    }

    fn first_window(&self) -> Duration {
        self.interval.min(Duration::from_secs(1))
    }

    fn restart_window(&mut self) -> Result<(), BackendError> {
        self.before = self.host.sample().map_err(|e| unavailable(&e))?;
        Ok(())
    }

    fn observe(&mut self) -> Result<Window, BackendError> {
        let after = self.host.sample().map_err(|e| unavailable(&e))?;
        self.lift_what_was_left();
        for frozen in self.host.take_frozen() {
            match &frozen.result {
                Settlement::Frozen { found, way } => {
                    let way = way_text(*way);
                    tracing::warn!(of = frozen.owner(), knob = %frozen.knob, found, "frozen: somebody else changed it{way}");
                }
                Settlement::Failed { reason } => {
                    tracing::warn!(of = frozen.owner(), knob = %frozen.knob, reason, "not frozen");
                }
                _ => {}
            }
        }
        self.daemons_told.tell(&self.tuning_daemons());
        self.log_notes();
        let window = HostWindow::between(&self.before, &after);
        let terms = Terms {
            interval: self.interval,
            reward: &self.next_reward,
        };
        let observation = observe(self.host.spec(), &window, terms);
        let rewards = score(&window, &self.reward);
        self.reward = self.next_reward;
        self.before = after;
        Ok(Window {
            observation,
            rewards: Some(rewards),
        })
    }

    fn sample(&self) -> &HostSample {
        &self.before
    }

    fn set_modes(&mut self, modes: &Modes) {
        self.host
            .set_guest_rules(rules(modes.default, &modes.guests));
    }

    fn set_reward(&mut self, reward: RewardConfig) {
        self.next_reward = reward;
    }

    fn reward(&self) -> RewardConfig {
        self.reward
    }

    fn guests(&self) -> Vec<GuestStatus> {
        let inventory = self.host.inventory();
        // Without a journal every knob is masked as frozen, and there is nothing to tell of it.
        let records = self.host.records().unwrap_or_default();
        let status = |running| status(running, &records);
        let mut guests: Vec<GuestStatus> = inventory.guests.values().map(status).collect();
        let unreadable = inventory
            .unreadable
            .iter()
            .map(|(uuid, problem)| GuestStatus {
                name: uuid.clone(),
                opted_in: false,
                mode: None,
                targets: vec![],
                problem: Some(problem.clone()),
                frozen: vec![],
                exploration: None,
            });
        guests.extend(unreadable);
        guests.sort_by(|a, b| a.name.cmp(&b.name));
        guests
    }

    fn watch_guests(&mut self, ring: Ring) {
        self.host.watch_guests(ring);
    }

    fn refresh(&mut self) -> Result<(), BackendError> {
        self.host.refresh().map_err(|e| unavailable(&e))
    }

    fn tuning_daemons(&self) -> Vec<DaemonStatus> {
        let found = self.host.tuning_daemons().into_iter();
        found
            .map(|(daemon, conflicts)| DaemonStatus { daemon, conflicts })
            .collect()
    }

    fn apply(
        &mut self,
        observation: &Observation,
        action: &JointAction,
    ) -> Result<Execution, BackendError> {
        let execution = self
            .host
            .apply(observation, action)
            .map_err(|e| unavailable(&e))?;
        let failures = execution.failed.iter();
        let went_wrong = failures.clone().any(|(_, error)| !error.is_ordinary());
        Ok(Execution {
            went_wrong,
            executed: execution.executed,
            failures: failures
                .map(|(ids, error)| format!("{}: {error}", ids.join(", ")))
                .collect(),
        })
    }

    fn rollback(
        &mut self,
        observation: &Observation,
        guest: Option<&str>,
    ) -> Result<Execution, BackendError> {
        let scope = match guest {
            None => Scope::Settings,
            Some(name) => match uuid_of(self.host.inventory(), name) {
                Some(uuid) => Scope::GuestSettings(uuid),
                // It has gone, and its settings with it.
                None => return Ok(unchanged(observation)),
            },
        };
        let outcomes = self.host.rollback(&scope).map_err(|e| unavailable(&e))?;
        let mut execution = unchanged(observation);
        for outcome in &outcomes {
            self.note_restored(observation, outcome, &mut execution.executed);
        }
        execution.failures = self.failures(&outcomes);
        execution.went_wrong = !execution.failures.is_empty();
        self.log_notes();
        Ok(execution)
    }

    fn unfreeze(&mut self, guest: &str, knob: &str) -> Result<String, BackendError> {
        let gone = HostError::GuestGone {
            guest: guest.to_owned(),
        };
        let uuid = uuid_of(self.host.inventory(), guest).ok_or(gone);
        let kept = uuid.and_then(|uuid| self.host.unfreeze(&uuid, &knob.parse()?));
        kept.map_err(|e| unavailable(&e))
    }

    fn devices(&self) -> Result<Vec<DeviceState>, BackendError> {
        self.host.devices().map_err(|e| unavailable(&e))
    }

    fn note(&mut self, text: &str) -> Result<(), BackendError> {
        self.host.note(text).map_err(|e| unavailable(&e))
    }

    fn change_device(&mut self, device: &str, action: &DeviceAction) -> Result<(), BackendError> {
        let host = &mut self.host;
        let done = match action {
            DeviceAction::Check(change) => host.check_device(device, change).map(drop),
            DeviceAction::Set(change) => host.apply_to_device(device, change).map(drop),
            DeviceAction::Unfreeze(knobs) => knobs
                .iter()
                .try_for_each(|knob| host.unfreeze_device(device, *knob).map(drop)),
            DeviceAction::PutBack => {
                let outcomes = host.rollback_device(device).map_err(|e| unavailable(&e))?;
                return match self.failures(&outcomes) {
                    left if left.is_empty() => Ok(()),
                    left => Err(BackendError::Unavailable(left.join("; "))),
                };
            }
        };
        done.map_err(|e| unavailable(&e))
    }

    fn disks(&self) -> Result<Vec<DiskState>, BackendError> {
        self.disk_states()
    }

    fn change_disk(
        &mut self,
        disk: &DiskName,
        action: &DiskAction,
    ) -> Result<Vec<Planned>, BackendError> {
        self.change_disk_settings(disk, action)
    }

    fn limits(&self) -> GuardLimits {
        self.guard_limits()
    }
}

/// Puts back what the journal in `data_dir` holds, all of it or that of one guest or device, by name,
/// without a service. The caller holds the lock of the directory.
///
/// # Errors
/// Those of [`LiveHost::open_to_put_back`], and `JournalMissing`.
pub fn put_back(uri: &str, data_dir: &Path, name: Option<&str>) -> HostResult<Vec<Outcome>> {
    let file = journal_of(data_dir);
    let records = Journal::open_to_read(&file)?.records()?;
    let mut host = LiveHost::open_to_put_back(
        LiveHostConfig::new(file),
        connector(uri),
        Box::new(BootClock),
    )?;
    let Some(name) = name else {
        let outcomes = host.rollback(&Scope::Host);
        log_notes(&mut host);
        return outcomes;
    };
    let named = records.into_iter().filter(|record| record.name == name);
    let scopes = named.map(|record| match record.life {
        Life::Guest(life) => Scope::Guest(life.uuid),
        Life::Device(life) => Scope::Device(life.id),
    });
    let mut outcomes = vec![];
    for scope in scopes.collect::<BTreeSet<_>>() {
        outcomes.extend(host.rollback(&scope)?);
    }
    log_notes(&mut host);
    Ok(outcomes)
}

/// The journal of a service with this data directory.
#[must_use]
pub fn journal_of(data_dir: &Path) -> PathBuf {
    data_dir.join("journal.db")
}

/// A guest that cannot be read goes by its UUID; its rollback then says why it failed.
fn uuid_of(inventory: &Inventory, name: &str) -> Option<String> {
    match inventory.by_name(name) {
        Some(running) => Some(running.guest.uuid.clone()),
        None => inventory
            .unreadable
            .contains_key(name)
            .then(|| name.to_owned()),
    }
}

fn unchanged(observation: &Observation) -> Execution {
    Execution {
        executed: observation.current.clone(),
        failures: vec![],
        went_wrong: false,
    }
}

fn frozen_knob(guest: &Guest, record: &Record) -> FrozenKnob {
    let knob = match record.knob {
        HostKnob::Channel { .. } => Some(Knob::Channel),
        HostKnob::Cache { .. } => Some(Knob::Cache),
        HostKnob::Polling { .. } => Some(Knob::Polling),
        HostKnob::Disk { setting, .. } => Some(match setting {
            DiskSetting::Throttle => Knob::Throttle,
            DiskSetting::Qcow2Cache => Knob::Qcow2Cache,
        }),
        HostKnob::Histogram { .. } | HostKnob::Device(_) => None,
    };
    let targets = match &record.knob {
        HostKnob::Histogram { target } | HostKnob::Disk { target, .. } => vec![target.as_str()],
        knob => head_and_targets(guest, knob).map_or(vec![], |(_, targets)| targets),
    };
    FrozenKnob {
        knob: record.knob.to_string(),
        head: knob,
        targets: targets.into_iter().map(str::to_owned).collect(),
        original: record.original.clone(),
        set: record.value.clone(),
        found: record.found.clone().unwrap_or_default(),
        at_us: record.at_us,
    }
}

fn status(running: &RunningGuest, records: &[Record]) -> GuestStatus {
    let guest = &running.guest;
    let is_its = |record: &&Record| {
        record.state == RecordState::Frozen
            && running.life.is_some()
            && running.life.as_ref() == record.life.guest()
    };
    let frozen = records.iter().filter(is_its);
    let stranger = "no QEMU process with its UUID is seen here, so nothing of it is changed";
    GuestStatus {
        name: guest.name.clone(),
        opted_in: guest.allows_monitor(),
        mode: guest
            .opt_in
            .as_ref()
            .and_then(|opt_in| Some(mode(opt_in.mode?))),
        targets: guest.disks.iter().map(|disk| disk.target.clone()).collect(),
        problem: running.life.is_none().then(|| stranger.to_owned()),
        frozen: frozen.map(|record| frozen_knob(guest, record)).collect(),
        exploration: guest.opt_in.as_ref().and_then(|opt_in| opt_in.exploration),
    }
}
