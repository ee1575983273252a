//! The oracle against brute force, its bound against random hosts, and a study from end to end.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use blkpilot_env::reward::RewardConfig;
use blkpilot_env::sim::scenario::Phase;
use blkpilot_env::sim::{Generator, Scenario, presets};
use blkpilot_env::{Level, Rng};
use blkpilot_models::Policy;
use blkpilot_models::baseline::{KeepDefault, LeastLoaded, RandomPolicy, RoundRobin};
use blkpilot_models::oracle::bound::{Bounds, alone};
use blkpilot_models::oracle::knobs::Place;
use blkpilot_models::oracle::phases::{expected_intervals, states};
use blkpilot_models::oracle::planner::Moment;
use blkpilot_models::oracle::search::random_setting;
use blkpilot_models::oracle::steady::{MOST_BLOCKS, frozen, settle};
use blkpilot_models::oracle::values::Values;
use blkpilot_models::oracle::{
    LevelCost, Limits, OracleError, Planner, Resampled, Setting, Study, StudyError, StudyOptions,
    pooled, study,
};
use rand::{RngExt as _, SeedableRng as _};

fn planner(scenario: &Scenario, limits: Limits) -> Planner {
    Planner::new(scenario, RewardConfig::default(), limits).unwrap()
}

/// One guest that reads what fits the page cache from a capped device, then writes more than the device
/// takes: buffered is best in the one phase, direct in the other.
fn two_minded() -> Scenario {
    let mut scenario = presets::capped_device();
    scenario.disks.truncate(1);
    scenario.disks[0].capacity_gib = 64.0;
    scenario.disks[0].phases = vec![
        Phase {
            mean_intervals: 12.0,
            ..presets::random_read(4.0, 0.03)
        },
        Phase {
            mean_intervals: 12.0,
            read_share: 0.0,
            request_kib: 128.0,
            ..presets::random_read(4.0, 50.0)
        },
    ];
    scenario
}

fn options(episodes: u64) -> StudyOptions {
    let seed = |i: u64| (i, Rng::seed_from_u64(1000 + i));
    StudyOptions {
        seeds: (0..episodes).map(seed).collect(),
        tolerance: 0.02,
        epsilon: 0.01,
    }
}

fn studied(scenario: &Scenario, episodes: u64) -> Study {
    let mut planner = planner(scenario, Limits::default());
    let spec = planner.values().spec().clone();
    let mut policies: Vec<Box<dyn Policy>> = vec![
        Box::new(KeepDefault),
        Box::new(RandomPolicy),
        Box::new(RoundRobin::new(&spec).unwrap()),
        Box::new(LeastLoaded::new(&spec).unwrap()),
    ];
    study(&mut planner, &mut policies, &options(episodes), &mut |_| {
        true
    })
    .unwrap()
}

/// The steady value of a setting, without any short cut by symmetry.
fn value(values: &Values, phases: &[usize], setting: &[Level]) -> f64 {
    let action = values.knobs().write(setting);
    let host = frozen(values.scenario(), phases, &action);
    settle(host, &action, RewardConfig::default(), MOST_BLOCKS)
        .unwrap()
        .host_mean
        .unwrap()
}

#[test]
fn interchangeable_channels_have_the_same_value() {
    let values = Values::new(&presets::identical_disks(3, 3), RewardConfig::default()).unwrap();
    let mut rng = Rng::seed_from_u64(5);
    for _ in 0..20 {
        let setting = random_setting(values.knobs(), &mut rng);
        let canonical = values.knobs().canonical(&setting, &[true; 9]);
        let both = [&setting, &canonical].map(|s| value(&values, &[0, 0, 0], s));
        assert!((both[0] - both[1]).abs() < 1e-5, "{setting:?} {both:?}");
    }
}

/// Idle disks are taken at their default: what else they are set to changes hardly anything for those that
/// work.
#[test]
fn the_setting_of_an_idle_disk_has_hardly_any_value() {
    let values = Values::new(&presets::mixed(), RewardConfig::default()).unwrap();
    let mut rng = Rng::seed_from_u64(6);
    let phases = [1, 0, 0, 1];
    let is_active = values.active_knobs(&phases);
    for _ in 0..20 {
        let setting = random_setting(values.knobs(), &mut rng);
        let mut other = random_setting(values.knobs(), &mut rng);
        (0..setting.len())
            .filter(|k| is_active[*k])
            .for_each(|k| other[k] = setting[k]);
        let both = [&setting, &other].map(|s| value(&values, &phases, s));
        assert!(
            (both[0] - both[1]).abs() < 1e-2,
            "{setting:?} {other:?} {both:?}"
        );
    }
}

/// The monotonicity behind the bound: no company makes a disk better off than alone, whatever it is set
/// to, once the costs that company could reduce are dropped. The fixed point is an approximation, so it
/// is let off in one case of a hundred.
#[test]
fn a_disk_is_hardly_ever_better_off_in_company() {
    let generator = Generator {
        disks: (2, 4),
        channels: (2, 3),
        schedulers: true,
        ..Generator::default()
    };
    let mut rng = Rng::seed_from_u64(7);
    let (mut compared, mut better_off) = (0, 0);
    for _ in 0..60 {
        let scenario = generator.draw(&mut rng);
        let values = Values::new(&scenario, RewardConfig::default()).unwrap();
        let draw = |disk: &blkpilot_env::sim::scenario::DiskModel| disk.phases.len();
        let lengths: Vec<usize> = scenario.disks.iter().map(draw).collect();
        let phases: Vec<usize> = lengths.iter().map(|n| rng.random_range(0..*n)).collect();
        let setting = random_setting(values.knobs(), &mut rng);
        let action = values.knobs().write(&setting);
        let host = frozen(&scenario, &phases, &action);
        let together = settle(host, &action, RewardConfig::default(), MOST_BLOCKS).unwrap();
        for disk in values.active_disks(&phases) {
            let own = together.terms.row(disk).sum().clamp(-4.0, 1.0);
            let bound = alone(&values, disk, phases[disk], &setting).unwrap();
            compared += 1;
            if own > bound {
                println!("disk {disk} earns {own}, alone at most {bound}: {setting:?}, {phases:?}");
                better_off += 1;
            }
        }
    }
    assert!(compared > 100, "{compared}");
    assert!(better_off * 100 <= compared, "{better_off} of {compared}");
}

#[test]
fn the_bound_is_not_below_the_best_of_all_settings() {
    let generator = Generator {
        disks: (2, 2),
        channels: (2, 2),
        ..Generator::default()
    };
    let mut rng = Rng::seed_from_u64(8);
    let mut compared = 0;
    for _ in 0..6 {
        let mut planner = planner(&generator.draw(&mut rng), Limits::default());
        if planner.values().active_disks(&[0, 0]).is_empty() {
            continue;
        }
        let known = planner.know(&[0, 0]).unwrap();
        assert!(known.is_exhaustive);
        let best = known.best();
        let bound = Bounds::default().of(planner.values(), &[0, 0]).unwrap();
        assert!(best <= bound, "{best} {bound}");
        compared += 1;
    }
    assert!(compared >= 4, "{compared}");
}

#[test]
fn a_search_finds_what_trying_everything_finds() {
    let scenario = presets::poor_binding();
    let exact = planner(&scenario, Limits::default())
        .know(&[0, 0])
        .unwrap()
        .clone();
    let limits = Limits {
        exhaustive: 1,
        search: 150,
        ..Limits::default()
    };
    let searched = planner(&scenario, limits).know(&[0, 0]).unwrap().clone();
    assert!(exact.is_exhaustive && !searched.is_exhaustive);
    assert!(searched.ranked.len() < exact.ranked.len());
    assert!((searched.best() - exact.best()).abs() < 1e-6);
    assert!(searched.bound >= exact.best());
}

fn net_value(planner: &mut Planner, moment: &Moment, setting: &[Level]) -> f64 {
    let lasts = expected_intervals(planner.values().scenario(), &moment.phases, moment.left);
    let cost = planner
        .values()
        .change_cost(&moment.phases, &moment.current, setting);
    planner.values_mut().value(&moment.phases, setting).unwrap() - cost / lasts
}

/// The greatest net value over all settings, none left out by symmetry.
fn brute_force(planner: &mut Planner, moment: &Moment) -> f64 {
    let knobs = planner.values().knobs().list().to_vec();
    let all = knobs
        .iter()
        .fold(vec![vec![]], |built: Vec<Vec<Level>>, knob| {
            let with = |base: &Vec<Level>| -> Vec<Vec<Level>> {
                knob.levels
                    .iter()
                    .map(|level| [&base[..], &[*level]].concat())
                    .collect()
            };
            built.iter().flat_map(with).collect()
        });
    let net = |setting: &Vec<Level>| net_value(planner, moment, setting);
    all.iter().map(net).fold(f64::NEG_INFINITY, f64::max)
}

/// Two disks on one IOThread, whose binding and polling are one choice, and one by itself.
#[test]
fn the_cost_of_a_level_is_what_trying_everything_says() {
    let mut scenario = presets::identical_disks(3, 2);
    scenario.disks[1].iothread = scenario.disks[0].iothread;
    scenario.disks[1].default_channel = scenario.disks[0].default_channel;
    let mut planner = planner(&scenario, Limits::default());
    let mut rng = Rng::seed_from_u64(9);
    let knobs = planner.values().knobs().list().to_vec();
    for disk in 0..3 {
        let own: Vec<usize> = (0..knobs.len())
            .filter(|k| knobs[*k].disks.contains(&disk))
            .collect();
        assert_eq!(own.len(), 3);
        let drawn =
            |planner: &Planner, rng: &mut Rng| random_setting(planner.values().knobs(), rng);
        let moment = Moment {
            phases: vec![0; 3],
            current: drawn(&planner, &mut rng),
            left: 9,
        };
        let chosen = drawn(&planner, &mut rng);
        // All that the disk could choose, with what it comes to.
        let mut all = vec![(chosen.clone(), 0.0)];
        for k in &own {
            let with = |(setting, _): &(Setting, f64)| -> Vec<(Setting, f64)> {
                let at = |level: &Level| {
                    let mut next = setting.clone();
                    next[*k] = *level;
                    (next, 0.0)
                };
                knobs[*k].levels.iter().map(at).collect()
            };
            all = all.iter().flat_map(with).collect();
        }
        for (setting, net) in &mut all {
            *net = net_value(&mut planner, &moment, setting);
        }
        let best = |fits: &dyn Fn(&Setting) -> bool| {
            let fitting = all.iter().filter(|(setting, _)| fits(setting));
            fitting
                .map(|(_, net)| *net)
                .fold(f64::NEG_INFINITY, f64::max)
        };
        let costs = planner.costs_alone(&moment, &chosen, disk).unwrap();
        assert_eq!(
            costs.len(),
            own.iter().map(|k| knobs[*k].levels.len()).sum::<usize>()
        );
        for LevelCost { head, level, cost } in costs {
            let k = own
                .iter()
                .find(|k| knobs[**k].place == Place::Disks { head });
            let k = *k.unwrap();
            let wanted = best(&|_| true) - best(&|setting| setting[k] == level);
            assert!((cost - wanted).abs() < 1e-12, "{cost} {wanted}");
        }
        let own = net_value(&mut planner, &moment, &chosen);
        let gain = planner.gain_alone(&moment, &chosen, disk).unwrap();
        assert!((gain - (best(&|_| true) - own)).abs() < 1e-12);
    }
}

#[test]
fn the_oracle_decides_as_trying_everything_would() {
    let mut scenario = presets::identical_disks(2, 3);
    scenario.schedulers = true;
    let mut planner = planner(&scenario, Limits::default());
    let mut rng = Rng::seed_from_u64(9);
    for left in [1, 2, 5, 60] {
        let moment = Moment {
            phases: vec![0, 0],
            current: random_setting(planner.values().knobs(), &mut rng),
            left,
        };
        let chosen = planner.best_change(&moment).unwrap();
        let own = net_value(&mut planner, &moment, &chosen);
        let best = brute_force(&mut planner, &moment);
        assert!((own - best).abs() < 1e-9, "{left} left: {own} of {best}");
        for disk in 0..2 {
            assert!(planner.gain_alone(&moment, &chosen, disk).unwrap() < 1e-9);
        }
    }
}

#[test]
fn a_change_that_does_not_pay_back_is_not_made() {
    let costly = RewardConfig {
        change: 1.0,
        ..RewardConfig::default()
    };
    let mut planner = Planner::new(&presets::poor_binding(), costly, Limits::default()).unwrap();
    let current: Setting = planner.values().knobs().default_setting().clone();
    let mut decide = |left| {
        let moment = Moment {
            phases: vec![0, 0],
            current: current.clone(),
            left,
        };
        planner.best_change(&moment).unwrap()
    };
    assert_eq!(decide(1), current);
    assert_ne!(decide(100), current);
}

#[test]
fn a_guest_of_two_minds_is_best_served_by_who_follows_it() {
    let study = studied(&two_minded(), 12);
    assert_eq!(study.steady.states, 2);
    assert_eq!(study.steady.exhaustive, 1.0);
    assert!(study.steady.best_static_exhaustive);
    assert_eq!(study.dependence["cache"].differs, 1.0);
    assert_eq!(study.dependence["channel"].differs, 0.0);
    let regret = |policy: &str| study.policies[policy].regret.unwrap();
    assert_eq!((regret("oracle").value, regret("random").value), (0.0, 1.0));
    assert!(
        regret("best_static").ci95[0] > 0.1,
        "{:?}",
        regret("best_static")
    );
    assert!(
        regret("lagged_oracle").ci95[0] > 0.0,
        "{:?}",
        regret("lagged_oracle")
    );
    assert!(regret("lagged_oracle").value < regret("best_static").value);
    let correct = |policy: &str| study.policies[policy].accuracy.correct.unwrap().value;
    assert_eq!(correct("oracle"), 1.0);
    assert!(correct("lagged_oracle") > 0.8 && correct("lagged_oracle") < 1.0);
    assert!(correct("keep_default") < 0.7, "{}", correct("keep_default"));
}

/// It mostly reads and writes in turn, and rarely rests after reading: half of its phases are reads, 0.45
/// writes, and what it does at rest does not count.
#[test]
fn a_study_follows_the_transitions_of_the_phases() {
    let mut scenario = two_minded();
    let phases = &mut scenario.disks[0].phases;
    phases.push(Phase {
        outstanding: 0.0,
        mean_intervals: 12.0,
        ..phases[0].clone()
    });
    phases[0].next = vec![0.0, 0.9, 0.1];
    phases[1].next = vec![1.0, 0.0, 0.0];
    phases[2].next = vec![1.0, 0.0, 0.0];
    let weights = planner(&scenario, Limits::default()).states().weighted;
    let wanted = [(vec![0], 0.5 / 0.95), (vec![1], 0.45 / 0.95)];
    assert_eq!(weights.len(), 2, "{weights:?}");
    for ((phases, weight), (wanted_phases, wanted)) in weights.iter().zip(&wanted) {
        assert_eq!(phases, wanted_phases);
        assert!((weight - wanted).abs() < 1e-12, "{weights:?}");
    }
    let study = studied(&scenario, 6);
    assert_eq!((study.steady.states, study.steady.all_states), (2, true));
    let oracle = study.policies["oracle"].accuracy;
    assert_eq!(oracle.correct.unwrap().value, 1.0);
    let correct = study.policies["keep_default"].accuracy.correct.unwrap();
    assert!(correct.value < 0.8, "{correct:?}");
}

#[test]
fn pooled_figures_weigh_scenarios_alike_and_their_regret_by_its_range() {
    let studies = [
        studied(&two_minded(), 4),
        studied(&presets::capped_device(), 4),
    ];
    let pooled_by = |resampled| pooled(&studies, resampled, Some("least_loaded"));
    let pooled = pooled_by(Resampled::Episodes);
    let lost = |study: &Study, policy: &str| {
        study.policies["oracle"].reward.value - study.policies[policy].reward.value
    };
    for policy in ["keep_default", "least_loaded", "best_static"] {
        let sum = |of: &str| studies.iter().map(|study| lost(study, of)).sum::<f64>();
        let wanted = sum(policy) / sum("random");
        let regret = pooled[policy].regret.unwrap();
        assert!((regret.value - wanted).abs() < 1e-9, "{policy}");
        let [low, high] = regret.ci95;
        assert!(low <= wanted && wanted <= high, "{policy}");
    }
    let mean = |of: &dyn Fn(&Study) -> f64| studies.iter().map(of).sum::<f64>() / 2.0;
    let reward = |name: &'static str| move |study: &Study| study.policies[name].reward.value;
    let lead = mean(&reward("least_loaded")) - mean(&reward("random"));
    let found = pooled["random"].subject_minus_it.unwrap();
    assert!((found.value - lead).abs() < 1e-9, "{found:?}");
    assert_eq!(pooled["least_loaded"].subject_minus_it, None);
    let judged = |study: &Study| study.policies["keep_default"].accuracy;
    let correct = studies
        .iter()
        .map(judged)
        .map(|own| own.correct.unwrap().value * own.judged as f64);
    let wanted =
        correct.sum::<f64>() / studies.iter().map(|s| judged(s).judged as f64).sum::<f64>();
    assert!((pooled["keep_default"].correct.unwrap().value - wanted).abs() < 1e-9);
    // Two scenarios drawn again as wholes: a mean can be that of the worse, of both, or of the better.
    let as_wholes = &pooled_by(Resampled::Scenarios)["keep_default"];
    let each = studies.each_ref().map(reward("keep_default"));
    assert_eq!(as_wholes.reward.value, pooled["keep_default"].reward.value);
    let [low, high] = as_wholes.reward.ci95;
    assert!(
        (low - each[0].min(each[1])).abs() < 1e-9 && (high - each[0].max(each[1])).abs() < 1e-9
    );
}

fn with_two_policies(
    scenario: &Scenario,
    epsilon: f64,
    goes_on: bool,
) -> Result<Study, StudyError> {
    let mut policies: Vec<Box<dyn Policy>> = vec![Box::new(KeepDefault), Box::new(RandomPolicy)];
    let options = StudyOptions {
        epsilon,
        ..options(2)
    };
    let mut planner = planner(scenario, Limits::default());
    study(&mut planner, &mut policies, &options, &mut |_| goes_on)
}

#[test]
fn states_that_have_nothing_to_lose_are_left_out_of_the_accuracy() {
    let study = with_two_policies(&two_minded(), 100.0, true).unwrap();
    let accuracy = study.policies["oracle"].accuracy;
    assert_eq!(
        (accuracy.correct, accuracy.judged, accuracy.left_out),
        (None, 0, 128)
    );
}

#[test]
fn a_host_on_which_nothing_happens_and_a_watcher_who_stops_end_a_study() {
    let mut idle = two_minded();
    idle.disks[0]
        .phases
        .iter_mut()
        .for_each(|phase| phase.outstanding = 0.0);
    let error = with_two_policies(&idle, 0.01, true).unwrap_err();
    assert!(
        matches!(error, StudyError::NothingCounted { seeds: 2 }),
        "{error}"
    );
    let error = with_two_policies(&two_minded(), 0.01, false).unwrap_err();
    assert!(matches!(error, StudyError::Interrupted), "{error}");
}

#[test]
fn a_broken_scenario_is_refused_by_what_is_broken() {
    let mut scenario = two_minded();
    scenario.cache_gib = f64::NAN;
    let error = Planner::new(&scenario, RewardConfig::default(), Limits::default()).unwrap_err();
    assert!(matches!(error, OracleError::Scenario(_)));
    assert!(error.to_string().contains("cache_gib"), "{error}");
}

#[test]
fn a_sample_of_states_still_weighs_one() {
    let limits = Limits {
        states: 5,
        ..Limits::default()
    };
    let states_of = planner(&presets::mixed(), limits).states();
    let total: f64 = states_of.weighted.iter().map(|(_, weight)| weight).sum();
    assert!((total - 1.0).abs() < 1e-9 && !states_of.are_all);
    assert_eq!(states(&presets::mixed(), 16).weighted.len(), 16);
}
