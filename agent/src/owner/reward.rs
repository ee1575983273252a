//! What is paid for on a host: the dial between latency and what it costs.

use blkpilot_env::reward::RewardConfig;

use super::Owner;
use super::handle::RewardCall;
use crate::wire::status::Failure;

impl Owner {
    /// From the next observation on; what was decided under the weights before is paid by those. They hold until the
    /// service ends: its configuration says what holds then.
    pub(super) fn set_reward(&mut self, call: &RewardCall) -> Result<RewardConfig, Failure> {
        self.refuse_if_attached()?;
        let reward = call.change.apply(self.config.reward);
        let problems = reward.problems().into_iter();
        let mut wrong = problems.map(|(key, text)| (format!("weights.{key}"), text));
        if let Some((field, problem)) = wrong.next() {
            let first = Failure::field(field, problem);
            return Err(wrong.fold(first, |failure, (field, problem)| {
                failure.violating(field, problem)
            }));
        }
        if call.validate_only || reward == self.config.reward {
            return Ok(reward);
        }
        self.set_reward_to(reward);
        self.show();
        Ok(reward)
    }

    pub(super) fn set_reward_to(&mut self, reward: RewardConfig) {
        tracing::info!(host = self.config.name, was = ?self.config.reward, is = ?reward, "reward weights set");
        self.config.reward = reward;
        if let Some(backend) = &mut self.backend {
            backend.set_reward(reward);
        }
    }
}
