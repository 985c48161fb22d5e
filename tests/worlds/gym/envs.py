"""Small environments whose every step is known, one by one and as a native vector."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space


class Corridor(gymnasium.Env):
    """Places from 0 on. Action 1 goes on, action 0 stays; place ``end`` terminates; a step pays the place."""

    def __init__(self, end: int = 3):
        self.observation_space = spaces.Box(-1.0, 100.0, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.end, self.place = end, 0

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.place = 0
        return self._seen(), {}

    def step(self, action):
        self.place += int(action)
        return self._seen(), float(self.place), self.place >= self.end, False, {}

    def _seen(self):
        return np.array([self.place, 1.0], np.float32)


class Once(Corridor):
    """One step, and it is over."""

    def step(self, action):
        obs, paid, _, _, info = super().step(action)
        return obs, paid, True, False, info


def corridor(end: int = 3, limit: int = 5):
    return lambda: gymnasium.wrappers.TimeLimit(Corridor(end), limit)


class Corridors(gymnasium.vector.VectorEnv):
    """The same as a native vector environment that resets itself in the step after an end."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int, end: int = 3, limit: int = 5):
        self.num_envs = num_envs
        self.single_observation_space = spaces.Box(-1.0, 100.0, (2,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.end, self.limit = end, limit
        self.place = np.zeros(num_envs, int)
        self.clock = np.zeros(num_envs, int)
        self.over = np.zeros(num_envs, bool)

    def reset(self, *, seed: Any = None, options: Any = None):
        self.place[:], self.clock[:], self.over[:] = 0, 0, False
        return self._seen(), {}

    def step(self, actions):
        self.place = np.where(self.over, 0, self.place + actions)
        self.clock = np.where(self.over, 0, self.clock + 1)
        terminated = (self.place >= self.end) & ~self.over
        truncated = (self.clock >= self.limit) & ~self.over
        paid = np.where(self.over, 0.0, self.place).astype(float)
        self.over = terminated | truncated
        return self._seen(), paid, terminated, truncated, {}

    def _seen(self):
        return np.stack([self.place, np.ones(self.num_envs)], 1).astype(np.float32)


class Numbers(gymnasium.Env):
    """Two numbers to choose within [-2, 1] and [0, 4]; nothing happens."""

    def __init__(self):
        self.observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = spaces.Box(np.array([-2, 0], np.float32), np.array([1, 4], np.float32))

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), float(action.sum()), False, False, {}
