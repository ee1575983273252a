"""Trains stable-baselines3's PPO on remote CartPole, and fails unless its mean return is at least 475.

Usage: train_remote.py SERVER SEED
"""

import sys
import time

import stable_baselines3
import torch
from blkpilot.v1 import environment_service_pb2 as api
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from blkpilot_gym import RemoteEnv

STEPS, EPISODES, WANTED = 100_000, 100, 475.0
torch.set_num_threads(1)


def main() -> None:
    server, seed = sys.argv[1], int(sys.argv[2])
    cart = lambda: RemoteEnv(server, api.Environment(cart_pole=api.CartPole()))
    # rl-baselines3-zoo's.
    learner = PPO(
        "MlpPolicy",
        make_vec_env(cart, n_envs=8, seed=seed),
        n_steps=32,
        n_epochs=20,
        batch_size=256,
        gamma=0.98,
        gae_lambda=0.8,
        learning_rate=lambda left: 1e-3 * left,
        clip_range=lambda left: 0.2 * left,
        ent_coef=0.0,
        seed=seed,
        device="cpu",
    )
    start = time.monotonic()
    learner.learn(STEPS)
    took = time.monotonic() - start
    episodes = make_vec_env(cart, n_envs=8, seed=10_000 + seed)
    mean, deviation = evaluate_policy(learner, episodes, EPISODES, deterministic=True)
    print(
        f"PPO of stable-baselines3 {stable_baselines3.__version__}, seed {seed}: mean return {mean:.1f} ± {deviation:.1f} "
        f"over {EPISODES} episodes, after {learner.num_timesteps} steps on 8 remote carts in {took:.0f} s"
    )
    learner.get_env().close()
    episodes.close()
    if mean < WANTED:
        sys.exit(f"the mean return is below {WANTED}")


if __name__ == "__main__":
    main()
