"""Steps per CPU second of Gymnasium's CartPoleVectorEnv, as one number on standard output.

Usage: gymnasium_cartpole.py CARTS
"""

import statistics
import sys
import time

import gymnasium
import numpy

BATCHES = 15
BATCH_S = 0.05


def main():
    carts = int(sys.argv[1])
    envs = gymnasium.make_vec(
        "CartPole-v1", num_envs=carts, vectorization_mode="vector_entry_point"
    )
    envs.reset(seed=1)
    levels = numpy.random.default_rng(2).integers(0, 2, size=(64, carts))

    def timed(steps):
        start = time.process_time()
        for step in range(steps):
            envs.step(levels[step % 64])
        return (time.process_time() - start) / steps

    steps = max(10, int(BATCH_S / timed(100)))
    print(carts / statistics.median(timed(steps) for _ in range(BATCHES)))


main()
