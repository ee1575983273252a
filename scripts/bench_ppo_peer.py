"""stable-baselines3's PPO on CartPole-v1, for agent/learn/benches/ppo.rs: prints the steps it trained and the CPU
time that took, user and system, without imports.

Usage: bench_ppo_peer.py ENV_STEPS SEED
"""

import json
import sys
import time

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

torch.set_num_threads(1)


def main() -> None:
    env_steps, seed = map(int, sys.argv[1:])
    # rl-baselines3-zoo's; its networks are two of 64 x 64 tanh units, which are said here to be sure.
    learner = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=8, seed=seed),
        n_steps=32,
        n_epochs=20,
        batch_size=256,
        gamma=0.98,
        gae_lambda=0.8,
        learning_rate=lambda left: 1e-3 * left,
        clip_range=lambda left: 0.2 * left,
        ent_coef=0.0,
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}, "activation_fn": torch.nn.Tanh},
        seed=seed,
        device="cpu",
    )
    start = time.process_time()
    learner.learn(env_steps)
    print(json.dumps({"env_steps": learner.num_timesteps, "cpu_s": time.process_time() - start}))


if __name__ == "__main__":
    main()
