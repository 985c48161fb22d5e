"""Walking through a tabular world: paths drawn from a policy, and all paths of a small world listed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from irlhf.errors import ConfigError
from irlhf.functional.walks import walk
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
    t = world.transitions
    policy = np.exp(np.asarray(log_policy, dtype=float))
    if np.isnan(policy).any():
        raise ConfigError("log_policy holds what is not a number; give log-probabilities, -inf for what is never done")
    timed = policy.shape[-2] == world.horizon if policy.ndim == 3 or (policy.ndim == 2 and world.horizon) else False
    policy = policy.reshape(-1, policy.shape[-2] if timed else 1, t.n_pairs)
    n = len(starts)
    if len(policy) not in (1, n):
        raise ConfigError(f"{len(policy)} policies for {n} starts; give one for each, or a single one")
    walks = walk(
        t,
        policy,
        np.arange(n) if len(policy) == n else np.zeros(n, np.int64),
        world.state_numbers(starts, "start"),
        np.full(n, -1) if destinations is None else world.state_numbers(destinations, "destination"),
        max_steps=max_steps,
        horizon=world.horizon,
        rng=np.random.default_rng(seed),
    )
    states = world.states.to_numpy()
    return Paths(
        state=states[t.state[walks.pair]],
        action=world.actions.to_numpy()[world.action_of_pair[walks.pair]],
        next_state=states[t.next_state[walks.outcome]],
        first_step=walks.first_step,
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
