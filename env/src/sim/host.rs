//! A simulated host as an environment.

use rand::SeedableRng as _;

use super::Generator;
use super::counters;
use super::episode::Episode;
use super::scenario::{Scenario, ScenarioErrors};
use super::simulation::{Beginning, Rules, Simulation, Source};
use crate::decision::JointAction;
use crate::environment::{EnvError, Environment, Repeatable, ResetOptions, Step};
use crate::observation::Observation;
use crate::reward::{RewardConfig, Weighting};
use crate::sample::HostSample;
use crate::spec::EnvSpec;

/// A simulated host. Options of `reset`: `scenario`, a preset to play instead; `page_cache`, `cold` or
/// `warm`.
#[derive(Debug)]
pub struct SimHost {
    rules: Rules,
    simulation: Simulation,
    /// What a real host's counters would show; none before the first reset.
    counters: Option<HostSample>,
}

impl SimHost {
    /// A host with one scenario.
    ///
    /// # Errors
    /// Everything that is wrong with the scenario.
    pub fn fixed(scenario: Scenario) -> Result<Self, ScenarioErrors> {
        Self::new(Source::Fixed(scenario))
    }

    /// A host drawn anew for each episode.
    ///
    /// # Errors
    /// Everything that is wrong with the generator.
    pub fn generated(generator: Generator) -> Result<Self, ScenarioErrors> {
        Self::new(Source::Generated(generator))
    }

    fn new(source: Source) -> Result<Self, ScenarioErrors> {
        source.validate()?;
        Ok(Self {
            rules: Rules {
                spec: source.spec(),
                reward: Weighting::default(),
            },
            simulation: Simulation::new(source, crate::Rng::seed_from_u64(0)),
            counters: None,
        })
    }

    /// With other reward weights, or with others in each episode.
    #[must_use]
    pub fn with_reward(mut self, reward: impl Into<Weighting>) -> Self {
        self.rules.reward = reward.into();
        self
    }

    /// Other weights from the next observation on, until the next reset.
    pub fn set_reward(&mut self, reward: RewardConfig) {
        self.simulation.set_reward(reward);
    }

    /// The weights that the last observation shows, by which the next step is paid.
    #[must_use]
    pub fn reward(&self) -> &RewardConfig {
        self.simulation.reward()
    }

    /// The counters as they stand; `None` before the first reset.
    #[must_use]
    pub fn sample(&self) -> Option<&HostSample> {
        self.counters.as_ref()
    }

    /// The scenario of the current episode; `None` before the first reset.
    #[must_use]
    pub fn scenario(&self) -> Option<&Scenario> {
        self.simulation.episode().map(|e| &e.scenario)
    }

    /// The phase that each disk was in during the last interval, as an index into its `phases`; `None`
    /// before the first reset. A policy does not see it: it is for oracles and tests.
    #[must_use]
    pub fn phases(&self) -> Option<Vec<usize>> {
        self.simulation.episode().map(Episode::phases)
    }
}

impl Environment for SimHost {
    fn spec(&self) -> &EnvSpec {
        &self.rules.spec
    }

    fn reset(
        &mut self,
        seed: Option<u64>,
        options: &ResetOptions,
    ) -> Result<Observation, EnvError> {
        let beginning = Beginning::from_options(&self.rules, options)?;
        if let Some(seed) = seed {
            self.simulation.reseed(crate::Rng::seed_from_u64(seed));
        }
        self.simulation.reset(&self.rules, &beginning);
        if let Some(episode) = self.simulation.episode() {
            let mut sample = counters::start(&episode.scenario, &episode.window);
            counters::advance(&mut sample, &episode.window);
            self.counters = Some(sample);
        }
        Ok(self.simulation.observation.clone())
    }

    fn step(&mut self, action: &JointAction) -> Result<Step, EnvError> {
        self.simulation.check(&self.rules, action)?;
        let mut executed = JointAction::default();
        self.simulation.step(action, &mut executed);
        if let (Some(sample), Some(episode)) = (&mut self.counters, self.simulation.episode()) {
            counters::advance(sample, &episode.window);
        }
        Ok(Step {
            observation: self.simulation.observation.clone(),
            rewards: self.simulation.rewards.clone(),
            executed,
            terminated: false,
            truncated: self.simulation.is_over(),
            final_observation: None,
        })
    }
}

impl Repeatable for SimHost {
    fn rng(&self) -> &crate::Rng {
        self.simulation.rng()
    }

    fn set_rng(&mut self, rng: crate::Rng) {
        self.simulation.reseed(rng);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::{CACHE_HEAD, CHANNEL_HEAD, POLLING_HEAD};
    use crate::observation::Validity;
    use crate::sample::Cache;
    use crate::sim::presets;
    use crate::spec::Level;
    use crate::window::DiskWindow;

    struct Outcome {
        iops: f64,
        latency_us: f64,
        p99_us: f64,
        cpu_cores: f64,
        hit_rate: f64,
        reward: f32,
    }

    /// Means over the last 20 intervals of disk 0 under one fixed action.
    fn outcome(scenario: Scenario, act: impl Fn(&mut JointAction)) -> Outcome {
        let mut host = SimHost::fixed(Scenario {
            noise: 0.0,
            steps: 60,
            ..scenario
        })
        .unwrap();
        let obs = host.reset(Some(9), &ResetOptions::new()).unwrap();
        let mut action = obs.default.clone();
        act(&mut action);
        let mut samples = vec![host.sample().unwrap().clone()];
        let mut reward = 0.0;
        for step in 0..60 {
            let host_mean = host.step(&action).unwrap().rewards.host_mean().unwrap();
            samples.push(host.sample().unwrap().clone());
            if step >= 40 {
                reward += host_mean / 20.0;
            }
        }
        let (before, after) = (&samples[40], &samples[60]);
        let window = DiskWindow::between(&before.disks[0], &after.disks[0], 20.0);
        Outcome {
            iops: window.iops.unwrap(),
            latency_us: window.latency_us_mean.unwrap(),
            p99_us: window.latency_us_p99.unwrap(),
            cpu_cores: window.iothread_cores.unwrap(),
            hit_rate: window.hit_rate.unwrap(),
            reward,
        }
    }

    #[test]
    fn weights_are_shown_before_they_are_paid_by() {
        let free = RewardConfig {
            page_cache: 0.0,
            cpu: 0.0,
            ..RewardConfig::default()
        };
        let play = |other: Option<RewardConfig>| {
            let mut host = SimHost::fixed(presets::mixed()).unwrap();
            let obs = host.reset(Some(1), &ResetOptions::new()).unwrap();
            if let Some(other) = other {
                host.set_reward(other);
            }
            let steps = [(); 2].map(|()| host.step(&obs.current).unwrap());
            let shown = steps[0].observation.host.values.clone();
            (shown, steps.map(|step| step.rewards.own))
        };
        let ((before, old), (after, new)) = (play(None), play(Some(free)));
        assert_ne!(before, after, "the first observation after it shows them");
        assert_eq!(
            old[0], new[0],
            "what was decided before is paid as it was shown"
        );
        assert!(new[1].iter().zip(&old[1]).all(|(new, old)| new >= old));
        assert!(new[1].sum() > old[1].sum());
    }

    #[test]
    fn moving_the_iothread_off_its_vcpus_core_pays() {
        let poor = outcome(presets::poor_binding(), |_| ());
        let moved = outcome(presets::poor_binding(), |a| {
            a.disks[[0, CHANNEL_HEAD]] = 3;
            a.disks[[1, CHANNEL_HEAD]] = 4;
        });
        assert!(moved.iops / poor.iops > 1.3, "{} {}", moved.iops, poor.iops);
        assert!(
            moved.reward > poor.reward + 0.05,
            "{} {}",
            moved.reward,
            poor.reward
        );
    }

    #[test]
    fn what_the_cache_did_is_seen_after_a_disk_has_gone_direct() {
        let mut host = SimHost::fixed(presets::capped_device()).unwrap();
        let mut seen = host.reset(Some(1), &ResetOptions::default()).unwrap();
        let column = |name: &str| {
            let features = &host.spec().disk_features;
            features.iter().position(|feature| feature.name == name)
        };
        let columns = ["hit_rate", "last_hit_rate", "intervals_since_hit_rate"];
        let columns = columns.map(|name| column(name).unwrap());
        let [now, last, since] = columns;
        let of = |obs: &Observation| columns.map(|column| obs.disks.values[[0, column]]);
        assert_eq!(of(&seen)[1..], [0.0, 1000.0]);
        assert_eq!(seen.disks.validity[[0, last]], Validity::Idle);
        let mut play = |cache: u16, intervals: usize| {
            let mut action = seen.current.clone();
            action.disks.column_mut(CACHE_HEAD).fill(cache);
            for _ in 0..intervals {
                seen = host.step(&action).unwrap().observation;
            }
            seen.clone()
        };
        let buffered = play(1, 30);
        assert!(of(&buffered)[0] > 0.2);
        assert_eq!(of(&buffered)[1..], [of(&buffered)[0], 0.0]);
        // Its dirty pages are written back before.
        let direct = play(0, 6);
        assert_eq!(direct.disks.values[[0, now]], 0.0);
        assert!(direct.disks.values[[0, last]] > 0.2);
        let age = direct.disks.values[[0, since]];
        assert!((1.0..=6.0).contains(&age), "{age}");
        assert_eq!(play(0, 2).disks.values[[0, since]], age + 2.0);
    }

    #[test]
    fn buffering_a_set_that_fits_rescues_a_capped_device() {
        let direct = outcome(presets::capped_device(), |_| ());
        let buffered = outcome(presets::capped_device(), |a| {
            a.disks.column_mut(CACHE_HEAD).fill(1);
        });
        assert!(
            buffered.iops / direct.iops > 5.0,
            "{} {}",
            buffered.iops,
            direct.iops
        );
        assert!(
            buffered.hit_rate > 0.95 && direct.hit_rate == 0.0,
            "{}",
            buffered.hit_rate
        );
        assert!(
            buffered.reward > direct.reward + 0.5,
            "{} {}",
            buffered.reward,
            direct.reward
        );
    }

    #[test]
    fn polling_off_saves_cpu_at_about_the_same_iops() {
        let on = outcome(presets::identical_disks(1, 4), |_| ());
        let off = outcome(presets::identical_disks(1, 4), |a| {
            a.disks.column_mut(POLLING_HEAD).fill(0);
        });
        assert!(
            (off.iops / on.iops - 1.0).abs() < 0.05,
            "{} {}",
            off.iops,
            on.iops
        );
        assert!(
            off.cpu_cores < on.cpu_cores,
            "{} {}",
            off.cpu_cores,
            on.cpu_cores
        );
    }

    #[test]
    fn a_fair_scheduler_rescues_the_victim_of_a_noisy_neighbour() {
        let none = outcome(presets::noisy_neighbour(), |_| ());
        let bfq = outcome(presets::noisy_neighbour(), |a| a.devices.fill(3));
        assert!(bfq.iops / none.iops > 5.0, "{} {}", bfq.iops, none.iops);
        assert!(bfq.p99_us < none.p99_us, "{} {}", bfq.p99_us, none.p99_us);
    }

    #[test]
    fn one_disk_per_channel_is_the_best_placement_of_equal_disks() {
        let place = |channels: [Level; 4]| {
            outcome(presets::identical_disks(4, 4), |a| {
                for (disk, channel) in channels.iter().enumerate() {
                    a.disks[[disk, CHANNEL_HEAD]] = *channel;
                }
            })
        };
        let spread = place([1, 2, 3, 4]);
        for other in [
            [0, 0, 0, 0],
            [1, 1, 1, 1],
            [1, 1, 2, 2],
            [1, 1, 2, 3],
            [1, 2, 3, 0],
        ] {
            let other_outcome = place(other);
            assert!(
                spread.reward > other_outcome.reward,
                "{other:?}: {} {}",
                spread.reward,
                other_outcome.reward
            );
        }
    }

    #[test]
    fn latency_grows_with_load_and_little_holds_in_the_counters() {
        let loaded = |q: f64| {
            let mut scenario = presets::identical_disks(2, 4);
            scenario.disks[1].phases[0].outstanding = q;
            // All time between completion and submission is the guest's: without it X·R = q.
            scenario.disks[0].guest_us = 0.0;
            outcome(scenario, |_| ())
        };
        let latencies: Vec<f64> = [1.0, 8.0, 64.0, 256.0]
            .iter()
            .map(|q| loaded(*q).latency_us)
            .collect();
        assert!(latencies.windows(2).all(|w| w[1] >= w[0]), "{latencies:?}");
        let one = loaded(1.0);
        // 16 outstanding, no think time: X·R = 16, up to the rounding of the counters.
        assert!(
            (one.iops * one.latency_us * 1e-6 - 16.0).abs() < 0.01,
            "{}",
            one.iops * one.latency_us * 1e-6
        );
    }

    /// A writer on a slow disk with some seconds of dirty pages, buffered, and the action back.
    fn indebted() -> (SimHost, JointAction) {
        let mut scenario = presets::capped_device();
        scenario.noise = 0.0;
        scenario.steps = 1000;
        for disk in &mut scenario.disks {
            disk.capacity_gib = 60.0;
            disk.phases[0].read_share = 0.0;
            disk.phases[0].request_kib = 64.0;
            disk.phases[0].working_set_gib = 60.0;
        }
        scenario.devices = vec![presets::hdd("sda")];
        let mut host = SimHost::fixed(scenario).unwrap();
        let obs = host.reset(Some(2), &ResetOptions::new()).unwrap();
        let mut action = obs.default.clone();
        action.disks.column_mut(CACHE_HEAD).fill(1);
        host.step(&action).unwrap();
        (host, obs.default)
    }

    #[test]
    fn going_back_to_direct_waits_until_every_dirty_byte_is_on_the_device() {
        let (mut host, direct) = indebted();
        let before = host.sample().unwrap().clone();
        let owed: u64 = before.disks.iter().map(|d| d.dirty_bytes.unwrap()).sum();
        assert!(owed > 1 << 30, "{owed}");
        let mut waited = 0;
        while host.sample().unwrap().disks[0].settings.cache == Cache::Buffered {
            let step = host.step(&direct).unwrap();
            assert_eq!(step.executed.disks[[0, CACHE_HEAD]], 1, "not yet in force");
            let is_clean = host.sample().unwrap().disks[0].dirty_bytes == Ok(0);
            assert!(
                is_clean || step.rewards.terms[[0, 6]] < 0.0,
                "the debt is charged while it lasts"
            );
            waited += 1;
        }
        // 128 KiB per 4 ms write, and a fifth of the device is left to others.
        let seconds = owed as f64 / (131_072.0 / 0.004 * 0.8);
        assert!(
            (f64::from(waited) - seconds).abs() < 2.0,
            "{waited} of {seconds} s"
        );
        let after = host.sample().unwrap();
        let written = after.devices[0].writes.bytes - before.devices[0].writes.bytes;
        assert!(written as f64 >= owed as f64 * 0.999, "{written} of {owed}");
        assert_eq!(after.disks[0].dirty_bytes, Ok(0));
        let step = host.step(&direct).unwrap();
        assert_eq!(step.executed.disks[[0, CACHE_HEAD]], 0);
    }

    #[test]
    fn who_changes_its_mind_stays_buffered() {
        let (mut host, direct) = indebted();
        host.step(&direct).unwrap();
        let mut buffered = direct.clone();
        buffered.disks.column_mut(CACHE_HEAD).fill(1);
        host.step(&buffered).unwrap();
        let sample = host.sample().unwrap();
        assert_eq!(sample.disks[0].settings.cache, Cache::Buffered);
        assert!(sample.host.dirty_bytes > 0);
    }

    #[test]
    fn flushes_are_counted() {
        let mut scenario = presets::identical_disks(1, 2);
        scenario.disks[0].phases[0].read_share = 0.5;
        scenario.disks[0].phases[0].flush_share = 0.4;
        let mut host = SimHost::fixed(scenario).unwrap();
        let obs = host.reset(Some(2), &ResetOptions::new()).unwrap();
        let column = host
            .spec()
            .disk_features
            .iter()
            .position(|f| f.name == "flush_share");
        let share = obs.disks.values[[0, column.unwrap()]];
        assert!((share - 0.2).abs() < 0.01, "{share}");
    }

    #[test]
    fn flapping_the_scheduler_scores_lower_than_leaving_it() {
        let flap = |flap: bool| {
            let scenario = Scenario {
                noise: 0.0,
                ..presets::noisy_neighbour()
            };
            let mut host = SimHost::fixed(scenario).unwrap();
            let obs = host.reset(Some(4), &ResetOptions::new()).unwrap();
            let mut action = obs.default.clone();
            let mut sum = 0.0;
            for step in 0..20 {
                action.devices.fill(if flap { step % 2 } else { 0 });
                sum += host.step(&action).unwrap().rewards.terms.column(7).sum();
            }
            sum
        };
        assert!(flap(true) < flap(false) - 0.1);
        assert_eq!(flap(false), 0.0);
    }

    #[test]
    fn a_warm_page_cache_is_what_a_cold_one_ends_as() {
        let rewards = |start: &str| {
            let mut scenario = presets::capped_device();
            scenario.noise = 0.0;
            for disk in &mut scenario.disks {
                disk.default_cache = Cache::Buffered;
            }
            let mut host = SimHost::fixed(scenario).unwrap();
            let options = ResetOptions::from([("page_cache".to_owned(), start.to_owned())]);
            let obs = host.reset(Some(1), &options).unwrap();
            let rewards: Vec<f32> = (0..60)
                .map(|_| {
                    host.step(&obs.default)
                        .unwrap()
                        .rewards
                        .host_mean()
                        .unwrap()
                })
                .collect();
            (rewards[0], rewards[59])
        };
        let (warm, cold) = (rewards("warm"), rewards("cold"));
        assert!((warm.0 - cold.1).abs() < 1e-3, "{warm:?} {cold:?}");
        assert!(cold.0 < cold.1 - 0.1, "{cold:?}");
    }

    #[test]
    fn the_path_of_phases_follows_from_the_seed_whatever_is_done() {
        let path = |level: Level| {
            let mut host = SimHost::fixed(presets::mixed()).unwrap();
            let mut action = host
                .reset(Some(7), &ResetOptions::new())
                .unwrap()
                .default
                .clone();
            action.disks.column_mut(CACHE_HEAD).fill(level);
            (0..64)
                .map(|_| {
                    host.step(&action).unwrap();
                    host.phases().unwrap()
                })
                .collect::<Vec<_>>()
        };
        let direct = path(0);
        assert_eq!(direct, path(1));
        assert!(direct.windows(2).any(|w| w[0] != w[1]));
    }

    #[test]
    fn an_unknown_scenario_is_refused_by_name() {
        let mut host = SimHost::fixed(presets::mixed()).unwrap();
        let options = ResetOptions::from([("scenario".to_owned(), "nowhere".to_owned())]);
        let error = host.reset(None, &options).unwrap_err().to_string();
        assert!(
            error.contains("nowhere") && error.contains("identical_disks"),
            "{error}"
        );
    }
}
