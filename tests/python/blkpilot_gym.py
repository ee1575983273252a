"""An environment of a blkpilot service as a Gymnasium environment, over one rollout.

It wants the stubs that grpcio-tools makes of proto/proto (scripts/python-clients.sh does) on the path. The
observation is all tables of numbers one after another, the action a level per disk and head, then per device and head.
A level that may not be chosen now is not asked for: what is in force stays. The layout of the tensors is that of
proto/proto/blkpilot/v1/environment_service.proto; docs/environments.md explains it.
"""

import queue

import grpc
import gymnasium as gym
import numpy as np
from blkpilot.v1 import environment_service_pb2 as api
from blkpilot.v1 import environment_service_pb2_grpc as rpc
from blkpilot.v1 import observation_pb2, spec_pb2

TABLES = ("disks", "channels", "pairs", "devices", "host")


class RemoteEnv(gym.Env):
    """`environment` is the Environment to create at `server`, `unix:PATH` or `HOST:PORT`; it is deleted by close().

    Disks, channels and devices must be the same in each episode: carts, hosts with one scenario.
    """

    metadata = {"render_modes": []}

    def __init__(self, server: str, environment: api.Environment):
        # Of a Unix socket gRPC would make an authority that HTTP/2 does not allow.
        self._channel = grpc.insecure_channel(server, [("grpc.default_authority", "localhost")])
        self._service = rpc.EnvironmentServiceStub(self._channel)
        self.name = self._service.CreateEnvironment(api.CreateEnvironmentRequest(environment=environment)).name
        spec = self._service.GetSpec(api.GetSpecRequest(name=self.name))
        self._requests = queue.SimpleQueue()
        self._answers = self._service.Rollout(iter(self._requests.get, None))
        self._ask(open=api.RolloutOpen(name=self.name))
        layout = self._ask(reset=api.RolloutReset()).layout.environments[0]
        self._groups = list(layout.disk_group)
        rows = {
            "disks": len(layout.disk_ids),
            "channels": len(layout.channel_ids),
            "pairs": len(layout.disk_ids) * len(layout.channel_ids),
            "devices": len(layout.device_ids),
            "host": 1,
        }
        columns = (spec.disk_features, spec.channel_features, spec.pair_features, spec.device_features, spec.host_features)
        features = [f for table, of in zip(TABLES, columns) for f in list(of) * rows[table]]
        bounds = (np.array([getattr(f, end) for f in features], np.float32) for end in ("low", "high"))
        self.observation_space = gym.spaces.Box(*bounds, dtype=np.float32)
        levels = lambda heads: [len(h.named.names) or rows["channels"] + 1 for h in heads]
        self._disk_heads, self._device_heads = levels(spec.disk_heads), levels(spec.device_heads)
        self._is_tied = [h.scope == spec_pb2.HEAD_SCOPE_IO_THREAD for h in spec.disk_heads]
        counts = self._disk_heads * rows["disks"] + self._device_heads * rows["devices"]
        self.action_space = gym.spaces.Discrete(counts[0]) if len(counts) == 1 else gym.spaces.MultiDiscrete(counts)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        answer = self._ask(reset=api.RolloutReset(seed=seed, options=options))
        return self._observation(answer), {}

    def step(self, action):
        levels = self._allowed(np.atleast_1d(np.asarray(action, np.uint16)))
        answer = self._ask(actions=levels.astype("<u2").tobytes())
        outcomes = answer.outcomes
        rewards = np.frombuffer(outcomes.rewards, "<f4")
        counted = np.frombuffer(outcomes.counted, "u1").astype(bool) if outcomes.counted else np.full(len(rewards), True)
        reward = float(rewards[counted].mean()) if counted.any() else 0.0
        return self._observation(answer), reward, outcomes.terminated[0] == 1, outcomes.truncated[0] == 1, {}

    def close(self):
        self._requests.put(None)
        self._service.DeleteEnvironment(api.DeleteEnvironmentRequest(name=self.name, allow_missing=True))
        self._channel.close()

    def _ask(self, **request) -> api.RolloutResponse:
        self._requests.put(api.RolloutRequest(**request))
        return next(self._answers)

    def _observation(self, answer: api.RolloutResponse) -> np.ndarray:
        self._seen = answer.observations
        return np.concatenate([np.frombuffer(getattr(self._seen, table), "<f4") for table in TABLES])

    def _allowed(self, levels: np.ndarray) -> np.ndarray:
        """The levels, with that in force where another may not be chosen, or disks on one IOThread disagree."""
        seen = self._seen
        disks = len(seen.disk_levels) // 2
        split = [(levels[:disks], seen.disk_levels, seen.disk_masks, self._disk_heads),
                 (levels[disks:], seen.device_levels, seen.device_masks, self._device_heads)]
        fitted = [self._unmasked(*table) for table in split]
        heads = fitted[0].reshape(-1, len(self._disk_heads))
        current = np.frombuffer(seen.disk_levels, "<u2").reshape(heads.shape)
        for head in np.flatnonzero(self._is_tied):
            for group in set(self._groups) - {-1}:
                members = np.equal(self._groups, group)
                if len(set(heads[members, head])) > 1:
                    heads[members, head] = current[members, head]
        return np.concatenate(fitted)

    @staticmethod
    def _unmasked(levels, in_force, masks, heads) -> np.ndarray:
        in_force = np.frombuffer(in_force, "<u2")
        if not masks or not heads:
            return levels.copy()
        allowed = np.frombuffer(masks, "u1").reshape(-1, sum(heads)) == observation_pb2.MASK_REASON_ALLOWED
        starts = np.cumsum([0, *heads[:-1]])
        chosen = np.take_along_axis(allowed, levels.reshape(-1, len(heads)) + starts, axis=1)
        return np.where(chosen.ravel(), levels, in_force)
