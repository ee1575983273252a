//! What the holder of a host is shown, for those who only observe.

use std::sync::Arc;

use blkpilot_proto::v1::observe_response::Shown as Answer;
use tokio::sync::watch;

/// What was shown last, and how much was before.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scene {
    /// Number of answers since the service runs.
    pub(crate) sequence: u64,
    /// The last answer, while its holder has the host.
    pub(crate) last: Option<Arc<Shown>>,
}

/// An answer to the holder.
#[derive(Debug)]
pub(crate) struct Shown {
    /// Name of the environment.
    pub(crate) holder: String,
    /// The answer.
    pub(crate) answer: Answer,
}

/// Where a holder's answers are shown, for as long as it holds the host.
#[derive(Debug)]
pub(crate) struct Stage {
    holder: String,
    scene: watch::Sender<Scene>,
}

impl Stage {
    pub(crate) fn new(holder: String, scene: watch::Sender<Scene>) -> Self {
        Self { holder, scene }
    }

    /// Shows an answer; nobody is waited for.
    pub(crate) fn show(&self, answer: Answer) {
        let holder = self.holder.clone();
        let shown = Arc::new(Shown { holder, answer });
        self.scene.send_modify(|scene| {
            scene.sequence += 1;
            scene.last = Some(shown);
        });
    }
}

impl Drop for Stage {
    /// What somebody was shown who has gone says nothing of now.
    fn drop(&mut self) {
        self.scene.send_modify(|scene| scene.last = None);
    }
}
