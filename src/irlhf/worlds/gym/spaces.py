"""Observations and actions of an environment as numbers that a network can read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor

from irlhf.errors import ConfigError

MOST_VALUES = 10_000  # of a discrete observation, which becomes as many inputs
Encoder = Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class Spaces:
    """What is observed and what can be done, in numbers.

    ``encoder`` makes a vector of what the environment shows (one observation, unbatched); it is needed where that is
    a dictionary, an image or a sequence.
    """

    observation: gymnasium.Space
    action: gymnasium.Space
    encoder: Encoder | None = None

    def __post_init__(self):
        space, action = self.observation, self.action
        if self.encoder is None and not _is_plain(space):
            raise ConfigError(
                f"observations are {_named(space)}, which a network cannot read as they are; give GymWorld an "
                "encoder, a function from one observation to a vector of numbers"
            )
        if isinstance(action, spaces.Discrete):
            return
        if not isinstance(action, spaces.Box) or len(action.shape) != 1:
            raise ConfigError(
                f"actions are {_named(action)}; policies are for one of a list (Discrete) and for a Box with one axis: "
                "wrap the environment, for example in gymnasium.wrappers.TransformAction"
            )
        if not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
            raise ConfigError(
                "actions have no bounds; wrap the environment in gymnasium.wrappers.RescaleAction or ClipAction"
            )

    @property
    def discrete(self) -> bool:
        """Whether actions are one of a list, and not numbers."""
        return isinstance(self.action, spaces.Discrete)

    @property
    def n_actions(self) -> int:
        """How many actions there are to choose from, or how many numbers an action has."""
        return int(self.action.n if self.discrete else self.action.shape[0])  # type: ignore[attr-defined,index]

    @property
    def observation_size(self) -> int:
        """Of the vector that stands for an observation."""
        if self.encoder is not None:
            return int(np.asarray(self.encoder(self.observation.sample())).size)
        space = self.observation
        return int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape))  # type: ignore[arg-type]

    def encode(self, observations: Any) -> np.ndarray:
        """Observations [n, ...] of the environment as vectors [n, d], float32.

        Raises:
            ConfigError: they are of another shape than the environment's.
        """
        space = self.observation
        if self.encoder is not None:
            rows = observations if isinstance(observations, list | tuple) else list(_rows(observations))
            return np.stack([np.asarray(self.encoder(row), np.float32).reshape(-1) for row in rows])
        values = np.asarray(observations)
        if isinstance(space, spaces.Discrete):
            if values.ndim == 2 and values.shape[1] == space.n:
                return values.astype(np.float32)  # encoded already
            return np.eye(int(space.n), dtype=np.float32)[values.reshape(-1).astype(np.int64) - int(space.start)]
        if values.shape[1:] != space.shape and values.shape[1:] != (int(np.prod(space.shape)),):  # type: ignore[arg-type]
            raise ConfigError(
                f"observations have shape {values.shape[1:]}, but the environment's have {space.shape}; "
                "is it another environment?"
            )
        return values.reshape(len(values), -1).astype(np.float32)

    def check_actions(self, actions: np.ndarray) -> np.ndarray:
        """Actions as kept: int64 [n] counted from 0, or float32 [n, k].

        Raises:
            ConfigError: they are of another kind, or outside what the environment allows.
        """
        space = self.action
        if isinstance(space, spaces.Discrete):
            values = actions.reshape(len(actions), -1)
            if values.shape[1] != 1 or not np.equal(np.mod(values, 1), 0).all():
                raise ConfigError(f"actions have shape {actions.shape[1:]}, but the environment takes one of {space.n}")
            plain = values[:, 0].astype(np.int64) - int(space.start)
            if ((plain < 0) | (plain >= space.n)).any():
                raise ConfigError(
                    f"an action is {int(values.max()) if (plain >= space.n).any() else int(values.min())}, but the "
                    f"environment's are {space.start} to {space.start + space.n - 1}; is it another environment?"
                )
            return plain
        assert isinstance(space, spaces.Box)
        if actions.shape[1:] != space.shape and actions.shape[1:] != ():
            raise ConfigError(f"actions have shape {actions.shape[1:]}, but the environment's have {space.shape}")
        values = actions.reshape(len(actions), -1).astype(np.float32)
        if values.shape[1:] != space.shape:
            raise ConfigError(f"actions have shape {actions.shape[1:]}, but the environment's have {space.shape}")
        return values

    def to_unit(self, actions: Tensor) -> Float[Tensor, "steps inputs"]:
        """Actions as inputs of a network: one of many as 0 and 1, numbers scaled to -1..1."""
        if self.discrete:
            return torch.nn.functional.one_hot(actions, self.n_actions).float()
        low, high = self._bounds()
        return (actions - low) / (high - low) * 2 - 1

    def from_unit(self, unit: Float[Tensor, "steps k"]) -> Float[Tensor, "steps k"]:
        """The way back, of numbers."""
        low, high = self._bounds()
        return (unit + 1) / 2 * (high - low) + low

    def playable(self, actions: Tensor) -> np.ndarray:
        """What the environment takes: within its bounds, counted as it counts."""
        space, values = self.action, actions.numpy()
        if isinstance(space, spaces.Discrete):
            return values + int(space.start)
        assert isinstance(space, spaces.Box)
        return np.clip(values, space.low, space.high).astype(space.dtype)

    def _bounds(self) -> tuple[Tensor, Tensor]:
        space = self.action
        assert isinstance(space, spaces.Box)
        return torch.from_numpy(space.low.astype(np.float32)), torch.from_numpy(space.high.astype(np.float32))


def _is_plain(space: gymnasium.Space) -> bool:
    if isinstance(space, spaces.Discrete):
        return int(space.n) <= MOST_VALUES
    return isinstance(space, spaces.Box | spaces.MultiBinary) and len(space.shape or ()) == 1


def _named(space: gymnasium.Space) -> str:
    if isinstance(space, spaces.Box) and len(space.shape) > 1:
        return f"arrays of shape {space.shape} (an image?)"
    if isinstance(space, spaces.Dict):
        return f"dictionaries with {', '.join(space.spaces)}"
    return str(space)[:80]


def _rows(observations: Any) -> Any:
    """One observation at a time out of a batch of a vector environment: of arrays, or of dictionaries of arrays."""
    if isinstance(observations, dict):
        first = next(iter(observations.values()))
        n = len(next(iter(first.values()))) if isinstance(first, dict) else len(first)
        return ({name: _pick(values, k) for name, values in observations.items()} for k in range(n))
    return observations


def _pick(values: Any, k: int) -> Any:
    return {name: _pick(part, k) for name, part in values.items()} if isinstance(values, dict) else values[k]
