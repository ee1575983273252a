//! What every implementation of [`Environment`] must do, as one function that any of them can be
//! put through: simulated, live, or behind a network.

use rand::SeedableRng as _;

use crate::decision::{JointAction, JointDecision};
use crate::environment::{EnvError, Environment, ResetOptions, Step};
use crate::observation::Observation;
use crate::spec::{Autoreset, EnvSpec, Level};

/// How much to ask of an environment.
#[derive(Debug, Clone, Copy)]
pub struct Demands {
    /// Whether the same seed and actions must give the same episode; not so on a live host.
    pub is_deterministic: bool,
    /// Steps to take; episodes may end before.
    pub steps: u32,
}

/// Puts a fresh environment, on which `reset` was never called, through the contract.
///
/// # Errors
/// The first clause that it breaks, in words.
pub fn check<E: Environment>(mut make: impl FnMut() -> E, demands: Demands) -> Result<(), String> {
    let mut env = make();
    refuses_step_before_reset(&mut env)?;
    let first = run(&mut env, 11, demands.steps)?;
    refuses_bad_actions(&mut env)?;
    if demands.is_deterministic {
        let again = run(&mut make(), 11, demands.steps)?;
        ensure(first == again, || {
            "the same seed and actions gave another episode".to_owned()
        })?;
    }
    refuses_unknown_options(&mut env)
}

fn ensure(holds: bool, clause: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(clause()) }
}

fn refuses_step_before_reset(env: &mut impl Environment) -> Result<(), String> {
    let nothing = JointAction::default();
    match env.step(&nothing) {
        Err(EnvError::StepBeforeReset) => Ok(()),
        other => Err(format!("step before reset must be refused, got {other:?}")),
    }
}

fn refuses_unknown_options(env: &mut impl Environment) -> Result<(), String> {
    let options = ResetOptions::from([("no_such_option".to_owned(), "1".to_owned())]);
    match env.reset(Some(1), &options) {
        Err(EnvError::Option { name, .. }) if name == "no_such_option" => Ok(()),
        other => Err(format!(
            "an unknown reset option must be refused by name, got {:?}",
            other.map(|_| "an observation")
        )),
    }
}

fn refuses_bad_actions(env: &mut impl Environment) -> Result<(), String> {
    let obs = env
        .reset(Some(12), &ResetOptions::new())
        .map_err(|e| e.to_string())?;
    let mut action = obs.current.clone();
    if let Some(level) = action.disks.first_mut() {
        *level = Level::MAX;
        let refused = matches!(env.step(&action), Err(EnvError::Action(_)));
        ensure(refused, || {
            "a level that does not exist must be refused".to_owned()
        })?;
    }
    let refused = matches!(env.step(&JointAction::default()), Err(EnvError::Action(_)));
    ensure(refused || obs.disk_count() == 0, || {
        "an action without rows must be refused".to_owned()
    })?;
    env.step(&obs.current)
        .map(|_| ())
        .map_err(|e| format!("a refused action must leave the episode as it was: {e}"))
}

/// An episode under random allowed actions, checked at each step.
fn run(env: &mut impl Environment, seed: u64, steps: u32) -> Result<Vec<Step>, String> {
    let spec = env.spec().clone();
    let mut rng = crate::Rng::seed_from_u64(seed);
    let mut obs = env
        .reset(Some(seed), &ResetOptions::new())
        .map_err(|e| e.to_string())?;
    let mut episode = Vec::new();
    for _ in 0..steps {
        check_observation(&spec, &obs)?;
        let action = random_action(&spec, &obs, &mut rng);
        let step = env
            .step(&action)
            .map_err(|e| format!("an allowed action was refused: {e}"))?;
        check_step(&spec, &obs, &step)?;
        let over = step.is_last();
        obs = step.observation.clone();
        episode.push(step);
        if over && spec.autoreset == Autoreset::Disabled {
            let refused = matches!(env.step(&obs.current), Err(EnvError::EpisodeOver));
            ensure(refused, || {
                "step after the end must be refused without autoreset".to_owned()
            })?;
            break;
        }
    }
    Ok(episode)
}

/// A joint action drawn evenly from what is allowed.
pub fn random_action(spec: &EnvSpec, obs: &Observation, rng: &mut crate::Rng) -> JointAction {
    let mut decision = JointDecision::in_random_order(spec, obs, rng);
    while let Some(view) = decision.view() {
        let levels: Vec<Level> = (0..view.heads.len())
            .map(|head| {
                view.forced(head).unwrap_or_else(|| {
                    let allowed: Vec<usize> = (0..view.head_mask(head).len())
                        .filter(|l| view.head_mask(head)[*l].is_allowed())
                        .collect();
                    allowed[rand::RngExt::random_range(rng, 0..allowed.len())] as Level
                })
            })
            .collect();
        decision
            .commit(&levels)
            .expect("random_action commits allowed levels");
    }
    decision.finish().0
}

fn check_observation(spec: &EnvSpec, obs: &Observation) -> Result<(), String> {
    let (n, k, d) = (obs.disk_count(), obs.channel_count(), obs.device_count());
    let tables = [
        ("disk", &obs.disks, &spec.disk_features, n),
        ("channel", &obs.channels, &spec.channel_features, k),
        ("device", &obs.devices, &spec.device_features, d),
        ("host", &obs.host, &spec.host_features, 1),
    ];
    for (name, table, features, rows) in tables {
        ensure(table.values.dim() == (rows, features.len()), || {
            format!("the {name} table has shape {:?}", table.values.dim())
        })?;
        ensure(
            table.validity.dim() == table.values.dim() && table.age_s.dim() == table.values.dim(),
            || format!("validity and age of the {name} table have another shape than its values"),
        )?;
        for ((row, column), value) in table.values.indexed_iter() {
            let feature = &features[column];
            ensure(
                value.is_finite() && (feature.low..=feature.high).contains(value),
                || {
                    format!(
                        "{name} {row}: {} = {value} is outside [{}, {}]",
                        feature.name, feature.low, feature.high
                    )
                },
            )?;
        }
    }
    ensure(obs.pairs.dim() == (n, k, spec.pair_features.len()), || {
        format!("the pair table has shape {:?}", obs.pairs.dim())
    })?;
    ensure(obs.masks.disks.dim() == (n, spec.disk_levels(k)), || {
        format!("the disk mask has shape {:?}", obs.masks.disks.dim())
    })?;
    ensure(
        obs.masks.devices.dim() == (d, spec.device_levels(k)),
        || format!("the device mask has shape {:?}", obs.masks.devices.dim()),
    )?;
    ensure(obs.disk_ids.len() == n && obs.disk_group.len() == n, || {
        "ids and groups must have a row per disk".to_owned()
    })?;
    ensure(obs.disk_device.iter().all(|device| *device < d), || {
        "a disk names a device that is not shown".to_owned()
    })
}

fn check_step(spec: &EnvSpec, before: &Observation, step: &Step) -> Result<(), String> {
    let (n, rewards) = (before.disk_count(), &step.rewards);
    let (low, high) = spec.reward_range;
    ensure(
        rewards.total.len() == n && rewards.counted.len() == n,
        || "rewards must have a row per disk".to_owned(),
    )?;
    ensure(rewards.terms.dim() == (n, spec.reward_terms.len()), || {
        format!("reward terms have shape {:?}", rewards.terms.dim())
    })?;
    for disk in 0..n {
        let (total, own) = (rewards.total[disk], rewards.own[disk]);
        ensure(
            (low..=high).contains(&total) && (low..=high).contains(&own),
            || format!("disk {disk}: reward {total} (own {own}) is outside [{low}, {high}]"),
        )?;
        let sum: f32 = rewards.terms.row(disk).sum();
        ensure(
            !rewards.counted[disk] || (sum.clamp(low, high) - own).abs() < 1e-4,
            || format!("disk {disk}: terms sum to {sum}, own is {own}"),
        )?;
        ensure(rewards.counted[disk] || total == 0.0, || {
            format!("disk {disk} does not count but has reward {total}")
        })?;
    }
    ensure(
        step.executed.disks.dim() == (n, spec.disk_heads.len()),
        || {
            format!(
                "the executed action has shape {:?}",
                step.executed.disks.dim()
            )
        },
    )?;
    ensure(!(step.terminated && step.truncated), || {
        "terminated and truncated at once".to_owned()
    })?;
    let shows_next = spec.autoreset == Autoreset::SameStep && step.is_last();
    ensure(step.final_observation.is_some() == shows_next, || {
        "final_observation belongs to the last step under SameStep, and only there".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cartpole::CartPole;
    use crate::sim::{Generator, SimHost, presets};
    use crate::vector::AutoresetEnv;

    const DEMANDS: Demands = Demands {
        is_deterministic: true,
        steps: 80,
    };

    #[test]
    fn cartpole_conforms() {
        check(|| CartPole::new(1), DEMANDS).unwrap();
    }

    #[test]
    fn every_preset_of_the_simulated_host_conforms() {
        for name in presets::NAMES {
            check(
                || SimHost::fixed(presets::by_name(name).unwrap()).unwrap(),
                DEMANDS,
            )
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }

    #[test]
    fn generated_hosts_conform_with_and_without_schedulers() {
        for schedulers in [false, true] {
            let make = || {
                SimHost::generated(Generator {
                    schedulers,
                    ..Generator::default()
                })
                .unwrap()
            };
            check(make, DEMANDS).unwrap();
            for mode in [Autoreset::SameStep, Autoreset::NextStep] {
                check(|| AutoresetEnv::new(make(), mode), DEMANDS).unwrap();
            }
        }
    }
}
