//! `blkpilot sweep`.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

use blkpilot_host::channel::ChannelConfig;
use blkpilot_host::{CpuSet, DedicatedCpuRule, DeviceRules, DiskBounds};
use blkpilot_log::recording::Recorder;
use indicatif::{ProgressBar, ProgressStyle};

use super::data_dir::lock;
use super::observe::recorded_from;
use super::output::print;
use super::serve::interrupted;
use super::{CliError, SweepArgs};
use crate::backend::HostBackend;
use crate::backend::live::LibvirtHost;
use crate::backend::modes::{Modes, Reach};
use crate::backend::simulated::SimulatedHost;
use crate::config::mode::Mode;
use crate::config::{LibvirtConfig, OnExit};
use crate::sweep::{self, Report, Sweep, SweepError};

impl From<SweepError> for CliError {
    fn from(error: SweepError) -> Self {
        match error {
            SweepError::Backend(error) => error.into(),
            SweepError::Recording(error) => error.into(),
            SweepError::Interrupted => {
                Self::Failed("interrupted; everything was put back".to_owned())
            }
            other => Self::Failed(other.to_string()),
        }
    }
}

/// The host is swept on a thread that may block, until the other end of the channel has gone.
pub(super) async fn run(args: SweepArgs) -> Result<(), CliError> {
    let (running, stop) = channel::<()>();
    let interrupted = interrupted()?;
    let json = args.json;
    let sweeping = tokio::task::spawn_blocking(move || sweep_host(&args, &stop));
    tokio::pin!(sweeping);
    let done = tokio::select! {
        done = &mut sweeping => done,
        () = interrupted => {
            drop(running);
            sweeping.await
        }
    };
    let report = done.unwrap_or_else(|e| Err(CliError::Failed(format!("the sweep panicked: {e}"))));
    show(&report?, json)
}

fn show(report: &Report, json: bool) -> Result<(), CliError> {
    if json {
        let text = serde_json::to_string_pretty(report).expect("a report has string keys");
        return print(text);
    }
    for failure in &report.failures {
        print(failure)?;
    }
    print(format_args!(
        "{} of {} settings in {} rounds, {} samples recorded; everything was put back",
        report.settings, report.settings_possible, report.plan.rounds, report.samples
    ))
}

fn sweep_host(args: &SweepArgs, stop: &Receiver<()>) -> Result<Report, CliError> {
    let from = recorded_from(&args.source, args.interval);
    // Before the host is touched: the file may be somebody else's.
    let mut recorder = Recorder::append(&args.record, from)?;
    let modes = Modes {
        default: Mode::Advise,
        guests: BTreeMap::new(),
        candidate: Reach::Nobody,
    };
    let swept = match (&args.source.simulated, &args.source.libvirt) {
        (Some(scenario), _) => {
            let mut host = SimulatedHost::open((**scenario).clone(), args.seed, BTreeMap::new())?;
            sweep_through(args, &mut host, &modes, &mut recorder, stop)
        }
        (None, uri) => {
            let uri = uri.clone().expect("clap asks for one of the two");
            sweep_live(args, uri, &modes, &mut recorder, stop)
        }
    };
    let recorded = recorder.finish();
    let report = swept?;
    recorded?;
    Ok(report)
}

fn sweep_live(
    args: &SweepArgs,
    uri: String,
    modes: &Modes,
    recorder: &mut Recorder,
    stop: &Receiver<()>,
) -> Result<Report, CliError> {
    let data_dir = args.data_dir.as_deref();
    let data_dir = data_dir.expect("clap asks for it with --libvirt");
    let _lock = lock(data_dir)?;
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
    let mut host = LibvirtHost::open(&config, modes, data_dir)?;
    let swept = sweep_through(args, &mut host, modes, recorder, stop);
    let left = host.leave_no_trace();
    let report = swept?;
    left?;
    Ok(report)
}

fn sweep_through(
    args: &SweepArgs,
    host: &mut dyn HostBackend,
    modes: &Modes,
    recorder: &mut Recorder,
    stop: &Receiver<()>,
) -> Result<Report, CliError> {
    let is_live = args.source.libvirt.is_some();
    let bar = progress();
    let mut due = Instant::now();
    let mut pause = || {
        if is_live {
            // A change takes a while: the next interval begins when it has been made.
            due = Instant::now().max(due) + args.interval;
        }
        let left = due.saturating_duration_since(Instant::now());
        stop.recv_timeout(left) != Err(RecvTimeoutError::Disconnected)
    };
    let sweep = Sweep {
        host,
        modes,
        record: &mut |sample| recorder.record(sample),
        pause: &mut pause,
        progress: &mut |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        },
    };
    let report = sweep::run(sweep, args.plan());
    bar.finish_and_clear();
    Ok(report?)
}

fn progress() -> ProgressBar {
    let style = "{elapsed_precise} [{bar:30}] {pos}/{len} settings, {eta} left";
    let style = ProgressStyle::with_template(style).expect("the template is valid");
    ProgressBar::new(0).with_style(style.progress_chars("=> "))
}
