//! How a run may stand, and what leads from one to another: pure.

use blkpilot_proto::v1::training_run::State;
use tonic::Code;

use crate::wire::status::Failure;

/// What somebody wants of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Pause,
    Resume,
    Cancel,
}

/// How the process of a run has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Exit {
    /// It has trained the run to its end.
    Done,
    /// It was told to end, by us or by somebody else; its last checkpoint stands.
    Interrupted,
    /// It failed, with its last words.
    Failed(String),
}

/// Whether nothing becomes of a run by itself any more.
pub(super) fn is_ended(state: State) -> bool {
    matches!(
        state,
        State::Succeeded | State::Failed | State::Cancelled | State::Unspecified
    )
}

/// Whether the process of a run is to end.
pub(super) fn is_ending(state: State) -> bool {
    matches!(state, State::Pausing | State::Cancelling)
}

/// How a run stands once a wish is heard; `name` is the run's.
///
/// # Errors
/// `RUN_ENDED`.
pub(super) fn heard(name: &str, state: State, wish: Wish) -> Result<State, Failure> {
    use State::{Cancelled, Cancelling, Failed, Paused, Pausing, Queued, Running};
    Ok(match (wish, state) {
        (Wish::Pause, Queued) => Paused,
        (Wish::Pause, Running) => Pausing,
        (Wish::Resume, Paused | Failed) => Queued,
        // Its process goes on, or if it has been told to end already, it is begun again.
        (Wish::Resume, Pausing) => Running,
        (Wish::Cancel, Queued | Paused) => Cancelled,
        (Wish::Cancel, Running | Pausing) => Cancelling,
        // What is so already.
        (Wish::Pause, Pausing | Paused)
        | (Wish::Resume, Queued | Running)
        | (Wish::Cancel, Cancelling | Cancelled) => state,
        (_, state) => {
            let stands = state.as_str_name();
            let message = format!("{name} is {stands}: create another one");
            let failure = Failure::new(Code::FailedPrecondition, "RUN_ENDED", message);
            return Err(failure.with("name", name));
        }
    })
}

/// How a run stands that the service finds when it starts: no process of it is ours any more.
pub(super) fn found(state: State) -> State {
    left(state, &Exit::Interrupted)
}

/// How a run stands whose process has ended. One that nobody asked to end begins again: pausing is what keeps it
/// from that.
pub(super) fn left(state: State, exit: &Exit) -> State {
    use State::{Cancelled, Cancelling, Failed, Paused, Pausing, Queued, Running, Succeeded};
    match (state, exit) {
        // What was done before it heard the wish is done.
        (Running | Pausing | Cancelling, Exit::Done) => Succeeded,
        (Cancelling, Exit::Interrupted | Exit::Failed(_)) => Cancelled,
        (Running, Exit::Interrupted) => Queued,
        (Pausing, Exit::Interrupted) => Paused,
        (Running | Pausing, Exit::Failed(_)) => Failed,
        (state, _) => state,
    }
}

#[cfg(test)]
mod tests {
    use State::{
        Cancelled, Cancelling, Failed, Paused, Pausing, Queued, Running, Succeeded, Unspecified,
    };

    use super::*;

    const ALL: [State; 8] = [
        Queued, Running, Pausing, Paused, Cancelling, Succeeded, Failed, Cancelled,
    ];

    #[test]
    fn each_wish_leads_where_it_is_said_to_from_every_state() {
        let reached = |wish| {
            ALL.map(|state| match heard("trainingRuns/a", state, wish) {
                Ok(state) => state.as_str_name(),
                Err(failure) => failure.reason(),
            })
        };
        let ended = "RUN_ENDED";
        assert_eq!(
            reached(Wish::Pause),
            [
                "PAUSED", "PAUSING", "PAUSING", "PAUSED", ended, ended, ended, ended
            ]
        );
        assert_eq!(
            reached(Wish::Resume),
            [
                "QUEUED", "RUNNING", "RUNNING", "QUEUED", ended, ended, "QUEUED", ended
            ]
        );
        assert_eq!(
            reached(Wish::Cancel),
            [
                "CANCELLED",
                "CANCELLING",
                "CANCELLING",
                "CANCELLED",
                "CANCELLING",
                ended,
                ended,
                "CANCELLED"
            ]
        );
    }

    #[test]
    fn what_was_asked_for_before_a_crash_is_so_after_it() {
        assert_eq!(
            ALL.map(found),
            [
                Queued, Queued, Paused, Paused, Cancelled, Succeeded, Failed, Cancelled
            ]
        );
    }

    #[test]
    fn a_process_that_was_done_before_it_heard_a_wish_has_succeeded() {
        for state in [Running, Pausing, Cancelling] {
            assert_eq!(left(state, &Exit::Done), Succeeded);
        }
        let failed = Exit::Failed("no room".to_owned());
        assert_eq!(left(Pausing, &failed), Failed);
        assert_eq!(left(Cancelling, &failed), Cancelled);
        assert!(is_ended(Unspecified), "nothing is begun that is unknown");
    }
}
