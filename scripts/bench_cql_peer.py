"""Gradient steps of d3rlpy's DiscreteCQL per second of CPU time, on one thread.

Prints a line of JSON, as agent/learn/benches/offline.rs does: the median over runs, and each of them. Transitions, minibatch
size, discount, step size and target interval are those of that benchmark; sampling is part of a step. The network is one
encoder of 64 x 64 tanh units with a linear head of Q, ours two such encoders.
"""

import json
import os
import statistics
import time

# Before torch is imported, which reads it once.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import d3rlpy
import numpy as np
import torch

TURNS = 10_000
EPISODE = 100
MINIBATCH = 256
WARM_UP = 200
STEPS = 500
RUNS = 3


def transitions() -> d3rlpy.dataset.MDPDataset:
    turns = np.arange(TURNS)
    seen = np.sin(0.37 * turns[:, None] + 1.3 * np.arange(4)[None, :]).astype(np.float32)
    ends = turns % EPISODE + 1 == EPISODE
    return d3rlpy.dataset.MDPDataset(
        observations=seen,
        actions=(turns * 7 // 3 % 2)[:, None].astype(np.int64),
        rewards=np.ones((TURNS, 1), dtype=np.float32),
        terminals=ends.astype(np.float32),
        action_space=d3rlpy.ActionSpace.DISCRETE,
        action_size=2,
    )


def main() -> None:
    torch.set_num_threads(1)
    d3rlpy.seed(1)
    encoder = d3rlpy.models.VectorEncoderFactory(hidden_units=[64, 64], activation="tanh")
    learner = d3rlpy.algos.DiscreteCQLConfig(
        batch_size=MINIBATCH,
        gamma=0.99,
        learning_rate=6.25e-5,
        encoder_factory=encoder,
        n_critics=1,
        target_update_interval=8_000,
        alpha=1.0,
    ).create(device="cpu:0")
    data = transitions()

    def learn(steps: int) -> None:
        learner.fit(
            data,
            n_steps=steps,
            n_steps_per_epoch=steps,
            logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
            show_progress=False,
        )

    learn(WARM_UP)
    runs = []
    for _ in range(RUNS):
        before = time.process_time()
        learn(STEPS)
        runs.append(STEPS / (time.process_time() - before))
    network = learner.impl.modules.q_funcs
    print(
        json.dumps(
            {
                "cql_grad_steps_per_cpu_s": round(statistics.median(runs), 1),
                "runs": [round(run, 1) for run in runs],
                "steps": STEPS,
                "minibatch": MINIBATCH,
                "hidden": 64,
                "parameters": sum(weights.numel() for weights in network.parameters()),
                "d3rlpy": d3rlpy.__version__,
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
