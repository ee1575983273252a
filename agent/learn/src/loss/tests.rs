use super::*;

const WEIGHTS: LossWeights = LossWeights {
    clip: 0.2,
    value_clip: None,
    value: 0.5,
    entropy: 0.1,
};

/// What a test wants of one turn with two heads, of three levels and of two.
#[derive(Clone)]
struct Turn {
    masks: [Vec<bool>; 2],
    levels: [i64; 2],
    log_prob: f32,
    advantage: f32,
    teaches: bool,
    value: f32,
    wanted: f32,
}

/// A turn that teaches, with everything allowed.
fn turn(levels: [i64; 2], log_prob: f32, advantage: f32) -> Turn {
    Turn {
        masks: [vec![true; 3], vec![true; 2]],
        levels,
        log_prob,
        advantage,
        teaches: true,
        value: 0.0,
        wanted: 0.0,
    }
}

/// Gives `check` a minibatch of all `turns` in their order.
fn with_minibatch<T>(turns: &[Turn], check: impl FnOnce(&Minibatch<'_>) -> T) -> T {
    let of = |get: fn(&Turn) -> f32| turns.iter().map(get).collect::<Vec<f32>>();
    let masks: Vec<Vec<Vec<bool>>> = turns.iter().map(|turn| turn.masks.to_vec()).collect();
    let samples = Samples {
        turns: Turns::of_masks(&masks),
        levels: turns.iter().flat_map(|turn| turn.levels).collect(),
        log_probs: of(|turn| turn.log_prob),
    };
    let estimates = Estimates {
        values: of(|turn| turn.value),
        returns: of(|turn| turn.wanted),
        disk_advantages: of(|turn| turn.advantage),
        disk_weights: turns.iter().map(|turn| turn.teaches).collect(),
        device_advantages: vec![],
        device_weights: vec![],
    };
    let lessons = Lessons::of_disks(&samples, &estimates).unwrap();
    let rows: Vec<i64> = (0..turns.len() as i64).collect();
    check(&lessons.select(&rows).unwrap())
}

/// The same scores in each turn.
fn scores(turns: usize, three: [f64; 3], two: [f64; 2]) -> Vec<Table> {
    let table = |row: &[f64]| Table {
        width: row.len(),
        entries: row.repeat(turns),
    };
    vec![table(&three), table(&two)]
}

fn row(table: &Table, at: usize) -> &[f64] {
    &table.entries[at * table.width..][..table.width]
}

fn near(got: f64, want: f64) {
    assert!(
        (got - want).abs() < 1e-6 * (1.0 + want.abs()),
        "{got} is not {want}"
    );
}

#[test]
fn the_clipped_gain_is_the_smaller_one_and_pulls_only_where_it_is_not_clipped() {
    for (ratio, advantage, gain, slope) in [
        (1.1, 2.0, 2.2, 2.2),
        (1.5, 2.0, 2.4, 0.0),
        (0.5, 2.0, 1.0, 1.0),
        (1.5, -2.0, -3.0, -3.0),
        (0.5, -2.0, -1.6, 0.0),
        (0.9, -2.0, -1.8, -1.8),
    ] {
        let (got, got_slope) = clipped_gain(ratio, advantage, 0.2);
        near(got, gain);
        near(got_slope, slope);
    }
}

/// Scores ln 1, ln 3, ln 6 with the last masked: probabilities 1/4, 3/4.
#[test]
fn masked_levels_take_no_probability_and_no_entropy() {
    let mut own = Distribution::default();
    own.judge(&[0.0, 3_f64.ln(), 6_f64.ln(), 9.0], &[true, true, false]);
    near(own.log_prob(1), 0.75_f64.ln());
    near(own.levels[0].0, 0.25);
    assert_eq!(own.levels[2], (0.0, f64::NEG_INFINITY));
    near(own.entropy, -(0.25 * 0.25_f64.ln() + 0.75 * 0.75_f64.ln()));
    let mut out = [0.0; 4];
    own.add_gradient(1.0, 1, 0.0, &mut out);
    assert_eq!((out[2], out[3]), (0.0, 0.0));
    near(out[0], -0.25);
    near(out[1], 0.25);
}

/// Every mask with something allowed, against sums over the levels; derivatives against differences.
#[test]
fn every_mask_of_three_levels_equals_enumeration() {
    let scores = [0.3, -1.2, 0.9];
    let of = |scores: &[f64], mask: &[bool]| {
        let mut own = Distribution::default();
        own.judge(scores, mask);
        own
    };
    for bits in 1..8_u8 {
        let mask = [0, 1, 2].map(|level| bits & (1 << level) != 0);
        let own = of(&scores, &mask);
        let weight = |level: usize| f64::from(mask[level]) * f64::exp(scores[level]);
        let all: f64 = (0..3).map(weight).sum();
        let possible = || (0..3).filter(|level| mask[*level]);
        for level in 0..3 {
            near(own.levels[level].0, weight(level) / all);
        }
        let entropy = |level: usize| -weight(level) / all * (weight(level) / all).ln();
        near(own.entropy, possible().map(entropy).sum());
        for taken in possible() {
            let mut gradient = [0.0; 3];
            own.add_gradient(0.7, taken as i64, 0.2, &mut gradient);
            for level in 0..3 {
                let moved = |by: f64| {
                    let mut scores = scores;
                    scores[level] += by;
                    let own = of(&scores, &mask);
                    0.7 * own.log_prob(taken as i64) - 0.2 * own.entropy
                };
                near(gradient[level], (moved(1e-5) - moved(-1e-5)) / 2e-5);
            }
        }
    }
}

/// 1 and 3 teach: mean 2, deviation √2.
#[test]
fn advantages_are_normalised_over_the_turns_that_teach() {
    let idle = Turn {
        teaches: false,
        ..turn([0, 0], 0.0, 100.0)
    };
    let turns = [turn([0, 0], 0.0, 1.0), idle, turn([0, 0], 0.0, 3.0)];
    let got = with_minibatch(&turns, |minibatch| minibatch.normalised_advantages());
    near(got[0], -1.0 / 2_f64.sqrt());
    near(got[2], 1.0 / 2_f64.sqrt());
    let alone = with_minibatch(&turns[..2], |minibatch| minibatch.normalised_advantages());
    assert_eq!(alone, [1.0, 100.0]);
}

/// Of the same turns, some; the others do not reach in.
#[test]
fn advantages_are_those_of_the_minibatch() {
    let turns = [1.0, 50.0, 3.0].map(|advantage| turn([0, 0], 0.0, advantage));
    let got = with_minibatch(&turns, |all| {
        let some = all.lessons.select(&[2, 0]).unwrap();
        some.normalised_advantages()
    });
    near(got[0], 1.0 / 2_f64.sqrt());
    near(got[1], -1.0 / 2_f64.sqrt());
}

/// Errors 1 and −3: half the mean of 1 and 9. Gradient: weight · error / 2.
#[test]
fn the_value_loss_worked_by_hand() {
    let wanting = |wanted: f32| Turn {
        wanted,
        teaches: false,
        ..turn([0, 0], 0.0, 0.0)
    };
    let loss = with_minibatch(&[wanting(1.0), wanting(5.0)], |minibatch| {
        value_loss(&[2.0, 2.0], minibatch, &WEIGHTS)
    });
    near(loss.value, 2.5);
    near(loss.gradient[0], 0.25);
    near(loss.gradient[1], -0.75);
}

/// Old value 1, wanted 3, clip ½. At 2.5 the value kept near is 1.5, its error the worse: 1.5²/2, and nothing moves
/// it. At 0 it is 0.5, with error 2.5, and the value itself is worse: 3²/2.
#[test]
fn a_clipped_value_counts_as_it_was_kept_near_where_that_is_worse() {
    let weights = LossWeights {
        value_clip: Some(0.5),
        ..WEIGHTS
    };
    let one = Turn {
        value: 1.0,
        wanted: 3.0,
        ..turn([0, 0], 0.0, 0.0)
    };
    for (said, value, gradient) in [(2.5, 1.125, 0.0), (0.0, 4.5, -1.5), (1.4, 1.28, -0.8)] {
        let loss = with_minibatch(std::slice::from_ref(&one), |minibatch| {
            value_loss(&[said], minibatch, &weights)
        });
        near(loss.value, value);
        near(loss.gradient[0], gradient);
    }
}

/// All scores 0: levels 0, 1 have probability 1/3 · 1/2 = 1/6. The first turn's ratio is 1.5 and it is clipped at 1.2,
/// the second's is 1/2 and is not, its advantage being positive too; advantages as they are would be 2 and 4, so
/// normalised ∓ 1/√2.
#[test]
fn the_policy_loss_worked_by_hand() {
    let old = |ratio: f64| (1.0 / 6.0 / ratio).ln() as f32;
    let turns = [turn([0, 1], old(1.5), 4.0), turn([2, 0], old(0.5), 2.0)];
    let loss = with_minibatch(&turns, |minibatch| {
        policy_loss(scores(2, [0.0; 3], [0.0; 2]), minibatch, &WEIGHTS)
    });
    let a = 1.0 / 2_f64.sqrt();
    // min(1.5 a, 1.2 a) and min(−0.5 a, −0.8 a).
    near(loss.objective, -(1.2 * a - 0.8 * a) / 2.0);
    near(loss.entropy, 6_f64.ln());
    let kl = |ratio: f64| ratio - 1.0 - ratio.ln();
    near(loss.approx_kl, (kl(1.5) + kl(0.5)) / 2.0);
    near(loss.clip_fraction, 1.0);
    assert_eq!(loss.turns, 2);
    near(loss.heads[0].0, 2.0 * 3_f64.ln());
    // Both are clipped, and the entropy is at its greatest.
    let pulls = loss.gradient.iter().flat_map(|table| &table.entries);
    assert!(pulls.into_iter().all(|pull| pull.abs() < 1e-12));
}

/// A head that is forced, and turns that do not teach, add nothing but to the entropies that are shown.
#[test]
fn what_was_no_choice_and_what_does_not_count_leaves_no_trace() {
    let forced = Turn {
        masks: [vec![true, true, false], vec![false, true]],
        ..turn([1, 1], 0.5_f32.ln(), 3.0)
    };
    let idle = Turn {
        teaches: false,
        ..turn([2, 0], -9.0, 7.0)
    };
    let loss = with_minibatch(&[forced, idle], |minibatch| {
        policy_loss(scores(2, [0.0; 3], [5.0, 0.0]), minibatch, &WEIGHTS)
    });
    near(loss.objective, -3.0);
    near(loss.approx_kl, 0.0);
    near(loss.entropy, 2_f64.ln());
    assert_eq!((loss.turns, loss.heads[0].1, loss.heads[1].1), (1, 2, 1));
    // ∂ ln p(1) = ∓ ½, times −3; nothing for the masked level.
    let [three, two] = &loss.gradient[..] else {
        unreachable!()
    };
    for (got, want) in row(three, 0).iter().zip([1.5, -1.5, 0.0]) {
        near(*got, want);
    }
    assert_eq!(row(two, 0), [0.0; 2]);
    assert_eq!((row(three, 1), row(two, 1)), (&[0.0; 3][..], &[0.0; 2][..]));
}

/// Central differences of objective − 0.1 · entropy over all scores, with ratios in and out of the clip range.
#[test]
fn the_gradient_of_the_policy_loss_equals_its_differences() {
    let turns = [
        turn([0, 1], -1.9, 4.0),
        turn([2, 0], -1.2, 2.0),
        turn([1, 1], -2.6, -3.0),
    ];
    let at = |tables: &[Table]| {
        with_minibatch(&turns, |minibatch| {
            policy_loss(tables.to_vec(), minibatch, &WEIGHTS)
        })
    };
    let tables = scores(3, [0.4, -0.3, 0.1], [0.2, -0.5]);
    let gradient = at(&tables).gradient;
    let mut moved_something = 0;
    for head in 0..2 {
        for entry in 0..tables[head].entries.len() {
            let moved = |by: f64| {
                let mut tables = tables.clone();
                tables[head].entries[entry] += by;
                let loss = at(&tables);
                loss.objective - WEIGHTS.entropy * loss.entropy
            };
            let want = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            near(gradient[head].entries[entry], want);
            moved_something += usize::from(want.abs() > 1e-3);
        }
    }
    assert!(moved_something > 8, "{moved_something}");
}

#[test]
fn figures_weigh_the_parts_and_pool_what_is_per_turn() {
    let policy = |turns: usize, value: f64| PolicyLoss {
        turns,
        objective: value,
        entropy: 2.0 * value,
        approx_kl: 3.0 * value,
        clip_fraction: value / 10.0,
        heads: vec![(6.0, 3), (0.0, 0)],
        gradient: vec![],
    };
    let value = ValueLoss {
        value: 8.0,
        gradient: vec![],
    };
    let got = figures(&value, &[policy(3, 1.0), policy(1, 5.0)], &WEIGHTS);
    near(got.loss, 0.5 * 8.0 + 6.0 - 0.1 * 12.0);
    near(got.policy_loss, 6.0);
    near(got.value_loss, 8.0);
    near(got.entropy, 12.0);
    near(got.approx_kl, (3.0 * 3.0 + 15.0) / 4.0);
    near(got.clip_fraction, (0.3 + 0.5) / 4.0);
    assert_eq!(got.head_entropy, [Some(2.0), None, Some(2.0), None]);
}
