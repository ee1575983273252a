//! What the holder of a managed host is shown, streamed to those who only observe.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use blkpilot_proto::v1;
use futures_util::stream::{Stream, try_unfold};
use tokio::sync::watch;
use tonic::{Code, Status};

use crate::environments::stage::Scene;
use crate::environments::{Claim, Environments, Held, Kind};
use crate::wire::names::environment_name;
use crate::wire::status::Failure;

/// Observing streams at once.
const MOST_OBSERVERS: usize = 64;
/// How often a stream renews the lease of its environment while that lasts.
const RENEWALS: u32 = 4;

/// Counts the observing streams.
#[derive(Debug, Clone, Default)]
pub(crate) struct Observers(Arc<AtomicUsize>);

impl Observers {
    /// Streams what the holder of the host of an environment is shown.
    ///
    /// # Errors
    /// As `EnvironmentService.Observe`.
    pub(crate) fn observe(
        &self,
        environments: Arc<Environments>,
        held: &Arc<Held>,
    ) -> Result<impl Stream<Item = Result<v1::ObserveResponse, Status>> + use<>, Failure> {
        let scene = match &held.recipe.kind {
            Kind::Host { name, .. } => environments.scene(name),
            _ => None,
        };
        let mut scene = scene.ok_or_else(|| no_host(held))?;
        // The first look is at what was shown before.
        scene.mark_changed();
        let observer = Observer {
            _place: self.place()?,
            environments,
            claim: Claim::of(held),
            renewal: held.recipe.lease / RENEWALS,
            scene,
            seen: None,
        };
        Ok(try_unfold(Box::new(observer), |mut observer| async {
            let shown = observer.next().await?;
            Ok(shown.map(|shown| (shown, observer)))
        }))
    }

    fn place(&self) -> Result<Place, Failure> {
        let place = Place(Arc::clone(&self.0));
        if self.0.fetch_add(1, Ordering::Relaxed) < MOST_OBSERVERS {
            return Ok(place);
        }
        let message = format!("{MOST_OBSERVERS} streams observe, which is the limit: end one");
        Err(Failure::new(
            Code::ResourceExhausted,
            "TOO_MANY_OBSERVERS",
            message,
        ))
    }
}

/// Counts itself out when its stream ends.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Observer {
    _place: Place,
    environments: Arc<Environments>,
    claim: Claim,
    /// How often its lease is renewed.
    renewal: Duration,
    scene: watch::Receiver<Scene>,
    /// Number of the answer that was shown last.
    seen: Option<u64>,
}

impl Observer {
    /// The newest answer that was not shown yet; `None` when the service stops.
    async fn next(&mut self) -> Result<Option<v1::ObserveResponse>, Failure> {
        loop {
            self.environments.claimed(&self.claim, Instant::now())?;
            tokio::select! {
                changed = self.scene.changed() => if changed.is_err() {
                    return Ok(None);
                },
                () = tokio::time::sleep(self.renewal) => continue,
                () = self.environments.stopped() => return Ok(None),
            }
            let scene = self.scene.borrow_and_update().clone();
            let seen = self.seen.replace(scene.sequence);
            // A holder that has gone changes the scene too.
            let Some(shown) = scene.last.filter(|_| seen != Some(scene.sequence)) else {
                continue;
            };
            return Ok(Some(v1::ObserveResponse {
                shown: Some(shown.answer.clone()),
                holder: shown.holder.clone(),
                missed: seen.map_or(0, |seen| scene.sequence - seen - 1),
            }));
        }
    }
}

fn no_host(held: &Held) -> Failure {
    let message = format!(
        "{} is no managed host: what it shows only its own calls see",
        environment_name(&held.id)
    );
    Failure::new(Code::FailedPrecondition, "NOT_A_HOST", message)
}
