//! What stands in for a policy that fails or is late.

use std::sync::Arc;

use blkpilot_agent::config::mode::Mode;
use blkpilot_agent::decision::Decision;
use blkpilot_agent::decision::chain::{Chain, Counts};
use blkpilot_env::clock::ManualClock;
use blkpilot_env::features::{CACHE_HEAD, CHANNEL_HEAD};
use blkpilot_env::{EnvSpec, Rng, TurnView};
use blkpilot_log::{Source as LogSource, Stage};
use blkpilot_models::{Choice, Policy, PolicyError};

use crate::setup::{Channel, LIMIT, Setup, four, loaded, rows};

/// A policy that fails in every turn.
enum Faulty {
    Error,
    NotFinite,
    NotAllowed,
    /// By this clock.
    Slow(ManualClock),
}

impl Policy for Faulty {
    fn name(&self) -> &str {
        "faulty"
    }

    fn choose(
        &mut self,
        spec: &EnvSpec,
        view: &TurnView<'_>,
        _: &mut Rng,
    ) -> Result<Choice, PolicyError> {
        let mut choice = Choice::certain(view.current.to_vec());
        match self {
            Self::Error => {
                return Err(PolicyError::NoChannelHead {
                    policy: "faulty".to_owned(),
                    spec: spec.name.clone(),
                });
            }
            Self::NotFinite => choice.propensities[CACHE_HEAD] = f64::NAN,
            Self::NotAllowed => choice.levels[CACHE_HEAD] = 7,
            // Two turns are in time, the third is not.
            Self::Slow(clock) => clock.advance(LIMIT * 2 / 5),
        }
        Ok(choice)
    }
}

/// The stages of the first decision's rows, in the order of the turns.
fn stages(decisions: &[Arc<Decision>]) -> Vec<Stage> {
    decisions[0].rows.iter().map(|row| row.stage).collect()
}

#[tokio::test]
async fn the_heuristic_stands_in_for_a_policy_however_it_fails() {
    for (fault, said) in [
        (Faulty::Error, "points at any"),
        (Faulty::NotFinite, "NaN"),
        (Faulty::NotAllowed, "level 7"),
    ] {
        let case = Setup::new([Mode::Auto; 4], loaded("faulty", fault)).start();
        let decisions = case.decisions(3).await;
        assert_eq!(stages(&decisions), [Stage::Heuristic; 4]);
        let by = decisions[0].rows.iter().map(|row| &*row.policy);
        assert_eq!(by.collect::<Vec<_>>(), ["least_loaded"; 4]);
        let view = case.view(|view| view.policy_error.is_some()).await;
        assert!(view.policy_error.unwrap().contains(said), "{said}");
        let Counts {
            last_good,
            heuristic,
            keep,
        } = view.fallbacks;
        assert!(heuristic >= 3);
        assert_eq!((last_good, keep), (0, 0));
    }
}

#[tokio::test]
async fn a_late_policy_is_out_for_the_rest_of_the_decision() {
    let clock = ManualClock::default();
    let slow = loaded("slow", Faulty::Slow(clock.clone()));
    let mut setup = Setup::new([Mode::Auto; 4], slow);
    setup.clock = clock;
    let case = setup.start();
    let decisions = case.decisions(3).await;
    for decision in &decisions {
        let stages = decision.rows.iter().map(|row| row.stage);
        assert_eq!(
            stages.collect::<Vec<_>>(),
            [
                Stage::Policy,
                Stage::Policy,
                Stage::Heuristic,
                Stage::Heuristic
            ]
        );
    }
    let view = case.view(|view| view.policy_error.is_some()).await;
    let error = view.policy_error.unwrap();
    assert!(
        error.contains("slow") && error.contains("1000 ms"),
        "{error}"
    );
}

#[tokio::test]
async fn the_last_good_policy_comes_before_the_heuristic_and_nothing_after_it() {
    let faulty = || loaded("faulty", Faulty::Error);
    let mut setup = Setup::new([Mode::Auto; 4], faulty());
    let last_good = Some(loaded("before", Channel(3)));
    setup.production = Chain::with_fallbacks(faulty(), last_good, &four(), LIMIT);
    let case = setup.start();
    let decisions = case.decisions(3).await;
    assert_eq!(stages(&decisions), [Stage::LastGood; 4]);
    let row = &decisions[0].rows[0];
    assert_eq!(&*row.policy_version, "before-1");
    assert_eq!(row.heads[CHANNEL_HEAD].executed, 3);
    let view = case.view(|view| view.fallbacks.last_good >= 3).await;
    assert_eq!((view.fallbacks.heuristic, view.fallbacks.keep), (0, 0));

    let mut setup = Setup::new([Mode::Auto; 4], faulty());
    setup.production = Chain::alone(faulty(), LIMIT);
    let case = setup.start();
    let decisions = case.decisions(3).await;
    assert_eq!(stages(&decisions), [Stage::Keep; 4]);
    assert!((0..4).all(|disk| !case.was_changed(disk)));
    let view = case.view(|view| view.fallbacks.keep >= 3).await;
    assert_eq!((view.fallbacks.last_good, view.fallbacks.heuristic), (0, 0));
}

#[tokio::test]
async fn the_production_policy_stands_in_for_a_candidate_that_fails() {
    let modes = [Mode::Canary, Mode::Auto, Mode::Observe, Mode::Observe];
    let mut setup = Setup::new(modes, loaded("production", Channel(1)));
    setup.candidate = Some(loaded("candidate", Faulty::Error));
    let case = setup.start();
    let decisions = case.decisions(3).await;
    let canary = rows(&decisions, "guest-0").next().unwrap();
    assert_eq!(
        (canary.source, canary.stage, &*canary.policy),
        (LogSource::Canary, Stage::LastGood, "production")
    );
    assert_eq!(canary.heads[CHANNEL_HEAD].executed, 1);
    let auto = rows(&decisions, "guest-1").next().unwrap();
    assert_eq!(auto.stage, Stage::Policy);
    let view = case
        .view(|view| view.candidate_fallbacks.last_good >= 3)
        .await;
    assert_eq!(view.fallbacks, Counts::default());
    assert_eq!(view.policy_error, None);
    let view = case.view(|view| view.candidate_error.is_some()).await;
    assert!(view.candidate_error.unwrap().contains("faulty"));
}

#[tokio::test]
async fn a_candidate_that_fails_in_the_shadow_is_named_and_logs_nothing() {
    let mut setup = Setup::new([Mode::Shadow; 4], loaded("production", Channel(1)));
    setup.candidate = Some(loaded("candidate", Faulty::Error));
    let case = setup.start();
    let view = case.view(|view| view.candidate_error.is_some()).await;
    assert!(view.candidate_error.unwrap().contains("faulty"));
    assert_eq!(view.policy_error, None);
    assert_eq!(case.log().await, []);
}
