"""A town small enough to list every way through it: where the tables of the lineup are computed.

A walker crosses a town. Thirteen ways lead from home to work, so every sum over paths is a sum of 13 terms, and each
objective that the field has a name for can be written out in a line or two of plain tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from torch import Tensor

from irlhf.worlds.tabular import (
    Linear,
    Path,
    SoftPolicy,
    TabularWorld,
    enumerate_paths,
    features,
    from_table,
)

SIDE = 3  # corners on a side of the town
HOME = (0, 0)
TRUE = {"minutes": -0.5, "shade": 0.8, "shops": 0.4}  # what the simulated walker likes


def town(rng: np.random.Generator) -> tuple[TabularWorld, Tensor]:
    """A grid of streets from (0, 0), home, to the opposite corner, work; and the features of every street."""
    moves = {"east": (0, 1), "south": (1, 0), "across": (1, 1)}
    rows = [
        {"state": (i, j), "action": name, "next_state": (i + di, j + dj)}
        for i in range(SIDE)
        for j in range(SIDE)
        for name, (di, dj) in moves.items()
        if i + di < SIDE and j + dj < SIDE
    ]
    streets = pd.DataFrame(rows)
    counts = streets.groupby("state")["action"].transform("count")
    # mu: at every corner a stroller without a purpose takes each street alike. With mu = 1 instead, (1) is the note's.
    base = streets[["state", "action"]].assign(log_base=-np.log(counts))
    world = from_table(streets, log_base=base)
    values = np.column_stack([rng.integers(1, 6, len(streets)), rng.random((len(streets), 2)).round(2)])
    order = world.pair_table().merge(streets[["state", "action"]].assign(row=range(len(streets))))["row"]
    return world, torch.from_numpy(values[order.to_numpy()].astype(float))


@dataclass(frozen=True)
class Listed:
    """All paths of the town as plain tensors: what the independent column is computed from."""

    paths: list[Path]
    streets: Tensor  # [13 paths, streets] 1 where the path uses the street
    corner: Tensor  # [streets] where it starts
    log_mu: Tensor  # [streets]
    features: Tensor  # [13 paths, features] summed along the path

    def log_street(self, logits: Tensor) -> Tensor:
        """[streets] log-probability of each street at its corner: a softmax of ``logits``."""
        total = torch.zeros(int(self.corner.max()) + 1).double().index_add(0, self.corner, logits.exp()).log()
        return logits - total[self.corner]

    def log_pi(self, logits: Tensor) -> Tensor:
        """[13 paths] log-probability of each path if streets are taken by softmax of ``logits`` at each corner."""
        return self.streets @ self.log_street(logits)


@dataclass(frozen=True)
class Town:
    """The town as a world of the library, and all of its ways as plain tensors."""

    world: TabularWorld
    street_features: Tensor  # [streets, features]
    listing: Listed

    @property
    def theta(self) -> Tensor:
        """[features] What the simulated walker likes."""
        return torch.tensor(list(TRUE.values())).double()

    @property
    def log_mu(self) -> Tensor:
        """[13 paths]"""
        return self.listing.streets @ self.listing.log_mu

    def log_p(self, theta: Tensor) -> Tensor:
        """[13 paths] ``log P(y) = R(y) + log mu(y) - log Z``."""
        return (self.listing.features @ theta + self.log_mu).log_softmax(0)

    def reward(self, theta: Tensor | None = None) -> Linear:
        """R = theta . (minutes, shade, shops) as a module; theta zero unless given."""
        return Linear(features(self.world, self.street_features.numpy(), names=list(TRUE)), theta)

    def policy(self, theta: Tensor) -> SoftPolicy:
        """The walker whose ways have probability P."""
        return SoftPolicy(self.world.solve(self.reward(theta)))


def build(rng: np.random.Generator) -> Town:
    world, street_features = town(rng)
    return Town(world, street_features, list_paths(world, street_features))


def list_paths(world: TabularWorld, street_features: Tensor) -> Listed:
    paths = list(enumerate_paths(world, HOME, max_steps=2 * SIDE))
    batch = world.collate(["home"] * len(paths), paths)
    streets = torch.zeros(len(paths), world.transitions.n_pairs).double()
    streets[batch.item, batch.pair] = 1.0
    corner = torch.from_numpy(world.transitions.state)
    return Listed(paths, streets, corner, world.log_base_of_pair, streets @ street_features)


def maximum(objective: Callable[[Tensor], Tensor], n: int) -> tuple[float, Tensor]:
    """The largest value of a concave-enough function of n numbers, by SciPy, and where it is."""

    def negative(v: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.from_numpy(v).requires_grad_()
        value = -objective(x)
        return float(value.detach()), torch.autograd.grad(value, x)[0].numpy()

    found = minimize(negative, np.zeros(n), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 5000})
    return -float(found.fun), torch.from_numpy(found.x)


def kl(log_p: Tensor, log_q: Tensor) -> float:
    return float((log_p.exp() * (log_p - log_q)).sum())
