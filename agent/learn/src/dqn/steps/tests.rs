use blkpilot_env::EnvSpec;
use blkpilot_env::cartpole::CartPole;

use super::*;

const REACH: Reach = Reach {
    steps: 3,
    gamma: 0.5,
};

fn spec() -> EnvSpec {
    CartPole::default_spec()
}

/// A turn that is known by its number.
fn turn(number: usize) -> Arc<SeenTurn> {
    let numbers = [number as f32, 0.0, 0.0, 0.0];
    Arc::new(SeenTurn::from_parts(&spec(), 0, &numbers, &[true; 2], &[0]).unwrap())
}

/// Host-step `time` of two disks, the second with ten times the reward, whose turns are numbered from 100.
fn step(time: usize, reward: f32) -> HostStep {
    HostStep {
        turns: vec![turn(time), turn(100 + time)],
        levels: vec![[0][..].into(), [1][..].into()],
        rewards: vec![reward, 10.0 * reward],
    }
}

/// Number of the turn, reward, discount and number of the next turn.
type Seen = (usize, f32, f32, Option<usize>);

fn seen(transition: &Transition) -> Seen {
    let number = |turn: &Arc<SeenTurn>| turn.numbers()[0] as usize;
    (
        number(&transition.turn),
        transition.reward,
        transition.discount,
        transition.next.as_ref().map(number),
    )
}

/// Rewards 1, 2, 4, … of an episode whose last host-step is followed by `last`; of the first disk alone.
fn played(steps: usize, last: &Then) -> Vec<Seen> {
    let (mut waiting, mut out) = (Waiting::default(), vec![]);
    for time in 0..steps {
        let then = if time + 1 == steps { last } else { &Then::Next };
        waiting.push(step(time, (1 << time) as f32), then, REACH, &mut out);
    }
    let of_second = out.iter().filter(|transition| *transition.levels == [1]);
    let of_first: Vec<Seen> = out.iter().filter(|t| *t.levels == [0]).map(seen).collect();
    for (first, second) in of_first.iter().zip(of_second) {
        let (number, reward, discount, next) = *first;
        let next = next.map(|next| next + 100);
        assert_eq!(seen(second), (number + 100, 10.0 * reward, discount, next));
    }
    of_first
}

/// 1 + 2/2 + 4/4 = 3, then 2 + 4/2 + 8/4 = 6; the last three wait for what follows.
#[test]
fn what_goes_on_reaches_over_n_steps_and_waits_for_what_follows() {
    let wanted = [(0, 3.0, 0.125, Some(3)), (1, 6.0, 0.125, Some(4))];
    assert_eq!(played(5, &Then::Next), wanted);
    assert_eq!(played(3, &Then::Next), []);
}

/// Of four steps with 1, 2, 4, 8 the last has 8, the one before 4 + 8/2, the one before 2 + 4/2 + 8/4.
#[test]
fn nothing_follows_a_termination_within_n() {
    let wanted = [
        (0, 3.0, 0.125, Some(3)),
        (1, 6.0, 0.125, None),
        (2, 8.0, 0.25, None),
        (3, 8.0, 0.5, None),
    ];
    assert_eq!(played(4, &Then::Terminated), wanted);
    assert_eq!(played(1, &Then::Terminated), [(0, 1.0, 0.5, None)]);
}

#[test]
fn a_cut_within_n_is_followed_by_what_would_have_come_after_so_many_steps() {
    let last = Then::Cut(vec![turn(50), turn(150)]);
    let wanted = [
        (0, 3.0, 0.125, Some(3)),
        (1, 6.0, 0.125, Some(50)),
        (2, 8.0, 0.25, Some(50)),
        (3, 8.0, 0.5, Some(50)),
    ];
    assert_eq!(played(4, &last), wanted);
    assert_eq!(
        played(2, &last),
        [(0, 2.0, 0.25, Some(50)), (1, 2.0, 0.5, Some(50))]
    );
}

#[test]
fn the_next_episode_begins_with_nothing_waiting() {
    let (mut waiting, mut out) = (Waiting::default(), vec![]);
    waiting.push(step(0, 1.0), &Then::Terminated, REACH, &mut out);
    assert_eq!(waiting, Waiting::default());
    waiting.push(step(1, 1.0), &Then::Next, REACH, &mut out);
    assert_eq!(out.iter().map(seen).filter(|s| s.0 == 1).count(), 0);
}

/// The third step is left out: the first two are followed by its turns, and what it earned is nobody's.
#[test]
fn an_episode_ends_before_a_step_that_is_left_out() {
    let found = played(3, &Then::LeftOut);
    let wanted = [(0, 2.0, 0.25, Some(2)), (1, 2.0, 0.5, Some(2))];
    assert_eq!(found, wanted);
}
