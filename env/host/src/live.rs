//! The live host as an environment: what the owner of one host calls, on a thread of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use blkpilot_env::Clock;
use blkpilot_env::decision::{JointAction, check_action};
use blkpilot_env::environment::{EnvError, Environment, ResetOptions, Step};
use blkpilot_env::features::{SCHEDULERS, Terms, kvm_host_spec, observe};
use blkpilot_env::observation::Observation;
use blkpilot_env::reward::{RewardConfig, score};
use blkpilot_env::sample::{DeviceReference, DiskSettings, HostSample, Polling};
use blkpilot_env::spec::{EnvSpec, Level};
use blkpilot_env::window::HostWindow;

use crate::cache_mask::BufferedLimits;
use crate::channel::{ChannelConfig, Channels};
use crate::cpuset::CpuSet;
use crate::dedicated::{DedicatedCpuRule, DedicatedCpus};
use crate::device::{DeviceChange, DeviceKnob, DeviceRules, DeviceState, Devices, state};
use crate::disk_setting::DiskBounds;
use crate::error::{HostError, HostResult};
use crate::hypervisor::{Hypervisor, Ring};
use crate::in_force;
use crate::inventory::{GuestRules, Inventory, RunningGuest};
use crate::journal::{Journal, Record};
use crate::knob::{ADAPTIVE_POLL_MAX_NS, Change, Knob};
use crate::settable::Settable as _;
use crate::stats::GuestStats;
use crate::stats_reader::StatsReader;
use crate::telemetry::{Sources, Telemetry, disk_id};
use crate::topology::Topology;
use crate::tuner::{Applied, Outcome, Scope, Tuner};
use crate::write_back::WriteBackLimits;

mod attempts;
mod beside;
mod devices;
mod disks;
mod environment;
mod plan;

use plan::disks_of;

/// The XML of running guests is read again after this time: an opt-in may have come or gone.
const INVENTORY_MAX_AGE: Duration = Duration::from_secs(10);

/// How a live host is opened.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveHostConfig {
    /// The file of the journal.
    pub journal: PathBuf,
    /// Where the channels come from.
    pub channels: ChannelConfig,
    /// CPUs that no disk may be bound to.
    pub reserved_cpus: CpuSet,
    /// Whether a disk may be bound to CPUs that are dedicated to other guests.
    pub dedicated_cpus: DedicatedCpuRule,
    /// What may be done to the guests, beside what their metadata says.
    pub guests: GuestRules,
    /// What may be done to the host's block devices; nothing unless it says so.
    pub devices: DeviceRules,
    /// When no disk goes over to buffered.
    pub buffered: BufferedLimits,
    /// How far dirty pages are written back before a disk goes over to direct.
    pub write_back: WriteBackLimits,
    /// What no guest's disks may be set beyond.
    pub disks: DiskBounds,
    /// Reference latencies by kernel name of the device, in place of its class's.
    pub references: BTreeMap<String, DeviceReference>,
    /// Length of a decision interval.
    pub interval: Duration,
    /// Weights of the reward.
    pub reward: RewardConfig,
    /// Steps after which an episode is cut; `None` for never.
    pub episode_steps: Option<u32>,
    /// `/proc`.
    pub proc_root: PathBuf,
    /// `/sys`.
    pub sys_root: PathBuf,
    /// `/`, below which the configuration of other daemons is.
    pub root: PathBuf,
}

impl LiveHostConfig {
    /// The defaults, with the journal in this file.
    #[must_use]
    pub fn new(journal: PathBuf) -> Self {
        Self {
            journal,
            channels: ChannelConfig::Cores,
            reserved_cpus: CpuSet::default(),
            dedicated_cpus: DedicatedCpuRule::default(),
            guests: GuestRules::default(),
            devices: DeviceRules::new(),
            buffered: BufferedLimits::default(),
            write_back: WriteBackLimits::default(),
            disks: DiskBounds::default(),
            references: BTreeMap::new(),
            interval: Duration::from_secs(2),
            reward: RewardConfig::default(),
            episode_steps: None,
            proc_root: "/proc".into(),
            sys_root: "/sys".into(),
            root: "/".into(),
        }
    }
}

/// What can be seen and done on a live host under these rules: the device head is there when some
/// device's scheduler may be changed.
#[must_use]
pub fn spec(rules: &DeviceRules) -> EnvSpec {
    let is_enabled = |knobs: &BTreeSet<DeviceKnob>| knobs.contains(&DeviceKnob::Scheduler);
    if rules.values().any(is_enabled) {
        kvm_host_spec(&SCHEDULERS.map(str::to_owned))
    } else {
        kvm_host_spec(&[])
    }
}

/// Opens a connection to the hypervisor: at the start, and again after it was lost.
pub type Connector = Box<dyn Fn() -> HostResult<Arc<dyn Hypervisor>> + Send>;

/// A host with its guests. Calls block for as long as libvirt does, so it wants a thread of its own;
/// no guest that hangs keeps a sample from being taken.
pub struct LiveHost {
    config: LiveHostConfig,
    connector: Connector,
    hypervisor: Arc<dyn Hypervisor>,
    clock: Box<dyn Clock>,
    channels: Channels,
    topology: Topology,
    tuner: Tuner,
    telemetry: Telemetry,
    stats_reader: StatsReader,
    devices: Devices,
    inventory: Inventory,
    inventory_read_at: Duration,
    /// It is to be read again whatever its age.
    is_inventory_stale: bool,
    /// Since the journal was brought after it.
    is_inventory_new: bool,
    is_connected: bool,
    /// Since the last time that the guests were read.
    is_reconnected: bool,
    /// Rung when guests may be others than before.
    ring: Option<Ring>,
    /// Starts of histograms.
    histograms: attempts::Attempts,
    /// Other daemons that tune this host.
    beside: beside::Beside,
    /// What has been frozen since somebody last asked.
    frozen: Vec<Outcome>,
    spec: EnvSpec,
    episode: Option<Episode>,
}

struct Episode {
    step: u32,
    sample: HostSample,
    observation: Observation,
}

/// What became of an action.
#[derive(Debug)]
pub struct Execution {
    /// The levels in force afterwards, for the rows of the observation it was chosen on.
    pub executed: JointAction,
    /// Changes that took effect, with the guest's or device's name.
    pub applied: Vec<(String, Applied)>,
    /// Changes that did not, with the ids of the disks, or the name of the device, they were meant for.
    pub failed: Vec<(Vec<String>, HostError)>,
}

impl std::fmt::Debug for LiveHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveHost")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl LiveHost {
    /// Connects, opens the journal and reconciles it with what the host says. Returns what came of
    /// that, for the log.
    ///
    /// # Errors
    /// `Disconnected`, `Journal`, `Unsupported` for channels that do not fit the host, `Io`.
    pub fn open(
        config: LiveHostConfig,
        connector: Connector,
        clock: Box<dyn Clock>,
    ) -> HostResult<(Self, Vec<Outcome>)> {
        let mut host = Self::open_to_put_back(config, connector, clock)?;
        let outcomes = host.tuner.reconcile(&*host.hypervisor, &host.inventory)?;
        // So that the first window has a p99.
        host.start_histograms();
        Ok((host, outcomes))
    }

    /// As [`LiveHost::open`], but changes nothing: neither the guests nor what the journal says of
    /// them.
    ///
    /// # Errors
    /// As [`LiveHost::open`].
    pub fn open_to_put_back(
        config: LiveHostConfig,
        connector: Connector,
        clock: Box<dyn Clock>,
    ) -> HostResult<Self> {
        let topology = Topology::read(&config.sys_root, &config.proc_root)?;
        let channels = Channels::new(&config.channels, &topology, &config.reserved_cpus)?;
        let tuner = Tuner::with_limits(Journal::open(&config.journal)?, config.write_back);
        let mut host = Self {
            telemetry: Telemetry::new(
                &config.proc_root,
                &config.sys_root,
                config.references.clone(),
            ),
            hypervisor: connector()?,
            stats_reader: StatsReader::default(),
            inventory: Inventory::default(),
            inventory_read_at: Duration::ZERO,
            is_inventory_stale: false,
            is_inventory_new: false,
            is_connected: true,
            is_reconnected: false,
            ring: None,
            histograms: attempts::Attempts::default(),
            beside: beside::Beside::default(),
            frozen: Vec::new(),
            spec: spec(&config.devices),
            devices: Devices::new(&config.sys_root, config.devices.clone()),
            episode: None,
            config,
            connector,
            clock,
            channels,
            topology,
            tuner,
        };
        // First of all, so that it is known which guests hang.
        let stats = host.read_guests()?;
        host.sample_of(&stats)?;
        host.note_hanging();
        Ok(host)
    }

    /// The guests that ran at the last sample, managed or not.
    #[must_use]
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// The channels.
    #[must_use]
    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    /// The CPUs.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// All journalled changes, those first made last first.
    ///
    /// # Errors
    /// `Journal`.
    pub fn records(&self) -> HostResult<Vec<Record>> {
        self.tuner.records()
    }

    /// Adds a note to the journal: why somebody passed the guard by.
    ///
    /// # Errors
    /// `Journal`.
    pub fn note(&self, text: &str) -> HostResult<()> {
        self.tuner.note(text)
    }

    /// A sample now. A lost connection is opened again once. A managed guest that is new gets a
    /// latency histogram. What somebody else has changed since the last one is frozen, which the
    /// masks of this one show.
    ///
    /// # Errors
    /// `Disconnected`, `Late` when too many guests hang, `Io`, `Journal`.
    pub fn sample(&mut self) -> HostResult<HostSample> {
        let stats = self.follow_guests()?;
        let seen = |running: &RunningGuest, knob: &Knob| in_force::seen(&stats, running, knob);
        let frozen = self.tuner.watch(&*self.hypervisor, &self.inventory, seen);
        self.frozen.extend(frozen?);
        let sample = self.sample_of(&stats)?;
        self.start_histograms();
        self.write_back_migrating()?;
        Ok(sample)
    }

    /// What somebody should hear of dirty pages that are written back, since this was last called.
    pub fn take_notes(&mut self) -> Vec<String> {
        self.tuner.take_notes()
    }

    /// libvirt takes no monitor command of a guest that migrates, so that its disks cannot go back to
    /// direct; but it waits for fewer dirty pages when it is stopped.
    fn write_back_migrating(&self) -> HostResult<()> {
        for life in self.telemetry.migrating() {
            let running = self.inventory.guests.get(&life.uuid);
            running.map_or(Ok(()), |running| self.tuner.write_back_guest(running))?;
        }
        Ok(())
    }

    /// Knobs that have been frozen by samples since this was last called.
    pub fn take_frozen(&mut self) -> Vec<Outcome> {
        std::mem::take(&mut self.frozen)
    }

    /// Lets `ring` be called whenever guests may be others than before, also after a reconnection:
    /// [`LiveHost::refresh`] then tells.
    pub fn watch_guests(&mut self, ring: Ring) {
        self.hypervisor.watch_guests(&ring);
        self.ring = Some(ring);
    }

    /// From the next time on that guests are read, which is the next sample at the latest, this may be done to
    /// them beside what their metadata says.
    pub fn set_guest_rules(&mut self, rules: GuestRules) {
        self.config.guests = rules;
        self.is_inventory_stale = true;
    }

    /// Reads which guests run and all about them, and brings the journal after what has become of them;
    /// no sample is taken.
    ///
    /// # Errors
    /// `Disconnected`, `Late` when too many guests hang, `Io`, `Journal`.
    pub fn refresh(&mut self) -> HostResult<()> {
        self.is_inventory_stale = true;
        self.follow_guests().map(drop)
    }

    fn sample_of(&mut self, stats: &[GuestStats]) -> HostResult<HostSample> {
        let dedicated = match self.config.dedicated_cpus {
            DedicatedCpuRule::Avoid => {
                DedicatedCpus::of(self.inventory.guests.values().map(|running| &running.guest))
            }
            DedicatedCpuRule::Share => DedicatedCpus::default(),
        };
        let sources = Sources {
            hypervisor: &self.hypervisor,
            inventory: &self.inventory,
            stats,
            channels: &self.channels,
            tuner: &self.tuner,
            dedicated: &dedicated,
            buffered: &self.config.buffered,
            now: self.clock.now(),
        };
        self.telemetry.sample(&sources)
    }

    /// Applies an action that was chosen on `observation`, as far as it can be; what fails keeps
    /// its value. The caller has checked it against the observation's masks.
    ///
    /// # Errors
    /// `Disconnected`, when nothing of the host can be reached.
    pub fn apply(
        &mut self,
        observation: &Observation,
        action: &JointAction,
    ) -> HostResult<Execution> {
        self.follow_guests()?;
        let mut execution = Execution {
            executed: observation.current.clone(),
            applied: vec![],
            failed: vec![],
        };
        execution.failed = self.hanging(observation, action);
        for planned in self.plan(observation, action) {
            let ids = || {
                planned
                    .rows
                    .iter()
                    .map(|row| observation.disk_ids[*row].clone())
                    .collect::<Vec<_>>()
            };
            let Some(running) = self.inventory.guests.get(&planned.uuid) else {
                continue;
            };
            match self
                .tuner
                .apply(&*self.hypervisor, running, &planned.change)
            {
                Ok(applied) => {
                    for row in &planned.rows {
                        execution.executed.disks[[*row, planned.head]] = planned.level;
                    }
                    execution
                        .applied
                        .push((running.guest.name.clone(), applied));
                    let now = self.clock.now();
                    ids()
                        .iter()
                        .for_each(|id| self.telemetry.note_change(id, now));
                }
                Err(error) => execution
                    .failed
                    .push((ids(), of_the_living(running, error))),
            }
        }
        self.apply_to_devices(observation, action, &mut execution);
        Ok(execution)
    }

    /// Makes one change to one guest, by UUID.
    ///
    /// # Errors
    /// `GuestGone`, and those of [`Tuner::apply`].
    pub fn apply_change(&mut self, uuid: &str, change: &Change) -> HostResult<Applied> {
        self.follow_guests()?;
        let running = self
            .inventory
            .guests
            .get(uuid)
            .ok_or_else(|| HostError::GuestGone {
                guest: uuid.to_owned(),
            })?;
        let applied = self.tuner.apply(&*self.hypervisor, running, change)?;
        let now = self.clock.now();
        for id in disks_of(running, &applied.knob) {
            self.telemetry.note_change(&id, now);
        }
        Ok(applied)
    }

    /// Restores original values.
    ///
    /// # Errors
    /// `Disconnected`, `Journal`. What cannot be restored alone is in the outcomes.
    pub fn rollback(&mut self, scope: &Scope) -> HostResult<Vec<Outcome>> {
        self.read_guests()?;
        let outcomes = self
            .tuner
            .rollback(&*self.hypervisor, &self.inventory, scope)?;
        let now = self.clock.now();
        for outcome in &outcomes {
            if let Some(running) = self.inventory.by_name(&outcome.name) {
                let ids = disks_of(running, &outcome.knob);
                ids.iter()
                    .for_each(|id| self.telemetry.note_change(id, now));
            }
        }
        Ok(outcomes)
    }

    /// Lets a frozen knob of a guest, by UUID, be tuned again, and returns the value in force, which
    /// is its original now.
    ///
    /// # Errors
    /// `GuestGone`, `Disconnected`, `Journal`, `Unsupported`.
    pub fn unfreeze(&mut self, uuid: &str, knob: &Knob) -> HostResult<String> {
        self.read_guests()?;
        let running = self
            .inventory
            .guests
            .get(uuid)
            .ok_or_else(|| HostError::GuestGone {
                guest: uuid.to_owned(),
            })?;
        self.tuner.unfreeze(&*self.hypervisor, running, knob)
    }

    /// Reads the guests, and brings the journal after what has become of them.
    fn follow_guests(&mut self) -> HostResult<Vec<GuestStats>> {
        let stats = self.read_guests()?;
        if std::mem::take(&mut self.is_inventory_new) {
            let (host, guests) = (&*self.hypervisor, &self.inventory);
            self.tuner.follow(host, guests, &Scope::Host)?;
        }
        Ok(stats)
    }

    /// Reads which guests run, and everything about them again when that has changed.
    fn read_guests(&mut self) -> HostResult<Vec<GuestStats>> {
        let stats = match self.read_stats() {
            // Once more, on a new connection: libvirtd may just have been restarted.
            Err(HostError::Disconnected { .. }) => self.read_stats()?,
            other => other?,
        };
        let now = self.clock.now();
        // What happened while there was no connection was told to nobody.
        let is_old = self.is_inventory_stale
            || self.is_reconnected
            || now.saturating_sub(self.inventory_read_at) > INVENTORY_MAX_AGE;
        if is_old || !self.inventory.is_current(&stats) {
            self.inventory = Inventory::read(
                &*self.hypervisor,
                &self.config.proc_root,
                &stats,
                &self.config.guests,
                &self.devices,
            )?;
            self.inventory_read_at = now;
            self.is_inventory_stale = false;
            let (proc, root) = (&self.config.proc_root, &self.config.root);
            self.beside.look(proc, root, now);
            self.is_inventory_new = true;
        }
        self.note_hanging();
        if std::mem::take(&mut self.is_reconnected) {
            // The readers went with the connection, and with them what is known of who hangs.
            self.sample_of(&stats)?;
            self.note_hanging();
        }
        Ok(stats)
    }

    fn note_hanging(&mut self) {
        for running in self.inventory.guests.values_mut() {
            running.hangs = self.telemetry.hangs(running);
        }
    }

    fn read_stats(&mut self) -> HostResult<Vec<GuestStats>> {
        if !self.is_connected {
            self.telemetry.forget_readers();
            self.hypervisor = (self.connector)()?;
            if let Some(ring) = &self.ring {
                self.hypervisor.watch_guests(ring);
            }
            self.is_connected = true;
            self.is_reconnected = true;
        }
        let stats = self.stats_reader.read(&self.connector);
        self.is_connected = !matches!(stats, Err(HostError::Disconnected { .. }));
        stats
    }

    /// Without a histogram a disk's p99 is unknown, which is no reason to fail: QEMU may not know
    /// the command, or may be busy and take it later.
    fn start_histograms(&mut self) {
        let now = self.clock.now();
        for (life, target) in self.telemetry.take_without_histogram() {
            let Some(running) = self.inventory.guests.get(&life.uuid) else {
                continue;
            };
            if self.histograms.is_due(now, &life, &target) {
                let change = Change::Histogram {
                    target: target.clone(),
                };
                if self
                    .tuner
                    .apply(&*self.hypervisor, running, &change)
                    .is_ok()
                {
                    // If it is stopped, somebody else has done so.
                    self.histograms.succeeded(&life, &target);
                }
            }
        }
        let guests = &self.inventory.guests;
        self.histograms.retain(|life, target| {
            guests.get(&life.uuid).is_some_and(|running| {
                running.life.as_ref() == Some(life) && running.guest.disk(target).is_some()
            })
        });
    }

    /// What a window shows, under the host's own interval and weights.
    fn seen(&self, window: &HostWindow) -> Observation {
        let terms = Terms {
            interval: self.config.interval,
            reward: &self.config.reward,
        };
        observe(&self.spec, window, terms)
    }

    fn wait_interval(&self) {
        self.clock
            .wait_until(self.clock.now() + self.config.interval);
    }
}

/// What failed on a guest whose QEMU has ended failed because of that, whatever libvirt says.
fn of_the_living(running: &RunningGuest, error: HostError) -> HostError {
    match &running.process {
        Some(process) if !process.is_alive() => HostError::GuestGone {
            guest: running.guest.name.clone(),
        },
        _ => error,
    }
}

/// The host's clock: time since its boot, suspended time included.
#[derive(Debug, Clone, Copy, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Duration {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
        now.map(Duration::from).unwrap_or_default()
    }

    fn wait_until(&self, deadline: Duration) {
        std::thread::sleep(deadline.saturating_sub(self.now()));
    }
}
