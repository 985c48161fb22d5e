"""What ``irlhf distill`` asks of a world: contexts, a policy that can be learned, and that policy as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from irlhf.config import Setup
from irlhf.errors import CheckpointError, ConfigError
from irlhf.feedback import DEMONSTRATION
from irlhf.io import label
from irlhf.worlds.tabular.draws import Start
from irlhf.worlds.tabular.policies import SoftmaxPolicy
from irlhf.worlds.tabular.world import TabularWorld


def contexts_of(setup: Setup, how: Any) -> list[list[Any]]:
    """The distinct contexts of the demonstrations, as lists that JSON can hold: [state] or [state, destination].

    Where there are no demonstrations, those of all that was shown; where there is no feedback, all states.

    Args:
        setup: the world, and the feedback of the fit as far as it is there.
        how: settings of ``irlhf distill``; ``how.start``: labels of states to start from instead; with destinations, to
            each destination of the feedback.

    Raises:
        ConfigError: a state that is not there, or nothing says where paths go.
    """
    if how.prompts is not None:
        raise ConfigError("--prompts are of texts; in this world give --start")
    world: TabularWorld = setup.world
    starts: Sequence[str] = how.start
    ends = world.transitions.terminal
    seen = _seen(setup)
    try:
        labels = [label(text) for text in starts]
    except ValueError as error:
        raise ConfigError(f"--start: {error}") from None
    if labels and ends[world.state_numbers(labels, "start")].any():
        raise ConfigError("--start is a state that is never left: nothing is decided there; give another")
    if world.destinations:
        if not seen:
            raise ConfigError(
                "nothing says where paths go: the feedback of the fit is not where it was; put its files back"
            )
        goals = dict.fromkeys(goal for _, goal in seen)
        pairs = [(state, goal) for state in labels for goal in goals] if labels else seen
        return [[state, goal] for state, goal in dict.fromkeys(pairs) if state != goal]
    if not labels:
        labels = [state for state, _ in seen] or world.states.to_numpy()[~ends].tolist()
    return [[state] for state in dict.fromkeys(labels)]


def _seen(setup: Setup) -> list[tuple[Any, Any]]:
    """(start, context) of every demonstration that has a step; without any, of every trajectory shown."""
    found: dict[bool, list[tuple[Any, Any]]] = {True: [], False: []}
    for part in setup.feedback:
        rows = np.repeat(np.arange(len(part)), np.diff(part.first_item))
        for row, number in zip(rows, part.trajectory, strict=True):
            path = part.trajectories[int(number)]
            if len(path.actions):
                shown = (path.states[0], part.contexts[int(part.context[row])])
                found[bool(part.kind[row] == DEMONSTRATION)].append(shown)
    return found[True] or found[False]


def policy_of(setup: Setup, contexts: Sequence[Sequence[Any]], how: Any) -> tuple[SoftmaxPolicy, list[Start]]:
    """A policy that starts as the base measure and can become any other, and contexts as the world draws from them.

    Raises:
        CheckpointError: contexts that are not of this world.
        ConfigError: a rank, which a table has not.
    """
    if how.rank is not None:
        raise ConfigError("--rank is of texts; in this world every state has numbers of its own")
    world: TabularWorld = setup.world
    length = 2 if world.destinations else 1
    if any(not isinstance(context, list) or len(context) != length for context in contexts):
        raise CheckpointError("the contexts of the run are not those of its world; distill again")
    starts = [Start(*context) for context in contexts]
    goals = list(dict.fromkeys(start.destination for start in starts))
    return SoftmaxPolicy(world, contexts=goals if world.destinations else None), starts


def policy_files(setup: Setup, policy: SoftmaxPolicy) -> dict[str, bytes]:
    """``policy.csv``: ``state, action, probability``.

    With ``destination`` and ``time`` in front where the policy depends on them.
    """
    with torch.no_grad():
        probability = policy.log_policy().exp().reshape(-1).numpy()
    pairs = setup.world.pair_table()
    blocks = len(probability) // len(pairs)
    table = pd.concat([pairs] * blocks, ignore_index=True).assign(probability=probability)
    block = np.arange(blocks).repeat(len(pairs))
    if policy.timed:
        table.insert(0, "time", block % policy.times)
    if policy.contexts is not None:
        table.insert(0, "destination", np.array(policy.contexts, object)[block // policy.times])
    return {"policy.csv": table.to_csv(index=False, lineterminator="\n").encode("utf-8", "replace")}
