"""Small worlds for the tests of the solvers."""

from __future__ import annotations

import numpy as np

from irlhf.functional.transitions import Transitions


def from_lists(n_states: int, outcomes: list[tuple[int, dict[int, float]]]) -> Transitions:
    """Pairs in order: (state, {next state: probability})."""
    return Transitions(
        n_states,
        np.array([state for state, _ in outcomes], np.int64),
        np.cumsum([0, *(len(o) for _, o in outcomes)]).astype(np.int64),
        np.array([t for _, o in outcomes for t in o], np.int64),
        np.array([p for _, o in outcomes for p in o.values()], np.float64),
    )


def random_world(seed: int, n_states: int = 6, n_terminal: int = 1, deterministic: bool = False) -> Transitions:
    """One to three actions a state, one to three outcomes an action; the last states are terminal."""
    rng = np.random.default_rng(seed)
    pairs = []
    for state in range(n_states - n_terminal):
        for _ in range(rng.integers(1, 4)):
            count = 1 if deterministic else int(rng.integers(1, 4))
            nexts = rng.choice(n_states, count, replace=False)
            pairs.append((state, dict(zip(nexts.tolist(), rng.dirichlet(np.ones(count)).tolist(), strict=True))))
    return from_lists(n_states, pairs)


def grid(n: int, slip: float = 0.1) -> Transitions:
    """An n x n grid: stay, up, down, left, right; with probability ``slip`` one of the five at random."""
    row, column = np.divmod(np.arange(n * n), n)
    steps = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]
    to = np.stack([np.clip(row + i, 0, n - 1) * n + np.clip(column + j, 0, n - 1) for i, j in steps], 1)
    pairs = []
    for state in range(n * n):
        for action in range(5):
            chance: dict[int, float] = {}
            for other in range(5):
                p = slip / 5 + (1 - slip) * (other == action)
                if p > 0:
                    chance[int(to[state, other])] = chance.get(int(to[state, other]), 0.0) + p
            pairs.append((state, chance))
    return from_lists(n * n, pairs)


def chain(n: int) -> Transitions:
    """States 0 .. n - 1 in a line, each with one action to the next; the last is terminal."""
    return from_lists(n, [(s, {s + 1: 1.0}) for s in range(n - 1)])
