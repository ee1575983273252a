"""Estimates by the Open Bandit Pipeline and SCOPE-RL, for models/benches/ope.rs.

Reads the arrays of the folder it is given, says "ready", then makes the estimate that each line of its input
names and answers with the seconds it took and the estimate. Timed is the call that users make, with the
checks that it has.

Of both packages only the modules of the estimators are imported: the packages themselves import PyTorch,
Gym and d3rlpy, for parts that nothing here calls.
"""

import importlib.util
import os
import pathlib
import sys
import time
import types

import numpy as np


def without_init(name):
    """Registers a package whose modules can be imported, without running its __init__."""
    parent, _, last = name.rpartition(".")
    package = types.ModuleType(name)
    if parent:
        package.__path__ = [os.path.join(path, last) for path in sys.modules[parent].__path__]
    else:
        package.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
    sys.modules[name] = package


def absent(name, **names):
    """A module of which only these names are looked at, in annotations."""
    module = types.ModuleType(name)
    module.__dict__.update(names)
    sys.modules[name] = module


for package in ["obp", "obp.ope", "scope_rl", "scope_rl.ope", "scope_rl.ope.discrete"]:
    without_init(package)
absent("torch", tensor=object, Tensor=object)
absent("gym", Env=object)
absent("d3rlpy")
absent("d3rlpy.preprocessing", ActionScaler=object)

from obp.ope.estimators import DoublyRobust, InverseProbabilityWeighting  # noqa: E402
from scope_rl.ope.discrete.basic_estimators import PerDecisionImportanceSampling  # noqa: E402

folder, steps, gamma = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
action, pscore, reward, evaluation, q_hat = (
    np.load(folder / f"{name}.npy")
    for name in ["action", "pscore", "reward", "evaluation", "q_hat"]
)
bandit = {
    "reward": reward,
    "action": action,
    "pscore": pscore,
    "action_dist": evaluation[:, :, np.newaxis],
}
estimates = {
    "ips": lambda: InverseProbabilityWeighting().estimate_policy_value(**bandit),
    "dr": lambda: DoublyRobust().estimate_policy_value(
        **bandit, estimated_rewards_by_reg_model=q_hat[:, :, np.newaxis]
    ),
    "pdis": lambda: PerDecisionImportanceSampling().estimate_policy_value(
        step_per_trajectory=steps,
        action=action,
        reward=reward,
        pscore=pscore,
        evaluation_policy_action_dist=evaluation,
        gamma=gamma,
    ),
}
print("ready", flush=True)
for line in sys.stdin:
    estimate = estimates[line.strip()]
    start = time.perf_counter()
    value = estimate()
    print(time.perf_counter() - start, repr(float(value)), flush=True)
