//! A network does not care how disks and channels are numbered: numbered otherwise, the same host gets the same
//! decision, numbered otherwise. And one checkpoint decides for any number of either.

#![expect(clippy::unwrap_used, reason = "a test may fail where it stands")]

use blkpilot_env::decision::shuffle;
use blkpilot_env::features::CHANNEL_HEAD;
use blkpilot_env::sim::{Generator, SimHost};
use blkpilot_env::{
    EnvSpec, Environment as _, JointAction, JointDecision, Level, Observation, ResetOptions, Rng,
    Table, Turn,
};
use blkpilot_models::categorical::greedy;
use blkpilot_models::network::{ActorCritic, Scratch};
use blkpilot_models::{Architecture, Checkpoint};
use ndarray::{Array2, Array3, Axis};
use rand::SeedableRng as _;

/// Where row i of the new numbering was in the old one.
struct Numbering {
    disks: Vec<usize>,
    channels: Vec<usize>,
}

impl Numbering {
    fn random(obs: &Observation, rng: &mut Rng) -> Self {
        let mut drawn = |count: usize| {
            let mut order: Vec<usize> = (0..count).collect();
            shuffle(&mut order, rng);
            order
        };
        Self {
            disks: drawn(obs.disk_count()),
            channels: drawn(obs.channel_count()),
        }
    }

    /// The new level of the channel head that stands for an old one.
    fn level(&self, old: Level) -> Level {
        match usize::from(old).checked_sub(1) {
            None => 0,
            Some(old) => {
                let new = self.channels.iter().position(|channel| *channel == old);
                1 + new.unwrap() as Level
            }
        }
    }

    fn table(&self, table: &Table, rows: &[usize]) -> Table {
        Table {
            values: table.values.select(Axis(0), rows),
            validity: table.validity.select(Axis(0), rows),
            age_s: table.age_s.select(Axis(0), rows),
        }
    }

    fn action(&self, action: &JointAction) -> JointAction {
        let mut disks = action.disks.select(Axis(0), &self.disks);
        let channels = disks.column_mut(CHANNEL_HEAD);
        channels
            .into_iter()
            .for_each(|level| *level = self.level(*level));
        JointAction {
            disks,
            devices: action.devices.clone(),
        }
    }

    fn apply(&self, spec: &EnvSpec, obs: &Observation) -> Observation {
        assert_eq!(CHANNEL_HEAD, 0, "its levels come first in the masks");
        assert_eq!(spec.disk_heads.iter().filter(|h| h.is_pointer()).count(), 1);
        let mut out = obs.clone();
        out.disks = self.table(&obs.disks, &self.disks);
        out.channels = self.table(&obs.channels, &self.channels);
        let pairs: Array3<f32> = obs.pairs.select(Axis(0), &self.disks);
        let pairs = pairs.select(Axis(1), &self.channels);
        out.pairs = pairs.as_standard_layout().to_owned();
        out.current = self.action(&obs.current);
        out.default = self.action(&obs.default);
        out.disk_ids = self
            .disks
            .iter()
            .map(|d| obs.disk_ids[*d].clone())
            .collect();
        let channel_ids = self.channels.iter().map(|c| obs.channel_ids[*c].clone());
        out.channel_ids = channel_ids.collect();
        out.disk_device = self.disks.iter().map(|d| obs.disk_device[*d]).collect();
        out.disk_group = self.disks.iter().map(|d| obs.disk_group[*d]).collect();
        let pointer: Vec<usize> = std::iter::once(0)
            .chain(self.channels.iter().map(|channel| 1 + channel))
            .collect();
        let rest = 1 + obs.channel_count()..obs.masks.disks.ncols();
        let columns: Vec<usize> = pointer.into_iter().chain(rest).collect();
        let masks: Array2<_> = obs.masks.disks.select(Axis(0), &self.disks);
        let masks = masks.select(Axis(1), &columns);
        out.masks.disks = masks.as_standard_layout().to_owned();
        out
    }
}

/// The greedy joint action of a network, the disks deciding in this order, and the least lead of a winner.
fn decide(
    network: &ActorCritic,
    spec: &EnvSpec,
    obs: &Observation,
    order: &[usize],
) -> (JointAction, f32) {
    let turns = order.iter().map(|disk| Turn::Disk(*disk)).collect();
    let mut joint = JointDecision::new(spec, obs, turns).unwrap();
    let (mut scratch, mut lead) = (Scratch::default(), f32::INFINITY);
    while let Some(view) = joint.view() {
        let mut scores = network.scores(&view, &mut scratch).unwrap();
        let mut levels = vec![];
        for head in 0..view.heads.len() {
            let mask = view.head_mask(head);
            let (own, rest) = scores.split_at(mask.len());
            scores = rest;
            if let Some(level) = view.forced(head) {
                levels.push(level);
                continue;
            }
            let best = greedy(own, mask).unwrap();
            let others = (0..own.len()).filter(|l| *l != best && mask[*l].is_allowed());
            lead = others.map(|l| own[best] - own[l]).fold(lead, f32::min);
            levels.push(best as Level);
        }
        joint.commit(&levels).unwrap();
    }
    (joint.finish().0, lead)
}

#[test]
fn a_host_numbered_otherwise_gets_the_same_decision_numbered_otherwise() {
    let mut rng = Rng::seed_from_u64(7);
    let generator = Generator {
        disks: (1, 24),
        channels: (2, 12),
        devices: (1, 4),
        ..Generator::default()
    };
    let mut host = SimHost::generated(generator).unwrap();
    let spec = host.spec().clone();
    let checkpoint = Checkpoint::untrained(&spec, Architecture::default(), &mut rng);
    let network = ActorCritic::new(&checkpoint).unwrap();
    let (mut compared, mut moved) = (0, 0);
    for seed in 0..60 {
        let obs = host.reset(Some(seed), &ResetOptions::new()).unwrap();
        let numbering = Numbering::random(&obs, &mut rng);
        let other = numbering.apply(&spec, &obs);
        let mut order: Vec<usize> = (0..obs.disk_count()).collect();
        shuffle(&mut order, &mut rng);
        let same_order: Vec<usize> = order
            .iter()
            .map(|old| numbering.disks.iter().position(|disk| disk == old).unwrap())
            .collect();
        let (action, lead) = decide(&network, &spec, &obs, &order);
        // The mean over the channels is summed in another order: a lead below rounding may turn round.
        if lead < 1e-5 {
            continue;
        }
        let (other_action, _) = decide(&network, &spec, &other, &same_order);
        assert_eq!(other_action, numbering.action(&action), "host {seed}");
        compared += 1;
        moved += usize::from(other_action != action);
    }
    assert!(compared >= 50, "{compared} of 60 without a tie");
    assert!(
        moved >= 30,
        "{moved} numberings changed the rows of the action"
    );
}
