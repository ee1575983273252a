//! `blkpilot observe`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime};

use blkpilot_env::{EnvSpec, Observation};
use blkpilot_host::channel::ChannelConfig;
use blkpilot_host::{CpuSet, DedicatedCpuRule, DeviceRules, DiskBounds};
use blkpilot_log::recording::{Recorder, RecordingError, Source};
use blkpilot_proto::v1;
use serde_json::json;

use super::json::Json;
use super::output::print;
use super::serve::interrupted;
use super::{CliError, HostSource, ObserveArgs, tables};
use crate::api::tuner_wire::disk_state;
use crate::backend::live::LibvirtHost;
use crate::backend::modes::{Modes, Reach};
use crate::backend::simulated::SimulatedHost;
use crate::backend::{BackendError, HostBackend};
use crate::config::mode::Mode;
use crate::config::{LibvirtConfig, OnExit};

const SEED: u64 = 0;

impl From<BackendError> for CliError {
    fn from(error: BackendError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// The host is watched on a thread that may block, until the other end of the channel has gone.
pub(super) async fn run(args: ObserveArgs) -> Result<(), CliError> {
    let (running, stop) = channel::<()>();
    let interrupted = interrupted()?;
    let watching = tokio::task::spawn_blocking(move || observe(&args, &stop));
    tokio::pin!(watching);
    let done = tokio::select! {
        done = &mut watching => done,
        () = interrupted => {
            drop(running);
            watching.await
        }
    };
    done.unwrap_or_else(|e| Err(CliError::Failed(format!("observing panicked: {e}"))))
}

impl From<RecordingError> for CliError {
    fn from(error: RecordingError) -> Self {
        match error {
            RecordingError::Foreign { .. } | RecordingError::Format { .. } => {
                Self::Usage(error.to_string())
            }
            RecordingError::Log(ref log) => {
                let cause = std::error::Error::source(log).map(|cause| format!(": {cause}"));
                Self::Failed(format!("{error}{}", cause.unwrap_or_default()))
            }
            RecordingError::Busy { .. } | RecordingError::TooLarge { .. } => {
                Self::Failed(error.to_string())
            }
        }
    }
}

/// Where the samples of a host come from.
pub(super) fn recorded_from(source: &HostSource, interval: Duration) -> Source {
    match (&source.simulated, &source.libvirt) {
        (Some(scenario), _) => Source {
            name: scenario.name.clone(),
            is_simulated: true,
            interval_s: scenario.interval_s,
        },
        (None, uri) => Source {
            name: uri.clone().unwrap_or_default(),
            is_simulated: false,
            interval_s: interval.as_secs_f64(),
        },
    }
}

fn observe(args: &ObserveArgs, stop: &Receiver<()>) -> Result<(), CliError> {
    let from = recorded_from(&args.source, args.interval);
    // Before the host is touched: the file may be somebody else's.
    let recorder = args
        .record
        .as_ref()
        .map(|path| Recorder::append(path, from));
    let mut recorder = recorder.transpose()?;
    let seen = watch(args, recorder.as_mut(), stop);
    let recorded = recorder.map_or(Ok(0), Recorder::finish);
    seen?;
    recorded?;
    Ok(())
}

fn watch(
    args: &ObserveArgs,
    recorder: Option<&mut Recorder>,
    stop: &Receiver<()>,
) -> Result<(), CliError> {
    if let Some(scenario) = &args.source.simulated {
        let mut host = SimulatedHost::open((**scenario).clone(), SEED, BTreeMap::new())?;
        return windows(args, &mut host, recorder, stop);
    }
    let uri = args
        .source
        .libvirt
        .clone()
        .expect("clap asks for one of the two");
    // The journal of the histograms we start, which are stopped when we end.
    let journal = TemporaryDir::new()?;
    let config = LibvirtConfig {
        uri,
        interval: args.interval,
        on_exit: OnExit::Revert,
        channels: ChannelConfig::Cores,
        reserved_cpus: CpuSet::default(),
        dedicated_cpus: DedicatedCpuRule::default(),
        devices: DeviceRules::new(),
        buffered: Default::default(),
        disks: DiskBounds::default(),
    };
    let modes = Modes {
        default: Mode::Observe,
        guests: BTreeMap::new(),
        candidate: Reach::Nobody,
    };
    let mut host = LibvirtHost::open(&config, &modes, journal.path())?;
    let seen = windows(args, &mut host, recorder, stop);
    host.leave_no_trace()?;
    seen
}

fn windows(
    args: &ObserveArgs,
    host: &mut dyn HostBackend,
    mut recorder: Option<&mut Recorder>,
    stop: &Receiver<()>,
) -> Result<(), CliError> {
    let mut record = |host: &dyn HostBackend| match &mut recorder {
        Some(recorder) => recorder.record(host.sample()),
        None => Ok(()),
    };
    record(&*host)?;
    let json = args.json.then(Json::new);
    let mut left = args.count;
    let mut due = Instant::now();
    while left != Some(0) {
        due += args.interval;
        let pause = due.saturating_duration_since(Instant::now());
        if stop.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
            return Ok(());
        }
        let window = host.observe()?;
        record(&*host)?;
        show(json.as_ref(), host.spec(), &window.observation)?;
        left = left.map(|left| left - 1);
    }
    Ok(())
}

fn show(json: Option<&Json>, spec: &EnvSpec, obs: &Observation) -> Result<(), CliError> {
    let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let rows = obs.disk_ids.iter().enumerate();
    let states: Vec<(&str, v1::DiskState)> = rows
        .map(|(row, id)| (id.as_str(), disk_state(spec, &obs.disks, row)))
        .collect();
    match json {
        Some(json) => {
            let disk = |(id, state): &(&str, v1::DiskState)| json!({ "disk": id, "state": json.value("DiskState", state) });
            let disks: Vec<_> = states.iter().map(disk).collect();
            print(json!({ "time": time, "disks": disks }))
        }
        None if states.is_empty() => print(format_args!(
            "{time}\nno managed disks: no running guest has opted in"
        )),
        None => print(format_args!(
            "{time}\n{}",
            tables::disks(states.iter().map(|(id, state)| (*id, state)))
        )),
    }
}

/// A directory that goes when this is dropped.
struct TemporaryDir(std::path::PathBuf);

impl TemporaryDir {
    fn new() -> Result<Self, CliError> {
        let path = std::env::temp_dir().join(format!("blkpilot-observe-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&path)
            .map_err(|e| CliError::Failed(format!("{}: {e}", path.display())))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        // It holds nothing that matters any more.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
