//! An episode of a simulated host: what is in force, and what one interval does to it.
//!
//! An interval is one solution of the network for the phases that its disks are in; what builds up
//! over intervals (cached and dirty pages, erased blocks, copied clusters) is carried from one to the
//! next. All buffers are kept, so that an interval allocates nothing.

use std::time::Duration;

use rand::RngExt as _;

use super::boot::{GIB, first_window, lanes_of};
use super::device_state::{DeviceState, VisitCost, WRITEBACK_BYTES, discipline};
use super::disk_state::{DiskState, page_bytes};
use super::network::{
    Background, CacheUse, Channel, Class, Device, Lane, Load, Network, Solution, Solver, Vcpu,
};
use super::page_cache::HitCurve;
use super::report::DeviceSum;
use super::scenario::{DiskModel, Phase, Scenario};
use super::write_back::WriteBack;
use crate::decision::JointAction;
use crate::sample::{Cache, DiskSettings, Polling};
use crate::spec::Level;
use crate::window::HostWindow;

/// How long a disk stands still while it is reopened with another cache mode, seconds.
pub(super) const REOPEN_STALL_S: f64 = 0.004;
/// CPU of finding a page to reclaim for one that is read into a full cache, seconds.
pub(super) const RECLAIM_S: f64 = 0.3e-6;

#[derive(Debug, Clone)]
pub(super) struct Episode {
    pub(super) scenario: Scenario,
    pub(super) step: u32,
    /// What the last interval showed.
    pub(super) window: HostWindow,
    pub(super) disks: Vec<DiskState>,
    pub(super) devices: Vec<DeviceState>,
    pub(super) write_back: WriteBack,
    pub(super) sums: Vec<DeviceSum>,
    /// Lane of each disk, and the number of disks on each lane.
    pub(super) lane_of: Vec<usize>,
    pub(super) lane_sizes: Vec<usize>,
    /// Hit curves of all phases; computed when first needed.
    curves: Vec<HitCurve>,
    /// Whether the page cache had no room left in the last interval.
    pub(super) is_cache_full: bool,
    /// Whether the time that the page cache takes to fill is skipped.
    is_kept_warm: bool,
    pub(super) network: Network,
    solver: Solver,
    pub(super) solution: Solution,
}

impl Episode {
    pub(super) fn start(scenario: Scenario, rng: &mut crate::Rng) -> Self {
        let (lane_of, lanes) = lanes_of(&scenario);
        let mut lane_sizes = vec![0; lanes];
        for lane in &lane_of {
            lane_sizes[*lane] += 1;
        }
        let mut curves = Vec::new();
        let models = scenario.disks.iter();
        Self {
            window: first_window(&scenario),
            disks: models
                .map(|model| DiskState::new(model, &mut curves, rng))
                .collect(),
            devices: vec![DeviceState::default(); scenario.devices.len()],
            write_back: WriteBack::default(),
            sums: vec![DeviceSum::default(); scenario.devices.len()],
            step: 0,
            lane_of,
            lane_sizes,
            curves,
            is_cache_full: false,
            is_kept_warm: false,
            network: Network {
                cache_bytes: scenario.cache_gib * GIB,
                costs: scenario.costs,
                ..Network::default()
            },
            solver: Solver::default(),
            solution: Solution::default(),
            scenario,
        }
    }

    /// From now on each buffered disk has all the page cache that it would end up with.
    pub(super) fn keep_page_cache_warm(&mut self) {
        self.is_kept_warm = true;
    }

    fn warm_page_cache(&mut self) {
        for (state, row) in self.disks.iter_mut().zip(&self.window.disks) {
            if row.settings.cache == Cache::Buffered {
                // The interval cuts it down to what is resident in the steady state.
                state.cached_bytes = f64::MAX;
            }
        }
    }

    /// The phase that each disk is in.
    pub(super) fn phases(&self) -> Vec<usize> {
        self.disks.iter().map(|d| d.phase).collect()
    }

    pub(super) fn interval(&self) -> Duration {
        Duration::from_secs_f64(self.scenario.interval_s)
    }

    /// Puts an action into force at the start of an interval.
    pub(super) fn apply(&mut self, action: &JointAction) {
        for (row, (seen, state)) in self
            .window
            .disks
            .iter_mut()
            .zip(&mut self.disks)
            .enumerate()
        {
            let levels: [Level; 3] = std::array::from_fn(|head| action.disks[[row, head]]);
            let wanted =
                DiskSettings::from_levels(levels).expect("check_action has seen these levels");
            seen.settings_before = seen.settings;
            // Going back to direct takes effect once the dirty pages are on the device: they are
            // written back from outside first, while the disk goes on being served.
            state.is_flushing = seen.settings.cache == Cache::Buffered
                && wanted.cache == Cache::Direct
                && state.dirty_bytes > 0.0;
            let wanted = DiskSettings {
                cache: if state.is_flushing {
                    Cache::Buffered
                } else {
                    wanted.cache
                },
                ..wanted
            };
            if wanted.cache != seen.settings.cache {
                state.stall_s = REOPEN_STALL_S;
            }
            if wanted != seen.settings {
                (seen.settings, seen.since_change_s) = (wanted, 0.0);
            }
        }
        for (row, device) in self.window.devices.iter_mut().enumerate() {
            device.scheduler_before = device.scheduler;
            if action.devices.ncols() > 0 {
                device.scheduler = action.devices[[row, 0]];
            }
        }
    }

    /// Writes the levels in force after an action was applied: what is still being prepared is not.
    pub(super) fn write_executed(&self, executed: &mut JointAction) {
        for (row, disk) in self.window.disks.iter().enumerate() {
            for (head, level) in disk.settings.levels().into_iter().enumerate() {
                executed.disks[[row, head]] = level;
            }
        }
        for (row, head) in ndarray::indices(executed.devices.dim()) {
            executed.devices[[row, head]] = self.window.devices[row].scheduler;
        }
    }

    /// Lets one interval pass: phases move on, the network is solved, the window is written.
    pub(super) fn run_interval(&mut self, rng: &mut crate::Rng) {
        for (state, model) in self.disks.iter_mut().zip(&self.scenario.disks) {
            state.move_phase(model, rng);
        }
        if self.is_kept_warm {
            self.warm_page_cache();
        }
        self.plan_write_back();
        self.load_network(rng);
        self.solver
            .solve(&self.network, &self.curves, &mut self.solution);
        self.report();
    }

    pub(super) fn phase(&self, disk: usize) -> &Phase {
        &self.scenario.disks[disk].phases[self.disks[disk].phase]
    }

    pub(super) fn is_buffered(&self, disk: usize) -> bool {
        self.window.disks[disk].settings.cache == Cache::Buffered
    }

    fn load_network(&mut self, rng: &mut crate::Rng) {
        self.network.classes.clear();
        for disk in 0..self.disks.len() {
            let noise = libm::exp(self.scenario.noise * standard_normal(rng));
            let class = self.class(disk, noise);
            self.network.classes.push(class);
        }
        self.load_lanes();
        let channels = self.scenario.channels.iter().map(|c| Channel {
            cpus: f64::from(c.cpus),
            background_cores: c.background_cores,
        });
        self.network.channels.clear();
        self.network.channels.extend(channels);
        let models = self.scenario.devices.iter().zip(&self.devices);
        let devices = models
            .zip(&self.window.devices)
            .map(|((model, state), row)| {
                let (server_s, transfer_s) = state.writeback_cost_s(model);
                Device {
                    parallelism: model.parallelism,
                    discipline: discipline(row.scheduler),
                    background: Background {
                        rate_per_s: state.writeback_bytes_per_sec / WRITEBACK_BYTES,
                        server_s,
                        transfer_s,
                    },
                }
            });
        self.network.devices.clear();
        self.network.devices.extend(devices);
    }

    fn load_lanes(&mut self) {
        let idle = Lane {
            channel: None,
            is_remote: false,
            is_polling: false,
        };
        self.network.lanes.clear();
        self.network.lanes.resize(self.lane_sizes.len(), idle);
        for (disk, &lane) in self.lane_of.iter().enumerate() {
            let settings = self.window.disks[disk].settings;
            let channel = usize::from(settings.channel).checked_sub(1);
            let node = self.scenario.devices[self.scenario.disks[disk].device].numa;
            self.network.lanes[lane] = Lane {
                channel,
                is_remote: channel.is_some_and(|k| self.scenario.channels[k].numa != node),
                is_polling: settings.polling == Polling::Adaptive,
            };
        }
    }

    fn class(&mut self, disk: usize, noise: f64) -> Class {
        let model = &self.scenario.disks[disk];
        let state = &mut self.disks[disk];
        let phase = &model.phases[state.phase];
        state.copying = state.copying(phase, &mut self.curves);
        let device = &self.scenario.devices[model.device];
        let scheduler = self.window.devices[model.device].scheduler;
        let cost = self.devices[model.device].visit(device, phase, scheduler, state.copying);
        let class = direct(model, phase, cost, self.lane_of[disk], noise);
        if self.is_buffered(disk) {
            self.through_cache(disk, class, noise)
        } else {
            class
        }
    }

    /// The class of a disk with the page cache in its way.
    fn through_cache(&mut self, disk: usize, mut class: Class, noise: f64) -> Class {
        let waiting = self.waiting_writes(disk);
        let costs = &self.scenario.costs;
        let state = &self.disks[disk];
        let phase = &self.scenario.disks[disk].phases[state.phase];
        let bytes = page_bytes(phase);
        let copy_s = phase.request_kib * 1024.0 / costs.copy_bytes_per_sec;
        class.delay_s = copy_s + costs.buffered_delay_us * 1e-6;
        class.lane_s += costs.buffered_cpu_us * 1e-6 * noise;
        if self.is_cache_full {
            class.lane_s += RECLAIM_S * bytes / 4096.0 * phase.read_share;
        }
        class.visits[1] *= waiting;
        class.cache = Some(CacheUse {
            curve: state.curve(phase, &mut self.curves),
            page_bytes: bytes,
            cached_bytes: state.cached_bytes,
        });
        class
    }

    /// Share of a buffered disk's writes that wait for the device.
    pub(super) fn waiting_writes(&self, disk: usize) -> f64 {
        if self.disks[disk].is_flushing {
            return 1.0;
        }
        self.write_back.throttled.max(self.phase(disk).flush_share)
    }
}

fn direct(model: &DiskModel, phase: &Phase, cost: VisitCost, lane: usize, noise: f64) -> Class {
    let load = match phase.arrivals_per_s {
        Some(rate_per_s) => Load::Open {
            rate_per_s,
            limit: phase.outstanding,
        },
        None => Load::Closed {
            outstanding: phase.outstanding,
            think_s: phase.think_us * 1e-6 * noise,
        },
    };
    Class {
        load,
        vcpu: Vcpu {
            channel: model.vcpu_channel,
            request_s: model.guest_us * 1e-6,
            background_cores: model.vcpu_cores,
        },
        lane,
        lane_s: model.iothread_us * 1e-6 * noise,
        delay_s: 0.0,
        device: model.device,
        visits: [phase.read_share, 1.0 - phase.read_share],
        server_s: cost.server_s.map(|s| s * noise),
        transfer_s: cost.transfer_s.map(|s| s * noise),
        cache: None,
    }
}

/// A standard normal variate by the polar method, from `libm`, so that it is the same everywhere.
fn standard_normal(rng: &mut crate::Rng) -> f64 {
    loop {
        let (u, v) = (
            2.0 * rng.random::<f64>() - 1.0,
            2.0 * rng.random::<f64>() - 1.0,
        );
        let s = u * u + v * v;
        if s > 0.0 && s < 1.0 {
            return u * libm::sqrt(-2.0 * libm::log(s) / s);
        }
    }
}
