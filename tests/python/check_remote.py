"""Puts remote environments through Gymnasium's own checks, and decodes a rollout of many as docs/environments.md does.

Usage: check_remote.py SERVER
"""

import sys

import gymnasium as gym
import numpy as np
from blkpilot.v1 import environment_service_pb2 as api
from blkpilot.v1 import environment_service_pb2_grpc as rpc
from blkpilot.v1 import spec_pb2
from gymnasium.utils.env_checker import check_env

from blkpilot_gym import RemoteEnv

KINDS = {
    "CartPole": api.Environment(cart_pole=api.CartPole()),
    "mixed": api.Environment(sim_host=api.SimHost(preset="mixed")),
    "poor_binding": api.Environment(sim_host=api.SimHost(preset="poor_binding")),
}


def check_many(server: str) -> None:
    """Four carts of one resource against Gymnasium's own from the same states, until one has fallen."""
    env = RemoteEnv(server, api.Environment(cart_pole=api.CartPole(), count=4, autoreset=spec_pb2.AUTORESET_SAME_STEP))
    answer = env._ask(reset=api.RolloutReset(seed=3))
    local = [gym.make("CartPole-v1").unwrapped for _ in range(4)]
    carts = np.frombuffer(answer.observations.disks, "<f4").reshape(4, 1, 4)
    for cart, state in zip(local, carts[:, 0]):
        cart.reset()
        cart.state = tuple(map(float, state))
    for step in range(200):
        actions = np.array([0, 1, step % 2, 1], "<u2")
        answer = env._ask(actions=actions.tobytes())
        carts = np.frombuffer(answer.observations.disks, "<f4").reshape(4, 1, 4)
        ended = np.frombuffer(answer.outcomes.terminated, "u1")
        finals = iter(np.frombuffer(answer.final_observations.disks, "<f4").reshape(-1, 4))
        for cart, action, seen, end in zip(local, actions, carts[:, 0], ended):
            want, _, fell, _, _ = cart.step(int(action))
            assert fell == bool(end), (step, want, seen)
            np.testing.assert_allclose(next(finals) if end else seen, want, rtol=1e-4, atol=1e-5)
        if ended.any():
            print(f"4 carts in one resource: as Gymnasium's, up to the fall in step {step + 1}")
            return env.close()
    raise AssertionError("no cart has fallen in 200 steps")


def main() -> None:
    (server,) = sys.argv[1:]
    for name, environment in KINDS.items():
        env = RemoteEnv(server, environment)
        check_env(env)
        env.close()
        print(f"{name}: passes gymnasium.utils.env_checker.check_env of gymnasium {gym.__version__}")
    check_many(server)


if __name__ == "__main__":
    main()
