"""Walking through a tabular world: paths drawn from a policy, and all paths of a small world listed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irlhf.errors import ConfigError
from irlhf.worlds.tabular.paths import UNKNOWN, Path, Paths
from irlhf.worlds.tabular.world import TabularWorld


def sample_paths(
    world: TabularWorld,
    log_policy: Any,
    starts: Sequence[Any],
    *,
    destinations: Sequence[Any] | None = None,
    max_steps: int,
    seed: int | np.random.Generator = 0,
) -> Paths:
    """One path from each start, all walking at once.

    Args:
        log_policy: ``log pi(a|s)``: [pairs]; [horizon, pairs] where it varies with time; [contexts, ...] as
            ``SoftValues.log_policy`` has it, with one row for each start or a single one for all.
        starts: a state label for each path.
        destinations: a state label for each path, where it ends.
        max_steps: a path that has not ended by then stops, and its last next state is known all the same.
    """
    rng = np.random.default_rng(seed)
    t = world.transitions
    policy = np.exp(np.asarray(log_policy, dtype=float))
    if np.isnan(policy).any():
        raise ConfigError("log_policy holds what is not a number; give log-probabilities, -inf for what is never done")
    timed = policy.shape[-2] == world.horizon if policy.ndim == 3 or (policy.ndim == 2 and world.horizon) else False
    if world.horizon is not None:
        max_steps = min(max_steps, world.horizon)
    policy = policy.reshape(-1, policy.shape[-2] if timed else 1, t.n_pairs)
    n = len(starts)
    if len(policy) not in (1, n):
        raise ConfigError(f"{len(policy)} policies for {n} starts; give one for each, or a single one")
    state = world.state_numbers(starts, "start")
    goal = np.full(n, -1) if destinations is None else world.state_numbers(destinations, "destination")
    # Inverse distribution functions: cumulative sums over all pairs (outcomes), of which each state (pair) owns a run.
    outcomes = np.concatenate([[0.0], np.cumsum(t.probability)])
    walker: list[NDArray[np.int64]] = []
    pairs: list[NDArray[np.int64]] = []
    following: list[NDArray[np.int64]] = []
    active = np.arange(n)
    cumulative: dict[tuple[int, int], NDArray[np.float64]] = {}
    for step in range(max_steps):
        active = active[~t.terminal[state[active]] & (state[active] != goal[active])]
        if not len(active):
            break
        pair = np.empty(len(active), np.int64)
        h = step if timed else 0
        owners = [0] if len(policy) == 1 else np.unique(active).tolist()
        for c in owners:
            mine = np.ones(len(active), bool) if len(policy) == 1 else active == c
            if (c, h) not in cumulative:
                if timed:
                    cumulative.clear()
                cumulative[c, h] = np.concatenate([[0.0], np.cumsum(policy[c, h])])
            pair[mine] = _draw(cumulative[c, h], t.first_pair, state[active[mine]], rng.random(int(mine.sum())))
        outcome = pair if t.deterministic else _draw(outcomes, t.first_outcome, pair, rng.random(len(pair)))
        walker.append(active)
        pairs.append(pair)
        following.append(t.next_state[outcome])
        state = state.copy()
        state[active] = following[-1]
    return _columns(world, n, walker, pairs, following)


def _draw(cumulative: NDArray, first: NDArray[np.int64], row: NDArray[np.int64], u: NDArray) -> NDArray[np.int64]:
    """For each row an entry of its run, with probability proportional to its share of the cumulative sum."""
    low, high = cumulative[first[row]], cumulative[first[row + 1]]
    entry = np.searchsorted(cumulative, low + u * (high - low), side="right") - 1
    return np.clip(entry, first[row], first[row + 1] - 1)


def _columns(world: TabularWorld, n: int, walker: list, pairs: list, following: list) -> Paths:
    order = np.argsort(np.concatenate([*walker, np.empty(0, np.int64)]), kind="stable")
    who = np.concatenate([*walker, np.empty(0, np.int64)])[order]
    pair = np.concatenate([*pairs, np.empty(0, np.int64)])[order]
    after = np.concatenate([*following, np.empty(0, np.int64)])[order]
    states = world.states.to_numpy()
    return Paths(
        state=states[world.transitions.state[pair]],
        action=world.actions.to_numpy()[world.action_of_pair[pair]],
        next_state=states[after],
        first_step=np.concatenate([[0], np.cumsum(np.bincount(who, minlength=n))]).astype(np.int64),
    )


def enumerate_paths(
    world: TabularWorld, start: Any, *, destination: Any = UNKNOWN, max_steps: int, limit: int = 1_000_000
) -> Iterator[Path]:
    """Every path from ``start``: until it ends (destination, no actions, the horizon) or has ``max_steps`` steps.

    Raises:
        ConfigError: more than ``limit`` paths.
    """
    t = world.transitions
    steps = max_steps if world.horizon is None else min(max_steps, world.horizon)
    labels, actions = world.states.to_numpy(), world.actions.to_numpy()[world.action_of_pair]
    goal = -1 if destination is UNKNOWN else int(world.state_numbers([destination], "destination")[0])
    stack: list[tuple[tuple[int, ...], tuple[Any, ...]]] = [((int(world.state_numbers([start], "start")[0]),), ())]
    count = 0
    while stack:
        states, taken = stack.pop()
        here = states[-1]
        if t.terminal[here] or here == goal or len(taken) == steps:
            count += 1
            if count > limit:
                raise ConfigError(f"more than {limit} paths from {start!r}; this world is too large to list")
            yield Path(tuple(labels[list(states)]), taken)
            continue
        for pair in range(t.first_pair[here], t.first_pair[here + 1]):
            for outcome in range(t.first_outcome[pair], t.first_outcome[pair + 1]):
                stack.append(((*states, int(t.next_state[outcome])), (*taken, actions[pair])))
