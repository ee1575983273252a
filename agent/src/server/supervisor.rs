//! What is told to whoever watches over the service, which is systemd: that it is ready, reloads or stops,
//! how it stands, and that it is alive. Without a `NOTIFY_SOCKET` nobody is told, and nothing fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::sync::watch;

use crate::owner::handle::{HostState, HostView};
use crate::owner::pulse::{Pulse, PulseWatch};

/// How often the pulse is looked at within the time after which systemd takes the service for hung.
const LOOKS: u32 = 4;

/// The service answers calls now, or again after a reload.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The service reads its configuration again, until the next [`ready`].
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "systemd was not told of the reload"),
    }
}

/// The service ends.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

fn tell(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, ?states, "systemd was not told");
    }
}

/// Says how a host stands, each time that it changes, until its owner ends.
pub async fn follow_status(host: String, mut view: watch::Receiver<HostView>) {
    let mut said = String::new();
    loop {
        let text = status(&host, &view.borrow_and_update());
        if text != said {
            tell(&[NotifyState::Status(&text)]);
            said = text;
        }
        if view.changed().await.is_err() {
            return;
        }
    }
}

/// One line, as `systemctl status` shows it.
fn status(host: &str, view: &HostView) -> String {
    let guests = view.window.as_ref().map_or(&[][..], |w| &w.guests);
    let text = match &view.state {
        HostState::Starting => format!("hosts/{host}: connecting"),
        HostState::Ready => {
            let opted_in = guests.iter().filter(|guest| guest.status.opted_in).count();
            format!(
                "hosts/{host}: {} guests, {opted_in} of them opted in",
                guests.len()
            )
        }
        HostState::Unavailable(reason) => format!("hosts/{host} cannot be reached: {reason}"),
    };
    text.replace('\n', " ")
}

/// Feeds systemd's watchdog, where there is one, for as long as the owner comes round. An owner that hangs is
/// said so once, and the service restarted by systemd when `WatchdogSec` has passed.
pub async fn feed_watchdog(pulse: Arc<Pulse>) {
    let Some(within) = sd_notify::watchdog_enabled().filter(|within| *within >= LEAST_WATCHDOG)
    else {
        return;
    };
    let mut ticks = tokio::time::interval(within / LOOKS);
    let mut watch = PulseWatch::new(pulse);
    let mut was_alive = true;
    loop {
        ticks.tick().await;
        let is_alive = watch.is_alive(Instant::now());
        if is_alive {
            tell(&[NotifyState::Watchdog]);
        } else if was_alive {
            tracing::error!(
                ?within,
                "the host's owner does not come round: systemd will restart the service unless it does"
            );
        }
        was_alive = is_alive;
    }
}

/// One that is shorter cannot be meant.
const LEAST_WATCHDOG: Duration = Duration::from_millis(10);
