//! A subscription to what may make guests others than they were: they come, go, get or lose a device, a
//! job ends, their metadata changes, or libvirtd has gone and whatever happens meanwhile is not told.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use virt::connect::Connect;

use super::ffi::events;
use crate::hypervisor::Ring;

/// Whether what happens to guests is told to this program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// It is told at once.
    Works,
    /// libvirt did not take the subscription.
    Refused(Refusal),
    /// The event loop has not come round in time: what libvirt tells is not heard.
    Stuck,
}

/// What libvirt does not tell of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The events, by virsh's names; `close` is the loss of the connection. Never empty.
    pub events: Vec<&'static str>,
    /// What libvirt says of the first.
    pub reason: String,
}

/// A subscription of one connection.
#[derive(Debug)]
pub(super) struct GuestEvents {
    ids: Vec<i32>,
    has_close: bool,
    refusal: Option<Refusal>,
}

impl GuestEvents {
    pub(super) fn watch(connect: &Connect, ring: &Ring) -> Self {
        let (mut ids, mut refused) = (Vec::new(), Vec::new());
        for (event, watched) in events::watch(connect, ring) {
            match watched {
                Ok(id) => ids.push(id),
                Err(error) => refused.push((event, error.message().to_owned())),
            }
        }
        let close = events::watch_close(connect, ring);
        let has_close = close.is_ok();
        refused.extend(
            close
                .err()
                .map(|error| ("close", error.message().to_owned())),
        );
        Self {
            ids,
            has_close,
            refusal: refusal(&refused),
        }
    }

    pub(super) fn unwatch(&self, connect: &Connect) {
        events::unwatch(connect, &self.ids);
        if self.has_close {
            events::unwatch_close(connect);
        }
    }

    /// Waits for the event loop, for `patience` at most.
    pub(super) fn delivery(&self, patience: Duration) -> Delivery {
        match &self.refusal {
            Some(refusal) => Delivery::Refused(refusal.clone()),
            None if comes_round(patience) => Delivery::Works,
            None => Delivery::Stuck,
        }
    }
}

fn refusal(refused: &[(&'static str, String)]) -> Option<Refusal> {
    let (_, reason) = refused.first()?;
    Some(Refusal {
        events: refused.iter().map(|(event, _)| *event).collect(),
        reason: reason.clone(),
    })
}

/// Whether the event loop, whose thread calls back, comes round in this time.
fn comes_round(patience: Duration) -> bool {
    let (came, comes) = sync_channel(1);
    let ring: Ring = Arc::new(move || {
        // Nobody waits any more if it cannot be sent.
        let _ = came.try_send(());
    });
    events::ring_at_next_round(&ring).is_ok() && comes.recv_timeout(patience).is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    fn watched(refused: &[(&'static str, String)]) -> GuestEvents {
        GuestEvents {
            ids: Vec::new(),
            has_close: false,
            refusal: refusal(refused),
        }
    }

    #[test]
    fn an_event_loop_that_is_held_up_is_stuck_and_one_that_comes_round_works() {
        super::super::start_event_loop();
        let patience = Duration::from_secs(60);
        let gate = Arc::new(Barrier::new(2));
        let held = Arc::clone(&gate);
        let hold: Ring = Arc::new(move || {
            held.wait();
            held.wait();
        });
        events::ring_at_next_round(&hold).unwrap();
        gate.wait();
        let short = Duration::from_millis(20);
        assert_eq!(watched(&[]).delivery(short), Delivery::Stuck);
        gate.wait();
        assert_eq!(watched(&[]).delivery(patience), Delivery::Works);
    }

    #[test]
    fn what_is_asked_of_the_event_loop_is_called_once_and_freed() {
        super::super::start_event_loop();
        let (came, comes) = sync_channel(2);
        let ring: Ring = Arc::new(move || came.try_send(()).unwrap());
        events::ring_at_next_round(&ring).unwrap();
        drop(ring);
        let calls: Vec<()> = comes.iter().collect();
        assert_eq!(calls.len(), 1, "it ends when libvirt has freed the ring");
    }

    #[test]
    fn what_is_refused_is_named_with_the_first_reason() {
        let refused = [
            ("device-added", "access denied".to_owned()),
            ("close", "not supported".to_owned()),
        ];
        let refusal = Refusal {
            events: vec!["device-added", "close"],
            reason: "access denied".to_owned(),
        };
        let delivery = watched(&refused).delivery(Duration::ZERO);
        assert_eq!(delivery, Delivery::Refused(refusal));
    }
}
