"""The problem of the benchmarks, pinned: a grid with slip, cosine features, a reward of standard deviation 1.

Needs numpy alone, because the peers read it in environments of their own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ACTIONS = 5  # stay, north, south, west, east
MOVES = np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)])
SLIP = 0.1  # the probability that a uniformly random action happens instead
FEATURES = 16
HAPPENS = np.full((ACTIONS, ACTIONS), SLIP / ACTIONS) + np.eye(ACTIONS) * (1 - SLIP)  # [intended, happens]
SEED = 20240601


class Grid(NamedTuple):
    """An n x n grid, its features and the true parameters of its reward."""

    arrival: np.ndarray  # [states, actions] where each action leads if it does not slip; off the grid: stay
    features: np.ndarray  # [states, features] cos(w . x + b), x = (row, column)
    theta: np.ndarray  # [features] features @ theta has standard deviation 1 over the states


def grid(n: int) -> Grid:
    """The same features at every size, and so the same parameters but for their common scale."""
    rng = np.random.default_rng(SEED)
    w, b = rng.normal(size=(2, FEATURES)), rng.uniform(0.0, 2 * np.pi, FEATURES)
    cell = np.stack(np.divmod(np.arange(n * n), n), 1)
    features = np.cos(cell @ w + b)
    theta = rng.normal(size=FEATURES)
    theta /= (features @ theta).std()
    row, column = np.clip(cell[:, None] + MOVES, 0, n - 1).transpose(2, 0, 1)
    return Grid(row * n + column, features, theta)


def dense(arrival: np.ndarray) -> np.ndarray:
    """[states, actions, states], as the peers want it."""
    n = len(arrival)
    table = np.zeros((n, ACTIONS, n))
    for intended in range(ACTIONS):
        for happens in range(ACTIONS):
            table[np.arange(n), intended, arrival[:, happens]] += HAPPENS[intended, happens]
    return table
