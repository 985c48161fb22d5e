"""Rewards of the tabular world. All are modules with ``step(batch) -> ["steps"]``, in float64."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float
from torch import Tensor, nn

from irlhf.errors import ConfigError
from irlhf.worlds.tabular.features import Features
from irlhf.worlds.tabular.world import TabularBatch, TabularWorld


class _Stepwise(nn.Module):
    """A trajectory is worth the discounted sum of its steps."""

    on: str

    @abstractmethod
    def step(self, batch: TabularBatch) -> Float[Tensor, "steps"]: ...

    def forward(self, batch: TabularBatch) -> Float[Tensor, "items"]:
        return batch.sum(self.step(batch))


class Linear(_Stepwise):
    """``r = features @ theta``: one parameter for each named feature; zeros unless given."""

    def __init__(self, features: Features, theta: Sequence[float] | np.ndarray | Tensor | None = None):
        super().__init__()
        self.features, self.on = features, features.on
        values = (
            torch.zeros(len(features.names)).double()
            if theta is None
            else torch.tensor([float(x) for x in theta], dtype=torch.float64)
        )
        if values.shape != (len(features.names),):
            raise ConfigError(f"theta has shape {tuple(values.shape)} for {len(features.names)} features")
        self.theta = nn.Parameter(values)

    @property
    def parameter_labels(self) -> dict[str, list[str]]:
        return {"theta": list(self.features.names)}

    @property
    def parameter_scale(self) -> Float[Tensor, "features"]:
        """Standard deviation of each feature: by how much one unit of its parameter sets steps apart.

        Of a constant feature its size; it may still matter where paths differ in length.
        """
        size = self.features.values.square().mean(0).sqrt()
        spread = self.features.values.std(0, correction=0)
        size = torch.where(spread > 1e-9 * size, spread, size)
        return torch.where(size > 0, size, torch.ones_like(size))

    @property
    def design(self) -> sp.csr_array:
        """[rows, parameters] The matrix that makes the reward of every row from the parameters."""
        return sp.csr_array(self.features.values.numpy())

    def step(self, batch: TabularBatch) -> Float[Tensor, "steps"]:
        return (self.features.values @ self.theta).index_select(0, self.features.rows(batch))


class Tabular(_Stepwise):
    """One free parameter for each state, pair or outcome of the world."""

    def __init__(self, world: TabularWorld, *, on: str = "states"):
        super().__init__()
        t = world.transitions
        sizes = {"states": t.n_states, "pairs": t.n_pairs, "outcomes": t.n_outcomes}
        if on not in sizes:
            raise ConfigError(f"a tabular reward is on {on!r}; choose one of {', '.join(sizes)}")
        self.on = on
        self.theta = nn.Parameter(torch.zeros(sizes[on], dtype=torch.float64))
        table = world.pair_table() if on == "pairs" else world.outcome_table() if on == "outcomes" else None
        rows = (
            world.states
            if table is None
            else zip(*(table[c] for c in table.columns[: 2 + (on == "outcomes")]), strict=True)
        )
        self._labels = [str(row) if table is None else " -> ".join(map(str, row)) for row in rows]

    @property
    def parameter_labels(self) -> dict[str, list[str]]:
        return {"theta": self._labels}

    @property
    def design(self) -> sp.csr_array:
        """[rows, parameters] The identity: every row has its own parameter."""
        return sp.csr_array(sp.eye_array(len(self.theta)))

    def step(self, batch: TabularBatch) -> Float[Tensor, "steps"]:
        rows = {"states": batch.state, "pairs": batch.pair, "outcomes": batch.outcome}[self.on]
        return self.theta.index_select(0, rows)


class Shaped(_Stepwise):
    """``r(s, a, s') + g p(s') - p(s)``: another reward that asks for the same policies (Ng, Harada and Russell 1999).

    Args:
        reward: of the world.
        world: gives the discount g.
        potential: [states] p; to be the same in every way, 0 where trajectories end.
    """

    on = "outcomes"

    def __init__(self, reward: nn.Module, world: TabularWorld, potential: Sequence[float] | np.ndarray | Tensor):
        super().__init__()
        self.reward, self.world = reward, world
        self.potential = torch.as_tensor(np.asarray(potential), dtype=torch.float64)
        if self.potential.shape != (world.transitions.n_states,):
            raise ConfigError(
                f"a potential of shape {tuple(self.potential.shape)} for {world.transitions.n_states} states; "
                "give one number for each"
            )
        self.contextual, self.timed = (getattr(reward, name, False) for name in ("contextual", "timed"))

    def step(self, batch: TabularBatch) -> Float[Tensor, "steps"]:
        if (batch.outcome < 0).any():
            raise ConfigError("shaping needs the state that every step led to, and there are steps without one")
        after = torch.from_numpy(self.world.transitions.next_state)[batch.outcome]
        return self.reward.step(batch) + self.world.discount * self.potential[after] - self.potential[batch.state]  # type: ignore[operator]

    def everywhere(self) -> Float[Tensor, "pairs states"]:
        """After every pair, for any state that could follow."""
        if getattr(self.reward, "on", "outcomes") == "outcomes":
            raise ConfigError("the reward that is shaped is only defined on the world's own transitions; use STARC")
        own = self.reward.step(self.world.table("pairs")).double()  # type: ignore[operator]
        state = torch.from_numpy(self.world.transitions.state)
        return own[:, None] + self.world.discount * self.potential[None] - self.potential[state][:, None]


class Neural(_Stepwise):
    """A small tanh network on given features: ``r = net(features)``."""

    def __init__(self, features: Features, *, hidden: Sequence[int] = (32, 32), seed: int = 0):
        super().__init__()
        self.features, self.on = features, features.on
        generator = torch.Generator().manual_seed(seed)
        sizes = [features.values.shape[1], *hidden, 1]
        layers: list[nn.Module] = []
        for width, following in pairwise(sizes):
            layer = nn.Linear(width, following, dtype=torch.float64)
            with torch.no_grad():
                layer.weight.normal_(0.0, width**-0.5, generator=generator)
                layer.bias.zero_()
            layers += [layer, nn.Tanh()]
        self.net = nn.Sequential(*layers[:-1])

    def step(self, batch: TabularBatch) -> Float[Tensor, "steps"]:
        return self.net(self.features.values)[:, 0].index_select(0, self.features.rows(batch))
