//! From what the policy store says to what decides: the owner of the host is given the policies that stand at
//! the stages, whenever those have changed. Commands change a store from other processes, so it is also looked
//! at every few seconds.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use blkpilot_env::EnvSpec;
use blkpilot_proto::longrunning::Operation;
use tokio::sync::Mutex;
use tonic::Code;

use super::loading::{self, LoadError, Served};
use super::store::{Asked, PolicyStore, Stage, Standing, StoreError, Version, VersionName};
use crate::backend::modes::Reach;
use crate::config::{Config, Promotion, Withdrawal};
use crate::decision::chain::Chain;
use crate::decision::now_us;
use crate::operations::{Operations, Pending};
use crate::owner::handle::{HostHandle, Origin, Production, Succession};
use crate::owner::last_good::{self, Proof};
use crate::requests::Repeatable;
use crate::wire::status::Failure;

/// How often a store is looked at that another process may have changed.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Which versions decide, as far as the owner was told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Deployed {
    production: Option<VersionName>,
    candidate: Option<(VersionName, Reach)>,
}

/// What decides on a host, kept as the store says.
#[derive(Debug)]
pub struct Deployment {
    store: PolicyStore,
    host: HostHandle,
    config: Config,
    /// What a policy may take for a joint decision.
    patience: Duration,
    /// Held while something is changed, so that changes reach the owner in their order.
    deployed: Mutex<Deployed>,
    /// For whoever asks.
    shown: std::sync::Mutex<Deployed>,
}

impl Production {
    /// A policy with what stands in for it, and what keeps it.
    pub(crate) fn of(served: Served, data_dir: &Path, spec: &EnvSpec, patience: Duration) -> Self {
        let dir = last_good::dir_in(data_dir);
        let Served {
            loaded, network, ..
        } = served;
        let last_good = network
            .as_ref()
            .and_then(|(_, selection)| last_good::load(&dir, &loaded.reference, *selection, spec));
        Self {
            chain: Chain::with_fallbacks(loaded, last_good, spec, patience),
            proof: network.map(|(checkpoint, _)| Proof::of(checkpoint, dir)),
        }
    }
}

impl Deployment {
    /// For the owner of a host, which was started with what the store said of production then.
    #[must_use]
    pub fn new(
        store: PolicyStore,
        host: HostHandle,
        config: Config,
        patience: Duration,
        production: Option<VersionName>,
    ) -> Self {
        let deployed = Deployed {
            production,
            candidate: None,
        };
        Self {
            store,
            host,
            config,
            patience,
            shown: std::sync::Mutex::new(deployed.clone()),
            deployed: Mutex::new(deployed),
        }
    }

    /// What the store is.
    #[must_use]
    pub fn store(&self) -> &PolicyStore {
        &self.store
    }

    /// What can be seen and done on the host.
    #[must_use]
    pub fn spec(&self) -> &EnvSpec {
        &self.host.info.spec
    }

    /// Where the decisions are recorded.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.config.service.data_dir.join("decisions")
    }

    /// Whether the configuration serves what was promoted.
    #[must_use]
    pub fn promotion(&self) -> Promotion {
        self.config.promoted
    }

    /// Whether a version decides now.
    #[must_use]
    pub fn serves(&self, name: &VersionName) -> bool {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let is_candidate = |(candidate, _): &(VersionName, Reach)| candidate == name;
        shown.production.as_ref() == Some(name)
            || shown.candidate.as_ref().is_some_and(is_candidate)
    }

    /// Puts an operation on `target` on record, once: where the same call was answered before, it is that one's
    /// operation, and nothing is left to be begun.
    ///
    /// # Errors
    /// `TOO_MANY_OPERATIONS`; those of the store.
    pub(crate) fn enter(
        &self,
        operations: &Operations,
        target: &str,
        repeatable: Option<&Repeatable>,
    ) -> Result<(Operation, Option<Pending>), Failure> {
        let pending = operations.prepare(target)?;
        let entered = self
            .store
            .change(|change| change.once(repeatable, || change.enter(&pending)));
        match entered {
            Ok(operation) if operation.name == pending.name() => Ok((operation, Some(pending))),
            other => {
                operations.give_up(&pending);
                Ok((other?, None))
            }
        }
    }

    /// Lets the owner decide by what the store says. Nothing is done where it does already.
    ///
    /// # Errors
    /// What cannot be served; the owner decides as before then.
    pub async fn follow(self: &Arc<Self>) -> Result<(), Failure> {
        let mut deployed = self.deployed.lock().await;
        self.follow_as(&mut deployed).await
    }

    async fn follow_as(self: &Arc<Self>, deployed: &mut Deployed) -> Result<(), Failure> {
        let this = Arc::clone(self);
        let standing = blocking(move || this.store.standing()).await??;
        let followed = self.follow_candidate(&standing, deployed).await;
        // A candidate that cannot be served keeps nobody from production.
        let done = self.follow_production(&standing, deployed).await;
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = deployed.clone();
        done.and(followed)
    }

    /// Takes out of use what the guard has had to put back too much of: production goes back to what was there
    /// before, a canary is archived.
    async fn withdraw(self: &Arc<Self>) -> Result<(), Failure> {
        // While this is held nobody else is seated, so that what is shown is about what is deployed.
        let mut deployed = self.deployed.lock().await;
        let (production, candidate) = {
            let view = self.host.view.borrow();
            (view.production_harm.clone(), view.candidate_harm.clone())
        };
        let production = deployed.production.clone().zip(production);
        let canary = deployed.candidate.clone();
        let canary = canary.filter(|(_, reach)| *reach == Reach::Canary);
        let canary = canary.map(|(name, _)| name).zip(candidate);
        if production.is_none() && canary.is_none() {
            return Ok(());
        }
        let this = Arc::clone(self);
        blocking(move || this.withdraw_from_store(production.as_ref(), canary.as_ref())).await??;
        self.follow_as(&mut deployed).await
    }

    /// Each with why.
    fn withdraw_from_store(
        &self,
        production: Option<&(VersionName, String)>,
        canary: Option<&(VersionName, String)>,
    ) -> Result<(), StoreError> {
        let asked = |reason: &str| Asked {
            actor: "guard".to_owned(),
            at_us: now_us(),
            reason: reason.to_owned(),
        };
        let is_at = |version: &Version, stage| version.stage == stage;
        self.store.change(|change| {
            if let Some((name, reason)) = production
                && is_at(&change.version(name)?, Stage::Production)
            {
                tracing::warn!(%name, reason, "rolled back");
                change.rollback("", &asked(reason))?;
            }
            if let Some((name, reason)) = canary
                && is_at(&change.version(name)?, Stage::Canary)
            {
                tracing::warn!(%name, reason, "archived");
                change.archive(name, &asked(reason))?;
            }
            Ok(())
        })
    }

    async fn follow_production(
        self: &Arc<Self>,
        standing: &Standing,
        deployed: &mut Deployed,
    ) -> Result<(), Failure> {
        let wanted = match self.config.promoted {
            Promotion::Serve => standing.production.as_ref(),
            Promotion::Ignore => None,
        };
        let name = wanted.map(|version| version.name.clone());
        if name == deployed.production {
            return Ok(());
        }
        match wanted {
            Some(version) => {
                let served = self.load(version.clone()).await?;
                self.seat_production(served, Origin::Store).await?;
            }
            None => self.seat_configured().await?,
        }
        deployed.production = name;
        Ok(())
    }

    async fn seat_configured(self: &Arc<Self>) -> Result<(), Failure> {
        match self.host.seat(Succession::Configured).await {
            Err(failure) if failure.reason() == "NOT_LOADED" => {}
            done => return done,
        }
        let this = Arc::clone(self);
        let served = blocking(move || loading::configured(&this.config, this.spec())).await??;
        self.seat_production(served, Origin::Configuration).await
    }

    async fn seat_production(
        self: &Arc<Self>,
        served: Served,
        origin: Origin,
    ) -> Result<(), Failure> {
        let this = Arc::clone(self);
        let production = blocking(move || {
            let data_dir = &this.config.service.data_dir;
            Production::of(served, data_dir, this.spec(), this.patience)
        });
        let production = Box::new(production.await?);
        let succession = Succession::Production(production, origin);
        self.host.seat(succession).await
    }

    async fn follow_candidate(
        self: &Arc<Self>,
        standing: &Standing,
        deployed: &mut Deployed,
    ) -> Result<(), Failure> {
        let canary = standing.canary.as_ref().map(|it| (it, Reach::Canary));
        let candidate = standing.candidate.as_ref().map(|it| (it, Reach::Shadow));
        let wanted = canary.or(candidate);
        let named = wanted.map(|(version, reach)| (version.name.clone(), reach));
        if named == deployed.candidate {
            return Ok(());
        }
        let succession = match wanted {
            Some((version, reach)) => {
                let served = self.load(version.clone()).await?;
                let chain = Chain::alone(served.loaded, self.patience);
                Succession::Candidate(Box::new(chain), reach)
            }
            None => Succession::ConfiguredCandidate,
        };
        self.host.seat(succession).await?;
        deployed.candidate = named;
        Ok(())
    }

    async fn load(self: &Arc<Self>, version: Version) -> Result<Served, Failure> {
        let this = Arc::clone(self);
        Ok(blocking(move || loading::stored(&this.store, &version, this.spec())).await??)
    }
}

/// Takes promoted versions out of use that do harm, until the owner has ended.
pub(crate) async fn follow_harm(deployment: Arc<Deployment>) {
    if deployment.config.on_harm == Withdrawal::Keep {
        return;
    }
    let mut view = deployment.host.view.clone();
    loop {
        let is_harmful = {
            let view = view.borrow_and_update();
            view.production_harm.is_some() || view.candidate_harm.is_some()
        };
        if is_harmful && let Err(failure) = deployment.withdraw().await {
            let error = failure.message();
            tracing::error!(error, "what does harm was not taken out of use");
        }
        if view.changed().await.is_err() {
            return;
        }
    }
}

/// Follows a store that other processes change, for ever.
pub(crate) async fn follow_others(deployment: Arc<Deployment>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    let mut last_error = String::new();
    loop {
        ticks.tick().await;
        let error = match deployment.follow().await {
            Ok(()) => String::new(),
            Err(failure) => failure.message().to_owned(),
        };
        // Once, and not every two seconds.
        if error != last_error && !error.is_empty() {
            tracing::error!(error, "what the policy store says is not served");
        }
        last_error = error;
    }
}

/// Runs what may take long, or wait for a disk, where it holds nobody up.
pub(crate) async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(act).await;
    done.map_err(|_| {
        let message = "a task ended by itself, which is our bug: see the service's log";
        Failure::new(Code::Internal, "INTERNAL", message)
    })
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Self::new(
            Code::FailedPrecondition,
            "POLICY_REFUSED",
            error.to_string(),
        )
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match &error {
            StoreError::Missing { name } => {
                Self::new(Code::NotFound, "NOT_FOUND", message).with("name", name)
            }
            StoreError::Etag { name, found, .. } => {
                Self::new(Code::Aborted, "ETAG_MISMATCH", message)
                    .with("name", name)
                    .with("etag", found)
            }
            StoreError::InProduction { name, .. } => {
                Self::new(Code::FailedPrecondition, "IN_PRODUCTION", message).with("name", name)
            }
            StoreError::NothingPromoted => {
                Self::new(Code::FailedPrecondition, "NOTHING_PROMOTED", message)
            }
            StoreError::Full { .. } => Self::new(Code::ResourceExhausted, "STORE_FULL", message),
            StoreError::PolicyId { .. } => Self::field("parent", message),
            StoreError::RequestReused { .. } => Self::field("request_id", message),
            StoreError::Checkpoint { .. } => {
                Self::new(Code::InvalidArgument, "CHECKPOINT_REFUSED", message)
            }
            StoreError::Mixed { .. } => Self::new(Code::DataLoss, "CHECKPOINT_DAMAGED", message),
            StoreError::Database(_)
            | StoreError::Io { .. }
            | StoreError::Older { .. }
            | StoreError::Record { .. } => Self::new(Code::Internal, "STORE_FAILED", message),
        }
    }
}
