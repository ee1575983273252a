use blkpilot_env::EnvSpec;
use blkpilot_env::cartpole::CartPole;
use blkpilot_env::features::kvm_host_spec;
use rand::SeedableRng as _;

use super::*;
use crate::dqn::steps::{HostStep, Waiting};

const PRIORITISED: Prioritised = Prioritised {
    alpha: 0.5,
    beta: 0.4,
};

fn turn(spec: &EnvSpec, channels: usize, number: f32) -> Arc<SeenTurn> {
    let own = spec.disk_features.len() + spec.device_features.len() + spec.host_features.len();
    let lane = spec.channel_features.len() + spec.pair_features.len();
    let levels: usize = spec.disk_heads.iter().map(|head| head.len(channels)).sum();
    let numbers = vec![number; own + channels * lane];
    let allowed: Vec<bool> = (0..levels).map(|level| level % 3 != 1).collect();
    let current = vec![1; spec.disk_heads.len()];
    let turn = SeenTurn::from_parts(spec, channels, &numbers, &allowed, &current);
    Arc::new(turn.unwrap())
}

fn transition(number: usize) -> Transition {
    let spec = CartPole::default_spec();
    Transition {
        turn: turn(&spec, 0, number as f32),
        levels: [0][..].into(),
        reward: number as f32,
        discount: 0.9,
        next: None,
    }
}

fn filled(capacity: usize, count: usize, prioritised: Option<Prioritised>) -> Replay {
    let mut replay = Replay::new(capacity, prioritised);
    (0..count).for_each(|number| replay.push(transition(number)));
    replay
}

#[test]
fn never_more_is_remembered_than_its_capacity_and_the_oldest_go_first() {
    for count in [3, 5, 6, 17] {
        let replay = filled(5, count, Some(PRIORITISED));
        assert_eq!(replay.len(), count.min(5));
        let mut kept: Vec<usize> = (0..replay.len())
            .map(|at| replay.get(at).reward as usize)
            .collect();
        kept.sort_unstable();
        let wanted: Vec<usize> = (count.saturating_sub(5)..count).collect();
        assert_eq!(kept, wanted);
    }
}

#[test]
fn what_is_forgotten_is_freed() {
    let mut replay = Replay::new(2, None);
    let first = transition(0);
    let turn = Arc::downgrade(&first.turn);
    replay.push(first);
    replay.push(transition(1));
    assert!(turn.upgrade().is_some());
    replay.push(transition(2));
    assert!(turn.upgrade().is_none());
}

#[test]
fn without_priorities_each_is_drawn_as_often_with_weight_one() {
    let replay = filled(5, 9, None);
    let drawn = replay.draw(50_000, 0.3, &mut Rng::seed_from_u64(1));
    assert!(drawn.weights.iter().all(|weight| *weight == 1.0));
    for place in 0..5 {
        let found = drawn.places.iter().filter(|own| **own == place).count();
        assert!((9_700..10_300).contains(&found), "{found}");
    }
}

/// Errors 0, 3, −8 and 15 with α = 1/2, and a fifth that is new and has the greatest of these.
#[test]
fn priorities_and_weights_are_those_of_the_paper() {
    let mut replay = filled(5, 4, Some(PRIORITISED));
    replay.set_errors(&[0, 1, 2, 3], &[0.0, 3.0, -8.0, 15.0]);
    replay.push(transition(4));
    let roots = [0.0, 3.0, 8.0, 15.0, 15.0].map(|error: f64| (error + 1e-6).sqrt());
    let sum: f64 = roots.iter().sum();
    let drawn = replay.draw(40_000, 0.5, &mut Rng::seed_from_u64(3));
    for (place, root) in roots.into_iter().enumerate() {
        let found = drawn.places.iter().filter(|own| **own == place).count() as f64;
        let wanted = 40_000.0 * root / sum;
        // One is drawn from each of 40,000 parts: only those at the edges can fall to either side.
        assert!(
            (found - wanted).abs() < 3.0,
            "{place}: {found}, not {wanted}"
        );
    }
    // β is half-way from 0.4 to 1; the greatest weight is that of the least likely one.
    let weight = |place: usize| (5.0 * roots[place] / sum).powf(-0.7);
    assert!(drawn.places.contains(&0));
    for (place, found) in drawn.places.iter().zip(&drawn.weights) {
        let wanted = weight(*place) / weight(0);
        assert!(
            (f64::from(*found) / wanted - 1.0).abs() < 1e-3,
            "{place}: {found}, not {wanted}"
        );
    }
}

#[test]
fn beta_ends_at_one_where_the_weights_undo_the_priorities() {
    let mut replay = filled(2, 2, Some(PRIORITISED));
    replay.set_errors(&[0, 1], &[1.0, 9.0]);
    let drawn = replay.draw(1000, 1.0, &mut Rng::seed_from_u64(4));
    let of = |place: usize| {
        let at = drawn.places.iter().position(|own| *own == place).unwrap();
        f64::from(drawn.weights[at])
    };
    // Drawn three times as often, and a third of the weight.
    assert!((of(0) - 1.0).abs() < 1e-5 && (of(1) - 1.0 / 3.0).abs() < 1e-5);
}

/// Hosts of several sizes, turns that are shared, and a ring that has gone round.
#[test]
fn what_is_written_is_read_as_it_was() {
    let spec = kvm_host_spec(&[]);
    let turns: Vec<Arc<SeenTurn>> = (0..9).map(|i| turn(&spec, 1 + i % 3, i as f32)).collect();
    let levels: Arc<[Level]> = (0..spec.disk_heads.len() as Level).collect();
    for prioritised in [None, Some(PRIORITISED)] {
        let mut replay = Replay::new(5, prioritised);
        for pair in turns.windows(2) {
            let is_last = pair[1].numbers()[0] == 8.0;
            replay.push(Transition {
                turn: pair[0].clone(),
                levels: levels.clone(),
                reward: pair[0].numbers()[0] / 3.0,
                discount: 0.99,
                next: (!is_last).then(|| pair[1].clone()),
            });
        }
        replay.set_errors(&[1, 3], &[0.1, -7.0]);
        let step = HostStep {
            turns: turns[..2].to_vec(),
            levels: vec![levels.clone(); 2],
            rewards: vec![0.1, -0.2],
        };
        let mut waiting = vec![Waiting::default(); 3];
        waiting[1].steps.extend([step.clone(), step]);
        let memory = Memory { replay, waiting };
        let bytes = memory.to_bytes();
        let read = Memory::from_bytes(&spec, &bytes, 5, prioritised).unwrap();
        assert_eq!(read, memory);
        assert_eq!(read.to_bytes(), bytes);
        let places = 0..read.replay.len();
        let of = |place: usize| read.replay.get(place).turn.clone();
        let nexts = places
            .clone()
            .filter_map(|place| read.replay.get(place).next.clone());
        let shared = nexts.filter(|next| places.clone().any(|place| Arc::ptr_eq(next, &of(place))));
        assert_eq!(shared.count(), 4, "turns that were one are one again");
    }
}

#[test]
fn what_is_no_memory_is_refused_with_the_reason() {
    let spec = CartPole::default_spec();
    let memory = Memory {
        replay: filled(5, 5, None),
        waiting: vec![Waiting::default()],
    };
    let bytes = memory.to_bytes();
    let refusal = |spec: &EnvSpec, bytes: &[u8], capacity: usize, prioritised| {
        let read = Memory::from_bytes(spec, bytes, capacity, prioritised);
        read.unwrap_err().to_string()
    };
    let torn = refusal(&spec, &bytes[..bytes.len() - 1], 5, None);
    assert!(torn.contains("cannot be read"), "{torn}");
    let another = refusal(&kvm_host_spec(&[]), &bytes, 5, None);
    assert!(another.contains("not of its spec"), "{another}");
    let too_many = refusal(&spec, &bytes, 4, None);
    assert!(too_many.contains("do not hold together"), "{too_many}");
    let none = refusal(&spec, &bytes, 5, Some(PRIORITISED));
    assert!(
        none.contains("priorities.raw of its memory is missing"),
        "{none}"
    );
}
