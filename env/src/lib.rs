//! The reinforcement-learning contract of a KVM host: specs, spaces, samples, reward, and the
//! simulated host.
//!
//! Everything here is pure: no clock is read, no file or socket is opened, and every source of
//! randomness is passed in. What a host did in one interval is a [`window::HostWindow`], made of two
//! [`sample::HostSample`]s on a live host and written directly by the simulated one; one function
//! turns a window into an observation ([`features`]), one into a reward ([`reward`]). What an agent
//! learns on the one host is therefore stated in the terms of the other.
//!
//! Reading order: [`spec`] (what can be seen and done), [`observation`], [`decision`] (how a joint
//! decision is made one disk at a time), [`environment`] (reset and step), [`recorded`] (an episode that can be gone on with), then [`sample`],
//! [`window`], [`features`] and [`reward`], then [`sim`].

pub mod cartpole;
pub mod clock;
pub mod conformance;
pub mod decision;
pub mod environment;
pub mod features;
pub mod guard;
pub mod observation;
pub mod recorded;
pub mod reward;
pub mod sample;
pub mod sim;
pub mod spec;
pub mod time_limit;
pub mod vector;
pub mod window;

pub use clock::{Clock, ManualClock};
pub use decision::{ActionError, JointAction, JointDecision, Turn, TurnView};
pub use environment::{
    BatchError, EnvError, Environment, Repeatable, ResetOptions, Restart, Rewards, Step,
};
pub use observation::{MaskReason, Masks, Observation, Table, Validity};
pub use spec::{Autoreset, EnvSpec, Feature, Head, HeadScope, Level, Levels, Scale, Unit};

/// The only generator used for sampling, shuffling and simulation: seedable, serialisable, and the
/// same on every machine.
pub type Rng = rand_chacha::ChaCha8Rng;
