"""Walks through a Markov decision process, compiled: one action and one outcome after another, for many walkers."""

from __future__ import annotations

from typing import Any, NamedTuple, no_type_check

import numpy as np
from numba import njit
from numpy.typing import NDArray

from irlhf.functional.transitions import Transitions

Ints = NDArray[np.int64]


class Walks(NamedTuple):
    """Walks laid end to end; those of walker i are steps ``first_step[i] : first_step[i + 1]``."""

    first_step: Ints  # [walkers + 1]
    pair: Ints  # [steps]
    outcome: Ints  # [steps]
    ended: NDArray[np.bool_]  # [walkers] at an exit, or at the last time that there is; not cut at ``max_steps``


def walk(
    transitions: Transitions,
    policy: NDArray[np.float64],
    row: Ints,
    start: Ints,
    goal: Ints,
    *,
    max_steps: int,
    horizon: int | None = None,
    rng: np.random.Generator,
) -> Walks:
    """Each walker walks until it stands where no action is possible, at its goal, at the horizon, or has had enough.

    Args:
        policy: [rows, times, pairs] probabilities; with one time the policy is stationary.
        row: [walkers] which row each follows.
        start, goal: [walkers] numbers of states; goal -1 is none.
        max_steps: walks are cut there, and then have not ended.
        horizon: after so many steps every walk has ended.
        rng: gives each walker a stream of its own, so that a walk does not depend on how long the others are.
    """
    t = transitions
    outcomes = np.concatenate([[0.0], np.cumsum(t.probability)])
    streams = rng.integers(0, 2**64, len(start), dtype=np.uint64)
    most = max_steps if horizon is None else min(max_steps, horizon)
    end = np.iinfo(np.int64).max if horizon is None else horizon
    found: Any = _walk(
        streams, np.ascontiguousarray(policy), row, start, goal, most, end,
        t.first_pair, t.first_outcome, t.next_state, outcomes,
    )  # fmt: skip
    return Walks(*found)


@njit(cache=True)
@no_type_check
def _walk(streams, policy, row, start, goal, most, end, first_pair, first_outcome, next_state, outcomes):
    n = len(start)
    size = max(16, 8 * n)
    pair, outcome = np.empty(size, np.int64), np.empty(size, np.int64)
    first_step, ended = np.zeros(n + 1, np.int64), np.zeros(n, np.bool_)
    timed = policy.shape[1] > 1
    count = 0
    for i in range(n):
        stream, state, steps = streams[i], start[i], 0
        while True:
            if state == goal[i] or steps == end:
                ended[i] = True
                break
            if first_pair[state] == first_pair[state + 1]:
                ended[i] = goal[i] < 0 or end < np.iinfo(np.int64).max  # without a horizon it had to reach its goal
                break
            if steps == most:
                break
            if count == size:
                size *= 2
                pair, outcome = _longer(pair, size), _longer(outcome, size)
            stream, u = _uniform(stream)
            chance = policy[row[i], steps if timed else 0]
            chosen, total = -1, 0.0
            for p in range(first_pair[state], first_pair[state + 1]):
                if chance[p] > 0.0:
                    chosen = p
                    total += chance[p]
                    if u < total:
                        break
            if chosen < 0:
                break  # the policy knows no way on from here
            first, last = first_outcome[chosen], first_outcome[chosen + 1]
            if last > first + 1:
                stream, u = _uniform(stream)
                mark = outcomes[first] + u * (outcomes[last] - outcomes[first])
                last -= 1
                while first < last:  # the first outcome whose cumulative probability exceeds the mark
                    middle = (first + last) // 2
                    if outcomes[middle + 1] > mark:
                        last = middle
                    else:
                        first = middle + 1
            pair[count], outcome[count] = chosen, first
            state = next_state[first]
            count += 1
            steps += 1
        first_step[i + 1] = count
    return first_step, pair[:count].copy(), outcome[:count].copy(), ended


@njit(cache=True)
@no_type_check
def _longer(array, size):
    longer = np.empty(size, array.dtype)
    longer[: len(array)] = array
    return longer


@njit(cache=True)
@no_type_check
def _uniform(stream):
    """(the stream after, a number in [0, 1)): SplitMix64 (Steele, Lea and Flood 2014, figure 14)."""
    stream = stream + np.uint64(0x9E3779B97F4A7C15)
    z = (stream ^ (stream >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return stream, np.float64(z >> np.uint64(11)) * (1.0 / 9007199254740992.0)
