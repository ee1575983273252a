use super::*;
use crate::rollout::Tail;

/// A host-step of disks of which only these matter.
fn step(counted: &[bool], begins_episode: bool) -> HostStep {
    HostStep {
        disk_rows: vec![0; counted.len()],
        device_rows: vec![],
        rewards: vec![0.0; counted.len()],
        counted: counted.to_vec(),
        disk_device: vec![],
        disk_group: vec![],
        tail: Tail::Next,
        begins_episode,
    }
}

fn close(got: f64, want: f64) {
    assert!(
        (got - want).abs() < 1e-6 * (1.0 + want.abs()),
        "{got} is not {want}"
    );
}

/// Two environments of one disk; in each a second episode begins within, or after the last. The figures are those of stable-baselines3
/// 2.9.2, `VecNormalize(norm_obs=False, gamma=0.9)`, on the same rewards.
#[test]
fn scaled_rewards_are_those_of_vec_normalize() {
    let paid = [[1.0, 0.5, 2.0, -1.0], [-2.0, 3.0, 0.0, 40.0]];
    let begins = [[true, false, true, false], [true, false, false, false]];
    let want = [
        [
            0.6666740775108337,
            0.3589808940887451,
            1.555741548538208,
            -0.07497493177652359,
        ],
        [
            -1.3333481550216675,
            2.1538853645324707,
            0.0,
            2.998997449874878,
        ],
    ];
    let track = |begins: [bool; 4]| begins.map(|begins| step(&[true], begins)).into();
    let tracks: Vec<Vec<HostStep>> = begins.into_iter().map(track).collect();
    let mut rewards: Vec<Rewards> = paid
        .iter()
        .map(|env| env.iter().map(|reward| vec![*reward]).collect())
        .collect();
    let mut scale = RewardScale::default();
    scale.apply(&tracks, 0.9, &mut rewards);
    for (got, want) in rewards.iter().flatten().flatten().zip(want.as_flattened()) {
        close(f64::from(*got), *want);
    }
    close(scale.variance, 177.89666597943537);
    close(scale.mean, 5.806427419657254);
    close(scale.count, 8.0001);
    close(scale.returns[0][0], 0.8);
    // The second environment's next episode begins at nothing.
    let next = vec![vec![step(&[true], false)], vec![step(&[true], true)]];
    scale.apply(&next, 0.9, &mut [vec![vec![0.0]], vec![vec![7.0]]]);
    close(scale.returns[0][0], 0.72);
    close(scale.returns[1][0], 7.0);
}

#[test]
fn rollouts_one_after_another_are_scaled_as_one() {
    let paid = [[1.0], [-3.0], [2.0], [0.5]];
    let tracks = |begins| vec![vec![step(&[true], begins), step(&[true], false)]];
    let part = |from: usize| vec![paid[from..from + 2].iter().map(|r| r.to_vec()).collect()];
    let (mut first, mut second): (Vec<Rewards>, Vec<Rewards>) = (part(0), part(2));
    let mut parts = RewardScale::default();
    parts.apply(&tracks(true), 0.5, &mut first);
    parts.apply(&tracks(false), 0.5, &mut second);
    let mut whole: Vec<Rewards> = vec![paid.iter().map(|r| r.to_vec()).collect()];
    let mut once = RewardScale::default();
    let steps = (0..4).map(|t| step(&[true], t == 0)).collect();
    once.apply(&[steps], 0.5, &mut whole);
    assert_eq!(parts, once);
    assert_eq!([first.remove(0), second.remove(0)].concat(), whole[0]);
}

/// The second disk is idle in the first step: only the first's return of 4 is seen, which with the prior gives
/// the variance 1.0e-4 · (1 + 16 / 1.0001) / 1.0001; what it is paid is beyond the clip then.
#[test]
fn disks_that_do_not_count_are_not_seen_and_what_is_far_out_is_clipped() {
    let tracks = vec![vec![step(&[true, false], false)]];
    let mut rewards: Vec<Rewards> = vec![vec![vec![4.0, 0.0]]];
    let mut scale = RewardScale::default();
    scale.apply(&tracks, 0.9, &mut rewards);
    close(scale.count, 1.0001);
    close(scale.variance, 1e-4 * (1.0 + 16.0 / 1.0001) / 1.0001);
    assert_eq!(rewards[0][0], [10.0, 0.0]);
    assert_eq!(scale.returns, [[4.0, 0.0]]);
}

/// An episode of two disks, then one of three.
#[test]
fn an_episode_may_have_another_number_of_disks() {
    let tracks = vec![vec![step(&[true; 2], true), step(&[true; 3], true)]];
    let mut rewards: Vec<Rewards> = vec![vec![vec![1.0; 2], vec![2.0; 3]]];
    let mut scale = RewardScale::default();
    scale.apply(&tracks, 0.9, &mut rewards);
    assert_eq!(scale.returns, [[2.0; 3]]);
}

/// A step that was left out makes one track shorter than another.
#[test]
fn tracks_may_be_of_different_lengths() {
    let tracks = vec![
        vec![step(&[true], true), step(&[true], false)],
        vec![step(&[true], true)],
    ];
    let mut rewards: Vec<Rewards> = vec![vec![vec![1.0], vec![2.0]], vec![vec![3.0]]];
    let mut scale = RewardScale::default();
    scale.apply(&tracks, 0.5, &mut rewards);
    assert_eq!(scale.returns, [[2.5], [3.0]]);
    close(scale.count, 3.0001);
}
